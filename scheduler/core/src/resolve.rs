//! Turns the names of a job file (clusters, shares, containers, file servers, images) into what stands for them in
//! the state. The one place that knows bindings; every failure says which field and how to bind it.

use trainyard_proto::v1::{
    FileServer, JobSpec, MountVolumes, NfsVolume, StorageBinding, Volume, Workspace, file_server,
    image_binding, storage_binding, volume,
};
use trainyard_shared::names::{ClusterName, FileServerName, NameError, WorkspaceName};
use trainyard_shared::shares;
use trainyard_shared::validate::FieldViolation;

use crate::exports::NFS_PORT;
use crate::state::State;

/// NFS version where a file server names none.
const DEFAULT_NFS_VERSION: &str = "4.1";

/// Full resource name of a cluster named in a job of `workspace`; a bare name is taken in that workspace.
pub(crate) fn cluster_name(
    workspace: &WorkspaceName,
    id: &str,
) -> Result<ClusterName, FieldViolation> {
    ClusterName::resolve(workspace, id).map_err(|error| violation("cluster.id", error.to_string()))
}

/// Full resource name of a file server named in a resource of `workspace`.
pub(crate) fn file_server_name(
    workspace: &WorkspaceName,
    id: &str,
) -> Result<FileServerName, String> {
    let name = FileServerName::resolve(workspace, id).map_err(|error| error.to_string())?;
    if name.workspace() != *workspace {
        return Err(format!(
            "{name} belongs to another workspace; use a file server of {workspace}"
        ));
    }
    Ok(name)
}

/// Whether the job's image is bound to something it can run in.
pub(crate) fn image(workspace: &Workspace, spec: &JobSpec) -> Option<FieldViolation> {
    let image = spec
        .container_settings
        .as_ref()?
        .image_source_registry
        .as_ref()?
        .image
        .as_str();
    const FIELD: &str = "containerSettings.imageSourceRegistry.image";
    match shares::bind_image(workspace, image).and_then(|b| b.target.as_ref()) {
        Some(image_binding::Target::Host(_)) => None,
        Some(image_binding::Target::OtherImage(other)) => Some(violation(
            FIELD,
            format!(
                "image {image} is bound to image {other}, but containers are not supported yet; bind it to the host"
            ),
        )),
        None => Some(violation(
            FIELD,
            format!(
                "image {image} is not bound in {}, and containers are not supported yet; bind it to the host: \
                 trainyard workspace update -n {} --bind-image {image}=host",
                workspace.name,
                last_segment(&workspace.name),
            ),
        )),
    }
}

/// The volumes behind a mount list. `prefix` is the path of the list in its file.
pub(crate) fn volumes(
    state: &State,
    workspace: &Workspace,
    mounts: &MountVolumes,
    prefix: &str,
) -> Result<Vec<Volume>, Vec<FieldViolation>> {
    let mut found = Vec::new();
    let mut violations = Vec::new();
    let mut add = |result: Result<Volume, FieldViolation>| match result {
        Ok(volume) => found.push(volume),
        Err(violation) => violations.push(violation),
    };
    for (i, share) in mounts.azure_file_shares.iter().enumerate() {
        let field = format!("{prefix}.azureFileShares[{i}].azureFileUrl");
        let result = match shares::of_file_share(share) {
            Some((account, name)) => bound(
                state,
                workspace,
                account,
                name,
                &share.relative_mount_path,
                &field,
            ),
            None => Err(violation(
                &field,
                "must look like https://ACCOUNT.file.core.windows.net/SHARE",
            )),
        };
        add(result);
    }
    for (i, container) in mounts.azure_blob_file_systems.iter().enumerate() {
        let field = format!("{prefix}.azureBlobFileSystems[{i}].containerName");
        let (account, name) = shares::of_container(container);
        add(bound(
            state,
            workspace,
            account,
            name,
            &container.relative_mount_path,
            &field,
        ));
    }
    for (i, reference) in mounts.file_servers.iter().enumerate() {
        let field = format!("{prefix}.fileServers[{i}].fileServer");
        let id = reference.file_server.as_ref().map_or("", |r| r.id.as_str());
        let result = file_server(state, workspace, id)
            .map_err(|message| violation(&field, message))
            .map(|server| {
                let mut nfs = nfs(state, server, &reference.source_directory);
                nfs.mount_options = join_options(&nfs.mount_options, &reference.mount_options);
                volume(&reference.relative_mount_path, volume::Source::Nfs(nfs))
            });
        add(result);
    }
    for file_system in &mounts.unmanaged_file_systems {
        add(Ok(volume(
            &file_system.relative_mount_path,
            volume::Source::MountCommand(file_system.mount_command.clone()),
        )));
    }
    if violations.is_empty() {
        Ok(found)
    } else {
        Err(violations)
    }
}

