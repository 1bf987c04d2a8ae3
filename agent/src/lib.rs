//! The agent: one daemon per host that takes assignments from the schedulers and carries them out.
//!
//! Shape: [`reconcile`] decides purely what to do from the desired view and what the node holds; [`supervisor`]
//! does it with one [`attempt`] runner per attempt; [`session`] carries both views over the wire and renews the
//! [`lease`]. Everything that can hang (mounts, the directories of a job, drivers) is touched by helper
//! processes with a deadline, never by the agent itself.
//!
//! The agent never decides the outcome of a job, never keeps a task running without a valid lease, and never
//! depends on the scheduler's crates.

pub mod attempt;
pub mod board;
pub mod clock;
pub mod config;
pub mod confine;
pub mod daemon;
pub mod environment;
pub mod exports;
pub mod files;
pub mod helper;
pub mod inventory;
pub mod launch;
pub mod layout;
pub mod lease;
pub mod leftovers;
pub mod reconcile;
pub mod record;
pub mod retention;
pub mod session;
pub mod setup;
pub mod share;
pub mod shim;
pub mod supervisor;
pub mod volumes;
