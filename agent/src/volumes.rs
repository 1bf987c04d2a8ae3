//! Volumes of clusters and jobs: host paths, NFS, and file systems that a command of the user mounts.
//!
//! Everything that touches a volume runs in a helper process with a deadline ([`Helper`]); what is mounted is read from
//! `/proc/self/mountinfo`, never by looking at the mount point, which hangs with its server. Must never remove anything
//! but symbolic links and empty directories at mount points.
//!
//! A host path is a symbolic link at the mount point, so that it needs no privilege. A mount command runs as the job's
//! user (root only where the workspace allows it), and gets the mount point as its last argument. NFS mounts never
//! honour set-user-id files or devices.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use trainyard_proto::v1::{NameValuePair, volume};

use crate::confine::Credentials;
use crate::helper::{Failure, Helper, HelperError, Request};
use crate::layout::MountPoint;

/// Most bytes of a program's words that an error repeats.
const OUTPUT_MAX_BYTES: u64 = 4096;
/// Tries of an ordinary unmount while the kernel still lets the last files go.
const UNMOUNT_TRIES: u32 = 5;
/// Time between them.
const UNMOUNT_PAUSE: Duration = Duration::from_millis(50);

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
    Ok(table()?
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
            let host = if nfs.address.contains(':') {
                format!("[{}]", nfs.address)
            } else {
                nfs.address.clone()
            };
            let version = Some(nfs.nfs_version.trim()).filter(|version| !version.is_empty());
            let options = [
                version.map(|version| format!("vers={version}")),
                Some(nfs.mount_options.trim().trim_matches(',').to_owned())
                    .filter(|options| !options.is_empty()),
                Some("nosuid,nodev".to_owned()),
            ];
            Source::Nfs {
                file_server: nfs.file_server.clone(),
                device: format!("{host}:{}", nfs.path),
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

/// In the helper.
pub(crate) fn perform_mount(request: &MountRequest) -> Result<(), Failure> {
    let target = &request.target;
    match &request.source {
        Source::HostPath(path) => link(path, target),
        Source::Nfs {
            file_server,
            device,
            options,
        } => {
            if let Some(mounted) = find(target)? {
                if mounted.kind.starts_with("nfs")
                    && mounted.device.trim_end_matches('/') == device.trim_end_matches('/')
                {
                    return Ok(());
                }
                return Err(occupied(target, &mounted));
            }
            if !has_mount_nfs() {
                return Err(Failure::new(
                    "this host cannot mount NFS: mount.nfs is missing; install the package nfs-common (Debian, Ubuntu) or \
                     nfs-utils (Fedora, RHEL, SUSE)",
                ));
            }
            make_mount_point(target)?;
            let mut command = Command::new("mount");
            command
                .args(["-t", "nfs", "-o", options, device])
                .arg(target);
            run(command).map_err(|failure| Failure {
                message: format!(
                    "cannot mount {device} of file server {file_server}: {}",
                    failure.message
                ),
                output: failure.output,
            })
        }
        Source::Command { command, user } => {
            if find(target)?.is_some() {
                return Ok(());
            }
            make_mount_point(target)?;
            let own = Credentials::own();
            if own.is_root() && !user.is_root() {
                std::os::unix::fs::chown(target, Some(user.uid), Some(user.gid))
                    .map_err(|error| at(target, &error))?;
            }
            run_command_line(command, target, user)?;
            match find(target)? {
                Some(_) => Ok(()),
                None => Err(Failure::new(format!(
                    "mountCommand: `{command} {}` ended with 0, but nothing is mounted there",
                    target.display()
                ))),
            }
        }
    }
}

fn run_command_line(command: &str, target: &Path, user: &Credentials) -> Result<(), Failure> {
    let mut bash = Command::new("/bin/bash");
    bash.args(["-c", &format!("{} \"$1\"", command.trim()), "bash"])
        .arg(target);
    let user = user.clone();
    let as_root = user.is_root();
    drop_in_child(&mut bash, user);
    run(bash).map_err(|failure| {
        let hint = if as_root {
            ""
        } else {
            " (it ran as the job's user; the workspace does not allow root)"
        };
        Failure {
            message: format!("mountCommand failed: {}{hint}", failure.message),
            output: failure.output,
        }
    })
}

#[allow(unsafe_code)] // `pre_exec` of a process with one thread that forks and does nothing else.
fn drop_in_child(command: &mut Command, user: Credentials) {
    // SAFETY: the helper has one thread, so that no lock is held while it forks.
    unsafe {
        command.pre_exec(move || user.assume().map_err(io::Error::from));
    }
}

/// A host path appears as a symbolic link.
fn link(path: &Path, target: &Path) -> Result<(), Failure> {
    if !path.is_absolute() {
        return Err(Failure::new(format!(
            "the host path {} is not absolute",
            path.display()
        )));
    }
    let metadata = std::fs::metadata(path).map_err(|error| {
        Failure::new(format!(
            "the host path {} cannot be used on this node: {error}",
            path.display()
        ))
    })?;
    if !metadata.is_dir() {
        return Err(Failure::new(format!(
            "the host path {} is not a directory",
            path.display()
        )));
    }
    if let Some(mounted) = find(target)? {
        return Err(occupied(target, &mounted));
    }
    match std::fs::read_link(target) {
        Ok(old) if old == path => return Ok(()),
        Ok(_) => std::fs::remove_file(target).map_err(|error| at(target, &error))?,
        Err(_) if target.is_dir() => {
            std::fs::remove_dir(target).map_err(|error| at(target, &error))?
        }
        Err(_) => {}
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(|error| at(parent, &error))?;
    }
    std::os::unix::fs::symlink(path, target).map_err(|error| at(target, &error))
}

fn make_mount_point(target: &Path) -> Result<(), Failure> {
    if target.is_symlink() {
        std::fs::remove_file(target).map_err(|error| at(target, &error))?;
    }
    std::fs::create_dir_all(target).map_err(|error| at(target, &error))
}

/// In the helper.
pub(crate) fn perform_unmount(target: &Path, lazy: bool) -> Result<Unmounted, Failure> {
    let mut outcome = Unmounted::Absent;
    for mount in mounts_below(target).map_err(|error| Failure::new(error.to_string()))? {
        let this = unmount_one(&mount, lazy)?;
        outcome = if outcome == Unmounted::Lazy {
            outcome
        } else {
            this
        };
    }
    match target.symlink_metadata() {
        Ok(found) if found.is_symlink() => {
            std::fs::remove_file(target).map_err(|error| at(target, &error))?;
            outcome = Unmounted::Clean;
        }
        // What lies below an unmounted mount point was written past the mount; it is not ours to delete.
        Ok(_) => drop(std::fs::remove_dir(target)),
        Err(_) => {}
    }
    Ok(outcome)
}

fn unmount_one(target: &Path, lazy: bool) -> Result<Unmounted, Failure> {
    if !lazy {
        for attempt in 1..=UNMOUNT_TRIES {
            match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {
                    return Ok(Unmounted::Clean);
                }
                Err(nix::Error::EPERM) => return unmount_by_program(target),
                Err(nix::Error::EBUSY) if attempt < UNMOUNT_TRIES => {
                    std::thread::sleep(UNMOUNT_PAUSE)
                }
                Err(_) => break,
            }
        }
    }
    umount2(
        target,
        MntFlags::MNT_DETACH | MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW,
    )
    .or_else(|_| umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW))
    .map(|()| Unmounted::Lazy)
    .map_err(|error| Failure::new(format!("cannot unmount {}: {error}", target.display())))
}

