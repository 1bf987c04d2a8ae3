//! Opens a store: makes a new one, or reads an old one and proves that nothing is missing from it.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{ConfState, Entry, HardState};

use super::disk::Disk;
use super::record::{self, Base, Key, Kind};
use super::{
    BOOTSTRAP_INDEX, BOOTSTRAP_TERM, Batch, Garbage, LogStore, Owner, Position, SnapshotInfo,
    Stored,
};
use crate::error::{StartError, StoreError};

impl<D: Disk> LogStore<D> {
    /// Opens the store of `owner` on a disk, or makes it there when the disk was never used: with `voters` as members.
    pub fn open(disk: D, owner: &Owner, voters: &[u64]) -> Result<(Self, Stored), StartError> {
        if disk.mark() == 0 {
            return Ok(Self::create(disk, owner, voters)?);
        }
        check_owner(&disk, owner)?;
        let (store, stored) = Self::load(disk)?;
        let mut configured = voters.to_vec();
        configured.sort_unstable();
        let mut known = stored.conf_state.voters.clone();
        known.sort_unstable();
        if configured != known {
            return Err(StartError::MembersDiffer {
                path: store.disk.place().into(),
                configured,
                stored: known,
            });
        }
        Ok((store, stored))
    }

    fn empty(disk: D, base: Base, next_sequence: u64) -> Self {
        LogStore {
            disk,
            base,
            next_sequence,
            next_snapshot: 1,
            batches: VecDeque::new(),
            garbage: VecDeque::new(),
            staging: None,
            pin: Default::default(),
            buffer: Vec::new(),
        }
    }

    fn create(mut disk: D, owner: &Owner, voters: &[u64]) -> Result<(Self, Stored), StoreError> {
        // What a creation that was cut off has left.
        let mut leftovers = Vec::new();
        disk.scan(b"", &mut |key, _| {
            leftovers.push(key.to_vec());
            Ok(true)
        })?;
        for key in leftovers {
            disk.remove(&key)?;
        }
        let identity = record::encode_identity(&owner.cluster_id, owner.member_id);
        let identity = record::seal(Kind::Identity, record::IDENTITY_KEY, &[&identity]);
        disk.put(record::IDENTITY_KEY, identity)?;
        let conf_state = ConfState {
            voters: voters.to_vec(),
            ..ConfState::default()
        };
        let hard_state = HardState {
            term: BOOTSTRAP_TERM,
            commit: BOOTSTRAP_INDEX,
            ..HardState::default()
        };
        let base = Base {
            first_sequence: 1,
            truncated_index: BOOTSTRAP_INDEX,
            truncated_term: BOOTSTRAP_TERM,
            hard_state: hard_state.clone(),
            conf_state: conf_state.clone(),
            snapshot: None,
        };
        let mut store = Self::empty(disk, base.clone(), 1);
        store.rebase(base)?;
        let stored = Stored {
            hard_state,
            conf_state,
            truncated: Position {
                index: BOOTSTRAP_INDEX,
                term: BOOTSTRAP_TERM,
            },
            entries: Vec::new(),
            snapshot: None,
        };
        Ok((store, stored))
    }

    fn load(disk: D) -> Result<(Self, Stored), StoreError> {
        let place = disk.place();
        let base = required(&disk, record::BASE_KEY)?;
        let body = record::open(&place, Kind::Base, record::BASE_KEY, &base)?;
        let base = Base::decode(body)
            .ok_or_else(|| record::damaged(&place, record::BASE_KEY, "it makes no sense"))?;
        let mut replay = Replay::new(&base);
        let torn = read_log(&disk, &base, &mut replay)?;
        let position = Position {
            index: base.truncated_index,
            term: base.truncated_term,
        };
        let stored = replay.finish(&place, &base, position)?;
        let mut store = Self::empty(disk, base, replay.next_sequence);
        store.batches = replay.batches;
        store.collect_garbage(torn)?;
        Ok((store, stored))
    }

