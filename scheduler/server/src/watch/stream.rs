//! `WatchService`: the changes below some prefixes of names, from a revision on.
//!
//! An event is looked for when the client has room for it, and the resource is read in that moment. A watch that is not
//! stale ends with the term of the leader; the client goes on with another member, from `next_revision` of the last event
//! it got. It must never leave out an event without saying so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use trainyard_proto::v1::watch_service_server::WatchService;
use trainyard_proto::v1::{WatchEvent, WatchEventType, WatchRequest};

use super::ring::{Event, Next, Overrun, Position};
use crate::context::{Context, wants_stale};
use crate::leadership::Leadership;
use crate::status;

/// Most watches at one time.
const MAX_WATCHES: usize = 4096;
/// Most prefixes of one watch.
const MAX_PREFIXES: usize = 100;
/// Longest prefix.
const MAX_PREFIX: usize = 1024;
/// What names of watched resources begin with.
const ROOTS: [&str; 2] = ["workspaces/", "nodes/"];
/// Silence after which a sign of progress is sent.
const SILENCE: Duration = Duration::from_secs(5);

/// The service of watches.
#[derive(Debug, Clone)]
pub struct Watches {
    context: Arc<Context>,
    room: Arc<Semaphore>,
}

impl Watches {
    /// The service of a daemon.
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            room: Arc::new(Semaphore::new(MAX_WATCHES)),
        }
    }
}

