//! Retention: which finished jobs a workspace no longer keeps, and their removal.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod world;

use prost_types::{Duration, FieldMask, Timestamp};
use trainyard_core::Reply;
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{W, World, job};

fn keep(w: &mut World, max_age_s: Option<i64>, max_finished_jobs: u32) -> Result<Reply, String> {
    w.apply(Kind::UpdateWorkspace(store::UpdateWorkspace {
        workspace: Some(Workspace {
            name: W.into(),
            retention: Some(RetentionPolicy {
                max_age: max_age_s.map(|seconds| Duration { seconds, nanos: 0 }),
                max_finished_jobs,
            }),
            ..Default::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["retention".into()],
        }),
    }))
    .reply
    .map_err(|refusal| refusal.message)
}

/// Four finished jobs, `a` to `d` in order of their ends, one that runs, and one that waits.
fn finished() -> World {
    let mut w = World::new(1, 0);
    for id in ["b", "c", "a", "d"] {
        w.submit(id, 1);
    }
    for id in ["b", "c", "a", "d"] {
        w.run(id, i32::from(id == "b"));
    }
    w.submit("runs", 1);
    w.plan();
    w.submit("waits", 1);
    w
}

fn retired(w: &World, now: i64, limit: usize) -> Vec<String> {
    let now = Timestamp {
        seconds: now,
        nanos: 0,
    };
    w.state
        .retired_jobs(&now, limit)
        .iter()
        .map(|j| j.name.rsplit('/').next().unwrap().to_owned())
        .collect()
}

fn end_of(w: &World, id: &str) -> i64 {
    w.job(id).execution_info.unwrap().end_time.unwrap().seconds
}

#[test]
fn without_a_policy_everything_stays() {
    let w = finished();
    assert!(retired(&w, i64::MAX, 10).is_empty());
    assert_eq!(w.state.next_retirement(), None);
}

#[test]
fn the_oldest_ends_beyond_the_count_retire_first() {
    let mut w = finished();
    keep(&mut w, None, 2).unwrap();
    assert_eq!(retired(&w, 0, 10), ["b", "c"]);
    assert_eq!(retired(&w, 0, 1), ["b"]);
    assert_eq!(w.state.next_retirement(), None, "time changes nothing");
    keep(&mut w, None, 4).unwrap();
    assert!(retired(&w, i64::MAX, 10).is_empty());
}

#[test]
fn jobs_retire_by_age_to_the_second() {
    let mut w = finished();
    keep(&mut w, Some(1000), 0).unwrap();
    let first = end_of(&w, "b") + 1000;
    assert_eq!(w.state.next_retirement().unwrap().seconds, first);
    assert!(retired(&w, first - 1, 10).is_empty());
    assert_eq!(retired(&w, first, 10), ["b"]);
    assert_eq!(
        retired(&w, end_of(&w, "d") + 1000, 10),
        ["b", "c", "a", "d"]
    );
    assert!(
        keep(&mut w, Some(-1), 0)
            .unwrap_err()
            .contains("retention.maxAge")
    );
}

#[test]
fn only_the_finished_jobs_that_were_meant_are_removed() {
    let mut w = finished();
    let reference = |w: &World, id: &str| store::JobReference {
        name: job(id),
        uid: w.job(id).uid,
    };
    let mut jobs: Vec<_> = ["b", "runs", "waits"]
        .iter()
        .map(|id| reference(&w, id))
        .collect();
    jobs.push(store::JobReference {
        name: job("c"),
        uid: "of another".into(),
    });
    jobs.push(store::JobReference {
        name: job("gone"),
        uid: String::new(),
    });
    let command = Kind::RemoveJobs(store::RemoveJobs { jobs });
    assert_eq!(w.ok(command.clone()).0, Reply::Count(1));
    assert!(w.state.job(&job("b")).is_none());
    for id in ["a", "c", "d", "runs", "waits"] {
        assert!(w.state.job(&job(id)).is_some(), "{id}");
    }
    w.check();
    assert_eq!(w.ok(command).0, Reply::Count(0), "a repeat finds nothing");
}
