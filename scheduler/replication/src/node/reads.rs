//! Linearizable reads: many readers share one round of confirmations.
//!
//! One round is under way at a time; whoever asks meanwhile goes with the next. A reader may only ride on a round that began
//! after it asked. raft-rs repeats a round's question with every heartbeat, so a lost message costs time, never an answer;
//! and every reader has a deadline.

use std::collections::VecDeque;

use super::Answers;
use crate::error::ReadError;

struct Reader<R> {
    token: R,
    deadline: u64,
}

struct Round<R> {
    number: u64,
    readers: Vec<Reader<R>>,
}

pub(super) struct Reads<R> {
    timeout: u64,
    waiting: Vec<Reader<R>>,
    round: Option<Round<R>>,
    rounds: u64,
    /// Confirmed at an index that is not applied yet, in order of the index.
    confirmed: VecDeque<(u64, Vec<Reader<R>>)>,
}

impl<R> Reads<R> {
    pub(super) fn new(timeout: u64) -> Self {
        Reads {
            timeout,
            waiting: Vec::new(),
            round: None,
            rounds: 0,
            confirmed: VecDeque::new(),
        }
    }

    pub(super) fn ask(&mut self, token: R, now: u64) {
        self.waiting.push(Reader {
            token,
            deadline: now + self.timeout,
        });
    }

    /// Readers that wait for anything.
    pub(super) fn count(&self) -> usize {
        let round = self.round.as_ref().map_or(0, |round| round.readers.len());
        let confirmed = self.confirmed.iter().map(|(_, readers)| readers.len());
        self.waiting.len() + round + confirmed.sum::<usize>()
    }

    /// Begins the next round if readers wait and none is under way; gives its context.
    pub(super) fn next_round(&mut self) -> Option<Vec<u8>> {
        if self.waiting.is_empty() || self.round.is_some() {
            return None;
        }
        self.rounds += 1;
        self.round = Some(Round {
            number: self.rounds,
            readers: std::mem::take(&mut self.waiting),
        });
        Some(self.rounds.to_le_bytes().to_vec())
    }

    /// A majority has confirmed the round with this context at `index`.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64) {
        let matches = |round: &Round<R>| context == round.number.to_le_bytes();
        if let Some(round) = self.round.take_if(|round| matches(round)) {
            self.confirmed.push_back((index, round.readers));
        }
    }

    /// Answers the readers whose index is applied.
    pub(super) fn release<P>(&mut self, applied: u64, answers: &mut Answers<P, R>) {
        while let Some((index, readers)) = self.confirmed.pop_front() {
            if index > applied {
                self.confirmed.push_front((index, readers));
                break;
            }
            let readers = readers.into_iter().map(|reader| (reader.token, index));
            answers.reads.extend(readers);
        }
    }

    /// Fails the readers that no majority has confirmed; what is confirmed stays valid.
    pub(super) fn lose_leadership(
        &mut self,
        leader: Option<u64>,
        failed: &mut Vec<(R, ReadError)>,
    ) {
        let round = self
            .round
            .take()
            .into_iter()
            .flat_map(|round| round.readers);
        for reader in round.chain(self.waiting.drain(..)) {
            failed.push((reader.token, ReadError::NotLeader { leader }));
        }
    }

    pub(super) fn expire(&mut self, now: u64, failed: &mut Vec<(R, ReadError)>) {
        let mut drop_late = |readers: &mut Vec<Reader<R>>| {
            for reader in readers.extract_if(.., |reader| reader.deadline <= now) {
                failed.push((reader.token, ReadError::TimedOut));
            }
        };
        drop_late(&mut self.waiting);
        if let Some(round) = &mut self.round {
            drop_late(&mut round.readers);
        }
        for (_, readers) in &mut self.confirmed {
            drop_late(readers);
        }
        // A round whose readers are all gone must not keep the next one waiting.
        self.round.take_if(|round| round.readers.is_empty());
    }

    pub(super) fn abandon(&mut self) -> Vec<R> {
        let round = self
            .round
            .take()
            .into_iter()
            .flat_map(|round| round.readers);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, readers)| readers);
        round
            .chain(confirmed)
            .chain(self.waiting.drain(..))
            .map(|reader| reader.token)
            .collect()
    }
}
