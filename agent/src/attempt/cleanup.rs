//! The end of an attempt: its tasks, its mounts, its directories.
//!
//! It goes on until nothing is left but the logs: a node that is not clean takes no other work, and says so. Nothing
//! is removed below a mount point, ever: what is mounted is unmounted first, or the removal is refused.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trainyard_proto::v1::AttemptNodePhase;

use super::runner::Runner;
use crate::launch::{self, TaskPlan};
use crate::layout::Layout;
use crate::shim::{self, Leftover};
use crate::volumes::{self, Unmounted};

/// Pauses between tries of something that does not end: a task in an uninterruptible call, a busy mount.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

impl Runner {
    /// Ends what runs, unmounts and removes; returns when the node is clean.
    pub(super) async fn clean_up(&mut self) {
        let started = Instant::now();
        self.end_tasks().await;
        self.outlast().await;
        if self.layout.is_none() {
            // Stopped before the first step, or resumed only to be ended.
            self.layout = Layout::new(&self.host.dirs, &self.assignment, &self.host.facts).ok();
        }
        self.log.line("unmounting and cleaning up");
        if self.host.boot_id == self.progress.boot_id
            && let Err(error) = self.log.finish().await
        {
            self.log
                .line(&format!("the log ends here on the share: {error}"));
        }
        self.share.rest().await;
        let mut pause = RETRY_MIN;
        while let Err(message) = self.remove().await {
            self.log.line(&format!("not clean yet: {message}"));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        self.log
            .line(&format!("cleaned in {} ms", started.elapsed().as_millis()));
        self.host
            .board
            .set_files(&self.key, |files| files.alive = false);
        self.set_phase(AttemptNodePhase::Cleaned);
    }

    async fn end_tasks(&mut self) {
        self.take_over_the_rest().await;
        if self.goal.borrow().fence {
            self.tasks.kill();
        } else {
            self.tasks.stop();
        }
        if self.tasks.len() > 0 {
            self.log
                .line(&format!("ending {} task(s)", self.tasks.len()));
        }
        let plans = self.plans();
        loop {
            let next = tokio::select! {
                next = self.tasks.next() => next,
                // The lease may end while tasks use up their grace.
                Ok(_) = self.goal.wait_for(|goal| goal.fence), if !self.goal.borrow().fence => {
                    self.tasks.kill();
                    continue;
                }
            };
            let Some((name, end)) = next else { break };
            match plans.iter().find(|plan| plan.name == name) {
                Some(plan) => {
                    let (exit_code, _) = self.judge(plan, &name, end).await;
                    self.log
                        .line(&format!("task {name} ended with status {exit_code}"));
                }
                None => self.log.line(&format!("task {name} ended")),
            }
        }
    }

    /// Takes over what earlier lives of the agent started and this one has not come to.
    async fn take_over_the_rest(&mut self) {
        if !self.resumed || self.progress.boot_id != self.host.boot_id {
            return;
        }
        let dir = self.host.dirs.state_dir(&self.key.uid, self.key.attempt);
        let Ok(tasks) = std::fs::read_dir(dir.join("tasks")) else {
            return;
        };
        for task in tasks.flatten() {
            let name = task.file_name().to_string_lossy().into_owned();
            if self.tasks.contains(&name) {
                continue;
            }
            match shim::adopt(&task.path()).await {
                Ok(adopted) => {
                    self.tasks.adopt(&name, adopted);
                }
                Err(error) => self.log.line(&format!("task {name}: {error}")),
            }
        }
    }

    /// The plans of this node's tasks, for the names of their files.
    fn plans(&self) -> Vec<TaskPlan> {
        let Some(layout) = &self.layout else {
            return Vec::new();
        };
        let mut plans: Vec<TaskPlan> = launch::preparation(&self.assignment, layout)
            .into_iter()
            .collect();
        if let Ok(plan) = launch::plan(&self.assignment, layout, &self.host.facts) {
            plans.extend(plan.tasks);
        }
        plans
    }

    /// Waits for processes that SIGKILL has not ended yet, as in an uninterruptible call to a hung file server.
    async fn outlast(&mut self) {
        let left = std::mem::take(&mut self.left);
        let mut pause = RETRY_MIN;
        let mut said = false;
        while left.iter().any(is_alive) {
            if !std::mem::replace(&mut said, true) {
                let pids: Vec<i32> = left.iter().map(|process| process.pid).collect();
                self.log.line(&format!(
                    "processes {pids:?} are killed but hang in the kernel, often on a file server; waiting for them"
                ));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Unmounts and removes everything but the logs. What is done already is done again without harm.
    async fn remove(&mut self) -> Result<(), String> {
        if let Some(layout) = self.layout.clone() {
            for mount in layout.job_mounts(&self.assignment).iter().rev() {
                self.unmount(&mount.target).await?;
            }
            let below = volumes::mounts_below(&layout.job_root).map_err(|e| e.to_string())?;
            for target in below {
                self.unmount(&target).await?;
            }
            for mount in layout.cluster_mounts(&self.assignment).iter().rev() {
                self.release(&mount.target).await?;
            }
            self.host
                .helper
                .remove_tree(&layout.job_root)
                .await
                .map_err(|error| error.to_string())?;
        }
        let dir = self.host.dirs.state_dir(&self.key.uid, self.key.attempt);
        match std::fs::remove_dir_all(dir.join("tasks")) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn release(&mut self, target: &Path) -> Result<(), String> {
        let host = Arc::clone(&self.host);
        let turn = host.cluster_mounts.turn(target).await;
        let result = if host.cluster_mounts.release(target, &self.key) {
            self.unmount(target).await
        } else {
            Ok(())
        };
        drop(turn);
        result
    }

    async fn unmount(&mut self, target: &Path) -> Result<(), String> {
        let started = Instant::now();
        match volumes::unmount(&self.host.helper, target).await {
            Ok(Unmounted::Absent) => Ok(()),
            Ok(how) => {
                let lazily = match how {
                    Unmounted::Lazy => " lazily, since it was busy or hung",
                    Unmounted::Clean | Unmounted::Absent => "",
                };
                self.log.line(&format!(
                    "unmounted {}{lazily} in {} ms",
                    target.display(),
                    started.elapsed().as_millis()
                ));
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Whether a process is still there, and is still the one that was meant.
fn is_alive(process: &Leftover) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)) else {
        return false;
    };
    let mut fields = stat
        .rsplit_once(") ")
        .map_or("", |(_, rest)| rest)
        .split(' ');
    // State is field 3 of the line, the start time field 22.
    let gone = matches!(fields.next(), Some("Z" | "X") | None);
    let start = fields.nth(18).and_then(|start| start.parse::<u64>().ok());
    !gone && start == Some(process.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let after_name = stat.rsplit_once(") ").unwrap().1;
        let start: u64 = after_name.split(' ').nth(19).unwrap().parse().unwrap();
        assert!(is_alive(&Leftover { pid, start }));
        assert!(!is_alive(&Leftover {
            pid,
            start: start + 1
        }));
        assert!(!is_alive(&Leftover { pid: -1, start }));
    }
}
