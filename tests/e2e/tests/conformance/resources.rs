//! §§1 to 3.3: names, hierarchy, workspaces, experiments, file servers; §2: volumes.

use serde_json::json;
use trainyard_e2e::cluster::{Cluster, EXPERIMENT, JobFile, WORKSPACE, in_experiment, text};
use trainyard_e2e::wait_until;

use crate::life::TIMEOUT;
use crate::sheet::Sheet;

pub(crate) fn names_and_hierarchy(cluster: &Cluster, sheet: &mut Sheet) {
    let long = "x".repeat(65);
    for (row, name) in [
        ("§1 names: no other characters", "a b"),
        ("§1 names: at most 64 characters", &long),
    ] {
        let done = cluster
            .attempt(["workspace", "create", "-n", name])
            .unwrap();
        sheet.refused(row, &done, &["1 to 64"]);
    }
    let again = cluster
        .attempt(["workspace", "create", "-n", WORKSPACE])
        .unwrap();
    sheet.refused(
        "§1 a name is unique inside its parent",
        &again,
        &[WORKSPACE],
    );

    cluster.submit("twice", &JobFile::custom("true")).unwrap();
    cluster.wait("twice").unwrap();
    let first = cluster.show("twice").unwrap();
    let again = cluster
        .try_submit("twice", &JobFile::custom("true"))
        .unwrap();
    sheet.refused(
        "§1 a job's name is unique in its experiment",
        &again,
        &["twice"],
    );
    cluster
        .command(in_experiment(&["job", "delete"], &["-n", "twice", "-y"]))
        .unwrap();
    wait_until("the job is gone", TIMEOUT, || {
        Ok(cluster.show("twice").is_err().then_some(()))
    })
    .unwrap();
    cluster.submit("twice", &JobFile::custom("true")).unwrap();
    cluster.wait("twice").unwrap();
    let second = cluster.show("twice").unwrap();
    let other = text(&first, "/jobOutputDirectoryPathSegment")
        != text(&second, "/jobOutputDirectoryPathSegment");
    sheet.row(
        "§1 a re-created job has another UUID",
        other && text(&first, "/uid") != text(&second, "/uid"),
        &(first, second),
    );
}

