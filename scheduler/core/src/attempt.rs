//! The life of one attempt, as a pure machine: what its nodes reported ⇒ what they are told next.
//!
//! ```text
//! PREPARE ──all PREPARED──► RUN ──all EXITED(0)──► STOP(succeeded) ──all CLEANED or LOST──► ENDED
//!    │                       │
//!    └──── any FAILED, non-zero exit, LOST, or a request to terminate ────► STOP(why)
//! ```
//!
//! The outcome is decided once, when the attempt enters STOP, and never changes, except that a request to
//! terminate overrides the loss of a node (so that the job is not queued again). The record of an attempt belongs
//! to the scheduler; a node's `status` belongs to that node's agent, and only LOST is written by the scheduler.

use prost_types::Timestamp;
use trainyard_proto::store::v1::TerminateCause;
use trainyard_proto::v1::{
    Attempt, AttemptNode, AttemptNodePhase, AttemptNodeStatus, AttemptOutcome, AttemptPhase,
    BatchAiError, NameValuePair,
};

/// Phase that the node reported last.
pub(crate) fn phase_of(node: &AttemptNode) -> AttemptNodePhase {
    node.status
        .as_ref()
        .map_or(AttemptNodePhase::Unspecified, |s| s.phase())
}

/// Takes over what a node's agent reported. Returns whether anything changed. A node that is CLEANED or LOST has
/// nothing more to say.
pub(crate) fn merge_status(node: &mut AttemptNode, reported: &AttemptNodeStatus) -> bool {
    if matches!(
        phase_of(node),
        AttemptNodePhase::Cleaned | AttemptNodePhase::Lost
    ) {
        return false;
    }
    if reported.phase() == AttemptNodePhase::Lost {
        return false;
    }
    if node.status.as_ref() == Some(reported) {
        return false;
    }
    node.status = Some(reported.clone());
    true
}

/// Writes a node off: its tasks are dead by the lease or by a reboot.
pub(crate) fn mark_lost(node: &mut AttemptNode) {
    let mut status = node.status.take().unwrap_or_default();
    status.set_phase(AttemptNodePhase::Lost);
    node.status = Some(status);
}

/// Moves the attempt on as far as its nodes' reports allow.
pub(crate) fn advance(attempt: &mut Attempt, now: &Timestamp) {
    match attempt.phase() {
        AttemptPhase::Prepare | AttemptPhase::Run => {
            if let Some(node) = attempt
                .nodes
                .iter()
                .find(|n| phase_of(n) == AttemptNodePhase::Lost)
            {
                let error = node_lost(&node.node);
                stop(attempt, AttemptOutcome::NodeLost, None, vec![error]);
            } else if let Some((exit_code, errors)) = first_failure(attempt) {
                // The agent's own word that the lease or a reboot took its tasks: the job is not to blame.
                let lost = errors.first().is_some_and(|e| e.code == "NodeLost");
                let outcome = if lost { AttemptOutcome::NodeLost } else { AttemptOutcome::Failed };
                stop(attempt, outcome, exit_code, errors);
            } else if attempt.phase() == AttemptPhase::Prepare {
                if attempt.nodes.iter().all(|n| is_past_barrier(phase_of(n))) {
                    attempt.set_phase(AttemptPhase::Run);
                }
            } else if attempt
                .nodes
                .iter()
                .all(|n| phase_of(n) == AttemptNodePhase::Exited)
            {
                stop(attempt, AttemptOutcome::Succeeded, Some(0), Vec::new());
            }
        }
        AttemptPhase::Stop | AttemptPhase::Unspecified | AttemptPhase::Ended => {}
    }
    let done = attempt.nodes.iter().all(|n| {
        matches!(
            phase_of(n),
            AttemptNodePhase::Cleaned | AttemptNodePhase::Lost
        )
    });
    if attempt.phase() == AttemptPhase::Stop && done {
        attempt.set_phase(AttemptPhase::Ended);
        attempt.end_time = Some(*now);
    }
}

