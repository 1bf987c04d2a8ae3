//! Scenarios of the power hook: what it is told to do and when, what of its word counts, and what survives a restart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod world;

use prost_types::Timestamp;
use trainyard_core::lease::LeaseTable;
use trainyard_core::power::{self, PowerAction, PowerPolicy};
use trainyard_core::{Reply, State};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{C, W, World};

const POLICY: PowerPolicy = PowerPolicy {
    wake_deadline_ms: 60_000,
    off_after_idle_ms: Some(300_000),
};

fn node(w: &World, id: &str) -> Node {
    w.state.node(&format!("nodes/{id}")).unwrap()
}

/// The hook's word. Whether it counted.
fn set(w: &mut World, id: &str, from: PowerState, to: PowerState) -> bool {
    let reply = w.ok(Kind::SetPower(store::SetPower {
        node: format!("nodes/{id}"),
        state: to.into(),
        from: from.into(),
        reason: "the command ended with 1".into(),
    }));
    w.check();
    matches!(reply.0, Reply::Node(_))
}

fn orders(w: &World) -> Vec<(String, PowerAction)> {
    power::orders(&w.state, &POLICY, &w.time())
        .into_iter()
        .map(|o| (o.node.trim_start_matches("nodes/").to_owned(), o.action))
        .collect()
}

/// An empty cluster `c`, and so many nodes that were switched off.
fn switched_off(nodes: u32) -> World {
    let mut w = World::new(0, 0);
    for i in 1..=nodes {
        let id = format!("n{i}");
        w.hello(&id, 0, "b", vec![]);
        assert!(set(&mut w, &id, PowerState::On, PowerState::Stopping));
        w.lose(&id);
        assert_eq!(node(&w, &id).power_state(), PowerState::Off);
    }
    w
}

#[test]
fn only_as_many_hosts_are_switched_on_as_are_lacking() {
    let mut w = switched_off(3);
    w.hello("n4", 0, "b", vec![]);
    w.cluster(&format!("{W}/clusters/d"), 3).unwrap();
    w.plan();
    let wake = |id: &str| (id.to_owned(), PowerAction::Wake);
    assert_eq!(orders(&w), [wake("n1"), wake("n2")], "n4 was there");
    assert!(set(&mut w, "n1", PowerState::Off, PowerState::Waking));
    assert_eq!(orders(&w), [wake("n2")], "n1 is on its way");
    w.delete(&format!("{W}/clusters/d")).unwrap();
    assert_eq!(orders(&w), [], "nobody lacks a node any more");
}

#[test]
fn a_host_of_another_class_is_not_switched_on() {
    let mut w = switched_off(1);
    w.ok(Kind::CreateCluster(store::CreateCluster {
        cluster: Some(Cluster {
            name: format!("{W}/clusters/d"),
            vm_size: "gpu8".into(),
            scale_settings: Some(ScaleSettings {
                manual: Some(ManualScaleSettings {
                    target_node_count: 1,
                    ..ManualScaleSettings::default()
                }),
                auto_scale: None,
            }),
            ..Cluster::default()
        }),
        request_id: String::new(),
    }));
    assert_eq!(orders(&w), []);
}

#[test]
fn the_hooks_word_is_passed_over_when_the_node_has_moved_on() {
    let mut w = World::new(1, 0);
    assert!(
        !set(&mut w, "n1", PowerState::On, PowerState::Stopping),
        "a cluster holds it"
    );
    assert!(
        !set(&mut w, "n1", PowerState::On, PowerState::Waking),
        "it is there"
    );
    let mut w = switched_off(1);
    assert!(set(&mut w, "n1", PowerState::Off, PowerState::Waking));
    w.hello("n1", 0, "b2", vec![]);
    assert!(
        !set(&mut w, "n1", PowerState::Waking, PowerState::Failed),
        "it came just in time"
    );
    assert_eq!(node(&w, "n1").state(), NodeState::Ready);
}

#[test]
fn a_host_that_was_given_up_keeps_its_reason_whatever_the_leases_say() {
    let mut w = switched_off(1);
    assert!(set(&mut w, "n1", PowerState::Off, PowerState::Waking));
    assert!(set(&mut w, "n1", PowerState::Waking, PowerState::Failed));
    let table = LeaseTable::new(20_000, 10_000, 0);
    assert_eq!(table.lost(&w.state, 1_000_000), [], "it has no lease");
    assert_eq!(node(&w, "n1").state(), NodeState::Unusable);
    assert_eq!(node(&w, "n1").state_reason, "the command ended with 1");
    w.delete("nodes/n1").expect("it is gone");
}

