//! Limits: update.

use trainyard_proto::store::v1::UpdateQuota;
use trainyard_shared::names::QuotaName;
use trainyard_shared::validate;

use super::{Applied, Context, check_etag, incomplete, parse};
use crate::outcome::{Change, Refusal, Reply};
use crate::state::State;

impl State {
    pub(super) fn update_quota(&mut self, context: &mut Context, command: &UpdateQuota) -> Applied {
        let wanted = command.quota.as_ref().ok_or_else(|| incomplete("quota"))?;
        let parsed = parse::<QuotaName>(&wanted.name)?;
        let name = parsed.to_string();
        if let Some(workspace) = parsed.workspace() {
            self.parent_workspace(&workspace)?;
        }
        let mut quota = self.quota(&name);
        check_etag(&name, &wanted.etag, &quota.etag)?;
        let paths = command
            .update_mask
            .as_ref()
            .map(|m| m.paths.as_slice())
            .unwrap_or_default();
        if paths.is_empty() {
            return Err(Refusal::invalid_field(
                &name,
                "updateMask",
                "names no limit; say which to change",
            ));
        }
        for path in paths {
            match path.as_str() {
                "clusters" => quota.clusters = wanted.clusters,
                "nodes" => quota.nodes = wanted.nodes,
                "gpus" => quota.gpus = wanted.gpus,
                "running_jobs" | "runningJobs" => quota.running_jobs = wanted.running_jobs,
                "queued_jobs" | "queuedJobs" => quota.queued_jobs = wanted.queued_jobs,
                "gpu_hours" | "gpuHours" => quota.gpu_hours = wanted.gpu_hours,
                "gpu_hours_period" | "gpuHoursPeriod" => {
                    quota.gpu_hours_period = wanted.gpu_hours_period;
                }
                other => {
                    return Err(Refusal::invalid_field(
                        &name,
                        "updateMask",
                        format!(
                            "{other} is no limit; clusters, nodes, gpus, running_jobs, queued_jobs, gpu_hours and \
                             gpu_hours_period are"
                        ),
                    ));
                }
            }
        }
        let violations = validate::quota(&quota);
        if !violations.is_empty() {
            return Err(Refusal::invalid(&name, violations));
        }
        quota.etag = context.etag();
        self.quotas.insert(name, quota.clone());
        context.changed(Change::Placement);
        Ok(Reply::Quota(quota))
    }
}
