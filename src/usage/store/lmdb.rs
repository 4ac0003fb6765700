//! Rows in an LMDB environment of our own, and the lock file that says whose it is.
//!
//! Opened by the ledger's opener ([`crate::usage::ledger`]), used by the store thread. Must never be opened twice, nor by
//! two processes. All unsafe of the crate is here: three calls of heed.

use std::fs::{File, Metadata, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, EnvFlags, EnvOpenOptions, MdbError, WithoutTls};

use super::copy;
use super::{Found, Key, Order, Read, SCHEMA, SCHEMA_KEY, Store, StoreError, Table, Visit, Writes};
use crate::sync::Arc;
use crate::usage::ledger::LedgerError;
use crate::usage::room;

/// Address space of the map. It costs nothing until used, since the file grows on demand; a full map doubles.
const MAP_BYTES: usize = 64 << 30;
/// Below this the map is not halved any further when address space is short.
const MAP_BYTES_MIN: usize = 1 << 30;

/// The file whose lock says whose the store is.
const HELD: &str = "held";

type Tables = [Database<'static, Bytes, Bytes>; Table::ALL.len()];

/// Rows in an LMDB environment of our own.
///
/// # Invariants
/// 1. The lock file is held as long as the environment is open, so no other process has it open.
/// 2. No transaction outlives a method, so none is alive in `grow`.
#[derive(Debug)]
pub struct LmdbStore {
    /// `None` once the map was lost in a failed resize: nothing may touch the environment then.
    open: Option<(heed::Env<WithoutTls>, Tables)>,
    map_bytes: usize,
    dir: PathBuf,
    /// Declared last: released after the environment is closed.
    held: Held,
}

/// The store is this process'. Clones share it; whoever opens a store again keeps one, so that nobody else takes it
/// between the loss of a map and the reopening.
#[derive(Clone, Debug)]
pub struct Held(Arc<File>);

impl Held {
    /// Whether it is this directory's: one that was removed and made again is another.
    fn is_of(&self, dir: &Path) -> bool {
        let place = |found: std::io::Result<Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
        place(self.0.metadata()).is_some_and(|ours| place(std::fs::metadata(dir.join(HELD))) == Some(ours))
    }
}

impl LmdbStore {
    /// Opens or makes the store in this directory.
    ///
    /// # Errors
    /// [`LedgerError::Held`] if a live process has it, [`LedgerError::Newer`] for a newer schema (not a byte is
    /// written then), [`LedgerError::Damaged`], [`LedgerError::Unavailable`] for the system's own errors.
    pub fn open(dir: &Path) -> Result<Self, LedgerError> {
        Self::open_with_map(dir, MAP_BYTES, MAP_BYTES_MIN)
    }

    /// As [`LmdbStore::open`], for who holds the store already.
    ///
    /// # Errors
    /// As [`LmdbStore::open`].
    pub fn open_again(dir: &Path, held: Option<Held>) -> Result<Self, LedgerError> {
        Self::open_as(dir, MAP_BYTES, MAP_BYTES_MIN, held)
    }

    /// What keeps others out for as long as a clone of it lives.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held.clone()
    }

    /// As [`LmdbStore::open`], with a map of `map_bytes`, halved at most down to `map_bytes_min` when address space is
    /// short.
    ///
    /// # Errors
    /// As [`LmdbStore::open`].
    pub fn open_with_map(dir: &Path, map_bytes: usize, map_bytes_min: usize) -> Result<Self, LedgerError> {
        Self::open_as(dir, map_bytes, map_bytes_min, None)
    }

    fn open_as(dir: &Path, map_bytes: usize, map_bytes_min: usize, held: Option<Held>) -> Result<Self, LedgerError> {
        std::fs::create_dir_all(dir).map_err(|error| unavailable(&error))?;
        let held = match held.filter(|held| held.is_of(dir)) {
            Some(held) => held,
            None => Held(Arc::new(hold(dir)?)),
        };
        room::make(dir).map_err(|error| unavailable(&error))?;
        let (env, map_bytes) = open_env(dir, map_bytes, map_bytes_min)?;
        check_schema(&env, dir)?;
        let tables = create_tables(&env).map_err(|error| open_error(dir, &error))?;
        env.clear_stale_readers().map_err(|error| open_error(dir, &error))?;
        Ok(Self { open: Some((env, tables)), map_bytes, dir: dir.to_owned(), held })
    }

    /// Bytes of the map now.
    #[must_use]
    pub fn map_bytes(&self) -> usize {
        self.map_bytes
    }

    fn parts(&self) -> Result<(&heed::Env<WithoutTls>, &Tables), StoreError> {
        self.open
            .as_ref()
            .map(|(env, tables)| (env, tables))
            .ok_or_else(|| StoreError::Broken("its map was lost".into()))
    }

    fn try_commit(&self, writes: &Writes) -> Result<heed::Result<()>, StoreError> {
        let (env, tables) = self.parts()?;
        let put_all = || {
            let mut txn = env.write_txn()?;
            for (table, key, value) in writes.iter() {
                match value {
                    Some(value) => tables[table as usize].put(&mut txn, key, value)?,
                    None => {
                        tables[table as usize].delete(&mut txn, key)?;
                    }
                }
            }
            txn.commit()
        };
        Ok(put_all())
    }

    /// Doubles the map.
    fn grow(&mut self) -> Result<(), StoreError> {
        let bytes = self.map_bytes.saturating_mul(2);
        let (env, _) = self.parts()?;
        #[expect(unsafe_code, reason = "LMDB cannot check that no transaction is active")]
        // SAFETY: LMDB asks that no transaction of this process is active. This type is the only user of the
        // environment (heed refuses a second opening, the lock file other processes), no transaction outlives a
        // method of it (invariant 2), and `&mut self` excludes a method running now.
        let resized = unsafe { env.resize(bytes) };
        match resized {
            Ok(()) => {
                tracing::info!(bytes, "the ledger's map was full and has been doubled");
                self.map_bytes = bytes;
                Ok(())
            }
            Err(error) => {
                // LMDB unmaps first: the old map is gone, whatever the error.
                self.open = None;
                Err(StoreError::Broken(format!("its map could not grow to {bytes} bytes: {error}")))
            }
        }
    }
}

