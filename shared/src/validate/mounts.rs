//! Volumes to mount.

use trainyard_proto::v1::MountVolumes;

use super::checks::Checker;
use super::{MAX_COMMAND_BYTES, MAX_PATH_BYTES};
use crate::names::{FileServerName, WorkspaceName};
use crate::shares;

/// Every entry names its source, and no two mount points are the same or inside each other.
pub(super) fn check(c: &mut Checker, volumes: &MountVolumes) {
    c.each("azureFileShares", &volumes.azure_file_shares, |c, mount| {
        const EXAMPLE: &str = "https://ACCOUNT.file.core.windows.net/SHARE";
        if c.required("azureFileUrl", &mount.azure_file_url, EXAMPLE)
            && shares::share_of_url(&mount.azure_file_url).is_none()
        {
            c.wrong(
                "azureFileUrl",
                format!("not the address of a share; write {EXAMPLE}"),
            );
        }
        c.plain("accountName", &mount.account_name, MAX_PATH_BYTES);
        credentials(c, mount.credentials.is_some());
        mode(c, "fileMode", &mount.file_mode);
        mode(c, "directoryMode", &mount.directory_mode);
        mount_point(c, &mount.relative_mount_path);
    });
    c.each(
        "azureBlobFileSystems",
        &volumes.azure_blob_file_systems,
        |c, mount| {
            if c.required(
                "containerName",
                &mount.container_name,
                "the name of the container",
            ) && mount.container_name.contains('/')
            {
                c.wrong(
                    "containerName",
                    "leave out `/`; the account stands in accountName",
                );
            }
            c.plain("accountName", &mount.account_name, MAX_PATH_BYTES);
            credentials(c, mount.credentials.is_some());
            if !mount.mount_options.is_empty() {
                c.wrong(
                    "mountOptions",
                    "options of blobfuse, which mounts nothing here; leave them out: the workspace binds the container",
                );
            }
            mount_point(c, &mount.relative_mount_path);
        },
    );
    c.each("fileServers", &volumes.file_servers, |c, mount| {
        match &mount.file_server {
            Some(server) if !server.id.is_empty() => {
                let checked = WorkspaceName::new("w")
                    .and_then(|any| FileServerName::resolve(&any, &server.id));
                if let Err(error) = checked {
                    c.wrong("fileServer.id", error.to_string());
                }
            }
            _ => c.wrong("fileServer.id", "required; write the name of a file server"),
        }
        let below = mount
            .source_directory
            .strip_prefix('/')
            .unwrap_or(&mount.source_directory);
        c.relative_path("sourceDirectory", below);
        mount_options(c, &mount.mount_options);
        mount_point(c, &mount.relative_mount_path);
    });
    c.each(
        "unmanagedFileSystems",
        &volumes.unmanaged_file_systems,
        |c, mount| {
            if mount.mount_command.trim().is_empty() {
                c.wrong(
                    "mountCommand",
                    "required; write a command to which the mount point is appended",
                );
            } else {
                c.plain("mountCommand", &mount.mount_command, MAX_COMMAND_BYTES);
            }
            mount_point(c, &mount.relative_mount_path);
        },
    );
    disjoint(c, volumes);
}

/// Options of mount.nfs: one word.
pub(super) fn mount_options(c: &mut Checker, options: &str) {
    if c.plain("mountOptions", options, MAX_PATH_BYTES) && options.contains(char::is_whitespace) {
        c.wrong(
            "mountOptions",
            "leave out spaces; write options such as rw,hard",
        );
    }
}

fn credentials(c: &mut Checker, given: bool) {
    if given {
        c.wrong(
            "credentials",
            "no key is kept, and none is needed; leave it out: the workspace binds the storage",
        );
    }
}

fn mode(c: &mut Checker, key: &str, mode: &str) {
    if !matches!(mode, "" | "0777" | "777") {
        c.wrong(
            key,
            "only 0777 is possible: file servers and host paths carry their own modes; leave it out",
        );
    }
}

fn mount_point(c: &mut Checker, path: &str) {
    if c.required("relativeMountPath", path, "a folder name, such as data") {
        c.relative_path("relativeMountPath", path);
        if !path.starts_with('/') && segments(path).next().is_none() {
            c.wrong(
                "relativeMountPath",
                "names no folder; write a folder name, such as data",
            );
        }
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter(|segment| !segment.is_empty() && *segment != ".")
}

/// No two mount points may be the same, or one inside another: what lies inside would depend on the order.
fn disjoint(c: &mut Checker, volumes: &MountVolumes) {
    let lists: [(&str, Vec<&str>); 4] = [
        (
            "azureFileShares",
            volumes
                .azure_file_shares
                .iter()
                .map(|m| m.relative_mount_path.as_str())
                .collect(),
        ),
        (
            "azureBlobFileSystems",
            volumes
                .azure_blob_file_systems
                .iter()
                .map(|m| m.relative_mount_path.as_str())
                .collect(),
        ),
        (
            "fileServers",
            volumes
                .file_servers
                .iter()
                .map(|m| m.relative_mount_path.as_str())
                .collect(),
        ),
        (
            "unmanagedFileSystems",
            volumes
                .unmanaged_file_systems
                .iter()
                .map(|m| m.relative_mount_path.as_str())
                .collect(),
        ),
    ];
    let mut points: Vec<(Vec<&str>, usize, String)> = Vec::new();
    for (list, paths) in &lists {
        for (index, path) in paths.iter().enumerate() {
            let point: Vec<&str> = segments(path).collect();
            if !point.is_empty() {
                let order = points.len();
                points.push((point, order, format!("{list}[{index}]")));
            }
        }
    }
    // Sorted by segments, a path stands before what is inside it, and directly behind one that contains it or its
    // neighbours: comparing with the last outermost one is enough.
    points.sort();
    let mut outer: Option<&(Vec<&str>, usize, String)> = None;
    let mut clashes = Vec::new();
    for entry in &points {
        match outer {
            Some(first) if entry.0.starts_with(&first.0) => clashes.push((first, entry)),
            _ => outer = Some(entry),
        }
    }
    clashes.sort_by_key(|(first, second)| first.1.max(second.1));
    for (first, second) in clashes {
        let (earlier, later) = if first.1 < second.1 {
            (first, second)
        } else {
            (second, first)
        };
        c.wrong(
            &format!("{}.relativeMountPath", later.2),
            format!(
                "{:?} and {:?} of {} are the same folder or one inside the other; choose another",
                later.0.join("/"),
                earlier.0.join("/"),
                earlier.2
            ),
        );
    }
}
