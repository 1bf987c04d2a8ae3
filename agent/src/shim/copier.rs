//! Follows the spool files of a task and brings their bytes to the job's stdouterr directory.
//!
//! A process of its own, as the job's user: when the share hangs, this process hangs and nothing else does. It must
//! never touch anything but the spool descriptors it was given and the files on the share.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{TaskSpec, sys};

/// Most bytes moved by one write.
const CHUNK_BYTES: usize = 256 * 1024;
/// Shortest time between two passes: many small lines become one write on the share.
const PASS_INTERVAL: Duration = Duration::from_millis(50);
/// Time until a failed write is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(1_000);

/// Longest time for the last bytes, as a multiple of the deadline, of a share that is slow but takes them.
const SLOW_FACTOR: u32 = 12;
/// Pause between two looks at the spool where the host has no inotify instance left.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What the copier says once the task has ended: it moved a piece; it is done; it failed, and the reason follows.
const MOVED: u8 = b'.';
const DONE: u8 = b'+';
const FAILED: u8 = b'-';

/// The shim's end of a copier.
pub(super) struct Copier {
    pid: i32,
    /// Closed to say that the task has ended.
    control: OwnedFd,
    /// What it says; see [`MOVED`].
    report: File,
}

impl Copier {
    /// Starts one, if any stream has a file on a share. To be called while the process has one thread.
    pub(super) fn start(spec: &TaskSpec) -> io::Result<Option<Self>> {
        let mut streams = Vec::new();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        for stream in [&spec.stdout, &spec.stderr] {
            if let Some(share) = &stream.share {
                // Opened and watched now: the user cannot reach the spool by its path.
                let spool = File::open(&stream.spool)?;
                if let Some(inotify) = &inotify {
                    inotify.add_watch(&stream.spool, AddWatchFlags::IN_MODIFY)?;
                }
                streams.push(Copy {
                    spool,
                    share: share.clone(),
                    target: None,
                    copied: 0,
                });
            }
        }
        if streams.is_empty() {
            return Ok(None);
        }
        let (control_read, control) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (report, report_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let pid = sys::fork_unseen()?;
        if pid == 0 {
            drop(control);
            drop(report);
            let mut report = File::from(report_write);
            let result = spec
                .copy_as
                .assume()
                .map_err(|error| format!("cannot become the job's user: {error}"))
                .and_then(|()| {
                    let inotify = inotify.as_ref();
                    follow(&mut streams, inotify, &control_read, &report, spec.attempt)
                });
            let _ = match result {
                Ok(()) => report.write_all(&[DONE]),
                Err(message) => report.write_all(&[&[FAILED], message.as_bytes()].concat()),
            };
            std::process::exit(0);
        }
        Ok(Some(Self {
            pid,
            control,
            report: File::from(report),
        }))
    }

    /// Process id, to be left alone when the task is killed.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it bring the last bytes; what the share lacks afterwards is the error. The deadline is for each piece, so
    /// that a slow share gets everything and one that hangs delays nothing for long.
    pub(super) fn finish(mut self, deadline: Duration) -> Result<(), String> {
        drop(self.control);
        let last = Instant::now() + deadline * SLOW_FACTOR;
        let mut buffer = [0; 4096];
        loop {
            let end = last.min(Instant::now() + deadline);
            let mut fds = [PollFd::new(self.report.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout_until(end)) {
                Err(nix::errno::Errno::EINTR) => continue,
                Ok(0) => {
                    // It may hang in the kernel, so nobody waits for it.
                    let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
                    return Err(format!(
                        "the share did not take the last bytes within {} ms",
                        deadline.as_millis()
                    ));
                }
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
            let length = self
                .report
                .read(&mut buffer)
                .map_err(|error| error.to_string())?;
            let said = &buffer[..length];
            let news = said
                .iter()
                .position(|byte| *byte != MOVED)
                .map(|at| &said[at..]);
            match news {
                Some([DONE, ..]) => return Ok(()),
                Some([_, reason @ ..]) => return Err(String::from_utf8_lossy(reason).into_owned()),
                Some([]) | None if length > 0 => {}
                Some([]) | None => return Err("the copy to the share was killed".to_owned()),
            }
        }
    }
}

/// One stream.
struct Copy {
    spool: File,
    share: PathBuf,
    target: Option<File>,
    copied: u64,
}

/// Copies until the task has ended and everything is on the share, or the last try failed.
fn follow(
    streams: &mut [Copy],
    inotify: Option<&Inotify>,
    control: &OwnedFd,
    report: &File,
    attempt: u32,
) -> Result<(), String> {
    let mut ended = false;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let told = ended.then_some(report);
        let outcome = streams
            .iter_mut()
            .try_for_each(|stream| stream.pass(&mut buffer, told, attempt));
        if ended {
            return outcome.and_then(|()| streams.iter().try_for_each(Copy::settle));
        }
        // A pause in which only the end of the task counts.
        let failed = outcome.is_err();
        let pause = if failed {
            RETRY_INTERVAL
        } else {
            PASS_INTERVAL
        };
        ended = wait(&[control.as_fd()], Some(pause));
        match inotify {
            _ if ended || failed => {}
            Some(inotify) => drop(wait(&[control.as_fd(), inotify.as_fd()], None)),
            None => ended = wait(&[control.as_fd()], Some(POLL_INTERVAL)),
        }
        // Events before this point are covered by the next pass.
        while inotify
            .is_some_and(|inotify| inotify.read_events().is_ok_and(|events| !events.is_empty()))
        {
        }
    }
}

/// Waits until one of the descriptors is ready. False: the time is up.
fn wait(fds: &[std::os::fd::BorrowedFd<'_>], limit: Option<Duration>) -> bool {
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    let limit = limit.map_or(PollTimeout::NONE, |limit| {
        timeout_until(Instant::now() + limit)
    });
    matches!(poll(&mut fds, limit), Ok(ready) if ready > 0)
}

impl Copy {
    /// Brings what the spool has beyond the copy, and tells of each piece whoever waits for the last.
    fn pass(&mut self, buffer: &mut [u8], told: Option<&File>, attempt: u32) -> Result<(), String> {
        let failed = |error: io::Error| format!("{}: {error}", self.share.display());
        let target = match &mut self.target {
            Some(target) => target,
            None => self
                .target
                .insert(open_target(&self.share, attempt).map_err(failed)?),
        };
        loop {
            let length = self.spool.read_at(buffer, self.copied).map_err(failed)?;
            if length == 0 {
                return Ok(());
            }
            if let Err(error) = target.write_all_at(&buffer[..length], self.copied) {
                return Err(failed(error));
            }
            self.copied += length as u64;
            if let Some(mut told) = told {
                let _ = told.write_all(&[MOVED]);
            }
        }
    }

    /// On a network file system an error may come as late as the flush.
    fn settle(&self) -> Result<(), String> {
        let Some(target) = &self.target else {
            return Ok(());
        };
        if !is_remote(target) {
            return Ok(());
        }
        target
            .sync_data()
            .map_err(|error| format!("{}: {error}", self.share.display()))
    }
}

/// Makes the file on the share. From the second attempt on, an older file is kept under another name.
fn open_target(path: &Path, attempt: u32) -> io::Result<File> {
    if attempt > 1 && path.symlink_metadata().is_ok() {
        let mut kept = path.as_os_str().to_owned();
        kept.push(format!(".attempt-{}", attempt - 1));
        std::fs::rename(path, PathBuf::from(kept))?;
    }
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
}

/// Whether the file lies on another machine or in a program (NFS, SMB, FUSE), rather than on a local disk.
fn is_remote(file: &File) -> bool {
    const REMOTE: [i64; 6] = [
        0x6969,
        0xFF53_4D42,
        0xFE53_4D42,
        0x6573_5546,
        0x0BD0_0BD0,
        0x00C3_6400,
    ];
    nix::sys::statfs::fstatfs(file).is_ok_and(|stat| {
        #[allow(clippy::unnecessary_cast)] // The type differs between architectures.
        let kind = stat.filesystem_type().0 as i64;
        REMOTE.contains(&kind)
    })
}

/// For `poll`: whole milliseconds until then, rounded up.
pub(super) fn timeout_until(end: Instant) -> PollTimeout {
    let left = end.saturating_duration_since(Instant::now());
    let millis = left.as_millis() + u128::from(!left.subsec_nanos().is_multiple_of(1_000_000));
    PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copier that says these words, each after a pause in milliseconds, and then ends.
    fn says(words: &'static [(u64, &[u8])]) -> (Copier, std::process::Child) {
        let (control_read, control) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (report, report_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        std::thread::spawn(move || {
            let mut report = File::from(report_write);
            for (pause, word) in words {
                std::thread::sleep(Duration::from_millis(*pause));
                report.write_all(word).unwrap();
            }
            drop(control_read);
        });
        let process = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        let report = File::from(report);
        (
            Copier {
                pid,
                control,
                report,
            },
            process,
        )
    }

    fn finish(words: &'static [(u64, &[u8])]) -> Result<(), String> {
        let (copier, mut process) = says(words);
        let result = copier.finish(Duration::from_millis(400));
        process.kill().unwrap();
        process.wait().unwrap();
        result
    }

    #[test]
    fn the_deadline_is_for_each_piece() {
        assert_eq!(finish(&[(250, b"."), (250, b".."), (250, b".+")]), Ok(()));
        assert!(
            finish(&[(0, b"."), (1_000, b"+")])
                .unwrap_err()
                .contains("within 400 ms")
        );
    }

    #[test]
    fn a_reason_and_a_sudden_death_are_no_success() {
        assert_eq!(finish(&[(0, b"..-disk full")]), Err("disk full".to_owned()));
        assert_eq!(
            finish(&[(0, b"..")]),
            Err("the copy to the share was killed".to_owned())
        );
    }
}
