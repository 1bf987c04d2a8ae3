//! Switches hosts on and off: runs the administrator's command for one node, or sends it a magic packet.
//!
//! A command has a deadline, its words are kept only as far as a reason needs them, and its whole process group is ended
//! with it, also when the daemon stops waiting for it: nothing that it started in the group may be left behind. It gets no
//! input and no shell. Nothing here decides whether a host should be on.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::UdpSocket;
use tokio::process::Command;

use crate::config::{PowerConfig, Wake};

/// Bytes of a command's output, the last ones, that go into a reason.
const MAX_WORDS: usize = 512;
/// Magic packets that are sent: UDP may lose one.
const PACKETS: usize = 3;

/// The host of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Resource name of the node.
    pub node: String,
    /// Hardware address; empty: unknown.
    pub mac: String,
    /// Address of the host.
    pub address: String,
}

/// Switches a host on; the error is a sentence for `state_reason`.
pub async fn wake(config: &PowerConfig, host: &Host) -> Result<(), String> {
    match &config.wake {
        Wake::OnLan(address) => wake_on_lan(address, host).await,
        Wake::Command(command) => run(command, host, config.command_deadline).await,
    }
}

/// Switches a host off; the error is a sentence for `state_reason`.
pub async fn stop(config: &PowerConfig, host: &Host) -> Result<(), String> {
    let command = config.stop_command.as_ref().ok_or(
        "power.stop_command is not set in the schedulers' configuration: set it, or stop the host by hand",
    )?;
    run(command, host, config.command_deadline).await
}

/// Ends a process group when it is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // ESRCH: nothing is left of it, which is what is wanted.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

/// Runs a command with the node's name appended.
async fn run(command: &[String], host: &Host, deadline: Duration) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("the command is empty")?;
    let node = host.node.rsplit('/').next().unwrap_or(&host.node);
    let mut child = Command::new(program)
        .args(arguments)
        .arg(node)
        .env("TRAINYARD_NODE", node)
        .env("TRAINYARD_NODE_ADDRESS", &host.address)
        .env("TRAINYARD_NODE_MAC", &host.mac)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("{program} cannot be started: {e}"))?;
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(|id| Group(Pid::from_raw(id)));
    let mut output = child.stdout.take();
    let mut errors = child.stderr.take();
    let mut words = Words::default();
    let (mut a, mut b) = ([0; 1024], [0; 1024]);
    let over = tokio::time::sleep(deadline);
    tokio::pin!(over);
    let status = loop {
        // The exit of the command itself counts, though something else may hold its pipes open.
        tokio::select! {
            n = read(&mut output, &mut a) => words.push(&a[..n]),
            n = read(&mut errors, &mut b) => words.push(&b[..n]),
            status = child.wait() => break Some(status),
            () = &mut over => break None,
        }
    };
    drop(group);
    let rest = async {
        while output.is_some() || errors.is_some() {
            tokio::select! {
                n = read(&mut output, &mut a) => words.push(&a[..n]),
                n = read(&mut errors, &mut b) => words.push(&b[..n]),
            }
        }
    };
    // The group is dead, so its ends of the pipes are closed; only what left the group could hold them.
    let _ = tokio::time::timeout(Duration::from_millis(200), rest).await;
    match status {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(status)) => Err(format!("{program} ended with {status}; {words}")),
        Some(Err(error)) => Err(format!("{program} cannot be waited for: {error}")),
        None => {
            // It was killed with its group; this only takes its exit status away.
            let _ = child.wait().await;
            Err(format!(
                "{program} took longer than {} s and was killed; {words}",
                deadline.as_secs_f32()
            ))
        }
    }
}

/// Reads a piece; at the end the pipe becomes `None`, which is pending for ever.
async fn read<R: AsyncRead + Unpin>(pipe: &mut Option<R>, buffer: &mut [u8]) -> usize {
    let n = match pipe {
        Some(open) => open.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    };
    if n == 0 {
        *pipe = None;
    }
    n
}

/// The last words of a command.
#[derive(Debug, Default)]
struct Words(Vec<u8>);

impl Words {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(MAX_WORDS);
        self.0.drain(..excess);
    }
}

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = String::from_utf8_lossy(&self.0)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        match text.trim() {
            "" => f.write_str("it said nothing"),
            text => write!(f, "it said: {text}"),
        }
    }
}

