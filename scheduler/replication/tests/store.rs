//! The log store on both disks: what it keeps, what it refuses, and what it says then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::path::Path;

use raft::eraftpb::{ConfState, Entry, HardState};
use trainyard_replication::store::{
    Disk, LogStore, MemoryDisk, Owner, Platter, Position, SledDisk, SnapshotInfo, Stored,
};
use trainyard_replication::{StartError, StoreError};

const VOTERS: [u64; 3] = [1, 2, 3];

fn owner() -> Owner {
    Owner {
        cluster_id: "yard".into(),
        member_id: 2,
    }
}

fn entries(range: std::ops::Range<u64>, term: u64, bytes: usize) -> Vec<Entry> {
    range
        .map(|index| Entry {
            index,
            term,
            data: vec![(index % 251) as u8; bytes].into(),
            context: index.to_le_bytes().to_vec().into(),
            ..Entry::default()
        })
        .collect()
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote: 1,
        commit,
        ..HardState::default()
    }
}

fn info(index: u64, term: u64) -> SnapshotInfo {
    SnapshotInfo {
        position: Position { index, term },
        conf_state: ConfState {
            voters: VOTERS.to_vec(),
            ..ConfState::default()
        },
    }
}

fn open_memory(platter: &Platter) -> Result<(LogStore<MemoryDisk>, Stored), StartError> {
    LogStore::open(platter.open(), &owner(), &VOTERS)
}

fn open_sled(path: &Path) -> Result<(LogStore<SledDisk>, Stored), StartError> {
    LogStore::open(SledDisk::open(path)?, &owner(), &VOTERS)
}

fn indices(stored: &Stored) -> Vec<(u64, u64)> {
    stored
        .entries
        .iter()
        .map(|entry| (entry.index, entry.term))
        .collect()
}

fn log_key(sequence: u64) -> Vec<u8> {
    let mut key = b"l".to_vec();
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

/// The same story on both disks.
fn story<D: Disk>(open: &dyn Fn() -> Result<(LogStore<D>, Stored), StartError>) {
    let (mut store, stored) = open().unwrap();
    assert_eq!(stored.entries, []);
    assert_eq!(stored.truncated, Position { index: 1, term: 1 });
    assert_eq!(stored.conf_state.voters, VOTERS);

    // Small, overwritten and large batches.
    store
        .append(&hard_state(2, 1), &entries(2..10, 2, 100))
        .unwrap();
    store
        .append(&hard_state(3, 5), &entries(7..9, 3, 100))
        .unwrap();
    store
        .append(&hard_state(3, 6), &entries(9..12, 3, 100_000))
        .unwrap();
    store.append(&hard_state(4, 6), &[]).unwrap();
    store.sync().unwrap();
    drop(store);

    let (mut store, stored) = open().unwrap();
    assert_eq!(stored.hard_state, hard_state(4, 6));
    let terms: Vec<(u64, u64)> = (2..7)
        .map(|i| (i, 2))
        .chain((7..12).map(|i| (i, 3)))
        .collect();
    assert_eq!(indices(&stored), terms);
    assert_eq!(stored.entries[7..], entries(9..12, 3, 100_000));

    // A snapshot of our own: written in pieces, counts only when finished.
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    store.begin_snapshot(info(6, 2), bytes.clone().into());
    assert!(!store.write_snapshot(100_000).unwrap());
    store.sync().unwrap();
    drop(store);
    let (mut store, stored) = open().unwrap();
    assert_eq!(stored.snapshot, None);
    assert_eq!(store.read_snapshot().unwrap(), None);
    store.begin_snapshot(info(6, 2), bytes.clone().into());
    let truncated = Position { index: 4, term: 2 };
    store
        .finish_snapshot(truncated, true, &hard_state(4, 6))
        .unwrap();
    while store.maintain(10).unwrap() {}
    store.sync().unwrap();
    drop(store);

    let (mut store, stored) = open().unwrap();
    assert_eq!(stored.snapshot, Some(info(6, 2)));
    assert_eq!(stored.truncated, truncated);
    assert_eq!(indices(&stored), terms[3..]);
    assert_eq!(store.read_snapshot().unwrap(), Some(bytes.clone()));

    // A snapshot from a peer replaces everything; a reader of the old one is not disturbed.
    let mut reader = store.snapshot_source().unwrap();
    store.begin_snapshot(info(50, 6), b"small".to_vec().into());
    let position = Position { index: 50, term: 6 };
    store
        .finish_snapshot(position, false, &hard_state(6, 50))
        .unwrap();
    store
        .append(&hard_state(6, 50), &entries(51..53, 6, 10))
        .unwrap();
    store.sync().unwrap();
    while store.maintain(1000).unwrap() {}
    let mut read = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        read.extend_from_slice(&chunk);
    }
    assert_eq!(read, bytes);
    drop(reader);
    while store.maintain(1000).unwrap() {}
    store.sync().unwrap();
    drop(store);
    let (store, stored) = open().unwrap();
    assert_eq!(indices(&stored), [(51, 6), (52, 6)]);
    assert_eq!(stored.truncated, position);
    assert_eq!(stored.hard_state, hard_state(6, 50));
    assert_eq!(store.read_snapshot().unwrap(), Some(b"small".to_vec()));
}

