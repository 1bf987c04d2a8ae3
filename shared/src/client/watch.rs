//! Changes of resources as one stream over lost connections and changes of the leader.
//!
//! Remembers the revision to go on with and which resources were shown of it, so that an event is neither missed nor
//! shown twice. A revision that is too old to be known is told to the reader (OUT_OF_RANGE): only the reader can list again.

use std::collections::BTreeSet;

use tokio::sync::mpsc;
use tonic::Status;
use trainyard_proto::v1::watch_service_client::WatchServiceClient;
use trainyard_proto::v1::{WatchEvent, WatchEventType, WatchRequest};

use super::connect::Connection;
use super::retry::Retry;
use super::streams::{Resumed, Source, start};
use super::{Client, MAX_MESSAGE_BYTES};

/// See [`Client::watch`].
pub(super) fn watch(client: Client, request: WatchRequest) -> Resumed<WatchEvent> {
    start(
        client,
        Changes {
            request,
            shown: BTreeSet::new(),
        },
    )
}

struct Changes {
    /// What to ask for next: `start_revision` moves on.
    request: WatchRequest,
    /// Resources of which an event at `start_revision` was shown.
    shown: BTreeSet<String>,
}

impl Source for Changes {
    type Message = WatchEvent;

    async fn pass(
        &mut self,
        connection: &Connection,
        retry: &mut Retry,
        sender: &mpsc::Sender<Result<WatchEvent, Status>>,
    ) -> Result<(), Status> {
        let mut events = WatchServiceClient::new(connection.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .watch(self.request.clone())
            .await?
            .into_inner();
        while let Some(event) = events.message().await? {
            retry.progress();
            if self.accept(&event) && sender.send(Ok(event)).await.is_err() {
                return Ok(());
            }
        }
        if self.request.until_now {
            Ok(())
        } else {
            // A scheduler that is being stopped ends its streams: another one goes on.
            Err(Status::unavailable("the scheduler ended the stream early"))
        }
    }
}

impl Changes {
    /// Moves on past this event; says whether it is new.
    fn accept(&mut self, event: &WatchEvent) -> bool {
        let next = &mut self.request.start_revision;
        if event.r#type() == WatchEventType::Progress {
            if event.revision >= *next {
                *next = event.revision.saturating_add(1);
                self.shown.clear();
            }
            return true;
        }
        if event.revision < *next {
            return false;
        }
        if event.revision > *next {
            *next = event.revision;
            self.shown.clear();
        }
        self.shown.insert(event.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, name: &str) -> WatchEvent {
        let kind = if name.is_empty() {
            WatchEventType::Progress
        } else {
            WatchEventType::Updated
        };
        WatchEvent {
            revision,
            r#type: kind.into(),
            name: name.into(),
            ..WatchEvent::default()
        }
    }

    #[test]
    fn a_resumed_stream_repeats_the_last_revision_and_shows_what_is_new_of_it() {
        let mut changes = Changes {
            request: WatchRequest::default(),
            shown: BTreeSet::new(),
        };
        assert!(changes.accept(&event(4, "")));
        assert_eq!(changes.request.start_revision, 5);
        assert!(changes.accept(&event(7, "a")));
        // The connection breaks here; revision 7 comes again, whole.
        assert_eq!(changes.request.start_revision, 7);
        assert!(!changes.accept(&event(7, "a")));
        assert!(changes.accept(&event(7, "b")));
        assert!(changes.accept(&event(8, "a")));
        assert!(changes.accept(&event(8, "")));
        assert_eq!(changes.request.start_revision, 9);
        assert!(!changes.accept(&event(8, "a")));
    }
}
