//! Where everything of an attempt lies on its node: roots, mount points, output tree and file names.
//!
//! [`Layout::new`] is pure, so that a restarted agent finds the same paths again from the stored assignment. Only
//! [`Dirs::prepare`] and [`Layout::make_local`] touch the disk, and only below the agent's data directory; nothing here
//! may touch a path on a job's volume, which can hang.
//!
//! ```text
//! DATA/lease                           deadline of the node's lease
//! DATA/mounts/W/C/...                  volumes of a cluster            $AZ_BATCHAI_MOUNT_ROOT
//! DATA/setup/                          set-up for a cluster, see crate::setup
//! DATA/jobs/UID12-N/                   scratch of an attempt           $AZ_BATCHAI_JOB_TEMP
//! DATA/jobs/UID12-N/mounts/...         volumes of the job              $AZ_BATCHAI_JOB_MOUNT_ROOT
//! DATA/jobs/UID12-N/shared             directory or link to the next   $AZ_BATCHAI_SHARED_JOB_TEMP
//! PREFIX/SEGMENT/shared[-N]/           the same, common to all nodes; N from the second attempt on
//! DATA/attempts/UID-N/tasks/NAME/      pid file and exit record of a task
//! DATA/spool/UID-N/                    local copy of the stdouterr files
//! PREFIX/SEGMENT/stdouterr/            the same on the job's volume
//! PREFIX/SEGMENT/outputs[/SUFFIX]      an output directory
//! ```
//!
//! The scratch directory has a short name because Open MPI keeps sockets below it, whose paths end at 108 bytes.
//!
//! The shared directory lies beside stdouterr where a job of several nodes keeps that on a volume, and in the scratch
//! directory otherwise. The scratch directory is removed with the attempt. What lies on a volume stays, for whoever owns
//! the volume to remove: no node knows whether another still uses it. That holds for a host path too, since the agent
//! cannot tell a disk of the node from a share that the host has mounted. The next attempt has a directory of its own: a
//! file by which the ranks of this one found each other would mislead it.

mod dirs;
mod paths;
mod variables;

use std::path::{Component, Path, PathBuf};

use trainyard_proto::v1::{Assignment, Volume};

use crate::confine::TaskUser;
use crate::environment::{Environment, expand};

pub use dirs::Dirs;
use paths::cluster_ids;
pub(crate) use paths::{absolute, file_name, last_segment, relative};

/// Longest scratch directory that still gets a `TMPDIR` of its own: below a longer one, sockets in temporary
/// directories would pass the limit of 108 bytes.
const TEMP_PATH_MAX: usize = 64;

/// What the node knows and the assignment does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Network interface that holds the node's address.
    pub interface: Option<String>,
    /// User of tasks.
    pub task_user: TaskUser,
    /// Users besides `task_user` that a cluster may choose.
    pub further_users: Vec<TaskUser>,
    /// User of tasks where the workspace allows root.
    pub root_user: TaskUser,
    /// `PATH` of tasks.
    pub path: String,
    /// Interpreter where the job names none; see [`crate::launch::default_python`].
    pub default_python: String,
    /// Port for the rendezvous where the assignment names none (an attempt of one node).
    pub rendezvous_port: u16,
}

impl Facts {
    /// The user of an attempt's tasks.
    ///
    /// # Errors
    /// The cluster chose one that this node's agent does not allow.
    pub fn user_of(&self, assignment: &Assignment) -> Result<&TaskUser, LayoutError> {
        if assignment.run_as_root {
            return Ok(&self.root_user);
        }
        let wanted = assignment.task_user.as_str();
        if wanted.is_empty() {
            return Ok(&self.task_user);
        }
        std::iter::once(&self.task_user)
            .chain(&self.further_users)
            .find(|user| user.name == wanted)
            .ok_or_else(|| {
                LayoutError::new(
                    "userAccountSettings.adminUserName",
                    format!(
                        "this node's agent does not run tasks as `{wanted}`; add it to task_users of its agent.toml, or \
                         name another user for the cluster"
                    ),
                )
            })
    }

    /// Names of the users that tasks may run as, the default first.
    #[must_use]
    pub fn user_names(&self) -> Vec<String> {
        let mut names = vec![self.task_user.name.clone()];
        for user in &self.further_users {
            if !names.contains(&user.name) {
                names.push(user.name.clone());
            }
        }
        names
    }
}

