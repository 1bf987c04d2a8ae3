//! `NodeService`: the hosts that run agents.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::node_service_server::NodeService;
use trainyard_proto::v1::{
    DeleteNodeRequest, GetNodeRequest, ListNodesRequest, ListNodesResponse, Node,
};
use trainyard_shared::names::NodeName;

use super::name;
use crate::context::Context;
use crate::page::Cursor;
use crate::status;

/// See the module.
#[derive(Debug, Clone)]
pub struct Nodes(pub Arc<Context>);

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn retry_node(
        &self,
        _request: Request<trainyard_proto::v1::RetryNodeRequest>,
    ) -> Result<Response<trainyard_proto::v1::Node>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn get_node_class(
        &self,
        _request: Request<trainyard_proto::v1::GetNodeClassRequest>,
    ) -> Result<Response<trainyard_proto::v1::NodeClass>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn list_node_classes(
        &self,
        _request: Request<trainyard_proto::v1::ListNodeClassesRequest>,
    ) -> Result<Response<trainyard_proto::v1::ListNodeClassesResponse>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn create_node_class(
        &self,
        _request: Request<trainyard_proto::v1::CreateNodeClassRequest>,
    ) -> Result<Response<trainyard_proto::v1::NodeClass>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn delete_node_class(
        &self,
        _request: Request<trainyard_proto::v1::DeleteNodeClassRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: NodeName = name("name", &request.name)?;
        let state = self.0.state();
        state
            .node(&request.name)
            .map(Response::new)
            .ok_or_else(|| status::not_found(&request.name))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let cursor = Cursor::parse("nodes", request.page_size, &request.page_token)?;
        let found = self.0.state().nodes(&cursor.after, cursor.limit);
        let (nodes, next_page_token) = cursor.cut(found, |node| &node.name);
        Ok(Response::new(ListNodesResponse {
            nodes,
            next_page_token,
            ..ListNodesResponse::default()
        }))
    }

    async fn delete_node(
        &self,
        request: Request<DeleteNodeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let _: NodeName = name("name", &request.name)?;
        let command = store::Delete {
            name: request.name,
            etag: String::new(),
            ..store::Delete::default()
        };
        self.0.propose(Kind::DeleteNode(command)).await?;
        Ok(Response::new(()))
    }
}
