//! The bytes of a stored record: format version, kind, checksum, body; and how a batch of entries is laid out.
//!
//! Every value is `format (1) | kind (1) | crc32 (4) | body`, and stays under [`MAX_VALUE`]. The checksum covers the key as
//! well, so that a value at the wrong place counts as damaged. All integers are little-endian; keys are big-endian, so
//! that they sort. Nothing here touches a disk.

use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

use crate::error::StoreError;

/// Format version that this release writes, and the newest that it reads.
pub(crate) const FORMAT: u8 = 1;
/// Bytes of the largest value. The storage engine moves larger ones into files of their own, which a sync of its main file
/// does not cover.
pub(crate) const MAX_VALUE: usize = 30 * 1024;
const HEADER: usize = 6;
/// Bytes of payload in one record of the log.
const FRAGMENT: usize = MAX_VALUE - HEADER - 1;
/// Bytes of a snapshot in one record.
pub(crate) const CHUNK: usize = MAX_VALUE - HEADER;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whose store this is.
    Identity = 1,
    /// Where the log starts and which snapshot counts.
    Base = 2,
    /// A piece of a batch of the log.
    Log = 3,
    /// A piece of a snapshot.
    Chunk = 4,
}

/// A record's key and its name in errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) Vec<u8>);

pub(crate) const IDENTITY_KEY: &[u8] = b"i";
pub(crate) const BASE_KEY: &[u8] = b"b";
pub(crate) const LOG_PREFIX: &[u8] = b"l";
pub(crate) const CHUNK_PREFIX: &[u8] = b"s";

impl Key {
    pub(crate) fn log(sequence: u64) -> Key {
        let mut key = Vec::with_capacity(9);
        key.extend_from_slice(LOG_PREFIX);
        key.extend_from_slice(&sequence.to_be_bytes());
        Key(key)
    }

    pub(crate) fn chunk(snapshot: u64, number: u32) -> Key {
        let mut key = Vec::with_capacity(13);
        key.extend_from_slice(CHUNK_PREFIX);
        key.extend_from_slice(&snapshot.to_be_bytes());
        key.extend_from_slice(&number.to_be_bytes());
        Key(key)
    }
}

/// The sequence number in a log key.
pub(crate) fn log_sequence(key: &[u8]) -> Option<u64> {
    let rest = key.strip_prefix(LOG_PREFIX)?;
    Some(u64::from_be_bytes(rest.try_into().ok()?))
}

/// Snapshot number and chunk number in a chunk key.
pub(crate) fn chunk_numbers(key: &[u8]) -> Option<(u64, u32)> {
    let rest = key.strip_prefix(CHUNK_PREFIX)?;
    if rest.len() != 12 {
        return None;
    }
    let (snapshot, number) = rest.split_at(8);
    Some((
        u64::from_be_bytes(snapshot.try_into().ok()?),
        u32::from_be_bytes(number.try_into().ok()?),
    ))
}

/// The name of a record for people.
pub(crate) fn name(key: &[u8]) -> String {
    if let Some(sequence) = log_sequence(key) {
        return format!("log record {sequence}");
    }
    if let Some((snapshot, number)) = chunk_numbers(key) {
        return format!("chunk {number} of snapshot {snapshot}");
    }
    match key {
        IDENTITY_KEY => "the identity record".to_owned(),
        BASE_KEY => "the base record".to_owned(),
        other => format!("an unknown record {other:02x?}"),
    }
}

/// Builds a value from its body.
pub(crate) fn seal(kind: Kind, key: &[u8], body: &[&[u8]]) -> Vec<u8> {
    let length = body.iter().map(|part| part.len()).sum::<usize>();
    let mut value = Vec::with_capacity(HEADER + length);
    value.extend_from_slice(&[FORMAT, kind as u8, 0, 0, 0, 0]);
    for part in body {
        value.extend_from_slice(part);
    }
    let crc = checksum(key, &value);
    value[2..HEADER].copy_from_slice(&crc.to_le_bytes());
    debug_assert!(
        value.len() <= MAX_VALUE,
        "a value must stay in the log file"
    );
    value
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&value[..2]);
    hasher.update(&value[HEADER..]);
    hasher.finalize()
}

/// Checks a value and gives its body.
pub(crate) fn open<'a>(
    place: &str,
    kind: Kind,
    key: &[u8],
    value: &'a [u8],
) -> Result<&'a [u8], StoreError> {
    if value.len() < HEADER {
        return Err(damaged(place, key, "it is cut short"));
    }
    let stored = u32::from_le_bytes([value[2], value[3], value[4], value[5]]);
    if stored != checksum(key, value) {
        return Err(damaged(place, key, "its checksum does not match"));
    }
    if value[0] != FORMAT {
        return Err(StoreError::NewerFormat {
            place: place.to_owned(),
            record: name(key),
            found: value[0],
            known: FORMAT,
        });
    }
    if value[1] != kind as u8 {
        return Err(damaged(place, key, "it is of another kind"));
    }
    Ok(&value[HEADER..])
}