#[test]
fn everything_survives_on_the_memory_disk() {
    let platter = Platter::new();
    story(&|| open_memory(&platter));
    let chunks = platter.keys().iter().filter(|key| key[0] == b's').count();
    assert_eq!(chunks, 1, "old snapshots are removed");
}

#[test]
fn everything_survives_on_sled() {
    let directory = tempfile::tempdir().unwrap();
    story(&|| open_sled(directory.path()));
}

#[test]
fn large_values_never_become_files_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open_sled(directory.path()).unwrap();
    for round in 0..40_u64 {
        let first = 2 + round * 4;
        store
            .append(&hard_state(2, 1), &entries(first..first + 4, 2, 29_000))
            .unwrap();
        store.sync().unwrap();
    }
    store.begin_snapshot(info(100, 2), vec![7; 3_000_000].into());
    let truncated = Position { index: 90, term: 2 };
    store
        .finish_snapshot(truncated, true, &hard_state(2, 100))
        .unwrap();
    while store.maintain(7).unwrap() {}
    store.sync().unwrap();
    drop(store);
    let blobs = directory.path().join("log/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
    let (_, stored) = open_sled(directory.path()).unwrap();
    assert_eq!(stored.entries.len(), 71);
}

#[test]
fn compaction_gives_space_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open_sled(directory.path()).unwrap();
    let mut first = 2;
    for _ in 0..15 {
        for _ in 0..20 {
            let batch = entries(first..first + 10, 2, 20_000);
            store.append(&hard_state(2, 1), &batch).unwrap();
            store.sync().unwrap();
            first += 10;
        }
        let last = Position {
            index: first - 1,
            term: 2,
        };
        store.begin_snapshot(info(last.index, 2), vec![1; 1_000_000].into());
        store
            .finish_snapshot(last, true, &hard_state(2, last.index))
            .unwrap();
        while store.maintain(64).unwrap() {
            store.sync().unwrap();
        }
    }
    let written = 15 * 20 * 10 * 20_000;
    let bytes = store.disk_bytes();
    assert!(
        bytes < written / 2,
        "{bytes} bytes on the disk after {written}"
    );
}

