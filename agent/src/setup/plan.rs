//! Where everything of a set-up lies, and what its task sees. Pure.

use std::path::PathBuf;

use trainyard_proto::v1::NodeSetupOrder;

use crate::attempt::Host;
use crate::environment::{Environment, add_user_variables};
use crate::layout::{self, LayoutError, MountPoint};
use crate::share::MakeDirectory;
use crate::shim::{COPY_DEADLINE_MS, KILL_DEADLINE_MS, Stream, TaskSpec};

/// Milliseconds between SIGTERM and SIGKILL for a setup task that is not wanted any more.
const STOP_GRACE_MS: u64 = 10_000;

/// A set-up, laid out.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Volumes of the cluster.
    pub(super) mounts: Vec<MountPoint>,
    /// The task.
    pub(super) task: Option<Task>,
}

/// The setup task.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// Where its logs go.
    pub(super) directory: MakeDirectory,
    /// What its shim gets.
    pub(super) spec: TaskSpec,
    /// Name of the file of its stderr.
    pub(super) stderr: String,
}

/// Files of one run.
#[derive(Debug, Clone)]
pub(super) struct Run {
    dir: PathBuf,
}

impl Run {
    pub(super) fn new(host: &Host, run: u32) -> Run {
        Run {
            dir: host.dirs.setup().join(format!("run-{run}")),
        }
    }

    pub(super) fn dir(&self) -> &PathBuf {
        &self.dir
    }

    pub(super) fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }

    pub(super) fn task(&self) -> PathBuf {
        self.dir.join("task")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.dir.join("work")
    }
}

impl Plan {
    /// Lays an order out.
    ///
    /// # Errors
    /// A name or path of the cluster cannot be used on this node.
    pub(super) fn new(
        host: &Host,
        order: &NodeSetupOrder,
        run_number: u32,
    ) -> Result<Plan, LayoutError> {
        let (root, mounts) = layout::cluster_volumes(&host.dirs, &order.cluster, &order.volumes)?;
        let Some(wanted) = &order.setup_task else {
            return Ok(Plan { mounts, task: None });
        };
        let node = layout::file_name("node", &host.node)?;
        let run = Run::new(host, run_number);
        let mut env = base_environment(host, order, &root.to_string_lossy());
        let variables = wanted
            .environment_variables
            .iter()
            .map(|variable| (variable.name.as_str(), variable.value.as_str()));
        // The prefix may use the user's variables, which may use the roots.
        let mut visible = env.clone();
        add_user_variables(&mut visible, variables.clone());
        let prefix = layout::absolute(
            "nodeSetup.setupTask.stdOutErrPathPrefix",
            &wanted.std_out_err_path_prefix,
            &visible,
        )?;
        let path = prefix.join(layout::relative("pathSegment", &order.path_segment)?);
        let below = mounts
            .iter()
            .map(|mount| &mount.target)
            .find(|target| path.starts_with(target))
            .cloned();
        env.insert(
            "AZ_BATCHAI_STDOUTERR_DIR".to_owned(),
            path.to_string_lossy().into_owned(),
        );
        add_user_variables(&mut env, variables);
        let (stdout, stderr) = (format!("stdout-{node}.txt"), format!("stderr-{node}.txt"));
        let stream = |name: &str| Stream {
            spool: run.spool().join(name),
            share: Some(path.join(name)),
        };
        let spec = TaskSpec {
            name: "setup".to_owned(),
            dir: run.task(),
            argv: ["/bin/bash", "-c", &wanted.command_line]
                .map(str::to_owned)
                .to_vec(),
            env,
            cwd: run.work(),
            user: host.facts.root_user.credentials.clone(),
            // Jobs may write where the logs go: root would follow the links that they leave there.
            copy_as: host.facts.task_user.credentials.clone(),
            stdout: stream(&stdout),
            stderr: stream(&stderr),
            group: host
                .confinement
                .group(&format!("{node}.setup-{}", order.epoch)),
            // It may well outlast an outage of the schedulers; the node takes no job before it has ended.
            lease_file: None,
            attempt: run_number,
            stop_grace_ms: STOP_GRACE_MS,
            copy_deadline_ms: COPY_DEADLINE_MS,
            kill_deadline_ms: KILL_DEADLINE_MS,
        };
        Ok(Plan {
            mounts,
            task: Some(Task {
                directory: MakeDirectory { path, below },
                spec,
                stderr,
            }),
        })
    }
}

fn base_environment(host: &Host, order: &NodeSetupOrder, mount_root: &str) -> Environment {
    let root = &host.facts.root_user;
    let home = root.home.as_ref().map_or_else(
        || "/".to_owned(),
        |home| home.to_string_lossy().into_owned(),
    );
    [
        ("PATH", host.facts.path.clone()),
        ("HOME", home),
        ("USER", root.name.clone()),
        ("LOGNAME", root.name.clone()),
        ("SHELL", "/bin/bash".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("AZ_BATCHAI_MOUNT_ROOT", mount_root.to_owned()),
        (
            "AZ_BATCHAI_CLUSTER_NAME",
            layout::last_segment(&order.cluster).to_owned(),
        ),
        ("TRAINYARD_CLUSTER", order.cluster.clone()),
        ("TRAINYARD_NODE", host.node.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
