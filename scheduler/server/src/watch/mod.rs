//! Watches: of one job ([`job`]), and of every change below some prefixes of names ([`stream`]), which reads from the
//! [`ring`] that applying fills.
//!
//! A watcher holds a position or a wake-up, never a queue: a slow client costs no memory, and applying never waits for
//! one.

pub mod job;
pub mod ring;
pub mod stream;