    /// Finds what an earlier run left behind: removed at once where it could be taken for valid, else later.
    fn collect_garbage(&mut self, torn: Vec<u64>) -> Result<(), StoreError> {
        for sequence in torn {
            self.disk.remove(&Key::log(sequence).0)?;
        }
        let first = self.base.first_sequence;
        let mut oldest = None;
        self.disk.scan(record::LOG_PREFIX, &mut |key, _| {
            oldest = record::log_sequence(key);
            Ok(false)
        })?;
        if let Some(next) = oldest.filter(|oldest| *oldest < first) {
            self.garbage.push_back(Garbage::Log { next, end: first });
        }
        let mut snapshots: BTreeMap<u64, u32> = BTreeMap::new();
        self.disk.scan(record::CHUNK_PREFIX, &mut |key, _| {
            if let Some((snapshot, number)) = record::chunk_numbers(key) {
                snapshots.insert(snapshot, number + 1);
            }
            Ok(true)
        })?;
        let current = self.snapshot_record().map(|snapshot| snapshot.number);
        let newest = snapshots.keys().next_back().copied().max(current);
        self.next_snapshot = newest.map_or(1, |newest| newest + 1);
        for (snapshot, end) in snapshots {
            if Some(snapshot) != current {
                self.discard_chunks(snapshot, end, Default::default());
            }
        }
        Ok(())
    }
}

fn required<D: Disk>(disk: &D, key: &[u8]) -> Result<bytes::Bytes, StoreError> {
    disk.get(key)?
        .ok_or_else(|| record::damaged(&disk.place(), key, "it is missing"))
}

fn check_owner<D: Disk>(disk: &D, owner: &Owner) -> Result<(), StartError> {
    let place = disk.place();
    let value = required(disk, record::IDENTITY_KEY)?;
    let body = record::open(&place, Kind::Identity, record::IDENTITY_KEY, &value)?;
    let (cluster_id, member_id) = record::decode_identity(body)
        .ok_or_else(|| record::damaged(&place, record::IDENTITY_KEY, "it makes no sense"))?;
    if cluster_id != owner.cluster_id || member_id != owner.member_id {
        return Err(StartError::WrongOwner {
            path: place.into(),
            found_cluster: cluster_id,
            found_member: member_id,
            cluster: owner.cluster_id.clone(),
            member: owner.member_id,
        });
    }
    Ok(())
}

/// Feeds all complete batches to `replay`; gives the sequence numbers of what a power cut left incomplete.
fn read_log<D: Disk>(disk: &D, base: &Base, replay: &mut Replay) -> Result<Vec<u64>, StoreError> {
    let place = disk.place();
    let mark = disk.mark();
    let mut expected = base.first_sequence;
    let mut partial: Vec<u8> = Vec::new();
    let mut torn: Vec<u64> = Vec::new();
    let mut broken = false;
    let scanned = disk.scan(record::LOG_PREFIX, &mut |key, value| {
        let Some(sequence) = record::log_sequence(key) else {
            return Err(record::damaged(&place, key, "its key makes no sense"));
        };
        if sequence < base.first_sequence {
            return Ok(true);
        }
        if broken {
            torn.push(sequence);
            return Ok(true);
        }
        let missing = sequence != expected;
        let opened = record::open(&place, Kind::Log, key, &value);
        match (missing, opened) {
            (false, Ok(body)) => {
                expected += 1;
                replay
                    .fragment(sequence, body, &mut partial)
                    .ok_or_else(|| record::damaged(&place, key, "it does not fit the log"))?;
            }
            (true, _) if expected <= mark => {
                let key = Key::log(expected).0;
                return Err(record::damaged(&place, &key, "it is missing"));
            }
            (false, Err(error)) if sequence <= mark => return Err(error),
            (true, _) | (false, Err(_)) => {
                broken = true;
                torn.push(sequence);
            }
        }
        Ok(true)
    });
    if let Err(error) = scanned {
        // An engine that cannot read on does not say where: the record it could not give is the one we expect.
        return Err(match error {
            StoreError::Io { why, .. } => record::damaged(&place, &Key::log(expected).0, &why),
            StoreError::Damaged { record, why, .. } if record.contains("log/db") => {
                let why = format!("{record}: {why}");
                record::damaged(&place, &Key::log(expected).0, &why)
            }
            other => other,
        });
    }
    if replay.next_sequence <= mark {
        let key = Key::log(replay.next_sequence).0;
        let why = "it is missing: the end of the log was lost";
        return Err(record::damaged(&place, &key, why));
    }
    torn.extend(replay.next_sequence..expected);
    Ok(torn)
}