/// A directory of the job's, with its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPath {
    /// Id in the job file.
    pub id: String,
    /// Absolute.
    pub path: PathBuf,
}

/// A directory to make as the job's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryRequest {
    /// The directory, absolute.
    pub path: PathBuf,
    /// The volume it lies on. Only beneath it may root help where the user may not write.
    pub below: Option<PathBuf>,
}

/// A volume and where it appears.
#[derive(Debug, Clone, PartialEq)]
pub struct MountPoint {
    /// What to mount.
    pub volume: Volume,
    /// Where, absolute.
    pub target: PathBuf,
}

/// All paths of an attempt on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Id of this node, for file names.
    pub node: String,
    /// Which of the nodes it is; 0 is the master.
    pub node_index: usize,
    /// Whether the attempt holds several nodes.
    pub several_nodes: bool,
    /// UUID of the job.
    pub uid: String,
    /// Number of the attempt.
    pub attempt: u32,
    /// Root of the cluster's volumes.
    pub mount_root: PathBuf,
    /// Scratch directory.
    pub job_root: PathBuf,
    /// Root of the job's volumes.
    pub job_mounts: PathBuf,
    /// Directory that all nodes of the job share where they can: see `shared_target`.
    pub shared_temp: PathBuf,
    /// Where `shared_temp` points to: a directory beside stdouterr, if that lies on a volume and there are several
    /// nodes; it is never removed. Else `shared_temp` is local and goes with the attempt.
    pub shared_target: Option<PathBuf>,
    /// `TMPDIR`, if the path is short enough.
    pub temp: Option<PathBuf>,
    /// Open MPI's host file.
    pub hostfile: PathBuf,
    /// What the host file says.
    pub hostfile_text: String,
    /// State of the attempt.
    pub state_dir: PathBuf,
    /// Local copies of the stdouterr files.
    pub spool_dir: PathBuf,
    /// Where stdout, stderr and logs go.
    pub stdouterr_dir: PathBuf,
    /// Output directories, in the order of the job file.
    pub outputs: Vec<NamedPath>,
    /// Input directories, in the order of the job file.
    pub inputs: Vec<NamedPath>,
    /// User of the tasks.
    pub user: TaskUser,
    /// Variables of every task, without the user's.
    pub environment: Environment,
    /// The user's variables as written, in order.
    user_variables: Vec<(String, String)>,
    /// Mount points of both levels, for [`Self::share_directories`].
    mount_targets: Vec<PathBuf>,
    /// Whether the user may choose among the node's GPUs.
    whole_node: bool,
}

impl Layout {
    /// Lays an attempt out.
    ///
    /// # Errors
    /// A path of the job is not absolute after expansion, leaves its root, or a name cannot be a file name.
    pub fn new(dirs: &Dirs, assignment: &Assignment, facts: &Facts) -> Result<Self, LayoutError> {
        let spec = assignment
            .spec
            .as_ref()
            .ok_or_else(|| LayoutError::new("spec", "is missing"))?;
        let node_index = assignment.node_index as usize;
        let node = assignment
            .nodes
            .get(node_index)
            .ok_or_else(|| LayoutError::new("nodeIndex", "names no node of the attempt"))?;
        let node_name = file_name("nodes", last_segment(&node.node))?;
        let uid = file_name("uid", &assignment.uid)?;
        let attempt = assignment.attempt;
        let several_nodes = assignment.nodes.len() > 1;
        let [workspace, cluster] = cluster_ids(&assignment.cluster)?;

        let mount_root = dirs.mounts().join(&workspace).join(&cluster);
        let short: String = uid.chars().filter(|c| *c != '-').take(12).collect();
        let job_root = dirs.jobs().join(format!("{short}-{attempt}"));
        let user = facts.user_of(assignment)?;
        let mut layout = Self {
            node: node_name,
            node_index,
            several_nodes,
            attempt,
            mount_root,
            job_mounts: job_root.join("mounts"),
            shared_temp: job_root.join("shared"),
            shared_target: None,
            temp: Some(job_root.join("tmp")).filter(|temp| temp.as_os_str().len() <= TEMP_PATH_MAX),
            hostfile: job_root.join("hostfile"),
            hostfile_text: hostfile(assignment),
            state_dir: dirs.state_dir(&uid, attempt),
            spool_dir: dirs.spool_dir(&uid, attempt),
            stdouterr_dir: PathBuf::new(),
            outputs: Vec::new(),
            inputs: Vec::new(),
            user: user.clone(),
            environment: Environment::new(),
            user_variables: spec
                .environment_variables
                .iter()
                .map(|variable| (variable.name.clone(), variable.value.clone()))
                .chain(
                    spec.secrets
                        .iter()
                        .map(|secret| (secret.name.clone(), secret.value.clone())),
                )
                .collect(),
            mount_targets: Vec::new(),
            whole_node: node.whole_node,
            uid,
            job_root,
        };
        layout.mount_targets = layout.targets(assignment)?;
        layout.environment = layout.base_environment(assignment, facts);
        layout.resolve_paths(assignment)?;
        Ok(layout)
    }

