//! The log in memory, as raft-rs reads it: everything from the last compaction on.
//!
//! The store behind it only ever writes. Serving entries and terms from memory cannot fail and never waits for a disk. Its
//! size is bounded by `max_log_bytes`. It must never hold anything that is not durable.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::store::{Position, SnapshotInfo, Stored};

/// What an entry costs in memory beyond its own bytes.
const ENTRY_OVERHEAD: u64 = 128;

/// The log in memory: see the module.
#[derive(Debug)]
pub(crate) struct LogView {
    initial_hard_state: HardState,
    initial_conf_state: ConfState,
    truncated: Position,
    entries: VecDeque<Entry>,
    bytes: u64,
    snapshot: Option<SnapshotInfo>,
    /// A peer needs a snapshot that we do not have.
    snapshot_wanted: Cell<bool>,
}

/// What an entry counts for in every bound on the log.
pub(crate) fn cost(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len()) as u64 + ENTRY_OVERHEAD
}

impl LogView {
    pub(crate) fn new(stored: Stored) -> Self {
        let entries: VecDeque<Entry> = stored.entries.into();
        LogView {
            initial_hard_state: stored.hard_state,
            initial_conf_state: stored.conf_state,
            truncated: stored.truncated,
            bytes: entries.iter().map(cost).sum(),
            entries,
            snapshot: stored.snapshot,
            snapshot_wanted: Cell::new(false),
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }

    /// Bytes of the log in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn truncated(&self) -> Position {
        self.truncated
    }

    pub(crate) fn snapshot(&self) -> Option<&SnapshotInfo> {
        self.snapshot.as_ref()
    }

    /// Whether a peer asked in vain for a snapshot since the last call.
    pub(crate) fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.replace(false)
    }

    /// Takes entries that are durable now; they replace everything from their first index on.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|entry| entry.index) else {
            return;
        };
        while self.last() >= first {
            match self.entries.pop_back() {
                Some(entry) => self.bytes -= cost(&entry),
                None => break,
            }
        }
        debug_assert_eq!(self.last() + 1, first, "the log has no gaps");
        self.bytes += entries.iter().map(cost).sum::<u64>();
        self.entries.extend(entries);
    }

    /// A snapshot that this member took is durable: drops the log up to `truncated`.
    pub(crate) fn compacted(&mut self, snapshot: SnapshotInfo, truncated: Position) {
        while self.truncated.index < truncated.index {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= cost(&entry);
            self.truncated = Position {
                index: entry.index,
                term: entry.term,
            };
        }
        self.snapshot = Some(snapshot);
    }

    /// A snapshot from a peer is durable: it replaces the whole log.
    pub(crate) fn replaced(&mut self, snapshot: SnapshotInfo) {
        self.entries.clear();
        self.bytes = 0;
        self.truncated = snapshot.position;
        self.snapshot = Some(snapshot);
    }

    /// Up to where the log may be dropped when a snapshot stands at `snapshot`: keeps about `retain` bytes before it.
    pub(crate) fn compaction_point(&self, snapshot: Position, retain: u64) -> Position {
        let mut kept = 0;
        let behind = snapshot.index.saturating_sub(self.truncated.index) as usize;
        for entry in self.entries.range(..behind.min(self.entries.len())).rev() {
            if kept >= retain {
                return Position {
                    index: entry.index,
                    term: entry.term,
                };
            }
            kept += cost(entry);
        }
        self.truncated
    }

    fn offset(&self, index: u64) -> Option<usize> {
        let offset = index.checked_sub(self.truncated.index + 1)?;
        usize::try_from(offset).ok()
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState {
            hard_state: self.initial_hard_state.clone(),
            conf_state: self.initial_conf_state.clone(),
        })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let start = self
            .offset(low)
            .ok_or(Error::Store(StorageError::Compacted))?;
        let end = self
            .offset(high)
            .filter(|end| *end <= self.entries.len() && start <= *end)
            .ok_or(Error::Store(StorageError::Unavailable))?;
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0_u64;
        let mut taken = Vec::new();
        for entry in self.entries.range(start..end) {
            size = size.saturating_add(cost(entry));
            if !taken.is_empty() && size > max_size {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        let offset = self
            .offset(index)
            .ok_or(Error::Store(StorageError::Compacted))?;
        self.entries
            .get(offset)
            .map(|entry| entry.term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.truncated.index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        match &self.snapshot {
            Some(info) if info.position.index >= request_index => {
                // Without data: the transport streams it from the store.
                let mut snapshot = Snapshot::default();
                let metadata = snapshot.mut_metadata();
                metadata.index = info.position.index;
                metadata.term = info.position.term;
                metadata.set_conf_state(info.conf_state.clone());
                Ok(snapshot)
            }
            _ => {
                self.snapshot_wanted.set(true);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
