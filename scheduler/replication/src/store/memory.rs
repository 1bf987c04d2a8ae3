//! A disk in memory that fails on demand: it loses its unsynced tail, tears a write, flips a bit, or is full.
//!
//! For tests and the simulator. It must behave like the real disk in everything that [`Disk`] promises, and break only what
//! a real disk may break.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::disk::{Disk, DiskReader, Visit};
use crate::error::StoreError;

/// The platter: what survives when a [`MemoryDisk`] is dropped. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Platter(Arc<Mutex<Image>>);

#[derive(Debug, Default)]
struct Image {
    durable: BTreeMap<Vec<u8>, Bytes>,
    pending: Vec<(Vec<u8>, Option<Bytes>)>,
    current: BTreeMap<Vec<u8>, Bytes>,
    mark: u64,
    syncs: u64,
    full: bool,
    failing: bool,
}

impl Platter {
    /// An empty platter.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the platter as a disk.
    pub fn open(&self) -> MemoryDisk {
        let mark = self.lock().mark;
        MemoryDisk {
            platter: self.clone(),
            mark,
        }
    }

    /// Power cut: of the writes since the last sync only the first `keep` survive; with `torn`, the one after them
    /// survives in half. A value that replaces another is torn whole, as the real disk writes no page in place: the
    /// old value stays.
    pub fn crash(&self, keep: usize, torn: bool) {
        let mut image = self.lock();
        let pending = std::mem::take(&mut image.pending);
        for (number, (key, value)) in pending.into_iter().enumerate() {
            let value = match (number < keep, number == keep && torn) {
                (true, _) => value,
                (false, true) if image.durable.contains_key(&key) => break,
                (false, true) => value.map(|value| value.slice(..value.len() / 2)),
                (false, false) => break,
            };
            set(&mut image.durable, key, value);
        }
        image.current = image.durable.clone();
        image.full = false;
        image.failing = false;
    }

    /// Flips one bit of the value of `key`, durably; tells whether there is one.
    pub fn flip(&self, key: &[u8], byte: usize) -> bool {
        let mut image = self.lock();
        let Some(value) = image.durable.get(key) else {
            return false;
        };
        let mut bytes = value.to_vec();
        let place = byte % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(place) {
            *byte ^= 0x10;
        }
        let bytes = Bytes::from(bytes);
        image.durable.insert(key.to_vec(), bytes.clone());
        image.current.insert(key.to_vec(), bytes);
        true
    }

    /// Drops a key, durably, as damage would; tells whether it was there.
    pub fn lose(&self, key: &[u8]) -> bool {
        let mut image = self.lock();
        image.current.remove(key);
        image.durable.remove(key).is_some()
    }

    /// From now on there is no room for another write.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// From now on every sync fails.
    pub fn set_failing(&self, failing: bool) {
        self.lock().failing = failing;
    }

    /// Writes that no sync has covered yet.
    pub fn unsynced(&self) -> usize {
        self.lock().pending.len()
    }

    /// How often it was synced.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        self.lock().current.keys().cloned().collect()
    }
}

fn set(map: &mut BTreeMap<Vec<u8>, Bytes>, key: Vec<u8>, value: Option<Bytes>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// A disk in memory: see the module.
#[derive(Debug)]
pub struct MemoryDisk {
    platter: Platter,
    mark: u64,
}

impl MemoryDisk {
    fn write(&mut self, key: &[u8], value: Option<Bytes>) -> Result<(), StoreError> {
        let mut image = self.platter.lock();
        if image.full && value.is_some() {
            return Err(StoreError::Full {
                what: "memory disk".to_owned(),
            });
        }
        image.pending.push((key.to_vec(), value.clone()));
        set(&mut image.current, key.to_vec(), value);
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn place(&self) -> String {
        "memory disk".to_owned()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.platter.lock().current.get(key).cloned())
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.write(key, Some(value.into()))
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.write(key, None)
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let image = self.platter.lock();
        for (key, value) in image.current.range(prefix.to_vec()..) {
            if !key.starts_with(prefix) || !visit(key, value.clone())? {
                break;
            }
        }
        Ok(())
    }

    fn sync(&mut self, mark: u64) -> Result<(), StoreError> {
        let mut image = self.platter.lock();
        if image.failing {
            return Err(StoreError::Io {
                what: "sync of the memory disk".to_owned(),
                why: "it was told to fail".to_owned(),
            });
        }
        for (key, value) in std::mem::take(&mut image.pending) {
            set(&mut image.durable, key, value);
        }
        image.mark = mark;
        image.syncs += 1;
        Ok(())
    }

    fn mark(&self) -> u64 {
        self.mark
    }

    fn reader(&self) -> Box<dyn DiskReader> {
        Box::new(self.platter.clone())
    }

    fn bytes(&self) -> u64 {
        let image = self.platter.lock();
        image
            .current
            .iter()
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum()
    }
}

impl DiskReader for Platter {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.lock().current.get(key).cloned())
    }
}
