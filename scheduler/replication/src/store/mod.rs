//! The log store: batches of entries, the hard state and one snapshot, on a [`Disk`].
//!
//! The log is a row of records with consecutive sequence numbers. One batch (everything that one turn of the replication thread
//! persists) is one record, or several when it is large, and counts only when all of it is there; each batch carries the
//! hard state. The base record says at which sequence number the log starts and which snapshot counts, so that
//! compaction and the installation of a snapshot are each one small write. What a base leaves behind is removed bit by bit.
//!
//! Reading happens once, at the start; entries are served from memory after that. Anything that is missing or wrong up
//! to the disk's mark is an error which names the record: the store never drops acknowledged data and never starts empty
//! by itself. An incomplete batch behind the mark is what a power cut leaves, was never acknowledged, and is dropped.

mod disk;
mod load;
mod mark;
mod memory;
pub(crate) mod owner;
pub(crate) mod record;
mod sled_disk;
mod snapshot;

use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry, HardState};

pub use disk::{Disk, DiskReader, Visit};
pub use memory::{MemoryDisk, Platter};
pub use sled_disk::SledDisk;
pub use snapshot::{SnapshotInfo, SnapshotSource};

use crate::error::StoreError;
use record::{Base, Key, Kind, SnapshotRecord};
use snapshot::Staging;

/// The store on sled.
pub type SledStore = LogStore<SledDisk>;
/// The store on the faulty disk in memory.
pub type MemoryStore = LogStore<MemoryDisk>;

/// Every member's log starts behind this index, as if a snapshot of the empty state stood there: a member that joins later
/// has index 0, so it can only catch up by a snapshot, which tells it the membership.
pub(crate) const BOOTSTRAP_INDEX: u64 = 1;
/// The term of [`BOOTSTRAP_INDEX`].
pub(crate) const BOOTSTRAP_TERM: u64 = 1;

/// Whose store it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The cluster's id.
    pub cluster_id: String,
    /// The member's id.
    pub member_id: u64,
}

/// An index of the log with its term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// The index.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
}

/// What the store held when it was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The newest hard state; its commit index is within the log.
    pub hard_state: HardState,
    /// The membership at the snapshot, or at the start.
    pub conf_state: ConfState,
    /// The last position before `entries`.
    pub truncated: Position,
    /// The log.
    pub entries: Vec<Entry>,
    /// The snapshot, if one was taken.
    pub snapshot: Option<SnapshotInfo>,
}

/// One batch of the log: its records and the highest index in it.
#[derive(Debug, Clone, Copy)]
struct Batch {
    first_sequence: u64,
    last_sequence: u64,
    max_index: u64,
}

/// Records that nothing points to any more.
#[derive(Debug)]
enum Garbage {
    Log {
        next: u64,
        end: u64,
    },
    Chunks {
        snapshot: u64,
        next: u32,
        end: u32,
        pin: Arc<()>,
    },
}

/// The log store: see the module.
#[derive(Debug)]
pub struct LogStore<D> {
    disk: D,
    base: Base,
    next_sequence: u64,
    next_snapshot: u64,
    batches: VecDeque<Batch>,
    garbage: VecDeque<Garbage>,
    staging: Option<Staging>,
    /// Held by everyone who still reads the snapshot of `base`.
    pin: Arc<()>,
    buffer: Vec<u8>,
}

impl<D: Disk> LogStore<D> {
    /// Writes the hard state and entries as one batch. Not durable before [`LogStore::sync`].
    pub fn append(&mut self, hard_state: &HardState, entries: &[Entry]) -> Result<(), StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        record::encode_batch(&mut buffer, hard_state, entries);
        let first_sequence = self.next_sequence;
        for (flags, fragment) in record::fragments(&buffer) {
            let key = Key::log(self.next_sequence).0;
            let value = record::seal(Kind::Log, &key, &[&[flags], fragment]);
            self.disk.put(&key, value)?;
            self.next_sequence += 1;
        }
        self.batches.push_back(Batch {
            first_sequence,
            last_sequence: self.next_sequence - 1,
            max_index: entries.last().map_or(0, |entry| entry.index),
        });
        // One huge batch must not pin its memory for ever.
        const KEEP: usize = 4 * 1024 * 1024;
        if buffer.capacity() <= KEEP {
            self.buffer = buffer;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.disk.sync(self.next_sequence - 1)
    }

    /// Makes `base` the start of everything and throws away what it leaves behind. Durable on return.
    fn rebase(&mut self, base: Base) -> Result<(), StoreError> {
        let hard_state = base.hard_state.clone();
        let value = record::seal(Kind::Base, record::BASE_KEY, &[&base.encode()]);
        self.disk.put(record::BASE_KEY, value)?;
        let old = std::mem::replace(&mut self.base, base);
        // The batch behind the base lets the mark prove that the base is there.
        self.append(&hard_state, &[])?;
        self.sync()?;

        let first = self.base.first_sequence;
        if first > old.first_sequence {
            self.garbage.push_back(Garbage::Log {
                next: old.first_sequence,
                end: first,
            });
        }
        while self
            .batches
            .front()
            .is_some_and(|batch| batch.last_sequence < first)
        {
            self.batches.pop_front();
        }
        if let Some(snapshot) = old.snapshot
            && self.base.snapshot.as_ref().map(|new| new.number) != Some(snapshot.number)
        {
            let pin = std::mem::take(&mut self.pin);
            self.discard_chunks(snapshot.number, snapshot.chunks, pin);
        }
        Ok(())
    }

    fn discard_chunks(&mut self, snapshot: u64, end: u32, pin: Arc<()>) {
        self.garbage.push_back(Garbage::Chunks {
            snapshot,
            next: 0,
            end,
            pin,
        });
    }

    /// Removes up to `budget` records that nothing points to; tells whether more are left that could go now.
    pub fn maintain(&mut self, budget: usize) -> Result<bool, StoreError> {
        let mut left = budget;
        for _ in 0..self.garbage.len() {
            let Some(mut garbage) = self.garbage.pop_front() else {
                break;
            };
            let done = match &mut garbage {
                Garbage::Log { next, end } => {
                    while next < end && left > 0 {
                        self.disk.remove(&Key::log(*next).0)?;
                        *next += 1;
                        left -= 1;
                    }
                    next == end
                }
                Garbage::Chunks {
                    snapshot,
                    next,
                    end,
                    pin,
                } => {
                    // Somebody may still be sending this snapshot.
                    while Arc::strong_count(pin) == 1 && next < end && left > 0 {
                        self.disk.remove(&Key::chunk(*snapshot, *next).0)?;
                        *next += 1;
                        left -= 1;
                    }
                    next == end
                }
            };
            if !done {
                self.garbage.push_back(garbage);
            }
        }
        Ok(self.garbage.iter().any(Garbage::removable))
    }

    /// Bytes on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.disk.bytes()
    }

    /// The snapshot that counts.
    fn snapshot_record(&self) -> Option<&SnapshotRecord> {
        self.base.snapshot.as_ref()
    }
}

impl Garbage {
    fn removable(&self) -> bool {
        match self {
            Garbage::Log { .. } => true,
            Garbage::Chunks { pin, .. } => Arc::strong_count(pin) == 1,
        }
    }
}
