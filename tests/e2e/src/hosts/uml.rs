//! A whole Linux host as a process: user-mode-linux with the machine's `/` as its read-only root.
//!
//! `tests/hosts/uml-init` is its PID 1; it takes commands on the console and answers there, line by line, so waiting is
//! waiting for a line. The test's share folder is writable on both sides at the same path. What a host wrote there without
//! fsync may be lost in a power cut, as on a real disk.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Net;
use super::net::Port;
use crate::error::{Context, Result, RigError};
use crate::process::child_of;

const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How many lines of a console an error quotes.
const QUOTED_LINES: usize = 40;

/// A command that was started on a [`Uml`] host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandId(u32);

/// A host with its own kernel. Dropping it is a power cut.
pub struct Uml {
    name: String,
    memory_mib: u32,
    share: PathBuf,
    port: Port,
    power: Option<Power>,
    console: Arc<Console>,
    next_command: u32,
}

/// What exists while the host is switched on.
struct Power {
    outer: Child,
    kernel: Pid,
    input: ChildStdin,
    reader: JoinHandle<()>,
}

impl Uml {
    /// Connects a host to the network and boots it. `share` must exist; it is the one folder the host can write to.
    pub fn boot(net: &Net, name: &str, share: &Path, memory_mib: u32) -> Result<Self> {
        let share = share
            .canonicalize()
            .cannot(format_args!("find the share folder {}", share.display()))?;
        let port = net.attach(name)?;
        port.make_tap()?;
        let name = name.to_owned();
        let mut host = Self {
            name,
            memory_mib,
            share,
            port,
            power: None,
            console: Arc::default(),
            next_command: 0,
        };
        host.power_on()?;
        Ok(host)
    }

    /// Switches a host on that was stopped or cut off, and waits until its network is up. Earlier output is forgotten.
    pub fn power_on(&mut self) -> Result<()> {
        if self.power.is_some() {
            return Err(RigError::new(format!("{} is on already", self.name)));
        }
        self.console = Arc::default();
        let mut outer = self
            .kernel_command()
            .spawn()
            .cannot("start linux.uml (see tests/setup)")?;
        let pipes = outer.stdin.take().zip(outer.stdout.take());
        let Some((input, from_console)) = pipes else {
            return Err(RigError::new("a spawned process lacks its pipes"));
        };
        let console = Arc::clone(&self.console);
        let reader = std::thread::spawn(move || console.read(BufReader::new(from_console)));
        match child_of(&mut outer) {
            Ok(kernel) => {
                self.power = Some(Power {
                    outer,
                    kernel,
                    input,
                    reader,
                })
            }
            Err(error) => {
                let _ = outer.kill();
                let _ = outer.wait();
                return Err(RigError::new(format!(
                    "cannot boot {}: {error}\n{}",
                    self.name,
                    self.console.quote()
                )));
            }
        }
        self.wait_for("is up", BOOT_TIMEOUT, |seen| seen.ready.then_some(()))
    }

