//! Reads: single resources and pages, with computed fields filled in. Nothing here changes the state.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

use prost_types::Timestamp;
use trainyard_proto::store::v1::{TerminateCause, TerminateJob};
use trainyard_proto::v1::{
    Attempt, AttemptPhase, Cluster, Experiment, FileServer, Job, Node, NodeState, Observed,
    ObservedAttempt, Workspace,
};

use crate::attempt::phase_of;
use crate::lists::{JobsQuery, ListCursor};
use crate::state::State;

/// `maxWallClockTime` where the job names none: Batch AI's seven days.
const DEFAULT_WALL_CLOCK_S: i64 = 7 * 24 * 3600;

impl State {
    /// One workspace.
    pub fn workspace(&self, name: &str) -> Option<&Workspace> {
        self.workspaces.get(name)
    }

    /// At most `limit` workspaces after the resource name `after` (exclusive; empty: from the start).
    pub fn workspaces(&self, after: &str, limit: usize) -> Vec<Workspace> {
        page(&self.workspaces, "", after, limit)
            .map(|(_, w)| w.clone())
            .collect()
    }

    /// One cluster, with its counts.
    pub fn cluster(&self, name: &str) -> Option<Cluster> {
        self.clusters.get(name).map(|c| self.with_counts(c))
    }

    /// A page of the clusters of `workspaces/{w}`, or of all with `workspaces/-`.
    pub fn clusters(&self, parent: &str, after: &str, limit: usize) -> Vec<Cluster> {
        page(&self.clusters, &children(parent, "clusters"), after, limit)
            .map(|(_, c)| self.with_counts(c))
            .collect()
    }

    /// One file server.
    pub fn file_server(&self, name: &str) -> Option<&FileServer> {
        self.file_servers.get(name)
    }

    /// A page of the file servers of a workspace.
    pub fn file_servers(&self, parent: &str, after: &str, limit: usize) -> Vec<FileServer> {
        page(
            &self.file_servers,
            &children(parent, "fileServers"),
            after,
            limit,
        )
        .map(|(_, f)| f.clone())
        .collect()
    }

    /// One experiment.
    pub fn experiment(&self, name: &str) -> Option<&Experiment> {
        self.experiments.get(name)
    }

    /// A page of the experiments of a workspace.
    pub fn experiments(&self, parent: &str, after: &str, limit: usize) -> Vec<Experiment> {
        page(
            &self.experiments,
            &children(parent, "experiments"),
            after,
            limit,
        )
        .map(|(_, e)| e.clone())
        .collect()
    }

