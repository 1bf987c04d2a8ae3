//! Starts the task's first process: in its cgroup from its first instruction on, so that nothing of it can escape.
//!
//! `clone3` puts the child into the group; writing its pid to `cgroup.procs` would wait for the kernel to come to rest,
//! often for ten milliseconds. Kernels before 5.7, and ones whose seccomp filter refuses the call, get the slow way.
#![allow(unsafe_code)] // Between clone and exec only async-signal-safe calls are made, on data made before.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

use nix::fcntl::OFlag;

use super::TaskSpec;
use crate::confine::Credentials;

/// `linux/sched.h`; does not fit the type that libc has for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Everything that the child needs, made before it is.
struct Image {
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    stdin: File,
    stdout: File,
    stderr: File,
    user: Option<Credentials>,
    shim: libc::pid_t,
    /// Where the child says why it could not exec.
    report: OwnedFd,
}

/// Starts the task in a process group of its own, as its user, in its group, to die with the shim. Returns its pid.
pub(super) fn start(spec: &TaskSpec) -> Result<i32, StartError> {
    let program = spec.argv.first().ok_or(StartError::NoProgram)?;
    let stdout = open_spool(&spec.stdout.spool)?;
    let stderr = open_spool(&spec.stderr.spool)?;
    let group = match &spec.group {
        Some(group) => Some(make_group(group)?),
        None => None,
    };
    let exec = |error: io::Error| StartError::Exec(program.clone(), error);
    let (mut failure, report) = match nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)
    {
        Ok((read, write)) => (File::from(read), write),
        Err(error) => return Err(exec(error)),
    };
    let words = |words: &mut dyn Iterator<Item = String>| {
        words
            .map(|word| CString::new(word).map_err(io::Error::from))
            .collect::<io::Result<Vec<_>>>()
    };
    let image = Image {
        program: CString::new(program.as_str()).map_err(|error| exec(error.into()))?,
        argv: words(&mut spec.argv.iter().cloned()).map_err(exec)?,
        env: words(
            &mut spec
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        )
        .map_err(exec)?,
        cwd: CString::new(spec.cwd.as_os_str().as_bytes()).map_err(|error| exec(error.into()))?,
        stdin: File::open("/dev/null").map_err(exec)?,
        stdout,
        stderr,
        user: Credentials::own().is_root().then(|| spec.user.clone()),
        shim: nix::unistd::getpid().as_raw(),
        report,
    };
    let pid = launch(&image, group.as_ref()).map_err(exec)?;
    drop(image);
    // Closed without a word by a successful exec.
    let mut errno = [0; 4];
    if failure.read_exact(&mut errno).is_err() {
        return Ok(pid);
    }
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
    let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
    Err(explain(spec, program, error))
}

/// The group of a task.
struct Group {
    dir: File,
    procs: CString,
}

fn launch(image: &Image, group: Option<&Group>) -> io::Result<i32> {
    // Pointers for exec, made while memory may still be had.
    let argv = pointers(&image.argv);
    let env = pointers(&image.env);
    if let Some(group) = group {
        // SAFETY: as below.
        match unsafe { clone(Some(group.dir.as_raw_fd())) } {
            Ok(0) => become_task(image, &argv, &env, None),
            Ok(pid) => return Ok(pid),
            // The kernel or its filter has it not: join the group by hand.
            Err(_) => {}
        }
    }
    // SAFETY: the shim has one thread, so that no lock is held while it forks; the child execs or exits.
    match unsafe { clone(None) }? {
        0 => become_task(image, &argv, &env, group.map(|group| &group.procs)),
        pid => Ok(pid),
    }
}