#[test]
fn another_cluster_or_member_is_refused_by_name() {
    let platter = Platter::new();
    open_memory(&platter).unwrap();
    let other = Owner {
        cluster_id: "other".into(),
        member_id: 2,
    };
    let error = LogStore::open(platter.open(), &other, &VOTERS).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StartError::WrongOwner { .. }));
    for part in ["cluster yard", "member 2", "cluster other", "data_dir"] {
        assert!(text.contains(part), "{text}");
    }
    let other = Owner {
        member_id: 3,
        ..owner()
    };
    let error = LogStore::open(platter.open(), &other, &VOTERS).unwrap_err();
    assert!(matches!(
        error,
        StartError::WrongOwner {
            found_member: 2,
            member: 3,
            ..
        }
    ));
    let error = LogStore::open(platter.open(), &owner(), &[1, 2]).unwrap_err();
    assert!(matches!(error, StartError::MembersDiffer { .. }), "{error}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _held = open_sled(directory.path()).unwrap();
    let error = open_sled(directory.path()).unwrap_err();
    assert!(matches!(error, StartError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("this very process"), "{error}");
}

/// A store with three batches of one record each: sequences 2, 3 and 4 behind the first base's batch.
fn three_batches(platter: &Platter) {
    let (mut store, _) = open_memory(platter).unwrap();
    for first in [2, 12, 22] {
        store
            .append(&hard_state(2, first), &entries(first..first + 10, 2, 50))
            .unwrap();
        store.sync().unwrap();
    }
}

fn damaged_record(result: Result<(LogStore<MemoryDisk>, Stored), StartError>) -> String {
    match result.map(|_| ()).unwrap_err() {
        StartError::Store(error @ StoreError::Damaged { .. }) => {
            assert!(error.to_string().contains("trainyard-scheduler rejoin"));
            let StoreError::Damaged { record, .. } = error else {
                unreachable!()
            };
            record
        }
        other => panic!("{other}"),
    }
}

#[test]
fn every_flipped_bit_is_found_and_named() {
    for sequence in 1..=4 {
        for byte in [0, 1, 3, 6, 7, 40] {
            let platter = Platter::new();
            three_batches(&platter);
            assert!(platter.flip(&log_key(sequence), byte));
            let record = damaged_record(open_memory(&platter));
            assert_eq!(record, format!("log record {sequence}"));
        }
    }
    for (key, name) in [("i", "the identity record"), ("b", "the base record")] {
        let platter = Platter::new();
        three_batches(&platter);
        assert!(platter.flip(key.as_bytes(), 9));
        assert_eq!(damaged_record(open_memory(&platter)), name);
        assert!(platter.lose(key.as_bytes()));
        assert_eq!(damaged_record(open_memory(&platter)), name);
    }
}

#[test]
fn every_lost_record_is_found_and_named_even_the_last() {
    for sequence in 1..=4 {
        let platter = Platter::new();
        three_batches(&platter);
        assert!(platter.lose(&log_key(sequence)));
        let record = damaged_record(open_memory(&platter));
        assert_eq!(record, format!("log record {sequence}"));
    }
}

#[test]
fn a_damaged_snapshot_is_found() {
    let platter = Platter::new();
    three_batches(&platter);
    let (mut store, _) = open_memory(&platter).unwrap();
    store.begin_snapshot(info(20, 2), vec![3; 100_000].into());
    let truncated = Position { index: 20, term: 2 };
    store
        .finish_snapshot(truncated, true, &hard_state(2, 22))
        .unwrap();
    drop(store);
    let chunk = platter
        .keys()
        .into_iter()
        .rfind(|key| key[0] == b's')
        .unwrap();
    platter.flip(&chunk, 100);
    let (store, _) = open_memory(&platter).unwrap();
    let error = store.read_snapshot().unwrap_err();
    assert!(error.to_string().contains("of snapshot 1"), "{error}");
}

#[test]
fn an_unsynced_tail_is_dropped_and_a_synced_one_never() {
    for keep in 0..6 {
        for torn in [false, true] {
            let platter = Platter::new();
            three_batches(&platter);
            let (mut store, _) = open_memory(&platter).unwrap();
            // One batch of several records that was never synced.
            store
                .append(&hard_state(5, 31), &entries(32..36, 5, 29_000))
                .unwrap();
            assert_eq!(platter.unsynced(), 4);
            drop(store);
            platter.crash(keep, torn);
            let (mut store, stored) = open_memory(&platter).unwrap();
            let all = keep >= 4;
            let last = if all { (35, 5) } else { (31, 2) };
            assert_eq!(
                *indices(&stored).last().unwrap(),
                last,
                "keep {keep}, torn {torn}"
            );
            assert_eq!(stored.hard_state.term, if all { 5 } else { 2 });
            // And the place is usable again.
            store
                .append(&hard_state(6, 31), &entries(32..33, 6, 5))
                .unwrap();
            store.sync().unwrap();
            drop(store);
            platter.crash(0, false);
            let (_, stored) = open_memory(&platter).unwrap();
            assert_eq!(*indices(&stored).last().unwrap(), (32, 6));
        }
    }
}

#[test]
fn a_snapshot_counts_wholly_or_not_at_all() {
    for keep_log in [false, true] {
        for keep in 0..5 {
            for torn in [false, true] {
                let platter = Platter::new();
                three_batches(&platter);
                let (mut store, before) = open_memory(&platter).unwrap();
                let index = if keep_log { 20 } else { 100 };
                platter.set_failing(true);
                store.begin_snapshot(info(index, 2), b"bytes".to_vec().into());
                let position = Position { index, term: 2 };
                store
                    .finish_snapshot(position, keep_log, &hard_state(3, index.max(22)))
                    .unwrap_err();
                assert_eq!(platter.unsynced(), 3, "chunk, base, batch");
                drop(store);
                platter.crash(keep, torn);
                let (store, after) = open_memory(&platter).unwrap();
                if keep < 2 {
                    assert_eq!(after, before, "keep {keep}, torn {torn}");
                    continue;
                }
                assert_eq!(after.snapshot, Some(info(index, 2)));
                assert_eq!(after.truncated, position);
                assert_eq!(after.entries.len(), if keep_log { 11 } else { 0 });
                assert_eq!(after.hard_state, hard_state(3, index.max(22)));
                assert_eq!(store.read_snapshot().unwrap(), Some(b"bytes".to_vec()));
            }
        }
    }
}

#[test]
fn a_store_whose_making_was_cut_off_is_made_again() {
    for keep in 0..3 {
        let platter = Platter::new();
        platter.set_failing(true);
        open_memory(&platter).unwrap_err();
        platter.crash(keep, true);
        let (_, stored) = open_memory(&platter).unwrap();
        assert_eq!(stored.entries, []);
    }
}

fn sled_with_entries(path: &Path) {
    let (mut store, _) = open_sled(path).unwrap();
    for first in (2..200).step_by(2) {
        store
            .append(&hard_state(2, first), &entries(first..first + 2, 2, 3_000))
            .unwrap();
        store.sync().unwrap();
    }
}

#[test]
fn damage_anywhere_in_the_database_file_is_refused_or_harmless() {
    let mut refused = 0;
    for place in 0..24_u64 {
        let directory = tempfile::tempdir().unwrap();
        sled_with_entries(directory.path());
        let db = directory.path().join("log/db");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .read(true)
            .open(&db)
            .unwrap();
        let length = file.metadata().unwrap().len();
        let offset = length * place / 24 + 1_234;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], offset).unwrap();
        drop(file);
        match open_sled(directory.path()) {
            // A place that holds nothing, or an old version of a page.
            Ok((_, stored)) => {
                assert_eq!(stored.entries, entries(2..200, 2, 3_000), "offset {offset}");
            }
            Err(StartError::Store(error @ StoreError::Damaged { .. })) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.contains("rejoin"), "{text}");
            }
            Err(other) => panic!("offset {offset}: {other}"),
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_cut_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    sled_with_entries(directory.path());
    let db = directory.path().join("log/db");
    let file = std::fs::OpenOptions::new().write(true).open(&db).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length / 2).unwrap();
    drop(file);
    let error = open_sled(directory.path()).unwrap_err();
    assert!(
        matches!(error, StartError::Store(StoreError::Damaged { .. })),
        "{error}"
    );
}

#[test]
fn a_vanished_file_never_looks_like_a_new_member() {
    for name in ["log/db", "high-water"] {
        let directory = tempfile::tempdir().unwrap();
        sled_with_entries(directory.path());
        std::fs::remove_file(directory.path().join(name)).unwrap();
        let error = open_sled(directory.path()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(
            matches!(error, StartError::Store(StoreError::Damaged { .. })),
            "{error}"
        );
        // And it says so every time.
        open_sled(directory.path()).unwrap_err();
    }
}
