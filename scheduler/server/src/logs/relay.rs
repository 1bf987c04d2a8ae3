//! `StreamLogs`: bytes of a file from the node that writes it to the client that reads it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use trainyard_proto::v1::node_file_service_client::NodeFileServiceClient;
use trainyard_proto::v1::{ReadNodeFileRequest, StreamLogsRequest, StreamLogsResponse};

use super::locate::{self, Found, Place};
use super::{Wanted, list_command};
use crate::changes::Subscription;
use crate::context::Context;
use crate::status;

/// The stream of a relay.
pub type LogStream = ReceiverStream<Result<StreamLogsResponse, Status>>;

/// Chunks on their way to a client.
const OUTBOUND: usize = 4;
/// How long an agent that does not answer is asked again, beside a node that is not lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// First and longest pause before an agent is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Starts a relay. The job must exist in the state by now.
pub fn stream(context: Arc<Context>, request: &StreamLogsRequest) -> Result<LogStream, Status> {
    let wanted = Wanted::check(
        &request.output_directory_id,
        &request.directory,
        &request.file,
    )?;
    let subscription = context
        .changes
        .job(&request.name)
        .map_err(|e| status::exhausted(e.to_string()))?;
    let uid = context
        .state()
        .job(&request.name)
        .map(|job| job.uid.clone())
        .ok_or_else(|| status::not_found(&request.name))?;
    let (sender, receiver) = mpsc::channel(OUTBOUND);
    let mut relay = Relay {
        context: Arc::clone(&context),
        name: request.name.clone(),
        uid,
        wanted,
        attempt: request.attempt,
        offset: request.offset,
        follow: request.follow,
        failing: None,
        sender: sender.clone(),
    };
    tokio::spawn(async move {
        let end = tokio::select! {
            end = relay.run(subscription) => end,
            () = sender.closed() => Ok(()),
            () = context.stopping.cancelled() => Err(status::stopping()),
        };
        if let Err(status) = end {
            // A client that has left needs no reason.
            let _ = sender.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

struct Relay {
    context: Arc<Context>,
    name: String,
    uid: String,
    wanted: Wanted,
    /// 0 until the attempt is settled: the stream never changes over to another one.
    attempt: u32,
    /// Next byte to send.
    offset: u64,
    follow: bool,
    /// Since when no agent has answered, and the next pause.
    failing: Option<(Instant, Duration)>,
    sender: mpsc::Sender<Result<StreamLogsResponse, Status>>,
}

/// How one try ended.
enum Try {
    /// The last byte is sent, or the client has left.
    Done,
    /// The node does not have the file (yet).
    Missing,
    /// The agent cannot be reached, or its stream broke.
    Broken(Status),
    /// The agent refused.
    Refused(Status),
}

impl Relay {
    async fn run(&mut self, mut subscription: Subscription) -> Result<(), Status> {
        loop {
            let place = locate::file(
                &self.context.state(),
                &self.name,
                &self.uid,
                self.attempt,
                &self.wanted,
            );
            let found = match place {
                Place::Never(status) => return Err(status),
                Place::NotYet(_) if self.follow => {
                    subscription.changed().await;
                    continue;
                }
                Place::NotYet(text) => {
                    return Err(status::precondition("NOT_YET", &self.name, text, []));
                }
                Place::At(found) => found,
            };
            self.attempt = found.attempt;
            self.wanted.file.clone_from(&found.file);
            let mut last = Try::Missing;
            for (node, address) in &found.nodes {
                last = self.read(&found, node, address).await;
                match last {
                    Try::Done => return Ok(()),
                    Try::Missing | Try::Broken(_) => {}
                    Try::Refused(status) => return Err(status),
                }
            }
            let pause = self.pause(&found, last)?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = subscription.changed() => {}
            }
        }
    }

    /// How long to wait before the nodes are asked again; an error when there is no point in it.
    fn pause(&mut self, found: &Found, last: Try) -> Result<Duration, Status> {
        let (since, pause) = *self.failing.get_or_insert((Instant::now(), PAUSE.0));
        self.failing = Some((since, (pause * 2).min(PAUSE.1)));
        match last {
            // The agent may not have seen the attempt yet; once the attempt is over nothing more comes.
            Try::Missing if self.follow && found.alive => Ok(pause),
            Try::Missing => Err(status::precondition(
                "NO_FILE",
                &self.name,
                format!(
                    "attempt {} of {} has no file {} there; {} shows what it has",
                    found.attempt,
                    self.name,
                    found.file,
                    list_command(&self.name, found.attempt, &self.wanted)
                ),
                [("attempt", found.attempt.to_string())],
            )),
            Try::Broken(_) if since.elapsed() < PATIENCE && self.follow => Ok(pause),
            Try::Broken(_) if since.elapsed() < PAUSE.1 => Ok(pause),
            Try::Broken(error) => {
                let nodes: Vec<&str> = found.nodes.iter().map(|(node, _)| node.as_str()).collect();
                Err(status::unavailable(
                    "NODE_UNREACHABLE",
                    format!(
                        "{} does not answer: {}; the file can be read when it is back",
                        nodes.join(", "),
                        error.message()
                    ),
                ))
            }
            Try::Refused(status) => Err(status),
            Try::Done => Ok(Duration::ZERO),
        }
    }

    /// Reads from one node until the end of the file, or until something breaks.
    async fn read(&mut self, found: &Found, node: &str, address: &str) -> Try {
        let channel = match self.context.channels.agent(address) {
            Ok(channel) => channel,
            Err(status) => return Try::Refused(status),
        };
        let request = ReadNodeFileRequest {
            uid: found.uid.clone(),
            attempt: found.attempt,
            output_directory_id: self.wanted.output_directory_id.clone(),
            directory: self.wanted.directory.clone(),
            file: found.file.clone(),
            offset: self.offset,
            follow: self.follow,
        };
        let mut chunks = match NodeFileServiceClient::new(channel)
            .read_node_file(request)
            .await
        {
            Ok(response) => response.into_inner(),
            Err(status) => return sort(node, status),
        };
        loop {
            let chunk = match chunks.message().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Try::Done,
                Err(status) => return sort(node, status),
            };
            self.failing = None;
            if chunk.offset != self.offset {
                return Try::Refused(status::internal(format!(
                    "{node} sent byte {} of {} where byte {} was due",
                    chunk.offset, found.file, self.offset
                )));
            }
            let bytes = chunk.data.len();
            let response = StreamLogsResponse {
                offset: chunk.offset,
                data: chunk.data,
                attempt: found.attempt,
                file: found.file.clone(),
            };
            if self.sender.send(Ok(response)).await.is_err() {
                return Try::Done;
            }
            self.offset += u64::try_from(bytes).unwrap_or(u64::MAX);
        }
    }
}

fn sort(node: &str, error: Status) -> Try {
    match error.code() {
        Code::NotFound => Try::Missing,
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
            Try::Broken(error)
        }
        // A connection that broke below a stream shows as this, with the cause as its source.
        Code::Internal if std::error::Error::source(&error).is_some() => Try::Broken(error),
        _ => {
            tracing::debug!(node, %error, "an agent refused to read a file");
            Try::Refused(Status::new(
                error.code(),
                format!("{node}: {}", error.message()),
            ))
        }
    }
}
