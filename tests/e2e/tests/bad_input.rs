//! What a user gets wrong: one clear sentence with the way out, a status that is not 0, and nothing changed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

use serde_json::json;
use trainyard_e2e::cluster::{CLUSTER, Cluster, JobFile, WORKSPACE, in_experiment, text};

/// Everything a user could have changed by mistake.
fn inventory(cluster: &Cluster) -> String {
    let mut all = String::new();
    for noun in [
        "workspace",
        "cluster",
        "experiment",
        "file-server",
        "node",
        "job",
    ] {
        let scope: &[&str] = match noun {
            "workspace" | "node" => &[],
            "job" => &["-w", WORKSPACE, "-e", "tries"],
            _ => &["-w", WORKSPACE],
        };
        let list = [&[noun, "list", "-o", "name"], scope].concat();
        all.push_str(&cluster.command(list).unwrap());
    }
    all
}

#[test]
fn names_that_are_wrong_or_unknown_are_refused() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let good = cluster.write_job("good", &JobFile::custom("true")).unwrap();
    let before = inventory(&cluster);
    let create = |rest: &[&str]| {
        in_experiment(&["job", "create"], rest)
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let plain = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let cases: Vec<(Vec<String>, i32, &[&str])> = vec![
        (
            plain(&in_experiment(&["job", "show"], &["-n", "nothing"])),
            1,
            &["nothing", "list"],
        ),
        (
            plain(&["workspace", "show", "-n", "nowhere"]),
            1,
            &["nowhere", "list"],
        ),
        (
            plain(&["cluster", "delete", "-w", WORKSPACE, "-n", "nothing", "-y"]),
            1,
            &["nothing"],
        ),
        (
            plain(&["node", "show", "-n", "nobody"]),
            1,
            &["nobody", "list"],
        ),
        (
            plain(&["workspace", "create", "-n", WORKSPACE]),
            1,
            &[WORKSPACE, "exist"],
        ),
        (
            plain(&["experiment", "create", "-w", "nowhere", "-n", "e"]),
            1,
            &["nowhere"],
        ),
        (
            create(&["-n", "no spaces", "-c", CLUSTER, "-f", &good]),
            2,
            &["no spaces", "64"],
        ),
        (
            create(&["-n", "job", "-c", "nocluster", "-f", &good]),
            1,
            &["nocluster", "cluster"],
        ),
        (
            create(&["-n", "job", "-c", CLUSTER, "-f", "missing.json"]),
            1,
            &["missing.json"],
        ),
        (plain(&["job", "list", "--nonsense"]), 2, &["--nonsense"]),
        (
            plain(&[
                "cluster", "create", "-w", WORKSPACE, "-n", "c", "-t", "many",
            ]),
            2,
            &["many"],
        ),
    ];
    let mut faults = Vec::new();
    for (arguments, status, words) in cases {
        let done = cluster.attempt(&arguments).unwrap();
        if let Err(error) = done.refused(status, words) {
            faults.push(format!("{arguments:?}: {error}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(inventory(&cluster), before);
}

#[test]
fn job_files_that_are_wrong_are_refused_by_file_line_and_field() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let before = inventory(&cluster);
    let custom = || JobFile::custom("true");
    let python = json!({ "pythonScriptFilePath": "x.py" });
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("syntax", "{\n  \"properties\": {\n".to_owned(), &["syntax.json:"]),
        ("type", custom().set("nodeCount", json!("two")).text(), &["type.json:", "nodeCount"]),
        ("range", custom().set("nodeCount", json!(-1)).text(), &["range.json:", "nodeCount"]),
        ("zero", custom().nodes(0).text(), &["zero.json:", "nodeCount"]),
        (
            "both",
            custom().set("pyTorchSettings", python).text(),
            &["both.json", "customToolkitSettings", "pyTorchSettings"],
        ),
        (
            "none",
            json!({ "properties": { "nodeCount": 1, "stdOutErrPathPrefix": "$AZ_BATCHAI_JOB_TEMP" } }).to_string(),
            &["none.json", "Settings"],
        ),
        (
            "share",
            custom()
                .set("mountVolumes", json!({ "azureFileShares": [{
                    "azureFileUrl": "https://a.file.core.windows.net/unbound", "relativeMountPath": "logs" }]}))
                .text(),
            &["unbound", "--bind-storage"],
        ),
        (
            "escape",
            custom()
                .set("mountVolumes", json!({ "azureFileShares": [{
                    "azureFileUrl": "https://a.file.core.windows.net/logs", "relativeMountPath": "../../etc" }]}))
                .text(),
            &["escape.json:", "relativeMountPath"],
        ),
        (
            "image",
            custom()
                .set("containerSettings", json!({ "imageSourceRegistry": { "image": "unbound:1" } }))
                .text(),
            &["unbound:1", "--bind-image"],
        ),
        (
            "priority",
            custom().set("schedulingPriority", json!("soonest")).text(),
            &["priority.json:", "schedulingPriority", "normal"],
        ),
    ];
    let mut faults = Vec::new();
    for (name, file, words) in cases {
        let path = cluster.write(&format!("{name}.json"), &file).unwrap();
        let rest = ["-n", name, "-c", CLUSTER, "-f", &path];
        let done = cluster
            .attempt(in_experiment(&["job", "create"], &rest))
            .unwrap();
        if let Err(error) = done.refused(1, words) {
            faults.push(format!("{name}: {error}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(inventory(&cluster), before);
}

#[test]
fn a_field_that_nobody_knows_is_a_warning_and_not_an_error() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let job = JobFile::custom("true").set("nodeCuont", json!(2));
    let done = cluster.try_submit("typo", &job).unwrap();
    assert_eq!(done.status, 0, "{done:#?}");
    assert!(
        done.stderr.contains("nodeCuont") && done.stderr.contains("typo.json:"),
        "{done:#?}"
    );
    assert_eq!(cluster.wait("typo").unwrap(), 0);
}

#[test]
fn a_job_larger_than_its_cluster_waits_and_says_so() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    cluster
        .submit("large", &JobFile::custom("true").nodes(3))
        .unwrap();
    let why = cluster.explain("large").unwrap();
    assert_eq!(text(&why, "/executionState"), "queued", "{why:#}");
    let larger = &why["blockers"][0]["largerThanCluster"];
    assert_eq!(
        (larger["wanted"].as_u64(), larger["target"].as_u64()),
        (Some(3), Some(1)),
        "{why:#}"
    );
    let told = cluster
        .command(in_experiment(&["job", "explain"], &["-n", "large"]))
        .unwrap();
    assert!(told.contains('3') && told.contains("node"), "{told}");
    let greedy = JobFile::custom("true").set("resourcesPerNode", json!({ "gpus": 9 }));
    cluster.submit("greedy", &greedy).unwrap();
    let why = cluster.explain("greedy").unwrap();
    assert_eq!(text(&why, "/executionState"), "queued", "{why:#}");
    assert!(
        why["blockers"].to_string().contains("largerThanNode"),
        "{why:#}"
    );
}

#[test]
fn a_script_or_log_file_that_is_not_there_is_named() {
    let cluster = Cluster::builder().start().unwrap();
    cluster.open_workspace(1).unwrap();
    let script = json!({ "pythonScriptFilePath": "/nowhere/train.py" });
    cluster
        .submit("scriptless", &JobFile::of("pyTorchSettings", script))
        .unwrap();
    assert_ne!(cluster.wait("scriptless").unwrap(), 0);
    let job = cluster.show("scriptless").unwrap();
    assert_eq!(text(&job, "/executionState"), "failed", "{job:#}");
    let error = &job["executionInfo"]["errors"][0];
    assert_eq!(text(error, "/code"), "LaunchError", "{job:#}");
    assert!(
        text(error, "/message").contains("/nowhere/train.py"),
        "{job:#}"
    );

    cluster
        .submit("plain", &JobFile::custom("echo fine"))
        .unwrap();
    assert_eq!(cluster.wait("plain").unwrap(), 0);
    let logs = in_experiment(&["job", "logs"], &["-n", "plain", "--file", "nope.txt"]);
    let done = cluster.attempt(logs).unwrap();
    done.refused(1, &["nope.txt", "list"]).unwrap();
    let escape = in_experiment(
        &["job", "logs"],
        &["-n", "plain", "--file", "../../../../etc/passwd"],
    );
    let done = cluster.attempt(escape).unwrap();
    assert_ne!(done.status, 0);
    assert!(!done.stdout.contains("root:"), "{done:#?}");
}

#[test]
fn a_cluster_in_use_is_deleted_by_force_alone() {
    let cluster = Cluster::builder().nodes(0).start().unwrap();
    cluster.open_workspace(1).unwrap();
    cluster.submit("waits", &JobFile::custom("true")).unwrap();
    let before = inventory(&cluster);
    let delete = ["cluster", "delete", "-w", WORKSPACE, "-n", CLUSTER, "-y"];
    let done = cluster.attempt(delete).unwrap();
    done.refused(1, &["1 jobs", "force"]).unwrap();
    assert_eq!(inventory(&cluster), before);
    let forced = [delete.as_slice(), &["--force"]].concat();
    let done = cluster.attempt(forced).unwrap();
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stderr.contains("1 queued job failed"), "{done:?}");
}

#[test]
fn a_workspace_goes_with_everything_in_it() {
    let cluster = Cluster::builder().nodes(1).start().unwrap();
    cluster.open_workspace(1).unwrap();
    cluster
        .submit("runs", &JobFile::custom("sleep 600"))
        .unwrap();
    cluster.submit("waits", &JobFile::custom("true")).unwrap();
    let delete = ["workspace", "delete", "-n", WORKSPACE, "-y"];
    let done = cluster.attempt(delete).unwrap();
    assert_eq!(done.status, 0, "{done:?}");
    let shown = cluster
        .attempt(["workspace", "list", "-o", "name"])
        .unwrap();
    assert_eq!(shown.stdout, "", "{shown:?}");
    let nodes = cluster.attempt(["node", "list", "-o", "json"]).unwrap();
    assert!(
        !nodes.stdout.contains("clusters/"),
        "back in the pool: {nodes:?}"
    );
}
