//! The store thread's half of the ledger: turns batches into writes, folds minutes into days (`days`), answers questions
//! (`asking`).
//!
//! The only one who writes the store. [`Desk`] takes jobs from the ledger thread ([`super::ledger`]) one after the
//! other. Must never be waited for by a worker or by the ledger thread: every call here may stall with the disk.

mod asking;
mod days;
mod desk;

use std::collections::{HashSet, VecDeque};

use tokio::sync::oneshot;

pub use self::desk::Desk;
use super::answers::{Bucket, ModelStats, NamedRow, Span, TokenCount, UsageAnswer, UsageQuery};
use super::dictionary::Dictionary;
use super::fold::Batch;
use super::imported::{self, Import, Imported};
use super::ledger::LedgerError;
use super::migration::{Migration, Next};
use super::names::Names;
use super::query;
use super::series::{self, Row, StoredId, StoredParty};
use super::store::{Key, Read, Store, StoreError, Table, Writes};
use super::sums::Summing;
use crate::ids::UnixMinute;
use crate::sync::Arc;

/// Key in [`Table::Meta`] of the first minute that was never folded.
const FOLDED_KEY: &[u8] = b"folded_before";

/// Opens the store, or says why it cannot be had now.
pub type Opener = Box<dyn FnMut() -> Result<Box<dyn Store>, LedgerError> + Send>;

/// What the store said when it was opened.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Opened {
    /// All-time tokens so far.
    pub base: Vec<TokenCount>,
    /// Newest minute with a row.
    pub newest: Option<UnixMinute>,
    /// First minute never folded.
    pub folded_before: UnixMinute,
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;

/// A question and where its answer goes.
#[derive(Debug)]
pub enum Ask {
    /// All-time tokens per (node, model).
    TokenCounts(Reply<Vec<TokenCount>>),
    /// One model.
    Stats(Box<str>, Reply<ModelStats>),
    /// Rows of a span.
    Rows(Span, Reply<Vec<NamedRow>>),
    /// Sums over a range.
    Usage(UsageQuery, Reply<UsageAnswer>),
}

impl Ask {
    /// Answers with an error.
    pub fn refuse(self, error: LedgerError) {
        // Whoever asked may have gone: nothing is owed to them then.
        match self {
            Self::TokenCounts(reply) => drop(reply.send(Err(error))),
            Self::Stats(_, reply) => drop(reply.send(Err(error))),
            Self::Rows(_, reply) => drop(reply.send(Err(error))),
            Self::Usage(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// Work for the store thread.
#[derive(Debug)]
pub enum Job {
    /// Open the store, if it is not open.
    Open,
    /// Write these rows.
    Write(Batch),
    /// Answer, with rows that are not written yet laid over the store.
    Ask(Batch, Ask),
    /// Fold a slice of the minutes before `first_kept`.
    Fold(FoldJob),
    /// Import sums of an earlier accounting.
    Import(Box<Import>),
    /// Sync to the disk.
    Sync,
}

/// A slice of a fold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoldJob {
    /// Minutes before this one are folded.
    pub first_kept: UnixMinute,
    /// Whether to count the groups.
    pub count: bool,
    /// Whether to fold at all.
    pub trim: bool,
}

/// What a slice of a fold did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Folded {
    /// (node, model, UTC day) groups found before folding, if they were to be counted.
    pub groups: u64,
    /// First minute never folded.
    pub folded_before: UnixMinute,
    /// Whether nothing is left to fold.
    pub done: bool,
}

/// What the store thread says of a job.
#[derive(Debug)]
pub enum Report {
    /// The opening; `None` if it was open already.
    Opened(Result<Option<Opened>, LedgerError>),
    /// The batch that was to be written, its bases filled in as far as they were read, and whether it is stored.
    Written(Batch, Result<(), LedgerError>),
    /// A slice of a fold.
    Folded(Result<Folded, LedgerError>),
    /// An import.
    Imported(Result<Imported, LedgerError>),
    /// The sync.
    Synced(Result<(), LedgerError>),
}

/// The store and what is known of it.
pub struct Writer {
    opener: Opener,
    store: Option<Box<dyn Store>>,
    /// A store that cannot be used before it was migrated.
    migration: Option<Migration>,
    names: Arc<Names>,
    dictionary: Dictionary,
    /// (node, model) that had tokens, and their places in the order of first sight.
    pairs: HashSet<(StoredId, StoredId)>,
    pairs_unsaved: Vec<query::PlacedPair>,
    folded_before: UnixMinute,
    /// Transactions that moved minutes to their days.
    folds: u64,
    /// Questions that are answered in turns.
    summing: VecDeque<Summing>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("open", &self.store.is_some()).finish_non_exhaustive()
    }
}

impl Writer {
    /// A writer that opens its store with `opener` when told to.
    #[must_use]
    pub fn new(names: Arc<Names>, opener: Opener) -> Self {
        Self {
            opener,
            store: None,
            migration: None,
            names,
            dictionary: Dictionary::default(),
            pairs: HashSet::new(),
            pairs_unsaved: Vec::new(),
            folded_before: UnixMinute(0),
            folds: 0,
            summing: VecDeque::new(),
        }
    }

