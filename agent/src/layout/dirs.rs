//! The agent's directories, and those of an attempt on the local disk. The only part of the layout that touches it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Layout;

/// The agent's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// The data directory, absolute.
    pub data: PathBuf,
}

impl Dirs {
    /// Below `data`.
    #[must_use]
    pub fn new(data: PathBuf) -> Self {
        Self { data }
    }

    /// Deadline of the lease.
    #[must_use]
    pub fn lease_file(&self) -> PathBuf {
        self.data.join("lease")
    }

    /// State of attempts.
    #[must_use]
    pub fn attempts(&self) -> PathBuf {
        self.data.join("attempts")
    }

    /// Local copies of stdouterr files.
    #[must_use]
    pub fn spools(&self) -> PathBuf {
        self.data.join("spool")
    }

    /// The node's set-up for a cluster.
    #[must_use]
    pub fn setup(&self) -> PathBuf {
        self.data.join("setup")
    }

    /// Directories of managed file servers that name none.
    #[must_use]
    pub fn file_servers(&self) -> PathBuf {
        self.data.join("file-servers")
    }

    /// State of the NFS server.
    #[must_use]
    pub fn nfs(&self) -> PathBuf {
        self.data.join("nfs")
    }

    /// Scratch directories.
    #[must_use]
    pub fn jobs(&self) -> PathBuf {
        self.data.join("jobs")
    }

    /// Volumes of clusters.
    #[must_use]
    pub fn mounts(&self) -> PathBuf {
        self.data.join("mounts")
    }

    /// State of one attempt.
    #[must_use]
    pub fn state_dir(&self, uid: &str, attempt: u32) -> PathBuf {
        self.attempts().join(format!("{uid}-{attempt}"))
    }

    /// Local copies of the stdouterr files of one attempt.
    #[must_use]
    pub fn spool_dir(&self, uid: &str, attempt: u32) -> PathBuf {
        self.spools().join(format!("{uid}-{attempt}"))
    }

    /// Makes the directories. Users pass through the data directory to their scratch, but see nothing else of it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare(&self) -> io::Result<()> {
        make_directory(&self.data, 0o711)?;
        make_directory(&self.attempts(), 0o700)?;
        make_directory(&self.spools(), 0o700)?;
        make_directory(&self.jobs(), 0o711)?;
        make_directory(&self.mounts(), 0o755)
    }
}

impl Layout {
    /// Makes the local directories and the host file. Made again, it changes nothing.
    ///
    /// The scratch directory belongs to root with the sticky bit: the user writes in it, but cannot move the mount
    /// points away from under the agent.
    ///
    /// # Errors
    /// Those of the file system, with the path.
    pub fn make_local(&self) -> io::Result<()> {
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        for (path, mode) in [
            (&self.state_dir, 0o700),
            (&self.spool_dir, 0o700),
            (&self.mount_root, 0o755),
            (&self.job_root, 0o1770),
            (&self.job_mounts, 0o755),
        ] {
            make_directory(path, mode).map_err(|error| named(path, error))?;
        }
        let own = crate::confine::Credentials::own();
        let user = &self.user.credentials;
        if own.is_root() && !user.is_root() {
            std::os::unix::fs::chown(&self.job_root, None, Some(user.gid))?;
        }
        let link = self.shared_target.as_ref();
        if let Some(target) = link
            && self.shared_temp.symlink_metadata().is_err()
        {
            std::os::unix::fs::symlink(target, &self.shared_temp)
                .map_err(|error| named(&self.shared_temp, error))?;
        }
        for path in self
            .temp
            .iter()
            .chain(link.is_none().then_some(&self.shared_temp))
        {
            // What is there already may have been replaced by the user: leave it alone.
            if path.symlink_metadata().is_err() {
                make_directory(path, 0o700).map_err(|error| named(path, error))?;
                if own.is_root() {
                    std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))?;
                }
            }
        }
        if self.hostfile.symlink_metadata().is_err() {
            std::fs::write(&self.hostfile, &self.hostfile_text)
                .map_err(|error| named(&self.hostfile, error))?;
            std::fs::set_permissions(&self.hostfile, std::fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }
}

/// Makes a directory with its parents and sets its mode, whatever the umask.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode & 0o777)
        .create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
