//! What a client must know: where the schedulers are, and who it is itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::tls::{Identity, TlsError};

/// Largest configuration file, in bytes.
const MAX_LEN: u64 = 1 << 20;

/// What a [`Client`](super::Client) must know.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `HOST:PORT` of the schedulers, in any order. At least one.
    pub servers: Vec<String>,
    /// Who the client is.
    pub identity: Identity,
    /// How long a call goes on trying. Default: [`DEFAULT_TIMEOUT`](super::DEFAULT_TIMEOUT).
    pub timeout: Duration,
}

/// The configuration file of the command: TOML.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// `HOST:PORT` of the schedulers, in any order.
    pub servers: Vec<String>,
    /// Folder with `ca.pem`, `cert.pem` and `key.pem`. In the file, relative to the file; after
    /// [`load`](Self::load), relative to the working directory.
    pub tls_dir: PathBuf,
}

/// Why a client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {path}: {error}; name another with --config or TRAINYARD_CONFIG, or give \
         --server and --tls-dir",
        path = path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong and where, with line and column.
        what: String,
    },
    /// An address is malformed.
    #[error(
        "{0:?} is not the address of a scheduler; write HOST:PORT, such as 10.0.0.4:7070 or [fd00::4]:7070"
    )]
    Address(
        /// The address.
        String,
    ),
    /// There is no address.
    #[error(
        "no scheduler is named; give --server HOST:PORT, or write servers = [\"HOST:PORT\"] in the configuration"
    )]
    NoServers,
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] TlsError),
    /// TLS cannot be set up.
    #[error("TLS for {server} cannot be set up: {reason}")]
    Tls {
        /// The address.
        server: String,
        /// What the TLS layer said.
        reason: String,
    },
}

/// Checks that `address` is `HOST:PORT`.
pub fn check_address(address: &str) -> Result<(), ConfigError> {
    let bad = || ConfigError::Address(address.to_owned());
    let authority: http::uri::Authority = address.parse().map_err(|_| bad())?;
    let well_formed = !authority.host().is_empty()
        && authority.port_u16().is_some_and(|port| port != 0)
        && !address.contains('@');
    if well_formed { Ok(()) } else { Err(bad()) }
}

impl ConfigFile {
    /// Where the file is unless someone says otherwise: `$TRAINYARD_CONFIG`, else `trainyard/config.toml` below
    /// `$XDG_CONFIG_HOME` or `~/.config`. None without a home directory.
    #[must_use]
    pub fn default_path() -> Option<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = set("TRAINYARD_CONFIG") {
            return Some(path.into());
        }
        let folder = match set("XDG_CONFIG_HOME") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(&set("HOME")?).join(".config"),
        };
        Some(folder.join("trainyard/config.toml"))
    }

    /// Reads the file and checks it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        let content = |what: String| ConfigError::Content {
            path: path.to_owned(),
            what,
        };
        let mut file: Self = toml::from_str(&text)
            .map_err(|error| content(error.to_string().trim_end().to_owned()))?;
        if file.servers.is_empty() {
            return Err(content(ConfigError::NoServers.to_string()));
        }
        for server in &file.servers {
            check_address(server).map_err(|error| content(format!("servers: {error}")))?;
        }
        if let Some(folder) = path.parent() {
            file.tls_dir = folder.join(&file.tls_dir);
        }
        Ok(file)
    }

    /// Loads the identity; the rest is taken over.
    pub fn client_config(&self) -> Result<ClientConfig, ConfigError> {
        Ok(ClientConfig {
            servers: self.servers.clone(),
            identity: Identity::load(&self.tls_dir)?,
            timeout: super::DEFAULT_TIMEOUT,
        })
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_LEN {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "far too large for a configuration",
        ));
    }
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for address in ["localhost:1", "10.0.0.4:7070", "[::1]:7070", "a.b:65535"] {
            assert!(check_address(address).is_ok(), "{address}");
        }
        for address in [
            "",
            "host",
            ":7070",
            "host:",
            "host:0",
            "host:65536",
            "http://host:1",
            "user@host:1",
            "::1:7070",
        ] {
            assert!(check_address(address).is_err(), "{address}");
        }
    }

    #[test]
    fn a_file_names_folder_and_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ConfigFile::load(&path)
        };
        let file = load("servers = [\"a:1\", \"b:2\"]\ntls_dir = \"tls\"\n").unwrap();
        assert_eq!(file.servers, ["a:1", "b:2"]);
        assert_eq!(file.tls_dir, folder.path().join("tls"));
        assert_eq!(
            load("servers=['a:1']\ntls_dir='/x'").unwrap().tls_dir,
            Path::new("/x")
        );

        for (text, expected) in [
            ("servers = [\"a:1\"]\ntls_dir = \"t\"\nserver = 1", "server"),
            ("servers = []\ntls_dir = \"t\"", "no scheduler"),
            ("servers = [\"a\"]\ntls_dir = \"t\"", "HOST:PORT"),
            ("servers = [\"a:1\"]", "tls_dir"),
            ("servers = ", "line 1"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains("config.toml"), "{error}");
            assert!(error.contains(expected), "{text:?} gave {error}");
        }
        let error = ConfigFile::load(Path::new("/nowhere/config.toml")).unwrap_err();
        assert!(error.to_string().contains("--config"), "{error}");
    }
}
