//! What client, scheduler and agent of Trainyard have in common.
//!
//! Without features the crate is pure: names, validation and the reading and printing of files, with no clock, file
//! system or environment, so that the command refuses exactly what the scheduler would. Behind features: `tls`
//! (identities), `client` (calls that survive the loss of a scheduler), `telemetry` (logging). It must never hold
//! anything that only one program needs.

pub mod duration;
pub mod file;
pub mod json;
pub mod names;
pub mod reason;
pub mod shares;
pub mod sweep;
pub mod time;
pub mod toolkit;
pub mod validate;

mod reflect;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "telemetry")]
pub mod telemetry;
#[cfg(feature = "tls")]
pub mod tls;
