//! Deletion of experiments and workspaces with everything in them: visible, in bounded steps, resumable, complete.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod world;

use trainyard_core::{RefusalKind, Reply, State};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{C, E, W, World, job, spec};

fn file_server(w: &mut World, name: &str) -> Result<Reply, RefusalKind> {
    w.apply(Kind::CreateFileServer(store::CreateFileServer {
        file_server: Some(FileServer {
            name: name.into(),
            uid: format!("uid-{name}"),
            kind: Some(file_server::Kind::External(ExternalFileServer {
                address: "10.0.0.9".into(),
                export: "/export".into(),
                ..Default::default()
            })),
            ..Default::default()
        }),
        request_id: String::new(),
    }))
    .reply
    .map_err(|refusal| refusal.kind)
}

fn workspace(w: &mut World, name: &str) -> Result<Reply, RefusalKind> {
    w.apply(Kind::CreateWorkspace(store::CreateWorkspace {
        workspace: Some(Workspace {
            name: name.into(),
            uid: format!("uid-{name}"),
            ..Default::default()
        }),
        request_id: String::new(),
    }))
    .reply
    .map_err(|refusal| refusal.kind)
}

fn array(w: &mut World, id: &str, size: u32) {
    w.ok(Kind::CreateJobArray(store::CreateJobArray {
        job: Some(Job {
            name: job(id),
            uid: format!("uid-{id}"),
            spec: Some(spec(1)),
            ..Default::default()
        }),
        sweep: Some(ParameterSweep {
            parameters: vec![SweepParameter {
                name: "I".into(),
                start: Some(1.0),
                end: Some(f64::from(size)),
                count: size,
                ..Default::default()
            }],
            ..Default::default()
        }),
        request_id: String::new(),
    }));
}

/// A finished, a running and a queued job.
fn busy() -> World {
    let mut w = World::new(1, 0);
    w.submit("done", 1);
    w.run("done", 0);
    w.submit("runs", 1);
    w.plan();
    w.report("n1", "runs", AttemptNodePhase::Running);
    w.submit("waits", 1);
    w
}

#[test]
fn what_is_empty_vanishes_at_once() {
    let mut w = World::default();
    workspace(&mut w, W).unwrap();
    w.experiment(E).unwrap();
    w.delete(E).unwrap();
    assert!(w.state.experiment(E).is_none());
    w.delete(W).unwrap();
    assert!(w.state.workspace(W).is_none() && !w.state.sweep_due());
}

#[test]
fn an_experiment_goes_with_its_jobs_and_leaves_the_rest_alone() {
    let mut w = busy();
    let other = format!("{E}2");
    w.experiment(&other).unwrap();
    w.delete(E).unwrap();
    let state = |w: &World| w.state.experiment(E).map(Experiment::provisioning_state);
    assert_eq!(state(&w), Some(ProvisioningState::Deleting));
    assert!(w.state.sweep_due());
    w.sweep(10);
    assert_eq!(
        w.state.jobs(E, "", 10).len(),
        1,
        "the running job is terminated first"
    );
    assert_eq!(w.execution("runs"), ExecutionState::Terminating);
    assert_eq!(
        w.job("runs").provisioning_state(),
        ProvisioningState::Deleting
    );
    assert!(
        !w.state.sweep_due(),
        "nothing to do until the node is clean"
    );
    w.report("n1", "runs", AttemptNodePhase::Cleaned);
    assert!(w.state.job(&job("runs")).is_none());
    assert_eq!(state(&w), Some(ProvisioningState::Deleting));
    w.sweep(10);
    assert_eq!(state(&w), None);
    assert!(w.state.experiment(&other).is_some());
    assert!(w.state.cluster(C).is_some(), "clusters are untouched");
    w.experiment(E).unwrap();
    assert!(w.state.jobs(E, "", 10).is_empty());
}

