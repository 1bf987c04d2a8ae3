//! `trainyard job terminate` (of one or several) and `trainyard job delete`. Both wait until it is done unless told otherwise, as users of
//! Batch AI expect.

use std::time::Duration;

use clap::Args;
use trainyard_proto::v1::{
    DeleteJobRequest, GetJobRequest, Job, TerminateJobRequest, TerminateJobsRequest,
};
use trainyard_shared::names::JobName;

use super::several::{End, SeveralArgs, look, unfinished, until_ended};
use super::{NameArg, has_ended, state};
use crate::api::Api;
use crate::args::YesArg;
use crate::console::{Console, confirm_delete, note};
use crate::context::Context;
use crate::error::Error;
use crate::status::{describe, is_not_found};
use crate::text::count;

/// Between two looks at a job that is being deleted: a record that vanishes ends no stream of its own.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Code of the error of a job that was ended on request.
const TERMINATED: &str = "JobTerminated";

#[derive(Debug, Args)]
pub(crate) struct TerminateArgs {
    #[command(flatten)]
    jobs: SeveralArgs,
    /// Do not wait until they have ended
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

/// Ends jobs.
pub(super) async fn terminate(context: &Context, args: &TerminateArgs) -> Result<u8, Error> {
    let named = args.jobs.named()?;
    let api = context.api()?;
    let asked = match &args.jobs.filter {
        Some(filter) => end_matching(&api, args.jobs.parent()?, filter).await?,
        None => end_named(&api, &named).await,
    };
    let jobs = if args.no_wait {
        look(&api, &asked.names.iter().cloned().collect()).await?
    } else {
        wait_for_ends(&api, &asked.names, &mut Console::standard()).await?
    };
    let jobs: Vec<Job> = jobs.into_iter().filter_map(|(_, job)| job).collect();
    match (&args.jobs.filter, &jobs[..]) {
        (None, [job]) if named.len() == 1 => {
            context
                .output()
                .one(job, |job| format!("{}\n", what_became(job)))?;
        }
        (_, jobs) => context.output().list(jobs, |jobs| {
            jobs.iter()
                .map(|job| format!("{}\n", what_became(job)))
                .collect()
        })?,
    }
    if asked.refused.is_empty() {
        Ok(0)
    } else {
        Err(Error::failure(asked.refused.join("\n")))
    }
}

/// What was asked of the schedulers.
#[derive(Debug, Default)]
struct Asked {
    /// Jobs that end, or had ended.
    names: Vec<String>,
    /// Why others do not, a sentence each.
    refused: Vec<String>,
}

/// One that cannot be ended does not keep the others.
async fn end_named(api: &Api, names: &[JobName]) -> Asked {
    let mut asked = Asked::default();
    for name in names {
        let name = name.to_string();
        let request = TerminateJobRequest { name: name.clone() };
        match api.terminate_job(request).await {
            Ok(_) => asked.names.push(name),
            Err(status) => asked.refused.push(describe(&status)),
        }
    }
    asked
}

async fn end_matching(api: &Api, parent: String, filter: &str) -> Result<Asked, Error> {
    let names = unfinished(api, &parent, filter).await?;
    if names.is_empty() {
        note("no job that has not ended matches");
        return Ok(Asked::default());
    }
    api.terminate_jobs(TerminateJobsRequest {
        parent,
        filter: filter.to_owned(),
    })
    .await?;
    Ok(Asked {
        names,
        ..Asked::default()
    })
}

/// The jobs once they have ended, in the order given; none for one that was deleted.
async fn wait_for_ends(
    api: &Api,
    names: &[String],
    console: &mut Console,
) -> Result<Vec<(String, Option<Job>)>, Error> {
    let waiting = |left: usize| match names {
        [name] => format!("{name} is being ended"),
        _ => format!("{} are being ended", count(left as u64, "job")),
    };
    if !names.is_empty() {
        console.waiting_on_terminal(&waiting(names.len()));
    }
    let ends = until_ended(api, names, true, |_, _, left| {
        if left > 0 {
            console.waiting_on_terminal(&waiting(left));
        }
    })
    .await;
    console.done_waiting();
    let mut ends = ends?;
    Ok(names
        .iter()
        .map(|name| match ends.remove(name) {
            Some(End::Job(job)) => (name.clone(), Some(*job)),
            Some(End::Deleted) | None => (name.clone(), None),
        })
        .collect())
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
    use crate::job::yard::{PARENT, Seen, Yard, name_of};

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

    #[tokio::test]
    async fn jobs_that_match_are_ended_and_waited_for() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Running);
        yard.put("b", ExecutionState::Queued);
        yard.put("c", ExecutionState::Running);
        let asked = end_matching(&api, PARENT.to_owned(), "state = running")
            .await
            .unwrap();
        assert_eq!(asked.names, [name_of("a"), name_of("c")]);
        let wait = tokio::spawn(async move {
            let (_, mut console) = Seen::console();
            wait_for_ends(&api, &asked.names, &mut console).await
        });
        yard.is_watched().await;
        yard.put("c", ExecutionState::Failed);
        yard.delete("a");
        let jobs = wait.await.unwrap().unwrap();
        assert_eq!(jobs[0], (name_of("a"), None));
        assert!(jobs[1].1.as_ref().is_some_and(has_ended));
    }

    #[tokio::test]
    async fn one_that_is_not_there_does_not_keep_the_others() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Running);
        let names = [
            name_of("missing").parse().unwrap(),
            name_of("a").parse().unwrap(),
        ];
        let asked = end_named(&api, &names).await;
        assert_eq!(asked.names, [name_of("a")]);
        assert!(asked.refused[0].contains("missing"), "{:?}", asked.refused);
    }
}
