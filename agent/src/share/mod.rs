//! The agent's arm into the directories of a job: helper processes that run as the job's user, each call with a
//! deadline. A helper that does not answer is killed and abandoned, never waited for.
//!
//! The agent itself must never touch a path of a job: see [`helper`] for the other side.

pub mod beneath;
mod follow;
pub mod helper;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use helper::{Answer, Operation, Request};
pub use helper::{Entry, MakeDirectory, main};

use crate::confine::Credentials;

/// Why the share could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It did not answer.
    #[error("{what}: no answer within {} s; the storage hangs", deadline.as_secs())]
    Deadline {
        /// What was asked, with the path.
        what: String,
        /// How long the agent waited.
        deadline: Duration,
    },
    /// It is not there.
    #[error("{0}")]
    Missing(String),
    /// It refused.
    #[error("{0}")]
    Failed(String),
    /// The helper itself failed.
    #[error("cannot run the helper process: {0}")]
    Helper(#[from] std::io::Error),
}

/// Starts helpers.
#[derive(Debug, Clone)]
pub struct ShareProgram {
    /// This program: `/proc/self/exe`, which stays the right one while an upgrade replaces the file.
    pub program: PathBuf,
    /// Longest that one call may take.
    pub deadline: Duration,
}

/// One attempt's helper, started when first needed. Calls are answered one after the other.
#[derive(Debug)]
pub struct Share {
    program: ShareProgram,
    credentials: Credentials,
    running: Mutex<Option<Conversation>>,
}

#[derive(Debug)]
struct Conversation {
    // Kills the helper when dropped.
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// A file that a helper sends.
#[derive(Debug)]
pub struct Sending {
    // Kills the helper when dropped.
    _child: Child,
    input: Option<ChildStdin>,
    /// The bytes.
    pub output: BufReader<ChildStdout>,
}

impl Sending {
    /// Tells the helper that the writer has ended: it sends the rest and ends.
    pub fn writer_ended(&mut self) {
        self.input = None;
    }
}

impl Share {
    /// For the user of a job.
    #[must_use]
    pub fn new(program: ShareProgram, credentials: Credentials) -> Share {
        Share {
            program,
            credentials,
            running: Mutex::new(None),
        }
    }

    /// Starts the helper ahead of its first call, so that its start is no part of the way to the launch.
    pub async fn wake(&self) {
        let mut running = self.running.lock().await;
        if running.is_none() {
            // A failure shows at the first call.
            *running = self.program.start().ok();
        }
    }

    /// Makes directories, in order, with their parents.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub async fn make_directories(
        &self,
        directories: Vec<MakeDirectory>,
    ) -> Result<(), ShareError> {
        let Some(first) = directories.first() else {
            return Ok(());
        };
        let what = format!("making {}", first.path.display());
        self.call(what, Operation::Make { directories }).await
    }

    /// Appends to `to` what `from`, on the agent's disk, has beyond it.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub async fn copy(
        &self,
        from: &Path,
        to: &Path,
        set_aside: Option<u32>,
    ) -> Result<(), ShareError> {
        let what = format!("writing {}", to.display());
        let operation = Operation::Copy {
            from: from.to_owned(),
            to: to.to_owned(),
            set_aside,
        };
        self.call(what, operation).await
    }

    /// Ends the helper until the next call: an attempt that only runs needs none.
    pub async fn rest(&self) {
        *self.running.lock().await = None;
    }

    async fn call(&self, what: String, operation: Operation) -> Result<(), ShareError> {
        let mut running = self.running.lock().await;
        // Taken out, so that a call that fails or is cancelled midway takes the helper with it: its answer would
        // be taken for that of the next call.
        let mut conversation = match running.take() {
            Some(conversation) => conversation,
            None => self.program.start()?,
        };
        let request = Request {
            credentials: self.credentials.clone(),
            operation,
        };
        let exchange = conversation.exchange(&request);
        let answer = match tokio::time::timeout(self.program.deadline, exchange).await {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(ShareError::Deadline {
                    what,
                    deadline: self.program.deadline,
                });
            }
        };
        *running = Some(conversation);
        drop(running);
        done(answer).map(|_| ())
    }
}

impl ShareProgram {
    /// Lists a directory of a job.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub async fn list(
        &self,
        credentials: &Credentials,
        root: &Path,
        directory: &Path,
    ) -> Result<Vec<Entry>, ShareError> {
        let operation = Operation::List {
            root: root.to_owned(),
            directory: directory.to_owned(),
        };
        let what = format!("listing {}", root.join(directory).display());
        let (_, answer) = self.ask(credentials, operation, what).await?;
        done(answer)
    }

    /// Opens a file of a job for reading.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub async fn read(
        &self,
        credentials: &Credentials,
        root: &Path,
        path: &Path,
        offset: u64,
        follow: bool,
    ) -> Result<Sending, ShareError> {
        let operation = Operation::Read {
            root: root.to_owned(),
            path: path.to_owned(),
            offset,
            follow,
        };
        let what = format!("reading {}", root.join(path).display());
        let (conversation, answer) = self.ask(credentials, operation, what).await?;
        done(answer)?;
        Ok(Sending {
            _child: conversation._child,
            input: Some(conversation.input),
            output: conversation.output,
        })
    }

    async fn ask(
        &self,
        credentials: &Credentials,
        operation: Operation,
        what: String,
    ) -> Result<(Conversation, Answer), ShareError> {
        let request = Request {
            credentials: credentials.clone(),
            operation,
        };
        let mut conversation = self.start()?;
        match tokio::time::timeout(self.deadline, conversation.exchange(&request)).await {
            Ok(answer) => Ok((conversation, answer?)),
            Err(_) => Err(ShareError::Deadline {
                what,
                deadline: self.deadline,
            }),
        }
    }

    fn start(&self) -> Result<Conversation, ShareError> {
        let mut child = Command::new(&self.program)
            .arg("share")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into());
        };
        Ok(Conversation {
            _child: child,
            input,
            output: BufReader::with_capacity(64 * 1024, output),
        })
    }
}

impl Conversation {
    async fn exchange(&mut self, request: &Request) -> std::io::Result<Answer> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.input.write_all(&line).await?;
        let mut answer = String::new();
        if self.output.read_line(&mut answer).await? == 0 {
            return Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "it ended without an answer",
            ));
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

fn done(answer: Answer) -> Result<Vec<Entry>, ShareError> {
    match answer {
        Answer::Done { entries } => Ok(entries),
        Answer::Missing { message } => Err(ShareError::Missing(message)),
        Answer::Failed { message } => Err(ShareError::Failed(message)),
    }
}
