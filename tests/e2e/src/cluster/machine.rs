//! A node with its own kernel: an agent inside user-mode-linux. Its data lies in the machine's memory and goes with its power.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::binaries::{Binary, binary};
use super::member::ready_line;
use crate::error::{Result, RigError};
use crate::hosts::{CommandId, Uml};
use crate::process::wait_until;

const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// A node with its own kernel.
pub struct Machine {
    /// The machine: to run commands on it, to freeze it, to cut its power.
    pub uml: Uml,
    config: PathBuf,
    log: PathBuf,
    agent: Option<CommandId>,
}

impl Machine {
    pub(super) fn new(uml: Uml, config: PathBuf, log: PathBuf) -> Self {
        Self {
            uml,
            config,
            log,
            agent: None,
        }
    }

    /// Starts the agent anew and waits until it is ready. The log of an earlier life is dropped.
    pub fn start_agent(&mut self) -> Result<()> {
        let program = binary(Binary::Agent)?;
        let command = format!(
            "exec {} run --config {} >{} 2>&1",
            program.display(),
            self.config.display(),
            self.log.display()
        );
        fs::remove_file(&self.log).ok();
        self.agent = Some(self.uml.start(&command)?);
        let line = ready_line(Binary::Agent);
        let waited = wait_until("the agent is ready", READY_TIMEOUT, || {
            Ok(self.log_text().contains(line).then_some(()))
        });
        waited.map_err(|error| RigError::new(format!("{error}\n{}", self.log_text())))
    }

    /// All that the agent has logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