    /// Expands the paths of the job file and makes variables of them.
    fn resolve_paths(&mut self, assignment: &Assignment) -> Result<(), LayoutError> {
        let Some(spec) = &assignment.spec else {
            return Ok(());
        };
        let segment = relative("pathSegment", &assignment.path_segment)?;
        // Paths may use the user's variables, which in turn may use the roots.
        let mut visible = self.environment.clone();
        self.add_user_variables(&mut visible);

        let prefix = absolute(
            "stdOutErrPathPrefix",
            &spec.std_out_err_path_prefix,
            &visible,
        )?;
        self.stdouterr_dir = prefix.join(&segment).join("stdouterr");
        if self.several_nodes && self.volume_of(&prefix).is_some() {
            // Of this attempt alone: a file by which ranks find each other must not be taken for that of the next.
            let name = match self.attempt {
                0 | 1 => "shared".to_owned(),
                attempt => format!("shared-{attempt}"),
            };
            self.shared_target = Some(prefix.join(&segment).join(name));
        }
        let mut found = vec![(
            "AZ_BATCHAI_STDOUTERR_DIR".to_owned(),
            self.stdouterr_dir.clone(),
        )];

        for (index, output) in spec.output_directories.iter().enumerate() {
            let field = format!("outputDirectories[{index}].pathPrefix");
            let mut path = absolute(&field, &output.path_prefix, &visible)?
                .join(&segment)
                .join("outputs");
            let suffix = expand(&output.path_suffix, &visible);
            let suffix = relative(
                &format!("outputDirectories[{index}].pathSuffix"),
                suffix.trim_start_matches('/'),
            )?;
            if !suffix.as_os_str().is_empty() {
                path.push(suffix);
            }
            found.push((format!("AZ_BATCHAI_OUTPUT_{}", output.id), path.clone()));
            self.outputs.push(NamedPath {
                id: output.id.clone(),
                path,
            });
        }
        for input in &spec.input_directories {
            let path = PathBuf::from(expand(&input.path, &visible));
            found.push((format!("AZ_BATCHAI_INPUT_{}", input.id), path.clone()));
            self.inputs.push(NamedPath {
                id: input.id.clone(),
                path,
            });
        }
        self.environment.extend(
            found
                .into_iter()
                .map(|(name, path)| (name, path.to_string_lossy().into_owned())),
        );
        Ok(())
    }

    /// Volumes of the cluster, in order.
    #[must_use]
    pub fn cluster_mounts(&self, assignment: &Assignment) -> Vec<MountPoint> {
        mount_points(&self.mount_root, &assignment.cluster_volumes)
    }

    /// Volumes of the job, in order.
    #[must_use]
    pub fn job_mounts(&self, assignment: &Assignment) -> Vec<MountPoint> {
        mount_points(&self.job_mounts, &assignment.job_volumes)
    }

    fn targets(&self, assignment: &Assignment) -> Result<Vec<PathBuf>, LayoutError> {
        check_relative(&assignment.cluster_volumes)?;
        check_relative(&assignment.job_volumes)?;
        let mounts = self
            .cluster_mounts(assignment)
            .into_iter()
            .chain(self.job_mounts(assignment));
        let targets: Vec<PathBuf> = mounts.map(|mount| mount.target).collect();
        check_separate(&targets, &[&self.mount_root, &self.job_mounts])?;
        Ok(targets)
    }

    /// The innermost volume that a path lies on.
    fn volume_of(&self, path: &Path) -> Option<&PathBuf> {
        self.mount_targets
            .iter()
            .filter(|target| path.starts_with(target))
            .max_by_key(|target| target.as_os_str().len())
    }

