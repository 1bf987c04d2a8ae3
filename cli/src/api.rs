//! Typed calls, one method per RPC, over the shared client that finds a scheduler and retries. Must never interpret
//! answers: a failed call is its `Status`.

use trainyard_proto::v1::cluster_service_client::ClusterServiceClient;
use trainyard_proto::v1::experiment_service_client::ExperimentServiceClient;
use trainyard_proto::v1::file_server_service_client::FileServerServiceClient;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::member_service_client::MemberServiceClient;
use trainyard_proto::v1::node_service_client::NodeServiceClient;
use trainyard_proto::v1::usage_service_client::UsageServiceClient;
use trainyard_proto::v1::workspace_service_client::WorkspaceServiceClient;
use trainyard_proto::v1::*;
use trainyard_shared::client::{Client, MAX_MESSAGE_BYTES};

use tonic::Status;

/// Resources asked for with each page of a list.
const PAGE_SIZE: u32 = 1000;

/// See the head of this file. Clones share connections.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
}

macro_rules! unary {
    ($($client:ident { $($method:ident($request:ty) -> $reply:ty;)* })*) => {
        $($(
            #[doc = concat!("Calls `", stringify!($method), "`.")]
            pub(crate) async fn $method(&self, request: $request) -> Result<$reply, Status> {
                self.client
                    .unary(|channel| {
                        let request = request.clone();
                        let mut stub = $client::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
                        async move { stub.$method(request).await }
                    })
                    .await
            }
        )*)*
    };
}

/// Deletes: the repeat of one whose answer was lost finds nothing, which is success.
macro_rules! deletes {
    ($($client:ident: $method:ident($request:ty);)*) => {
        $(
            #[doc = concat!("Calls `", stringify!($method), "`.")]
            pub(crate) async fn $method(&self, request: $request) -> Result<(), Status> {
                self.client
                    .delete(|channel| {
                        let request = request.clone();
                        let mut stub = $client::new(channel);
                        async move { stub.$method(request).await }
                    })
                    .await
            }
        )*
    };
}

/// Lists every page of a collection that hangs off a parent.
macro_rules! pages {
    ($($name:ident: $method:ident($request:ident) -> $field:ident: $item:ty;)*) => {
        $(
            #[doc = concat!("Every page of `", stringify!($method), "`.")]
            pub(crate) async fn $name(&self, parent: &str) -> Result<Vec<$item>, Status> {
                let mut items = Vec::new();
                let mut page_token = String::new();
                loop {
                    #[allow(clippy::needless_update)] // some of these requests have no other field
                    let request = $request { parent: parent.to_owned(), page_size: PAGE_SIZE, page_token, ..$request::default() };
                    let page = self.$method(request).await?;
                    items.extend(page.$field);
                    page_token = page.next_page_token;
                    if page_token.is_empty() {
                        return Ok(items);
                    }
                }
            }
        )*
    };
}

/// Lists every page of a collection that hangs off nothing.
macro_rules! whole {
    ($($name:ident: $method:ident($request:ident) -> $field:ident: $item:ty;)*) => {
        $(
            #[doc = concat!("Every page of `", stringify!($method), "`.")]
            pub(crate) async fn $name(&self) -> Result<Vec<$item>, Status> {
                let mut items = Vec::new();
                let mut page_token = String::new();
                loop {
                    #[allow(clippy::needless_update)] // some of these requests have no other field
                    let request = $request { page_size: PAGE_SIZE, page_token, ..$request::default() };
                    let page = self.$method(request).await?;
                    items.extend(page.$field);
                    page_token = page.next_page_token;
                    if page_token.is_empty() {
                        return Ok(items);
                    }
                }
            }
        )*
    };
}

