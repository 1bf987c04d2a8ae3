//! §6: states, results, scheduling, deletes.

use std::time::Duration;

use serde_json::{Value, json};
use trainyard_e2e::cluster::{Cluster, JobFile, in_experiment, text};
use trainyard_e2e::wait_until;

use crate::sheet::Sheet;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

fn code(job: &Value) -> &str {
    text(job, "/executionInfo/errors/0/code")
}

pub(crate) fn wait_running(cluster: &Cluster, name: &str) {
    let running = |job: &Value| {
        text(job, "/attempts/0/phase") == "run" && text(job, "/executionState") == "running"
    };
    cluster.wait_job(name, "runs", running).unwrap();
}

pub(crate) fn terminate(cluster: &Cluster, name: &str) -> i32 {
    cluster
        .attempt(in_experiment(&["job", "terminate"], &["-n", name]))
        .unwrap()
        .status
}

pub(crate) fn states_and_errors(cluster: &Cluster, sheet: &mut Sheet) {
    cluster.submit("three", &JobFile::custom("exit 3")).unwrap();
    let prepared =
        JobFile::custom("touch $AZ_BATCHAI_JOB_MOUNT_ROOT/logs/ran").preparation("exit 4");
    cluster.submit("prep", &prepared).unwrap();
    sheet.equal(
        "§6.2 exit N gives exitCode N",
        cluster.wait("three").unwrap(),
        3,
    );
    let job = cluster.show("three").unwrap();
    sheet.equal(
        "§6.2 exit N gives failed",
        text(&job, "/executionState"),
        "failed",
    );
    sheet.equal("§6.2 exit N gives JobFailed", code(&job), "JobFailed");
    sheet.equal(
        "§6.1 user failures are not retried",
        job["attempts"].as_array().map(Vec::len),
        Some(1),
    );
    sheet.equal(
        "§6.2 prep exits N gives exitCode N",
        cluster.wait("prep").unwrap(),
        4,
    );
    let job = cluster.show("prep").unwrap();
    sheet.equal(
        "§6.2 prep exits N gives JobPreparationFailed",
        code(&job),
        "JobPreparationFailed",
    );
    sheet.row(
        "§6.2 the command of a job whose preparation failed is not run",
        !cluster.logs().join("ran").exists(),
        &job,
    );
    sheet.equal(
        "§6.2 terminating a completed job is a no-op",
        terminate(cluster, "three"),
        0,
    );
    sheet.equal(
        "§6.2 a completed job stays as it is",
        text(&cluster.show("three").unwrap(), "/executionState"),
        "failed",
    );

    cluster
        .submit("long", &JobFile::custom("sleep 600"))
        .unwrap();
    wait_running(cluster, "long");
    terminate(cluster, "long");
    let status = cluster.wait("long").unwrap();
    sheet.row(
        "§11 waiting for a terminated job does not succeed",
        status != 0,
        &status,
    );
    let job = cluster.show("long").unwrap();
    sheet.equal(
        "§6.2 a terminated job is failed",
        text(&job, "/executionState"),
        "failed",
    );
    sheet.equal(
        "§6.2 a terminated job has JobTerminated",
        code(&job),
        "JobTerminated",
    );
    sheet.equal(
        "§6.2 a terminated job has no exitCode",
        job.pointer("/executionInfo/exitCode"),
        None,
    );

    let limited =
        JobFile::custom("sleep 600").set("constraints", json!({"maxWallClockTime": "PT1S"}));
    cluster.submit("limited", &limited).unwrap();
    cluster.wait("limited").unwrap();
    let job = cluster.show("limited").unwrap();
    sheet.equal(
        "§6.4 maxWallClockTime ends the job",
        text(&job, "/executionState"),
        "failed",
    );
    sheet.equal(
        "§6.4 maxWallClockTime has a code of its own",
        code(&job),
        "JobWallClockTimeExceeded",
    );

    let file = JobFile::custom("true").set("mountVolumes", json!({
        "azureFileShares": [{"azureFileUrl": "https://a.file.core.windows.net/logs", "relativeMountPath": "logs"}],
        "unmanagedFileSystems": [{"mountCommand": "false", "relativeMountPath": "bad"}],
    }));
    cluster.submit("unmountable", &file).unwrap();
    cluster.wait("unmountable").unwrap();
    let job = cluster.show("unmountable").unwrap();
    sheet.equal(
        "§6.2 a volume that cannot be mounted gives a mount error",
        code(&job),
        "MountError",
    );

    let retried = JobFile::custom("n=$(cat $AZ_BATCHAI_OUTPUT_O/n 2>/dev/null); echo x >>$AZ_BATCHAI_OUTPUT_O/n; [ -n \"$n\" ]")
        .set("outputDirectories", json!([{"id": "O", "pathPrefix": "$AZ_BATCHAI_JOB_MOUNT_ROOT/logs"}]))
        .set("constraints", json!({"maxRetryCount": 1}));
    cluster.submit("retried", &retried).unwrap();
    sheet.equal(
        "§6.1 constraints.maxRetryCount queues a failed job again",
        cluster.wait("retried").unwrap(),
        0,
    );
    let job = cluster.show("retried").unwrap();
    sheet.equal(
        "§6.1 each run is an attempt",
        job["attempts"].as_array().map(Vec::len),
        Some(2),
    );
}

