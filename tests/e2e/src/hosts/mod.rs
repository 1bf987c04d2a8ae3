//! Hosts for tests, from cheap to complete.
//!
//! [`Net`] is one switched network of its own. [`Host`] on it is a set of namespaces (60 ms for three): enough for daemons,
//! partitions and the loss of all processes at once. [`Uml`] is a whole Linux with its own kernel (1.5 s): kernel NFS,
//! cgroup v2 and power cuts. [`Ganesha`] serves NFS from a host.

mod ganesha;
mod net;
mod uml;

pub use ganesha::Ganesha;
pub use net::{Host, Net};
pub use uml::{CommandId, Uml};
