//! Accounting: exact sums of any period, by anything, of what has ended and what has not.

#![allow(clippy::unwrap_used)] // a test's helpers

mod world;

use prost_types::Timestamp;
use trainyard_core::State;
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::AttemptNodePhase::Cleaned;
use trainyard_proto::v1::{Job, ReportUsageRequest, ResourcesPerNode, UsageGrouping, UsageRow};
use world::{E, World};

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn submit(w: &mut World, id: &str, user: &str, gpus: u32) {
    let mut spec = world::spec(1);
    spec.resources_per_node = (gpus > 0).then_some(ResourcesPerNode { gpus });
    w.ok(Kind::CreateJob(store::CreateJob {
        job: Some(Job {
            name: world::job(id),
            uid: format!("uid-{id}"),
            user: user.to_owned(),
            spec: Some(spec),
            ..Job::default()
        }),
        request_id: String::new(),
    }));
    w.plan();
}

/// Runs a job on one node from `start` to `end`.
fn ran(w: &mut World, id: &str, user: &str, gpus: u32, start: i64, end: i64) {
    w.now = start - 1;
    submit(w, id, user, gpus);
    assert_eq!(w.attempt(id).start_time, Some(at(start)));
    w.now = end - 1;
    w.exit("n1", id, 0);
    w.report("n1", id, Cleaned);
    assert_eq!(w.attempt(id).end_time, Some(at(end)));
}

fn report(
    w: &World,
    from: i64,
    to: i64,
    by: UsageGrouping,
    now: i64,
) -> Vec<(String, f64, f64, u64)> {
    let request = ReportUsageRequest {
        start_time: Some(at(from)),
        end_time: Some(at(to)),
        group_by: by.into(),
        parent: String::new(),
    };
    let rows = w.state.report_usage(&request, &at(now)).rows;
    rows.into_iter()
        .map(|r: UsageRow| (r.name, r.gpu_hours, r.node_hours, r.attempts))
        .collect()
}

#[test]
fn sums_are_exact_and_clipped_to_the_period() {
    let mut w = World::new(1, 4);
    ran(&mut w, "a", "ann", 0, 10_000, 13_600);
    ran(&mut w, "b", "bob", 1, 20_000, 27_200);
    let by = UsageGrouping::User;
    let all = vec![
        ("ann".to_owned(), 4.0, 1.0, 1),
        ("bob".to_owned(), 2.0, 0.5, 1),
    ];
    assert_eq!(report(&w, 0, 100_000, by, 100_000), all);
    // Half of the first, and a quarter of the second.
    let part = report(&w, 11_800, 21_800, by, 100_000);
    let half = vec![
        ("ann".to_owned(), 2.0, 0.5, 1),
        ("bob".to_owned(), 0.5, 0.125, 1),
    ];
    assert_eq!(part, half);
    assert_eq!(
        report(&w, 13_600, 20_000, by, 100_000),
        [],
        "ends are excluded"
    );
    let rows = report(&w, 0, 100_000, UsageGrouping::Job, 100_000);
    assert_eq!(rows[0].0, world::job("a"));
    let rows = report(&w, 0, 100_000, UsageGrouping::Experiment, 100_000);
    assert_eq!(rows, [(E.to_owned(), 6.0, 1.5, 2)]);
    let rows = report(&w, 0, 100_000, UsageGrouping::Workspace, 100_000);
    assert_eq!(rows, [("workspaces/w".to_owned(), 6.0, 1.5, 2)]);
}

#[test]
fn an_attempt_that_runs_counts_up_to_now() {
    let mut w = World::new(1, 4);
    w.now = 9_999;
    submit(&mut w, "runs", "ann", 2);
    let by = UsageGrouping::User;
    let rows = report(&w, 0, 100_000, by, 13_600);
    assert_eq!(rows, [("ann".to_owned(), 2.0, 0.5, 1)]);
    assert_eq!(report(&w, 0, 11_800, by, 13_600)[0].1, 1.0);
    let whole = w
        .state
        .report_usage(&ReportUsageRequest::default(), &at(13_600));
    assert_eq!(whole.start_time, Some(at(10_000)), "begin of what is known");
    assert_eq!(whole.end_time, Some(at(13_600)));
}

