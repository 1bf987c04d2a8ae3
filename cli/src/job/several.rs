//! Several jobs at once: which ones a command means, and waiting until all of them have ended. Must never miss an end: it
//! watches first and looks then, and looks again when the schedulers do not know all changes any more.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use tonic::{Code, Status};
use trainyard_proto::v1::{
    GetJobRequest, Job, WatchEvent, WatchEventType, WatchRequest, watch_event,
};
use trainyard_shared::names::JobName;

use super::calls::Query;
use super::has_ended;
use crate::api::Api;
use crate::args::ExperimentArg;
use crate::error::Error;
use crate::scope::{experiment, job_name};
use crate::status::is_not_found;

/// Jobs of one experiment that are looked at one by one; more are listed.
const FEW: usize = 20;
/// Prefixes that one watch takes.
const MAX_PREFIXES: usize = 100;

/// Jobs by name, or those of an experiment that match a filter.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(super) struct SeveralArgs {
    #[command(flatten)]
    pub(super) experiment: ExperimentArg,
    /// Jobs: one or more names
    #[arg(
        short,
        long = "name",
        short_alias = 'j',
        alias = "job",
        value_name = "JOB",
        num_args = 1..,
        required_unless_present = "filter"
    )]
    pub(super) names: Vec<String>,
    /// Instead of names: all jobs of the experiment that match and have not ended, as `state = queued` or
    /// `array = "UUID"`; see `job list --help`
    #[arg(long, value_name = "FILTER", conflicts_with = "names")]
    pub(super) filter: Option<String>,
}

impl SeveralArgs {
    /// The jobs that are named, each once, in the order given.
    pub(super) fn named(&self) -> Result<Vec<JobName>, Error> {
        let mut names = Vec::new();
        for name in &self.names {
            let name = job_name(&self.experiment, name)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The experiment that the filter is about.
    pub(super) fn parent(&self) -> Result<String, Error> {
        Ok(experiment(&self.experiment)?.to_string())
    }
}

/// Resource names of the jobs that match a filter and have not ended, in order of name.
pub(super) async fn unfinished(
    api: &Api,
    parent: &str,
    filter: &str,
) -> Result<Vec<String>, Error> {
    let query = Query {
        parent: parent.to_owned(),
        filter: filter.to_owned(),
        order_by: String::new(),
    };
    let listing = api.query_jobs(&query).await?;
    let unfinished = listing.jobs.into_iter().filter(|job| !has_ended(job));
    Ok(unfinished.map(|job| job.name).collect())
}

/// How a job that was waited for ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    /// It has ended.
    Job(Box<Job>),
    /// It was deleted meanwhile.
    Deleted,
}

/// Waits until each job has ended or is gone; `tell` hears of each when it does, and how many are left. Jobs that are
/// not `known` to have been there fail when they are not there at the start.
pub(super) async fn until_ended(
    api: &Api,
    names: &[String],
    known: bool,
    mut tell: impl FnMut(&str, &End, usize),
) -> Result<BTreeMap<String, End>, Error> {
    let mut waiting = Waiting {
        left: names.iter().cloned().collect(),
        ends: BTreeMap::new(),
    };
    let mut is_known = known;
    while !waiting.left.is_empty() {
        let mut events = api.client().watch(WatchRequest {
            prefixes: prefixes(&waiting.left),
            ..WatchRequest::default()
        });
        // The first event says that all later changes will come.
        let mut next = events.message().await;
        if let Ok(Some(_)) = next {
            for (name, job) in look(api, &waiting.left).await? {
                match job {
                    Some(job) if has_ended(&job) => {
                        waiting.end(name, End::Job(Box::new(job)), &mut tell);
                    }
                    Some(_) => {}
                    None if is_known => waiting.end(name, End::Deleted, &mut tell),
                    None => return Err(missing(&name)),
                }
            }
            is_known = true;
        }
        loop {
            match next {
                Ok(Some(event)) => waiting.take(event, &mut tell),
                Ok(None) => break,
                Err(status) if status.code() == Code::OutOfRange => break,
                Err(status) => return Err(status.into()),
            }
            if waiting.left.is_empty() {
                break;
            }
            next = events.message().await;
        }
    }
    Ok(waiting.ends)
}

fn missing(name: &str) -> Error {
    Error::from(Status::not_found(format!(
        "there is no {name}; `trainyard job list` shows those there are"
    )))
}

struct Waiting {
    left: BTreeSet<String>,
    ends: BTreeMap<String, End>,
}

impl Waiting {
    fn take(&mut self, event: WatchEvent, tell: &mut impl FnMut(&str, &End, usize)) {
        if !self.left.contains(&event.name) {
            return;
        }
        let is_deleted = event.r#type() == WatchEventType::Deleted;
        match event.resource {
            Some(watch_event::Resource::Job(job)) if has_ended(&job) => {
                self.end(event.name, End::Job(Box::new(job)), tell);
            }
            None if is_deleted => self.end(event.name, End::Deleted, tell),
            _ => {}
        }
    }

