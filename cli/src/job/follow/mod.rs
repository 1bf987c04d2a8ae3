//! Follows a job to its end: what happens to it and why it waits on stderr, what its tasks write on stdout and stderr.
//! Streams go on over lost connections and changes of the leader (the shared client sees to that). Leaving never touches
//! the job.
//!
//! One loop takes every event, so that lines of several files never mix: [`story`] turns states of the job into sentences,
//! one [`pump`] per file brings its bytes, [`label`] says whose they are, [`lines`] keeps lines whole.

mod label;
mod lines;
mod pump;
mod story;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use trainyard_proto::v1::{
    AttemptPhase, ExecutionState, ExplainJobRequest, Job, ListJobFilesRequest,
};
use trainyard_shared::names::JobName;

pub(crate) use label::{Label, prefixes};
pub(crate) use lines::Lines;

use super::explain::waiting_text;
use super::logs::reported_files;
use super::{exit_status, flags};
use crate::api::Api;
use crate::console::Console;
use crate::error::Error;
use crate::status::{describe, is_not_found};
use pump::{Event, Key, pump};
pub(in crate::job) use story::result;
use story::{Line, Story};

/// Between two questions why a job waits, or where its files are: neither makes an event.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long such a question may take; it is asked again anyway.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the last question for files may take, when the job has ended.
const LAST_ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last bytes of a job that has ended may take without any progress.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(15);
/// Pieces of files that wait to be printed; a piece holds at most 64 KiB.
const PENDING_EVENTS: usize = 32;

/// Which runs of the job are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempts {
    /// All.
    All,
    /// The latest when the following begins, and those after it.
    Latest,
    /// This one.
    Only(u32),
}

/// What to follow and what to return.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// `None`: no files at all.
    logs: Option<Attempts>,
    /// Whether the exit status is the job's own.
    own_exit_status: bool,
}

impl Options {
    /// Everything, from the first attempt on; the job's own exit status.
    pub(crate) fn of_a_whole_job() -> Self {
        Self {
            logs: Some(Attempts::All),
            own_exit_status: true,
        }
    }

    /// What happens, without files; the job's own exit status.
    pub(crate) fn of_states_alone() -> Self {
        Self {
            logs: None,
            own_exit_status: true,
        }
    }

    /// Everything, of those attempts; exit status 0.
    pub(crate) fn of_logs(attempts: Attempts) -> Self {
        Self {
            logs: Some(attempts),
            own_exit_status: false,
        }
    }
}

/// See the head of this file.
pub(crate) struct Follow {
    api: Api,
    name: JobName,
    console: Console,
    options: Options,
    story: Story,
    /// Why it waits, as it was said last.
    explained: String,
    /// The last state of the job.
    job: Option<Job>,
    /// Every file that was found; `None` once all of it is printed.
    files: BTreeMap<Key, Option<(Label, Lines)>>,
    pumps: JoinSet<()>,
    events: mpsc::Sender<Event>,
    ended: watch::Sender<bool>,
}

impl Follow {
    /// Of this job.
    pub(crate) fn new(api: Api, name: JobName, console: Console, options: Options) -> Self {
        // The real channel is made by `run`, which holds its other end.
        let (events, _) = mpsc::channel(1);
        Self {
            api,
            name,
            console,
            options,
            story: Story::default(),
            explained: String::new(),
            job: None,
            files: BTreeMap::new(),
            pumps: JoinSet::new(),
            events,
            ended: watch::Sender::new(false),
        }
    }

