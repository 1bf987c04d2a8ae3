//! Volumes of clusters and jobs: host paths, NFS, and file systems that a command of the user mounts.
//!
//! Everything that touches a volume runs in a helper process with a deadline ([`Helper`]); what is mounted is read from
//! `/proc/self/mountinfo`, never by looking at the mount point, which hangs with its server. Must never remove anything
//! but symbolic links and empty directories at mount points.
//!
//! A host path is a symbolic link at the mount point, so that it needs no privilege. A mount command runs as the job's
//! user (root only where the workspace allows it), and gets the mount point as its last argument. NFS mounts never
//! honour set-user-id files or devices.

mod perform;
mod table;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trainyard_proto::v1::{NameValuePair, NfsVolume, volume};

use crate::confine::Credentials;
use crate::helper::{Helper, HelperError, Request};
use crate::layout::MountPoint;

pub(crate) use perform::{perform_mount, perform_unmount};

/// A mount for a helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRequest {
    pub(crate) target: PathBuf,
    source: Source,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    HostPath(PathBuf),
    Nfs {
        file_server: String,
        device: String,
        options: String,
    },
    Command {
        command: String,
        user: Credentials,
    },
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmounted {
    /// It is gone.
    Clean,
    /// It is gone from the tree, but something still held it: the kernel ends it later.
    Lazy,
    /// There was none.
    Absent,
}

/// Where a volume comes from, for the log: `SERVER:/EXPORT`, a directory of the node, or the program of the mount
/// command. Its arguments are left out: they may hold a password.
#[must_use]
pub fn describe(point: &MountPoint) -> String {
    match &point.volume.source {
        Some(volume::Source::HostPath(path)) => path.clone(),
        Some(volume::Source::Nfs(nfs)) => export(nfs),
        Some(volume::Source::MountCommand(command)) => {
            let program = command.split_whitespace().next().unwrap_or_default();
            // The first word may be a variable or part of a script, whose value is nobody else's business.
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
            if !program.is_empty() && program.chars().all(plain) {
                format!("mount command `{program}`")
            } else {
                "mount command".to_owned()
            }
        }
        None => "nothing".to_owned(),
    }
}

/// `SERVER:/EXPORT`, with brackets around an IPv6 address.
fn export(nfs: &NfsVolume) -> String {
    if nfs.address.contains(':') {
        format!("[{}]:{}", nfs.address, nfs.path)
    } else {
        format!("{}:{}", nfs.address, nfs.path)
    }
}

/// Mounts a volume. One that is mounted already, by an earlier life of the agent, is left as it is.
///
/// # Errors
/// What could not be mounted, from where, and what the mount program said.
pub async fn mount(
    helper: &Helper,
    point: &MountPoint,
    user: &Credentials,
) -> Result<(), MountError> {
    let request =
        request(point, user).map_err(|message| MountError::of(point, message, String::new()))?;
    helper
        .ask(&Request::Mount(request))
        .await
        .map_err(|error| MountError::from_helper(point, error))
}

/// Takes a volume away, if necessary behind the back of whatever still uses it, and the mount point with it.
///
/// # Errors
/// Not even that worked.
pub async fn unmount(helper: &Helper, target: &Path) -> Result<Unmounted, MountError> {
    let ask = |lazy| Request::Unmount {
        target: target.to_owned(),
        lazy,
    };
    let first = helper.ask(&ask(false)).await;
    let outcome = match first {
        // The server does not answer.
        Err(HelperError::Deadline { .. }) => helper.ask(&ask(true)).await,
        other => other,
    };
    outcome.map_err(|error| {
        let (message, output) = words(error);
        let details = vec![
            detail("mountPoint", &target.display().to_string()),
            detail("output", &output),
        ];
        MountError {
            code: "UnmountError",
            message,
            details: without_empty(details),
        }
    })
}

/// Mount points at or below a directory, deepest first. Touches none of them.
///
/// # Errors
/// `/proc` cannot be read.
pub fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(table::table()?
        .into_iter()
        .rev()
        .map(|mount| mount.target)
        .filter(|target| target.starts_with(root))
        .collect())
}

fn request(point: &MountPoint, user: &Credentials) -> Result<MountRequest, String> {
    let source = match &point.volume.source {
        Some(volume::Source::HostPath(path)) => Source::HostPath(PathBuf::from(path)),
        Some(volume::Source::Nfs(nfs)) => {
            let version = Some(nfs.nfs_version.trim()).filter(|version| !version.is_empty());
            let options = [
                version.map(|version| format!("vers={version}")),
                Some(nfs.mount_options.trim().trim_matches(',').to_owned())
                    .filter(|options| !options.is_empty()),
                Some("nosuid,nodev".to_owned()),
            ];
            Source::Nfs {
                file_server: nfs.file_server.clone(),
                device: export(nfs),
                options: options.into_iter().flatten().collect::<Vec<_>>().join(","),
            }
        }
        Some(volume::Source::MountCommand(command)) => Source::Command {
            command: command.clone(),
            user: user.clone(),
        },
        None => return Err("the volume has no source; upgrade the agent".to_owned()),
    };
    Ok(MountRequest {
        target: point.target.clone(),
        source,
    })
}

/// A volume that cannot be mounted or unmounted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    code: &'static str,
    message: String,
    details: Vec<NameValuePair>,
}

impl MountError {
    /// Stable code: `FileServerMountError` for NFS, else `MountError`; `UnmountError`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Facts behind the message: volume, fileServer, server, export, options, command, path, mountPoint, output.
    #[must_use]
    pub fn details(&self) -> Vec<NameValuePair> {
        self.details.clone()
    }

    fn from_helper(point: &MountPoint, error: HelperError) -> Self {
        let (mut message, output) = match error {
            HelperError::Deadline { deadline_ms, .. } => {
                (format!("no answer within {deadline_ms} ms"), String::new())
            }
            other => words(other),
        };
        if let Some(volume::Source::Nfs(nfs)) = &point.volume.source
            && !message.contains(&nfs.path)
        {
            message = format!(
                "cannot mount {} of file server {}: {message}",
                export(nfs),
                nfs.file_server
            );
        }
        Self::of(point, message, output)
    }

    fn of(point: &MountPoint, message: String, output: String) -> Self {
        let volume = &point.volume;
        let mut details = vec![detail("volume", &volume.relative_mount_path)];
        let code = match &volume.source {
            Some(volume::Source::Nfs(nfs)) => {
                details.push(detail("fileServer", &nfs.file_server));
                details.push(detail("server", &nfs.address));
                details.push(detail("export", &nfs.path));
                details.push(detail("options", &nfs.mount_options));
                "FileServerMountError"
            }
            Some(volume::Source::HostPath(path)) => {
                details.push(detail("path", path));
                "MountError"
            }
            Some(volume::Source::MountCommand(command)) => {
                details.push(detail("command", command));
                "MountError"
            }
            None => "MountError",
        };
        details.push(detail("mountPoint", &point.target.display().to_string()));
        details.push(detail("output", &output));
        Self {
            code,
            message: format!("volume {}: {message}", volume.relative_mount_path),
            details: without_empty(details),
        }
    }
}

fn words(error: HelperError) -> (String, String) {
    match error {
        HelperError::Failed { message, output } => (message, output),
        other => (other.to_string(), String::new()),
    }
}

fn detail(name: &str, value: &str) -> NameValuePair {
    NameValuePair {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn without_empty(mut details: Vec<NameValuePair>) -> Vec<NameValuePair> {
    details.retain(|detail| !detail.value.is_empty());
    details
}

#[cfg(test)]
mod tests;
