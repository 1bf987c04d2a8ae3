//! The one door into the replication thread: everything that waits for it, bounded, taken in one go.
//!
//! Callers never wait for the thread to be idle, and the thread takes all that has gathered with one swap under the lock: that
//! is the group commit. It is woken only if it sleeps. Proposals and reads over the bounds are refused; peer messages over
//! the bound make their sender wait, which slows the peer's stream down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};

use crate::error::{InboundError, ProposeError, ReadError, TransferError};
use crate::machine::Applied;
use crate::options::Limits;

/// Where the answer to a proposal goes.
pub(crate) type ProposeReply<O> = oneshot::Sender<Result<Applied<O>, ProposeError>>;
/// Where the answer to a read goes.
pub(crate) type ReadReply = oneshot::Sender<Result<u64, ReadError>>;
/// Where the answer to a transfer goes.
pub(crate) type TransferReply = oneshot::Sender<Result<(), TransferError>>;

/// Something from a peer, in order.
pub(crate) enum PeerInput {
    Messages {
        from: u64,
        messages: Vec<Bytes>,
    },
    Snapshot {
        from: u64,
        message: Bytes,
        data: Bytes,
        reply: oneshot::Sender<Result<(), InboundError>>,
    },
}

/// Everything that gathered since the last look.
pub(crate) struct Batch<O> {
    pub(crate) proposals: Vec<(ProposeReply<O>, Vec<u8>)>,
    pub(crate) reads: Vec<ReadReply>,
    pub(crate) peer: Vec<PeerInput>,
    pub(crate) unreachable: BTreeSet<u64>,
    pub(crate) snapshots: BTreeMap<u64, bool>,
    pub(crate) transfers: Vec<(Option<u64>, TransferReply)>,
}

impl<O> Default for Batch<O> {
    fn default() -> Self {
        Batch {
            proposals: Vec::new(),
            reads: Vec::new(),
            peer: Vec::new(),
            unreachable: BTreeSet::new(),
            snapshots: BTreeMap::new(),
            transfers: Vec::new(),
        }
    }
}

impl<O> Batch<O> {
    fn is_empty(&self) -> bool {
        self.proposals.is_empty()
            && self.reads.is_empty()
            && self.peer.is_empty()
            && self.unreachable.is_empty()
            && self.snapshots.is_empty()
            && self.transfers.is_empty()
    }
}

struct State<O> {
    batch: Batch<O>,
    proposal_bytes: usize,
    peer_bytes: usize,
    /// The thread waits on the condition variable.
    asleep: bool,
    /// Somebody waits for room.
    crowded: bool,
    closed: bool,
}

/// The door: see the module.
pub(crate) struct Inbox<O> {
    state: Mutex<State<O>>,
    wake: Condvar,
    room: Notify,
    /// Peers' streams end when it says so.
    hung_up: watch::Sender<bool>,
    limits: Limits,
}

impl<O> Inbox<O> {
    pub(crate) fn new(limits: Limits) -> Self {
        Inbox {
            state: Mutex::new(State {
                batch: Batch::default(),
                proposal_bytes: 0,
                peer_bytes: 0,
                asleep: false,
                crowded: false,
                closed: false,
            }),
            wake: Condvar::new(),
            room: Notify::new(),
            hung_up: watch::Sender::new(false),
            limits,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<O>> {
        // The state is consistent between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: MutexGuard<'_, State<O>>) {
        let asleep = state.asleep;
        drop(state);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Takes everything; waits for something until `deadline`. Gives `false` when the door is closed.
    pub(crate) fn take(&self, into: &mut Batch<O>, deadline: Instant) -> bool {
        let mut state = self.lock();
        while state.batch.is_empty() && !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.asleep = true;
            state = self.sleep(state, left);
            state.asleep = false;
        }
        std::mem::swap(&mut state.batch, into);
        state.proposal_bytes = 0;
        state.peer_bytes = 0;
        let crowded = std::mem::take(&mut state.crowded);
        let open = !state.closed;
        drop(state);
        if crowded {
            self.room.notify_waiters();
        }
        open
    }

    fn sleep<'a>(
        &'a self,
        state: MutexGuard<'a, State<O>>,
        left: Duration,
    ) -> MutexGuard<'a, State<O>> {
        match self.wake.wait_timeout(state, left) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    /// Lets nothing more in; what waits is dropped by the thread.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake(state);
        self.room.notify_waiters();
        self.hang_up();
    }

