//! The section `[power]`: how hosts are switched on and off.
//!
//! A section that could switch hosts off but never on again must be refused here.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, check_address};

/// How hosts are switched on and off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerConfig {
    /// How to switch one on.
    pub wake: Wake,
    /// Program and arguments that switch one off; the node's name is appended.
    pub stop_command: Option<Vec<String>>,
    /// How long a host may take to connect after it was switched on, or to go after it was switched off.
    pub wake_deadline: Duration,
    /// How long a node is idle in the pool before it is switched off; `None`: never.
    pub stop_after_idle: Option<Duration>,
    /// How long a command may run.
    pub command_deadline: Duration,
}

/// How to switch a host on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// Program and arguments; the node's name is appended.
    Command(Vec<String>),
    /// A magic packet to the node's hardware address, sent to this `HOST:PORT` by UDP.
    OnLan(String),
}

/// As in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilePower {
    wake_command: Option<Spanned<Vec<String>>>,
    wake_on_lan: Option<Spanned<bool>>,
    wake_on_lan_address: Option<Spanned<String>>,
    wake_deadline_s: Option<Spanned<u64>>,
    stop_command: Option<Spanned<Vec<String>>>,
    stop_after_idle_s: Option<Spanned<u64>>,
    command_deadline_s: Option<Spanned<u64>>,
}

type At<'a> = &'a dyn Fn(usize, String) -> ConfigError;

pub(super) fn check(
    section: Option<&Spanned<FilePower>>,
    at: At<'_>,
) -> Result<Option<PowerConfig>, ConfigError> {
    let Some(section) = section else {
        return Ok(None);
    };
    let start = section.span().start;
    let file = section.get_ref();
    let stop_command = command("stop_command", file.stop_command.as_ref(), at)?;
    let wake = wake(file, start, at)?;
    let stop_after_idle = match &file.stop_after_idle_s {
        None => None,
        Some(given) if stop_command.is_none() => {
            return Err(at(
                given.span().start,
                "power.stop_after_idle_s: needs power.stop_command, which switches a host off"
                    .into(),
            ));
        }
        given => seconds("stop_after_idle_s", given.as_ref(), 60, 365 * 86_400, at)?,
    };
    if stop_command.is_some() && stop_after_idle.is_none() {
        return Err(at(
            start,
            "power.stop_command: is never run without power.stop_after_idle_s; give both or neither".into(),
        ));
    }
    let wake_deadline = seconds(
        "wake_deadline_s",
        file.wake_deadline_s.as_ref(),
        1,
        86_400,
        at,
    )?;
    let command_deadline = seconds(
        "command_deadline_s",
        file.command_deadline_s.as_ref(),
        1,
        3_600,
        at,
    )?;
    Ok(Some(PowerConfig {
        wake,
        stop_command,
        wake_deadline: wake_deadline.unwrap_or(Duration::from_secs(600)),
        stop_after_idle,
        command_deadline: command_deadline.unwrap_or(Duration::from_secs(60)),
    }))
}

fn wake(file: &FilePower, start: usize, at: At<'_>) -> Result<Wake, ConfigError> {
    let by_lan = file.wake_on_lan.as_ref().filter(|on| *on.get_ref());
    let by_command = command("wake_command", file.wake_command.as_ref(), at)?;
    let address = file.wake_on_lan_address.as_ref();
    match (by_command, by_lan) {
        (Some(_), Some(lan)) => Err(at(
            lan.span().start,
            "power.wake_on_lan: there is a wake_command already; keep one of them".into(),
        )),
        (None, None) => Err(at(
            start,
            "power: says not how a host is switched on; give wake_command = [\"PROGRAM\", \"ARGUMENT\"] or wake_on_lan = true"
                .into(),
        )),
        (Some(command), None) => match address {
            Some(address) => Err(at(
                address.span().start,
                "power.wake_on_lan_address: has no effect without wake_on_lan = true".into(),
            )),
            None => Ok(Wake::Command(command)),
        },
        (None, Some(_)) => match address {
            None => Ok(Wake::OnLan("255.255.255.255:9".to_owned())),
            Some(address) => {
                check_address(address.get_ref()).map_err(|problem| {
                    at(
                        address.span().start,
                        format!("power.wake_on_lan_address: {problem}"),
                    )
                })?;
                Ok(Wake::OnLan(address.get_ref().clone()))
            }
        },
    }
}

fn command(
    key: &str,
    given: Option<&Spanned<Vec<String>>>,
    at: At<'_>,
) -> Result<Option<Vec<String>>, ConfigError> {
    let Some(given) = given else {
        return Ok(None);
    };
    let command = given.get_ref();
    if command
        .first()
        .is_none_or(|program| !program.starts_with('/'))
    {
        return Err(at(
            given.span().start,
            format!(
                "power.{key}: must begin with the absolute path of a program, such as [\"/usr/local/sbin/power\", \"on\"]"
            ),
        ));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(at(
            given.span().start,
            format!("power.{key}: a word has a zero byte, which no program can be given"),
        ));
    }
    Ok(Some(command.clone()))
}

fn seconds(
    key: &str,
    given: Option<&Spanned<u64>>,
    least: u64,
    most: u64,
    at: At<'_>,
) -> Result<Option<Duration>, ConfigError> {
    match given {
        None => Ok(None),
        Some(s) if (least..=most).contains(s.get_ref()) => {
            Ok(Some(Duration::from_secs(*s.get_ref())))
        }
        Some(s) => Err(at(
            s.span().start,
            format!("power.{key}: must be between {least} and {most} seconds"),
        )),
    }
}
