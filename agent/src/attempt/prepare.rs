//! The steps before the barrier: volumes, directories, the job preparation, and the barrier itself.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use trainyard_proto::v1::{Assignment, AttemptNodePhase, AttemptPhase, volume};

use super::problem::Problem;
use super::runner::{Interrupt, Runner, Step, interruptible, took};
use crate::launch::{self, TaskPlan};
use crate::layout::Layout;
use crate::record::Directory;
use crate::share::MakeDirectory;
use crate::volumes;

/// Longest search for a free port.
const PORT_MAX: Duration = Duration::from_secs(10);

impl Runner {
    /// Mounts, directories, job preparation.
    pub(super) async fn prepare(
        &mut self,
        layout: &Layout,
        preparation: Option<TaskPlan>,
    ) -> Step<()> {
        layout.make_local().map_err(|error| {
            Problem::node(&self.assignment, "the directories of the job", &error)
        })?;
        if !self.progress.prepared {
            self.share.wake().await;
            self.mount(layout).await?;
            self.make_directories(layout).await?;
        }
        self.log.publish(
            &self.share,
            &layout.stdouterr_dir,
            self.key.attempt,
            self.progress.log_on_share,
        );
        if self.progress.prepared {
            return Ok(());
        }
        if let Some(plan) = preparation {
            let started = Instant::now();
            self.log.line("job preparation: started");
            self.start(layout, &plan).await?;
            let Some((name, end)) = self.interruptible_end().await? else {
                return Ok(());
            };
            let (exit_code, problem) = self.judge(&plan, &name, end).await;
            self.log.line(&format!(
                "job preparation: exited with status {exit_code} after {}",
                took(started)
            ));
            if let Some(problem) = problem {
                return Err(problem.into());
            }
        }
        self.progress.prepared = true;
        self.store();
        Ok(())
    }

    async fn mount(&mut self, layout: &Layout) -> Step<()> {
        let credentials = layout.user.credentials.clone();
        let cluster = layout.cluster_mounts(&self.assignment);
        let shared = cluster.len();
        let all = cluster
            .into_iter()
            .chain(layout.job_mounts(&self.assignment));
        for (position, mount) in all.enumerate() {
            let started = Instant::now();
            let host = Arc::clone(&self.host);
            let user = credentials.clone();
            let what = format!(
                "{} at {}",
                volumes::describe(&mount),
                mount.target.display()
            );
            let mounting = async move {
                let turn = match position < shared {
                    true => Some(host.cluster_mounts.turn(&mount.target).await),
                    false => None,
                };
                let mounted = volumes::mount(&host.helper, &mount, &user).await;
                drop(turn);
                mounted
            };
            match interruptible(&mut self.goal, mounting).await? {
                Ok(()) => self
                    .log
                    .line(&format!("mounted {what} in {}", took(started))),
                Err(error) => {
                    self.log.line(&format!(
                        "mounting {what} failed after {}: {error}",
                        took(started)
                    ));
                    return Err(Problem::mount(&self.assignment, &error).into());
                }
            }
        }
        Ok(())
    }

    async fn make_directories(&mut self, layout: &Layout) -> Step<()> {
        let started = Instant::now();
        let wanted = layout
            .share_directories()
            .into_iter()
            .map(|request| MakeDirectory {
                path: request.path,
                below: request.below,
            })
            .collect();
        let share = Arc::clone(&self.share);
        let making = async move { share.make_directories(wanted).await };
        if let Err(error) = interruptible(&mut self.goal, making).await? {
            self.log
                .line(&format!("making directories failed: {error}"));
            return Err(Problem::directory(&self.assignment, &error).into());
        }
        self.log.line(&format!(
            "made {} and {} output directories in {}",
            layout.stdouterr_dir.display(),
            layout.outputs.len(),
            took(started)
        ));
        self.progress.directories = directories(&self.assignment, layout);
        self.store();
        let directories = self.progress.directories.clone();
        self.host
            .board
            .set_files(&self.key, |files| files.directories = directories);
        Ok(())
    }

