//! Limits and accounting over real connections.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Group, create_job, furnish, job_request};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::usage_service_client::UsageServiceClient;
use trainyard_proto::v1::*;

const QUOTA: &str = "workspaces/w/quota";

async fn limit(channel: &Channel, quota: Quota, paths: &[&str]) -> Result<Quota, Status> {
    UsageServiceClient::new(channel.clone())
        .update_quota(UpdateQuotaRequest {
            quota: Some(quota),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            }),
        })
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_beyond_a_limit_is_refused_with_the_numbers() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let limits = Quota {
        name: QUOTA.into(),
        clusters: Some(1),
        queued_jobs: Some(1),
        ..Quota::default()
    };
    let set = limit(&admin, limits, &["clusters", "queued_jobs"])
        .await
        .unwrap();
    assert_eq!((set.clusters, set.queued_jobs), (Some(1), Some(1)));
    let mut clusters = ClusterServiceClient::new(admin.clone());
    let second = CreateClusterRequest {
        parent: "workspaces/w".into(),
        cluster_id: "second".into(),
        cluster: Some(Cluster {
            scale_settings: Some(ScaleSettings {
                manual: Some(ManualScaleSettings::default()),
                ..ScaleSettings::default()
            }),
            ..Cluster::default()
        }),
        ..CreateClusterRequest::default()
    };
    let refused = clusters.create_cluster(second.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let details = refused.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "QUOTA_EXCEEDED");
    for (key, value) in [
        ("quota", QUOTA),
        ("limitName", "clusters"),
        ("used", "1"),
        ("limit", "1"),
        ("wanted", "1"),
    ] {
        assert_eq!(info.metadata[key], value, "{key}: {:?}", info.metadata);
    }
    let violation = &details.quota_failure().unwrap().violations[0];
    assert_eq!(violation.subject, QUOTA);
    // A dry run says the same.
    let dry = CreateClusterRequest {
        validate_only: true,
        ..second.clone()
    };
    let refused = clusters.create_cluster(dry).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);

    create_job(&admin, "first").await;
    let refused = JobServiceClient::new(admin.clone())
        .create_job(job_request("second", ""))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");

    // A limit that is in the mask and absent is lifted.
    let lifted = Quota {
        name: QUOTA.into(),
        ..Quota::default()
    };
    let set = limit(&admin, lifted, &["clusters"]).await.unwrap();
    assert_eq!((set.clusters, set.queued_jobs), (None, Some(1)));
    clusters.create_cluster(second).await.unwrap();
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_usages_are_read_and_mistakes_named() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    create_job(&admin, "j").await;
    let mut usage = UsageServiceClient::new(admin.clone());
    let get = |name: &str| GetQuotaRequest { name: name.into() };
    let none = usage.get_quota(get("quota")).await.unwrap().into_inner();
    assert_eq!((none.name.as_str(), none.clusters), ("quota", None));
    let total = Quota {
        name: "quota".into(),
        gpus: Some(8),
        ..Quota::default()
    };
    limit(&admin, total.clone(), &["gpus"]).await.unwrap();
    let set = usage.get_quota(get("quota")).await.unwrap().into_inner();
    assert_eq!(set.gpus, Some(8));
    for (quota, paths, code, text) in [
        (
            Quota {
                name: "quotas".into(),
                ..Quota::default()
            },
            vec!["gpus"],
            Code::InvalidArgument,
            "quota.name: ",
        ),
        (
            Quota {
                name: "workspaces/none/quota".into(),
                ..Quota::default()
            },
            vec!["gpus"],
            Code::NotFound,
            "workspaces/none does not exist",
        ),
        (
            total.clone(),
            vec!["disks"],
            Code::InvalidArgument,
            "update_mask: \"disks\" is no field of a Quota",
        ),
        (
            Quota {
                etag: "old".into(),
                ..total.clone()
            },
            vec!["gpus"],
            Code::Aborted,
            "quota has changed",
        ),
        (
            Quota {
                gpu_hours: Some(-1.0),
                ..total.clone()
            },
            vec!["gpu_hours"],
            Code::InvalidArgument,
            "gpuHours: ",
        ),
    ] {
        let refused = limit(&admin, quota, &paths).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().starts_with(text), "{refused}");
    }
    let missing = usage
        .get_quota(get("workspaces/none/quota"))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);

    let list = |parent: &str| ListUsagesRequest {
        parent: parent.into(),
    };
    for parent in ["", "workspaces/w", "workspaces/-"] {
        let found = usage.list_usages(list(parent)).await.unwrap().into_inner();
        let of = |name: &str| found.usages.iter().find(|u| u.name == name).unwrap();
        assert_eq!(found.usages.len(), 6, "{parent:?}");
        assert!((of("clusters").current_value - 1.0).abs() < 1e-9);
        assert!((of("queuedJobs").current_value - 1.0).abs() < 1e-9);
        let limit = if parent.is_empty() { Some(8.0) } else { None };
        assert_eq!(of("gpus").limit, limit, "{parent:?}");
    }
    let missing = usage
        .list_usages(list("workspaces/none"))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_is_answered_by_any_member() {
    let group = Group::start(2).await;
    let leader = group.leader().await;
    furnish(&group.admin(leader), 0).await;
    let report = ReportUsageRequest {
        group_by: UsageGrouping::User.into(),
        parent: "workspaces/w".into(),
        ..ReportUsageRequest::default()
    };
    for member in 0..2 {
        for stale in [false, true] {
            let mut request = Request::new(report.clone());
            if stale {
                let metadata = request.metadata_mut();
                metadata.insert("trainyard-consistency", "stale".parse().unwrap());
            }
            let answer = UsageServiceClient::new(group.admin(member))
                .report_usage(request)
                .await
                .unwrap()
                .into_inner();
            assert_eq!(answer.rows.len(), 0, "nothing has run");
            assert!(answer.end_time.is_some());
        }
    }
    let refused = UsageServiceClient::new(group.admin(leader))
        .report_usage(ReportUsageRequest {
            parent: "nodes/n".into(),
            ..report
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("parent: "), "{refused}");
    group.stop().await;
}