pub(crate) fn queue(cluster: &Cluster, sheet: &mut Sheet) {
    cluster
        .submit("large", &JobFile::custom("true").nodes(3))
        .unwrap();
    // Both nodes are held, so what follows is queued.
    cluster
        .submit("holds", &JobFile::custom("sleep 600").nodes(2))
        .unwrap();
    wait_running(cluster, "holds");
    let job = cluster.show("large").unwrap();
    sheet.equal(
        "§6.4 a job larger than the cluster stays queued",
        text(&job, "/executionState"),
        "queued",
    );
    for (name, priority) in [("low", "low"), ("normal", "normal"), ("high", "high")] {
        let file = JobFile::custom("true")
            .nodes(2)
            .set("schedulingPriority", json!(priority));
        cluster.submit(name, &file).unwrap();
    }
    cluster
        .submit("fifo", &JobFile::custom("true").nodes(2))
        .unwrap();
    cluster
        .submit("ended", &JobFile::custom("true").nodes(2))
        .unwrap();
    terminate(cluster, "ended");
    let job = cluster.show("ended").unwrap();
    sheet.equal(
        "§6.2 terminating a queued job gives JobTerminated",
        code(&job),
        "JobTerminated",
    );
    sheet.row(
        "§6.2 a terminated queued job has start and end",
        text(&job, "/executionInfo/endTime").ends_with('Z'),
        &job,
    );
    terminate(cluster, "holds");
    let mut starts = Vec::new();
    for name in ["high", "normal", "fifo", "low"] {
        cluster.wait(name).unwrap();
        let job = cluster.show(name).unwrap();
        starts.push(
            job.pointer("/attempts/0/epoch")
                .and_then(Value::as_u64)
                .unwrap_or_default(),
        );
    }
    sheet.row(
        "§6.4 schedulingPriority orders the queue, then age",
        starts.is_sorted(),
        &starts,
    );
    terminate(cluster, "large");

    cluster
        .submit("deleted", &JobFile::custom("sleep 600"))
        .unwrap();
    wait_running(cluster, "deleted");
    cluster
        .command(in_experiment(&["job", "delete"], &["-n", "deleted", "-y"]))
        .unwrap();
    let gone = wait_until("the job is gone", TIMEOUT, || {
        Ok(cluster.show("deleted").is_err().then_some(()))
    });
    sheet.row(
        "§6.5 deleting a running job ends it, then its record goes",
        gone.is_ok(),
        &gone,
    );
}
