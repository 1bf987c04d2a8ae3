//! The helper process: `trainyard-agent share`, hidden. It touches the directories of a job in the agent's place, as
//! the job's user, so that a hung file server hangs it and nobody else, and so that no link of a job makes the agent
//! read or write what the job may not.
//!
//! Talks in lines of JSON on stdin and stdout, single-threaded, without an async runtime. It ends when its stdin
//! does: an agent that dies takes its helpers along. It never opens a path of a job with the agent's own rights,
//! but for `make_as_root`, which stays below one mount point.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::{beneath, follow};
use crate::confine::Credentials;

/// Longest request line, in bytes.
const REQUEST_MAX: u64 = 1 << 20;
/// Entries of one listing at most; the rest is left out.
const ENTRIES_MAX: usize = 10_000;
/// Bytes per read.
const BLOCK: usize = 256 * 1024;

/// One request: what to do, and as whom.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The job's user.
    pub credentials: Credentials,
    /// What to do.
    pub operation: Operation,
}

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Make directories, with their parents.
    Make {
        /// In order.
        directories: Vec<MakeDirectory>,
    },
    /// Append to a file of the share what the agent's own file has beyond it.
    Copy {
        /// On the agent's disk.
        from: PathBuf,
        /// On the share.
        to: PathBuf,
        /// Set when the file of the share cannot be ours yet: number of the attempt whose name an older file gets.
        set_aside: Option<u32>,
    },
    /// List a directory, not recursively.
    List {
        /// The output directory.
        root: PathBuf,
        /// Below it.
        directory: PathBuf,
    },
    /// Send a file: after the answer its bytes follow on stdout, and the process ends.
    Read {
        /// The output directory.
        root: PathBuf,
        /// Below it.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Go on until stdin ends, then send the rest.
        follow: bool,
    },
}

/// A directory to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDirectory {
    /// Absolute.
    pub path: PathBuf,
    /// Mount point below which the agent may help with its own rights where the job's user may not.
    pub below: Option<PathBuf>,
}

/// The answer to a request, one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done; for `List` the entries.
    Done {
        /// In order of name.
        entries: Vec<Entry>,
    },
    /// The file or directory is not there.
    Missing {
        /// For a person.
        message: String,
    },
    /// It could not be done.
    Failed {
        /// For a person; names the path.
        message: String,
    },
}

/// One file or directory of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Without directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// 0 for a directory.
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub modified_seconds: i64,
}

