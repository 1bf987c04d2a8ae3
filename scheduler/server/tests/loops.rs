//! What the leader does by itself: deletions go on by the state alone, and what retention removes is in a file first.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{FakeAgent, Group, create_job, furnish, get_job, within};
use prost::Message as _;
use prost_types::{FieldMask, Timestamp};
use tonic::Code;
use tonic::transport::Channel;
use trainyard_proto::store::v1::{
    ApplyPlan, Command, CreateJob, ReportAttempts, Start, StartNode, UpdateWorkspace, command::Kind,
};
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::node_service_client::NodeServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::*;
use trainyard_scheduler::context::Context;

async fn agent(group: &Group, member: usize) -> FakeAgent {
    let channel = group.channel(member, "nodes/node-1");
    FakeAgent::open(channel, FakeAgent::hello("node-1", "127.0.0.1:1"))
        .await
        .unwrap()
}

async fn workspace(channel: &Channel) -> Result<Workspace, tonic::Status> {
    WorkspaceServiceClient::new(channel.clone())
        .get_workspace(GetWorkspaceRequest {
            name: "workspaces/w".into(),
        })
        .await
        .map(tonic::Response::into_inner)
}

async fn delete_workspace(channel: &Channel) {
    WorkspaceServiceClient::new(channel.clone())
        .delete_workspace(DeleteWorkspaceRequest {
            name: "workspaces/w".into(),
            ..DeleteWorkspaceRequest::default()
        })
        .await
        .unwrap();
}

/// Waits until something is gone.
async fn gone<T, F: Future<Output = Result<T, tonic::Status>>>(what: &str, get: impl Fn() -> F) {
    within(what, async {
        loop {
            match get().await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(status) => break assert_eq!(status.code(), Code::NotFound, "{status}"),
            }
        }
    })
    .await;
}

async fn keep_finished(group: &Group, max_finished_jobs: u32) {
    let update = UpdateWorkspace {
        workspace: Some(Workspace {
            name: "workspaces/w".into(),
            retention: Some(RetentionPolicy {
                max_finished_jobs,
                ..RetentionPolicy::default()
            }),
            ..Workspace::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["retention".into()],
        }),
    };
    let context = &group.daemons[0].as_ref().unwrap().context;
    context
        .propose(Kind::UpdateWorkspace(update))
        .await
        .unwrap();
}

/// Runs a job to its end.
async fn run_job(admin: &Channel, agent: &mut FakeAgent, id: &str) -> Job {
    let job = create_job(admin, id).await;
    let desired = agent.desired(|d| !d.assignments.is_empty()).await;
    agent.drive(&desired.assignments[0], 0).await;
    job
}

