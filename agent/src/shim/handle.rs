//! The agent's side of a shim: start it, find it again, wait for it, end it.
//!
//! Dropping a [`Handle`] leaves the task running. Waiting is on a pidfd, never by polling.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;

use super::copier::timeout_until;
use super::processes::{self, Process, signal_all};
use super::{
    Answer, ExitRecord, PidFile, TaskSpec, boot_id, claim, pid_path, read_exit, read_pid, sys,
};

/// Time for a shim to say that its task runs.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes of an answer.
const ANSWER_MAX_BYTES: u64 = 64 * 1024;

/// A task under its shim.
#[derive(Debug)]
pub struct Handle {
    dir: PathBuf,
    pid: i32,
    pidfd: AsyncFd<Arc<OwnedFd>>,
}

/// Ends a task while someone else waits for it.
#[derive(Debug, Clone)]
pub struct Control {
    pidfd: Arc<OwnedFd>,
}

impl Control {
    /// SIGTERM to all of the task; SIGKILL after the grace of its spec.
    pub fn stop(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGKILL to all of the task.
    pub fn kill(&self) {
        self.signal(Signal::SIGINT);
    }

    fn signal(&self, signal: Signal) {
        // A shim that has ended needs no signal.
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), signal as i32);
    }
}

impl Handle {
    fn new(dir: PathBuf, pid: i32, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            dir,
            pid,
            pidfd: sys::watch(pidfd)?,
        })
    }

    /// Process id of the shim.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// To end the task from elsewhere.
    #[must_use]
    pub fn control(&self) -> Control {
        Control {
            pidfd: Arc::clone(self.pidfd.get_ref()),
        }
    }

    /// SIGTERM to all of the task; SIGKILL after the grace of its spec.
    pub fn stop(&self) {
        self.control().stop();
    }

    /// SIGKILL to all of the task.
    pub fn kill(&self) {
        self.control().kill();
    }

    /// Waits until nothing of the task is left. Can be dropped and called again.
    ///
    /// # Errors
    /// The shim was killed from outside and left no record; whatever was left of its task was killed.
    pub async fn wait(&mut self) -> Result<ExitRecord, TaskLost> {
        loop {
            match self.pidfd.readable().await {
                // Ready once and for all: a process ends once.
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, pid = self.pid, "cannot wait for a shim; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        sys::reap(self.pidfd.get_ref().as_fd());
        let dir = self.dir.clone();
        let pid = self.pid;
        blocking(move || match read_exit(&dir) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => Err(lost(&dir, "its shim was killed")),
            Err(error) => Err(lost(&dir, &error.to_string())),
        })
        .await
        .unwrap_or_else(|error| {
            Err(TaskLost {
                message: format!("the task of shim {pid} is unknown: {error}"),
            })
        })
    }
}

/// A task whose end nobody recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskLost {
    /// What is known.
    pub message: String,
}

/// What an agent finds in the directory of a task.
#[derive(Debug)]
pub enum Adopted {
    /// It runs.
    Running(Handle),
    /// It ended.
    Ended(ExitRecord),
    /// Its shim died without a record, or the host was started again; nothing of it runs any more.
    Lost(TaskLost),
    /// No shim ever came, and none can come any more.
    NeverStarted,
}

/// Starts a task under a shim: `program shim`.
///
/// # Errors
/// The task did not start; nothing of it is left.
pub async fn spawn(program: &Path, spec: &TaskSpec) -> Result<Handle, SpawnError> {
    let program = program.to_owned();
    let spec = spec.clone();
    let dir = spec.dir.clone();
    let (pid, pidfd) = blocking(move || start(&program, &spec))
        .await
        .map_err(SpawnError::Shim)??;
    Handle::new(dir, pid, pidfd).map_err(SpawnError::Shim)
}

/// Finds a task again.
///
/// # Errors
/// The directory cannot be read; whether the task runs is unknown.
pub async fn adopt(dir: &Path) -> Result<Adopted, AdoptError> {
    let dir = dir.to_owned();
    let named = |dir: &Path, error| AdoptError {
        dir: dir.display().to_string(),
        error,
    };
    let found = {
        let dir = dir.clone();
        blocking(move || find(&dir)).await.and_then(|found| found)
    };
    match found.map_err(|error| named(&dir, error))? {
        Found::Running(pid, pidfd) => match Handle::new(dir.clone(), pid, pidfd) {
            Ok(handle) => Ok(Adopted::Running(handle)),
            Err(error) => Err(named(&dir, error)),
        },
        Found::Ended(record) => Ok(Adopted::Ended(record)),
        Found::Lost(lost) => Ok(Adopted::Lost(lost)),
        Found::NeverStarted => Ok(Adopted::NeverStarted),
    }
}

enum Found {
    Running(i32, OwnedFd),
    Ended(ExitRecord),
    Lost(TaskLost),
    NeverStarted,
}

