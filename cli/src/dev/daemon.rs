//! One daemon as a child process of `trainyard dev`: start, log, pid file, end.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::error::Error;

/// Lines of its log that are shown when a daemon has died.
const LAST_LINES: usize = 10;
/// Bytes at the end of the log that are searched for them.
const LAST_BYTES: u64 = 16 * 1024;

/// What to start.
#[derive(Debug)]
pub(super) struct Plan {
    /// Name in messages and files: `scheduler-1`, `agent-node-1`.
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<std::ffi::OsString>,
    pub(super) log: PathBuf,
    pub(super) pid_file: PathBuf,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) name: String,
    pub(super) log: PathBuf,
    pid_file: PathBuf,
    /// Where this run's part of the log begins.
    log_start: u64,
    child: Child,
    /// Set once it has ended.
    status: Option<ExitStatus>,
}

impl Daemon {
    /// Starts it in a process group of its own, so that Ctrl-C on the terminal reaches this command alone, which then ends
    /// the daemons in order.
    pub(super) fn start(plan: Plan) -> Result<Self, Error> {
        let name = plan.name;
        let failed = |what: &str, path: &Path, error: std::io::Error| {
            Error::failure(format!("{name}: cannot {what} {}: {error}", path.display()))
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&plan.log)
            .map_err(|error| failed("write", &plan.log, error))?;
        let log_start = log
            .metadata()
            .map_err(|error| failed("read", &plan.log, error))?
            .len();
        let stdout = log
            .try_clone()
            .map_err(|error| failed("write", &plan.log, error))?;
        let mut command = Command::new(&plan.program);
        command
            .args(&plan.arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .process_group(0);
        // The log must say when it is ready, whatever the caller's level is.
        if std::env::var_os("TRAINYARD_LOG").is_none() {
            command.env("TRAINYARD_LOG", "info");
        }
        let child = command
            .spawn()
            .map_err(|error| failed("start", &plan.program, error))?;
        let pid = child.id().unwrap_or_default();
        fs::write(&plan.pid_file, format!("{pid}\n"))
            .map_err(|error| failed("write", &plan.pid_file, error))?;
        Ok(Self {
            name,
            log: plan.log,
            pid_file: plan.pid_file,
            log_start,
            child,
            status: None,
        })
    }

    /// Its process id, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it has not ended, as far as is known.
    pub(super) fn runs(&self) -> bool {
        self.status.is_none()
    }

    /// Waits until it has ended. May be dropped and called again.
    pub(super) async fn ended(&mut self) {
        // An error means that there is no such child any more.
        self.status = Some(self.child.wait().await.unwrap_or_default());
        let _ = fs::remove_file(&self.pid_file);
    }

    /// How it ended, for a message.
    pub(super) fn how_it_ended(&self) -> String {
        self.status
            .map_or_else(|| "runs".to_owned(), |status| status.to_string())
    }

    /// Asks it to end.
    pub(super) fn ask_to_end(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended; after `patience` ends it by force.
    pub(super) async fn end(&mut self, patience: Duration) {
        if self.status.is_none() && timeout(patience, self.ended()).await.is_err() {
            self.signal(Signal::SIGKILL);
            self.ended().await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended just now; then there is nothing to do.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Whether this run's part of the log holds the text.
    pub(super) fn has_logged(&self, text: &str) -> bool {
        let mut log = Vec::new();
        let Ok(mut file) = File::open(&self.log) else {
            return false;
        };
        file.seek(SeekFrom::Start(self.log_start)).is_ok()
            && file.take(4 << 20).read_to_end(&mut log).is_ok()
            && String::from_utf8_lossy(&log).contains(text)
    }

    /// The last lines of this run's log.
    pub(super) fn last_lines(&self) -> Vec<String> {
        let Ok(mut file) = File::open(&self.log) else {
            return Vec::new();
        };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let start = length
            .saturating_sub(LAST_BYTES)
            .max(self.log_start.min(length));
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(start)).is_err() || file.read_to_end(&mut bytes).is_err() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(dir: &Path, script: &str) -> Daemon {
        Daemon::start(Plan {
            name: "agent-node-1".into(),
            program: "/bin/bash".into(),
            arguments: vec!["-c".into(), script.into()],
            log: dir.join("a.log"),
            pid_file: dir.join("a.pid"),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn what_it_said_last_is_known() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.log"), "ready of an earlier run\n").unwrap();
        let mut daemon = daemon(
            dir.path(),
            "for i in $(seq 20); do echo line $i; done; exit 3",
        );
        assert!(dir.path().join("a.pid").exists());
        daemon.ended().await;
        assert!(!daemon.runs());
        assert!(daemon.how_it_ended().contains('3'));
        let lines = daemon.last_lines();
        assert_eq!((lines.len(), lines[9].as_str()), (10, "line 20"));
        assert!(daemon.has_logged("line 1\n") && !daemon.has_logged("ready"));
        assert!(!dir.path().join("a.pid").exists());
    }

    #[tokio::test]
    async fn one_that_does_not_listen_is_ended_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = daemon(
            dir.path(),
            "trap '' TERM; echo up; while true; do sleep 0.05; done",
        );
        while !daemon.has_logged("up") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon.ask_to_end();
        daemon.end(Duration::from_millis(100)).await;
        assert!(!daemon.runs());
    }
}
