//! Scenarios of clusters that grow and shrink: the three deallocation options, auto-scale, preemption of low priority.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod world;

use trainyard_core::{Refusal, Reply, placement};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::AttemptNodePhase::{Cleaned, Running};
use trainyard_proto::v1::blocker::Reason;
use trainyard_proto::v1::*;
use world::{C, World, status};

fn manual(target: u32, option: NodeDeallocationOption) -> ScaleSettings {
    ScaleSettings {
        manual: Some(ManualScaleSettings {
            target_node_count: target,
            node_deallocation_option: option.into(),
        }),
        auto_scale: None,
    }
}

fn auto(minimum: u32, maximum: u32, initial: u32, idle_s: i64) -> ScaleSettings {
    ScaleSettings {
        manual: None,
        auto_scale: Some(AutoScaleSettings {
            minimum_node_count: minimum,
            maximum_node_count: maximum,
            initial_node_count: initial,
            node_idle_time_before_scale_down: Some(prost_types::Duration {
                seconds: idle_s,
                nanos: 0,
            }),
        }),
    }
}

fn update(w: &mut World, settings: ScaleSettings) -> Result<Reply, Refusal> {
    w.apply(Kind::UpdateCluster(store::UpdateCluster {
        cluster: Some(Cluster {
            name: C.into(),
            scale_settings: Some(settings),
            ..Cluster::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["scale_settings".into()],
        }),
    }))
    .reply
}

fn create(w: &mut World, id: &str, settings: ScaleSettings, priority: VmPriority) -> String {
    let name = format!("workspaces/w/clusters/{id}");
    w.ok(Kind::CreateCluster(store::CreateCluster {
        cluster: Some(Cluster {
            name: name.clone(),
            uid: format!("uid-{id}"),
            scale_settings: Some(settings),
            vm_priority: priority.into(),
            ..Cluster::default()
        }),
        request_id: String::new(),
    }));
    name
}

/// A world whose cluster `c` has these settings, with so many nodes in the pool.
fn with_pool(settings: ScaleSettings, nodes: u32) -> World {
    let mut w = World::new(0, 0);
    w.delete(C).unwrap();
    create(&mut w, "c", settings, VmPriority::Dedicated);
    for i in 1..=nodes {
        w.hello(&format!("n{i}"), 2, "boot-1", vec![]);
    }
    w.plan();
    w
}

fn cluster(w: &World) -> Cluster {
    w.state.cluster(C).unwrap()
}

fn counts(w: &World) -> (u32, u32, u32, u32, u32) {
    let c = cluster(w).node_state_counts.unwrap();
    (
        c.idle_node_count,
        c.running_node_count,
        c.preparing_node_count,
        c.unusable_node_count,
        c.leaving_node_count,
    )
}

fn held(w: &World) -> usize {
    cluster(w).nodes.len()
}

fn finish(w: &mut World, node: &str, id: &str) {
    w.exit(node, id, 0);
    w.report(node, id, Cleaned);
}

#[test]
fn a_shrink_takes_unusable_nodes_first_then_those_that_are_idle_longest() {
    let mut w = World::new(4, 0);
    w.submit("j", 1);
    w.plan();
    assert_eq!(w.nodes_of("j"), ["n1"]);
    w.lose("n3");
    update(&mut w, manual(2, NodeDeallocationOption::Requeue)).unwrap();
    w.plan();
    assert_eq!(
        cluster(&w).nodes,
        ["nodes/n1", "nodes/n4"],
        "n3 is lost, n2 has been idle since before n4"
    );
    assert_eq!(w.execution("j"), ExecutionState::Running, "untouched");
    assert_eq!(cluster(&w).allocation_state(), AllocationState::Steady);
    assert_eq!(w.state.node("nodes/n2").unwrap().cluster, "");
}

