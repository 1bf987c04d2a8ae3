//! Test rigs for whole Trainyard clusters: real daemons on hosts that are real to the kernel.
//!
//! - [`hosts`] makes the hosts: network namespaces on one bridge, user-mode-linux machines, an NFS server.
//! - [`cluster`] starts schedulers and agents on them.
//!
//! Everything a rig starts lives in PID namespaces that end with the rig, and even with a test that is killed: no process,
//! mount or network link outlives its test. A rig must never touch the network namespace of the machine, nor end a process
//! by its name. All of it needs root and the packages that `tests/setup` installs.

pub mod cluster;
mod error;
pub mod hosts;
mod process;

pub use error::{Result, RigError};
pub use process::{Daemon, output, wait_until};
