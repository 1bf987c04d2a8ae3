//! Writes what retention removes to files, before it is removed: finished jobs as JSON lines, records of usage as CSV.
//!
//! One file per workspace and day of the export (UTC): `DIR/WORKSPACE/jobs-2026-11-25.jsonl` and `usage-2026-11-25.csv`.
//! When a function here returns without an error, the bytes are on the disk. What is exported may be exported twice (the
//! member may die before the removal is in the log), but must never be removed without having been exported. A line that
//! was cut off by a crash belongs to nothing that was removed, and is cut away.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use prost_types::Timestamp;
use trainyard_proto::store::v1::UsageRecord;
use trainyard_proto::v1::Job;
use trainyard_shared::{json, time};

const USAGE_HEADER: &str = "job,user,start_time,end_time,gpus,nodes,gpu_hours,node_hours\n";

/// What was not written, and what to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} cannot be written: {source}; make room or give another export_dir. Nothing is removed before it is exported"
)]
pub struct ExportError {
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Appends jobs to the files of their workspaces.
pub fn jobs(dir: &Path, now: &Timestamp, jobs: &[Job]) -> Result<(), ExportError> {
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for job in jobs {
        let text = texts.entry(workspace(&job.name)).or_default();
        text.push_str(&json::to_json(job).to_string());
        text.push('\n');
    }
    for (workspace, text) in texts {
        let name = format!("jobs-{}.jsonl", day(now));
        append(&dir.join(workspace), &name, "", &text)?;
    }
    Ok(())
}

/// Appends records of usage to the files of their workspaces.
pub fn usage(dir: &Path, now: &Timestamp, records: &[UsageRecord]) -> Result<(), ExportError> {
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for record in records {
        texts
            .entry(workspace(&record.job))
            .or_default()
            .push_str(&usage_line(record));
    }
    for (workspace, text) in texts {
        let name = format!("usage-{}.csv", day(now));
        append(&dir.join(workspace), &name, USAGE_HEADER, &text)?;
    }
    Ok(())
}

fn usage_line(record: &UsageRecord) -> String {
    let start = record.start_time.unwrap_or_default();
    let end = record.end_time.unwrap_or_default();
    let seconds = |t: &Timestamp| t.seconds as f64 + f64::from(t.nanos) / 1e9;
    let hours = (seconds(&end) - seconds(&start)).max(0.0) / 3600.0;
    let nodes = f64::from(record.milli_nodes) / 1000.0;
    format!(
        "{},{},{},{},{},{nodes},{:.6},{:.6}\n",
        quoted(&record.job),
        quoted(&record.user),
        time::format(&start),
        time::format(&end),
        record.gpus,
        f64::from(record.gpus) * hours,
        nodes * hours,
    )
}

/// A field of CSV as RFC 4180 wants it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// The id of the workspace in a resource name. An id is safe as a directory: letters, digits, `_` and `-`.
fn workspace(name: &str) -> &str {
    name.split('/').nth(1).unwrap_or("unknown")
}

fn day(now: &Timestamp) -> String {
    let text = time::format(now);
    text.get(..10).unwrap_or("unknown").to_owned()
}

/// Appends to a file and waits until the disk has it, the file's name included.
fn append(dir: &Path, name: &str, header: &str, text: &str) -> Result<(), ExportError> {
    let path = dir.join(name);
    let failed = |source| ExportError {
        path: path.clone(),
        source,
    };
    make_dir(dir).map_err(failed)?;
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    let whole = whole_lines(&mut file).map_err(failed)?;
    let written = (|| {
        file.set_len(whole)?;
        file.seek(SeekFrom::Start(whole))?;
        if whole == 0 {
            file.write_all(header.as_bytes())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        sync_dir(dir)
    })();
    if written.is_err() {
        // So that a full disk leaves no half line; if this fails too, the next append cuts it away.
        let _ = file.set_len(whole);
    }
    written.map_err(failed)
}

/// Length of the file up to its last end of line.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(4096);
        let part = &mut piece[..usize::try_from(end - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|b| *b == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Makes a directory and those above it, each of which the disk then has.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_dir(parent)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    sync_dir(parent.unwrap_or(Path::new(".")))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp {
        seconds: 1_795_564_800,
        nanos: 0,
    };

    fn job(name: &str) -> Job {
        Job {
            name: name.to_owned(),
            uid: "u".into(),
            ..Job::default()
        }
    }

    #[test]
    fn jobs_are_lines_of_json_by_workspace_and_day() {
        let dir = tempfile::tempdir().unwrap();
        let exports = dir.path().join("data/exports");
        let (a, b) = (
            job("workspaces/a/experiments/e/jobs/j"),
            job("workspaces/b/experiments/e/jobs/j"),
        );
        jobs(&exports, &NOW, &[a.clone(), b.clone(), a.clone()]).unwrap();
        jobs(&exports, &NOW, &[b]).unwrap();
        let day = day(&NOW);
        for (workspace, lines) in [("a", 2), ("b", 2)] {
            let text =
                fs::read_to_string(exports.join(format!("{workspace}/jobs-{day}.jsonl"))).unwrap();
            assert_eq!(text.lines().count(), lines, "{text}");
            assert!(text.lines().all(|line| {
                line.starts_with('{') && line.contains(&format!("workspaces/{workspace}/"))
            }));
        }
        let tomorrow = Timestamp {
            seconds: NOW.seconds + 86_400,
            nanos: 0,
        };
        jobs(&exports, &tomorrow, &[a]).unwrap();
        assert_eq!(fs::read_dir(exports.join("a")).unwrap().count(), 2);
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_cut_away() {
        let dir = tempfile::tempdir().unwrap();
        let a = job("workspaces/a/experiments/e/jobs/j");
        jobs(dir.path(), &NOW, std::slice::from_ref(&a)).unwrap();
        let path = dir.path().join(format!("a/jobs-{}.jsonl", day(&NOW)));
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"name\": \"{}", "x".repeat(9_000))).unwrap();
        jobs(dir.path(), &NOW, &[a]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole.repeat(2));
    }

    #[test]
    fn usage_is_a_table_with_one_header() {
        let dir = tempfile::tempdir().unwrap();
        let record = UsageRecord {
            job: "workspaces/a/experiments/e/jobs/j".into(),
            user: "eve, \"the first\"".into(),
            start_time: Some(NOW),
            end_time: Some(Timestamp {
                seconds: NOW.seconds + 1_800,
                nanos: 0,
            }),
            gpus: 4,
            milli_nodes: 500,
        };
        usage(dir.path(), &NOW, std::slice::from_ref(&record)).unwrap();
        usage(dir.path(), &NOW, &[record]).unwrap();
        let path = dir.path().join(format!("a/usage-{}.csv", day(&NOW)));
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("job,user,"));
        assert!(
            lines[1].contains(",\"eve, \"\"the first\"\"\",")
                && lines[1].ends_with(",4,0.5,2.000000,0.250000"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_written_is_an_error_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = jobs(&file, &NOW, &[job("workspaces/a/experiments/e/jobs/j")]).unwrap_err();
        assert!(error.to_string().contains("export_dir"), "{error}");
    }
}