#[test]
fn requeue_kills_the_jobs_and_queues_them_again() {
    let mut w = World::new(2, 0);
    w.submit("j", 2);
    w.plan();
    update(&mut w, manual(1, NodeDeallocationOption::Requeue)).unwrap();
    w.plan();
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Stop));
    assert_eq!(counts(&w), (0, 1, 0, 0, 1));
    assert_eq!(cluster(&w).allocation_state(), AllocationState::Resizing);
    assert!(!cluster(&w).allocation_reason.is_empty());
    for node in ["n1", "n2"] {
        w.report(node, "j", Cleaned);
    }
    assert_eq!(w.execution("j"), ExecutionState::Queued);
    let attempt = w.attempt("j");
    assert_eq!(attempt.outcome(), AttemptOutcome::Preempted);
    assert_eq!(attempt.errors[0].code, "NodeRemoved");
    assert_eq!(w.job("j").retry_count, 0, "not a failure");
    assert_eq!(held(&w), 1);
    update(&mut w, manual(2, NodeDeallocationOption::Requeue)).unwrap();
    w.plan();
    assert_eq!(w.attempt("j").number, 2, "it runs again when there is room");
}

#[test]
fn terminate_kills_the_jobs_for_good() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    update(&mut w, manual(0, NodeDeallocationOption::Terminate)).unwrap();
    w.plan();
    w.report("n1", "j", Cleaned);
    assert_eq!(w.execution("j"), ExecutionState::Failed);
    let info = w.job("j").execution_info.unwrap();
    assert_eq!(info.errors[0].code, "ClusterShrunk");
    assert_eq!(held(&w), 0);
}

#[test]
fn wait_for_job_completion_lets_jobs_end_and_starts_nothing_new() {
    let mut w = World::new(1, 0);
    w.submit("first", 1);
    w.submit("second", 1);
    w.plan();
    let wait = NodeDeallocationOption::Waitforjobcompletion;
    update(&mut w, manual(0, wait)).unwrap();
    w.plan();
    assert_eq!(w.desired_phase("n1", "first"), Some(AttemptPhase::Run));
    assert_eq!(held(&w), 1);
    finish(&mut w, "n1", "first");
    w.plan();
    assert_eq!(w.execution("first"), ExecutionState::Succeeded);
    assert_eq!(w.execution("second"), ExecutionState::Queued);
    assert_eq!(held(&w), 0);
}

#[test]
fn only_scale_settings_of_a_cluster_change() {
    let mut w = World::new(1, 0);
    let refused = w
        .apply(Kind::UpdateCluster(store::UpdateCluster {
            cluster: Some(Cluster {
                name: C.into(),
                ..Cluster::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["vm_size".into()],
            }),
        }))
        .reply
        .unwrap_err();
    assert!(refused.message.contains("vm_size"), "{refused}");
}

#[test]
fn auto_scale_begins_with_its_initial_count_and_then_follows_the_jobs() {
    let mut w = with_pool(auto(0, 4, 1, 60), 5);
    assert_eq!(held(&w), 1, "initial");
    w.now += 3600;
    w.plan();
    assert_eq!(held(&w), 1, "until the first job comes");
    w.submit("j", 3);
    w.plan();
    assert_eq!((held(&w), w.nodes_of("j").len()), (3, 3), "up at once");
    w.submit("k", 2);
    w.plan();
    assert_eq!(
        held(&w),
        3,
        "the gang of two would exceed the maximum of four"
    );
    w.submit("l", 1);
    w.plan();
    assert_eq!(held(&w), 4, "but the job of one does not");
    assert_eq!(w.execution("l"), ExecutionState::Queued, "k is before it");
}

#[test]
fn auto_scale_lets_nodes_go_only_after_the_idle_delay() {
    let mut w = with_pool(auto(1, 3, 0, 60), 3);
    w.submit("j", 3);
    w.plan();
    for node in ["n1", "n2", "n3"] {
        w.exit(node, "j", 0);
    }
    for node in ["n1", "n2", "n3"] {
        w.report(node, "j", Cleaned);
    }
    w.plan();
    assert_eq!(held(&w), 3, "idle, but not for long");
    let next = placement::next_change(&w.state, &w.time()).expect("a node will have rested");
    assert!(next.seconds > w.now && next.seconds <= w.now + 60);
    w.now += 61;
    w.plan();
    assert_eq!(held(&w), 1, "down to the minimum");
    assert_eq!(cluster(&w).allocation_state(), AllocationState::Steady);
    assert_eq!(cluster(&w).target_node_count, 1);
}

