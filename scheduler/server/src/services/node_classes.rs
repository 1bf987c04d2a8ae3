//! Node classes, the part of `NodeService` that names hardware. `nodes.rs` hands the calls on to here.

use tonic::metadata::MetadataMap;
use tonic::{Response, Status};
use trainyard_core::Reply;
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::{
    CreateNodeClassRequest, DeleteNodeClassRequest, GetNodeClassRequest, ListNodeClassesRequest,
    ListNodeClassesResponse, NodeClass,
};
use trainyard_shared::names::NodeClassName;
use trainyard_shared::validate;

use super::{check, check_request_id, child, required, resource, unexpected};
use crate::context::Context;
use crate::page::Listing;

/// One class, declared or reported.
pub(super) async fn get(
    context: &Context,
    metadata: &MetadataMap,
    request: &GetNodeClassRequest,
) -> Result<Response<NodeClass>, Status> {
    resource::get::<NodeClassName, _>(context, metadata, &request.name, |state, name| {
        state.node_class(name)
    })
    .await
}

/// A page of all classes.
pub(super) async fn list(
    context: &Context,
    metadata: &MetadataMap,
    request: &ListNodeClassesRequest,
) -> Result<Response<ListNodeClassesResponse>, Status> {
    let listing = Listing {
        collection: "nodeClasses",
        page_size: request.page_size,
        page_token: &request.page_token,
        ..Listing::default()
    };
    let page = resource::list(context, metadata, listing, |state, after, limit| {
        resource::by_name(after, limit, |after, limit| {
            state.node_classes(after, limit)
        })
    })
    .await?;
    Ok(Response::new(ListNodeClassesResponse {
        node_classes: page.items,
        next_page_token: page.next_page_token,
    }))
}

/// Declares a class.
pub(super) async fn create(
    context: &Context,
    request: CreateNodeClassRequest,
) -> Result<Response<NodeClass>, Status> {
    let name = child("node_class_id", NodeClassName::new(&request.node_class_id))?;
    check_request_id(&request.request_id)?;
    let mut class = required("node_class", request.node_class)?;
    check(&name, &validate::node_class(&class))?;
    class.name = name.to_string();
    let command = store::CreateNodeClass {
        node_class: Some(class),
        request_id: request.request_id,
    };
    match context.propose(Kind::CreateNodeClass(command)).await? {
        Reply::NodeClass(class) => Ok(Response::new(*class)),
        other => Err(unexpected(&other)),
    }
}

/// Takes a declaration back.
pub(super) async fn delete(
    context: &Context,
    request: DeleteNodeClassRequest,
) -> Result<Response<()>, Status> {
    let command = store::Delete {
        name: request.name,
        ..store::Delete::default()
    };
    resource::delete::<NodeClassName>(context, command, Kind::DeleteNodeClass).await?;
    Ok(Response::new(()))
}
