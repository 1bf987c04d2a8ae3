//! The replication thread: the clock, the door and the transport around an [`Engine`].
//!
//! It takes everything that has gathered, turns the engine once, answers, and looks again: one write and one sync per look, however
//! much has gathered. It sleeps only when there is nothing to do. It decides nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use crate::engine::{Engine, Outbox};
use crate::error::{FatalError, ReadError, TransferError};
use crate::inbox::{Batch, Inbox, PeerInput, ProposeReply, ReadReply, TransferReply};
use crate::machine::StateMachine;
use crate::node::{Role, StepError};
use crate::status::{Run, Status};
use crate::store::{Disk, SnapshotSource};
use crate::transport::Transport;

/// The engine with the tokens of the driver.
pub(crate) type DriverEngine<S, D> =
    Engine<S, D, ProposeReply<<S as StateMachine>::Outcome>, ReadReply>;

struct PendingTransfer {
    to: u64,
    deadline: Instant,
    reply: TransferReply,
}

/// The thread's state: see the module.
pub(crate) struct Driver<S: StateMachine, D: Disk, T> {
    pub(crate) member_id: u64,
    pub(crate) engine: DriverEngine<S, D>,
    pub(crate) inbox: Arc<Inbox<S::Outcome>>,
    pub(crate) outbox: Grouping<T>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) tick: Duration,
    /// How long a transfer of leadership may take.
    pub(crate) transfer_timeout: Duration,
}

impl<S: StateMachine, D: Disk, T: Transport> Driver<S, D, T> {
    /// Runs until the door is closed or something fatal happens.
    pub(crate) fn run(&mut self) -> Result<(), FatalError> {
        let mut batch = Batch::default();
        let mut transfers: Vec<PendingTransfer> = Vec::new();
        let mut next_tick = Instant::now() + self.tick;
        let mut busy = true;
        loop {
            let deadline = if busy { Instant::now() } else { next_tick };
            if !self.inbox.take(&mut batch, deadline) {
                self.abandon(transfers);
                return Ok(());
            }
            self.feed(&mut batch, &mut transfers)?;
            let now = Instant::now();
            let ticked = now >= next_tick;
            if ticked {
                self.engine.tick();
                next_tick += self.tick;
                if next_tick < now {
                    // This thread was held up. Time that it slept through says nothing about its peers.
                    next_tick = now + self.tick;
                }
            }
            busy = self.engine.turn(&mut self.outbox)?;
            self.answer();
            self.settle_transfers(&mut transfers, now);
            self.publish(ticked);
        }
    }

    /// Hands over what has gathered. Peers first: their news decides what a proposal meets.
    fn feed(
        &mut self,
        batch: &mut Batch<S::Outcome>,
        transfers: &mut Vec<PendingTransfer>,
    ) -> Result<(), FatalError> {
        for peer in std::mem::take(&mut batch.unreachable) {
            self.engine.report_unreachable(peer);
        }
        for (peer, arrived) in std::mem::take(&mut batch.snapshots) {
            self.engine.report_snapshot(peer, arrived);
        }
        for input in batch.peer.drain(..) {
            match input {
                PeerInput::Messages { from, messages } => {
                    for message in messages {
                        // Refused messages are logged; nobody waits for an answer to them.
                        let _ = tolerate(self.engine.step(from, &message))?;
                    }
                }
                PeerInput::Snapshot {
                    from,
                    message,
                    data,
                    reply,
                } => {
                    let taken = tolerate(self.engine.step_snapshot(from, &message, data))?;
                    // At once: the announcement and its data belong together.
                    self.engine.turn(&mut self.outbox)?;
                    // The sender may have gone away.
                    let _ = reply.send(taken);
                }
            }
        }
        if !batch.proposals.is_empty() {
            self.engine.propose(batch.proposals.drain(..));
        }
        for reply in batch.reads.drain(..) {
            self.engine.read(reply);
        }
        for (to, reply) in batch.transfers.drain(..) {
            match self.engine.transfer(to) {
                Ok(to) => transfers.push(PendingTransfer {
                    to,
                    deadline: Instant::now() + self.transfer_timeout,
                    reply,
                }),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            }
        }
        Ok(())
    }

