//! The setup task: started or taken over, judged, ended.
//!
//! Starting it is never cancelled midway: one that was started is known.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use tracing::warn;

use super::keeper::{CLEAN_RETRY_MAX, CLEAN_RETRY_MIN, Interrupt, Keeper, Step};
use super::plan::{Run, Task};
use super::record::problem;
use crate::attempt::problem::signal_words;
use crate::record::Problem;
use crate::shim::{self, Adopted, ExitReason, ExitRecord, TaskLost};

/// How much of the end of stderr an error quotes.
const QUOTED_BYTES: u64 = 2_048;
const QUOTED_LINES: usize = 10;

impl Keeper {
    pub(super) async fn make_directories(&mut self, task: &Task) -> Step<()> {
        let run = self.record.as_ref().map_or(1, |r| r.progress.run);
        let run = Run::new(&self.host, run);
        for dir in [run.spool(), run.work()] {
            let made = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir);
            made.map_err(|error| {
                let message = self.on_node(&format!("{}: {error}", dir.display()));
                problem("NodeError", message, [("node", self.node_name())])
            })?;
        }
        let (share, wanted) = (Arc::clone(&self.share), vec![task.directory.clone()]);
        let making = async move { share.make_directories(wanted).await };
        self.interruptible(making).await?.map_err(|error| {
            let message = self.on_node(&format!(
                "the directory of the setup task's logs cannot be made: {error}. Choose a stdOutErrPathPrefix where the \
                 task user of the node may write"
            ));
            problem("OutputDirectoryError", message, [("node", self.node_name())])
        })?;
        Ok(())
    }

    /// Starts the task, or finds it again, and waits for its end.
    pub(super) async fn run_task(
        &mut self,
        task: &Task,
        resumed: bool,
    ) -> Step<Result<ExitRecord, TaskLost>> {
        if self.running.is_none() && resumed {
            let adopted = shim::adopt(&task.spec.dir).await;
            match adopted
                .map_err(|error| self.task_failed(&error.to_string(), None, String::new()))?
            {
                Adopted::Running(handle) => {
                    self.line("agent restarted; the setup task is taken over again");
                    self.running = Some(handle);
                }
                Adopted::Ended(record) => return Ok(Ok(record)),
                Adopted::Lost(lost) => return Ok(Err(lost)),
                Adopted::NeverStarted => {}
            }
        }
        if self.running.is_none() {
            let _ = std::fs::remove_dir_all(&task.spec.dir);
            self.change(|progress| progress.started = true);
            let spawned = shim::spawn(self.host.helper.program(), &task.spec).await;
            let handle = spawned
                .map_err(|error| self.task_failed(&error.to_string(), None, String::new()))?;
            self.line("setup task: started");
            self.running = Some(handle);
        }
        let Some(mut handle) = self.running.take() else {
            return Err(Interrupt::Superseded);
        };
        let superseded = self.superseded();
        let ended = tokio::select! {
            biased;
            () = superseded => None,
            ended = handle.wait() => Some(ended),
        };
        match ended {
            Some(ended) => Ok(ended),
            None => {
                self.running = Some(handle);
                Err(Interrupt::Superseded)
            }
        }
    }

    pub(super) async fn judge(
        &mut self,
        task: &Task,
        end: Result<ExitRecord, TaskLost>,
    ) -> Step<()> {
        let record = match end {
            Ok(record) => record,
            Err(lost) => return Err(self.task_failed(&lost.message, None, String::new()).into()),
        };
        if record.reason == ExitReason::NotStarted {
            return Err(self
                .task_failed(&record.message, None, String::new())
                .into());
        }
        let code = record.exit_code;
        self.line(&format!("setup task: exited with status {code}"));
        self.change(|progress| progress.exit_code = Some(code));
        if let Some(missing) = &record.share_error {
            self.line(&format!("output on the share: {missing}"));
            for stream in [&task.spec.stdout, &task.spec.stderr] {
                if let Some(to) = &stream.share
                    && let Err(error) = self.share.copy(&stream.spool, to, None).await
                {
                    self.line(&format!("{} stays incomplete: {error}", to.display()));
                    break;
                }
            }
        }
        self.outlast(&record).await;
        if code == 0 {
            return Ok(());
        }
        let quoted = last_lines(&task.spec.stderr.spool);
        let last = quoted.lines().next_back().unwrap_or_default();
        let said = if last.is_empty() {
            String::new()
        } else {
            format!(": {last}")
        };
        let message = format!(
            "the setup task exited with status {code}{}{said}; see {} in {}",
            signal_words(code),
            task.stderr,
            task.directory.path.display()
        );
        Err(self.task_failed(&message, Some(code), quoted).into())
    }

    /// Ends the setup task, if one may run, and waits until nothing of it is left.
    pub(super) async fn end_task(&mut self) {
        let Some(record) = &self.record else { return };
        let same_boot = record.progress.boot_id == self.host.boot_id;
        let started = record.progress.started && same_boot;
        if self.running.is_none() && started {
            let dir = Run::new(&self.host, record.progress.run).task();
            match shim::adopt(&dir).await {
                Ok(Adopted::Running(handle)) => self.running = Some(handle),
                Ok(_) => {}
                Err(error) => warn!(%error, "what became of the setup task is unknown"),
            }
        }
        if let Some(mut handle) = self.running.take() {
            self.line("the setup task is not wanted any more; ending it");
            handle.stop();
            match handle.wait().await {
                Ok(record) => self.outlast(&record).await,
                Err(lost) => self.line(&lost.message),
            }
        }
    }

    /// Waits for processes that SIGKILL has not ended yet.
    async fn outlast(&mut self, record: &ExitRecord) {
        let mut pause = CLEAN_RETRY_MIN;
        let lives = || record.leftover.iter().any(|p| shim::alive(p.pid, p.start));
        if lives() {
            self.line("processes of the setup task hang in the kernel; waiting for them");
        }
        while lives() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(CLEAN_RETRY_MAX);
        }
    }

    pub(super) fn task_failed(
        &self,
        message: &str,
        exit_code: Option<i32>,
        stderr: String,
    ) -> Problem {
        let mut details = vec![("node", self.node_name())];
        details.extend(exit_code.map(|code| ("exitCode", code.to_string())));
        if !stderr.is_empty() {
            details.push(("stderr", stderr));
        }
        problem("NodeSetupTaskFailed", self.on_node(message), details)
    }
}

/// The last lines of a file on the agent's own disk.
fn last_lines(path: &Path) -> String {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(QUOTED_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(QUOTED_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
}
