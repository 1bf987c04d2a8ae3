//! One member, its services, and what it says when something is wrong.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Group, create_job, furnish, get_job, job_request};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::member_service_client::MemberServiceClient;
use trainyard_proto::v1::peer_service_client::PeerServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_are_created_once_read_and_listed() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let mut jobs = JobServiceClient::new(admin.clone());
    let first = jobs
        .create_job(job_request("j-1", "request-1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.name, "workspaces/w/experiments/e/jobs/j-1");
    assert_eq!(first.execution_state(), ExecutionState::Queued);
    assert!(!first.uid.is_empty() && first.creation_time.is_some());
    let again = jobs
        .create_job(job_request("j-1", "request-1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.uid, first.uid, "a repeat gives the first result");

    create_job(&admin, "j-2").await;
    let page = |page_token: String| ListJobsRequest {
        parent: "workspaces/w/experiments/-".into(),
        page_size: 1,
        page_token,
        ..ListJobsRequest::default()
    };
    let one = jobs
        .list_jobs(page(String::new()))
        .await
        .unwrap()
        .into_inner();
    let two = jobs
        .list_jobs(page(one.next_page_token.clone()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((one.jobs.len(), two.jobs.len()), (1, 1));
    assert_ne!(one.jobs[0].name, two.jobs[0].name);
    assert_eq!(two.next_page_token, "");

    let explained = jobs
        .explain_job(ExplainJobRequest {
            name: first.name.clone(),
        })
        .await
        .unwrap()
        .into_inner();
    assert!(!explained.blockers.is_empty() && !explained.summary.is_empty());
    let ended = jobs
        .terminate_job(TerminateJobRequest {
            name: first.name.clone(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ended.execution_state(), ExecutionState::Failed);

    let members = MemberServiceClient::new(admin.clone())
        .list_members(ListMembersRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(members.members[0].role(), MemberRole::Leader);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_carry_code_reason_and_fields() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let mut jobs = JobServiceClient::new(admin.clone());

    let missing = get_job(&admin, "workspaces/w/experiments/e/jobs/none")
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let details = missing.get_error_details();
    assert_eq!(
        details.resource_info().unwrap().resource_type,
        "trainyard.v1.Job"
    );

    let misnamed = get_job(&admin, "jobs/none").await.unwrap_err();
    assert_eq!(misnamed.code(), Code::InvalidArgument);

    let mut wrong = job_request("j", "");
    wrong
        .job
        .get_or_insert_default()
        .spec
        .get_or_insert_default()
        .node_count = 0;
    let refused = jobs.create_job(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "INVALID_ARGUMENT");
    let fields = &details.bad_request().unwrap().field_violations;
    assert!(fields.iter().any(|f| f.field == "nodeCount"), "{fields:?}");

    create_job(&admin, "twice").await;
    let taken = jobs.create_job(job_request("twice", "")).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    let busy = ClusterServiceClient::new(admin.clone())
        .delete_cluster(DeleteClusterRequest {
            name: "workspaces/w/clusters/c".into(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    let stale = WorkspaceServiceClient::new(admin.clone())
        .update_workspace(UpdateWorkspaceRequest {
            workspace: Some(Workspace {
                name: "workspaces/w".into(),
                etag: "old".into(),
                allow_root: true,
                ..Workspace::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["allow_root".into()],
            }),
        })
        .await
        .unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_decides_who_may_call_what() {
    let group = Group::start(1).await;
    let node = group.channel(0, "nodes/node-1");
    let refused = get_job(&node, "workspaces/w/experiments/e/jobs/j")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = common::FakeAgent::open(
        group.admin(0),
        common::FakeAgent::hello("node-1", "127.0.0.1:1"),
    )
    .await
    .err()
    .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = PeerServiceClient::new(group.admin(0))
        .exchange(tokio_stream::empty())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let stranger = Group::start(1).await;
    let tls = stranger
        .identity("clients/admin")
        .client_tls(trainyard_shared::tls::Server::Member);
    let foreign =
        tonic::transport::Endpoint::from_shared(format!("https://{}", group.addresses[0]))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_lazy();
    let refused = get_job(&foreign, "workspaces/w/experiments/e/jobs/j")
        .await
        .unwrap_err();
    assert_eq!(
        refused.code(),
        Code::Unavailable,
        "no TLS with another authority"
    );
    stranger.stop().await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_shows_changes_until_the_end() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let job = create_job(&admin, "j").await;
    let mut jobs = JobServiceClient::new(admin.clone());
    let mut watch = jobs
        .watch_job(WatchJobRequest {
            name: job.name.clone(),
        })
        .await
        .unwrap()
        .into_inner();
    let now = common::within("the present", watch.message())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(now.execution_state(), ExecutionState::Queued);
    jobs.terminate_job(TerminateJobRequest {
        name: job.name.clone(),
    })
    .await
    .unwrap();
    let mut last = now;
    while let Some(next) = common::within("a change", watch.message()).await.unwrap() {
        last = next;
    }
    assert_eq!(last.execution_state(), ExecutionState::Failed);
    let missing = jobs
        .watch_job(WatchJobRequest {
            name: "workspaces/w/experiments/e/jobs/none".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let mut group = Group::start(1).await;
    furnish(&group.admin(0), 0).await;
    let job = create_job(&group.admin(0), "j").await;
    group.stop_member(0).await;
    group.start_member(0).await;
    let mut request = Request::new(GetJobRequest {
        name: job.name.clone(),
    });
    request.set_timeout(common::LIMIT);
    let again = JobServiceClient::new(group.admin(0))
        .get_job(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.uid, job.uid);
    group.stop().await;
}
