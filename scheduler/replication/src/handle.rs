//! The daemon's side: starting a member and talking to its thread.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::driver::{Driver, Grouping, describe};
use crate::engine::{Engine, SnapshotPolicy};
use crate::error::{FatalError, InboundError, ProposeError, ReadError, StartError, TransferError};
use crate::inbox::{Inbox, PeerInput, PeerSink, ReportSink};
use crate::machine::{Applied, StateMachine};
use crate::node::{Node, NodeConfig};
use crate::options::Options;
use crate::status::{Run, Status};
use crate::store::{Disk, LogStore, Owner, SledDisk, owner};
use crate::transport::{Reports, Transport};

/// Starts members.
pub struct Replication;

impl Replication {
    /// Opens the data directory, rebuilds the state from snapshot and log, and starts the replication thread. Blocks on the disk
    /// while it reads; entries that were committed are applied by the thread.
    pub fn start<S: StateMachine>(
        options: Options,
        machine: S,
        transport: impl Transport,
    ) -> Result<Handle<S::Outcome>, StartError> {
        options.validate()?;
        let owner = Owner {
            cluster_id: options.cluster_id.clone(),
            member_id: options.member_id,
        };
        let data_dir = options.data_dir.clone();
        owner::check(&data_dir, &owner)?;
        let disk = SledDisk::open(&data_dir)?;
        let handle = Self::start_on(disk, options, machine, transport)?;
        if let Err(error) = owner::note(&data_dir, &owner) {
            tracing::warn!(%error, "cannot note whose {} is", data_dir.display());
        }
        Ok(handle)
    }

    /// The same on a disk of the caller's choice; `data_dir` is not used.
    pub fn start_on<S: StateMachine, D: Disk>(
        disk: D,
        options: Options,
        mut machine: S,
        mut transport: impl Transport,
    ) -> Result<Handle<S::Outcome>, StartError> {
        options.validate()?;
        let owner = Owner {
            cluster_id: options.cluster_id.clone(),
            member_id: options.member_id,
        };
        let voters = options.member_ids();
        let (store, stored) = LogStore::open(disk, &owner, &voters)?;
        if let Some(info) = &stored.snapshot
            && let Some(bytes) = store.read_snapshot()?
        {
            let index = info.position.index;
            machine
                .restore(index, &bytes)
                .map_err(|why| StartError::Restore { index, why })?;
        }
        let node = Node::new(node_config(&options), stored)
            .map_err(|error| StartError::Consensus(error.to_string()))?;
        // All members count the same bytes; spread, so that they do not all take their snapshots at the same moment.
        let rank = voters.iter().position(|id| *id == options.member_id);
        let after = options.snapshot_after_log_bytes;
        let spread = after / 8 * (rank.unwrap_or(0) % 4) as u64;
        let policy = SnapshotPolicy {
            after_log_bytes: after.saturating_add(spread),
            retain_log_bytes: options.retain_log_bytes,
        };
        let mut engine = Engine::new(node, store, machine, policy);
        if voters.len() == 1 {
            engine.campaign();
        }

        let inbox = Arc::new(Inbox::new(options.limits.clone()));
        let weak: std::sync::Weak<dyn ReportSink> = Arc::downgrade(&inbox) as _;
        transport.start(Reports(weak));
        let (status, watcher) = watch::channel(describe(options.member_id, &engine, Run::Running));
        let driver = Driver {
            member_id: options.member_id,
            engine,
            inbox: inbox.clone(),
            outbox: Grouping::new(transport),
            status,
            tick: Duration::from_millis(options.tick_ms),
            transfer_timeout: Duration::from_millis(
                options.tick_ms * 2 * options.election_ticks as u64,
            ),
        };
        std::thread::Builder::new()
            .name("replication".to_owned())
            .spawn(move || thread(driver))
            .map_err(StartError::Thread)?;
        Ok(Handle {
            shared: Arc::new(Shared {
                inbox,
                status: watcher,
                max_command_bytes: options.limits.max_command_bytes,
                max_snapshot_bytes: options.limits.max_snapshot_bytes,
            }),
        })
    }
}

fn node_config(options: &Options) -> NodeConfig {
    NodeConfig {
        id: options.member_id,
        election_ticks: options.election_ticks,
        heartbeat_ticks: options.heartbeat_ticks,
        read_timeout_ticks: options.read_timeout_ms.div_ceil(options.tick_ms),
        max_log_bytes: options.max_log_bytes,
        limits: options.limits.clone(),
        jitter: None,
    }
}

/// The thread: runs the driver, lets go of the disk, and says how it ended; in this order, so that whoever sees the end may
/// open the directory again.
fn thread<S: StateMachine, D: Disk, T: Transport>(mut driver: Driver<S, D, T>) {
    let end = std::panic::catch_unwind(AssertUnwindSafe(|| driver.run()));
    let end = match end {
        Ok(end) => end,
        Err(panic) => Err(FatalError::Bug(panic_text(panic.as_ref()))),
    };
    let run = match end {
        Ok(()) => Run::Stopped,
        Err(error) => {
            tracing::error!(%error, "replication ended");
            Run::Failed(error.to_string())
        }
    };
    let last = driver.describe(run);
    let inbox = driver.inbox.clone();
    let status = driver.status.clone();
    inbox.close();
    drop(driver);
    // Whoever slipped in before the door closed.
    inbox.take(&mut Default::default(), std::time::Instant::now());
    status.send_replace(last);
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else {
        "a panic without words".to_owned()
    }
}

