//! `ClusterService`: clusters of workspaces.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::Reply;
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::cluster_service_server::ClusterService;
use trainyard_proto::v1::{
    Cluster, CreateClusterRequest, DeleteClusterRequest, GetClusterRequest, ListClustersRequest,
    ListClustersResponse,
};
use trainyard_shared::names::{ClusterName, WorkspaceName};
use trainyard_shared::validate;

use super::{check, check_etag, check_request_id, child, list_parent, name, required, unexpected};
use crate::context::{Context, new_uid};
use crate::page::Cursor;
use crate::status;

/// See the module.
#[derive(Debug, Clone)]
pub struct Clusters(pub Arc<Context>);

#[tonic::async_trait]
impl ClusterService for Clusters {
    async fn update_cluster(
        &self,
        _request: Request<trainyard_proto::v1::UpdateClusterRequest>,
    ) -> Result<Response<trainyard_proto::v1::Cluster>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn create_cluster(
        &self,
        request: Request<CreateClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let request = request.into_inner();
        let parent: WorkspaceName = name("parent", &request.parent)?;
        let name = child("cluster_id", ClusterName::new(&parent, &request.cluster_id))?;
        check_request_id(&request.request_id)?;
        let mut cluster = required("cluster", request.cluster)?;
        check(&name, &validate::cluster(&cluster))?;
        cluster.name = name.to_string();
        cluster.uid = new_uid();
        let command = store::CreateCluster {
            cluster: Some(cluster),
            request_id: request.request_id,
        };
        match self.0.propose(Kind::CreateCluster(command)).await? {
            Reply::Cluster(cluster) => Ok(Response::new(*cluster)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_cluster(
        &self,
        request: Request<GetClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: ClusterName = name("name", &request.name)?;
        let state = self.0.state();
        state
            .cluster(&request.name)
            .map(Response::new)
            .ok_or_else(|| status::not_found(&request.name))
    }

    async fn list_clusters(
        &self,
        request: Request<ListClustersRequest>,
    ) -> Result<Response<ListClustersResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        list_parent(&request.parent)?;
        let cursor = Cursor::parse(&request.parent, request.page_size, &request.page_token)?;
        let found = self
            .0
            .state()
            .clusters(&request.parent, &cursor.after, cursor.limit);
        let (clusters, next_page_token) = cursor.cut(found, |cluster| &cluster.name);
        Ok(Response::new(ListClustersResponse {
            clusters,
            next_page_token,
            ..ListClustersResponse::default()
        }))
    }

    async fn delete_cluster(
        &self,
        request: Request<DeleteClusterRequest>,
    ) -> Result<Response<trainyard_proto::v1::DeleteClusterResponse>, Status> {
        let request = request.into_inner();
        let _: ClusterName = name("name", &request.name)?;
        check_etag(&request.etag)?;
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        self.0.propose(Kind::DeleteCluster(command)).await?;
        Ok(Response::new(
            trainyard_proto::v1::DeleteClusterResponse::default(),
        ))
    }
}