/// Ends the attempt on request. Without effect once it succeeded or failed by itself.
pub(crate) fn terminate(attempt: &mut Attempt, cause: TerminateCause, now: &Timestamp) -> bool {
    let undecided = match attempt.outcome() {
        AttemptOutcome::Unspecified | AttemptOutcome::NodeLost => true,
        AttemptOutcome::Succeeded | AttemptOutcome::Failed | AttemptOutcome::Terminated => false,
    };
    if !undecided || attempt.phase() == AttemptPhase::Ended {
        return false;
    }
    stop(
        attempt,
        AttemptOutcome::Terminated,
        None,
        vec![terminated(cause)],
    );
    advance(attempt, now);
    true
}

/// The error of a job that was ended on request.
pub(crate) fn terminated(cause: TerminateCause) -> BatchAiError {
    let (code, message) = match cause {
        TerminateCause::Unspecified | TerminateCause::Requested => {
            ("JobTerminated", "The job was terminated on request.")
        }
        TerminateCause::WallClock => (
            "JobWallClockTimeExceeded",
            "The job ran longer than constraints.maxWallClockTime and was ended; raise the limit to let it run on.",
        ),
    };
    BatchAiError {
        code: code.to_owned(),
        message: message.to_owned(),
        details: Vec::new(),
    }
}

fn stop(
    attempt: &mut Attempt,
    outcome: AttemptOutcome,
    exit_code: Option<i32>,
    errors: Vec<BatchAiError>,
) {
    attempt.set_phase(AttemptPhase::Stop);
    attempt.set_outcome(outcome);
    attempt.exit_code = exit_code;
    attempt.errors = errors;
}

fn is_past_barrier(phase: AttemptNodePhase) -> bool {
    matches!(
        phase,
        AttemptNodePhase::Prepared | AttemptNodePhase::Running | AttemptNodePhase::Exited
    )
}

/// The failure that happened first by the nodes' clocks, if any: exit code and errors.
fn first_failure(attempt: &Attempt) -> Option<(Option<i32>, Vec<BatchAiError>)> {
    attempt
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(position, node)| {
            let status = node.status.as_ref()?;
            let failed = match status.phase() {
                AttemptNodePhase::Failed => true,
                AttemptNodePhase::Exited => status.exit_code.unwrap_or(0) != 0,
                // An agent that cleaned up without being told to has given the attempt up.
                AttemptNodePhase::Cleaned => true,
                AttemptNodePhase::Unspecified
                | AttemptNodePhase::Preparing
                | AttemptNodePhase::Prepared
                | AttemptNodePhase::Running
                | AttemptNodePhase::Lost => false,
            };
            let at = status
                .failure_time
                .as_ref()
                .map_or((i64::MAX, 0), |t| (t.seconds, t.nanos));
            failed.then_some((at, position, node, status))
        })
        .min_by_key(|(at, position, _, _)| (*at, *position))
        .map(|(_, _, node, status)| {
            let mut errors = status.errors.clone();
            if errors.is_empty() {
                errors.push(job_failed(&node.node, status.exit_code));
            }
            (status.exit_code, errors)
        })
}

fn job_failed(node: &str, exit_code: Option<i32>) -> BatchAiError {
    let message = match exit_code {
        Some(code) => {
            format!("The job exited with status {code} on {node}; its stderr files say more.")
        }
        None => {
            format!("The job ended on {node} without an exit status; its execution log says more.")
        }
    };
    BatchAiError {
        code: "JobFailed".to_owned(),
        message,
        details: vec![detail("node", node)],
    }
}

fn node_lost(node: &str) -> BatchAiError {
    BatchAiError {
        code: "NodeLost".to_owned(),
        message: format!("{node} was lost while the job ran; the job is queued again."),
        details: vec![detail("node", node)],
    }
}

fn detail(name: &str, value: &str) -> NameValuePair {
    NameValuePair {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}
