//! The way of one file's bytes from the schedulers to the one who prints. A slow printer slows the stream down.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::Status;
use trainyard_proto::v1::StreamLogsRequest;

use crate::api::Api;
use crate::status::is_not_found;

/// Between two looks for a file that was announced and is not there yet: a file that appears makes no event.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// A file of an attempt.
pub(super) type Key = (u32, String);

/// What happens to a file.
#[derive(Debug)]
pub(super) enum Event {
    /// Its next bytes.
    Data(Key, Vec<u8>),
    /// All of it has been sent.
    End(Key),
    /// The rest of it cannot be had.
    Broken(Key, Status),
}

/// Sends a file from its first byte to its last. `ended` says whether the job has ended, after which a file that is not
/// there never will be.
pub(super) async fn pump(
    api: Api,
    job: String,
    key: Key,
    events: mpsc::Sender<Event>,
    mut ended: watch::Receiver<bool>,
) {
    let request = StreamLogsRequest {
        name: job,
        file: key.1.clone(),
        attempt: key.0,
        follow: true,
        ..StreamLogsRequest::default()
    };
    loop {
        let was_ended = *ended.borrow();
        let mut chunks = api.client().stream_logs(request.clone());
        let mut any = false;
        let last = loop {
            match chunks.message().await {
                Ok(Some(chunk)) => {
                    any = true;
                    if events
                        .send(Event::Data(key.clone(), chunk.data.into()))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Ok(None) => break Event::End(key.clone()),
                Err(status) if is_not_found(&status) && !any => {
                    if was_ended {
                        break Event::End(key.clone());
                    }
                    let _ = tokio::time::timeout(LOOK_EVERY, ended.changed()).await;
                    break Event::Data(key.clone(), Vec::new());
                }
                Err(status) => break Event::Broken(key.clone(), status),
            }
        };
        if matches!(last, Event::Data(..)) {
            continue;
        }
        // Without a printer there is nobody to tell.
        let _ = events.send(last).await;
        return;
    }
}
