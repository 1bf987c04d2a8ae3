//! Limits of workspaces and of the whole group, and what is used of them.
//!
//! Limits on what exists (clusters, nodes, waiting jobs) refuse a create; limits on what runs make a job wait, and are in
//! [`crate::admission`]. A limit that is set below what is used takes nothing away.

use prost_types::{Duration, Timestamp};
use trainyard_proto::v1::{Cluster, Quota, Usage};

use crate::outcome::{Refusal, RefusalKind};
use crate::state::{State, workspace_of};

/// Name of the limits of the whole group.
pub(crate) const TOTAL: &str = "quota";

/// Default of `gpu_hours_period`.
const PERIOD_S: i64 = 30 * 24 * 3600;

impl State {
    /// The limits of this name (`workspaces/{w}/quota` or `quota`); without any when none were set.
    pub fn quota(&self, name: &str) -> Quota {
        self.quotas.get(name).cloned().unwrap_or_else(|| Quota {
            name: name.to_owned(),
            ..Quota::default()
        })
    }

    /// What is used and what is the limit: of `workspaces/{w}`, of each (`workspaces/-`), or in total (empty).
    pub fn usages(&self, parent: &str, now: &Timestamp) -> Vec<Usage> {
        match parent {
            "" => self.usages_of(None, now),
            "workspaces/-" => self
                .workspaces
                .keys()
                .flat_map(|workspace| self.usages_of(Some(workspace), now))
                .collect(),
            workspace => self.usages_of(Some(workspace), now),
        }
    }

    fn usages_of(&self, workspace: Option<&str>, now: &Timestamp) -> Vec<Usage> {
        let quota = self.quota(&quota_name(workspace));
        let running = self.running(workspace);
        let start = period_start(&quota, now);
        let hours = self.gpu_hours_since((start.seconds, start.nanos), now);
        let hours = match workspace {
            Some(workspace) => hours.get(workspace).copied().unwrap_or(0.0),
            None => hours.values().sum(),
        };
        let count = |limit: Option<u32>| limit.map(f64::from);
        let usage = |name: &str, used: f64, limit: Option<f64>| Usage {
            name: name.to_owned(),
            unit: "Count".to_owned(),
            current_value: used,
            limit,
            workspace: workspace.unwrap_or_default().to_owned(),
            period_start: None,
        };
        vec![
            usage(
                "clusters",
                self.clusters_of(workspace).count() as f64,
                count(quota.clusters),
            ),
            usage(
                "nodes",
                self.nodes_promised(workspace) as f64,
                count(quota.nodes),
            ),
            usage("gpus", running.gpus as f64, count(quota.gpus)),
            usage(
                "runningJobs",
                running.jobs as f64,
                count(quota.running_jobs),
            ),
            usage(
                "queuedJobs",
                self.waiting_jobs(workspace) as f64,
                count(quota.queued_jobs),
            ),
            Usage {
                unit: "Hours".to_owned(),
                period_start: Some(start),
                ..usage("gpuHours", hours, quota.gpu_hours)
            },
        ]
    }

    /// Refuses a cluster of `nodes` nodes (target or maximum) that a limit forbids. `name` is the cluster's.
    pub(crate) fn admit_cluster(&self, name: &str, nodes: u32) -> Result<(), Refusal> {
        let owner = workspace_of(name);
        for workspace in [Some(owner), None] {
            let quota = quota_name(workspace);
            if let Some(limit) = self.quotas.get(&quota).and_then(|q| q.clusters) {
                let used = self.clusters_of(workspace).count() as u64;
                check(name, &quota, "clusters", used, 1, limit)?;
            }
        }
        self.admit_nodes(name, 0, nodes)
    }

    /// Refuses to let a cluster grow from `from` to `to` nodes (target or maximum) when a limit forbids it.
    pub(crate) fn admit_nodes(&self, name: &str, from: u32, to: u32) -> Result<(), Refusal> {
        if to <= from {
            return Ok(());
        }
        let owner = workspace_of(name);
        for workspace in [Some(owner), None] {
            let quota = quota_name(workspace);
            if let Some(limit) = self.quotas.get(&quota).and_then(|q| q.nodes) {
                let used = self.nodes_promised(workspace).saturating_sub(from.into());
                check(name, &quota, "nodes", used, to.into(), limit)?;
            }
        }
        Ok(())
    }

    /// Refuses `jobs` more jobs that would wait when a limit forbids it. `name` is the first job's or the array's.
    pub(crate) fn admit_jobs(&self, name: &str, jobs: u64) -> Result<(), Refusal> {
        let owner = workspace_of(name);
        for workspace in [Some(owner), None] {
            let quota = quota_name(workspace);
            if let Some(limit) = self.quotas.get(&quota).and_then(|q| q.queued_jobs) {
                let used = self.waiting_jobs(workspace);
                check(name, &quota, "queuedJobs", used, jobs, limit)?;
            }
        }
        Ok(())
    }

