//! The shim's main line: start, watch, end, record.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getsid, setsid};

use super::copier::{Copier, timeout_until};
use super::processes::{self, Process, descendants, signal_all};
use super::{
    Answer, ExitReason, ExitRecord, Leftover, PidFile, TaskSpec, answer, boot_id, claim, now_ms,
    sys, task, write_exit,
};

/// Time between two looks for processes that were forked while the others were killed.
const KILL_AGAIN: Duration = Duration::from_millis(20);

/// Runs a task to its end.
///
/// # Errors
/// The task did not start. Once it has started nothing is an error: the exit record says what there is to say.
pub(super) fn run(spec: &TaskSpec) -> Result<(), RunError> {
    if getsid(None) != Ok(getpid()) {
        setsid().map_err(RunError::Setup)?;
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(RunError::Setup)?;
    let _ = nix::sys::prctl::set_name(c"trainyard-shim");
    let signals = take_signals().map_err(RunError::Setup)?;

    let shim_pid = getpid().as_raw();
    let claimed = claim(
        &spec.dir,
        &PidFile {
            shim_pid,
            shim_start: processes::get(shim_pid).map_or(0, |own| own.start),
            boot_id: boot_id(),
            uid: spec.user.uid,
            group: spec.group.clone(),
        },
    );
    match claimed {
        Ok(true) => {}
        Ok(false) => return Err(RunError::Taken(spec.dir.display().to_string())),
        Err(error) => return Err(RunError::Claim(spec.dir.display().to_string(), error)),
    }
    let lease = spec.lease_file.as_deref().map(Lease::open);
    let mut lease = match lease.transpose() {
        Ok(lease) => lease,
        Err(error) => return Err(not_started(spec, RunError::Lease(error))),
    };
    if let Some(lease) = &mut lease
        && lease.has_passed()
    {
        return Err(not_started(spec, RunError::LeasePassed));
    }
    let main = match task::start(spec) {
        Ok(pid) => pid,
        Err(error) => return Err(not_started(spec, RunError::Start(error))),
    };
    answer(&Answer::Started { task_pid: main });
    let _ = leave_pipes();

    let (copier, mut share_error) = match Copier::start(spec) {
        Ok(copier) => (copier, None),
        Err(error) => (
            None,
            Some(format!("cannot start the copy to the share: {error}")),
        ),
    };
    let mut supervisor = Supervisor {
        spec,
        main: Pid::from_raw(main),
        signals,
        lease,
        copier: copier.as_ref().map(Copier::pid),
        ending: None,
        stop_until: None,
        kill_until: None,
        status: None,
    };
    let leftover = supervisor.watch();
    let mut record = supervisor.record(leftover);
    if let Some(copier) = copier {
        let finished = copier.finish(Duration::from_millis(spec.copy_deadline_ms));
        share_error = finished.err();
    }
    record.share_error = share_error;
    if let Some(group) = &spec.group {
        let _ = std::fs::remove_dir(group);
    }
    write_exit(&spec.dir, &record).map_err(RunError::Record)
}

fn take_signals() -> nix::Result<SignalFd> {
    let mut taken = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
    ] {
        taken.add(signal);
    }
    let mut blocked = taken;
    blocked.add(Signal::SIGHUP);
    blocked.thread_block()?;
    SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Lets go of the agent's pipes.
fn leave_pipes() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

fn not_started(spec: &TaskSpec, error: RunError) -> RunError {
    let reason = if matches!(error, RunError::LeasePassed) {
        ExitReason::Lease
    } else {
        ExitReason::NotStarted
    };
    let record = ExitRecord {
        exit_code: -1,
        signal: None,
        reason,
        message: error.to_string(),
        time_ms: now_ms(),
        share_error: None,
        leftover: Vec::new(),
    };
    if let Some(group) = &spec.group {
        let _ = std::fs::remove_dir(group);
    }
    match write_exit(&spec.dir, &record) {
        Ok(()) => error,
        Err(error) => RunError::Record(error),
    }
}

/// How the first process of the task ended.
#[derive(Clone, Copy)]
struct Status {
    code: i32,
    signal: Option<i32>,
    time_ms: u64,
}

struct Supervisor<'a> {
    spec: &'a TaskSpec,
    /// First process of the task.
    main: Pid,
    signals: SignalFd,
    lease: Option<Lease>,
    /// Not part of the task.
    copier: Option<i32>,
    /// Why we end the task; none while it runs or when it ended by itself.
    ending: Option<ExitReason>,
    /// A graceful stop is under way; then SIGKILL.
    stop_until: Option<Instant>,
    /// SIGKILL was sent; then what is left is given up.
    kill_until: Option<Instant>,
    /// Set when the first process has ended.
    status: Option<Status>,
}

