//! How clusters are shown.

use prost_types::Timestamp;
use trainyard_proto::v1::{AllocationState, Cluster, NodeStateCounts, ProvisioningState};

use crate::table::{Details, Table};
use crate::text::{age, ids, last_segment, short, time};

/// `deleting`, or how the allocation stands.
fn state(cluster: &Cluster) -> String {
    if cluster.provisioning_state() == ProvisioningState::Deleting {
        return "deleting".to_owned();
    }
    match cluster.allocation_state() {
        AllocationState::Unspecified => String::new(),
        state => short(state.as_str_name(), "ALLOCATION_STATE_"),
    }
}

fn target(cluster: &Cluster) -> String {
    let Some(scale) = &cluster.scale_settings else {
        return "0".to_owned();
    };
    match (&scale.manual, &scale.auto_scale) {
        (_, Some(auto)) => format!(
            "{} of {}-{}",
            cluster.target_node_count, auto.minimum_node_count, auto.maximum_node_count
        ),
        (Some(manual), None) => manual.target_node_count.to_string(),
        (None, None) => "0".to_owned(),
    }
}

fn class(cluster: &Cluster) -> String {
    match (cluster.vm_size.as_str(), cluster.node_class.as_str()) {
        ("", "") => "any".to_owned(),
        ("", class) => class.to_owned(),
        (size, _) => size.to_owned(),
    }
}

pub(super) fn table(clusters: &[Cluster], several_workspaces: bool, now: &Timestamp) -> String {
    let mut table = Table::new(&[
        "NAME",
        "CLASS",
        "STATE",
        ">TARGET",
        ">NODES",
        ">IDLE",
        ">RUNNING",
        ">PREPARING",
        ">LEAVING",
        ">UNUSABLE",
        "AGE",
    ]);
    for cluster in clusters {
        let counts = cluster.node_state_counts.unwrap_or_default();
        table.row([
            if several_workspaces {
                ids(&cluster.name)
            } else {
                last_segment(&cluster.name).to_owned()
            },
            class(cluster),
            state(cluster),
            target(cluster),
            cluster.current_node_count.to_string(),
            counts.idle_node_count.to_string(),
            counts.running_node_count.to_string(),
            counts.preparing_node_count.to_string(),
            counts.leaving_node_count.to_string(),
            counts.unusable_node_count.to_string(),
            age(cluster.creation_time.as_ref(), now),
        ]);
    }
    table.render()
}

fn counts_text(counts: &NodeStateCounts) -> String {
    let parts = [
        (counts.idle_node_count, "idle"),
        (counts.running_node_count, "running"),
        (counts.preparing_node_count, "preparing"),
        (counts.leaving_node_count, "leaving"),
        (counts.unusable_node_count, "unusable"),
    ];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if shown.is_empty() {
        String::new()
    } else {
        format!(" ({})", shown.join(", "))
    }
}

pub(super) fn details(cluster: &Cluster) -> String {
    let counts = cluster.node_state_counts.unwrap_or_default();
    let mut details = Details::default();
    details
        .add("Name", &cluster.name)
        .add("State", state(cluster))
        .add("Node class", class(cluster))
        .add("Target", target(cluster))
        .add("Waits", &cluster.allocation_reason)
        .add(
            "Nodes",
            format!("{}{}", cluster.current_node_count, counts_text(&counts)),
        )
        .add_all(
            "Holds",
            cluster
                .nodes
                .iter()
                .map(|node| last_segment(node).to_owned()),
        )
        .add("Created", time(cluster.creation_time.as_ref()))
        .add_all(
            "Error",
            cluster
                .errors
                .iter()
                .map(|error| format!("{}: {}", error.code, error.message)),
        );
    details.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_over_workspaces_names_them() {
        let cluster = Cluster {
            name: "workspaces/w/clusters/c".into(),
            current_node_count: 2,
            allocation_state: AllocationState::Steady.into(),
            ..Cluster::default()
        };
        let text = table(std::slice::from_ref(&cluster), true, &Timestamp::default());
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .starts_with("w/c   any    steady"),
            "{text}"
        );
        assert!(table(&[cluster], false, &Timestamp::default()).contains("\nc "));
    }
}