    /// Opens the store if it is not open.
    ///
    /// # Errors
    /// The opener's; [`LedgerError::Migrating`] when the store is of an older schema, each time a little nearer to its
    /// end (the first time it was only looked at); [`LedgerError::Unavailable`] when what is in it cannot be read.
    pub fn open(&mut self) -> Result<Option<Opened>, LedgerError> {
        if self.store.is_some() {
            return Ok(None);
        }
        let next = match self.migration.take() {
            Some(migration) => migration.go_on(),
            None => Migration::of((self.opener)()?),
        };
        let store = match next.map_err(|error| ledger_error(&error))? {
            Next::More(migration) => {
                let (done, of) = migration.progress();
                self.migration = Some(migration);
                return Err(LedgerError::Migrating { done, of });
            }
            Next::Ready(store) => store,
        };
        let opened = self.load(&*store).map_err(|error| ledger_error(&error))?;
        self.store = Some(store);
        Ok(Some(opened))
    }

    /// Reads what must be known of a store. Ids of an earlier store are forgotten: nothing else holds them.
    fn load(&mut self, store: &dyn Store) -> Result<Opened, StoreError> {
        self.dictionary = Dictionary::load(store)?;
        self.pairs = query::pairs(store)?.into_iter().map(|(pair, _)| pair).collect();
        self.pairs_unsaved.clear();
        self.folded_before = UnixMinute(0);
        store.get_many(&[(Table::Meta, Key::new(FOLDED_KEY))], &mut |_, value| {
            self.folded_before = series::split(value).map_or(UnixMinute(0), |[minute]| UnixMinute(minute));
        })?;
        Ok(Opened {
            base: query::token_counts(store, &self.dictionary)?,
            newest: query::newest_minute(store)?,
            folded_before: self.folded_before,
        })
    }

    /// Writes a batch: all of it or nothing. Fills in the bases that were not known; with them a batch that failed can
    /// be given again without doubling anything.
    fn write(&mut self, batch: &mut Batch) -> Result<(), LedgerError> {
        let Some(mut store) = self.store.take() else { return Err(not_open()) };
        let result = self.prepare(batch, &*store).and_then(|writes| store.commit(&writes));
        if !matches!(result, Err(StoreError::Broken(_))) {
            self.store = Some(store);
        }
        result.map_err(|error| ledger_error(&error))?;
        self.dictionary.saved();
        self.pairs_unsaved.clear();
        Ok(())
    }

    /// Turns a batch into writes: reads missing bases, gives out ids, and writes `base + delta` wherever it belongs.
    fn prepare(&mut self, batch: &mut Batch, view: &dyn Read) -> Result<Writes, StoreError> {
        let parties: Vec<StoredParty> =
            batch.rows.iter().map(|row| self.dictionary.party(&self.names, row.id)).collect();
        read_bases(batch, &parties, view)?;
        let mut writes = Writes::default();
        for (row, party) in batch.rows.iter().zip(&parties) {
            let mut sum = row.base.unwrap_or_default();
            sum.merge(&row.delta);
            put_row(&mut writes, row.id.bucket, *party, &sum);
            if row.id.bucket == Bucket::Total && sum.tokens().total() > 0 {
                self.note_pair(*party);
            }
        }
        self.write_unsaved(&mut writes);
        Ok(writes)
    }

    /// Adds the names and places that the store lacks.
    fn write_unsaved(&self, writes: &mut Writes) {
        self.dictionary.write_unsaved(writes);
        for ((node, model), place) in &self.pairs_unsaved {
            writes.put(Table::Pairs, &series::pair(*node, *model), &place.to_be_bytes());
        }
    }

    /// Gives a (node, model) that has tokens its place in the order of first sight, if it has none.
    fn note_pair(&mut self, party: StoredParty) {
        let place = self.pairs.len() as u32;
        let pair = (party.node, party.model);
        if self.pairs.insert(pair) {
            self.pairs_unsaved.push((pair, place));
        }
    }

