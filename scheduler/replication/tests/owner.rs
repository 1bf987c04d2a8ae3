//! Whose a data directory is: a member that is started on another's leaves every byte of it alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trainyard_replication::transport::GrpcTransport;
use trainyard_replication::{
    AppliedEntry, Handle, Member, Options, Replication, StartError, StateMachine,
};

/// What is written does not matter here.
struct Nothing;

impl StateMachine for Nothing {
    type Outcome = ();

    fn apply(&mut self, entries: &[AppliedEntry<'_>]) -> Vec<()> {
        entries.iter().map(|_| ()).collect()
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: u64, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

fn start(path: &Path, cluster: &str, member: u64) -> Result<Handle<()>, StartError> {
    let members = vec![Member {
        id: member,
        name: format!("member-{member}"),
        address: "127.0.0.1:1".into(),
    }];
    let options = Options::new(path, cluster, member, members);
    let runtime = tokio::runtime::Handle::current();
    let transport = GrpcTransport::new(&options, runtime, |_: &Member| Err(String::new()));
    Replication::start(options, Nothing, transport)
}

/// A member writes a little and stops.
async fn use_it(path: &Path, cluster: &str, member: u64) {
    let handle = start(path, cluster, member).unwrap();
    let mut status = handle.status();
    status.wait_for(|status| status.ready).await.unwrap();
    handle.propose(b"kept".to_vec()).await.unwrap();
    handle.stop().await;
}

/// Every file below a directory, with its bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_directory_keeps_every_byte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    use_it(path, "yard", 1).await;
    let before = contents(path);
    for name in ["owner", "high-water", "log/db"] {
        assert!(before.contains_key(&path.join(name)), "{name}");
    }
    for (cluster, member) in [("other", 1), ("yard", 2), ("other", 2)] {
        let error = start(path, cluster, member).map(|_| ()).unwrap_err();
        assert!(matches!(error, StartError::WrongOwner { .. }), "{error}");
        assert!(contents(path) == before, "{cluster} {member} changed it");
    }
    use_it(path, "yard", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_lets_nobody_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    use_it(path, "yard", 1).await;
    for note in [Some("other 2\n"), Some("\0torn"), None] {
        match note {
            Some(text) => std::fs::write(path.join("owner"), text).unwrap(),
            None => std::fs::remove_file(path.join("owner")).unwrap(),
        }
        let error = start(path, "other", 2).map(|_| ()).unwrap_err();
        assert!(matches!(error, StartError::WrongOwner { .. }), "{error}");
    }
    // The owner gets in without the note, and leaves it again.
    use_it(path, "yard", 1).await;
    assert_eq!(
        std::fs::read_to_string(path.join("owner")).unwrap(),
        "yard 1\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_store_has_vanished_never_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    use_it(path, "yard", 1).await;
    std::fs::remove_dir_all(path.join("log")).unwrap();
    std::fs::remove_file(path.join("high-water")).unwrap();
    let before = contents(path);
    let error = start(path, "yard", 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("both are missing"), "{error}");
    assert!(contents(path) == before, "a refusal changes nothing");
}