/// The storage behind one binding of a workspace.
pub(crate) fn binding_target(
    state: &State,
    workspace: &Workspace,
    binding: &StorageBinding,
) -> Result<volume::Source, String> {
    match binding.target.as_ref() {
        Some(storage_binding::Target::HostPath(path)) => Ok(volume::Source::HostPath(path.clone())),
        Some(storage_binding::Target::FileServer(directory)) => {
            let server = file_server(state, workspace, &directory.file_server)?;
            Ok(volume::Source::Nfs(nfs(
                state,
                server,
                &directory.directory,
            )))
        }
        None => Err(format!("the binding of {} names no target", binding.share)),
    }
}

fn bound(
    state: &State,
    workspace: &Workspace,
    account: &str,
    share: &str,
    mount_path: &str,
    field: &str,
) -> Result<Volume, FieldViolation> {
    let binding = shares::bind(workspace, account, share).ok_or_else(|| {
        violation(
            field,
            format!(
                "{share} is not bound in {}; say what it means here: trainyard workspace update -n {} \
                 --bind-storage {share}=hostPath:/DIRECTORY (or {share}=FILE_SERVER:/DIRECTORY)",
                workspace.name,
                last_segment(&workspace.name),
            ),
        )
    })?;
    let source =
        binding_target(state, workspace, binding).map_err(|message| violation(field, message))?;
    Ok(volume(mount_path, source))
}

fn file_server<'a>(
    state: &'a State,
    workspace: &Workspace,
    id: &str,
) -> Result<&'a FileServer, String> {
    let workspace_name: WorkspaceName = workspace
        .name
        .parse()
        .map_err(|error: NameError| error.to_string())?;
    let name = file_server_name(&workspace_name, id)?.to_string();
    state.file_servers.get(&name).ok_or_else(|| {
        format!("{name} does not exist; create it with trainyard file-server create")
    })
}

fn nfs(state: &State, server: &FileServer, directory: &str) -> NfsVolume {
    let (address, export, version, options) = match server.kind.as_ref() {
        Some(file_server::Kind::External(external)) => (
            external.address.clone(),
            external.export.clone(),
            external.nfs_version.as_str(),
            external.mount_options.clone(),
        ),
        Some(file_server::Kind::Managed(managed)) => exported(state, server, &managed.node),
        None => Default::default(),
    };
    let version = if version.is_empty() {
        DEFAULT_NFS_VERSION
    } else {
        version
    };
    let directory = directory.trim_matches('/');
    let export = export.trim_end_matches('/');
    let path = match (export.is_empty(), directory.is_empty()) {
        (true, true) => "/".to_owned(),
        (_, true) => export.to_owned(),
        (_, false) => format!("{export}/{directory}"),
    };
    NfsVolume {
        file_server: server.name.clone(),
        address,
        path,
        nfs_version: version.to_owned(),
        mount_options: options,
    }
}

/// Address, export, version and options of a managed file server. While its node has not said where it is, they are
/// where it will be by default: the mount fails with the file server's name until then.
fn exported(
    state: &State,
    server: &FileServer,
    node: &str,
) -> (String, String, &'static str, String) {
    match server.mount_settings.as_ref() {
        Some(mount) => (
            mount.file_server_internal_ip.clone(),
            mount.mount_point.clone(),
            "",
            format!("port={}", mount.port),
        ),
        None => {
            let inventory = state.nodes.get(node).and_then(|n| n.inventory.as_ref());
            (
                inventory.map(|i| i.address.clone()).unwrap_or_default(),
                format!("/{}", server.uid),
                "",
                format!("port={NFS_PORT}"),
            )
        }
    }
}

fn join_options(first: &str, second: &str) -> String {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first.to_owned(),
        (true, false) => second.to_owned(),
        (false, false) => format!("{first},{second}"),
    }
}

fn volume(mount_path: &str, source: volume::Source) -> Volume {
    Volume {
        relative_mount_path: mount_path.to_owned(),
        source: Some(source),
    }
}

fn violation(field: &str, message: impl Into<String>) -> FieldViolation {
    FieldViolation {
        field: field.to_owned(),
        message: message.into(),
    }
}

fn last_segment(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
