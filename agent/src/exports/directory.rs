//! Finds or makes a directory to export, below a root that the configuration allows. Runs in a helper process, since the
//! directory may lie on a disk that hangs.
//!
//! Users of an export write below it, so no link may lead out of its root, and nothing is ever removed. A directory
//! that is there already keeps its mode.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, mkdirat};
use serde::{Deserialize, Serialize};

use crate::share::beneath;

/// What is asked of the helper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DirectoryRequest {
    /// Directories below which others may be exported.
    pub(crate) roots: Vec<PathBuf>,
    /// The agent's own root, made if it is missing.
    pub(crate) own_root: PathBuf,
    /// The directory; empty: `uid` below the agent's own root.
    pub(crate) directory: String,
    /// UUID of the file server.
    pub(crate) uid: String,
    /// Addresses or names of clients.
    pub(crate) clients: Vec<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DirectoryAnswer {
    /// It is there.
    Found {
        /// Without links.
        path: PathBuf,
        /// Bytes of its file system.
        capacity_bytes: u64,
        /// Bytes of it that are free.
        free_bytes: u64,
        /// Addresses of the clients.
        clients: Vec<IpAddr>,
        /// Names that do not resolve.
        unresolved: Vec<String>,
    },
    /// It cannot be exported.
    Refused {
        /// Of the error.
        code: String,
        /// For people.
        message: String,
    },
}

/// In the helper.
pub(crate) fn perform(request: &DirectoryRequest) -> DirectoryAnswer {
    match find(request) {
        Ok((path, capacity_bytes, free_bytes)) => {
            let (clients, unresolved) = resolve(&request.clients);
            DirectoryAnswer::Found {
                path,
                capacity_bytes,
                free_bytes,
                clients,
                unresolved,
            }
        }
        Err((code, message)) => DirectoryAnswer::Refused {
            code: code.to_owned(),
            message,
        },
    }
}

