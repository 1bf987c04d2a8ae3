//! `WorkspaceService`: workspaces and their bindings.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::Reply;
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::workspace_service_server::WorkspaceService;
use trainyard_proto::v1::{
    CreateWorkspaceRequest, DeleteWorkspaceRequest, GetWorkspaceRequest, ListWorkspacesRequest,
    ListWorkspacesResponse, UpdateWorkspaceRequest, Workspace,
};
use trainyard_shared::names::WorkspaceName;
use trainyard_shared::validate;

use super::{
    check, check_etag, check_request_id, child, mask, name, required, resource, unexpected,
};
use crate::context::{Context, new_uid};
use crate::page::Listing;

/// What `UpdateWorkspace` can change.
const MUTABLE: [&str; 5] = [
    "tags",
    "storage_bindings",
    "image_bindings",
    "allow_root",
    "retention",
];

/// See the module.
#[derive(Debug, Clone)]
pub struct Workspaces(pub Arc<Context>);

#[tonic::async_trait]
impl WorkspaceService for Workspaces {
    async fn create_workspace(
        &self,
        request: Request<CreateWorkspaceRequest>,
    ) -> Result<Response<Workspace>, Status> {
        let request = request.into_inner();
        let name = child("workspace_id", WorkspaceName::new(&request.workspace_id))?;
        check_request_id(&request.request_id)?;
        let mut workspace = request.workspace.unwrap_or_default();
        check(&name, &validate::workspace(&workspace))?;
        workspace.name = name.to_string();
        workspace.uid = new_uid();
        let command = Kind::CreateWorkspace(store::CreateWorkspace {
            workspace: Some(workspace),
            request_id: request.request_id,
        });
        match self.0.create(command, request.validate_only).await? {
            Reply::Workspace(workspace) => Ok(Response::new(workspace)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_workspace(
        &self,
        request: Request<GetWorkspaceRequest>,
    ) -> Result<Response<Workspace>, Status> {
        let (metadata, _, request) = request.into_parts();
        resource::get::<WorkspaceName, _>(&self.0, &metadata, &request.name, |state, name| {
            state.workspace(name).cloned()
        })
        .await
    }

    async fn list_workspaces(
        &self,
        request: Request<ListWorkspacesRequest>,
    ) -> Result<Response<ListWorkspacesResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let listing = Listing {
            collection: "workspaces",
            page_size: request.page_size,
            page_token: &request.page_token,
            ..Listing::default()
        };
        let page = resource::list(&self.0, &metadata, listing, |state, after, limit| {
            resource::by_name(after, limit, |after, limit| state.workspaces(after, limit))
        })
        .await?;
        Ok(Response::new(ListWorkspacesResponse {
            workspaces: page.items,
            next_page_token: page.next_page_token,
            revision: page.revision,
        }))
    }

    async fn update_workspace(
        &self,
        request: Request<UpdateWorkspaceRequest>,
    ) -> Result<Response<Workspace>, Status> {
        let request = request.into_inner();
        let given = required("workspace", request.workspace)?;
        let name: WorkspaceName = name("workspace.name", &given.name)?;
        check_etag(&given.etag)?;
        let paths = mask::paths(request.update_mask.as_ref(), "Workspace", &MUTABLE)?;
        // What the mask leaves out is not looked at, so it can be anything.
        let mut workspace = Workspace {
            name: given.name,
            etag: given.etag,
            ..Workspace::default()
        };
        if paths.contains("tags") {
            workspace.tags = given.tags;
        }
        if paths.contains("storage_bindings") {
            workspace.storage_bindings = given.storage_bindings;
        }
        if paths.contains("image_bindings") {
            workspace.image_bindings = given.image_bindings;
        }
        if paths.contains("allow_root") {
            workspace.allow_root = given.allow_root;
        }
        if paths.contains("retention") {
            workspace.retention = given.retention;
        }
        check(&name, &validate::workspace(&workspace))?;
        let command = store::UpdateWorkspace {
            workspace: Some(workspace),
            update_mask: request.update_mask,
        };
        match self.0.propose(Kind::UpdateWorkspace(command)).await? {
            Reply::Workspace(workspace) => Ok(Response::new(workspace)),
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_workspace(
        &self,
        request: Request<DeleteWorkspaceRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        resource::delete::<WorkspaceName>(&self.0, command, Kind::DeleteWorkspace).await?;
        Ok(Response::new(()))
    }
}
