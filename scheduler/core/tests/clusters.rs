//! Scenarios of clusters and their nodes: what fits, set-up, retries, classes, deletion by force, power.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod world;

use trainyard_core::Reply;
use trainyard_core::power::{self, PowerAction, PowerPolicy};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::AttemptNodePhase::Cleaned;
use trainyard_proto::v1::*;
use world::{C, W, World};

fn manual(target: u32) -> Option<ScaleSettings> {
    Some(ScaleSettings {
        manual: Some(ManualScaleSettings {
            target_node_count: target,
            ..ManualScaleSettings::default()
        }),
        auto_scale: None,
    })
}

fn create(w: &mut World, cluster: Cluster) -> Cluster {
    let made = w.ok(Kind::CreateCluster(store::CreateCluster {
        cluster: Some(Cluster {
            uid: format!("uid-{}", cluster.name),
            ..cluster
        }),
        request_id: String::new(),
    }));
    match made.0 {
        Reply::Cluster(cluster) => *cluster,
        other => panic!("{other:?}"),
    }
}

/// A world with an empty cluster `c` that runs a setup task on its nodes.
fn with_setup(nodes: u32) -> World {
    let mut w = World::new(0, 0);
    w.delete(C).unwrap();
    create(
        &mut w,
        Cluster {
            name: C.into(),
            scale_settings: manual(nodes),
            node_setup: Some(NodeSetup {
                setup_task: Some(SetupTask {
                    command_line: "true".into(),
                    std_out_err_path_prefix: "/logs".into(),
                    ..SetupTask::default()
                }),
                ..NodeSetup::default()
            }),
            ..Cluster::default()
        },
    );
    for i in 1..=nodes {
        w.hello(&format!("n{i}"), 0, "boot-1", vec![]);
    }
    w.plan();
    w
}

fn node(w: &World, id: &str) -> Node {
    w.state.node(&format!("nodes/{id}")).unwrap()
}

/// The agent of a node reports how far its set-up is.
fn report_setup(w: &mut World, id: &str, status: Option<NodeSetupStatus>) {
    let session_epoch = node(w, id).session_epoch;
    w.ok(Kind::ReportAttempts(store::ReportAttempts {
        node: format!("nodes/{id}"),
        session_epoch,
        setup: status.map(|status| ObservedSetup {
            cluster: C.into(),
            cluster_uid: format!("uid-{C}"),
            status: Some(status),
        }),
        ..store::ReportAttempts::default()
    }));
    w.check();
}

fn setup_status(w: &World, id: &str, phase: NodeSetupPhase, boot: &str) -> NodeSetupStatus {
    NodeSetupStatus {
        epoch: w
            .state
            .desired(&format!("nodes/{id}"))
            .setup
            .expect("ordered")
            .epoch,
        phase: phase.into(),
        boot_id: boot.into(),
        ..NodeSetupStatus::default()
    }
}

fn set_up(w: &mut World, id: &str) {
    let ready = setup_status(w, id, NodeSetupPhase::Ready, "boot-1");
    report_setup(w, id, Some(ready));
}

#[test]
fn a_node_takes_jobs_only_when_it_is_set_up() {
    let mut w = with_setup(1);
    w.submit("j", 1);
    w.plan();
    assert_eq!(node(&w, "n1").state(), NodeState::Preparing);
    assert!(!node(&w, "n1").state_reason.is_empty());
    assert_eq!(w.execution("j"), ExecutionState::Queued);
    assert!(w.explain("j").summary.contains("being set up"));
    let order = w.state.desired("nodes/n1").setup.unwrap();
    assert_eq!(order.setup_task.unwrap().command_line, "true");
    assert_eq!(order.path_segment, format!("{C}/uid-{C}"));
    let preparing = setup_status(&w, "n1", NodeSetupPhase::Preparing, "boot-1");
    report_setup(&mut w, "n1", Some(preparing));
    w.plan();
    assert_eq!(w.execution("j"), ExecutionState::Queued);
    set_up(&mut w, "n1");
    w.plan();
    assert_eq!(w.execution("j"), ExecutionState::Running);
}

