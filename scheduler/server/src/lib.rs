//! Trainyard's scheduler daemon: the edge around the pure centre (`trainyard-core`) and the replicated log
//! (`trainyard-replication`).
//!
//! ```text
//! request ──► front (role, leader) ──► services, sessions ──► context.propose ──► replicated log ──► machine.apply
//!                                             ▲                                                        │
//!                                             └──────────── changes (wake-ups) ◄───────────────────────┘
//!                                                               │
//!                                        loops of the leader ◄──┘   placement, leases, deadlines, deletions, retention, power
//! ```
//!
//! It decides nothing about jobs and nodes itself. It reads clocks and sockets, so that the centre does not have to, and
//! must never hold a decision that is not in the log, except the leases and sessions of the present term.

pub mod changes;
pub mod channels;
pub mod cli;
pub mod config;
pub mod context;
pub mod export;
pub mod front;
pub mod init;
pub mod leadership;
pub mod logs;
pub mod loops;
pub mod machine;
pub mod page;
pub mod power;
pub mod run;
pub mod services;
pub mod sessions;
pub mod status;
pub mod watch;
