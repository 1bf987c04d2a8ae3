//! `trainyard job wait`: says what happens to jobs until all have ended, and returns the exit code of the job, or of the
//! first that did not succeed.

use std::collections::BTreeMap;

use clap::Args;

use super::exit_status;
use super::follow::{Follow, Options, result};
use super::several::{End, SeveralArgs, unfinished, until_ended};
use crate::api::Api;
use crate::console::Console;
use crate::context::Context;
use crate::error::{Error, FAILURE};
use crate::text::{count, last_segment};

#[derive(Debug, Args)]
#[command(
    after_help = "The exit status is the job's own: 0 when it succeeded, else its exit code, or 1 when it has none (as \
                        when it was terminated). Of several jobs: 0 when all succeeded, else that of the first, in the order \
                        given, that did not. Ctrl-C leaves the jobs running and returns 130."
)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    jobs: SeveralArgs,
    /// Accepted for compatibility; changes are shown when they happen
    #[arg(long, hide = true, value_name = "SECONDS")]
    interval: Option<u32>,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: &WaitArgs) -> Result<u8, Error> {
    let mut names = args.jobs.named()?;
    let api = context.api()?;
    if args.jobs.filter.is_none() && names.len() == 1 {
        let options = Options::of_states_alone();
        return Follow::new(api, names.remove(0), Console::standard(), options)
            .run()
            .await;
    }
    let mut console = Console::standard();
    let wait = async {
        let names = match &args.jobs.filter {
            Some(filter) => unfinished(&api, &args.jobs.parent()?, filter).await?,
            None => names.iter().map(ToString::to_string).collect(),
        };
        wait_for(&api, &names, args.jobs.filter.is_some(), &mut console).await
    };
    tokio::select! {
        end = wait => end,
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
    }
}

/// Says what becomes of each and returns the exit status of `job wait`. `known`: the jobs were just seen; one that is gone
/// was deleted.
pub(super) async fn wait_for(
    api: &Api,
    names: &[String],
    known: bool,
    console: &mut Console,
) -> Result<u8, Error> {
    if names.is_empty() {
        console.line("trainyard: no job that has not ended matches");
        return Ok(0);
    }
    let waiting = |left: usize| format!("trainyard: waiting for {}", count(left as u64, "job"));
    console.waiting(&waiting(names.len()));
    let ends = until_ended(api, names, known, |name, end, left| {
        match end {
            End::Job(job) => {
                for line in result(job) {
                    console.line(&format!("trainyard: {line}"));
                }
            }
            End::Deleted => console.line(&format!("trainyard: {} was deleted", last_segment(name))),
        }
        if left > 0 {
            console.waiting_on_terminal(&waiting(left));
        }
    })
    .await;
    console.done_waiting();
    let ends = ends?;
    let succeeded = ends.values().filter(|end| status_of(end) == 0).count();
    console.line(&format!(
        "trainyard: {succeeded} of {} succeeded",
        count(names.len() as u64, "job")
    ));
    Ok(overall(names, &ends))
}

fn status_of(end: &End) -> u8 {
    match end {
        End::Job(job) => exit_status(job),
        End::Deleted => FAILURE,
    }
}

/// The status of the first that did not succeed.
fn overall(names: &[String], ends: &BTreeMap<String, End>) -> u8 {
    names
        .iter()
        .filter_map(|name| ends.get(name))
        .map(status_of)
        .find(|status| *status != 0)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::{ExecutionInfo, ExecutionState, Job};

    use super::*;
    use crate::job::yard::{Seen, Yard, name_of};

    fn failed(id: &str, exit_code: i32) -> Job {
        Job {
            name: name_of(id),
            execution_state: ExecutionState::Failed.into(),
            execution_info: Some(ExecutionInfo {
                exit_code: Some(exit_code),
                ..ExecutionInfo::default()
            }),
            ..Job::default()
        }
    }

    #[tokio::test]
    async fn the_first_failure_in_the_order_given_decides() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Succeeded);
        yard.put_job(failed("b", 3));
        yard.put_job(failed("c", 4));
        let (seen, mut console) = Seen::console();
        let names = [name_of("c"), name_of("a"), name_of("b")];
        assert_eq!(
            wait_for(&api, &names, false, &mut console).await.unwrap(),
            4
        );
        let text = seen.text();
        assert!(
            text.contains("trainyard: b failed with exit code 3"),
            "{text}"
        );
        assert!(
            text.ends_with("trainyard: 1 of 3 jobs succeeded\n"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn jobs_that_all_succeed_are_a_success() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Running);
        yard.put("b", ExecutionState::Succeeded);
        let (seen, mut console) = Seen::console();
        let wait = tokio::spawn(async move {
            wait_for(&api, &[name_of("a"), name_of("b")], false, &mut console).await
        });
        seen.shows("b succeeded").await;
        yard.put("a", ExecutionState::Succeeded);
        assert_eq!(wait.await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn nothing_to_wait_for_is_said() {
        let (_yard, api) = Yard::start().await;
        let (seen, mut console) = Seen::console();
        assert_eq!(wait_for(&api, &[], false, &mut console).await.unwrap(), 0);
        assert!(seen.text().contains("no job that has not ended"));
    }
}
