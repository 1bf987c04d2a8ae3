//! Real threads, real disks, real time: three members in one process, once over channels and once over gRPC.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod yard;

use std::path::Path;
use std::time::{Duration, Instant};

use tonic::transport::Endpoint;
use trainyard_replication::transport::GrpcTransport;
use trainyard_replication::{
    AppliedEntry, Limits, Member, Options, ProposeError, ReadError, Replication, Run, StateMachine,
    TransferError,
};
use yard::{Kind, Shared, Yard, until};

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("command {number}")).collect()
}

async fn writes_reads_and_failover(grpc: bool) {
    let mut yard = Yard::start_all(grpc).await;
    for (number, command) in numbered(0..20).iter().enumerate() {
        assert!(yard.insist(command).await > number);
    }
    let leader = yard.leader().await;
    let read = yard.handle(leader).read_barrier().await;
    assert!(read.is_ok_and(|index| index >= 20));
    yard.all_have(&numbered(0..20)).await;

    let leader = yard.leader().await;
    let handle = yard.handle(leader);
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let refused = yard.handle(follower).propose(b"no".to_vec()).await;
    assert_eq!(
        refused,
        Err(ProposeError::NotLeader {
            leader: Some(leader)
        })
    );
    let refused = yard.handle(follower).read_barrier().await;
    assert!(
        matches!(refused, Err(ReadError::NotLeader { .. })),
        "{refused:?}"
    );

    yard.stop(leader).await;
    assert_eq!(
        handle.propose(b"x".to_vec()).await,
        Err(ProposeError::Stopped)
    );
    let next = yard.leader().await;
    assert_ne!(next, leader);
    for command in numbered(20..30) {
        yard.insist(&command).await;
    }
    yard.start(leader).await;
    yard.all_have(&numbered(0..30)).await;

    // Everybody stops and starts again from the disk alone.
    for id in 1..=3 {
        yard.stop(id).await;
    }
    for id in 1..=3 {
        yard.start(id).await;
    }
    yard.leader().await;
    yard.all_have(&numbered(0..30)).await;
    assert!(yard.insist("command 30").await > 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reads_and_failover_over_channels() {
    writes_reads_and_failover(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reads_and_failover_over_grpc() {
    writes_reads_and_failover(true).await;
}

async fn snapshot_catch_up(grpc: bool) {
    let mut yard = Yard::new(grpc);
    yard.snapshot_after_log_bytes = 100_000;
    for id in 1..=3 {
        yard.start(id).await;
    }
    let leader = yard.leader().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    yard.insist("first").await;
    yard.stop(away).await;
    let mut expected = vec!["first".to_owned()];
    for number in 0..100 {
        let command = format!("{number} {}", "x".repeat(10_000));
        yard.insist(&command).await;
        expected.push(command);
    }
    until("the log was compacted", || {
        let compacted = yard
            .running
            .values()
            .all(|running| running.handle.status().borrow().first_index > 30);
        compacted.then_some(())
    })
    .await;
    yard.start(away).await;
    yard.all_have(&expected).await;
    let status = yard.handle(away).status();
    until("it says that it has a snapshot", || {
        (status.borrow().snapshot_index > 30).then_some(())
    })
    .await;

    // Writes go on, and what was restored is on the disk.
    yard.insist("last").await;
    expected.push("last".into());
    yard.stop(away).await;
    yard.start(away).await;
    yard.all_have(&expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_gets_a_snapshot_over_channels() {
    snapshot_catch_up(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_gets_a_snapshot_over_grpc() {
    snapshot_catch_up(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_acknowledges_nothing_and_gives_up() {
    let yard = Yard::start_all(false).await;
    let leader = yard.leader().await;
    let Kind::Channels(network) = &yard.kind else {
        unreachable!()
    };
    network.0.lock().unwrap().cut.insert(leader);
    let handle = yard.handle(leader);
    let (proposed, read) = tokio::join!(handle.propose(b"lost".to_vec()), handle.read_barrier());
    assert_eq!(proposed, Err(ProposeError::Uncertain));
    assert!(read.is_err());
    let next = until("another leader", || {
        yard.leader_now().filter(|id| *id != leader)
    })
    .await;
    yard.handle(next).propose(b"kept".to_vec()).await.unwrap();
    network.0.lock().unwrap().cut.clear();
    yard.all_have(&["kept".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_quickly() {
    let yard = Yard::start_all(true).await;
    let leader = yard.leader().await;
    yard.insist("x").await;
    yard.all_have(&["x".to_owned()]).await;
    let to = (1..=3).find(|id| *id != leader).unwrap();
    let begun = Instant::now();
    yard.handle(leader)
        .transfer_leadership(Some(to))
        .await
        .unwrap();
    until("the target leads", || {
        (yard.leader_now() == Some(to)).then_some(())
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
    assert!(matches!(
        yard.handle(leader).transfer_leadership(None).await,
        Err(TransferError::NotLeader { .. })
    ));
    yard.handle(to).transfer_leadership(None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_syncs() {
    let yard = Yard::start_all(true).await;
    let leader = yard.leader().await;
    let handle = yard.handle(leader);
    let mut tasks = Vec::new();
    for writer in 0..32 {
        let handle = handle.clone();
        tasks.push(tokio::spawn(async move {
            for number in 0..50 {
                let command = format!("{writer}/{number}");
                handle.propose(command.into()).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(yard.running[&leader].journal.texts().len(), 1_600);
    until("everybody has the same", || {
        let expected = yard.running[&leader].journal.texts();
        yard.running
            .values()
            .all(|running| running.journal.texts() == expected)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_leads_at_once_and_refuses_what_is_too_much() {
    let directory = tempfile::tempdir().unwrap();
    let member = Member {
        id: 5,
        name: "only".into(),
        address: "127.0.0.1:1".into(),
    };
    let mut options = Options::new(directory.path().join("data"), "one", 5, vec![member]);
    options.limits = Limits {
        max_command_bytes: 100,
        max_queued_proposals: 4,
        ..Limits::default()
    };
    let runtime = tokio::runtime::Handle::current();
    let no_dial = |_: &Member| Err("nobody to call".to_owned());
    let transport = GrpcTransport::new(&options, runtime, no_dial);
    let handle = Replication::start(options, Shared::default(), transport).unwrap();
    let begun = Instant::now();
    until("it leads", || handle.status().borrow().ready.then_some(())).await;
    assert!(begun.elapsed() < Duration::from_millis(300));
    handle.propose(vec![1; 100]).await.unwrap();
    handle.read_barrier().await.unwrap();
    for bytes in [0, 101] {
        assert_eq!(
            handle.propose(vec![1; bytes]).await,
            Err(ProposeError::TooLarge { bytes, limit: 100 })
        );
    }
    let mut floods = Vec::new();
    for _ in 0..2_000 {
        let handle = handle.clone();
        floods.push(tokio::spawn(
            async move { handle.propose(vec![2; 10]).await },
        ));
    }
    let mut refused = 0;
    for flood in floods {
        match flood.await.unwrap() {
            Ok(_) => {}
            Err(ProposeError::Overloaded) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0, "a full queue refuses");
    assert_eq!(handle.status().borrow().run, Run::Running);
    let ended = handle.clone();
    handle.stop().await;
    assert_eq!(ended.ended().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_up_ends_its_peers_streams() {
    let yard = Yard::start_all(true).await;
    let leader = yard.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let channel = Endpoint::from_shared(format!(
        "http://{}",
        yard.members[follower as usize - 1].address
    ))
    .unwrap()
    .connect()
    .await
    .unwrap();
    let mut client = trainyard_proto::v1::peer_service_client::PeerServiceClient::new(channel);
    let call = tokio::spawn(async move { client.exchange(tokio_stream::pending()).await });
    tokio::task::yield_now().await;
    yard.handle(follower).hang_up_peers();
    tokio::time::timeout(Duration::from_secs(5), call)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    yard.insist("the others go on").await;
}

async fn ask(address: &str, batch: trainyard_proto::v1::RaftMessages) -> tonic::Status {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    trainyard_proto::v1::peer_service_client::PeerServiceClient::new(channel)
        .exchange(tokio_stream::iter([batch]))
        .await
        .unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let yard = Yard::start_all(true).await;
    let batch = |cluster: &str, to| trainyard_proto::v1::RaftMessages {
        cluster_id: cluster.into(),
        from: 2,
        to,
        messages: vec![],
    };
    let address = &yard.members[0].address;
    let status = ask(address, batch("other", 1)).await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("cluster yard"), "{status}");
    let status = ask(address, batch("yard", 3)).await;
    assert!(status.message().contains("this is member 1"), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_machine_that_breaks_ends_the_member_loudly() {
    struct Broken;
    impl StateMachine for Broken {
        type Outcome = ();
        fn apply(&mut self, _: &[AppliedEntry<'_>]) -> Vec<()> {
            panic!("on purpose");
        }
        fn snapshot(&self) -> Vec<u8> {
            Vec::new()
        }
        fn restore(&mut self, _: u64, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path: &Path = directory.path();
    let member = Member {
        id: 1,
        name: "only".into(),
        address: "127.0.0.1:1".into(),
    };
    let options = Options::new(path, "one", 1, vec![member]);
    let runtime = tokio::runtime::Handle::current();
    let transport = GrpcTransport::new(&options, runtime, |_: &Member| Err(String::new()));
    let handle = Replication::start(options, Broken, transport).unwrap();
    until("it leads", || handle.status().borrow().ready.then_some(())).await;
    assert_eq!(
        handle.propose(b"x".to_vec()).await,
        Err(ProposeError::Stopped)
    );
    let why = handle.ended().await.unwrap();
    assert!(why.contains("on purpose"), "{why}");
}
