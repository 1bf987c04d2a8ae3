//! §§4 and 5: the fields of a job; paths, output tree, file names, variables.

use std::fs;

use serde_json::json;
use trainyard_e2e::cluster::{CLUSTER, Cluster, JobFile, in_experiment, text};

use crate::sheet::Sheet;

const PREFIX: &str = "$AZ_BATCHAI_JOB_MOUNT_ROOT/logs";

pub(crate) fn fields(cluster: &Cluster, sheet: &mut Sheet) {
    let job = JobFile::custom(
        "set -u; echo out; echo err >&2; echo $MINE $EXPANDED; echo $AZ_BATCHAI_INPUT_DATA; test -d $AZ_BATCHAI_OUTPUT_MODEL \
         && echo made >$AZ_BATCHAI_OUTPUT_MODEL/m; cat $AZ_BATCHAI_JOB_TEMP/prepared; echo gpus $AZ_BATCHAI_NUM_GPUS; \
         test -d $AZ_BATCHAI_STDOUTERR_DIR && echo logs; echo [${NOWHERE-}]",
    )
    .preparation("echo $MINE >$AZ_BATCHAI_JOB_TEMP/prepared; echo preparing")
    .set("environmentVariables", json!([{"name": "MINE", "value": "mine"}, {"name": "EXPANDED", "value": "$AZ_BATCHAI_JOB_MOUNT_ROOT/x"}]))
    .set("inputDirectories", json!([{"id": "DATA", "path": format!("{PREFIX}/in")}]))
    .set("outputDirectories", json!([{"id": "MODEL", "pathPrefix": PREFIX, "pathSuffix": "Models"}]))
    .set("constraints", json!({"maxWallClockTime": "0.01:00:00"}))
    .set("schedulingPriority", json!("high"));
    cluster.submit("fields", &job).unwrap();
    sheet.equal(
        "§6.2 exit 0 gives exitCode 0",
        cluster.wait("fields").unwrap(),
        0,
    );
    let shown = cluster.show("fields").unwrap();
    sheet.equal(
        "§6.2 exit 0 gives succeeded",
        text(&shown, "/executionState"),
        "succeeded",
    );
    sheet.equal(
        "§6.2 exit 0 gives no errors",
        shown.pointer("/executionInfo/errors"),
        None,
    );
    sheet.equal(
        "§4 toolType is derived",
        text(&shown, "/toolType"),
        "custom",
    );
    sheet.equal(
        "§4 schedulingPriority",
        text(&shown, "/spec/schedulingPriority"),
        "high",
    );
    sheet.equal(
        "§4 constraints.maxWallClockTime as d.hh:mm:ss",
        text(&shown, "/spec/constraints/maxWallClockTime"),
        "PT1H",
    );
    for pointer in [
        "/creationTime",
        "/executionStateTransitionTime",
        "/executionInfo/startTime",
        "/executionInfo/endTime",
    ] {
        sheet.row(
            &format!("§4 {}", &pointer[1..]),
            text(&shown, pointer).ends_with('Z'),
            &shown,
        );
    }
    sheet.equal(
        "§6.1 provisioningState=succeeded",
        text(&shown, "/provisioningState"),
        "succeeded",
    );

    let segment = text(&shown, "/jobOutputDirectoryPathSegment");
    let begins = "workspaces/lab/experiments/tries/jobs/fields/";
    sheet.row(
        "§5 jobOutputDirectoryPathSegment",
        segment.strip_prefix(begins) == Some(text(&shown, "/uid")),
        &shown,
    );
    let folder = cluster.logs().join(segment);
    let out = fs::read_to_string(folder.join("stdouterr/stdout.txt")).unwrap_or_default();
    let lines: Vec<&str> = out.lines().collect();
    let line = |index: usize| lines.get(index).copied().unwrap_or_default();
    sheet.equal("§5 stdout.txt of the custom toolkit", line(0), "out");
    let err = fs::read_to_string(folder.join("stdouterr/stderr.txt")).unwrap_or_default();
    sheet.equal("§5 stderr.txt of the custom toolkit", err.trim_end(), "err");
    sheet.row(
        "§4 environmentVariables",
        line(1).starts_with("mine "),
        &lines,
    );
    sheet.row(
        "§5 variables are expanded in variables",
        line(1).ends_with("/x") && !line(1).contains('$'),
        &lines,
    );
    sheet.row(
        "§4 inputDirectories: AZ_BATCHAI_INPUT_id",
        line(2).ends_with("/logs/in"),
        &lines,
    );
    sheet.row(
        "§4 jobPreparation sees the variables and runs before",
        lines.contains(&"mine"),
        &lines,
    );
    sheet.row("§8 AZ_BATCHAI_NUM_GPUS", lines.contains(&"gpus 4"), &lines);
    sheet.row(
        "§5 AZ_BATCHAI_STDOUTERR_DIR",
        lines.contains(&"logs"),
        &lines,
    );
    sheet.row(
        "§5 undefined variables are empty",
        lines.contains(&"[]"),
        &lines,
    );
    let made = fs::read_to_string(folder.join("outputs/Models/m")).unwrap_or_default();
    sheet.equal(
        "§5 outputs/<pathSuffix> of an output directory, which is made",
        made.trim_end(),
        "made",
    );
    for file in [
        "execution.log",
        "stdout-job_prep.txt",
        "stderr-job_prep.txt",
    ] {
        sheet.row(
            &format!("§5 {file} of one node"),
            folder.join("stdouterr").join(file).is_file(),
            &folder,
        );
    }
    let files = cluster
        .command(in_experiment(&["job", "file", "list"], &["-n", "fields"]))
        .unwrap();
    sheet.row(
        "§5.1 files are listed",
        files.contains("stdout.txt") && files.contains("execution.log"),
        &files,
    );
    let files = cluster
        .command(in_experiment(
            &["job", "file", "list"],
            &["-n", "fields", "-d", "MODEL"],
        ))
        .unwrap();
    sheet.row(
        "§5.1 files of an output directory are listed",
        files.contains('m'),
        &files,
    );

    let custom = || JobFile::custom("true");
    for (row, file, words) in [
        ("§4 nodeCount is required", custom().set("nodeCount", json!(null)), ["nodeCount", "required"]),
        ("§4 nodeCount is at least 1", custom().set("nodeCount", json!(0)), ["nodeCount", "at least 1"]),
        ("§4 stdOutErrPathPrefix is required", custom().set("stdOutErrPathPrefix", json!(null)), ["stdOutErrPathPrefix", "required"]),
        ("§4 exactly one toolkit", custom().set("caffe2Settings", json!({"pythonScriptFilePath": "x"})), ["caffe2Settings", "exactly one"]),
        ("§4 a toolkit is required", custom().set("customToolkitSettings", json!(null)), ["no toolkit", "exactly one"]),
        ("§4 jobPreparation.commandLine is required", custom().set("jobPreparation", json!({})), ["commandLine", "required"]),
        ("§4 outputDirectories: ids are unique", custom().set("outputDirectories", json!([{"id": "A", "pathPrefix": "/a"}, {"id": "A", "pathPrefix": "/b"}])), ["outputDirectories[1].id", "choose another"]),
        ("§4 outputDirectories: pathPrefix is required", custom().set("outputDirectories", json!([{"id": "A"}])), ["pathPrefix", "required"]),
        ("§4 inputDirectories: path is required", custom().set("inputDirectories", json!([{"id": "A"}])), ["path", "required"]),
        ("§4 schedulingPriority: low, normal, high", custom().set("schedulingPriority", json!("urgent")), ["schedulingPriority", "low, normal, high"]),
        ("§4 secrets are refused", custom().set("secrets", json!([{"name": "S", "value": "v"}])), ["secrets[0]", "refused"]),
        ("§2 EnvironmentVariable: name is required", custom().set("environmentVariables", json!([{"value": "v"}])), ["name", "required"]),
        ("§2 ContainerSettings: an unbound image is refused", custom().set("containerSettings", json!({"imageSourceRegistry": {"image": "some/image"}})), ["some/image", "image"]),
        ("§2 ImageSourceRegistry: another registry than the image's", custom().set("containerSettings", json!({"imageSourceRegistry": {"image": "i", "serverUrl": "r.example.org"}})), ["serverUrl", "must begin"]),
        ("§2 PrivateRegistryCredentials are refused", custom().set("containerSettings", json!({"imageSourceRegistry": {"image": "i", "credentials": {"username": "u", "password": "p"}}})), ["credentials", "refused"]),
    ] {
        sheet.refused(row, &cluster.try_submit("wrong", &file).unwrap(), &words);
    }
    let path = cluster.write_job("no-cluster", &custom()).unwrap();
    let done = cluster
        .attempt(in_experiment(
            &["job", "create"],
            &["-n", "no-cluster", "-f", &path],
        ))
        .unwrap();
    sheet.refused("§4 cluster is required", &done, &["cluster"]);
    let done = cluster
        .attempt(in_experiment(
            &["job", "create"],
            &["-n", "no-cluster", "-c", "nowhere", "-f", &path],
        ))
        .unwrap();
    sheet.refused("§4 cluster must exist", &done, &["nowhere"]);
    let mut file: serde_json::Value = serde_json::from_str(&custom().text()).unwrap();
    let old = json!({"id": format!("/subscriptions/s/resourceGroups/g/providers/Microsoft.BatchAI/workspaces/lab/clusters/{CLUSTER}")});
    file["properties"]["cluster"] = old;
    file["properties"]["priority"] = json!(5);
    file["location"] = json!("eastus");
    let path = cluster.write("legacy.json", &file.to_string()).unwrap();
    let done = cluster
        .attempt(in_experiment(
            &["job", "create"],
            &["-n", "legacy", "-f", &path],
        ))
        .unwrap();
    let warned =
        done.stderr.contains("schedulingPriority") && done.stderr.contains("legacy.json:1:");
    sheet.row(
        "§1 legacy and unknown keys are warned about, not refused; ids of Azure are understood",
        done.status == 0 && warned,
        &done,
    );
}

