//! NodeFileService: what schedulers read from this node on behalf of people who follow a job.
//!
//! Files that tasks write to the stdouterr directory are read from the agent's spool, which no file server can
//! hang; everything else through helper processes ([`crate::share`]). Members only. A reader is never waited for by
//! a task: both know only the file. Nothing outside the directories of the attempt that was asked for is ever read.

mod spool;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use trainyard_proto::v1::node_file_service_server::NodeFileService;
use trainyard_proto::v1::{
    FileChunk, FileInfo, ListNodeFilesRequest, ListNodeFilesResponse, ReadNodeFileRequest,
};
use trainyard_shared::tls::{Role, peer_role};

use crate::board::{AttemptFiles, Board};
use crate::reconcile::AttemptKey;
use crate::share::{Entry, Sending, ShareError, ShareProgram, beneath, helper};
pub use watch::Watcher;

/// Bytes of a chunk at most.
pub const CHUNK_MAX: usize = 64 * 1024;
/// Chunks on their way to one reader; the file itself is the queue behind them.
const CHUNKS_QUEUED: usize = 4;
/// Readers at a time, over all files.
const READERS_MAX: usize = 512;
/// Helper processes at a time.
const HELPERS_MAX: usize = 32;
/// The reserved id of the directory of logs.
const STDOUTERR: &str = "stdouterr";

/// The service.
pub struct Files {
    node: String,
    cluster_id: String,
    board: Board,
    share: ShareProgram,
    watcher: Watcher,
    readers: Arc<Semaphore>,
    helpers: Arc<Semaphore>,
}

type Chunks = ReceiverStream<Result<FileChunk, Status>>;

impl Files {
    /// `node`: `nodes/NAME`. `cluster_id`: the group of schedulers whose members may call.
    #[must_use]
    pub fn new(
        node: String,
        cluster_id: String,
        board: Board,
        share: ShareProgram,
        watcher: Watcher,
    ) -> Files {
        Files {
            node,
            cluster_id,
            board,
            share,
            watcher,
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            helpers: Arc::new(Semaphore::new(HELPERS_MAX)),
        }
    }

