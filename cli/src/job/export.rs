//! `trainyard job export`: jobs that have ended, as JSON lines in the order of their creation, page by page. Must never hold
//! more than a page, nor end with success when something is missing.

use clap::Args;
use trainyard_shared::json::to_json;

use super::calls::Query;
use crate::api::Api;
use crate::args::ExperimentArg;
use crate::console::Console;
use crate::context::Context;
use crate::error::Error;
use crate::scope::any_experiment;

/// Jobs that have ended, in the schedulers' words.
const ENDED: &str = "state != queued AND state != running AND state != terminating";

/// See the head of this file.
#[derive(Debug, Args)]
#[command(
    after_help = "Each line is one job with all its fields, whatever -o says. With a status other than 0 the output is not \
                  complete. Jobs that the retention of a workspace has removed are in the schedulers' own export."
)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    experiment: ExperimentArg,
    /// Only jobs that match, as `creation_time >= "2031-05-01T00:00:00Z"`; see `job list --help`
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: &ExportArgs) -> Result<u8, Error> {
    let parent = any_experiment(&args.experiment)?;
    let api = context.api()?;
    export(&api, parent, &args.filter, &mut Console::standard()).await?;
    Ok(0)
}

async fn export(
    api: &Api,
    parent: String,
    filter: &str,
    console: &mut Console,
) -> Result<(), Error> {
    // The given filter stands first, so that the places which errors name are right.
    let filter = if filter.trim().is_empty() {
        ENDED.to_owned()
    } else {
        format!("{filter} AND {ENDED}")
    };
    let query = Query {
        parent,
        filter,
        order_by: "creation_time".to_owned(),
    };
    let mut pages = api.job_pages(&query);
    while let Some(jobs) = pages.next().await? {
        let lines: String = jobs
            .iter()
            .map(|job| format!("{}\n", to_json(job)))
            .collect();
        console.out(lines.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::ExecutionState;

    use super::*;
    use crate::job::yard::{PARENT, Seen, Yard, name_of};

    async fn exported(api: &Api, filter: &str) -> Result<Vec<String>, Error> {
        let (seen, mut console) = Seen::console();
        export(api, PARENT.to_owned(), filter, &mut console).await?;
        let text = seen.text();
        let names = text.lines().map(|line| {
            let job: serde_json::Value = serde_json::from_str(line).unwrap();
            job["name"].as_str().unwrap().to_owned()
        });
        Ok(names.collect())
    }

    #[tokio::test]
    async fn every_job_that_has_ended_is_a_line() {
        let (yard, api) = Yard::start().await;
        for id in ["a", "b", "c"] {
            yard.put(id, ExecutionState::Succeeded);
        }
        yard.put("d", ExecutionState::Failed);
        yard.put("e", ExecutionState::Running);
        let all: Vec<String> = ["a", "b", "c", "d"].map(name_of).into();
        assert_eq!(exported(&api, "").await.unwrap(), all);
        let failed = exported(&api, "state = failed").await.unwrap();
        assert_eq!(failed, [name_of("d")]);
    }

    #[tokio::test]
    async fn a_filter_that_makes_no_sense_is_an_error() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Succeeded);
        assert!(exported(&api, "colour = red").await.is_err());
    }
}
