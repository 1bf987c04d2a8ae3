//! A process that writes to a real store is killed with SIGKILL again and again: what it called durable is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use raft::eraftpb::{ConfState, Entry, HardState};
use trainyard_replication::StartError;
use trainyard_replication::store::{
    LogStore, Owner, Position, SledDisk, SledStore, SnapshotInfo, Stored,
};

const DIRECTORY: &str = "TRAINYARD_TEST_KILL_DIRECTORY";

fn open(path: &Path) -> Result<(SledStore, Stored), StartError> {
    let owner = Owner {
        cluster_id: "yard".into(),
        member_id: 1,
    };
    LogStore::open(SledDisk::open(path)?, &owner, &[1])
}

fn hard_state(commit: u64) -> HardState {
    HardState {
        term: 2,
        vote: 1,
        commit,
        ..HardState::default()
    }
}

fn last(stored: &Stored) -> u64 {
    stored.truncated.index + stored.entries.len() as u64
}

/// The process that is killed: writes for ever, and says what is durable.
#[test]
fn writer() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let (mut store, stored) = open(Path::new(&directory)).unwrap();
    let mut index = last(&stored);
    let mut kept_from = stored.truncated.index;
    loop {
        let count = 1 + index % 7;
        let size = 100 + (index * 7919 % 20_000) as usize;
        let entries: Vec<Entry> = (index + 1..=index + count)
            .map(|index| Entry {
                index,
                term: 2,
                data: vec![index as u8; size].into(),
                ..Entry::default()
            })
            .collect();
        store.append(&hard_state(index), &entries).unwrap();
        store.sync().unwrap();
        index += count;
        say(index);
        if index - kept_from > 300 {
            let info = SnapshotInfo {
                position: Position { index, term: 2 },
                conf_state: ConfState {
                    voters: vec![1],
                    ..ConfState::default()
                },
            };
            store.begin_snapshot(info, vec![index as u8; 500_000].into());
            while !store.write_snapshot(100_000).unwrap() {
                store.sync().unwrap();
            }
            kept_from = index - 50;
            let truncated = Position {
                index: kept_from,
                term: 2,
            };
            store
                .finish_snapshot(truncated, true, &hard_state(index))
                .unwrap();
            say(index);
        }
        store.maintain(20).unwrap();
    }
}

fn say(index: u64) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\ndurable {index}").unwrap();
    out.flush().unwrap();
}

#[test]
fn what_was_called_durable_survives_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut total = 0;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut durable = 0;
        let mut left = random.usize(1..150);
        // Kept open until the writer is dead: a broken pipe would let it end in order.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some(index) = line.strip_prefix("durable ") {
                durable = index.parse().unwrap();
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(durable > total, "round {round}: the writer went on");
        let (store, stored) = open(directory.path()).unwrap();
        total = last(&stored);
        assert!(total >= durable, "round {round}: {total} of {durable}");
        for entry in &stored.entries {
            assert!(entry.data.iter().all(|byte| *byte == entry.index as u8));
        }
        if let Some(info) = &stored.snapshot {
            let bytes = store.read_snapshot().unwrap().unwrap();
            assert_eq!(bytes, vec![info.position.index as u8; 500_000]);
            assert!(info.position.index >= stored.truncated.index);
        }
    }
}