    /// Directory of an output directory id or of the reserved id `stdouterr`.
    #[must_use]
    pub fn output_dir(&self, id: &str) -> Option<&Path> {
        if id == "stdouterr" {
            return Some(&self.stdouterr_dir);
        }
        self.outputs
            .iter()
            .find(|output| output.id == id)
            .map(|output| output.path.as_path())
    }

    /// Directories to make once the volumes are mounted.
    #[must_use]
    pub fn share_directories(&self) -> Vec<DirectoryRequest> {
        let outputs = self.outputs.iter().map(|output| &output.path);
        std::iter::once(&self.stdouterr_dir)
            .chain(outputs)
            .chain(&self.shared_target)
            .map(|path| DirectoryRequest {
                path: path.clone(),
                below: self.volume_of(path).cloned(),
            })
            .collect()
    }

    /// Name of the log of steps.
    #[must_use]
    pub fn execution_log(&self) -> String {
        if self.several_nodes {
            format!("execution-{}.log", self.node)
        } else {
            "execution.log".to_owned()
        }
    }

    /// Names of the files of the job preparation: stdout, stderr.
    #[must_use]
    pub fn preparation_files(&self) -> (String, String) {
        let node = if self.several_nodes {
            format!("-{}", self.node)
        } else {
            String::new()
        };
        (
            format!("stdout-job_prep{node}.txt"),
            format!("stderr-job_prep{node}.txt"),
        )
    }

    /// Local copy of a stdouterr file.
    #[must_use]
    pub fn spool(&self, name: &str) -> PathBuf {
        self.spool_dir.join(name)
    }

    /// Directory of a task's pid file and exit record.
    #[must_use]
    pub fn task_dir(&self, task: &str) -> PathBuf {
        self.state_dir.join("tasks").join(task)
    }
}

/// The mount root of a cluster on this node, and its volumes with their mount points, in order.
///
/// # Errors
/// A name or path of the cluster cannot be used.
pub fn cluster_volumes(
    dirs: &Dirs,
    cluster: &str,
    volumes: &[Volume],
) -> Result<(PathBuf, Vec<MountPoint>), LayoutError> {
    let [workspace, id] = cluster_ids(cluster)?;
    let root = dirs.mounts().join(workspace).join(id);
    check_relative(volumes)?;
    let mounts = mount_points(&root, volumes);
    let targets: Vec<PathBuf> = mounts.iter().map(|mount| mount.target.clone()).collect();
    check_separate(&targets, &[&root])?;
    Ok((root, mounts))
}

fn check_relative(volumes: &[Volume]) -> Result<(), LayoutError> {
    for volume in volumes {
        let path = relative("relativeMountPath", &volume.relative_mount_path)?;
        if path.as_os_str().is_empty() {
            return Err(LayoutError::new(
                "relativeMountPath",
                "is empty; name a directory below the mount root",
            ));
        }
    }
    Ok(())
}

/// Root makes mount points: below another volume, its user could lead root elsewhere by a symbolic link.
fn check_separate(targets: &[PathBuf], roots: &[&PathBuf]) -> Result<(), LayoutError> {
    for (index, target) in targets.iter().enumerate() {
        let below = targets
            .iter()
            .enumerate()
            .any(|(other, outer)| other != index && target.starts_with(outer));
        if below {
            let path = roots
                .iter()
                .find_map(|root| target.strip_prefix(root).ok())
                .unwrap_or(target)
                .display();
            return Err(LayoutError::new(
                "relativeMountPath",
                format!(
                    "`{path}` is the same as or lies below another volume's; give each a directory of its own"
                ),
            ));
        }
    }
    Ok(())
}

/// A path of the job that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct LayoutError {
    /// Field of the job file.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl LayoutError {
    pub(crate) fn new(field: &str, message: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            message: message.into(),
        }
    }
}

fn mount_points(root: &Path, volumes: &[Volume]) -> Vec<MountPoint> {
    volumes
        .iter()
        .map(|volume| {
            let relative = Path::new(&volume.relative_mount_path).components();
            // As the mount table writes it: no `.`, no double slash.
            let relative: PathBuf = relative.filter(|part| *part != Component::CurDir).collect();
            MountPoint {
                volume: volume.clone(),
                target: root.join(relative),
            }
        })
        .collect()
}

/// One host per line with a slot per GPU, or one slot.
fn hostfile(assignment: &Assignment) -> String {
    assignment
        .nodes
        .iter()
        .map(|node| format!("{} slots={}\n", node.address, node.gpus.len().max(1)))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