    /// Reports that this node is prepared and waits until all are.
    pub(super) async fn barrier(&mut self) -> Step<()> {
        let master = self.assignment.node_index == 0;
        if master && !self.progress.launched && launch::needs_port(&self.assignment) {
            // Also for an attempt of one node, whose ranks may be several.
            self.hold_port().await?;
        }
        let told = self.goal.borrow().assignment.phase();
        if told != AttemptPhase::Run && !self.progress.launched {
            self.set_phase(AttemptNodePhase::Prepared);
            self.log.line("prepared; waiting for the other nodes");
        }
        let started = Instant::now();
        loop {
            let assignment = Arc::clone(&self.goal.borrow_and_update().assignment);
            if assignment.phase() == AttemptPhase::Run {
                self.assignment = assignment;
                break;
            }
            let mut goal = self.goal.clone();
            let changed = async move { goal.changed().await };
            if interruptible(&mut self.goal, changed).await?.is_err() {
                std::future::pending::<()>().await;
            }
        }
        if told != AttemptPhase::Run {
            self.log
                .line(&format!("all nodes prepared after {}", took(started)));
        }
        Ok(())
    }

    /// Finds a port that is free and keeps it until the launch.
    async fn hold_port(&mut self) -> Step<()> {
        let address = usize::try_from(self.assignment.node_index)
            .ok()
            .and_then(|index| self.assignment.nodes.get(index))
            .map_or_else(String::new, |node| node.address.clone());
        // After a restart of the agent it is the port that was reported before, if nobody took it meanwhile.
        let before = u16::try_from(self.progress.status.rendezvous_port).unwrap_or_default();
        // The address may be a name, and resolving one can take long.
        let finding = tokio::task::spawn_blocking(move || {
            if before == 0 {
                return launch::free_port(&address).map(|(port, held)| (port, Some(held)));
            }
            let held = std::net::TcpListener::bind((address.as_str(), before)).ok();
            Ok((before, held))
        });
        let found = interruptible(&mut self.goal, timeout(PORT_MAX, finding)).await?;
        match found {
            Ok(Ok(Ok((port, held)))) => {
                self.progress.status.rendezvous_port = u32::from(port);
                self.held_port = held;
                Ok(())
            }
            Ok(Ok(Err(error))) => Err(self.no_port(&error)),
            Ok(Err(error)) => Err(self.no_port(&std::io::Error::other(error))),
            Err(_) => Err(self.no_port(&std::io::Error::from(std::io::ErrorKind::TimedOut))),
        }
    }

    fn no_port(&self, error: &std::io::Error) -> Interrupt {
        Problem::node(
            &self.assignment,
            "no port for the rendezvous of the ranks",
            error,
        )
        .into()
    }
}

/// Where the output directories lie, and where they can still be found once the mounts are gone.
fn directories(assignment: &Assignment, layout: &Layout) -> Vec<Directory> {
    let mounts: Vec<_> = layout
        .cluster_mounts(assignment)
        .into_iter()
        .chain(layout.job_mounts(assignment))
        .collect();
    let stdouterr = std::iter::once(("stdouterr", &layout.stdouterr_dir));
    let outputs = layout.outputs.iter().map(|o| (o.id.as_str(), &o.path));
    stdouterr
        .chain(outputs)
        .map(|(id, path)| {
            let mount = mounts
                .iter()
                .filter(|mount| path.starts_with(&mount.target))
                .max_by_key(|mount| mount.target.as_os_str().len());
            let lasting = match mount {
                Some(mount) => match (&mount.volume.source, path.strip_prefix(&mount.target)) {
                    (Some(volume::Source::HostPath(host)), Ok(rest)) => {
                        Some(Path::new(host).join(rest))
                    }
                    _ => None,
                },
                None if path.starts_with(&layout.job_root) => None,
                None => Some(path.clone()),
            };
            Directory {
                id: id.to_owned(),
                path: path.clone(),
                lasting,
            }
        })
        .collect()
}
