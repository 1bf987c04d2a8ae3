//! `trainyard job terminate` and `trainyard job delete`. Both wait until it is done unless told otherwise, as users of
//! Batch AI expect.

use std::time::Duration;

use clap::Args;
use trainyard_proto::v1::{DeleteJobRequest, GetJobRequest, Job, TerminateJobRequest};

use super::{NameArg, has_ended, state};
use crate::api::Api;
use crate::args::YesArg;
use crate::console::{Console, confirm_delete};
use crate::context::Context;
use crate::error::Error;
use crate::status::is_not_found;

/// Between two looks at a job that is being deleted: a record that vanishes ends no stream of its own.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Code of the error of a job that was ended on request.
const TERMINATED: &str = "JobTerminated";

#[derive(Debug, Args)]
pub(crate) struct TerminateArgs {
    #[command(flatten)]
    name: NameArg,
    /// Do not wait until the job has ended
    #[arg(long)]
    no_wait: bool,
    /// Accepted for compatibility; nothing is asked
    #[arg(short, long, hide = true)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    yes: YesArg,
    /// Do not wait until the job is gone
    #[arg(long)]
    no_wait: bool,
}

/// Ends a job.
pub(super) async fn terminate(context: &Context, args: &TerminateArgs) -> Result<u8, Error> {
    let name = args.name.resolve()?.to_string();
    let api = context.api()?;
    let mut job = api
        .terminate_job(TerminateJobRequest { name: name.clone() })
        .await?;
    if !args.no_wait && !has_ended(&job) {
        let mut console = Console::standard();
        console.waiting(&format!("{name} is being ended"));
        job = wait_for_end(&api, &name, job).await?;
    }
    context
        .output()
        .one(&job, |job| format!("{}\n", what_became(job)))?;
    Ok(0)
}

/// What to say of a job that was to be ended: it may have ended by itself before.
fn what_became(job: &Job) -> String {
    let info = job.execution_info.clone().unwrap_or_default();
    let is_terminated = info.errors.iter().any(|error| error.code == TERMINATED);
    if has_ended(job) && !is_terminated {
        let state = state(job.execution_state());
        format!("{} had ended already: {state}", job.name)
    } else if has_ended(job) {
        format!("terminated {}", job.name)
    } else {
        format!("terminating {}", job.name)
    }
}

async fn wait_for_end(api: &Api, name: &str, mut latest: Job) -> Result<Job, Error> {
    let mut jobs = api.client().watch_job(name);
    while let Some(job) = jobs.message().await? {
        latest = job;
        if has_ended(&latest) {
            break;
        }
    }
    Ok(latest)
}

/// Deletes a job.
pub(super) async fn delete(context: &Context, args: &DeleteArgs) -> Result<u8, Error> {
    let name = args.name.resolve()?.to_string();
    let api = context.api()?;
    confirm_delete(args.yes.yes, &name)?;
    api.delete_job(DeleteJobRequest {
        name: name.clone(),
        etag: String::new(),
    })
    .await?;
    if !args.no_wait {
        let mut console = Console::standard();
        loop {
            match api.get_job(GetJobRequest { name: name.clone() }).await {
                Err(status) if is_not_found(&status) => break,
                Err(status) => return Err(status.into()),
                Ok(_) => {
                    console.waiting(&format!("{name} is being ended and deleted"));
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }
    context.output().deleted(&name)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::{BatchAiError, ExecutionInfo, ExecutionState};

    use super::*;

    #[test]
    fn a_job_that_had_ended_was_not_terminated() {
        let mut job = Job {
            name: "j".into(),
            execution_state: ExecutionState::Succeeded.into(),
            ..Job::default()
        };
        assert_eq!(what_became(&job), "j had ended already: succeeded");
        job.set_execution_state(ExecutionState::Failed);
        let error = BatchAiError {
            code: TERMINATED.into(),
            ..BatchAiError::default()
        };
        job.execution_info = Some(ExecutionInfo {
            errors: vec![error],
            ..ExecutionInfo::default()
        });
        assert_eq!(what_became(&job), "terminated j");
        job.set_execution_state(ExecutionState::Terminating);
        assert_eq!(what_became(&job), "terminating j");
    }
}
