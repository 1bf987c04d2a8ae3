//! Managed file servers, by a real nfs-ganesha where it is installed.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;

use trainyard_agent::exports::{Settings, find_program};
use trainyard_agent::launch::free_port;
use trainyard_proto::v1::{Desired, Export, ExportStatus};

use crate::node::{Agent, Place, host, until_file};

/// A place whose agents may export.
struct Server {
    place: Place,
    port: u16,
}

impl Server {
    /// `None` where this machine has no nfs-ganesha.
    fn new() -> Option<Server> {
        let Some(_) = find_program() else {
            eprintln!("no nfs-ganesha here, or not root: nothing is tested");
            return None;
        };
        let (port, _) = free_port("127.0.0.1").unwrap();
        let place = Place::new();
        fs::create_dir(place.path().join("srv")).unwrap();
        Some(Server { place, port })
    }

    fn settings(&self) -> Settings {
        Settings {
            program: find_program(),
            bind: Some([127, 0, 0, 1].into()),
            port: self.port,
            roots: vec![self.place.path().join("srv")],
        }
    }

    fn agent(&self) -> Agent {
        Agent::start_with(host(&self.place), 1 << 30, self.settings())
    }

    fn nfs(&self, file: &str) -> PathBuf {
        self.place.data().join("nfs").join(file)
    }

    fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.nfs("server.json")).unwrap();
        let identity: serde_json::Value = serde_json::from_str(&text).unwrap();
        i32::try_from(identity["pid"].as_i64().unwrap()).unwrap()
    }

    fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }
}

fn export(uid: &str) -> Export {
    Export {
        file_server: format!("workspaces/w/fileServers/{uid}"),
        uid: uid.to_owned(),
        clients: vec!["127.0.0.1".to_owned()],
        ..Export::default()
    }
}

async fn want(agent: &mut Agent, exports: &[Export]) {
    agent
        .see(Desired {
            exports: exports.to_vec(),
            ..Desired::default()
        })
        .await;
}

async fn until(agent: &Agent, uid: &str, wanted: impl Fn(&ExportStatus) -> bool) -> ExportStatus {
    agent
        .until_board(|board| {
            let mut exports = board.exports().into_iter();
            exports.find(|status| status.uid == uid && wanted(status))
        })
        .await
}

async fn until_nothing(agent: &Agent) {
    agent
        .until_board(|board| board.exports().is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn exports_come_change_outlive_the_agent_and_go_while_their_directories_stay() {
    let Some(server) = Server::new() else { return };
    let mut agent = server.agent();
    want(&mut agent, &[export("one")]).await;
    let status = until(&agent, "one", |status| status.ready).await;
    let directory = server.place.data().join("file-servers/one");
    assert_eq!(status.directory, directory.to_str().unwrap());
    assert_eq!(
        (status.export.as_str(), status.port),
        ("/one", u32::from(server.port))
    );
    assert!(status.capacity_bytes >= status.free_bytes && status.free_bytes > 0);
    assert_eq!(status.errors, []);
    assert!(server.listens());
    let pid = server.pid();

    // A second one is read by the running server.
    let mut two = export("two");
    two.directory = server
        .place
        .path()
        .join("srv/deep/two")
        .display()
        .to_string();
    want(&mut agent, &[export("one"), two.clone()]).await;
    until(&agent, "two", |status| status.ready).await;
    assert_eq!(server.pid(), pid);
    let config = fs::read_to_string(server.nfs("ganesha.conf")).unwrap();
    assert!(config.contains("Pseudo = \"/two\""), "{config}");
    assert!(config.contains("Clients = 127.0.0.1;"), "{config}");

    // The server outlives the agent, and the next one knows it before a view comes.
    agent.die().await;
    assert!(server.listens());
    let mut agent = server.agent();
    until(&agent, "one", |status| status.ready).await;
    assert_eq!(server.pid(), pid);

    want(&mut agent, &[]).await;
    until_nothing(&agent).await;
    assert!(!server.listens());
    assert!(directory.is_dir());
    assert!(server.place.path().join("srv/deep/two").is_dir());
    agent.die().await;
}

#[tokio::test]
async fn a_server_that_dies_is_started_again() {
    let Some(server) = Server::new() else { return };
    let mut agent = server.agent();
    want(&mut agent, &[export("one")]).await;
    until(&agent, "one", |status| status.ready).await;
    let pid = server.pid();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let status = until(&agent, "one", |status| !status.ready).await;
    assert_eq!(status.errors[0].code, "FileServerUnavailable");
    let other = move |text: &str| !text.is_empty() && !text.contains(&format!("\"pid\":{pid},"));
    until_file(&server.nfs("server.json"), other).await;
    until(&agent, "one", |status| status.ready).await;
    assert!(server.listens());
    want(&mut agent, &[]).await;
    until_nothing(&agent).await;
    agent.die().await;
}

#[tokio::test]
async fn what_cannot_be_exported_says_why_and_disturbs_no_other() {
    let Some(server) = Server::new() else { return };
    let mut agent = server.agent();
    let below = |uid: &str, path: &str| Export {
        directory: server.place.path().join(path).display().to_string(),
        ..export(uid)
    };
    let exports = [
        below("good", "srv/good"),
        below("inside", "srv/good/inside"),
        below("outside", "share"),
        Export {
            min_capacity_bytes: u64::MAX,
            ..below("small", "srv/small")
        },
    ];
    want(&mut agent, &exports).await;
    until(&agent, "good", |status| status.ready).await;
    for (uid, code) in [
        ("inside", "FileServerDirectoryNotAllowed"),
        ("outside", "FileServerDirectoryNotAllowed"),
        ("small", "FileServerCapacityTooSmall"),
    ] {
        let status = until(&agent, uid, |status| !status.errors.is_empty()).await;
        assert!(!status.ready, "{uid}");
        assert_eq!(status.errors[0].code, code, "{uid}");
    }
    want(&mut agent, &[]).await;
    until_nothing(&agent).await;
    agent.die().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_taken_when_it_is_free() {
    let Some(server) = Server::new() else { return };
    let taken = std::net::TcpListener::bind(("127.0.0.1", server.port)).unwrap();
    let mut agent = server.agent();
    want(&mut agent, &[export("one")]).await;
    let status = until(&agent, "one", |status| !status.errors.is_empty()).await;
    let message = &status.errors[0].message;
    assert!(message.contains("in use"), "{message}");
    drop(taken);
    until(&agent, "one", |status| status.ready).await;
    want(&mut agent, &[]).await;
    until_nothing(&agent).await;
    agent.die().await;
}

#[tokio::test]
async fn a_node_that_may_not_export_says_so() {
    let place = Place::new();
    let mut agent = Agent::start(&place);
    want(&mut agent, &[export("one")]).await;
    let status = until(&agent, "one", |status| !status.errors.is_empty()).await;
    assert_eq!(status.errors[0].code, "FileServerUnavailable");
    assert!(
        status.errors[0].message.contains("nfs-ganesha"),
        "{:?}",
        status.errors
    );
    agent.die().await;
}
