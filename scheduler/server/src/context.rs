//! What every service and loop of the daemon shares: the log, the state, who leads, the channels.
//!
//! Also the only way to propose a command. Whatever is not deterministic (time, UUIDs) is decided here, on the leader,
//! and travels inside the command.

use std::sync::{Arc, Mutex, PoisonError, RwLockReadGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message as _;
use prost_types::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::metadata::MetadataMap;
use trainyard_core::{COMMAND_FORMAT, Reply, State};
use trainyard_proto::store::v1::{Command, command::Kind};
use trainyard_replication::{Handle, ProposeError};

use crate::changes::Changes;
use crate::channels::Channels;
use crate::config::Config;
use crate::leadership::Leadership;
use crate::machine::{Decision, SharedState};
use crate::status;

/// Metadata by which a client asks for a read from the member's own state: the value is `stale`.
pub const CONSISTENCY_METADATA: &str = "trainyard-consistency";

/// See the module.
pub struct Context {
    /// This member's configuration.
    pub config: Config,
    /// Identity of the replication group, from the certificate.
    pub cluster_id: String,
    /// The replicated log.
    pub log: Handle<Decision>,
    /// The state that the log made.
    pub state: SharedState,
    /// Wake-ups on changes of the state.
    pub changes: Arc<Changes>,
    /// This member's term of leadership, while it leads and has applied everything of the terms before.
    pub leadership: watch::Receiver<Option<Arc<Leadership>>>,
    /// Connections to the other members and to agents.
    pub channels: Channels,
    /// Cancelled when the daemon stops.
    pub stopping: CancellationToken,
    /// Time of the last command, so that the time in the log does not go back when the host's clock does.
    pub clock: Clock,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("member_id", &self.config.member_id)
            .finish_non_exhaustive()
    }
}

/// The leader's clock.
#[derive(Debug, Default)]
pub struct Clock(Mutex<(i64, i32)>);

impl Clock {
    /// The host's time, but never before a time that was given out already.
    pub fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let nanos = i32::try_from(since.subsec_nanos()).unwrap_or_default();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (*last).max((seconds, nanos));
        Timestamp {
            seconds: last.0,
            nanos: last.1,
        }
    }
}

impl Context {
    /// The state now. Hold it briefly, and never across an `await`: applying waits for it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        // A panic while applying ends the replication thread; what it left is not used to decide anything.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state here holds everything that was acknowledged before the call, unless the request asked for a
    /// stale read.
    pub async fn catch_up(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if wants_stale(metadata) {
            return Ok(());
        }
        match self.log.read_barrier().await {
            Ok(_) => Ok(()),
            Err(error) => Err(status::read_error(&error, |id| self.config.address_of(id))),
        }
    }

    /// Proposes a command and waits until it is applied here.
    pub async fn propose(&self, kind: Kind) -> Result<Reply, Status> {
        match self.decide(kind).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(refusal)) => Err(status::refusal(&refusal)),
            Err(error) => Err(status::propose_error(&error, |id| {
                self.config.address_of(id)
            })),
        }
    }

    /// Proposes the creation of a resource or, when that is all that is asked for, checks what it would come to.
    pub async fn create(&self, kind: Kind, validate_only: bool) -> Result<Reply, Status> {
        if !validate_only {
            return self.propose(kind).await;
        }
        // What was acknowledged before counts.
        self.catch_up(&MetadataMap::new()).await?;
        let command = self.command(kind);
        let checked = self.state().check(&command);
        checked.map_err(|refusal| status::refusal(&refusal))
    }

    /// As [`Context::propose`], for callers who tell the errors apart.
    pub async fn decide(&self, kind: Kind) -> Result<Decision, ProposeError> {
        let command = self.command(kind);
        let applied = self.log.propose(command.encode_to_vec()).await?;
        Ok(applied.outcome)
    }

    /// A command at this moment.
    fn command(&self, kind: Kind) -> Command {
        Command {
            format: COMMAND_FORMAT,
            time: Some(self.clock.now()),
            kind: Some(kind),
        }
    }

    /// The term that this member leads, or the status that sends the caller to the leader.
    pub fn leading(&self) -> Result<Arc<Leadership>, Status> {
        self.leadership.borrow().clone().ok_or_else(|| {
            let leader = self.leader();
            status::not_leader(leader.as_ref().map(|(_, address)| address.as_str()))
        })
    }

    /// Another member that leads, as far as this one knows.
    pub fn leader(&self) -> Option<(u64, String)> {
        let leader = self.log.status().borrow().leader?;
        if leader == self.config.member_id {
            return None;
        }
        let address = self.config.address_of(leader)?;
        Some((leader, address.to_owned()))
    }
}

/// Whether a request asks for a read from this member's own state.
pub fn wants_stale(metadata: &MetadataMap) -> bool {
    metadata
        .get(CONSISTENCY_METADATA)
        .is_some_and(|value| value.as_bytes() == b"stale")
}

/// A new UUID.
pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}
