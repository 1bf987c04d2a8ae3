//! The set-up of nodes: volumes of the cluster, the setup task as root, its logs, its failures, and a reboot.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use trainyard_e2e::cluster::{Api, CLUSTER, Cluster, JobFile, WORKSPACE, text};
use trainyard_proto::v1::RetryNodeRequest;
use trainyard_proto::v1::node_service_client::NodeServiceClient;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a workspace that binds the share `logs`, an experiment, and a cluster of one node that runs a setup task.
fn open(cluster: &Cluster, command: &str) {
    cluster.open_workspace(0).unwrap();
    let gone = ["cluster", "delete", "-w", WORKSPACE, "-n", CLUSTER, "-y"];
    cluster.command(gone).unwrap();
    let file = json!({ "properties": {
        "vmSize": "gpu4-declared",
        "scaleSettings": { "manual": { "targetNodeCount": 1 } },
        "userAccountSettings": {},
        "nodeSetup": {
            "setupTask": {
                "commandLine": command,
                "environmentVariables": [{ "name": "GREETING", "value": "hello" }],
                "stdOutErrPathPrefix": "$AZ_BATCHAI_MOUNT_ROOT/share",
            },
            "mountVolumes": { "azureFileShares": [{
                "azureFileUrl": "https://account.file.core.windows.net/logs",
                "relativeMountPath": "share",
            }]},
        },
    }});
    let path = cluster.write("cluster.json", &file.to_string()).unwrap();
    let create = [
        "cluster", "create", "-w", WORKSPACE, "-n", CLUSTER, "-f", &path,
    ];
    // Between the two the cluster of the rig may still be on its way out.
    trainyard_e2e::wait_until("the cluster is made", CALL_TIMEOUT, || {
        Ok(cluster.command(create).ok())
    })
    .unwrap();
}

fn show(cluster: &Cluster) -> Value {
    cluster
        .json(vec!["cluster", "show", "-w", WORKSPACE, "-n", CLUSTER])
        .unwrap()
}

/// Where the setup task's logs lie.
fn logs(cluster: &Cluster) -> PathBuf {
    let shown = show(cluster);
    let uid = text(&shown, "/uid");
    assert!(!uid.is_empty(), "{shown:#}");
    let segment = format!("workspaces/{WORKSPACE}/clusters/{CLUSTER}/{uid}");
    cluster.logs().join(segment)
}

fn runs(cluster: &Cluster) -> usize {
    let text = fs::read_to_string(cluster.logs().join("runs")).unwrap_or_default();
    text.lines().count()
}

const COUNT: &str = "echo run >>$AZ_BATCHAI_MOUNT_ROOT/share/runs";

#[test]
fn a_node_takes_jobs_once_its_setup_task_has_ended_and_again_after_a_retry() {
    let cluster = Cluster::builder().start().unwrap();
    let command = format!(
        "{COUNT}; echo $GREETING; id -u; [ -e $AZ_BATCHAI_MOUNT_ROOT/share/good ] || {{ echo no drive >&2; exit 7; }}"
    );
    open(&cluster, &command);
    cluster.wait_node("node-1", "unusable").unwrap();
    let node = cluster.show_node("node-1").unwrap();
    let reason = text(&node, "/stateReason");
    assert!(
        reason.contains("status 7") && reason.contains("no drive"),
        "{node:#}"
    );
    assert!(show(&cluster).to_string().contains("NodeSetupTaskFailed"));
    let log = |name: &str| fs::read_to_string(logs(&cluster).join(name)).unwrap();
    assert_eq!(log("stdout-node-1.txt"), "hello\n0\n");
    assert_eq!(log("stderr-node-1.txt"), "no drive\n");
    assert!(log("execution-node-1.log").contains("exited with status 7"));
    assert_eq!(runs(&cluster), 1);

    fs::write(cluster.logs().join("good"), "").unwrap();
    let api = Api::new(cluster.client_config(), CALL_TIMEOUT).unwrap();
    api.call(|channel| async move {
        let request = RetryNodeRequest {
            name: "nodes/node-1".to_owned(),
        };
        NodeServiceClient::new(channel).retry_node(request).await
    })
    .unwrap();
    cluster.wait_node("node-1", "ready").unwrap();
    assert_eq!(runs(&cluster), 2);

    let job = JobFile::custom("cat $AZ_BATCHAI_MOUNT_ROOT/share/runs");
    cluster.submit("after", &job).unwrap();
    assert_eq!(cluster.wait("after").unwrap(), 0);
    assert_eq!(cluster.log("after", "stdout.txt").unwrap(), "run\nrun\n");
    // A job neither repeats the set-up nor takes its volume away.
    cluster.submit("again", &job).unwrap();
    assert_eq!(cluster.wait("again").unwrap(), 0);
    assert_eq!(runs(&cluster), 2);
}

#[test]
fn a_reboot_needs_the_set_up_again() {
    let mut cluster = Cluster::builder().nodes(0).machines(1).start().unwrap();
    open(&cluster, COUNT);
    cluster.wait_node("machine-1", "ready").unwrap();
    let first = JobFile::custom("cat $AZ_BATCHAI_MOUNT_ROOT/share/runs");
    cluster.submit("before", &first).unwrap();
    assert_eq!(cluster.wait("before").unwrap(), 0);
    let machine = cluster.machine("machine-1");
    machine.uml.kill().unwrap();
    machine.uml.power_on().unwrap();
    machine.start_agent().unwrap();
    cluster.submit("after", &first).unwrap();
    assert_eq!(cluster.wait("after").unwrap(), 0);
    assert_eq!(cluster.log("after", "stdout.txt").unwrap(), "run\nrun\n");
}