    /// Imports sums of an earlier accounting: all of them or nothing. Importing the same again changes nothing.
    ///
    /// # Errors
    /// The store's; what it holds then is what it held.
    pub fn import(&mut self, import: &Import) -> Result<Imported, LedgerError> {
        let Some(mut store) = self.store.take() else { return Err(not_open()) };
        let result = self.import_in(import, &mut *store);
        if !matches!(result, Err(StoreError::Broken(_))) {
            self.store = Some(store);
        }
        result.map_err(|error| ledger_error(&error))
    }

    fn import_in(&mut self, import: &Import, store: &mut dyn Store) -> Result<Imported, StoreError> {
        // A copy: names of an import that comes to nothing stay out of the store.
        let mut dictionary = self.dictionary.clone();
        let mut plan = imported::plan(import, store, &mut dictionary, self.folded_before)?;
        if import.dry_run || !plan.said.conflicts.is_empty() || !plan.said.changed {
            return Ok(plan.said);
        }
        self.dictionary = dictionary;
        for party in plan.with_tokens {
            self.note_pair(party);
        }
        self.write_unsaved(&mut plan.writes);
        store.commit(&plan.writes)?;
        self.dictionary.saved();
        self.pairs_unsaved.clear();
        plan.said.written = true;
        Ok(plan.said)
    }

    /// Makes everything written so far survive a loss of power.
    ///
    /// # Errors
    /// The store's.
    pub fn sync(&mut self) -> Result<(), LedgerError> {
        self.store.as_mut().map_or(Ok(()), |store| store.sync()).map_err(|error| ledger_error(&error))
    }
}

/// Reads the bases of rows whose base is not known; all of them or none.
fn read_bases(batch: &mut Batch, parties: &[StoredParty], view: &dyn Read) -> Result<(), StoreError> {
    let wanted: Vec<(usize, (Table, Key))> = batch
        .rows
        .iter()
        .zip(parties)
        .enumerate()
        .filter(|(_, (row, _))| row.base.is_none())
        .map(|(place, (row, party))| {
            let key = match row.id.bucket {
                Bucket::Minute(minute) => (Table::MinutesByTime, Key::new(&series::by_time(minute.0, *party))),
                Bucket::Day(day) => (Table::DaysByTime, Key::new(&series::by_time(day.0, *party))),
                Bucket::Total => (Table::Totals, Key::new(&series::total(*party))),
            };
            (place, key)
        })
        .collect();
    let (places, keys): (Vec<usize>, Vec<(Table, Key)>) = wanted.into_iter().unzip();
    let rows = read_rows(view, &keys)?;
    for (place, row) in places.into_iter().zip(rows) {
        batch.rows[place].base = Some(row);
    }
    Ok(())
}

/// Reads rows; those not there are empty.
fn read_rows(view: &dyn Read, keys: &[(Table, Key)]) -> Result<Vec<Row>, StoreError> {
    let mut rows = vec![Row::default(); keys.len()];
    let mut damage = None;
    view.get_many(keys, &mut |place, value| match query::decode(value) {
        Ok(row) => rows[place] = row,
        Err(error) => damage = Some(error),
    })?;
    damage.map_or(Ok(rows), Err)
}

/// Writes a row to where rows of its bucket stand.
pub(super) fn put_row(writes: &mut Writes, bucket: Bucket, party: StoredParty, row: &Row) {
    match bucket {
        Bucket::Minute(minute) => put_minute(writes, minute.0, party, row),
        Bucket::Day(day) => put_day(writes, day.0, party, row),
        Bucket::Total => writes.put(Table::Totals, &series::total(party), &row.encode()),
    }
}

fn put_minute(writes: &mut Writes, minute: u32, party: StoredParty, row: &Row) {
    let bytes = row.encode();
    writes.put(Table::MinutesByTime, &series::by_time(minute, party), &bytes);
    writes.put(Table::MinutesByModel, &series::by_model(minute, party), &bytes);
}

fn put_day(writes: &mut Writes, day: u32, party: StoredParty, row: &Row) {
    let bytes = row.encode();
    writes.put(Table::DaysByTime, &series::by_time(day, party), &bytes);
    writes.put(Table::DaysByModel, &series::by_model(day, party), &bytes);
}

fn not_open() -> LedgerError {
    LedgerError::Unavailable { reason: "the store is not open".into() }
}

fn ledger_error(error: &StoreError) -> LedgerError {
    LedgerError::Unavailable { reason: error.to_string() }
}
