//! Waits until a resource that is being deleted is gone, and says meanwhile what still keeps it. Must never delete.

use std::future::Future;

use tonic::{Code, Status};
use trainyard_proto::v1::WatchRequest;

use crate::api::Api;
use crate::console::Console;
use crate::context::Context;
use crate::error::Error;

/// Whether to wait for a deletion to be done.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct WaitArg {
    /// Return as soon as the deletion has begun. It goes on by itself
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// Waits until `get` finds nothing. The deletion goes on whether or not somebody waits.
pub(crate) async fn wait<T, F, Fut>(context: &Context, name: &str, get: F) -> Result<(), Error>
where
    F: Fn(Api) -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let api = context.api()?;
    let mut console = Console::standard();
    // Watched before it is looked at: what happens in between is not missed.
    let mut changes = api.client().watch(WatchRequest {
        prefixes: vec![name.to_owned()],
        ..WatchRequest::default()
    });
    loop {
        match get(api.clone()).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) => return Err(status.into()),
        }
        console.waiting_on_terminal(&format!(
            "{name} is being deleted: what runs in it is ended first"
        ));
        tokio::select! {
            change = changes.message() => {
                if let Err(status) = change {
                    return Err(status.into());
                }
            }
            _ = tokio::signal::ctrl_c() => {
                console.line(&format!("{name} goes on being deleted"));
                return Err(Error::Interrupted);
            }
        }
    }
}
