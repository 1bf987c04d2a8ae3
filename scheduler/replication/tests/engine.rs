//! Three members on faulty disks and a faulty network, in one thread: the consensus rules as scenarios.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Cluster, MEMBERS, Sent};
use trainyard_replication::engine::SnapshotPolicy;
use trainyard_replication::{FatalError, ProposeError, ReadError, Role, StoreError};

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("command {number}")).collect()
}

#[test]
fn a_leader_is_elected_and_commands_reach_everybody_in_order() {
    let mut cluster = Cluster::new(1);
    let leader = cluster.elect();
    let mut tokens = Vec::new();
    for command in numbered(0..50) {
        tokens.push(cluster.propose(leader, &command));
    }
    cluster.deliver();
    for (position, token) in tokens.iter().enumerate() {
        let applied = cluster.proposals[token].clone().unwrap();
        assert_eq!(applied.outcome, position + 1);
    }
    cluster.assert_all(&numbered(0..50));
}

#[test]
fn a_batch_is_one_append_and_one_sync() {
    let mut cluster = Cluster::new(2);
    let leader = cluster.elect();
    cluster.run(5);
    let before = cluster.platters[&leader].syncs();
    let commands = numbered(0..200).into_iter().map(String::into_bytes);
    let engine = cluster.engines.get_mut(&leader).unwrap();
    engine.propose((1000..).zip(commands));
    let mut sent = Sent::default();
    engine.turn(&mut sent).unwrap();
    assert_eq!(sent.messages.len(), 2, "one message for each follower");
    assert_eq!(cluster.platters[&leader].syncs(), before + 1);
}

#[test]
fn a_follower_refuses_and_names_the_leader() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let follower = MEMBERS.into_iter().find(|id| *id != leader).unwrap();
    let token = cluster.propose(follower, "no");
    let read = cluster.read(follower);
    assert_eq!(
        cluster.proposals[&token],
        Err(ProposeError::NotLeader {
            leader: Some(leader)
        })
    );
    assert_eq!(
        cluster.reads[&read],
        Err(ReadError::NotLeader {
            leader: Some(leader)
        })
    );
}

#[test]
fn commands_survive_a_lossy_network() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(100 + seed);
        cluster.loss_percent = 20;
        let mut acknowledged = Vec::new();
        let mut sent = 0;
        while acknowledged.len() < 30 {
            let Some(leader) = cluster.leader() else {
                cluster.tick();
                continue;
            };
            let command = format!("command {sent}");
            sent += 1;
            let token = cluster.propose(leader, &command);
            cluster.deliver();
            for _ in 0..60 {
                if cluster.proposals.contains_key(&token) {
                    break;
                }
                cluster.tick();
            }
            if cluster.proposals.get(&token).is_some_and(Result::is_ok) {
                acknowledged.push(command);
            }
        }
        cluster.loss_percent = 0;
        cluster.elect();
        cluster.run(30);
        let journals: Vec<Vec<String>> = MEMBERS.iter().map(|id| cluster.texts(*id)).collect();
        assert!(
            journals.windows(2).all(|pair| pair[0] == pair[1]),
            "seed {seed}"
        );
        for command in &acknowledged {
            let times = journals[0].iter().filter(|known| *known == command).count();
            assert_eq!(times, 1, "seed {seed}: {command}");
        }
    }
}

#[test]
fn acknowledged_commands_survive_power_cuts_with_lost_and_torn_tails() {
    let mut unsynced = 0;
    for seed in 0..30 {
        let policy = SnapshotPolicy {
            after_log_bytes: 4_000,
            retain_log_bytes: 1_000,
        };
        let mut cluster = Cluster::with_policy(seed, policy);
        let mut acknowledged = Vec::new();
        for round in 0..12 {
            let leader = cluster.elect();
            let victim = MEMBERS[cluster.random.usize(..3)];
            let fails_at = cluster.random.usize(..10);
            let mut tokens = Vec::new();
            for number in 0..10 {
                if number == fails_at {
                    cluster.fail_syncs(victim);
                }
                if !cluster.engines.contains_key(&leader) {
                    break;
                }
                let command = format!("round {round} number {number} {}", "x".repeat(50));
                tokens.push((cluster.propose(leader, &command), command));
                if cluster.random.bool() {
                    cluster.deliver();
                }
            }
            cluster.deliver();
            unsynced += cluster.platters[&victim].unsynced();
            let keep = cluster.random.usize(..4);
            let torn = cluster.random.bool();
            cluster.kill(victim, keep, torn);
            cluster.run(40);
            for (token, command) in tokens {
                if matches!(cluster.proposals.get(&token), Some(Ok(_))) {
                    acknowledged.push(command);
                }
            }
            cluster.start(victim);
        }
        cluster.elect();
        cluster.run_until("all the same", |cluster| {
            let first = cluster.texts(1);
            MEMBERS.iter().all(|id| cluster.texts(*id) == first)
        });
        let journal = cluster.texts(1);
        for command in &acknowledged {
            let times = journal.iter().filter(|known| *known == command).count();
            assert_eq!(times, 1, "seed {seed}: {command}");
        }
        assert!(!acknowledged.is_empty());
    }
    assert!(unsynced > 100, "the cuts must hit unsynced writes");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut cluster = Cluster::new(seed);
        cluster.loss_percent = 10;
        cluster.run(200);
        let leader = cluster.elect();
        cluster.propose(leader, "x");
        cluster.run(100);
        MEMBERS.map(|id| {
            let node = cluster.engine(id).node();
            (
                node.term(),
                node.leader(),
                node.committed_index(),
                node.role(),
            )
        })
    };
    assert_eq!(run(7), run(7));
}

