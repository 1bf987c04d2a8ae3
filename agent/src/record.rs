//! What an attempt leaves on the disk so that a restarted agent can go on: `assignment.pb` and `attempt.json` in the
//! state directory of the attempt.
//!
//! Owned by the runner of the attempt; read by a starting agent. It survives the death of the agent, not a power
//! cut: after one the tasks are dead as well, so nothing is fsynced. Never holds secret values.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use trainyard_proto::v1::{
    Assignment, AttemptNodePhase, AttemptNodeStatus, BatchAiError, NameValuePair,
};

use crate::layout::Dirs;
use crate::reconcile::AttemptKey;

const ASSIGNMENT: &str = "assignment.pb";
const PROGRESS: &str = "attempt.json";

/// How far an attempt is, beyond what the scheduler is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Boot of the host in which the attempt was begun: its mounts and tasks live in no other.
    pub boot_id: String,
    /// The job preparation ended with 0, or there is none.
    pub prepared: bool,
    /// Tasks may have been started.
    pub launched: bool,
    /// The execution log was copied to the share at least once.
    pub log_on_share: bool,
    /// Files of the stdouterr directory to which nothing more will be written.
    pub closed_files: Vec<String>,
    /// Where output directories lie, for serving their files: id and path. Those on mounts vanish with the mount;
    /// those on the node's own directories are found for as long as this record.
    pub directories: Vec<Directory>,
    /// What the scheduler is told.
    pub status: Status,
}

/// An output directory by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// `stdouterr` or the id of an output directory.
    pub id: String,
    /// Its path while the attempt lives.
    pub path: PathBuf,
    /// Its path without the mounts of the attempt, where there is one.
    pub lasting: Option<PathBuf>,
}

/// [`AttemptNodeStatus`] in a form that people can read on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `ATTEMPT_NODE_PHASE_...`.
    pub phase: String,
    /// See the protocol.
    pub exit_code: Option<i32>,
    /// See the protocol.
    pub errors: Vec<Problem>,
    /// See the protocol.
    pub files: Vec<String>,
    /// See the protocol.
    pub rendezvous_port: u32,
    /// Seconds since 1970 and nanoseconds.
    pub failure_time: Option<(i64, i32)>,
}

/// [`BatchAiError`] on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// See the protocol.
    pub code: String,
    /// See the protocol.
    pub message: String,
    /// Names and values.
    pub details: Vec<(String, String)>,
}

impl From<&BatchAiError> for Problem {
    fn from(error: &BatchAiError) -> Problem {
        Problem {
            code: error.code.clone(),
            message: error.message.clone(),
            details: error
                .details
                .iter()
                .map(|detail| (detail.name.clone(), detail.value.clone()))
                .collect(),
        }
    }
}

impl Status {
    /// From the protocol's form.
    #[must_use]
    pub fn of(status: &AttemptNodeStatus) -> Status {
        Status {
            phase: status.phase().as_str_name().to_owned(),
            exit_code: status.exit_code,
            errors: status.errors.iter().map(Problem::from).collect(),
            files: status.files.clone(),
            rendezvous_port: status.rendezvous_port,
            failure_time: status.failure_time.as_ref().map(|t| (t.seconds, t.nanos)),
        }
    }

    /// To the protocol's form. A phase that this version does not know counts as preparing.
    #[must_use]
    pub fn to_proto(&self) -> AttemptNodeStatus {
        let phase =
            AttemptNodePhase::from_str_name(&self.phase).unwrap_or(AttemptNodePhase::Preparing);
        AttemptNodeStatus {
            phase: phase.into(),
            exit_code: self.exit_code,
            errors: self
                .errors
                .iter()
                .map(|problem| BatchAiError {
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
                })
                .collect(),
            files: self.files.clone(),
            rendezvous_port: self.rendezvous_port,
            failure_time: self
                .failure_time
                .map(|(seconds, nanos)| Timestamp { seconds, nanos }),
        }
    }
}

/// An attempt as found on the disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its state directory.
    pub dir: PathBuf,
    /// What it was assigned, without secrets.
    pub assignment: Assignment,
    /// How far it was.
    pub progress: Progress,
}

impl Found {
    /// Whether nothing but logs is left of it.
    #[must_use]
    pub fn is_cleaned(&self) -> bool {
        self.progress.status.phase == AttemptNodePhase::Cleaned.as_str_name()
    }
}

/// Begins the record of an attempt: makes its directory and stores the assignment.
///
/// # Errors
/// When the agent's own disk refuses.
pub fn begin(dir: &Path, assignment: &Assignment) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let mut stored = assignment.clone();
    if let Some(spec) = &mut stored.spec {
        spec.secrets.clear();
    }
    replace(&dir.join(ASSIGNMENT), &stored.encode_to_vec())
}

