//! `trainyard job file`: list, stream. Also the way of one file to stdout that `job logs --file` takes.

use std::time::Duration;

use clap::{Args, Subcommand};
use trainyard_proto::v1::{FileInfo, GetJobRequest, ListJobFilesRequest, StreamLogsRequest};

use super::{NameArg, has_ended};
use crate::api::Api;
use crate::args::Format;
use crate::console::Console;
use crate::context::Context;
use crate::error::Error;
use crate::output;
use crate::status::is_not_found;
use crate::table::Table;
use crate::text::{bytes, time_of_seconds};

/// Between two looks for a file that is not there yet: a file that appears makes no event.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the files of a directory of the job
    List(ListArgs),
    /// Print a file while it grows, until the job has ended
    Stream(StreamArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    #[command(flatten)]
    name: NameArg,
    /// `stdouterr`, or the id of an output directory
    #[arg(
        short = 'd',
        long = "output-directory-id",
        value_name = "ID",
        default_value = "stdouterr"
    )]
    directory_id: String,
    /// Directory below it
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    path: String,
    /// Run of the job, from 1 [default: the latest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StreamArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// File
    #[arg(short, long = "file-name", alias = "file", value_name = "NAME")]
    file: String,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::List(args) => list(context, args.place).await?,
        Command::Stream(args) => {
            let place = args.place;
            let request = StreamLogsRequest {
                name: place.name.resolve()?.to_string(),
                file: args.file,
                offset: 0,
                follow: true,
                attempt: place.attempt.unwrap_or(0),
                output_directory_id: place.directory_id,
                directory: below(&place.path),
            };
            stream(&context.api()?, request, &mut Console::standard()).await?;
        }
    }
    Ok(0)
}

/// `.` is the directory itself.
fn below(path: &str) -> String {
    let path = path.trim_matches('/');
    if path == "." {
        String::new()
    } else {
        path.strip_prefix("./").unwrap_or(path).to_owned()
    }
}

async fn list(context: &Context, place: PlaceArgs) -> Result<(), Error> {
    let request = ListJobFilesRequest {
        name: place.name.resolve()?.to_string(),
        output_directory_id: place.directory_id,
        directory: below(&place.path),
        attempt: place.attempt.unwrap_or(0),
    };
    let files = context.api()?.list_job_files(request).await?.files;
    let format = context.output().format();
    match format {
        Format::Table => output::write(&table(&files)),
        Format::Name => output::write(
            &files
                .iter()
                .map(|file| format!("{}\n", file.name))
                .collect::<String>(),
        ),
        Format::Json | Format::Yaml => {
            let files = files.iter().map(trainyard_shared::json::to_json).collect();
            context.output().value(&serde_json::Value::Array(files))
        }
    }
}

fn table(files: &[FileInfo]) -> String {
    let mut table = Table::new(&["NAME", "TYPE", ">SIZE", "MODIFIED", "NODE"]);
    for file in files {
        table.row([
            file.name.clone(),
            if file.is_directory {
                "directory".to_owned()
            } else {
                "file".to_owned()
            },
            if file.is_directory {
                String::new()
            } else {
                bytes(file.size_bytes)
            },
            time_of_seconds(file.modified_seconds),
            file.node
                .strip_prefix("nodes/")
                .unwrap_or(&file.node)
                .to_owned(),
        ]);
    }
    table.render()
}

/// Copies one file to stdout; with `follow` also waits for it to appear while the job has not ended.
pub(super) async fn stream(
    api: &Api,
    request: StreamLogsRequest,
    console: &mut Console,
) -> Result<(), Error> {
    // Whether the job had ended before the last try: then what it wrote was all there.
    let mut ended = false;
    loop {
        let mut chunks = api.client().stream_logs(request.clone());
        let mut any = false;
        loop {
            match chunks.message().await {
                Ok(Some(chunk)) => {
                    console.done_waiting();
                    console.out(&chunk.data)?;
                    any = true;
                }
                Ok(None) => return Ok(()),
                Err(status) if is_not_found(&status) && request.follow && !any && !ended => break,
                Err(status) => return Err(status.into()),
            }
        }
        let job = api
            .get_job(GetJobRequest {
                name: request.name.clone(),
            })
            .await?;
        ended = has_ended(&job);
        if !ended {
            console.waiting(&format!(
                "{} is not there yet; the job is {}",
                file_text(&request),
                state_of(&job)
            ));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn state_of(job: &trainyard_proto::v1::Job) -> String {
    super::state(job.execution_state())
}

fn file_text(request: &StreamLogsRequest) -> &str {
    if request.file.is_empty() {
        "the file"
    } else {
        &request.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_is_the_directory_itself() {
        for (path, directory) in [(".", ""), ("./a", "a"), ("a/b/", "a/b"), ("/", "")] {
            assert_eq!(below(path), directory, "{path}");
        }
    }

    #[test]
    fn files_and_directories() {
        let files = [
            FileInfo {
                name: "models".into(),
                is_directory: true,
                node: "nodes/n1".into(),
                ..FileInfo::default()
            },
            FileInfo {
                name: "stdout.txt".into(),
                size_bytes: 2048,
                modified_seconds: 60,
                ..FileInfo::default()
            },
        ];
        assert_eq!(
            table(&files),
            "NAME        TYPE          SIZE  MODIFIED              NODE\n\
             models      directory        -  1970-01-01T00:00:00Z  n1\n\
             stdout.txt  file       2.0 KiB  1970-01-01T00:01:00Z  -\n"
        );
    }
}
