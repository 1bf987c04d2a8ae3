//! The life of one attempt, as a pure machine: what its nodes reported ⇒ what they are told next.
//!
//! ```text
//! PREPARE ──all PREPARED──► RUN ──all EXITED(0)──► STOP(succeeded) ──all CLEANED or LOST──► ENDED
//!    │                       │
//!    └──── any FAILED, non-zero exit, LOST, or a request to terminate ────► STOP(why)
//! ```
//!
//! The outcome is decided when the attempt enters STOP. Until the attempt has ended it changes in two cases only: a
//! failure turns out to be the loss of a node, and a request to terminate overrides a failure, a loss, a preemption or
//! the end by wall clock (so that the job is not queued again). The record of an attempt belongs
//! to the scheduler; a node's `status` belongs to that node's agent, and only LOST is written by the scheduler.

use prost_types::Timestamp;
use trainyard_proto::store::v1::{ReleaseCause, TerminateCause};
use trainyard_proto::v1::{
    Attempt, AttemptNode, AttemptNodePhase, AttemptNodeStatus, AttemptOutcome, AttemptPhase,
    BatchAiError, NameValuePair,
};

/// Code of the error of a node that was lost; agents report it as well.
const NODE_LOST: &str = "NodeLost";
/// Code of the error of a job that ran too long.
pub(crate) const WALL_CLOCK: &str = "JobWallClockTimeExceeded";
/// Code of a task that ended with another status than 0.
pub(crate) const JOB_FAILED: &str = "JobFailed";
/// Attempts kept of a job: the first, and the last of the others.
const KEPT_ATTEMPTS: usize = 32;

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
                stop(attempt, AttemptOutcome::Failed, exit_code, errors);
                blame_lost_node(attempt);
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
        AttemptPhase::Stop => blame_lost_node(attempt),
        AttemptPhase::Unspecified | AttemptPhase::Ended => {}
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

/// The tasks of a gang fail within moments when one of their nodes dies, long before its lease is over. So a failure
/// turns out to be the loss of a node when, before the attempt has ended, a node is lost that had not ended by itself.
fn blame_lost_node(attempt: &mut Attempt) {
    if attempt.outcome() != AttemptOutcome::Failed {
        return;
    }
    let Some(node) = attempt.nodes.iter().find(|n| is_taken_away(n)) else {
        return;
    };
    let mut errors = vec![node_lost(&node.node)];
    errors.append(&mut attempt.errors);
    errors.dedup_by(|a, b| a.code == b.code && a.details == b.details);
    stop(attempt, AttemptOutcome::NodeLost, None, errors);
}

/// Whether the node was lost before its part ended, by the lease or by its agent's own word (a reboot, or a lease that
/// ran out and was renewed in time).
fn is_taken_away(node: &AttemptNode) -> bool {
    let Some(status) = node.status.as_ref() else {
        return false;
    };
    let by_agent = status.errors.first().is_some_and(|e| e.code == NODE_LOST);
    by_agent
        || (status.phase() == AttemptNodePhase::Lost
            && status.exit_code.is_none()
            && status.errors.is_empty())
}

/// Ends the attempt on request. Without effect once it succeeded; one that failed or ran too long, but whose nodes have
/// not all ended yet, counts as terminated, so that it can never be queued again.
pub(crate) fn terminate(
    attempt: &mut Attempt,
    cause: TerminateCause,
    error: BatchAiError,
    now: &Timestamp,
) -> bool {
    let undecided = match attempt.outcome() {
        AttemptOutcome::Unspecified
        | AttemptOutcome::NodeLost
        | AttemptOutcome::Preempted
        | AttemptOutcome::Failed => true,
        AttemptOutcome::Terminated => ran_too_long(attempt) && cause != TerminateCause::WallClock,
        AttemptOutcome::Succeeded => false,
    };
    if !undecided || attempt.phase() == AttemptPhase::Ended {
        return false;
    }
    let mut errors = vec![error];
    errors.append(&mut attempt.errors);
    stop(attempt, AttemptOutcome::Terminated, None, errors);
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
            WALL_CLOCK,
            "The job ran longer than constraints.maxWallClockTime and was ended; raise the limit to let it run on.",
        ),
        TerminateCause::ClusterDeleted => (
            "ClusterDeleted",
            "The job's cluster was deleted, so the job was ended; create it again on another cluster.",
        ),
        TerminateCause::ClusterShrunk => (
            "ClusterShrunk",
            "The job's cluster shrank with nodeDeallocationOption terminate, so the job was ended; create it again, or \
             shrink with requeue or waitforjobcompletion.",
        ),
        TerminateCause::Dependency => (
            "DependencyFailed",
            "A job that this one depends on did not succeed, so it was never started.",
        ),
    };
    BatchAiError {
        code: code.to_owned(),
        message: message.to_owned(),
        details: Vec::new(),
    }
}

/// The error of a job that was never started because `dependency` did not succeed.
pub(crate) fn dependency_failed(dependency: &str) -> BatchAiError {
    BatchAiError {
        message: format!(
            "{dependency} did not succeed, so this job, which depends on it, was never started; see what became of that \
             job, or depend on its `end`."
        ),
        details: vec![detail("job", dependency)],
        ..terminated(TerminateCause::Dependency)
    }
}

/// Takes the attempt's nodes away because `node` leaves its cluster: the job is queued again. Without effect once the
/// attempt is being ended for another cause.
pub(crate) fn preempt(
    attempt: &mut Attempt,
    node: &str,
    cause: ReleaseCause,
    now: &Timestamp,
) -> bool {
    if !matches!(attempt.phase(), AttemptPhase::Prepare | AttemptPhase::Run) {
        return false;
    }
    let (code, why) = match cause {
        ReleaseCause::Preemption => (
            "ClusterPreempted",
            "was taken from its low-priority cluster for a dedicated one",
        ),
        ReleaseCause::Unspecified | ReleaseCause::Shrink | ReleaseCause::Deletion => {
            ("NodeRemoved", "left its cluster")
        }
    };
    let error = BatchAiError {
        code: code.to_owned(),
        message: format!("{node} {why} while the job ran; the job is queued again."),
        details: vec![detail("node", node)],
    };
    stop(attempt, AttemptOutcome::Preempted, None, vec![error]);
    advance(attempt, now);
    true
}

/// Whether the attempt is being ended, or was, because it ran too long.
pub(crate) fn ran_too_long(attempt: &Attempt) -> bool {
    attempt.outcome() == AttemptOutcome::Terminated
        && attempt.errors.first().is_some_and(|e| e.code == WALL_CLOCK)
}

/// Bounds a job's history: the first attempt says how it began, the last ones how it goes.
pub(crate) fn keep_history(attempts: &mut Vec<Attempt>) {
    while attempts.len() > KEPT_ATTEMPTS {
        attempts.remove(1);
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
        code: JOB_FAILED.to_owned(),
        message,
        details: vec![detail("node", node)],
    }
}

fn node_lost(node: &str) -> BatchAiError {
    BatchAiError {
        code: NODE_LOST.to_owned(),
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
