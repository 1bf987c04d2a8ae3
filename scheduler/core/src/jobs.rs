//! All jobs by resource name. A job that has not ended is kept as a message; one that has ended is sealed into its
//! encoded bytes, so that a long history stays cheap.
//!
//! A sealed job costs its bytes (about one KiB for an ordinary job file), its name once, and two entries of indexes
//! that share the name. It must never lose a field: what is left out of the bytes is what the name and the UUID give
//! back. Only [`JobTable::seal`] seals, and only [`JobTable::edit`] changes what is sealed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use prost::Message;
use trainyard_proto::v1::{AttemptPhase, Job};

use crate::lists::is_empty;
use crate::state::is_ended;

/// Order of creation: index of the log, then place in the array (members of an array share the index).
pub(crate) type OrderKey = (u64, u32);

/// The output directory's segment is made of name and UUID, and is not in the bytes.
const DERIVED_SEGMENT: u8 = 1;

/// Field of `Job` that holds its UUID.
const UID: u32 = 3;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct JobTable {
    by_name: BTreeMap<Arc<str>, Slot>,
    by_order: BTreeMap<OrderKey, Arc<str>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Slot {
    Open(Box<Job>),
    /// One byte of flags, then the encoded job without its name.
    Sealed(Box<[u8]>),
}

impl JobTable {
    /// The job, decoded if it is sealed.
    pub(crate) fn get(&self, name: &str) -> Option<Cow<'_, Job>> {
        let (name, slot) = self.by_name.get_key_value(name)?;
        slot.job(name)
    }

    /// A job that is not sealed: the cheap way for whoever needs only those.
    pub(crate) fn open(&self, name: &str) -> Option<&Job> {
        match self.by_name.get(name)? {
            Slot::Open(job) => Some(job),
            Slot::Sealed(_) => None,
        }
    }

    /// As [`JobTable::open`], to change it.
    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Job> {
        match self.by_name.get_mut(name)? {
            Slot::Open(job) => Some(job),
            Slot::Sealed(_) => None,
        }
    }

    /// Changes a job, sealed or not. Name and sequence must stay.
    pub(crate) fn edit<R>(&mut self, name: &str, change: impl FnOnce(&mut Job) -> R) -> Option<R> {
        let (key, _) = self.by_name.get_key_value(name)?;
        let key = Arc::clone(key);
        let slot = self.by_name.get_mut(name)?;
        match slot {
            Slot::Open(job) => Some(change(job)),
            Slot::Sealed(_) => {
                let mut job = slot.job(&key)?.into_owned();
                let result = change(&mut job);
                *slot = Slot::Sealed(seal(job));
                Some(result)
            }
        }
    }

    /// Whether there is such a job.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The name as the table keeps it, to be shared by indexes.
    pub(crate) fn key(&self, name: &str) -> Option<Arc<str>> {
        self.by_name
            .get_key_value(name)
            .map(|(key, _)| Arc::clone(key))
    }

    /// Adds a job, or replaces the one of that name.
    pub(crate) fn insert(&mut self, job: Job) {
        let name: Arc<str> = job.name.as_str().into();
        self.by_order.insert(order_key(&job), Arc::clone(&name));
        self.by_name.insert(name, Slot::Open(Box::new(job)));
    }

    /// Takes a job out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Job> {
        let (key, slot) = self.by_name.remove_entry(name)?;
        let job = match slot {
            Slot::Open(job) => *job,
            Slot::Sealed(_) => slot.job(&key)?.into_owned(),
        };
        self.by_order.remove(&order_key(&job));
        Some(job)
    }

    /// Seals a job that has ended and whose attempts have; any other is left as it is.
    pub(crate) fn seal(&mut self, name: &str) {
        let Some(slot) = self.by_name.get_mut(name) else {
            return;
        };
        if let Slot::Open(job) = slot
            && is_over(job)
        {
            *slot = Slot::Sealed(seal(std::mem::take(job)));
        }
    }

    /// All names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    /// Names within bounds, in order; the other end gives the reverse order.
    pub(crate) fn range(
        &self,
        from: Bound<&str>,
        to: Bound<&str>,
    ) -> impl DoubleEndedIterator<Item = &Arc<str>> {
        (!is_empty(from, to))
            .then(|| self.by_name.range::<str, _>((from, to)))
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
    }

    /// Order and names of jobs within bounds, in order of creation; the other end gives the reverse order.
    pub(crate) fn by_creation(
        &self,
        from: Bound<OrderKey>,
        to: Bound<OrderKey>,
    ) -> impl DoubleEndedIterator<Item = (&OrderKey, &Arc<str>)> {
        (!is_empty(from, to))
            .then(|| self.by_order.range((from, to)))
            .into_iter()
            .flatten()
    }

    /// Appends every job as the field `tag` of a protobuf message.
    pub(crate) fn encode_all(&self, tag: u32, into: &mut Vec<u8>) {
        use prost::encoding::{WireType, encode_key, encode_varint};
        let mut scratch = Vec::new();
        for (name, slot) in &self.by_name {
            scratch.clear();
            match slot {
                Slot::Open(job) => encode(job, &mut scratch),
                Slot::Sealed(bytes) => {
                    let (flags, encoded) = bytes.split_first().unwrap_or((&0, &[]));
                    scratch.extend_from_slice(encoded);
                    let mut rest = Job {
                        name: name.to_string(),
                        ..Job::default()
                    };
                    if flags & DERIVED_SEGMENT != 0 {
                        let uid = uid_of(encoded).unwrap_or_default();
                        rest.job_output_directory_path_segment = format!("{name}/{uid}");
                    }
                    encode(&rest, &mut scratch);
                }
            }
            encode_key(tag, WireType::LengthDelimited, into);
            encode_varint(scratch.len() as u64, into);
            into.extend_from_slice(&scratch);
        }
    }
}