#[tonic::async_trait]
impl WatchService for Watches {
    type WatchStream = ReceiverStream<Result<WatchEvent, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let place = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            status::exhausted(format!(
                "this scheduler serves {MAX_WATCHES} watches already; end some, or watch on another member"
            ))
        })?;
        let leadership = if wants_stale(request.metadata()) {
            None
        } else {
            Some(self.context.leading()?)
        };
        self.context.catch_up(request.metadata()).await?;
        let request = request.into_inner();
        check_prefixes(&request.prefixes)?;
        let (outbound, stream) = mpsc::channel(1);
        let watch = Watch::new(Arc::clone(&self.context), request, outbound)?;
        tokio::spawn(async move {
            watch.serve(leadership).await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn check_prefixes(prefixes: &[String]) -> Result<(), Status> {
    if prefixes.len() > MAX_PREFIXES {
        return Err(status::invalid_field(
            "prefixes",
            format!(
                "has {} entries; at most {MAX_PREFIXES} are taken",
                prefixes.len()
            ),
        ));
    }
    for (i, prefix) in prefixes.iter().enumerate() {
        let field = format!("prefixes[{i}]");
        if prefix.len() > MAX_PREFIX {
            return Err(status::invalid_field(
                &field,
                format!("is longer than {MAX_PREFIX} bytes"),
            ));
        }
        let possible = ROOTS
            .iter()
            .any(|root| prefix.starts_with(root) || root.starts_with(prefix.as_str()));
        if !possible {
            return Err(status::invalid_field(
                &field,
                format!(
                    "no name begins with {prefix:?}; write workspaces/W/, workspaces/W/experiments/E/jobs/, nodes/ or the like"
                ),
            ));
        }
    }
    Ok(())
}

struct Watch {
    context: Arc<Context>,
    prefixes: Vec<String>,
    position: Position,
    /// Everything up to here was sent, or was not asked for.
    done: u64,
    /// Revision after which the watch ends.
    until: Option<u64>,
    outbound: mpsc::Sender<Result<WatchEvent, Status>>,
}

impl Watch {
    fn new(
        context: Arc<Context>,
        request: WatchRequest,
        outbound: mpsc::Sender<Result<WatchEvent, Status>>,
    ) -> Result<Self, Status> {
        let ring = &context.changes.events;
        let (position, done) = match request.start_revision {
            0 => ring.end(),
            1 => ring.start(),
            revision => (ring.from(revision).map_err(too_old)?, revision - 1),
        };
        let until = request.until_now.then(|| ring.applied());
        Ok(Self {
            prefixes: request.prefixes,
            position,
            done,
            until,
            outbound,
            context,
        })
    }

    async fn serve(self, leadership: Option<Arc<Leadership>>) {
        let outbound = self.outbound.clone();
        let context = Arc::clone(&self.context);
        let term_over = async {
            match &leadership {
                Some(leadership) => leadership.ended.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            end = self.run() => end,
            () = outbound.closed() => None,
            () = term_over => {
                let leader = context.leader();
                Some(status::not_leader(leader.as_ref().map(|(_, address)| address.as_str())))
            }
            () = context.stopping.cancelled() => Some(status::stopping()),
        };
        if let Some(status) = end {
            // A client that has left needs no reason.
            let _ = outbound.send(Err(status)).await;
        }
    }

    /// Sends events until the client has left or everything it asked for was sent (`None`), or it was overrun.
    async fn run(mut self) -> Option<Status> {
        let context = Arc::clone(&self.context);
        let mut appended = context.changes.events.subscribe();
        // Says from where on this watch is complete.
        self.outbound.send(Ok(self.progress())).await.ok()?;
        let mut sent_at = Instant::now();
        loop {
            // First the room, then the event: what is sent holds the newest of the resource.
            let permit = self.outbound.reserve().await.ok()?;
            appended.mark_unchanged();
            let prefixes = &self.prefixes;
            let wanted = |name: &str| wants(prefixes, name);
            let next = match context.changes.events.next(&mut self.position, wanted) {
                Ok(next) => next,
                Err(overrun) => return Some(too_old(overrun)),
            };
            match next {
                Next::Event { event, .. } if self.until.is_some_and(|u| event.revision > u) => {
                    self.done = self.done.max(event.revision - 1);
                    permit.send(Ok(self.progress()));
                    return None;
                }
                Next::Event { event, more } => {
                    self.done = if more {
                        event.revision - 1
                    } else {
                        event.revision
                    };
                    let message = message(&context, event, self.done + 1);
                    permit.send(Ok(message));
                    sent_at = Instant::now();
                }
                Next::Later => {
                    drop(permit);
                    tokio::task::yield_now().await;
                }
                Next::Nothing(applied) => {
                    self.done = self.done.max(applied);
                    if self.until.is_some_and(|until| applied >= until) {
                        permit.send(Ok(self.progress()));
                        return None;
                    }
                    if sent_at.elapsed() >= SILENCE {
                        permit.send(Ok(self.progress()));
                        sent_at = Instant::now();
                        continue;
                    }
                    drop(permit);
                    tokio::select! {
                        changed = appended.changed() => changed.ok()?,
                        () = tokio::time::sleep_until(sent_at + SILENCE) => {}
                    }
                }
            }
        }
    }

    fn progress(&self) -> WatchEvent {
        WatchEvent {
            revision: self.done,
            r#type: WatchEventType::Progress.into(),
            next_revision: self.done + 1,
            ..WatchEvent::default()
        }
    }
}

fn wants(prefixes: &[String], name: &str) -> bool {
    prefixes.is_empty() || prefixes.iter().any(|p| name.starts_with(p.as_str()))
}

fn message(context: &Context, event: Event, next_revision: u64) -> WatchEvent {
    let resource = match event.kind {
        WatchEventType::Deleted => None,
        _ => context.state().resource(&event.name),
    };
    WatchEvent {
        revision: event.revision,
        r#type: event.kind.into(),
        name: event.name,
        time: event.time,
        summary: event.summary,
        next_revision,
        resource,
    }
}

fn too_old(overrun: Overrun) -> Status {
    status::out_of_range(overrun.to_string(), overrun.oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_that_can_match_nothing_are_refused() {
        for good in [
            "",
            "w",
            "workspaces/w",
            "workspaces/w/experiments/e/jobs/",
            "nodes/n",
        ] {
            assert!(check_prefixes(&[good.to_owned()]).is_ok(), "{good}");
        }
        for bad in ["jobs/", "node/", "/workspaces", &"workspaces/".repeat(200)] {
            let error = check_prefixes(&["nodes/".to_owned(), bad.to_owned()]).unwrap_err();
            assert!(error.message().starts_with("prefixes[1]: "), "{error}");
        }
        assert!(check_prefixes(&vec![String::new(); 101]).is_err());
        assert!(wants(&[], "nodes/n") && !wants(&["nodes/m".into()], "nodes/n"));
    }
}
