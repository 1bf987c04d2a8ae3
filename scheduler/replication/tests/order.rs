//! Nothing is said, applied or answered before what it rests on is on the disk: watched with a disk and an outbox that write
//! down every step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{Journal, MEMBERS, owner};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use trainyard_replication::engine::{Engine, Outbox, SnapshotPolicy};
use trainyard_replication::node::{Node, NodeConfig};
use trainyard_replication::store::{
    Disk, DiskReader, LogStore, MemoryDisk, Platter, SnapshotSource, Visit,
};
use trainyard_replication::{AppliedEntry, Limits, StateMachine, StoreError};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Put,
    Sync,
    Sent(MessageType),
    Applied(usize),
}

type Steps = Arc<Mutex<Vec<Step>>>;

struct RecordingDisk {
    disk: MemoryDisk,
    steps: Steps,
}

impl RecordingDisk {
    fn note(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }
}

impl Disk for RecordingDisk {
    fn place(&self) -> String {
        self.disk.place()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.disk.get(key)
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.note(Step::Put);
        self.disk.put(key, value)
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.disk.remove(key)
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.disk.scan(prefix, visit)
    }

    fn sync(&mut self, mark: u64) -> Result<(), StoreError> {
        self.note(Step::Sync);
        self.disk.sync(mark)
    }

    fn mark(&self) -> u64 {
        self.disk.mark()
    }

    fn reader(&self) -> Box<dyn DiskReader> {
        self.disk.reader()
    }

    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }
}

struct RecordingMachine {
    journal: Journal,
    steps: Steps,
}

impl StateMachine for RecordingMachine {
    type Outcome = usize;

    fn apply(&mut self, entries: &[AppliedEntry<'_>]) -> Vec<usize> {
        self.steps
            .lock()
            .unwrap()
            .push(Step::Applied(entries.len()));
        self.journal.apply(entries)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.journal.snapshot()
    }

    fn restore(&mut self, index: u64, bytes: &[u8]) -> Result<(), String> {
        self.journal.restore(index, bytes)
    }
}

struct RecordingOutbox {
    sent: Vec<(u64, Bytes)>,
    steps: Steps,
}

impl Outbox for RecordingOutbox {
    fn message(&mut self, to: u64, message: Bytes) {
        let kind = Message::parse_from_bytes(&message).unwrap().msg_type;
        self.steps.lock().unwrap().push(Step::Sent(kind));
        self.sent.push((to, message));
    }

    fn snapshot(&mut self, _to: u64, _message: Bytes, _source: SnapshotSource) {
        panic!("no snapshot here");
    }

    fn flush(&mut self) {}
}

struct Watched {
    id: u64,
    engine: Engine<RecordingMachine, RecordingDisk, u64, u64>,
    steps: Steps,
}

impl Watched {
    fn new(id: u64) -> Self {
        let steps = Steps::default();
        let disk = RecordingDisk {
            disk: Platter::new().open(),
            steps: steps.clone(),
        };
        let (store, stored) = LogStore::open(disk, &owner(id), &MEMBERS).unwrap();
        let config = NodeConfig {
            id,
            election_ticks: 10,
            heartbeat_ticks: 2,
            read_timeout_ticks: 40,
            max_log_bytes: 1 << 30,
            limits: Limits::default(),
            jitter: None,
        };
        let machine = RecordingMachine {
            journal: Journal::default(),
            steps: steps.clone(),
        };
        let policy = SnapshotPolicy {
            after_log_bytes: 1 << 30,
            retain_log_bytes: 0,
        };
        let engine = Engine::new(Node::new(config, stored).unwrap(), store, machine, policy);
        steps.lock().unwrap().clear();
        Watched { id, engine, steps }
    }

