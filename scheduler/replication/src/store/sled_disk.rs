//! The real disk: a sled database and our own sync.
//!
//! sled's `flush` calls `sync_file_range`, which survives a killed process but not a power cut, so after it we `fdatasync` a
//! descriptor of our own on sled's one data file. Files that sled makes beside it (`conf`, `snap.*`) come into being only
//! while a database is opened; we sync them and their directories then. Values under 30 KiB and a large segment keep
//! every page, up to a full leaf of such values, inside the data file: nothing must ever appear under `blobs/`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};

use super::disk::{Disk, DiskReader, Visit};
use super::mark::MarkFile;
use crate::error::{StartError, StoreError};

/// A page above a quarter of a segment would become a file of its own: 1 MiB holds a leaf with 34 of our largest values,
/// and sled splits a leaf at 16.
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// Entries are served from our own memory; sled's cache only has to hold the end of the log.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// A sled database in a data directory.
#[derive(Debug)]
pub struct SledDisk {
    directory: PathBuf,
    db: sled::Db,
    data: File,
    mark: MarkFile,
    opened_mark: u64,
    _lock: Flock<File>,
}

impl SledDisk {
    /// Opens the data directory, or makes it. Refuses one that another process uses, and one whose files are damaged.
    pub fn open(data_dir: &Path) -> Result<Self, StartError> {
        make_directory(data_dir)?;
        let lock = take_lock(data_dir)?;
        let log = data_dir.join("log");
        let had_data = log.join("db").exists();
        let mark = open_mark(data_dir, had_data)?;
        make_directory(&log)?;
        let db = open_sled(&log, mark.value())?;
        let data_path = log.join("db");
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&data_path)
            .map_err(|error| StoreError::io(format!("opening {}", data_path.display()), &error))?;
        let disk = SledDisk {
            directory: data_dir.to_owned(),
            db,
            data,
            opened_mark: mark.value(),
            mark,
            _lock: lock,
        };
        disk.sync_files(&log)?;
        Ok(disk)
    }

    /// Makes durable that the files exist, and what sled wrote into them without a sync.
    fn sync_files(&self, log: &Path) -> Result<(), StoreError> {
        let parent = self.directory.parent().filter(|path| path.is_dir());
        let paths = [
            log.join("conf"),
            log.join("db"),
            log.join("blobs"),
            log.to_owned(),
            self.directory.clone(),
        ];
        for path in paths.iter().map(PathBuf::as_path).chain(parent) {
            File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(|error| StoreError::io(format!("syncing {}", path.display()), &error))?;
        }
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| StoreError::io(format!("making the directory {}", path.display()), &error))
}

/// Opens the mark, or makes it when there is no database either. One without the other is damage, and must still look like it
/// at the next start: nothing is made then.
fn open_mark(data_dir: &Path, had_data: bool) -> Result<MarkFile, StoreError> {
    let path = data_dir.join("high-water");
    let damaged = |missing: &str, present: &str| StoreError::Damaged {
        place: data_dir.display().to_string(),
        record: format!("the file {missing}"),
        why: format!("it is missing, though {present} is there"),
    };
    match MarkFile::open(&path)? {
        None if had_data => Err(damaged("high-water", "log/db")),
        None => MarkFile::create(&path),
        Some(mark) if !had_data && mark.value() > 0 => Err(damaged("log/db", "high-water")),
        Some(mark) => Ok(mark),
    }
}

fn take_lock(data_dir: &Path) -> Result<Flock<File>, StartError> {
    let path = data_dir.join("lock");
    let fail =
        |error: std::io::Error| StoreError::io(format!("locking {}", path.display()), &error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // Who holds it, for the error of the next one; only a hint.
            let _ = lock.set_len(0);
            let _ = write!(*lock, "{}", std::process::id());
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let holder = match pid.trim().parse::<u32>() {
                Ok(pid) if pid == std::process::id() => "this very process".to_owned(),
                Ok(pid) => format!("process {pid}"),
                Err(_) => "another process".to_owned(),
            };
            Err(StartError::InUse {
                path: data_dir.to_owned(),
                holder,
            })
        }
        Err((_, errno)) => Err(StartError::Store(fail(errno.into()))),
    }
}

/// Opens sled; its panics on damaged files become errors.
fn open_sled(log: &Path, mark: u64) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new()
        .path(log)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| open_released(&config)));
    let why = match opened {
        Ok(Ok(db)) => return Ok(db),
        Ok(Err(sled::Error::Io(error))) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            return Err(StoreError::io(format!("opening {}", log.display()), &error));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the storage engine gave up on it".to_owned(),
    };
    Err(StoreError::Damaged {
        place: log.display().to_string(),
        record: format!("the database (log records up to {mark} at least)"),
        why,
    })
}

/// Opens sled, and waits for its own lock: we hold the directory's, so it can only be a database of this process whose last
/// background task is about to end. sled has no call that awaits it.
fn open_released(config: &sled::Config) -> Result<sled::Db, sled::Error> {
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            other => return other,
        }
    }
    config.open()
}

fn sled_error(place: &str, what: &str, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) => StoreError::io(format!("{what} {place}"), &error),
        sled::Error::Corruption { at, .. } => StoreError::Damaged {
            place: place.to_owned(),
            record: format!("a page of log/db (at {at:?})"),
            why: "its checksum does not match".to_owned(),
        },
        other => StoreError::Io {
            what: format!("{what} {place}"),
            why: other.to_string(),
        },
    }
}

impl Disk for SledDisk {
    fn place(&self) -> String {
        self.directory.display().to_string()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        read(&self.db, &self.place(), key)
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.db
            .insert(key, value)
            .map(drop)
            .map_err(|error| sled_error(&self.place(), "writing to", error))
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.db
            .remove(key)
            .map(drop)
            .map_err(|error| sled_error(&self.place(), "writing to", error))
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        for pair in self.db.scan_prefix(prefix) {
            let (key, value) = pair.map_err(|error| sled_error(&self.place(), "reading", error))?;
            if !visit(&key, Bytes::copy_from_slice(&value))? {
                break;
            }
        }
        Ok(())
    }

    fn sync(&mut self, mark: u64) -> Result<(), StoreError> {
        self.db
            .flush()
            .map_err(|error| sled_error(&self.place(), "flushing", error))?;
        self.data
            .sync_data()
            .map_err(|error| StoreError::io(format!("fdatasync of {}", self.place()), &error))?;
        self.mark.advance(mark)
    }

    fn mark(&self) -> u64 {
        self.opened_mark
    }

    fn reader(&self) -> Box<dyn DiskReader> {
        Box::new(SledReader {
            place: self.place(),
            tree: (*self.db).clone(),
        })
    }

    fn bytes(&self) -> u64 {
        self.data.metadata().map_or(0, |data| data.len())
    }
}

fn read(tree: &sled::Tree, place: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
    let value = tree
        .get(key)
        .map_err(|error| sled_error(place, "reading", error))?;
    Ok(value.map(|value| Bytes::copy_from_slice(&value)))
}

struct SledReader {
    place: String,
    tree: sled::Tree,
}

impl DiskReader for SledReader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        read(&self.tree, &self.place, key)
    }
}
