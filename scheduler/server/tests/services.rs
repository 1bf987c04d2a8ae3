//! What each call of the services gives, and what it refuses with which words.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Group, furnish, job_request};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::*;

/// Creates a job, claiming to be `mallory`.
async fn create_as(channel: &Channel, id: &str) -> Job {
    let mut request = Request::new(job_request(id, ""));
    request
        .metadata_mut()
        .insert("trainyard-user", "mallory".parse().unwrap());
    JobServiceClient::new(channel.clone())
        .create_job(request)
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_belongs_to_the_certificate_that_created_it() {
    let group = Group::start(2).await;
    let leader = group.leader().await;
    let follower = 1 - leader;
    furnish(&group.admin(leader), 0).await;
    let here = create_as(&group.admin(leader), "here").await;
    assert_eq!(here.user, "admin", "what a client claims is not believed");
    let passed_on = create_as(&group.admin(follower), "passed-on").await;
    assert_eq!(passed_on.user, "admin", "a follower names its client");
    // A member asks by itself: it may name a client.
    let member = group.channel(leader, &format!("members/{}", follower + 1));
    assert_eq!(create_as(&member, "by-member").await.user, "mallory");
    group.stop().await;
}

async fn update_workspace(
    channel: &Channel,
    workspace: Workspace,
    paths: &[&str],
) -> Result<Workspace, Status> {
    WorkspaceServiceClient::new(channel.clone())
        .update_workspace(UpdateWorkspaceRequest {
            workspace: Some(workspace),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            }),
        })
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_changes_what_its_mask_names_and_nothing_else() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let given = Workspace {
        name: "workspaces/w".into(),
        tags: [("team".to_owned(), "vision".to_owned())].into(),
        allow_root: true,
        ..Workspace::default()
    };
    let updated = update_workspace(&admin, given.clone(), &["tags"])
        .await
        .unwrap();
    assert_eq!(updated.tags, given.tags);
    assert!(!updated.allow_root);
    for (paths, text) in [
        (vec![], "update_mask: names no field"),
        (vec!["etag"], "update_mask: \"etag\" cannot be changed"),
        (
            vec!["tags", "colour"],
            "update_mask: \"colour\" is no field of a Workspace",
        ),
    ] {
        let refused = update_workspace(&admin, given.clone(), &paths)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(text), "{refused}");
    }
    let refused = ClusterServiceClient::new(admin.clone())
        .update_cluster(UpdateClusterRequest {
            cluster: Some(Cluster {
                name: "workspaces/w/clusters/c".into(),
                vm_size: "large".into(),
                ..Cluster::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["vm_size".into()],
            }),
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("\"vm_size\" cannot be changed"),
        "{refused}"
    );
    group.stop().await;
}
