//! How a list that changes is shown: in place on a terminal, as lines elsewhere.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use prost_types::Timestamp;
use serde_json::{Value, json};
use trainyard_proto::v1::Job;
use trainyard_shared::json::to_json;

use crate::args::Format;
use crate::console::Console;
use crate::error::Error;
use crate::job::show::{exit_code, table};
use crate::job::state;
use crate::scope::is_any;
use crate::text::{count, ids, last_segment, time};

/// Shows a list again and again.
pub(super) trait Screen: Send {
    /// The list is now so.
    fn show(&mut self, jobs: &[&Job], now: &Timestamp) -> Result<(), Error>;

    /// Whether time alone changes what is shown.
    fn shows_ages(&self) -> bool;
}

/// A table that is drawn over and over, below a line that counts.
pub(super) struct InPlace {
    parent: String,
    bar: ProgressBar,
}

impl InPlace {
    /// On stdout, which is a terminal.
    pub(super) fn new(parent: &str) -> Self {
        // The last picture stays when the command ends.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout())
            .with_finish(ProgressFinish::Abandon);
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self {
            parent: parent.to_owned(),
            bar,
        }
    }
}

impl Screen for InPlace {
    fn show(&mut self, jobs: &[&Job], now: &Timestamp) -> Result<(), Error> {
        let table = table(jobs.iter().copied(), &self.parent, now);
        self.bar
            .set_message(format!("{}\n{}", summary(jobs), table.trim_end()));
        self.bar.tick();
        Ok(())
    }

    fn shows_ages(&self) -> bool {
        true
    }
}

/// `3 jobs: 1 queued, 2 running`.
fn summary(jobs: &[&Job]) -> String {
    let mut by_state: BTreeMap<i32, (String, u64)> = BTreeMap::new();
    for job in jobs {
        let entry = by_state
            .entry(job.execution_state)
            .or_insert_with(|| (state(job.execution_state()), 0));
        entry.1 += 1;
    }
    let states: Vec<String> = by_state
        .values()
        .map(|(state, number)| format!("{number} {state}"))
        .collect();
    let total = count(jobs.len() as u64, "job");
    if states.is_empty() {
        total
    } else {
        format!("{total}: {}", states.join(", "))
    }
}

/// The list, then a line for each job that changes.
pub(super) struct Lines {
    parent: String,
    format: Format,
    console: Console,
    /// What was shown of each job; none before the first list.
    shown: Option<BTreeMap<String, String>>,
}

impl Lines {
    /// In this shape.
    pub(super) fn new(parent: &str, format: Format, console: Console) -> Self {
        Self {
            parent: parent.to_owned(),
            format,
            console,
            shown: None,
        }
    }

    /// What makes a line worth writing.
    fn essence(&self, job: &Job) -> String {
        match self.format {
            Format::Table | Format::Name => status(job),
            Format::Json | Format::Yaml => job.etag.clone(),
        }
    }

    fn line(&self, job: &Job, now: &Timestamp) -> Result<String, Error> {
        Ok(match self.format {
            Format::Table => self.row(&job.name, &status(job), now),
            Format::Name => format!("{}\n", job.name),
            Format::Json | Format::Yaml => self.value(&to_json(job))?,
        })
    }

    fn gone(&self, name: &str, now: &Timestamp) -> Result<String, Error> {
        Ok(match self.format {
            Format::Table => self.row(name, "no longer listed", now),
            // It has no state to look at any more.
            Format::Name => String::new(),
            Format::Json | Format::Yaml => self.value(&json!({"name": name, "listed": false}))?,
        })
    }

    fn row(&self, name: &str, status: &str, now: &Timestamp) -> String {
        let name = if is_any(&self.parent) {
            ids(name)
        } else {
            last_segment(name).to_owned()
        };
        format!("{}  {name}  {status}\n", time(Some(now)))
    }

    fn value(&self, value: &Value) -> Result<String, Error> {
        if self.format == Format::Yaml {
            let text = serde_yaml_ng::to_string(value)
                .map_err(|error| Error::failure(format!("cannot print YAML: {error}")))?;
            Ok(format!("---\n{text}"))
        } else {
            Ok(format!("{value}\n"))
        }
    }
}

/// State, and the exit code when there is one.
fn status(job: &Job) -> String {
    let state = state(job.execution_state());
    match exit_code(job) {
        code if code.is_empty() || code == "0" => state,
        code => format!("{state} with exit code {code}"),
    }
}

impl Screen for Lines {
    fn show(&mut self, jobs: &[&Job], now: &Timestamp) -> Result<(), Error> {
        let before = self.shown.take();
        let mut text = String::new();
        let mut shown = BTreeMap::new();
        for job in jobs {
            let essence = self.essence(job);
            let is_new = match &before {
                // The first list is a table like any other.
                None => self.format != Format::Table,
                Some(before) => before.get(&job.name) != Some(&essence),
            };
            if is_new {
                text.push_str(&self.line(job, now)?);
            }
            shown.insert(job.name.clone(), essence);
        }
        match &before {
            None if self.format == Format::Table => {
                text = table(jobs.iter().copied(), &self.parent, now);
            }
            None => {}
            Some(before) => {
                for name in before.keys().filter(|name| !shown.contains_key(*name)) {
                    text.push_str(&self.gone(name, now)?);
                }
            }
        }
        self.shown = Some(shown);
        if text.is_empty() {
            Ok(())
        } else {
            self.console.out(text.as_bytes())
        }
    }

    fn shows_ages(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::ExecutionState;

    use super::*;
    use crate::job::yard::{PARENT, Seen, name_of};

    fn job(id: &str, state: ExecutionState, etag: &str) -> Job {
        Job {
            name: name_of(id),
            execution_state: state.into(),
            etag: etag.to_owned(),
            ..Job::default()
        }
    }

    #[test]
    fn programs_get_a_job_per_line_when_it_changes() {
        let (seen, console) = Seen::console();
        let mut lines = Lines::new(PARENT, Format::Json, console);
        let now = Timestamp::default();
        let running = job("a", ExecutionState::Running, "1");
        lines.show(&[&running], &now).unwrap();
        lines.show(&[&running], &now).unwrap();
        assert_eq!(seen.text().lines().count(), 1);
        lines
            .show(&[&job("a", ExecutionState::Running, "2")], &now)
            .unwrap();
        lines.show(&[], &now).unwrap();
        let text = seen.text();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(last, json!({"name": name_of("a"), "listed": false}));
    }

    #[test]
    fn a_count_stands_above_the_table() {
        let jobs = [
            job("a", ExecutionState::Running, ""),
            job("b", ExecutionState::Queued, ""),
            job("c", ExecutionState::Running, ""),
        ];
        let jobs: Vec<&Job> = jobs.iter().collect();
        assert_eq!(summary(&jobs), "3 jobs: 1 queued, 2 running");
        assert_eq!(summary(&[]), "0 jobs");
    }
}
