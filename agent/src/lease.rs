//! The node's right to run tasks: when it was renewed and until when it lasts.
//!
//! Who owns what: the scheduler grants the lease by acknowledging Hello and heartbeats; the agent counts it from
//! the moment it *sent* what was acknowledged, so that the agent's deadline is always the earlier of the two; the
//! file carries the deadline to the shims, which keep it alone should the agent be dead. [`Lease`] is pure: the
//! time is a parameter. A deadline never moves backwards, whatever order acknowledgements come in.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Heartbeats remembered while they wait for their acknowledgement; older ones no longer renew anything.
const IN_FLIGHT_MAX: usize = 64;

/// The calculation. Times are nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    lease_ns: u64,
    deadline_ns: u64,
    in_flight: VecDeque<(u64, u64)>,
}

impl Lease {
    /// A lease as an earlier life of the agent left it; 0: none.
    #[must_use]
    pub fn restored(deadline_ns: u64) -> Lease {
        Lease {
            lease_ns: 0,
            deadline_ns,
            in_flight: VecDeque::new(),
        }
    }

    /// A session was accepted: its Hello counts as a heartbeat sent at `hello_sent_ns`. Heartbeats of earlier
    /// sessions no longer count. Returns the deadline.
    pub fn welcomed(&mut self, hello_sent_ns: u64, lease_ms: u64) -> u64 {
        self.in_flight.clear();
        self.lease_ns = lease_ms.saturating_mul(1_000_000);
        self.renew(hello_sent_ns)
    }

    /// A heartbeat is about to be sent.
    pub fn sent(&mut self, sequence: u64, now_ns: u64) {
        if self.in_flight.len() == IN_FLIGHT_MAX {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back((sequence, now_ns));
    }

    /// A heartbeat was acknowledged. Returns the deadline, or `None` for a sequence that was never sent (or long
    /// ago), which renews nothing.
    pub fn acked(&mut self, sequence: u64) -> Option<u64> {
        let position = self
            .in_flight
            .iter()
            .position(|(sent, _)| *sent == sequence)?;
        let (_, sent_ns) = self.in_flight.drain(..=position).next_back()?;
        Some(self.renew(sent_ns))
    }

    /// When the lease ends.
    #[must_use]
    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }

    fn renew(&mut self, sent_ns: u64) -> u64 {
        self.deadline_ns = self.deadline_ns.max(sent_ns.saturating_add(self.lease_ns));
        self.deadline_ns
    }
}

/// `DATA/lease`: the deadline as 8 bytes, little-endian, written in place so that shims may keep it open.
#[derive(Debug)]
pub struct LeaseFile {
    file: File,
}

impl LeaseFile {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// When the file cannot be opened for reading and writing.
    pub fn open(path: &Path) -> io::Result<LeaseFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Tasks run as another user and have no business here; shims read it before they drop privileges.
            .mode(0o600)
            .open(path)?;
        Ok(LeaseFile { file })
    }

    /// The deadline; 0 where none was written.
    #[must_use]
    pub fn read(&self) -> u64 {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => 0,
        }
    }

    /// Replaces the deadline.
    ///
    /// # Errors
    /// When the write fails; the lease then ends earlier than it could, never later.
    pub fn write(&self, deadline_ns: u64) -> io::Result<()> {
        self.file.write_all_at(&deadline_ns.to_le_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn counts_from_the_sending_not_from_the_answer() {
        let mut lease = Lease::restored(0);
        assert_eq!(lease.welcomed(100 * MS, 1_000), 1_100 * MS);
        lease.sent(1, 500 * MS);
        // However late the answer comes, the deadline is the same.
        assert_eq!(lease.acked(1), Some(1_500 * MS));
    }

    #[test]
    fn unanswered_heartbeats_renew_nothing() {
        let mut lease = Lease::restored(0);
        lease.welcomed(0, 1_000);
        lease.sent(1, 400 * MS);
        lease.sent(2, 800 * MS);
        assert_eq!(lease.deadline_ns(), 1_000 * MS);
        assert_eq!(lease.acked(2), Some(1_800 * MS));
        assert_eq!(lease.acked(1), None, "an overtaken answer");
        assert_eq!(lease.acked(7), None, "an answer to nothing");
        assert_eq!(lease.deadline_ns(), 1_800 * MS);
    }

    #[test]
    fn a_new_session_forgets_the_old_heartbeats_and_never_shortens() {
        let mut lease = Lease::restored(5_000 * MS);
        lease.sent(1, 4_900 * MS);
        assert_eq!(lease.welcomed(3_000 * MS, 1_000), 5_000 * MS);
        assert_eq!(lease.acked(1), None);
    }

    #[test]
    fn what_waits_for_answers_is_bounded() {
        let mut lease = Lease::restored(0);
        lease.welcomed(0, 1_000);
        for sequence in 1..=1_000 {
            lease.sent(sequence, sequence);
        }
        assert_eq!(lease.in_flight.len(), IN_FLIGHT_MAX);
        assert_eq!(lease.acked(1_000), Some(1_000 + 1_000 * MS));
    }

    #[test]
    fn the_file_keeps_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lease");
        let file = LeaseFile::open(&path).unwrap();
        assert_eq!(file.read(), 0);
        file.write(u64::MAX - 1).unwrap();
        assert_eq!(LeaseFile::open(&path).unwrap().read(), u64::MAX - 1);
        assert_eq!(std::fs::read(&path).unwrap().len(), 8);
    }
}
