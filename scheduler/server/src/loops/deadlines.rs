//! Ends attempts that run longer than `constraints.maxWallClockTime`.

use std::sync::Arc;
use std::time::Duration;

use trainyard_proto::store::v1::command::Kind;

use super::{After, after, until};
use crate::context::Context;

/// Changes that come closer together than this are looked at together: finding the next deadline visits all running
/// jobs, and deadlines are whole seconds.
const GATHER: Duration = Duration::from_millis(250);
/// Longest sleep, so that a step of the host's clock is noticed.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs until the leadership is lost.
pub(super) async fn run(context: Arc<Context>) {
    loop {
        let now = context.clock.now();
        let (overdue, next) = {
            let state = context.state();
            (state.overdue(&now), state.next_deadline())
        };
        let some_overdue = !overdue.is_empty();
        for job in overdue {
            tracing::info!(
                job = job.name,
                "maxWallClockTime has passed: the job is ended"
            );
            match context.decide(Kind::TerminateJob(job)).await {
                Ok(Ok(_)) => {}
                Ok(Err(refusal)) => tracing::debug!(%refusal, "an overdue job was gone"),
                Err(error) => match after("overdue job", &error) {
                    After::Retry => break,
                    After::End => return,
                },
            }
        }
        if some_overdue {
            tokio::time::sleep(GATHER).await;
            continue;
        }
        let wait = next.map_or(LONGEST, |at| until(&now, &at).min(LONGEST));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = context.changes.deadlines.notified() => tokio::time::sleep(GATHER).await,
        }
    }
}
