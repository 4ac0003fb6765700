//! The store thread's half of the ledger: turns batches into writes, folds minutes into days (`days`), answers questions.
//!
//! The only one who writes the store. [`Desk`] takes jobs from the ledger thread ([`super::ledger`]) one after the
//! other. Must never be waited for by a worker or by the ledger thread: every call here may stall with the disk.

mod days;

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;

use tokio::sync::oneshot;

use super::answers::{Bucket, ModelStats, NamedRow, Span, TokenCount, UsageAnswer, UsageQuery};
use super::dictionary::Dictionary;
use super::fold::Batch;
use super::imported::{self, Import, Imported};
use super::ledger::LedgerError;
use super::memory::{Layered, MemoryStore};
use super::names::Names;
use super::query;
use super::series::{self, Row, StoredId, StoredParty};
use super::store::{Key, Read, Store, StoreError, Table, Writes};
use super::sums::{SUMMING_MAX, Slice, Summing};
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
    /// The opener's, and [`LedgerError::Damaged`] or [`LedgerError::Unavailable`] when what is in it cannot be read.
    pub fn open(&mut self) -> Result<Option<Opened>, LedgerError> {
        if self.store.is_some() {
            return Ok(None);
        }
        let store = (self.opener)()?;
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
        let parties: Vec<StoredParty> = batch
            .rows
            .iter()
            .map(|row| self.dictionary.party(&self.names, row.id.node, row.id.model, row.id.key))
            .collect();
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

    /// Answers a question.
    fn ask(&mut self, mut unwritten: Batch, ask: Ask) {
        let store = self.store.take();
        let empty = MemoryStore::default();
        let below: &dyn Read = match &store {
            Some(store) => &**store,
            None => &empty,
        };
        let mut above = MemoryStore::default();
        match self.prepare(&mut unwritten, below) {
            Ok(writes) => {
                above.apply(&writes);
                if let Ask::Usage(query, reply) = ask {
                    self.begin_sums(Summing::new(query, above, self.folds, reply));
                } else {
                    self.answer(&Layered { below, above: &above }, ask);
                }
            }
            Err(error) => ask.refuse(ledger_error(&error)),
        }
        self.store = store;
    }

    fn answer(&self, view: &dyn Read, ask: Ask) {
        let failed = |error: StoreError| ledger_error(&error);
        // Whoever asked may have gone: nothing is owed to them then.
        match ask {
            Ask::TokenCounts(reply) => {
                drop(reply.send(query::token_counts(view, &self.dictionary).map_err(failed)));
            }
            Ask::Stats(model, reply) => {
                drop(reply.send(query::stats(view, &self.dictionary, &model).map_err(failed)));
            }
            Ask::Rows(span, reply) => drop(reply.send(query::rows(view, &self.dictionary, span).map_err(failed))),
            // Taken in turns, see `sum_on`.
            ask @ Ask::Usage(..) => ask.refuse(LedgerError::Busy),
        }
    }

    fn begin_sums(&mut self, summing: Summing) {
        if self.summing.len() < SUMMING_MAX {
            self.summing.push_back(summing);
        } else {
            summing.refuse(LedgerError::Busy);
        }
    }

    /// Reads one slice for whoever waits longest; true while somebody waits.
    fn sum_on(&mut self) -> bool {
        let Some(mut summing) = self.summing.pop_front() else { return false };
        let empty = MemoryStore::default();
        let below: &dyn Read = match &self.store {
            Some(store) => &**store,
            None => &empty,
        };
        if summing.is_abandoned() {
            return !self.summing.is_empty();
        }
        if summing.folds != self.folds {
            // What was read as minutes may stand in a day now, or the other way round.
            summing.refuse(LedgerError::Busy);
            return !self.summing.is_empty();
        }
        let above = std::mem::take(&mut summing.above);
        let slice = summing.slice(&Layered { below, above: &above });
        summing.above = above;
        match slice {
            Ok(Slice::More) => self.summing.push_back(summing),
            Ok(Slice::Done) => summing.finish(&self.dictionary, self.folded_before),
            Err(error) => summing.refuse(error),
        }
        !self.summing.is_empty()
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

/// The store thread's place: takes jobs, hands back reports.
#[derive(Debug)]
pub struct Desk {
    writer: Writer,
    jobs: flume::Receiver<Job>,
    reports: flume::Sender<Report>,
}

impl Desk {
    /// A desk between these channels.
    #[must_use]
    pub fn new(writer: Writer, jobs: flume::Receiver<Job>, reports: flume::Sender<Report>) -> Self {
        Self { writer, jobs, reports }
    }

    /// Works until the ledger thread has gone. Blocks.
    pub fn run(mut self) {
        let mut summing = false;
        loop {
            // Jobs first: a question in progress takes what time they leave, a slice at a time.
            let job = if summing { self.jobs.try_recv() } else { self.jobs.recv().map_err(flume::TryRecvError::from) };
            match job {
                Ok(job) => self.work(job),
                Err(flume::TryRecvError::Empty) => {}
                Err(flume::TryRecvError::Disconnected) => return,
            }
            summing = self.sum_on();
        }
    }

    /// Does one waiting job, if there is one. For whoever runs the ledger without threads.
    pub fn work_one(&mut self) -> bool {
        let job = self.jobs.try_recv();
        let found = job.is_ok();
        if let Ok(job) = job {
            self.work(job);
        }
        while self.sum_on() {}
        found
    }

    fn sum_on(&mut self) -> bool {
        self.guarded(|writer| Ok(writer.sum_on())).unwrap_or(false)
    }

    fn work(&mut self, job: Job) {
        let report = match job {
            Job::Open => Report::Opened(self.guarded(Writer::open)),
            Job::Write(mut batch) => {
                let result = self.guarded(|writer| writer.write(&mut batch));
                Report::Written(batch, result)
            }
            Job::Ask(unwritten, ask) => {
                // Who asked sees the reply dropped.
                let asked = self.guarded(|writer| {
                    writer.ask(unwritten, ask);
                    Ok(())
                });
                return drop(asked);
            }
            Job::Fold(job) => Report::Folded(self.guarded(|writer| writer.fold(job))),
            Job::Import(import) => Report::Imported(self.guarded(|writer| writer.import(&import))),
            Job::Sync => Report::Synced(self.guarded(Writer::sync)),
        };
        // The ledger thread may have given up on us: then nobody needs to know.
        let _ = self.reports.send(report);
    }
}

impl Desk {
    /// Work that may panic without ending this thread: it failed then, and the store is opened anew, with nothing kept
    /// of what the work had in hand. A batch is given again; all it holds is absolute, so nothing is counted twice.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Writer) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let writer = &mut self.writer;
        std::panic::catch_unwind(AssertUnwindSafe(|| work(writer))).unwrap_or_else(|_| {
            tracing::error!("the store's work panicked: it is opened anew");
            self.writer.store = None;
            self.writer.summing.clear();
            Err(LedgerError::Unavailable { reason: "the store's work panicked".into() })
        })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Questions left in the channel would otherwise wait for as long as the other end lives.
        self.jobs.drain().for_each(drop);
    }
}
