//! What those who watch are told of each entry of the log.

#![allow(clippy::unwrap_used, clippy::panic)]

mod world;

use trainyard_core::{Event, EventKind};
use trainyard_proto::store::v1 as store;
use trainyard_proto::store::v1::command::Kind;
use trainyard_proto::v1::*;
use world::World;

fn find<'a>(events: &'a [Event], name: &str) -> &'a Event {
    let mut found = events.iter().filter(|e| e.name == name);
    let first = found.next().unwrap_or_else(|| panic!("{name}: {events:?}"));
    assert!(found.next().is_none(), "{name} has two events: {events:?}");
    first
}

#[test]
fn a_create_an_update_and_a_delete_are_told_apart() {
    let mut world = World::new(1, 0);
    let create = |name: &str| {
        Kind::CreateExperiment(store::CreateExperiment {
            experiment: Some(Experiment {
                name: name.into(),
                uid: "u".into(),
                ..Experiment::default()
            }),
            request_id: String::new(),
        })
    };
    let made = world.apply(create("workspaces/w/experiments/f")).events;
    assert_eq!(
        made,
        [Event {
            name: "workspaces/w/experiments/f".into(),
            kind: EventKind::Created,
            summary: "ready".into()
        }]
    );
    let found = world.apply(create("workspaces/w/experiments/f")).events;
    assert_eq!(found, [], "a repeat changes nothing");
    let refused = world.apply(create("workspaces/none/experiments/f"));
    assert!(refused.reply.is_err() && refused.events.is_empty());

    let job = Job {
        name: world::job("j"),
        uid: "uid-j".into(),
        spec: Some(world::spec(1)),
        ..Job::default()
    };
    let events = world
        .apply(Kind::CreateJob(store::CreateJob {
            job: Some(job),
            request_id: String::new(),
        }))
        .events;
    let event = find(&events, &world::job("j"));
    assert_eq!(
        (event.kind, event.summary.as_str()),
        (EventKind::Created, "queued")
    );

    let plan = store::ApplyPlan {
        starts: vec![store::Start {
            job: world::job("j"),
            uid: "uid-j".into(),
            nodes: vec![store::StartNode {
                node: "nodes/n1".into(),
                whole_node: true,
                ..store::StartNode::default()
            }],
        }],
        ..store::ApplyPlan::default()
    };
    let events = world.apply(Kind::ApplyPlan(plan)).events;
    let event = find(&events, &world::job("j"));
    assert_eq!(event.kind, EventKind::Updated);
    assert_eq!(event.summary, "running on nodes/n1");
    assert!(events.is_sorted_by(|a, b| a.name < b.name), "{events:?}");
}

#[test]
fn a_node_that_joins_and_is_deleted_says_so() {
    let mut world = World::new(0, 0);
    let hello = Hello {
        node: "n9".into(),
        inventory: Some(Inventory::default()),
        ..Hello::default()
    };
    let register = Kind::RegisterNode(store::RegisterNode { hello: Some(hello) });
    let events = world.apply(register.clone()).events;
    let event = find(&events, "nodes/n9");
    assert_eq!(
        (event.kind, event.summary.as_str()),
        (EventKind::Created, "ready in the pool")
    );
    let events = world.apply(register).events;
    assert_eq!(find(&events, "nodes/n9").kind, EventKind::Updated);
    let epoch = world.state.node("nodes/n9").unwrap().session_epoch;
    world.ok(Kind::MarkNodesLost(store::MarkNodesLost {
        nodes: vec![store::LostNode {
            node: "nodes/n9".into(),
            session_epoch: epoch,
        }],
    }));
    let delete = store::Delete {
        name: "nodes/n9".into(),
        ..store::Delete::default()
    };
    let events = world.apply(Kind::DeleteNode(delete)).events;
    let event = find(&events, "nodes/n9");
    assert_eq!(
        (event.kind, event.summary.as_str()),
        (EventKind::Deleted, "deleted")
    );
    assert!(world.state.resource("nodes/n9").is_none());
    assert!(world.state.resource("workspaces/w").is_some());
    assert!(world.state.resource("nonsense").is_none());
}