fn pointers(words: &[CString]) -> Vec<*const libc::c_char> {
    words
        .iter()
        .map(|word| word.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// A fork, into a cgroup if one is given. 0: this is the child.
///
/// # Safety
/// The process has one thread; the child makes async-signal-safe calls only.
unsafe fn clone(cgroup: Option<RawFd>) -> io::Result<i32> {
    let result = match cgroup.map(u64::try_from) {
        Some(Ok(fd)) => {
            // SAFETY: all-zero is a valid clone_args: a plain fork.
            let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
            arguments.flags = CLONE_INTO_CGROUP;
            arguments.exit_signal = libc::SIGCHLD as u64;
            arguments.cgroup = fd;
            // SAFETY: the pointer and the size are those of a live struct.
            unsafe {
                libc::syscall(
                    libc::SYS_clone3,
                    &raw const arguments,
                    size_of::<libc::clone_args>(),
                )
            }
        }
        // SAFETY: by contract.
        Some(Err(_)) | None => i64::from(unsafe { libc::fork() }),
    };
    match i32::try_from(result) {
        Ok(pid) if pid >= 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// In the child: never returns.
fn become_task(
    image: &Image,
    argv: &[*const libc::c_char],
    env: &[*const libc::c_char],
    procs: Option<&CString>,
) -> ! {
    let failed = match enter(image, procs) {
        // SAFETY: NUL-terminated arrays of NUL-terminated words, alive in `image`.
        Ok(()) => unsafe {
            libc::execve(image.program.as_ptr(), argv.as_ptr(), env.as_ptr());
            io::Error::last_os_error()
        },
        Err(error) => error,
    };
    let errno = failed.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
    // SAFETY: plain system calls on sized data.
    unsafe {
        libc::write(image.report.as_raw_fd(), errno.as_ptr().cast(), errno.len());
        libc::_exit(127)
    }
}

/// In the child, before exec: joins the group, drops to the user, asks to die with the shim.
fn enter(image: &Image, procs: Option<&CString>) -> io::Result<()> {
    let check = |result: i32| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: plain system calls; the pointers are to live, NUL-terminated or sized data of the parent's memory image.
    unsafe {
        if let Some(procs) = procs {
            write_file(procs.as_ptr(), b"0")?;
        }
        for (from, to) in [(&image.stdin, 0), (&image.stdout, 1), (&image.stderr, 2)] {
            check(libc::dup2(from.as_raw_fd(), to))?;
        }
        check(libc::chdir(image.cwd.as_ptr()))?;
        // The agent may be protected from the OOM killer; its tasks are not. Where this is not allowed there is
        // nothing to undo.
        let _ = write_file(c"/proc/self/oom_score_adj".as_ptr(), b"0");
        // The shim reads its signals from a descriptor and has them blocked, and ignores a broken pipe; the task gets
        // them as usual.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut(),
        ))?;
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        check(libc::setpgid(0, 0))?;
        libc::umask(0o022);
        if let Some(user) = &image.user {
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()))?;
            check(libc::setresgid(user.gid, user.gid, user.gid))?;
            check(libc::setresuid(user.uid, user.uid, user.uid))?;
        }
        // After the change of user, which clears it.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() != image.shim {
            // The shim died before the line above: nobody would ever end this task.
            libc::_exit(1);
        }
    }
    Ok(())
}

/// # Safety
/// `path` is NUL-terminated.
unsafe fn write_file(path: *const libc::c_char, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: `path` by contract, `bytes` by its type.
    unsafe {
        let fd = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        let result = if written < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        };
        libc::close(fd);
        result
    }
}

fn open_spool(path: &Path) -> Result<File, StartError> {
    File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| StartError::Spool(path.display().to_string(), error))
}

fn make_group(group: &Path) -> Result<Group, StartError> {
    let named = |error| StartError::Group(group.display().to_string(), error);
    std::fs::create_dir_all(group).map_err(named)?;
    let procs = CString::new(group.join("cgroup.procs").as_os_str().as_bytes())
        .map_err(|_| named(io::ErrorKind::InvalidInput.into()))?;
    Ok(Group {
        dir: File::open(group).map_err(named)?,
        procs,
    })
}

/// Finds out which of the paths an exec failed on.
fn explain(spec: &TaskSpec, program: &str, error: io::Error) -> StartError {
    if !spec.cwd.is_dir() {
        return StartError::Cwd(spec.cwd.display().to_string(), error);
    }
    StartError::Exec(program.to_owned(), error)
}

/// Why a task did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("the task has no program")]
    NoProgram,
    #[error("cannot open the log {0}: {1}")]
    Spool(String, io::Error),
    #[error("cannot make the cgroup {0}: {1}")]
    Group(String, io::Error),
    #[error("cannot enter the working directory {0}: {1}")]
    Cwd(String, io::Error),
    #[error("cannot run {0}: {1}")]
    Exec(String, io::Error),
}