#[test]
fn nothing_can_be_created_or_changed_inside_what_is_being_deleted() {
    let mut w = busy();
    w.delete(W).unwrap();
    let refused = RefusalKind::FailedPrecondition;
    let kinds = [
        w.experiment(E).unwrap_err().kind,
        w.experiment(&format!("{E}2")).unwrap_err().kind,
        w.cluster(&format!("{C}2"), 0).unwrap_err().kind,
        file_server(&mut w, &format!("{W}/fileServers/f")).unwrap_err(),
        w.try_job("new", spec(1), "").unwrap_err().kind,
        workspace(&mut w, W).unwrap_err(),
        w.apply(Kind::UpdateWorkspace(store::UpdateWorkspace {
            workspace: Some(Workspace {
                name: W.into(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["tags".into()],
            }),
        }))
        .reply
        .unwrap_err()
        .kind,
    ];
    assert_eq!(kinds, [refused; 7]);
    let message = w.try_job("new", spec(1), "").unwrap_err().message;
    assert!(message.contains("is being deleted"), "{message}");
}

#[test]
fn a_workspace_goes_with_everything_in_it_whenever_the_leader_changes() {
    let mut w = busy();
    file_server(&mut w, &format!("{W}/fileServers/f")).unwrap();
    w.experiment(&format!("{E}2")).unwrap();
    workspace(&mut w, "workspaces/v").unwrap();
    w.experiment("workspaces/v/experiments/e").unwrap();
    w.delete(W).unwrap();
    let mut seen_deleting = false;
    for _ in 0..100 {
        // Every step goes on from what the snapshot says alone.
        w.state = State::from_snapshot(&w.state.to_snapshot()).unwrap();
        w.check();
        seen_deleting |= w
            .state
            .cluster(C)
            .is_some_and(|c| c.provisioning_state() == ProvisioningState::Deleting);
        if w.state.sweep_due() {
            w.ok(Kind::Sweep(store::Sweep { limit: 1 }));
        } else if w.state.job(&job("runs")).is_some() {
            w.report("n1", "runs", AttemptNodePhase::Cleaned);
        } else {
            w.plan();
        }
    }
    assert!(seen_deleting, "the cluster waits for its running job");
    assert!(w.state.workspace(W).is_none());
    let names: Vec<String> = w
        .state
        .workspaces("", 10)
        .into_iter()
        .map(|w| w.name)
        .collect();
    assert_eq!(names, ["workspaces/v"]);
    assert!(w.state.experiment("workspaces/v/experiments/e").is_some());
    assert!(w.state.cluster(C).is_none());
    let node = w.state.node("nodes/n1").unwrap();
    assert_eq!(node.cluster, "", "the node is in the pool again");
}

#[test]
fn a_job_elsewhere_that_uses_the_workspaces_cluster_says_why_it_ended() {
    let mut w = World::new(1, 0);
    workspace(&mut w, "workspaces/v").unwrap();
    w.experiment("workspaces/v/experiments/e").unwrap();
    let name = "workspaces/v/experiments/e/jobs/j";
    w.ok(Kind::CreateJob(store::CreateJob {
        job: Some(Job {
            name: name.into(),
            uid: "uid-j".into(),
            spec: Some(JobSpec {
                cluster: Some(ResourceId { id: C.into() }),
                ..spec(1)
            }),
            ..Default::default()
        }),
        request_id: String::new(),
    }));
    w.delete(W).unwrap();
    w.sweep(10);
    let ended = w.state.job(name).unwrap();
    assert_eq!(ended.execution_state(), ExecutionState::Failed);
    let errors = &ended.execution_info.as_ref().unwrap().errors;
    assert_eq!(errors[0].code, "ClusterDeleted");
}

#[test]
fn a_repeated_deletion_is_without_effect_and_a_stale_etag_refuses_the_first() {
    let mut w = busy();
    for name in [W, E] {
        let delete = |etag: &str| store::Delete {
            name: name.into(),
            etag: etag.into(),
            ..Default::default()
        };
        let kind = |etag: &str| match name {
            W => Kind::DeleteWorkspace(delete(etag)),
            _ => Kind::DeleteExperiment(delete(etag)),
        };
        let refusal = w.apply(kind("stale")).reply.unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Aborted);
    }
    let etag = w.state.experiment(E).unwrap().etag.clone();
    for _ in 0..2 {
        // The client did not hear the first answer, and asks again with the same etag.
        let outcome = w.apply(Kind::DeleteExperiment(store::Delete {
            name: E.into(),
            etag: etag.clone(),
            ..Default::default()
        }));
        assert_eq!(outcome.reply, Ok(Reply::None));
    }
    w.delete(W).unwrap();
    w.delete(W).unwrap();
}

