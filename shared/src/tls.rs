//! TLS identities: the authority of a group of schedulers, and the certificates that say who a program is.
//!
//! Every socket of Trainyard is mutual TLS under one authority, and a certificate carries one role: a member (a
//! scheduler), a node (an agent) or a client (the command). The role stands in a URI
//! (`trainyard://CLUSTER-ID/member/1`), which servers read with [`peer_role`], and for members and nodes in a DNS name
//! (`member.trainyard`), by which a client checks that it reached a scheduler and not some agent, whatever the address.
//!
//! This module must never print, log or return the text of a private key but into its own file, which only its
//! owner can read.

mod authority;
mod files;
mod identity;
mod role;

pub use authority::Authority;
pub use identity::{Identity, Server};
pub use role::{Role, peer_role};

use std::path::PathBuf;

/// Why an identity or authority cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}; {hint}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {error}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path}: {what}; {hint}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A private key that everyone on the machine can read.
    #[error(
        "{path} can be read by every user of this machine (mode {mode:o}); run `chmod 600 {path}`, and issue a new \
         certificate if the key may have been seen",
        path = path.display()
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A certificate says something that Trainyard's certificates never say.
    #[error("certificate: {0}")]
    Certificate(
        /// What is wrong.
        String,
    ),
    /// A name cannot stand in a certificate.
    #[error("{what} {name:?}: {rule}")]
    Name {
        /// What is named: `cluster id`.
        what: &'static str,
        /// The name.
        name: String,
        /// The rule it breaks.
        rule: String,
    },
    /// A key or certificate cannot be generated.
    #[error("cannot generate a certificate: {0}")]
    Generate(
        /// What the generator said.
        #[from]
        rcgen::Error,
    ),
}
