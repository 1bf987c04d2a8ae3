//! The data directory of `trainyard dev`: what is where, and how it is made by `trainyard-scheduler`. Must never
//! write a key or a configuration itself.
//!
//! ```text
//! authority/ members/ID/ nodes/NAME/ clients/admin/   made by `trainyard-scheduler init` and `issue`
//! logs/NAME.log pids/NAME.pid dev.lock                 made by `trainyard dev`
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;

/// Schedulers of a new directory.
const DEFAULT_SCHEDULERS: u32 = 3;
/// Nodes of a new directory.
const DEFAULT_NODES: u32 = 2;
/// Ports of a new directory begin above this one.
const DEFAULT_PORT: u16 = 7400;
/// Who uses the cluster.
const CLIENT: &str = "admin";

/// What the command line asks for; what it leaves open is as the directory has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    pub(super) schedulers: Option<u32>,
    pub(super) nodes: Option<u32>,
    pub(super) port: Option<u16>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Layout {
    /// The data directory, absolute.
    pub(super) data: PathBuf,
    /// Id and `HOST:PORT` of each scheduler.
    pub(super) members: Vec<(u32, String)>,
    /// Names of the nodes to start.
    pub(super) nodes: Vec<String>,
}

impl Layout {
    /// Opens the directory, or makes it. `scheduler` is the program that makes keys and configurations.
    pub(super) fn open(data: &Path, wanted: Wanted, scheduler: &Path) -> Result<Self, Error> {
        let data = std::path::absolute(data)
            .map_err(|error| Error::failure(format!("cannot use {}: {error}", data.display())))?;
        if !data.join("authority/ca.pem").exists() {
            create(&data, wanted, scheduler)?;
        }
        let members = read_members(&data)?;
        check_members(&data, &members, wanted)?;
        let present = count_nodes(&data);
        let count = wanted
            .nodes
            .unwrap_or(if present == 0 { DEFAULT_NODES } else { present });
        let nodes: Vec<String> = (1..=count).map(node_name).collect();
        let layout = Self {
            data,
            members,
            nodes,
        };
        for node in layout.nodes.iter().skip(present as usize) {
            layout.issue(node, scheduler)?;
        }
        layout.make_own_directories()?;
        Ok(layout)
    }

    /// Configuration of a scheduler.
    pub(super) fn scheduler_config(&self, id: u32) -> PathBuf {
        self.data.join(format!("members/{id}/scheduler.toml"))
    }

    /// Configuration of a node's agent.
    pub(super) fn agent_config(&self, node: &str) -> PathBuf {
        self.data.join("nodes").join(node).join("agent.toml")
    }

    /// Configuration of this command.
    pub(super) fn client_config(&self) -> PathBuf {
        self.data.join("clients").join(CLIENT).join("config.toml")
    }

    /// Log of a daemon.
    pub(super) fn log(&self, daemon: &str) -> PathBuf {
        self.data.join("logs").join(format!("{daemon}.log"))
    }

    /// File with the pid of a daemon.
    pub(super) fn pid_file(&self, daemon: &str) -> PathBuf {
        self.data.join("pids").join(format!("{daemon}.pid"))
    }

    /// File that says that a `trainyard dev` uses this directory.
    pub(super) fn lock_file(&self) -> PathBuf {
        self.data.join("dev.lock")
    }

    fn issue(&self, node: &str, scheduler: &Path) -> Result<(), Error> {
        let mut command = Command::new(scheduler);
        command
            .arg("issue")
            .arg("--authority")
            .arg(self.data.join("authority"));
        command
            .args(["--node", node])
            .arg("--out")
            .arg(self.data.join("nodes").join(node));
        for (_, address) in &self.members {
            command.args(["--scheduler", address]);
        }
        finish(&mut command)
    }

    /// Logs and pids; and lets the user that tasks run as pass through to the agents' directories, whose keys stay closed.
    fn make_own_directories(&self) -> Result<(), Error> {
        for name in ["logs", "pids"] {
            let path = self.data.join(name);
            fs::create_dir_all(&path).map_err(|error| {
                Error::failure(format!("cannot make {}: {error}", path.display()))
            })?;
        }
        let nodes = self.data.join("nodes");
        let each = self.nodes.iter().map(|node| nodes.join(node));
        for path in [self.data.clone(), nodes.clone()].into_iter().chain(each) {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(|error| {
                Error::failure(format!(
                    "cannot set the mode of {}: {error}",
                    path.display()
                ))
            })?;
        }
        Ok(())
    }
}

/// Where data goes unless the command line says otherwise. For root a place that other users may pass through, since tasks
/// do not run as root.
pub(super) fn default_data() -> Result<PathBuf, Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/trainyard-dev"));
    }
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    base.map(|base| base.join("trainyard/dev")).ok_or_else(|| {
        Error::failure("there is no home directory to keep data in; pass `--data DIR`")
    })
}

fn node_name(number: u32) -> String {
    format!("node-{number}")
}

fn create(data: &Path, wanted: Wanted, scheduler: &Path) -> Result<(), Error> {
    let is_used = fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        return Err(Error::failure(format!(
            "{} holds something else than the data of `trainyard dev`; pass another `--data DIR`",
            data.display()
        )));
    }
    let base = wanted.port.unwrap_or(DEFAULT_PORT);
    let mut command = Command::new(scheduler);
    command.arg("init").arg("--out").arg(data);
    for id in 1..=wanted.schedulers.unwrap_or(DEFAULT_SCHEDULERS) {
        let port = u32::from(base) + id;
        let port = u16::try_from(port)
            .map_err(|_| Error::usage(format!("--port {base}: {port} is no port")))?;
        command
            .arg("--member")
            .arg(format!("{id}=127.0.0.1:{port}"));
    }
    for number in 1..=wanted.nodes.unwrap_or(DEFAULT_NODES) {
        command.args(["--node", &node_name(number)]);
    }
    command.args(["--client", CLIENT]);
    finish(&mut command)
}

