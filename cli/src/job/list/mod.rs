//! `trainyard job list`: jobs that match a filter, in order, and with `--watch` what becomes of them. Filters and orders are
//! the schedulers': they must never be interpreted here beyond where a changed job stands.

mod screen;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, interval, sleep_until};
use tonic::{Code, Status};
use trainyard_proto::v1::{Job, WatchEvent, WatchEventType, WatchRequest, watch_event};

use super::calls::Query;
use super::show::table;
use crate::api::Api;
use crate::args::{ExperimentArg, Format};
use crate::console::Console;
use crate::context::Context;
use crate::error::Error;
use crate::scope::any_experiment;
use crate::text::now;
use screen::{InPlace, Lines, Screen};

/// Between two pictures of a list that changes.
const SHOW_EVERY: Duration = Duration::from_millis(300);
/// Between two pictures of one that does not: ages grow.
const AGE_EVERY: Duration = Duration::from_secs(1);

/// See the head of this file.
#[derive(Debug, Args)]
#[command(
    after_help = "FILTER: comparisons (= != < <= > >=, and : for contains) joined by AND, of name, state, cluster, tool_type, \
                  user, node_count, priority, creation_time, exit_code and array, as in\n  --filter 'state = running AND \
                  cluster = gpu AND creation_time > \"2031-05-17T08:30:00Z\"'\n\nWith --watch a terminal shows the list as it \
                  changes. Elsewhere the list comes first and then a line for each change (with -o json a job per line; \
                  {\"name\": ..., \"listed\": false} for one that is gone or does not match any more), until Ctrl-C, which \
                  returns 130."
)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    experiment: ExperimentArg,
    /// Only jobs that match; see below
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
    /// name or creation_time, either with desc after it [default: name]
    #[arg(
        long,
        value_name = "ORDER",
        default_value = "",
        hide_default_value = true
    )]
    order_by: String,
    /// Go on showing what changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: &ListArgs) -> Result<u8, Error> {
    let query = Query {
        parent: any_experiment(&args.experiment)?,
        filter: args.filter.clone(),
        order_by: args.order_by.clone(),
    };
    let api = context.api()?;
    let output = context.output();
    if !args.watch {
        let listing = api.query_jobs(&query).await?;
        output.list(&listing.jobs, |jobs| table(jobs, &query.parent, &now()))?;
        return Ok(0);
    }
    let format = output.format();
    let mut screen: Box<dyn Screen> = if format == Format::Table && std::io::stdout().is_terminal()
    {
        Box::new(InPlace::new(&query.parent))
    } else {
        Box::new(Lines::new(&query.parent, format, Console::standard()))
    };
    tokio::select! {
        end = watch(&api, &query, screen.as_mut()) => end.map(|()| 0),
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
    }
}

/// Shows the jobs of a query and what becomes of them, for ever.
async fn watch(api: &Api, query: &Query, screen: &mut dyn Screen) -> Result<(), Error> {
    loop {
        let mut rows = Rows::new(query);
        let revision = rows.list(api).await?;
        screen.show(&rows.in_order(), &now())?;
        let mut events = api.client().watch(WatchRequest {
            prefixes: vec![prefix(&query.parent)],
            start_revision: revision.saturating_add(1),
            until_now: false,
        });
        let end = follow(api, &mut rows, screen, &mut events).await;
        match end {
            // What was missed cannot be had as changes: the list is taken anew.
            Err(Error::Remote(status)) if status.code() == Code::OutOfRange => {}
            end => return end,
        }
    }
}

async fn follow(
    api: &Api,
    rows: &mut Rows<'_>,
    screen: &mut dyn Screen,
    events: &mut trainyard_shared::client::Resumed<WatchEvent>,
) -> Result<(), Error> {
    let mut ages = interval(AGE_EVERY);
    let mut is_stale = false;
    let mut shown_at = Instant::now();
    loop {
        tokio::select! {
            event = events.message() => match event? {
                Some(event) => is_stale |= rows.take(event),
                None => return Err(Status::unavailable("the scheduler ended the stream of changes").into()),
            },
            () = sleep_until(shown_at + SHOW_EVERY), if is_stale => {
                if rows.is_filtered() {
                    // Whether a changed job matches is the schedulers' to say.
                    rows.list(api).await?;
                }
                screen.show(&rows.in_order(), &now())?;
                is_stale = false;
                shown_at = Instant::now();
            }
            _ = ages.tick(), if screen.shows_ages() => screen.show(&rows.in_order(), &now())?,
        }
    }
}

/// What all names of jobs below a parent begin with; `-` stands for any.
fn prefix(parent: &str) -> String {
    let known: Vec<&str> = parent.split('/').take_while(|part| *part != "-").collect();
    if known.len() == 4 {
        format!("{parent}/jobs/")
    } else {
        format!("{}/", known.join("/"))
    }
}

/// Place of a row: by creation (index of the log, place in the array), then by name.
type Key = (u64, u32, String);

/// The jobs of a query in their order.
struct Rows<'a> {
    query: &'a Query,
    by_creation: bool,
    descending: bool,
    jobs: BTreeMap<Key, Job>,
    /// Places by name: what is deleted is known by its name alone.
    keys: BTreeMap<String, Key>,
}

impl<'a> Rows<'a> {
    fn new(query: &'a Query) -> Self {
        let mut words = query.order_by.split_whitespace();
        Self {
            query,
            by_creation: words.next() == Some("creation_time"),
            descending: words.next() == Some("desc"),
            jobs: BTreeMap::new(),
            keys: BTreeMap::new(),
        }
    }

    fn is_filtered(&self) -> bool {
        !self.query.filter.trim().is_empty()
    }