/// Body of the hidden subcommand.
#[must_use]
pub fn main() -> ExitCode {
    match serve(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // The agent is gone or no longer listens: there is nobody to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(input: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
    loop {
        let mut line = String::new();
        if input.by_ref().take(REQUEST_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request: Request = serde_json::from_str(&line)?;
        let answer = match request.operation {
            Operation::Make { directories } => {
                answer(make(&directories, &request.credentials).map(|()| Vec::new()))
            }
            Operation::Copy {
                from,
                to,
                set_aside,
            } => {
                // The agent's file is opened with the agent's rights, before they are laid down.
                let copied = File::open(&from)
                    .map_err(|error| at(&from, error))
                    .and_then(|from| {
                        as_user(&request.credentials, || copy(&from, &to, set_aside))?
                            .map_err(|error| at(&to, error))
                    });
                answer(copied.map(|()| Vec::new()))
            }
            Operation::List { root, directory } => answer(
                as_user(&request.credentials, || list(&root, &directory))
                    .and_then(|listed| listed.map_err(|error| at(&root.join(&directory), error))),
            ),
            Operation::Read {
                root,
                path,
                offset,
                follow,
            } => {
                // For good: nothing after this request needs the agent's rights.
                lay_down(&request.credentials)?;
                return send(&root, &path, offset, follow, output);
            }
        };
        write_line(output, &answer)?;
    }
}

pub(super) fn write_line(output: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

fn answer(result: io::Result<Vec<Entry>>) -> Answer {
    match result {
        Ok(entries) => Answer::Done { entries },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Answer::Missing {
            message: error.to_string(),
        },
        Err(error) => Answer::Failed {
            message: error.to_string(),
        },
    }
}

/// The same error with the path in front.
fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn send(
    root: &Path,
    path: &Path,
    offset: u64,
    follow: bool,
    output: &mut impl Write,
) -> io::Result<()> {
    let opened = beneath::open_root(root)
        .and_then(|directory| follow::Follower::open(directory, path, follow))
        .map_err(|error| at(&root.join(path), error));
    let mut follower = match opened {
        Ok(follower) => follower,
        Err(error) => return write_line(output, &answer(Err(error))),
    };
    write_line(
        output,
        &Answer::Done {
            entries: Vec::new(),
        },
    )?;
    let mut offset = offset;
    let mut block = vec![0; BLOCK];
    loop {
        let last = follower.writer_ended();
        while let Some(file) = follower.file()? {
            let count = file.read_at(&mut block, offset)?;
            if count == 0 {
                break;
            }
            output.write_all(&block[..count])?;
            offset += count as u64;
        }
        output.flush()?;
        if last {
            return Ok(());
        }
        follower.wait()?;
    }
}

/// Makes directories as the job's user; see [`MakeDirectory::below`].
fn make(directories: &[MakeDirectory], credentials: &Credentials) -> io::Result<()> {
    for directory in directories {
        let made = as_user(credentials, || {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o777)
                .create(&directory.path)
        })?;
        let made = match (made, &directory.below) {
            (Err(error), Some(below))
                if error.kind() == io::ErrorKind::PermissionDenied
                    && Uid::effective().is_root() =>
            {
                make_as_root(below, &directory.path, credentials)
            }
            (made, _) => made,
        };
        made.map_err(|error| at(&directory.path, error))?;
    }
    Ok(())
}

/// Makes what is missing of `path` below the mount point `below`, component by component and without following a
/// link, and gives what it made to the job's user.
fn make_as_root(below: &Path, path: &Path, credentials: &Credentials) -> io::Result<()> {
    let rest = path
        .strip_prefix(below)
        .map_err(|_| io::Error::from(io::ErrorKind::PermissionDenied))?;
    if !beneath::is_below(rest) {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let open = |directory: Option<&OwnedFd>, name: &Path| -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match directory {
            // The mount point itself may be a link: that is how a directory of the node is mounted.
            None => nix::fcntl::open(name, flags, Mode::empty()),
            Some(directory) => {
                nix::fcntl::openat(directory, name, flags | OFlag::O_NOFOLLOW, Mode::empty())
            }
        }
    };
    let mut directory = open(None, below)?;
    for part in rest.components() {
        let name = Path::new(part.as_os_str());
        let made = match mkdirat(&directory, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let next = open(Some(&directory), name)?;
        if made {
            let (user, group) = (
                Uid::from_raw(credentials.uid),
                Gid::from_raw(credentials.gid),
            );
            nix::unistd::fchownat(&next, "", Some(user), Some(group), AtFlags::AT_EMPTY_PATH)?;
        }
        directory = next;
    }
    Ok(())
}

fn copy(from: &File, to: &Path, set_aside: Option<u32>) -> io::Result<()> {
    if let Some(attempt) = set_aside {
        let mut name = to.as_os_str().to_owned();
        name.push(format!(".attempt-{attempt}"));
        match fs::rename(to, PathBuf::from(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
        .open(to)?;
    let mut offset = target.metadata()?.len();
    let mut block = vec![0; BLOCK.min(64 * 1024)];
    loop {
        let count = from.read_at(&mut block, offset)?;
        if count == 0 {
            return Ok(());
        }
        target.write_all_at(&block[..count], offset)?;
        offset += count as u64;
    }
}

fn list(root: &Path, directory: &Path) -> io::Result<Vec<Entry>> {
    let root = beneath::open_root(root)?;
    list_at(&root, directory)
}

/// Lists a directory below an open one. What vanishes meanwhile, or leads outside, is left out.
///
/// # Errors
/// The system's.
pub fn list_at(root: &OwnedFd, directory: &Path) -> io::Result<Vec<Entry>> {
    let directory = beneath::open(root, directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let mut listing = nix::dir::Dir::from_fd(directory.try_clone()?)?;
    let mut entries = Vec::new();
    for entry in listing.iter().take(ENTRIES_MAX + 2) {
        let Ok(name) = entry?.file_name().to_str().map(str::to_owned) else {
            // A name that is no text cannot be asked for either.
            continue;
        };
        if name == "." || name == ".." {
            continue;
        }
        let status = beneath::open(&directory, Path::new(&name), OFlag::O_PATH)
            .and_then(|file| Ok(nix::sys::stat::fstat(&file)?));
        let Ok(status) = status else { continue };
        let is_directory = match beneath::kind(&status) {
            SFlag::S_IFDIR => true,
            SFlag::S_IFREG => false,
            _ => continue,
        };
        entries.push(Entry {
            name,
            is_directory,
            size_bytes: if is_directory {
                0
            } else {
                u64::try_from(status.st_size).unwrap_or(0)
            },
            modified_seconds: status.st_mtime,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Runs `action` with the rights of the job's user, then takes the agent's rights back.
fn as_user<T>(credentials: &Credentials, action: impl FnOnce() -> T) -> io::Result<T> {
    let (own, own_group) = (Uid::effective(), Gid::effective());
    if !own.is_root() || credentials.uid == own.as_raw() {
        return Ok(action());
    }
    let own_groups = nix::unistd::getgroups()?;
    nix::unistd::setgroups(&groups(credentials))?;
    nix::unistd::setegid(Gid::from_raw(credentials.gid))?;
    nix::unistd::seteuid(Uid::from_raw(credentials.uid))?;
    let result = action();
    nix::unistd::seteuid(own)?;
    nix::unistd::setegid(own_group)?;
    nix::unistd::setgroups(&own_groups)?;
    Ok(result)
}

/// Becomes the job's user for good.
fn lay_down(credentials: &Credentials) -> io::Result<()> {
    if !Uid::effective().is_root() || credentials.uid == 0 {
        return Ok(());
    }
    let (user, group) = (
        Uid::from_raw(credentials.uid),
        Gid::from_raw(credentials.gid),
    );
    nix::unistd::setgroups(&groups(credentials))?;
    nix::unistd::setresgid(group, group, group)?;
    nix::unistd::setresuid(user, user, user)?;
    Ok(())
}

fn groups(credentials: &Credentials) -> Vec<Gid> {
    credentials
        .groups
        .iter()
        .map(|group| Gid::from_raw(*group))
        .collect()
}
