//! The set-up of the node for its cluster: the cluster's volumes for as long as the node belongs to it, then the setup
//! task, as root, once per order and boot.
//!
//! ```text
//! DATA/setup/order.pb, setup.json   what was ordered, how far it is
//! DATA/setup/run-N/task             pid file and exit record of the setup task
//! DATA/setup/run-N/spool            local copies of its logs
//! DATA/setup/run-N/work             its working directory
//! PREFIX/SEGMENT/                   its logs: stdout-NODE.txt, stderr-NODE.txt, execution-NODE.log
//! ```
//!
//! The task runs under a shim, so that it outlives the agent; the next life takes it over. It is not bound to the
//! node's lease, since no job runs before it has ended; it ends when its order goes. What it leaves running in the
//! background is ended with it: a daemon belongs into a service of the host. A volume that cannot be mounted is tried
//! again, because file servers come back; a task that failed is run again for a new order or boot only.
//!
//! It must never touch a volume itself (helpers do), and never write as root where jobs may have left links.

pub mod decide;
mod keeper;
mod plan;
pub mod record;
mod task;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;
use trainyard_proto::v1::NodeSetupOrder;

use crate::attempt::Host;
use crate::layout::MountPoint;
use crate::leftovers;
use decide::Wanted;
use keeper::Keeper;
use record::Record;

/// What the newest view wants.
#[derive(Debug, Clone)]
enum Goal {
    Unknown,
    Nothing,
    Order(Arc<NodeSetupOrder>),
}

impl Goal {
    fn wanted(&self) -> Wanted<'_> {
        match self {
            Goal::Unknown => Wanted::Unknown,
            Goal::Nothing => Wanted::Nothing,
            Goal::Order(order) => Wanted::Order(order),
        }
    }
}

/// Keeps the set-up. Dropping it leaves the setup task running.
#[derive(Debug)]
pub struct Setup {
    goal: watch::Sender<Goal>,
    keeper: JoinHandle<()>,
}

impl Setup {
    /// Takes over what an earlier life left; nothing changes before a view comes. To be called within the runtime.
    #[must_use]
    pub fn start(host: &Arc<Host>, found: Option<Record>) -> Setup {
        let goal = watch::Sender::new(Goal::Unknown);
        let keeper = Keeper::new(Arc::clone(host), goal.subscribe(), found);
        Setup {
            goal,
            keeper: tokio::spawn(keeper.run()),
        }
    }

    /// Says what the newest view wants.
    pub fn tell(&self, order: Option<&NodeSetupOrder>) {
        self.goal.send_if_modified(|goal| {
            let same = match (&*goal, order) {
                (Goal::Nothing, None) => true,
                (Goal::Order(old), Some(new)) => **old == *new,
                _ => false,
            };
            if !same {
                *goal = order.map_or(Goal::Nothing, |order| Goal::Order(Arc::new(order.clone())));
            }
            !same
        });
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Kills the tasks below a directory that has no usable record, and removes it.
pub async fn discard(dir: &Path) {
    if let Ok(runs) = std::fs::read_dir(dir) {
        for run in runs.flatten() {
            leftovers::kill(&run.path().join("task")).await;
        }
    }
    if let Err(error) = std::fs::remove_dir_all(dir) {
        warn!(dir = %dir.display(), %error, "cannot be removed");
    }
}

/// Mount points of the set-up that was found on the disk.
#[must_use]
pub fn mounts(host: &Host, record: &Record) -> Vec<MountPoint> {
    let order = &record.order;
    crate::layout::cluster_volumes(&host.dirs, &order.cluster, &order.volumes)
        .map(|(_, mounts)| mounts)
        .unwrap_or_default()
}
