//! Opening files of a directory without ever leaving it, whatever links a job planted there.
//!
//! Shared by the helper process and, for the agent's own spool, by the file service.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat};

/// Whether a path from outside stays below the directory it is taken from: relative, without `..`.
#[must_use]
pub fn is_below(path: &Path) -> bool {
    path.components().all(|part| match part {
        Component::Normal(_) | Component::CurDir => true,
        Component::ParentDir | Component::RootDir | Component::Prefix(_) => false,
    })
}

/// Opens `path` below the open directory `root`. Links may lead anywhere inside, never outside; never blocks on a
/// pipe or device.
///
/// # Errors
/// The system's; `EXDEV` for a path that leads outside.
pub fn open(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    // openat2 refuses flags that mean nothing, as these do for a mere place in the tree.
    let harmless = if flags.contains(OFlag::O_PATH) {
        OFlag::empty()
    } else {
        OFlag::O_NONBLOCK | OFlag::O_NOCTTY
    };
    let how = OpenHow::new()
        .flags(flags | harmless | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how).map_err(io::Error::from)
}

/// Opens a directory by its own path.
///
/// # Errors
/// The system's.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    nix::fcntl::open(
        path,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(io::Error::from)
}

/// Opens a regular file below a directory for reading.
///
/// # Errors
/// The system's; `InvalidInput` for anything but a regular file.
pub fn open_file(root: &OwnedFd, path: &Path) -> io::Result<File> {
    let file = open(root, path, OFlag::O_RDONLY)?;
    let status = fstat(&file).map_err(io::Error::from)?;
    if kind(&status) == SFlag::S_IFREG {
        Ok(File::from(file))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// The kind bits of a status.
#[must_use]
pub fn kind(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_outside() {
        for path in ["..", "a/../../b", "/etc/passwd", "../x"] {
            assert!(!is_below(Path::new(path)), "{path}");
        }
        for path in ["", ".", "a", "a/b", "./a"] {
            assert!(is_below(Path::new(path)), "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::fs::write(inside.join("file"), "f").unwrap();
        symlink("../secret", inside.join("out")).unwrap();
        symlink(dir.path().join("secret"), inside.join("absolute")).unwrap();
        symlink("file", inside.join("alias")).unwrap();
        let root = open_root(&inside).unwrap();
        assert!(open_file(&root, Path::new("file")).is_ok());
        assert!(open_file(&root, Path::new("alias")).is_ok());
        for path in ["out", "absolute", "../secret"] {
            assert!(open_file(&root, Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_pipe_is_refused_and_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&dir.path().join("pipe"), mode).unwrap();
        let root = open_root(dir.path()).unwrap();
        let error = open_file(&root, Path::new("pipe")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
