//! Trainyard's centre: the whole state of workspaces, clusters, jobs and nodes, and every decision about it.
//!
//! ```text
//! Command ──► State::apply ──► Outcome { reply, changes }          one entry of the replicated log
//! State   ──► placement::plan ──► ApplyPlan ──► (proposed, then verified again by apply)
//! State   ──► State::desired ──► Desired                           what a node's agent shall hold
//! State   ──► State::explain ──► JobExplanation                    why a job waits
//! LeaseTable + time ──► lost nodes                                 who may not run tasks any more
//! ```
//!
//! Everything here is deterministic: time, UUIDs and random numbers come in as arguments, and the same log gives
//! the same bytes on every member. This crate must never read a clock, open a file or socket, spawn anything or
//! depend on a runtime; CI checks its dependencies.

mod admission;
mod apply;
mod attempt;
mod capacity;
mod class;
mod counts;
mod desired;
mod events;
mod explain;
mod exports;
pub mod filter;
mod jobs;
pub mod lease;
mod lists;
mod outcome;
pub mod placement;
pub mod power;
mod query;
mod quota;
mod requests;
mod resolve;
mod retry;
mod scale;
mod snapshot;
mod state;
mod time;
mod usage;

pub use lists::{ClustersQuery, JobsQuery, ListCursor, Listed, NodesQuery};
pub use outcome::{Change, Event, EventKind, Outcome, Refusal, RefusalKind, Reply};
pub use snapshot::SnapshotError;
pub use state::State;

/// Format of the commands that this version writes and the newest that it can apply.
pub const COMMAND_FORMAT: u32 = 1;