#[test]
fn a_failed_set_up_makes_the_node_unusable_with_its_reason_and_a_retry_is_possible() {
    let mut w = with_setup(1);
    let failed = NodeSetupStatus {
        errors: vec![BatchAiError {
            code: "NodeSetupTaskFailed".into(),
            message: "the setup task exited with status 3".into(),
            details: vec![],
        }],
        ..setup_status(&w, "n1", NodeSetupPhase::Failed, "boot-1")
    };
    report_setup(&mut w, "n1", Some(failed));
    let n = node(&w, "n1");
    assert_eq!(n.state(), NodeState::Unusable);
    assert!(n.state_reason.contains("status 3"), "{}", n.state_reason);
    let cluster = w.state.cluster(C).unwrap();
    assert_eq!(cluster.node_state_counts.unwrap().unusable_node_count, 1);
    assert_eq!(cluster.errors[0].code, "NodeSetupTaskFailed");
    assert!(cluster.errors[0].message.contains("nodes/n1"));

    let before = w.state.desired("nodes/n1").setup.unwrap().epoch;
    w.ok(Kind::RetryNode(store::RetryNode {
        name: "nodes/n1".into(),
    }));
    assert!(w.state.desired("nodes/n1").setup.unwrap().epoch > before);
    assert_eq!(node(&w, "n1").state(), NodeState::Preparing);
    set_up(&mut w, "n1");
    assert_eq!(node(&w, "n1").state(), NodeState::Ready);
    let refused = w
        .apply(Kind::RetryNode(store::RetryNode {
            name: "nodes/n1".into(),
        }))
        .reply
        .unwrap_err();
    assert!(refused.message.contains("not unusable"), "{refused}");
}

#[test]
fn a_boot_needs_the_set_up_again() {
    let mut w = with_setup(1);
    set_up(&mut w, "n1");
    w.hello("n1", 0, "boot-2", vec![]);
    assert_eq!(node(&w, "n1").state(), NodeState::Preparing);
    let again = setup_status(&w, "n1", NodeSetupPhase::Ready, "boot-2");
    report_setup(&mut w, "n1", Some(again));
    assert_eq!(node(&w, "n1").state(), NodeState::Ready);
}

#[test]
fn a_node_goes_back_to_the_pool_when_its_mounts_are_gone() {
    let mut w = with_setup(1);
    set_up(&mut w, "n1");
    let answer = w.delete(C).unwrap();
    assert_eq!(
        answer,
        Reply::ClusterDeleted(DeleteClusterResponse::default())
    );
    let cluster = w.state.cluster(C).unwrap();
    assert_eq!(cluster.provisioning_state(), ProvisioningState::Deleting);
    assert_eq!(cluster.node_state_counts.unwrap().leaving_node_count, 1);
    assert_eq!(w.state.desired("nodes/n1").setup, None, "unmount");
    report_setup(&mut w, "n1", None);
    assert!(w.state.cluster(C).is_none());
    assert_eq!(node(&w, "n1").cluster, "");
    assert_eq!(node(&w, "n1").state(), NodeState::Ready);
}

#[test]
fn a_lost_node_of_a_deleted_cluster_holds_nothing_up() {
    let mut w = with_setup(1);
    set_up(&mut w, "n1");
    w.delete(C).unwrap();
    w.lose("n1");
    assert!(w.state.cluster(C).is_none());
}

