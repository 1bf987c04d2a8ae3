//! The narrow trait behind which a disk stands: an ordered map from keys to values with one call that makes it durable.
//!
//! What every disk promises, and what its users may rely on: writes become durable in the order in which they were made (a
//! crash keeps a prefix of the unsynced ones); after [`Disk::sync`] nothing before it is lost. A disk knows nothing of logs
//! or snapshots.

use bytes::Bytes;

use crate::error::StoreError;

/// Sees one record of a scan; `false` ends the scan.
pub type Visit<'a> = dyn FnMut(&[u8], Bytes) -> Result<bool, StoreError> + 'a;

/// An ordered map on a disk.
pub trait Disk: Send + 'static {
    /// Names the place in errors, such as a path.
    fn place(&self) -> String;
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// Sets a value; durable after the next [`Disk::sync`].
    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError>;
    /// Removes a key; durable after the next [`Disk::sync`].
    fn remove(&mut self, key: &[u8]) -> Result<(), StoreError>;
    /// Calls `visit` for every key with this prefix, in order, until it says `false`. An unreadable record ends the scan
    /// with an error.
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;
    /// Makes everything durable, then remembers `mark` beside the map: see [`Disk::mark`].
    fn sync(&mut self, mark: u64) -> Result<(), StoreError>;
    /// The last mark whose sync certainly ended before the disk was opened; 0 if it was never synced. A store whose
    /// content does not reach its mark has lost what it once promised to keep.
    fn mark(&self) -> u64;
    /// A view that another thread may read from.
    fn reader(&self) -> Box<dyn DiskReader>;
    /// Bytes on the disk.
    fn bytes(&self) -> u64;
}

/// A view of a disk for reading from another thread.
pub trait DiskReader: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
}
