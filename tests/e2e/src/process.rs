//! Processes of a rig: short commands whose output is wanted, and daemons with a log file that are killed and started again.
//!
//! A daemon is entered into its host's PID namespace by a small parent (`nsenter`), so the process that matters is that
//! parent's child. Signals must go to the child alone.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Context, Result, RigError};

/// How long a process may take to appear or to end after SIGKILL.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of the end of a log an error quotes, in bytes.
const LOG_TAIL: u64 = 4096;
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Runs a command to its end and returns what it wrote to standard output; any status but 0 is an error that quotes it all.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let result = command
        .stdin(Stdio::null())
        .output()
        .cannot(format_args!("run {shown}"))?;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    if result.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&result.stderr);
    Err(RigError::new(format!(
        "{shown} ended with {}\n{text}{errors}",
        result.status
    )))
}

/// Asks `probe` again and again until it answers, or fails once `timeout` has passed. For conditions of other programs that
/// nothing announces.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if started.elapsed() > timeout {
            return Err(RigError::new(format!(
                "waited {timeout:?} in vain until {what}"
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The pid of the first child of `parent`, as this test sees it, once there is one.
pub(crate) fn child_of(parent: &mut Child) -> Result<Pid> {
    let id = parent.id();
    wait_until("the process has been started", PROCESS_TIMEOUT, || {
        if let Some(status) = parent.try_wait().cannot("look at a child process")? {
            return Err(RigError::new(format!(
                "the process ended at once with {status}"
            )));
        }
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))
            .cannot("list child processes")?;
        match children.split_whitespace().next() {
            Some(first) => first
                .parse()
                .map(|pid| Some(Pid::from_raw(pid)))
                .cannot("read a pid"),
            None => Ok(None),
        }
    })
}

/// A long-running program under test. Its output goes to one log file over all its starts.
///
/// Dropping it kills the program; what the program left running is ended with its host.
pub struct Daemon {
    name: String,
    log: PathBuf,
    spec: Box<dyn Fn() -> Command>,
    running: Option<Running>,
    /// Length of the log at the last start, in bytes.
    log_start: u64,
}

struct Running {
    parent: Child,
    pid: Pid,
}

impl Running {
    /// The parent stops itself when its child is stopped, and would never notice the end of the child.
    fn send(&self, signal: Signal) -> nix::Result<()> {
        let sent = kill(self.pid, signal);
        if let (Signal::SIGCONT | Signal::SIGKILL, Ok(parent)) =
            (signal, i32::try_from(self.parent.id()))
        {
            let _ = kill(Pid::from_raw(parent), Signal::SIGCONT);
        }
        sent
    }
}

impl Daemon {
    /// A daemon that is not started yet. `spec` makes the command anew for each start; it has to come from
    /// [`Host::command`](crate::hosts::Host::command).
    pub fn new(
        name: impl Into<String>,
        log: impl Into<PathBuf>,
        spec: impl Fn() -> Command + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            log: log.into(),
            spec: Box::new(spec),
            running: None,
            log_start: 0,
        }
    }

    /// Starts the program and returns as soon as it exists; it need not serve yet.
    pub fn start(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Err(RigError::new(format!("{} runs already", self.name)));
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .cannot(format_args!("open {:?}", self.log))?;
        self.log_start = log.metadata().cannot("measure a log file")?.len();
        let errors = log.try_clone().cannot("duplicate a log file")?;
        let mut command = (self.spec)();
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let mut parent = command
            .spawn()
            .cannot(format_args!("start {}", self.name))?;
        match child_of(&mut parent) {
            Ok(pid) => self.running = Some(Running { parent, pid }),
            Err(error) => {
                let _ = parent.kill();
                let _ = parent.wait();
                return Err(RigError::new(format!(
                    "cannot start {}: {error}\n{}",
                    self.name,
                    self.log_tail()
                )));
            }
        }
        Ok(())
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pid as the machine sees it, while the program runs.
    pub fn pid(&self) -> Option<Pid> {
        self.running.as_ref().map(|running| running.pid)
    }

    /// The file that holds all it wrote.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Sends a signal, for example SIGSTOP for a program that hangs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let running = self.running.as_ref();
        let running =
            running.ok_or_else(|| RigError::new(format!("{} does not run", self.name)))?;
        let sent = running.send(signal);
        sent.cannot(format_args!("send {signal} to {}", self.name))
    }

    /// SIGKILL, and waits until it is gone. Its children go on, as they would on a real host.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(PROCESS_TIMEOUT).map(drop)
    }

    /// SIGTERM, and waits until it has ended in good order.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Waits until the program has ended.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let Some(running) = self.running.as_mut() else {
            return Err(RigError::new(format!("{} does not run", self.name)));
        };
        let parent = &mut running.parent;
        let waited = wait_until("it ended", timeout, || {
            parent.try_wait().cannot("wait for a process")
        });
        match waited {
            Ok(status) => {
                self.running = None;
                Ok(status)
            }
            Err(error) => Err(RigError::new(format!(
                "{}: {error}\n{}",
                self.name,
                self.log_tail()
            ))),
        }
    }

    /// Fails, quoting the log, if the program has ended by itself. For the probes of [`wait_until`].
    pub fn check_alive(&mut self) -> Result<()> {
        let Some(running) = self.running.as_mut() else {
            return Err(RigError::new(format!("{} does not run", self.name)));
        };
        match running.parent.try_wait().cannot("look at a process")? {
            None => Ok(()),
            Some(status) => {
                self.running = None;
                let signal = status
                    .signal()
                    .map(|number| format!(" (signal {number})"))
                    .unwrap_or_default();
                Err(RigError::new(format!(
                    "{} ended with {status}{signal}\n{}",
                    self.name,
                    self.log_tail()
                )))
            }
        }
    }

    /// All it has logged since its last start.
    pub fn log_since_start(&self) -> Result<String> {
        read_from(&self.log, self.log_start).cannot(format_args!("read {:?}", self.log))
    }

    /// The end of the log, for error texts.
    pub fn log_tail(&self) -> String {
        let length = fs::metadata(&self.log).map_or(0, |data| data.len());
        let tail = read_from(&self.log, length.saturating_sub(LOG_TAIL));
        match tail {
            Ok(text) => format!("--- end of the log of {}\n{text}\n---", self.name),
            Err(error) => format!("--- {} has no log: {error}", self.name),
        }
    }
}

fn read_from(path: &Path, offset: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.send(Signal::SIGKILL);
            let _ = running.parent.wait();
        }
    }
}
