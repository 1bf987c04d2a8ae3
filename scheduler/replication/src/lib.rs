//! Trainyard's replicated log: raft-rs on sled.
//!
//! Layers, each usable without the ones below it in this list: [`store`] keeps the log on a disk, [`node`] is the pure step
//! machine around raft-rs, [`engine`] binds the two and the state machine in the one right order, and the driver is the one
//! thread that gives them a clock, a [`transport`] and the daemon. The daemon sees [`Replication`], [`Handle`] and
//! [`StateMachine`]; the simulator drives [`engine::Engine`] on a [`store::MemoryDisk`].
//!
//! What this crate must never do: know what a command means, read a configuration, or acknowledge what is not on a
//! majority's disks.

pub mod engine;
pub mod node;
pub mod store;
pub mod transport;

mod driver;
mod error;
mod handle;
mod inbox;
mod log_view;
mod logging;
mod machine;
mod options;
mod status;

pub use error::{
    FatalError, InboundError, ProposeError, ReadError, StartError, StoreError, TransferError,
};
pub use handle::{Handle, Inbound, Replication};
pub use machine::{Applied, AppliedEntry, StateMachine};
pub use options::{Limits, Member, Options};
pub use status::{MemberProgress, Role, Run, Status};
