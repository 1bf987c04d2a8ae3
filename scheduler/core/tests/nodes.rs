//! Scenarios of single nodes: which reports of a set-up count, how a node leaves, who may be forgotten or retried, and
//! what becomes of classes when declared ones come and go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod world;

use trainyard_core::Reply;
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::AttemptNodePhase::Cleaned;
use trainyard_proto::v1::*;
use world::{C, W, World};

fn manual(target: u32) -> ScaleSettings {
    ScaleSettings {
        manual: Some(ManualScaleSettings {
            target_node_count: target,
            ..ManualScaleSettings::default()
        }),
        auto_scale: None,
    }
}

fn auto(maximum: u32) -> ScaleSettings {
    ScaleSettings {
        manual: None,
        auto_scale: Some(AutoScaleSettings {
            maximum_node_count: maximum,
            ..AutoScaleSettings::default()
        }),
    }
}

/// A world with a cluster `c` that mounts something on its nodes, and so many nodes.
fn with_setup(settings: ScaleSettings, nodes: u32) -> World {
    let mut w = World::new(0, 0);
    w.delete(C).unwrap();
    w.ok(Kind::CreateCluster(store::CreateCluster {
        cluster: Some(Cluster {
            name: C.into(),
            uid: "uid-c".into(),
            scale_settings: Some(settings),
            node_setup: Some(NodeSetup {
                mount_volumes: Some(MountVolumes {
                    unmanaged_file_systems: vec![UnmanagedFileSystemReference {
                        mount_command: "mount -t tmpfs none".into(),
                        relative_mount_path: "scratch".into(),
                    }],
                    ..MountVolumes::default()
                }),
                ..NodeSetup::default()
            }),
            ..Cluster::default()
        }),
        request_id: String::new(),
    }));
    for i in 1..=nodes {
        w.hello(&format!("n{i}"), 0, "boot-1", vec![]);
    }
    w.plan();
    w
}

fn node(w: &World, id: &str) -> Node {
    w.state.node(&format!("nodes/{id}")).unwrap()
}

fn order(w: &World, id: &str) -> Option<NodeSetupOrder> {
    w.state.desired(&format!("nodes/{id}")).setup
}

fn setup(uid: &str, epoch: u64, phase: NodeSetupPhase) -> ObservedSetup {
    let mut errors = Vec::new();
    if phase == NodeSetupPhase::Failed {
        errors.push(BatchAiError {
            code: "MountError".into(),
            message: "the mount command ended with 32".into(),
            details: Vec::new(),
        });
    }
    ObservedSetup {
        cluster: C.into(),
        cluster_uid: uid.into(),
        status: Some(NodeSetupStatus {
            epoch,
            phase: phase.into(),
            boot_id: "boot-1".into(),
            errors,
            ..NodeSetupStatus::default()
        }),
    }
}

/// The agent reports this set-up and these attempts. Whether the report was worth an entry of the log.
fn report(
    w: &mut World,
    id: &str,
    setup: Option<ObservedSetup>,
    attempts: Vec<ObservedAttempt>,
) -> bool {
    let name = format!("nodes/{id}");
    let session_epoch = node(w, id).session_epoch;
    let observed = Observed {
        sequence: 1,
        attempts: attempts.clone(),
        setup: setup.clone(),
        exports: Vec::new(),
    };
    let differs = w.state.report_differs(&name, session_epoch, &observed);
    let before = node(w, id);
    w.ok(Kind::ReportAttempts(store::ReportAttempts {
        node: name,
        session_epoch,
        attempts,
        setup,
        ..store::ReportAttempts::default()
    }));
    w.check();
    if node(w, id) != before {
        assert!(
            differs,
            "a report that changes the node was not worth an entry"
        );
    }
    differs
}

fn report_phase(w: &mut World, id: &str, phase: NodeSetupPhase) {
    let epoch = order(w, id).expect("ordered").epoch;
    assert!(report(w, id, Some(setup("uid-c", epoch, phase)), vec![]));
}

#[test]
fn only_word_of_the_present_order_counts() {
    let mut w = with_setup(manual(1), 1);
    report_phase(&mut w, "n1", NodeSetupPhase::Failed);
    let first = order(&w, "n1").unwrap().epoch;
    w.ok(Kind::RetryNode(store::RetryNode {
        name: "nodes/n1".into(),
    }));
    let second = order(&w, "n1").unwrap().epoch;
    assert!(second > first);
    let old = setup("uid-c", first, NodeSetupPhase::Ready);
    assert!(!report(&mut w, "n1", Some(old), vec![]), "an older order");
    let other = setup("uid-d", second, NodeSetupPhase::Ready);
    assert!(
        !report(&mut w, "n1", Some(other), vec![]),
        "another cluster"
    );
    assert_eq!(node(&w, "n1").state(), NodeState::Preparing);
    report_phase(&mut w, "n1", NodeSetupPhase::Ready);
    assert_eq!(node(&w, "n1").state(), NodeState::Ready);
    let again = setup("uid-c", second, NodeSetupPhase::Ready);
    assert!(!report(&mut w, "n1", Some(again), vec![]), "nothing new");
}

#[test]
fn a_set_up_that_recovers_by_itself_needs_no_retry() {
    let mut w = with_setup(manual(1), 1);
    report_phase(&mut w, "n1", NodeSetupPhase::Failed);
    let unusable = node(&w, "n1");
    assert_eq!(unusable.state(), NodeState::Unusable);
    assert!(unusable.state_reason.contains("ended with 32"));
    let errors = w.state.cluster(C).unwrap().errors;
    assert!(errors[0].details.iter().any(|d| d.value == "nodes/n1"));
    report_phase(&mut w, "n1", NodeSetupPhase::Preparing);
    report_phase(&mut w, "n1", NodeSetupPhase::Ready);
    assert_eq!(node(&w, "n1").state(), NodeState::Ready);
    assert!(w.state.cluster(C).unwrap().errors.is_empty());
}

