//! What a member says about itself.

pub use crate::node::{MemberProgress, Role};

/// A member's view of the cluster and of itself. Changes of role, leader and term show at once, the rest at every tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub member_id: u64,
    /// What it is doing.
    pub role: Role,
    /// The term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// It leads, and has committed and applied an entry of its own term: its state is complete.
    pub ready: bool,
    /// Highest applied index.
    pub applied: u64,
    /// Highest committed index that it knows of.
    pub committed: u64,
    /// Last index of its log.
    pub last_index: u64,
    /// First index that is still in its log.
    pub first_index: u64,
    /// Index of its newest snapshot, 0 without one.
    pub snapshot_index: u64,
    /// All members, in order of their ids.
    pub members: Vec<MemberProgress>,
    /// Bytes of the log in memory.
    pub log_bytes: u64,
    /// Bytes of the log's file on the disk.
    pub disk_bytes: u64,
    /// Whether replication runs.
    pub run: Run,
}

/// Whether replication runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// It runs.
    Running,
    /// It was stopped.
    Stopped,
    /// It ended by itself; the text says why and what to do.
    Failed(String),
}
