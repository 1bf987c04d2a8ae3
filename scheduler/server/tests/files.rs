//! Files of jobs, relayed from a stand-in for an agent's file service.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{FakeAgent, Group, create_job, furnish, within};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status};
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::node_file_service_server::{NodeFileService, NodeFileServiceServer};
use trainyard_proto::v1::*;

/// What stdout.txt holds: two chunks; the first read breaks off between them.
const CHUNKS: [&str; 2] = ["hello ", "world\n"];

#[derive(Clone, Default)]
struct Files {
    reads: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl NodeFileService for Files {
    type ReadNodeFileStream = ReceiverStream<Result<FileChunk, Status>>;

    async fn list_node_files(
        &self,
        request: Request<ListNodeFilesRequest>,
    ) -> Result<Response<ListNodeFilesResponse>, Status> {
        if request.into_inner().output_directory_id != "stdouterr" {
            return Err(Status::not_found("no such directory"));
        }
        let file = FileInfo {
            name: "stdout.txt".into(),
            size_bytes: 12,
            ..FileInfo::default()
        };
        Ok(Response::new(ListNodeFilesResponse { files: vec![file] }))
    }

    async fn read_node_file(
        &self,
        request: Request<ReadNodeFileRequest>,
    ) -> Result<Response<Self::ReadNodeFileStream>, Status> {
        let request = request.into_inner();
        if request.file != "stdout.txt" {
            return Err(Status::not_found("no such file"));
        }
        let first = self.reads.fetch_add(1, Ordering::SeqCst) == 0;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut offset = 0;
            for chunk in CHUNKS {
                if offset >= request.offset {
                    let data = chunk.as_bytes().to_vec().into();
                    let _ = sender.send(Ok(FileChunk { offset, data })).await;
                    if first {
                        let _ = sender.send(Err(Status::unavailable("restarting"))).await;
                        return;
                    }
                }
                offset += chunk.len() as u64;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves files as node-1; gives the address.
async fn serve(group: &Group, files: Files) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = group.identity("nodes/node-1").server_tls();
    tokio::spawn(
        tonic::transport::Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(NodeFileServiceServer::new(files))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

async fn read(
    jobs: &mut JobServiceClient<tonic::transport::Channel>,
    request: StreamLogsRequest,
) -> Result<(String, Vec<u64>), Status> {
    let mut stream = jobs.stream_logs(request).await?.into_inner();
    let (mut text, mut offsets) = (String::new(), Vec::new());
    while let Some(chunk) = within("a chunk", stream.message()).await? {
        assert_eq!((chunk.attempt, chunk.file.as_str()), (1, "stdout.txt"));
        text.push_str(std::str::from_utf8(&chunk.data).unwrap());
        offsets.push(chunk.offset);
    }
    Ok((text, offsets))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_followed_from_before_the_start_through_a_break_to_the_end() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 1).await;
    let job = create_job(&admin, "j").await;
    let mut jobs = JobServiceClient::new(admin.clone());
    let request = StreamLogsRequest {
        name: job.name.clone(),
        follow: true,
        ..StreamLogsRequest::default()
    };
    let early = StreamLogsRequest {
        follow: false,
        ..request.clone()
    };
    let error = read(&mut jobs, early).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let mut follower = jobs.clone();
    let following = {
        let request = request.clone();
        tokio::spawn(async move { read(&mut follower, request).await })
    };

    let address = serve(&group, Files::default()).await;
    let hello = FakeAgent::hello("node-1", &address);
    let mut agent = FakeAgent::open(group.channel(0, "nodes/node-1"), hello)
        .await
        .unwrap();
    let desired = agent.desired(|d| !d.assignments.is_empty()).await;
    agent.drive(&desired.assignments[0], 0).await;
    let (text, offsets) = within("the log", following).await.unwrap().unwrap();
    assert_eq!((text.as_str(), offsets), ("hello world\n", vec![0, 6]));

    let resumed = StreamLogsRequest {
        offset: 6,
        follow: false,
        ..request.clone()
    };
    assert_eq!(read(&mut jobs, resumed).await.unwrap().0, "world\n");
    let missing = StreamLogsRequest {
        file: "none.txt".into(),
        ..request
    };
    let error = read(&mut jobs, missing).await.unwrap_err();
    assert!(error.message().contains("none.txt"), "{error}");

    let list = |id: &str| ListJobFilesRequest {
        name: job.name.clone(),
        output_directory_id: id.into(),
        ..ListJobFilesRequest::default()
    };
    let files = jobs
        .list_job_files(list(""))
        .await
        .unwrap()
        .into_inner()
        .files;
    assert_eq!(
        (files[0].name.as_str(), files[0].node.as_str()),
        ("stdout.txt", "nodes/node-1")
    );
    let error = jobs.list_job_files(list("MODEL")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_leaves_ends_its_relay() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let job = create_job(&admin, "j").await;
    let request = StreamLogsRequest {
        name: job.name.clone(),
        follow: true,
        ..StreamLogsRequest::default()
    };
    let mut jobs = JobServiceClient::new(admin);
    let stream = jobs.stream_logs(request).await.unwrap();
    drop(stream);
    // A stop ends streams that are open, and does not wait for those that are not.
    within("a stop", group.stop()).await;
}