/// All lines of the only file in a directory.
fn lines(dir: &Path, prefix: &str) -> Vec<String> {
    let files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .collect();
    // Two, when the test runs over midnight.
    assert!(matches!(files.len(), 1 | 2), "{files:?}");
    files
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file.path()).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_goes_with_everything_in_it_though_the_leader_changes() {
    let mut group = Group::start(3).await;
    let leader = group.leader().await;
    let admin = group.admin(leader);
    furnish(&admin, 1).await;
    let mut first = agent(&group, leader).await;
    let running = create_job(&admin, "running").await;
    first.desired(|d| !d.assignments.is_empty()).await;
    let queued = create_job(&admin, "queued").await;
    delete_workspace(&admin).await;
    let ending = first
        .desired(|d| {
            d.assignments
                .first()
                .is_some_and(|a| a.phase() == AttemptPhase::Stop)
        })
        .await;
    assert_eq!(
        workspace(&admin).await.unwrap().provisioning_state(),
        ProvisioningState::Deleting,
        "it stays visible while a job is being ended"
    );
    gone("the queued job", || get_job(&admin, &queued.name)).await;
    assert!(get_job(&admin, &running.name).await.is_ok());

    group.stop_member(leader).await;
    let leader = group.leader().await;
    let admin = group.admin(leader);
    let mut second = agent(&group, leader).await;
    let cleaned = AttemptNodeStatus {
        phase: AttemptNodePhase::Cleaned.into(),
        ..AttemptNodeStatus::default()
    };
    second.observe(&ending.assignments[0], cleaned).await;
    gone("the workspace", || workspace(&admin)).await;
    let clusters = ClusterServiceClient::new(admin.clone())
        .list_clusters(ListClustersRequest {
            parent: "workspaces/-".into(),
            ..ListClustersRequest::default()
        })
        .await
        .unwrap()
        .into_inner()
        .clusters;
    assert_eq!(clusters, []);
    let error = get_job(&admin, &running.name).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let node = NodeServiceClient::new(admin)
        .get_node(GetNodeRequest {
            name: "nodes/node-1".into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(node.cluster, "", "the node is back in the pool");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_exports_finished_jobs_before_it_removes_them() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 1).await;
    let mut agent = agent(&group, 0).await;
    let exports = &group.daemons[0].as_ref().unwrap().context.config.export_dir;
    let mut jobs = Vec::new();
    for id in ["a", "b", "c"] {
        jobs.push(run_job(&admin, &mut agent, id).await);
    }
    keep_finished(&group, 1).await;
    gone("the oldest job", || get_job(&admin, &jobs[0].name)).await;
    gone("the next job", || get_job(&admin, &jobs[1].name)).await;
    assert!(
        get_job(&admin, &jobs[2].name).await.is_ok(),
        "the newest is kept"
    );
    let exported = lines(&exports.join("w"), "jobs-");
    assert_eq!(exported.len(), 2, "{exported:?}");
    for (line, job) in exported.iter().zip(&jobs) {
        assert!(
            line.contains(&job.uid) && line.contains("\"succeeded\""),
            "{line}"
        );
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_exported_is_not_removed() {
    let mut group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 1).await;
    let mut first = agent(&group, 0).await;
    let exports = group.daemons[0]
        .as_ref()
        .unwrap()
        .context
        .config
        .export_dir
        .clone();
    let job = run_job(&admin, &mut first, "a").await;
    let kept = run_job(&admin, &mut first, "b").await;
    // A file where the directory should be.
    std::fs::write(&exports, "in the way").unwrap();
    keep_finished(&group, 1).await;
    // Longer than the loop gathers changes.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(get_job(&admin, &job.name).await.is_ok());
    // The next leader goes on by the state alone.
    std::fs::remove_file(&exports).unwrap();
    group.stop_member(0).await;
    group.start_member(0).await;
    group.leader().await;
    let admin = group.admin(0);
    gone("the job", || get_job(&admin, &job.name)).await;
    assert!(get_job(&admin, &kept.name).await.is_ok());
    assert_eq!(lines(&exports.join("w"), "jobs-").len(), 1);
    group.stop().await;
}

/// Brings a command into the log as if two years had passed since.
async fn long_ago(context: &Context, kind: Kind) {
    let command = Command {
        format: 1,
        time: Some(Timestamp {
            seconds: context.clock.now().seconds - 2 * 365 * 86_400,
            nanos: 0,
        }),
        kind: Some(kind),
    };
    let applied = context.log.propose(command.encode_to_vec()).await.unwrap();
    assert!(applied.outcome.is_ok(), "{:?}", applied.outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_usage_that_are_too_old_are_exported_and_dropped() {
    let mut group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 1).await;
    let mut agent = agent(&group, 0).await;
    let context = group.daemons[0].as_ref().unwrap().context.clone();
    let exports = context.config.export_dir.clone();
    within("the node in its cluster", async {
        while context
            .state()
            .node("nodes/node-1")
            .unwrap()
            .cluster
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // All of it comes into the log with a time of two years ago. Both are on their way before placement sees the job.
    let name = "workspaces/w/experiments/e/jobs/old".to_owned();
    let job = Job {
        name: name.clone(),
        uid: "uid-old".into(),
        spec: common::job_request("old", "").job.unwrap().spec,
        ..Job::default()
    };
    let start = Start {
        job: name.clone(),
        uid: job.uid.clone(),
        nodes: vec![StartNode {
            node: "nodes/node-1".into(),
            whole_node: true,
            ..StartNode::default()
        }],
    };
    let create = Kind::CreateJob(CreateJob {
        job: Some(job),
        ..CreateJob::default()
    });
    let plan = Kind::ApplyPlan(ApplyPlan {
        starts: vec![start],
        ..ApplyPlan::default()
    });
    tokio::join!(long_ago(&context, create), long_ago(&context, plan));
    let desired = agent.desired(|d| !d.assignments.is_empty()).await;
    let assignment = &desired.assignments[0];
    let session_epoch = context.state().node("nodes/node-1").unwrap().session_epoch;
    for phase in [AttemptNodePhase::Exited, AttemptNodePhase::Cleaned] {
        let report = ReportAttempts {
            node: "nodes/node-1".into(),
            session_epoch,
            attempts: vec![ObservedAttempt {
                job: assignment.job.clone(),
                uid: assignment.uid.clone(),
                attempt: assignment.attempt,
                epoch: assignment.epoch,
                status: Some(AttemptNodeStatus {
                    phase: phase.into(),
                    exit_code: Some(0),
                    ..AttemptNodeStatus::default()
                }),
            }],
            ..ReportAttempts::default()
        };
        long_ago(&context, Kind::ReportAttempts(report)).await;
    }
    let now = context.clock.now();
    assert_eq!(context.state().usage_ended_before(&now, 0, 9).len(), 1);
    drop(context);
    // A new term looks at once.
    group.stop_member(0).await;
    group.start_member(0).await;
    group.leader().await;
    let context = group.daemons[0].as_ref().unwrap().context.clone();
    within("the drop", async {
        while !context.state().usage_ended_before(&now, 0, 9).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let table = lines(&exports.join("w"), "usage-");
    assert_eq!(table.len(), 2, "{table:?}");
    assert!(table[1].starts_with(&format!("{name},")), "{table:?}");
    group.stop().await;
}