    /// Lets only members of the node's own group in.
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let certificates = request.peer_certs().ok_or_else(|| {
            Status::unauthenticated("NodeFileService needs a certificate of a member")
        })?;
        let (cluster_id, role) =
            peer_role(&certificates).map_err(|error| Status::unauthenticated(error.to_string()))?;
        match role {
            Role::Member(_) if cluster_id == self.cluster_id => Ok(()),
            Role::Member(_) => Err(Status::permission_denied(format!(
                "this node belongs to the schedulers {}, not to {cluster_id}",
                self.cluster_id
            ))),
            role => Err(Status::permission_denied(format!(
                "NodeFileService serves members only, not {role}; ask a scheduler for files"
            ))),
        }
    }

    async fn list(&self, asked: ListNodeFilesRequest) -> Result<Vec<Entry>, Status> {
        let key = key(asked.uid, asked.attempt);
        let files = self.files(&key)?.borrow().clone();
        let directory = below(&asked.directory)?;
        let id = asked.output_directory_id;
        if id != STDOUTERR || !directory.as_os_str().is_empty() {
            return self.list_share(&files, &id, &directory).await;
        }
        let spool = files.spool.clone();
        let listed = tokio::task::spawn_blocking(move || {
            helper::list_at(&beneath::open_root(&spool)?, Path::new(""))
        });
        // An attempt that never began has no spool.
        let mut entries = listed.await.map_err(internal)?.unwrap_or_default();
        // What the job wrote there by itself. A share that does not answer hides only that.
        if let Ok(others) = self.list_share(&files, STDOUTERR, &directory).await {
            let ours: Vec<String> = entries.iter().map(|entry| entry.name.clone()).collect();
            entries.extend(
                others
                    .into_iter()
                    .filter(|other| !ours.contains(&other.name)),
            );
            entries.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(entries)
    }

    async fn list_share(
        &self,
        files: &AttemptFiles,
        id: &str,
        directory: &Path,
    ) -> Result<Vec<Entry>, Status> {
        let root = root(files, id)?;
        let credentials = files.credentials.as_ref().ok_or_else(|| no_directory(id))?;
        let _permit = permit(&self.helpers)?;
        self.share
            .list(credentials, root, directory)
            .await
            .map_err(status)
    }

    async fn read(&self, asked: ReadNodeFileRequest) -> Result<Chunks, Status> {
        let key = key(asked.uid, asked.attempt);
        let files = self.files(&key)?;
        let directory = below(&asked.directory)?;
        let name = file_name(&asked.file)?;
        let reader = permit(&self.readers)?;
        let (sender, receiver) = mpsc::channel(CHUNKS_QUEUED);
        let out = Out {
            sender,
            offset: asked.offset,
            _permit: reader,
        };
        let spool = files.borrow().spool.clone();
        let in_spool = asked.output_directory_id == STDOUTERR
            && directory.as_os_str().is_empty()
            && (self.writes(&key, &name) || is_spooled(&spool, &name).await);
        if in_spool {
            let reading = spool::Reading {
                files,
                name,
                follow: asked.follow,
                watcher: self.watcher.clone(),
            };
            if !asked.follow && !reading.exists().await {
                return Err(Status::not_found(format!("{} is not there", asked.file)));
            }
            tokio::spawn(reading.run(out));
        } else {
            let helper = permit(&self.helpers)?;
            let path = directory.join(&name);
            let mut files = files;
            let id = asked.output_directory_id;
            let sending = loop {
                let now = files.borrow_and_update().clone();
                // An id that the job does not have is told at once; a directory that is not there yet is awaited.
                let opened = self
                    .open_share(&now, &id, &path, &asked.follow, asked.offset)
                    .await;
                match opened {
                    Ok(sending) => break sending,
                    Err(error) if error.code() == tonic::Code::NotFound => {
                        let awaited = asked.follow && now.alive && (now.directories.is_empty());
                        if !awaited || files.changed().await.is_err() {
                            return Err(error);
                        }
                    }
                    Err(error) => return Err(error),
                }
            };
            tokio::spawn(relay(sending, files, name, helper, out));
        }
        Ok(ReceiverStream::new(receiver))
    }

    async fn open_share(
        &self,
        files: &AttemptFiles,
        id: &str,
        path: &Path,
        follow: &bool,
        offset: u64,
    ) -> Result<Sending, Status> {
        let root = root(files, id)?;
        let credentials = files.credentials.as_ref().ok_or_else(|| no_directory(id))?;
        let follow = *follow && files.alive;
        self.share
            .read(credentials, root, path, offset, follow)
            .await
            .map_err(status)
    }

    /// Whether this node writes a file of that name, now or later.
    fn writes(&self, key: &AttemptKey, name: &str) -> bool {
        self.board
            .files_of_node(key)
            .iter()
            .any(|file| file == name)
    }

    fn files(
        &self,
        key: &AttemptKey,
    ) -> Result<tokio::sync::watch::Receiver<AttemptFiles>, Status> {
        self.board
            .files(key)
            .ok_or_else(|| Status::not_found(format!("{} has nothing of attempt {key}", self.node)))
    }
}

#[tonic::async_trait]
impl NodeFileService for Files {
    async fn list_node_files(
        &self,
        request: Request<ListNodeFilesRequest>,
    ) -> Result<Response<ListNodeFilesResponse>, Status> {
        self.admit(&request)?;
        let entries = self.list(request.into_inner()).await?;
        let files = entries
            .into_iter()
            .map(|entry| FileInfo {
                name: entry.name,
                is_directory: entry.is_directory,
                size_bytes: entry.size_bytes,
                modified_seconds: entry.modified_seconds,
                node: self.node.clone(),
            })
            .collect();
        Ok(Response::new(ListNodeFilesResponse { files }))
    }