    fn kernel_command(&self) -> Command {
        let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hosts/uml-init");
        let mut command = Command::new("setpriv");
        // The PID namespace makes the power cut complete: the kernel's helper processes go with it.
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount-proc",
            "--pid",
            "--fork",
            "--kill-child",
            "linux.uml",
        ]);
        command.args([
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "quiet",
            "panic=1",
            "con=null",
            "con0=fd:0,fd:1",
        ]);
        command.arg(format!("mem={}M", self.memory_mib));
        command.arg(format!("umid={}", self.port.link));
        command.arg(format!("init={}", init.display()));
        command.arg(format!("node={}", self.name));
        command.arg(format!("addr={}", self.port.address_with_prefix()));
        command.arg(format!("share={}", self.share.display()));
        command.arg(format!("hosts={}", self.port.hosts_file().display()));
        command.arg(format!(
            "vec0:transport=tap,ifname={},depth=64,gro=1",
            self.port.link
        ));
        // Its memory is a file in TMPDIR, which must not burden the disk. It keeps its pid file under HOME.
        command
            .env("TMPDIR", "/dev/shm")
            .env("HOME", self.port.folder());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    /// The host's name; the other hosts resolve it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the network.
    pub fn address(&self) -> Ipv4Addr {
        self.port.address
    }

    /// Starts a shell command and returns at once. It may be several lines' worth, but must be written in one.
    pub fn start(&mut self, command: &str) -> Result<CommandId> {
        if command.contains('\n') {
            return Err(RigError::new(
                "a command for a user-mode-linux host must be one line",
            ));
        }
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.tell(&format!("run {} {command}", id.0))?;
        Ok(id)
    }

    /// Runs a shell command to its end and returns its output; any status but 0 is an error that quotes it.
    pub fn run(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let id = self.start(command)?;
        let status = self.wait_end(id, timeout)?;
        let text = self.output(id);
        if status == 0 {
            return Ok(text);
        }
        Err(RigError::new(format!(
            "on {}: {command}: ended with status {status}\n{text}",
            self.name
        )))
    }

    /// Waits until the command has ended; its status as a shell sees it (128 + N after signal N).
    pub fn wait_end(&mut self, id: CommandId, timeout: Duration) -> Result<i32> {
        self.wait_for("has ended the command", timeout, |seen| {
            seen.commands.get(&id)?.status
        })
    }

    /// Waits until the command has written a line that contains `text`, and returns that line.
    pub fn wait_line(&mut self, id: CommandId, text: &str, timeout: Duration) -> Result<String> {
        self.wait_for(&format!("has written '{text}'"), timeout, |seen| {
            seen.commands
                .get(&id)?
                .lines
                .iter()
                .find(|line| line.contains(text))
                .cloned()
        })
    }

    /// What the command has written so far.
    pub fn output(&self, id: CommandId) -> String {
        let seen = self.console.lock();
        let lines = seen
            .commands
            .get(&id)
            .map(|command| command.lines.as_slice())
            .unwrap_or_default();
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Pulls the network cable.
    pub fn cut(&self) -> Result<()> {
        self.port.set_up(false)
    }

    /// Puts the network cable back.
    pub fn heal(&self) -> Result<()> {
        self.port.set_up(true)
    }

    /// Stops the whole host in its tracks (`true`), or lets it go on. Its clock jumps, as after a virtual machine's pause.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let power = self.power.as_ref().ok_or_else(|| self.is_off())?;
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        kill(power.kernel, signal).cannot(format_args!("send {signal} to {}", self.name))
    }

    /// Cuts the power: whatever it had not written to the share is gone.
    pub fn kill(&mut self) -> Result<()> {
        let power = self.power.take().ok_or_else(|| self.is_off())?;
        power.cut()
    }

    /// Shuts the host down in good order.
    pub fn stop(&mut self) -> Result<()> {
        self.tell("stop")?;
        self.wait_for("is off", STOP_TIMEOUT, |seen| seen.ended.then_some(()))?;
        self.kill()
    }

    fn is_off(&self) -> RigError {
        RigError::new(format!("{} is off", self.name))
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        let off = self.is_off();
        let power = self.power.as_mut().ok_or(off)?;
        writeln!(power.input, "{line}")
            .cannot(format_args!("write to the console of {}", self.name))
    }

    fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        probe: impl Fn(&Seen) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = self.console.lock();
        loop {
            if let Some(answer) = probe(&seen) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || seen.ended {
                let why = if seen.ended {
                    "it went off".to_owned()
                } else {
                    format!("{timeout:?} were not enough")
                };
                drop(seen);
                let quote = self.console.quote();
                return Err(RigError::new(format!(
                    "waited in vain until {} {what}: {why}\n{quote}",
                    self.name
                )));
            }
            let waited = self
                .console
                .changed
                .wait_timeout(seen, left)
                .unwrap_or_else(PoisonError::into_inner);
            seen = waited.0;
        }
    }
}

impl Power {
    fn cut(mut self) -> Result<()> {
        // The kernel may have ended already.
        let _ = kill(self.kernel, Signal::SIGKILL);
        self.outer.wait().cannot("wait for linux.uml")?;
        self.reader
            .join()
            .map_err(|_| RigError::new("the console's reader failed"))
    }
}

impl Drop for Uml {
    fn drop(&mut self) {
        if let Some(power) = self.power.take() {
            let _ = power.cut();
        }
    }
}

/// What came out of the host so far.
#[derive(Default)]
struct Console {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    ready: bool,
    ended: bool,
    all: Vec<String>,
    commands: HashMap<CommandId, CommandSeen>,
}

#[derive(Default)]
struct CommandSeen {
    lines: Vec<String>,
    status: Option<i32>,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, from: impl BufRead) {
        for bytes in from.split(b'\n') {
            let Ok(bytes) = bytes else { break };
            self.lock().take_line(
                String::from_utf8_lossy(&bytes)
                    .trim_end_matches('\r')
                    .to_owned(),
            );
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn quote(&self) -> String {
        let seen = self.lock();
        let first = seen.all.len().saturating_sub(QUOTED_LINES);
        format!(
            "--- end of the console\n{}\n---",
            seen.all.get(first..).unwrap_or_default().join("\n")
        )
    }
}

impl Seen {
    fn take_line(&mut self, line: String) {
        let mut words = line.splitn(3, ' ');
        let (verb, id, rest) = (
            words.next().unwrap_or_default(),
            words.next(),
            words.next().unwrap_or_default(),
        );
        let id = id.and_then(|id| id.parse().ok()).map(CommandId);
        match (verb, id) {
            ("@ready", _) => self.ready = true,
            ("@out", Some(id)) => self
                .commands
                .entry(id)
                .or_default()
                .lines
                .push(rest.to_owned()),
            ("@end", Some(id)) => self.commands.entry(id).or_default().status = rest.parse().ok(),
            // The kernel's own lines are kept for error texts alone.
            _ => {}
        }
        self.all.push(line);
    }
}