    /// Turns once; gives what was sent and the steps in their order.
    fn turn(&mut self) -> (Vec<(u64, Bytes)>, Vec<Step>) {
        let mut outbox = RecordingOutbox {
            sent: Vec::new(),
            steps: self.steps.clone(),
        };
        self.engine.turn(&mut outbox).unwrap();
        (
            outbox.sent,
            std::mem::take(&mut *self.steps.lock().unwrap()),
        )
    }
}

fn deliver(from: u64, sent: Vec<(u64, Bytes)>, to: &mut Watched) -> Vec<Step> {
    let mut all = Vec::new();
    for (receiver, message) in sent {
        if receiver == to.id {
            to.engine.step(from, &message).unwrap();
        }
    }
    all.extend(to.turn().1);
    all
}

#[test]
fn the_order_is_write_sync_speak_apply_answer() {
    use MessageType::{
        MsgAppend, MsgAppendResponse, MsgRequestPreVote, MsgRequestVote, MsgRequestVoteResponse,
    };
    let mut leader = Watched::new(1);
    let mut follower = Watched::new(2);

    // Election: the candidate's own vote is durable before it asks, the follower's before it answers.
    leader.engine.campaign();
    let (sent, steps) = leader.turn();
    assert_eq!(
        steps,
        [Step::Sent(MsgRequestPreVote); 2],
        "a question costs no sync"
    );
    for (to, message) in sent {
        if to == 2 {
            follower.engine.step(1, &message).unwrap();
        }
    }
    let (sent, steps) = follower.turn();
    assert!(
        !steps.contains(&Step::Sync),
        "nor does answering it: {steps:?}"
    );
    leader.engine.step(2, &sent[0].1).unwrap();
    let (sent, steps) = leader.turn();
    let asked = Step::Sent(MsgRequestVote);
    assert_eq!(steps, [Step::Put, Step::Sync, asked, asked]);
    for (to, message) in sent {
        if to == 2 {
            follower.engine.step(1, &message).unwrap();
        }
    }
    let (sent, steps) = follower.turn();
    assert_eq!(
        steps,
        [Step::Put, Step::Sync, Step::Sent(MsgRequestVoteResponse)]
    );
    leader.engine.step(2, &sent[0].1).unwrap();
    let (sent, _) = leader.turn();
    assert!(leader.engine.node().is_leader());

    // Its first entry.
    let steps = deliver(1, sent, &mut follower);
    assert_eq!(
        steps,
        [Step::Put, Step::Sync, Step::Sent(MsgAppendResponse)]
    );

    // Two commands: the leader's append travels while it writes, which is safe because its own copy counts only when
    // synced; the follower's acknowledgement waits for its sync.
    leader
        .engine
        .propose([(7, b"a".to_vec()), (8, b"b".to_vec())]);
    let (_, steps) = leader.turn();
    assert!(leader.engine.take_results().proposals.is_empty());
    // The follower has not answered the first entry, so raft-rs probes with one append only: none may go yet.
    assert_eq!(steps, [Step::Put, Step::Sync]);

    // The answer to the first entry arrives: commit, then the two commands travel.
    let mut outbox = RecordingOutbox {
        sent: Vec::new(),
        steps: follower.steps.clone(),
    };
    let answer = Message {
        msg_type: MsgAppendResponse,
        from: 2,
        to: 1,
        term: leader.engine.node().term(),
        index: 2,
        commit: 1,
        ..Message::default()
    };
    leader
        .engine
        .step(2, &answer.write_to_bytes().unwrap())
        .unwrap();
    let (sent, steps) = leader.turn();
    assert!(steps.contains(&Step::Sent(MsgAppend)), "{steps:?}");
    for (to, message) in sent {
        if to == 2 {
            follower.engine.step(1, &message).unwrap();
        }
    }
    follower.engine.turn(&mut outbox).unwrap();
    let steps = std::mem::take(&mut *follower.steps.lock().unwrap());
    let put = steps.iter().position(|step| *step == Step::Put).unwrap();
    let sync = steps.iter().position(|step| *step == Step::Sync).unwrap();
    let spoke = steps
        .iter()
        .position(|step| matches!(step, Step::Sent(_)))
        .unwrap();
    assert!(put < sync && sync < spoke, "{steps:?}");
    for (to, message) in outbox.sent {
        if to == 1 {
            leader.engine.step(2, &message).unwrap();
        }
    }
    let (_, steps) = leader.turn();
    assert_eq!(
        steps
            .iter()
            .filter(|step| **step == Step::Applied(2))
            .count(),
        1
    );
    assert_eq!(leader.engine.take_results().proposals.len(), 2);
}