/// Runs a program to its end; its output is shown only if it fails.
fn finish(command: &mut Command) -> Result<(), Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Error::failure(format!("cannot run {program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::failure(format!(
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// Reads the addresses from the first scheduler's configuration.
fn read_members(data: &Path) -> Result<Vec<(u32, String)>, Error> {
    let path = data.join("members/1/scheduler.toml");
    let text = fs::read_to_string(&path).map_err(|error| {
        Error::failure(format!(
            "cannot read {}: {error}; pass another `--data DIR`",
            path.display()
        ))
    })?;
    members_of(&text).ok_or_else(|| {
        Error::failure(format!(
            "{} does not name its members; pass another `--data DIR`",
            path.display()
        ))
    })
}

fn members_of(text: &str) -> Option<Vec<(u32, String)>> {
    let table: toml::Table = text.parse().ok()?;
    let members = table.get("members")?.as_array()?;
    let mut found = Vec::new();
    for member in members {
        let id = u32::try_from(member.get("id")?.as_integer()?).ok()?;
        found.push((id, member.get("address")?.as_str()?.to_owned()));
    }
    (!found.is_empty()).then_some(found)
}

/// Refuses flags that contradict what the directory was made with.
fn check_members(data: &Path, members: &[(u32, String)], wanted: Wanted) -> Result<(), Error> {
    let count = members.len();
    let ports_differ = wanted.port.is_some_and(|base| {
        members.iter().any(|(id, address)| {
            let port = address
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse::<u32>().ok());
            port != Some(u32::from(base) + id)
        })
    });
    if ports_differ
        || wanted
            .schedulers
            .is_some_and(|wanted| wanted as usize != count)
    {
        let addresses: Vec<&str> = members
            .iter()
            .map(|(_, address)| address.as_str())
            .collect();
        return Err(Error::usage(format!(
            "{} was made for {count} schedulers at {}; leave out --schedulers and --port, or pass another `--data DIR`",
            data.display(),
            addresses.join(", ")
        )));
    }
    Ok(())
}

/// Nodes `node-1`, `node-2`, ... without a gap that have a configuration.
fn count_nodes(data: &Path) -> u32 {
    let has = |number: &u32| {
        data.join("nodes")
            .join(node_name(*number))
            .join("agent.toml")
            .exists()
    };
    (1..).take_while(has).last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "member_id = 1\n[[members]]\nid = 1\naddress = \"127.0.0.1:7401\"\n\
                        [[members]]\nid = 2\naddress = \"127.0.0.1:7402\"\n";

    /// A stand-in for `trainyard-scheduler` that makes what `init` and `issue` make and writes down its arguments.
    fn stand_in(dir: &Path) -> PathBuf {
        let path = dir.join("trainyard-scheduler");
        let script = r#"#!/bin/bash
out= nodes=()
all="$*"
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2;; --node) nodes+=("$2");; esac
  shift
done
case $all in
  init*) mkdir -p "$out/authority" "$out/members/1" "$out/nodes"
    echo ca > "$out/authority/ca.pem"
    printf '[[members]]\nid = 1\naddress = "127.0.0.1:7401"\n' > "$out/members/1/scheduler.toml"
    for n in "${nodes[@]}"; do mkdir -p "$out/nodes/$n"; touch "$out/nodes/$n/agent.toml"; done;;
  issue*) mkdir -p "$out"; touch "$out/agent.toml";;
esac
echo "$all" >> "$(dirname "$0")/calls"
"#;
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn calls(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_new_directory_is_made_once_and_grows_by_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let scheduler = stand_in(dir.path());
        let data = dir.path().join("data");
        let wanted = Wanted {
            schedulers: Some(1),
            nodes: Some(1),
            port: None,
        };
        let layout = Layout::open(&data, wanted, &scheduler).unwrap();
        assert_eq!(layout.nodes, ["node-1"]);
        assert!(
            calls(dir.path())[0].contains("--member 1=127.0.0.1:7401 --node node-1 --client admin")
        );
        Layout::open(&data, Wanted::default(), &scheduler).unwrap();
        assert_eq!(calls(dir.path()).len(), 1);
        let layout = Layout::open(
            &data,
            Wanted {
                nodes: Some(2),
                ..Wanted::default()
            },
            &scheduler,
        )
        .unwrap();
        assert_eq!(layout.nodes, ["node-1", "node-2"]);
        assert!(calls(dir.path())[1].ends_with("nodes/node-2 --scheduler 127.0.0.1:7401"));
    }

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("thesis.tex"), "x").unwrap();
        let error = Layout::open(&data, Wanted::default(), Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("something else"), "{error}");
    }

    #[test]
    fn contradicting_flags_are_refused() {
        let members = members_of(TOML).unwrap();
        assert_eq!(members[1], (2, "127.0.0.1:7402".to_owned()));
        let data = Path::new("/data");
        let with = |schedulers, port| {
            check_members(
                data,
                &members,
                Wanted {
                    schedulers,
                    port,
                    nodes: None,
                },
            )
        };
        assert!(with(None, None).is_ok());
        assert!(with(Some(2), Some(7400)).is_ok());
        assert!(with(Some(3), None).is_err());
        assert!(
            with(None, Some(8000))
                .unwrap_err()
                .to_string()
                .contains("127.0.0.1:7401")
        );
    }
}
