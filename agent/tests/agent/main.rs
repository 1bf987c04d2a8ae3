//! The agent with real shims, helpers, files and sockets, in temporary directories.
//!
//! One binary, so that it is linked once. Nothing here needs root, a network or another machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attempts;
mod daemon;
mod exports;
mod files;
mod node;
mod scheduler;
mod sessions;
mod setup;
mod shim;
mod torch;
mod volumes;
