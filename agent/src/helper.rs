//! Work that can hang, in a child process with a deadline.
//!
//! Mounting, unmounting, looking at a job's paths and asking the GPU driver may block in the kernel for ever. Each such
//! request goes as JSON to a child (this same program, hidden subcommand `mount`), and the answer comes back as one
//! line. A child that misses its deadline is killed and abandoned: the agent must never wait for it, since one that
//! hangs in the kernel does not even die.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::confine::Credentials;
use crate::launch::{Preflight, edge};
use crate::{exports, inventory, volumes};

/// Where a helper finds `mount`, `umount` and the programs of mount commands.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Time for removing a scratch directory: local disks do not hang, but a job may leave millions of files.
const REMOVE_DEADLINE: Duration = Duration::from_secs(600);
/// Most bytes of an answer.
const ANSWER_MAX_BYTES: u64 = 1024 * 1024;

/// Starts helpers.
#[derive(Debug, Clone)]
pub struct Helper {
    program: PathBuf,
    deadline: Duration,
}

/// What a helper is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// See [`volumes::mount`].
    Mount(volumes::MountRequest),
    /// See [`volumes::unmount`].
    Unmount { target: PathBuf, lazy: bool },
    /// See [`Helper::remove_tree`].
    RemoveTree { path: PathBuf },
    /// See [`Helper::preflight`].
    Preflight {
        preflight: Preflight,
        user: Credentials,
    },
    /// The GPUs by NVIDIA's management library.
    Nvml,
    /// Finds or makes a directory to export.
    Export(exports::DirectoryRequest),
}

/// Why a helper failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// For people.
    pub(crate) message: String,
    /// What a program that it ran said.
    pub(crate) output: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            output: String::new(),
        }
    }
}

impl Helper {
    /// `program` is this program; `deadline` is the time for one request.
    #[must_use]
    pub fn new(program: PathBuf, deadline: Duration) -> Self {
        Self { program, deadline }
    }

    /// The program, which is also the shim's.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Removes a scratch directory. Refuses while anything is mounted below it, and follows no symbolic link. One that
    /// is not there is no error.
    ///
    /// # Errors
    /// Something is mounted there, or the file system refuses.
    pub async fn remove_tree(&self, path: &Path) -> Result<(), HelperError> {
        self.ask_within(
            &Request::RemoveTree {
                path: path.to_owned(),
            },
            REMOVE_DEADLINE,
        )
        .await
    }

    /// Checks as the job's user what must be true before tasks start.
    ///
    /// # Errors
    /// [`HelperError::Failed`] names the field of the job file and the path.
    pub async fn preflight(
        &self,
        preflight: &Preflight,
        user: &Credentials,
    ) -> Result<(), HelperError> {
        let nothing = preflight.files.is_empty() && preflight.programs.is_empty();
        if nothing && preflight.shm_bytes.is_none() {
            return Ok(());
        }
        self.ask(&Request::Preflight {
            preflight: preflight.clone(),
            user: user.clone(),
        })
        .await
    }

    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        request: &Request,
    ) -> Result<T, HelperError> {
        self.ask_within(request, self.deadline).await
    }

    async fn ask_within<T: DeserializeOwned>(
        &self,
        request: &Request,
        deadline: Duration,
    ) -> Result<T, HelperError> {
        let text = serde_json::to_vec(request).map_err(|error| HelperError::Start(error.into()))?;
        let mut child = tokio::process::Command::new(&self.program)
            .arg("mount")
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(HelperError::Start)?;
        let group = Group(child.id());
        let talk = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A helper that is gone says so by its missing answer.
                let _ = stdin.write_all(&text).await;
            }
            let mut line = String::new();
            if let Some(stdout) = child.stdout.take() {
                // One line and not all until the end: a daemon that a mount command started may hold the pipe.
                BufReader::new(stdout.take(ANSWER_MAX_BYTES))
                    .read_line(&mut line)
                    .await?;
            }
            Ok::<_, io::Error>(line)
        };
        let line = match tokio::time::timeout(deadline, talk).await {
            Ok(line) => line.map_err(HelperError::Start)?,
            // Dropping `group` kills it; the runtime collects the child whenever the kernel lets it go.
            Err(_) => {
                return Err(HelperError::Deadline {
                    what: request.what(),
                    deadline_ms: deadline.as_millis(),
                });
            }
        };
        group.leave();
        let answer: Result<T, Failure> =
            serde_json::from_str(&line).map_err(|_| HelperError::Answer(request.what()))?;
        answer.map_err(|failure| HelperError::Failed {
            message: failure.message,
            output: failure.output,
        })
    }
}

