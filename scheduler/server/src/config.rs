//! The scheduler's configuration: one TOML file, with the listen address and the directories overridable by flags and
//! environment.
//!
//! Every error names the file, the line and the key. It must never fall back to a default for something that was written
//! wrongly: an unknown key is an error.

mod mistakes;
mod power;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use mistakes::{explain, position};
pub use power::{PowerConfig, Wake};

/// What one member is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This member's id, at least 1 and among `members`.
    pub member_id: u64,
    /// `HOST:PORT` to listen on for clients, agents and peers.
    pub listen: String,
    /// Directory of this member's log and state; made if missing.
    pub data_dir: PathBuf,
    /// Directory with `ca.pem`, `cert.pem` and `key.pem`.
    pub tls_dir: PathBuf,
    /// All members, this one included, in order of id.
    pub members: Vec<MemberConfig>,
    /// Leases of nodes.
    pub lease: LeaseConfig,
    /// Clock and log of the replication.
    pub raft: RaftConfig,
    /// Milliseconds between SIGTERM and SIGKILL when tasks are ended.
    pub stop_grace_ms: u64,
    /// Directory for what retention removes; made when it is needed.
    pub export_dir: PathBuf,
    /// Days for which records of usage are kept.
    pub usage_retention_days: u32,
    /// How hosts are switched on and off; `None`: they are not.
    pub power: Option<PowerConfig>,
}

/// One member of the replication group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberConfig {
    /// Its id, at least 1.
    pub id: u64,
    /// `HOST:PORT` where the other members, agents and clients reach it.
    pub address: String,
}

/// Leases of nodes. A node is lost `lease_ms + fence_ms` after its last heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// Milliseconds that one acknowledged heartbeat keeps the lease.
    pub lease_ms: u64,
    /// Milliseconds after the lease in which the node's tasks are surely dead.
    pub fence_ms: u64,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            lease_ms: 20_000,
            fence_ms: 10_000,
            heartbeat_ms: 2_000,
        }
    }
}

/// Clock and log of the replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftConfig {
    /// Milliseconds of a tick.
    pub tick_ms: u64,
    /// Ticks without a leader before an election.
    pub election_ticks: usize,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Bytes of log after which a snapshot is taken.
    pub snapshot_log_bytes: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            election_ticks: 10,
            heartbeat_ticks: 2,
            snapshot_log_bytes: 64 * 1024 * 1024,
        }
    }
}

/// What flags and environment put in place of the file's values. Paths are relative to the working directory.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// In place of `listen`.
    pub listen: Option<String>,
    /// In place of `data_dir`.
    pub data_dir: Option<PathBuf>,
    /// In place of `tls_dir`.
    pub tls_dir: Option<PathBuf>,
}

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "{path}: cannot be read: {source}; name the file with --config or TRAINYARD_SCHEDULER_CONFIG"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in the file is wrong.
    #[error("{path}:{line}:{column}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The key and what to write instead.
        problem: String,
    },
    /// A flag or variable is wrong.
    #[error("{flag}: {problem}")]
    Override {
        /// The flag.
        flag: &'static str,
        /// What to write instead.
        problem: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    member_id: Spanned<u64>,
    listen: Option<Spanned<String>>,
    #[serde(default = "default_data_dir")]
    data_dir: PathBuf,
    #[serde(default = "default_tls_dir")]
    tls_dir: PathBuf,
    members: Spanned<Vec<FileMember>>,
    lease: Option<Spanned<LeaseConfig>>,
    raft: Option<Spanned<RaftConfig>>,
    stop_grace_ms: Option<Spanned<u64>>,
    export_dir: Option<PathBuf>,
    usage_retention_days: Option<Spanned<u32>>,
    power: Option<Spanned<power::FilePower>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMember {
    id: Spanned<u64>,
    address: Spanned<String>,
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("data")
}

fn default_tls_dir() -> PathBuf {
    PathBuf::from("tls")
}

impl Config {
    /// Reads the file and puts the overrides in place.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text, overrides)
    }

    /// As [`Config::load`], from a text that was read already; `path` is for messages and for relative paths.
    pub fn parse(path: &Path, text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        let at = |offset: usize, problem: String| {
            let (line, column) = position(text, offset);
            ConfigError::Invalid {
                path: path.to_owned(),
                line,
                column,
                problem,
            }
        };
        let file: File = toml::from_str(text).map_err(|error| {
            at(
                error.span().map_or(0, |span| span.start),
                explain(error.message()),
            )
        })?;
        let members = check_members(&file, &at)?;
        let own = members
            .iter()
            .find(|m| m.id == *file.member_id.get_ref())
            .ok_or_else(|| {
                let ids: Vec<String> = members.iter().map(|m| m.id.to_string()).collect();
                at(
                    file.member_id.span().start,
                    format!(
                        "member_id: {} is not among the ids of [[members]] ({})",
                        file.member_id.get_ref(),
                        ids.join(", ")
                    ),
                )
            })?;
        let listen = match (&overrides.listen, &file.listen) {
            (Some(flag), _) => {
                check_address(flag).map_err(|problem| ConfigError::Override {
                    flag: "--listen",
                    problem,
                })?;
                flag.clone()
            }
            (None, Some(listen)) => {
                check_address(listen.get_ref())
                    .map_err(|problem| at(listen.span().start, format!("listen: {problem}")))?;
                listen.get_ref().clone()
            }
            (None, None) => own.address.clone(),
        };
        let lease = check_lease(&file, &at)?;
        let raft = check_raft(&file, &at)?;
        let stop_grace_ms = match &file.stop_grace_ms {
            None => 10_000,
            Some(ms) if (1..=3_600_000).contains(ms.get_ref()) => *ms.get_ref(),
            Some(ms) => {
                return Err(at(
                    ms.span().start,
                    "stop_grace_ms: must be between 1 and 3600000 (an hour)".into(),
                ));
            }
        };
        let usage_retention_days = match &file.usage_retention_days {
            None => 400,
            Some(days) if (1..=36_500).contains(days.get_ref()) => *days.get_ref(),
            Some(days) => {
                return Err(at(
                    days.span().start,
                    "usage_retention_days: must be between 1 and 36500 (a hundred years)".into(),
                ));
            }
        };
        let power = power::check(file.power.as_ref(), &at)?;
        let base = path.parent().unwrap_or_else(|| Path::new(""));
        let below =
            |flag: &Option<PathBuf>, own: &Path| flag.clone().unwrap_or_else(|| base.join(own));
        let data_dir = below(&overrides.data_dir, &file.data_dir);
        let export_dir = match &file.export_dir {
            Some(dir) => base.join(dir),
            None => data_dir.join("exports"),
        };
        Ok(Self {
            member_id: *file.member_id.get_ref(),
            listen,
            data_dir,
            tls_dir: below(&overrides.tls_dir, &file.tls_dir),
            members,
            lease,
            raft,
            stop_grace_ms,
            export_dir,
            usage_retention_days,
            power,
        })
    }

    /// The address of a member.
    pub fn address_of(&self, member: u64) -> Option<&str> {
        self.members
            .iter()
            .find(|m| m.id == member)
            .map(|m| m.address.as_str())
    }
}

