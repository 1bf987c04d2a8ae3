//! The retry policy of a job, row by row of the table in `apply/jobs.rs`, and the history of its attempts.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod world;

use AttemptNodePhase::{Cleaned, Failed, Preparing, Running};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{C, World, job, spec, status};

/// Two retries for any failure but the wall clock's, unless `change` says otherwise.
fn retrying(nodes: u32, change: impl FnOnce(&mut JobConstraints)) -> JobSpec {
    let mut constraints = JobConstraints {
        max_retry_count: 2,
        max_wall_clock_time: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..Default::default()
    };
    change(&mut constraints);
    JobSpec {
        constraints: Some(constraints),
        ..spec(nodes)
    }
}

fn world(nodes: u32, job_nodes: u32, change: impl FnOnce(&mut JobConstraints)) -> World {
    let mut w = World::new(nodes, 0);
    w.try_job("j", retrying(job_nodes, change), "").unwrap();
    w.plan();
    w
}

/// Ends the latest attempt, whose one node failed with this code.
fn fail(w: &mut World, code: &str, exit_code: Option<i32>) {
    w.plan();
    let node = w.nodes_of("j").remove(0);
    let error = BatchAiError {
        code: code.into(),
        message: "it failed".into(),
        details: vec![],
    };
    w.report_status(
        &node,
        "j",
        AttemptNodeStatus {
            exit_code,
            errors: vec![error],
            ..status(Failed)
        },
    );
    w.report(&node, "j", Cleaned);
}

fn expire(w: &mut World) {
    let deadline = w.state.next_deadline().unwrap();
    let overdue = w.state.overdue(&deadline);
    w.ok(Kind::TerminateJob(overdue[0].clone()));
}

fn retries(w: &World) -> (ExecutionState, u32) {
    (w.execution("j"), w.job("j").retry_count)
}

#[test]
fn a_failure_is_retried_until_the_retries_are_used_up() {
    let mut w = world(1, 1, |_| ());
    for count in 1..=2 {
        w.run("j", 7);
        assert_eq!(retries(&w), (ExecutionState::Queued, count));
        assert!(w.job("j").execution_info.unwrap().errors.is_empty());
    }
    w.run("j", 8);
    assert_eq!(retries(&w), (ExecutionState::Failed, 2));
    let j = w.job("j");
    assert_eq!(j.execution_info.unwrap().exit_code, Some(8));
    let history: Vec<(u32, Option<i32>, &str)> = j
        .attempts
        .iter()
        .map(|a| (a.number, a.exit_code, a.errors[0].code.as_str()))
        .collect();
    assert_eq!(
        history,
        [
            (1, Some(7), "JobFailed"),
            (2, Some(7), "JobFailed"),
            (3, Some(8), "JobFailed")
        ]
    );
    assert!(
        j.attempts
            .iter()
            .all(|a| a.start_time.is_some() && a.end_time.is_some())
    );
}

#[test]
fn a_retry_that_succeeds_makes_the_job_succeed() {
    let mut w = world(1, 1, |_| ());
    w.run("j", 1);
    w.run("j", 0);
    assert_eq!(retries(&w), (ExecutionState::Succeeded, 1));
}

#[test]
fn a_job_without_a_policy_is_not_retried() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.run("j", 1);
    assert_eq!(retries(&w), (ExecutionState::Failed, 0));
}

#[test]
fn only_the_named_causes_are_retried() {
    use RetryCause::{Exitcode, Launch, Mount, Preparation, Wallclock};
    let codes = [
        ("JobFailed", Exitcode),
        ("JobPreparationFailed", Preparation),
        ("MountError", Mount),
        ("FileServerMountError", Mount),
        ("LaunchError", Launch),
        ("OutputDirectoryError", Launch),
    ];
    for (code, cause) in codes {
        for named in [
            None,
            Some(Exitcode),
            Some(Preparation),
            Some(Mount),
            Some(Launch),
            Some(Wallclock),
        ] {
            let mut w = world(1, 1, |c| {
                c.retry_on = named.iter().map(|&n| n.into()).collect()
            });
            fail(&mut w, code, Some(1));
            let expected = named.is_none_or(|n| n == cause);
            let state = if expected {
                (ExecutionState::Queued, 1)
            } else {
                (ExecutionState::Failed, 0)
            };
            assert_eq!(retries(&w), state, "{code} with {named:?}");
        }
    }
}

