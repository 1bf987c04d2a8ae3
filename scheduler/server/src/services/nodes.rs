//! `NodeService`: the hosts that run agents, and the classes of their hardware.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::filter::Kind as FilterKind;
use trainyard_core::{NodesQuery, Reply};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::node_service_server::NodeService;
use trainyard_proto::v1::{
    CreateNodeClassRequest, DeleteNodeClassRequest, DeleteNodeRequest, GetNodeClassRequest,
    GetNodeRequest, ListNodeClassesRequest, ListNodeClassesResponse, ListNodesRequest,
    ListNodesResponse, Node, NodeClass, RetryNodeRequest,
};
use trainyard_shared::names::NodeName;

use super::{name, node_classes, resource, unexpected};
use crate::context::Context;
use crate::page::Listing;

/// See the module.
#[derive(Debug, Clone)]
pub struct Nodes(pub Arc<Context>);

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        let (metadata, _, request) = request.into_parts();
        resource::get::<NodeName, _>(&self.0, &metadata, &request.name, |state, name| {
            state.node(name)
        })
        .await
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let query = NodesQuery {
            filter: resource::filter(FilterKind::Node, &request.filter)?,
            order: resource::order(FilterKind::Node, &request.order_by)?,
        };
        let listing = Listing {
            collection: "nodes",
            parent: "",
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        };
        let page = resource::list(&self.0, &metadata, listing, |state, after, limit| {
            state.list_nodes(&query, after, limit, resource::SCAN_BUDGET)
        })
        .await?;
        Ok(Response::new(ListNodesResponse {
            nodes: page.items,
            next_page_token: page.next_page_token,
            revision: page.revision,
        }))
    }

    async fn delete_node(
        &self,
        request: Request<DeleteNodeRequest>,
    ) -> Result<Response<()>, Status> {
        let command = store::Delete {
            name: request.into_inner().name,
            ..store::Delete::default()
        };
        resource::delete::<NodeName>(&self.0, command, Kind::DeleteNode).await?;
        Ok(Response::new(()))
    }

    async fn retry_node(
        &self,
        request: Request<RetryNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let request = request.into_inner();
        let _: NodeName = name("name", &request.name)?;
        let command = store::RetryNode { name: request.name };
        match self.0.propose(Kind::RetryNode(command)).await? {
            Reply::Node(node) => Ok(Response::new(*node)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_node_class(
        &self,
        request: Request<GetNodeClassRequest>,
    ) -> Result<Response<NodeClass>, Status> {
        let (metadata, _, request) = request.into_parts();
        node_classes::get(&self.0, &metadata, &request).await
    }

    async fn list_node_classes(
        &self,
        request: Request<ListNodeClassesRequest>,
    ) -> Result<Response<ListNodeClassesResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        node_classes::list(&self.0, &metadata, &request).await
    }

    async fn create_node_class(
        &self,
        request: Request<CreateNodeClassRequest>,
    ) -> Result<Response<NodeClass>, Status> {
        node_classes::create(&self.0, request.into_inner()).await
    }

    async fn delete_node_class(
        &self,
        request: Request<DeleteNodeClassRequest>,
    ) -> Result<Response<()>, Status> {
        node_classes::delete(&self.0, request.into_inner()).await
    }
}