    /// Follows until the job has ended and its last byte is printed, or until Ctrl-C.
    pub(crate) async fn run(mut self) -> Result<u8, Error> {
        let (events, mut arriving) = mpsc::channel(PENDING_EVENTS);
        self.events = events;
        let mut jobs = self.api.client().watch_job(self.name.to_string());
        let mut ask = interval(ASK_EVERY);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let mut last_progress = Instant::now();
        while !*self.ended.borrow() || self.is_open() {
            let ended = *self.ended.borrow();
            tokio::select! {
                _ = &mut interrupt => return Err(self.leave()),
                Some(event) = arriving.recv() => {
                    last_progress = Instant::now();
                    self.print(event)?;
                }
                job = jobs.message(), if !ended => {
                    last_progress = Instant::now();
                    match job {
                        Ok(Some(job)) => self.take(job),
                        Ok(None) => self.finish_files().await,
                        Err(status) if is_not_found(&status) && self.job.is_some() => {
                            return Err(Error::failure(format!("{} was deleted", self.name)));
                        }
                        Err(status) => return Err(status.into()),
                    }
                }
                _ = ask.tick(), if self.is_queued() || (!ended && self.lacks_files()) => {
                    if self.is_queued() {
                        self.explain().await;
                    } else {
                        self.search_files(ASK_TIMEOUT).await;
                    }
                }
                () = sleep_until(last_progress + LAST_BYTES_TIMEOUT), if ended => {
                    self.give_up_files();
                    break;
                }
            }
        }
        self.conclude()
    }

    /// A new state of the job.
    fn take(&mut self, job: Job) {
        for line in self.story.tell(&job) {
            match line {
                Line::Happened(text) => {
                    self.console.done_waiting();
                    self.say(&text);
                }
                Line::Lasts(text) => self.console.waiting(&said(&text)),
                Line::Queued => {
                    self.explained.clear();
                    self.console.waiting_on_terminal(&said("queued"));
                }
            }
        }
        self.open_files(&job);
        let ended = super::has_ended(&job);
        self.job = Some(job);
        if ended {
            self.console.done_waiting();
        }
    }

    /// Starts a pump for each file that the nodes have reported.
    fn open_files(&mut self, job: &Job) {
        let Some(attempts) = &mut self.options.logs else {
            return;
        };
        if *attempts == Attempts::Latest
            && let Some(latest) = job.attempts.last()
        {
            // From now on everything: the earlier ones are known as printed.
            for attempt in job
                .attempts
                .iter()
                .filter(|attempt| attempt.number < latest.number)
            {
                for file in reported_files(attempt) {
                    self.files.insert((attempt.number, file), None);
                }
            }
            *attempts = Attempts::All;
        }
        let wanted = *attempts;
        for attempt in &job.attempts {
            if matches!(wanted, Attempts::Only(number) if number != attempt.number) {
                continue;
            }
            for file in reported_files(attempt) {
                self.open(job, (attempt.number, file));
            }
        }
    }

    fn open(&mut self, job: &Job, key: Key) {
        if self.files.contains_key(&key) {
            return;
        }
        let Some(label) = Label::of(&key.1) else {
            return;
        };
        let of_attempt = self
            .files
            .keys()
            .filter(|(attempt, _)| *attempt == key.0)
            .map(|(_, file)| file.as_str());
        let several = prefixes(job, of_attempt.chain([key.1.as_str()]));
        if several {
            // A task that seemed to be the only one is not.
            let others = self
                .files
                .iter_mut()
                .filter(|((attempt, _), _)| *attempt == key.0);
            for (label, lines) in others.filter_map(|(_, slot)| slot.as_mut()) {
                lines.set_prefix(label.prefix(true));
            }
        }
        let lines = Lines::new(label.prefix(several));
        self.pumps.spawn(pump(
            self.api.clone(),
            self.name.to_string(),
            key.clone(),
            self.events.clone(),
            self.ended.subscribe(),
        ));
        self.files.insert(key, Some((label, lines)));
    }

    /// The job has ended. Looks once more for files of tasks when none is known: a node may have been lost before it could
    /// report them.
    async fn finish_files(&mut self) {
        if self.lacks_files() {
            self.search_files(LAST_ASK_TIMEOUT).await;
        }
        self.ended.send_replace(true);
    }

    /// The attempt that is printed now, once its tasks may write.
    fn writing_attempt(&self) -> Option<u32> {
        let wanted = self.options.logs?;
        let latest = self.job.as_ref()?.attempts.last()?;
        let may_write = match latest.phase() {
            AttemptPhase::Run | AttemptPhase::Stop | AttemptPhase::Ended => true,
            AttemptPhase::Unspecified | AttemptPhase::Prepare => false,
        };
        match wanted {
            Attempts::Only(number) if number != latest.number => Some(number),
            Attempts::Only(_) | Attempts::All | Attempts::Latest => {
                may_write.then_some(latest.number)
            }
        }
    }

