//! Wakes the readers of growing files: one inotify instance for all spool directories.
//!
//! The kernel allows few instances per user, hence one for all. A writer of many small lines wakes its readers at
//! most once per [`PAUSE`], so that following costs the same whatever the task writes.
//!
//! Holds unsafe code for one call: tokio asks for a promise that a registered descriptor stays the same.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Least time between two wakings.
const PAUSE: Duration = Duration::from_millis(2);

/// Watches directories. Cheap to share.
#[derive(Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
}

/// [`Inotify`] as tokio wants it.
struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Shared {
    inotify: AsyncFd<Events>,
    directories: Mutex<HashMap<WatchDescriptor, watch::Sender<()>>>,
}

impl Watcher {
    /// Starts watching. To be called within the runtime.
    ///
    /// # Errors
    /// When the kernel gives no inotify instance.
    pub fn start() -> io::Result<Watcher> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // SAFETY: `Events` owns its descriptor and answers the same one for as long as it lives.
        let inotify =
            unsafe { AsyncFd::register_with_interest(Events(inotify), Interest::READABLE)? };
        let shared = Arc::new(Shared {
            inotify,
            directories: Mutex::default(),
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Some(shared) = weak.upgrade() {
                if shared.pass_on().await.is_err() {
                    return;
                }
                drop(shared);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Watcher { shared })
    }

    /// Wakes at each write to a file of the directory and at each new file.
    ///
    /// # Errors
    /// When the directory is not there or the kernel watches no more.
    pub fn subscribe(&self, directory: &Path) -> io::Result<watch::Receiver<()>> {
        let flags =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let mut directories = self.shared.lock();
        // Readers that left without an event since: their watches go now.
        directories.retain(|descriptor, readers| {
            let keep = readers.receiver_count() > 0;
            if !keep {
                let _ = self.shared.inotify.get_ref().0.rm_watch(*descriptor);
            }
            keep
        });
        let descriptor = self
            .shared
            .inotify
            .get_ref()
            .0
            .add_watch(directory, flags)?;
        let readers = directories
            .entry(descriptor)
            .or_insert_with(|| watch::Sender::new(()));
        Ok(readers.subscribe())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<WatchDescriptor, watch::Sender<()>>> {
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for events and wakes those whom they concern.
    async fn pass_on(&self) -> io::Result<()> {
        let mut ready = self.inotify.readable().await?;
        let mut directories = self.lock();
        loop {
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => {
                    for event in events {
                        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                            directories
                                .values()
                                .for_each(|readers| readers.send_modify(|()| ()));
                        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                            directories.remove(&event.wd);
                        } else if let Some(readers) = directories.get(&event.wd) {
                            readers.send_modify(|()| ());
                        }
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        directories.retain(|descriptor, readers| {
            let keep = readers.receiver_count() > 0;
            if !keep {
                let _ = self.inotify.get_ref().0.rm_watch(*descriptor);
            }
            keep
        });
        drop(directories);
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_wake_at_writes_and_new_files() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Watcher::start().unwrap();
        let mut first = watcher.subscribe(dir.path()).unwrap();
        let mut second = watcher.subscribe(dir.path()).unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        first.changed().await.unwrap();
        second.changed().await.unwrap();
        drop((first, second));
        // The watch of those who left is gone; a new one works.
        let mut third = watcher.subscribe(dir.path()).unwrap();
        assert_eq!(watcher.shared.lock().len(), 1);
        std::fs::write(dir.path().join("b"), "2").unwrap();
        third.changed().await.unwrap();
    }
}
