//! What a member is told when it starts: who it is, who the others are, how fast the clock ticks and how much may queue.
//!
//! Plain data with checked bounds; it must never read a file or an environment itself.

use std::path::PathBuf;

use crate::error::StartError;

/// One member of the cluster, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id, at least 1, never used again for another member.
    pub id: u64,
    /// Its name for people.
    pub name: String,
    /// Where its peers reach it, as `host:port`.
    pub address: String,
}

/// Everything a member needs to start. [`Options::new`] fills in the defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of this member alone; made if missing.
    pub data_dir: PathBuf,
    /// Id of the cluster; a directory of another cluster is refused.
    pub cluster_id: String,
    /// This member's id; must be among `members`.
    pub member_id: u64,
    /// All voting members, this one included. Fixed for now: the same on every member.
    pub members: Vec<Member>,
    /// Length of a tick in milliseconds (50).
    pub tick_ms: u64,
    /// Ticks without a leader before an election; each wait is drawn between this and twice this (10).
    pub election_ticks: usize,
    /// Ticks between heartbeats (2).
    pub heartbeat_ticks: usize,
    /// How long [`crate::Handle::read_barrier`] waits, in milliseconds (3,000).
    pub read_timeout_ms: u64,
    /// Bytes of log after which a snapshot is taken; up to three eighths more, by member (64 MiB). An entry counts as its
    /// command and 136 bytes more.
    pub snapshot_after_log_bytes: u64,
    /// Bytes of log kept behind a snapshot, so that a member that was away for a moment needs no snapshot (16 MiB).
    pub retain_log_bytes: u64,
    /// Bytes of log above which proposals are refused until a snapshot has made room (512 MiB).
    pub max_log_bytes: u64,
    /// Bounds of everything that queues.
    pub limits: Limits,
}

/// Bounds of everything that queues. No queue here grows without one.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest command in bytes (4 MiB).
    pub max_command_bytes: usize,
    /// Proposals that may wait for the replication thread, and as many again that may wait for a majority (16,384).
    pub max_queued_proposals: usize,
    /// Bytes of those proposals (64 MiB).
    pub max_queued_proposal_bytes: usize,
    /// Read barriers that may wait for the replication thread, and as many again that may wait for a majority (16,384).
    pub max_queued_reads: usize,
    /// Bytes of peer messages that may wait; above it the senders are slowed down (32 MiB).
    pub max_queued_peer_bytes: usize,
    /// Bytes proposed and not yet committed; above it proposals are refused (64 MiB).
    pub max_uncommitted_bytes: u64,
    /// Bytes of entries in one message to a peer (1 MiB).
    pub max_message_bytes: u64,
    /// Messages with entries on their way to one peer (64).
    pub max_inflight_messages: usize,
    /// Bytes of committed entries applied in one go (8 MiB).
    pub max_apply_bytes: u64,
    /// Largest snapshot taken from a peer, in bytes (2 GiB).
    pub max_snapshot_bytes: u64,
    /// Bytes that may wait for one peer's connection; above it the peer counts as unreachable (64 MiB).
    pub max_peer_queue_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Limits {
            max_command_bytes: 4 * MIB,
            max_queued_proposals: 16_384,
            max_queued_proposal_bytes: 64 * MIB,
            max_queued_reads: 16_384,
            max_queued_peer_bytes: 32 * MIB,
            max_uncommitted_bytes: 64 * MIB as u64,
            max_message_bytes: MIB as u64,
            max_inflight_messages: 64,
            max_apply_bytes: 8 * MIB as u64,
            max_snapshot_bytes: 2048 * MIB as u64,
            max_peer_queue_bytes: 64 * MIB,
        }
    }
}

impl Options {
    /// Options with the defaults for everything but identity.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        cluster_id: impl Into<String>,
        member_id: u64,
        members: Vec<Member>,
    ) -> Self {
        const MIB: u64 = 1024 * 1024;
        Options {
            data_dir: data_dir.into(),
            cluster_id: cluster_id.into(),
            member_id,
            members,
            tick_ms: 50,
            election_ticks: 10,
            heartbeat_ticks: 2,
            read_timeout_ms: 3_000,
            snapshot_after_log_bytes: 64 * MIB,
            retain_log_bytes: 16 * MIB,
            max_log_bytes: 512 * MIB,
            limits: Limits::default(),
        }
    }

    /// The ids of all members in order.
    pub fn member_ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.members.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Checks what the configuration said; the error names the field and what is wrong with it.
    pub fn validate(&self) -> Result<(), StartError> {
        let bad = |field: &'static str, why: String| Err(StartError::Invalid { field, why });
        if self.cluster_id.is_empty() || self.cluster_id.len() > 128 {
            return bad("cluster_id", "must have 1 to 128 bytes".into());
        }
        let ids = self.member_ids();
        if ids.first() == Some(&0) {
            return bad("members", "member ids start at 1".into());
        }
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return bad("members", format!("two members have the id {}", pair[0]));
        }
        if !ids.contains(&self.member_id) {
            return bad(
                "member_id",
                format!("{} is not among the members {ids:?}", self.member_id),
            );
        }
        if self.tick_ms == 0 {
            return bad("tick_ms", "must be at least 1".into());
        }
        if self.heartbeat_ticks == 0 || self.election_ticks <= self.heartbeat_ticks {
            return bad(
                "election_ticks",
                format!(
                    "{} must be more than heartbeat_ticks ({}), which must be at least 1",
                    self.election_ticks, self.heartbeat_ticks
                ),
            );
        }
        let least = self
            .snapshot_after_log_bytes
            .saturating_mul(2)
            .saturating_add(self.retain_log_bytes);
        if self.max_log_bytes < least {
            return bad(
                "max_log_bytes",
                format!(
                    "{} must be at least twice snapshot_after_log_bytes plus retain_log_bytes ({least}): the log grows on \
                     while a snapshot is written",
                    self.max_log_bytes
                ),
            );
        }
        let limits = &self.limits;
        if limits.max_uncommitted_bytes < limits.max_message_bytes
            || limits.max_inflight_messages == 0
        {
            return bad(
                "limits",
                "max_uncommitted_bytes must be at least max_message_bytes, and max_inflight_messages at least 1".into(),
            );
        }
        Ok(())
    }
}