/// Sends a magic packet to the node's hardware address.
async fn wake_on_lan(address: &str, host: &Host) -> Result<(), String> {
    let mac = parse_mac(&host.mac).ok_or_else(|| {
        format!(
            "its inventory has no hardware address for Wake-on-LAN ({:?}): give its agent an `address` of an Ethernet \
             interface, or use power.wake_command",
            host.mac
        )
    })?;
    let failed = |e: std::io::Error| format!("no magic packet could be sent to {address}: {e}");
    let target = tokio::net::lookup_host(address)
        .await
        .map_err(failed)?
        .next()
        .ok_or_else(|| format!("power.wake_on_lan_address: {address} has no address"))?;
    let own = match target {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(own).await.map_err(failed)?;
    socket.set_broadcast(true).map_err(failed)?;
    let packet = magic_packet(mac);
    for _ in 0..PACKETS {
        socket.send_to(&packet, target).await.map_err(failed)?;
    }
    Ok(())
}

/// Six bytes of ones, then the address sixteen times.
fn magic_packet(mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(mac.repeat(16));
    packet
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            node: "nodes/n-1".into(),
            mac: "02:00:00:00:00:0a".into(),
            address: "10.0.0.7".into(),
        }
    }

    async fn script(text: &str, deadline_ms: u64) -> Result<(), String> {
        let command = ["/bin/sh", "-c", text, "hook"].map(String::from);
        let deadline = Duration::from_millis(deadline_ms);
        run(&command, &host(), deadline).await
    }

    #[tokio::test]
    async fn a_command_gets_the_node_and_its_words_become_the_reason() {
        script("test \"$1/$TRAINYARD_NODE_ADDRESS\" = n-1/10.0.0.7", 5_000)
            .await
            .unwrap();
        let error = script("echo no chassis; echo of that name >&2; exit 3", 5_000)
            .await
            .unwrap_err();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(
            error.contains("no chassis") && error.contains("of that name"),
            "{error}"
        );
        let error = script("yes wordy | head -c 300000; exit 1", 5_000)
            .await
            .unwrap_err();
        assert!(error.len() < MAX_WORDS + 200, "{}", error.len());
        let missing = ["/nowhere/at/all".to_owned()];
        let error = run(&missing, &host(), Duration::from_secs(1))
            .await
            .unwrap_err();
        assert!(
            error.contains("/nowhere/at/all cannot be started"),
            "{error}"
        );
    }

    /// Whether a process is gone, or only waits to be reaped by whoever inherited it.
    fn is_dead(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('Z'))
        })
    }

    async fn dies(pid: &str) {
        let gone = async {
            while !is_dead(pid) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .unwrap_or_else(|_| panic!("{pid} is still there"));
    }

    #[tokio::test]
    async fn nothing_of_a_command_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let text = format!("sleep 600 & echo $! > {}; ", file.display());
        let pid = || std::fs::read_to_string(&file).unwrap().trim().to_owned();
        // It ends and leaves a child that holds its pipes.
        script(&text, 5_000).await.unwrap();
        dies(&pid()).await;
        // It takes too long.
        let error = script(&format!("{text} wait"), 300).await.unwrap_err();
        assert!(error.contains("took longer than 0.3 s"), "{error}");
        dies(&pid()).await;
        // Nobody waits for it any more.
        std::fs::remove_file(&file).unwrap();
        let text = format!("{text} wait");
        let running = tokio::spawn(async move { script(&text, 60_000).await });
        while !std::fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.abort();
        dies(&pid()).await;
    }

    #[tokio::test]
    async fn a_magic_packet_names_the_hardware_address() {
        let woken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = woken.local_addr().unwrap().to_string();
        wake_on_lan(&address, &host()).await.unwrap();
        let mut packet = [0; 200];
        let n = woken.recv(&mut packet).await.unwrap();
        assert_eq!(n, 102);
        assert_eq!(packet[..6], [0xff; 6]);
        assert_eq!(packet[96..102], [2, 0, 0, 0, 0, 10]);
        let nameless = Host {
            mac: String::new(),
            ..host()
        };
        let error = wake_on_lan(&address, &nameless).await.unwrap_err();
        assert!(error.contains("no hardware address"), "{error}");
    }
}
