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

use super::{check, check_etag, check_request_id, child, list_parent, name, required, unexpected};
use crate::context::{Context, new_uid};
use crate::page::Cursor;
use crate::status;

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
        let command = store::CreateFileServer {
            file_server: Some(file_server),
            request_id: request.request_id,
        };
        match self.0.propose(Kind::CreateFileServer(command)).await? {
            Reply::FileServer(file_server) => Ok(Response::new(file_server)),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_file_server(
        &self,
        request: Request<GetFileServerRequest>,
    ) -> Result<Response<FileServer>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        let _: FileServerName = name("name", &request.name)?;
        let state = self.0.state();
        state
            .file_server(&request.name)
            .cloned()
            .map(Response::new)
            .ok_or_else(|| status::not_found(&request.name))
    }

    async fn list_file_servers(
        &self,
        request: Request<ListFileServersRequest>,
    ) -> Result<Response<ListFileServersResponse>, Status> {
        self.0.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        list_parent(&request.parent)?;
        let cursor = Cursor::parse(&request.parent, request.page_size, &request.page_token)?;
        let found = self
            .0
            .state()
            .file_servers(&request.parent, &cursor.after, cursor.limit);
        let (file_servers, next_page_token) = cursor.cut(found, |file_server| &file_server.name);
        Ok(Response::new(ListFileServersResponse {
            file_servers,
            next_page_token,
            ..ListFileServersResponse::default()
        }))
    }

    async fn delete_file_server(
        &self,
        request: Request<DeleteFileServerRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let _: FileServerName = name("name", &request.name)?;
        check_etag(&request.etag)?;
        let command = store::Delete {
            name: request.name,
            etag: request.etag,
            ..store::Delete::default()
        };
        self.0.propose(Kind::DeleteFileServer(command)).await?;
        Ok(Response::new(()))
    }
}