/// Stores how far an attempt is.
///
/// # Errors
/// When the agent's own disk refuses.
pub fn store(dir: &Path, progress: &Progress) -> io::Result<()> {
    replace(&dir.join(PROGRESS), &serde_json::to_vec(progress)?)
}

/// Reads one attempt.
///
/// # Errors
/// When a file is missing or damaged, as a power cut can leave it.
pub fn read(dir: &Path) -> io::Result<Found> {
    let assignment = Assignment::decode(fs::read(dir.join(ASSIGNMENT))?.as_slice())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let progress = serde_json::from_slice(&fs::read(dir.join(PROGRESS))?)?;
    Ok(Found {
        dir: dir.to_owned(),
        assignment,
        progress,
    })
}

/// What lies on the disk.
#[derive(Debug, Default)]
pub struct Scan {
    /// The attempts, oldest first.
    pub found: Vec<Found>,
    /// Directories that hold no usable record, and why.
    pub unreadable: Vec<(PathBuf, io::Error)>,
}

/// Reads every attempt on the node. Those that cannot be read come back by directory.
///
/// # Errors
/// When the directory of attempts itself cannot be read. A missing one holds nothing.
pub fn scan(dirs: &Dirs) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let attempts = match fs::read_dir(dirs.attempts()) {
        Ok(attempts) => attempts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(scan),
        Err(error) => return Err(error),
    };
    for attempt in attempts {
        let dir = attempt?.path();
        match read(&dir) {
            Ok(attempt) => {
                let key = AttemptKey::of(&attempt.assignment);
                if dirs.state_dir(&key.uid, key.attempt) == dir {
                    scan.found.push(attempt);
                } else {
                    let message = format!("holds the record of attempt {key}");
                    let error = io::Error::new(io::ErrorKind::InvalidData, message);
                    scan.unreadable.push((dir, error));
                }
            }
            Err(error) => scan.unreadable.push((dir, error)),
        }
    }
    scan.found.sort_by_key(|attempt| attempt.assignment.epoch);
    Ok(scan)
}

/// Replaces a file as a whole; a reader sees the old or the new bytes.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use io::Write as _;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::{EnvironmentVariableWithSecretValue, JobSpec};

    fn assignment() -> Assignment {
        Assignment {
            job: "workspaces/w/experiments/e/jobs/j".to_owned(),
            uid: "u-1".to_owned(),
            attempt: 2,
            epoch: 7,
            spec: Some(JobSpec {
                secrets: vec![EnvironmentVariableWithSecretValue {
                    name: "TOKEN".to_owned(),
                    value: "hush".to_owned(),
                    value_secret_reference: None,
                }],
                ..JobSpec::default()
            }),
            ..Assignment::default()
        }
    }

    #[test]
    fn an_attempt_is_found_again_without_its_secrets() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().to_owned());
        let dir = dirs.state_dir("u-1", 2);
        begin(&dir, &assignment()).unwrap();
        let status = AttemptNodeStatus {
            phase: AttemptNodePhase::Exited.into(),
            exit_code: Some(3),
            errors: vec![BatchAiError {
                code: "JobFailed".to_owned(),
                message: "no".to_owned(),
                details: vec![NameValuePair {
                    name: "a".to_owned(),
                    value: "b".to_owned(),
                }],
            }],
            files: vec!["stdout.txt".to_owned()],
            rendezvous_port: 5,
            failure_time: Some(Timestamp {
                seconds: 1,
                nanos: 2,
            }),
        };
        let progress = Progress {
            boot_id: "b".to_owned(),
            launched: true,
            status: Status::of(&status),
            ..Progress::default()
        };
        store(&dir, &progress).unwrap();

        let Scan { found, unreadable } = scan(&dirs).unwrap();
        assert!(unreadable.is_empty());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].progress, progress);
        assert_eq!(found[0].progress.status.to_proto(), status);
        assert_eq!(found[0].assignment.epoch, 7);
        let bytes = fs::read(dir.join(ASSIGNMENT)).unwrap();
        assert!(!bytes.windows(4).any(|w| w == b"hush"));
    }

    #[test]
    fn damaged_and_misplaced_records_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().to_owned());
        begin(&dirs.state_dir("u-1", 2), &assignment()).unwrap();
        let misplaced = dirs.state_dir("other", 2);
        begin(&misplaced, &assignment()).unwrap();
        store(&misplaced, &Progress::default()).unwrap();
        let Scan { found, unreadable } = scan(&dirs).unwrap();
        assert!(found.is_empty());
        assert_eq!(unreadable.len(), 2);
        let nothing = scan(&Dirs::new(root.path().join("nothing"))).unwrap();
        assert!(nothing.found.is_empty());
    }
}
