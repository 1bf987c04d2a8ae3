//! Job chains: what a job waits for, and what becomes of it when that ends one way or the other.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod world;

use trainyard_core::RefusalKind;
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{E, W, World, job, spec};

fn after(dependencies: &[(&str, DependencyCondition)]) -> JobSpec {
    JobSpec {
        depends_on: dependencies
            .iter()
            .map(|&(id, condition)| JobDependency {
                job: Some(ResourceId { id: id.into() }),
                condition: condition.into(),
            })
            .collect(),
        ..spec(1)
    }
}

use DependencyCondition::{End, Success, Unspecified};

#[test]
fn a_job_waits_for_the_success_of_others() {
    let mut w = World::new(2, 0);
    w.submit("a", 1);
    w.submit("b", 1);
    w.try_job("c", after(&[("a", Unspecified), (&job("b"), Success)]), "")
        .unwrap();
    w.plan();
    assert_eq!(w.job("c").waiting_for, [job("a"), job("b")]);
    assert_eq!(w.execution("c"), ExecutionState::Queued);
    let explanation = w.explain("c");
    assert_eq!(
        (explanation.queue_position, explanation.queue_length),
        (0, 0),
        "it is not in the queue yet"
    );
    assert!(
        explanation
            .summary
            .contains(&format!("it waits for {}, {}", job("a"), job("b"))),
        "{}",
        explanation.summary
    );
    w.run("a", 0);
    w.plan();
    assert_eq!(w.job("c").waiting_for, [job("b")]);
    assert!(w.job("c").attempts.is_empty());
    w.run("b", 0);
    assert!(w.job("c").waiting_for.is_empty());
    w.run("c", 0);
    assert_eq!(w.execution("c"), ExecutionState::Succeeded);
}

#[test]
fn a_failure_fails_those_that_need_success_and_frees_those_that_need_the_end() {
    let mut w = World::new(1, 0);
    w.submit("a", 1);
    w.try_job("needs", after(&[("a", Success)]), "").unwrap();
    w.try_job("second", after(&[("needs", Success)]), "")
        .unwrap();
    w.try_job("cleanup", after(&[("second", End), ("a", End)]), "")
        .unwrap();
    w.run("a", 3);
    for id in ["needs", "second"] {
        assert_eq!(w.execution(id), ExecutionState::Failed, "{id}");
        let info = w.job(id).execution_info.unwrap();
        assert_eq!(
            (info.errors[0].code.as_str(), info.exit_code),
            ("DependencyFailed", None)
        );
        assert!(w.job(id).attempts.is_empty() && w.job(id).waiting_for.is_empty());
    }
    assert!(
        w.job("needs").execution_info.unwrap().errors[0]
            .message
            .contains(&job("a"))
    );
    w.run("cleanup", 0);
    assert_eq!(w.execution("cleanup"), ExecutionState::Succeeded);
}

#[test]
fn a_retry_is_not_an_end() {
    let mut w = World::new(1, 0);
    let retrying = JobSpec {
        constraints: Some(JobConstraints {
            max_retry_count: 1,
            ..Default::default()
        }),
        ..spec(1)
    };
    w.try_job("a", retrying, "").unwrap();
    w.try_job("b", after(&[("a", Success)]), "").unwrap();
    w.run("a", 1);
    assert_eq!(w.job("b").waiting_for, [job("a")]);
    w.run("a", 0);
    assert!(w.job("b").waiting_for.is_empty());
}

#[test]
fn what_has_ended_before_counts_by_how_it_ended() {
    let mut w = World::new(1, 0);
    w.submit("good", 1);
    w.run("good", 0);
    w.submit("bad", 1);
    w.run("bad", 1);
    w.try_job("a", after(&[("good", Success), ("bad", End)]), "")
        .unwrap();
    assert!(w.job("a").waiting_for.is_empty());
    w.try_job("b", after(&[("good", Success), ("bad", Success)]), "")
        .unwrap();
    assert_eq!(w.execution("b"), ExecutionState::Failed);
    assert_eq!(w.error_code("b"), "DependencyFailed");
    w.check();
}

#[test]
fn jobs_of_other_experiments_of_the_workspace_can_be_waited_for() {
    let mut w = World::new(1, 0);
    let other = format!("{W}/experiments/other");
    w.experiment(&other).unwrap();
    let elsewhere = format!("{other}/jobs/x");
    w.ok(Kind::CreateJob(store::CreateJob {
        job: Some(Job {
            name: elsewhere.clone(),
            uid: "uid-x".into(),
            spec: Some(spec(1)),
            ..Default::default()
        }),
        request_id: String::new(),
    }));
    w.try_job("j", after(&[(&elsewhere, Success)]), "").unwrap();
    // The whole experiment goes: the job is terminated, and counts as failed.
    w.delete(&other).unwrap();
    w.sweep(10);
    assert!(w.state.experiment(&other).is_none());
    assert_eq!(w.error_code("j"), "DependencyFailed");
}

#[test]
fn a_job_that_is_deleted_counts_by_how_it_ended() {
    let mut w = World::new(1, 0);
    w.submit("a", 1);
    w.try_job("needs", after(&[("a", Success)]), "").unwrap();
    w.try_job("end", after(&[("a", End)]), "").unwrap();
    w.plan();
    w.report("n1", "a", AttemptNodePhase::Running);
    w.delete(&job("a")).unwrap();
    assert_eq!(
        w.job("needs").waiting_for,
        [job("a")],
        "it is still being ended"
    );
    w.report("n1", "a", AttemptNodePhase::Cleaned);
    assert!(w.state.job(&job("a")).is_none());
    assert_eq!(w.error_code("needs"), "DependencyFailed");
    assert!(w.job("end").waiting_for.is_empty());
    // A later job of the same name is another.
    w.submit("a", 1);
    w.plan();
    assert!(w.job("end").waiting_for.is_empty());
    w.check();
}

#[test]
fn a_waiting_job_can_be_terminated_and_deleted() {
    let mut w = World::new(1, 0);
    w.submit("a", 1);
    for id in ["b", "c"] {
        w.try_job(id, after(&[("a", Success)]), "").unwrap();
    }
    w.try_job("d", after(&[("b", End), ("c", End)]), "")
        .unwrap();
    w.terminate("b");
    assert_eq!(w.error_code("b"), "JobTerminated");
    assert!(w.job("b").waiting_for.is_empty());
    w.delete(&job("c")).unwrap();
    assert!(w.job("d").waiting_for.is_empty());
    w.run("a", 1);
    assert_eq!(w.error_code("b"), "JobTerminated", "it has ended before");
}

#[test]
fn names_that_cannot_be_waited_for_are_refused_with_their_field() {
    let mut w = World::new(1, 0);
    w.submit("a", 1);
    for (id, part) in [
        ("nope", "does not exist"),
        ("j", "does not exist"),
        ("", "dependsOn[1].job.id"),
        ("bad name", "dependsOn[1].job.id"),
        (
            "workspaces/v/experiments/e/jobs/a",
            "is in another workspace",
        ),
        ("workspaces/w/jobs/a", "dependsOn[1].job.id"),
        ("a", "is named twice"),
    ] {
        let refusal = w
            .try_job("j", after(&[("a", Success), (id, End)]), "")
            .unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
        assert_eq!(refusal.violations[0].field, "dependsOn[1].job.id");
        assert!(refusal.message.contains(part), "{id}: {}", refusal.message);
    }
    assert_eq!(w.state.jobs(E, "", 10).len(), 1);
}
