//! `trainyard experiment`: create, show, list, delete.

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use trainyard_proto::v1::{
    CreateExperimentRequest, DeleteExperimentRequest, ExecutionState, Experiment,
    GetExperimentRequest, Job, TerminateJobsRequest, WatchRequest,
};
use trainyard_shared::client::new_request_id;

use crate::args::{Format, WorkspaceArg, YesArg};
use crate::console::{Console, confirm_delete};
use crate::context::Context;
use crate::error::Error;
use crate::gone::{self, WaitArg};
use crate::output::write;
use crate::scope::{experiment_name, workspace};
use crate::table::{Details, Table};
use crate::text::{age, count, last_segment, now, time};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an experiment; one that exists already is left as it is
    Create(NameArg),
    /// Show one experiment
    Show(NameArg),
    /// List the experiments of a workspace
    List(WorkspaceArg),
    /// End the jobs of an experiment that have not ended
    Terminate(TerminateArgs),
    /// Wait until every job of an experiment has ended; succeeds when all have succeeded
    Wait(NameArg),
    /// Delete an experiment with its jobs; running ones are ended first
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    #[command(flatten)]
    workspace: WorkspaceArg,
    /// Experiment
    #[arg(
        short,
        long,
        short_alias = 'e',
        alias = "experiment",
        value_name = "EXPERIMENT"
    )]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct TerminateArgs {
    #[command(flatten)]
    name: NameArg,
    /// Which jobs, such as `state = queued` or `array = "UUID"` [default: all]
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    name: NameArg,
    #[command(flatten)]
    yes: YesArg,
    #[command(flatten)]
    wait: WaitArg,
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Create(args) => {
            let name = experiment_name(&args.workspace, &args.name)?;
            let request = CreateExperimentRequest {
                parent: name.parent().to_string(),
                experiment_id: name.id().to_owned(),
                experiment: Some(Experiment::default()),
                request_id: new_request_id(),
            };
            let created = context.api()?.create_experiment(request).await?;
            context.output().done("created", &created)?;
        }
        Command::Show(args) => {
            let name = experiment_name(&args.workspace, &args.name)?.to_string();
            let experiment = context
                .api()?
                .get_experiment(GetExperimentRequest { name })
                .await?;
            context.output().one(&experiment, details)?;
        }
        Command::List(args) => {
            let parent = workspace(&args)?;
            let experiments = context.api()?.all_experiments(parent.as_str()).await?;
            context
                .output()
                .list(&experiments, |items| table(items, &now()))?;
        }
        Command::Terminate(args) => {
            let name = experiment_name(&args.name.workspace, &args.name.name)?.to_string();
            let request = TerminateJobsRequest {
                parent: name,
                filter: args.filter,
            };
            let answer = context.api()?.terminate_jobs(request).await?;
            match context.output().format() {
                Format::Table | Format::Name => {
                    write(&format!("terminated {}\n", count(answer.terminated, "job")))?
                }
                Format::Json | Format::Yaml => context
                    .output()
                    .value(&trainyard_shared::json::to_json(&answer))?,
            }
        }
        Command::Wait(args) => {
            let name = experiment_name(&args.workspace, &args.name)?.to_string();
            return wait(context, &name).await;
        }
        Command::Delete(args) => {
            let name = experiment_name(&args.name.workspace, &args.name.name)?.to_string();
            let api = context.api()?;
            confirm_delete(args.yes.yes, &name)?;
            api.delete_experiment(DeleteExperimentRequest {
                name: name.clone(),
                etag: String::new(),
            })
            .await?;
            if args.wait.no_wait {
                return Ok(0);
            }
            gone::wait(context, &name, |api| {
                let request = GetExperimentRequest { name: name.clone() };
                async move { api.get_experiment(request).await }
            })
            .await?;
            context.output().deleted(&name)?;
        }
    }
    Ok(0)
}

/// How many jobs of an experiment are in which state.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    unfinished: u64,
    succeeded: u64,
    failed: u64,
}

impl Tally {
    fn of(jobs: &[Job]) -> Self {
        let mut tally = Self::default();
        for job in jobs {
            match job.execution_state() {
                ExecutionState::Succeeded => tally.succeeded += 1,
                ExecutionState::Failed => tally.failed += 1,
                ExecutionState::Unspecified
                | ExecutionState::Queued
                | ExecutionState::Running
                | ExecutionState::Terminating => tally.unfinished += 1,
            }
        }
        tally
    }
}

/// Waits for the end of every job that the experiment has, also of those that are created meanwhile.
async fn wait(context: &Context, name: &str) -> Result<u8, Error> {
    let api = context.api()?;
    let mut console = Console::standard();
    // Watched before it is looked at: what ends in between is not missed.
    let mut changes = api.client().watch(WatchRequest {
        prefixes: vec![format!("{name}/jobs/")],
        ..WatchRequest::default()
    });
    // Jobs that have ended are asked for once, in the end.
    let unfinished = "state != succeeded AND state != failed";
    loop {
        let open = api.jobs_matching(name, unfinished).await?;
        if open.is_empty() {
            break;
        }
        let open = u64::try_from(open.len()).unwrap_or(u64::MAX);
        console.waiting_on_terminal(&format!("{} of {name} to go", count(open, "job")));
        tokio::select! {
            change = changes.message() => {
                change?;
            }
            _ = tokio::signal::ctrl_c() => return Err(Error::Interrupted),
        }
    }
    console.done_waiting();
    let tally = Tally::of(&api.all_jobs(name).await?);
    write(&format!(
        "{} succeeded, {} failed\n",
        count(tally.succeeded, "job"),
        tally.failed
    ))?;
    Ok(u8::from(tally.failed > 0))
}

fn table(experiments: &[Experiment], now: &Timestamp) -> String {
    let mut table = Table::new(&["NAME", "AGE"]);
    for experiment in experiments {
        table.row([
            last_segment(&experiment.name).to_owned(),
            age(experiment.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn details(experiment: &Experiment) -> String {
    let mut details = Details::default();
    details
        .add("Name", &experiment.name)
        .add("Created", time(experiment.creation_time.as_ref()));
    details.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_counted_by_how_they_stand() {
        let job = |state: ExecutionState| Job {
            execution_state: state.into(),
            ..Job::default()
        };
        let tally = Tally::of(&[
            job(ExecutionState::Running),
            job(ExecutionState::Queued),
            job(ExecutionState::Succeeded),
            job(ExecutionState::Failed),
        ]);
        let expected = Tally {
            unfinished: 2,
            succeeded: 1,
            failed: 1,
        };
        assert_eq!(tally, expected);
    }
}
