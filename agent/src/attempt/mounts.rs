//! Which attempts use which volume of a cluster: such volumes are shared by all attempts of the cluster on the node
//! and are unmounted with the last of them.
//!
//! Mounting and unmounting one target take turns; different targets do not wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;
use trainyard_proto::v1::Assignment;

use super::Host;
use crate::layout::Layout;
use crate::reconcile::AttemptKey;

/// The users of each mount point.
#[derive(Debug, Default)]
pub struct ClusterMounts {
    targets: Mutex<BTreeMap<PathBuf, Target>>,
}

#[derive(Debug, Default)]
struct Target {
    users: BTreeSet<AttemptKey>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl ClusterMounts {
    fn target<T>(&self, path: &Path, action: impl FnOnce(&mut Target) -> T) -> T {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        action(targets.entry(path.to_owned()).or_default())
    }

    /// Notes that an attempt needs the target mounted, before it is its turn to mount it.
    pub fn register(&self, path: &Path, user: &AttemptKey) {
        self.target(path, |target| target.users.insert(user.clone()));
    }

    /// Waits for the turn to mount or unmount the target; it lasts as long as the guard.
    pub async fn turn(&self, path: &Path) -> OwnedMutexGuard<()> {
        let turn = self.target(path, |target| Arc::clone(&target.turn));
        turn.lock_owned().await
    }

    /// Notes that an attempt is done with the target. Returns whether it was the last one, which unmounts; to be
    /// called during one's turn.
    pub fn release(&self, path: &Path, user: &AttemptKey) -> bool {
        self.target(path, |target| {
            target.users.remove(user);
            target.users.is_empty()
        })
    }

    /// Whether any attempt needs the target.
    pub fn is_used(&self, path: &Path) -> bool {
        self.target(path, |target| !target.users.is_empty())
    }
}

/// Registers an attempt for the volumes of its cluster, so that no other attempt's end unmounts them.
pub fn register(host: &Host, assignment: &Assignment) {
    let key = AttemptKey::of(assignment);
    // An attempt without a usable layout fails before it mounts anything.
    if let Ok(layout) = Layout::new(&host.dirs, assignment, &host.facts) {
        for mount in layout.cluster_mounts(assignment) {
            host.cluster_mounts.register(&mount.target, &key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(attempt: u32) -> AttemptKey {
        AttemptKey {
            uid: "u".to_owned(),
            attempt,
        }
    }

    #[test]
    fn only_the_last_user_unmounts() {
        let mounts = ClusterMounts::default();
        let data = Path::new("/m/data");
        mounts.register(data, &key(1));
        mounts.register(data, &key(2));
        mounts.register(data, &key(2));
        assert!(!mounts.release(data, &key(2)));
        assert!(mounts.is_used(data));
        assert!(mounts.release(data, &key(1)));
        assert!(!mounts.is_used(data));
    }
}