pub(crate) fn workspaces_experiments_file_servers(cluster: &Cluster, sheet: &mut Sheet) {
    let create = [
        "workspace",
        "create",
        "-n",
        "other",
        "--location",
        "here",
        "--tag",
        "a=1",
    ];
    cluster.command(create).unwrap();
    let show = || {
        cluster
            .json(vec!["workspace", "show", "-n", "other"])
            .unwrap()
    };
    let shown = show();
    sheet.equal("§3.1 location", text(&shown, "/location"), "here");
    sheet.equal("§3.1 tags", &shown["tags"], &json!({"a": "1"}));
    sheet.equal(
        "§3.1 provisioningState=succeeded",
        text(&shown, "/provisioningState"),
        "succeeded",
    );
    sheet.row(
        "§3.1 creationTime",
        text(&shown, "/creationTime").ends_with('Z'),
        &shown,
    );
    cluster
        .command(["workspace", "update", "-n", "other", "--tag", "a=2"])
        .unwrap();
    sheet.equal("§3.1 update of tags", &show()["tags"], &json!({"a": "2"}));

    let made = cluster
        .attempt(["experiment", "create", "-w", WORKSPACE, "-n", EXPERIMENT])
        .unwrap();
    sheet.equal(
        "§3.2 creating an experiment that exists succeeds",
        made.status,
        0,
    );
    let shown = cluster
        .json(vec![
            "experiment",
            "show",
            "-w",
            WORKSPACE,
            "-n",
            EXPERIMENT,
        ])
        .unwrap();
    sheet.equal(
        "§3.2 provisioningState=succeeded",
        text(&shown, "/provisioningState"),
        "succeeded",
    );

    let server = |rest: &[&str]| cluster.attempt([&["file-server"], rest].concat()).unwrap();
    let made = server(&[
        "create",
        "-w",
        WORKSPACE,
        "-n",
        "nfs",
        "--address",
        "192.0.2.1",
        "--export",
        "/data",
    ]);
    sheet.equal("§3.3 a file server is made", made.status, 0);
    let path = cluster
        .write("nfs.json", &json!({"properties": {"sshConfiguration": {"userAccountSettings": {"adminUserName": "u"}}}}).to_string())
        .unwrap();
    let refused = server(&["create", "-w", WORKSPACE, "-n", "ssh", "-f", &path]);
    sheet.refused(
        "§3.3 sshConfiguration is refused with its place",
        &refused,
        &["nfs.json:1:", "sshConfiguration"],
    );
    let path = cluster
        .write("disk.json", &json!({"properties": {"vmSize": "x", "dataDisks": {"diskSizeInGB": 1, "diskCount": 1, "storageAccountType": "Standard_LRS"}}}).to_string())
        .unwrap();
    let refused = server(&["create", "-w", WORKSPACE, "-n", "sku", "-f", &path]);
    sheet.refused(
        "§3.3 storageAccountType is refused",
        &refused,
        &["storageAccountType"],
    );

    let mounting = JobFile::custom("true").file_server("nfs", "data").nodes(3);
    cluster.submit("mounts", &mounting).unwrap();
    let refused = server(&["delete", "-w", WORKSPACE, "-n", "nfs", "-y"]);
    sheet.refused(
        "§3.3 a file server in use is not deleted",
        &refused,
        &["nfs"],
    );
    cluster
        .command(in_experiment(&["job", "terminate"], &["-n", "mounts"]))
        .unwrap();
    cluster.wait("mounts").unwrap();
    let done = server(&["delete", "-w", WORKSPACE, "-n", "nfs", "-y"]);
    sheet.equal("§3.3 a file server is deleted", done.status, 0);

    let unknown = JobFile::custom("true").file_server("nowhere", "data");
    let refused = cluster.try_submit("unknown-server", &unknown).unwrap();
    sheet.refused(
        "§2.1 fileServers: an unknown server is refused",
        &refused,
        &["nowhere"],
    );
    for (row, share, words) in [
        (
            "§2.1 azureFileShares: an unbound share is refused",
            json!({"azureFileUrl": "https://a.file.core.windows.net/nobody", "relativeMountPath": "x"}),
            "nobody",
        ),
        (
            "§2.1 azureFileShares: azureFileUrl is required",
            json!({"relativeMountPath": "x"}),
            "azureFileUrl",
        ),
        (
            "§2.1 azureFileShares: relativeMountPath is required",
            json!({"azureFileUrl": "https://a.file.core.windows.net/logs"}),
            "relativeMountPath",
        ),
        (
            "§2.1 azureFileShares: fileMode other than 0777",
            json!({"azureFileUrl": "https://a.file.core.windows.net/logs", "relativeMountPath": "x", "fileMode": "0600"}),
            "fileMode",
        ),
    ] {
        let file = JobFile::custom("true").set("mountVolumes", json!({"azureFileShares": [share]}));
        sheet.refused(row, &cluster.try_submit("volume", &file).unwrap(), &[words]);
    }
    let blob = json!({"azureBlobFileSystems": [{"containerName": "logs", "relativeMountPath": "b", "mountOptions": "-o x"}]});
    let file = JobFile::custom("true").set("mountVolumes", blob);
    sheet.refused(
        "§2.1 azureBlobFileSystems: options of blobfuse",
        &cluster.try_submit("volume", &file).unwrap(),
        &["mountOptions"],
    );
}

/// Last, as it takes everything with it.
pub(crate) fn cascade(cluster: &Cluster, sheet: &mut Sheet) {
    cluster
        .submit("runs-on", &JobFile::custom("sleep 600"))
        .unwrap();
    cluster
        .command(["workspace", "delete", "-n", WORKSPACE, "-y"])
        .unwrap();
    let gone = wait_until("the workspace is gone", TIMEOUT, || {
        let shown = cluster.attempt(["workspace", "show", "-n", WORKSPACE])?;
        Ok((shown.status != 0).then_some(()))
    });
    sheet.row(
        "§1 deleting a workspace ends its jobs and deletes all inside",
        gone.is_ok(),
        &gone,
    );
    let other = cluster
        .attempt(["workspace", "show", "-n", "other"])
        .unwrap();
    sheet.equal("§1 other workspaces stay", other.status, 0);
    for node in ["node-1", "node-2", "node-3"] {
        let shown = cluster.show_node(node).unwrap();
        sheet.equal(
            "§3.4 nodes of a deleted cluster are free",
            text(&shown, "/cluster"),
            "",
        );
    }
}
