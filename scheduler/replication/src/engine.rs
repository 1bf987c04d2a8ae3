//! One member without clock, thread or network: the step machine, its store and its state machine, bound together in the one
//! right order. The driver turns it in production, the simulator in tests; both run this very code.
//!
//! The order of a turn never changes: a leader's messages, write, sync, everybody's messages, apply, answer.

use bytes::Bytes;

use crate::error::{FatalError, ProposeError, ReadError, TransferError};
use crate::machine::{Applied, AppliedEntry, StateMachine};
use crate::node::{Committed, Node, Outbound, Payload, StepError, Write};
use crate::store::{Disk, LogStore, Position, SnapshotInfo, SnapshotSource};

/// Bytes of a snapshot written in one turn: it delays the commits of that turn by a few milliseconds.
const SNAPSHOT_BYTES_PER_TURN: usize = 512 * 1024;
/// Old records removed in one turn.
const REMOVALS_PER_TURN: usize = 64;

/// Takes what goes to peers.
pub trait Outbox {
    /// An ordinary message.
    fn message(&mut self, to: u64, message: Bytes);
    /// A snapshot: its announcement and its data.
    fn snapshot(&mut self, to: u64, message: Bytes, source: SnapshotSource);
    /// Everything taken so far may leave now.
    fn flush(&mut self);
}

/// When to take snapshots.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPolicy {
    /// Bytes of committed log after which a snapshot is taken.
    pub after_log_bytes: u64,
    /// Bytes of log kept behind it.
    pub retain_log_bytes: u64,
}

/// What became of proposals and reads.
#[derive(Debug)]
pub struct Results<P, R, O> {
    /// One for each decided proposal.
    pub proposals: Vec<(P, Result<Applied<O>, ProposeError>)>,
    /// One for each decided read: the index that the reader's state is at least at.
    pub reads: Vec<(R, Result<u64, ReadError>)>,
}

/// One member: see the module.
pub struct Engine<S: StateMachine, D, P, R> {
    node: Node<P, R>,
    store: LogStore<D>,
    machine: S,
    policy: SnapshotPolicy,
    /// A snapshot from a peer between its announcement and its write.
    incoming: Option<(Position, Bytes)>,
    results: Results<P, R, S::Outcome>,
}

impl<S: StateMachine, D: Disk, P, R> Engine<S, D, P, R> {
    /// Binds the parts; the state machine must stand at the store's snapshot.
    pub fn new(node: Node<P, R>, store: LogStore<D>, machine: S, policy: SnapshotPolicy) -> Self {
        Engine {
            node,
            store,
            machine,
            policy,
            incoming: None,
            results: Results {
                proposals: Vec::new(),
                reads: Vec::new(),
            },
        }
    }

    /// The step machine, for looking.
    pub fn node(&self) -> &Node<P, R> {
        &self.node
    }

    /// The state machine, for looking.
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// Bytes on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }

    /// One tick of the clock has passed.
    pub fn tick(&mut self) {
        self.node.tick();
    }

    /// Starts an election at once.
    pub fn campaign(&mut self) {
        self.node.campaign();
    }

    /// Proposes commands in order.
    pub fn propose(&mut self, batch: impl IntoIterator<Item = (P, Vec<u8>)>) {
        self.node.propose(batch);
    }

    /// Asks for a linearizable read.
    pub fn read(&mut self, token: R) {
        self.node.read(token);
    }

    /// Takes a message from a peer.
    pub fn step(&mut self, from: u64, message: &[u8]) -> Result<(), StepError> {
        self.node.step(from, message)
    }

    /// Takes a snapshot from a peer; the next turn writes it, if it is wanted.
    pub fn step_snapshot(
        &mut self,
        from: u64,
        message: &[u8],
        data: Bytes,
    ) -> Result<(), StepError> {
        if let Some(position) = self.node.step_snapshot(from, message)? {
            self.incoming = Some((position, data));
        }
        Ok(())
    }

    /// A peer could not be reached.
    pub fn report_unreachable(&mut self, peer: u64) {
        self.node.report_unreachable(peer);
    }

    /// A snapshot to a peer has arrived, or has not.
    pub fn report_snapshot(&mut self, peer: u64, arrived: bool) {
        self.node.report_snapshot(peer, arrived);
    }

    /// Begins to hand leadership over.
    pub fn transfer(&mut self, to: Option<u64>) -> Result<u64, TransferError> {
        self.node.transfer(to)
    }

    /// Gives up a transfer of leadership.
    pub fn abort_transfer(&mut self) {
        self.node.abort_transfer();
    }

    /// Does all work of one step. Tells whether there is more that should not wait for an event. After an error the
    /// engine must be dropped: what is in memory and what is on the disk may differ.
    pub fn turn(&mut self, out: &mut impl Outbox) -> Result<bool, FatalError> {
        if self.node.has_ready() {
            let work = self.node.ready();
            self.post(work.messages, out);
            if let Some(write) = &work.write {
                self.persist(write)?;
            }
            let done = self.node.persisted(work.write);
            self.post(done.messages, out);
            if let Some(info) = &done.snapshot {
                self.restore(info)?;
            }
            self.apply(done.committed)?;
            if let Some(index) = done.applied {
                self.node.applied(index);
            }
        }
        let busy = self.snapshot_turn()? | self.store.maintain(REMOVALS_PER_TURN)?;
        self.collect();
        Ok(busy || self.node.has_ready())
    }

