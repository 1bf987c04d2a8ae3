//! Three members: every one answers, and the loss of the leader costs no acknowledged job.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Group, create_job, furnish, get_job, job_request, within};
use tonic::{Code, Request};
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::member_service_client::MemberServiceClient;
use trainyard_proto::v1::*;
use trainyard_shared::client::{Client, ClientConfig, new_request_id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_forward_and_answer_stale_reads_themselves() {
    let group = Group::start(3).await;
    let leader = group.leader().await;
    let follower = (leader + 1) % 3;
    let channel = group.admin(follower);
    furnish(&channel, 0).await;
    let job = create_job(&channel, "j").await;
    for member in 0..3 {
        // Linearizable everywhere, at once.
        assert_eq!(
            get_job(&group.admin(member), &job.name).await.unwrap().uid,
            job.uid
        );
    }
    let refused = get_job(&channel, "nonsense").await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::InvalidArgument,
        "errors pass through as well"
    );

    within("replication", async {
        loop {
            let mut request = Request::new(GetJobRequest {
                name: job.name.clone(),
            });
            request
                .metadata_mut()
                .insert("trainyard-consistency", "stale".parse().unwrap());
            match JobServiceClient::new(channel.clone())
                .get_job(request)
                .await
            {
                Ok(found) => break assert_eq!(found.into_inner().uid, job.uid),
                Err(status) => assert_eq!(status.code(), Code::NotFound),
            }
        }
    })
    .await;

    let mut watch = JobServiceClient::new(channel.clone())
        .watch_job(WatchJobRequest {
            name: job.name.clone(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        within("a watch", watch.message())
            .await
            .unwrap()
            .unwrap()
            .uid,
        job.uid
    );

    let members = MemberServiceClient::new(channel)
        .list_members(ListMembersRequest {})
        .await
        .unwrap()
        .into_inner()
        .members;
    assert_eq!(
        members
            .iter()
            .filter(|m| m.role() == MemberRole::Leader)
            .count(),
        1
    );
    assert!(members.iter().all(|m| m.healthy), "{members:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_of_the_leader_loses_nothing() {
    let mut group = Group::start(3).await;
    let leader = group.leader().await;
    furnish(&group.admin(leader), 0).await;
    let client = Client::new(ClientConfig {
        servers: group.addresses.iter().map(ToString::to_string).collect(),
        identity: group.identity("clients/admin"),
        timeout: common::LIMIT,
    })
    .unwrap();
    let create = |i: usize| {
        let client = client.clone();
        async move {
            let request = job_request(&format!("j-{i:03}"), &new_request_id());
            client
                .unary(|channel| {
                    let request = request.clone();
                    async move { JobServiceClient::new(channel).create_job(request).await }
                })
                .await
                .unwrap()
        }
    };
    let before = create(0).await;
    let load = tokio::spawn({
        let creates: Vec<_> = (1..60).map(create).collect();
        async move {
            let mut names = Vec::new();
            for create in creates {
                names.push(create.await.name);
            }
            names
        }
    });
    group.stop_member(leader).await;
    let mut names = within("the load", load).await.unwrap();
    names.push(before.name);
    let survivor = group.admin((leader + 1) % 3);
    for name in &names {
        assert!(get_job(&survivor, name).await.is_ok(), "{name} is lost");
    }
    group.start_member(leader).await;
    let found = get_job(&group.admin(leader), &names[0]).await;
    assert!(found.is_ok(), "the restarted member forwards: {found:?}");
    group.stop().await;
}