    /// Takes the list anew; gives its revision.
    async fn list(&mut self, api: &Api) -> Result<u64, Error> {
        let listing = api.query_jobs(self.query).await?;
        self.jobs.clear();
        self.keys.clear();
        for job in listing.jobs {
            self.put(job);
        }
        Ok(listing.revision)
    }

    /// A change; says whether it may matter.
    fn take(&mut self, event: WatchEvent) -> bool {
        if !self.holds(&event.name) {
            return false;
        }
        if self.is_filtered() {
            return true;
        }
        let is_deleted = event.r#type() == WatchEventType::Deleted;
        match event.resource {
            Some(watch_event::Resource::Job(job)) => self.put(job),
            None if is_deleted => self.remove(&event.name),
            // It is gone since: the event of that comes.
            _ => return false,
        }
        true
    }

    /// Whether the name is one of a job below the parent.
    fn holds(&self, name: &str) -> bool {
        let mut parts = name.split('/');
        let is_below = self.query.parent.split('/').all(|wanted| {
            parts
                .next()
                .is_some_and(|part| wanted == "-" || wanted == part)
        });
        is_below && parts.next() == Some("jobs")
    }

    fn put(&mut self, job: Job) {
        self.remove(&job.name);
        let key = if self.by_creation {
            let index = job.array.as_ref().map_or(0, |array| array.index);
            (job.sequence, index, job.name.clone())
        } else {
            (0, 0, job.name.clone())
        };
        self.keys.insert(job.name.clone(), key.clone());
        self.jobs.insert(key, job);
    }

    fn remove(&mut self, name: &str) {
        if let Some(key) = self.keys.remove(name) {
            self.jobs.remove(&key);
        }
    }

    fn in_order(&self) -> Vec<&Job> {
        if self.descending {
            self.jobs.values().rev().collect()
        } else {
            self.jobs.values().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::ExecutionState;

    use super::*;
    use crate::job::yard::{PARENT, Seen, Yard, name_of};

    fn query(filter: &str, order_by: &str) -> Query {
        Query {
            parent: PARENT.to_owned(),
            filter: filter.to_owned(),
            order_by: order_by.to_owned(),
        }
    }

    fn watching(api: Api, query: Query) -> (Seen, tokio::task::JoinHandle<Result<(), Error>>) {
        let (seen, console) = Seen::console();
        let watching = tokio::spawn(async move {
            let mut lines = Lines::new(PARENT, Format::Table, console);
            watch(&api, &query, &mut lines).await
        });
        (seen, watching)
    }

    #[tokio::test]
    async fn the_list_comes_first_and_then_what_changes() {
        let (yard, api) = Yard::start().await;
        for id in ["a", "b", "c"] {
            yard.put(id, ExecutionState::Queued);
        }
        let (seen, watching) = watching(api, query("", ""));
        seen.shows("\nc ").await;
        yard.is_watched().await;
        yard.break_watches();
        yard.put("b", ExecutionState::Running);
        seen.shows("  b  running\n").await;
        yard.put("d", ExecutionState::Queued);
        seen.shows("  d  queued\n").await;
        yard.delete("a");
        seen.shows("  a  no longer listed\n").await;
        watching.abort();
    }

    #[tokio::test]
    async fn with_a_filter_the_schedulers_say_what_matches() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Running);
        yard.put("b", ExecutionState::Queued);
        let (seen, watching) = watching(api, query("state = running", ""));
        seen.shows("\na ").await;
        assert!(!seen.text().contains("\nb "));
        yard.put("b", ExecutionState::Running);
        seen.shows("  b  running\n").await;
        yard.put("a", ExecutionState::Succeeded);
        seen.shows("  a  no longer listed\n").await;
        watching.abort();
    }

    #[tokio::test]
    async fn changes_that_are_not_known_any_more_are_found_by_listing_again() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Queued);
        let (seen, watching) = watching(api, query("", ""));
        seen.shows("\na ").await;
        yard.is_watched().await;
        yard.put_unseen("a", ExecutionState::Running);
        seen.shows("  a  running\n").await;
        watching.abort();
    }

    #[test]
    fn rows_keep_the_order_that_was_asked_for() {
        let job = |id: &str, sequence: u64| Job {
            name: name_of(id),
            sequence,
            ..Job::default()
        };
        let order = |order_by: &str| {
            let query = query("", order_by);
            let mut rows = Rows::new(&query);
            for (id, sequence) in [("b", 1), ("c", 2), ("a", 3), ("b", 1)] {
                rows.put(job(id, sequence));
            }
            let names = rows.in_order();
            names
                .iter()
                .map(|job| crate::text::last_segment(&job.name))
                .collect::<String>()
        };
        assert_eq!(order(""), "abc");
        assert_eq!(order("name desc"), "cba");
        assert_eq!(order("creation_time"), "bca");
        assert_eq!(order("creation_time desc"), "acb");
    }

    #[test]
    fn what_is_watched_is_what_is_listed() {
        let cases = [
            ("workspaces/-/experiments/-", "workspaces/", true),
            (
                "workspaces/w/experiments/-",
                "workspaces/w/experiments/",
                true,
            ),
            (PARENT, "workspaces/w/experiments/e/jobs/", true),
            ("workspaces/-/experiments/other", "workspaces/", false),
        ];
        for (parent, begins, holds) in cases {
            assert_eq!(prefix(parent), begins);
            let query = Query {
                parent: parent.to_owned(),
                ..Query::default()
            };
            let rows = Rows::new(&query);
            assert_eq!(rows.holds(&name_of("a")), holds, "{parent}");
            assert!(!rows.holds("workspaces/w/experiments/e"));
        }
    }
}
