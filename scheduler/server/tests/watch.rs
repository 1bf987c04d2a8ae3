//! Watches over real sockets: what happens is told once, in order, over the loss of members, and never with a gap.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Group, create_job, furnish, within};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::watch_event::Resource;
use trainyard_proto::v1::watch_service_client::WatchServiceClient;
use trainyard_proto::v1::*;

const JOBS: &str = "workspaces/w/experiments/e/jobs/";

fn request(start_revision: u64, prefixes: &[&str]) -> WatchRequest {
    WatchRequest {
        prefixes: prefixes.iter().map(ToString::to_string).collect(),
        start_revision,
        until_now: false,
    }
}

async fn watch(channel: &Channel, request: WatchRequest) -> Result<Streaming<WatchEvent>, Status> {
    let stream = WatchServiceClient::new(channel.clone())
        .watch(request)
        .await?;
    Ok(stream.into_inner())
}

async fn stale(channel: &Channel, request: WatchRequest) -> Result<Streaming<WatchEvent>, Status> {
    let mut request = Request::new(request);
    request
        .metadata_mut()
        .insert("trainyard-consistency", "stale".parse().unwrap());
    let stream = WatchServiceClient::new(channel.clone())
        .watch(request)
        .await?;
    Ok(stream.into_inner())
}

async fn next(stream: &mut Streaming<WatchEvent>) -> Result<WatchEvent, Status> {
    within("an event", stream.message())
        .await?
        .ok_or_else(|| Status::ok("the end"))
}

/// The next one that is not progress.
async fn event(stream: &mut Streaming<WatchEvent>) -> WatchEvent {
    loop {
        let event = next(stream).await.unwrap();
        if event.r#type() != WatchEventType::Progress {
            return event;
        }
    }
}

/// All of a watch that ends.
async fn all(mut stream: Streaming<WatchEvent>) -> Vec<WatchEvent> {
    let mut events = Vec::new();
    while let Some(event) = within("an event", stream.message()).await.unwrap() {
        events.push(event);
    }
    events
}

async fn delete_job(channel: &Channel, name: &str) {
    JobServiceClient::new(channel.clone())
        .delete_job(DeleteJobRequest {
            name: name.into(),
            ..DeleteJobRequest::default()
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_what_happens_below_its_prefixes() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let mut stream = watch(&admin, request(0, &[JOBS])).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.r#type(), WatchEventType::Progress);
    assert_eq!(first.next_revision, first.revision + 1);

    let job = create_job(&admin, "j").await;
    let created = event(&mut stream).await;
    assert_eq!(created.r#type(), WatchEventType::Created);
    assert_eq!(
        (created.name.as_str(), created.summary.as_str()),
        (job.name.as_str(), "queued")
    );
    assert!(created.revision > first.revision && created.time.is_some());
    let Some(Resource::Job(now)) = created.resource else {
        panic!("no job");
    };
    assert_eq!(now.uid, job.uid);
    delete_job(&admin, &job.name).await;
    let mut last = event(&mut stream).await;
    while last.r#type() != WatchEventType::Deleted {
        assert_eq!(last.name, job.name);
        last = event(&mut stream).await;
    }
    assert_eq!(last.resource, None);

    // The same from the beginning, by a watch that ends.
    let known = WatchRequest {
        until_now: true,
        ..request(1, &[])
    };
    let events = all(watch(&admin, known).await.unwrap()).await;
    assert!(events.is_sorted_by_key(|e| e.revision), "{events:?}");
    let names: BTreeSet<&str> = events.iter().map(|e| e.name.as_str()).collect();
    for name in [
        "workspaces/w",
        "workspaces/w/clusters/c",
        "workspaces/w/experiments/e",
        &job.name,
    ] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    let end = events.last().unwrap();
    assert_eq!(end.r#type(), WatchEventType::Progress);
    assert!(end.revision >= last.revision);

    for bad in [request(0, &["jobs/"]), request(0, &["nodes/"; 101])] {
        let error = watch(&admin, bad).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_resumes_elsewhere_misses_nothing() {
    let mut group = Group::start(3).await;
    let leader = group.leader().await;
    furnish(&group.admin(leader), 0).await;
    let others: Vec<usize> = (0..3).filter(|m| *m != leader).collect();
    // Through a follower, which passes it on.
    let mut stream = watch(&group.admin(others[0]), request(0, &[JOBS]))
        .await
        .unwrap();
    let mut resume = next(&mut stream).await.unwrap().next_revision;
    let before = create_job(&group.admin(leader), "j-00").await;
    let seen = event(&mut stream).await;
    assert_eq!(seen.name, before.name);
    resume = resume.max(seen.next_revision);

    let mut silent = stale(&group.admin(others[1]), request(resume, &[JOBS]))
        .await
        .unwrap();
    group.stop_member(leader).await;
    let ended = loop {
        match next(&mut stream).await {
            Ok(event) => resume = event.next_revision,
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    let leader = group.leader().await;
    let mut wanted: Vec<String> = Vec::new();
    for i in 1..=20 {
        wanted.push(
            create_job(&group.admin(leader), &format!("j-{i:02}"))
                .await
                .name,
        );
    }
    for member in others {
        let mut again = watch(&group.admin(member), request(resume, &[JOBS]))
            .await
            .unwrap();
        let mut names = Vec::new();
        while names.len() < wanted.len() {
            names.push(event(&mut again).await.name);
        }
        assert_eq!(names, wanted, "member {member}");
    }
    let mut names = Vec::new();
    while names.len() < wanted.len() {
        names.push(event(&mut silent).await.name);
    }
    assert_eq!(names, wanted, "a stale watch outlives the leader");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_the_past_says_so() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let context = &group.daemons[0].as_ref().unwrap().context;
    let applied = context.changes.events.applied();
    let mut old = watch(&admin, request(0, &[])).await.unwrap();
    next(&mut old).await.unwrap();
    // As after a restore from a snapshot.
    context.changes.publish_all(applied);
    let overrun = loop {
        match next(&mut old).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(overrun.code(), Code::OutOfRange);
    let details = overrun.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "REVISION_TOO_OLD");
    assert_eq!(info.metadata["oldest_revision"], (applied + 1).to_string());
    let error = watch(&admin, request(2, &[])).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    // Listing again and going on from there works.
    let mut fresh = watch(&admin, request(applied + 1, &[JOBS])).await.unwrap();
    let job = create_job(&admin, "j").await;
    assert_eq!(event(&mut fresh).await.name, job.name);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let group = Group::start(1).await;
    let admin = group.admin(0);
    furnish(&admin, 0).await;
    let slow = watch(&group.admin(0), request(0, &[])).await.unwrap();
    within("jobs", async {
        for i in 0..300 {
            create_job(&admin, &format!("j-{i:03}")).await;
        }
    })
    .await;
    // What it did not read is still there for it, in order.
    let mut slow = slow;
    let mut names = Vec::new();
    while names.len() < 300 {
        names.push(event(&mut slow).await.name);
    }
    assert!(names.is_sorted() && names[299].ends_with("j-299"));
    // A stop ends a watch that nobody reads.
    let idle = watch(&admin, request(1, &[])).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), group.stop())
        .await
        .unwrap();
    drop(idle);
}
