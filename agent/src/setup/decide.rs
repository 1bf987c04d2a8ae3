//! What to do about the node's set-up, decided from the order, what the node holds, and the boot.
//!
//! The scheduler owns which cluster the node is set up for and when it is done anew (the epoch); the agent owns how far
//! it is. An order of a lower epoch than the one that is held is a stale command. An absent order takes everything away.
//!
//! Pure: no clock, no files, no processes.

use trainyard_proto::v1::{NodeSetupOrder, NodeSetupPhase};

/// What the schedulers want.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted<'a> {
    /// No session has brought a view yet.
    Unknown,
    /// The node is to be set up for nothing.
    Nothing,
    /// This.
    Order(&'a NodeSetupOrder),
}

/// What the node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// UUID of the cluster.
    pub cluster_uid: String,
    /// Epoch of the order.
    pub epoch: u64,
    /// Boot of the host for which it was done.
    pub boot_id: String,
    /// How far it is.
    pub phase: NodeSetupPhase,
    /// It failed because a volume could not be mounted, which may pass.
    pub mount_failed: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Rest,
    /// Begin, with nothing there.
    Begin,
    /// End what runs and begin anew; volumes that are still wanted stay mounted.
    Again,
    /// Go on with what was begun.
    Continue,
    /// Try the mounts again after a pause.
    RetryMounts,
    /// End what runs and take everything away.
    Remove,
}

/// Decides.
#[must_use]
pub fn decide(wanted: Wanted<'_>, held: Option<&Held>, boot_id: &str) -> Decision {
    match (wanted, held) {
        (Wanted::Unknown, _) | (Wanted::Nothing, None) => Decision::Rest,
        (Wanted::Nothing, Some(_)) => Decision::Remove,
        (Wanted::Order(_), None) => Decision::Begin,
        (Wanted::Order(order), Some(held)) => {
            if order.cluster_uid != held.cluster_uid {
                // The epoch is an index of the log, so that the higher one is the later order of any cluster.
                if order.epoch < held.epoch {
                    Decision::Rest
                } else {
                    Decision::Remove
                }
            } else if held.phase == NodeSetupPhase::Removing {
                Decision::Remove
            } else if order.epoch < held.epoch {
                Decision::Rest
            } else if order.epoch > held.epoch || held.boot_id != boot_id {
                Decision::Again
            } else {
                match held.phase {
                    NodeSetupPhase::Failed if held.mount_failed => Decision::RetryMounts,
                    NodeSetupPhase::Ready | NodeSetupPhase::Failed => Decision::Rest,
                    NodeSetupPhase::Unspecified
                    | NodeSetupPhase::Preparing
                    | NodeSetupPhase::Removing => Decision::Continue,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Decision::{Again, Begin, Continue, Remove, Rest, RetryMounts};

    fn order(cluster_uid: &str, epoch: u64) -> NodeSetupOrder {
        NodeSetupOrder {
            cluster_uid: cluster_uid.to_owned(),
            epoch,
            ..NodeSetupOrder::default()
        }
    }

    fn held(phase: NodeSetupPhase) -> Held {
        Held {
            cluster_uid: "c1".to_owned(),
            epoch: 5,
            boot_id: "b1".to_owned(),
            phase,
            mount_failed: false,
        }
    }

    const READY: NodeSetupPhase = NodeSetupPhase::Ready;
    const FAILED: NodeSetupPhase = NodeSetupPhase::Failed;
    const PREPARING: NodeSetupPhase = NodeSetupPhase::Preparing;

    #[test]
    fn without_a_view_nothing_changes() {
        assert_eq!(decide(Wanted::Unknown, None, "b1"), Rest);
        for phase in [READY, FAILED, PREPARING] {
            assert_eq!(decide(Wanted::Unknown, Some(&held(phase)), "b1"), Rest);
        }
    }

    #[test]
    fn an_order_is_carried_out_once_per_epoch_and_boot() {
        let order = order("c1", 5);
        let wanted = Wanted::Order(&order);
        assert_eq!(decide(wanted, None, "b1"), Begin);
        assert_eq!(decide(wanted, Some(&held(PREPARING)), "b1"), Continue);
        assert_eq!(decide(wanted, Some(&held(READY)), "b1"), Rest);
        assert_eq!(decide(wanted, Some(&held(FAILED)), "b1"), Rest);
        for phase in [READY, FAILED, PREPARING] {
            assert_eq!(decide(wanted, Some(&held(phase)), "b2"), Again, "{phase:?}");
        }
    }

    #[test]
    fn a_higher_epoch_is_carried_out_anew_and_a_lower_one_is_stale() {
        for phase in [READY, FAILED, PREPARING] {
            let held = held(phase);
            assert_eq!(
                decide(Wanted::Order(&order("c1", 6)), Some(&held), "b1"),
                Again
            );
            assert_eq!(
                decide(Wanted::Order(&order("c1", 4)), Some(&held), "b1"),
                Rest
            );
            assert_eq!(
                decide(Wanted::Order(&order("c0", 4)), Some(&held), "b1"),
                Rest
            );
        }
    }

    #[test]
    fn another_cluster_begins_when_the_first_is_gone() {
        let order = order("c2", 9);
        assert_eq!(
            decide(Wanted::Order(&order), Some(&held(READY)), "b1"),
            Remove
        );
        assert_eq!(decide(Wanted::Order(&order), None, "b1"), Begin);
    }

    #[test]
    fn what_is_not_wanted_goes_and_a_removal_is_finished() {
        for phase in [READY, FAILED, PREPARING, NodeSetupPhase::Removing] {
            assert_eq!(decide(Wanted::Nothing, Some(&held(phase)), "b1"), Remove);
        }
        let order = order("c1", 5);
        let removing = held(NodeSetupPhase::Removing);
        assert_eq!(decide(Wanted::Order(&order), Some(&removing), "b1"), Remove);
    }

    #[test]
    fn a_mount_that_failed_is_tried_again() {
        let order = order("c1", 5);
        let held = Held {
            mount_failed: true,
            ..held(FAILED)
        };
        assert_eq!(
            decide(Wanted::Order(&order), Some(&held), "b1"),
            RetryMounts
        );
    }
}
