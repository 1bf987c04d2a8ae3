//! Lists of jobs, nodes and clusters: filtered, in order, in slices.
//!
//! A slice looks at no more resources than its budget, so that a reader of a long list holds the state only for
//! moments. Every slice gives a cursor that the next goes on from; what is created or removed in between may or may not
//! appear, but nothing that is there all the time is left out or given twice.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use trainyard_proto::store::v1::{TerminateCause, TerminateJob};
use trainyard_proto::v1::{Cluster, ExecutionState, Job, Node};

use crate::filter::{Filter, Order};
use crate::jobs::OrderKey;
use crate::state::State;

/// Which jobs, in which order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobsQuery {
    /// `workspaces/{w}/experiments/{e}`; `-` stands for any.
    pub parent: String,
    /// Which of them.
    pub filter: Filter,
    /// In which order.
    pub order: Order,
}

/// Which clusters, in which order. They are ordered by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClustersQuery {
    /// `workspaces/{w}`; `-` stands for any.
    pub parent: String,
    /// Which of them.
    pub filter: Filter,
    /// In which order.
    pub order: Order,
}

/// Which nodes, in which order. They are ordered by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodesQuery {
    /// Which of them.
    pub filter: Filter,
    /// In which order.
    pub order: Order,
}

/// Where a list goes on. The default is its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListCursor {
    /// Order of creation of the last resource that was looked at: index of the log. Used by that order alone.
    pub sequence: u64,
    /// See above: place in the array.
    pub index: u32,
    /// Its resource name; empty: the start of the list.
    pub name: String,
}

/// A slice of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed<T> {
    /// What matches, in order.
    pub items: Vec<T>,
    /// Where to go on; `None`: the list is at its end.
    pub next: Option<ListCursor>,
}

impl State {
    /// A slice of jobs: ends after `limit` items or `scan_budget` jobs looked at.
    pub fn list_jobs(
        &self,
        query: &JobsQuery,
        after: &ListCursor,
        limit: usize,
        scan_budget: usize,
    ) -> Listed<Job> {
        let scope = JobScope::of(&query.parent);
        let take = |name: &str| {
            if !scope.holds(name) {
                return None;
            }
            let job = self.jobs.get(name)?;
            query.filter.matches_job(&job).then(|| job.into_owned())
        };
        if query.order.by_creation {
            let after_key = (!after.name.is_empty()).then_some((after.sequence, after.index));
            let (from, to) = creation_bounds(after_key, query.order.descending);
            let found = self.jobs.by_creation(from, to);
            let cursor = |(key, name): (&OrderKey, &Arc<str>)| ListCursor {
                sequence: key.0,
                index: key.1,
                name: name.to_string(),
            };
            slice(
                directed(found, query.order.descending),
                limit,
                scan_budget,
                |(_, name)| take(name),
                cursor,
            )
        } else {
            let upper = successor(&scope.prefix);
            let (from, to) =
                name_bounds(&scope.prefix, &upper, &after.name, query.order.descending);
            let found = self.jobs.range(from, to);
            slice(
                directed(found, query.order.descending),
                limit,
                scan_budget,
                |name| take(name),
                |name| ListCursor {
                    name: name.to_string(),
                    ..ListCursor::default()
                },
            )
        }
    }

    /// At most `limit` jobs below `parent` that match and have neither ended nor been told to, in order of name.
    pub fn terminable(&self, parent: &str, filter: &Filter, limit: usize) -> Vec<TerminateJob> {
        let scope = JobScope::of(parent);
        let upper = successor(&scope.prefix);
        let (from, to) = name_bounds(&scope.prefix, &upper, "", false);
        self.jobs
            .range(from, to)
            .filter(|name| scope.holds(name))
            // A sealed job has ended.
            .filter_map(|name| self.jobs.open(name))
            .filter(|job| match job.execution_state() {
                ExecutionState::Queued | ExecutionState::Running => filter.matches_job(job),
                ExecutionState::Unspecified
                | ExecutionState::Terminating
                | ExecutionState::Succeeded
                | ExecutionState::Failed => false,
            })
            .take(limit)
            .map(|job| TerminateJob {
                name: job.name.clone(),
                cause: TerminateCause::Requested.into(),
                uid: job.uid.clone(),
            })
            .collect()
    }

    /// A slice of nodes; see [`State::list_jobs`].
    pub fn list_nodes(
        &self,
        query: &NodesQuery,
        after: &ListCursor,
        limit: usize,
        scan_budget: usize,
    ) -> Listed<Node> {
        by_name(
            &self.nodes,
            "",
            query.order,
            after,
            limit,
            scan_budget,
            |name, node| {
                query
                    .filter
                    .matches_node(node)
                    .then(|| self.node(name))
                    .flatten()
            },
        )
    }

