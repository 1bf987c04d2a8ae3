//! The few looks at the host that a launch needs. `check` runs in a helper process, because paths may lie on volumes
//! that hang; the others look at local disks and sockets only.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Preflight, shm};

/// Interpreter where a job names none: `python` as in Batch AI if the `PATH` has it, else `python3`.
#[must_use]
pub fn default_python(path: &str) -> String {
    let names = ["python", "python3"];
    let found = names
        .iter()
        .find(|name| find_program(name, path, Path::new("/")).is_some());
    (*found.unwrap_or(&"python")).to_owned()
}

/// A port of this host that is free now. Hold the listener until just before the tasks start.
///
/// # Errors
/// Those of the socket.
pub fn free_port(address: &str) -> io::Result<(u16, TcpListener)> {
    let ip = match address.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) => {
            let mut resolved = (address, 0).to_socket_addrs()?;
            resolved
                .next()
                .ok_or_else(|| io::Error::other(format!("{address} has no address")))?
                .ip()
        }
    };
    let listener = TcpListener::bind(SocketAddr::new(ip, 0))?;
    Ok((listener.local_addr()?.port(), listener))
}

/// Checks what must be true of the disk.
///
/// # Errors
/// The first thing that is not, for people.
pub(crate) fn check(preflight: &Preflight) -> Result<(), String> {
    if let Some(bytes) = preflight.shm_bytes {
        shm::check(bytes)?;
    }
    for (field, path) in &preflight.files {
        let path = preflight.cwd.join(path);
        let metadata = std::fs::metadata(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "{field}: {} does not exist on this node; check the path and that its volume is mounted",
                path.display()
            ),
            _ => format!("{field}: cannot read {}: {error}", path.display()),
        })?;
        // A directory with a __main__.py is a program to Python as well.
        if metadata.is_file() {
            std::fs::File::open(&path).map_err(|error| {
                format!(
                    "{field}: the job's user cannot read {}: {error}",
                    path.display()
                )
            })?;
        }
    }
    for (field, program) in &preflight.programs {
        if find_program(program, &preflight.path, &preflight.cwd).is_none() {
            let place = if program.contains('/') {
                String::new()
            } else {
                format!(" on the PATH ({})", preflight.path)
            };
            return Err(format!(
                "{field}: there is no program `{program}`{place} on this node; install it or name another interpreter"
            ));
        }
    }
    Ok(())
}

/// Looks a program up as a shell does.
fn find_program(name: &str, path: &str, cwd: &Path) -> Option<PathBuf> {
    let is_program = |candidate: &PathBuf| {
        std::fs::metadata(candidate)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(cwd.join(name)).filter(is_program);
    }
    path.split(':')
        .map(|directory| cwd.join(directory).join(name))
        .find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("train.py");
        let mut preflight = Preflight {
            files: vec![(
                "torchrunSettings.pythonScriptFilePath".into(),
                script.clone(),
            )],
            programs: vec![(
                "torchrunSettings.pythonInterpreterPath".into(),
                "no-such-python".into(),
            )],
            shm_bytes: None,
            path: "/usr/bin:/bin".into(),
            cwd: dir.path().to_owned(),
        };
        let error = check(&preflight).unwrap_err();
        assert!(
            error.starts_with("torchrunSettings.pythonScriptFilePath: "),
            "{error}"
        );
        assert!(error.contains(script.to_str().unwrap()), "{error}");

        std::fs::write(&script, "").unwrap();
        let error = check(&preflight).unwrap_err();
        assert!(
            error.contains("`no-such-python` on the PATH (/usr/bin:/bin)"),
            "{error}"
        );

        preflight.programs[0].1 = "sh".into();
        assert_eq!(check(&preflight), Ok(()));
    }

    #[test]
    fn a_free_port_is_held() {
        let (port, listener) = free_port("127.0.0.1").unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
        drop(listener);
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
    }
}
