//! The calls that benchmarks make, each one line for its caller. Must never measure anything by itself.

use std::collections::BTreeMap;
use std::future::Future;

use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::experiment_service_client::ExperimentServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::member_service_client::MemberServiceClient;
use trainyard_proto::v1::node_service_client::NodeServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::{
    Cluster, CreateClusterRequest, CreateExperimentRequest, CreateJobRequest,
    CreateWorkspaceRequest, CustomToolkitSettings, ExecutionState, Experiment, GetJobRequest, Job,
    JobSpec, ListJobsRequest, ListMembersRequest, ListMembersResponse, ListNodesRequest,
    ManualScaleSettings, MemberRole, Node, ResourceId, ResourcesPerNode, ScaleSettings,
    TerminateJobRequest, TerminateJobsRequest, Workspace,
};
use trainyard_shared::client::{Client, MAX_MESSAGE_BYTES, new_request_id};

use crate::error::{BenchError, Context, Result};

const WORKSPACE: &str = "workspaces/bench";
const EXPERIMENT: &str = "workspaces/bench/experiments/bench";
/// Cluster that holds all nodes.
pub(crate) const BUSY: &str = "busy";
/// Cluster that waits for a node of a class that no agent has: its jobs stay queued.
pub(crate) const EMPTY: &str = "empty";
/// Largest page.
const PAGE: u32 = 1000;

/// Makes what jobs need: a workspace, an experiment, a cluster that takes `nodes` nodes and one that gets none.
pub(crate) async fn prepare(client: &Client, nodes: u64) -> Result<()> {
    call(client, "create a workspace", |channel| async move {
        let request = CreateWorkspaceRequest {
            workspace_id: "bench".into(),
            workspace: Some(Workspace::default()),
            request_id: new_request_id(),
            ..CreateWorkspaceRequest::default()
        };
        WorkspaceServiceClient::new(channel)
            .create_workspace(request)
            .await
    })
    .await?;
    call(client, "create an experiment", |channel| async move {
        let request = CreateExperimentRequest {
            parent: WORKSPACE.into(),
            experiment_id: "bench".into(),
            experiment: Some(Experiment::default()),
            request_id: new_request_id(),
        };
        ExperimentServiceClient::new(channel)
            .create_experiment(request)
            .await
    })
    .await?;
    for (cluster, target, class) in [(EMPTY, 1, "none"), (BUSY, nodes, "")] {
        call(client, "create a cluster", |channel| async move {
            ClusterServiceClient::new(channel)
                .create_cluster(cluster_request(cluster, target, class))
                .await
        })
        .await?;
    }
    Ok(())
}

fn cluster_request(cluster: &str, nodes: u64, class: &str) -> CreateClusterRequest {
    CreateClusterRequest {
        parent: WORKSPACE.into(),
        cluster_id: cluster.into(),
        cluster: Some(Cluster {
            vm_size: class.into(),
            scale_settings: Some(ScaleSettings {
                manual: Some(ManualScaleSettings {
                    target_node_count: u32::try_from(nodes).unwrap_or(u32::MAX),
                    ..Default::default()
                }),
                auto_scale: None,
            }),
            ..Default::default()
        }),
        request_id: new_request_id(),
        ..CreateClusterRequest::default()
    }
}

/// A job of one node that runs a line of bash. `gpus` 0: it takes the whole node.
pub(crate) fn job_spec(cluster: &str, command_line: &str, out: &str, gpus: u32) -> JobSpec {
    JobSpec {
        cluster: Some(ResourceId {
            id: format!("{WORKSPACE}/clusters/{cluster}"),
        }),
        node_count: 1,
        custom_toolkit_settings: Some(CustomToolkitSettings {
            command_line: command_line.into(),
        }),
        std_out_err_path_prefix: out.into(),
        resources_per_node: (gpus > 0).then_some(ResourcesPerNode { gpus }),
        ..Default::default()
    }
}

/// A job that stays queued: what is measured is its acceptance.
pub(crate) fn empty_job() -> JobSpec {
    job_spec(EMPTY, "true", "/tmp", 0)
}

/// Resource name of a job.
pub(crate) fn job_name(id: &str) -> String {
    format!("{EXPERIMENT}/jobs/{id}")
}

/// Creates a job; once it returns, the job must never be lost.
pub(crate) async fn create_job(
    client: &Client,
    id: String,
    spec: &JobSpec,
) -> std::result::Result<Job, Status> {
    let request = CreateJobRequest {
        parent: EXPERIMENT.into(),
        job_id: id,
        job: Some(Job {
            spec: Some(spec.clone()),
            ..Default::default()
        }),
        request_id: new_request_id(),
        ..CreateJobRequest::default()
    };
    client
        .unary(|channel| {
            let request = request.clone();
            async move { JobServiceClient::new(channel).create_job(request).await }
        })
        .await
}

/// Whether a job has ended, one way or the other.
pub(crate) fn has_ended(job: &Job) -> bool {
    matches!(
        job.execution_state(),
        ExecutionState::Succeeded | ExecutionState::Failed
    )
}

/// Follows a job until it has ended.
pub(crate) async fn wait_for_job(client: &Client, id: &str) -> Result<Job> {
    let mut states = client.watch_job(job_name(id));
    let mut last = None;
    while let Some(job) = states.message().await.cannot("follow a job")? {
        last = Some(job);
    }
    last.filter(has_ended)
        .ok_or_else(|| BenchError::new(format!("job {id} has not ended, but its stream has")))
}