impl Read for LmdbStore {
    fn get_many(&self, wanted: &[(Table, Key)], found: Found<'_>) -> Result<(), StoreError> {
        let (env, tables) = self.parts()?;
        let txn = env.read_txn().map_err(|error| store_error(&error))?;
        for (place, (table, key)) in wanted.iter().enumerate() {
            let value = tables[*table as usize].get(&txn, key.as_bytes()).map_err(|error| store_error(&error))?;
            if let Some(value) = value {
                found(place, value);
            }
        }
        Ok(())
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> Result<(), StoreError> {
        use std::ops::Bound::{Included, Unbounded};
        let (env, tables) = self.parts()?;
        let txn = env.read_txn().map_err(|error| store_error(&error))?;
        // LMDB knows no empty key.
        let span = (if from.is_empty() { Unbounded } else { Included(from) }, Included(to));
        let mut each = |entry: heed::Result<(&[u8], &[u8])>| {
            entry.map(|(key, value)| visit(key, value)).map_err(|error| store_error(&error))
        };
        let table = &tables[table as usize];
        match order {
            Order::Ascending => {
                for entry in table.range(&txn, &span).map_err(|error| store_error(&error))? {
                    if !each(entry)? {
                        break;
                    }
                }
            }
            Order::Descending => {
                for entry in table.rev_range(&txn, &span).map_err(|error| store_error(&error))? {
                    if !each(entry)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Store for LmdbStore {
    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        loop {
            match self.try_commit(writes)? {
                Err(heed::Error::Mdb(MdbError::MapFull)) => self.grow()?,
                done => return done.map_err(|error| store_error(&error)),
            }
        }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let (env, _) = self.parts()?;
        env.force_sync().map_err(|error| store_error(&error))
    }

    fn entries(&self, table: Table) -> Result<u64, StoreError> {
        let (env, tables) = self.parts()?;
        let count = || {
            let txn = env.read_txn()?;
            tables[table as usize].len(&txn)
        };
        count().map_err(|error| store_error(&error))
    }

    fn copy_aside(&mut self, schema: u32) -> Result<Option<PathBuf>, StoreError> {
        let (env, _) = self.parts()?;
        copy::aside(env, &self.dir, schema).map(Some)
    }

    fn housekeep(&mut self) -> Result<(), StoreError> {
        let (env, _) = self.parts()?;
        env.clear_stale_readers().map(drop).map_err(|error| store_error(&error))
    }
}

/// Takes the store for this process. The system gives it back when the process ends, however it ends.
fn hold(dir: &Path) -> Result<File, LedgerError> {
    let path = dir.join(HELD);
    let mut file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(|error| unavailable(&error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(LedgerError::Held { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(unavailable(&error)),
    }
    // Whose it is, for whoever looks; the lock does not depend on it, so a full disk is no reason to fail here.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Opens the environment, halving the map while address space is short.
fn open_env(dir: &Path, map_bytes: usize, map_bytes_min: usize) -> Result<(heed::Env<WithoutTls>, usize), LedgerError> {
    let mut bytes = map_bytes;
    loop {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(bytes).max_dbs(Table::ALL.len() as u32).max_readers(126);
        #[expect(unsafe_code, reason = "flags can trade away integrity")]
        // SAFETY: NO_META_SYNC keeps integrity; a loss of power may take back the last commit, which the final sync
        // and the bound of one tick allow for.
        unsafe {
            options.flags(EnvFlags::NO_META_SYNC)
        };
        #[expect(unsafe_code, reason = "LMDB maps a file that others could change")]
        // SAFETY: the map is undefined if the file is changed from outside. The directory is ours, the lock file keeps
        // out every other herdgate (so one process has it open), heed refuses a second opening in this one, and the
        // data directory must not be on a network file system (README).
        let opened = unsafe { options.open(dir) };
        match opened {
            Ok(env) => {
                if bytes < map_bytes {
                    tracing::warn!(bytes, wanted = map_bytes, "address space is short: the ledger's map is smaller");
                }
                return Ok((env, bytes));
            }
            Err(heed::Error::Io(error)) if error.kind() == ErrorKind::OutOfMemory && bytes / 2 >= map_bytes_min => {
                bytes /= 2;
            }
            Err(error) => return Err(open_error(dir, &error)),
        }
    }
}

/// Reads the schema number without writing a byte.
fn check_schema(env: &heed::Env<WithoutTls>, dir: &Path) -> Result<(), LedgerError> {
    let read = || -> heed::Result<Option<Vec<u8>>> {
        let txn = env.read_txn()?;
        let opened = env.open_databases_and_commit(txn, |opener, txn| {
            opener.open_database::<Bytes, Bytes>(txn, Some(Table::Meta.name())).map(CommitOrAbort::<_, ()>::Commit)
        })?;
        let Some(meta) = opened.commit().flatten() else { return Ok(None) };
        let txn = env.read_txn()?;
        Ok(meta.get(&txn, SCHEMA_KEY)?.map(<[u8]>::to_vec))
    };
    let Some(schema) = read().map_err(|error| open_error(dir, &error))? else { return Ok(()) };
    let Ok(schema) = schema.try_into().map(u32::from_be_bytes) else {
        return Err(LedgerError::Damaged {
            path: dir.to_owned(),
            reason: "the schema record has a wrong length".into(),
        });
    };
    if schema > SCHEMA {
        return Err(LedgerError::Newer { path: dir.to_owned(), found: schema, known: SCHEMA });
    }
    Ok(())
}

/// Opens the tables, making those that are missing, and writes the schema number into a new store.
fn create_tables(env: &heed::Env<WithoutTls>) -> heed::Result<Tables> {
    let txn = env.write_txn()?;
    let created = env.create_databases_and_commit(txn, |opener, txn| {
        let mut tables = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            tables.push(opener.create_database::<Bytes, Bytes>(txn, Some(table.name()))?);
        }
        if tables[Table::Meta as usize].get(txn, SCHEMA_KEY)?.is_none() {
            tables[Table::Meta as usize].put(txn, SCHEMA_KEY, &SCHEMA.to_be_bytes())?;
        }
        let tables: Result<[_; Table::ALL.len()], _> = tables.try_into();
        Ok::<_, heed::Error>(tables.map_or_else(|_| CommitOrAbort::Abort(()), CommitOrAbort::Commit))
    })?;
    Ok(created.commit().expect("one table was pushed for each of Table::ALL"))
}

fn unavailable(error: &std::io::Error) -> LedgerError {
    LedgerError::Unavailable { reason: error.to_string() }
}

/// An error of opening: what is not the system's is the file's.
fn open_error(dir: &Path, error: &heed::Error) -> LedgerError {
    let path = PathBuf::from(dir);
    match error {
        heed::Error::EnvAlreadyOpened => LedgerError::Held { path },
        heed::Error::Mdb(
            MdbError::Invalid
            | MdbError::Corrupted
            | MdbError::PageNotFound
            | MdbError::VersionMismatch
            | MdbError::Incompatible,
        ) => LedgerError::Damaged { path, reason: error.to_string() },
        _ => LedgerError::Unavailable { reason: error.to_string() },
    }
}

fn store_error(error: &heed::Error) -> StoreError {
    match error {
        heed::Error::Mdb(MdbError::Corrupted | MdbError::PageNotFound | MdbError::Invalid) => {
            StoreError::Damaged(error.to_string())
        }
        heed::Error::Mdb(MdbError::Panic | MdbError::MapResized | MdbError::BadRslot) => {
            StoreError::Broken(error.to_string())
        }
        _ => StoreError::Failed(error.to_string()),
    }
}