#[test]
fn a_forced_deletion_ends_the_jobs_and_says_what_became_of_them() {
    let mut w = World::new(1, 0);
    w.submit("runs", 1);
    w.submit("waits", 1);
    w.plan();
    let refused = w.delete(C).unwrap_err();
    assert!(refused.message.contains("2 jobs"), "{refused}");
    let answer = w.ok(Kind::DeleteCluster(store::Delete {
        name: C.into(),
        force: true,
        ..store::Delete::default()
    }));
    let Reply::ClusterDeleted(answer) = answer.0 else {
        panic!("{answer:?}");
    };
    assert_eq!(
        (answer.failed_queued_jobs, answer.terminated_running_jobs),
        (1, 1)
    );
    assert_eq!(answer.jobs.len(), 2);
    assert_eq!(w.execution("waits"), ExecutionState::Failed);
    assert_eq!(
        w.job("waits").execution_info.unwrap().errors[0].code,
        "ClusterDeleted"
    );
    assert!(w.state.cluster(C).is_some(), "until its node is free");
    let refused = w.try_job("late", world::spec(1), "").unwrap_err();
    assert!(refused.message.contains("being deleted"), "{refused}");
    w.report("n1", "runs", Cleaned);
    assert!(w.state.cluster(C).is_none());
    assert_eq!(node(&w, "n1").cluster, "");
    assert_eq!(
        w.job("runs").execution_info.unwrap().errors[0].code,
        "ClusterDeleted",
        "completed jobs stay"
    );
}

#[test]
fn a_cluster_takes_only_nodes_with_its_image_and_its_user() {
    let mut w = World::new(0, 0);
    w.hello("n1", 0, "b", vec![]);
    let image = create(
        &mut w,
        Cluster {
            name: format!("{W}/clusters/image"),
            scale_settings: manual(1),
            virtual_machine_configuration: Some(VirtualMachineConfiguration {
                image_reference: Some(ImageReference {
                    publisher: "Canonical".into(),
                    ..ImageReference::default()
                }),
            }),
            ..Cluster::default()
        },
    );
    let user = create(
        &mut w,
        Cluster {
            name: format!("{W}/clusters/user"),
            scale_settings: manual(1),
            user_account_settings: Some(UserAccountSettings {
                admin_user_name: "alice".into(),
                ..UserAccountSettings::default()
            }),
            ..Cluster::default()
        },
    );
    w.plan();
    for (name, word) in [(image.name, "Canonical"), (user.name, "alice")] {
        let cluster = w.state.cluster(&name).unwrap();
        assert!(cluster.nodes.is_empty());
        assert_eq!(cluster.allocation_state(), AllocationState::Resizing);
        assert!(
            cluster.allocation_reason.contains(word),
            "{}",
            cluster.allocation_reason
        );
    }
}

#[test]
fn all_nodes_of_a_cluster_share_one_class() {
    let mut w = World::new(0, 0);
    w.delete(C).unwrap();
    w.hello("n1", 2, "b", vec![]);
    w.hello("n2", 4, "b", vec![]);
    w.cluster(C, 2).unwrap();
    w.plan();
    let cluster = w.state.cluster(C).unwrap();
    assert_eq!(cluster.nodes, ["nodes/n1"], "n2 is of another class");
    assert_eq!(cluster.node_class, "gpu2");
    assert!(cluster.allocation_reason.contains("gpu2"));
}

#[test]
fn a_declared_class_names_hardware_by_match_and_alias() {
    let mut w = World::new(0, 0);
    w.hello("n1", 2, "b", vec![]);
    w.hello("n2", 4, "b", vec![]);
    let class = |name: &str, aliases: &[&str]| {
        Kind::CreateNodeClass(store::CreateNodeClass {
            node_class: Some(NodeClass {
                name: format!("nodeClasses/{name}"),
                aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
                r#match: Some(NodeClassMatch {
                    gpu_count: Some(4),
                    ..NodeClassMatch::default()
                }),
                ..NodeClass::default()
            }),
            request_id: String::new(),
        })
    };
    w.ok(class("four", &["STANDARD_NC24"]));
    assert_eq!(node(&w, "n2").node_class, "four");
    let refused = w.apply(class("other", &["four"])).reply.unwrap_err();
    assert!(refused.message.contains("nodeClasses/four"), "{refused}");
    let cluster = create(
        &mut w,
        Cluster {
            name: format!("{W}/clusters/big"),
            vm_size: "standard_nc24".into(),
            scale_settings: manual(2),
            ..Cluster::default()
        },
    );
    w.plan();
    let name = cluster.name;
    assert_eq!(w.state.cluster(&name).unwrap().nodes, ["nodes/n2"]);
    let classes = w.state.node_classes("", 10);
    let shown: Vec<(&str, bool, u32, u32)> = classes
        .iter()
        .map(|c| (c.name.as_str(), c.declared, c.node_count, c.pool_node_count))
        .collect();
    assert_eq!(
        shown,
        [
            ("nodeClasses/four", true, 1, 0),
            ("nodeClasses/gpu2", false, 1, 1)
        ]
    );
    let refused = w
        .apply(Kind::DeleteNodeClass(store::Delete {
            name: "nodeClasses/four".into(),
            ..store::Delete::default()
        }))
        .reply
        .unwrap_err();
    assert!(refused.message.contains(&name), "{refused}");
}