/// The error for a damaged record.
pub(crate) fn damaged(place: &str, key: &[u8], why: &str) -> StoreError {
    StoreError::Damaged {
        place: place.to_owned(),
        record: name(key),
        why: why.to_owned(),
    }
}

/// Takes integers and slices from the front of some bytes.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    pub(crate) fn finish(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Bytes of bookkeeping per entry in a batch.
const ENTRY_HEADER: usize = 1 + 8 + 2 + 4;

/// Lays out a batch: the hard state and entries with consecutive indices.
pub(crate) fn encode_batch(out: &mut Vec<u8>, hard_state: &HardState, entries: &[Entry]) {
    out.clear();
    let size: usize = entries
        .iter()
        .map(|entry| ENTRY_HEADER + entry.context.len() + entry.data.len())
        .sum();
    out.reserve(36 + size);
    for value in [hard_state.term, hard_state.vote, hard_state.commit] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    let first = entries.first().map_or(0, |entry| entry.index);
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.push(match entry.entry_type {
            EntryType::EntryNormal => 0,
            EntryType::EntryConfChange => 1,
            EntryType::EntryConfChangeV2 => 2,
        });
        out.extend_from_slice(&entry.term.to_le_bytes());
        out.extend_from_slice(&(entry.context.len() as u16).to_le_bytes());
        out.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
        out.extend_from_slice(&entry.context);
        out.extend_from_slice(&entry.data);
    }
}

/// Reads what [`encode_batch`] wrote.
pub(crate) fn decode_batch(bytes: &[u8]) -> Option<(HardState, Vec<Entry>)> {
    let mut reader = Reader(bytes);
    let hard_state = read_hard_state(&mut reader)?;
    let first = reader.u64()?;
    let count = reader.u32()?;
    let mut entries = Vec::with_capacity(count.min(4096) as usize);
    for offset in 0..u64::from(count) {
        let entry_type = match reader.u8()? {
            0 => EntryType::EntryNormal,
            1 => EntryType::EntryConfChange,
            2 => EntryType::EntryConfChangeV2,
            _ => return None,
        };
        let term = reader.u64()?;
        let context_length = usize::from(reader.u16()?);
        let data_length = reader.u32()? as usize;
        let context = bytes::Bytes::copy_from_slice(reader.bytes(context_length)?);
        let data = bytes::Bytes::copy_from_slice(reader.bytes(data_length)?);
        entries.push(Entry {
            entry_type,
            term,
            index: first.checked_add(offset)?,
            context,
            data,
            ..Entry::default()
        });
    }
    reader.finish()?;
    Some((hard_state, entries))
}

/// Cuts a batch into log records: the first byte of each body tells whether it opens and whether it closes the batch.
pub(crate) fn fragments(batch: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let count = batch.chunks(FRAGMENT).len();
    batch
        .chunks(FRAGMENT)
        .enumerate()
        .map(move |(number, fragment)| {
            let first = if number == 0 { FIRST } else { 0 };
            let last = if number + 1 == count { LAST } else { 0 };
            (first | last, fragment)
        })
}

/// Flag of a record that opens a batch.
pub(crate) const FIRST: u8 = 1;
/// Flag of a record that closes a batch.
pub(crate) const LAST: u8 = 2;

/// Which snapshot counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotRecord {
    /// Number of the snapshot in its chunks' keys.
    pub(crate) number: u64,
    /// Log index that it stands for.
    pub(crate) index: u64,
    /// Term of that index.
    pub(crate) term: u64,
    /// How many chunks it has.
    pub(crate) chunks: u32,
    /// Its length.
    pub(crate) bytes: u64,
    /// CRC-32 of the whole.
    pub(crate) crc: u32,
}

/// The base record: everything before `first_sequence` is history.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Base {
    /// The first log record that counts.
    pub(crate) first_sequence: u64,
    /// The last index that is not in the log any more.
    pub(crate) truncated_index: u64,
    /// Its term.
    pub(crate) truncated_term: u64,
    /// The hard state when it was written; batches behind it know a newer one.
    pub(crate) hard_state: HardState,
    /// The membership at the snapshot, or at the start.
    pub(crate) conf_state: ConfState,
    /// The snapshot, if there has been one.
    pub(crate) snapshot: Option<SnapshotRecord>,
}