    /// Clusters of a workspace, or all.
    fn clusters_of(&self, workspace: Option<&str>) -> impl Iterator<Item = &Cluster> {
        let prefix = workspace.map_or_else(String::new, |w| format!("{w}/clusters/"));
        self.clusters
            .range(prefix.clone()..)
            .take_while(move |(name, _)| name.starts_with(&prefix))
            .map(|(_, cluster)| cluster)
    }

    fn nodes_promised(&self, workspace: Option<&str>) -> u64 {
        self.clusters_of(workspace)
            .map(|cluster| u64::from(most_nodes(cluster)))
            .sum()
    }

    fn waiting_jobs(&self, workspace: Option<&str>) -> u64 {
        let count = match workspace {
            Some(workspace) => self.indexes.waiting.get(workspace).map_or(0, |w| w.len()),
            None => self.indexes.waiting.values().map(|w| w.len()).sum(),
        };
        count as u64
    }

    fn running(&self, workspace: Option<&str>) -> Running {
        let mut running = Running::default();
        for name in &self.indexes.live {
            if workspace.is_none_or(|w| workspace_of(name) == w)
                && let Some(job) = self.jobs.open(name)
            {
                running.jobs += 1;
                running.gpus += gpus_held(job);
            }
        }
        running
    }

    /// When the next period of any limit on GPU-hours begins: jobs that wait for it may start then.
    pub(crate) fn next_quota_period(&self, now: &Timestamp) -> Option<Timestamp> {
        self.quotas
            .values()
            .filter(|quota| quota.gpu_hours.is_some())
            .map(|quota| period_end(quota, now))
            .min_by_key(|t| (t.seconds, t.nanos))
    }
}

/// What runs at one time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Running {
    pub(crate) jobs: u64,
    pub(crate) gpus: u64,
}

/// GPUs that the live attempt of a job holds.
pub(crate) fn gpus_held(job: &trainyard_proto::v1::Job) -> u64 {
    job.attempts
        .last()
        .map_or(0, |a| a.nodes.iter().map(|n| n.gpus.len() as u64).sum())
}

/// Nodes that a cluster may come to hold: its target, or its maximum where it scales by itself.
pub(crate) fn most_nodes(cluster: &Cluster) -> u32 {
    let Some(settings) = cluster.scale_settings.as_ref() else {
        return 0;
    };
    match (settings.manual.as_ref(), settings.auto_scale.as_ref()) {
        (_, Some(auto)) => auto.maximum_node_count,
        (Some(manual), None) => manual.target_node_count,
        (None, None) => 0,
    }
}

/// Name of the limits of a workspace, or of the whole group.
pub(crate) fn quota_name(workspace: Option<&str>) -> String {
    workspace.map_or_else(|| TOTAL.to_owned(), |w| format!("{w}/{TOTAL}"))
}

/// Begin of the period of GPU-hours that `now` is in.
pub(crate) fn period_start(quota: &Quota, now: &Timestamp) -> Timestamp {
    let period = period(quota);
    Timestamp {
        seconds: now.seconds.div_euclid(period).saturating_mul(period),
        nanos: 0,
    }
}

/// Begin of the next period.
pub(crate) fn period_end(quota: &Quota, now: &Timestamp) -> Timestamp {
    let start = period_start(quota, now);
    Timestamp {
        seconds: start.seconds.saturating_add(period(quota)),
        nanos: 0,
    }
}

/// Whole seconds: `validate::quota` refuses anything else.
fn period(quota: &Quota) -> i64 {
    let Duration { seconds, .. } = quota.gpu_hours_period.unwrap_or(Duration {
        seconds: PERIOD_S,
        nanos: 0,
    });
    seconds.max(1)
}

fn check(
    resource: &str,
    quota: &str,
    limit_name: &'static str,
    used: u64,
    wanted: u64,
    limit: u32,
) -> Result<(), Refusal> {
    if used.saturating_add(wanted) <= u64::from(limit) {
        return Ok(());
    }
    let whose = match quota.strip_suffix("/quota") {
        Some(workspace) => format!("of {workspace}"),
        None => "of the whole group".to_owned(),
    };
    let mut refusal = Refusal::new(
        RefusalKind::ResourceExhausted,
        resource,
        format!(
            "the limit on {limit_name} {whose} is {limit}: {used} are used and {wanted} more are wanted; delete some, or \
             raise the limit with trainyard quota set"
        ),
    );
    refusal.facts = vec![
        ("quota", quota.to_owned()),
        ("limitName", limit_name.to_owned()),
        ("used", used.to_string()),
        ("limit", limit.to_string()),
        ("wanted", wanted.to_string()),
    ];
    Err(refusal)
}