    /// Ends the peers' streams and lets no new ones begin.
    pub(crate) fn hang_up(&self) {
        self.hung_up.send_replace(true);
    }

    pub(crate) fn propose(
        &self,
        command: Vec<u8>,
        reply: ProposeReply<O>,
    ) -> Result<(), ProposeError> {
        let mut state = self.lock();
        if state.closed {
            return Err(ProposeError::Stopped);
        }
        let bytes = state.proposal_bytes + command.len();
        if state.batch.proposals.len() >= self.limits.max_queued_proposals
            || bytes > self.limits.max_queued_proposal_bytes
        {
            return Err(ProposeError::Overloaded);
        }
        state.proposal_bytes = bytes;
        state.batch.proposals.push((reply, command));
        self.wake(state);
        Ok(())
    }

    pub(crate) fn read(&self, reply: ReadReply) -> Result<(), ReadError> {
        let mut state = self.lock();
        if state.closed {
            return Err(ReadError::Stopped);
        }
        if state.batch.reads.len() >= self.limits.max_queued_reads {
            return Err(ReadError::Overloaded);
        }
        state.batch.reads.push(reply);
        self.wake(state);
        Ok(())
    }

    pub(crate) fn transfer(
        &self,
        to: Option<u64>,
        reply: TransferReply,
    ) -> Result<(), TransferError> {
        let mut state = self.lock();
        if state.closed {
            return Err(TransferError::Stopped);
        }
        state.batch.transfers.push((to, reply));
        self.wake(state);
        Ok(())
    }

    /// Puts something from a peer in; waits while there is no room. A snapshot's data counts as taken already.
    pub(crate) async fn peer(&self, input: PeerInput) -> Result<(), InboundError> {
        let bytes = match &input {
            PeerInput::Messages { messages, .. } => messages.iter().map(Bytes::len).sum(),
            PeerInput::Snapshot { message, .. } => message.len(),
        };
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            {
                let mut state = self.lock();
                if state.closed {
                    return Err(InboundError::Stopped);
                }
                // Anything fits into an empty queue.
                if state.peer_bytes == 0
                    || state.peer_bytes + bytes <= self.limits.max_queued_peer_bytes
                {
                    state.peer_bytes += bytes;
                    state.batch.peer.push(input);
                    self.wake(state);
                    return Ok(());
                }
                state.crowded = true;
                // Registered under the lock, so that the thread's notice cannot be missed.
                room.as_mut().enable();
            }
            room.await;
        }
    }
}

/// What a transport reports back.
pub(crate) trait ReportSink: Send + Sync {
    fn unreachable(&self, peer: u64);
    fn snapshot(&self, peer: u64, arrived: bool);
}

impl<O: Send> ReportSink for Inbox<O> {
    fn unreachable(&self, peer: u64) {
        let mut state = self.lock();
        if state.batch.unreachable.insert(peer) {
            self.wake(state);
        }
    }

    fn snapshot(&self, peer: u64, arrived: bool) {
        let mut state = self.lock();
        state.batch.snapshots.insert(peer, arrived);
        self.wake(state);
    }
}

/// What a server puts in.
#[tonic::async_trait]
pub(crate) trait PeerSink: Send + Sync {
    async fn put(&self, input: PeerInput) -> Result<(), InboundError>;
    fn hung_up(&self) -> watch::Receiver<bool>;
}

#[tonic::async_trait]
impl<O: Send> PeerSink for Inbox<O> {
    async fn put(&self, input: PeerInput) -> Result<(), InboundError> {
        self.peer(input).await
    }

    fn hung_up(&self) -> watch::Receiver<bool> {
        self.hung_up.subscribe()
    }
}
