//! A scheduler for tests: many jobs of one experiment over real TLS, with lists, filters by state, watches that can break,
//! and mass ends.

use std::collections::BTreeMap;
use std::io::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost_types::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};
use trainyard_proto::v1::job_service_server::{JobService, JobServiceServer};
use trainyard_proto::v1::watch_service_server::{WatchService, WatchServiceServer};
use trainyard_proto::v1::*;
use trainyard_shared::client::{Client, ClientConfig};
use trainyard_shared::tls::{Authority, Role};

use super::{has_ended, state};
use crate::api::Api;
use crate::console::Console;

/// The experiment of all jobs.
pub(crate) const PARENT: &str = "workspaces/w/experiments/e";
/// Jobs of a page, so that lists have several.
const PAGE: usize = 2;

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What was written so far.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<u8>>>);

impl Write for Seen {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seen {
    /// A console without a terminal, whose stdout and stderr are seen as one.
    pub(crate) fn console() -> (Self, Console) {
        let seen = Self::default();
        let console = Console::plain(Box::new(seen.clone()), Box::new(seen.clone()));
        (seen, console)
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until this is written.
    pub(crate) async fn shows(&self, text: &str) {
        let until = async {
            while !self.text().contains(text) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), until)
            .await
            .unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.text()));
    }
}

#[derive(Default)]
struct Held {
    jobs: BTreeMap<String, Job>,
    /// One per revision, from revision 1.
    events: Vec<WatchEvent>,
    /// Events of revisions up to this one are not known any more.
    forgotten: u64,
}

/// See the head of this file.
#[derive(Clone, Default)]
pub(crate) struct Yard {
    held: Arc<Mutex<Held>>,
    /// Counts changes.
    changed: Arc<watch::Sender<u64>>,
    /// Counts how often all watches were broken.
    broken: Arc<watch::Sender<u64>>,
}

/// The resource name of a job.
pub(crate) fn name_of(id: &str) -> String {
    format!("{PARENT}/jobs/{id}")
}

