//! Files of identities: keys that only their owner can read, written so that no half-written file is ever seen.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::TlsError;

/// Mode of private keys.
pub(super) const PRIVATE: u32 = 0o600;
/// Mode of certificates.
pub(super) const PUBLIC: u32 = 0o644;
/// Largest file that is read: far above any certificate, far below what could hurt.
const MAX_LEN: u64 = 1 << 20;

/// Makes `dir` and its parents; only its owner can enter what is new.
pub(super) fn make_dir(dir: &Path) -> Result<(), TlsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| write_error(dir, error))
}

/// Writes `text` to `path` with `mode`, durably, replacing what was there.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    write_inner(path, text, mode).map_err(|error| write_error(path, error))
}

fn write_inner(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&temporary);
    let result = write_new(temporary, text, mode).and_then(|()| fs::rename(temporary, path));
    if result.is_err() {
        // The first error is the one that matters.
        let _ = fs::remove_file(temporary);
        return result;
    }
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}

fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    // A leftover of a killed run may have another mode, and a link may lead elsewhere: begin anew.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn write_error(path: &Path, error: io::Error) -> TlsError {
    TlsError::Write {
        path: path.to_owned(),
        error,
    }
}

/// Reads a certificate; `hint` says what to do when it is missing.
pub(super) fn read(path: &Path, hint: &'static str) -> Result<String, TlsError> {
    read_inner(path).map_err(|error| TlsError::Read {
        path: path.to_owned(),
        error,
        hint,
    })
}

/// Reads a private key; refuses one that every user can read. A group may, since packages give keys to a group.
pub(super) fn read_key(path: &Path, hint: &'static str) -> Result<String, TlsError> {
    let text = read(path, hint)?;
    let mode = fs::metadata(path)
        .map_err(|error| TlsError::Read {
            path: path.to_owned(),
            error,
            hint,
        })?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o007 != 0 {
        return Err(TlsError::KeyExposed {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(text)
}

fn read_inner(path: &Path) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    if length > MAX_LEN {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "far too large for a certificate or key",
        ));
    }
    fs::read_to_string(path)
}