type Refusal = (&'static str, String);

fn find(request: &DirectoryRequest) -> Result<(PathBuf, u64, u64), Refusal> {
    let failed = |path: &Path, error: io::Error| {
        let message = format!("{}: {error}", path.display());
        ("FileServerDirectoryError", message)
    };
    let (root, relative) = place(request).map_err(|m| ("FileServerDirectoryNotAllowed", m))?;
    let whole = root.join(&relative);
    if root == request.own_root {
        // Closed to the users of this host: what root of a client wrote reaches them by the mount alone.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|error| failed(&root, error))?;
    }
    let root = beneath::open_root(&root).map_err(|error| failed(&root, error))?;
    let opened = open_or_make(&root, &relative).map_err(|error| {
        if error.raw_os_error() == Some(libc::EXDEV) {
            let message = format!(
                "{} leads out of the root that the agent allows, by a symbolic link",
                whole.display()
            );
            return ("FileServerDirectoryNotAllowed", message);
        }
        failed(&whole, error)
    })?;
    let real = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let path = real(&opened).map_err(|error| failed(&whole, error))?;
    let stat =
        nix::sys::statvfs::fstatvfs(&opened).map_err(|error| failed(&whole, error.into()))?;
    let block = stat.fragment_size();
    Ok((
        path,
        stat.blocks().saturating_mul(block),
        stat.blocks_available().saturating_mul(block),
    ))
}

/// The root and the path below it.
fn place(request: &DirectoryRequest) -> Result<(PathBuf, PathBuf), String> {
    if request.directory.is_empty() {
        return Ok((request.own_root.clone(), PathBuf::from(&request.uid)));
    }
    let directory = Path::new(&request.directory);
    let escapes = directory
        .components()
        .any(|part| part == Component::ParentDir);
    let root = request
        .roots
        .iter()
        .chain([&request.own_root])
        .filter(|root| directory.starts_with(root) && directory != root.as_path())
        .max_by_key(|root| root.as_os_str().len());
    match root {
        Some(root) if !escapes && directory.is_absolute() => {
            let below = directory.strip_prefix(root).unwrap_or(directory);
            Ok((root.clone(), below.to_owned()))
        }
        _ => {
            let roots: Vec<String> = std::iter::once(&request.own_root)
                .chain(&request.roots)
                .map(|root| root.display().to_string())
                .collect();
            Err(format!(
                "{} does not lie below a directory that this node's agent may export from ({}); choose another, or add its \
                 root to [file_server] roots in agent.toml",
                request.directory,
                roots.join(", ")
            ))
        }
    }
}

/// Opens a directory below the root, making what is missing. The last one is open to all, with the sticky bit.
fn open_or_make(root: &OwnedFd, relative: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut at: Option<OwnedFd> = None;
    let mut so_far = PathBuf::new();
    let count = relative.components().count();
    for (index, part) in relative.components().enumerate() {
        so_far.push(part);
        let next = match beneath::open(root, &so_far, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = at.as_ref().unwrap_or(root);
                mkdirat(parent, part.as_os_str(), Mode::from_bits_truncate(0o755))?;
                let made = beneath::open(
                    parent,
                    Path::new(part.as_os_str()),
                    flags | OFlag::O_NOFOLLOW,
                )?;
                let mode = if index + 1 == count { 0o1777 } else { 0o755 };
                fchmod(&made, Mode::from_bits_truncate(mode))?;
                made
            }
            other => other?,
        };
        at = Some(next);
    }
    at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

fn resolve(names: &[String]) -> (Vec<IpAddr>, Vec<String>) {
    let (mut found, mut unresolved) = (Vec::new(), Vec::new());
    for name in names {
        match name.parse::<IpAddr>() {
            Ok(address) => found.push(address),
            Err(_) => match (name.as_str(), 0).to_socket_addrs() {
                Ok(addresses) => found.extend(addresses.map(|address| address.ip())),
                Err(_) => unresolved.push(name.clone()),
            },
        }
    }
    (found, unresolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn ask(place: &Path, directory: &str) -> DirectoryAnswer {
        perform(&DirectoryRequest {
            roots: vec![place.join("srv")],
            own_root: place.join("own"),
            directory: directory.to_owned(),
            uid: "u-1".to_owned(),
            clients: vec!["10.0.0.1".to_owned(), "no such host".to_owned()],
        })
    }

    fn found(answer: DirectoryAnswer) -> PathBuf {
        match answer {
            DirectoryAnswer::Found {
                path,
                capacity_bytes,
                free_bytes,
                clients,
                unresolved,
            } => {
                assert!(capacity_bytes >= free_bytes && free_bytes > 0);
                assert_eq!(clients, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
                assert_eq!(unresolved, ["no such host"]);
                path
            }
            DirectoryAnswer::Refused { code, message } => panic!("{code}: {message}"),
        }
    }

    fn refused(answer: DirectoryAnswer) -> String {
        match answer {
            DirectoryAnswer::Refused { code, .. } => code,
            DirectoryAnswer::Found { path, .. } => panic!("found {}", path.display()),
        }
    }

    #[test]
    fn directories_are_made_open_to_all_and_kept_as_they_are() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        std::fs::create_dir(place.join("srv")).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!(found(ask(&place, "")), place.join("own/u-1"));
        assert_eq!(mode(&place.join("own/u-1")), 0o1777);
        assert_eq!(mode(&place.join("own")), 0o700);
        let deep = place.join("srv/a/b");
        assert_eq!(found(ask(&place, deep.to_str().unwrap())), deep);
        assert_eq!(mode(&deep), 0o1777);
        assert_eq!(mode(&place.join("srv/a")), 0o755);
        let there = place.join("srv/a");
        found(ask(&place, there.to_str().unwrap()));
        assert_eq!(mode(&there), 0o755);
    }

    #[test]
    fn nothing_outside_the_roots_is_exported_by_path_or_link() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        std::fs::create_dir_all(place.join("srv/in")).unwrap();
        std::fs::create_dir(place.join("secret")).unwrap();
        symlink("in", place.join("srv/alias")).unwrap();
        symlink("../secret", place.join("srv/out")).unwrap();
        symlink("/etc", place.join("srv/etc")).unwrap();
        let at = |below: &str| format!("{}/{below}", place.display());
        assert_eq!(found(ask(&place, &at("srv/alias"))), place.join("srv/in"));
        for path in [
            "srv",
            "secret",
            "srv/../secret",
            "srv/out",
            "srv/etc",
            "srv/out/new",
            "srvx",
        ] {
            let code = refused(ask(&place, &at(path)));
            assert_eq!(code, "FileServerDirectoryNotAllowed", "{path}");
        }
        assert_eq!(
            refused(ask(&place, "/etc")),
            "FileServerDirectoryNotAllowed"
        );
        assert!(!place.join("secret/new").exists());
    }

    #[test]
    fn a_file_is_no_directory() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("srv")).unwrap();
        std::fs::write(place.path().join("srv/file"), "").unwrap();
        let path = place.path().join("srv/file");
        let code = refused(ask(place.path(), path.to_str().unwrap()));
        assert_eq!(code, "FileServerDirectoryError");
    }
}
