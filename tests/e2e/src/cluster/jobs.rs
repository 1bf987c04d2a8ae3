//! Jobs as users write, submit and watch them, in one workspace with one cluster and one experiment.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::Cluster;
use super::command::{Finished, Following};
use crate::error::{Context, Result, RigError};
use crate::process::wait_until;

/// The workspace of [`Cluster::open_workspace`].
pub const WORKSPACE: &str = "lab";
/// Its cluster.
pub const CLUSTER: &str = "gpu";
/// Its experiment.
pub const EXPERIMENT: &str = "tries";

const STATE_TIMEOUT: Duration = Duration::from_secs(120);
/// Where jobs write their logs: the share that [`Cluster::open_workspace`] binds.
const LOG_PREFIX: &str = "$AZ_BATCHAI_JOB_MOUNT_ROOT/logs";

/// A job file in the making. Logs go to the share `logs`.
#[derive(Clone, Debug)]
pub struct JobFile {
    properties: Value,
}

impl JobFile {
    /// A command of the custom toolkit on one node.
    pub fn custom(command: &str) -> Self {
        Self::of("customToolkitSettings", json!({ "commandLine": command }))
    }

    /// Any toolkit on one node.
    pub fn of(settings: &str, value: Value) -> Self {
        let mut properties = json!({
            "nodeCount": 1,
            "stdOutErrPathPrefix": LOG_PREFIX,
            "mountVolumes": { "azureFileShares": [{
                "azureFileUrl": "https://account.file.core.windows.net/logs",
                "relativeMountPath": "logs",
            }]},
        });
        properties[settings] = value;
        Self { properties }
    }

    /// How many nodes.
    pub fn nodes(self, count: u32) -> Self {
        self.set("nodeCount", json!(count))
    }

    /// What runs on every node before the job starts anywhere.
    pub fn preparation(self, command: &str) -> Self {
        self.set("jobPreparation", json!({ "commandLine": command }))
    }

    /// A file server mounted at `$AZ_BATCHAI_JOB_MOUNT_ROOT/MOUNT`.
    pub fn file_server(mut self, name: &str, mount: &str) -> Self {
        self.properties["mountVolumes"]["fileServers"] =
            json!([{ "fileServer": { "id": name }, "relativeMountPath": mount }]);
        self
    }

    /// Logs below another prefix, and no share `logs`.
    pub fn log_below(mut self, prefix: &str) -> Self {
        self.properties["mountVolumes"]
            .as_object_mut()
            .map(|volumes| volumes.remove("azureFileShares"));
        self.set("stdOutErrPathPrefix", json!(prefix))
    }

    /// Any property.
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.properties[key] = value;
        self
    }

    /// The file's text.
    pub fn text(&self) -> String {
        format!("{:#}\n", json!({ "properties": self.properties }))
    }
}

/// `-w lab -e tries`, for commands about jobs.
pub fn in_experiment<'a>(noun_verb: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
    [noun_verb, &["-w", WORKSPACE, "-e", EXPERIMENT], rest].concat()
}

/// A string inside a value; empty when it is not there, as the command leaves empty strings out.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

impl Cluster {
    /// Makes a workspace, a cluster that wants `nodes` nodes, and an experiment; binds the share `logs` to the folder
    /// [`Cluster::logs`].
    pub fn open_workspace(&self, nodes: usize) -> Result<()> {
        self.open_folder("logs")?;
        let logs = format!("logs=hostPath:{}", self.logs().display());
        self.command([
            "workspace",
            "create",
            "-n",
            WORKSPACE,
            "--bind-storage",
            &logs,
        ])?;
        let nodes = nodes.to_string();
        let target = ["-n", CLUSTER, "-t", &nodes];
        self.command([&["cluster", "create", "-w", WORKSPACE], &target[..]].concat())?;
        self.command(["experiment", "create", "-w", WORKSPACE, "-n", EXPERIMENT])?;
        Ok(())
    }