    /// Whether tasks write and no file of theirs is known.
    fn lacks_files(&self) -> bool {
        self.writing_attempt().is_some_and(|attempt| {
            let mut of_attempt = self.files.keys().filter(|(number, _)| *number == attempt);
            !of_attempt.any(|(_, file)| Label::of(file).is_some_and(|label| label.is_of_task()))
        })
    }

    /// Looks for files that the nodes have not reported. They are asked for again, and no failure of following.
    async fn search_files(&mut self, patience: Duration) {
        let (Some(attempt), Some(job)) = (self.writing_attempt(), self.job.clone()) else {
            return;
        };
        let request = ListJobFilesRequest {
            name: self.name.to_string(),
            attempt,
            ..ListJobFilesRequest::default()
        };
        if let Ok(Ok(answer)) = timeout(patience, self.api.list_job_files(request)).await {
            for file in answer.files.into_iter().filter(|file| !file.is_directory) {
                self.open(&job, (attempt, file.name));
            }
        }
    }

    /// Whether a file is not printed to its end.
    fn is_open(&self) -> bool {
        self.files.values().any(Option::is_some)
    }

    fn print(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Data(key, data) => {
                if let Some(Some((label, lines))) = self.files.get_mut(&key) {
                    let ready = lines.push(&data);
                    label.write(&mut self.console, &ready)?;
                }
            }
            Event::End(key) => self.close(&key)?,
            Event::Broken(key, status) => {
                self.close(&key)?;
                self.say(&format!(
                    "the rest of {} cannot be had: {}",
                    key.1,
                    describe(&status)
                ));
            }
        }
        Ok(())
    }

    fn close(&mut self, key: &Key) -> Result<(), Error> {
        if let Some(slot) = self.files.get_mut(key)
            && let Some((label, mut lines)) = slot.take()
        {
            label.write(&mut self.console, &lines.finish())?;
        }
        Ok(())
    }

    /// Says which files are not complete.
    fn give_up_files(&mut self) {
        let open: Vec<String> = self
            .files
            .iter()
            .filter(|(_, slot)| slot.is_some())
            .map(|((_, file), _)| file.clone())
            .collect();
        self.say(&format!(
            "the end of {} did not come; look again: trainyard job logs {}",
            open.join(", "),
            flags(&self.name)
        ));
    }

    fn is_queued(&self) -> bool {
        self.job
            .as_ref()
            .is_some_and(|job| job.execution_state() == ExecutionState::Queued)
    }

    async fn explain(&mut self) {
        let request = ExplainJobRequest {
            name: self.name.to_string(),
        };
        if let Ok(Ok(explanation)) = timeout(ASK_TIMEOUT, self.api.explain_job(request)).await
            && let Some(text) = waiting_text(&explanation)
            && text != self.explained
        {
            self.say(&text);
            self.explained = text;
        }
    }

    /// A line that stays.
    fn say(&mut self, text: &str) {
        self.console.line(&said(text));
    }

    /// Ctrl-C.
    fn leave(&mut self) -> Error {
        self.console.done_waiting();
        let flags = flags(&self.name);
        self.say("the job goes on without this command");
        self.say(&format!("look again: trainyard job logs --follow {flags}"));
        self.say(&format!("end it:     trainyard job terminate {flags}"));
        Error::Interrupted
    }

    fn conclude(mut self) -> Result<u8, Error> {
        self.console.done_waiting();
        let Some(job) = self.job.take() else {
            return Err(Error::failure(format!(
                "{}: the scheduler ended the stream without a word; try again",
                self.name
            )));
        };
        for line in result(&job) {
            self.say(&line);
        }
        Ok(if self.options.own_exit_status {
            exit_status(&job)
        } else {
            0
        })
    }
}

/// What this command says among what the job writes to stderr.
fn said(text: &str) -> String {
    format!("trainyard: {text}")
}
