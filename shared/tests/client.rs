//! The client against schedulers that refuse, vanish, freeze and break off.
// Helpers stand outside of the test functions that clippy knows.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Relay, Scheduler, authority, client, dead, serve};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use trainyard_proto::v1::job_service_client::JobServiceClient;
use trainyard_proto::v1::member_service_client::MemberServiceClient;
use trainyard_proto::v1::{
    DeleteJobRequest, ExecutionState, Job, ListMembersRequest, StreamLogsRequest, WatchEvent,
    WatchEventType, WatchRequest,
};
use trainyard_shared::client::Client;
use trainyard_shared::reason;
use trainyard_shared::tls::{Authority, Role};

const LONG: Duration = Duration::from_secs(20);

async fn list(client: &Client) -> Result<String, Status> {
    let reply = client
        .unary(|channel| async move {
            MemberServiceClient::new(channel)
                .list_members(ListMembersRequest {})
                .await
        })
        .await?;
    Ok(reply.cluster_id)
}

async fn delete(client: &Client) -> Result<(), Status> {
    client
        .delete(|channel| async move {
            JobServiceClient::new(channel)
                .delete_job(DeleteJobRequest::default())
                .await
        })
        .await
}

async fn member(authority: &Authority, scheduler: &Scheduler) -> SocketAddr {
    serve(
        &authority.issue(&Role::Member(1)).unwrap(),
        scheduler.clone(),
    )
    .await
}

fn leadership_lost(domain: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason::LEADERSHIP_LOST, domain, HashMap::new());
    Status::with_error_details(Code::Aborted, "the leader changed", details)
}

#[tokio::test]
async fn a_dead_scheduler_is_passed_over() {
    let authority = authority();
    let alive = member(&authority, &Scheduler::default()).await;
    let client = client(&authority, &[dead().await, dead().await, alive], LONG);
    for _ in 0..3 {
        assert_eq!(list(&client).await.unwrap(), "0f0e client/admin");
    }
}

#[tokio::test]
async fn a_scheduler_that_swallows_everything_is_passed_over_quickly() {
    let authority = authority();
    let alive = member(&authority, &Scheduler::default()).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = [silent.local_addr().unwrap(), alive];
    for _ in 0..4 {
        let client = client(&authority, &servers, LONG);
        let begun = Instant::now();
        list(&client).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(1500));
    }
}

#[tokio::test]
async fn what_may_pass_is_repeated_and_answers_are_not() {
    let authority = authority();
    for (status, calls, expected) in [
        (Status::unavailable("no leader"), 2, None),
        (leadership_lost(reason::DOMAIN), 2, None),
        (leadership_lost("elsewhere"), 1, Some(Code::Aborted)),
        (Status::aborted("etag"), 1, Some(Code::Aborted)),
        (Status::not_found("job"), 1, Some(Code::NotFound)),
        (Status::internal("bug"), 1, Some(Code::Internal)),
        (Status::cancelled("no"), 1, Some(Code::Cancelled)),
        (Status::unknown("what"), 1, Some(Code::Unknown)),
        (
            Status::deadline_exceeded("slow"),
            1,
            Some(Code::DeadlineExceeded),
        ),
    ] {
        let scheduler = Scheduler {
            refusals: Arc::new(Mutex::new(vec![status.clone()])),
            ..Default::default()
        };
        let address = member(&authority, &scheduler).await;
        let result = list(&client(&authority, &[address], LONG)).await;
        assert_eq!(
            result.err().map(|status| status.code()),
            expected,
            "{status}"
        );
        assert_eq!(scheduler.calls.load(Ordering::SeqCst), calls, "{status}");
    }
}

#[tokio::test]
async fn a_delete_whose_answer_was_lost_counts() {
    let authority = authority();
    for (answers, expected) in [
        (vec![Status::not_found("none")], Some(Code::NotFound)),
        (
            vec![Status::unavailable("lost"), Status::not_found("none")],
            None,
        ),
        (vec![], None),
    ] {
        let scheduler = Scheduler {
            deletes: Arc::new(Mutex::new(answers)),
            ..Default::default()
        };
        let address = member(&authority, &scheduler).await;
        let result = delete(&client(&authority, &[address], LONG)).await;
        assert_eq!(result.err().map(|status| status.code()), expected);
    }
}

#[tokio::test]
async fn when_nobody_answers_the_error_names_all() {
    let authority = authority();
    let servers = [dead().await, dead().await];
    let client = client(&authority, &servers, Duration::from_millis(700));
    let begun = Instant::now();
    let status = list(&client).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(status.code(), Code::Unavailable);
    for server in servers {
        assert!(status.message().contains(&server.to_string()), "{status}");
    }
    assert!(status.message().contains("refused"), "{status}");
}

fn log(length: usize) -> Arc<Vec<u8>> {
    // No two places look alike, so that a gap or a repeat shows.
    let bytes: Vec<u8> = (0..length as u32 / 4).flat_map(u32::to_le_bytes).collect();
    Arc::new(bytes)
}

