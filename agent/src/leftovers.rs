//! What no record explains: after a power cut, or when a record is damaged. It is ended and removed, never adopted.
//!
//! Runs once, before the first session. It touches only what lies below the agent's own directories, and follows no
//! link there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use crate::attempt::Host;
use crate::layout::Layout;
use crate::record::Found;
use crate::setup;
use crate::shim::{self, Adopted};
use crate::volumes;

/// Longest wait for one killed task.
const KILL_MAX: Duration = Duration::from_secs(10);

/// Kills the tasks below a state directory that has no usable record, and removes it.
pub async fn discard(dir: &Path) {
    if let Ok(tasks) = std::fs::read_dir(dir.join("tasks")) {
        for task in tasks.flatten() {
            if !kill(&task.path()).await {
                return;
            }
        }
    }
    let removed = match dir.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(dir),
        Ok(_) => std::fs::remove_file(dir),
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        warn!(dir = %dir.display(), %error, "cannot be removed");
    }
}

/// Kills the task of a directory, if it runs. Returns whether it is gone.
pub async fn kill(task: &Path) -> bool {
    if let Ok(Adopted::Running(mut handle)) = shim::adopt(task).await {
        handle.kill();
        if tokio::time::timeout(KILL_MAX, handle.wait()).await.is_err() {
            warn!(task = %task.display(), "a leftover task does not end");
            return false;
        }
    }
    true
}

/// Unmounts and removes scratch directories and cluster volumes that belong to no attempt and to no set-up.
pub async fn sweep(host: &Host, found: &[Found], set_up: Option<&setup::record::Record>) {
    let mut known: BTreeSet<PathBuf> = BTreeSet::new();
    for found in found.iter().filter(|found| !found.is_cleaned()) {
        if let Ok(layout) = Layout::new(&host.dirs, &found.assignment, &host.facts) {
            known.insert(layout.job_root.clone());
            let mounts = layout.cluster_mounts(&found.assignment);
            known.extend(mounts.into_iter().map(|mount| mount.target));
        }
    }
    if let Some(record) = set_up {
        let mounts = setup::mounts(host, record);
        known.extend(mounts.into_iter().map(|mount| mount.target));
    }
    let mounted = match volumes::mounts_below(&host.dirs.data) {
        Ok(mounted) => mounted,
        Err(error) => {
            warn!(%error, "mounts of earlier attempts cannot be looked for");
            return;
        }
    };
    for target in mounted {
        if known.iter().any(|path| target.starts_with(path)) {
            continue;
        }
        warn!(target = %target.display(), "unmounting what no attempt uses");
        if let Err(error) = volumes::unmount(&host.helper, &target).await {
            warn!(target = %target.display(), %error, "a leftover mount stays");
        }
    }
    let Ok(jobs) = std::fs::read_dir(host.dirs.jobs()) else {
        return;
    };
    for job in jobs.flatten().map(|entry| entry.path()) {
        if !known.contains(&job)
            && let Err(error) = host.helper.remove_tree(&job).await
        {
            warn!(dir = %job.display(), %error, "a leftover scratch directory stays");
        }
    }
}