    /// One job; decoded, if it has ended.
    pub fn job(&self, name: &str) -> Option<Cow<'_, Job>> {
        self.jobs.get(name)
    }

    /// A page of the jobs of `workspaces/{w}/experiments/{e}`; `-` stands for any.
    pub fn jobs(&self, parent: &str, after: &str, limit: usize) -> Vec<Job> {
        let query = JobsQuery {
            parent: parent.to_owned(),
            ..JobsQuery::default()
        };
        let after = ListCursor {
            name: after.to_owned(),
            ..ListCursor::default()
        };
        self.list_jobs(&query, &after, limit, usize::MAX).items
    }

    /// One node, with the attempts that hold a part of it.
    pub fn node(&self, name: &str) -> Option<Node> {
        self.nodes.get(name).map(|n| self.with_attempts(n))
    }

    /// A page of all nodes.
    pub fn nodes(&self, after: &str, limit: usize) -> Vec<Node> {
        page(&self.nodes, "", after, limit)
            .map(|(_, n)| self.with_attempts(n))
            .collect()
    }

    /// Attempts that ran longer than `constraints.maxWallClockTime` allows.
    pub fn overdue(&self, now: &Timestamp) -> Vec<TerminateJob> {
        self.deadlines()
            .filter(|(_, deadline)| (now.seconds, now.nanos) >= (deadline.seconds, deadline.nanos))
            .map(|(job, _)| TerminateJob {
                name: job.name.clone(),
                cause: TerminateCause::WallClock.into(),
                uid: job.uid.clone(),
            })
            .collect()
    }

    /// When the next running attempt will be overdue.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines()
            .map(|(_, deadline)| deadline)
            .min_by_key(|t| (t.seconds, t.nanos))
    }

    /// Whether a report of these attempts would change the state: is it worth an entry of the log?
    pub fn report_differs(&self, node: &str, session_epoch: u64, observed: &Observed) -> bool {
        let attempts = observed.attempts.as_slice();
        let Some(known) = self.nodes.get(node) else {
            return false;
        };
        if known.session_epoch != session_epoch {
            return false;
        }
        if known.state() == NodeState::Cleaning && self.is_clean(node, attempts) {
            return true;
        }
        if self.merged_setup(node, observed.setup.as_ref()).is_some()
            || self.exports_differ(node, &observed.exports)
        {
            return true;
        }
        attempts.iter().any(|observed| {
            let Some((_, mine)) = self.observed_attempt(node, observed) else {
                return false;
            };
            let mut copy = mine.clone();
            observed
                .status
                .as_ref()
                .is_some_and(|status| crate::attempt::merge_status(&mut copy, status))
        })
    }

    /// The node's part of the live attempt that was observed; `None` if it is not, or no longer, the node's.
    pub(crate) fn observed_attempt(
        &self,
        node: &str,
        observed: &ObservedAttempt,
    ) -> Option<(&Attempt, &trainyard_proto::v1::AttemptNode)> {
        let job = self.jobs.open(&observed.job)?;
        let attempt = job.attempts.last()?;
        let same = job.uid == observed.uid
            && attempt.number == observed.attempt
            && attempt.epoch == observed.epoch;
        if !same || attempt.phase() == AttemptPhase::Ended {
            return None;
        }
        attempt
            .nodes
            .iter()
            .find(|n| n.node == node)
            .map(|mine| (attempt, mine))
    }

    /// Whether everything that a node has is its own: nothing is left of attempts that were taken from it.
    pub(crate) fn is_clean(&self, node: &str, attempts: &[ObservedAttempt]) -> bool {
        use trainyard_proto::v1::AttemptNodePhase;
        attempts.iter().all(|observed| {
            let gone = observed
                .status
                .as_ref()
                .is_some_and(|s| s.phase() == AttemptNodePhase::Cleaned);
            gone || self
                .observed_attempt(node, observed)
                .is_some_and(|(_, mine)| phase_of(mine) != AttemptNodePhase::Lost)
        })
    }

    fn deadlines(&self) -> impl Iterator<Item = (&Job, Timestamp)> {
        self.indexes.live.iter().filter_map(|name| {
            let job = self.jobs.open(name)?;
            let attempt = job.attempts.last()?;
            if !matches!(attempt.phase(), AttemptPhase::Prepare | AttemptPhase::Run) {
                return None;
            }
            let start = attempt.start_time?;
            let limit = job
                .spec
                .as_ref()
                .and_then(|s| s.constraints.as_ref())
                .and_then(|c| c.max_wall_clock_time)
                .map_or(DEFAULT_WALL_CLOCK_S, |d| d.seconds);
            Some((
                job,
                Timestamp {
                    seconds: start.seconds.saturating_add(limit),
                    nanos: start.nanos,
                },
            ))
        })
    }

    fn with_attempts(&self, node: &Node) -> Node {
        let mut node = node.clone();
        let held = self.indexes.holdings.get(&node.name);
        node.attempts = held
            .into_iter()
            .flatten()
            .map(|(job, holding)| format!("{job}#{}", holding.attempt))
            .collect();
        node
    }
}

/// Prefix of the names of a parent's children; a parent `…/-` is any.
fn children(parent: &str, collection: &str) -> String {
    if parent.ends_with("/-") {
        String::new()
    } else {
        format!("{parent}/{collection}/")
    }
}

fn page<'a, T>(
    map: &'a BTreeMap<String, T>,
    prefix: &str,
    after: &str,
    limit: usize,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    let prefix = prefix.to_owned();
    let start = if after > prefix.as_str() {
        Bound::Excluded(after.to_owned())
    } else {
        Bound::Included(prefix.clone())
    };
    map.range((start, Bound::Unbounded))
        .take_while(move |(name, _)| name.starts_with(&prefix))
        .take(limit)
}
