//! `WatchJob`: a job now and after each change.
//!
//! A watcher holds a wake-up and reads the newest state when its client is ready for it: a slow client skips states and
//! costs no memory.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use trainyard_proto::v1::{ExecutionState, Job};

use crate::changes::Subscription;
use crate::context::Context;
use crate::leadership::Leadership;
use crate::status;

/// The stream of a watch.
pub type JobStream = ReceiverStream<Result<Job, Status>>;

/// Whether a job has ended for good.
pub fn has_ended(job: &Job) -> bool {
    match job.execution_state() {
        ExecutionState::Succeeded | ExecutionState::Failed => true,
        ExecutionState::Unspecified
        | ExecutionState::Queued
        | ExecutionState::Running
        | ExecutionState::Terminating => false,
    }
}

/// Starts a watch of a job that exists. `leadership` is given for a linearizable watch: it then ends with the term, so
/// that a member that was cut off does not show an old state for ever.
pub fn start(
    context: Arc<Context>,
    leadership: Option<Arc<Leadership>>,
    name: &str,
) -> Result<JobStream, Status> {
    let subscription = context
        .changes
        .job(name)
        .map_err(|e| status::exhausted(e.to_string()))?;
    let uid = context
        .state()
        .job(name)
        .map(|job| job.uid.clone())
        .ok_or_else(|| status::not_found(name))?;
    let (sender, receiver) = mpsc::channel(1);
    let name = name.to_owned();
    tokio::spawn(async move {
        let term_over = async {
            match &leadership {
                Some(leadership) => leadership.ended.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            end = watch(&context, subscription, &name, &uid, &sender) => end,
            () = sender.closed() => None,
            () = term_over => {
                let leader = context.leader();
                Some(status::not_leader(leader.as_ref().map(|(_, address)| address.as_str())))
            }
            () = context.stopping.cancelled() => Some(status::stopping()),
        };
        if let Some(status) = end {
            // A client that has left needs no reason.
            let _ = sender.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Sends states until the job has ended (`None`) or is gone.
async fn watch(
    context: &Context,
    mut subscription: Subscription,
    name: &str,
    uid: &str,
    sender: &mpsc::Sender<Result<Job, Status>>,
) -> Option<Status> {
    let mut shown = String::new();
    loop {
        // First the room, then the state: what is sent is the newest.
        let permit = sender.reserve().await.ok()?;
        let job = context
            .state()
            .job(name)
            .filter(|job| job.uid == uid)
            .filter(|job| job.etag != shown || shown.is_empty())
            .map(std::borrow::Cow::into_owned);
        match job {
            Some(job) => {
                shown.clone_from(&job.etag);
                let ended = has_ended(&job);
                permit.send(Ok(job));
                if ended {
                    return None;
                }
            }
            None => {
                drop(permit);
                let exists = context.state().job(name).is_some_and(|job| job.uid == uid);
                if !exists {
                    return Some(status::not_found(name));
                }
            }
        }
        subscription.changed().await;
    }
}
