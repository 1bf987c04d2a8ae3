//! Finds the programs under test. They are never searched on the PATH: a test must not pick up an installed version.

use std::env;
use std::path::PathBuf;

use crate::error::{Context, Result, RigError};

/// A program of Trainyard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// The scheduler's daemon.
    Scheduler,
    /// The agent's daemon.
    Agent,
    /// The command for people.
    Command,
}

impl Binary {
    fn file_name(self) -> &'static str {
        match self {
            Self::Scheduler => "trainyard-scheduler",
            Self::Agent => "trainyard-agent",
            Self::Command => "trainyard",
        }
    }
}

/// The path of a program: in `TRAINYARD_BIN_DIR`, else beside the test's own build (`target/PROFILE`).
pub fn binary(program: Binary) -> Result<PathBuf> {
    let folder = match env::var_os("TRAINYARD_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = env::current_exe().cannot("find the test's own program")?;
            let profile = test.parent().and_then(|deps| deps.parent());
            profile
                .ok_or_else(|| RigError::new("the test's own program lies in no target folder"))?
                .to_owned()
        }
    };
    let path = folder.join(program.file_name());
    if path.is_file() {
        return Ok(path);
    }
    let path = path.display();
    Err(RigError::new(format!(
        "{path} is missing: run `cargo build --workspace` first, or set TRAINYARD_BIN_DIR"
    )))
}
