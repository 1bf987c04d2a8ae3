//! The shim: a small supervisor process around each task that outlives the agent.
//!
//! ```text
//! agent --spawn--> shim (own session, subreaper) --fork--> task (own process group, job's user)
//!                   |  \--clone--> copier (job's user): spool -> stdouterr directory
//!                   `-- DIR/pid, DIR/exit
//! ```
//!
//! The shim reads its [`TaskSpec`] from stdin (so that no variable of a job is ever in an argument or a file), answers
//! one line on stdout once the task runs, and from then on needs nobody. It ends the task when told to (SIGTERM: SIGTERM
//! to all of it and after the grace SIGKILL; SIGINT or SIGQUIT: SIGKILL at once) and by itself when the node's lease
//! passes. When the task's first process has ended it ends whatever that left behind, lets the copier bring the last
//! bytes to the share, and only then writes the exit record: a record means that nothing of the task is left.
//!
//! It must never wait for the job's volumes (only the copier touches them, and is abandoned when it hangs), never use
//! threads or tokio (it forks, and there is one per task), and never keep a task alive without a lease.

mod copier;
mod handle;
pub mod processes;
mod supervise;
pub(crate) mod sys;
mod task;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::confine::Credentials;

pub use handle::{AdoptError, Adopted, Control, Handle, SpawnError, TaskLost, adopt, spawn};
pub use processes::is_alive as alive;

/// Milliseconds that the copier has for the last bytes once the task has ended.
pub const COPY_DEADLINE_MS: u64 = 5_000;
/// Milliseconds after SIGKILL until a process that does not end (it hangs in the kernel) is given up and reported.
pub const KILL_DEADLINE_MS: u64 = 10_000;

/// What a shim runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Name of the task, for messages.
    pub name: String,
    /// Directory for the pid file and the exit record, of this task alone.
    pub dir: PathBuf,
    /// Program, absolute, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Who to run as. Ignored if the agent is not root.
    pub user: Credentials,
    /// Who brings the output to the job's volume. Never root where others can write there: it would follow their
    /// links. Ignored if the agent is not root.
    pub copy_as: Credentials,
    /// Where stdout goes.
    pub stdout: Stream,
    /// Where stderr goes.
    pub stderr: Stream,
    /// cgroup v2 group to make for the task.
    pub group: Option<PathBuf>,
    /// Deadline of the node's lease: nanoseconds of `CLOCK_BOOTTIME`, u64 little-endian. Absent: no lease.
    pub lease_file: Option<PathBuf>,
    /// Number of the attempt: from the second on, older files on the share are kept under another name.
    pub attempt: u32,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub stop_grace_ms: u64,
    /// See [`COPY_DEADLINE_MS`].
    pub copy_deadline_ms: u64,
    /// See [`KILL_DEADLINE_MS`].
    pub kill_deadline_ms: u64,
}

/// Where an output stream goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Local file; appended to.
    pub spool: PathBuf,
    /// File on the job's volume that follows it.
    pub share: Option<PathBuf>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit status; 128+N for signal N; -1 if it never started.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it ended.
    pub reason: ExitReason,
    /// A sentence for people; empty where there is nothing to say.
    pub message: String,
    /// When it ended, in Unix milliseconds.
    pub time_ms: u64,
    /// Why the stdouterr directory lacks bytes that the spool has.
    pub share_error: Option<String>,
    /// Processes that SIGKILL did not end in time, because they hang in the kernel: the node is not clean while one of
    /// them lives.
    pub leftover: Vec<Leftover>,
}

/// A process that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Process id.
    pub pid: i32,
    /// Start time, in clock ticks since boot: tells it from a later process of the same number.
    pub start: u64,
}

/// Why a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// By itself, or by a signal that is not ours.
    Exited,
    /// After a request to stop.
    Stopped,
    /// After a request to kill.
    Killed,
    /// Because the node's lease passed.
    Lease,
    /// It never ran: the message says why.
    NotStarted,
}

/// What `DIR/pid` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PidFile {
    /// The shim; 0: an agent gave the directory up before a shim came, and none may start there.
    shim_pid: i32,
    shim_start: u64,
    /// Pids mean nothing after a reboot.
    boot_id: String,
    /// For the case that the shim dies without a record.
    uid: u32,
    group: Option<PathBuf>,
}

/// What the shim answers on stdout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The task runs.
    Started { task_pid: i32 },
    /// It does not.
    Failed { message: String },
}

/// Entry point of the hidden subcommand.
#[must_use]
pub fn main() -> ExitCode {
    let mut text = String::new();
    if let Err(error) = io::stdin().lock().read_to_string(&mut text) {
        return refuse(&format!("cannot read the task from stdin: {error}"));
    }
    // An agent that died half-way leaves a torn text: nothing is started.
    let spec: TaskSpec = match serde_json::from_str(&text) {
        Ok(spec) => spec,
        Err(error) => return refuse(&format!("cannot understand the task on stdin: {error}")),
    };
    drop(text);
    match supervise::run(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(message: &str) -> ExitCode {
    answer(&Answer::Failed {
        message: message.to_owned(),
    });
    let _ = writeln!(io::stderr(), "trainyard-agent shim: {message}");
    ExitCode::FAILURE
}

/// Writes the one line on stdout. Nobody may be there to read it.
fn answer(answer: &Answer) {
    if let Ok(mut line) = serde_json::to_vec(answer) {
        line.push(b'\n');
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }
}

fn pid_path(dir: &Path) -> PathBuf {
    dir.join("pid")
}

fn exit_path(dir: &Path) -> PathBuf {
    dir.join("exit")
}

/// Makes `DIR/pid` unless there is one: `Ok(false)`. The file appears with its content.
fn claim(dir: &Path, content: &PidFile) -> io::Result<bool> {
    let temporary = dir.join(format!("pid.{}", std::process::id()));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    drop(file);
    let linked = std::fs::hard_link(&temporary, pid_path(dir));
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_pid(dir: &Path) -> io::Result<Option<PidFile>> {
    read_json(&pid_path(dir))
}

/// Reads the exit record of a task's directory, if it has ended.
///
/// # Errors
/// Those of the file system; a damaged record.
pub fn read_exit(dir: &Path) -> io::Result<Option<ExitRecord>> {
    read_json(&exit_path(dir))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is damaged: {error}", path.display()),
            )
        })?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
    }
}

/// Writes the exit record so that it survives a power cut.
fn write_exit(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    let temporary = dir.join("exit.new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, exit_path(dir))?;
    File::open(dir)?.sync_all()
}

/// Changes at each boot.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| {
            u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
        })
}