impl Base {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        for value in [
            self.first_sequence,
            self.truncated_index,
            self.truncated_term,
            self.hard_state.term,
            self.hard_state.vote,
            self.hard_state.commit,
        ] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        let conf = &self.conf_state;
        for ids in [
            &conf.voters,
            &conf.learners,
            &conf.voters_outgoing,
            &conf.learners_next,
        ] {
            out.extend_from_slice(&(ids.len() as u16).to_le_bytes());
            for id in ids {
                out.extend_from_slice(&id.to_le_bytes());
            }
        }
        out.push(u8::from(conf.auto_leave));
        match &self.snapshot {
            None => out.push(0),
            Some(snapshot) => {
                out.push(1);
                for value in [
                    snapshot.number,
                    snapshot.index,
                    snapshot.term,
                    snapshot.bytes,
                ] {
                    out.extend_from_slice(&value.to_le_bytes());
                }
                out.extend_from_slice(&snapshot.chunks.to_le_bytes());
                out.extend_from_slice(&snapshot.crc.to_le_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Base> {
        let mut reader = Reader(bytes);
        let first_sequence = reader.u64()?;
        let truncated_index = reader.u64()?;
        let truncated_term = reader.u64()?;
        let hard_state = read_hard_state(&mut reader)?;
        let mut conf_state = ConfState {
            voters: read_ids(&mut reader)?,
            learners: read_ids(&mut reader)?,
            voters_outgoing: read_ids(&mut reader)?,
            learners_next: read_ids(&mut reader)?,
            ..ConfState::default()
        };
        conf_state.auto_leave = reader.u8()? == 1;
        let snapshot = match reader.u8()? {
            0 => None,
            1 => {
                let (number, index) = (reader.u64()?, reader.u64()?);
                let (term, bytes) = (reader.u64()?, reader.u64()?);
                Some(SnapshotRecord {
                    number,
                    index,
                    term,
                    bytes,
                    chunks: reader.u32()?,
                    crc: reader.u32()?,
                })
            }
            _ => return None,
        };
        reader.finish()?;
        Some(Base {
            first_sequence,
            truncated_index,
            truncated_term,
            hard_state,
            conf_state,
            snapshot,
        })
    }
}

fn read_hard_state(reader: &mut Reader<'_>) -> Option<HardState> {
    Some(HardState {
        term: reader.u64()?,
        vote: reader.u64()?,
        commit: reader.u64()?,
        ..HardState::default()
    })
}

fn read_ids(reader: &mut Reader<'_>) -> Option<Vec<u64>> {
    let count = reader.u16()?;
    (0..count).map(|_| reader.u64()).collect()
}

/// The identity record's body.
pub(crate) fn encode_identity(cluster_id: &str, member_id: u64) -> Vec<u8> {
    let mut out = member_id.to_le_bytes().to_vec();
    out.extend_from_slice(cluster_id.as_bytes());
    out
}

/// Cluster and member of an identity record's body.
pub(crate) fn decode_identity(bytes: &[u8]) -> Option<(String, u64)> {
    let mut reader = Reader(bytes);
    let member_id = reader.u64()?;
    let cluster_id = String::from_utf8(reader.0.to_vec()).ok()?;
    Some((cluster_id, member_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_its_bytes() {
        let entries: Vec<Entry> = (5..9)
            .map(|index| Entry {
                index,
                term: 3,
                data: vec![index as u8; 20_000].into(),
                context: vec![1, 2].into(),
                ..Entry::default()
            })
            .collect();
        let hard_state = HardState {
            term: 3,
            vote: 2,
            commit: 4,
            ..HardState::default()
        };
        let mut bytes = Vec::new();
        encode_batch(&mut bytes, &hard_state, &entries);
        assert_eq!(decode_batch(&bytes), Some((hard_state, entries)));
        let pieces: Vec<(u8, &[u8])> = fragments(&bytes).collect();
        assert_eq!(pieces.len(), 3);
        assert_eq!(
            pieces.iter().map(|piece| piece.0).collect::<Vec<_>>(),
            [FIRST, 0, LAST]
        );
        assert_eq!(decode_batch(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn a_value_knows_its_key_kind_and_format() {
        let key = Key::log(7).0;
        let mut value = seal(Kind::Log, &key, &[b"body"]);
        assert_eq!(open("d", Kind::Log, &key, &value), Ok(&b"body"[..]));
        let elsewhere = open("d", Kind::Log, &Key::log(8).0, &value).unwrap_err();
        assert!(
            elsewhere.to_string().contains("log record 8"),
            "{elsewhere}"
        );
        assert!(open("d", Kind::Chunk, &key, &value).is_err());
        value[0] = 9;
        let crc = checksum(&key, &value);
        value[2..6].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(
            open("d", Kind::Log, &key, &value),
            Err(StoreError::NewerFormat { found: 9, .. })
        ));
    }
}
