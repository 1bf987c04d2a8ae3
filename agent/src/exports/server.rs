//! The process of nfs-ganesha: started, found again by a restarted agent, told to read its exports again, ended.
//!
//! It outlives the agent, since the nodes that mounted from it depend on it. Must never touch a process that is not the
//! one it started: pid, start time and boot must agree.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::record::replace;
use crate::shim::{processes, sys};

/// Longest that it may take to listen, and to read its exports again.
const READY_MAX: Duration = Duration::from_secs(20);
/// Longest that it may take to end before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks at what has no event: a port of another process, a line in its log.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes of its log from which on it begins anew.
const LOG_MAX: u64 = 8 * 1024 * 1024;
/// How much of the end of the log is looked through for a reason.
const LOG_TAIL: u64 = 16 * 1024;

/// Where the files of the server lie.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
}

/// What identifies the process.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    pid: i32,
    start: u64,
    boot_id: String,
}

/// A running server. Dropping it leaves it running.
#[derive(Debug)]
pub(super) struct Server {
    files: Files,
    pidfd: AsyncFd<Arc<OwnedFd>>,
}

impl Files {
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("ganesha.conf")
    }

    pub(super) fn recovery(&self) -> PathBuf {
        self.dir.join("recovery")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("ganesha.log")
    }

    fn identity(&self) -> PathBuf {
        self.dir.join("server.json")
    }

    /// Begins the log anew when it has grown large.
    pub(super) fn trim_log(&self) {
        let path = self.log();
        if path.metadata().is_ok_and(|found| found.len() > LOG_MAX)
            && let Ok(file) = File::options().write(true).open(&path)
        {
            // It appends, so that the next line is the first.
            let _ = file.set_len(0);
        }
    }

    fn tail(&self, from: Option<u64>) -> String {
        let read = || {
            let mut file = File::open(self.log())?;
            let length = file.metadata()?.len();
            let start = from.unwrap_or(0).max(length.saturating_sub(LOG_TAIL));
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    /// What the server said before it ended.
    pub(super) fn reason(&self) -> String {
        reason(&self.tail(None))
    }
}

/// The line that tells most: one about its port, else its last words of weight.
fn reason(log: &str) -> String {
    let words = |line: &str| {
        let (_, said) = line.split_once(" :").unwrap_or(("", line));
        said.trim().to_owned()
    };
    let weighty = [":FATAL", ":CRIT", ":MAJ"];
    let start = log.rfind("Ganesha Version").unwrap_or(0);
    let log = log.get(start..).unwrap_or(log);
    log.lines()
        .find(|line| line.contains("bind") && line.contains("rror"))
        .or_else(|| {
            log.lines()
                .rev()
                .find(|line| weighty.iter().any(|level| line.contains(level)))
        })
        .or_else(|| log.lines().next_back())
        .map(words)
        .unwrap_or_default()
}

impl Server {
    /// Finds the server that an earlier life of the agent started.
    pub(super) fn adopt(files: &Files, boot_id: &str) -> Option<Server> {
        let identity: Identity =
            serde_json::from_slice(&std::fs::read(files.identity()).ok()?).ok()?;
        if identity.boot_id != boot_id {
            return None;
        }
        // The descriptor first: afterwards the start time proves whose it is.
        let pidfd = sys::pidfd_open(identity.pid).ok()?;
        if !processes::is_alive(identity.pid, identity.start) {
            return None;
        }
        Some(Server {
            files: files.clone(),
            pidfd: sys::watch(pidfd).ok()?,
        })
    }

    /// Starts one and waits until it listens.
    ///
    /// # Errors
    /// For people.
    pub(super) async fn start(
        program: &Path,
        files: &Files,
        boot_id: &str,
        listen: SocketAddr,
    ) -> Result<Server, String> {
        std::fs::create_dir_all(files.recovery())
            .map_err(|error| format!("{}: {error}", files.recovery().display()))?;
        files.trim_log();
        let mut child = Command::new(program)
            .arg("-F")
            .arg("-L")
            .arg(files.log())
            .arg("-f")
            .arg(files.config())
            .arg("-p")
            .arg(files.dir.join("ganesha.pid"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let recorded = sys::pidfd_open(pid).and_then(|pidfd| {
            let start = processes::get(pid).map_or(0, |process| process.start);
            let identity = Identity {
                pid,
                start,
                boot_id: boot_id.to_owned(),
            };
            replace(&files.identity(), &serde_json::to_vec(&identity)?)?;
            sys::watch(pidfd)
        });
        let server = match recorded {
            Ok(pidfd) => Server {
                files: files.clone(),
                pidfd,
            },
            Err(error) => {
                // One that nobody would find again must not stay.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("cannot watch the NFS server: {error}"));
            }
        };
        match server.until_listening(listen).await {
            Ok(()) => Ok(server),
            Err(error) => {
                server.stop().await;
                Err(error)
            }
        }
    }

    async fn until_listening(&self, listen: SocketAddr) -> Result<(), String> {
        let listen = match listen.ip().is_unspecified() {
            true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port()),
            false => listen,
        };
        let deadline = Instant::now() + READY_MAX;
        loop {
            let knock = tokio::net::TcpStream::connect(listen);
            tokio::select! {
                biased;
                () = self.ended() => {
                    return Err(format!("the NFS server ended: {}", self.files.reason()));
                }
                answer = tokio::time::timeout(LOOK_AGAIN * 10, knock) => {
                    if matches!(answer, Ok(Ok(_))) {
                        break;
                    }
                }
            }
            if Instant::now() > deadline {
                return Err(format!("the NFS server does not listen on {listen}"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        // Another process may hold the port, whose answer it was.
        match tokio::time::timeout(LOOK_AGAIN * 4, self.ended()).await {
            Ok(()) => Err(format!("the NFS server ended: {}", self.files.reason())),
            Err(_) => Ok(()),
        }
    }

    /// Ready when it has ended.
    pub(super) async fn ended(&self) {
        while let Err(error) = self.pidfd.readable().await {
            tracing::warn!(%error, "cannot wait for the NFS server; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        sys::reap(self.pidfd.get_ref().as_fd());
    }

    /// Has it read its exports again; the others are not disturbed.
    ///
    /// # Errors
    /// It did not say that it has.
    pub(super) async fn reload(&self) -> Result<(), String> {
        let log = self.files.log();
        let before = log.metadata().map_or(0, |found| found.len());
        self.signal(Signal::SIGHUP);
        let deadline = Instant::now() + READY_MAX;
        while !self
            .files
            .tail(Some(before))
            .contains("Reread exports complete")
        {
            if Instant::now() > deadline {
                return Err("the NFS server does not read its exports again".to_owned());
            }
            tokio::select! {
                biased;
                () = self.ended() => {
                    return Err(format!("the NFS server ended: {}", self.files.reason()));
                }
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
        Ok(())
    }

    /// Ends it.
    pub(super) async fn stop(self) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(STOP_MAX, self.ended()).await.is_err() {
            self.signal(Signal::SIGKILL);
            // One that hangs in the kernel holds its port, and the next one says so.
            let _ = tokio::time::timeout(STOP_MAX, self.ended()).await;
        }
        let _ = std::fs::remove_file(self.files.identity());
    }

    fn signal(&self, signal: Signal) {
        let _ = sys::pidfd_send_signal(self.pidfd.get_ref().as_fd(), signal as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_line_that_tells_most() {
        let log = "t : epoch 1 : vm : g-1[main] main :MAIN :EVENT :Ganesha Version 4.3\n\
                   t : epoch 1 : vm : g-1[main] Bind_sockets :DISP :WARN :Cannot bind NFS tcp6 socket, error 98 (Address already in use)\n\
                   t : epoch 1 : vm : g-1[main] x :DISP :FATAL :Error binding. Exiting...\n";
        assert!(
            reason(log).contains("Address already in use"),
            "{}",
            reason(log)
        );
        let log = "a\nb :MAIN :CRIT :broken\nlast\n";
        assert_eq!(reason(log), "MAIN :CRIT :broken");
        assert_eq!(reason(""), "");
    }
}