    /// A folder that every task may write to.
    pub fn open_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder().join(name);
        fs::create_dir_all(&folder).cannot(format_args!("make {}", folder.display()))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o777))
            .cannot(format_args!("open {}", folder.display()))?;
        Ok(folder)
    }

    /// The folder behind the share `logs`.
    pub fn logs(&self) -> PathBuf {
        self.folder().join("logs")
    }

    /// Writes a job file and returns its path.
    pub fn write_job(&self, name: &str, file: &JobFile) -> Result<String> {
        self.write(&format!("{name}.json"), &file.text())
    }

    /// Writes a file into the cluster's folder and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder().join(name);
        fs::write(&path, text).cannot(format_args!("write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Submits a job; it returns once the job is queued for good.
    pub fn submit(&self, name: &str, file: &JobFile) -> Result<()> {
        self.try_submit(name, file)?.success().map(drop)
    }

    /// Submits a job, whatever comes of it.
    pub fn try_submit(&self, name: &str, file: &JobFile) -> Result<Finished> {
        let path = self.write_job(name, file)?;
        let rest = ["-n", name, "-c", CLUSTER, "-f", &path];
        self.attempt(in_experiment(&["job", "create"], &rest))
    }

    /// Submits a job and follows it to its end, beside the test.
    pub fn submit_and_follow(&self, name: &str, file: &JobFile) -> Result<Following> {
        let path = self.write_job(name, file)?;
        let rest = ["-n", name, "-c", CLUSTER, "-f", &path, "--follow"];
        self.background(in_experiment(&["job", "create"], &rest))
    }

    /// Follows the first standard output of a job.
    pub fn follow(&self, name: &str) -> Result<Following> {
        let rest = ["-n", name, "--follow"];
        self.background(in_experiment(&["job", "logs"], &rest))
    }

    /// A log file of a job as it is now.
    pub fn log(&self, name: &str, file: &str) -> Result<String> {
        let rest = ["-n", name, "--file", file];
        self.command(in_experiment(&["job", "logs"], &rest))
    }

    /// Waits for the end of a job; its own exit code.
    pub fn wait(&self, name: &str) -> Result<i32> {
        let done = self.attempt(in_experiment(&["job", "wait"], &["-n", name]))?;
        Ok(done.status)
    }

    /// A job as the command shows it to programs.
    pub fn show(&self, name: &str) -> Result<Value> {
        self.json(in_experiment(&["job", "show"], &["-n", name]))
    }

    /// Why a job waits, as the command shows it to programs.
    pub fn explain(&self, name: &str) -> Result<Value> {
        self.json(in_experiment(&["job", "explain"], &["-n", name]))
    }

    /// What a command shows to programs.
    pub fn json(&self, arguments: Vec<&str>) -> Result<Value> {
        let text = self.command([&arguments[..], &["-o", "json"]].concat())?;
        serde_json::from_str(&text).cannot(format_args!("read the JSON of {arguments:?}: {text}"))
    }

    /// Waits until `probe` finds what it looks for in the job.
    pub fn wait_job(
        &self,
        name: &str,
        what: &str,
        probe: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let waited = wait_until(&format!("{name} {what}"), STATE_TIMEOUT, || {
            last = self.show(name)?;
            Ok(probe(&last).then_some(()))
        });
        match waited {
            Ok(()) => Ok(last),
            Err(error) => Err(RigError::new(format!("{error}\n{last:#}"))),
        }
    }

    /// Names of all jobs, in order.
    pub fn job_names(&self) -> Result<Vec<String>> {
        let text = self.command(in_experiment(&["job", "list"], &["-o", "name"]))?;
        let last = |line: &str| line.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(text.lines().map(last).collect())
    }

    /// A node as the command shows it to programs.
    pub fn show_node(&self, name: &str) -> Result<Value> {
        self.json(vec!["node", "show", "-n", name])
    }

    /// Waits until a node is in this state.
    pub fn wait_node(&self, name: &str, state: &str) -> Result<()> {
        let mut last = Value::Null;
        let waited = wait_until(&format!("{name} is {state}"), STATE_TIMEOUT, || {
            last = self.show_node(name)?;
            Ok((text(&last, "/state") == state).then_some(()))
        });
        waited.map_err(|error| RigError::new(format!("{error}\n{last:#}")))
    }

    /// Id of the scheduler that leads, once one does.
    pub fn leader(&self) -> Result<u64> {
        wait_until("a scheduler leads", STATE_TIMEOUT, || {
            let members = self.json(vec!["member", "list"])?;
            let members = members.as_array().cloned().unwrap_or_default();
            let leader = members
                .iter()
                .find(|member| text(member, "/role") == "leader");
            Ok(leader.and_then(|member| member["id"].as_u64()))
        })
    }

    /// Waits until the leader knows that a member has every entry.
    pub fn wait_caught_up(&self, id: u64) -> Result<()> {
        let what = format!("scheduler {id} has caught up");
        let mut last = Value::Null;
        let waited = wait_until(&what, STATE_TIMEOUT, || {
            last = self.json(vec!["member", "list"])?;
            let members = last.as_array().cloned().unwrap_or_default();
            let member = members.iter().find(|member| member["id"] == id);
            let caught_up = member.is_some_and(|member| {
                member["healthy"] == true && member["lagEntries"].as_u64().unwrap_or(0) == 0
            });
            Ok(caught_up.then_some(()))
        });
        waited.map_err(|error| RigError::new(format!("{error}\n{last:#}")))
    }
}
