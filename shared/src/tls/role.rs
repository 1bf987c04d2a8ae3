//! Who a certificate says its holder is.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsError;
use crate::names;

/// Scheme of the URI that carries the role.
const SCHEME: &str = "trainyard://";
const ID_RULE: &str = "use 1 to 64 letters, digits, `-`, `_`, `.` and `@`";

/// Part that the holder of a certificate plays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A scheduler, by its number in the replication group.
    Member(u64),
    /// An agent, by the id of its node.
    Node(String),
    /// A person or program that calls the client services.
    Client(String),
}

impl Role {
    /// Checks that the name in the role can stand in a certificate.
    pub fn check(&self) -> Result<(), TlsError> {
        let (what, name, rule) = match self {
            Role::Member(0) => ("member", "0", "members count from 1".to_owned()),
            Role::Member(_) => return Ok(()),
            Role::Node(name) => match names::check_node_id(name) {
                Ok(()) => return Ok(()),
                Err(error) => ("node", name.as_str(), error.to_string()),
            },
            Role::Client(name) if is_plain(name) => return Ok(()),
            Role::Client(name) => ("client", name.as_str(), ID_RULE.to_owned()),
        };
        Err(TlsError::Name {
            what,
            name: name.to_owned(),
            rule,
        })
    }

    /// The DNS name by which clients know a server of this role; clients serve nothing.
    pub(super) fn dns_name(&self) -> Option<&'static str> {
        match self {
            Role::Member(_) => Some(super::Server::Member.domain_name()),
            Role::Node(_) => Some(super::Server::Node.domain_name()),
            Role::Client(_) => None,
        }
    }

    /// The URI that carries the role.
    pub(super) fn uri(&self, cluster_id: &str) -> String {
        format!("{SCHEME}{cluster_id}/{self}")
    }
}

/// `member/1`, `node/NAME`, `client/NAME`.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Member(id) => write!(f, "member/{id}"),
            Role::Node(name) => write!(f, "node/{name}"),
            Role::Client(name) => write!(f, "client/{name}"),
        }
    }
}

fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@'))
}

/// Checks the id of a group of schedulers: 1 to 64 letters, digits, `-`, `_`, `.` and `@`, a UUID by custom.
pub(super) fn check_cluster_id(cluster_id: &str) -> Result<(), TlsError> {
    if is_plain(cluster_id) {
        return Ok(());
    }
    Err(TlsError::Name {
        what: "cluster id",
        name: cluster_id.to_owned(),
        rule: ID_RULE.to_owned(),
    })
}

/// URI of the authority's own certificate.
pub(super) fn authority_uri(cluster_id: &str) -> String {
    format!("{SCHEME}{cluster_id}/authority")
}

/// The cluster id and role in the certificates that a peer presented (its own one first), as the TLS layer verified
/// them. Verification is that layer's: this function only reads.
pub fn peer_role(certificates: &[CertificateDer<'_>]) -> Result<(String, Role), TlsError> {
    let own = certificates
        .first()
        .ok_or_else(|| TlsError::Certificate("the peer presented none".to_owned()))?;
    let uri = trainyard_uri(own)?;
    let malformed =
        || TlsError::Certificate(format!("{uri:?} names neither member, node nor client"));
    let (cluster_id, path) = uri.split_once('/').ok_or_else(malformed)?;
    let (kind, name) = path.split_once('/').ok_or_else(malformed)?;
    let role = match kind {
        "member" => Role::Member(name.parse().map_err(|_| malformed())?),
        "node" => Role::Node(name.to_owned()),
        "client" => Role::Client(name.to_owned()),
        _ => return Err(malformed()),
    };
    check_cluster_id(cluster_id)?;
    role.check()?;
    Ok((cluster_id.to_owned(), role))
}

/// The cluster id in the certificate of an authority.
pub(super) fn authority_cluster_id(certificate: &CertificateDer<'_>) -> Result<String, TlsError> {
    let uri = trainyard_uri(certificate)?;
    let cluster_id = uri
        .strip_suffix("/authority")
        .ok_or_else(|| TlsError::Certificate("not the certificate of an authority".to_owned()))?;
    check_cluster_id(cluster_id)?;
    Ok(cluster_id.to_owned())
}

/// What follows the scheme in the one URI of Trainyard that the certificate must have. Two would leave open who the
/// holder is.
fn trainyard_uri(der: &CertificateDer<'_>) -> Result<String, TlsError> {
    let certificate = parse(der)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| TlsError::Certificate(format!("unreadable alternative names: {error}")))?;
    let mut uris = names
        .iter()
        .flat_map(|names| names.value.general_names.iter())
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.to_owned()),
        (None, _) => Err(TlsError::Certificate(
            "it carries no role; it was not issued by trainyard-scheduler".to_owned(),
        )),
        (Some(_), Some(_)) => Err(TlsError::Certificate("it carries several roles".to_owned())),
    }
}

/// The certificate in `der`.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(TlsError::Certificate(format!("unreadable: {error}"))),
    }
}
