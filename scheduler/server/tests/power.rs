//! Hosts that a script switches on and off: here the script tells this test, which starts and ends an agent.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{FakeAgent, Group, furnish, within};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use trainyard_proto::v1::node_service_client::NodeServiceClient;
use trainyard_proto::v1::*;
use trainyard_scheduler::config::{PowerConfig, Wake};

/// A script that appends its arguments to DIR/log, then does what DIR/then says, if there is such a file.
fn script(dir: &Path) -> PathBuf {
    let file = dir.join("power");
    let text = format!(
        "#!/bin/sh\necho \"$1 $2\" >> {log}\ntest ! -e {then} || . {then}\n",
        log = dir.join("log").display(),
        then = dir.join("then").display()
    );
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

fn log(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn logged(dir: &Path, count: usize) -> Vec<String> {
    within("the script", async {
        loop {
            let lines = log(dir);
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

async fn group(dir: &Path, size: usize, wake_deadline: Duration) -> Group {
    let command = script(dir).display().to_string();
    Group::start_with(size, move |config| {
        config.power = Some(PowerConfig {
            wake: Wake::Command(vec![command.clone(), "on".into()]),
            stop_command: Some(vec![command.clone(), "off".into()]),
            wake_deadline,
            stop_after_idle: Some(Duration::from_millis(500)),
            command_deadline: Duration::from_secs(5),
        });
    })
    .await
}

/// A host: an agent that beats until it is switched off.
struct Host {
    off: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Host {
    async fn on(group: &Group, member: usize) -> Self {
        let channel = group.channel(member, "nodes/node-1");
        let hello = FakeAgent::hello("node-1", "127.0.0.1:1");
        let mut agent = FakeAgent::open(channel, hello).await.unwrap();
        let off = CancellationToken::new();
        let stopped = off.clone();
        let task = tokio::spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_millis(200));
            let mut sequence = 0;
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    _ = beat.tick() => {
                        sequence += 1;
                        agent.send(agent_message::Kind::Heartbeat(Heartbeat { sequence })).await;
                    }
                }
            }
        });
        Self { off, task }
    }

    async fn off(self) {
        self.off.cancel();
        self.task.await.unwrap();
    }
}

async fn node(group: &Group, member: usize) -> Node {
    NodeServiceClient::new(group.admin(member))
        .get_node(GetNodeRequest {
            name: "nodes/node-1".into(),
        })
        .await
        .unwrap()
        .into_inner()
}

async fn becomes(group: &Group, member: usize, state: PowerState) -> Node {
    within(&format!("{state:?}"), async {
        loop {
            let node = node(group, member).await;
            if node.power_state() == state {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_host_is_switched_off_and_on_again_when_a_cluster_needs_it() {
    let dir = TempDir::new().unwrap();
    let group = group(dir.path(), 1, Duration::from_secs(30)).await;
    let host = Host::on(&group, 0).await;
    assert_eq!(logged(dir.path(), 1).await, ["off node-1"]);
    assert_eq!(node(&group, 0).await.power_state(), PowerState::Stopping);
    host.off().await;
    let off = becomes(&group, 0, PowerState::Off).await;
    assert_eq!(off.state(), NodeState::Lost, "{off:?}");

    furnish(&group.admin(0), 1).await;
    assert_eq!(logged(dir.path(), 2).await[1], "on node-1");
    becomes(&group, 0, PowerState::Waking).await;
    let _host = Host::on(&group, 0).await;
    let on = becomes(&group, 0, PowerState::On).await;
    assert_eq!(on.state(), NodeState::Ready);
    within("the cluster", async {
        while node(&group, 0).await.cluster != "workspaces/w/clusters/c" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // Longer than it may be idle in the pool: in a cluster it stays on.
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(log(dir.path()).len(), 2, "{:?}", log(dir.path()));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_cannot_be_switched_on_says_why() {
    let dir = TempDir::new().unwrap();
    let group = group(dir.path(), 1, Duration::from_millis(1_500)).await;
    let host = Host::on(&group, 0).await;
    logged(dir.path(), 1).await;
    host.off().await;
    // The lease outlasts the deadline for switching off, so the host counts as not gone first.
    let failed = becomes(&group, 0, PowerState::Failed).await;
    assert!(
        failed.state_reason.contains("still connected"),
        "{failed:?}"
    );
    group.stop().await;

    let dir = TempDir::new().unwrap();
    let group = self::group(dir.path(), 1, Duration::from_secs(8)).await;
    let host = Host::on(&group, 0).await;
    logged(dir.path(), 1).await;
    host.off().await;
    becomes(&group, 0, PowerState::Off).await;
    std::fs::write(
        dir.path().join("then"),
        "echo the chassis is dark >&2; exit 7\n",
    )
    .unwrap();
    furnish(&group.admin(0), 1).await;
    let failed = becomes(&group, 0, PowerState::Failed).await;
    assert_eq!(failed.state(), NodeState::Unusable);
    for words in [
        "cannot be switched on",
        "exit status: 7",
        "the chassis is dark",
    ] {
        assert!(failed.state_reason.contains(words), "{failed:?}");
    }
    // A retry tries again; now the command works, but no agent comes.
    std::fs::remove_file(dir.path().join("then")).unwrap();
    NodeServiceClient::new(group.admin(0))
        .retry_node(RetryNodeRequest {
            name: "nodes/node-1".into(),
        })
        .await
        .unwrap();
    logged(dir.path(), 3).await;
    let failed = becomes(&group, 0, PowerState::Failed).await;
    assert!(
        failed.state_reason.contains("did not connect within 8 s"),
        "{failed:?}"
    );
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_switches_on_what_is_still_waking() {
    let dir = TempDir::new().unwrap();
    let mut group = group(dir.path(), 3, Duration::from_secs(60)).await;
    let leader = group.leader().await;
    let host = Host::on(&group, leader).await;
    logged(dir.path(), 1).await;
    host.off().await;
    becomes(&group, leader, PowerState::Off).await;
    // The command hangs, and its leader goes.
    std::fs::write(dir.path().join("then"), "exec sleep 600\n").unwrap();
    furnish(&group.admin(leader), 1).await;
    assert_eq!(logged(dir.path(), 2).await[1], "on node-1");
    std::fs::remove_file(dir.path().join("then")).unwrap();
    group.stop_member(leader).await;
    let leader = group.leader().await;
    assert_eq!(logged(dir.path(), 3).await[2], "on node-1");
    let _host = Host::on(&group, leader).await;
    becomes(&group, leader, PowerState::On).await;
    group.stop().await;
}
