//! §3.4 and §6.5: clusters, their size, and what becomes of jobs.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use trainyard_e2e::cluster::{CLUSTER, Cluster, JobFile, WORKSPACE, text};
use trainyard_e2e::wait_until;

use crate::life::{TIMEOUT, terminate, wait_running};
use crate::sheet::Sheet;

fn show(cluster: &Cluster, name: &str) -> Value {
    cluster
        .json(vec!["cluster", "show", "-w", WORKSPACE, "-n", name])
        .unwrap()
}

fn wait(cluster: &Cluster, what: &str, probe: impl Fn(&Value) -> bool) -> bool {
    wait_until(what, TIMEOUT, || {
        Ok(probe(&show(cluster, CLUSTER)).then_some(()))
    })
    .is_ok()
}

fn count(shown: &Value, pointer: &str) -> u64 {
    shown
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_default()
}

fn steady(nodes: u64) -> impl Fn(&Value) -> bool {
    move |shown| {
        text(shown, "/allocationState") == "steady" && count(shown, "/currentNodeCount") == nodes
    }
}

fn resize(cluster: &Cluster, target: &str, option: &str) {
    cluster
        .command([
            "cluster",
            "resize",
            "-w",
            WORKSPACE,
            "-n",
            CLUSTER,
            "-t",
            target,
            "--deallocation",
            option,
        ])
        .unwrap();
}

pub(crate) fn refused_fields(cluster: &Cluster, sheet: &mut Sheet) {
    for (row, properties, word) in [
        (
            "§3.4 subnet is refused",
            json!({"subnet": {"id": "s"}}),
            "subnet",
        ),
        (
            "§3.4 performanceCountersSettings are refused",
            json!({"nodeSetup": {"performanceCountersSettings": {}}}),
            "performanceCountersSettings",
        ),
        (
            "§3.4 adminUserPassword is refused",
            json!({"userAccountSettings": {"adminUserName": "u", "adminUserPassword": "p"}}),
            "adminUserPassword",
        ),
        (
            "§3.4 adminUserSshPublicKey is refused",
            json!({"userAccountSettings": {"adminUserName": "u", "adminUserSshPublicKey": "k"}}),
            "adminUserSshPublicKey",
        ),
        (
            "§3.4 scaleSettings: exactly one of manual and autoScale",
            json!({"scaleSettings": {"manual": {"targetNodeCount": 1}, "autoScale": {"minimumNodeCount": 0, "maximumNodeCount": 1}}}),
            "autoScale",
        ),
        (
            "§3.4 scaleSettings: not empty",
            json!({"scaleSettings": {}}),
            "scaleSettings",
        ),
        (
            "§3.4 manual.targetNodeCount is required",
            json!({"scaleSettings": {"manual": {}}}),
            "targetNodeCount",
        ),
        (
            "§3.4 autoScale.minimumNodeCount is required",
            json!({"scaleSettings": {"autoScale": {"maximumNodeCount": 1}}}),
            "minimumNodeCount",
        ),
        (
            "§3.4 autoScale: minimum at most maximum",
            json!({"scaleSettings": {"autoScale": {"minimumNodeCount": 2, "maximumNodeCount": 1}}}),
            "minimumNodeCount",
        ),
        (
            "§3.4 vmPriority: dedicated or lowpriority",
            json!({"vmPriority": "cheap"}),
            "vmPriority",
        ),
        (
            "§3.4 setupTask.stdOutErrPathPrefix is required",
            json!({"nodeSetup": {"setupTask": {"commandLine": "true"}}}),
            "stdOutErrPathPrefix",
        ),
        (
            "§3.4 setupTask.secrets are refused",
            json!({"nodeSetup": {"setupTask": {"commandLine": "true", "stdOutErrPathPrefix": "/x", "secrets": [{"name": "a", "value": "b"}]}}}),
            "secrets[0]",
        ),
    ] {
        let path = cluster
            .write(
                "cluster.json",
                &json!({"properties": properties}).to_string(),
            )
            .unwrap();
        let done = cluster
            .attempt([
                "cluster", "create", "-w", WORKSPACE, "-n", "wrong", "-f", &path,
            ])
            .unwrap();
        sheet.refused(row, &done, &[word, "cluster.json:1:"]);
    }
}

