//! `ClusterService`: clusters of workspaces.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::filter::Kind as FilterKind;
use trainyard_core::{ClustersQuery, Reply};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::cluster_service_server::ClusterService;
use trainyard_proto::v1::{
    Cluster, CreateClusterRequest, DeleteClusterRequest, DeleteClusterResponse, GetClusterRequest,
    ListClustersRequest, ListClustersResponse, UpdateClusterRequest,
};
use trainyard_shared::names::{ClusterName, WorkspaceName};
use trainyard_shared::validate;

use super::{
    check, check_etag, check_request_id, child, list_parent, mask, name, required, resource,
    unexpected,
};
use crate::context::{Context, new_uid};
use crate::page::Listing;

/// What `UpdateCluster` can change.
const MUTABLE: [&str; 1] = ["scale_settings"];

/// See the module.
#[derive(Debug, Clone)]
pub struct Clusters(pub Arc<Context>);

#[tonic::async_trait]
impl ClusterService for Clusters {
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
        let command = Kind::CreateCluster(store::CreateCluster {
            cluster: Some(cluster),
            request_id: request.request_id,
        });
        match self.0.create(command, request.validate_only).await? {
            Reply::Cluster(cluster) => Ok(Response::new(*cluster)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_cluster(
        &self,
        request: Request<GetClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let (metadata, _, request) = request.into_parts();
        resource::get::<ClusterName, _>(&self.0, &metadata, &request.name, |state, name| {
            state.cluster(name)
        })
        .await
    }

    async fn list_clusters(
        &self,
        request: Request<ListClustersRequest>,
    ) -> Result<Response<ListClustersResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        list_parent(&request.parent)?;
        let query = ClustersQuery {
            parent: request.parent.clone(),
            filter: resource::filter(FilterKind::Cluster, &request.filter)?,
            order: resource::order(FilterKind::Cluster, &request.order_by)?,
        };
        let listing = Listing {
            collection: "clusters",
            parent: &request.parent,
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        };
        let page = resource::list(&self.0, &metadata, listing, |state, after, limit| {
            state.list_clusters(&query, after, limit, resource::SCAN_BUDGET)
        })
        .await?;
        Ok(Response::new(ListClustersResponse {
            clusters: page.items,
            next_page_token: page.next_page_token,
            revision: page.revision,
        }))
    }

    async fn update_cluster(
        &self,
        request: Request<UpdateClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let request = request.into_inner();
        let given = required("cluster", request.cluster)?;
        let name: ClusterName = name("cluster.name", &given.name)?;
        check_etag(&given.etag)?;
        mask::paths(request.update_mask.as_ref(), "Cluster", &MUTABLE)?;
        // What the mask leaves out is not looked at, so it can be anything.
        let cluster = Cluster {
            name: given.name,
            etag: given.etag,
            scale_settings: Some(required("cluster.scale_settings", given.scale_settings)?),
            ..Cluster::default()
        };
        check(&name, &validate::cluster(&cluster))?;
        let command = store::UpdateCluster {
            cluster: Some(cluster),
            update_mask: request.update_mask,
        };
        match self.0.propose(Kind::UpdateCluster(command)).await? {
            Reply::Cluster(cluster) => Ok(Response::new(*cluster)),
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_cluster(
        &self,
        request: Request<DeleteClusterRequest>,
    ) -> Result<Response<DeleteClusterResponse>, Status> {
        let request = request.into_inner();
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            force: request.force,
        };
        match resource::delete::<ClusterName>(&self.0, command, Kind::DeleteCluster).await? {
            Reply::ClusterDeleted(response) => Ok(Response::new(response)),
            other => Err(unexpected(&other)),
        }
    }
}
