//! `UsageService`: limits, what is used of them, and what was used in a period.

use std::sync::Arc;

use prost::Message as _;
use prost_types::Timestamp;
use tonic::{Request, Response, Status};
use trainyard_core::{Refusal, Reply, State};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::usage_service_server::UsageService;
use trainyard_proto::v1::{
    GetQuotaRequest, ListUsagesRequest, ListUsagesResponse, Quota, ReportUsageRequest,
    ReportUsageResponse, UpdateQuotaRequest, UsageGrouping,
};
use trainyard_shared::names::{ExperimentName, QuotaName, WorkspaceName};
use trainyard_shared::validate;

use super::{check, check_etag, mask, name, required, unexpected};
use crate::context::Context;
use crate::status;

/// What `UpdateQuota` can change.
const MUTABLE: [&str; 7] = [
    "clusters",
    "nodes",
    "gpus",
    "running_jobs",
    "queued_jobs",
    "gpu_hours",
    "gpu_hours_period",
];
/// Largest answer: clients take 4 MiB by default.
const MAX_BYTES: usize = 3 * 1024 * 1024;

/// See the module.
#[derive(Debug, Clone)]
pub struct Usages(pub Arc<Context>);

#[tonic::async_trait]
impl UsageService for Usages {
    async fn get_quota(
        &self,
        request: Request<GetQuotaRequest>,
    ) -> Result<Response<Quota>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let quota: QuotaName = name("name", &request.name)?;
        let state = self.0.state();
        known(&state, quota.workspace().as_ref())?;
        Ok(Response::new(state.quota(&request.name)))
    }

    async fn update_quota(
        &self,
        request: Request<UpdateQuotaRequest>,
    ) -> Result<Response<Quota>, Status> {
        let request = request.into_inner();
        let quota = required("quota", request.quota)?;
        let name: QuotaName = name("quota.name", &quota.name)?;
        check_etag(&quota.etag)?;
        mask::paths(request.update_mask.as_ref(), "Quota", &MUTABLE)?;
        check(&name, &validate::quota(&quota))?;
        let command = store::UpdateQuota {
            quota: Some(quota),
            update_mask: request.update_mask,
        };
        match self.0.propose(Kind::UpdateQuota(command)).await? {
            Reply::Quota(quota) => Ok(Response::new(quota)),
            other => Err(unexpected(&other)),
        }
    }

    async fn list_usages(
        &self,
        request: Request<ListUsagesRequest>,
    ) -> Result<Response<ListUsagesResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let parent = request.into_inner().parent;
        let now = self.0.clock.now();
        let state = self.0.state();
        if !parent.is_empty() && parent != "workspaces/-" {
            known(&state, Some(&name::<WorkspaceName>("parent", &parent)?))?;
        }
        let response = ListUsagesResponse {
            usages: state.usages(&parent, &now),
        };
        drop(state);
        if response.encoded_len() > MAX_BYTES {
            return Err(status::exhausted(
                "there are too many workspaces for one answer; ask for one: parent workspaces/WORKSPACE",
            ));
        }
        Ok(Response::new(response))
    }

    async fn report_usage(
        &self,
        request: Request<ReportUsageRequest>,
    ) -> Result<Response<ReportUsageResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        check_report(&request)?;
        let context = Arc::clone(&self.0);
        // Adds up whatever ran in the period, which may be years: other calls go on meanwhile.
        let report = tokio::task::spawn_blocking(move || {
            let now = context.clock.now();
            context.state().report_usage(&request, &now)
        });
        match report.await {
            Ok(report) => Ok(Response::new(report)),
            Err(error) => Err(status::internal(format!("the report broke down: {error}"))),
        }
    }
}

/// Refuses a workspace that does not exist.
fn known(state: &State, workspace: Option<&WorkspaceName>) -> Result<(), Status> {
    match workspace {
        Some(name) if state.workspace(name.as_str()).is_none() => {
            Err(status::refusal(&Refusal::not_found(name.as_str())))
        }
        Some(_) | None => Ok(()),
    }
}

/// What was deleted may be asked for: its usage is kept.
fn check_report(request: &ReportUsageRequest) -> Result<(), Status> {
    let parent = &request.parent;
    if !parent.is_empty()
        && parent.parse::<WorkspaceName>().is_err()
        && parent.parse::<ExperimentName>().is_err()
    {
        return Err(status::invalid_field(
            "parent",
            format!(
                "{parent:?} is neither {} nor {}; leave it empty to report on all",
                WorkspaceName::PATTERN,
                ExperimentName::PATTERN
            ),
        ));
    }
    if UsageGrouping::try_from(request.group_by).is_err() {
        let text = format!("{} is no grouping of this release", request.group_by);
        return Err(status::invalid_field("group_by", text));
    }
    for (field, time) in [
        ("start_time", &request.start_time),
        ("end_time", &request.end_time),
    ] {
        if time.is_some_and(|time| !is_time(&time)) {
            let text = "is no time between the years 1 and 9999";
            return Err(status::invalid_field(field, text));
        }
    }
    if let (Some(start), Some(end)) = (&request.start_time, &request.end_time)
        && (start.seconds, start.nanos) >= (end.seconds, end.nanos)
    {
        let text = "must be after start_time, which is included in the period";
        return Err(status::invalid_field("end_time", text));
    }
    Ok(())
}

/// As `google.protobuf.Timestamp` demands.
fn is_time(time: &Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&time.seconds)
        && (0..1_000_000_000).contains(&time.nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_the_field_that_is_wrong() {
        let at = |seconds: i64| Some(Timestamp { seconds, nanos: 0 });
        let good = ReportUsageRequest {
            start_time: at(0),
            end_time: at(1),
            group_by: UsageGrouping::Job.into(),
            parent: "workspaces/w/experiments/e".into(),
        };
        assert!(check_report(&good).is_ok());
        assert!(check_report(&ReportUsageRequest::default()).is_ok());
        for (field, wrong) in [
            (
                "parent",
                ReportUsageRequest {
                    parent: "workspaces/-".into(),
                    ..good.clone()
                },
            ),
            (
                "group_by",
                ReportUsageRequest {
                    group_by: 99,
                    ..good.clone()
                },
            ),
            (
                "end_time",
                ReportUsageRequest {
                    end_time: at(0),
                    ..good.clone()
                },
            ),
            (
                "start_time",
                ReportUsageRequest {
                    start_time: at(i64::MIN),
                    ..good
                },
            ),
        ] {
            let refused = check_report(&wrong).unwrap_err();
            assert!(refused.message().starts_with(field), "{refused}");
        }
    }
}