#[test]
fn only_the_named_exit_codes_are_retried() {
    for (exit_code, expected) in [
        (Some(75), ExecutionState::Queued),
        (Some(1), ExecutionState::Failed),
        (None, ExecutionState::Failed),
    ] {
        let mut w = world(1, 1, |c| c.retry_exit_codes = vec![75, 137]);
        fail(&mut w, "JobFailed", exit_code);
        assert_eq!(w.execution("j"), expected, "{exit_code:?}");
        // Exit codes are a matter of tasks: the code of a preparation does not count.
        let mut w = world(1, 1, |c| c.retry_exit_codes = vec![75]);
        fail(&mut w, "JobPreparationFailed", exit_code);
        assert_eq!(w.execution("j"), ExecutionState::Queued, "{exit_code:?}");
    }
}

#[test]
fn the_loss_of_a_node_does_not_count_as_a_retry() {
    let mut w = world(1, 1, |c| c.max_retry_count = 0);
    for boot in 2..40 {
        w.report("n1", "j", Running);
        w.lose("n1");
        assert_eq!(retries(&w), (ExecutionState::Queued, 0));
        w.hello("n1", 0, &format!("boot-{boot}"), vec![]);
        w.plan();
    }
    let numbers: Vec<u32> = w.job("j").attempts.iter().map(|a| a.number).collect();
    let mut expected: Vec<u32> = vec![1];
    expected.extend(9..=39);
    assert_eq!(
        numbers, expected,
        "the first attempt and the last 31 are kept"
    );
}

#[test]
fn a_failure_that_turns_out_to_be_a_loss_does_not_count() {
    let mut w = world(3, 2, |_| ());
    w.report("n2", "j", Preparing);
    w.exit("n1", "j", 1);
    w.report("n1", "j", Cleaned);
    w.lose("n2");
    assert_eq!(retries(&w), (ExecutionState::Queued, 0));
}

#[test]
fn terminate_and_delete_during_the_end_of_a_failure_prevent_the_retry() {
    for delete in [false, true] {
        let mut w = world(1, 1, |_| ());
        w.report("n1", "j", Running);
        w.exit("n1", "j", 1);
        if delete {
            w.delete(&job("j")).unwrap();
        } else {
            w.terminate("j");
        }
        w.report("n1", "j", Cleaned);
        if delete {
            assert!(w.state.job(&job("j")).is_none());
        } else {
            assert_eq!(retries(&w), (ExecutionState::Failed, 0));
            assert_eq!(w.error_code("j"), "JobTerminated");
        }
    }
}

#[test]
fn terminate_and_delete_end_a_job_that_waits_to_run_again() {
    let mut w = world(1, 1, |_| ());
    w.run("j", 1);
    w.terminate("j");
    assert_eq!(retries(&w), (ExecutionState::Failed, 1));
    assert_eq!(w.error_code("j"), "JobTerminated");
    let mut w = world(1, 1, |_| ());
    w.run("j", 1);
    w.delete(&job("j")).unwrap();
    assert!(w.state.job(&job("j")).is_none());
}

#[test]
fn the_wall_clock_is_retried_only_by_name_and_is_measured_anew() {
    let mut w = world(1, 1, |_| ());
    w.report("n1", "j", Running);
    expire(&mut w);
    w.report("n1", "j", Cleaned);
    assert_eq!(retries(&w), (ExecutionState::Failed, 0));
    assert_eq!(w.error_code("j"), "JobWallClockTimeExceeded");

    let mut w = world(1, 1, |c| c.retry_on = vec![RetryCause::Wallclock.into()]);
    w.report("n1", "j", Running);
    let first = w.state.next_deadline().unwrap();
    expire(&mut w);
    assert_eq!(w.execution("j"), ExecutionState::Terminating);
    w.report("n1", "j", Cleaned);
    assert_eq!(retries(&w), (ExecutionState::Queued, 1));
    w.plan();
    assert!(w.state.next_deadline().unwrap().seconds > first.seconds);
}