#[test]
fn losing_leadership_makes_proposals_uncertain() {
    let mut cluster = Cluster::new(4);
    let leader = cluster.elect();
    cluster.set_cut(leader, true);
    let token = cluster.propose(leader, "lost?");
    let read = cluster.read(leader);
    cluster.deliver();
    assert!(!cluster.proposals.contains_key(&token));
    cluster.run(60);
    assert_ne!(
        cluster.engine(leader).node().role(),
        Role::Leader,
        "check_quorum"
    );
    assert_eq!(cluster.proposals[&token], Err(ProposeError::Uncertain));
    assert_eq!(
        cluster.reads[&read],
        Err(ReadError::NotLeader { leader: None })
    );
    let second = cluster.elect();
    assert_ne!(second, leader);
    cluster.propose(second, "kept");
    cluster.deliver();
    cluster.set_cut(leader, false);
    cluster.assert_all(&["kept".to_owned()]);
}

#[test]
fn a_member_that_was_cut_off_does_not_disturb_the_leader() {
    let mut cluster = Cluster::new(5);
    let leader = cluster.elect();
    let term = cluster.engine(leader).node().term();
    let away = MEMBERS.into_iter().find(|id| *id != leader).unwrap();
    cluster.set_cut(away, true);
    cluster.run(200);
    cluster.set_cut(away, false);
    cluster.run(50);
    assert_eq!(cluster.leader(), Some(leader), "pre_vote");
    assert_eq!(cluster.engine(leader).node().term(), term);
}

#[test]
fn a_read_needs_a_majority_and_sees_everything_committed_before() {
    let mut cluster = Cluster::new(6);
    let leader = cluster.elect();
    let write = cluster.propose(leader, "seen");
    let read = cluster.read(leader);
    let second = cluster.read(leader);
    assert!(
        !cluster.reads.contains_key(&read),
        "nobody has confirmed yet"
    );
    cluster.deliver();
    assert!(cluster.proposals[&write].is_ok());
    let index = cluster.reads[&read].clone().unwrap();
    assert!(cluster.reads[&second].is_ok());
    assert!(cluster.engine(leader).node().applied_index() >= index);

    for id in MEMBERS.into_iter().filter(|id| *id != leader) {
        cluster.set_cut(id, true);
    }
    let read = cluster.read(leader);
    cluster.run(45);
    assert!(cluster.reads[&read].is_err(), "no majority, no read");
}

#[test]
fn a_member_that_missed_a_snapshot_catches_up() {
    let policy = SnapshotPolicy {
        after_log_bytes: 3_000,
        retain_log_bytes: 500,
    };
    let mut cluster = Cluster::with_policy(8, policy);
    let leader = cluster.elect();
    let away = MEMBERS.into_iter().find(|id| *id != leader).unwrap();
    cluster.kill(away, 0, false);
    for command in numbered(0..300) {
        cluster.propose(leader, &command);
        cluster.deliver();
    }
    cluster.run(20);
    let node = cluster.engine(leader).node();
    assert!(node.first_index() > 100, "the log was compacted");
    assert!(node.snapshot_index() >= node.first_index());
    cluster.start(away);
    cluster.assert_all(&numbered(0..300));
    assert!(cluster.snapshots_sent > 0);

    // And what was restored survives a restart of that member.
    cluster.kill(away, 0, false);
    cluster.start(away);
    cluster.assert_all(&numbered(0..300));
}