impl Yard {
    /// Starts to serve; the client knows where.
    pub(crate) async fn start() -> (Self, Api) {
        let yard = Self::default();
        let authority = Authority::create(&Authority::new_cluster_id()).unwrap();
        let server = authority.issue(&Role::Member(1)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = tonic::transport::Server::builder()
            .tls_config(server.server_tls())
            .unwrap()
            .add_service(JobServiceServer::new(yard.clone()))
            .add_service(WatchServiceServer::new(yard.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let identity = authority.issue(&Role::Client("test".into())).unwrap();
        let config = ClientConfig {
            servers: vec![address],
            identity,
            timeout: Duration::from_secs(5),
        };
        (yard, Api::new(Client::new(config).unwrap()))
    }

    /// The job is now in this state; made if it was not there.
    pub(crate) fn put(&self, id: &str, state: ExecutionState) {
        self.put_job(job_in(id, state));
    }

    /// The job is now so.
    pub(crate) fn put_job(&self, job: Job) {
        self.held.lock().unwrap().put(job);
        self.changed.send_modify(|count| *count += 1);
    }

    /// The jobs that there are.
    pub(crate) fn names(&self) -> Vec<String> {
        self.held.lock().unwrap().jobs.keys().cloned().collect()
    }

    /// The job is gone.
    pub(crate) fn delete(&self, id: &str) {
        let mut held = self.held.lock().unwrap();
        held.jobs.remove(&name_of(id)).unwrap();
        held.event(&name_of(id), WatchEventType::Deleted, "");
        drop(held);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Events up to now are not known any more.
    pub(crate) fn forget(&self) {
        let mut held = self.held.lock().unwrap();
        held.forgotten = held.events.len() as u64;
    }

    /// The job is now in this state, and the change is known to nobody but those who look.
    pub(crate) fn put_unseen(&self, id: &str, state: ExecutionState) {
        let mut held = self.held.lock().unwrap();
        held.put(job_in(id, state));
        held.forgotten = held.events.len() as u64;
        drop(held);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Every watch loses its connection.
    pub(crate) fn break_watches(&self) {
        self.broken.send_modify(|count| *count += 1);
    }

    /// Watches that are served now.
    pub(crate) async fn is_watched(&self) {
        while self.broken.receiver_count() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn job_in(id: &str, state: ExecutionState) -> Job {
    Job {
        name: name_of(id),
        execution_state: state.into(),
        ..Job::default()
    }
}

impl Held {
    fn put(&mut self, mut job: Job) {
        let before = self.jobs.get(&job.name);
        let kind = match before {
            None => WatchEventType::Created,
            Some(_) => WatchEventType::Updated,
        };
        job.sequence = before.map_or(self.events.len() as u64, |job| job.sequence);
        self.event(&job.name, kind, &state(job.execution_state()));
        self.jobs.insert(job.name.clone(), job);
    }

    fn event(&mut self, name: &str, kind: WatchEventType, summary: &str) {
        let revision = self.events.len() as u64 + 1;
        self.events.push(WatchEvent {
            revision,
            next_revision: revision + 1,
            r#type: kind.into(),
            name: name.to_owned(),
            time: Some(Timestamp {
                seconds: i64::try_from(revision).unwrap(),
                nanos: 0,
            }),
            summary: summary.to_owned(),
            resource: None,
        });
    }

    /// The next event that a watch wants from a revision on, with its resource as it is now.
    fn next(&self, request: &WatchRequest, from: u64) -> Option<WatchEvent> {
        let wanted = |name: &str| {
            request.prefixes.is_empty()
                || request
                    .prefixes
                    .iter()
                    .any(|prefix| name.starts_with(prefix))
        };
        let mut event = self
            .events
            .iter()
            .find(|event| event.revision >= from && wanted(&event.name))?
            .clone();
        event.resource = self
            .jobs
            .get(&event.name)
            .cloned()
            .map(watch_event::Resource::Job);
        Some(event)
    }
}

/// Comparisons of `state` alone, joined by AND.
fn matches(filter: &str, job: &Job) -> Result<bool, Status> {
    let mut all = true;
    for term in filter.split(" AND ").filter(|term| !term.is_empty()) {
        let words: Vec<&str> = term.split_whitespace().collect();
        let state = state(job.execution_state());
        all &= match words[..] {
            ["state", "=", wanted] => state == wanted,
            ["state", "!=", wanted] => state != wanted,
            _ => return Err(Status::invalid_argument(format!("{term:?} is not known"))),
        };
    }
    Ok(all)
}

fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in this fake"))
}

#[tonic::async_trait]
impl JobService for Yard {
    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let held = self.held.lock().unwrap();
        let job = held.jobs.get(&request.into_inner().name).cloned();
        job.map(Response::new)
            .ok_or_else(|| Status::not_found("there is no such job"))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let held = self.held.lock().unwrap();
        let mut jobs = Vec::new();
        for job in held
            .jobs
            .values()
            .filter(|job| job.name > request.page_token)
        {
            if matches(&request.filter, job)? {
                jobs.push(job.clone());
            }
        }
        let more = jobs.len() > PAGE;
        jobs.truncate(PAGE);
        let next_page_token = if more {
            jobs.last().unwrap().name.clone()
        } else {
            String::new()
        };
        Ok(Response::new(ListJobsResponse {
            jobs,
            next_page_token,
            revision: held.events.len() as u64,
        }))
    }

    async fn terminate_job(
        &self,
        request: Request<TerminateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let name = request.into_inner().name;
        let Some(mut job) = self.held.lock().unwrap().jobs.get(&name).cloned() else {
            return Err(Status::not_found(format!("there is no {name}")));
        };
        if !has_ended(&job) {
            job.set_execution_state(ExecutionState::Terminating);
            self.put_job(job.clone());
        }
        Ok(Response::new(job))
    }

    async fn terminate_jobs(
        &self,
        request: Request<TerminateJobsRequest>,
    ) -> Result<Response<TerminateJobsResponse>, Status> {
        let request = request.into_inner();
        let jobs: Vec<Job> = self.held.lock().unwrap().jobs.values().cloned().collect();
        let mut terminated = 0;
        for mut job in jobs {
            if !has_ended(&job) && matches(&request.filter, &job)? {
                job.set_execution_state(ExecutionState::Terminating);
                self.put_job(job);
                terminated += 1;
            }
        }
        Ok(Response::new(TerminateJobsResponse { terminated }))
    }

    async fn create_job(
        &self,
        request: Request<CreateJobRequest>,
    ) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        let job = Job {
            name: format!("{}/jobs/{}", request.parent, request.job_id),
            execution_state: ExecutionState::Queued.into(),
            ..request.job.unwrap()
        };
        if self.names().contains(&job.name) {
            return Err(Status::already_exists(format!(
                "{} exists already",
                job.name
            )));
        }
        if !request.validate_only {
            self.put_job(job.clone());
        }
        Ok(Response::new(job))
    }

    async fn create_job_array(
        &self,
        request: Request<CreateJobArrayRequest>,
    ) -> Result<Response<CreateJobArrayResponse>, Status> {
        let request = request.into_inner();
        let size = trainyard_shared::sweep::size(&request.sweep.unwrap()).unwrap();
        let jobs: Vec<String> = (0..size)
            .map(|index| format!("{}/jobs/{}-{index}", request.parent, request.job_id))
            .collect();
        for name in jobs.iter().filter(|_| !request.validate_only) {
            self.put_job(Job {
                name: name.clone(),
                execution_state: ExecutionState::Queued.into(),
                ..Job::default()
            });
        }
        Ok(Response::new(CreateJobArrayResponse {
            uid: "array-1".into(),
            size,
            jobs,
        }))
    }

    async fn delete_job(&self, _: Request<DeleteJobRequest>) -> Result<Response<()>, Status> {
        not_here()
    }

    async fn explain_job(
        &self,
        _: Request<ExplainJobRequest>,
    ) -> Result<Response<JobExplanation>, Status> {
        not_here()
    }

    type WatchJobStream = Messages<Job>;

    async fn watch_job(
        &self,
        _: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        not_here()
    }

    async fn list_job_files(
        &self,
        _: Request<ListJobFilesRequest>,
    ) -> Result<Response<ListJobFilesResponse>, Status> {
        not_here()
    }

    type StreamLogsStream = Messages<StreamLogsResponse>;

    async fn stream_logs(
        &self,
        _: Request<StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        not_here()
    }
}

#[tonic::async_trait]
impl WatchService for Yard {
    type WatchStream = Messages<WatchEvent>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let mut changed = self.changed.subscribe();
        let mut broken = self.broken.subscribe();
        let (known, forgotten) = {
            let held = self.held.lock().unwrap();
            (held.events.len() as u64, held.forgotten)
        };
        let mut from = match request.start_revision {
            0 => known + 1,
            1 => forgotten + 1,
            from if from <= forgotten => {
                return Err(Status::out_of_range("changes before are not known"));
            }
            from => from,
        };
        let held = Arc::clone(&self.held);
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let progress = WatchEvent {
                revision: from - 1,
                next_revision: from,
                r#type: WatchEventType::Progress.into(),
                ..WatchEvent::default()
            };
            let mut sent = sender.send(Ok(progress)).await.is_ok();
            while sent {
                let (next, forgotten) = {
                    let held = held.lock().unwrap();
                    (held.next(&request, from), held.forgotten)
                };
                if from <= forgotten {
                    let status = Status::out_of_range("changes before are not known");
                    let _ = sender.send(Err(status)).await;
                    return;
                } else if let Some(event) = next {
                    from = event.next_revision;
                    sent = sender.send(Ok(event)).await.is_ok();
                } else if request.until_now {
                    return;
                } else {
                    tokio::select! {
                        _ = changed.changed() => {}
                        () = sender.closed() => return,
                        _ = broken.changed() => {
                            let _ = sender.send(Err(Status::unavailable("the leader has changed"))).await;
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