#[test]
fn records_outlive_their_jobs_and_the_snapshot_and_every_attempt_counts() {
    let mut w = World::new(1, 4);
    ran(&mut w, "gone", "ann", 0, 10_000, 13_600);
    w.delete(&world::job("gone")).unwrap();
    w.now = 19_999;
    submit(&mut w, "lost", "bob", 0);
    w.now = 23_600;
    w.lose("n1");
    // A job that is deleted while it runs is in the ledger as well.
    w.hello("n1", 4, "boot-2", vec![]);
    w.now = 29_998;
    w.plan();
    assert_eq!(w.attempt("lost").number, 2);
    w.delete(&world::job("lost")).unwrap();
    w.now = w.attempt("lost").start_time.unwrap().seconds + 3_600;
    w.report("n1", "lost", Cleaned);
    assert!(w.state.job(&world::job("lost")).is_none());
    let rows = report(&w, 0, 100_000, UsageGrouping::User, 100_000);
    assert_eq!(
        rows,
        [
            ("bob".to_owned(), 8.0, 2.0, 2),
            ("ann".to_owned(), 4.0, 1.0, 1)
        ]
    );
    let copy = State::from_snapshot(&w.state.to_snapshot()).unwrap();
    assert_eq!(copy, w.state);
}

#[test]
fn old_records_are_dropped_and_the_report_says_so() {
    let mut w = World::new(1, 4);
    for (i, id) in ["a", "b", "c"].iter().enumerate() {
        let start = 10_000 * (i as i64 + 1);
        ran(&mut w, id, "ann", 0, start, start + 3_600);
    }
    let before = at(23_600);
    let leaving = w.state.usage_ended_before(&before, 0, 10);
    assert_eq!(
        leaving.len(),
        1,
        "the second ended at that time, not before"
    );
    assert_eq!(leaving[0].job, world::job("a"));
    assert!(w.state.usage_ended_before(&before, 1, 10).is_empty());
    w.ok(Kind::DropUsage(store::DropUsage {
        before: Some(before),
    }));
    let request = ReportUsageRequest::default();
    let report = w.state.report_usage(&request, &at(100_000));
    assert_eq!(report.complete_since, Some(before));
    assert_eq!(report.rows[0].attempts, 2);
    w.check();
}

#[test]
fn a_report_has_at_most_ten_thousand_rows_and_loses_nothing() {
    let records = (0..10_050u32)
        .map(|i| store::UsageRecord {
            job: format!("{E}/jobs/j{i}"),
            user: String::new(),
            start_time: Some(at(0)),
            end_time: Some(at(3_600)),
            gpus: 1 + u32::from(i < 9_999),
            milli_nodes: 1000,
        })
        .collect();
    let snapshot = store::Snapshot {
        format: 1,
        usage: records,
        ..store::Snapshot::default()
    };
    let state = State::from_snapshot(&prost::Message::encode_to_vec(&snapshot)).unwrap();
    let request = ReportUsageRequest {
        group_by: UsageGrouping::Job.into(),
        ..ReportUsageRequest::default()
    };
    let rows = state.report_usage(&request, &at(7_200)).rows;
    assert_eq!(rows.len(), 10_000);
    let rest = rows.last().unwrap();
    assert_eq!(
        (rest.name.as_str(), rest.gpu_hours, rest.attempts),
        ("", 51.0, 51)
    );
    let by_user = ReportUsageRequest {
        group_by: UsageGrouping::User.into(),
        ..request
    };
    assert_eq!(state.report_usage(&by_user, &at(7_200)).rows[0].name, "-");
}