#[test]
fn restart_applies_snapshot_and_log_once() {
    let policy = SnapshotPolicy {
        after_log_bytes: 2_000,
        retain_log_bytes: 1_000,
    };
    let mut cluster = Cluster::with_policy(9, policy);
    let leader = cluster.elect();
    for command in numbered(0..150) {
        cluster.propose(leader, &command);
        cluster.deliver();
    }
    cluster.run(20);
    for id in MEMBERS {
        cluster.kill(id, 0, false);
    }
    for id in MEMBERS {
        cluster.start(id);
        let node = cluster.engine(id).node();
        assert_eq!(node.applied_index(), node.snapshot_index());
    }
    cluster.elect();
    cluster.assert_all(&numbered(0..150));
}

#[test]
fn leadership_can_be_handed_over() {
    let mut cluster = Cluster::new(10);
    let leader = cluster.elect();
    cluster.run(5);
    let to = MEMBERS.into_iter().find(|id| *id != leader).unwrap();
    let chosen = cluster
        .engines
        .get_mut(&leader)
        .unwrap()
        .transfer(Some(to))
        .unwrap();
    assert_eq!(chosen, to);
    let refused = cluster.propose(leader, "too late");
    assert_eq!(
        cluster.proposals[&refused],
        Err(ProposeError::NotLeader { leader: Some(to) })
    );
    cluster.deliver();
    cluster.run(1);
    assert_eq!(
        cluster.leader(),
        Some(to),
        "at once, without an election timeout"
    );
}

#[test]
fn a_failed_disk_ends_the_member_before_anything_is_acknowledged() {
    let mut cluster = Cluster::new(11);
    let leader = cluster.elect();
    let follower = MEMBERS.into_iter().find(|id| *id != leader).unwrap();
    cluster.propose(leader, "first");
    cluster.deliver();
    for (fault, full) in [("failing", false), ("full", true)] {
        let platter = cluster.platters[&follower].clone();
        platter.set_full(full);
        platter.set_failing(!full);
        let mut sent = Sent::default();
        let engine = cluster.engines.get_mut(&leader).unwrap();
        engine.propose([(9_000, b"second".to_vec())]);
        engine.turn(&mut sent).unwrap();
        let (_, append) = sent
            .messages
            .into_iter()
            .find(|(to, _)| *to == follower)
            .unwrap();
        let engine = cluster.engines.get_mut(&follower).unwrap();
        engine.step(leader, &append).unwrap();
        let mut sent = Sent::default();
        let error = engine.turn(&mut sent).unwrap_err();
        assert!(
            sent.messages.is_empty(),
            "{fault}: nothing may be acknowledged"
        );
        match (full, &error) {
            (true, FatalError::Store(StoreError::Full { .. }))
            | (false, FatalError::Store(StoreError::Io { .. })) => {}
            other => panic!("{fault}: {other:?}"),
        }
        cluster.kill(follower, 0, false);
        cluster.start(follower);
        cluster.run(30);
    }
}

#[test]
fn a_member_that_forgot_what_it_acknowledged_stops() {
    let mut cluster = Cluster::new(12);
    let leader = cluster.elect();
    for command in numbered(0..5) {
        cluster.propose(leader, &command);
    }
    cluster.run(5);
    let follower = MEMBERS.into_iter().find(|id| *id != leader).unwrap();
    // Its disk is swapped for an empty one behind its back, and the leader has not noticed a restart.
    cluster.engines.remove(&follower);
    cluster
        .platters
        .insert(follower, trainyard_replication::store::Platter::new());
    cluster.start(follower);
    let mut fatal = None;
    for _ in 0..10 {
        let mut sent = Sent::default();
        let engine = cluster.engines.get_mut(&leader).unwrap();
        engine.tick();
        engine.turn(&mut sent).unwrap();
        for (to, message) in sent.messages {
            if to == follower {
                let engine = cluster.engines.get_mut(&follower).unwrap();
                if let Err(error) = engine.step(leader, &message) {
                    fatal = Some(error);
                }
            }
        }
    }
    let text = format!("{fatal:?}");
    assert!(text.contains("LostEntries"), "{text}");
}

#[test]
fn garbage_from_a_peer_is_refused() {
    let mut cluster = Cluster::new(13);
    let leader = cluster.elect();
    let engine = cluster.engines.get_mut(&leader).unwrap();
    for bytes in [
        &b""[..],
        b"\xff\xff",
        b"\x08\x00",
        &[0x08, 0x03, 0x10, 1, 0x18, 2],
    ] {
        assert!(engine.step(2, bytes).is_err());
        assert!(engine.step(9, bytes).is_err());
        assert!(engine.step_snapshot(2, bytes, bytes::Bytes::new()).is_err());
    }
}
