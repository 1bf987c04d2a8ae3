//! A scheduler that does as it is told, behind real TLS, and a relay that can cut or freeze connections.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};
use trainyard_proto::v1::job_service_server::{JobService, JobServiceServer};
use trainyard_proto::v1::member_service_server::{MemberService, MemberServiceServer};
use trainyard_proto::v1::watch_service_server::{WatchService, WatchServiceServer};
use trainyard_proto::v1::{
    CreateJobRequest, DeleteJobRequest, ExplainJobRequest, GetJobRequest, Job, JobExplanation,
    ListJobFilesRequest, ListJobFilesResponse, ListJobsRequest, ListJobsResponse,
    ListMembersRequest, ListMembersResponse, StreamLogsRequest, StreamLogsResponse,
    TerminateJobRequest, WatchEvent, WatchJobRequest, WatchRequest,
};
use trainyard_shared::client::{Client, ClientConfig};
use trainyard_shared::tls::{Authority, Identity, Role, peer_role};

#[derive(Clone, Default)]
pub struct Scheduler {
    /// First answers to ListMembers; then the caller's role as `cluster_id`.
    pub refusals: Arc<Mutex<Vec<Status>>>,
    /// First answers to DeleteJob; then success.
    pub deletes: Arc<Mutex<Vec<Status>>>,
    /// Bytes of the log.
    pub log: Arc<Vec<u8>>,
    /// Bytes by which an answer begins too early.
    pub overlap: u64,
    /// Bytes by which an answer begins too late.
    pub gap: u64,
    /// Requests for logs, as they came.
    pub log_requests: Arc<Mutex<Vec<StreamLogsRequest>>>,
    /// States of the job, by pass over the stream.
    pub watches: Arc<Mutex<Vec<Vec<Job>>>>,
    /// Changes, by pass over the stream; the stream stays open after the last pass.
    pub changes: Arc<Mutex<Vec<Vec<WatchEvent>>>>,
    /// Requests for changes, as they came.
    pub change_requests: Arc<Mutex<Vec<WatchRequest>>>,
    pub calls: Arc<AtomicUsize>,
}

/// Takes the first of what is left.
fn shift<T>(list: &Mutex<Vec<T>>) -> Option<T> {
    let mut list = list.lock().unwrap();
    (!list.is_empty()).then(|| list.remove(0))
}

