//! Carries on deletions that were begun: proposes `Sweep` for as long as the state says that one is due.
//!
//! How far a deletion is stands in the state alone, so a new leader goes on where the old one ended. It must never sweep
//! again after a sweep that found nothing, before something changed.

use std::sync::Arc;
use std::time::Duration;

use trainyard_core::Reply;
use trainyard_proto::store::v1::{Sweep, command::Kind};

use super::{After, after};
use crate::context::Context;

/// Most resources that one command touches: applying it holds up everybody else.
const LIMIT: u32 = 200;
/// Changes that come closer together than this are looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// Pause after the log was overloaded.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until the leadership is lost.
pub(super) async fn run(context: Arc<Context>) {
    loop {
        let due = context.state().sweep_due();
        if due {
            match context.decide(Kind::Sweep(Sweep { limit: LIMIT })).await {
                Ok(Ok(Reply::Count(0))) => {
                    tracing::error!(
                        "a sweep that was due found nothing (a bug); it waits for a change"
                    );
                }
                Ok(Ok(_)) => continue,
                Ok(Err(refusal)) => tracing::error!(%refusal, "a sweep was refused (a bug)"),
                Err(error) => match after("sweep", &error) {
                    After::Retry => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    After::End => return,
                },
            }
        }
        context.changes.sweep.notified().await;
        tokio::time::sleep(GATHER).await;
    }
}