fn find(dir: &Path) -> io::Result<Found> {
    if let Some(record) = read_exit(dir)? {
        return Ok(Found::Ended(record));
    }
    if !dir.is_dir() {
        return Ok(Found::NeverStarted);
    }
    let tombstone = PidFile {
        shim_pid: 0,
        shim_start: 0,
        boot_id: String::new(),
        uid: 0,
        group: None,
    };
    if !pid_path(dir).exists() && claim(dir, &tombstone)? {
        return Ok(Found::NeverStarted);
    }
    let Some(file) = read_pid(dir)?.filter(|file| file.shim_pid > 0) else {
        return Ok(Found::NeverStarted);
    };
    if file.boot_id != boot_id() {
        return Ok(Found::Lost(TaskLost {
            message: "the host was started again while the task ran".to_owned(),
        }));
    }
    // The descriptor first: afterwards the start time proves whose it is.
    if let Ok(pidfd) = sys::pidfd_open(file.shim_pid)
        && processes::is_alive(file.shim_pid, file.shim_start)
    {
        return Ok(Found::Running(file.shim_pid, pidfd));
    }
    // It may have written its record between our two looks.
    match read_exit(dir)? {
        Some(record) => Ok(Found::Ended(record)),
        None => Ok(Found::Lost(lost(dir, "its shim was killed"))),
    }
}

/// Ends what a dead shim left behind: its task's first process died with it by the kernel's doing, others may live.
fn lost(dir: &Path, why: &str) -> TaskLost {
    let mut killed = Vec::new();
    if let Ok(Some(file)) = read_pid(dir) {
        killed = kill_orphans(&file);
    }
    let mut message = format!("how the task ended is unknown: {why}");
    if !killed.is_empty() {
        let pids: Vec<String> = killed
            .iter()
            .map(|process| process.pid.to_string())
            .collect();
        message = format!(
            "{message}; processes that it left were killed: {}",
            pids.join(", ")
        );
    }
    TaskLost { message }
}

fn kill_orphans(file: &PidFile) -> Vec<Process> {
    let mut killed: Vec<Process> = Vec::new();
    // A few rounds, for those that fork meanwhile.
    for _ in 0..5 {
        if let Some(group) = &file.group {
            let _ = std::fs::write(group.join("cgroup.kill"), "1");
        }
        let all = processes::all();
        // The number of the shim is that of its session. Should it belong to a later process, the session is gone.
        if all
            .iter()
            .any(|process| process.pid == file.shim_pid && process.start != file.shim_start)
        {
            break;
        }
        let orphans: Vec<Process> = all
            .into_iter()
            .filter(|process| process.session == file.shim_pid && process.pid != file.shim_pid)
            .filter(|process| {
                process.start >= file.shim_start && !matches!(process.state, 'Z' | 'X')
            })
            .filter(|process| owner(process.pid) == Some(file.uid))
            .collect();
        if orphans.is_empty() {
            break;
        }
        signal_all(&orphans, Signal::SIGKILL);
        killed.extend(
            orphans
                .iter()
                .filter(|new| !killed.iter().any(|old| old.pid == new.pid))
                .copied()
                .collect::<Vec<_>>(),
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(group) = &file.group {
        remove_group(group);
    }
    killed
}

/// Removes a group whose processes were just killed, once the kernel has let go of them.
fn remove_group(group: &Path) {
    for _ in 0..50 {
        match std::fs::remove_dir(group) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

fn owner(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

/// Starts the shim and waits for its answer.
fn start(program: &Path, spec: &TaskSpec) -> Result<(i32, OwnedFd), SpawnError> {
    let shim = SpawnError::Shim;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&spec.dir)
        .map_err(shim)?;
    let text = serde_json::to_vec(spec).map_err(|error| SpawnError::Shim(error.into()))?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(spec.dir.join("shim.log"))
        .map_err(shim)?;
    let mut child = Command::new(program)
        .arg0("trainyard-agent")
        .arg("shim")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(shim)?;
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let pidfd = sys::pidfd_open(pid).map_err(shim)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A shim that is gone says so by its missing answer.
        let _ = stdin.write_all(&text);
    }
    let answer = child
        .stdout
        .take()
        .ok_or(SpawnError::NoAnswer)
        .and_then(|stdout| read_answer(stdout, START_DEADLINE));
    let failure = match answer {
        Ok(Answer::Started { .. }) => return Ok((pid, pidfd)),
        Ok(Answer::Failed { message }) => SpawnError::Task(message),
        Err(error) => {
            let _ = child.kill();
            error
        }
    };
    let _ = child.wait();
    Err(failure)
}

fn read_answer(stdout: impl Read + AsFd, deadline: Duration) -> Result<Answer, SpawnError> {
    let end = Instant::now() + deadline;
    loop {
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout_until(end)) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) => return Err(SpawnError::Deadline(deadline.as_secs())),
            Ok(_) => break,
            Err(error) => return Err(SpawnError::Shim(error.into())),
        }
    }
    // The line is written at once, so that it is all there.
    let mut line = String::new();
    BufReader::new(stdout.take(ANSWER_MAX_BYTES))
        .read_line(&mut line)
        .map_err(SpawnError::Shim)?;
    serde_json::from_str(&line).map_err(|_| SpawnError::NoAnswer)
}

/// Runs what may wait for the disk away from the main loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

/// Why a task did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The task itself: its message names the path.
    #[error("{0}")]
    Task(String),
    /// The shim.
    #[error("cannot start the supervisor of the task: {0}")]
    Shim(io::Error),
    /// The shim ended early; its `shim.log` may say why.
    #[error(
        "the supervisor of the task ended without an answer; see shim.log in the task's state directory"
    )]
    NoAnswer,
    /// The shim hung.
    #[error("the task did not start within {0} s")]
    Deadline(u64),
}

/// A directory of a task that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot find out what became of the task in {dir}: {error}")]
pub struct AdoptError {
    dir: String,
    error: io::Error,
}
