//! Reading a file of the agent's spool, with or without following it.
//!
//! Order matters: whether the writer has ended is asked before the last read, so that no byte is missed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use prost::bytes::Bytes;
use tokio::sync::watch;
use tonic::Status;

use super::{Out, Watcher};
use crate::board::AttemptFiles;
use crate::share::beneath;

/// Bytes per read.
const BLOCK: usize = 256 * 1024;

/// One reader.
pub(super) struct Reading {
    pub(super) files: watch::Receiver<AttemptFiles>,
    pub(super) name: String,
    pub(super) follow: bool,
    pub(super) watcher: Watcher,
}

impl Reading {
    /// Whether the file is there.
    pub(super) async fn exists(&self) -> bool {
        let path = self.spool().join(&self.name);
        tokio::fs::symlink_metadata(path).await.is_ok()
    }

    fn spool(&self) -> PathBuf {
        self.files.borrow().spool.clone()
    }

    /// Sends the file.
    pub(super) async fn run(mut self, mut out: Out) {
        if let Err(error) = self.send(&mut out).await {
            let message = format!("reading {}: {error}", self.name);
            let status = match error.kind() {
                io::ErrorKind::NotFound => Status::not_found(message),
                _ => Status::internal(message),
            };
            out.fail(status).await;
        }
    }

    async fn send(&mut self, out: &mut Out) -> io::Result<()> {
        let spool = self.spool();
        let mut writes = if self.follow {
            Some(self.watcher.subscribe(&spool)?)
        } else {
            None
        };
        let mut file: Option<Arc<File>> = None;
        loop {
            // An attempt that is taken off the board has no writer any more.
            let gone = self.files.has_changed().is_err();
            let ended =
                !self.follow || gone || self.files.borrow_and_update().is_closed(&self.name);
            if let Some(writes) = &mut writes {
                writes.mark_unchanged();
            }
            if file.is_none() {
                match self.open(&spool).await {
                    Ok(opened) => file = Some(Arc::new(opened)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound && !ended => {}
                    Err(error) => return Err(error),
                }
            }
            while let Some(open) = &file {
                let bytes = read(Arc::clone(open), out.offset).await?;
                if bytes.is_empty() {
                    break;
                }
                if !out.send(bytes).await {
                    return Ok(());
                }
            }
            if ended {
                return Ok(());
            }
            let Some(writes) = &mut writes else {
                return Ok(());
            };
            tokio::select! {
                woken = writes.changed() => if woken.is_err() {
                    return Err(io::Error::other("the kernel no longer tells of writes"));
                },
                _ = self.files.changed() => {}
                () = out.sender.closed() => return Ok(()),
            }
        }
    }

    async fn open(&self, spool: &std::path::Path) -> io::Result<File> {
        let (spool, name) = (spool.to_owned(), PathBuf::from(&self.name));
        tokio::task::spawn_blocking(move || beneath::open_file(&beneath::open_root(&spool)?, &name))
            .await
            .map_err(io::Error::other)?
    }
}

async fn read(file: Arc<File>, offset: u64) -> io::Result<Bytes> {
    tokio::task::spawn_blocking(move || {
        let mut block = vec![0; BLOCK];
        let count = file.read_at(&mut block, offset)?;
        block.truncate(count);
        Ok(Bytes::from(block))
    })
    .await
    .map_err(io::Error::other)?
}
