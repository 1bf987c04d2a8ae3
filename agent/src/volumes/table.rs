//! The mount table. Reading it never touches a mount point.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::helper::Failure;

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) target: PathBuf,
    pub(super) kind: String,
    pub(super) device: String,
}

/// The mount table, in order of mounting.
pub(super) fn table() -> io::Result<Vec<Mounted>> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(parse)
        .collect())
}

/// What is mounted at a directory: of several, the topmost.
pub(super) fn find(target: &Path) -> Result<Option<Mounted>, Failure> {
    let table =
        table().map_err(|error| Failure::new(format!("cannot read the mount table: {error}")))?;
    Ok(table.into_iter().rev().find(|mount| mount.target == target))
}

pub(super) fn parse(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    Some(Mounted {
        target: PathBuf::from(std::ffi::OsString::from_vec(unescape(
            left.split(' ').nth(4)?,
        ))),
        kind: right.next()?.to_owned(),
        device: String::from_utf8_lossy(&unescape(right.next()?)).into_owned(),
    })
}

/// Blanks and backslashes stand as `\040` and the like.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}
