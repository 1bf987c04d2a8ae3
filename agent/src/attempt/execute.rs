//! The launch of a node's tasks, and what their ends mean.
//!
//! Starting a task is never cancelled midway: a task that was started is known.

use std::time::{Duration, Instant, UNIX_EPOCH};

use prost_types::Timestamp;
use trainyard_proto::v1::AttemptNodePhase;

use super::problem::Problem;
use super::runner::{Runner, Step, interruptible, took};
use super::tasks::End;
use crate::clock;
use crate::launch::{self, TaskPlan};
use crate::layout::Layout;
use crate::shim::{self, ExitReason};

impl Runner {
    /// Starts the tasks of this node, or finds them running. Returns their plans.
    pub(super) async fn launch(&mut self, layout: &Layout) -> Step<Vec<TaskPlan>> {
        let mut facts = self.host.facts.clone();
        facts.default_python = launch::default_python(&facts.path);
        facts.rendezvous_port =
            u16::try_from(self.progress.status.rendezvous_port).unwrap_or_default();
        let plan = launch::plan(&self.assignment, layout, &facts)
            .map_err(|error| Problem::plan(&self.assignment, &error))?;
        // Named before on the assumption of a port; from here on by what is launched.
        let preparation = launch::preparation(&self.assignment, layout);
        self.name_files(preparation.iter().chain(&plan.tasks));
        if !self.progress.launched {
            let (helper, preflight) = (self.host.helper.clone(), plan.preflight.clone());
            let credentials = layout.user.credentials.clone();
            let checking = async move { helper.preflight(&preflight, &credentials).await };
            if let Err(error) = interruptible(&mut self.goal, checking).await? {
                self.log.line(&format!("launch refused: {error}"));
                return Err(Problem::launch(&self.assignment, error.to_string()).into());
            }
            self.progress.launched = true;
            self.store();
        }
        self.held_port = None;
        let started = Instant::now();
        for task in &plan.tasks {
            self.start(layout, task).await?;
        }
        if !plan.tasks.is_empty() {
            self.set_phase(AttemptNodePhase::Running);
            let names: Vec<&str> = plan.tasks.iter().map(|task| task.name.as_str()).collect();
            self.log.line(&format!(
                "launched {} in {}",
                names.join(", "),
                took(started)
            ));
        }
        Ok(plan.tasks)
    }

    /// Starts one task, unless an earlier life of the agent did.
    pub(super) async fn start(&mut self, layout: &Layout, plan: &TaskPlan) -> Step<()> {
        let dir = layout.task_dir(&plan.name);
        if self.resumed && dir.exists() {
            let adopted = shim::adopt(&dir).await.map_err(|error| {
                Problem::launch(&self.assignment, format!("task {}: {error}", plan.name))
            })?;
            if self.tasks.adopt(&plan.name, adopted) {
                self.log
                    .line(&format!("task {}: taken over again", plan.name));
                return Ok(());
            }
            std::fs::remove_dir_all(&dir)
                .map_err(|error| Problem::node(&self.assignment, "the state of a task", &error))?;
        }
        let options = launch::SpecOptions {
            lease_file: Some(self.host.lease_file.clone()),
            stop_grace_ms: self.assignment.stop_grace_ms,
        };
        let spec = plan.spec(layout, &self.host.confinement, &options);
        match shim::spawn(self.host.helper.program(), &spec).await {
            Ok(handle) => {
                self.tasks.add(&plan.name, handle);
                Ok(())
            }
            Err(error) => {
                self.log
                    .line(&format!("task {} cannot be started: {error}", plan.name));
                let message = format!("task {}: {error}", plan.name);
                Err(Problem::launch(&self.assignment, message).into())
            }
        }
    }

