//! One switched network in namespaces, and hosts on it that share the machine's kernel and files.
//!
//! The thread that makes a [`Net`] is moved into the network's own namespace, where the bridge lives: sockets it opens, and
//! threads and processes it starts afterwards, are on the network at [`Net::address`]. So a test makes the `Net` first and its
//! async runtime after it. Nothing here may name or change a link of the machine's own namespace.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::error::{Context, Result, RigError};
use crate::process::{child_of, output};

const BRIDGE: &str = "br0";
const PREFIX: [u8; 3] = [10, 78, 0];
const PREFIX_BITS: u8 = 24;
/// The first host's last byte; the test itself is .1.
const FIRST_HOST: u8 = 11;

/// A network: a bridge in a namespace of its own. When it goes, so do its links.
pub struct Net {
    shared: Rc<Shared>,
}

struct Shared {
    home: File,
    folder: TempDir,
    next: Cell<u8>,
    /// The namespace belongs to the thread that made it, so the value must stay there.
    _thread_bound: PhantomData<*const ()>,
}

impl Net {
    /// Makes the network and moves the calling thread into it until the `Net` and all its hosts are dropped.
    pub fn new() -> Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")
            .cannot("open this thread's network namespace")?;
        let folder = TempDir::with_prefix("trainyard-net-").cannot("make a temporary folder")?;
        fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n")
            .cannot("write the hosts file")?;
        unshare(CloneFlags::CLONE_NEWNET).cannot("make a network namespace (root is needed)")?;
        let shared = Shared {
            home,
            folder,
            next: Cell::new(FIRST_HOST),
            _thread_bound: PhantomData,
        };
        let net = Self {
            shared: Rc::new(shared),
        };
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&[
            "address",
            "add",
            &format!("{}/{PREFIX_BITS}", net.address()),
            "dev",
            BRIDGE,
        ])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        Ok(net)
    }

    /// The address of the test itself.
    pub fn address(&self) -> Ipv4Addr {
        address(1)
    }

    /// Adds a host, with its own network, mounts, processes and name, that sees the machine's files.
    pub fn host(&self, name: &str) -> Result<Host> {
        let port = self.attach(name)?;
        let keeper = Keeper::start(&port.hosts_file(), name)?;
        let pid = keeper.pid.to_string();
        ip(&[
            "link", "add", &port.link, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ])?;
        ip(&["link", "set", &port.link, "master", BRIDGE, "up"])?;
        let host = Host {
            name: name.to_owned(),
            port,
            keeper,
        };
        for arguments in [
            vec!["link", "set", "lo", "up"],
            vec![
                "address",
                "add",
                &format!("{}/{PREFIX_BITS}", host.address()),
                "dev",
                "eth0",
            ],
            vec!["link", "set", "eth0", "up"],
        ] {
            output(host.command("ip").args(arguments))?;
        }
        Ok(host)
    }

    /// Takes the next address and writes its name into the hosts file that all hosts see.
    pub(super) fn attach(&self, name: &str) -> Result<Port> {
        let number = self.shared.next.get();
        if number == u8::MAX {
            return Err(RigError::new("the network has no address left"));
        }
        self.shared.next.set(number + 1);
        let port = Port {
            link: format!("port{number}"),
            address: address(number),
            net: Rc::clone(&self.shared),
        };
        let mut hosts = OpenOptions::new()
            .append(true)
            .open(port.hosts_file())
            .cannot("open the hosts file")?;
        writeln!(hosts, "{} {name}", port.address).cannot("write the hosts file")?;
        Ok(port)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Without it the thread would keep the namespace, and the next test on it would start inside.
        let _ = setns(&self.home, CloneFlags::CLONE_NEWNET);
    }
}

/// A socket of the switch: what a host of either kind hangs on.
pub(super) struct Port {
    pub(super) link: String,
    pub(super) address: Ipv4Addr,
    net: Rc<Shared>,
}

impl Port {
    pub(super) fn hosts_file(&self) -> PathBuf {
        self.folder().join("hosts")
    }

