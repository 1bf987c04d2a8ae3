//! A state machine that remembers every command, and a whole cluster in one thread: its own clock, network and disks.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use trainyard_replication::engine::{Engine, Outbox, SnapshotPolicy};
use trainyard_replication::node::{Node, NodeConfig};
use trainyard_replication::store::{LogStore, MemoryDisk, Owner, Platter, SnapshotSource};
use trainyard_replication::{
    Applied, AppliedEntry, FatalError, Limits, ProposeError, ReadError, StateMachine,
};

/// Remembers every command in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(crate) commands: Vec<(u64, Vec<u8>)>,
}

impl Journal {
    pub(crate) fn texts(&self) -> Vec<String> {
        self.commands
            .iter()
            .map(|(_, command)| String::from_utf8_lossy(command).into_owned())
            .collect()
    }
}

impl StateMachine for Journal {
    type Outcome = usize;

    fn apply(&mut self, entries: &[AppliedEntry<'_>]) -> Vec<usize> {
        entries
            .iter()
            .map(|entry| {
                if let Some((last, _)) = self.commands.last() {
                    assert!(entry.index > *last, "applied in order, and once");
                }
                self.commands.push((entry.index, entry.command.to_vec()));
                self.commands.len()
            })
            .collect()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, command) in &self.commands {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(&(command.len() as u32).to_le_bytes());
            out.extend_from_slice(command);
        }
        out
    }

    fn restore(&mut self, _index: u64, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        self.commands.clear();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at_checked(12).ok_or("cut short")?;
            let index = u64::from_le_bytes(head[..8].try_into().unwrap());
            let length = u32::from_le_bytes(head[8..].try_into().unwrap()) as usize;
            let (command, tail) = tail.split_at_checked(length).ok_or("cut short")?;
            self.commands.push((index, command.to_vec()));
            rest = tail;
        }
        Ok(())
    }
}

pub(crate) type TestEngine = Engine<Journal, MemoryDisk, u64, u64>;

/// What one turn of a member sent, in order.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) messages: Vec<(u64, Bytes)>,
    pub(crate) snapshots: Vec<(u64, Bytes, SnapshotSource)>,
}

impl Outbox for Sent {
    fn message(&mut self, to: u64, message: Bytes) {
        self.messages.push((to, message));
    }

    fn snapshot(&mut self, to: u64, message: Bytes, source: SnapshotSource) {
        self.snapshots.push((to, message, source));
    }

    fn flush(&mut self) {}
}

enum InFlight {
    Message(Bytes),
    Snapshot(Bytes, Bytes),
}

/// Three members in one thread.
pub(crate) struct Cluster {
    pub(crate) engines: BTreeMap<u64, TestEngine>,
    pub(crate) platters: BTreeMap<u64, Platter>,
    network: VecDeque<(u64, u64, InFlight)>,
    cut: BTreeSet<u64>,
    failing: BTreeSet<u64>,
    pub(crate) loss_percent: u8,
    pub(crate) random: fastrand::Rng,
    pub(crate) policy: SnapshotPolicy,
    pub(crate) proposals: BTreeMap<u64, Result<Applied<usize>, ProposeError>>,
    pub(crate) reads: BTreeMap<u64, Result<u64, ReadError>>,
    pub(crate) snapshots_sent: usize,
    next_token: u64,
}

pub(crate) const MEMBERS: [u64; 3] = [1, 2, 3];

pub(crate) fn owner(member_id: u64) -> Owner {
    Owner {
        cluster_id: "test".into(),
        member_id,
    }
}

impl Cluster {
    pub(crate) fn new(seed: u64) -> Self {
        let policy = SnapshotPolicy {
            after_log_bytes: 1 << 40,
            retain_log_bytes: 0,
        };
        Self::with_policy(seed, policy)
    }

    pub(crate) fn with_policy(seed: u64, policy: SnapshotPolicy) -> Self {
        let mut cluster = Cluster {
            engines: BTreeMap::new(),
            platters: MEMBERS.iter().map(|id| (*id, Platter::new())).collect(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            failing: BTreeSet::new(),
            loss_percent: 0,
            random: fastrand::Rng::with_seed(seed),
            policy,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            snapshots_sent: 0,
            next_token: 1,
        };
        for id in MEMBERS {
            cluster.start(id);
        }
        cluster
    }

    /// Starts a member from its platter.
    pub(crate) fn start(&mut self, id: u64) {
        let engine = self.open(id).unwrap();
        self.engines.insert(id, engine);
    }

    pub(crate) fn open(
        &mut self,
        id: u64,
    ) -> Result<TestEngine, trainyard_replication::StartError> {
        let disk = self.platters[&id].open();
        let (store, stored) = LogStore::open(disk, &owner(id), &MEMBERS)?;
        let mut machine = Journal::default();
        if let Some(info) = &stored.snapshot {
            let bytes = store.read_snapshot()?.unwrap();
            machine.restore(info.position.index, &bytes).unwrap();
        }
        let mut random = self.random.fork();
        let config = NodeConfig {
            id,
            election_ticks: 10,
            heartbeat_ticks: 2,
            read_timeout_ticks: 40,
            max_log_bytes: 1 << 30,
            limits: Limits::default(),
            jitter: Some(Box::new(move |range| random.usize(range))),
        };
        let node = Node::new(config, stored).unwrap();
        Ok(Engine::new(node, store, machine, self.policy))
    }

    /// Kills a member; of its unsynced writes `keep` survive, and half of the next with `torn`.
    pub(crate) fn kill(&mut self, id: u64, keep: usize, torn: bool) {
        self.engines.remove(&id);
        self.failing.remove(&id);
        self.platters[&id].crash(keep, torn);
        self.network
            .retain(|(from, to, _)| *from != id && *to != id);
    }

    /// Takes a member off the network, or puts it back.
    pub(crate) fn set_cut(&mut self, id: u64, cut: bool) {
        if cut {
            self.cut.insert(id);
        } else {
            self.cut.remove(&id);
        }
    }

    /// One tick everywhere, and all messages until nothing moves.
    pub(crate) fn tick(&mut self) {
        let ids: Vec<u64> = self.engines.keys().copied().collect();
        for id in ids {
            self.engines.get_mut(&id).unwrap().tick();
            self.turn(id);
        }
        self.deliver();
    }

    pub(crate) fn run(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick();
        }
    }