#[test]
fn many_jobs_go_in_bounded_batches() {
    const ARRAYS: u32 = 2;
    const SIZE: u32 = 2_000;
    let mut w = World::new(1, 0);
    for i in 0..ARRAYS {
        array(&mut w, &format!("a{i}"), SIZE);
    }
    w.delete(E).unwrap();
    let mut left = ARRAYS * SIZE;
    while w.state.sweep_due() {
        let outcome = w.apply(Kind::Sweep(store::Sweep { limit: 500 }));
        let Ok(Reply::Count(steps)) = outcome.reply else {
            panic!()
        };
        assert!(steps <= 500 && outcome.changes.len() <= 502, "{steps}");
        left = left.saturating_sub(500);
        assert_eq!(w.state.jobs(E, "", usize::MAX).len(), left as usize);
    }
    assert_eq!(left, 0);
    assert!(w.state.experiment(E).is_none());
    w.check();
}

#[test]
fn a_deleted_job_that_runs_is_swept_no_second_time() {
    let mut w = busy();
    w.delete(&job("runs")).unwrap();
    w.delete(&job("runs")).unwrap();
    assert!(!w.state.sweep_due(), "a job's own deletion needs no sweep");
    w.delete(E).unwrap();
    w.sweep(100);
    w.report("n1", "runs", AttemptNodePhase::Cleaned);
    w.sweep(100);
    assert!(w.state.experiment(E).is_none());
}

/// Creates and deletes of everything in random order, sweeps of random size in between.
#[test]
fn whatever_is_deleted_whenever_no_child_is_left_without_its_parent() {
    for seed in 0..24 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut w = World::new(2, 0);
        for _ in 0..120 {
            let experiment = format!("{W}/experiments/{}", if rng.bool() { "e" } else { "f" });
            let cluster = format!("{W}/clusters/{}", if rng.bool() { "c" } else { "d" });
            let id = format!("j{}", rng.u8(0..6));
            match rng.u8(0..16) {
                0 => drop(workspace(&mut w, W)),
                1 => drop(w.experiment(&experiment)),
                2 => drop(w.cluster(&cluster, 1)),
                3 => drop(file_server(&mut w, &format!("{W}/fileServers/f"))),
                4..7 => drop(w.try_job(&id, spec(1), "")),
                7 => drop(w.delete(&job(&id))),
                8 => drop(w.delete(&experiment)),
                9 if rng.u8(0..4) == 0 => drop(w.delete(W)),
                10 => {
                    for node in ["n1", "n2"] {
                        let held = w.state.desired(&format!("nodes/{node}")).assignments;
                        let report = held
                            .into_iter()
                            .map(|a| ObservedAttempt {
                                job: a.job,
                                uid: a.uid,
                                attempt: a.attempt,
                                epoch: a.epoch,
                                status: Some(world::status(AttemptNodePhase::Cleaned)),
                            })
                            .collect();
                        w.report_raw(node, report);
                    }
                }
                11..14 => w.plan(),
                _ => {
                    let limit = rng.u32(1..4);
                    w.apply(Kind::Sweep(store::Sweep { limit }));
                }
            }
            w.check();
        }
    }
}
