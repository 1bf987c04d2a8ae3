//! Workspaces, clusters and file servers.

use prost::Message;
use trainyard_proto::v1::file_server::Kind;
use trainyard_proto::v1::{
    Cluster, ExternalFileServer, FileServer, ScaleSettings, Workspace, image_binding,
    storage_binding,
};

use super::checks::Checker;
use super::{FieldViolation, MAX_NODES, MAX_PATH_BYTES, mounts};
use crate::names::{FileServerName, WorkspaceName};

const NFS_VERSIONS: [&str; 5] = ["3", "4", "4.0", "4.1", "4.2"];

/// Everything that is wrong with a workspace, its name apart.
#[must_use]
pub fn workspace(workspace: &Workspace) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    c.size(workspace.encoded_len());
    for (key, value) in &workspace.tags {
        if key.trim().is_empty() {
            c.wrong("tags", "a tag has no name");
        }
        c.plain("tags", key, 512);
        c.plain(&format!("tags.{key}"), value, 256);
    }
    c.plain("location", &workspace.location, 256);
    c.each(
        "storageBindings",
        &workspace.storage_bindings,
        |c, binding| {
            share_name(c, &binding.share);
            match &binding.target {
                None => c.wrong("", "required: either hostPath or fileServer"),
                Some(storage_binding::Target::HostPath(path)) => {
                    c.absolute_path("hostPath", path, "an absolute path, such as /data/logs");
                }
                Some(storage_binding::Target::FileServer(directory)) => {
                    c.within("fileServer", |c| {
                        if c.required(
                            "fileServer",
                            &directory.file_server,
                            "the name of a file server",
                        ) {
                            let checked = WorkspaceName::new("w").and_then(|any| {
                                FileServerName::resolve(&any, &directory.file_server)
                            });
                            if let Err(error) = checked {
                                c.wrong("fileServer", error.to_string());
                            }
                        }
                        let below = directory
                            .directory
                            .strip_prefix('/')
                            .unwrap_or(&directory.directory);
                        c.relative_path("directory", below);
                    })
                }
            }
        },
    );
    c.unique(
        "storageBindings",
        "share",
        workspace
            .storage_bindings
            .iter()
            .map(|binding| binding.share.as_str()),
    );
    c.each("imageBindings", &workspace.image_bindings, |c, binding| {
        c.required("image", &binding.image, "the name of an image as job files have it");
        match &binding.target {
            None => c.wrong("", "required: host, which runs jobs of that image directly on the node"),
            Some(image_binding::Target::Host(_)) => {}
            Some(image_binding::Target::OtherImage(_)) => c.wrong(
                "otherImage",
                "containers cannot be run yet; write host, which runs jobs of that image directly on the node",
            ),
        }
    });
    c.unique(
        "imageBindings",
        "image",
        workspace
            .image_bindings
            .iter()
            .map(|binding| binding.image.as_str()),
    );
    c.finish()
}

fn share_name(c: &mut Checker, share: &str) {
    if !c.required(
        "share",
        share,
        "SHARE, or ACCOUNT/SHARE for one account only",
    ) {
        return;
    }
    let parts: Vec<&str> = share.split('/').collect();
    if parts.len() > 2
        || parts.iter().any(|part| part.is_empty())
        || share.contains(char::is_whitespace)
    {
        c.wrong(
            "share",
            "write SHARE, or ACCOUNT/SHARE for one account only",
        );
    }
}

/// Everything that is wrong with a cluster, its name apart.
#[must_use]
pub fn cluster(cluster: &Cluster) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    c.size(cluster.encoded_len());
    c.plain("vmSize", &cluster.vm_size, 256);
    if let Some(settings) = &cluster.scale_settings {
        c.within("scaleSettings", |c| scale_settings(c, settings));
    }
    if cluster.subnet.is_some() {
        c.wrong(
            "subnet",
            "has no meaning on machines of your own; leave it out",
        );
    }
    if let Some(setup) = &cluster.node_setup {
        c.within("nodeSetup", |c| {
            if setup.setup_task.is_some() {
                c.wrong(
                    "setupTask",
                    "set-up tasks of nodes cannot be run yet; prepare the nodes yourself, or use jobPreparation of the \
                     jobs",
                );
            }
            if setup.performance_counters_settings.is_some() {
                c.wrong(
                    "performanceCountersSettings",
                    "there is no Application Insights here; leave it out",
                );
            }
            if let Some(volumes) = &setup.mount_volumes {
                c.within("mountVolumes", |c| mounts::check(c, volumes));
            }
        });
    }
    c.finish()
}

fn scale_settings(c: &mut Checker, settings: &ScaleSettings) {
    match (&settings.manual, &settings.auto_scale) {
        (None, None) => c.wrong("", "required: manual, with targetNodeCount"),
        (Some(_), Some(_)) => c.wrong("autoScale", "excludes manual; keep manual"),
        (None, Some(_)) => c.wrong(
            "autoScale",
            "clusters cannot follow their jobs yet; write manual with targetNodeCount",
        ),
        (Some(manual), None) => {
            if manual.target_node_count > MAX_NODES {
                c.wrong(
                    "manual.targetNodeCount",
                    format!("at most {MAX_NODES} nodes are possible"),
                );
            }
        }
    }
}

/// Everything that is wrong with a file server, its name apart.
#[must_use]
pub fn file_server(server: &FileServer) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    c.size(server.encoded_len());
    match &server.kind {
        None => c.wrong(
            "external",
            "required: address and export of an NFS server that exists",
        ),
        Some(Kind::External(external)) => c.within("external", |c| external_server(c, external)),
        Some(Kind::Managed(_)) => {}
    }
    c.finish()
}

fn external_server(c: &mut Checker, external: &ExternalFileServer) {
    const EXAMPLE: &str = "a host name or IP address, such as nfs.example.org";
    if c.required("address", &external.address, EXAMPLE) {
        let address = external.address.as_str();
        let bare = address
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'))
            .unwrap_or(address);
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let is_ip = bare.parse::<std::net::IpAddr>().is_ok();
        if !is_ip && (address.starts_with('-') || !address.bytes().all(plain)) {
            c.wrong("address", format!("write {EXAMPLE}, without port and path"));
        }
    }
    c.absolute_path(
        "export",
        &external.export,
        "the exported path, such as /export",
    );
    if external.export.contains(char::is_whitespace) {
        c.wrong("export", "leave out spaces");
    }
    let version = external.nfs_version.as_str();
    if !version.is_empty() && !NFS_VERSIONS.contains(&version) {
        c.wrong(
            "nfsVersion",
            format!("unknown; write one of {}", NFS_VERSIONS.join(", ")),
        );
    }
    if c.plain("mountOptions", &external.mount_options, MAX_PATH_BYTES) {
        mounts::mount_options(c, &external.mount_options);
    }
}