    fn end(&mut self, name: String, end: End, tell: &mut impl FnMut(&str, &End, usize)) {
        if self.left.remove(&name) {
            tell(&name, &end, self.left.len());
            self.ends.insert(name, end);
        }
    }
}

fn parent_of(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(parent, _)| parent)
}

/// What to watch for these jobs: each by its name, or their experiments, or all.
fn prefixes(names: &BTreeSet<String>) -> Vec<String> {
    if names.len() <= FEW {
        return names.iter().cloned().collect();
    }
    let parents: BTreeSet<&str> = names.iter().map(|name| parent_of(name)).collect();
    if parents.len() <= MAX_PREFIXES {
        parents.iter().map(|parent| format!("{parent}/")).collect()
    } else {
        vec!["workspaces/".to_owned()]
    }
}

/// These jobs as they are now, in order of name; none for one that is not there.
pub(super) async fn look(
    api: &Api,
    names: &BTreeSet<String>,
) -> Result<Vec<(String, Option<Job>)>, Error> {
    let mut by_parent: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for name in names {
        by_parent.entry(parent_of(name)).or_default().push(name);
    }
    let mut found = Vec::new();
    for (parent, names) in by_parent {
        if names.len() > FEW {
            let query = Query {
                parent: parent_of(parent).to_owned(),
                ..Query::default()
            };
            let listing = api.query_jobs(&query).await?;
            let mut jobs: BTreeMap<String, Job> = listing
                .jobs
                .into_iter()
                .map(|job| (job.name.clone(), job))
                .collect();
            found.extend(
                names
                    .into_iter()
                    .map(|name| (name.clone(), jobs.remove(name))),
            );
            continue;
        }
        for name in names {
            let job = match api.get_job(GetJobRequest { name: name.clone() }).await {
                Ok(job) => Some(job),
                Err(status) if is_not_found(&status) => None,
                Err(status) => return Err(status.into()),
            };
            found.push((name.clone(), job));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::ExecutionState;

    use super::*;
    use crate::job::yard::{PARENT, Yard, name_of};

    fn names(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| name_of(id)).collect()
    }

    #[tokio::test]
    async fn every_end_is_heard_whenever_it_comes() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Succeeded);
        yard.put("b", ExecutionState::Running);
        yard.put("c", ExecutionState::Queued);
        let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let wait = tokio::spawn({
            async move {
                let mut told = Vec::new();
                let names = names(&["c", "a", "b"]);
                let ends = until_ended(&api, &names, false, |name, _, left| {
                    told.push((name.to_owned(), left));
                    let _ = heard.send(left);
                })
                .await;
                (ends.unwrap(), told)
            }
        });
        assert_eq!(hears.recv().await, Some(2), "a had ended before");
        yard.break_watches();
        yard.put("b", ExecutionState::Failed);
        yard.put("other", ExecutionState::Failed);
        yard.delete("c");
        let (ends, told) = wait.await.unwrap();
        assert_eq!(ends.len(), 3);
        assert_eq!(ends[&name_of("c")], End::Deleted);
        assert!(matches!(&ends[&name_of("b")], End::Job(job) if has_ended(job)));
        assert_eq!(told.last().unwrap().1, 0);
    }

    #[tokio::test]
    async fn many_jobs_are_listed_and_not_asked_for_one_by_one() {
        let (yard, api) = Yard::start().await;
        let ids: Vec<String> = (0..FEW + 5).map(|number| format!("j{number}")).collect();
        for id in &ids {
            yard.put(id, ExecutionState::Succeeded);
        }
        let names: Vec<String> = ids.iter().map(|id| name_of(id)).collect();
        let watched = prefixes(&names.iter().cloned().collect());
        assert_eq!(watched, [format!("{PARENT}/jobs/")]);
        let ends = until_ended(&api, &names, false, |_, _, _| {})
            .await
            .unwrap();
        assert_eq!(ends.len(), names.len());
    }

    #[tokio::test]
    async fn a_job_that_was_never_there_is_an_error() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Running);
        let error = until_ended(&api, &names(&["a", "b"]), false, |_, _, _| {})
            .await
            .unwrap_err();
        assert!(error.to_string().contains(&name_of("b")), "{error}");
    }

    #[tokio::test]
    async fn a_filter_leaves_out_what_has_ended() {
        let (yard, api) = Yard::start().await;
        yard.put("a", ExecutionState::Succeeded);
        yard.put("b", ExecutionState::Running);
        yard.put("c", ExecutionState::Queued);
        yard.put("d", ExecutionState::Running);
        let all = unfinished(&api, PARENT, "").await.unwrap();
        assert_eq!(all, names(&["b", "c", "d"]));
        let queued = unfinished(&api, PARENT, "state = queued").await.unwrap();
        assert_eq!(queued, names(&["c"]));
    }
}
