//! Streams that go on where they broke off.
//!
//! A task per stream reads ahead a little and no further: a slow reader slows the scheduler down, and a reader that
//! leaves ends the task.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::{
    ExecutionState, Job, StreamLogsRequest, StreamLogsResponse, WatchJobRequest,
};

use super::connect::Connection;
use super::retry::{Failure, Next, Retry};
use super::{Client, MAX_MESSAGE_BYTES};

/// Messages read ahead of the reader. Log messages hold at most 64 KiB.
const READ_AHEAD: usize = 16;

/// A stream that goes on after lost connections. It ends after the last message, or with one error.
#[derive(Debug)]
pub struct Resumed<T> {
    messages: mpsc::Receiver<Result<T, Status>>,
}

impl<T> Resumed<T> {
    /// The next message; none at the end.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        self.messages.recv().await.transpose()
    }
}

impl<T> Stream for Resumed<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context)
    }
}

/// Why one pass over a stream ended.
enum End {
    /// All is said, or nobody listens any more.
    Done,
    /// The connection or the scheduler failed.
    Failed(Failure),
}

/// What a stream must remember to go on.
pub(super) trait Source: Send + 'static {
    type Message: Send + 'static;

    /// Reads from one connection until it ends.
    fn pass(
        &mut self,
        connection: &Connection,
        retry: &mut Retry,
        sender: &mpsc::Sender<Result<Self::Message, Status>>,
    ) -> impl Future<Output = Result<(), Status>> + Send;
}

/// Begins to read in a task of its own.
pub(super) fn start<S: Source>(client: Client, mut source: S) -> Resumed<S::Message> {
    let (sender, messages) = mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        tokio::select! {
            () = drive(&client, &mut source, &sender) => {}
            // The reader has left: dropping the call tells the scheduler.
            () = sender.closed() => {}
        }
    });
    Resumed { messages }
}

async fn drive<S: Source>(
    client: &Client,
    source: &mut S,
    sender: &mpsc::Sender<Result<S::Message, Status>>,
) {
    let servers = &client.inner.servers;
    let mut retry = Retry::new(servers, client.inner.timeout, None);
    loop {
        let end = match servers.get().await {
            Ok(connection) => match source.pass(&connection, &mut retry, sender).await {
                Ok(()) => End::Done,
                Err(status) => {
                    let failure = Failure::of_call(&connection, status);
                    servers.report(&connection, &failure).await;
                    End::Failed(failure)
                }
            },
            Err(failure) => End::Failed(failure),
        };
        let failure = match end {
            End::Done => return,
            End::Failed(failure) => failure,
        };
        match retry.next(failure) {
            Next::Wait(pause) => tokio::time::sleep(pause).await,
            Next::GiveUp(status) => {
                // Without a reader there is nobody to tell.
                let _ = sender.send(Err(status)).await;
                return;
            }
        }
    }
}

/// See [`Client::stream_logs`].
pub(super) fn logs(client: Client, request: StreamLogsRequest) -> Resumed<StreamLogsResponse> {
    start(client, Logs { request })
}

struct Logs {
    /// What to ask for next: the offset moves on, file and attempt are settled by the first answer.
    request: StreamLogsRequest,
}

impl Source for Logs {
    type Message = StreamLogsResponse;

    async fn pass(
        &mut self,
        connection: &Connection,
        retry: &mut Retry,
        sender: &mpsc::Sender<Result<StreamLogsResponse, Status>>,
    ) -> Result<(), Status> {
        let mut chunks = JobServiceClient::new(connection.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .stream_logs(self.request.clone())
            .await?
            .into_inner();
        while let Some(chunk) = chunks.message().await? {
            retry.progress();
            let Some(chunk) = self.accept(chunk)? else {
                continue;
            };
            if sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Logs {
    /// The part of a chunk that is new, if any.
    fn accept(
        &mut self,
        mut chunk: StreamLogsResponse,
    ) -> Result<Option<StreamLogsResponse>, Status> {
        let wanted = self.request.offset;
        if chunk.offset > wanted {
            return Err(Status::data_loss(format!(
                "the log of {} goes on at byte {} where byte {wanted} was to come",
                self.request.name, chunk.offset
            )));
        }
        if self.request.attempt == 0 {
            self.request.attempt = chunk.attempt;
        }
        if self.request.file.is_empty() {
            self.request.file.clone_from(&chunk.file);
        }
        let known = wanted - chunk.offset;
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        if known > 0 {
            if known >= chunk.data.len() {
                return Ok(None);
            }
            chunk.data = chunk.data.slice(known..);
            chunk.offset = wanted;
        }
        self.request.offset = wanted + chunk.data.len() as u64;
        Ok(Some(chunk))
    }
}

/// See [`Client::watch_job`].
pub(super) fn job(client: Client, name: String) -> Resumed<Job> {
    start(client, Watch { name, shown: None })
}

struct Watch {
    name: String,
    /// Version that the reader has seen last, and whether the job had ended in it.
    shown: Option<(String, bool)>,
}

impl Source for Watch {
    type Message = Job;

    async fn pass(
        &mut self,
        connection: &Connection,
        retry: &mut Retry,
        sender: &mpsc::Sender<Result<Job, Status>>,
    ) -> Result<(), Status> {
        let request = WatchJobRequest {
            name: self.name.clone(),
        };
        let mut jobs = JobServiceClient::new(connection.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .watch_job(request)
            .await?
            .into_inner();
        while let Some(job) = jobs.message().await? {
            retry.progress();
            let ended = has_ended(&job);
            let known = matches!(&self.shown, Some((etag, _)) if *etag == job.etag);
            if known && !job.etag.is_empty() {
                continue;
            }
            self.shown = Some((job.etag.clone(), ended));
            if sender.send(Ok(job)).await.is_err() {
                return Ok(());
            }
        }
        match self.shown {
            Some((_, true)) => Ok(()),
            // A scheduler that is being stopped ends its streams: another one goes on.
            _ => Err(Status::unavailable("the scheduler ended the stream early")),
        }
    }
}

fn has_ended(job: &Job) -> bool {
    match job.execution_state() {
        ExecutionState::Succeeded | ExecutionState::Failed => true,
        ExecutionState::Unspecified
        | ExecutionState::Queued
        | ExecutionState::Running
        | ExecutionState::Terminating => false,
    }
}
