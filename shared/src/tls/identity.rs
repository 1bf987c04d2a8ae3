//! What a program proves itself with: a certificate, its key, and the authority it trusts.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TonicIdentity, ServerTlsConfig};

use super::files::{self, PRIVATE, PUBLIC};
use super::{Role, TlsError, peer_role, role};

/// Longest time that a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HINT: &str = "make a new folder with `trainyard-scheduler issue`";

/// Whom a client means to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// A scheduler.
    Member,
    /// An agent.
    Node,
}

impl Server {
    /// The DNS name in the certificate of such a server.
    #[must_use]
    pub fn domain_name(self) -> &'static str {
        match self {
            Server::Member => "member.trainyard",
            Server::Node => "node.trainyard",
        }
    }
}

/// A certificate, its key, and the authority it trusts.
#[derive(Clone)]
pub struct Identity {
    authority: String,
    certificate: String,
    key: String,
    cluster_id: String,
    role: Role,
    expires: jiff::Timestamp,
}

/// Without the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("cluster_id", &self.cluster_id)
            .field("role", &self.role)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Takes three PEM texts apart and checks that they belong together.
    pub(super) fn new(
        authority: String,
        certificate: String,
        key: String,
    ) -> Result<Self, TlsError> {
        let unreadable = |what: &str, error: &dyn fmt::Display| {
            TlsError::Certificate(format!("{what} in PEM is unreadable: {error}"))
        };
        let authority_der = CertificateDer::from_pem_slice(authority.as_bytes())
            .map_err(|error| unreadable("the authority", &error))?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| unreadable("the certificate", &error))?;
        let (cluster_id, role) = peer_role(std::slice::from_ref(&der))?;
        let parsed = role::parse(&der)?;
        let trusted = role::parse(&authority_der)?;
        if role::authority_cluster_id(&authority_der)? != cluster_id
            || parsed.issuer() != trusted.subject()
            || parsed.verify_signature(Some(trusted.public_key())).is_err()
        {
            return Err(TlsError::Certificate(
                "it was not issued by the authority in ca.pem".to_owned(),
            ));
        }
        let pair = KeyPair::from_pem(&key).map_err(|error| unreadable("the key", &error))?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(TlsError::Certificate("key.pem is not its key".to_owned()));
        }
        let expires = jiff::Timestamp::from_second(parsed.validity().not_after.timestamp())
            .map_err(|error| unreadable("the end of its validity", &error))?;
        Ok(Self {
            authority,
            certificate,
            key,
            cluster_id,
            role,
            expires,
        })
    }

    /// Reads `ca.pem`, `cert.pem` and `key.pem` in `dir` and checks that they belong together, so that a mix-up shows
    /// here with a reason and not as a refused handshake.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let identity = Self::new(
            files::read(&dir.join("ca.pem"), HINT)?,
            files::read(&dir.join("cert.pem"), HINT)?,
            files::read_key(&dir.join("key.pem"), HINT)?,
        )
        .map_err(|error| TlsError::Content {
            path: dir.to_owned(),
            what: error.to_string(),
            hint: HINT,
        })?;
        if identity.expires <= jiff::Timestamp::now() {
            return Err(TlsError::Content {
                path: dir.join("cert.pem"),
                what: format!("it expired at {}", identity.expires),
                hint: HINT,
            });
        }
        Ok(identity)
    }

    /// Writes `ca.pem`, `cert.pem` and `key.pem` (mode 0600) into `dir`, which is made if it is missing.
    pub fn save(&self, dir: &Path) -> Result<(), TlsError> {
        files::make_dir(dir)?;
        files::write(&dir.join("key.pem"), &self.key, PRIVATE)?;
        files::write(&dir.join("cert.pem"), &self.certificate, PUBLIC)?;
        files::write(&dir.join("ca.pem"), &self.authority, PUBLIC)
    }

    /// Id of the group of schedulers that it belongs to.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Who its holder is.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// When its certificate ends.
    #[must_use]
    pub fn expires(&self) -> jiff::Timestamp {
        self.expires
    }

    fn tonic_identity(&self) -> TonicIdentity {
        TonicIdentity::from_pem(&self.certificate, &self.key)
    }

    /// TLS for a server: every client must present a certificate of the same authority. Which roles may call what is
    /// the server's to check, with [`peer_role`].
    #[must_use]
    pub fn server_tls(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.tonic_identity())
            .client_ca_root(Certificate::from_pem(&self.authority))
            .timeout(HANDSHAKE_TIMEOUT)
    }

    /// TLS for a client that means to reach such a server, under whatever address.
    #[must_use]
    pub fn client_tls(&self, server: Server) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .domain_name(server.domain_name())
            .ca_certificate(Certificate::from_pem(&self.authority))
            .identity(self.tonic_identity())
            .timeout(HANDSHAKE_TIMEOUT)
    }
}