#[tonic::async_trait]
impl MemberService for Scheduler {
    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some(status) = shift(&self.refusals) {
            return Err(status);
        }
        let certificates = request.peer_certs().unwrap();
        let (cluster_id, role) = peer_role(&certificates).unwrap();
        Ok(Response::new(ListMembersResponse {
            cluster_id: format!("{cluster_id} {role}"),
            ..Default::default()
        }))
    }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl JobService for Scheduler {
    async fn create_job_array(
        &self,
        _request: Request<trainyard_proto::v1::CreateJobArrayRequest>,
    ) -> Result<Response<trainyard_proto::v1::CreateJobArrayResponse>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn terminate_jobs(
        &self,
        _request: Request<trainyard_proto::v1::TerminateJobsRequest>,
    ) -> Result<Response<trainyard_proto::v1::TerminateJobsResponse>, Status> {
        Err(Status::unimplemented("not answered here"))
    }

    async fn create_job(&self, _: Request<CreateJobRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_jobs(
        &self,
        _: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_job(&self, _: Request<DeleteJobRequest>) -> Result<Response<()>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match shift(&self.deletes) {
            Some(status) => Err(status),
            None => Ok(Response::new(())),
        }
    }
    async fn terminate_job(
        &self,
        _: Request<TerminateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn explain_job(
        &self,
        _: Request<ExplainJobRequest>,
    ) -> Result<Response<JobExplanation>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_job_files(
        &self,
        _: Request<ListJobFilesRequest>,
    ) -> Result<Response<ListJobFilesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchJobStream = Stream<Job>;
    async fn watch_job(
        &self,
        _: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let jobs = shift(&self.watches).ok_or_else(|| Status::not_found("no more states"))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(jobs.len().max(1));
        for job in jobs {
            sender.try_send(Ok(job)).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type StreamLogsStream = Stream<StreamLogsResponse>;
    async fn stream_logs(
        &self,
        request: Request<StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let request = request.into_inner();
        self.log_requests.lock().unwrap().push(request.clone());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let log = self.log.clone();
        let mut offset = request.offset.saturating_sub(self.overlap) + self.gap;
        tokio::spawn(async move {
            while (offset as usize) < log.len() {
                let end = (offset as usize + 10_000).min(log.len());
                let chunk = StreamLogsResponse {
                    offset,
                    data: log[offset as usize..end].to_vec().into(),
                    attempt: 3,
                    file: "stdout.txt".to_owned(),
                };
                if sender.send(Ok(chunk)).await.is_err() {
                    return;
                }
                offset = end as u64;
            }
            if request.follow {
                sender.closed().await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl WatchService for Scheduler {
    type WatchStream = Stream<WatchEvent>;
    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.change_requests
            .lock()
            .unwrap()
            .push(request.into_inner());
        let events = shift(&self.changes).ok_or_else(|| Status::out_of_range("too old"))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(events.len().max(1));
        for event in events {
            sender.try_send(Ok(event)).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves until the test ends; gives the address.
pub async fn serve(identity: &Identity, scheduler: Scheduler) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .tls_config(identity.server_tls())
        .unwrap()
        .add_service(MemberServiceServer::new(scheduler.clone()))
        .add_service(WatchServiceServer::new(scheduler.clone()))
        .add_service(JobServiceServer::new(scheduler))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

/// An address on which nothing listens.
pub async fn dead() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// A relay in front of a server.
pub struct Relay {
    pub address: SocketAddr,
    /// On the first so many connections no byte passes any more, in either direction, and nothing is closed.
    pub frozen: Arc<AtomicUsize>,
}

impl Relay {
    /// Passes `limits[n]` bytes from the server to the client on the nth connection, then cuts it; connections after
    /// the last limit live on.
    pub async fn new(server: SocketAddr, limits: Vec<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = Arc::new(AtomicUsize::new(0));
        let relay_frozen = frozen.clone();
        tokio::spawn(async move {
            let mut limits = limits.into_iter();
            let mut serial = 0;
            while let Ok((client, _)) = listener.accept().await {
                let limit = limits.next().unwrap_or(usize::MAX);
                let frozen = Frozen(relay_frozen.clone(), serial);
                serial += 1;
                tokio::spawn(async move {
                    let upstream = TcpStream::connect(server).await.unwrap();
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = upstream.into_split();
                    // Whichever direction ends first ends both.
                    tokio::select! {
                        () = copy(server_read, client_write, limit, &frozen) => {}
                        () = copy(client_read, server_write, usize::MAX, &frozen) => {}
                    }
                });
            }
        });
        Self { address, frozen }
    }
}

struct Frozen(Arc<AtomicUsize>, usize);

impl Frozen {
    fn now(&self) -> bool {
        self.1 < self.0.load(Ordering::SeqCst)
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    limit: usize,
    frozen: &Frozen,
) {
    let mut buffer = vec![0; 4096];
    let mut passed = 0;
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        while frozen.now() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        passed += length;
        if passed > limit || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

pub fn authority() -> Authority {
    Authority::create("0f0e").unwrap()
}

/// A client for these addresses.
pub fn client(authority: &Authority, servers: &[SocketAddr], timeout: Duration) -> Client {
    Client::new(ClientConfig {
        servers: servers.iter().map(ToString::to_string).collect(),
        identity: authority.issue(&Role::Client("admin".to_owned())).unwrap(),
        timeout,
    })
    .unwrap()
}