#[test]
fn a_node_in_order_is_not_retried() {
    let mut w = World::new(1, 0);
    let refused = w
        .apply(Kind::RetryNode(store::RetryNode {
            name: "nodes/n1".into(),
        }))
        .reply
        .unwrap_err();
    assert!(refused.message.contains("nothing to retry"), "{refused}");
}

#[test]
fn mounts_stay_until_the_last_attempt_is_gone_and_the_node_until_the_mounts_are() {
    let mut w = with_setup(manual(1), 1);
    report_phase(&mut w, "n1", NodeSetupPhase::Ready);
    w.submit("a", 1);
    w.plan();
    w.ok(Kind::DeleteCluster(store::Delete {
        name: C.into(),
        force: true,
        ..store::Delete::default()
    }));
    w.plan();
    let epoch = order(&w, "n1")
        .expect("its job still uses the mounts")
        .epoch;
    assert!(node(&w, "n1").leaving);
    let ready = Some(setup("uid-c", epoch, NodeSetupPhase::Ready));
    let ended = w.observed("a", world::status(Cleaned));
    report(&mut w, "n1", ready, vec![ended]);
    assert_eq!(w.execution("a"), ExecutionState::Failed);
    assert_eq!(order(&w, "n1"), None, "nothing needs the mounts any more");
    let removing = Some(setup("uid-c", epoch, NodeSetupPhase::Removing));
    report(&mut w, "n1", removing, vec![]);
    assert_eq!(node(&w, "n1").cluster, C, "they are not gone yet");
    assert!(report(&mut w, "n1", None, vec![]));
    assert_eq!(node(&w, "n1").cluster, "");
    assert!(w.state.cluster(C).is_none(), "nothing holds it any more");
}

#[test]
fn a_leaving_node_that_is_lost_comes_back_to_the_pool() {
    let mut w = with_setup(manual(1), 1);
    report_phase(&mut w, "n1", NodeSetupPhase::Ready);
    w.delete(C).unwrap();
    assert!(node(&w, "n1").leaving);
    w.lose("n1");
    assert_eq!(node(&w, "n1").cluster, "");
    assert!(w.state.cluster(C).is_none());
    let back = w.hello("n1", 0, "boot-2", vec![]);
    assert_eq!(
        (back.state(), back.leaving, back.setup),
        (NodeState::Ready, false, None)
    );
}

#[test]
fn auto_scale_replaces_a_node_that_cannot_be_used_and_lets_it_go_when_it_is_not_needed() {
    let mut w = with_setup(auto(2), 2);
    w.submit("a", 1);
    w.plan();
    report_phase(&mut w, "n1", NodeSetupPhase::Failed);
    w.plan();
    let cluster = w.state.cluster(C).unwrap();
    assert_eq!(
        cluster.nodes,
        ["nodes/n1", "nodes/n2"],
        "n2 takes its place"
    );
    report_phase(&mut w, "n2", NodeSetupPhase::Ready);
    w.plan();
    assert_eq!(w.nodes_of("a"), ["n2"]);
    assert!(node(&w, "n1").leaving, "its place is taken");
    report(&mut w, "n1", None, vec![]);
    w.plan();
    let cluster = w.state.cluster(C).unwrap();
    assert_eq!(
        (cluster.nodes, cluster.target_node_count),
        (vec!["nodes/n2".to_owned()], 1)
    );
}

#[test]
fn only_a_node_that_is_gone_is_forgotten_and_its_cluster_wants_another() {
    let mut w = World::new(1, 0);
    let refused = w.delete("nodes/n1").unwrap_err();
    assert!(refused.message.contains("is connected"), "{refused}");
    w.lose("n1");
    w.delete("nodes/n1").unwrap();
    let cluster = w.state.cluster(C).unwrap();
    assert_eq!(
        (cluster.current_node_count, cluster.allocation_state()),
        (0, AllocationState::Resizing)
    );
    w.hello("n2", 0, "b", vec![]);
    w.plan();
    assert_eq!(w.state.cluster(C).unwrap().nodes, ["nodes/n2"]);
}

#[test]
fn an_empty_cluster_is_not_bound_to_a_class_that_is_gone() {
    let mut w = World::new(0, 0);
    let made = w.ok(Kind::CreateNodeClass(store::CreateNodeClass {
        node_class: Some(NodeClass {
            name: "nodeClasses/big".into(),
            r#match: Some(NodeClassMatch {
                gpu_count: Some(8),
                ..NodeClassMatch::default()
            }),
            ..NodeClass::default()
        }),
        request_id: String::new(),
    }));
    assert!(matches!(made.0, Reply::NodeClass(c) if c.declared));
    w.hello("n1", 8, "b", vec![]);
    let d = format!("{W}/clusters/d");
    w.cluster(&d, 1).unwrap();
    w.plan();
    assert_eq!(w.state.cluster(&d).unwrap().node_class, "big");
    w.lose("n1");
    w.delete("nodes/n1").unwrap();
    w.ok(Kind::DeleteNodeClass(store::Delete {
        name: "nodeClasses/big".into(),
        ..store::Delete::default()
    }));
    assert_eq!(
        w.state.cluster(&d).unwrap().node_class,
        "",
        "no node is big"
    );
    w.hello("n2", 8, "b", vec![]);
    w.plan();
    let cluster = w.state.cluster(&d).unwrap();
    assert_eq!(
        (cluster.nodes, cluster.node_class.as_str()),
        (vec!["nodes/n2".to_owned()], "gpu8")
    );
}
