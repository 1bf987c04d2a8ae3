//! The high-water mark: a small file beside the log that says how far the log certainly reached.
//!
//! The storage engine takes a damaged end of its file for a write that a power cut tore, and drops it silently. The mark tells the
//! two apart: it is written after a sync, never before, so a log that ends short of it has lost acknowledged data. Writing it
//! costs microseconds, because it is itself synced only once in a while: after a power cut it may lag, which is safe,
//! but it never runs ahead. It also carries the fact that a store was ever completed: a vanished log never looks new.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::record;
use crate::error::StoreError;

const MAGIC: &[u8; 8] = b"TYMARK\0\x01";
const LENGTH: usize = 20;
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The mark's file.
#[derive(Debug)]
pub(super) struct MarkFile {
    path: PathBuf,
    file: File,
    value: u64,
    synced: Instant,
}

impl MarkFile {
    /// Opens the file; `None` if there is none, or one whose making was cut off.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let fail =
            |error: &std::io::Error| StoreError::io(format!("opening {}", path.display()), error);
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(&error)),
        };
        if file.metadata().map_err(|error| fail(&error))?.len() == 0 {
            return Ok(None);
        }
        let mut mark = MarkFile::new(path, file);
        mark.value = mark.read()?;
        Ok(Some(mark))
    }

    /// Makes the file with mark 0, durably: it must be there before anything that it vouches for.
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        let fail =
            |error: &std::io::Error| StoreError::io(format!("making {}", path.display()), error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(|error| fail(&error))?;
        let mut mark = MarkFile::new(path, file);
        mark.write(0)?;
        mark.file.sync_all().map_err(|error| fail(&error))?;
        if let Some(parent) = path.parent() {
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(|error| fail(&error))?;
        }
        Ok(mark)
    }

    fn new(path: &Path, file: File) -> Self {
        MarkFile {
            path: path.to_owned(),
            file,
            value: 0,
            synced: Instant::now(),
        }
    }

    /// The mark.
    pub(super) fn value(&self) -> u64 {
        self.value
    }

    fn read(&self) -> Result<u64, StoreError> {
        let mut bytes = [0_u8; LENGTH];
        let read = self.file.read_exact_at(&mut bytes, 0);
        let mut reader = record::Reader(&bytes[8..]);
        match (read, reader.u64(), reader.u32()) {
            (Ok(()), Some(value), Some(crc))
                if bytes.starts_with(MAGIC) && crc == crc32fast::hash(&bytes[..16]) =>
            {
                Ok(value)
            }
            _ => Err(StoreError::Damaged {
                place: self.path.display().to_string(),
                record: "the high-water mark".to_owned(),
                why: "its checksum does not match".to_owned(),
            }),
        }
    }

    fn write(&mut self, value: u64) -> Result<(), StoreError> {
        let mut bytes = [0_u8; LENGTH];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&value.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        self.file
            .write_all_at(&bytes, 0)
            .map_err(|error| StoreError::io(format!("writing {}", self.path.display()), &error))?;
        self.value = value;
        Ok(())
    }

    /// Moves the mark; what it stands for must be synced already.
    pub(super) fn advance(&mut self, value: u64) -> Result<(), StoreError> {
        if value == self.value {
            return Ok(());
        }
        let first = self.value == 0;
        self.write(value)?;
        if first || self.synced.elapsed() >= SYNC_EVERY {
            self.file.sync_data().map_err(|error| {
                StoreError::io(format!("syncing {}", self.path.display()), &error)
            })?;
            self.synced = Instant::now();
        }
        Ok(())
    }
}
