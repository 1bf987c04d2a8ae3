//! One run of the command: its connection and its output. Must never connect before a command asks for it, so that
//! `completion` and wrong usage need no cluster.

use std::path::PathBuf;

use trainyard_shared::client::{Client, ClientConfig, ConfigFile, DEFAULT_TIMEOUT};
use trainyard_shared::tls::Identity;

use crate::api::Api;
use crate::args::GlobalArgs;
use crate::error::Error;
use crate::output::Output;

/// See the head of this file.
pub(crate) struct Context {
    global: GlobalArgs,
}

impl Context {
    /// From the global flags.
    pub(crate) fn new(global: GlobalArgs) -> Self {
        Self { global }
    }

    /// Where results go.
    pub(crate) fn output(&self) -> Output {
        Output::new(self.global.output)
    }

    /// Finds servers and identity (flags, then environment, then configuration file) and makes a client of them. Fails
    /// with the way out when one of them is missing. Connects at the first call only.
    pub(crate) fn api(&self) -> Result<Api, Error> {
        let mut servers = self.global.servers.clone();
        let mut tls_dir = self.global.tls_dir.clone();
        if servers.is_empty() || tls_dir.is_none() {
            let file = self.config_file()?;
            if servers.is_empty() {
                servers = file.servers;
            }
            tls_dir = tls_dir.or(Some(file.tls_dir));
        }
        let tls_dir = tls_dir.unwrap_or_else(|| PathBuf::from("."));
        let identity =
            Identity::load(&tls_dir).map_err(|error| Error::failure(error.to_string()))?;
        let config = ClientConfig {
            servers,
            identity,
            timeout: DEFAULT_TIMEOUT,
        };
        Client::new(config)
            .map(Api::new)
            .map_err(|error| Error::failure(error.to_string()))
    }

    fn config_file(&self) -> Result<ConfigFile, Error> {
        let path = match &self.global.config {
            Some(path) => path.clone(),
            None => known_path()?,
        };
        ConfigFile::load(&path).map_err(|error| Error::failure(error.to_string()))
    }
}

/// The default configuration file, if it is there.
fn known_path() -> Result<PathBuf, Error> {
    let path = ConfigFile::default_path();
    if let Some(path) = path.as_ref().filter(|path| path.exists()) {
        return Ok(path.clone());
    }
    let place = path.map_or_else(String::new, |path| {
        format!("there is no {}. ", path.display())
    });
    Err(Error::failure(format!(
        "this command does not know its cluster: {place}Pass `--config FILE` (or set TRAINYARD_CONFIG) with a file made by \
         `trainyard-scheduler init`, or try things out with `trainyard dev`"
    )))
}
