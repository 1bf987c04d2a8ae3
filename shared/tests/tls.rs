//! Identities over real handshakes and real files.
// Helpers stand outside of the test functions that clippy knows.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use support::{Scheduler, authority, serve};
use tonic::Code;
use trainyard_proto::v1::ListMembersRequest;
use trainyard_proto::v1::member_service_client::MemberServiceClient;
use trainyard_shared::client::{Client, ClientConfig};
use trainyard_shared::tls::{Authority, Identity, Role, TlsError};

/// Calls a server with `server` as its identity, as `client`; gives what the server saw of the caller.
async fn call(server: &Identity, client: Identity) -> Result<String, tonic::Status> {
    let address = serve(server, Scheduler::default()).await;
    let client = Client::new(ClientConfig {
        servers: vec![address.to_string()],
        identity: client,
        timeout: Duration::from_secs(20),
    })
    .unwrap();
    let reply = client
        .unary(|channel| async move {
            MemberServiceClient::new(channel)
                .list_members(ListMembersRequest {})
                .await
        })
        .await?;
    Ok(reply.cluster_id)
}

#[tokio::test]
async fn a_member_sees_who_calls() {
    let authority = authority();
    let member = authority.issue(&Role::Member(1)).unwrap();
    for (role, seen) in [
        (Role::Member(2), "0f0e member/2"),
        (
            Role::Node("gpu-1.example.org".to_owned()),
            "0f0e node/gpu-1.example.org",
        ),
        (Role::Client("admin".to_owned()), "0f0e client/admin"),
    ] {
        let client = authority.issue(&role).unwrap();
        assert_eq!(call(&member, client).await.unwrap(), seen);
    }
}

#[tokio::test]
async fn a_node_or_client_cannot_pass_for_a_member() {
    let authority = authority();
    for role in [Role::Node("n".to_owned()), Role::Client("c".to_owned())] {
        let server = authority.issue(&role).unwrap();
        let client = authority.issue(&Role::Client("admin".to_owned())).unwrap();
        let begun = Instant::now();
        let status = call(&server, client).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{role}: {status}");
        // Trying again for 20 s would help nobody.
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn another_authority_is_refused_by_either_side() {
    let (ours, theirs) = (authority(), authority());
    let member = ours.issue(&Role::Member(1)).unwrap();
    let stranger = theirs.issue(&Role::Client("admin".to_owned())).unwrap();
    let status = call(&member, stranger).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");

    // A client that trusts the member, with a certificate that the member does not trust.
    let folder = tempfile::tempdir().unwrap();
    let good = ours.issue(&Role::Client("admin".to_owned())).unwrap();
    good.save(folder.path()).unwrap();
    let other = tempfile::tempdir().unwrap();
    theirs
        .issue(&Role::Client("admin".to_owned()))
        .unwrap()
        .save(other.path())
        .unwrap();
    for file in ["cert.pem", "key.pem"] {
        fs::copy(other.path().join(file), folder.path().join(file)).unwrap();
    }
    let error = Identity::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("not issued by the authority"), "{error}");
}

#[test]
fn folders_come_back_and_keys_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let (authority_dir, node_dir) = (folder.path().join("authority"), folder.path().join("n/tls"));
    authority().save(&authority_dir).unwrap();
    let authority = Authority::load(&authority_dir).unwrap();
    assert_eq!(authority.cluster_id(), "0f0e");
    let node = authority.issue(&Role::Node("n".to_owned())).unwrap();
    node.save(&node_dir).unwrap();
    node.save(&node_dir).unwrap();
    let loaded = Identity::load(&node_dir).unwrap();
    assert_eq!(
        (loaded.cluster_id(), loaded.role()),
        ("0f0e", &Role::Node("n".to_owned()))
    );
    for key in [authority_dir.join("ca.key"), node_dir.join("key.pem")] {
        assert_eq!(
            fs::metadata(key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let files: Vec<_> = fs::read_dir(&node_dir).unwrap().collect();
    assert_eq!(files.len(), 3, "no temporary file is left: {files:?}");
    assert!(!format!("{loaded:?}{authority:?}").contains("PRIVATE KEY"));
}

#[test]
fn broken_folders_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority();
    let issue = |role: Role| authority.issue(&role).unwrap();
    let error = Identity::load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("ca.pem") && error.contains("trainyard-scheduler issue"),
        "{error}"
    );

    issue(Role::Member(1)).save(folder.path()).unwrap();
    let key = folder.path().join("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Identity::load(folder.path()).unwrap_err();
    assert!(matches!(error, TlsError::KeyExposed { .. }));
    assert!(error.to_string().contains("chmod 600"), "{error}");

    let other = tempfile::tempdir().unwrap();
    issue(Role::Member(2)).save(other.path()).unwrap();
    fs::remove_file(&key).unwrap();
    fs::copy(other.path().join("key.pem"), &key).unwrap();
    let error = Identity::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("key.pem is not its key"), "{error}");

    fs::write(folder.path().join("cert.pem"), "no certificate").unwrap();
    let error = Identity::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("unreadable"), "{error}");
    assert!(!error.contains("PRIVATE"), "{error}");
}

#[test]
fn names_that_cannot_stand_in_a_certificate_are_refused() {
    let authority = authority();
    for role in [
        Role::Member(0),
        Role::Node("a/b".to_owned()),
        Role::Client(String::new()),
        Role::Client("a/member/1".to_owned()),
    ] {
        assert!(authority.issue(&role).is_err(), "{role:?}");
    }
    assert!(Authority::create("a/b").is_err());
    assert!(Authority::create(&Authority::new_cluster_id()).is_ok());
}
