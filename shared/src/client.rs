//! Calls that survive the loss of a scheduler.
//!
//! A [`Client`] knows every scheduler's address. It keeps one connection to each that it uses and asks the one that
//! answered last; when that one fails it goes on with the next, until the time allowed has passed. Streams of logs, of
//! job states and of changes go on where they broke off.
//!
//! What is repeated, and why that is safe:
//!
//! - UNAVAILABLE: no leader just now, or the connection failed.
//! - UNKNOWN, INTERNAL, CANCELLED, when they come from the connection (reset, closed, not answering pings) and not from
//!   the scheduler.
//! - ABORTED with the reason [`LEADERSHIP_LOST`](crate::reason::LEADERSHIP_LOST).
//!
//! In each of these the first call may have been carried out. So a create must carry a `request_id` (see
//! [`new_request_id`]), by which the schedulers know the repeat; gets, lists and TerminateJob may be repeated anyway;
//! deletes go through [`Client::delete`], which knows that the second one finds nothing. Any other code is the answer.
//!
//! This module must never decide anything by itself: which scheduler leads, what an error means for the job, and so on.

mod config;
mod connect;
mod retry;
mod streams;
mod watch;

pub use config::{ClientConfig, ConfigError, ConfigFile, check_address};
pub use streams::Resumed;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use trainyard_proto::v1::{Job, StreamLogsRequest, StreamLogsResponse, WatchEvent, WatchRequest};

use connect::Servers;
use retry::{Failure, Next, Retry};

/// How long a call goes on trying unless the configuration says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest message that a client should take: a page of a thousand large jobs. Give it to the stubs
/// (`max_decoding_message_size`), whose own limit is 4 MiB.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A new id for a create, by which a repeat is known.
#[must_use]
pub fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Calls the schedulers. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    servers: Servers,
    timeout: Duration,
}

impl Client {
    /// A client for these schedulers. Connects when it is first used, which must be inside a tokio runtime.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let servers = Servers::new(&config.servers, &config.identity)?;
        Ok(Self {
            inner: Arc::new(Inner {
                servers,
                timeout: config.timeout,
            }),
        })
    }

    /// Makes a call that may be repeated (see the module), and repeats it where that helps:
    ///
    /// ```ignore
    /// let job = client
    ///     .unary(|channel| {
    ///         let request = request.clone();
    ///         async move { JobServiceClient::new(channel).create_job(request).await }
    ///     })
    ///     .await?;
    /// ```
    pub async fn unary<F, Fut, T>(&self, call: F) -> Result<T, Status>
    where
        F: FnMut(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.repeat(call).await.0
    }

    /// As [`unary`](Self::unary), for a delete: NOT_FOUND after a call whose answer was lost means that the delete was
    /// carried out.
    pub async fn delete<F, Fut, T>(&self, call: F) -> Result<(), Status>
    where
        F: FnMut(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.delete_with_answer(call).await.map(drop)
    }

    /// As [`delete`](Self::delete), with the answer; none when it was lost and the repeat found nothing.
    pub async fn delete_with_answer<F, Fut, T>(&self, call: F) -> Result<Option<T>, Status>
    where
        F: FnMut(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        match self.repeat(call).await {
            (Ok(answer), _) => Ok(Some(answer)),
            (Err(status), true) if status.code() == Code::NotFound => Ok(None),
            (Err(status), _) => Err(status),
        }
    }

    /// Calls until there is an answer or the time has passed; also says whether a call before the last may have been
    /// carried out.
    async fn repeat<F, Fut, T>(&self, mut call: F) -> (Result<T, Status>, bool)
    where
        F: FnMut(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let servers = &self.inner.servers;
        let deadline = Instant::now() + self.inner.timeout;
        let mut retry = Retry::new(servers, self.inner.timeout, Some(deadline));
        let mut maybe_done = false;
        loop {
            let failure = match timeout_at(deadline, servers.get()).await {
                Ok(Ok(connection)) => {
                    let result = timeout_at(deadline, call(connection.channel.clone())).await;
                    match result {
                        Ok(Ok(response)) => return (Ok(response.into_inner()), maybe_done),
                        Ok(Err(status)) => {
                            let failure = Failure::of_call(&connection, status);
                            maybe_done |= failure.may_repeat();
                            servers.report(&connection, &failure).await;
                            failure
                        }
                        Err(_) => Failure::silent(&connection),
                    }
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::no_connection(),
            };
            match retry.next(failure) {
                Next::Wait(pause) => tokio::time::sleep(pause).await,
                Next::GiveUp(status) => return (Err(status), maybe_done),
            }
        }
    }

    /// The bytes of a file of a job. When the connection is lost the stream goes on with the next byte, of the same file
    /// and attempt, so that no byte is missing or doubled. It ends with an error when no scheduler answers
    /// for the client's timeout.
    #[must_use]
    pub fn stream_logs(&self, request: StreamLogsRequest) -> Resumed<StreamLogsResponse> {
        streams::logs(self.clone(), request)
    }

    /// A job now and after each change, until it has ended. Goes on after lost connections; a state that was shown
    /// already is not shown again.
    #[must_use]
    pub fn watch_job(&self, name: impl Into<String>) -> Resumed<Job> {
        streams::job(self.clone(), name.into())
    }

    /// Changes of resources from a revision on, in order. Goes on after lost connections without a gap and without
    /// showing an event twice; signs of progress come as events, too. Ends with OUT_OF_RANGE when the schedulers do not know
    /// the changes since that revision any more: list again, and watch from the revision of the list.
    #[must_use]
    pub fn watch(&self, request: WatchRequest) -> Resumed<WatchEvent> {
        watch::watch(self.clone(), request)
    }
}
