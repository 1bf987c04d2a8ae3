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

use super::{check, check_etag, check_request_id, child, name, required, unexpected};
use crate::context::{Context, new_uid};
use crate::page::Cursor;
use crate::status;

/// What `UpdateWorkspace` can change.
const MUTABLE: [&str; 4] = ["tags", "storage_bindings", "image_bindings", "allow_root"];

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
        let command = store::CreateWorkspace {
            workspace: Some(workspace),
            request_id: request.request_id,
        };
        match self.0.propose(Kind::CreateWorkspace(command)).await? {
            Reply::Workspace(workspace) => Ok(Response::new(workspace)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_workspace(
        &self,
        request: Request<GetWorkspaceRequest>,
    ) -> Result<Response<Workspace>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: WorkspaceName = name("name", &request.name)?;
        let state = self.0.state();
        state
            .workspace(&request.name)
            .cloned()
            .map(Response::new)
            .ok_or_else(|| status::not_found(&request.name))
    }

    async fn list_workspaces(
        &self,
        request: Request<ListWorkspacesRequest>,
    ) -> Result<Response<ListWorkspacesResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let cursor = Cursor::parse("", request.page_size, &request.page_token)?;
        let found = self.0.state().workspaces(&cursor.after, cursor.limit);
        let (workspaces, next_page_token) = cursor.cut(found, |workspace| &workspace.name);
        Ok(Response::new(ListWorkspacesResponse {
            workspaces,
            next_page_token,
            ..ListWorkspacesResponse::default()
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
        let mask = required("update_mask", request.update_mask)?;
        if mask.paths.is_empty() {
            return Err(status::invalid_field(
                "update_mask",
                format!(
                    "names no field; name what to change: {}",
                    MUTABLE.join(", ")
                ),
            ));
        }
        // What the mask leaves out is not looked at, so it can be anything.
        let mut workspace = Workspace {
            name: given.name,
            etag: given.etag,
            ..Workspace::default()
        };
        for path in &mask.paths {
            match path.as_str() {
                "tags" => workspace.tags.clone_from(&given.tags),
                "storage_bindings" => {
                    workspace
                        .storage_bindings
                        .clone_from(&given.storage_bindings);
                }
                "image_bindings" => workspace.image_bindings.clone_from(&given.image_bindings),
                "allow_root" => workspace.allow_root = given.allow_root,
                other => {
                    return Err(status::invalid_field(
                        "update_mask",
                        format!(
                            "{other:?} cannot be changed; what can: {}",
                            MUTABLE.join(", ")
                        ),
                    ));
                }
            }
        }
        check(&name, &validate::workspace(&workspace))?;
        let command = store::UpdateWorkspace {
            workspace: Some(workspace),
            update_mask: Some(mask),
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
        let _: WorkspaceName = name("name", &request.name)?;
        check_etag(&request.etag)?;
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        self.0.propose(Kind::DeleteWorkspace(command)).await?;
        Ok(Response::new(()))
    }
}