impl Api {
    /// Over this client.
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client itself, for streams.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    unary! {
        WorkspaceServiceClient {
            create_workspace(CreateWorkspaceRequest) -> Workspace;
            get_workspace(GetWorkspaceRequest) -> Workspace;
            list_workspaces(ListWorkspacesRequest) -> ListWorkspacesResponse;
            update_workspace(UpdateWorkspaceRequest) -> Workspace;
        }
        ClusterServiceClient {
            create_cluster(CreateClusterRequest) -> Cluster;
            get_cluster(GetClusterRequest) -> Cluster;
            list_clusters(ListClustersRequest) -> ListClustersResponse;
            update_cluster(UpdateClusterRequest) -> Cluster;
        }
        FileServerServiceClient {
            create_file_server(CreateFileServerRequest) -> FileServer;
            get_file_server(GetFileServerRequest) -> FileServer;
            list_file_servers(ListFileServersRequest) -> ListFileServersResponse;
        }
        ExperimentServiceClient {
            create_experiment(CreateExperimentRequest) -> Experiment;
            get_experiment(GetExperimentRequest) -> Experiment;
            list_experiments(ListExperimentsRequest) -> ListExperimentsResponse;
        }
        JobServiceClient {
            create_job(CreateJobRequest) -> Job;
            get_job(GetJobRequest) -> Job;
            list_jobs(ListJobsRequest) -> ListJobsResponse;
            terminate_job(TerminateJobRequest) -> Job;
            terminate_jobs(TerminateJobsRequest) -> TerminateJobsResponse;
            explain_job(ExplainJobRequest) -> JobExplanation;
            list_job_files(ListJobFilesRequest) -> ListJobFilesResponse;
        }
        NodeServiceClient {
            get_node(GetNodeRequest) -> Node;
            list_nodes(ListNodesRequest) -> ListNodesResponse;
            retry_node(RetryNodeRequest) -> Node;
            get_node_class(GetNodeClassRequest) -> NodeClass;
            list_node_classes(ListNodeClassesRequest) -> ListNodeClassesResponse;
            create_node_class(CreateNodeClassRequest) -> NodeClass;
        }
        UsageServiceClient {
            get_quota(GetQuotaRequest) -> Quota;
            update_quota(UpdateQuotaRequest) -> Quota;
            list_usages(ListUsagesRequest) -> ListUsagesResponse;
            report_usage(ReportUsageRequest) -> ReportUsageResponse;
        }
        MemberServiceClient {
            list_members(ListMembersRequest) -> ListMembersResponse;
        }
    }

    deletes! {
        WorkspaceServiceClient: delete_workspace(DeleteWorkspaceRequest);
        FileServerServiceClient: delete_file_server(DeleteFileServerRequest);
        ExperimentServiceClient: delete_experiment(DeleteExperimentRequest);
        JobServiceClient: delete_job(DeleteJobRequest);
        NodeServiceClient: delete_node(DeleteNodeRequest);
        NodeServiceClient: delete_node_class(DeleteNodeClassRequest);
    }

    pages! {
        all_clusters: list_clusters(ListClustersRequest) -> clusters: Cluster;
        all_file_servers: list_file_servers(ListFileServersRequest) -> file_servers: FileServer;
        all_experiments: list_experiments(ListExperimentsRequest) -> experiments: Experiment;
        all_jobs: list_jobs(ListJobsRequest) -> jobs: Job;
    }

    /// Calls `delete_cluster`; no answer when it was lost and the repeat found nothing.
    pub(crate) async fn delete_cluster(
        &self,
        request: DeleteClusterRequest,
    ) -> Result<Option<DeleteClusterResponse>, Status> {
        self.client
            .delete_with_answer(|channel| {
                let request = request.clone();
                let mut stub = ClusterServiceClient::new(channel);
                async move { stub.delete_cluster(request).await }
            })
            .await
    }

    /// All jobs of a parent that match a filter.
    pub(crate) async fn jobs_matching(
        &self,
        parent: &str,
        filter: &str,
    ) -> Result<Vec<Job>, Status> {
        let mut items = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListJobsRequest {
                parent: parent.to_owned(),
                page_size: PAGE_SIZE,
                page_token,
                filter: filter.to_owned(),
                order_by: String::new(),
            };
            let page = self.list_jobs(request).await?;
            items.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(items);
            }
        }
    }

    /// All nodes that match a filter.
    pub(crate) async fn all_nodes(&self, filter: &str) -> Result<Vec<Node>, Status> {
        let mut items = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListNodesRequest {
                page_size: PAGE_SIZE,
                page_token,
                filter: filter.to_owned(),
                ..ListNodesRequest::default()
            };
            let page = self.list_nodes(request).await?;
            items.extend(page.nodes);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(items);
            }
        }
    }

    whole! {
        all_workspaces: list_workspaces(ListWorkspacesRequest) -> workspaces: Workspace;
        all_node_classes: list_node_classes(ListNodeClassesRequest) -> node_classes: NodeClass;
    }
}
