//! What a node runs for an attempt: the job preparation and the tasks of the toolkit.
//!
//! Pure but for [`edge`]: the same assignment gives the same plan, whoever asks and however often, so that a restarted
//! agent finds its tasks again by name. One file per toolkit. A launcher must never look at the disk or the network:
//! what it needs to know of the node comes in [`Facts`], and what has to be true of the disk goes out as [`Preflight`].
//!
//! # How command lines are read
//! Batch AI's users write command lines for a shell, and so they are: the command of the custom toolkit and of the job
//! preparation goes to `bash -c` as it is. Python toolkits run `INTERPRETER SCRIPT ARGS` under `bash -c` too, where the
//! interpreter and the script (after `$NAME` expansion) are quoted and the arguments are not: quotes group words,
//! `$NAME` expands, an undefined variable is nothing. Line breaks between arguments are spaces, because a job file may
//! spread a long command over several lines.

mod custom;
pub mod edge;
mod preparation;
mod pytorch;
mod shell;
mod shm;
mod torchrun;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use trainyard_proto::v1::{Assignment, JobSpec};

use crate::confine::Confinement;
use crate::environment::{Environment, expand};
use crate::layout::{Facts, Layout};
use crate::shim::{COPY_DEADLINE_MS, KILL_DEADLINE_MS, Stream, TaskSpec};

pub use edge::{default_python, free_port};
pub use preparation::preparation;

/// One process to start on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPlan {
    /// Unique on the node, and the same whenever it is planned again.
    pub name: String,
    /// Which of the attempt's nodes it runs on.
    pub node_index: usize,
    /// Program, absolute, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Environment,
    /// Working directory: the scratch directory of the job.
    pub cwd: PathBuf,
    /// Name of the file of its stdout in the stdouterr directory.
    pub stdout: String,
    /// Name of the file of its stderr.
    pub stderr: String,
}

/// All that this node runs once every node is prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The tasks; none: this node has nothing to run.
    pub tasks: Vec<TaskPlan>,
    /// What must be true before they start.
    pub preflight: Preflight,
}

/// What must be true of the disk before tasks start. Checked by [`crate::helper::Helper::preflight`] as the job's user,
/// since the paths may lie on volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// Files that must exist and be readable: field of the job file, path.
    pub files: Vec<(String, PathBuf)>,
    /// Programs that must be found: field of the job file, name or path.
    pub programs: Vec<(String, String)>,
    /// Bytes that `/dev/shm` must have.
    pub shm_bytes: Option<u64>,
    /// Where programs are looked for.
    pub path: String,
    /// What relative paths are relative to.
    pub cwd: PathBuf,
}

/// What a [`TaskSpec`] needs beyond the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecOptions {
    /// See [`TaskSpec::lease_file`].
    pub lease_file: Option<PathBuf>,
    /// See [`TaskSpec::stop_grace_ms`].
    pub stop_grace_ms: u64,
}

impl TaskPlan {
    /// What the shim gets.
    #[must_use]
    pub fn spec(
        &self,
        layout: &Layout,
        confinement: &Confinement,
        options: &SpecOptions,
    ) -> TaskSpec {
        let stream = |name: &str| Stream {
            spool: layout.spool(name),
            share: Some(layout.stdouterr_dir.join(name)),
        };
        TaskSpec {
            name: self.name.clone(),
            dir: layout.task_dir(&self.name),
            argv: self.argv.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            user: layout.user.credentials.clone(),
            copy_as: layout.user.credentials.clone(),
            stdout: stream(&self.stdout),
            stderr: stream(&self.stderr),
            group: confinement.task_group(layout, &self.name),
            lease_file: options.lease_file.clone(),
            attempt: layout.attempt,
            stop_grace_ms: options.stop_grace_ms,
            copy_deadline_ms: COPY_DEADLINE_MS,
            kill_deadline_ms: KILL_DEADLINE_MS,
        }
    }
}

/// Plans the tasks of this node.
///
/// # Errors
/// The job has a toolkit that this agent does not launch, or a setting that cannot be used; the field is named.
pub fn plan(
    assignment: &Assignment,
    layout: &Layout,
    facts: &Facts,
) -> Result<LaunchPlan, LaunchError> {
    let spec = spec_of(assignment)?;
    let context = Context {
        assignment,
        layout,
        facts,
    };
    let mut plan = if let Some(settings) = &spec.custom_toolkit_settings {
        custom::plan(&context, settings)
    } else if let Some(settings) = &spec.py_torch_settings {
        pytorch::plan(&context, settings)
    } else if let Some(settings) = &spec.torchrun_settings {
        torchrun::plan(&context, settings)
    } else {
        Err(LaunchError::new(
            "job",
            "this agent launches customToolkitSettings, pyTorchSettings and torchrunSettings, and the job has none of them; \
             upgrade the agent or change the job",
        ))
    }?;
    plan.preflight.shm_bytes = shm::wanted(spec)?;
    Ok(plan)
}