#[tokio::test]
async fn logs_go_on_with_the_next_byte_after_cuts() {
    let authority = authority();
    let scheduler = Scheduler {
        log: log(2_000_000),
        overlap: 12_345,
        ..Default::default()
    };
    let server = member(&authority, &scheduler).await;
    let relay = Relay::new(server, vec![100_000, 7_000, 555_555, 3_000]).await;
    let client = client(&authority, &[relay.address], LONG);
    let mut stream = client.stream_logs(StreamLogsRequest {
        name: "workspaces/w/experiments/e/jobs/j".to_owned(),
        offset: 5,
        ..Default::default()
    });
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        assert_eq!(chunk.offset, 5 + bytes.len() as u64);
        assert!(!chunk.data.is_empty());
        bytes.extend_from_slice(&chunk.data);
    }
    assert!(bytes == scheduler.log[5..], "{} bytes", bytes.len());
    let requests = scheduler.log_requests.lock().unwrap();
    assert!(requests.len() >= 3, "{}", requests.len());
    // Later requests stay with the attempt and file of the first answer.
    let last = requests.last().unwrap();
    assert_eq!((last.attempt, last.file.as_str()), (3, "stdout.txt"));
}

#[tokio::test]
async fn a_frozen_scheduler_is_noticed() {
    let authority = authority();
    let scheduler = Scheduler {
        log: log(10_000_000),
        ..Default::default()
    };
    let server = member(&authority, &scheduler).await;
    let relay = Relay::new(server, vec![]).await;
    let client = client(&authority, &[relay.address], LONG);
    let mut stream = client.stream_logs(StreamLogsRequest::default());
    let mut bytes = stream.message().await.unwrap().unwrap().data.to_vec();
    // Nothing is closed, nothing comes: only the pings tell.
    relay.frozen.store(1, Ordering::SeqCst);
    let begun = Instant::now();
    while let Some(chunk) = stream.message().await.unwrap() {
        bytes.extend_from_slice(&chunk.data);
    }
    // Four seconds, and time for a busy machine.
    assert!(begun.elapsed() < LONG);
    assert!(bytes == *scheduler.log, "{} bytes", bytes.len());
    assert!(scheduler.log_requests.lock().unwrap().len() > 1);
}

#[tokio::test]
async fn a_gap_in_a_log_is_an_error() {
    let authority = authority();
    let scheduler = Scheduler {
        log: log(40_000),
        gap: 1,
        ..Default::default()
    };
    let server = member(&authority, &scheduler).await;
    let client = client(&authority, &[server], LONG);
    let mut stream = client.stream_logs(StreamLogsRequest::default());
    assert_eq!(stream.message().await.unwrap_err().code(), Code::DataLoss);
}

fn state(etag: &str, state: ExecutionState) -> Job {
    Job {
        etag: etag.to_owned(),
        execution_state: state.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn watching_goes_on_until_the_job_has_ended() {
    let authority = authority();
    let scheduler = Scheduler::default();
    let queued = state("1", ExecutionState::Queued);
    let running = state("2", ExecutionState::Running);
    let done = state("3", ExecutionState::Succeeded);
    *scheduler.watches.lock().unwrap() = vec![
        vec![queued.clone()],
        vec![queued.clone(), running.clone()],
        vec![running.clone(), done.clone()],
    ];
    let server = member(&authority, &scheduler).await;
    let client = client(&authority, &[server], LONG);
    let mut stream = client.watch_job("workspaces/w/experiments/e/jobs/j");
    let mut seen = Vec::new();
    while let Some(job) = stream.message().await.unwrap() {
        seen.push(job.etag);
    }
    assert_eq!(seen, ["1", "2", "3"]);

    let mut stream = client.watch_job("gone");
    assert_eq!(stream.message().await.unwrap_err().code(), Code::NotFound);
    assert!(stream.message().await.unwrap().is_none());
}

fn change(revision: u64, name: &str) -> WatchEvent {
    WatchEvent {
        revision,
        r#type: WatchEventType::Updated.into(),
        name: name.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_watch_goes_on_without_gap_or_repeat_until_its_revision_is_forgotten() {
    let authority = authority();
    // A scheduler that ends its stream in the middle of revision 5, then one that sends that revision whole.
    let scheduler = Scheduler {
        changes: Arc::new(Mutex::new(vec![
            vec![change(3, "nodes/a"), change(5, "nodes/a")],
            vec![
                change(5, "nodes/a"),
                change(5, "nodes/b"),
                change(6, "nodes/a"),
            ],
        ])),
        ..Default::default()
    };
    let address = member(&authority, &scheduler).await;
    let mut events = client(&authority, &[address], LONG).watch(WatchRequest {
        prefixes: vec!["nodes/".to_owned()],
        start_revision: 2,
        ..Default::default()
    });
    let mut seen = Vec::new();
    let end = loop {
        match events.message().await {
            Ok(Some(event)) => seen.push((event.revision, event.name)),
            Ok(None) => panic!("a watch does not end by itself"),
            Err(status) => break status,
        }
    };
    let expected = [
        (3, "nodes/a"),
        (5, "nodes/a"),
        (5, "nodes/b"),
        (6, "nodes/a"),
    ];
    assert_eq!(
        seen,
        expected.map(|(revision, name)| (revision, name.to_owned()))
    );
    assert_eq!(end.code(), Code::OutOfRange);
    let asked: Vec<u64> = scheduler
        .change_requests
        .lock()
        .unwrap()
        .iter()
        .map(|request| request.start_revision)
        .collect();
    assert_eq!(asked, [2, 5, 6]);
}
