//! The file service over real TLS connections.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use trainyard_agent::board::{AttemptFiles, Board};
use trainyard_agent::confine::Credentials;
use trainyard_agent::files::{CHUNK_MAX, Files, Watcher};
use trainyard_agent::reconcile::AttemptKey;
use trainyard_agent::record::Directory;
use trainyard_agent::share::ShareProgram;
use trainyard_proto::v1::node_file_service_client::NodeFileServiceClient;
use trainyard_proto::v1::node_file_service_server::NodeFileServiceServer;
use trainyard_proto::v1::{
    AttemptNodeStatus, FileChunk, ListNodeFilesRequest, ObservedAttempt, ReadNodeFileRequest,
};
use trainyard_shared::tls::{Authority, Role, Server};

use crate::node::{PATIENCE, PROGRAM};

type Client = NodeFileServiceClient<tonic::transport::Channel>;

/// A node with one attempt, whose files the test writes in the task's place.
struct Node {
    dir: tempfile::TempDir,
    board: Board,
    authority: Authority,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        for name in ["spool", "stdouterr", "model", "model/deep"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let board = Board::default();
        let directory = |id: &str, name: &str| Directory {
            id: id.to_owned(),
            path: dir.path().join(name),
            lasting: Some(dir.path().join(name)),
        };
        let files = AttemptFiles {
            spool: dir.path().join("spool"),
            directories: vec![
                directory("stdouterr", "stdouterr"),
                directory("MODEL", "model"),
                directory("GONE", "gone"),
            ],
            credentials: Some(Credentials::own()),
            alive: true,
            ..AttemptFiles::default()
        };
        let observed = ObservedAttempt {
            uid: "u".to_owned(),
            attempt: 1,
            status: Some(AttemptNodeStatus {
                files: vec!["stdout.txt".to_owned(), "stderr.txt".to_owned()],
                ..AttemptNodeStatus::default()
            }),
            ..ObservedAttempt::default()
        };
        board.put(observed, true, files);
        let authority = Authority::create("c1").unwrap();
        let identity = authority.issue(&Role::Node("n1".to_owned())).unwrap();
        let service = Files::new(
            "nodes/n1".to_owned(),
            "c1".to_owned(),
            board.clone(),
            ShareProgram {
                program: PathBuf::from(PROGRAM),
                deadline: Duration::from_secs(20),
            },
            Watcher::start().unwrap(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .tls_config(identity.server_tls())
            .unwrap()
            .add_service(NodeFileServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        Node {
            dir,
            board,
            authority,
            address,
            serving: tokio::spawn(async move { server.await.unwrap() }),
        }
    }

    async fn client(&self, role: Role) -> Client {
        let identity = self.authority.issue(&role).unwrap();
        let channel = Endpoint::from_shared(format!("https://{}", self.address))
            .unwrap()
            .tls_config(identity.client_tls(Server::Node))
            .unwrap()
            .connect()
            .await
            .unwrap();
        NodeFileServiceClient::new(channel)
    }

    async fn member(&self) -> Client {
        self.client(Role::Member(1)).await
    }

    fn spool(&self, name: &str) -> PathBuf {
        self.dir.path().join("spool").join(name)
    }

    fn append(&self, name: &str, text: &str) {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.spool(name))
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    fn close(&self, name: &str) {
        let key = AttemptKey {
            uid: "u".to_owned(),
            attempt: 1,
        };
        self.board.set_files(&key, |files| {
            files.closed.insert(name.to_owned());
        });
    }

    fn end(&self) {
        let key = AttemptKey {
            uid: "u".to_owned(),
            attempt: 1,
        };
        self.board.set_files(&key, |files| files.alive = false);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn ask(id: &str, directory: &str, file: &str) -> ReadNodeFileRequest {
    ReadNodeFileRequest {
        uid: "u".to_owned(),
        attempt: 1,
        output_directory_id: id.to_owned(),
        directory: directory.to_owned(),
        file: file.to_owned(),
        ..ReadNodeFileRequest::default()
    }
}

fn follow(mut request: ReadNodeFileRequest) -> ReadNodeFileRequest {
    request.follow = true;
    request
}

async fn chunk(stream: &mut Streaming<FileChunk>) -> Option<FileChunk> {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .unwrap()
        .unwrap()
}

async fn text(stream: &mut Streaming<FileChunk>) -> Result<String, Status> {
    let mut text = Vec::new();
    while let Some(chunk) = tokio::time::timeout(PATIENCE, stream.message())
        .await
        .unwrap()?
    {
        assert!(chunk.data.len() <= CHUNK_MAX);
        text.extend_from_slice(&chunk.data);
    }
    Ok(String::from_utf8(text).unwrap())
}

async fn read(client: &mut Client, request: ReadNodeFileRequest) -> Result<String, Status> {
    text(&mut client.read_node_file(request).await?.into_inner()).await
}

#[tokio::test]
async fn lines_arrive_as_they_are_written_and_the_stream_ends_with_the_writer() {
    let node = Node::start().await;
    let mut client = node.member().await;
    // The file is not there yet.
    let request = follow(ask("stdouterr", "", "stdout.txt"));
    let mut stream = client.read_node_file(request).await.unwrap().into_inner();
    node.append("stdout.txt", "one\n");
    assert_eq!(chunk(&mut stream).await.unwrap().data, "one\n");
    node.append("stdout.txt", "two\n");
    let second = chunk(&mut stream).await.unwrap();
    assert_eq!(
        (second.offset, second.data.as_ref()),
        (4, b"two\n".as_ref())
    );
    // Bytes written just before the end are not lost.
    node.append("stdout.txt", "three\n");
    node.close("stdout.txt");
    assert_eq!(text(&mut stream).await.unwrap(), "three\n");

    let mut resumed = ask("stdouterr", ".", "stdout.txt");
    resumed.offset = 4;
    assert_eq!(read(&mut client, resumed).await.unwrap(), "two\nthree\n");
}

#[tokio::test]
async fn a_slow_reader_costs_nothing_but_itself() {
    let node = Node::start().await;
    let mut client = node.member().await;
    let request = follow(ask("stdouterr", "", "stdout.txt"));
    let mut stream = client.read_node_file(request).await.unwrap().into_inner();
    // Far more than all buffers hold, while nobody reads.
    let block = "x".repeat(1 << 20);
    for _ in 0..24 {
        node.append("stdout.txt", &block);
    }
    node.close("stdout.txt");
    // Another reader is served meanwhile.
    let mut other = ask("stdouterr", "", "stdout.txt");
    other.offset = (24 << 20) - 3;
    assert_eq!(read(&mut client, other).await.unwrap(), "xxx");
    assert_eq!(text(&mut stream).await.unwrap().len(), 24 << 20);
}

#[tokio::test]
async fn a_file_that_never_comes_ends_with_the_attempt() {
    let node = Node::start().await;
    let mut client = node.member().await;
    let request = follow(ask("stdouterr", "", "stderr.txt"));
    let mut stream = client.read_node_file(request).await.unwrap().into_inner();
    node.end();
    assert_eq!(text(&mut stream).await.unwrap_err().code(), Code::NotFound);
    let gone = read(&mut client, ask("stdouterr", "", "other.txt")).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn output_directories_are_listed_read_and_followed() {
    let node = Node::start().await;
    let mut client = node.member().await;
    let model = node.dir.path().join("model");
    fs::write(model.join("a.bin"), "aaa").unwrap();
    fs::write(model.join("deep/b.bin"), "bb").unwrap();
    let list = |id: &str, directory: &str| ListNodeFilesRequest {
        uid: "u".to_owned(),
        attempt: 1,
        output_directory_id: id.to_owned(),
        directory: directory.to_owned(),
    };
    let listed = client.list_node_files(list("MODEL", "")).await.unwrap();
    let listed: Vec<_> = listed
        .into_inner()
        .files
        .into_iter()
        .map(|file| (file.name, file.is_directory, file.size_bytes, file.node))
        .collect();
    let node_name = "nodes/n1".to_owned();
    assert_eq!(
        listed,
        [
            ("a.bin".to_owned(), false, 3, node_name.clone()),
            ("deep".to_owned(), true, 0, node_name)
        ]
    );
    let deep = read(&mut client, ask("MODEL", "deep", "b.bin")).await;
    assert_eq!(deep.unwrap(), "bb");

    let request = follow(ask("MODEL", "", "log"));
    let mut stream = client.read_node_file(request).await.unwrap().into_inner();
    fs::write(model.join("log"), "first").unwrap();
    assert_eq!(chunk(&mut stream).await.unwrap().data, "first");
    node.end();
    assert_eq!(text(&mut stream).await.unwrap(), "");

    for (id, directory, code) in [
        ("GONE", "", Code::NotFound),
        ("NONE", "", Code::NotFound),
        ("MODEL", "nothing", Code::NotFound),
        ("MODEL", "..", Code::InvalidArgument),
        ("MODEL", "/etc", Code::InvalidArgument),
    ] {
        let error = client.list_node_files(list(id, directory)).await;
        assert_eq!(error.unwrap_err().code(), code, "{id} {directory}");
    }
}

#[tokio::test]
async fn the_directory_of_logs_shows_the_spool_and_what_the_job_put_there() {
    let node = Node::start().await;
    let mut client = node.member().await;
    node.append("stdout.txt", "12345");
    let share = node.dir.path().join("stdouterr");
    fs::write(share.join("stdout.txt"), "123").unwrap();
    fs::write(share.join("own.txt"), "own").unwrap();
    let request = ListNodeFilesRequest {
        uid: "u".to_owned(),
        attempt: 1,
        output_directory_id: "stdouterr".to_owned(),
        directory: ".".to_owned(),
    };
    let listed = client.list_node_files(request).await.unwrap().into_inner();
    let listed: Vec<_> = listed
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.size_bytes))
        .collect();
    assert_eq!(listed, [("own.txt", 3), ("stdout.txt", 5)]);
    let own = read(&mut client, ask("stdouterr", "", "own.txt")).await;
    assert_eq!(own.unwrap(), "own");
}

#[tokio::test]
async fn nothing_outside_is_read() {
    let node = Node::start().await;
    let mut client = node.member().await;
    let model = node.dir.path().join("model");
    fs::write(node.dir.path().join("secret"), "s").unwrap();
    symlink("../secret", model.join("link")).unwrap();
    symlink("/etc/passwd", model.join("passwd")).unwrap();
    symlink("../secret", node.spool("link")).unwrap();
    for request in [
        ask("MODEL", "", "link"),
        ask("MODEL", "", "passwd"),
        ask("MODEL", "..", "secret"),
        ask("MODEL", "", "../secret"),
        ask("MODEL", "deep/../..", "secret"),
        ask("stdouterr", "", "link"),
        follow(ask("MODEL", "", "link")),
    ] {
        let shown = format!("{request:?}");
        assert!(read(&mut client, request).await.is_err(), "{shown}");
    }
}

#[tokio::test]
async fn members_only() {
    let node = Node::start().await;
    for role in [Role::Node("n2".to_owned()), Role::Client("x".to_owned())] {
        let mut client = node.client(role).await;
        let error = read(&mut client, ask("stdouterr", "", "stdout.txt")).await;
        assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    }
}
