//! The command `trainyard` as its users run it: to its end, or in the background while a test goes on.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Cluster;
use super::binaries::{Binary, binary};
use crate::error::{Context, Result, RigError};
use crate::process::wait_until;

/// How long any command may take. Tests never assert how fast one is.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// How many lines of standard error a refusal may take: a sentence, or one for each fault of a file, and a hint.
const MOST_ERROR_LINES: usize = 8;

/// How a program ended, and what it wrote.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit status as a shell sees it.
    pub status: i32,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// Its standard output if it ended with 0; else an error that quotes all.
    pub fn success(self) -> Result<String> {
        if self.status == 0 {
            return Ok(self.stdout);
        }
        Err(RigError::new(format!("unexpected end: {self:#?}")))
    }

    /// Checks that it failed as programs of Trainyard fail: with this status, nothing on standard output, one clear sentence
    /// on standard error that contains all these words, and no trace of a panic.
    pub fn refused(&self, status: i32, words: &[&str]) -> Result<()> {
        let text = &self.stderr;
        let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
        let fault = if self.status != status {
            format!("the status is not {status}")
        } else if !missing.is_empty() {
            format!("these words are missing: {missing:?}")
        } else if text.contains("panicked") || text.contains("RUST_BACKTRACE") {
            "it panicked".to_owned()
        } else if !self.stdout.is_empty() {
            "standard output is for results".to_owned()
        } else if text.lines().count() > MOST_ERROR_LINES {
            "nobody reads that many lines".to_owned()
        } else {
            return Ok(());
        };
        Err(RigError::new(format!("{fault}: {self:#?}")))
    }
}

/// Runs a program to its end, whatever its status.
pub fn run(command: Command) -> Result<Finished> {
    Following::start(command)?.finish(COMMAND_TIMEOUT)
}

impl Cluster {
    /// Runs `trainyard ARGUMENTS…` as its users do and returns its standard output; any status but 0 is an error.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        self.attempt(arguments)?.success()
    }

    /// Runs `trainyard ARGUMENTS…` to its end, whatever its status.
    pub fn attempt<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Finished> {
        let mut command = self.raw_command()?;
        command.args(arguments);
        run(command)
    }

    /// Starts `trainyard ARGUMENTS…` and lets it run beside the test.
    pub fn background<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Following> {
        let mut command = self.raw_command()?;
        command.args(arguments);
        Following::start(command)
    }

    /// `trainyard`, set up for this cluster.
    pub fn raw_command(&self) -> Result<Command> {
        let mut command = Command::new(binary(Binary::Command)?);
        command
            .env("TRAINYARD_CONFIG", self.client_config())
            .current_dir(self.folder());
        Ok(command)
    }
}

/// A program that runs beside the test, with every line it wrote so far. Dropping it kills it.
pub struct Following {
    child: Child,
    shown: String,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Output {
    written: Mutex<Written>,
    changed: Condvar,
}

#[derive(Default)]
struct Written {
    stdout: String,
    stderr: String,
    /// How many of the two streams have ended.
    ended: u8,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, from: impl Read, stream: fn(&mut Written) -> &mut String) {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            let mut written = self.lock();
            let text = stream(&mut written);
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
            drop(written);
            self.changed.notify_all();
        }
        self.lock().ended += 1;
        self.changed.notify_all();
    }
}

impl Following {
    fn start(mut command: Command) -> Result<Self> {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .cannot(format_args!("start {shown}"))?;
        let output = Arc::new(Output::default());
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            let output = Arc::clone(&output);
            readers.push(std::thread::spawn(move || {
                output.read(pipe, |written| &mut written.stdout)
            }));
        }
        if let Some(pipe) = child.stderr.take() {
            let output = Arc::clone(&output);
            readers.push(std::thread::spawn(move || {
                output.read(pipe, |written| &mut written.stderr)
            }));
        }
        Ok(Self {
            child,
            shown,
            output,
            readers,
        })
    }

    /// Waits until it has written a line to standard output that contains `text`, and returns that line.
    pub fn wait_line(&mut self, text: &str) -> Result<String> {
        self.wait_for(text, |written| &written.stdout)
    }

    /// Waits until it has written a line to standard error that contains `text`, and returns that line.
    pub fn wait_error_line(&mut self, text: &str) -> Result<String> {
        self.wait_for(text, |written| &written.stderr)
    }

    fn wait_for(&mut self, text: &str, stream: fn(&Written) -> &String) -> Result<String> {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let mut written = self.output.lock();
        loop {
            let found = stream(&written).lines().find(|line| line.contains(text));
            if let Some(line) = found {
                return Ok(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || written.ended == 2 {
                return Err(RigError::new(format!(
                    "{} never wrote '{text}'\n--- stdout\n{}--- stderr\n{}---",
                    self.shown, written.stdout, written.stderr
                )));
            }
            let waited = self.output.changed.wait_timeout(written, left);
            written = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What it has written to standard output so far, in whole lines.
    pub fn stdout(&self) -> String {
        self.output.lock().stdout.clone()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended; its output is complete then.
    pub fn finish(mut self, timeout: Duration) -> Result<Finished> {
        let child = &mut self.child;
        let waited = wait_until("it ended", timeout, || {
            child.try_wait().cannot("wait for a process")
        });
        let status = match waited {
            Ok(status) => status,
            Err(error) => {
                let written = self.output.lock();
                return Err(RigError::new(format!(
                    "{}: {error}\n--- stdout\n{}--- stderr\n{}---",
                    self.shown, written.stdout, written.stderr
                )));
            }
        };
        for reader in self.readers.drain(..) {
            reader
                .join()
                .map_err(|_| RigError::new("a reader of output failed"))?;
        }
        let written = std::mem::take(&mut *self.output.lock());
        let code = std::os::unix::process::ExitStatusExt::signal(&status).map(|n| 128 + n);
        Ok(Finished {
            status: status.code().or(code).unwrap_or(-1),
            stdout: written.stdout,
            stderr: written.stderr,
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