struct Shared<O: Send + 'static> {
    inbox: Arc<Inbox<O>>,
    status: watch::Receiver<Status>,
    max_command_bytes: usize,
    max_snapshot_bytes: u64,
}

impl<O: Send + 'static> Drop for Shared<O> {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// Talks to a member's replication thread; clones share it, and the thread stops when the last one is dropped.
pub struct Handle<O: Send + 'static> {
    shared: Arc<Shared<O>>,
}

impl<O: Send + 'static> Clone for Handle<O> {
    fn clone(&self) -> Self {
        Handle {
            shared: self.shared.clone(),
        }
    }
}

impl<O: Send + 'static> Handle<O> {
    /// Proposes a command; resolves once it is on a majority's disks and applied here. Dropping the future does not take
    /// the command back.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Applied<O>, ProposeError> {
        let (bytes, limit) = (command.len(), self.shared.max_command_bytes);
        if bytes == 0 || bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.propose(command, reply)?;
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// Resolves once this member is known to have led after the call began and has applied everything that was committed
    /// then: reading the state after it is linearizable. Gives the index that was confirmed.
    pub async fn read_barrier(&self) -> Result<u64, ReadError> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.read(reply)?;
        answer.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// What the member says about itself.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// Hands leadership to `to`, or to the member that is furthest; resolves once this member follows. For a planned stop.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<(), TransferError> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.transfer(to, reply)?;
        answer.await.unwrap_or(Err(TransferError::Stopped))
    }

    /// Takes one message from a peer; waits while too much is queued.
    pub async fn step(&self, from: u64, message: Vec<u8>) -> Result<(), InboundError> {
        self.inbound().messages(from, vec![message.into()]).await
    }

    /// The door for peers, for a server that knows nothing of outcomes.
    pub fn inbound(&self) -> Inbound {
        Inbound {
            sink: self.shared.inbox.clone(),
            max_snapshot_bytes: self.shared.max_snapshot_bytes,
        }
    }

    /// Resolves when replication has ended and its disk is free again: `None` after [`Handle::stop`], else why.
    pub async fn ended(&self) -> Option<String> {
        let mut status = self.shared.status.clone();
        loop {
            match &status.borrow_and_update().run {
                Run::Running => {}
                Run::Stopped => return None,
                Run::Failed(why) => return Some(why.clone()),
            }
            if status.changed().await.is_err() {
                return Some("the replication thread is gone".to_owned());
            }
        }
    }

    /// Ends the streams of all peers and takes nothing from them any more: before a server is shut down that waits for its
    /// streams to end. This member is deaf from then on, so it should have handed over its leadership, and be stopped soon.
    pub fn hang_up_peers(&self) {
        self.shared.inbox.hang_up();
    }

    /// Stops the thread and waits until the data directory is free. Proposals on their way end as stopped. A leader should
    /// hand over first: [`Handle::transfer_leadership`].
    pub async fn stop(self) {
        self.shared.inbox.close();
        self.ended().await;
    }
}

/// The door for what comes from peers.
#[derive(Clone)]
pub struct Inbound {
    sink: Arc<dyn PeerSink>,
    max_snapshot_bytes: u64,
}

impl Inbound {
    /// Takes messages from a peer, in order; waits while too much is queued.
    pub async fn messages(&self, from: u64, messages: Vec<Bytes>) -> Result<(), InboundError> {
        self.sink.put(PeerInput::Messages { from, messages }).await
    }

    /// Takes a whole snapshot from a peer; resolves when it is on the disk, or was not needed any more.
    pub async fn snapshot(
        &self,
        from: u64,
        message: Bytes,
        data: Bytes,
    ) -> Result<(), InboundError> {
        self.check_snapshot_size(data.len() as u64)?;
        let (reply, answer) = oneshot::channel();
        self.sink
            .put(PeerInput::Snapshot {
                from,
                message,
                data,
                reply,
            })
            .await?;
        answer.await.unwrap_or(Err(InboundError::Stopped))
    }

    /// Resolves when the peers' streams must end: [`Handle::hang_up_peers`], or the end of replication.
    pub async fn hung_up(&self) {
        let mut hung_up = self.sink.hung_up();
        // An error means that the member is gone.
        let _ = hung_up.wait_for(|hung_up| *hung_up).await;
    }

    /// Whether a snapshot of this size would be taken.
    pub fn check_snapshot_size(&self, bytes: u64) -> Result<(), InboundError> {
        let limit = self.max_snapshot_bytes;
        match bytes <= limit {
            true => Ok(()),
            false => Err(InboundError::TooLarge { bytes, limit }),
        }
    }
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbound").finish_non_exhaustive()
    }
}