/// Puts the log together from its batches.
struct Replay {
    truncated: u64,
    /// Behind the last complete batch.
    next_sequence: u64,
    hard_state: HardState,
    entries: Vec<Entry>,
    batches: VecDeque<Batch>,
}

impl Replay {
    fn new(base: &Base) -> Self {
        Replay {
            truncated: base.truncated_index,
            next_sequence: base.first_sequence,
            hard_state: base.hard_state.clone(),
            entries: Vec::new(),
            batches: VecDeque::new(),
        }
    }

    /// Takes one record's body; `None` when it does not fit.
    fn fragment(&mut self, sequence: u64, body: &[u8], partial: &mut Vec<u8>) -> Option<()> {
        let (flags, fragment) = body.split_first()?;
        if (flags & record::FIRST != 0) != partial.is_empty() {
            return None;
        }
        partial.extend_from_slice(fragment);
        if flags & record::LAST == 0 {
            return Some(());
        }
        let (hard_state, entries) = record::decode_batch(partial)?;
        partial.clear();
        self.batches.push_back(Batch {
            first_sequence: self.next_sequence,
            last_sequence: sequence,
            max_index: entries.last().map_or(0, |entry| entry.index),
        });
        self.next_sequence = sequence + 1;
        self.learn(hard_state);
        self.extend(entries)
    }

    /// Keeps the newest hard state: batches that are older than the base may follow it in the row.
    fn learn(&mut self, next: HardState) {
        let known = &mut self.hard_state;
        known.commit = known.commit.max(next.commit);
        if next.term > known.term || next.term == known.term && next.vote != 0 {
            known.term = next.term;
            known.vote = next.vote;
        }
    }

    /// Appends entries, which replace everything from their first index on.
    fn extend(&mut self, entries: Vec<Entry>) -> Option<()> {
        let Some(first) = entries.first().map(|entry| entry.index) else {
            return Some(());
        };
        let start = first.max(self.truncated + 1);
        let kept = usize::try_from(start - self.truncated - 1).ok()?;
        if kept > self.entries.len() {
            return None;
        }
        self.entries.truncate(kept);
        self.entries
            .extend(entries.into_iter().filter(|entry| entry.index >= start));
        Some(())
    }

    fn finish(
        &mut self,
        place: &str,
        base: &Base,
        truncated: Position,
    ) -> Result<Stored, StoreError> {
        let broken = |why: &str| record::damaged(place, record::BASE_KEY, why);
        let mut hard_state = std::mem::take(&mut self.hard_state);
        let entries = std::mem::take(&mut self.entries);
        let last = truncated.index + entries.len() as u64;
        let snapshot = base.snapshot.as_ref().map(|snapshot| SnapshotInfo {
            position: Position {
                index: snapshot.index,
                term: snapshot.term,
            },
            conf_state: base.conf_state.clone(),
        });
        let applied = snapshot
            .as_ref()
            .map_or(truncated.index, |snapshot| snapshot.position.index);
        if applied > last || applied < truncated.index {
            return Err(broken("its snapshot does not meet the log"));
        }
        if hard_state.commit > last {
            let why = format!(
                "the log ends at index {last}, but {} was committed",
                hard_state.commit
            );
            return Err(broken(&why));
        }
        hard_state.commit = hard_state.commit.max(applied);
        Ok(Stored {
            hard_state,
            conf_state: base.conf_state.clone(),
            truncated,
            entries,
            snapshot,
        })
    }
}