    /// A slice of clusters with their computed fields; see [`State::list_jobs`].
    pub fn list_clusters(
        &self,
        query: &ClustersQuery,
        after: &ListCursor,
        limit: usize,
        scan_budget: usize,
    ) -> Listed<Cluster> {
        let prefix = if query.parent.ends_with("/-") {
            String::new()
        } else {
            format!("{}/clusters/", query.parent)
        };
        by_name(
            &self.clusters,
            &prefix,
            query.order,
            after,
            limit,
            scan_budget,
            |name, _| {
                self.cluster(name)
                    .filter(|cluster| query.filter.matches_cluster(cluster))
            },
        )
    }
}

/// The jobs below a parent.
struct JobScope {
    prefix: String,
    part: String,
}

impl JobScope {
    fn of(parent: &str) -> Self {
        let (prefix, part) = match parent.split_once("/experiments/") {
            Some(("workspaces/-", "-")) => (String::new(), String::new()),
            Some((workspace, "-")) => (format!("{workspace}/experiments/"), String::new()),
            Some(("workspaces/-", experiment)) => {
                (String::new(), format!("/experiments/{experiment}/jobs/"))
            }
            Some(_) | None => (format!("{parent}/jobs/"), String::new()),
        };
        Self { prefix, part }
    }

    fn holds(&self, name: &str) -> bool {
        name.starts_with(&self.prefix) && name.contains(&self.part)
    }
}

fn by_name<V, T>(
    map: &BTreeMap<String, V>,
    prefix: &str,
    order: Order,
    after: &ListCursor,
    limit: usize,
    scan_budget: usize,
    take: impl Fn(&str, &V) -> Option<T>,
) -> Listed<T> {
    let upper = successor(prefix);
    let (from, to) = name_bounds(prefix, &upper, &after.name, order.descending);
    let found = (!is_empty(from, to))
        .then(|| map.range::<str, _>((from, to)))
        .into_iter()
        .flatten();
    slice(
        directed(found, order.descending),
        limit,
        scan_budget,
        |(name, value)| take(name, value),
        |(name, _)| ListCursor {
            name: name.clone(),
            ..ListCursor::default()
        },
    )
}

/// Takes what `take` wants until there are `limit`, or `budget` were looked at; at least one is, so that every list ends.
fn slice<I: Copy, T>(
    mut found: impl Iterator<Item = I>,
    limit: usize,
    budget: usize,
    take: impl Fn(I) -> Option<T>,
    cursor: impl Fn(I) -> ListCursor,
) -> Listed<T> {
    let mut items = Vec::new();
    let mut looked_at = 0;
    while let Some(item) = found.next() {
        items.extend(take(item));
        looked_at += 1;
        if items.len() >= limit.max(1) || looked_at >= budget {
            let next = found.next().map(|_| cursor(item));
            return Listed { items, next };
        }
    }
    Listed { items, next: None }
}

/// The same items from the other end.
fn directed<I: DoubleEndedIterator>(items: I, descending: bool) -> impl Iterator<Item = I::Item> {
    let (forward, backward) = if descending {
        (None, Some(items.rev()))
    } else {
        (Some(items), None)
    };
    forward
        .into_iter()
        .flatten()
        .chain(backward.into_iter().flatten())
}

/// First text after all that begin with `prefix`, which is empty or ends with an ASCII character.
fn successor(prefix: &str) -> Option<String> {
    let last = prefix.chars().next_back()?;
    let next = char::from_u32(u32::from(last) + 1)?;
    Some(format!(
        "{}{next}",
        &prefix[..prefix.len() - last.len_utf8()]
    ))
}

type Bounds<'a> = (Bound<&'a str>, Bound<&'a str>);

fn name_bounds<'a>(
    prefix: &'a str,
    upper: &'a Option<String>,
    after: &'a str,
    descending: bool,
) -> Bounds<'a> {
    let end = upper.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    match (after.is_empty(), descending) {
        (true, _) => (Bound::Included(prefix), end),
        (false, false) if after < prefix => (Bound::Included(prefix), end),
        (false, false) => (Bound::Excluded(after), end),
        (false, true) if upper.as_deref().is_some_and(|upper| after > upper) => {
            (Bound::Included(prefix), end)
        }
        (false, true) => (Bound::Included(prefix), Bound::Excluded(after)),
    }
}

fn creation_bounds(
    after: Option<OrderKey>,
    descending: bool,
) -> (Bound<OrderKey>, Bound<OrderKey>) {
    match (after, descending) {
        (None, _) => (Bound::Unbounded, Bound::Unbounded),
        (Some(key), false) => (Bound::Excluded(key), Bound::Unbounded),
        (Some(key), true) => (Bound::Unbounded, Bound::Excluded(key)),
    }
}

/// Whether nothing can lie within bounds; a map would panic at some of these.
pub(crate) fn is_empty<T: PartialOrd>(from: Bound<T>, to: Bound<T>) -> bool {
    match (from, to) {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
            a >= b
        }
        _ => false,
    }
}