/// An agent without privileges: `umount` or `fusermount3` may have some.
fn unmount_by_program(target: &Path) -> Result<Unmounted, Failure> {
    let mut command = Command::new("umount");
    command.arg(target);
    let first = run(command);
    if first.is_ok() {
        return Ok(Unmounted::Clean);
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").arg(target);
    run(command).or(first).map(|()| Unmounted::Clean)
}

/// Runs a program and keeps its words. They go to memory and not to a pipe, which a daemon that it starts would hold.
fn run(mut command: Command) -> Result<(), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: io::Error| Failure::new(format!("cannot run {name}: {error}"));
    let words =
        memfd_create(c"output", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut words = File::from(words);
    let status = command
        .stdin(Stdio::null())
        .stdout(words.try_clone().map_err(failed)?)
        .stderr(words.try_clone().map_err(failed)?)
        .status()
        .map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let mut output = Vec::new();
    words
        .rewind()
        .and_then(|()| words.take(OUTPUT_MAX_BYTES).read_to_end(&mut output))
        .map_err(failed)?;
    let output = String::from_utf8_lossy(&output).trim().to_owned();
    let message = if output.is_empty() {
        format!("{name}: {status}")
    } else {
        format!("{name}: {output} ({status})")
    };
    Err(Failure { message, output })
}

fn has_mount_nfs() -> bool {
    ["/sbin", "/usr/sbin", "/usr/local/sbin", "/bin", "/usr/bin"]
        .iter()
        .any(|dir| Path::new(dir).join("mount.nfs").exists())
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

fn occupied(target: &Path, mounted: &Mounted) -> Failure {
    Failure::new(format!(
        "{} is taken: {} ({}) is mounted there; unmount it (umount {})",
        target.display(),
        mounted.device,
        mounted.kind,
        target.display()
    ))
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    target: PathBuf,
    kind: String,
    device: String,
}

/// The mount table, in order of mounting.
fn table() -> io::Result<Vec<Mounted>> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(parse)
        .collect())
}

/// What is mounted at a directory: of several, the topmost.
fn find(target: &Path) -> Result<Option<Mounted>, Failure> {
    let table =
        table().map_err(|error| Failure::new(format!("cannot read the mount table: {error}")))?;
    Ok(table.into_iter().rev().find(|mount| mount.target == target))
}

fn parse(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    Some(Mounted {
        target: PathBuf::from(std::ffi::OsString::from_vec(unescape(
            left.split(' ').nth(4)?,
        ))),
        kind: right.next()?.to_owned(),
        device: String::from_utf8_lossy(&unescape(right.next()?)).into_owned(),
    })
}

/// Blanks and backslashes stand as `\040` and the like.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
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
                "cannot mount {}:{} of file server {}: {message}",
                nfs.address, nfs.path, nfs.file_server
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
#[path = "volumes_tests.rs"]
mod tests;
