//! Scenarios of attempts: barrier, exits, failures, termination, loss of nodes, fencing.

mod world;

use AttemptNodePhase::{Cleaned, Failed, Prepared, Preparing, Running};
use trainyard_core::RefusalKind;
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::{World, job, status};

#[test]
fn a_job_of_one_node_needs_no_barrier() {
    let mut w = World::new(1, 4);
    w.submit("j", 1);
    w.plan();
    assert_eq!(w.execution("j"), ExecutionState::Running);
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Run));
    w.report("n1", "j", Running);
    w.exit("n1", "j", 0);
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Stop));
    assert_eq!(
        w.execution("j"),
        ExecutionState::Running,
        "until the node is clean"
    );
    w.report("n1", "j", Cleaned);
    assert_eq!(w.execution("j"), ExecutionState::Succeeded);
    assert_eq!(
        w.job("j").execution_info.as_ref().unwrap().exit_code,
        Some(0)
    );
    assert_eq!(w.desired_phase("n1", "j"), None);
}

#[test]
fn several_nodes_start_together_with_the_port_of_the_master() {
    let mut w = World::new(2, 4);
    w.submit("j", 2);
    w.plan();
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Prepare));
    w.report_status(
        "n1",
        "j",
        AttemptNodeStatus {
            rendezvous_port: 4711,
            ..status(Prepared)
        },
    );
    assert_eq!(
        w.desired_phase("n1", "j"),
        Some(AttemptPhase::Prepare),
        "n2 is not at the barrier yet"
    );
    w.report("n2", "j", Preparing);
    w.report("n2", "j", Prepared);
    for node in ["n1", "n2"] {
        let desired = w.state.desired(&format!("nodes/{node}"));
        assert_eq!(desired.assignments[0].phase(), AttemptPhase::Run);
        assert_eq!(desired.assignments[0].rendezvous_port, 4711);
    }
    w.exit("n1", "j", 0);
    assert_eq!(
        w.desired_phase("n2", "j"),
        Some(AttemptPhase::Run),
        "n2 still runs"
    );
    w.exit("n2", "j", 0);
    w.report("n1", "j", Cleaned);
    w.report("n2", "j", Cleaned);
    assert_eq!(w.execution("j"), ExecutionState::Succeeded);
}

#[test]
fn the_first_failure_by_time_is_the_cause_and_stops_the_others() {
    let mut w = World::new(2, 4);
    w.submit("j", 2);
    w.plan();
    w.report("n1", "j", Prepared);
    w.report("n2", "j", Prepared);
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    // n1 fails because n2 died; both reports arrive in one entry.
    let one = w.observed(
        "j",
        AttemptNodeStatus {
            exit_code: Some(1),
            failure_time: at(20),
            ..status(AttemptNodePhase::Exited)
        },
    );
    let two = w.observed(
        "j",
        AttemptNodeStatus {
            exit_code: Some(139),
            failure_time: at(10),
            ..status(AttemptNodePhase::Exited)
        },
    );
    w.report_raw("n2", vec![two]);
    w.report_raw("n1", vec![one]);
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Stop));
    w.report("n1", "j", Cleaned);
    w.report("n2", "j", Cleaned);
    let info = w.job("j").execution_info.clone().unwrap();
    assert_eq!(w.execution("j"), ExecutionState::Failed);
    assert_eq!(info.exit_code, Some(139));
    assert_eq!(info.errors[0].code, "JobFailed");
    assert!(
        info.errors[0].message.contains("nodes/n2"),
        "{}",
        info.errors[0].message
    );
}

#[test]
fn a_failed_preparation_never_launches() {
    let mut w = World::new(2, 0);
    w.submit("j", 2);
    w.plan();
    w.report("n1", "j", Prepared);
    let error = BatchAiError {
        code: "JobPreparationFailed".into(),
        message: "exit 7".into(),
        details: vec![],
    };
    w.report_status(
        "n2",
        "j",
        AttemptNodeStatus {
            exit_code: Some(7),
            errors: vec![error],
            ..status(Failed)
        },
    );
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Stop));
    w.report("n1", "j", Cleaned);
    w.report("n2", "j", Cleaned);
    let info = w.job("j").execution_info.clone().unwrap();
    assert_eq!(
        (info.exit_code, info.errors[0].code.as_str()),
        (Some(7), "JobPreparationFailed")
    );
}

