//! What can go wrong, as types. Every text names the thing and what to do next.

use std::path::PathBuf;

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error("replication setting {field}: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Another process uses the directory.
    #[error(
        "{path} is in use by {holder}: stop that process first, or give this scheduler a data directory of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, as far as it is known.
        holder: String,
    },
    /// The directory belongs to another cluster or another member.
    #[error(
        "{path} belongs to member {found_member} of cluster {found_cluster}, but this scheduler is member {member} of \
         cluster {cluster}: point data_dir at this member's own directory"
    )]
    WrongOwner {
        /// The directory.
        path: PathBuf,
        /// Cluster that the directory belongs to.
        found_cluster: String,
        /// Member that the directory belongs to.
        found_member: u64,
        /// Cluster of the configuration.
        cluster: String,
        /// Member of the configuration.
        member: u64,
    },
    /// The configured members are not those of the stored log.
    #[error(
        "the configuration names the members {configured:?}, but the log in {path} was written by {stored:?}: restore the \
         list of members; a list in a file never changes the membership"
    )]
    MembersDiffer {
        /// The directory.
        path: PathBuf,
        /// Ids in the configuration.
        configured: Vec<u64>,
        /// Ids in the store.
        stored: Vec<u64>,
    },
    /// The store is damaged or unreadable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state machine refused the stored snapshot.
    #[error(
        "the snapshot at log index {index} cannot be restored: {why}. If this release is older than the one that wrote it, \
         start the newer one; otherwise keep this member stopped and the others running (a majority of them serves on), and never start it empty"
    )]
    Restore {
        /// Log index of the snapshot.
        index: u64,
        /// What the state machine said.
        why: String,
    },
    /// raft refused its configuration or state.
    #[error("the consensus library refused to start: {0}")]
    Consensus(String),
    /// The thread could not be started.
    #[error("cannot start the replication thread: {0}")]
    Thread(std::io::Error),
}

/// What is wrong with the log store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A record is not what was written.
    #[error(
        "the data in {place} is damaged: {record}: {why}. This member does not start from damaged data, nor may it start empty: \
         keep it stopped and the others running (a majority of them serves on); `trainyard-scheduler rejoin`, which will \
         fetch everything from them, comes with a later version"
    )]
    Damaged {
        /// Directory or file.
        place: String,
        /// The record.
        record: String,
        /// What is wrong with it.
        why: String,
    },
    /// A record was written by a newer release.
    #[error(
        "{record} in {place} has format {found}, and this release reads up to {known}: start the release that wrote it"
    )]
    NewerFormat {
        /// Directory or file.
        place: String,
        /// The record.
        record: String,
        /// Its format version.
        found: u8,
        /// The newest that this release reads.
        known: u8,
    },
    /// The operating system refused.
    #[error("{what} failed: {why}")]
    Io {
        /// The operation and its file.
        what: String,
        /// What the system said.
        why: String,
    },
    /// The disk is full.
    #[error("no space left for {what}: free space on that disk, then start this member again")]
    Full {
        /// Directory or file.
        what: String,
    },
}

impl StoreError {
    /// Wraps an I/O error; a full disk is told apart.
    pub(crate) fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        let what = what.into();
        if error.kind() == std::io::ErrorKind::StorageFull {
            StoreError::Full { what }
        } else {
            StoreError::Io {
                what,
                why: error.to_string(),
            }
        }
    }
}

/// Why a proposal has no outcome here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead; the command was not and will not be applied.
    #[error("this member is not the leader{}", leader_hint(*.leader))]
    NotLeader {
        /// Who leads, as far as this member knows.
        leader: Option<u64>,
    },
    /// Too much is waiting; the command was not taken.
    #[error("the scheduler is overloaded: try again in a moment")]
    Overloaded,
    /// The command is over the limit, or empty.
    #[error("the command has {bytes} bytes; it must have between 1 and {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Leadership was lost while the command was on its way: it may or may not be applied. Ask again with the same
    /// request id.
    #[error(
        "leadership changed while the command was on its way; it may have been applied: retry with the same request id"
    )]
    Uncertain,
    /// Replication has stopped on this member. A command on its way may or may not be applied.
    #[error("replication has stopped on this member")]
    Stopped,
}

/// Why a read could not be made linearizable here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This member does not lead.
    #[error("this member is not the leader{}", leader_hint(*.leader))]
    NotLeader {
        /// Who leads, as far as this member knows.
        leader: Option<u64>,
    },
    /// No majority confirmed the leader in time.
    #[error("no majority confirmed this leader in time: the cluster may be cut in two")]
    TimedOut,
    /// Too many reads are waiting.
    #[error("the scheduler is overloaded: try again in a moment")]
    Overloaded,
    /// Replication has stopped on this member.
    #[error("replication has stopped on this member")]
    Stopped,
}

/// Why leadership was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This member does not lead.
    #[error("this member is not the leader{}", leader_hint(*.leader))]
    NotLeader {
        /// Who leads, as far as this member knows.
        leader: Option<u64>,
    },
    /// No other member could take over.
    #[error("no other member is there to take over the leadership")]
    NoTarget,
    /// The target did not take over in time.
    #[error("member {to} did not take over the leadership in time")]
    TimedOut {
        /// The target.
        to: u64,
    },
    /// Replication has stopped on this member.
    #[error("replication has stopped on this member")]
    Stopped,
}

/// Why a message or a snapshot from a peer was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InboundError {
    /// Replication has stopped on this member.
    #[error("replication has stopped on this member")]
    Stopped,
    /// The message is not one that a member sends.
    #[error("refused a message from member {from}: {why}")]
    Malformed {
        /// The sender.
        from: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The snapshot is larger than this member takes.
    #[error("refused a snapshot of {bytes} bytes; the limit here is {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why the replication thread ended by itself. Nothing is retried: the member must be restarted or repaired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FatalError {
    /// The store failed; after a failed write or sync nothing on the disk may be trusted until it is read again.
    #[error("the log store failed, and replication stopped to protect the data: {0}")]
    Store(#[from] StoreError),
    /// A peer knows of entries that this member acknowledged and no longer has.
    #[error(
        "this member has lost entries of the log that it had acknowledged (up to index {acknowledged}, but its log ends at \
         {last}): keep it stopped and the others running; `trainyard-scheduler rejoin` comes with a later version"
    )]
    LostEntries {
        /// What the leader knows of.
        acknowledged: u64,
        /// Where the log ends.
        last: u64,
    },
    /// The state machine broke its contract.
    #[error("the state machine failed: {0}")]
    StateMachine(String),
    /// A bug: the replication thread panicked.
    #[error("the replication thread failed (a bug): {0}")]
    Bug(String),
}

fn leader_hint(leader: Option<u64>) -> String {
    match leader {
        Some(id) => format!("; member {id} is"),
        None => "; no leader is known at the moment".to_owned(),
    }
}
