//! The step machine around raft-rs's `RawNode`: inputs in, work out. The law of this crate is here.
//!
//! No clock, no thread, no socket, no disk: the driver and the simulator feed it ticks, messages and commands, and do what it says
//! in this order, always:
//!
//! 1. [`Node::ready`] gives [`Work`]: send `work.messages` (a leader's appends may travel while it writes),
//! 2. write `work.write` to the store **and sync it**,
//! 3. [`Node::persisted`] gives [`Done`]: send `done.messages`, restore `done.snapshot`, apply `done.committed`,
//! 4. [`Node::applied`].
//!
//! Every proposal and every read carries a token of the caller's choice; each comes back exactly once, either with its
//! committed entry or through [`Node::take_answers`].

mod inbound;
mod proposals;
mod reads;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use raft::eraftpb::Entry;
use raft::{Config, RawNode, Ready, StateRole};

use crate::error::{ProposeError, ReadError, TransferError};
use crate::log_view::LogView;
use crate::options::Limits;
use crate::store::{Position, SnapshotInfo, Stored};
use reads::Reads;

pub use inbound::StepError;
pub use work::{Committed, Done, Outbound, Payload, Work, Write};

/// Draws an election timeout in ticks from a range; a simulator hands in its own generator.
pub type Jitter = Box<dyn FnMut(Range<usize>) -> usize + Send>;

/// What a node is told when it starts.
pub struct NodeConfig {
    /// This member's id.
    pub id: u64,
    /// Ticks without a leader before an election; each wait is drawn between this and twice this.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks after which a read is given up.
    pub read_timeout_ticks: u64,
    /// Bytes of log above which proposals are refused.
    pub max_log_bytes: u64,
    /// Bounds of what queues.
    pub limits: Limits,
    /// Where election timeouts come from; raft-rs's thread-local generator without it.
    pub jitter: Option<Jitter>,
}

/// What a member is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// How far one member is, as the leader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberProgress {
    /// The member.
    pub id: u64,
    /// Highest index known to be on its disk; 0 unless this member leads.
    pub matched: u64,
    /// Whether anything was heard from it within the last election timeout.
    pub recent_active: bool,
}

/// A proposal in the log of this leader that is not committed yet.
struct Inflight<P> {
    index: u64,
    id: u64,
    token: P,
}

/// Tokens that came back without a committed entry.
#[derive(Debug)]
pub struct Answers<P, R> {
    /// Proposals that failed.
    pub proposals: Vec<(P, ProposeError)>,
    /// Reads that may be served now, with the index that was confirmed.
    pub reads: Vec<(R, u64)>,
    /// Reads that failed.
    pub failed_reads: Vec<(R, ReadError)>,
}

impl<P, R> Default for Answers<P, R> {
    fn default() -> Self {
        Answers {
            proposals: Vec::new(),
            reads: Vec::new(),
            failed_reads: Vec::new(),
        }
    }
}

/// The step machine: see the module. `P` is the token of a proposal, `R` that of a read.
pub struct Node<P, R> {
    raw: RawNode<LogView>,
    limits: Limits,
    max_log_bytes: u64,
    election_ticks: usize,
    jitter: Option<Jitter>,
    /// The timeout that the jitter drew last.
    drawn: usize,
    now: u64,
    /// When each peer was heard from last, in ticks.
    heard: BTreeMap<u64, u64>,
    /// In order of their index; all of the current term.
    inflight: VecDeque<Inflight<P>>,
    inflight_term: u64,
    next_proposal: u64,
    reads: Reads<R>,
    answers: Answers<P, R>,
    /// Between `ready` and `persisted`.
    pending: Option<Ready>,
    /// Membership changes among the committed entries that are being applied.
    membership: Vec<Entry>,
    bytes_since_snapshot: u64,
}

