//! Sessions over real TLS connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use trainyard_agent::board::{AttemptFiles, Board};
use trainyard_agent::clock;
use trainyard_agent::lease::{Lease, LeaseFile};
use trainyard_agent::session::{self, Context, Event, TermFile};
use trainyard_proto::v1::{Hello, ObservedAttempt};
use trainyard_shared::tls::{Authority, Role, Server};

use crate::node::PATIENCE;
use crate::scheduler::{Got, Manner, Scheduler};

struct Node {
    dir: tempfile::TempDir,
    board: Board,
    events: mpsc::Receiver<Event>,
    deadline: watch::Receiver<u64>,
    run: tokio::task::JoinHandle<()>,
}

impl Node {
    fn start(authority: &Authority, servers: &[&Scheduler]) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let identity = authority.issue(&Role::Node("n1".to_owned())).unwrap();
        let board = Board::default();
        let (sender, events) = mpsc::channel(16);
        let deadline = watch::Sender::new(0);
        let receiver = deadline.subscribe();
        let context = Context {
            servers: servers.iter().map(|s| s.address.to_string()).collect(),
            tls: identity.client_tls(Server::Member),
            hello: Hello {
                node: "n1".to_owned(),
                ..Hello::default()
            },
            board: board.clone(),
            events: sender,
            deadline,
            lease_file: Arc::new(LeaseFile::open(&dir.path().join("lease")).unwrap()),
            term: TermFile::open(dir.path().join("term"), identity.cluster_id()).unwrap(),
        };
        Node {
            board,
            events,
            deadline: receiver,
            run: tokio::spawn(session::run(context, Lease::restored(0))),
            dir,
        }
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .unwrap()
            .unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.run.abort();
    }
}

fn authority() -> Authority {
    Authority::create("c1").unwrap()
}

#[tokio::test]
async fn views_and_heartbeats_are_carried_and_the_lease_is_renewed() {
    let authority = authority();
    let mut scheduler = Scheduler::start(&authority, 1, Manner::default()).await;
    let mut node = Node::start(&authority, &[&scheduler]);
    assert_eq!(scheduler.hello().await.node, "n1");
    assert!(matches!(node.event().await, Event::Welcomed));
    assert!(matches!(node.event().await, Event::Desired(_)));
    let first = *node.deadline.borrow_and_update();
    let twenty = 20_000 * 1_000_000;
    assert!(first <= clock::boottime_ns() + twenty);
    let renewed = tokio::time::timeout(PATIENCE, node.deadline.wait_for(|d| *d > first)).await;
    let renewed = *renewed.unwrap().unwrap();
    assert!(renewed <= clock::boottime_ns() + twenty);
    let file = std::fs::read(node.dir.path().join("lease")).unwrap();
    assert!(u64::from_le_bytes(file.try_into().unwrap()) >= renewed);

    // Many changes, few messages; the last message has the last change.
    for attempt in 1..=100 {
        let observed = ObservedAttempt {
            uid: "u".to_owned(),
            attempt,
            ..ObservedAttempt::default()
        };
        node.board.put(observed, true, AttemptFiles::default());
    }
    let mut messages = 0;
    loop {
        let count = scheduler
            .next(|got| match got {
                Got::Observed(observed) => Some(observed.attempts.len()),
                _ => None,
            })
            .await;
        messages += 1;
        if count == 100 {
            break;
        }
    }
    assert!(messages < 20, "{messages}");

    scheduler
        .desired
        .send_modify(|desired| desired.revision = 7);
    assert!(matches!(node.event().await, Event::Desired(view) if view.revision == 7));
}

#[tokio::test]
async fn a_member_that_does_not_lead_names_the_leader() {
    let authority = authority();
    let mut leader = Scheduler::start(&authority, 1, Manner::default()).await;
    let follower = Manner {
        leader: Some(leader.address.to_string()),
        ..Manner::default()
    };
    let follower = Scheduler::start(&authority, 2, follower).await;
    let mut node = Node::start(&authority, &[&follower]);
    leader.hello().await;
    assert!(matches!(node.event().await, Event::Welcomed));
}

#[tokio::test]
async fn a_silent_or_dead_leader_is_left_for_another() {
    let authority = authority();
    let mut first = Scheduler::start(&authority, 1, Manner::default()).await;
    let mut node = Node::start(&authority, &[&first]);
    first.hello().await;
    assert!(matches!(node.event().await, Event::Welcomed));
    assert!(matches!(node.event().await, Event::Desired(_)));
    // It answers nothing any more: the agent comes anew by itself.
    first.change(|manner| manner.mute = true);
    assert!(matches!(node.event().await, Event::Closed));
    first.change(|manner| manner.mute = false);
    first.hello().await;
    assert!(matches!(node.event().await, Event::Welcomed));
}

#[tokio::test]
async fn a_deposed_leader_is_refused() {
    let authority = authority();
    let mut scheduler = Scheduler::start(
        &authority,
        1,
        Manner {
            term: 5,
            ..Manner::default()
        },
    )
    .await;
    let mut node = Node::start(&authority, &[&scheduler]);
    scheduler.hello().await;
    assert!(matches!(node.event().await, Event::Welcomed));
    assert!(matches!(node.event().await, Event::Desired(_)));
    let renewed = *node.deadline.borrow();
    scheduler.change(|manner| {
        manner.term = 4;
        manner.mute = true;
    });
    assert!(matches!(node.event().await, Event::Closed));
    // It says hello, hears term 4 and leaves; the lease is not renewed.
    scheduler.hello().await;
    scheduler.hello().await;
    assert!(node.events.try_recv().is_err());
    assert!(*node.deadline.borrow() <= renewed + 2_000_000_000);
    scheduler.change(|manner| {
        manner.term = 6;
        manner.mute = false;
    });
    let welcomed = tokio::time::timeout(Duration::from_secs(20), node.events.recv()).await;
    assert!(matches!(welcomed.unwrap(), Some(Event::Welcomed)));
}

#[tokio::test]
async fn a_scheduler_of_another_group_is_not_spoken_to() {
    let ours = authority();
    let theirs = Authority::create("c2").unwrap();
    let mut scheduler = Scheduler::start(&theirs, 1, Manner::default()).await;
    let mut node = Node::start(&ours, &[&scheduler]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(scheduler.got.try_recv().is_err());
    assert!(node.events.try_recv().is_err());
}
