//! Any sequence of commands keeps the invariants, and the log gives the same bytes again.
//!
//! Commands of every kind, sensible ones and others, over a small set of names, so that they meet. A failing case is
//! shrunk and printed with its commands. `TRAINYARD_PROPERTY_CASES` raises the number of cases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod chaos;

use std::collections::{BTreeMap, BTreeSet};

use chaos::{Chaos, Step, prelude};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use prost::Message;
use trainyard_core::State;
use trainyard_proto::store::v1::Snapshot;
use trainyard_proto::v1::*;

const CASES: u32 = 24;
const STEPS: usize = 160;

fn cases() -> u32 {
    std::env::var("TRAINYARD_PROPERTY_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(CASES)
}

/// The state's bytes without the index of the log.
fn timeless(state: &State) -> Snapshot {
    let mut snapshot = Snapshot::decode(state.to_snapshot().as_slice()).unwrap();
    snapshot.index = 0;
    snapshot
}

#[test]
fn any_sequence_of_commands_keeps_the_invariants() {
    let mut runner = TestRunner::new(Config {
        cases: cases(),
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    });
    let steps = prop::collection::vec(any::<Step>(), 1..STEPS);
    let result = runner.run(&steps, |steps| {
        let mut chaos = Chaos::default();
        history(&mut chaos, &steps).map_err(|why| {
            let log: Vec<String> = chaos
                .log
                .iter()
                .enumerate()
                .map(|(i, c)| format!("{}: {:?}", i + 1, c.kind))
                .collect();
            TestCaseError::fail(format!("{why}\nafter the commands\n{}", log.join("\n")))
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn history(chaos: &mut Chaos, steps: &[Step]) -> Result<(), String> {
    let mut outcomes = Vec::new();
    for step in prelude().iter().chain(steps) {
        let Some(command) = chaos.command(step) else {
            continue;
        };
        let planned = chaos.is_fresh_plan;
        let before = timeless(&chaos.state);
        let index = chaos.log.len() as u64 + 1;
        chaos.log.push(command.clone());
        let outcome = chaos.state.apply(index, &command);
        if chaos.state.index() != index {
            return Err(format!(
                "the revision is {} after entry {index}",
                chaos.state.index()
            ));
        }
        let after = timeless(&chaos.state);
        if let Err(refusal) = &outcome.reply {
            if before != after {
                return Err(format!("a refusal changed the state: {refusal}"));
            }
            if !outcome.changes.is_empty() || !outcome.events.is_empty() {
                return Err(format!("a refusal told of changes: {refusal}"));
            }
        }
        if planned && before == after {
            return Err("a plan that changes nothing would be planned for ever".to_owned());
        }
        let told: BTreeSet<&str> = outcome.events.iter().map(|e| e.name.as_str()).collect();
        if told.len() != outcome.events.len() {
            return Err("two events of one resource".to_owned());
        }
        untold(&before, &after, &told)?;
        invariants(&chaos.state, &after)?;
        outcomes.push(outcome);
    }
    let bytes = chaos.state.to_snapshot();
    let half = chaos.log.len() / 2;
    let mut again = State::default();
    for (i, command) in chaos.log.iter().enumerate() {
        if i == half {
            // A snapshot in the middle of the log must make no difference, neither to the state nor to any answer.
            again = State::from_snapshot(&again.to_snapshot()).map_err(|e| e.to_string())?;
        }
        let outcome = again.apply(i as u64 + 1, command);
        if outcome != outcomes[i] {
            return Err(format!(
                "entry {} gave {:?} and gives {outcome:?} when it is replayed",
                i + 1,
                outcomes[i]
            ));
        }
    }
    if again.to_snapshot() != bytes {
        return Err("the replayed log gives other bytes".to_owned());
    }
    Ok(())
}

/// Every resource that was made, changed or removed must be in an event.
fn untold(before: &Snapshot, after: &Snapshot, told: &BTreeSet<&str>) -> Result<(), String> {
    fn compare<T: PartialEq>(
        before: &[T],
        after: &[T],
        name: fn(&T) -> &str,
        told: &BTreeSet<&str>,
    ) -> Result<(), String> {
        let old: BTreeMap<&str, &T> = before.iter().map(|r| (name(r), r)).collect();
        let new: BTreeMap<&str, &T> = after.iter().map(|r| (name(r), r)).collect();
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for name in names {
            if old.get(name) != new.get(name) && !told.contains(name) {
                return Err(format!("{name} changed without an event"));
            }
        }
        Ok(())
    }
    compare(&before.workspaces, &after.workspaces, |r| &r.name, told)?;
    compare(&before.file_servers, &after.file_servers, |r| &r.name, told)?;
    compare(&before.experiments, &after.experiments, |r| &r.name, told)?;
    compare(&before.jobs, &after.jobs, |r| &r.name, told)
}

fn invariants(state: &State, snapshot: &Snapshot) -> Result<(), String> {
    let bytes = state.to_snapshot();
    let copy = State::from_snapshot(&bytes).map_err(|e| e.to_string())?;
    if copy.to_snapshot() != bytes {
        return Err("a snapshot does not give itself again".to_owned());
    }
    if copy != *state {
        return Err(format!(
            "the indexes do not follow from the resources:\n{copy:?}\nand\n{state:?}"
        ));
    }
    parents(snapshot)?;
    clusters(state)?;
    gpus(snapshot)
}

/// No child without its parent.
fn parents(snapshot: &Snapshot) -> Result<(), String> {
    let workspaces: BTreeSet<&str> = snapshot
        .workspaces
        .iter()
        .map(|w| w.name.as_str())
        .collect();
    let experiments: BTreeSet<&str> = snapshot
        .experiments
        .iter()
        .map(|e| e.name.as_str())
        .collect();
    let clusters: BTreeSet<&str> = snapshot.clusters.iter().map(|c| c.name.as_str()).collect();
    let parent_of = |name: &str| name.rsplitn(3, '/').nth(2).unwrap_or_default().to_owned();
    let children = snapshot
        .clusters
        .iter()
        .map(|c| &c.name)
        .chain(snapshot.file_servers.iter().map(|f| &f.name))
        .chain(snapshot.experiments.iter().map(|e| &e.name));
    for name in children {
        if !workspaces.contains(parent_of(name).as_str()) {
            return Err(format!("{name} has no workspace"));
        }
    }
    for job in &snapshot.jobs {
        if !experiments.contains(parent_of(&job.name).as_str()) {
            return Err(format!("{} has no experiment", job.name));
        }
    }
    for quota in &snapshot.quotas {
        if let Some(workspace) = quota.name.strip_suffix("/quota")
            && !workspaces.contains(workspace)
        {
            return Err(format!("{} limits a workspace that is gone", quota.name));
        }
    }
    for node in &snapshot.nodes {
        if !node.cluster.is_empty() && !clusters.contains(node.cluster.as_str()) {
            return Err(format!(
                "{} is in {}, which is gone",
                node.name, node.cluster
            ));
        }
    }
    Ok(())
}

/// No node in two clusters; counts add up.
fn clusters(state: &State) -> Result<(), String> {
    let mut held = BTreeSet::new();
    for cluster in state.clusters("workspaces/-", "", usize::MAX) {
        for name in &cluster.nodes {
            if !held.insert(name.clone()) {
                return Err(format!("{name} is in two clusters"));
            }
            let node = state.node(name).ok_or_else(|| format!("{name} is gone"))?;
            if node.cluster != cluster.name {
                return Err(format!("{name} says that it is in {:?}", node.cluster));
            }
        }
        let counts = cluster.node_state_counts.unwrap_or_default();
        let sum = counts.idle_node_count
            + counts.running_node_count
            + counts.preparing_node_count
            + counts.unusable_node_count
            + counts.leaving_node_count;
        if sum != cluster.current_node_count || cluster.nodes.len() != sum as usize {
            return Err(format!(
                "{}: {counts:?} do not add up to {}",
                cluster.name, cluster.current_node_count
            ));
        }
    }
    for node in state.nodes("", usize::MAX) {
        if !node.cluster.is_empty() && !held.contains(&node.name) {
            return Err(format!("{} is in no cluster's list", node.name));
        }
    }
    Ok(())
}

/// No GPU, and no whole node, in two allocations.
fn gpus(snapshot: &Snapshot) -> Result<(), String> {
    let mut taken: BTreeMap<(&str, u32), &str> = BTreeMap::new();
    let mut whole: BTreeMap<&str, &str> = BTreeMap::new();
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for job in &snapshot.jobs {
        let Some(attempt) = job.attempts.last() else {
            continue;
        };
        for part in &attempt.nodes {
            let phase = part
                .status
                .as_ref()
                .map_or(AttemptNodePhase::Unspecified, |s| s.phase());
            if attempt.phase() == AttemptPhase::Ended
                || matches!(phase, AttemptNodePhase::Cleaned | AttemptNodePhase::Lost)
            {
                continue;
            }
            *parts.entry(&part.node).or_default() += 1;
            if part.whole_node {
                whole.insert(&part.node, &job.name);
            }
            for gpu in &part.gpus {
                if let Some(other) = taken.insert((&part.node, *gpu), &job.name) {
                    return Err(format!(
                        "GPU {gpu} of {} is held by {other} and {}",
                        part.node, job.name
                    ));
                }
            }
        }
    }
    for (node, job) in whole {
        if parts[node] > 1 {
            return Err(format!("{node} is wholly held by {job}, and by others"));
        }
    }
    Ok(())
}
