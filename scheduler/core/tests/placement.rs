//! Scenarios of placement: pool and clusters, gangs, priority, packing, explanations.

mod world;

use AttemptNodePhase::Cleaned;
use trainyard_core::placement;
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::blocker::Reason;
use trainyard_proto::v1::*;
use world::{C, World, job};

fn finish(w: &mut World, node: &str, id: &str) {
    w.exit(node, id, 0);
    w.report(node, id, Cleaned);
}

#[test]
fn a_cluster_takes_nodes_from_the_pool_up_to_its_target() {
    let mut w = World::new(2, 4);
    for n in ["n3", "n4"] {
        w.hello(n, 4, "boot-1", vec![]);
    }
    w.cluster("workspaces/w/clusters/d", 1).unwrap();
    w.plan();
    let cluster = |w: &World, name: &str| w.state.cluster(name).unwrap();
    assert_eq!(cluster(&w, C).nodes, ["nodes/n1", "nodes/n2"]);
    let d = cluster(&w, "workspaces/w/clusters/d");
    assert_eq!(
        (d.nodes, d.allocation_state),
        (vec!["nodes/n3".to_owned()], AllocationState::Steady as i32)
    );
    assert_eq!(
        w.state.node("nodes/n4").unwrap().cluster,
        "",
        "stays in the pool"
    );
    w.delete("workspaces/w/clusters/d").unwrap();
    assert_eq!(w.state.node("nodes/n3").unwrap().cluster, "");
}

#[test]
fn a_cluster_takes_only_nodes_of_its_class() {
    let mut w = World::new(0, 0);
    w.hello("n1", 0, "b", vec![]);
    w.hello("n2", 8, "b", vec![]);
    w.ok(Kind::CreateCluster(store::CreateCluster {
        cluster: Some(Cluster {
            name: "workspaces/w/clusters/big".into(),
            vm_size: "GPU8".into(),
            scale_settings: Some(ScaleSettings {
                manual: Some(ManualScaleSettings {
                    target_node_count: 2,
                    ..Default::default()
                }),
                auto_scale: None,
            }),
            ..Default::default()
        }),
        request_id: String::new(),
    }));
    w.plan();
    let cluster = w.state.cluster("workspaces/w/clusters/big").unwrap();
    assert_eq!(cluster.nodes, ["nodes/n2"]);
    assert_eq!(cluster.allocation_state(), AllocationState::Resizing);
}

#[test]
fn a_gang_gets_all_its_nodes_or_none_and_holds_the_queue() {
    let mut w = World::new(3, 0);
    w.submit("a", 2);
    w.submit("b", 2);
    w.submit("c", 1);
    w.plan();
    assert_eq!(w.nodes_of("a"), ["n1", "n2"]);
    assert_eq!(w.execution("b"), ExecutionState::Queued);
    assert_eq!(
        w.execution("c"),
        ExecutionState::Queued,
        "first in, first out: c does not pass b"
    );
    let b = w.explain("b");
    assert_eq!((b.queue_position, b.queue_length), (1, 2));
    let Some(Reason::NotEnoughNodes(why)) = &b.blockers[0].reason else {
        panic!("{b:?}")
    };
    assert_eq!(
        (why.wanted, why.free, why.busy, why.unusable, why.missing),
        (2, 1, 2, 0, 0)
    );
    let c = w.explain("c");
    let Some(Reason::BehindOthers(why)) = &c.blockers[0].reason else {
        panic!("{c:?}")
    };
    assert_eq!((why.jobs, why.first.as_str()), (1, job("b").as_str()));

    finish(&mut w, "n1", "a");
    finish(&mut w, "n2", "a");
    w.plan();
    assert_eq!(w.execution("b"), ExecutionState::Running);
    assert_eq!(w.execution("c"), ExecutionState::Running);
}

#[test]
fn a_higher_priority_goes_first_and_age_decides_among_equals() {
    let mut w = World::new(1, 0);
    w.submit("running", 1);
    w.plan();
    w.submit_priority("low", 1, SchedulingPriority::Low);
    w.submit_priority("old", 1, SchedulingPriority::Normal);
    w.submit_priority("new", 1, SchedulingPriority::Unspecified);
    w.submit_priority("high", 1, SchedulingPriority::High);
    let mut last = "running".to_owned();
    for expected in ["high", "old", "new", "low"] {
        finish(&mut w, "n1", &last);
        w.plan();
        assert_eq!(w.execution(expected), ExecutionState::Running, "{expected}");
        last = expected.to_owned();
    }
}

