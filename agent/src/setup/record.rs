//! What the set-up leaves on the disk, so that a restarted agent neither repeats nor forgets it: `order.pb` and
//! `setup.json` in `DATA/setup`. Never holds secret values.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use prost::Message;
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use trainyard_proto::v1::{
    BatchAiError, NameValuePair, NodeSetupOrder, NodeSetupPhase, NodeSetupStatus, ObservedSetup,
};

use super::decide::Held;
use crate::record::{Problem, replace};

const ORDER: &str = "order.pb";
const PROGRESS: &str = "setup.json";

/// How far a set-up is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Which order it belongs to.
    pub epoch: u64,
    /// Boot for which it is done.
    pub boot_id: String,
    /// How many times it was begun for the cluster, from 1; names the files of this time.
    pub run: u32,
    /// The setup task may have been started.
    pub started: bool,
    /// The execution log of this run was copied to the share at least once.
    pub log_on_share: bool,
    /// `NODE_SETUP_PHASE_...`.
    pub phase: String,
    /// What failed.
    pub errors: Vec<Problem>,
    /// When it ended: seconds since 1970 and nanoseconds.
    pub end_time: Option<(i64, i32)>,
    /// Exit status of the setup task.
    pub exit_code: Option<i32>,
}

/// A set-up as it is on the node.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was ordered, without secrets.
    pub order: NodeSetupOrder,
    /// How far it is.
    pub progress: Progress,
}

impl Progress {
    /// As the protocol has it. A phase that this version does not know counts as preparing.
    #[must_use]
    pub fn phase(&self) -> NodeSetupPhase {
        NodeSetupPhase::from_str_name(&self.phase).unwrap_or(NodeSetupPhase::Preparing)
    }

    pub(super) fn set_phase(&mut self, phase: NodeSetupPhase) {
        self.phase = phase.as_str_name().to_owned();
    }
}

impl Record {
    /// For the decision.
    #[must_use]
    pub fn held(&self) -> Held {
        let codes = ["MountError", "FileServerMountError"];
        let first = self.progress.errors.first();
        Held {
            cluster_uid: self.order.cluster_uid.clone(),
            epoch: self.progress.epoch,
            boot_id: self.progress.boot_id.clone(),
            phase: self.progress.phase(),
            mount_failed: first.is_some_and(|error| codes.contains(&error.code.as_str())),
        }
    }

    /// For the scheduler.
    #[must_use]
    pub fn observed(&self) -> ObservedSetup {
        let progress = &self.progress;
        ObservedSetup {
            cluster: self.order.cluster.clone(),
            cluster_uid: self.order.cluster_uid.clone(),
            status: Some(NodeSetupStatus {
                epoch: progress.epoch,
                phase: progress.phase().into(),
                errors: progress.errors.iter().map(error).collect(),
                boot_id: progress.boot_id.clone(),
                end_time: progress
                    .end_time
                    .map(|(seconds, nanos)| Timestamp { seconds, nanos }),
                exit_code: progress.exit_code,
            }),
        }
    }

    /// Writes it below `dir`, which is made.
    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let mut order = self.order.clone();
        if let Some(task) = &mut order.setup_task {
            task.secrets.clear();
        }
        // Between the two the epochs differ, and what is found then is nothing that was carried out.
        replace(&dir.join(ORDER), &order.encode_to_vec())?;
        self.store_progress(dir)
    }

    /// Writes how far it is.
    pub(super) fn store_progress(&self, dir: &Path) -> io::Result<()> {
        replace(
            &dir.join(PROGRESS),
            &serde_json::to_vec_pretty(&self.progress)?,
        )
    }
}

/// Reads what an earlier life of the agent left.
///
/// # Errors
/// It is damaged.
pub fn read(dir: &Path) -> io::Result<Option<Record>> {
    let order = match fs::read(dir.join(ORDER)) {
        Ok(bytes) => NodeSetupOrder::decode(bytes.as_slice())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut progress: Progress = match fs::read(dir.join(PROGRESS)) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        // The agent died before the first step.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Progress::default(),
        Err(error) => return Err(error),
    };
    if progress.epoch != order.epoch {
        // That of an earlier order, of which a task may still run; the difference makes it be done anew.
        progress.set_phase(NodeSetupPhase::Preparing);
    }
    Ok(Some(Record { order, progress }))
}

pub(super) fn problem(
    code: &str,
    message: String,
    details: impl IntoIterator<Item = (&'static str, String)>,
) -> Problem {
    Problem {
        code: code.to_owned(),
        message,
        details: details
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}

fn error(problem: &Problem) -> BatchAiError {
    BatchAiError {
        code: problem.code.clone(),
        message: problem.message.clone(),
        details: problem
            .details
            .iter()
            .map(|(name, value)| NameValuePair {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::{EnvironmentVariableWithSecretValue, SetupTask};

    fn record() -> Record {
        Record {
            order: NodeSetupOrder {
                cluster: "workspaces/w/clusters/c".to_owned(),
                cluster_uid: "u".to_owned(),
                epoch: 7,
                setup_task: Some(SetupTask {
                    command_line: "true".to_owned(),
                    secrets: vec![EnvironmentVariableWithSecretValue {
                        name: "TOKEN".to_owned(),
                        value: "hush".to_owned(),
                        value_secret_reference: None,
                    }],
                    ..SetupTask::default()
                }),
                ..NodeSetupOrder::default()
            },
            progress: Progress {
                epoch: 7,
                boot_id: "b".to_owned(),
                run: 1,
                exit_code: Some(3),
                phase: NodeSetupPhase::Failed.as_str_name().to_owned(),
                errors: vec![problem(
                    "NodeSetupTaskFailed",
                    "no".to_owned(),
                    [("exitCode", "3".to_owned())],
                )],
                end_time: Some((1, 2)),
                ..Progress::default()
            },
        }
    }

    #[test]
    fn a_result_is_found_again_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let written = record();
        written.store(dir.path()).unwrap();
        let found = read(dir.path()).unwrap().unwrap();
        assert_eq!(found.progress, written.progress);
        assert_eq!(found.observed(), written.observed());
        let bytes = fs::read(dir.path().join(ORDER)).unwrap();
        assert!(!bytes.windows(4).any(|window| window == b"hush"));
    }

    #[test]
    fn an_order_whose_first_step_was_never_stored_is_carried_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = record();
        written.store(dir.path()).unwrap();
        written.order.epoch = 9;
        replace(&dir.path().join(ORDER), &written.order.encode_to_vec()).unwrap();
        let held = read(dir.path()).unwrap().unwrap().held();
        assert_eq!((held.epoch, held.phase), (7, NodeSetupPhase::Preparing));
        std::fs::remove_file(dir.path().join(PROGRESS)).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().held().epoch, 0);
        fs::write(dir.path().join(PROGRESS), "torn").unwrap();
        assert!(read(dir.path()).is_err());
    }
}
