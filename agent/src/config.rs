//! The agent's settings: `agent.toml`, overridden by `TRAINYARD_AGENT_*`, overridden by flags.
//!
//! Reading decides nothing about the host: names are checked, users are not looked up and directories not made,
//! so that `check-config` can run anywhere. Every error names file, line and key.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use trainyard_proto::v1::ImageReference;

use crate::inventory::image;

/// PATH of tasks where none is set.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// TCP port of NFS where none is set.
const NFS_PORT: u16 = 2049;

/// Everything the daemon needs to know, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the node: the last segment of `nodes/NAME`.
    pub node: String,
    /// `HOST:PORT` of schedulers, tried in rotation.
    pub schedulers: Vec<String>,
    /// Directory of ca.pem, cert.pem and key.pem.
    pub tls_dir: PathBuf,
    /// Directory for everything the agent keeps.
    pub data_dir: PathBuf,
    /// Where NodeFileService listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// Address under which the other nodes and the schedulers reach this one; `None`: the address from which the
    /// schedulers are reached.
    pub address: Option<String>,
    /// Number of GPUs to declare; `None`: what NVML finds.
    pub gpus: Option<u32>,
    /// Class of the node; `None`: derived from the inventory.
    pub node_class: Option<String>,
    /// User that tasks run as where the agent is root.
    pub task_user: Option<String>,
    /// Users besides `task_user` that a cluster may choose to run its tasks as, where the agent is root.
    pub task_users: Vec<String>,
    /// The system as an image; `None`: made from /etc/os-release.
    pub image: Option<ImageReference>,
    /// Managed file servers on this node.
    pub file_server: FileServer,
    /// Longest that one mount or unmount may take.
    pub mount_deadline: Duration,
    /// PATH of tasks.
    pub path: String,
    /// Bytes of spooled logs of ended attempts to keep.
    pub spool_keep_bytes: u64,
}

/// Managed file servers on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileServer {
    /// Whether this node may export directories.
    pub enabled: bool,
    /// TCP port of NFS.
    pub port: u16,
    /// Directories below which others may be exported, absolute; none: `file-servers` in the data directory.
    pub roots: Vec<PathBuf>,
}

impl Default for FileServer {
    fn default() -> Self {
        Self {
            enabled: true,
            port: NFS_PORT,
            roots: Vec::new(),
        }
    }
}

/// The table `[file_server]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileServerSettings {
    /// See [`FileServer::enabled`]. Default: true.
    pub enabled: Option<bool>,
    /// See [`FileServer::port`]. Default: 2049.
    pub port: Option<u16>,
    /// See [`FileServer::roots`]. Default: `file-servers` in the data directory alone.
    #[serde(default)]
    pub roots: Vec<PathBuf>,
}

/// The settings as one source gives them; absent ones are left to the next source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// See [`Config::node`]. Default: the host's name.
    pub node: Option<String>,
    /// See [`Config::schedulers`]. Required.
    #[serde(default)]
    pub schedulers: Vec<String>,
    /// See [`Config::tls_dir`]. Default: `tls` next to the file.
    pub tls_dir: Option<PathBuf>,
    /// See [`Config::data_dir`]. Default: `/var/lib/trainyard-agent`.
    pub data_dir: Option<PathBuf>,
    /// See [`Config::listen`]. Default: `0.0.0.0:7422`.
    pub listen: Option<String>,
    /// See [`Config::address`].
    pub address: Option<String>,
    /// See [`Config::gpus`].
    pub gpus: Option<u32>,
    /// See [`Config::node_class`].
    pub node_class: Option<String>,
    /// See [`Config::task_user`]. Default: `trainyard` where the host has that user, else `nobody`.
    pub task_user: Option<String>,
    /// See [`Config::task_users`]. Default: none.
    #[serde(default)]
    pub task_users: Vec<String>,
    /// `PUBLISHER:OFFER:SKU[:VERSION]`. See [`Config::image`].
    pub image: Option<String>,
    /// See [`Config::file_server`].
    #[serde(default)]
    pub file_server: FileServerSettings,
    /// Seconds. See [`Config::mount_deadline`]. Default: 30.
    pub mount_deadline_s: Option<u64>,
    /// See [`Config::path`]. Default: [`DEFAULT_PATH`].
    pub path: Option<String>,
    /// MiB. See [`Config::spool_keep_bytes`]. Default: 1024.
    pub spool_keep_mib: Option<u64>,
}

