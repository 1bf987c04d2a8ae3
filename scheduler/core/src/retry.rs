//! Whether a job that failed is to run again, by its own `constraints`.
//!
//! Only failures are looked at here: the loss of a node and the shrink of a cluster queue a job again without this.

use trainyard_proto::v1::{
    Attempt, AttemptOutcome, Job, JobConstraints, ProvisioningState, RetryCause,
};

use crate::attempt::{JOB_FAILED, ran_too_long};

/// Code of a job preparation that ended with another status than 0.
const PREPARATION_FAILED: &str = "JobPreparationFailed";
/// Every code of a volume that could not be mounted ends so.
const MOUNT_ERROR: &str = "MountError";

/// Whether the job, whose latest attempt has ended like this, runs again.
pub(crate) fn is_due(job: &Job, attempt: &Attempt) -> bool {
    let Some(constraints) = job.spec.as_ref().and_then(|s| s.constraints.as_ref()) else {
        return false;
    };
    job.provisioning_state() != ProvisioningState::Deleting
        && job.retry_count < constraints.max_retry_count
        && cause_of(attempt).is_some_and(|cause| covers(constraints, cause, attempt.exit_code))
}

/// What kind of failure this is; `None`: one that is never retried.
fn cause_of(attempt: &Attempt) -> Option<RetryCause> {
    match attempt.outcome() {
        AttemptOutcome::Failed => {
            let code = attempt.errors.first().map_or("", |e| e.code.as_str());
            Some(match code {
                JOB_FAILED => RetryCause::Exitcode,
                PREPARATION_FAILED => RetryCause::Preparation,
                code if code.ends_with(MOUNT_ERROR) => RetryCause::Mount,
                _ => RetryCause::Launch,
            })
        }
        AttemptOutcome::Terminated if ran_too_long(attempt) => Some(RetryCause::Wallclock),
        AttemptOutcome::Unspecified
        | AttemptOutcome::Succeeded
        | AttemptOutcome::Terminated
        | AttemptOutcome::NodeLost
        | AttemptOutcome::Preempted => None,
    }
}

fn covers(constraints: &JobConstraints, cause: RetryCause, exit_code: Option<i32>) -> bool {
    let named = if constraints.retry_on.is_empty() {
        cause != RetryCause::Wallclock
    } else {
        constraints.retry_on().any(|wanted| wanted == cause)
    };
    let codes = &constraints.retry_exit_codes;
    let code_fits = cause != RetryCause::Exitcode
        || codes.is_empty()
        || exit_code.is_some_and(|code| codes.contains(&code));
    named && code_fits
}
