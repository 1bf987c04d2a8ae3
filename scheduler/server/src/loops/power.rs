//! Switches hosts on and off as `core` orders: first the new state goes into the log, then the hook runs, and a failure
//! goes into the log as well.
//!
//! The hook runs because of the state, not because of the order: a new leader switches on again what is still `WAKING`.
//! A node that is `STOPPING` is switched off only while it is connected in this term; otherwise it is on its way already,
//! or registers again and is on. It must never run more than [`MAX_HOOKS`] at one time, and none outlives the term.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost_types::Timestamp;
use tokio::task::JoinSet;
use trainyard_core::Reply;
use trainyard_core::power::{self, PowerAction, PowerOrder, PowerPolicy, PowerTask};
use trainyard_proto::store::v1::{SetPower, command::Kind};
use trainyard_proto::v1::PowerState;

use super::{After, after, until};
use crate::config::PowerConfig;
use crate::context::Context;
use crate::leadership::Leadership;
use crate::power::{Host, stop, wake};

/// Most hooks at one time.
const MAX_HOOKS: usize = 16;
/// Changes that come closer together than this are looked at together.
const GATHER: Duration = Duration::from_millis(50);
/// Pause after the log was overloaded.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest sleep, so that a step of the host's clock is noticed.
const LONGEST: Duration = Duration::from_secs(60);

/// A hook that has ended.
struct Ended {
    task: PowerTask,
    result: Result<(), String>,
}

/// Runs until the leadership is lost.
pub(super) async fn run(context: Arc<Context>, leadership: Arc<Leadership>, config: PowerConfig) {
    let policy = PowerPolicy {
        wake_deadline_ms: millis(config.wake_deadline),
        off_after_idle_ms: config.stop_after_idle.map(millis),
    };
    let config = Arc::new(config);
    // By node: since when it is in the state for which the hook was begun.
    let mut begun: HashMap<String, (PowerAction, Timestamp)> = HashMap::new();
    let mut hooks: JoinSet<Ended> = JoinSet::new();
    loop {
        let now = context.clock.now();
        let orders = power::orders(&context.state(), &policy, &now);
        let Some(progress) = follow(&context, &policy, orders).await else {
            return;
        };
        if progress {
            continue;
        }
        let (tasks, next) = {
            let state = context.state();
            (
                power::in_progress(&state),
                power::next_change(&state, &policy, &now),
            )
        };
        begun.retain(|node, key| tasks.iter().any(|t| t.node == *node && key_of(t) == *key));
        for task in tasks {
            if hooks.len() >= MAX_HOOKS {
                break;
            }
            let goes_already =
                task.action == PowerAction::Stop && !leadership.is_connected(&task.node);
            if goes_already || begun.contains_key(&task.node) {
                continue;
            }
            begun.insert(task.node.clone(), key_of(&task));
            hooks.spawn(hook(Arc::clone(&config), task));
        }
        let wait = next.map_or(LONGEST, |at| until(&now, &at).min(LONGEST));
        let ended = tokio::select! {
            () = tokio::time::sleep(wait) => None,
            () = context.changes.power.notified() => {
                tokio::time::sleep(GATHER).await;
                None
            }
            Some(ended) = hooks.join_next() => Some(ended),
        };
        match ended {
            None => {}
            Some(Err(error)) => tracing::error!(%error, "a power hook broke down (a bug)"),
            Some(Ok(ended)) => {
                let current = begun.get(&ended.task.node) == Some(&key_of(&ended.task));
                if !report(&context, ended, current).await {
                    return;
                }
            }
        }
    }
}

async fn hook(config: Arc<PowerConfig>, task: PowerTask) -> Ended {
    let host = Host {
        node: task.node.clone(),
        mac: task.mac.clone(),
        address: task.address.clone(),
    };
    let result = match task.action {
        PowerAction::Wake => wake(&config, &host).await,
        PowerAction::Stop => stop(&config, &host).await,
        PowerAction::GiveUp => Ok(()),
    };
    Ended { task, result }
}

/// Brings the begin of what was ordered into the log. `None`: the leadership is lost; false: nothing came of it.
async fn follow(context: &Context, policy: &PowerPolicy, orders: Vec<PowerOrder>) -> Option<bool> {
    let mut progress = false;
    for order in orders {
        let Some(node) = context.state().node(&order.node) else {
            continue;
        };
        let from = node.power_state();
        let (state, reason) = match order.action {
            PowerAction::Wake => (PowerState::Waking, String::new()),
            PowerAction::Stop => (PowerState::Stopping, String::new()),
            PowerAction::GiveUp => (PowerState::Failed, given_up(from, policy)),
        };
        tracing::info!(node = order.node, action = ?order.action, "power");
        progress |= set(context, order.node, from, state, reason).await?;
    }
    Some(progress)
}

fn given_up(from: PowerState, policy: &PowerPolicy) -> String {
    let seconds = policy.wake_deadline_ms / 1000;
    match from {
        PowerState::Stopping => format!(
            "it was told to switch off and is still connected after {seconds} s; see to power.stop_command, then \
             `trainyard node retry`"
        ),
        _ => format!(
            "it did not connect within {seconds} s after it was switched on; look at the host and its agent, then \
             `trainyard node retry`"
        ),
    }
}

/// Brings a failure into the log. False: the leadership is lost.
async fn report(context: &Context, ended: Ended, current: bool) -> bool {
    let Ended { task, result } = ended;
    let (what, from) = match task.action {
        PowerAction::Stop => ("off", PowerState::Stopping),
        PowerAction::Wake | PowerAction::GiveUp => ("on", PowerState::Waking),
    };
    let Err(why) = result else {
        tracing::info!(node = task.node, "the host was told to switch {what}");
        return true;
    };
    tracing::warn!(node = task.node, why, "the host cannot be switched {what}");
    if !current {
        return true;
    }
    let reason = format!("it cannot be switched {what}: {why}");
    set(context, task.node, from, PowerState::Failed, reason)
        .await
        .is_some()
}

/// `None`: the leadership is lost; false: it was passed over.
async fn set(
    context: &Context,
    node: String,
    from: PowerState,
    state: PowerState,
    reason: String,
) -> Option<bool> {
    let command = SetPower {
        node,
        state: state.into(),
        from: from.into(),
        reason,
    };
    loop {
        match context.decide(Kind::SetPower(command.clone())).await {
            Ok(Ok(reply)) => return Some(reply != Reply::None),
            Ok(Err(refusal)) => {
                tracing::debug!(%refusal, "a change of power was refused");
                return Some(false);
            }
            Err(error) => match after("power", &error) {
                After::Retry => tokio::time::sleep(PAUSE).await,
                After::End => return None,
            },
        }
    }
}

fn key_of(task: &PowerTask) -> (PowerAction, Timestamp) {
    (task.action, task.since)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
