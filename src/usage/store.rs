//! Where rows are kept: a small trait over byte tables; LMDB behind it is in `lmdb`.
//!
//! Used by the store thread ([`super::writer`]) alone. Must never be called from a worker or from the ledger thread: a
//! commit waits for the disk, and a read may wait for a page.

mod copy;
mod lmdb;

use std::path::PathBuf;

pub use self::lmdb::{Held, LmdbStore};

/// Schema this herdgate reads and writes. A store with a higher number is refused, one with a lower number migrated
/// (`usage/migration.rs`).
pub const SCHEMA: u32 = 2;
/// Key of the schema number in [`Table::Meta`].
pub(super) const SCHEMA_KEY: &[u8] = b"schema";

/// A table: an ordered map from bytes to bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "series.rs lists their keys, ledger.rs what they are for")]
#[repr(usize)]
pub enum Table {
    Meta,
    Dictionary,
    Pairs,
    Totals,
    MinutesByTime,
    MinutesByModel,
    DaysByTime,
    DaysByModel,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 8] = [
        Self::Meta,
        Self::Dictionary,
        Self::Pairs,
        Self::Totals,
        Self::MinutesByTime,
        Self::MinutesByModel,
        Self::DaysByTime,
        Self::DaysByModel,
    ];

    /// Its name in the LMDB file.
    const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Dictionary => "dictionary",
            Self::Pairs => "pairs",
            Self::Totals => "totals",
            Self::MinutesByTime => "minutes_by_time",
            Self::MinutesByModel => "minutes_by_model",
            Self::DaysByTime => "days_by_time",
            Self::DaysByModel => "days_by_model",
        }
    }
}

/// A key: at most 18 bytes; ours have 17, and a scan may begin right behind one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

impl Key {
    const BYTES_MAX: usize = 18;

    /// A key of these bytes.
    ///
    /// # Panics
    /// If there are more than 18 of them.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        let mut bytes = [0; Self::BYTES_MAX];
        bytes[..key.len()].copy_from_slice(key);
        Self { bytes, len: key.len() as u8 }
    }

    /// The first key behind this one.
    ///
    /// # Panics
    /// If there are more than 17 bytes.
    #[must_use]
    pub fn after(key: &[u8]) -> Self {
        assert!(key.len() < Self::BYTES_MAX, "a key of {} bytes has none behind it", key.len());
        let key = Self::new(key);
        Self { len: key.len + 1, ..key }
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Puts and deletes that belong together: all of them are stored, or none.
#[derive(Default, Debug)]
pub struct Writes {
    ops: Vec<(Table, Key, Option<std::ops::Range<usize>>)>,
    values: Vec<u8>,
}

impl Writes {
    /// Sets a value.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let start = self.values.len();
        self.values.extend_from_slice(value);
        self.ops.push((table, Key::new(key), Some(start..self.values.len())));
    }

    /// Takes a value away; one that is not there stays so.
    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.ops.push((table, Key::new(key), None));
    }

    /// Each write: table, key, and the value, or `None` for a delete.
    pub fn iter(&self) -> impl Iterator<Item = (Table, &[u8], Option<&[u8]>)> {
        self.ops
            .iter()
            .map(|(table, key, value)| (*table, key.as_bytes(), value.clone().map(|value| &self.values[value])))
    }

    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Number of puts and deletes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }
}

/// Which end a scan begins at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// From the smallest key.
    Ascending,
    /// From the greatest key.
    Descending,
}

/// What a store can fail with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// This time (disk full, input/output error): nothing of the batch is stored, try again.
    #[error("{0}")]
    Failed(String),
    /// The store must be opened anew before anything else works.
    #[error("the store must be reopened: {0}")]
    Broken(String),
    /// The contents are not what we wrote.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// Takes a found value, with its place in the list of wanted ones.
pub type Found<'a> = &'a mut dyn FnMut(usize, &[u8]);
/// Takes a key and its value; false ends the scan.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// The reading side.
pub trait Read {
    /// Looks up keys in one consistent view; those not there are left out.
    ///
    /// # Errors
    /// The store's.
    fn get_many(&self, wanted: &[(Table, Key)], found: Found<'_>) -> Result<(), StoreError>;

    /// Visits the entries with `from <= key <= to` in one consistent view.
    ///
    /// # Errors
    /// The store's.
    fn scan(&self, table: Table, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> Result<(), StoreError>;
}

/// A store with one user at a time.
pub trait Store: Read + Send {
    /// Stores all writes or none. A batch given again after a failure leads to the same contents.
    ///
    /// # Errors
    /// The store's; nothing of the batch counts as stored then.
    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError>;

    /// Makes every commit so far survive a loss of power.
    ///
    /// # Errors
    /// The store's.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Entries of a table.
    ///
    /// # Errors
    /// The store's.
    fn entries(&self, table: Table) -> Result<u64, StoreError>;

    /// Makes a copy of everything that outlives this process and this version, before a migration from `schema`; says
    /// where it is. A copy of just these contents that is whole already is left as it is. `None` where nothing lasts.
    ///
    /// # Errors
    /// The store's: there is no copy then.
    fn copy_aside(&mut self, schema: u32) -> Result<Option<PathBuf>, StoreError>;

    /// Clears what dead readers left behind.
    ///
    /// # Errors
    /// The store's.
    fn housekeep(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}
