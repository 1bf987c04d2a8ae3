//! A point at which a job waits until its test lets it go on: a FIFO that all namespace hosts see. Nobody polls.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, umask};
use nix::unistd::mkfifo;

use crate::error::{Context, Result, RigError};
use crate::process::wait_until;

const OPEN_TIMEOUT: Duration = Duration::from_secs(90);

/// See the head of this file. One task at a time can wait at it.
pub struct Gate {
    path: PathBuf,
}

impl Gate {
    /// A closed gate in a folder that the job sees.
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        // Tasks run as another user. The mask is the process's, but nothing else in a test depends on it.
        let old = umask(Mode::empty());
        let made = mkfifo(&path, Mode::from_bits_truncate(0o666));
        umask(old);
        made.cannot(format_args!("make {}", path.display()))?;
        Ok(Self { path })
    }

    /// The shell command that waits. A signal's trap runs at once.
    pub fn wait_command(&self) -> String {
        format!("read -r _ <{}", self.path.display())
    }

    /// Waits until the task is at the gate, then lets it through.
    pub fn open(&self) -> Result<()> {
        let what = format!("a task waits at {}", self.path.display());
        wait_until(&what, OPEN_TIMEOUT, || {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(&self.path);
            match file {
                Ok(mut file) => file.write_all(b"go\n").map(Some).cannot("open a gate"),
                // ENXIO: nobody reads yet.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => Ok(None),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    Err(RigError::new(format!("{} has gone", self.path.display())))
                }
                Err(error) => Err(error).cannot("open a gate"),
            }
        })
    }
}
