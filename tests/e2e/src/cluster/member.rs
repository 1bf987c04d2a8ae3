//! One namespace host with its daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::binaries::{Binary, binary};
use crate::error::{Result, RigError};
use crate::hosts::Host;
use crate::process::{Daemon, wait_until};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// One host with its daemon.
pub struct Member {
    /// The daemon; it goes first when both are dropped.
    pub daemon: Daemon,
    /// Where it runs: to cut its network, or to look around on it.
    pub host: Host,
    ready_line: &'static str,
}

impl Member {
    pub(super) fn new(host: Host, program: Binary, config: PathBuf, log: &Path) -> Result<Self> {
        let path = binary(program)?;
        let entrance = host.entrance();
        let spec = move || {
            let mut command = entrance.command(&path);
            command.arg("run").arg("--config").arg(&config);
            command
        };
        Ok(Self {
            daemon: Daemon::new(host.name(), log, spec),
            host,
            ready_line: ready_line(program),
        })
    }

    /// Ends every process of the host at once: the daemon, its shims, their tasks. Start the daemon again for a reboot.
    pub fn kill_all(&mut self) -> Result<()> {
        self.host.kill_processes()?;
        self.daemon.wait(READY_TIMEOUT).map(drop)
    }

    /// Waits until the daemon, if it runs, has said that it is ready since its last start.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_log(self.ready_line, READY_TIMEOUT)
    }

    /// Waits until the daemon, if it runs, has logged this text since its last start.
    pub fn wait_log(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let daemon = &mut self.daemon;
        if daemon.pid().is_none() {
            return Ok(());
        }
        let waited = wait_until(&format!("it logs '{text}'"), timeout, || {
            daemon.check_alive()?;
            Ok(daemon.log_since_start()?.contains(text).then_some(()))
        });
        waited.map_err(|error| {
            RigError::new(format!("{}: {error}\n{}", daemon.name(), daemon.log_tail()))
        })
    }
}

/// What a daemon logs once it serves.
pub(super) fn ready_line(program: Binary) -> &'static str {
    match program {
        Binary::Agent => "trainyard-agent ready",
        Binary::Scheduler | Binary::Command => "trainyard-scheduler ready",
    }
}