#[test]
fn terminating_a_queued_job_ends_it_at_once() {
    let mut w = World::new(1, 0);
    w.submit("a", 1);
    w.plan();
    w.submit("b", 1);
    w.terminate("b");
    assert_eq!(w.execution("b"), ExecutionState::Failed);
    let info = w.job("b").execution_info.clone().unwrap();
    assert_eq!(
        (info.errors[0].code.as_str(), info.exit_code),
        ("JobTerminated", None)
    );
    assert!(info.start_time.is_some() && info.end_time.is_some());
}

#[test]
fn terminating_a_running_job_waits_for_its_nodes() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    w.report("n1", "j", Running);
    w.terminate("j");
    assert_eq!(w.execution("j"), ExecutionState::Terminating);
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Stop));
    w.exit("n1", "j", 143);
    w.report("n1", "j", Cleaned);
    let info = w.job("j").execution_info.clone().unwrap();
    assert_eq!(
        (info.errors[0].code.as_str(), info.exit_code),
        ("JobTerminated", None)
    );
    w.terminate("j");
    assert_eq!(
        w.execution("j"),
        ExecutionState::Failed,
        "terminating a completed job is a no-op"
    );
}

#[test]
fn a_lost_node_requeues_the_job_only_when_the_others_are_clean() {
    let mut w = World::new(3, 0);
    w.submit("j", 2);
    w.plan();
    assert_eq!(w.nodes_of("j"), ["n1", "n2"]);
    w.report("n1", "j", Prepared);
    w.report("n2", "j", Prepared);
    w.report("n1", "j", Running);
    w.report("n2", "j", Running);
    w.lose("n2");
    assert_eq!(w.execution("j"), ExecutionState::Queued);
    w.plan();
    assert_eq!(w.attempt("j").number, 1, "n1 still has tasks of attempt 1");
    assert!(
        w.explain("j")
            .summary
            .contains("attempt 1 is still being ended on nodes/n1")
    );
    w.report("n1", "j", Cleaned);
    w.plan();
    assert_eq!(w.attempt("j").number, 2);
    assert_eq!(w.nodes_of("j"), ["n1", "n3"]);
    assert!(w.attempt("j").epoch > w.job("j").attempts[0].epoch);
    assert_eq!(w.job("j").attempts[0].outcome(), AttemptOutcome::NodeLost);
}

#[test]
fn a_node_that_comes_back_gets_work_only_when_it_has_cleaned_up() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    w.report("n1", "j", Running);
    let stale = w.observed("j", status(Running));
    w.lose("n1");
    let node = w.hello("n1", 0, "boot-1", vec![stale.clone()]);
    assert_eq!(node.state(), NodeState::Cleaning);
    assert_eq!(w.desired_phase("n1", "j"), None, "the agent must end it");
    w.plan();
    assert_eq!(w.attempt("j").number, 1);
    let gone = ObservedAttempt {
        status: Some(status(Cleaned)),
        ..stale
    };
    w.report_raw("n1", vec![gone]);
    w.plan();
    assert_eq!(w.attempt("j").number, 2);
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Run));
}

#[test]
fn a_stale_loss_does_not_touch_a_node_that_registered_again() {
    let mut w = World::new(1, 0);
    let old = w.state.node("nodes/n1").unwrap().session_epoch;
    w.hello("n1", 0, "boot-1", vec![]);
    w.ok(Kind::MarkNodesLost(store::MarkNodesLost {
        nodes: vec![store::LostNode {
            node: "nodes/n1".into(),
            session_epoch: old,
        }],
    }));
    assert_eq!(w.state.node("nodes/n1").unwrap().state(), NodeState::Ready);
}