    /// Sends results to those who wait; whoever went away misses nothing.
    fn answer(&mut self) {
        let results = self.engine.take_results();
        for (reply, result) in results.proposals {
            let _ = reply.send(result);
        }
        for (reply, result) in results.reads {
            let _ = reply.send(result);
        }
    }

    fn settle_transfers(&mut self, transfers: &mut Vec<PendingTransfer>, now: Instant) {
        if transfers.is_empty() {
            return;
        }
        let leads = self.engine.node().is_leader();
        let mut late = false;
        for transfer in transfers.extract_if(.., |transfer| !leads || transfer.deadline <= now) {
            late |= leads;
            let result = match leads {
                false => Ok(()),
                true => Err(TransferError::TimedOut { to: transfer.to }),
            };
            let _ = transfer.reply.send(result);
        }
        if late {
            self.engine.abort_transfer();
        }
    }

    fn abandon(&mut self, transfers: Vec<PendingTransfer>) {
        // Dropping a proposal's reply tells its waiter that replication stopped.
        let (_, reads) = self.engine.abandon();
        for reply in reads {
            let _ = reply.send(Err(ReadError::Stopped));
        }
        for transfer in transfers {
            let _ = transfer.reply.send(Err(TransferError::Stopped));
        }
    }

    fn publish(&mut self, ticked: bool) {
        let node = self.engine.node();
        let changed = {
            let known = self.status.borrow();
            let urgent = known.role != node.role()
                || known.term != node.term()
                || known.leader != node.leader()
                || known.ready != node.is_ready();
            // The rest is for people and metrics; waking every watcher at every commit would cost more than it tells.
            urgent || ticked
        };
        if !changed {
            return;
        }
        let status = self.describe(Run::Running);
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
    }

    pub(crate) fn describe(&self, run: Run) -> Status {
        describe(self.member_id, &self.engine, run)
    }
}

/// The status of an engine.
pub(crate) fn describe<S: StateMachine, D: Disk>(
    member_id: u64,
    engine: &DriverEngine<S, D>,
    run: Run,
) -> Status {
    let node = engine.node();
    let running = run == Run::Running;
    Status {
        member_id,
        role: if running { node.role() } else { Role::Follower },
        term: node.term(),
        leader: node.leader(),
        ready: running && node.is_ready(),
        applied: node.applied_index(),
        committed: node.committed_index(),
        last_index: node.last_index(),
        first_index: node.first_index(),
        snapshot_index: node.snapshot_index(),
        members: node.members(),
        log_bytes: node.log_bytes(),
        disk_bytes: engine.disk_bytes(),
        run,
    }
}

/// A refused message is worth a line in the log; only a fatal one ends the thread.
fn tolerate(
    stepped: Result<(), StepError>,
) -> Result<Result<(), crate::error::InboundError>, FatalError> {
    match stepped {
        Ok(()) => Ok(Ok(())),
        Err(StepError::Fatal(error)) => Err(error),
        Err(StepError::Refused(error)) => {
            tracing::warn!(%error, "refused a message from a peer");
            Ok(Err(error))
        }
    }
}

/// Groups messages by peer, so that each peer gets one batch per turn.
pub(crate) struct Grouping<T> {
    pub(crate) transport: T,
    groups: Vec<(u64, Vec<Bytes>)>,
}

impl<T> Grouping<T> {
    pub(crate) fn new(transport: T) -> Self {
        Grouping {
            transport,
            groups: Vec::new(),
        }
    }
}

impl<T: Transport> Outbox for Grouping<T> {
    fn message(&mut self, to: u64, message: Bytes) {
        match self.groups.iter_mut().find(|(peer, _)| *peer == to) {
            Some((_, messages)) => messages.push(message),
            None => self.groups.push((to, vec![message])),
        }
    }

    fn snapshot(&mut self, to: u64, message: Bytes, source: SnapshotSource) {
        self.transport.send_snapshot(to, message, source);
    }

    fn flush(&mut self) {
        for (to, messages) in self.groups.drain(..) {
            self.transport.send(to, messages);
        }
    }
}
