//! What attempts used, for accounting over any period: a ledger of ended ones, and the live ones as they are.
//!
//! Records outlive their jobs, and go when they are too old. Sums are exact: times are clipped to the period in
//! nanoseconds and become hours only at the end. It must never forget a record silently: `complete_since` says from
//! when on it knows everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use prost_types::Timestamp;
use trainyard_proto::store::v1::{DropUsage, UsageRecord};
use trainyard_proto::v1::{
    Attempt, ReportUsageRequest, ReportUsageResponse, UsageGrouping, UsageRow,
};

use crate::capacity;
use crate::state::{State, workspace_of};

/// Most rows of a report, the one for the rest included.
const MAX_ROWS: usize = 10_000;

/// What stands for a user that is not known.
const NOBODY: &str = "-";

/// Seconds and nanoseconds since 1970.
type Moment = (i64, i32);

/// The records, in order of their end.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ledger {
    records: VecDeque<Record>,
    complete_since: Option<Timestamp>,
    /// Each user once.
    users: BTreeSet<Arc<str>>,
}

/// What one attempt held, and how long. Names are shared with the table of jobs and among records.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    job: Arc<str>,
    user: Arc<str>,
    start: Moment,
    end: Moment,
    gpus: u32,
    milli_nodes: u32,
}

/// GPU × ns and thousandths of nodes × ns.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    gpu_ns: u128,
    milli_node_ns: u128,
    attempts: u64,
}

impl Ledger {
    /// For the snapshot.
    pub(crate) fn records(&self) -> Vec<UsageRecord> {
        self.records.iter().map(Record::to_message).collect()
    }

    /// Records that ended before were dropped; `None`: none were.
    pub(crate) fn complete_since(&self) -> Option<Timestamp> {
        self.complete_since
    }

    /// What [`Ledger::records`] gave. `share` gives the name of a job as it is kept already, if it is.
    pub(crate) fn from_records(
        records: Vec<UsageRecord>,
        complete_since: Option<Timestamp>,
        share: impl Fn(&str) -> Option<Arc<str>>,
    ) -> Self {
        let mut ledger = Self {
            complete_since,
            ..Self::default()
        };
        for record in records {
            let job = share(&record.job).unwrap_or_else(|| record.job.as_str().into());
            let user = ledger.user(&record.user);
            ledger.records.push_back(Record {
                job,
                user,
                start: moment(record.start_time.as_ref()),
                end: moment(record.end_time.as_ref()),
                gpus: record.gpus,
                milli_nodes: record.milli_nodes,
            });
        }
        ledger
    }

    fn user(&mut self, name: &str) -> Arc<str> {
        match self.users.get(name) {
            Some(known) => Arc::clone(known),
            None => {
                let user: Arc<str> = name.into();
                self.users.insert(Arc::clone(&user));
                user
            }
        }
    }

    /// A leader's clock may be behind its predecessor's, so that a record may belong before the last.
    fn push(&mut self, record: Record) {
        let place = self.records.partition_point(|r| r.end <= record.end);
        self.records.insert(place, record);
    }

    fn ended_before(&self, before: Moment) -> usize {
        self.records.partition_point(|r| r.end < before)
    }
}

impl Record {
    fn to_message(&self) -> UsageRecord {
        UsageRecord {
            job: self.job.to_string(),
            user: self.user.to_string(),
            start_time: Some(timestamp(self.start)),
            end_time: Some(timestamp(self.end)),
            gpus: self.gpus,
            milli_nodes: self.milli_nodes,
        }
    }

    /// Whether it ran within the period at all.
    fn touches(&self, from: Moment, to: Moment) -> bool {
        self.start < to && (self.end > from || (self.end == self.start && self.start >= from))
    }

    fn add_to(&self, sum: &mut Sum, from: Moment, to: Moment) {
        let length = nanoseconds(self.start.max(from), self.end.min(to));
        sum.gpu_ns += length * u128::from(self.gpus);
        sum.milli_node_ns += length * u128::from(self.milli_nodes);
        sum.attempts += 1;
    }
}

impl State {
    /// Writes the latest attempt of a job, which has ended just now, into the ledger.
    pub(crate) fn record_usage(&mut self, name: &str) {
        let Some(job) = self.jobs.get(name) else {
            return;
        };
        let Some(attempt) = job.attempts.last() else {
            return;
        };
        let end = moment(attempt.end_time.as_ref());
        let (start, gpus, milli_nodes) = self.held(attempt);
        let user = job.user.clone();
        let Some(job) = self.jobs.key(name) else {
            return;
        };
        let user = self.usage.user(&user);
        self.usage.push(Record {
            job,
            user,
            start,
            end: end.max(start),
            gpus,
            milli_nodes,
        });
    }

    /// Sums of a period, grouped. Attempts that have not ended count up to `now`.
    pub fn report_usage(
        &self,
        request: &ReportUsageRequest,
        now: &Timestamp,
    ) -> ReportUsageResponse {
        let prefix = match request.parent.as_str() {
            "" => String::new(),
            parent => format!("{parent}/"),
        };
        let to = request.end_time.as_ref().unwrap_or(now);
        let to = (to.seconds, to.nanos);
        let live = self.live_usage(now);
        let from = match request.start_time.as_ref() {
            Some(start) => (start.seconds, start.nanos),
            None => self
                .usage
                .records
                .iter()
                .chain(&live)
                .map(|r| r.start)
                .min()
                .unwrap_or(to)
                .min(to),
        };
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        let ended = self.usage.ended_before(from);
        for record in self.usage.records.range(ended..).chain(&live) {
            if record.touches(from, to) && record.job.starts_with(&prefix) {
                let group = group(record, request.group_by());
                record.add_to(sums.entry(group).or_default(), from, to);
            }
        }
        ReportUsageResponse {
            rows: rows(sums),
            start_time: Some(timestamp(from)),
            end_time: Some(timestamp(to)),
            complete_since: self.usage.complete_since,
        }
    }

