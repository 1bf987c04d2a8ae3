//! The place of a run: a directory on a disk that is removed in the end, and free addresses on loopback.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::disk;
use crate::error::{Context, Result};

/// On a disk by the file hierarchy standard, unlike `/tmp`.
const DEFAULT_DATA: &str = "/var/tmp";

/// Where a run keeps its files. To be dropped last: the daemons write there.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    file_system: String,
    /// Removes the directory when dropped; none where the user wants to keep it.
    _remover: Option<TempDir>,
}

impl RunDir {
    /// Makes a directory below `data`, which has to lie on a disk. Tasks get through it, whatever user they run as.
    pub(crate) fn new(data: Option<&Path>, keep: bool) -> Result<Self> {
        let data = data.unwrap_or(Path::new(DEFAULT_DATA));
        let file_system = disk::file_system(data)?;
        disk::require_durable(data, &file_system)?;
        let dir = tempfile::Builder::new()
            .prefix("trainyard-bench-")
            .tempdir_in(data)
            .cannot(format_args!("make a directory in {}", data.display()))?;
        let path = fs::canonicalize(dir.path()).cannot("resolve the run's directory")?;
        set_mode(&path, 0o755)?;
        let remover = if keep {
            let kept = dir.keep();
            eprintln!("data and logs are kept in {}", kept.display());
            None
        } else {
            Some(dir)
        };
        Ok(Self {
            path,
            file_system,
            _remover: remover,
        })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Kind of the file system below it.
    pub(crate) fn file_system(&self) -> &str {
        &self.file_system
    }

    /// Makes a directory in it, with this mode.
    pub(crate) fn make(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path).cannot(format_args!("make {}", path.display()))?;
        set_mode(&path, mode)?;
        Ok(path)
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .cannot(format_args!("set the mode of {}", path.display()))
}

/// Addresses on loopback that were free a moment ago.
pub(crate) fn free_addresses(count: usize) -> Result<Vec<String>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()
        .cannot("find free ports on loopback")?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.to_string()))
        .collect::<std::io::Result<_>>()
        .cannot("read the address of a socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ() {
        let addresses = free_addresses(3).unwrap();
        assert!(addresses.iter().all(|a| a.starts_with("127.0.0.1:")));
        assert!(addresses[0] != addresses[1] && addresses[1] != addresses[2]);
    }

    #[test]
    fn a_run_leaves_nothing_behind_unless_it_shall() {
        let data = tempfile::tempdir_in(DEFAULT_DATA).unwrap();
        let run = RunDir::new(Some(data.path()), false).unwrap();
        assert!(run.make("tasks", 0o1777).unwrap().is_dir());
        drop(run);
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
        drop(RunDir::new(Some(data.path()), true).unwrap());
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1);
    }
}
