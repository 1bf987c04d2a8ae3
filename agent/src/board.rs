//! What the node tells the outside: the observed view of its attempts, its set-up and its exports, and where files lie.
//!
//! Runners write, the session and the file service read. Nothing here decides anything; locks are held for the
//! length of a map operation and never across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use trainyard_proto::v1::{
    AttemptNodePhase, AttemptNodeStatus, ExportStatus, Observed, ObservedAttempt, ObservedSetup,
};

use crate::confine::Credentials;
use crate::reconcile::AttemptKey;
use crate::record::Directory;

/// Where the files of one attempt lie and which of them still grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttemptFiles {
    /// The agent's own copies of the files of the stdouterr directory.
    pub spool: PathBuf,
    /// Output directories, once they are made.
    pub directories: Vec<Directory>,
    /// The job's user, once it is known.
    pub credentials: Option<Credentials>,
    /// Files of the stdouterr directory to which nothing more will be written.
    pub closed: BTreeSet<String>,
    /// Whether the attempt may still write anything at all.
    pub alive: bool,
}

impl AttemptFiles {
    /// Path of an output directory, as far as it can be reached now.
    #[must_use]
    pub fn directory(&self, id: &str) -> Option<&PathBuf> {
        let directory = self.directories.iter().find(|d| d.id == id)?;
        if self.alive {
            Some(&directory.path)
        } else {
            directory.lasting.as_ref()
        }
    }

    /// Whether nothing more will be written to a file of the stdouterr directory.
    #[must_use]
    pub fn is_closed(&self, file: &str) -> bool {
        !self.alive || self.closed.contains(file)
    }
}

#[derive(Debug)]
struct Entry {
    observed: ObservedAttempt,
    /// Whether the observed view holds it; retained logs are not in the view.
    reported: bool,
    files: watch::Sender<AttemptFiles>,
}

/// What concerns the node as a whole.
#[derive(Debug, Default)]
struct OfNode {
    setup: Option<ObservedSetup>,
    exports: Vec<ExportStatus>,
}

/// The board. Cheap to share.
#[derive(Debug, Clone)]
pub struct Board {
    entries: Arc<Mutex<BTreeMap<AttemptKey, Entry>>>,
    of_node: Arc<Mutex<OfNode>>,
    changed: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Board {
        Board {
            entries: Arc::default(),
            of_node: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Board {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<AttemptKey, Entry>> {
        // No holder of the lock can leave the map half changed.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an attempt on the board. `reported`: whether the observed view shall hold it.
    pub fn put(&self, observed: ObservedAttempt, reported: bool, files: AttemptFiles) {
        let key = AttemptKey {
            uid: observed.uid.clone(),
            attempt: observed.attempt,
        };
        let mut entries = self.entries();
        match entries.get_mut(&key) {
            // Readers of its files stay subscribed.
            Some(entry) => {
                entry.observed = observed;
                entry.reported = reported;
                entry.files.send_replace(files);
            }
            None => {
                let files = watch::Sender::new(files);
                entries.insert(
                    key,
                    Entry {
                        observed,
                        reported,
                        files,
                    },
                );
            }
        }
        drop(entries);
        self.touch();
    }

    /// Replaces what the scheduler is told of an attempt. Without effect if nothing changed.
    pub fn set_status(&self, key: &AttemptKey, status: &AttemptNodeStatus) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else {
            return;
        };
        if entry.observed.status.as_ref() == Some(status) {
            return;
        }
        entry.observed.status = Some(status.clone());
        drop(entries);
        self.touch();
    }

    /// Changes what is known of an attempt's files and wakes those who follow them.
    pub fn set_files(&self, key: &AttemptKey, change: impl FnOnce(&mut AttemptFiles)) {
        if let Some(entry) = self.entries().get(key) {
            entry.files.send_modify(change);
        }
    }

    /// Takes an attempt out of the observed view; its files stay.
    pub fn retain(&self, key: &AttemptKey) {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.reported = false;
        }
        self.touch();
    }

    /// Puts an attempt whose logs are retained back into the observed view. Returns whether there is one.
    pub fn report_again(&self, key: &AttemptKey) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else {
            return false;
        };
        entry.reported = true;
        drop(entries);
        self.touch();
        true
    }

    /// Takes an attempt off the board; those who follow its files see the end.
    pub fn remove(&self, key: &AttemptKey) {
        self.entries().remove(key);
        self.touch();
    }

    fn of_node(&self) -> MutexGuard<'_, OfNode> {
        self.of_node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what the scheduler is told of the node's set-up; `None`: nothing is set up. Without effect if nothing
    /// changed.
    pub fn set_setup(&self, setup: Option<ObservedSetup>) {
        let mut of_node = self.of_node();
        if of_node.setup != setup {
            of_node.setup = setup;
            drop(of_node);
            self.touch();
        }
    }

    /// Replaces what the scheduler is told of exports. Without effect if nothing changed.
    pub fn set_exports(&self, exports: Vec<ExportStatus>) {
        let mut of_node = self.of_node();
        if of_node.exports != exports {
            of_node.exports = exports;
            drop(of_node);
            self.touch();
        }
    }

    /// The set-up as the scheduler is told.
    #[must_use]
    pub fn setup(&self) -> Option<ObservedSetup> {
        self.of_node().setup.clone()
    }

    /// The exports as the scheduler is told.
    #[must_use]
    pub fn exports(&self) -> Vec<ExportStatus> {
        self.of_node().exports.clone()
    }

    /// The whole observed view.
    #[must_use]
    pub fn view(&self, sequence: u64) -> Observed {
        Observed {
            sequence,
            attempts: self.observed(),
            setup: self.setup(),
            exports: self.exports(),
        }
    }

    /// The attempts of the observed view, in order of job and attempt.
    #[must_use]
    pub fn observed(&self) -> Vec<ObservedAttempt> {
        self.entries()
            .values()
            .filter(|entry| entry.reported)
            .map(|entry| entry.observed.clone())
            .collect()
    }

    /// How far an attempt is.
    #[must_use]
    pub fn phase(&self, key: &AttemptKey) -> Option<AttemptNodePhase> {
        let entries = self.entries();
        let status = entries.get(key)?.observed.status.as_ref()?;
        Some(status.phase())
    }

    /// Files of the stdouterr directory that this node writes.
    #[must_use]
    pub fn files_of_node(&self, key: &AttemptKey) -> Vec<String> {
        let entries = self.entries();
        let status = entries
            .get(key)
            .and_then(|entry| entry.observed.status.as_ref());
        status
            .map(|status| status.files.clone())
            .unwrap_or_default()
    }

    /// Follows what is known of an attempt's files; it closes when the attempt is taken off the board.
    #[must_use]
    pub fn files(&self, key: &AttemptKey) -> Option<watch::Receiver<AttemptFiles>> {
        Some(self.entries().get(key)?.files.subscribe())
    }

    /// Wakes at each change of the observed view; changes in quick succession are seen as one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn touch(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}
