//! Limits: what is refused with the numbers, what waits, and what is said of it.

#![allow(clippy::unwrap_used, clippy::panic)] // a test's helpers

mod world;

use prost_types::{FieldMask, Timestamp};
use trainyard_core::{RefusalKind, Reply};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::AttemptNodePhase::Cleaned;
use trainyard_proto::v1::{ExecutionState, Quota, Usage, blocker::Reason};
use world::{W, World};

const WORKSPACE: &str = "workspaces/w/quota";
const TOTAL: &str = "quota";

fn set(w: &mut World, quota: Quota, paths: &[&str]) -> Result<Reply, trainyard_core::Refusal> {
    w.apply(Kind::UpdateQuota(store::UpdateQuota {
        quota: Some(quota),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(|p| (*p).to_owned()).collect(),
        }),
    }))
    .reply
}

fn named(name: &str) -> Quota {
    Quota {
        name: name.to_owned(),
        ..Quota::default()
    }
}

fn now(w: &World) -> Timestamp {
    Timestamp {
        seconds: w.now,
        nanos: 0,
    }
}

fn usage(w: &World, parent: &str, name: &str) -> Usage {
    let found = w.state.usages(parent, &now(w));
    assert_eq!(found.len(), 6);
    found.into_iter().find(|u| u.name == name).unwrap()
}

