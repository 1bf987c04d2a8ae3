//! Sessions of agents against a real scheduler.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{FakeAgent, Group, create_job, furnish, get_job, within};
use tonic::Code;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::node_service_client::NodeServiceClient;
use trainyard_proto::v1::*;

async fn agent(group: &Group, member: usize) -> FakeAgent {
    let channel = group.channel(member, "nodes/node-1");
    FakeAgent::open(channel, FakeAgent::hello("node-1", "127.0.0.1:1"))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_on_an_agent_to_its_end() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 1).await;
    let mut agent = agent(&group, 0).await;
    assert_eq!(
        (agent.welcome.lease_ms, agent.welcome.heartbeat_ms),
        (3_000, 200)
    );
    agent.desired(|d| d.assignments.is_empty()).await;
    agent.heartbeat(1).await.unwrap();

    let job = create_job(&admin, "j").await;
    let desired = agent.desired(|d| !d.assignments.is_empty()).await;
    let assignment = &desired.assignments[0];
    assert_eq!(
        (assignment.uid.as_str(), assignment.phase()),
        (job.uid.as_str(), AttemptPhase::Run)
    );
    assert_eq!(assignment.stop_grace_ms, 10_000);
    agent.drive(assignment, 0).await;
    let ended = get_job(&admin, &job.name).await.unwrap();
    assert_eq!(ended.execution_state(), ExecutionState::Succeeded);

    let job = create_job(&admin, "k").await;
    let desired = agent.desired(|d| !d.assignments.is_empty()).await;
    agent.drive(&desired.assignments[0], 3).await;
    let ended = get_job(&admin, &job.name).await.unwrap();
    assert_eq!(ended.execution_state(), ExecutionState::Failed);
    assert_eq!(ended.execution_info.unwrap().exit_code, Some(3));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_ends_the_older_one() {
    let group = Group::start(1).await;
    let mut old = agent(&group, 0).await;
    old.heartbeat(1).await.unwrap();
    let mut new = agent(&group, 0).await;
    new.heartbeat(1).await.unwrap();
    let ended = old.heartbeat(2).await.unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
    new.heartbeat(2).await.unwrap();
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_under_another_name_is_refused() {
    let group = Group::start(1).await;
    let channel = group.channel(0, "nodes/node-1");
    let hello = FakeAgent::hello("node-2", "127.0.0.1:1");
    let refused = FakeAgent::open(channel, hello).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_lost_and_its_job_runs_elsewhere() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 2).await;
    let mut silent = agent(&group, 0).await;
    let job = create_job(&admin, "j").await;
    silent.desired(|d| !d.assignments.is_empty()).await;
    // node-2 comes, beats, and gets the job when the lease and the fence of node-1 have passed.
    let channel = group.channel(0, "nodes/node-2");
    let hello = FakeAgent::hello("node-2", "127.0.0.1:1");
    let mut other = FakeAgent::open(channel, hello).await.unwrap();
    let desired = within("the second attempt", async {
        let mut beat = tokio::time::interval(Duration::from_millis(200));
        let mut sequence = 0;
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    sequence += 1;
                    other.send(agent_message::Kind::Heartbeat(Heartbeat { sequence })).await;
                }
                message = other.next() => {
                    if let scheduler_message::Kind::Desired(desired) = message.unwrap()
                        && !desired.assignments.is_empty()
                    {
                        break desired;
                    }
                }
            }
        }
    })
    .await;
    assert_eq!(desired.assignments[0].attempt, 2);
    let lost = NodeServiceClient::new(admin.clone())
        .get_node(GetNodeRequest {
            name: "nodes/node-1".into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(lost.state(), NodeState::Lost);
    let refused = silent.heartbeat(9).await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::Aborted,
        "no heartbeat of a lost node is acknowledged"
    );
    other.drive(&desired.assignments[0], 0).await;
    let ended = get_job(&admin, &job.name).await.unwrap();
    assert_eq!(ended.execution_state(), ExecutionState::Succeeded);
    assert_eq!(ended.attempts[0].outcome(), AttemptOutcome::NodeLost);
    let error = JobServiceClient::new(admin)
        .list_job_files(ListJobFilesRequest {
            name: job.name,
            attempt: 1,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert!(error.message().contains("attempt 1"), "{error}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_moves_with_the_leadership_and_the_job_goes_on() {
    let mut group = Group::start(3).await;
    let leader = group.leader().await;
    let follower = (leader + 1) % 3;
    let channel = group.channel(follower, "nodes/node-1");
    let hello = || FakeAgent::hello("node-1", "127.0.0.1:1");
    let refused = FakeAgent::open(channel, hello()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let hint = refused
        .metadata()
        .get("trainyard-leader")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(hint, group.addresses[leader].to_string());

    furnish(&group.admin(leader), 1).await;
    let mut first = agent(&group, leader).await;
    let job = create_job(&group.admin(leader), "j").await;
    let before = first.desired(|d| !d.assignments.is_empty()).await;
    group.stop_member(leader).await;
    let leader = group.leader().await;
    let mut second = agent(&group, leader).await;
    assert!(second.welcome.term > first.welcome.term);
    let after = second.desired(|d| !d.assignments.is_empty()).await;
    assert_eq!(
        after.assignments[0].epoch, before.assignments[0].epoch,
        "the same attempt"
    );
    second.drive(&after.assignments[0], 0).await;
    let ended = get_job(&group.admin(leader), &job.name).await.unwrap();
    assert_eq!(ended.execution_state(), ExecutionState::Succeeded);
    assert_eq!(ended.attempts.len(), 1);
    group.stop().await;
}