#[test]
fn a_report_of_an_older_session_is_refused() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    let old = w.state.node("nodes/n1").unwrap().session_epoch;
    let running = w.observed("j", status(Running));
    w.hello("n1", 0, "boot-1", vec![running.clone()]);
    let refusal = w
        .apply(Kind::ReportAttempts(store::ReportAttempts {
            node: "nodes/n1".into(),
            session_epoch: old,
            attempts: vec![running],
            ..store::ReportAttempts::default()
        }))
        .reply
        .unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Aborted);
}

#[test]
fn an_agent_that_restarts_with_its_tasks_disturbs_nothing() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    w.report("n1", "j", Running);
    let running = w.observed("j", status(Running));
    w.hello("n1", 0, "boot-1", vec![running]);
    assert_eq!(w.execution("j"), ExecutionState::Running);
    assert_eq!(w.attempt("j").number, 1);
    assert_eq!(w.state.node("nodes/n1").unwrap().state(), NodeState::Ready);
}

#[test]
fn a_reboot_or_a_vanished_attempt_requeues_the_job() {
    for (boot, observed_again) in [("boot-2", true), ("boot-1", false)] {
        let mut w = World::new(1, 0);
        w.submit("j", 1);
        w.plan();
        w.report("n1", "j", Running);
        let found = if observed_again {
            vec![w.observed("j", status(Running))]
        } else {
            vec![]
        };
        let node = w.hello("n1", 0, boot, found.clone());
        assert_eq!(node.state() == NodeState::Cleaning, observed_again);
        assert_eq!(w.execution("j"), ExecutionState::Queued);
        w.report_raw("n1", vec![]);
        w.plan();
        assert_eq!(w.attempt("j").number, 2);
    }
}

#[test]
fn an_assignment_that_never_reached_the_node_survives_a_new_session() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    w.hello("n1", 0, "boot-1", vec![]);
    assert_eq!(w.attempt("j").number, 1);
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Run));
}

#[test]
fn success_is_not_undone_by_a_loss_during_clean_up() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    w.exit("n1", "j", 0);
    w.lose("n1");
    assert_eq!(w.execution("j"), ExecutionState::Succeeded);
}

#[test]
fn terminating_while_a_lost_attempt_is_being_ended_prevents_the_requeue() {
    let mut w = World::new(2, 0);
    w.submit("j", 2);
    w.plan();
    w.report("n1", "j", Running);
    w.lose("n2");
    w.terminate("j");
    w.report("n1", "j", Cleaned);
    assert_eq!(w.execution("j"), ExecutionState::Failed);
    w.plan();
    assert_eq!(w.attempt("j").number, 1);
}

#[test]
fn deleting_a_running_job_terminates_it_first() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    w.report("n1", "j", Running);
    w.delete(&job("j")).unwrap();
    assert_eq!(w.job("j").provisioning_state(), ProvisioningState::Deleting);
    assert_eq!(w.desired_phase("n1", "j"), Some(AttemptPhase::Stop));
    w.report("n1", "j", Cleaned);
    assert!(w.state.job(&job("j")).is_none());
    assert_eq!(w.state.desired("nodes/n1").assignments, vec![]);
    w.check();
}

#[test]
fn the_wall_clock_limit_has_a_code_of_its_own() {
    let mut w = World::new(1, 0);
    let limit = prost_types::Duration {
        seconds: 60,
        nanos: 0,
    };
    let spec = JobSpec {
        constraints: Some(JobConstraints {
            max_wall_clock_time: Some(limit),
            ..JobConstraints::default()
        }),
        ..world::spec(1)
    };
    w.try_job("j", spec, "").unwrap();
    assert_eq!(
        w.state.next_deadline(),
        None,
        "a queued job has no deadline"
    );
    w.plan();
    w.report("n1", "j", Running);
    let deadline = w.state.next_deadline().unwrap();
    assert!(
        w.state
            .overdue(&prost_types::Timestamp {
                seconds: deadline.seconds - 1,
                nanos: 0
            })
            .is_empty()
    );
    let overdue = w.state.overdue(&deadline);
    assert_eq!(overdue.len(), 1);
    w.ok(Kind::TerminateJob(overdue[0].clone()));
    assert!(w.state.overdue(&deadline).is_empty());
    w.report("n1", "j", Cleaned);
    assert_eq!(
        w.job("j").execution_info.as_ref().unwrap().errors[0].code,
        "JobWallClockTimeExceeded"
    );
}

