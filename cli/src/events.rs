//! `trainyard events`: what happened to resources, as lines that are written when they come. Must never leave out an event
//! without saying so: what the schedulers do not know any more ends the command.

use clap::Args;
use tonic::{Code, Status};
use trainyard_proto::v1::{WatchEvent, WatchEventType, WatchRequest};

use crate::api::Api;
use crate::args::Format;
use crate::console::Console;
use crate::context::Context;
use crate::error::Error;
use crate::status::describe;
use crate::table::one_line;
use crate::text::{short, time};

/// Revision that stands for the oldest one that is still known.
const OLDEST: u64 = 1;
/// Revision that stands for the next one.
const FROM_NOW: u64 = 0;

/// See the head of this file.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints what is still known, the oldest first; with --follow what happens from now on, until Ctrl-C (which \
                  returns 130). Each line says time, revision, what happened, the resource, and how. With -o json there is \
                  one event per line, with the resource as it is now.\n\nJobs of one experiment, from a script that goes on \
                  where it ended:\n  trainyard events --prefix workspaces/W/experiments/E/jobs/ --since-revision N --follow"
)]
pub(crate) struct EventsArgs {
    /// Only resources whose name begins so, as workspaces/W/ or nodes/; may be given several times [default: all]
    #[arg(short, long = "prefix", value_name = "PREFIX")]
    prefixes: Vec<String>,
    /// First revision to print [default: the oldest that is known; with --follow the next]
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    since_revision: Option<u64>,
    /// Go on with what happens, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

impl EventsArgs {
    fn request(&self) -> WatchRequest {
        let default = if self.follow { FROM_NOW } else { OLDEST };
        WatchRequest {
            prefixes: self.prefixes.clone(),
            start_revision: self.since_revision.unwrap_or(default),
            until_now: !self.follow,
        }
    }
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, args: &EventsArgs) -> Result<u8, Error> {
    let api = context.api()?;
    let format = context.output().format();
    let mut console = Console::standard();
    tokio::select! {
        end = print(&api, args, format, &mut console) => end.map(|()| 0),
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
    }
}

async fn print(
    api: &Api,
    args: &EventsArgs,
    format: Format,
    console: &mut Console,
) -> Result<(), Error> {
    let mut events = api.client().watch(args.request());
    while let Some(event) = events.message().await.map_err(explain)? {
        if event.r#type() != WatchEventType::Progress {
            console.out(shape(&event, format)?.as_bytes())?;
        }
    }
    Ok(())
}

/// Events are missing: nothing may follow as if there were none.
fn explain(status: Status) -> Error {
    if status.code() == Code::OutOfRange {
        Error::failure(format!(
            "{}. Leave out --since-revision to print what is still known",
            describe(&status)
        ))
    } else {
        status.into()
    }
}

fn shape(event: &WatchEvent, format: Format) -> Result<String, Error> {
    Ok(match format {
        Format::Table => line(event),
        Format::Name => format!("{}\n", event.name),
        Format::Json => format!("{}\n", trainyard_shared::json::to_json(event)),
        Format::Yaml => {
            let text = serde_yaml_ng::to_string(&trainyard_shared::json::to_json(event))
                .map_err(|error| Error::failure(format!("cannot print YAML: {error}")))?;
            format!("---\n{text}")
        }
    })
}

fn line(event: &WatchEvent) -> String {
    let what = short(event.r#type().as_str_name(), "WATCH_EVENT_TYPE_");
    let line = format!(
        "{}  {}  {what:<7}  {}  {}",
        time(event.time.as_ref()),
        event.revision,
        event.name,
        event.summary
    );
    format!("{}\n", one_line(line.trim_end()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use trainyard_proto::v1::ExecutionState;

    use super::*;
    use crate::args::{Arguments, Noun};
    use crate::job::yard::{Seen, Yard};

    const JOB: &str = "workspaces/w/experiments/e/jobs/a";

    fn args(line: &str) -> EventsArgs {
        let words = ["trainyard", "events"]
            .into_iter()
            .chain(line.split_whitespace());
        match Arguments::try_parse_from(words).unwrap().noun {
            Noun::Events(args) => args,
            other => panic!("{other:?}"),
        }
    }

    async fn printed(api: &Api, line: &str, format: Format) -> Result<String, Error> {
        let (seen, mut console) = Seen::console();
        print(api, &args(line), format, &mut console).await?;
        Ok(seen.text())
    }

    #[tokio::test]
    async fn what_is_known_is_printed_from_a_revision_on() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Queued);
        yard.put("a", ExecutionState::Running);
        yard.delete("a");
        assert_eq!(
            printed(&api, "", Format::Table).await.unwrap(),
            format!(
                "1970-01-01T00:00:01Z  1  created  {JOB}  queued\n\
                 1970-01-01T00:00:02Z  2  updated  {JOB}  running\n\
                 1970-01-01T00:00:03Z  3  deleted  {JOB}\n"
            )
        );
        let names = printed(&api, "--since-revision 3", Format::Name).await;
        assert_eq!(names.unwrap(), format!("{JOB}\n"));
        let none = printed(&api, "--prefix nodes/", Format::Table).await;
        assert_eq!(none.unwrap(), "");
    }

    #[tokio::test]
    async fn programs_get_one_event_per_line_with_the_resource() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Running);
        let text = printed(&api, "", Format::Json).await.unwrap();
        assert_eq!(text.lines().count(), 1);
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["revision"], 1);
        assert_eq!(event["type"], "created");
        assert_eq!(event["job"]["executionState"], "running");
    }

    #[tokio::test]
    async fn a_gap_is_an_error_and_not_silence() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Running);
        yard.put("a", ExecutionState::Succeeded);
        yard.forget();
        let error = printed(&api, "--since-revision 2", Format::Table)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("Leave out --since-revision"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn following_goes_on_over_a_lost_connection_without_gap_or_repeat() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Queued);
        let (seen, mut console) = Seen::console();
        let follow = tokio::spawn(async move {
            print(
                &api,
                &args("--follow --since-revision 1"),
                Format::Table,
                &mut console,
            )
            .await
        });
        seen.shows("  1  created  ").await;
        yard.break_watches();
        yard.put("a", ExecutionState::Running);
        seen.shows("  2  updated  ").await;
        assert_eq!(seen.text().lines().count(), 2);
        follow.abort();
    }

    #[test]
    fn a_summary_does_not_drive_the_terminal() {
        let event = WatchEvent {
            name: "nodes/n".into(),
            summary: "bad\u{1b}[2J\nnews".into(),
            ..WatchEvent::default()
        };
        assert!(!line(&event).trim_end().contains(char::is_control));
    }
}