    type ReadNodeFileStream = Chunks;

    async fn read_node_file(
        &self,
        request: Request<ReadNodeFileRequest>,
    ) -> Result<Response<Chunks>, Status> {
        self.admit(&request)?;
        self.read(request.into_inner()).await.map(Response::new)
    }
}

/// The way to one reader.
struct Out {
    sender: mpsc::Sender<Result<FileChunk, Status>>,
    offset: u64,
    _permit: OwnedSemaphorePermit,
}

impl Out {
    /// Sends bytes, in chunks; waits for a slow reader. `false`: the reader is gone.
    async fn send(&mut self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(CHUNK_MAX));
            let offset = self.offset;
            self.offset += data.len() as u64;
            if self
                .sender
                .send(Ok(FileChunk { offset, data }))
                .await
                .is_err()
            {
                return false;
            }
        }
        true
    }

    async fn fail(&self, status: Status) {
        // A reader that is gone needs no reason.
        let _ = self.sender.send(Err(status)).await;
    }
}

/// Passes on what a helper sends.
async fn relay(
    mut sending: Sending,
    mut files: tokio::sync::watch::Receiver<AttemptFiles>,
    name: String,
    _helper: OwnedSemaphorePermit,
    mut out: Out,
) {
    let mut told = false;
    loop {
        if !told && (!files.borrow_and_update().alive || files.has_changed().is_err()) {
            sending.writer_ended();
            told = true;
        }
        let mut block = BytesMut::with_capacity(CHUNK_MAX);
        let read = tokio::select! {
            read = sending.output.read_buf(&mut block) => read,
            // Also when the attempt is taken off the board.
            _ = files.changed(), if !told => continue,
            () = out.sender.closed() => return,
        };
        match read {
            Ok(0) => return,
            Ok(_) => {
                if !out.send(block.freeze()).await {
                    return;
                }
            }
            Err(error) => {
                let status = Status::unavailable(format!("reading {name}: {error}"));
                return out.fail(status).await;
            }
        }
    }
}

async fn is_spooled(spool: &Path, name: &str) -> bool {
    tokio::fs::symlink_metadata(spool.join(name)).await.is_ok()
}

fn key(uid: String, attempt: u32) -> AttemptKey {
    AttemptKey { uid, attempt }
}

/// A directory from outside, below an output directory; `.` and empty are the directory itself.
fn below(directory: &str) -> Result<PathBuf, Status> {
    let path = Path::new(directory);
    if !beneath::is_below(path) {
        return Err(Status::invalid_argument(format!(
            "directory: {directory:?} must be relative and without `..`"
        )));
    }
    Ok(path
        .components()
        .filter(|part| matches!(part, std::path::Component::Normal(_)))
        .collect())
}

fn file_name(name: &str) -> Result<String, Status> {
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(Status::invalid_argument(format!(
            "file: {name:?} is no file name; give the directory in `directory`"
        )));
    }
    Ok(name.to_owned())
}

fn root<'a>(files: &'a AttemptFiles, id: &str) -> Result<&'a PathBuf, Status> {
    files.directory(id).ok_or_else(|| no_directory(id))
}

fn no_directory(id: &str) -> Status {
    Status::not_found(format!(
        "output directory {id:?} is not on this node: the job has no such id, or its volume is not mounted (any more)"
    ))
}

fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(semaphore).try_acquire_owned().map_err(|_| {
        Status::resource_exhausted("too many files are being read from this node; try again later")
    })
}

fn status(error: ShareError) -> Status {
    let message = error.to_string();
    match error {
        ShareError::Deadline { .. } | ShareError::Helper(_) => Status::unavailable(message),
        ShareError::Missing(_) => Status::not_found(message),
        ShareError::Failed(_) => Status::failed_precondition(message),
    }
}

fn internal(error: tokio::task::JoinError) -> Status {
    Status::internal(error.to_string())
}