#[test]
fn a_node_that_could_not_be_switched_off_works_on() {
    let mut w = World::new(0, 0);
    w.hello("n1", 0, "b", vec![]);
    assert!(set(&mut w, "n1", PowerState::On, PowerState::Stopping));
    w.cluster(&format!("{W}/clusters/d"), 1).unwrap();
    w.plan();
    assert_eq!(node(&w, "n1").cluster, "", "it is about to go");
    w.now += 61;
    assert_eq!(orders(&w), [("n1".to_owned(), PowerAction::GiveUp)]);
    assert!(set(&mut w, "n1", PowerState::Stopping, PowerState::Failed));
    assert!(w.delete("nodes/n1").is_err(), "it is connected");
    w.plan();
    assert_eq!(node(&w, "n1").cluster, format!("{W}/clusters/d"));
    w.now += 1_000;
    assert_eq!(orders(&w), [], "it is not tried for ever");
}

#[test]
fn a_node_that_serves_files_is_never_switched_off() {
    let mut w = World::new(0, 0);
    w.ok(Kind::RegisterNode(store::RegisterNode {
        hello: Some(Hello {
            node: "n1".into(),
            inventory: Some(Inventory {
                can_export: true,
                ..Inventory::default()
            }),
            node_class: "cpu".into(),
            boot_id: "b".into(),
            ..Hello::default()
        }),
    }));
    w.now += 1_000;
    assert_eq!(orders(&w), [("n1".to_owned(), PowerAction::Stop)]);
    w.ok(Kind::CreateFileServer(store::CreateFileServer {
        file_server: Some(FileServer {
            name: format!("{W}/fileServers/f"),
            uid: "uid-f".into(),
            kind: Some(file_server::Kind::Managed(ManagedFileServer {
                node: "n1".into(),
                ..ManagedFileServer::default()
            })),
            ..FileServer::default()
        }),
        request_id: String::new(),
    }));
    assert_eq!(orders(&w), []);
    assert!(!set(&mut w, "n1", PowerState::On, PowerState::Stopping));
}

#[test]
fn time_alone_brings_the_next_order_and_says_when() {
    let mut w = World::new(0, 0);
    w.hello("n1", 0, "b", vec![]);
    let since = node(&w, "n1").idle_since.unwrap().seconds;
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let next = |w: &World| power::next_change(&w.state, &POLICY, &w.time());
    assert_eq!(next(&w), at(since + 300));
    w.now = since + 299;
    assert_eq!(orders(&w), []);
    w.now = since + 300;
    assert_eq!(orders(&w), [("n1".to_owned(), PowerAction::Stop)]);
    assert_eq!(next(&w), None, "it is due");
    assert!(set(&mut w, "n1", PowerState::On, PowerState::Stopping));
    assert_eq!(next(&w), at(since + 360), "then it is given up");
    let never = PowerPolicy {
        off_after_idle_ms: None,
        ..POLICY
    };
    w.hello("n1", 0, "b", vec![]);
    assert_eq!(power::next_change(&w.state, &never, &w.time()), None);
}

#[test]
fn a_new_leader_finds_what_is_being_switched() {
    let mut w = switched_off(2);
    w.hello("n3", 0, "b", vec![]);
    assert!(set(&mut w, "n2", PowerState::Off, PowerState::Waking));
    assert!(set(&mut w, "n3", PowerState::On, PowerState::Stopping));
    let restored = State::from_snapshot(&w.state.to_snapshot()).unwrap();
    let tasks: Vec<(String, PowerAction, String)> = power::in_progress(&restored)
        .into_iter()
        .map(|t| (t.node, t.action, t.address))
        .collect();
    let task =
        |id: &str, action, address: &str| (format!("nodes/{id}"), action, address.to_owned());
    assert_eq!(
        tasks,
        [
            task("n2", PowerAction::Wake, "10.0.0.2"),
            task("n3", PowerAction::Stop, "10.0.0.3"),
        ]
    );
    assert!(restored.cluster(C).is_some());
}
