//! `trainyard job logs`: what a job wrote to stdout and stderr; of all its ranks, or one file.

use std::collections::BTreeSet;

use clap::Args;
use trainyard_proto::v1::{Attempt, GetJobRequest, Job, ListJobFilesRequest, StreamLogsRequest};
use trainyard_shared::names::JobName;

use super::follow::{Attempts, Follow, Label, Lines, Options, prefixes};
use super::{NameArg, files, flags, has_ended, state};
use crate::api::Api;
use crate::console::Console;
use crate::context::Context;
use crate::error::Error;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    name: NameArg,
    /// This file of the stdouterr directory alone, such as stdout-1.txt or execution.log
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Go on until the job has ended
    #[arg(long)]
    follow: bool,
    /// Run of the job, from 1 [default: the latest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: &LogsArgs) -> Result<u8, Error> {
    let name = args.name.resolve()?;
    let api = context.api()?;
    let mut console = Console::standard();
    if let Some(file) = &args.file {
        let request = StreamLogsRequest {
            name: name.to_string(),
            file: file.clone(),
            follow: args.follow,
            attempt: args.attempt.unwrap_or(0),
            ..StreamLogsRequest::default()
        };
        files::stream(&api, request, &mut console).await?;
        return Ok(0);
    }
    if args.follow {
        let attempts = args.attempt.map_or(Attempts::Latest, Attempts::Only);
        return Follow::new(api, name, console, Options::of_logs(attempts))
            .run()
            .await;
    }
    print_present(&api, &name, args.attempt, &mut console).await?;
    Ok(0)
}

/// Prints what is there now, file after file.
async fn print_present(
    api: &Api,
    name: &JobName,
    attempt: Option<u32>,
    console: &mut Console,
) -> Result<(), Error> {
    let job = api
        .get_job(GetJobRequest {
            name: name.to_string(),
        })
        .await?;
    let attempt = pick(&job, attempt, name)?;
    let files = known_files(api, &job, attempt).await?;
    let prefixed = prefixes(&job, files.iter().map(String::as_str));
    let mut labels: Vec<(Label, String)> = files
        .into_iter()
        .filter_map(|file| Label::of(&file).map(|label| (label, file)))
        .collect();
    labels.sort();
    for (label, file) in labels {
        let mut lines = Lines::new(label.prefix(prefixed));
        let request = StreamLogsRequest {
            name: name.to_string(),
            file,
            attempt: attempt.number,
            ..StreamLogsRequest::default()
        };
        let mut chunks = api.client().stream_logs(request);
        while let Some(chunk) = chunks.message().await? {
            label.write(console, &lines.push(&chunk.data))?;
        }
        label.write(console, &lines.finish())?;
    }
    Ok(())
}

fn pick<'a>(job: &'a Job, number: Option<u32>, name: &JobName) -> Result<&'a Attempt, Error> {
    let found = match number {
        Some(number) => job.attempts.iter().find(|attempt| attempt.number == number),
        None => job.attempts.last(),
    };
    found.ok_or_else(|| {
        let state = state(job.execution_state());
        Error::failure(match number {
            Some(number) if !job.attempts.is_empty() => {
                format!("{name} has no attempt {number}; it has {}", job.attempts.len())
            }
            _ if has_ended(job) => format!("{name} never started, so it wrote nothing; it is {state}"),
            _ => format!(
                "{name} has not started, so it has written nothing; it is {state}. `--follow` waits for it, and \
                 `trainyard job explain {}` says why it waits",
                flags(name)
            ),
        })
    })
}

/// Files of the stdouterr directory: those that the nodes reported; without any of a task also those that are there.
async fn known_files(api: &Api, job: &Job, attempt: &Attempt) -> Result<BTreeSet<String>, Error> {
    let mut files = reported_files(attempt);
    let is_of_task = |file: &String| Label::of(file).is_some_and(|label| label.is_of_task());
    if !files.iter().any(is_of_task) {
        let request = ListJobFilesRequest {
            name: job.name.clone(),
            attempt: attempt.number,
            ..ListJobFilesRequest::default()
        };
        let listed = api.list_job_files(request).await?;
        files.extend(
            listed
                .files
                .into_iter()
                .filter(|file| !file.is_directory)
                .map(|file| file.name),
        );
    }
    Ok(files)
}

/// Files that the nodes of an attempt reported.
pub(super) fn reported_files(attempt: &Attempt) -> BTreeSet<String> {
    let statuses = attempt.nodes.iter().filter_map(|node| node.status.as_ref());
    statuses
        .flat_map(|status| status.files.iter().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> JobName {
        "workspaces/w/experiments/e/jobs/j".parse().unwrap()
    }

    #[test]
    fn a_job_that_has_not_started_says_what_to_do() {
        let text = pick(&Job::default(), None, &name())
            .unwrap_err()
            .to_string();
        assert!(text.contains("job explain -w w -e e -n j"), "{text}");
    }

    #[test]
    fn the_latest_attempt_is_the_default() {
        let attempt = |number| Attempt {
            number,
            ..Attempt::default()
        };
        let job = Job {
            attempts: vec![attempt(1), attempt(2)],
            ..Job::default()
        };
        assert_eq!(pick(&job, None, &name()).unwrap().number, 2);
        assert_eq!(pick(&job, Some(1), &name()).unwrap().number, 1);
        assert!(
            pick(&job, Some(3), &name())
                .unwrap_err()
                .to_string()
                .ends_with("it has 2")
        );
    }
}
