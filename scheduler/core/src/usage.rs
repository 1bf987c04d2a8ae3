//! What ended attempts used, for accounting over any period. Records outlive their jobs, and go when they are too old.
//!
//! It must never forget a record silently: `complete_since` says from when on it knows everything.

use prost_types::Timestamp;
use trainyard_proto::store::v1::UsageRecord;

/// The records, in order of their end.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ledger {
    records: Vec<UsageRecord>,
    complete_since: Option<Timestamp>,
}

impl Ledger {
    /// For the snapshot.
    pub(crate) fn records(&self) -> Vec<UsageRecord> {
        self.records.clone()
    }

    /// Records that ended before were dropped; `None`: none were.
    pub(crate) fn complete_since(&self) -> Option<Timestamp> {
        self.complete_since
    }

    /// What [`Ledger::records`] gave.
    pub(crate) fn from_records(
        records: Vec<UsageRecord>,
        complete_since: Option<Timestamp>,
    ) -> Self {
        Self {
            records,
            complete_since,
        }
    }
}