    /// A folder that lives as long as the network.
    pub(super) fn folder(&self) -> &Path {
        self.net.folder.path()
    }

    /// Makes the switch's side a tap device, for a machine with its own kernel.
    pub(super) fn make_tap(&self) -> Result<()> {
        ip(&["tuntap", "add", "dev", &self.link, "mode", "tap"])?;
        ip(&["link", "set", &self.link, "master", BRIDGE, "up"])
    }

    pub(super) fn set_up(&self, up: bool) -> Result<()> {
        ip(&["link", "set", &self.link, if up { "up" } else { "down" }])
    }

    /// The address with the length of its prefix.
    pub(super) fn address_with_prefix(&self) -> String {
        format!("{}/{PREFIX_BITS}", self.address)
    }
}

/// A host made of namespaces. Dropping it is a power cut: every process in it ends at once, its mounts and links go.
pub struct Host {
    name: String,
    port: Port,
    keeper: Keeper,
}

impl Host {
    /// The name given when it was added; the other hosts resolve it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the network.
    pub fn address(&self) -> Ipv4Addr {
        self.port.address
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.entrance().command(program)
    }

    /// A way onto this host that can be kept by a [`Daemon`](crate::Daemon). It leads nowhere once the host is gone.
    pub fn entrance(&self) -> Entrance {
        Entrance {
            keeper: self.keeper.pid,
        }
    }

    /// Pulls the cable: nothing gets in or out, loopback goes on.
    pub fn cut(&self) -> Result<()> {
        self.port.set_up(false)
    }

    /// Puts the cable back.
    pub fn heal(&self) -> Result<()> {
        self.port.set_up(true)
    }

    /// Ends every process of this host at once, whatever it has become: daemons, shims, tasks. The host stays usable.
    pub fn kill_processes(&mut self) -> Result<()> {
        // -1 is everything in the sender's PID namespace but PID 1 and the sender itself.
        output(
            self.command("/bin/bash")
                .args(["-c", "kill -KILL -1 || true"]),
        )
        .map(drop)
    }
}

/// Starts commands on a [`Host`].
#[derive(Clone, Copy, Debug)]
pub struct Entrance {
    keeper: Pid,
}

impl Entrance {
    /// A command that will run on the host, in the current directory.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.keeper.to_string(),
            "--net",
            "--mount",
            "--pid",
            "--uts",
            "--wdns=.",
        ]);
        command.arg("--").arg(program.as_ref());
        command
    }
}

/// Holds a host's namespaces: PID 1 in them, which only reaps orphans. It dies with the test, and all processes with it.
struct Keeper {
    outer: Child,
    pid: Pid,
}

impl Keeper {
    fn start(hosts_file: &Path, name: &str) -> Result<Self> {
        // A PID 1 that ignores SIGCHLD never leaves a zombie: shims whose agent was killed vanish when they end, as on a host.
        let script = r#"mount --bind "$0" /etc/hosts && hostname "$1" && echo up && exec env --ignore-signal=CHLD sleep infinity"#;
        let mut outer = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--mount-proc",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["bash", "-c", script])
            .arg(hosts_file)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .cannot("start a host's first process")?;
        let up = outer.stdout.take().map(first_line).unwrap_or_default();
        let pid = if up == "up\n" {
            child_of(&mut outer)
        } else {
            let said = outer
                .stderr
                .take()
                .and_then(|pipe| std::io::read_to_string(pipe).ok());
            Err(RigError::new(said.unwrap_or_default()))
        };
        match pid {
            Ok(pid) => Ok(Self { outer, pid }),
            Err(error) => {
                let _ = outer.kill();
                let _ = outer.wait();
                Err(RigError::new(format!("cannot start host {name}: {error}")))
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = self.outer.wait();
    }
}

fn first_line(pipe: impl std::io::Read) -> String {
    let mut line = String::new();
    // What cannot be read is not the expected line.
    let _ = std::io::BufRead::read_line(&mut std::io::BufReader::new(pipe), &mut line);
    line
}

fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = PREFIX;
    Ipv4Addr::new(a, b, c, number)
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}
