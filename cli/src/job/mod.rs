//! `trainyard job`: create, validate, show, list, export, delete, terminate, wait, explain, logs, file.
//!
//! The job's own exit code, as `job wait` and `job create --follow` return it: 0 when the job succeeded; else its exit
//! code cut to what a process can return (1 to 255); 1 when it has none, as when it was terminated.

mod calls;
mod create;
mod end;
mod explain;
mod export;
#[cfg(test)]
mod fake;
mod files;
mod follow;
mod list;
mod logs;
mod options;
mod several;
mod show;
mod sweep;
mod validate;
mod wait;
#[cfg(test)]
pub(crate) mod yard;

use clap::{Args, Subcommand};
use trainyard_proto::v1::{ExecutionState, Job};
use trainyard_shared::names::JobName;

use crate::args::ExperimentArg;
use crate::context::Context;
use crate::error::Error;
use crate::scope::job_name;
use crate::text::short;

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Submit a job
    Create(Box<create::CreateArgs>),
    /// Judge job files, without asking a scheduler
    Validate(validate::ValidateArgs),
    /// Show one job
    Show(NameArg),
    /// List the jobs of an experiment, of a workspace, or all
    List(list::ListArgs),
    /// Write jobs that have ended as JSON, one per line
    Export(export::ExportArgs),
    /// Delete a job; one that has not ended is terminated first
    Delete(end::DeleteArgs),
    /// End jobs
    Terminate(end::TerminateArgs),
    /// Wait until jobs have ended; returns the job's exit code
    Wait(wait::WaitArgs),
    /// Say why a job waits
    Explain(NameArg),
    /// Print what a job wrote to stdout and stderr
    Logs(logs::LogsArgs),
    /// Files that a job wrote
    #[command(subcommand)]
    File(files::Command),
}

/// A job.
#[derive(Debug, Clone, Args)]
pub(crate) struct NameArg {
    #[command(flatten)]
    pub(crate) experiment: ExperimentArg,
    /// Job
    #[arg(short, long, short_alias = 'j', alias = "job", value_name = "JOB")]
    pub(crate) name: String,
}

impl NameArg {
    /// Its resource name.
    pub(crate) fn resolve(&self) -> Result<JobName, Error> {
        job_name(&self.experiment, &self.name)
    }
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::Create(args) => create::run(context, *args).await,
        Command::Validate(args) => validate::run(context, &args),
        Command::Show(args) => show::run(context, &args).await,
        Command::List(args) => list::run(context, &args).await,
        Command::Export(args) => export::run(context, &args).await,
        Command::Delete(args) => end::delete(context, &args).await,
        Command::Terminate(args) => end::terminate(context, &args).await,
        Command::Wait(args) => wait::run(context, &args).await,
        Command::Explain(args) => explain::run(context, &args).await,
        Command::Logs(args) => logs::run(context, &args).await,
        Command::File(command) => files::run(context, command).await,
    }
}

/// Whether a job will not change its state any more.
pub(crate) fn has_ended(job: &Job) -> bool {
    match job.execution_state() {
        ExecutionState::Succeeded | ExecutionState::Failed => true,
        ExecutionState::Unspecified
        | ExecutionState::Queued
        | ExecutionState::Running
        | ExecutionState::Terminating => false,
    }
}

/// State of a job in one word.
pub(crate) fn state(state: ExecutionState) -> String {
    match state {
        ExecutionState::Unspecified => "unknown".to_owned(),
        state => short(state.as_str_name(), "EXECUTION_STATE_"),
    }
}

/// The exit status that stands for the result of a job; see the head of this file.
pub(crate) fn exit_status(job: &Job) -> u8 {
    if job.execution_state() == ExecutionState::Succeeded {
        return 0;
    }
    let code = job.execution_info.as_ref().and_then(|info| info.exit_code);
    // A process returns the low eight bits; a failure must not become a success by that.
    code.and_then(|code| u8::try_from(code & 0xff).ok())
        .filter(|code| *code != 0)
        .unwrap_or(crate::error::FAILURE)
}

/// What the command line has to name this job again.
pub(crate) fn flags(name: &JobName) -> String {
    let experiment = name.experiment();
    format!(
        "-w {} -e {} -n {}",
        name.workspace().id(),
        experiment.id(),
        name.id()
    )
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::ExecutionInfo;

    use super::*;

    fn ended(state: ExecutionState, exit_code: Option<i32>) -> Job {
        Job {
            execution_state: state.into(),
            execution_info: Some(ExecutionInfo {
                exit_code,
                ..ExecutionInfo::default()
            }),
            ..Job::default()
        }
    }

    #[test]
    fn exit_statuses_of_jobs() {
        let cases = [
            (ExecutionState::Succeeded, Some(0), 0),
            (ExecutionState::Failed, Some(3), 3),
            (ExecutionState::Failed, Some(137), 137),
            (ExecutionState::Failed, Some(-1), 255),
            (ExecutionState::Failed, Some(256), 1),
            (ExecutionState::Failed, Some(0), 1),
            (ExecutionState::Failed, None, 1),
        ];
        for (state, code, status) in cases {
            assert_eq!(
                exit_status(&ended(state, code)),
                status,
                "{state:?} {code:?}"
            );
        }
    }

    #[test]
    fn a_job_is_named_as_it_is_shown() {
        let name: JobName = "workspaces/w/experiments/e/jobs/j".parse().unwrap();
        assert_eq!(flags(&name), "-w w -e e -n j");
    }
}
