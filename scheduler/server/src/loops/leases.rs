//! Watches the leases of nodes and tells the log which nodes are lost.
//!
//! Wakes when the next lease could run out, not before. It must never call a node lost whose session can still be
//! acknowledged: [`Leadership::condemn`] ends the session in the same step.

use std::sync::Arc;
use std::time::Duration;

use trainyard_proto::store::v1::{LostNode, MarkNodesLost, command::Kind};

use super::{After, after};
use crate::context::Context;
use crate::leadership::Leadership;

/// Pause after the log was overloaded.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until the leadership is lost.
pub(super) async fn run(context: Arc<Context>, leadership: Arc<Leadership>) {
    loop {
        let (lost, next) = {
            let state = context.state();
            (leadership.condemn(&state), leadership.next_check(&state))
        };
        if !lost.is_empty() {
            if !mark(&context, lost).await {
                return;
            }
            continue;
        }
        match next {
            // A heartbeat moves the time on and a new node has a whole lease before it: nothing comes sooner.
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => context.changes.nodes.notified().await,
        }
    }
}

/// Brings the loss into the log. False: the leadership is lost.
async fn mark(context: &Context, lost: Vec<LostNode>) -> bool {
    for node in &lost {
        tracing::warn!(
            node = node.node,
            epoch = node.session_epoch,
            "node lost: its lease ran out"
        );
    }
    let nodes = lost;
    loop {
        let command = MarkNodesLost {
            nodes: nodes.clone(),
        };
        match context.decide(Kind::MarkNodesLost(command)).await {
            Ok(Ok(_)) => return true,
            Ok(Err(refusal)) => {
                tracing::error!(%refusal, "lost nodes were refused (a bug)");
                tokio::time::sleep(PAUSE).await;
                return true;
            }
            Err(error) => match after("lost nodes", &error) {
                After::Retry => tokio::time::sleep(PAUSE).await,
                After::End => return false,
            },
        }
    }
}
