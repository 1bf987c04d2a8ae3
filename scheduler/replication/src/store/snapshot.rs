//! Snapshots in the store: written chunk by chunk beside the log, made to count by one base record, read chunk by chunk.
//!
//! A snapshot that was not finished leaves only garbage. A snapshot that somebody still reads is not removed.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState};

use super::disk::{Disk, DiskReader};
use super::record::{self, Base, CHUNK, Key, Kind, SnapshotRecord};
use super::{LogStore, Position};
use crate::error::StoreError;

/// What a snapshot stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotInfo {
    /// The last index whose effect it contains, with its term.
    pub position: Position,
    /// The membership at that index.
    pub conf_state: ConfState,
}

/// A snapshot on its way into the store.
#[derive(Debug)]
pub(super) struct Staging {
    number: u64,
    info: SnapshotInfo,
    bytes: Bytes,
    written: usize,
    chunks: u32,
    crc: crc32fast::Hasher,
}

impl<D: Disk> LogStore<D> {
    /// Begins to write a snapshot; one that was begun before and not finished is given up.
    pub fn begin_snapshot(&mut self, info: SnapshotInfo, bytes: Bytes) {
        self.abandon_snapshot();
        self.staging = Some(Staging {
            number: self.next_snapshot,
            info,
            bytes,
            written: 0,
            chunks: 0,
            crc: crc32fast::Hasher::new(),
        });
        self.next_snapshot += 1;
    }

    /// Gives up a snapshot that was begun.
    pub fn abandon_snapshot(&mut self) {
        if let Some(staging) = self.staging.take() {
            self.discard_chunks(staging.number, staging.chunks, Arc::default());
        }
    }

    /// The snapshot that was begun and not finished.
    pub fn staged_snapshot(&self) -> Option<&SnapshotInfo> {
        self.staging.as_ref().map(|staging| &staging.info)
    }

    /// Writes about `budget` more bytes of it; tells whether all of it is written.
    pub fn write_snapshot(&mut self, budget: usize) -> Result<bool, StoreError> {
        let Some(staging) = &mut self.staging else {
            return Ok(true);
        };
        let stop = staging.written.saturating_add(budget.max(1));
        while staging.written < staging.bytes.len() && staging.written < stop {
            let end = staging.bytes.len().min(staging.written + CHUNK);
            let chunk = &staging.bytes[staging.written..end];
            let key = Key::chunk(staging.number, staging.chunks).0;
            self.disk
                .put(&key, record::seal(Kind::Chunk, &key, &[chunk]))?;
            staging.crc.update(chunk);
            staging.written = end;
            staging.chunks += 1;
        }
        Ok(staging.written == staging.bytes.len())
    }

    /// Makes a snapshot that is written to its end count, and starts the log behind `truncated`. With `keep_log` the
    /// entries behind `truncated` stay; without, the log is empty. Durable on return.
    pub fn finish_snapshot(
        &mut self,
        truncated: Position,
        keep_log: bool,
        hard_state: &HardState,
    ) -> Result<(), StoreError> {
        while !self.write_snapshot(usize::MAX)? {}
        let Some(staging) = self.staging.take() else {
            return Ok(());
        };
        let first_sequence = self
            .batches
            .iter()
            .find(|batch| keep_log && batch.max_index > truncated.index)
            .map_or(self.next_sequence, |batch| batch.first_sequence);
        let base = Base {
            first_sequence,
            truncated_index: truncated.index,
            truncated_term: truncated.term,
            hard_state: hard_state.clone(),
            conf_state: staging.info.conf_state,
            snapshot: Some(SnapshotRecord {
                number: staging.number,
                index: staging.info.position.index,
                term: staging.info.position.term,
                chunks: staging.chunks,
                bytes: staging.bytes.len() as u64,
                crc: staging.crc.finalize(),
            }),
        };
        self.rebase(base)
    }

    /// A source of the snapshot that counts, for sending it; `None` if there is none.
    pub fn snapshot_source(&self) -> Option<SnapshotSource> {
        let record = self.snapshot_record()?.clone();
        Some(SnapshotSource {
            place: self.disk.place(),
            reader: self.disk.reader(),
            record,
            next: 0,
            _pin: self.pin.clone(),
        })
    }

    /// Reads the whole snapshot that counts.
    pub fn read_snapshot(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(mut source) = self.snapshot_source() else {
            return Ok(None);
        };
        let mut bytes = Vec::with_capacity(source.total_bytes().min(1 << 32) as usize);
        while let Some(chunk) = source.next_chunk()? {
            bytes.extend_from_slice(&chunk);
        }
        let expected = &source.record;
        if bytes.len() as u64 != expected.bytes || crc32fast::hash(&bytes) != expected.crc {
            return Err(StoreError::Damaged {
                place: source.place.clone(),
                record: format!("snapshot {}", expected.number),
                why: "length or checksum of the whole do not match".to_owned(),
            });
        }
        Ok(Some(bytes))
    }
}

/// Reads one snapshot chunk by chunk, from any thread; blocks on the disk.
pub struct SnapshotSource {
    place: String,
    reader: Box<dyn DiskReader>,
    record: SnapshotRecord,
    next: u32,
    _pin: Arc<()>,
}

impl SnapshotSource {
    /// Length of the whole in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.record.bytes
    }

    /// CRC-32 of the whole.
    pub fn crc32(&self) -> u32 {
        self.record.crc
    }

    /// The position that the snapshot stands for.
    pub fn position(&self) -> Position {
        Position {
            index: self.record.index,
            term: self.record.term,
        }
    }

    /// The next piece, checked; `None` behind the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.next == self.record.chunks {
            return Ok(None);
        }
        let key = Key::chunk(self.record.number, self.next).0;
        self.next += 1;
        let Some(value) = self.reader.get(&key)? else {
            return Err(record::damaged(&self.place, &key, "it is missing"));
        };
        let length = record::open(&self.place, Kind::Chunk, &key, &value)?.len();
        Ok(Some(value.slice(value.len() - length..)))
    }
}

impl std::fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotSource")
            .field("record", &self.record)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