#[test]
fn a_job_larger_than_its_cluster_waits_says_so_and_blocks_nobody() {
    let mut w = World::new(2, 4);
    w.submit("huge", 5);
    w.submit("small", 1);
    w.plan();
    assert_eq!(w.execution("small"), ExecutionState::Running);
    let huge = w.explain("huge");
    let Some(Reason::LargerThanCluster(why)) = &huge.blockers[0].reason else {
        panic!("{huge:?}")
    };
    assert_eq!((why.wanted, why.target), (5, 2));
    assert!(
        huge.summary.contains("raise the target of cluster c to 5"),
        "{}",
        huge.summary
    );
    w.submit_gpus("wide", 1, 9);
    let wide = w.explain("wide");
    let Some(Reason::LargerThanNode(why)) = &wide.blockers[0].reason else {
        panic!("{wide:?}")
    };
    assert_eq!((why.wanted, why.largest), (9, 4));
}

#[test]
fn parts_of_nodes_are_packed_so_that_whole_nodes_stay_whole() {
    let mut w = World::new(2, 4);
    w.submit_gpus("a", 1, 2);
    w.plan();
    w.submit_gpus("b", 1, 2);
    w.plan();
    assert_eq!(
        w.nodes_of("a"),
        w.nodes_of("b"),
        "the second half of the same node"
    );
    assert_eq!(w.attempt("a").nodes[0].gpus, [0, 1]);
    assert_eq!(w.attempt("b").nodes[0].gpus, [2, 3]);
    w.submit("whole", 1);
    w.plan();
    assert_eq!(w.nodes_of("whole"), ["n2"]);
    w.submit_gpus("c", 1, 1);
    w.plan();
    assert_eq!(
        w.execution("c"),
        ExecutionState::Queued,
        "a whole node is not shared"
    );
}

#[test]
fn an_unresponsive_or_lost_node_gets_nothing_new() {
    let mut w = World::new(2, 0);
    w.unresponsive.insert("nodes/n1".into());
    w.submit("a", 1);
    w.plan();
    assert_eq!(w.nodes_of("a"), ["n2"]);
    w.submit("b", 1);
    w.plan();
    let why = w.explain("b");
    let Some(Reason::NotEnoughNodes(counts)) = &why.blockers[0].reason else {
        panic!("{why:?}")
    };
    assert_eq!((counts.busy, counts.unusable), (1, 1));
    w.unresponsive.clear();
    w.lose("n1");
    w.plan();
    assert_eq!(w.execution("b"), ExecutionState::Queued);
    assert_eq!(
        w.state
            .cluster(C)
            .unwrap()
            .node_state_counts
            .unwrap()
            .unusable_node_count,
        1
    );
}

#[test]
fn a_stale_plan_never_books_twice() {
    let mut w = World::new(2, 4);
    w.submit("a", 2);
    let stale = placement::plan(&w.state, &w.unresponsive, &w.time());
    w.plan();
    w.submit_gpus("b", 1, 1);
    let mut forged = stale.clone();
    forged.starts[0].job = job("b");
    forged.starts[0].uid = w.job("b").uid.clone();
    let mut overlapping = forged.clone();
    overlapping.starts[0].nodes.truncate(1);
    overlapping.starts[0].nodes[0].gpus = vec![0];
    overlapping.starts[0].nodes[0].whole_node = false;
    for plan in [stale, forged, overlapping] {
        let before = w.attempt("a");
        w.ok(Kind::ApplyPlan(plan));
        assert_eq!(w.attempt("a"), before);
        assert_eq!(w.execution("b"), ExecutionState::Queued);
        w.check();
    }
}

#[test]
fn an_empty_cluster_says_what_is_missing() {
    let mut w = World::new(0, 0);
    w.cluster("workspaces/w/clusters/d", 2).unwrap();
    let spec = JobSpec {
        cluster: Some(ResourceId { id: "d".into() }),
        ..world::spec(1)
    };
    w.try_job("j", spec, "").unwrap();
    w.plan();
    let why = w.explain("j");
    assert!(
        why.summary.contains("connect 2 more nodes"),
        "{}",
        why.summary
    );
}

#[test]
fn a_long_queue_behind_a_blocked_head_gives_an_empty_plan() {
    let mut w = World::new(1, 0);
    w.submit("running", 1);
    w.plan();
    for i in 0..2_000 {
        w.submit(&format!("j{i}"), 1);
    }
    let plan = placement::plan(&w.state, &w.unresponsive, &w.time());
    assert!(plan.starts.is_empty());
    assert_eq!(w.explain("j1999").queue_position, 2_000);
}
