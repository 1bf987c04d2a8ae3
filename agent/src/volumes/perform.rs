//! Mounting and unmounting themselves: runs in a helper process, and may hang there.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::table::{Mounted, find};
use super::{MountRequest, Source, Unmounted, mounts_below};
use crate::confine::Credentials;
use crate::helper::Failure;

/// Most bytes of a program's words that an error repeats.
const OUTPUT_MAX_BYTES: u64 = 4096;
/// Tries of an ordinary unmount while the kernel still lets the last files go.
const UNMOUNT_TRIES: u32 = 5;
/// Time between them.
const UNMOUNT_PAUSE: Duration = Duration::from_millis(50);

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
                    "mountCommand ended with 0, but nothing is mounted there: {}",
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
pub(super) fn link(path: &Path, target: &Path) -> Result<(), Failure> {
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