/// What is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read: {reason}; name the file with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is not what it should be.
    #[error("{}:{line}:{column}: {}{message}", path.display(), KeyPrefix(key))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The key on that line, where there is one.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A value is unusable, whichever source gave it.
    #[error("{key}: {message}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong and what to write instead.
        message: String,
    },
}

struct KeyPrefix<'a>(&'a str);

impl fmt::Display for KeyPrefix<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(out, "{}: ", self.0)
        }
    }
}

impl Settings {
    /// Reads `agent.toml`. Relative directories become relative to the file's own.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] and [`ConfigError::Invalid`].
    pub fn read(path: &Path) -> Result<Settings, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let mut settings = Settings::parse(path, &text)?;
        let base = path.parent().unwrap_or(Path::new("."));
        settings.tls_dir.get_or_insert_with(|| PathBuf::from("tls"));
        for dir in [&mut settings.tls_dir, &mut settings.data_dir]
            .into_iter()
            .flatten()
        {
            *dir = base.join(&*dir);
        }
        Ok(settings)
    }

    fn parse(path: &Path, text: &str) -> Result<Settings, ConfigError> {
        let (settings, error): (Settings, _) = match toml::from_str::<Settings>(text) {
            Ok(settings) => match settings.check() {
                Ok(()) => return Ok(settings),
                Err(ConfigError::Value { key, message }) => {
                    (settings, (line_of(text, key), key.to_owned(), message))
                }
                Err(other) => return Err(other),
            },
            Err(error) => {
                let start = error.span().map_or(0, |span| span.start);
                let place = place(text, start);
                let key = key_on(text, place.0);
                let message = error.message().trim_end().replace('\n', " ");
                (Settings::default(), (place, key, message))
            }
        };
        drop(settings);
        let ((line, column), key, message) = error;
        Err(ConfigError::Invalid {
            path: path.to_owned(),
            line,
            column,
            key,
            message,
        })
    }

    /// These settings, with what they leave open taken from `below`.
    #[must_use]
    pub fn over(self, below: Settings) -> Settings {
        Settings {
            node: self.node.or(below.node),
            schedulers: first_given(self.schedulers, below.schedulers),
            tls_dir: self.tls_dir.or(below.tls_dir),
            data_dir: self.data_dir.or(below.data_dir),
            listen: self.listen.or(below.listen),
            address: self.address.or(below.address),
            gpus: self.gpus.or(below.gpus),
            node_class: self.node_class.or(below.node_class),
            task_user: self.task_user.or(below.task_user),
            task_users: first_given(self.task_users, below.task_users),
            image: self.image.or(below.image),
            file_server: FileServerSettings {
                enabled: self.file_server.enabled.or(below.file_server.enabled),
                port: self.file_server.port.or(below.file_server.port),
                roots: first_given(self.file_server.roots, below.file_server.roots),
            },
            mount_deadline_s: self.mount_deadline_s.or(below.mount_deadline_s),
            path: self.path.or(below.path),
            spool_keep_mib: self.spool_keep_mib.or(below.spool_keep_mib),
        }
    }

    /// Fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a setting that is missing or unusable.
    pub fn finish(self) -> Result<Config, ConfigError> {
        self.check()?;
        let node = match self.node {
            Some(node) => node,
            None => host_name()?,
        };
        check_node(&node)?;
        if self.schedulers.is_empty() {
            return Err(value(
                "schedulers",
                "none given; write schedulers = [\"HOST:PORT\", ...] or pass --scheduler HOST:PORT",
            ));
        }
        let listen = self.listen.unwrap_or_else(|| "0.0.0.0:7422".to_owned());
        Ok(Config {
            node,
            schedulers: self.schedulers,
            tls_dir: self.tls_dir.unwrap_or_else(|| PathBuf::from("tls")),
            data_dir: self
                .data_dir
                .unwrap_or_else(|| PathBuf::from("/var/lib/trainyard-agent")),
            listen: listen_address(&listen)?,
            address: self.address,
            gpus: self.gpus,
            node_class: self.node_class,
            task_user: self.task_user,
            task_users: self.task_users,
            image: match &self.image {
                Some(text) => Some(image::parse(text).map_err(|why| value("image", why))?),
                None => None,
            },
            file_server: FileServer {
                enabled: self.file_server.enabled.unwrap_or(true),
                port: self.file_server.port.unwrap_or(NFS_PORT),
                roots: self.file_server.roots,
            },
            mount_deadline: Duration::from_secs(self.mount_deadline_s.unwrap_or(30)),
            path: self.path.unwrap_or_else(|| DEFAULT_PATH.to_owned()),
            spool_keep_bytes: self
                .spool_keep_mib
                .unwrap_or(1024)
                .saturating_mul(1024 * 1024),
        })
    }

    /// Checks each value that is there.
    fn check(&self) -> Result<(), ConfigError> {
        if let Some(node) = &self.node {
            check_node(node)?;
        }
        for server in &self.schedulers {
            check_server(server)?;
        }
        if let Some(listen) = &self.listen {
            listen_address(listen)?;
        }
        if let Some(address) = &self.address {
            if address.is_empty() || address.contains(|c: char| c.is_whitespace() || c == '/') {
                return Err(value(
                    "address",
                    format!("{address:?} is neither a host name nor an IP address"),
                ));
            }
            if address.matches(':').count() == 1 {
                return Err(value(
                    "address",
                    format!("{address:?} has a port; give host name or IP address alone"),
                ));
            }
        }
        if self.gpus.is_some_and(|gpus| gpus > 64) {
            return Err(value("gpus", "more than 64 on one node"));
        }
        if self.node_class.as_deref() == Some("") {
            return Err(value("node_class", "empty; leave it out to derive it"));
        }
        if let Some(user) = self.task_users.iter().find(|user| {
            user.is_empty() || user.contains(|c: char| c.is_whitespace() || c == '/' || c == ':')
        }) {
            return Err(value(
                "task_users",
                format!("{user:?} is not the name of a user"),
            ));
        }
        if let Some(text) = &self.image {
            image::parse(text).map_err(|why| value("image", why))?;
        }
        if self.file_server.port == Some(0) {
            return Err(value(
                "file_server.port",
                "0 is no port that others can mount from; the usual one is 2049",
            ));
        }
        for root in &self.file_server.roots {
            // `/` would offer the whole host.
            if !root.is_absolute() || root.components().count() < 2 || has_parent(root) {
                return Err(value(
                    "file_server.roots",
                    format!("{root:?} is not an absolute directory below /, without `..`"),
                ));
            }
        }
        if let Some(seconds) = self.mount_deadline_s
            && !(1..=3_600).contains(&seconds)
        {
            return Err(value("mount_deadline_s", "must be 1 to 3600 seconds"));
        }
        if let Some(path) = &self.path
            && path.is_empty()
        {
            return Err(value("path", "empty; leave it out for the usual one"));
        }
        Ok(())
    }
}