pub(crate) fn shrink(cluster: &Cluster, sheet: &mut Sheet) {
    sheet.row(
        "§3.4 steady with the nodes that manual wants",
        wait(cluster, "two nodes", steady(2)),
        &show(cluster, CLUSTER),
    );
    let shown = show(cluster, CLUSTER);
    sheet.equal(
        "§3.4 provisioningState=succeeded",
        text(&shown, "/provisioningState"),
        "succeeded",
    );
    sheet.equal(
        "§3.4 nodeStateCounts.idleNodeCount",
        count(&shown, "/nodeStateCounts/idleNodeCount"),
        2,
    );

    cluster
        .submit("requeued", &JobFile::custom("sleep 600").nodes(2))
        .unwrap();
    wait_running(cluster, "requeued");
    let shown = show(cluster, CLUSTER);
    sheet.equal(
        "§3.4 nodeStateCounts.runningNodeCount",
        count(&shown, "/nodeStateCounts/runningNodeCount"),
        2,
    );
    resize(cluster, "1", "requeue");
    let queued = cluster.wait_job("requeued", "is queued again", |job| {
        text(job, "/executionState") == "queued"
    });
    sheet.row(
        "§3.4 nodeDeallocationOption=requeue",
        queued.is_ok(),
        &queued.err(),
    );
    sheet.row(
        "§3.4 a shrunk cluster is steady",
        wait(cluster, "one node", steady(1)),
        &show(cluster, CLUSTER),
    );
    terminate(cluster, "requeued");

    cluster
        .submit("awaited", &JobFile::custom("sleep 2"))
        .unwrap();
    wait_running(cluster, "awaited");
    resize(cluster, "0", "waitforjobcompletion");
    sheet.equal(
        "§3.4 nodeDeallocationOption=waitforjobcompletion",
        cluster.wait("awaited").unwrap(),
        0,
    );
    sheet.row(
        "§3.4 the awaited node leaves",
        wait(cluster, "no node", steady(0)),
        &show(cluster, CLUSTER),
    );

    resize(cluster, "1", "requeue");
    cluster
        .submit("killed", &JobFile::custom("sleep 600"))
        .unwrap();
    wait_running(cluster, "killed");
    resize(cluster, "0", "terminate");
    cluster.wait("killed").unwrap();
    let job = cluster.show("killed").unwrap();
    sheet.equal(
        "§3.4 nodeDeallocationOption=terminate",
        text(&job, "/executionInfo/errors/0/code"),
        "ClusterShrunk",
    );
}

pub(crate) fn auto_scale(cluster: &Cluster, sheet: &mut Sheet) {
    wait(cluster, "no node", steady(0));
    let auto = [
        "cluster",
        "auto-scale",
        "-w",
        WORKSPACE,
        "-n",
        CLUSTER,
        "--min",
        "0",
        "--max",
        "2",
        "--idle-time",
        "1s",
    ];
    cluster.command(auto).unwrap();
    let shown = show(cluster, CLUSTER);
    sheet.equal(
        "§3.4 PATCH switches manual to autoScale",
        count(&shown, "/scaleSettings/autoScale/maximumNodeCount"),
        2,
    );
    sheet.row(
        "§3.4 autoScale with minimum 0 is steady without nodes",
        steady(0)(&shown),
        &shown,
    );
    cluster
        .submit("grows", &JobFile::custom("true").nodes(2))
        .unwrap();
    sheet.equal(
        "§3.4 autoScale grows for queued jobs",
        cluster.wait("grows").unwrap(),
        0,
    );
    cluster
        .submit("beyond", &JobFile::custom("true").nodes(3))
        .unwrap();
    sheet.row(
        "§3.4 autoScale shrinks when idle",
        wait(cluster, "no node again", steady(0)),
        &show(cluster, CLUSTER),
    );
    // A wrong growth would have been ordered by now.
    thread::sleep(Duration::from_millis(200));
    let job = cluster.show("beyond").unwrap();
    sheet.equal(
        "§6.4 a job beyond the maximum stays queued",
        text(&job, "/executionState"),
        "queued",
    );
    terminate(cluster, "beyond");
    resize(cluster, "2", "requeue");
    sheet.row(
        "§3.4 PATCH switches autoScale to manual",
        wait(cluster, "two nodes", steady(2)),
        &show(cluster, CLUSTER),
    );
}

pub(crate) fn delete(cluster: &Cluster, sheet: &mut Sheet) {
    cluster
        .submit("of-it", &JobFile::custom("sleep 600"))
        .unwrap();
    wait_running(cluster, "of-it");
    let gone = ["cluster", "delete", "-w", WORKSPACE, "-n", CLUSTER, "-y"];
    let done = cluster.attempt(gone).unwrap();
    sheet.refused("§6.5 a cluster with jobs is not deleted", &done, &[CLUSTER]);
    let done = cluster.attempt([&gone[..], &["--force"]].concat()).unwrap();
    sheet.equal(
        "§6.5 a cluster with jobs is deleted by force",
        done.status,
        0,
    );
    cluster.wait("of-it").unwrap();
    let job = cluster.show("of-it").unwrap();
    sheet.equal(
        "§6.5 its jobs fail with ClusterDeleted",
        text(&job, "/executionInfo/errors/0/code"),
        "ClusterDeleted",
    );
    sheet.equal(
        "§6.5 completed jobs survive their cluster",
        text(&cluster.show("grows").unwrap(), "/executionState"),
        "succeeded",
    );
    let made = wait_until("the cluster can be made again", TIMEOUT, || {
        let create = [
            "cluster",
            "create",
            "-w",
            WORKSPACE,
            "-n",
            CLUSTER,
            "-t",
            "2",
            "--vm-priority",
            "lowpriority",
        ];
        Ok(cluster.command(create).ok())
    });
    sheet.row(
        "§3.4 a name is free again after the delete",
        made.is_ok(),
        &made,
    );
    sheet.equal(
        "§3.4 vmPriority=lowpriority",
        text(&show(cluster, CLUSTER), "/vmPriority"),
        "lowpriority",
    );
}
