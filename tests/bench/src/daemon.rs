//! Daemons under measurement: children of the benchmark, each with a log file.
//!
//! A daemon never outlives the benchmark, even one that is killed: the kernel ends it when the thread that started it
//! ends. So daemons are started from the main thread alone. Tasks of a killed agent live on by design and are ended by
//! [`end_leftovers`].
#![allow(unsafe_code)] // `pre_exec`: the parent-death signal can only be set between fork and exec.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{BenchError, Context, Result};

/// How much of the end of a log an error quotes, in bytes.
const LOG_TAIL: u64 = 4096;
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long one probe may take before it counts as a no, so that a daemon that has ended is noticed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a daemon may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A program under measurement. Dropping it kills it.
pub(crate) struct Daemon {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon that is not started yet.
    pub(crate) fn new(
        name: String,
        program: PathBuf,
        arguments: Vec<OsString>,
        log: PathBuf,
    ) -> Self {
        Self {
            name,
            program,
            arguments,
            log,
            child: None,
        }
    }

    /// Starts the program and returns as soon as it exists; it need not serve yet. Call it from the main thread.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Err(BenchError::new(format!("{} runs already", self.name)));
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .cannot(format_args!("open {}", self.log.display()))?;
        let errors = log.try_clone().cannot("duplicate a log file")?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Not ours: an interrupt from the terminal is for the benchmark, which ends the daemons in order.
            .process_group(0);
        // SAFETY: between fork and exec the closure makes one system call, and neither allocates nor locks.
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
        }
        let child = command.spawn().cannot(format_args!(
            "start {} ({})",
            self.name,
            self.program.display()
        ))?;
        self.child = Some(child);
        Ok(())
    }

    /// The pid.
    pub(crate) fn pid(&self) -> Result<Pid> {
        let child = self
            .child
            .as_ref()
            .and_then(|child| child.id().try_into().ok());
        child
            .map(Pid::from_raw)
            .ok_or_else(|| BenchError::new(format!("{} does not run", self.name)))
    }

    /// SIGKILL, and waits until it is gone. What it started goes on.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Err(BenchError::new(format!("{} does not run", self.name)));
        };
        child.kill().cannot(format_args!("kill {}", self.name))?;
        child.wait().cannot("wait for a process").map(drop)
    }

    /// SIGTERM, without waiting.
    pub(crate) fn ask_to_end(&self) {
        if let Ok(pid) = self.pid() {
            let _ = kill(pid, Signal::SIGTERM);
        }
    }

    /// Waits until the program has ended, and kills it at `deadline`. Blocks the thread.
    pub(crate) fn end_by(&mut self, deadline: Instant) {
        while let Some(child) = self.child.as_mut() {
            match child.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                Ok(None) | Err(_) => drop(self.kill()),
                Ok(Some(_)) => self.child = None,
            }
        }
    }

    /// Fails, quoting the log, if the program has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let Some(child) = self.child.as_mut() else {
            return Ok(());
        };
        match child.try_wait().cannot("look at a process")? {
            None => Ok(()),
            Some(status) => {
                self.child = None;
                Err(BenchError::new(format!(
                    "{} ended with {status}\n{}",
                    self.name,
                    self.log_tail()
                )))
            }
        }
    }

    /// The end of the log, for error texts.
    pub(crate) fn log_tail(&self) -> String {
        match tail(&self.log) {
            Ok(text) => format!("--- end of the log of {}\n{text}\n---", self.name),
            Err(error) => format!("--- {} has no log: {error}", self.name),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}

fn tail(log: &Path) -> io::Result<String> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Asks `probe` again and again until it says yes; fails at once if one of the daemons ends by itself.
pub(crate) async fn wait_until<F>(
    what: &str,
    timeout: Duration,
    daemons: &mut [Daemon],
    mut probe: F,
) -> Result<()>
where
    F: AsyncFnMut() -> Result<bool>,
{
    let started = Instant::now();
    loop {
        if let Ok(answer) = tokio::time::timeout(PROBE_TIMEOUT, probe()).await
            && answer?
        {
            return Ok(());
        }
        for daemon in daemons.iter_mut() {
            daemon.check_alive()?;
        }
        if started.elapsed() > timeout {
            let logs: Vec<_> = daemons.iter().map(Daemon::log_tail).collect();
            return Err(BenchError::new(format!(
                "waited {timeout:?} in vain until {what}\n{}",
                logs.join("\n")
            )));
        }
        // Other programs announce none of these conditions.
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Ends all of them in good order, and kills those that take too long. Blocks the thread.
pub(crate) fn end_all(daemons: &mut [Daemon]) {
    for daemon in daemons.iter() {
        daemon.ask_to_end();
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    for daemon in daemons {
        daemon.end_by(deadline);
    }
}

/// Kills what a killed agent left running: supervisors (the agent's program with the run's directory among its arguments)
/// and tasks (Batch AI's variables with that directory in them). Nobody else's process has either, not even a `tail` of a
/// log of this run. Returns how many there were.
pub(crate) fn end_leftovers(run_dir: &Path, agent: &Path) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else {
        return 0;
    };
    let run_dir = run_dir.as_os_str().as_bytes();
    let mut ended = 0;
    for process in processes.flatten() {
        let name = process.file_name();
        let pid = name.to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(pid) = pid.filter(|_| is_leftover(&process.path(), run_dir, agent)) {
            ended += usize::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
        }
    }
    ended
}

fn is_leftover(process: &Path, run_dir: &[u8], agent: &Path) -> bool {
    let has = |file: &str, needle: &[u8]| {
        fs::read(process.join(file)).is_ok_and(|bytes| contains(&bytes, needle))
    };
    let supervisor = has("cmdline", run_dir)
        && fs::read_link(process.join("exe")).is_ok_and(|program| program == agent);
    supervisor || (has("environ", b"AZ_BATCHAI_") && has("environ", run_dir))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|part| part == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Daemon {
        Daemon::new(
            "shell".into(),
            "/bin/sh".into(),
            vec!["-c".into(), script.into()],
            dir.join("shell.log"),
        )
    }

    #[test]
    fn a_daemon_that_ends_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = shell(dir.path(), "echo reason >&2; exit 3");
        daemon.start().unwrap();
        let error = loop {
            if let Err(error) = daemon.check_alive() {
                break error.to_string();
            }
        };
        assert!(
            error.contains("exit status: 3") && error.contains("reason"),
            "{error}"
        );
    }

    #[test]
    fn what_ignores_the_request_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = shell(dir.path(), "trap '' TERM; while :; do sleep 1; done");
        daemon.start().unwrap();
        daemon.ask_to_end();
        daemon.end_by(Instant::now() + Duration::from_millis(100));
        assert!(daemon.pid().is_err());
    }

    #[test]
    fn leftovers_are_known_by_the_run_alone() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Path::new("/nonexistent/agent");
        let mut other = shell(
            dir.path(),
            &format!("sleep 600; : {}", dir.path().display()),
        );
        let mut task = shell(
            dir.path(),
            &format!("AZ_BATCHAI_X={} exec sleep 600", dir.path().display()),
        );
        other.start().unwrap();
        task.start().unwrap();
        // Until the second exec the task has another environment.
        while end_leftovers(dir.path(), agent) == 0 {
            task.check_alive().unwrap();
        }
        task.end_by(Instant::now() + Duration::from_secs(5));
        other.check_alive().unwrap();
        assert_eq!(end_leftovers(&dir.path().join("other"), agent), 0);
    }
}
