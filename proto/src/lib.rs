//! Trainyard's protocol: resources and services ([`v1`]) and the records the schedulers keep ([`store`]).
//!
//! Messages alone by default; tonic stubs behind the features `client` and `server`. This crate holds
//! generated code and nothing else: it must never contain behaviour, so that every reader of the protocol,
//! in any language, sees the same thing.

/// Resources, client services, the agent session and the peer protocol.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/trainyard.v1.rs"));
}

/// Commands of the replicated log and the snapshot of the state. Read by schedulers only.
pub mod store {
    /// First version of the records.
    #[allow(missing_docs, clippy::all, unreachable_pub)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/trainyard.store.v1.rs"));
    }
}

/// The encoded `FileDescriptorSet` of everything above, with imports and without comments: for gRPC
/// reflection and for reading and printing messages by field name.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