pub(crate) fn several_nodes(cluster: &Cluster, sheet: &mut Sheet) {
    let job = JobFile::custom("echo $AZ_BATCH_HOST_LIST; wc -l <$AZ_BATCHAI_MPI_HOST_FILE")
        .nodes(2)
        .preparation("true");
    cluster.submit("two", &job).unwrap();
    sheet.equal(
        "§4 nodeCount 2 runs on two nodes",
        cluster.wait("two").unwrap(),
        0,
    );
    let shown = cluster.show("two").unwrap();
    let nodes = shown["attempts"][0]["nodes"].as_array().map_or(0, Vec::len);
    sheet.equal("§6.4 gang: all nodes at once", nodes, 2);
    let folder = cluster
        .logs()
        .join(text(&shown, "/jobOutputDirectoryPathSegment"))
        .join("stdouterr");
    for node in ["node-1", "node-2", "node-3"] {
        if !shown["attempts"][0]["nodes"].to_string().contains(node) {
            continue;
        }
        for file in [
            format!("execution-{node}.log"),
            format!("stdout-job_prep-{node}.txt"),
            format!("stderr-job_prep-{node}.txt"),
        ] {
            sheet.row(
                &format!("§5 {file} of several nodes"),
                folder.join(&file).is_file(),
                &folder,
            );
        }
    }
    let out = fs::read_to_string(folder.join("stdout.txt")).unwrap_or_default();
    let hosts = out.lines().next().map_or(0, |line| line.split(',').count());
    sheet.equal("§8 AZ_BATCH_HOST_LIST has every node", hosts, 2);
    sheet.equal(
        "§8 AZ_BATCHAI_MPI_HOST_FILE has every node",
        out.lines().nth(1).map(str::trim),
        Some("2"),
    );
}