    /// Takes the results so far.
    pub fn take_results(&mut self) -> Results<P, R, S::Outcome> {
        self.collect();
        Results {
            proposals: std::mem::take(&mut self.results.proposals),
            reads: std::mem::take(&mut self.results.reads),
        }
    }

    /// Gives up all tokens, because the member stops.
    pub fn abandon(&mut self) -> (Vec<P>, Vec<R>) {
        self.node.abandon()
    }

    fn post(&mut self, messages: Vec<Outbound>, out: &mut impl Outbox) {
        if messages.is_empty() {
            return;
        }
        for Outbound { to, payload } in messages {
            match payload {
                Payload::Message(message) => out.message(to, message),
                Payload::Snapshot(message) => match self.store.snapshot_source() {
                    Some(source) => out.snapshot(to, message, source),
                    None => self.node.report_snapshot(to, false),
                },
            }
        }
        out.flush();
    }

    fn persist(&mut self, write: &Write) -> Result<(), FatalError> {
        if let Some(info) = &write.snapshot {
            let data = match &self.incoming {
                Some((position, data)) if *position == info.position => data.clone(),
                _ => return Err(FatalError::Bug("a snapshot without data".to_owned())),
            };
            self.store.begin_snapshot(info.clone(), data);
            self.store
                .finish_snapshot(info.position, false, &write.hard_state)?;
            if write.entries.is_empty() {
                return Ok(());
            }
        }
        self.store.append(&write.hard_state, &write.entries)?;
        self.store.sync()?;
        Ok(())
    }

    fn restore(&mut self, info: &SnapshotInfo) -> Result<(), FatalError> {
        let Some((_, data)) = self.incoming.take() else {
            return Err(FatalError::Bug("a snapshot without data".to_owned()));
        };
        let index = info.position.index;
        tracing::info!(
            index,
            bytes = data.len(),
            "restoring a snapshot from the leader"
        );
        self.node.snapshot_begun();
        self.machine
            .restore(index, &data)
            .map_err(|why| FatalError::StateMachine(format!("restoring index {index}: {why}")))
    }

    fn apply(&mut self, committed: Vec<Committed<P>>) -> Result<(), FatalError> {
        if committed.is_empty() {
            return Ok(());
        }
        let entries: Vec<AppliedEntry<'_>> = committed
            .iter()
            .map(|entry| AppliedEntry {
                index: entry.index,
                term: entry.term,
                command: &entry.command,
            })
            .collect();
        let outcomes = self.machine.apply(&entries);
        if outcomes.len() != committed.len() {
            return Err(FatalError::StateMachine(format!(
                "{} commands gave {} outcomes",
                committed.len(),
                outcomes.len()
            )));
        }
        for (entry, outcome) in committed.into_iter().zip(outcomes) {
            if let Some(token) = entry.token {
                let index = entry.index;
                let applied = Applied { index, outcome };
                self.results.proposals.push((token, Ok(applied)));
            }
        }
        Ok(())
    }

    /// Begins a snapshot when one is due, or writes a piece of the one under way; tells whether one is under way.
    fn snapshot_turn(&mut self) -> Result<bool, FatalError> {
        let Some(info) = self.store.staged_snapshot() else {
            return Ok(self.begin_snapshot());
        };
        let info = info.clone();
        if !self.store.write_snapshot(SNAPSHOT_BYTES_PER_TURN)? {
            self.store.sync()?;
            return Ok(true);
        }
        let retain = self.policy.retain_log_bytes;
        let truncated = self.node.compaction_point(info.position, retain);
        let hard_state = self.node.durable_hard_state();
        self.store.finish_snapshot(truncated, true, &hard_state)?;
        tracing::info!(
            index = info.position.index,
            log_starts = truncated.index + 1,
            "snapshot taken"
        );
        self.node.compacted(info, truncated);
        Ok(false)
    }

    fn begin_snapshot(&mut self) -> bool {
        let due = self.node.bytes_since_snapshot() >= self.policy.after_log_bytes;
        if !(self.node.take_snapshot_wanted() || due) {
            return false;
        }
        let info = self.node.snapshot_info();
        if info.position.index <= self.node.snapshot_index() {
            return false;
        }
        let bytes = self.machine.snapshot();
        self.store.begin_snapshot(info, bytes.into());
        self.node.snapshot_begun();
        true
    }

    fn collect(&mut self) {
        let answers = self.node.take_answers();
        let results = &mut self.results;
        let failed = answers.proposals.into_iter();
        results
            .proposals
            .extend(failed.map(|(token, error)| (token, Err(error))));
        let reads = answers.reads.into_iter();
        results
            .reads
            .extend(reads.map(|(token, index)| (token, Ok(index))));
        let failed = answers.failed_reads.into_iter();
        results
            .reads
            .extend(failed.map(|(token, error)| (token, Err(error))));
    }
}