fn first_given<T>(above: Vec<T>, below: Vec<T>) -> Vec<T> {
    if above.is_empty() { below } else { above }
}

fn has_parent(path: &Path) -> bool {
    path.components()
        .any(|part| part == std::path::Component::ParentDir)
}

fn value(key: &'static str, message: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        key,
        message: message.into(),
    }
}

fn check_node(node: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=253).contains(&node.len()) && node.chars().all(allowed) {
        Ok(())
    } else {
        Err(value(
            "node",
            format!("{node:?} is not 1 to 253 letters, digits, '-', '_' and '.'"),
        ))
    }
}

fn check_server(server: &str) -> Result<(), ConfigError> {
    let port = server
        .rsplit_once(':')
        .filter(|(host, _)| {
            !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/')
        })
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(1..) => Ok(()),
        _ => Err(value("schedulers", format!("{server:?} is not HOST:PORT"))),
    }
}

fn listen_address(listen: &str) -> Result<SocketAddr, ConfigError> {
    listen.parse().map_err(|_| {
        value(
            "listen",
            format!("{listen:?} is not ADDRESS:PORT, such as 0.0.0.0:7422"),
        )
    })
}

fn host_name() -> Result<String, ConfigError> {
    sysinfo::System::host_name()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| value("node", "the host has no usable name; set node"))
}

/// Line and column, from 1, of a byte of the text.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// The key that a line sets, or nothing.
fn key_on(text: &str, line: usize) -> String {
    text.lines()
        .nth(line - 1)
        .and_then(|line| line.split_once('='))
        .map(|(key, _)| key.trim().to_owned())
        .unwrap_or_default()
}

/// Where a key is set: the first line that starts with it.
fn line_of(text: &str, key: &str) -> (usize, usize) {
    // A key of a table stands on its line without the table's name.
    let key = key.rsplit('.').next().unwrap_or(key);
    (1..=text.lines().count())
        .find(|line| key_on(text, *line) == key)
        .map_or((1, 1), |line| (line, 1))
}

#[cfg(test)]
mod tests;