impl Slot {
    /// The bytes were made by [`seal`], so that they always decode.
    fn job(&self, name: &str) -> Option<Cow<'_, Job>> {
        match self {
            Self::Open(job) => Some(Cow::Borrowed(job)),
            Self::Sealed(bytes) => {
                let (flags, encoded) = bytes.split_first()?;
                let mut job = Job::decode(encoded).ok()?;
                job.name = name.to_owned();
                if flags & DERIVED_SEGMENT != 0 {
                    job.job_output_directory_path_segment = derived_segment(&job);
                }
                Some(Cow::Owned(job))
            }
        }
    }
}

/// Whether nothing will happen to the job any more.
pub(crate) fn is_over(job: &Job) -> bool {
    is_ended(job.execution_state())
        && job
            .attempts
            .last()
            .is_none_or(|a| a.phase() == AttemptPhase::Ended)
}

/// Place of the job in the order of creation.
pub(crate) fn order_key(job: &Job) -> OrderKey {
    (job.sequence, job.array.as_ref().map_or(0, |a| a.index))
}

/// The UUID of an encoded job, without decoding the rest of it.
fn uid_of(encoded: &[u8]) -> Option<&str> {
    use prost::encoding::{DecodeContext, decode_key, decode_varint, skip_field};
    let mut rest = encoded;
    while !rest.is_empty() {
        let (tag, wire) = decode_key(&mut rest).ok()?;
        if tag == UID {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            return std::str::from_utf8(rest.get(..length)?).ok();
        }
        skip_field(wire, tag, &mut rest, DecodeContext::default()).ok()?;
    }
    None
}

fn derived_segment(job: &Job) -> String {
    format!("{}/{}", job.name, job.uid)
}

fn seal(mut job: Job) -> Box<[u8]> {
    let mut flags = 0;
    if job.job_output_directory_path_segment == derived_segment(&job) {
        job.job_output_directory_path_segment = String::new();
        flags |= DERIVED_SEGMENT;
    }
    job.name = String::new();
    let mut bytes = Vec::with_capacity(job.encoded_len() + 1);
    bytes.push(flags);
    encode(&job, &mut bytes);
    bytes.into_boxed_slice()
}

/// A vector grows, so that encoding into it cannot fail.
fn encode(job: &Job, into: &mut Vec<u8>) {
    let encoded = job.encode(into);
    debug_assert!(encoded.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::{Attempt, ExecutionState};

    fn job(name: &str, state: ExecutionState) -> Job {
        Job {
            name: name.to_owned(),
            uid: format!("uid of {name}"),
            job_output_directory_path_segment: format!("{name}/uid of {name}"),
            execution_state: state.into(),
            sequence: 7,
            ..Job::default()
        }
    }

    #[test]
    fn a_sealed_job_comes_back_as_it_was() {
        for segment in ["", "elsewhere", "j/uid of j"] {
            let mut table = JobTable::default();
            let ended = Job {
                job_output_directory_path_segment: segment.to_owned(),
                ..job("j", ExecutionState::Failed)
            };
            table.insert(ended.clone());
            table.seal("j");
            assert!(table.open("j").is_none() && table.get_mut("j").is_none());
            assert_eq!(table.get("j").as_deref(), Some(&ended));
            table.edit("j", |j| j.etag = "9".to_owned());
            assert_eq!(table.get("j").unwrap().etag, "9");
            assert_eq!(table.remove("j").unwrap().etag, "9");
            assert_eq!(table, JobTable::default());
        }
    }

    #[test]
    fn what_may_still_change_is_not_sealed() {
        let mut table = JobTable::default();
        table.insert(job("queued", ExecutionState::Queued));
        let mut ending = job("ending", ExecutionState::Failed);
        ending.attempts.push(Attempt {
            phase: AttemptPhase::Stop.into(),
            ..Attempt::default()
        });
        table.insert(ending);
        for name in ["queued", "ending"] {
            table.seal(name);
            assert!(table.get_mut(name).is_some(), "{name}");
        }
    }

    #[test]
    fn all_jobs_encode_as_fields_of_a_message_that_gives_them_back() {
        let mut table = JobTable::default();
        let jobs = [
            job("a", ExecutionState::Succeeded),
            job("b", ExecutionState::Queued),
        ];
        for job in &jobs {
            table.insert(job.clone());
            table.seal(&job.name);
        }
        let mut bytes = Vec::new();
        table.encode_all(7, &mut bytes);
        let read = trainyard_proto::store::v1::Snapshot::decode(bytes.as_slice()).unwrap();
        assert_eq!(read.jobs, jobs);
    }
}
