//! What people see while something lasts: lines on stderr, and on a terminal a spinner below them. Also the way for
//! bytes of log files to stdout and stderr, so that the spinner never stands in the middle of a line. Must never panic
//! when a pipe is closed.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Error;

/// Between two turns of the spinner.
const TICK_EVERY: Duration = Duration::from_millis(120);

/// See the head of this file.
pub(crate) struct Console {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    is_terminal: bool,
    /// There is one only while something lasts: else it would be drawn again after each line.
    spinner: Option<ProgressBar>,
    /// The last thing waited for, so that a pipe gets a line only when it changes.
    waiting: String,
}

impl Console {
    /// On this process's stdout and stderr.
    pub(crate) fn standard() -> Self {
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            is_terminal: io::stderr().is_terminal(),
            spinner: None,
            waiting: String::new(),
        }
    }

    /// On these writers, without a terminal.
    #[cfg(test)]
    pub(crate) fn plain(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Self {
        Self {
            stdout,
            stderr,
            is_terminal: false,
            spinner: None,
            waiting: String::new(),
        }
    }

    /// A line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        let stderr = &mut self.stderr;
        suspended(self.spinner.as_ref(), || {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(stderr, "{text}");
            let _ = stderr.flush();
        });
    }

    /// Something lasts: the spinner says what; without a terminal a line does, when it is another thing than last time.
    pub(crate) fn waiting(&mut self, text: &str) {
        if self.waiting == text {
            return;
        }
        text.clone_into(&mut self.waiting);
        if self.is_terminal {
            let spinner = self.spinner.get_or_insert_with(new_spinner);
            spinner.set_message(text.to_owned());
            spinner.enable_steady_tick(TICK_EVERY);
        } else {
            self.line(text);
        }
    }

    /// As [`waiting`](Self::waiting), of something that other lines say: on a terminal only.
    pub(crate) fn waiting_on_terminal(&mut self, text: &str) {
        if self.is_terminal {
            self.waiting(text);
        }
    }

    /// Nothing lasts any more.
    pub(crate) fn done_waiting(&mut self) {
        self.waiting.clear();
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// Bytes for stdout. Fails when they cannot be written, as when the reader has gone.
    pub(crate) fn out(&mut self, data: &[u8]) -> Result<(), Error> {
        let stdout = &mut self.stdout;
        suspended(self.spinner.as_ref(), || {
            stdout.write_all(data)?;
            stdout.flush()
        })?;
        Ok(())
    }

    /// Bytes for stderr. Fails when they cannot be written.
    pub(crate) fn err(&mut self, data: &[u8]) -> Result<(), Error> {
        let stderr = &mut self.stderr;
        suspended(self.spinner.as_ref(), || {
            stderr.write_all(data)?;
            stderr.flush()
        })?;
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.done_waiting();
    }
}

fn new_spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner
}

fn suspended<T>(spinner: Option<&ProgressBar>, write: impl FnOnce() -> T) -> T {
    match spinner {
        Some(spinner) => spinner.suspend(write),
        None => write(),
    }
}

/// Prints a line to stderr: a warning or a note.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Asks before something is deleted. True without asking when `yes` is given or there is no terminal to ask on.
pub(crate) fn confirm(yes: bool, question: &str) -> Result<bool, Error> {
    if yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

/// Asks; an error that ends the command when the answer is no.
pub(crate) fn confirm_delete(yes: bool, name: &str) -> Result<(), Error> {
    if confirm(yes, &format!("Delete {name}?"))? {
        Ok(())
    } else {
        Err(Error::failure(format!("{name} was not deleted")))
    }
}
