//! The disk below the measurement: which file system it is, and what one durable write costs on it without any of our code.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{BenchError, Context, Result};
use crate::stats::Samples;

/// What a log entry costs at least: one block.
const BLOCK: [u8; 4096] = [0x5a; 4096];
const FLOOR_WRITES: u32 = 400;
/// A slow disk must not hold up the benchmark.
const FLOOR_TIME: Duration = Duration::from_secs(4);

/// Kind of the file system that holds a directory, such as `ext4`, from the kernel's table of mounts.
pub(crate) fn file_system(dir: &Path) -> Result<String> {
    let dir = fs::canonicalize(dir).cannot(format_args!("resolve {}", dir.display()))?;
    let table = fs::read_to_string("/proc/self/mountinfo").cannot("read the table of mounts")?;
    kind_in(&table, &dir).ok_or_else(|| {
        BenchError::new(format!(
            "no mount of /proc/self/mountinfo holds {}",
            dir.display()
        ))
    })
}

/// Refuses a directory where fdatasync does nothing, since no durable write can be measured there.
pub(crate) fn require_durable(dir: &Path, kind: &str) -> Result<()> {
    if matches!(kind, "tmpfs" | "ramfs") {
        return Err(BenchError::new(format!(
            "{} lies on {kind}, where fdatasync does nothing: name a directory of a disk with --data",
            dir.display()
        )));
    }
    Ok(())
}

/// The mount with the longest path above `dir`; of several on one path, the last covers the others.
fn kind_in(table: &str, dir: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in table.lines() {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        let depth = Path::new(&point).components().count();
        if dir.starts_with(&point) && best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, kind.split(' ').next()?));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

/// Times of one 4 KiB write with fdatasync, without any of our code.
pub(crate) struct Floor {
    /// The file grows with each write.
    pub(crate) append: Samples,
    /// The blocks were written before.
    pub(crate) overwrite: Samples,
}

/// Measures the floor in `dir` with a file that is removed again. Takes some seconds at most and blocks the thread.
pub(crate) fn floor(dir: &Path) -> Result<Floor> {
    let path = dir.join("floor");
    let measured = measure(&path).cannot(format_args!("measure fdatasync on {}", path.display()));
    let _ = fs::remove_file(&path);
    measured
}

fn measure(path: &Path) -> std::io::Result<Floor> {
    let mut file = OpenOptions::new().create_new(true).write(true).open(path)?;
    let append = write_all(&mut file)?;
    file.seek(SeekFrom::Start(0))?;
    let overwrite = write_all(&mut file)?;
    Ok(Floor { append, overwrite })
}

fn write_all(file: &mut File) -> std::io::Result<Samples> {
    let mut times = Vec::new();
    let started = Instant::now();
    for _ in 0..FLOOR_WRITES {
        let begun = Instant::now();
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        times.push(begun.elapsed());
        if started.elapsed() > FLOOR_TIME {
            break;
        }
    }
    Ok(times.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /dev/shm rw - tmpfs tmpfs rw
31 22 0:26 / /var/with\\040blank rw - xfs /dev/vdb rw
32 22 0:27 / /dev/shm rw - ramfs none rw
";

    #[test]
    fn the_deepest_and_last_mount_wins() {
        let kind = |dir: &str| kind_in(TABLE, Path::new(dir));
        assert_eq!(kind("/var/tmp/x").as_deref(), Some("ext4"));
        assert_eq!(kind("/dev/shm/x").as_deref(), Some("ramfs"));
        assert_eq!(kind("/dev/shmx").as_deref(), Some("ext4"));
        assert_eq!(kind("/var/with blank/x").as_deref(), Some("xfs"));
    }

    #[test]
    fn memory_is_refused() {
        assert!(require_durable(Path::new("/x"), "tmpfs").is_err());
        assert!(require_durable(Path::new("/x"), "ext4").is_ok());
    }

    #[test]
    fn the_floor_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let floor = floor(dir.path()).unwrap();
        assert!(floor.append.len() > 0 && floor.overwrite.len() > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
