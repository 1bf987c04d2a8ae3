//! What the replicated log drives: the daemon's state, seen through three calls.

/// One committed command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedEntry<'a> {
    /// Its index in the log; rises, with gaps.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// The command, as it was proposed.
    pub command: &'a [u8],
}

/// The state that the log drives. Called from the replication thread only, which does nothing else meanwhile: no call may
/// wait for anything.
pub trait StateMachine: Send + 'static {
    /// What applying one command gives.
    type Outcome: Send + 'static;

    /// Applies committed commands in order and gives one outcome for each. Must be deterministic: same log, same state, on every
    /// member. One call takes a whole batch, so that a lock is taken once.
    fn apply(&mut self, entries: &[AppliedEntry<'_>]) -> Vec<Self::Outcome>;

    /// The whole state as bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the whole state by one that [`StateMachine::snapshot`] gave at `index`; the error says why it cannot.
    fn restore(&mut self, index: u64, bytes: &[u8]) -> Result<(), String>;
}

/// A command that was proposed here is on a majority's disks and applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied<O> {
    /// Its index in the log.
    pub index: u64,
    /// What applying it gave.
    pub outcome: O,
}