const POLICY: PowerPolicy = PowerPolicy {
    wake_deadline_ms: 60_000,
    off_after_idle_ms: Some(300_000),
};

fn set_power(w: &mut World, from: PowerState, to: PowerState) -> Reply {
    w.ok(Kind::SetPower(store::SetPower {
        node: "nodes/n1".into(),
        state: to.into(),
        from: from.into(),
        reason: "no answer".into(),
    }))
    .0
}

fn actions(w: &World) -> Vec<(String, PowerAction)> {
    power::orders(&w.state, &POLICY, &w.time())
        .into_iter()
        .map(|o| (o.node, o.action))
        .collect()
}

#[test]
fn an_idle_node_of_the_pool_is_switched_off_and_on_again_when_it_is_needed() {
    let mut w = World::new(0, 0);
    w.hello("n1", 0, "b", vec![]);
    w.plan();
    assert!(actions(&w).is_empty(), "not idle for long");
    w.now += 301;
    assert_eq!(actions(&w), [("nodes/n1".to_owned(), PowerAction::Stop)]);
    set_power(&mut w, PowerState::On, PowerState::Stopping);
    w.lose("n1");
    assert_eq!(node(&w, "n1").power_state(), PowerState::Off);
    assert!(actions(&w).is_empty(), "nobody needs it");
    w.cluster(&format!("{W}/clusters/d"), 1).unwrap();
    w.plan();
    assert_eq!(actions(&w), [("nodes/n1".to_owned(), PowerAction::Wake)]);
    set_power(&mut w, PowerState::Off, PowerState::Waking);
    assert!(actions(&w).is_empty(), "it is on its way");
    w.hello("n1", 0, "b2", vec![]);
    w.plan();
    assert_eq!(node(&w, "n1").power_state(), PowerState::On);
    assert_eq!(
        w.state.cluster(&format!("{W}/clusters/d")).unwrap().nodes,
        ["nodes/n1"]
    );
}

#[test]
fn a_node_that_does_not_come_up_is_unusable_until_it_is_retried() {
    let mut w = World::new(0, 0);
    w.hello("n1", 0, "b", vec![]);
    set_power(&mut w, PowerState::On, PowerState::Stopping);
    w.lose("n1");
    w.cluster(&format!("{W}/clusters/d"), 1).unwrap();
    set_power(&mut w, PowerState::Off, PowerState::Waking);
    w.now += 61;
    assert_eq!(actions(&w), [("nodes/n1".to_owned(), PowerAction::GiveUp)]);
    set_power(&mut w, PowerState::Waking, PowerState::Failed);
    let n = node(&w, "n1");
    assert_eq!(
        (n.state(), n.state_reason.as_str()),
        (NodeState::Unusable, "no answer")
    );
    assert!(actions(&w).is_empty());
    w.ok(Kind::RetryNode(store::RetryNode {
        name: "nodes/n1".into(),
    }));
    assert_eq!(actions(&w), [("nodes/n1".to_owned(), PowerAction::Wake)]);
}

#[test]
fn a_node_in_use_is_never_switched_off() {
    let mut w = World::new(1, 0);
    w.now += 10_000;
    assert!(actions(&w).is_empty(), "a cluster holds it");
    assert_eq!(
        set_power(&mut w, PowerState::On, PowerState::Stopping),
        Reply::None
    );
    assert_eq!(node(&w, "n1").power_state(), PowerState::On);
}