/// Whether the tasks meet at a port of the master.
#[must_use]
pub fn needs_port(assignment: &Assignment) -> bool {
    let spec = assignment.spec.as_ref();
    spec.is_some_and(|spec| spec.py_torch_settings.is_some() || spec.torchrun_settings.is_some())
}

/// Names of the files that tasks write.
pub fn files<'p>(tasks: impl IntoIterator<Item = &'p TaskPlan>) -> impl Iterator<Item = String> {
    tasks
        .into_iter()
        .flat_map(|task| [task.stdout.clone(), task.stderr.clone()])
}

/// A job that cannot be launched as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct LaunchError {
    /// Field of the job file.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl LaunchError {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            message: message.into(),
        }
    }
}

fn spec_of(assignment: &Assignment) -> Result<&JobSpec, LaunchError> {
    assignment
        .spec
        .as_ref()
        .ok_or_else(|| LaunchError::new("spec", "is missing from the assignment"))
}

/// What every launcher looks at.
struct Context<'a> {
    assignment: &'a Assignment,
    layout: &'a Layout,
    facts: &'a Facts,
}

impl Context<'_> {
    /// Host and port where the tasks meet.
    fn rendezvous(&self) -> Result<(String, u16), LaunchError> {
        let port = match self.assignment.rendezvous_port {
            0 => self.facts.rendezvous_port,
            port => u16::try_from(port).unwrap_or(0),
        };
        let master = self
            .assignment
            .nodes
            .first()
            .map(|node| node.address.clone())
            .unwrap_or_default();
        if port == 0 || master.is_empty() {
            return Err(LaunchError::new(
                "rendezvousPort",
                "the tasks need a port of the first node to meet at, and the assignment has none",
            ));
        }
        Ok((master, port))
    }

    /// Variables of the successor of Batch AI that name the meeting point.
    fn master_variable(&self) -> Option<(&'static str, String)> {
        let (master, port) = self.rendezvous().ok()?;
        Some(("AZ_BATCH_MASTER_NODE", host_port(&master, port)))
    }

    fn gpus(&self) -> &[u32] {
        self.assignment
            .nodes
            .get(self.layout.node_index)
            .map_or(&[], |node| &node.gpus)
    }

    /// A task with the common parts filled in; `suffix` makes the file names.
    fn task(&self, name: String, command: String, suffix: &str, env: Environment) -> TaskPlan {
        TaskPlan {
            name,
            node_index: self.layout.node_index,
            argv: shell::bash(command),
            env,
            cwd: self.layout.job_root.clone(),
            stdout: format!("stdout{suffix}.txt"),
            stderr: format!("stderr{suffix}.txt"),
        }
    }

    /// Interpreter and script of a Python toolkit, expanded for a task.
    fn python<'s>(
        &self,
        key: &'s str,
        script: &str,
        interpreter: &str,
        env: &Environment,
    ) -> Result<Python<'s>, LaunchError> {
        let field = format!("{key}.pythonScriptFilePath");
        let expanded = expand(script, env);
        if expanded.trim().is_empty() {
            return Err(LaunchError::new(
                &field,
                format!("`{script}` is empty after expansion; name the script"),
            ));
        }
        let chosen = expand(interpreter, env);
        let interpreter = if chosen.trim().is_empty() {
            self.facts.default_python.clone()
        } else {
            chosen
        };
        Ok(Python {
            key,
            script: expanded,
            interpreter,
        })
    }
}

/// Interpreter and script.
struct Python<'a> {
    key: &'a str,
    script: String,
    interpreter: String,
}

impl Python<'_> {
    fn preflight(&self, env: &Environment, layout: &Layout) -> Preflight {
        Preflight {
            files: vec![(
                format!("{}.pythonScriptFilePath", self.key),
                PathBuf::from(&self.script),
            )],
            programs: vec![(
                format!("{}.pythonInterpreterPath", self.key),
                self.interpreter.clone(),
            )],
            shm_bytes: None,
            path: env.get("PATH").cloned().unwrap_or_default(),
            cwd: layout.job_root.clone(),
        }
    }
}

/// `HOST:PORT`, with brackets where the host is an IPv6 address.
fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests;
