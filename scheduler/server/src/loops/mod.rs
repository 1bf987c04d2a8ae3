//! What only the leader does by itself: placement, leases, deadlines, deletions, retention, power.
//!
//! [`supervise`] begins a term when this member leads and its state is complete, runs the loops for as long as it lasts,
//! and ends it when the leadership is gone. The loops are woken by changes and by time; none of them polls.

mod deadlines;
mod leases;
mod placement;
mod power;
mod retention;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use prost_types::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use trainyard_replication::{ProposeError, Status};

use crate::context::Context;
use crate::leadership::Leadership;

/// Follows the replicated log's idea of who leads, until the daemon stops.
pub async fn supervise(context: Arc<Context>, published: watch::Sender<Option<Arc<Leadership>>>) {
    let mut log = context.log.status();
    loop {
        let term = tokio::select! {
            status = log.wait_for(leads) => match status {
                Ok(status) => status.term,
                // Replication has ended; the daemon ends too.
                Err(_) => return,
            },
            () = context.stopping.cancelled() => return,
        };
        let leadership = Arc::new(Leadership::new(term, context.config.lease));
        tracing::info!(term, "leads");
        published.send_replace(Some(Arc::clone(&leadership)));
        let mut loops = JoinSet::new();
        loops.spawn(placement::run(
            Arc::clone(&context),
            Arc::clone(&leadership),
        ));
        loops.spawn(leases::run(Arc::clone(&context), Arc::clone(&leadership)));
        loops.spawn(deadlines::run(Arc::clone(&context)));
        loops.spawn(sweep::run(Arc::clone(&context)));
        loops.spawn(retention::jobs(Arc::clone(&context)));
        loops.spawn(retention::usage(Arc::clone(&context)));
        if let Some(config) = context.config.power.clone() {
            let leadership = Arc::clone(&leadership);
            loops.spawn(power::run(Arc::clone(&context), leadership, config));
        }
        // An error means that replication has ended, which ends the term as well.
        tokio::select! {
            _ = log.wait_for(|status| !leads(status) || status.term != term) => {}
            () = context.stopping.cancelled() => {}
            () = defect(&mut loops) => {}
        }
        tracing::info!(term, "leads no more");
        published.send_replace(None);
        leadership.ended.cancel();
        loops.shutdown().await;
    }
}

fn leads(status: &Status) -> bool {
    status.ready && status.leader == Some(status.member_id)
}

/// Resolves when a loop broke down by a defect. The term then ends, and the same member begins it anew.
async fn defect(loops: &mut JoinSet<()>) {
    while let Some(ended) = loops.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a loop of the leader broke down (a bug); it is started again");
            return;
        }
    }
    // All ended in order: leadership is about to be lost.
    std::future::pending::<()>().await;
}

/// What a loop does after a proposal failed.
enum After {
    /// Try again after a moment.
    Retry,
    /// Another member leads now, or replication has stopped.
    End,
}

fn after(what: &str, error: &ProposeError) -> After {
    match error {
        ProposeError::Overloaded => After::Retry,
        ProposeError::TooLarge { .. } => {
            tracing::error!(%error, what, "a command of the leader itself is too large");
            After::Retry
        }
        ProposeError::NotLeader { .. } | ProposeError::Uncertain | ProposeError::Stopped => {
            tracing::debug!(%error, what, "the leader's loop ends");
            After::End
        }
    }
}

/// How long it is until `at`; nothing when that has passed.
fn until(now: &Timestamp, at: &Timestamp) -> Duration {
    let nanos = |t: &Timestamp| i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos);
    let left = (nanos(at) - nanos(now)).max(0);
    u64::try_from(left).map_or(Duration::MAX, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_never_negative() {
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        assert_eq!(until(&at(5, 0), &at(3, 0)), Duration::ZERO);
        assert_eq!(
            until(&at(5, 900_000_000), &at(6, 0)),
            Duration::from_millis(100)
        );
        assert_eq!(until(&at(0, 0), &at(i64::MAX, 0)), Duration::MAX);
    }
}
