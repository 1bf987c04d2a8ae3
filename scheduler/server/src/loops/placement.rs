//! Places jobs: plans on the state as it is, proposes the plan, and looks again, until there is nothing to do. Woken by
//! changes, and when time alone may change the plan (an idle delay, a period of a limit).
//!
//! One plan is on its way at a time. `apply` verifies each part of it again, so a plan that is out of date by then does no
//! harm. It must never propose the same plan twice in a row: what did not change the state the first time will not the
//! second time.

use std::sync::Arc;
use std::time::Duration;

use trainyard_core::placement;
use trainyard_proto::store::v1::{ApplyPlan, command::Kind};

use super::{After, after, until};
use crate::context::Context;
use crate::leadership::Leadership;

/// Pause after the log was overloaded.
const PAUSE: Duration = Duration::from_millis(20);

/// Longest sleep, so that a step of the host's clock is noticed.
const LONGEST: Duration = Duration::from_secs(60);
/// Shortest sleep: what time alone changes is not urgent to the millisecond.
const SHORTEST: Duration = Duration::from_millis(100);

/// Runs until the leadership is lost.
pub(super) async fn run(context: Arc<Context>, leadership: Arc<Leadership>) {
    let mut last = ApplyPlan::default();
    loop {
        let (plan, wait) = match plan(&context, &leadership).await {
            Ok(planned) => planned,
            Err(error) => {
                tracing::error!(%error, "placement broke down (a bug); it looks again at the next change");
                (ApplyPlan::default(), LONGEST)
            }
        };
        let nothing = placement::is_empty(&plan);
        if !nothing && plan == last {
            tracing::error!(
                starts = plan.starts.len(),
                assignments = plan.assignments.len(),
                releases = plan.releases.len(),
                targets = plan.targets.len(),
                "a plan had no effect (a bug); placement waits for a change"
            );
        }
        if nothing || plan == last {
            last = ApplyPlan::default();
            tokio::select! {
                () = context.changes.placement.notified() => {}
                () = tokio::time::sleep(wait.max(SHORTEST)) => {}
            }
            continue;
        }
        last = plan.clone();
        match context.decide(Kind::ApplyPlan(plan)).await {
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => tracing::warn!(%refusal, "a plan was refused"),
            Err(error) => match after("plan", &error) {
                After::Retry => {
                    last = ApplyPlan::default();
                    tokio::time::sleep(PAUSE).await;
                }
                After::End => return,
            },
        }
    }
}

/// A plan, and how long until time alone may change it. On a thread of its own: a pass over a long queue takes a while, and nobody else should wait for it.
async fn plan(
    context: &Arc<Context>,
    leadership: &Arc<Leadership>,
) -> Result<(ApplyPlan, Duration), tokio::task::JoinError> {
    let context = Arc::clone(context);
    let leadership = Arc::clone(leadership);
    tokio::task::spawn_blocking(move || {
        let state = context.state();
        let unresponsive = leadership.unresponsive(&state);
        let now = context.clock.now();
        let wait = placement::next_change(&state, &now).map_or(LONGEST, |at| until(&now, &at));
        (
            placement::plan(&state, &unresponsive, &now),
            wait.min(LONGEST),
        )
    })
    .await
}
