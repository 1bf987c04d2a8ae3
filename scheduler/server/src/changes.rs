//! Who wants to hear of a change: watchers of jobs, sessions of nodes, and the loops.
//!
//! A subscription holds a counter, not a queue: however many changes happen, a slow reader sees one wake-up and reads
//! the newest state. Nothing here grows with the number of changes, and publishing never waits for a reader.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use trainyard_core::Change;

use crate::watch::ring::Ring;

/// Most subscriptions at one time.
const MAX_SUBSCRIPTIONS: usize = 65_536;

/// Hands changes of the state to those who subscribed.
#[derive(Debug, Default)]
pub struct Changes {
    topics: Mutex<Topics>,
    /// Placement may find something to do.
    pub placement: Notify,
    /// A node came, went or changed its state.
    pub nodes: Notify,
    /// An attempt started or ended somewhere: deadlines may have changed.
    pub deadlines: Notify,
    /// Something in a workspace changed: a deletion may go on.
    pub sweep: Notify,
    /// A job or a workspace changed: retention may find something to remove.
    pub retention: Notify,
    /// A node or a cluster changed: a host may have to be switched on or off.
    pub power: Notify,
    /// What happened, for watches.
    pub events: Ring,
}

#[derive(Debug, Default)]
struct Topics {
    jobs: HashMap<String, watch::Sender<u64>>,
    desired: HashMap<String, watch::Sender<u64>>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Job,
    Desired,
}

impl Topics {
    fn of(&mut self, kind: Kind) -> &mut HashMap<String, watch::Sender<u64>> {
        match kind {
            Kind::Job => &mut self.jobs,
            Kind::Desired => &mut self.desired,
        }
    }
}

/// Wakes its holder when the resource changes. Ends by being dropped.
#[derive(Debug)]
pub struct Subscription {
    changes: Arc<Changes>,
    kind: Kind,
    name: String,
    receiver: watch::Receiver<u64>,
}

/// There are too many subscriptions already.
#[derive(Debug, thiserror::Error)]
#[error("this scheduler serves {MAX_SUBSCRIPTIONS} watchers already; try again later")]
pub struct TooMany;

impl Changes {
    /// Wakes whoever wants to hear of these changes. Called after the state was unlocked.
    pub fn publish(&self, changes: &[Change]) {
        let mut wake: Vec<&Notify> = Vec::new();
        {
            let topics = self.lock();
            for change in changes {
                match change {
                    Change::Job(name) => {
                        wake.extend([&self.deadlines, &self.sweep, &self.retention]);
                        bump(topics.jobs.get(name));
                    }
                    Change::Desired(name) => bump(topics.desired.get(name)),
                    Change::Node(_) => wake.extend([&self.nodes, &self.power, &self.sweep]),
                    Change::Placement => wake.push(&self.placement),
                    Change::Workspace(_) => wake.extend([&self.sweep, &self.retention]),
                    Change::Cluster(_) => wake.extend([&self.sweep, &self.power]),
                    Change::FileServer(_) | Change::Experiment(_) => wake.push(&self.sweep),
                }
            }
        }
        wake.sort_unstable_by_key(|notify| std::ptr::from_ref(*notify));
        wake.dedup_by_key(|notify| std::ptr::from_ref(*notify));
        for notify in wake {
            notify.notify_one();
        }
    }

    /// The whole state was replaced by the one at this revision: wakes everyone.
    pub fn publish_all(&self, revision: u64) {
        {
            let topics = self.lock();
            for sender in topics.jobs.values().chain(topics.desired.values()) {
                bump(Some(sender));
            }
        }
        self.events.restart(revision);
        for notify in [
            &self.placement,
            &self.nodes,
            &self.deadlines,
            &self.sweep,
            &self.retention,
            &self.power,
        ] {
            notify.notify_one();
        }
    }

    /// Subscribes to a job by resource name.
    pub fn job(self: &Arc<Self>, name: &str) -> Result<Subscription, TooMany> {
        self.subscribe(Kind::Job, name)
    }

    /// Subscribes to what a node shall hold, by resource name.
    pub fn desired(self: &Arc<Self>, node: &str) -> Result<Subscription, TooMany> {
        self.subscribe(Kind::Desired, node)
    }

    fn subscribe(self: &Arc<Self>, kind: Kind, name: &str) -> Result<Subscription, TooMany> {
        let mut topics = self.lock();
        let receivers = topics.jobs.len() + topics.desired.len();
        let receiver = match topics.of(kind).get(name) {
            Some(sender) => sender.subscribe(),
            None if receivers >= MAX_SUBSCRIPTIONS => return Err(TooMany),
            None => {
                let (sender, receiver) = watch::channel(0);
                topics.of(kind).insert(name.to_owned(), sender);
                receiver
            }
        };
        drop(topics);
        Ok(Subscription {
            changes: Arc::clone(self),
            kind,
            name: name.to_owned(),
            receiver,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Topics> {
        // Nothing that holds the lock can leave the maps half-changed.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bump(sender: Option<&watch::Sender<u64>>) {
    if let Some(sender) = sender {
        sender.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Subscription {
    /// Waits for the next change since the last call (or since the subscription). Changes in between count once.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            // The sender lives as long as a subscription does; should that ever break, wait instead of spinning.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self.changes.lock();
        let map = topics.of(self.kind);
        // This subscription is still counted.
        if map.get(&self.name).is_some_and(|s| s.receiver_count() <= 1) {
            map.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn changes_are_coalesced_and_never_missed() {
        let changes = Arc::new(Changes::default());
        let mut watcher = changes.job("j").unwrap();
        for _ in 0..1000 {
            changes.publish(&[Change::Job("j".into()), Change::Job("other".into())]);
        }
        watcher.changed().await;
        let quiet = tokio::time::timeout(Duration::from_millis(20), watcher.changed()).await;
        assert!(quiet.is_err(), "one wake-up for all");
        changes.publish_all(1);
        watcher.changed().await;
    }

    #[tokio::test]
    async fn the_last_subscriber_takes_the_topic_along() {
        let changes = Arc::new(Changes::default());
        let first = changes.desired("nodes/n").unwrap();
        let second = changes.desired("nodes/n").unwrap();
        drop(first);
        assert_eq!(changes.lock().desired.len(), 1);
        drop(second);
        assert_eq!(changes.lock().desired.len(), 0);
    }
}
