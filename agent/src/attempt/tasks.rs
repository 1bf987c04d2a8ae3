//! The tasks of an attempt on this node that run now, each under its shim.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::JoinSet;

use crate::shim::{Adopted, Control, ExitRecord, Handle, TaskLost};

/// How a task ended.
pub(super) type End = Result<ExitRecord, TaskLost>;

/// The running tasks. Dropping the set leaves them running.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    waiting: JoinSet<(String, End)>,
    controls: BTreeMap<String, Control>,
    known: BTreeSet<String>,
}

impl Tasks {
    /// Attends to a task that was started.
    pub(super) fn add(&mut self, name: &str, mut handle: Handle) {
        self.controls.insert(name.to_owned(), handle.control());
        self.known.insert(name.to_owned());
        let name = name.to_owned();
        self.waiting
            .spawn(async move { (name, handle.wait().await) });
    }

    /// Attends to a task that an earlier life of the agent started. Returns whether it was ever started.
    pub(super) fn adopt(&mut self, name: &str, adopted: Adopted) -> bool {
        let end = match adopted {
            Adopted::Running(handle) => {
                self.add(name, handle);
                return true;
            }
            Adopted::NeverStarted => return false,
            Adopted::Ended(record) => Ok(record),
            Adopted::Lost(lost) => Err(lost),
        };
        let name = name.to_owned();
        self.known.insert(name.clone());
        self.waiting.spawn(std::future::ready((name, end)));
        true
    }

    /// Whether a task of this name is or was attended to.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.known.contains(name)
    }

    /// How many run.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The next end of a task; `None` when none runs. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Option<(String, End)> {
        loop {
            match self.waiting.join_next().await? {
                Ok((name, end)) => {
                    self.controls.remove(&name);
                    return Some((name, end));
                }
                // Only a runtime that shuts down cancels them.
                Err(_) => continue,
            }
        }
    }

    /// Asks all to end; their shims kill them after the grace.
    pub(super) fn stop(&self) {
        for control in self.controls.values() {
            control.stop();
        }
    }

    /// Kills all.
    pub(super) fn kill(&self) {
        for control in self.controls.values() {
            control.kill();
        }
    }
}