#[test]
fn auto_scale_packs_parts_of_nodes() {
    let mut w = with_pool(auto(0, 4, 0, 60), 4);
    for i in 0..3 {
        w.submit_gpus(&format!("j{i}"), 1, 1);
    }
    w.plan();
    assert_eq!(held(&w), 2, "three GPUs are two nodes of two");
    for i in 0..3 {
        assert_eq!(w.execution(&format!("j{i}")), ExecutionState::Running);
    }
}

#[test]
fn a_job_beyond_the_maximum_waits_and_says_so_and_no_node_is_taken_for_it() {
    let mut w = with_pool(auto(0, 2, 0, 60), 4);
    w.submit("huge", 3);
    w.submit("small", 1);
    w.plan();
    assert_eq!(held(&w), 1);
    assert_eq!(w.execution("small"), ExecutionState::Running);
    let why = w.explain("huge");
    assert!(matches!(
        why.blockers[0].reason,
        Some(Reason::LargerThanCluster(LargerThanCluster {
            wanted: 3,
            target: 2
        }))
    ));
    assert!(why.summary.contains("maximum"), "{}", why.summary);
}

#[test]
fn settings_switch_between_manual_and_auto_at_any_time() {
    let mut w = World::new(3, 0);
    update(&mut w, auto(1, 3, 0, 10)).unwrap();
    w.plan();
    assert_eq!(held(&w), 3, "they have not been idle for long");
    w.now += 20;
    w.plan();
    assert_eq!(held(&w), 1);
    update(&mut w, manual(2, NodeDeallocationOption::Requeue)).unwrap();
    w.plan();
    assert_eq!(held(&w), 2);
}

#[test]
fn a_dedicated_cluster_takes_nodes_of_a_low_priority_one() {
    let mut w = World::new(0, 0);
    w.delete(C).unwrap();
    create(
        &mut w,
        "c",
        manual(2, NodeDeallocationOption::Requeue),
        VmPriority::Lowpriority,
    );
    for n in ["n1", "n2"] {
        w.hello(n, 0, "b", vec![]);
    }
    w.plan();
    w.submit("j", 2);
    w.plan();
    for node in ["n1", "n2"] {
        w.report_status(node, "j", status(Running));
    }
    let d = create(
        &mut w,
        "d",
        manual(1, NodeDeallocationOption::Requeue),
        VmPriority::Dedicated,
    );
    w.plan();
    assert_eq!(w.attempt("j").errors[0].code, "ClusterPreempted");
    for node in ["n1", "n2"] {
        w.report(node, "j", Cleaned);
    }
    w.plan();
    assert_eq!(w.state.cluster(&d).unwrap().nodes.len(), 1);
    assert_eq!(held(&w), 1, "and never takes it back");
    assert_eq!(w.execution("j"), ExecutionState::Queued);
    w.now += 1000;
    w.plan();
    assert_eq!(held(&w), 1);
}

#[test]
fn a_low_priority_cluster_takes_from_the_pool_after_dedicated_ones() {
    let mut w = World::new(0, 0);
    let low = create(
        &mut w,
        "a-low",
        manual(1, NodeDeallocationOption::Requeue),
        VmPriority::Lowpriority,
    );
    let high = create(
        &mut w,
        "b-high",
        manual(1, NodeDeallocationOption::Requeue),
        VmPriority::Dedicated,
    );
    w.hello("n1", 0, "b", vec![]);
    w.plan();
    assert_eq!(w.state.cluster(&high).unwrap().nodes, ["nodes/n1"]);
    let low = w.state.cluster(&low).unwrap();
    assert!(low.nodes.is_empty());
    assert!(
        low.allocation_reason.contains("0 of 1 nodes"),
        "{}",
        low.allocation_reason
    );
}
