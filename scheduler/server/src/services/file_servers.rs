//! `FileServerService`: file servers of workspaces.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_core::Reply;
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_proto::v1::file_server_service_server::FileServerService;
use trainyard_proto::v1::{
    CreateFileServerRequest, DeleteFileServerRequest, FileServer, GetFileServerRequest,
    ListFileServersRequest, ListFileServersResponse,
};
use trainyard_shared::names::{FileServerName, WorkspaceName};
use trainyard_shared::validate;

use super::{check, check_request_id, child, list_parent, name, required, resource, unexpected};
use crate::context::{Context, new_uid};
use crate::page::Listing;

/// See the module.
#[derive(Debug, Clone)]
pub struct FileServers(pub Arc<Context>);

#[tonic::async_trait]
impl FileServerService for FileServers {
    async fn create_file_server(
        &self,
        request: Request<CreateFileServerRequest>,
    ) -> Result<Response<FileServer>, Status> {
        let request = request.into_inner();
        let parent: WorkspaceName = name("parent", &request.parent)?;
        let name = child(
            "file_server_id",
            FileServerName::new(&parent, &request.file_server_id),
        )?;
        check_request_id(&request.request_id)?;
        let mut file_server = required("file_server", request.file_server)?;
        check(&name, &validate::file_server(&file_server))?;
        file_server.name = name.to_string();
        file_server.uid = new_uid();
        let command = Kind::CreateFileServer(store::CreateFileServer {
            file_server: Some(file_server),
            request_id: request.request_id,
        });
        match self.0.create(command, request.validate_only).await? {
            Reply::FileServer(file_server) => Ok(Response::new(*file_server)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_file_server(
        &self,
        request: Request<GetFileServerRequest>,
    ) -> Result<Response<FileServer>, Status> {
        let (metadata, _, request) = request.into_parts();
        resource::get::<FileServerName, _>(&self.0, &metadata, &request.name, |state, name| {
            state.file_server(name).cloned()
        })
        .await
    }

    async fn list_file_servers(
        &self,
        request: Request<ListFileServersRequest>,
    ) -> Result<Response<ListFileServersResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        list_parent(&request.parent)?;
        let listing = Listing {
            collection: "fileServers",
            parent: &request.parent,
            page_size: request.page_size,
            page_token: &request.page_token,
            ..Listing::default()
        };
        let page = resource::list(&self.0, &metadata, listing, |state, after, limit| {
            resource::by_name(after, limit, |after, limit| {
                state.file_servers(&request.parent, after, limit)
            })
        })
        .await?;
        Ok(Response::new(ListFileServersResponse {
            file_servers: page.items,
            next_page_token: page.next_page_token,
            revision: page.revision,
        }))
    }

    async fn delete_file_server(
        &self,
        request: Request<DeleteFileServerRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            force: request.force,
        };
        resource::delete::<FileServerName>(&self.0, command, Kind::DeleteFileServer).await?;
        Ok(Response::new(()))
    }
}
