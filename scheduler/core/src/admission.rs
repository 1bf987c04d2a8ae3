//! Whether a queued job may start as far as limits go, whatever room there is. Used to plan, to verify and to explain.
//!
//! A job that is not admitted is passed over and never blocks the jobs behind it: it waits for a limit and not for nodes.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use trainyard_proto::v1::{ArrayLimit, Job, OverQuota, Quota, blocker::Reason};

use crate::quota::{Running, TOTAL, gpus_held, period_end, period_start, quota_name};
use crate::state::{State, workspace_of};

/// What counts against the limits, as a plan grows.
pub(crate) struct Admission<'a> {
    state: &'a State,
    now: Timestamp,
    /// By workspace; counted when there are limits at all.
    running: BTreeMap<&'a str, Running>,
    /// Running jobs of arrays with a limit, by UUID of the array.
    arrays: BTreeMap<&'a str, u32>,
    /// GPU-hours of the present period, by name of the quota; counted for quotas with such a limit.
    hours: BTreeMap<&'a str, f64>,
}

impl<'a> Admission<'a> {
    /// What runs now.
    pub(crate) fn new(state: &'a State, now: &Timestamp) -> Self {
        let mut admission = Self {
            state,
            now: *now,
            running: BTreeMap::new(),
            arrays: BTreeMap::new(),
            hours: BTreeMap::new(),
        };
        for name in &state.indexes.live {
            if let Some(job) = state.jobs.open(name) {
                admission.count(job, gpus_held(job));
            }
        }
        for (name, quota) in &state.quotas {
            if quota.gpu_hours.is_none() {
                continue;
            }
            let start = period_start(quota, now);
            let used = state.gpu_hours_since((start.seconds, start.nanos), now);
            let used = match name.strip_suffix("/quota") {
                Some(workspace) => used.get(workspace).copied().unwrap_or(0.0),
                None => used.values().sum(),
            };
            admission.hours.insert(name, used);
        }
        admission
    }

    /// Why the job may not start now, if it may not. `gpus`: all that it would hold.
    pub(crate) fn admits(&self, job: &Job, gpus: u32) -> Result<(), Reason> {
        if let Some(array) = job.array.as_ref().filter(|a| a.max_running_jobs > 0) {
            let running = self.arrays.get(array.uid.as_str()).copied().unwrap_or(0);
            if running >= array.max_running_jobs {
                return Err(Reason::ArrayLimit(ArrayLimit {
                    max_running_jobs: array.max_running_jobs,
                    running,
                }));
            }
        }
        if self.state.quotas.is_empty() {
            return Ok(());
        }
        let owner = workspace_of(&job.name);
        for workspace in [Some(owner), None] {
            if let Some(quota) = self.state.quotas.get(&quota_name(workspace)) {
                self.within(quota, workspace, gpus)?;
            }
        }
        Ok(())
    }

    /// Counts a job that is to start.
    pub(crate) fn take(&mut self, job: &'a Job, gpus: u32) {
        self.count(job, gpus.into());
    }

    fn count(&mut self, job: &'a Job, gpus: u64) {
        if let Some(array) = job.array.as_ref().filter(|a| a.max_running_jobs > 0) {
            *self.arrays.entry(array.uid.as_str()).or_insert(0) += 1;
        }
        if self.state.quotas.is_empty() {
            return;
        }
        for whose in [workspace_of(&job.name), TOTAL] {
            let running = self.running.entry(whose).or_default();
            running.jobs += 1;
            running.gpus += gpus;
        }
    }

    fn within(&self, quota: &Quota, workspace: Option<&str>, gpus: u32) -> Result<(), Reason> {
        let running = self
            .running
            .get(workspace.unwrap_or(TOTAL))
            .copied()
            .unwrap_or_default();
        let over = |limit_name: &str, wanted: f64, used: f64, limit: f64| OverQuota {
            quota: quota.name.clone(),
            limit_name: limit_name.to_owned(),
            wanted,
            used,
            limit,
            next_period: None,
        };
        if let Some(limit) = quota.running_jobs
            && running.jobs >= u64::from(limit)
        {
            let reason = over("runningJobs", 1.0, running.jobs as f64, limit.into());
            return Err(Reason::OverQuota(reason));
        }
        if let Some(limit) = quota.gpus
            && gpus > 0
            && running.gpus + u64::from(gpus) > u64::from(limit)
        {
            let reason = over("gpus", gpus.into(), running.gpus as f64, limit.into());
            return Err(Reason::OverQuota(reason));
        }
        if let Some(limit) = quota.gpu_hours
            && gpus > 0
        {
            let used = self.hours.get(quota.name.as_str()).copied().unwrap_or(0.0);
            if used >= limit {
                return Err(Reason::OverQuota(OverQuota {
                    next_period: Some(period_end(quota, &self.now)),
                    ..over("gpuHours", 0.0, used, limit)
                }));
            }
        }
        Ok(())
    }
}
