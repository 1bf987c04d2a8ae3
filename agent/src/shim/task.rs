//! Starts the task's first process.
#![allow(unsafe_code)] // `pre_exec`: between fork and exec only async-signal-safe calls are made, on data made before.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::TaskSpec;
use crate::confine::Credentials;

/// Starts the task in a process group of its own, as its user, in its group, to die with the shim.
pub(super) fn start(spec: &TaskSpec) -> Result<Child, StartError> {
    let [program, arguments @ ..] = &spec.argv[..] else {
        return Err(StartError::NoProgram);
    };
    let stdout = open_spool(&spec.stdout.spool)?;
    let stderr = open_spool(&spec.stderr.spool)?;
    let procs = match &spec.group {
        Some(group) => Some(make_group(group)?),
        None => None,
    };
    let user = Credentials::own().is_root().then(|| spec.user.clone());
    let shim = nix::unistd::getpid().as_raw();

    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&spec.env)
        .current_dir(&spec.cwd)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    // SAFETY: the closure allocates nothing and takes no lock; see `enter`.
    unsafe {
        command.pre_exec(move || enter(procs.as_ref(), user.as_ref(), shim));
    }
    command
        .spawn()
        .map_err(|error| explain(spec, program, error))
}

/// In the child, before exec: joins the group, drops to the user, asks to die with the shim.
fn enter(procs: Option<&CString>, user: Option<&Credentials>, shim: i32) -> io::Result<()> {
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
        // The agent may be protected from the OOM killer; its tasks are not. Where this is not allowed there is
        // nothing to undo.
        let _ = write_file(c"/proc/self/oom_score_adj".as_ptr(), b"0");
        // The shim reads its signals from a descriptor and has them blocked; the task gets them as usual.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut(),
        ))?;
        check(libc::setpgid(0, 0))?;
        libc::umask(0o022);
        if let Some(user) = user {
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()))?;
            check(libc::setresgid(user.gid, user.gid, user.gid))?;
            check(libc::setresuid(user.uid, user.uid, user.uid))?;
        }
        // After the change of user, which clears it.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() != shim {
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

fn make_group(group: &Path) -> Result<CString, StartError> {
    let named = |error| StartError::Group(group.display().to_string(), error);
    std::fs::create_dir_all(group).map_err(named)?;
    CString::new(group.join("cgroup.procs").as_os_str().as_bytes())
        .map_err(|_| named(io::ErrorKind::InvalidInput.into()))
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
