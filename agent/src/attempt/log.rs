//! The execution log of an attempt or of a set-up: one line per step, with its time.
//!
//! Written to the spool first, on the agent's own disk; from there brought to the stdouterr directory in the
//! background, so that a share that hangs delays no step. It must never hold values of variables or command lines:
//! they may be secret.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::clock;
use crate::share::{Share, ShareError};

/// The log.
#[derive(Debug)]
pub(crate) struct ExecutionLog {
    name: String,
    spool: PathBuf,
    file: Option<File>,
    publisher: Option<Publisher>,
}

#[derive(Debug)]
struct Publisher {
    copy: Arc<Copy>,
    written: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Copy {
    share: Arc<Share>,
    from: PathBuf,
    to: PathBuf,
    attempt: u32,
    /// Whether the file on the share is this attempt's.
    begun: AtomicBool,
}

impl Copy {
    async fn run(&self) -> Result<(), ShareError> {
        let begun = self.begun.load(Ordering::Relaxed);
        let set_aside = (!begun && self.attempt > 1).then(|| self.attempt - 1);
        self.share.copy(&self.from, &self.to, set_aside).await?;
        self.begun.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl ExecutionLog {
    /// A log in the spool directory, which is made if it is missing.
    pub(crate) fn open(spool_dir: &std::path::Path, name: String) -> ExecutionLog {
        use std::os::unix::fs::DirBuilderExt;
        let spool = spool_dir.join(&name);
        let file = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(spool_dir)
            .and_then(|()| {
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&spool)
            })
            .inspect_err(|error| warn!(path = %spool.display(), %error, "no execution log"))
            .ok();
        ExecutionLog {
            name,
            spool,
            file,
            publisher: None,
        }
    }

    /// Its name in the stdouterr directory.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, text: &str) {
        let time = clock::rfc3339(&clock::wall());
        // A message of a program may have several lines; each stands under the same time.
        let text = text.trim_end().replace('\n', &format!("\n{time} | "));
        debug!("{text}");
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(format!("{time} {text}\n").as_bytes())
        {
            warn!(path = %self.spool.display(), %error, "the execution log cannot be written");
            self.file = None;
        }
        if let Some(publisher) = &self.publisher {
            publisher.written.notify_one();
        }
    }

    /// From now on lines are brought to the stdouterr directory, too, those written already included.
    pub(crate) fn publish(
        &mut self,
        share: &Arc<Share>,
        directory: &std::path::Path,
        attempt: u32,
        begun: bool,
    ) {
        let copy = Arc::new(Copy {
            share: Arc::clone(share),
            from: self.spool.clone(),
            to: directory.join(&self.name),
            attempt,
            begun: AtomicBool::new(begun),
        });
        let written = Arc::new(Notify::new());
        written.notify_one();
        let task = tokio::spawn(copy_each(Arc::clone(&copy), Arc::clone(&written)));
        self.publisher = Some(Publisher {
            copy,
            written,
            task,
        });
    }

    /// Whether the file on the share is this attempt's.
    pub(crate) fn is_on_share(&self) -> bool {
        self.publisher
            .as_ref()
            .is_some_and(|publisher| publisher.copy.begun.load(Ordering::Relaxed))
    }

    /// Brings the last lines to the stdouterr directory; what is written later stays in the spool.
    pub(crate) async fn finish(&mut self) -> Result<(), ShareError> {
        let Some(publisher) = self.publisher.take() else {
            return Ok(());
        };
        publisher.task.abort();
        publisher.copy.run().await
    }
}

impl Drop for ExecutionLog {
    fn drop(&mut self) {
        if let Some(publisher) = &self.publisher {
            publisher.task.abort();
        }
    }
}

/// How long a helper is kept for the next line: a task that runs for days needs none meanwhile.
const HELPER_KEPT: Duration = Duration::from_secs(2);

async fn copy_each(copy: Arc<Copy>, written: Arc<Notify>) {
    loop {
        if tokio::time::timeout(HELPER_KEPT, written.notified())
            .await
            .is_err()
        {
            copy.share.rest().await;
            written.notified().await;
        }
        if let Err(error) = copy.run().await {
            warn!(to = %copy.to.display(), %error, "the execution log is not on the share");
        }
    }
}
