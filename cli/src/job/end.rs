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
    let state = state(job.execution_state());
    context.output().one(&job, |job| {
        format!("terminated {} (now {state})\n", job.name)
    })?;
    Ok(0)
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
