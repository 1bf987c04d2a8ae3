//! Workspaces, clusters and file servers.

use prost::Message;
use trainyard_proto::v1::file_server::Kind;
use trainyard_proto::v1::{
    AutoScaleSettings, Cluster, ExternalFileServer, FileServer, ManagedFileServer,
    NodeDeallocationOption, ScaleSettings, SetupTask, UserAccountSettings, VmPriority, Workspace,
    image_binding, storage_binding,
};

use super::checks::Checker;
use super::job::variables;
use super::{FieldViolation, MAX_NODES, MAX_PATH_BYTES, mounts};
use crate::names::{FileServerName, NodeName, WorkspaceName, check_node_id};

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
    let age = workspace.retention.and_then(|retention| retention.max_age);
    if age.is_some_and(|age| !within_ten_years(&age, false)) {
        c.wrong(
            "retention.maxAge",
            "must be longer than nothing and at most ten years; write P30D",
        );
    }
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
    if VmPriority::try_from(cluster.vm_priority).is_err() {
        c.wrong("vmPriority", "unknown; write dedicated or lowpriority");
    }
    if let Some(user) = &cluster.user_account_settings {
        c.within("userAccountSettings", |c| user_account(c, user));
    }
    if let Some(image) = cluster
        .virtual_machine_configuration
        .as_ref()
        .and_then(|configuration| configuration.image_reference.as_ref())
    {
        c.within("virtualMachineConfiguration.imageReference", |c| {
            for (key, value) in [
                ("publisher", &image.publisher),
                ("offer", &image.offer),
                ("sku", &image.sku),
                ("version", &image.version),
                ("virtualMachineImageId", &image.virtual_machine_image_id),
            ] {
                c.plain(key, value, 256);
            }
        });
    }
    if cluster.subnet.is_some() {
        c.wrong(
            "subnet",
            "has no meaning on machines of your own; leave it out",
        );
    }
    if let Some(setup) = &cluster.node_setup {
        c.within("nodeSetup", |c| {
            if let Some(task) = &setup.setup_task {
                c.within("setupTask", |c| setup_task(c, task));
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

fn setup_task(c: &mut Checker, task: &SetupTask) {
    c.command("commandLine", &task.command_line);
    c.rooted_path("stdOutErrPathPrefix", &task.std_out_err_path_prefix);
    variables(c, &task.environment_variables);
    for index in 0..task.secrets.len() {
        c.wrong(
            &format!("secrets[{index}]"),
            "secrets cannot be kept safely and are refused; put the value into a file on the node that only root can \
             read",
        );
    }
}

fn user_account(c: &mut Checker, user: &UserAccountSettings) {
    const EXAMPLE: &str = "the name of a user that the nodes' agents allow, such as trainyard";
    let name = user.admin_user_name.as_str();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if !name.is_empty() && (name.len() > 32 || name.starts_with('-') || !name.bytes().all(plain)) {
        c.wrong("adminUserName", format!("no user name; write {EXAMPLE}"));
    }
    for (key, value) in [
        ("adminUserSshPublicKey", &user.admin_user_ssh_public_key),
        ("adminUserPassword", &user.admin_user_password),
    ] {
        if !value.is_empty() {
            c.wrong(
                key,
                "no accounts are made, and nobody logs in with it; leave it out: users are the nodes' own",
            );
        }
    }
}

fn scale_settings(c: &mut Checker, settings: &ScaleSettings) {
    match (&settings.manual, &settings.auto_scale) {
        (None, None) => c.wrong(
            "",
            "required: manual with targetNodeCount, or autoScale with minimumNodeCount and maximumNodeCount",
        ),
        (Some(_), Some(_)) => c.wrong("autoScale", "excludes manual; keep one of the two"),
        (None, Some(auto)) => c.within("autoScale", |c| auto_scale(c, auto)),
        (Some(manual), None) => {
            node_count(c, "manual.targetNodeCount", manual.target_node_count);
            if NodeDeallocationOption::try_from(manual.node_deallocation_option).is_err() {
                c.wrong(
                    "manual.nodeDeallocationOption",
                    "unknown; write requeue, terminate or waitforjobcompletion",
                );
            }
        }
    }
}

fn node_count(c: &mut Checker, key: &str, count: u32) -> bool {
    if count > MAX_NODES {
        c.wrong(key, format!("at most {MAX_NODES} nodes are possible"));
    }
    count <= MAX_NODES
}

fn auto_scale(c: &mut Checker, settings: &AutoScaleSettings) {
    let (least, most) = (settings.minimum_node_count, settings.maximum_node_count);
    let sane = node_count(c, "minimumNodeCount", least) & node_count(c, "maximumNodeCount", most);
    if sane && least > most {
        c.wrong(
            "minimumNodeCount",
            format!("{least} is more than maximumNodeCount ({most}); write at most {most}"),
        );
    } else if sane && most == 0 {
        c.wrong("maximumNodeCount", "required; write at least 1");
    } else if sane && settings.initial_node_count > most {
        c.wrong(
            "initialNodeCount",
            format!("is more than maximumNodeCount ({most}); write at most {most}"),
        );
    }
    if let Some(delay) = &settings.node_idle_time_before_scale_down
        && !within_ten_years(delay, true)
    {
        c.wrong(
            "nodeIdleTimeBeforeScaleDown",
            "must be from PT0S to ten years; write PT2M",
        );
    }
}

/// Whether the duration is well formed and lies between nothing (which itself counts if `zero`) and ten years.
fn within_ten_years(duration: &prost_types::Duration, zero: bool) -> bool {
    let sane = (0..1_000_000_000).contains(&duration.nanos);
    let is_zero = duration.seconds == 0 && duration.nanos == 0;
    sane && (0..=3650 * 86_400).contains(&duration.seconds) && (zero || !is_zero)
}

/// Everything that is wrong with a file server, its name apart.
#[must_use]
pub fn file_server(server: &FileServer) -> Vec<FieldViolation> {
    let mut c = Checker::new();
    c.size(server.encoded_len());
    match &server.kind {
        None => c.wrong(
            "external",
            "required: address and export of an NFS server that exists; or managed, a directory of a node",
        ),
        Some(Kind::External(external)) => c.within("external", |c| external_server(c, external)),
        Some(Kind::Managed(managed)) => c.within("managed", |c| managed_server(c, managed)),
    }
    c.finish()
}

fn managed_server(c: &mut Checker, managed: &ManagedFileServer) {
    if !managed.node.is_empty() {
        let checked = if managed.node.contains('/') {
            managed.node.parse::<NodeName>().map(|_| ())
        } else {
            check_node_id(&managed.node)
        };
        if let Err(error) = checked {
            c.wrong("node", error.to_string());
        }
    }
    if !managed.directory.is_empty() {
        c.absolute_path(
            "directory",
            &managed.directory,
            "a directory of the node, such as /srv/data",
        );
    }
    c.plain("vmSize", &managed.vm_size, 256);
    if let Some(disks) = &managed.data_disks {
        c.within("dataDisks", |c| {
            if disks.disk_size_in_gb == 0 {
                c.wrong("diskSizeInGB", "required; write how large a disk must be");
            }
            for (key, value) in [
                ("storageAccountType", &disks.storage_account_type),
                ("cachingType", &disks.caching_type),
            ] {
                if !value.is_empty() {
                    c.wrong(key, "the node's disk is what it is; leave it out");
                }
            }
        });
    }
    if managed.ssh_configuration.is_some() {
        c.wrong(
            "sshConfiguration",
            "nodes are administered by their owners, not through a file server; leave it out",
        );
    }
    if managed.subnet.is_some() {
        c.wrong(
            "subnet",
            "has no meaning on machines of your own; leave it out",
        );
    }
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