    /// Waits for the tasks. The first that fails ends the others and is the cause.
    pub(super) async fn collect(&mut self, plans: &[TaskPlan]) -> Step<()> {
        while let Some((name, end)) = self.interruptible_end().await? {
            let Some(plan) = plans.iter().find(|plan| plan.name == name) else {
                continue;
            };
            let (exit_code, problem) = self.judge(plan, &name, end).await;
            self.log
                .line(&format!("task {name} exited with status {exit_code}"));
            if let Some(problem) = problem {
                if self.tasks.len() > 0 {
                    self.log.line("ending the other tasks of this node");
                    return Err(problem.into());
                }
                return self.exited(exit_code, Some(problem));
            }
        }
        self.exited(0, None)
    }

    fn exited(&mut self, exit_code: i32, problem: Option<Problem>) -> Step<()> {
        match problem {
            // Not the task's own doing: no exit status of the job.
            Some(problem) if problem.exit_code.is_none() => return Err(problem.into()),
            Some(problem) => {
                self.progress.status.errors = vec![(&problem.error).into()];
                self.progress.status.failure_time =
                    Some((problem.time.seconds, problem.time.nanos));
            }
            None => {}
        }
        self.progress.status.exit_code = Some(exit_code);
        self.set_phase(AttemptNodePhase::Exited);
        Ok(())
    }

    /// The next end of a task; interruptible.
    pub(super) async fn interruptible_end(&mut self) -> Step<Option<(String, End)>> {
        let tasks = &mut self.tasks;
        interruptible(&mut self.goal, tasks.next()).await
    }

    /// What an end means: the exit status, and the problem unless it was 0.
    pub(super) async fn judge(
        &mut self,
        plan: &TaskPlan,
        name: &str,
        end: End,
    ) -> (i32, Option<Problem>) {
        self.close_files(plan, &end).await;
        let record = match end {
            Ok(record) => record,
            Err(lost) => {
                return (-1, Some(Problem::task_lost(&self.assignment, name, &lost)));
            }
        };
        self.left.extend(&record.leftover);
        let time = millis(record.time_ms);
        let problem = match record.reason {
            ExitReason::Lease => Some(Problem::node_lost(
                &self.assignment,
                "the node was cut off from the schedulers for longer than its lease, so its tasks ended",
            )),
            ExitReason::NotStarted => Some(Problem::launch(
                &self.assignment,
                format!("task {name}: {}", record.message),
            )),
            ExitReason::Exited | ExitReason::Stopped | ExitReason::Killed => {
                (record.exit_code != 0).then(|| {
                    if self.progress.prepared {
                        Problem::job_failed(
                            &self.assignment,
                            name,
                            &plan.stderr,
                            record.exit_code,
                            time,
                        )
                    } else {
                        Problem::preparation_failed(
                            &self.assignment,
                            &plan.stderr,
                            record.exit_code,
                            time,
                        )
                    }
                })
            }
        };
        (record.exit_code, problem)
    }

    /// Tells the readers of a task's files that nothing more comes, and brings to the share what its shim could not.
    async fn close_files(&mut self, plan: &TaskPlan, end: &End) {
        let names = [&plan.stdout, &plan.stderr];
        for name in names {
            if !self.progress.closed_files.contains(name) {
                self.progress.closed_files.push(name.clone());
            }
        }
        self.host.board.set_files(&self.key, |files| {
            files.closed.extend(names.into_iter().cloned());
        });
        let missing = match end {
            Ok(record) => record.share_error.clone(),
            Err(_) => Some("the task's supervisor is gone".to_owned()),
        };
        let (Some(missing), Some(layout)) = (missing, &self.layout) else {
            return;
        };
        self.log.line(&format!(
            "task {}: output on the share: {missing}",
            plan.name
        ));
        for name in names {
            let (from, to) = (layout.spool(name), layout.stdouterr_dir.join(name));
            if let Err(error) = self.share.copy(&from, &to, None).await {
                self.log
                    .line(&format!("{name} stays incomplete on the share: {error}"));
                // A share that hangs would cost the deadline for each file.
                return;
            }
        }
    }
}

fn millis(time_ms: u64) -> Timestamp {
    clock::wall_at(UNIX_EPOCH + Duration::from_millis(time_ms))
}