impl Supervisor<'_> {
    /// Returns when nothing of the task is left, with what could not be ended.
    fn watch(&mut self) -> Vec<Process> {
        loop {
            let empty = self.reap();
            if self.status.is_some() && empty {
                return Vec::new();
            }
            let now = Instant::now();
            // What the first process left behind gets the rest of a graceful stop, else nothing.
            let stop_over = self.stop_until.is_none_or(|until| until <= now);
            let must_kill = match self.ending {
                None | Some(ExitReason::Exited | ExitReason::NotStarted) => self.status.is_some(),
                Some(ExitReason::Stopped) => stop_over,
                Some(ExitReason::Killed | ExitReason::Lease) => true,
            };
            if must_kill {
                if self.kill_until.is_some_and(|until| until <= now) {
                    return self.living();
                }
                self.kill(now);
            }
            let timeout = match (self.kill_until, self.stop_until) {
                (Some(_), _) => timeout_until(now + KILL_AGAIN),
                (None, Some(until)) => timeout_until(until),
                (None, None) => PollTimeout::NONE,
            };
            self.sleep(timeout);
            self.obey();
            self.check_lease();
        }
    }

    /// Collects the dead. True: no child is left.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended(pid, 128 + signal as i32, Some(signal as i32));
                }
                Ok(WaitStatus::StillAlive) => return false,
                Err(Errno::ECHILD) => return true,
                // A real-time signal has no name in nix, but the child is gone; look on.
                Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => {}
                Err(_) => return true,
            }
        }
    }

    fn ended(&mut self, pid: Pid, code: i32, signal: Option<i32>) {
        if pid == self.main {
            self.status = Some(Status {
                code,
                signal,
                time_ms: now_ms(),
            });
        }
    }

    /// Waits for a signal, the lease's deadline or the time.
    fn sleep(&self, timeout: PollTimeout) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(lease) = &self.lease {
            fds.push(PollFd::new(lease.timer.as_fd(), PollFlags::POLLIN));
        }
        // An interruption only means to look again.
        let _ = poll(&mut fds, timeout);
    }

    /// Takes the requests that came as signals.
    fn obey(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if self.status.is_some() && self.ending.is_none() {
                continue;
            }
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGTERM) if self.ending.is_none() => {
                    self.ending = Some(ExitReason::Stopped);
                    self.stop_until =
                        Some(Instant::now() + Duration::from_millis(self.spec.stop_grace_ms));
                    let task = self.living();
                    signal_all(&task, Signal::SIGTERM);
                    signal_all(&task, Signal::SIGCONT);
                }
                Ok(Signal::SIGINT | Signal::SIGQUIT) if self.ending != Some(ExitReason::Lease) => {
                    self.ending = Some(ExitReason::Killed);
                }
                _ => {}
            }
        }
    }

    fn check_lease(&mut self) {
        if let Some(lease) = &mut self.lease
            && self.ending != Some(ExitReason::Lease)
            && lease.has_passed()
        {
            self.ending = Some(ExitReason::Lease);
            self.lease = None;
        }
    }

    /// Kills all of the task; called again until nothing is left.
    fn kill(&mut self, now: Instant) {
        if self.kill_until.is_none() {
            self.kill_until = Some(now + Duration::from_millis(self.spec.kill_deadline_ms));
        }
        if let Some(group) = &self.spec.group {
            let _ = std::fs::write(group.join("cgroup.kill"), "1");
        }
        signal_all(&self.living(), Signal::SIGKILL);
    }

    /// What lives of the task.
    fn living(&self) -> Vec<Process> {
        descendants(&processes::all(), getpid().as_raw(), self.copier)
    }

    fn record(&self, leftover: Vec<Process>) -> ExitRecord {
        let status = self.status.unwrap_or(Status {
            code: 128 + Signal::SIGKILL as i32,
            signal: Some(Signal::SIGKILL as i32),
            time_ms: now_ms(),
        });
        let reason = self.ending.unwrap_or(ExitReason::Exited);
        let mut message = match (reason, status.signal) {
            (ExitReason::Stopped, _) => "ended on request".to_owned(),
            (ExitReason::Killed, _) => "killed on request".to_owned(),
            (ExitReason::Lease, _) => {
                "killed because this host lost its contact with the schedulers for longer than its lease".to_owned()
            }
            (ExitReason::Exited | ExitReason::NotStarted, Some(signal)) => format!("ended by {}", signal_name(signal)),
            (ExitReason::Exited | ExitReason::NotStarted, None) => String::new(),
        };
        if !leftover.is_empty() {
            let pids: Vec<String> = leftover
                .iter()
                .map(|process| process.pid.to_string())
                .collect();
            message = format!(
                "{message}; processes that SIGKILL does not end: {}",
                pids.join(", ")
            );
        }
        ExitRecord {
            exit_code: status.code,
            signal: status.signal,
            reason,
            message,
            time_ms: status.time_ms,
            share_error: None,
            leftover: leftover
                .iter()
                .map(|process| Leftover {
                    pid: process.pid,
                    start: process.start,
                })
                .collect(),
        }
    }
}

fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(
        |_| format!("signal {signal}"),
        |signal| signal.as_str().to_owned(),
    )
}

/// The node's lease, as its file says.
struct Lease {
    file: File,
    timer: TimerFd,
}

impl Lease {
    fn open(path: &Path) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        Ok(Self {
            file: File::open(path).map_err(named)?,
            timer: TimerFd::new(
                ClockId::CLOCK_BOOTTIME,
                TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
            )?,
        })
    }

    /// Whether the deadline is over; else sets the timer to it. Renewals only move it on, so that it is enough to look
    /// again when the known one is over.
    fn has_passed(&mut self) -> bool {
        let mut bytes = [0; 8];
        let deadline_ns = match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => 0,
        };
        if deadline_ns <= sys::boottime_ns() {
            return true;
        }
        let seconds = i64::try_from(deadline_ns / 1_000_000_000).unwrap_or(i64::MAX);
        let nanos = i64::try_from(deadline_ns % 1_000_000_000).unwrap_or(0);
        let at = Expiration::OneShot(TimeSpec::from(libc::timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        }));
        // Without a timer there would be no fence.
        self.timer
            .set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .is_err()
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("file", &self.file.as_raw_fd())
            .finish_non_exhaustive()
    }
}

/// Why a task did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("cannot set the shim up: {0}")]
    Setup(nix::Error),
    #[error("cannot write the pid file in {0}: {1}")]
    Claim(String, io::Error),
    #[error("{0} belongs to another shim, or was given up by the agent")]
    Taken(String),
    #[error("cannot read the node's lease: {0}")]
    Lease(io::Error),
    #[error("the node's lease has passed: it lost its contact with the schedulers")]
    LeasePassed,
    #[error(transparent)]
    Start(task::StartError),
    #[error("cannot write the exit record: {0}")]
    Record(io::Error),
}