    /// GPU-hours used from `from` to `now`, by workspace.
    pub(crate) fn gpu_hours_since(&self, from: Moment, now: &Timestamp) -> BTreeMap<String, f64> {
        let to = (now.seconds, now.nanos);
        let live = self.live_usage(now);
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        let ended = self.usage.ended_before(from);
        for record in self.usage.records.range(ended..).chain(&live) {
            if record.touches(from, to) {
                record.add_to(sums.entry(workspace_of(&record.job)).or_default(), from, to);
            }
        }
        sums.into_iter()
            .map(|(workspace, sum)| (workspace.to_owned(), hours(sum.gpu_ns)))
            .collect()
    }

    /// Records that `DropUsage` with `before` would drop, in order of end.
    pub fn usage_ended_before(
        &self,
        before: &Timestamp,
        skip: usize,
        limit: usize,
    ) -> Vec<UsageRecord> {
        let end = self.usage.ended_before((before.seconds, before.nanos));
        self.usage
            .records
            .iter()
            .take(end)
            .skip(skip)
            .take(limit)
            .map(Record::to_message)
            .collect()
    }

    /// Drops records that ended earlier.
    pub(crate) fn drop_usage(&mut self, command: &DropUsage) {
        let before = moment(command.before.as_ref());
        let end = self.usage.ended_before(before);
        if end == 0 {
            return;
        }
        self.usage.records.drain(..end);
        let known = self.usage.complete_since.as_ref().map(|t| moment(Some(t)));
        self.usage.complete_since = Some(timestamp(known.map_or(before, |k| k.max(before))));
        let used: BTreeSet<Arc<str>> = self.usage.records.iter().map(|r| r.user.clone()).collect();
        self.usage.users = used;
    }

    /// What attempts that have not ended have used so far.
    fn live_usage(&self, now: &Timestamp) -> Vec<Record> {
        let now = (now.seconds, now.nanos);
        self.indexes
            .live
            .iter()
            .filter_map(|name| {
                let job = self.jobs.open(name)?;
                let (start, gpus, milli_nodes) = self.held(job.attempts.last()?);
                Some(Record {
                    job: self.jobs.key(name)?,
                    user: job.user.as_str().into(),
                    start,
                    end: now.max(start),
                    gpus,
                    milli_nodes,
                })
            })
            .collect()
    }

    /// Since when, how many GPUs, and thousandths of nodes. A part of a node that is gone counts as a whole one.
    fn held(&self, attempt: &Attempt) -> (Moment, u32, u32) {
        let mut gpus: u32 = 0;
        let mut milli_nodes: u32 = 0;
        for part in &attempt.nodes {
            let held = u32::try_from(part.gpus.len()).unwrap_or(u32::MAX);
            gpus = gpus.saturating_add(held);
            let all = self.nodes.get(&part.node).map_or(0, capacity::gpu_count);
            let share = if part.whole_node || all == 0 {
                1000
            } else {
                held.saturating_mul(1000).div_ceil(all).min(1000)
            };
            milli_nodes = milli_nodes.saturating_add(share);
        }
        (moment(attempt.start_time.as_ref()), gpus, milli_nodes)
    }
}

fn group(record: &Record, by: UsageGrouping) -> &str {
    match by {
        UsageGrouping::Unspecified | UsageGrouping::Workspace => workspace_of(&record.job),
        UsageGrouping::Experiment => record
            .job
            .split_once("/jobs/")
            .map_or(&*record.job, |(experiment, _)| experiment),
        UsageGrouping::Job => &record.job,
        UsageGrouping::User if record.user.is_empty() => NOBODY,
        UsageGrouping::User => &record.user,
    }
}

/// Greatest first; what is too much becomes one row without a name.
fn rows(sums: BTreeMap<&str, Sum>) -> Vec<UsageRow> {
    let mut sums: Vec<(&str, Sum)> = sums.into_iter().collect();
    // Stable: by name among equals.
    sums.sort_by_key(|(_, sum)| std::cmp::Reverse((sum.gpu_ns, sum.milli_node_ns)));
    if sums.len() > MAX_ROWS {
        let rest = sums.split_off(MAX_ROWS - 1);
        let sum = rest.iter().fold(Sum::default(), |a, (_, b)| Sum {
            gpu_ns: a.gpu_ns + b.gpu_ns,
            milli_node_ns: a.milli_node_ns + b.milli_node_ns,
            attempts: a.attempts + b.attempts,
        });
        sums.push(("", sum));
    }
    sums.into_iter()
        .map(|(name, sum)| UsageRow {
            name: name.to_owned(),
            gpu_hours: hours(sum.gpu_ns),
            node_hours: hours(sum.milli_node_ns) / 1000.0,
            attempts: sum.attempts,
        })
        .collect()
}

fn hours(ns: u128) -> f64 {
    ns as f64 / 3.6e12
}

fn nanoseconds(from: Moment, to: Moment) -> u128 {
    let at = |m: Moment| i128::from(m.0) * 1_000_000_000 + i128::from(m.1);
    u128::try_from(at(to) - at(from)).unwrap_or(0)
}

pub(crate) fn moment(time: Option<&Timestamp>) -> Moment {
    time.map_or((0, 0), |t| (t.seconds, t.nanos))
}

fn timestamp((seconds, nanos): Moment) -> Timestamp {
    Timestamp { seconds, nanos }
}