#[test]
fn a_report_that_changes_nothing_is_not_worth_an_entry() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    let epoch = w.state.node("nodes/n1").unwrap().session_epoch;
    let view = |attempt| Observed {
        attempts: vec![attempt],
        ..Observed::default()
    };
    let running = view(w.observed("j", status(Running)));
    assert!(w.state.report_differs("nodes/n1", epoch, &running));
    w.report_raw("n1", running.attempts.clone());
    assert!(!w.state.report_differs("nodes/n1", epoch, &running));
    let cleaned = view(w.observed("j", status(Cleaned)));
    assert!(!w.state.report_differs("nodes/n1", epoch - 1, &cleaned));
}

#[test]
fn a_failure_that_a_lost_node_caused_queues_the_job_again() {
    let mut w = World::new(3, 0);
    w.submit("j", 2);
    w.plan();
    for node in ["n1", "n2"] {
        w.report(node, "j", Prepared);
        w.report(node, "j", Running);
    }
    // n2's host dies; n1's rank gets "connection closed" at once.
    w.exit("n1", "j", 1);
    w.report("n1", "j", Cleaned);
    assert_eq!(
        w.execution("j"),
        ExecutionState::Running,
        "n2 has not confirmed yet"
    );
    w.lose("n2");
    assert_eq!(w.execution("j"), ExecutionState::Queued);
    assert_eq!(w.attempt("j").outcome(), AttemptOutcome::NodeLost);
    let attempt = w.attempt("j");
    let codes: Vec<&str> = attempt.errors.iter().map(|e| e.code.as_str()).collect();
    assert_eq!(
        codes,
        ["NodeLost", "JobFailed"],
        "what was seen first is kept"
    );
    w.plan();
    assert_eq!(
        (w.attempt("j").number, w.nodes_of("j")),
        (2, vec!["n1".to_owned(), "n3".to_owned()])
    );
}

#[test]
fn a_node_that_failed_by_itself_and_is_lost_later_is_still_a_failure() {
    let mut w = World::new(2, 0);
    w.submit("j", 2);
    w.plan();
    for node in ["n1", "n2"] {
        w.report(node, "j", Prepared);
    }
    w.exit("n2", "j", 3);
    w.report("n1", "j", Cleaned);
    w.lose("n2");
    assert_eq!(w.execution("j"), ExecutionState::Failed);
    assert_eq!(
        w.job("j").execution_info.as_ref().unwrap().exit_code,
        Some(3)
    );
}

#[test]
fn an_agent_that_says_its_tasks_were_taken_away_queues_the_job_again() {
    let mut w = World::new(1, 0);
    w.submit("j", 1);
    w.plan();
    let error = BatchAiError {
        code: "NodeLost".into(),
        message: "lease".into(),
        details: vec![],
    };
    w.report_status(
        "n1",
        "j",
        AttemptNodeStatus {
            errors: vec![error],
            ..status(Failed)
        },
    );
    w.report("n1", "j", Cleaned);
    assert_eq!(w.execution("j"), ExecutionState::Queued);
}

#[test]
fn a_request_to_terminate_a_failing_job_prevents_the_requeue() {
    let mut w = World::new(2, 0);
    w.submit("j", 2);
    w.plan();
    w.report("n2", "j", Preparing);
    w.exit("n1", "j", 1);
    w.delete(&job("j")).unwrap();
    w.report("n1", "j", Cleaned);
    w.lose("n2");
    assert!(w.state.job(&job("j")).is_none());
}