fn over_quota(w: &World, id: &str) -> trainyard_proto::v1::OverQuota {
    match w.explain(id).blockers.into_iter().next().unwrap().reason {
        Some(Reason::OverQuota(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_create_over_a_limit_is_refused_with_the_numbers() {
    let mut w = World::new(2, 4);
    for name in [WORKSPACE, TOTAL] {
        let limits = Quota {
            clusters: Some(1),
            nodes: Some(3),
            queued_jobs: Some(1),
            ..named(name)
        };
        set(&mut w, limits, &["clusters", "nodes", "queuedJobs"]).unwrap();
        let refusal = w.cluster("workspaces/w/clusters/d", 0).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::ResourceExhausted);
        assert_eq!(
            refusal.facts,
            [
                ("quota", name.to_owned()),
                ("limitName", "clusters".to_owned()),
                ("used", "1".to_owned()),
                ("limit", "1".to_owned()),
                ("wanted", "1".to_owned())
            ]
        );
        set(&mut w, named(name), &["clusters"]).unwrap();
        let refusal = w.cluster("workspaces/w/clusters/d", 2).unwrap_err();
        assert!(
            refusal.message.contains("nodes") && refusal.message.contains("2 are used"),
            "{refusal}"
        );
        let waiting = format!("waits-{}", name.len());
        w.try_job(&waiting, world::spec(9), "").unwrap();
        let refusal = w.try_job("more", world::spec(9), "").unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::ResourceExhausted, "{refusal}");
        w.terminate(&waiting);
        set(&mut w, named(name), &["nodes", "queued_jobs"]).unwrap();
    }
    w.cluster("workspaces/w/clusters/d", 2).unwrap();
}

#[test]
fn a_job_over_a_limit_waits_with_the_reason_and_blocks_nobody() {
    let mut w = World::new(2, 4);
    let limits = Quota {
        gpus: Some(5),
        ..named(WORKSPACE)
    };
    set(&mut w, limits, &["gpus"]).unwrap();
    w.submit("whole", 1);
    w.submit("too-much", 1);
    w.submit_gpus("small", 1, 1);
    w.plan();
    assert_eq!(w.execution("whole"), ExecutionState::Running);
    assert_eq!(w.execution("too-much"), ExecutionState::Queued);
    assert_eq!(w.execution("small"), ExecutionState::Running);
    let why = over_quota(&w, "too-much");
    assert_eq!(
        (
            why.quota.as_str(),
            why.limit_name.as_str(),
            why.wanted,
            why.used,
            why.limit
        ),
        (WORKSPACE, "gpus", 4.0, 5.0, 5.0)
    );
    assert_eq!(usage(&w, W, "gpus").current_value, 5.0);
    assert_eq!(usage(&w, "", "runningJobs").current_value, 2.0);
    assert_eq!(usage(&w, "workspaces/-", "queuedJobs").current_value, 1.0);
    // Lifted: it starts.
    w.report("n1", "whole", Cleaned);
    set(&mut w, named(WORKSPACE), &["gpus"]).unwrap();
    w.plan();
    assert_eq!(w.execution("too-much"), ExecutionState::Running);
}

#[test]
fn running_jobs_are_limited_in_total() {
    let mut w = World::new(2, 4);
    let limits = Quota {
        running_jobs: Some(1),
        ..named(TOTAL)
    };
    set(&mut w, limits, &["running_jobs"]).unwrap();
    w.submit("a", 1);
    w.submit("b", 1);
    w.plan();
    assert_eq!(w.execution("b"), ExecutionState::Queued);
    let why = over_quota(&w, "b");
    assert_eq!((why.quota.as_str(), why.used), (TOTAL, 1.0));
}

#[test]
fn gpu_hours_that_are_used_up_make_jobs_wait_for_the_next_period() {
    let mut w = World::new(1, 4);
    let limits = Quota {
        gpu_hours: Some(3.0),
        gpu_hours_period: Some(prost_types::Duration {
            seconds: 86_400,
            nanos: 0,
        }),
        ..named(WORKSPACE)
    };
    set(&mut w, limits, &["gpu_hours", "gpu_hours_period"]).unwrap();
    w.now = 86_400;
    w.submit("uses", 1);
    w.plan();
    w.now += 3600;
    w.exit("n1", "uses", 0);
    w.report("n1", "uses", Cleaned);
    w.submit("waits", 1);
    w.plan();
    assert_eq!(w.execution("waits"), ExecutionState::Queued);
    let why = over_quota(&w, "waits");
    assert_eq!(why.next_period.map(|t| t.seconds), Some(2 * 86_400));
    assert!(why.used > 4.0 && why.used < 4.1, "{}", why.used);
    let hours = usage(&w, W, "gpuHours");
    assert_eq!(hours.period_start.map(|t| t.seconds), Some(86_400));
    assert_eq!(hours.limit, Some(3.0));
    w.now = 2 * 86_400;
    w.plan();
    assert_eq!(w.execution("waits"), ExecutionState::Running);
}

#[test]
fn limits_are_set_by_mask_and_go_with_their_workspace() {
    let mut w = World::new(0, 0);
    let both = Quota {
        gpus: Some(1),
        nodes: Some(7),
        ..named(WORKSPACE)
    };
    set(&mut w, both, &["gpus"]).unwrap();
    let quota = w.state.quota(WORKSPACE);
    assert_eq!((quota.gpus, quota.nodes), (Some(1), None));
    let stale = Quota {
        etag: "1".to_owned(),
        ..named(WORKSPACE)
    };
    let refusal = set(&mut w, stale, &["gpus"]).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Aborted);
    for (name, paths) in [
        (WORKSPACE, &["etag"][..]),
        (WORKSPACE, &[]),
        ("workspaces/gone/quota", &["gpus"]),
        ("workspaces/w", &["gpus"]),
    ] {
        let refusal = set(&mut w, named(name), paths).unwrap_err();
        assert_ne!(refusal.kind, RefusalKind::Aborted, "{refusal}");
    }
    let negative = Quota {
        gpu_hours: Some(-1.0),
        ..named(WORKSPACE)
    };
    assert!(set(&mut w, negative, &["gpu_hours"]).is_err());
    w.delete(W).unwrap();
    while w.state.sweep_due() {
        w.ok(Kind::Sweep(store::Sweep { limit: 10 }));
    }
    assert_eq!(w.state.quota(WORKSPACE), named(WORKSPACE));
    assert!(w.state.workspace(W).is_none());
}
