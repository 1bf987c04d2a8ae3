//! A scheduler for tests: serves one job over real TLS, from states and files that the test sets.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use trainyard_proto::v1::job_service_server::{JobService, JobServiceServer};
use trainyard_proto::v1::*;
use trainyard_shared::client::{Client, ClientConfig};
use trainyard_shared::tls::{Authority, Role};

use super::has_ended;
use crate::api::Api;

/// A file of an attempt as it grows.
#[derive(Debug, Clone, Default)]
struct FakeFile {
    data: Vec<u8>,
    complete: bool,
}

/// What the fake serves.
#[derive(Clone)]
pub(crate) struct Fake {
    job: watch::Sender<Option<Job>>,
    files: watch::Sender<BTreeMap<(u32, String), FakeFile>>,
    explanation: Arc<Mutex<JobExplanation>>,
    /// Once: the byte after which a stream of logs breaks.
    break_at: Arc<Mutex<Option<u64>>>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Fake {
    /// Starts to serve; the client knows where.
    pub(crate) async fn start() -> (Self, Api) {
        let fake = Self {
            job: watch::Sender::new(None),
            files: watch::Sender::default(),
            explanation: Arc::default(),
            break_at: Arc::default(),
        };
        let authority = Authority::create(&Authority::new_cluster_id()).unwrap();
        let server = authority.issue(&Role::Member(1)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = tonic::transport::Server::builder()
            .tls_config(server.server_tls())
            .unwrap()
            .add_service(JobServiceServer::new(fake.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let identity = authority.issue(&Role::Client("test".into())).unwrap();
        let config = ClientConfig {
            servers: vec![address],
            identity,
            timeout: Duration::from_secs(5),
        };
        (fake, Api::new(Client::new(config).unwrap()))
    }

    /// The job is now so.
    pub(crate) fn set_job(&self, mut job: Job) {
        let version: u64 = self
            .job
            .borrow()
            .as_ref()
            .and_then(|job| job.etag.parse().ok())
            .unwrap_or(0);
        job.etag = (version + 1).to_string();
        self.job.send_replace(Some(job));
    }

    /// The job is gone.
    pub(crate) fn delete_job(&self) {
        self.job.send_replace(None);
    }

    /// Why it waits.
    pub(crate) fn set_explanation(&self, explanation: JobExplanation) {
        *self.explanation.lock().unwrap() = explanation;
    }

    /// A task writes to a file.
    pub(crate) fn write(&self, attempt: u32, file: &str, data: &str) {
        self.files.send_modify(|files| {
            files
                .entry((attempt, file.into()))
                .or_default()
                .data
                .extend_from_slice(data.as_bytes());
        });
    }

    /// Nothing more is written by the attempt.
    pub(crate) fn complete(&self, attempt: u32) {
        self.files.send_modify(|files| {
            for ((number, _), file) in files.iter_mut() {
                file.complete |= *number == attempt;
            }
        });
    }

    /// The next stream of logs breaks after that byte.
    pub(crate) fn break_once_at(&self, offset: u64) {
        *self.break_at.lock().unwrap() = Some(offset);
    }

    fn current(&self) -> Result<Job, Status> {
        self.job
            .borrow()
            .clone()
            .ok_or_else(|| Status::not_found("there is no such job"))
    }
}

#[tonic::async_trait]
impl JobService for Fake {
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

    async fn create_job(
        &self,
        request: Request<CreateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        let mut job = request.job.unwrap();
        job.name = format!("{}/jobs/{}", request.parent, request.job_id);
        self.set_job(job);
        self.current().map(Response::new)
    }

    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        self.current().map(Response::new)
    }

    async fn list_jobs(
        &self,
        _: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn delete_job(&self, _: Request<DeleteJobRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn terminate_job(
        &self,
        _: Request<TerminateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn explain_job(
        &self,
        _: Request<ExplainJobRequest>,
    ) -> Result<Response<JobExplanation>, Status> {
        Ok(Response::new(self.explanation.lock().unwrap().clone()))
    }

    type WatchJobStream = Messages<Job>;

    async fn watch_job(
        &self,
        _: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        self.current()?;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut jobs = WatchStream::new(self.job.subscribe());
        tokio::spawn(async move {
            while let Some(job) = jobs.next().await {
                let last = job.as_ref().is_none_or(has_ended);
                if sender
                    .send(job.ok_or_else(|| Status::not_found("deleted")))
                    .await
                    .is_err()
                    || last
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_job_files(
        &self,
        request: Request<ListJobFilesRequest>,
    ) -> Result<Response<ListJobFilesResponse>, Status> {
        let attempt = request.into_inner().attempt;
        let names: Vec<String> = self
            .files
            .borrow()
            .keys()
            .filter(|(number, _)| *number == attempt)
            .map(|(_, name)| name.clone())
            .collect();
        let files = names
            .into_iter()
            .map(|name| FileInfo {
                name,
                ..FileInfo::default()
            })
            .collect();
        Ok(Response::new(ListJobFilesResponse { files }))
    }

    type StreamLogsStream = Messages<StreamLogsResponse>;

    async fn stream_logs(
        &self,
        request: Request<StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let request = request.into_inner();
        let key = (request.attempt, request.file.clone());
        let mut files = self.files.subscribe();
        if !files.borrow().contains_key(&key) {
            return Err(Status::not_found("there is no such file yet"));
        }
        let break_at = self.break_at.lock().unwrap().take();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let mut offset = request.offset;
            loop {
                let file = files.borrow_and_update().get(&key).cloned().unwrap();
                let start = usize::try_from(offset).unwrap();
                let end = break_at.map_or(file.data.len(), |at| {
                    file.data.len().min(usize::try_from(at).unwrap())
                });
                if start < end {
                    let data = file.data[start..end].to_vec();
                    let chunk = StreamLogsResponse {
                        offset,
                        data: data.into(),
                        attempt: key.0,
                        file: key.1.clone(),
                    };
                    offset = end as u64;
                    if sender.send(Ok(chunk)).await.is_err() {
                        return;
                    }
                }
                if break_at == Some(offset) {
                    let _ = sender
                        .send(Err(Status::unavailable("the leader has changed")))
                        .await;
                    return;
                }
                if file.complete || !request.follow || files.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