#[test]
fn terminate_and_delete_override_the_end_by_wall_clock() {
    for delete in [false, true] {
        let mut w = world(1, 1, |c| c.retry_on = vec![RetryCause::Wallclock.into()]);
        w.report("n1", "j", Running);
        expire(&mut w);
        if delete {
            w.delete(&job("j")).unwrap();
        } else {
            w.terminate("j");
        }
        w.report("n1", "j", Cleaned);
        if delete {
            assert!(w.state.job(&job("j")).is_none());
        } else {
            assert_eq!(retries(&w), (ExecutionState::Failed, 0));
            assert_eq!(w.error_code("j"), "JobTerminated");
        }
    }
}

#[test]
fn a_loss_during_the_end_by_wall_clock_changes_nothing() {
    let mut w = world(1, 1, |_| ());
    w.report("n1", "j", Running);
    expire(&mut w);
    w.lose("n1");
    assert_eq!(retries(&w), (ExecutionState::Failed, 0));
    assert_eq!(w.error_code("j"), "JobWallClockTimeExceeded");
}

#[test]
fn the_end_of_its_cluster_is_never_retried() {
    let mut w = world(1, 1, |_| ());
    w.try_job("waits", retrying(1, |_| ()), "").unwrap();
    w.report("n1", "j", Running);
    w.ok(Kind::DeleteCluster(store::Delete {
        name: C.into(),
        force: true,
        ..Default::default()
    }));
    assert_eq!(w.execution("waits"), ExecutionState::Failed);
    assert_eq!(w.error_code("waits"), "ClusterDeleted");
    w.report("n1", "j", Cleaned);
    assert_eq!(retries(&w), (ExecutionState::Failed, 0));
    assert_eq!(w.error_code("j"), "ClusterDeleted");
}

#[test]
fn nothing_undoes_a_success() {
    let mut w = world(1, 1, |_| ());
    w.report("n1", "j", Running);
    w.exit("n1", "j", 0);
    w.terminate("j");
    w.lose("n1");
    assert_eq!(retries(&w), (ExecutionState::Succeeded, 0));
}

fn shrink(w: &mut World, option: NodeDeallocationOption) {
    w.ok(Kind::UpdateCluster(store::UpdateCluster {
        cluster: Some(Cluster {
            name: C.into(),
            scale_settings: Some(ScaleSettings {
                manual: Some(ManualScaleSettings {
                    target_node_count: 0,
                    node_deallocation_option: option.into(),
                }),
                auto_scale: None,
            }),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["scale_settings".into()],
        }),
    }));
    w.plan();
}

#[test]
fn a_shrink_with_requeue_does_not_count_and_one_with_terminate_ends_the_job() {
    let mut w = world(1, 1, |_| ());
    w.report("n1", "j", Running);
    shrink(&mut w, NodeDeallocationOption::Requeue);
    assert_eq!(retries(&w), (ExecutionState::Queued, 0));
    let attempt = w.attempt("j");
    assert_eq!(attempt.outcome(), AttemptOutcome::Preempted);
    assert_eq!(attempt.errors[0].code, "NodeRemoved");
    w.report("n1", "j", Cleaned);
    assert_eq!(retries(&w), (ExecutionState::Queued, 0));

    let mut w = world(1, 1, |_| ());
    w.report("n1", "j", Running);
    shrink(&mut w, NodeDeallocationOption::Terminate);
    w.report("n1", "j", Cleaned);
    assert_eq!(retries(&w), (ExecutionState::Failed, 0));
    assert_eq!(w.error_code("j"), "ClusterShrunk");
}

#[test]
fn a_request_to_terminate_overrides_a_shrink_that_is_still_at_work() {
    let mut w = world(1, 1, |_| ());
    w.report("n1", "j", Running);
    shrink(&mut w, NodeDeallocationOption::Requeue);
    w.terminate("j");
    w.report("n1", "j", Cleaned);
    assert_eq!(retries(&w), (ExecutionState::Failed, 0));
    assert_eq!(w.error_code("j"), "JobTerminated");
}
