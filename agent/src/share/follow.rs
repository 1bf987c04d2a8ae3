//! Waiting for a growing file without polling: inotify on the file's directory, stdin for "the writer has ended".
//!
//! Part of the helper process. A network file system tells nothing of what other hosts write, so there, and only
//! there, the file is looked at once a second as well.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC};

use super::beneath;

/// A file that is there or will be.
pub(super) struct Follower {
    root: OwnedFd,
    path: PathBuf,
    file: Option<File>,
    events: Option<Inotify>,
    timeout: PollTimeout,
    ended: bool,
}

impl Follower {
    /// Opens the file. With `follow` it may be missing, but its directory may not.
    pub(super) fn open(root: OwnedFd, path: &Path, follow: bool) -> io::Result<Follower> {
        let mut follower = Follower {
            root,
            path: path.to_owned(),
            file: None,
            events: None,
            timeout: PollTimeout::NONE,
            ended: !follow,
        };
        if follow {
            follower.watch()?;
        }
        match beneath::open_file(&follower.root, path) {
            Ok(file) => follower.file = Some(file),
            Err(error) if follow && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(follower)
    }

    fn watch(&mut self) -> io::Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new(""));
        let directory = beneath::open(
            &self.root,
            parent,
            nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY,
        )?;
        let kind = nix::sys::statfs::fstatfs(&directory)?.filesystem_type();
        if kind == NFS_SUPER_MAGIC || kind == FUSE_SUPER_MAGIC {
            self.timeout = PollTimeout::from(1_000u16);
        }
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // From inside, since inotify knows paths only and the path itself may have changed its meaning. The process
        // is this file's alone, so its working directory is free to move.
        nix::unistd::fchdir(&directory)?;
        events.add_watch(
            ".",
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO,
        )?;
        self.events = Some(events);
        Ok(())
    }

    /// Whether nothing more will be written. To be asked before the last read, not after it.
    pub(super) fn writer_ended(&self) -> bool {
        self.ended
    }

    /// The file, once it is there.
    pub(super) fn file(&mut self) -> io::Result<Option<&File>> {
        if self.file.is_none() {
            match beneath::open_file(&self.root, &self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.file.as_ref())
    }

    /// Returns when there may be more to read, or the writer has ended.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        let Some(events) = &self.events else {
            self.ended = true;
            return Ok(());
        };
        let stdin = io::stdin();
        let mut descriptors = [
            PollFd::new(events.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut descriptors, self.timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // The agent never writes after its request: anything on stdin is its end.
        if descriptors[1]
            .revents()
            .is_some_and(|events| !events.is_empty())
        {
            self.ended = true;
        }
        loop {
            match events.read_events() {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
