//! System calls that neither the standard library nor nix wraps.
#![allow(unsafe_code)] // Raw system calls on descriptors that we own; each says why it is sound.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor of a process, which stays that process's whatever becomes of its number.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd =
        i32::try_from(fd).map_err(|_| io::Error::other("pidfd_open returned no descriptor"))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us (close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process behind a pidfd.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the kernel takes a null siginfo as "like kill(2)".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes the zombie behind a pidfd away, if it is our child and has ended. Anything else is no error: a restarted agent
/// is not the parent.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) {
    let Ok(id) = libc::id_t::try_from(pidfd.as_raw_fd()) else {
        return;
    };
    // SAFETY: an all-zero siginfo_t is valid, and waitid only writes to it.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(
            libc::P_PIDFD,
            id,
            &raw mut info,
            libc::WEXITED | libc::WNOHANG,
        );
    }
}

/// Lets tokio wait for the end of the process behind a pidfd.
pub(crate) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: nobody can close or replace the descriptor while the registration holds a reference to it.
    unsafe {
        AsyncFd::register_with_interest(Arc::new(pidfd), Interest::READABLE)
            .map_err(io::Error::from)
    }
}

/// Forks a child that an ordinary `waitpid` does not see, so that `waitpid(-1)` tells whether anything of the task is
/// left. Returns 0 in the child.
pub(crate) fn fork_unseen() -> io::Result<i32> {
    // SAFETY: without flags and stack, clone is fork without an exit signal. The shim has one thread, so that no lock
    // can be held by another one at this moment.
    let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nanoseconds of `CLOCK_BOOTTIME`, which goes on while the host sleeps.
pub(crate) fn boottime_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(u64::MAX, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    })
}