/// The process group of a helper; killed when dropped, also if the caller gave up waiting.
struct Group(Option<u32>);

impl Group {
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Request {
    fn what(&self) -> String {
        match self {
            Self::Mount(request) => format!("mounting {}", request.target.display()),
            Self::Unmount { target, .. } => format!("unmounting {}", target.display()),
            Self::RemoveTree { path } => format!("removing {}", path.display()),
            Self::Preflight { .. } => "looking for the job's script and interpreter".to_owned(),
            Self::Nvml => "asking NVIDIA's management library".to_owned(),
            Self::Export(request) => {
                format!("looking at the directory of file server {}", request.uid)
            }
        }
    }
}

/// Entry point of the hidden subcommand.
#[must_use]
pub fn main() -> ExitCode {
    let mut text = String::new();
    let request = io::stdin()
        .lock()
        .read_to_string(&mut text)
        .map_err(io::Error::other)
        .and_then(|_| serde_json::from_str::<Request>(&text).map_err(io::Error::other));
    let answer = match request {
        Ok(request) => perform(request),
        Err(error) => Err(Failure::new(format!(
            "cannot understand the request: {error}"
        ))),
    };
    let Ok(mut line) = serde_json::to_vec(&answer) else {
        return ExitCode::FAILURE;
    };
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&line).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn perform(request: Request) -> Result<serde_json::Value, Failure> {
    let nothing = |()| serde_json::Value::Null;
    match request {
        Request::Mount(request) => volumes::perform_mount(&request).map(nothing),
        Request::Unmount { target, lazy } => {
            let outcome = volumes::perform_unmount(&target, lazy)?;
            serde_json::to_value(outcome).map_err(|error| Failure::new(error.to_string()))
        }
        Request::RemoveTree { path } => remove_tree(&path).map(nothing),
        Request::Preflight { preflight, user } => {
            user.assume()
                .map_err(|error| Failure::new(format!("cannot become the job's user: {error}")))?;
            edge::check(&preflight).map_err(Failure::new).map(nothing)
        }
        Request::Export(request) => serde_json::to_value(exports::perform(&request))
            .map_err(|error| Failure::new(error.to_string())),
        Request::Nvml => {
            let gpus = inventory::perform_nvml()?;
            serde_json::to_value(gpus).map_err(|error| Failure::new(error.to_string()))
        }
    }
}

fn remove_tree(path: &Path) -> Result<(), Failure> {
    let mounted = volumes::mounts_below(path).map_err(|error| Failure::new(error.to_string()))?;
    if let Some(mount) = mounted.first() {
        return Err(Failure::new(format!(
            "{} is not removed, because {} is still mounted",
            path.display(),
            mount.display()
        )));
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::new(format!(
            "cannot remove {}: {error}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It hung.
    #[error("{what} took longer than {deadline_ms} ms and was given up")]
    Deadline {
        /// What was being done.
        what: String,
        /// The time it had.
        deadline_ms: u128,
    },
    /// It was refused.
    #[error("{message}")]
    Failed {
        /// For people.
        message: String,
        /// What a program that was run said; may be empty.
        output: String,
    },
    /// The helper did not start.
    #[error("cannot start a helper process: {0}")]
    Start(io::Error),
    /// The helper died.
    #[error("{0}: the helper process ended without an answer")]
    Answer(String),
}