fn check_members(
    file: &File,
    at: &dyn Fn(usize, String) -> ConfigError,
) -> Result<Vec<MemberConfig>, ConfigError> {
    let mut members: Vec<MemberConfig> = Vec::new();
    for member in file.members.get_ref() {
        let id = *member.id.get_ref();
        if id == 0 {
            return Err(at(
                member.id.span().start,
                "members.id: ids start at 1".into(),
            ));
        }
        if members.iter().any(|m| m.id == id) {
            return Err(at(
                member.id.span().start,
                format!("members.id: {id} is given twice; each member has an id of its own"),
            ));
        }
        let address = member.address.get_ref();
        check_address(address).map_err(|problem| {
            at(
                member.address.span().start,
                format!("members.address: {problem}"),
            )
        })?;
        if members.iter().any(|m| m.address == *address) {
            return Err(at(
                member.address.span().start,
                format!(
                    "members.address: {address} is given twice; each member has an address of its own"
                ),
            ));
        }
        members.push(MemberConfig {
            id,
            address: address.clone(),
        });
    }
    if members.is_empty() || members.len() > 9 {
        return Err(at(
            file.members.span().start,
            format!(
                "members: there must be 1 to 9 of them, better an odd number; there are {}",
                members.len()
            ),
        ));
    }
    members.sort_by_key(|m| m.id);
    Ok(members)
}

fn check_lease(
    file: &File,
    at: &dyn Fn(usize, String) -> ConfigError,
) -> Result<LeaseConfig, ConfigError> {
    let Some(spanned) = &file.lease else {
        return Ok(LeaseConfig::default());
    };
    let lease = *spanned.get_ref();
    let problem = if lease.heartbeat_ms == 0 || lease.heartbeat_ms * 3 > lease.lease_ms {
        Some(format!(
            "lease.heartbeat_ms: {} must be at least 1 and at most a third of lease_ms ({}), so that one lost heartbeat \
             costs no lease",
            lease.heartbeat_ms, lease.lease_ms
        ))
    } else if lease.fence_ms == 0 {
        Some(
            "lease.fence_ms: must be at least 1: in this time a cut-off node kills its tasks"
                .into(),
        )
    } else if lease.lease_ms > 86_400_000 || lease.fence_ms > 86_400_000 {
        Some("lease: lease_ms and fence_ms must be at most 86400000 (a day)".into())
    } else {
        None
    };
    match problem {
        Some(problem) => Err(at(spanned.span().start, problem)),
        None => Ok(lease),
    }
}

fn check_raft(
    file: &File,
    at: &dyn Fn(usize, String) -> ConfigError,
) -> Result<RaftConfig, ConfigError> {
    let Some(spanned) = &file.raft else {
        return Ok(RaftConfig::default());
    };
    let raft = *spanned.get_ref();
    let problem = if !(1..=10_000).contains(&raft.tick_ms) {
        Some("raft.tick_ms: must be between 1 and 10000".to_owned())
    } else if raft.heartbeat_ticks == 0
        || raft.election_ticks <= raft.heartbeat_ticks
        || raft.election_ticks > 1_000
    {
        Some(format!(
            "raft.election_ticks: {} must be more than heartbeat_ticks ({}, at least 1) and at most 1000",
            raft.election_ticks, raft.heartbeat_ticks
        ))
    } else if !(64 * 1024..=16 * 1024 * 1024 * 1024).contains(&raft.snapshot_log_bytes) {
        Some(
            "raft.snapshot_log_bytes: must be between 65536 (64 KiB) and 17179869184 (16 GiB)"
                .to_owned(),
        )
    } else {
        None
    };
    match problem {
        Some(problem) => Err(at(spanned.span().start, problem)),
        None => Ok(raft),
    }
}

/// Checks a `HOST:PORT`; the error says what to write instead.
pub fn check_address(address: &str) -> Result<(), String> {
    let wrong = || format!("{address:?} is not HOST:PORT, such as 10.0.0.1:7700 or [fd00::1]:7700");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_ok = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    if host_ok && port.parse::<u16>().is_ok() {
        Ok(())
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests;