impl<P, R> Node<P, R> {
    /// A node over what the store held. Its state machine must stand at the stored snapshot.
    pub fn new(config: NodeConfig, stored: Stored) -> raft::Result<Self> {
        let applied = stored
            .snapshot
            .as_ref()
            .map_or(stored.truncated.index, |snapshot| snapshot.position.index);
        let peers: Vec<u64> = stored.conf_state.voters.clone();
        let raft_config = Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied,
            max_size_per_msg: config.limits.max_message_bytes,
            max_inflight_msgs: config.limits.max_inflight_messages,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: config.election_ticks,
            // With our own generator, raft-rs's draw only has to be recognisable: from so wide a range it never
            // equals ours by chance.
            max_election_tick: match config.jitter {
                Some(_) => usize::MAX / 2,
                None => 2 * config.election_ticks,
            },
            read_only_option: raft::ReadOnlyOption::Safe,
            // A follower learns of a commit with the next append or heartbeat; a message of its own for each would wake
            // every member twice per write.
            skip_bcast_commit: true,
            batch_append: false,
            priority: 0,
            max_uncommitted_size: config.limits.max_uncommitted_bytes,
            max_committed_size_per_ready: config.limits.max_apply_bytes,
        };
        let raw = RawNode::new(
            &raft_config,
            LogView::new(stored),
            &crate::logging::logger(),
        )?;
        let mut node = Node {
            raw,
            limits: config.limits,
            max_log_bytes: config.max_log_bytes,
            election_ticks: config.election_ticks,
            jitter: config.jitter,
            drawn: 0,
            now: 0,
            heard: peers.into_iter().map(|id| (id, 0)).collect(),
            inflight: VecDeque::new(),
            inflight_term: 0,
            next_proposal: 1,
            reads: Reads::new(config.read_timeout_ticks),
            answers: Answers::default(),
            pending: None,
            membership: Vec::new(),
            bytes_since_snapshot: 0,
        };
        node.settle();
        Ok(node)
    }

    /// One tick of the clock has passed.
    pub fn tick(&mut self) {
        self.now += 1;
        self.raw.tick();
        self.reads.expire(self.now, &mut self.answers.failed_reads);
        self.settle();
    }

    /// Starts an election at once, for tests and for the only member of a cluster.
    pub fn campaign(&mut self) {
        if let Err(error) = self.raw.campaign() {
            tracing::warn!(%error, "cannot start an election");
        }
        self.settle();
    }

    /// A peer could not be reached: messages to it may be lost.
    pub fn report_unreachable(&mut self, peer: u64) {
        self.raw.report_unreachable(peer);
        self.settle();
    }

    /// A snapshot to a peer has arrived, or has not.
    pub fn report_snapshot(&mut self, peer: u64, arrived: bool) {
        let status = match arrived {
            true => raft::SnapshotStatus::Finish,
            false => raft::SnapshotStatus::Failure,
        };
        self.raw.report_snapshot(peer, status);
        self.settle();
    }

    /// Begins to hand leadership to `to`, or to the peer that is furthest; gives the chosen one. It has happened once this node
    /// follows.
    pub fn transfer(&mut self, to: Option<u64>) -> Result<u64, TransferError> {
        if !self.is_leader() {
            return Err(TransferError::NotLeader {
                leader: self.leader(),
            });
        }
        let own = self.raw.raft.id;
        let members = self.members();
        let best = members
            .iter()
            .filter(|member| {
                member.id != own && member.recent_active && to.is_none_or(|to| to == member.id)
            })
            .max_by_key(|member| member.matched)
            .ok_or(TransferError::NoTarget)?;
        self.raw.transfer_leader(best.id);
        self.settle();
        Ok(best.id)
    }

    /// Gives up a transfer of leadership that did not happen.
    pub fn abort_transfer(&mut self) {
        self.raw.raft.abort_leader_transfer();
        self.settle();
    }

    /// What every input must end with: our own election timeout, tokens that lost their leader, the next round of reads.
    fn settle(&mut self) {
        let range = self.election_ticks..2 * self.election_ticks;
        if let Some(jitter) = &mut self.jitter
            && self.raw.raft.randomized_election_timeout() != self.drawn
        {
            self.drawn = jitter(range);
            self.raw.raft.set_randomized_election_timeout(self.drawn);
        }
        if !self.is_leader() || self.inflight_term != self.raw.raft.term {
            for inflight in self.inflight.drain(..) {
                let answer = (inflight.token, ProposeError::Uncertain);
                self.answers.proposals.push(answer);
            }
        }
        if !self.is_leader() {
            let leader = self.leader();
            self.reads
                .lose_leadership(leader, &mut self.answers.failed_reads);
        } else if self.raw.raft.commit_to_current_term()
            && let Some(context) = self.reads.next_round()
        {
            self.raw.read_index(context);
        }
    }

    /// Takes the tokens whose fate is decided.
    pub fn take_answers(&mut self) -> Answers<P, R> {
        self.reads.release(self.applied_index(), &mut self.answers);
        std::mem::take(&mut self.answers)
    }

    /// Gives up every token, because the node stops.
    pub fn abandon(&mut self) -> (Vec<P>, Vec<R>) {
        let proposals = self.inflight.drain(..).map(|inflight| inflight.token);
        (proposals.collect(), self.reads.abandon())
    }

    /// A snapshot that this member took is durable and the log before `truncated` is gone from the store.
    pub fn compacted(&mut self, snapshot: SnapshotInfo, truncated: Position) {
        self.raw.mut_store().compacted(snapshot, truncated);
    }

    /// What a snapshot of the applied state stands for.
    pub fn snapshot_info(&self) -> SnapshotInfo {
        let index = self.applied_index();
        let term = self.raw.raft.raft_log.term(index).unwrap_or(0);
        SnapshotInfo {
            position: Position { index, term },
            conf_state: self.raw.raft.prs().conf().to_conf_state(),
        }
    }

    /// Up to where the log may go once a snapshot stands at `snapshot`, keeping about `retain` bytes before it.
    pub fn compaction_point(&self, snapshot: Position, retain: u64) -> Position {
        self.raw.store().compaction_point(snapshot, retain)
    }

    /// Committed bytes since the last snapshot was begun.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// A snapshot is being taken: counts its bytes anew.
    pub fn snapshot_begun(&mut self) {
        self.bytes_since_snapshot = 0;
    }

    /// Whether a peer needed a snapshot that is not there, since the last call.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.raw.store().take_snapshot_wanted()
    }

    /// The hard state, with a commit index that the durable log reaches.
    pub fn durable_hard_state(&self) -> raft::eraftpb::HardState {
        let mut hard_state = self.raw.raft.hard_state();
        hard_state.commit = hard_state.commit.min(self.raw.store().last());
        hard_state
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether this node leads and has applied an entry of its own term, so that its state is complete.
    pub fn is_ready(&self) -> bool {
        self.is_leader() && self.raw.raft.apply_to_current_term()
    }

    /// What this node is doing.
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        }
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// The highest committed index that this node knows of.
    pub fn committed_index(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// The highest applied index.
    pub fn applied_index(&self) -> u64 {
        self.raw.raft.raft_log.applied()
    }

    /// The last index of the log, durable or not.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// The first index of the log.
    pub fn first_index(&self) -> u64 {
        self.raw.store().truncated().index + 1
    }

    /// The index of the newest snapshot, 0 without one.
    pub fn snapshot_index(&self) -> u64 {
        self.raw
            .store()
            .snapshot()
            .map_or(0, |snapshot| snapshot.position.index)
    }

    /// Bytes of the log in memory.
    pub fn log_bytes(&self) -> u64 {
        self.raw.store().bytes()
    }

    /// All voting members, in order of their ids.
    pub fn members(&self) -> Vec<MemberProgress> {
        let own = self.raw.raft.id;
        let leads = self.is_leader();
        let mut members: Vec<MemberProgress> = self
            .raw
            .raft
            .prs()
            .iter()
            .map(|(id, progress)| {
                let heard = self.heard.get(id).copied().unwrap_or(0);
                let silence = self.now.saturating_sub(heard);
                MemberProgress {
                    id: *id,
                    matched: if leads { progress.matched } else { 0 },
                    recent_active: *id == own || heard > 0 && silence <= self.election_ticks as u64,
                }
            })
            .collect();
        members.sort_unstable_by_key(|member| member.id);
        members
    }
}