/// Fails unless the job succeeded.
pub(crate) fn require_success(job: &Job) -> Result<()> {
    if job.execution_state() == ExecutionState::Succeeded {
        return Ok(());
    }
    let errors = job.execution_info.as_ref().map(|info| &info.errors);
    Err(BenchError::new(format!(
        "job {} ended as {:?}: {errors:?}",
        job.name,
        job.execution_state()
    )))
}

/// Ends a job.
pub(crate) async fn terminate_job(client: &Client, id: &str) -> Result<Job> {
    let request = TerminateJobRequest { name: job_name(id) };
    call(client, "terminate a job", |channel| {
        let request = request.clone();
        async move { JobServiceClient::new(channel).terminate_job(request).await }
    })
    .await
}

/// Ends all jobs that have not ended; how many there were.
pub(crate) async fn terminate_all(client: &Client) -> Result<u64> {
    let answer = call(client, "terminate the jobs", |channel| async move {
        let request = TerminateJobsRequest {
            parent: EXPERIMENT.into(),
            filter: String::new(),
        };
        JobServiceClient::new(channel).terminate_jobs(request).await
    });
    answer.await.map(|answer| answer.terminated)
}

/// UUID of a job, or `None` inside if it does not exist; `None` outside if nobody answers.
pub(crate) async fn try_job(client: &Client, id: &str) -> Option<Option<String>> {
    let name = job_name(id);
    let answer = client
        .unary(|channel| {
            let request = GetJobRequest { name: name.clone() };
            async move { JobServiceClient::new(channel).get_job(request).await }
        })
        .await;
    match answer {
        Ok(job) => Some(Some(job.uid)),
        Err(status) if status.code() == Code::NotFound => Some(None),
        Err(_) => None,
    }
}

/// All jobs by the last segment of their names.
pub(crate) async fn jobs(client: &Client) -> Result<BTreeMap<String, Job>> {
    let mut all = BTreeMap::new();
    let mut list = ListOf::new(PAGE, "", "");
    while let Some(page) = list.next_jobs(client).await? {
        for job in page {
            let id = job.name.rsplit('/').next().unwrap_or_default().to_owned();
            all.insert(id, job);
        }
    }
    Ok(all)
}

/// A list of the experiment's jobs, page by page.
pub(crate) struct ListOf {
    request: ListJobsRequest,
    ended: bool,
}

impl ListOf {
    /// A list from its beginning.
    pub(crate) fn new(page_size: u32, filter: &str, order_by: &str) -> Self {
        Self {
            request: ListJobsRequest {
                parent: EXPERIMENT.into(),
                page_size,
                page_token: String::new(),
                filter: filter.into(),
                order_by: order_by.into(),
            },
            ended: false,
        }
    }

    /// Names of the jobs of the next page; `None` after the last.
    pub(crate) async fn next(&mut self, client: &Client) -> Result<Option<Vec<String>>> {
        let page = self.next_jobs(client).await?;
        Ok(page.map(|jobs| jobs.into_iter().map(|job| job.name).collect()))
    }

    async fn next_jobs(&mut self, client: &Client) -> Result<Option<Vec<Job>>> {
        if self.ended {
            return Ok(None);
        }
        let page = call(client, "list the jobs", |channel| {
            let request = self.request.clone();
            async move {
                JobServiceClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .list_jobs(request)
                    .await
            }
        })
        .await?;
        self.ended = page.next_page_token.is_empty();
        self.request.page_token = page.next_page_token;
        Ok(Some(page.jobs))
    }
}

/// All nodes.
pub(crate) async fn nodes(client: &Client) -> Result<Vec<Node>> {
    let answer = call(client, "list the nodes", |channel| async move {
        let request = ListNodesRequest {
            page_size: PAGE,
            page_token: String::new(),
            ..ListNodesRequest::default()
        };
        NodeServiceClient::new(channel).list_nodes(request).await
    });
    answer.await.map(|page| page.nodes)
}

/// `HOST:PORT` of the leader.
pub(crate) async fn leader(client: &Client) -> Result<String> {
    let members = members(client).await?.members;
    members
        .into_iter()
        .find(|member| member.role() == MemberRole::Leader)
        .map(|member| member.address)
        .ok_or_else(|| BenchError::new("no member leads"))
}

/// Entries that the slowest member lacks; an error while the leader does not hear a member.
pub(crate) async fn lag(client: &Client) -> Result<u64> {
    let members = members(client).await?.members;
    if let Some(silent) = members.iter().find(|member| !member.healthy) {
        let address = &silent.address;
        return Err(BenchError::new(format!(
            "the leader does not hear {address}"
        )));
    }
    Ok(members
        .iter()
        .map(|member| member.lag_entries)
        .max()
        .unwrap_or(0))
}

async fn members(client: &Client) -> Result<ListMembersResponse> {
    call(client, "list the members", |channel| async move {
        MemberServiceClient::new(channel)
            .list_members(ListMembersRequest {})
            .await
    })
    .await
}

async fn call<T, F, Fut>(client: &Client, what: &str, call: F) -> Result<T>
where
    F: FnMut(Channel) -> Fut,
    Fut: Future<Output = std::result::Result<Response<T>, Status>>,
{
    client.unary(call).await.map_err(|status| {
        BenchError::new(format!(
            "cannot {what}: {:?}: {}",
            status.code(),
            status.message()
        ))
    })
}
