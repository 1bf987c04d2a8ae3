//! What the power hook did, and retries of nodes that are unusable.

use trainyard_proto::store::v1::{RetryNode, SetPower};
use trainyard_proto::v1::{NodeSetupPhase, NodeState, PowerState};

use super::{Applied, Context};
use crate::outcome::{Change, Refusal, Reply};
use crate::power;
use crate::state::State;

impl State {
    /// Takes the hook's word, unless the node has moved on since. The reply is the node when it counted.
    pub(super) fn set_power(&mut self, context: &mut Context, command: &SetPower) -> Applied {
        let node = self
            .nodes
            .get(&command.node)
            .ok_or_else(|| Refusal::not_found(&command.node))?;
        let allowed = match command.state() {
            PowerState::Stopping => power::may_stop(self, node),
            PowerState::Waking => node.state() == NodeState::Lost || is_unusable(node),
            PowerState::Unspecified | PowerState::On | PowerState::Off | PowerState::Failed => true,
        };
        if node.power_state() != command.from() || !allowed {
            return Ok(Reply::None);
        }
        let Some(node) = self.nodes.get_mut(&command.node) else {
            return Ok(Reply::None);
        };
        node.set_power_state(command.state());
        node.power_state_transition_time = Some(context.now);
        match command.state() {
            PowerState::Failed => {
                node.state_reason = command.reason.clone();
                // One that could not be switched off still works.
                if node.state() != NodeState::Ready {
                    node.set_state(NodeState::Unusable);
                    node.state_transition_time = Some(context.now);
                }
            }
            PowerState::Waking => {
                node.state_reason = "it is being switched on".to_owned();
            }
            PowerState::Stopping => {
                node.state_reason = "it is being switched off, since it was idle".to_owned();
            }
            PowerState::Unspecified | PowerState::On | PowerState::Off => {}
        }
        context.changed(Change::Node(command.node.clone()));
        context.changed(Change::Placement);
        Ok(self
            .node(&command.node)
            .map_or(Reply::None, |n| Reply::Node(Box::new(n))))
    }

    /// Sets an unusable node up anew, or lets it be switched on again.
    pub(super) fn retry_node(&mut self, context: &mut Context, command: &RetryNode) -> Applied {
        let name = &command.name;
        let node = self
            .nodes
            .get_mut(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        let setup_failed = node
            .setup
            .as_ref()
            .is_some_and(|s| s.phase() == NodeSetupPhase::Failed);
        if node.power_state() == PowerState::Failed {
            // As if it had just been switched off: it is switched on when it is needed.
            let gone = node.state() != NodeState::Ready;
            node.set_power_state(if gone {
                PowerState::Off
            } else {
                PowerState::On
            });
            node.power_state_transition_time = Some(context.now);
            node.state_reason = String::new();
            if gone {
                node.set_state(NodeState::Lost);
                node.state_reason = "it is switched off".to_owned();
                node.state_transition_time = Some(context.now);
            }
            context.changed(Change::Node(name.clone()));
            context.changed(Change::Placement);
        } else if setup_failed && node.state() != NodeState::Lost {
            self.order_setup(context, name);
        } else {
            return Err(Refusal::precondition(
                name,
                format!(
                    "{name} is not unusable, so there is nothing to retry; trainyard node show says how it is"
                ),
            ));
        }
        Ok(self
            .node(name)
            .map_or(Reply::None, |n| Reply::Node(Box::new(n))))
    }
}

fn is_unusable(node: &trainyard_proto::v1::Node) -> bool {
    node.state() == NodeState::Unusable
}
