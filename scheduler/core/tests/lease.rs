//! Scenarios of leases: who is unresponsive, who is lost, and what a change of leader does.

mod world;

use trainyard_core::lease::LeaseTable;
use trainyard_proto::store::v1::{SetPower, command::Kind};
use trainyard_proto::v1::{NodeState, PowerState};
use world::World;

const LEASE: u64 = 20_000;
const FENCE: u64 = 10_000;

fn lost(table: &LeaseTable, w: &World, now: u64) -> Vec<String> {
    table
        .lost(&w.state, now)
        .into_iter()
        .map(|l| l.node)
        .collect()
}

#[test]
fn a_node_is_lost_only_after_the_fencing_time() {
    let w = World::new(1, 0);
    let epoch = w.state.node("nodes/n1").unwrap().session_epoch;
    let mut table = LeaseTable::new(LEASE, FENCE, 0);
    table.renew("nodes/n1", epoch, 5_000);
    assert!(table.unresponsive(&w.state, 24_999).is_empty());
    assert_eq!(table.unresponsive(&w.state, 25_000).len(), 1, "no new work");
    assert_eq!(
        lost(&table, &w, 34_999),
        Vec::<String>::new(),
        "its tasks may still run"
    );
    assert_eq!(table.next_check(&w.state, 6_000), Some(35_000));
    assert_eq!(lost(&table, &w, 35_000), ["nodes/n1"]);
}

#[test]
fn a_new_leader_extends_every_lease_by_one_period() {
    let w = World::new(2, 0);
    let table = LeaseTable::new(LEASE, FENCE, 100_000);
    assert_eq!(lost(&table, &w, 129_999), Vec::<String>::new());
    assert_eq!(lost(&table, &w, 130_000), ["nodes/n1", "nodes/n2"]);
    assert_eq!(
        table.unresponsive(&w.state, 100_000).len(),
        2,
        "until they have connected"
    );
}

#[test]
fn a_closed_session_stops_new_work_but_keeps_the_lease() {
    let w = World::new(1, 0);
    let epoch = w.state.node("nodes/n1").unwrap().session_epoch;
    let mut table = LeaseTable::new(LEASE, FENCE, 0);
    table.renew("nodes/n1", epoch, 1_000);
    table.forget("nodes/n1", epoch - 1);
    assert!(
        table.unresponsive(&w.state, 1_000).is_empty(),
        "an older session has no say"
    );
    table.forget("nodes/n1", epoch);
    assert_eq!(table.unresponsive(&w.state, 1_000).len(), 1);
    assert!(lost(&table, &w, 30_999).is_empty());
    table.renew("nodes/n1", epoch - 1, 30_000);
    assert_eq!(
        lost(&table, &w, 31_000),
        ["nodes/n1"],
        "a heartbeat of an older session does not count"
    );
}

#[test]
fn a_lost_node_is_not_lost_again() {
    let mut w = World::new(1, 0);
    let table = LeaseTable::new(LEASE, FENCE, 0);
    w.lose("n1");
    assert!(lost(&table, &w, u64::MAX).is_empty());
    assert_eq!(table.next_check(&w.state, 0), None);
}

#[test]
fn a_node_that_says_hello_late_in_a_term_is_not_lost_before_its_session_begins() {
    let mut w = World::new(1, 0);
    let mut table = LeaseTable::new(LEASE, FENCE, 0);
    w.lose("n1");
    table.greet("nodes/n1", 500_000);
    w.hello("n1", 0, "boot-1", vec![]);
    assert!(lost(&table, &w, 500_001).is_empty());
    assert_eq!(
        table.unresponsive(&w.state, 500_001).len(),
        1,
        "no work before its session has begun"
    );
    assert_eq!(lost(&table, &w, 530_000), ["nodes/n1"]);
}

#[test]
fn a_host_that_did_not_come_up_keeps_its_reason() {
    let mut w = World::new(1, 0);
    let table = LeaseTable::new(LEASE, FENCE, 0);
    w.lose("n1");
    let from = w.state.node("nodes/n1").unwrap().power_state;
    w.ok(Kind::SetPower(SetPower {
        node: "nodes/n1".into(),
        state: PowerState::Failed.into(),
        from,
        reason: "it did not connect".into(),
    }));
    let node = w.state.node("nodes/n1").unwrap();
    assert_eq!(node.state(), NodeState::Unusable);
    assert!(lost(&table, &w, u64::MAX).is_empty());
    assert_eq!(table.next_check(&w.state, 0), None);
}