    /// Ticks until `done`, or fails.
    pub(crate) fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..400 {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("not within 400 ticks: {what}");
    }

    pub(crate) fn try_turn(&mut self, id: u64) -> Result<(), FatalError> {
        loop {
            let mut sent = Sent::default();
            let engine = self.engines.get_mut(&id).unwrap();
            let more = engine.turn(&mut sent)?;
            let results = engine.take_results();
            self.proposals.extend(results.proposals);
            self.reads.extend(results.reads);
            for (to, message) in sent.messages {
                self.network.push_back((id, to, InFlight::Message(message)));
            }
            for (to, message, mut source) in sent.snapshots {
                let mut data = Vec::new();
                while let Some(chunk) = source.next_chunk().unwrap() {
                    data.extend_from_slice(&chunk);
                }
                self.snapshots_sent += 1;
                let snapshot = InFlight::Snapshot(message, data.into());
                self.network.push_back((id, to, snapshot));
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Turns a member; one whose disk was told to fail dies of it.
    pub(crate) fn turn(&mut self, id: u64) {
        match self.try_turn(id) {
            Ok(()) => {}
            Err(_) if self.failing.contains(&id) => {
                self.engines.remove(&id);
            }
            Err(error) => panic!("member {id}: {error}"),
        }
    }

    /// From now on no sync of this member's disk works, so that the next one kills it between write and sync.
    pub(crate) fn fail_syncs(&mut self, id: u64) {
        self.failing.insert(id);
        self.platters[&id].set_failing(true);
    }

    pub(crate) fn deliver(&mut self) {
        while let Some((from, to, input)) = self.network.pop_front() {
            let lost = self.cut.contains(&from)
                || self.cut.contains(&to)
                || self.random.u8(..100) < self.loss_percent
                || !self.engines.contains_key(&to);
            match input {
                InFlight::Message(message) if !lost => {
                    let engine = self.engines.get_mut(&to).unwrap();
                    engine.step(from, &message).unwrap();
                    self.turn(to);
                }
                InFlight::Message(_) => {
                    if let Some(engine) = self.engines.get_mut(&from) {
                        engine.report_unreachable(to);
                    }
                }
                InFlight::Snapshot(message, data) => {
                    if !lost {
                        let engine = self.engines.get_mut(&to).unwrap();
                        engine.step_snapshot(from, &message, data).unwrap();
                        self.turn(to);
                    }
                    if let Some(engine) = self.engines.get_mut(&from) {
                        engine.report_snapshot(to, !lost);
                    }
                }
            }
        }
    }

    /// The leader of the highest term that is ready to serve.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.engines
            .iter()
            .filter(|(id, engine)| engine.node().is_ready() && !self.cut.contains(id))
            .max_by_key(|(_, engine)| engine.node().term())
            .map(|(id, _)| *id)
    }

    pub(crate) fn elect(&mut self) -> u64 {
        self.run_until("a leader", |cluster| cluster.leader().is_some());
        self.leader().unwrap()
    }

    /// Proposes at a member; gives the token of the answer.
    pub(crate) fn propose(&mut self, id: u64, command: &str) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let engine = self.engines.get_mut(&id).unwrap();
        engine.propose([(token, command.as_bytes().to_vec())]);
        self.turn(id);
        token
    }

    pub(crate) fn read(&mut self, id: u64) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.engines.get_mut(&id).unwrap().read(token);
        self.turn(id);
        token
    }

    pub(crate) fn engine(&self, id: u64) -> &TestEngine {
        &self.engines[&id]
    }

    pub(crate) fn texts(&self, id: u64) -> Vec<String> {
        self.engine(id).machine().texts()
    }

    /// Runs until all members have applied the same, which must be what `expected` says.
    pub(crate) fn assert_all(&mut self, expected: &[String]) {
        self.run_until("everybody applied everything", |cluster| {
            MEMBERS
                .iter()
                .all(|id| cluster.engines.contains_key(id) && cluster.texts(*id) == expected)
        });
    }
}
