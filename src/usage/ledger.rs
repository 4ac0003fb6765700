//! The ledger: what every request came to, by minute, node, model and key, kept in LMDB.
//!
//! Started by `main`; asked by the monitoring routes through the [`Ledger`] handle; fed by the workers' rings. Must
//! never make a worker wait, and never lose more than one tick to a SIGKILL (I3, I4, I11).
//!
//! # Who does what
//! ```text
//! worker:        Recorder -> counters (exact for ever), ring (one event per request)
//! ledger thread: each tick: rings -> fold (core.rs, fold.rs) -> one batch -> store thread
//! store thread:  batch -> absolute rows -> one LMDB transaction (writer.rs, store.rs); folds days; answers questions
//! ```
//! The ledger thread sleeps one tick and takes what is there: nobody wakes it, and it never waits for the disk. At most
//! one batch is out; meanwhile it folds on in memory, up to 64 MiB of rows (fold.rs says what happens beyond).
//!
//! # What is stored
//! Directory `ledger` in the data directory: `data.mdb` and `lock.mdb` of LMDB, and `held`, locked for as long as a
//! process has the store (its content, a process id, is for people). Never on a network file system.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `schema` | u32, 2 |
//! | `meta` | `migration` | while rows are rewritten from an older schema: how far that has come |
//! | `meta` | `folded_before` | u32, first minute that was never folded |
//! | `dictionary` | kind u8 (1 node, 2 model, 3 router key), id u32 | the name, UTF-8 |
//! | `pairs` | node, model | u32, place in the order in which pairs first had tokens |
//! | `totals` | node, model, key, ended | row: all time |
//! | `minutes_by_time` | minute, node, model, key, ended | row |
//! | `minutes_by_model` | model, minute, node, key, ended | the same row |
//! | `days_by_time` | day, node, model, key, ended | row: what was folded out of that day's minutes |
//! | `days_by_model` | model, day, node, key, ended | the same row |
//!
//! Parts of keys are u32, but for `ended`, a byte: how the row's requests ended (0 to 4 in the order of `Ending::LABELS`;
//! 255 for several endings that schema 1 had added up). All numbers are big-endian. A row is version (2), flags (bit 0:
//! far from the newest minute), a u32 that says which of 17 figures are not zero, and those as u64 (series.rs): some 70
//! bytes. Minutes and days count from 1970 in UTC. Ids are the ledger's own, given out from 16 and never reused; below:
//! 0 none or unknown, 1 other. A minute costs one row per (node, model, key) and ending that was seen, however many
//! requests. Every request stands in exactly one minute row or day row, and in its total.
//!
//! # Rules
//! - A row is written as an absolute sum. Its first touch in memory reads what is stored and adds, so a restart or a
//!   clock step within a minute overwrites nothing, and a batch written twice counts once.
//! - An event more than an hour from the newest minute is kept and its minute flagged. An event of a folded minute adds
//!   to the day.
//! - Nothing is written when nothing changed.
//! - A commit flushes once (no meta sync): a loss of power may take back the last one, never tear it. The shutdown
//!   syncs.
//! - The map reserves 64 GiB of address space, halved down to 1 GiB where that is refused; a full map doubles.
//! - A directory that cannot be written is served from memory and tried again each second. A store held by a live
//!   process, a newer schema or a damaged file end the start, unless `ledger.required` is false.
//!
//! # Who deletes
//! The fold alone: minutes go into their days on request (`trim_old` of the ancestor's route) and, older than
//! `ledger.fold_after`, each hour. Totals, days and names are never deleted.
//!
//! # Versions
//! A newer schema is refused before a byte is written. An older one is copied beside itself and migrated in place
//! (migration.rs), while the ledger goes on in memory. `tests/fixtures/ledger-v1` holds a store of schema 1 that every
//! later herdgate must open.

use std::path::PathBuf;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use super::answers::{Health, ModelStats, NamedRow, Span, TokenCount, UsageAnswer, UsageQuery};
use super::core::{Command, Core, Links, Next, Shown};
use super::fold::ROWS_MAX;
use super::imported::{Import, Imported};
use super::memory::MemoryStore;
use super::names::Names;
use super::recorder::Ring;
use super::speed::Speed;
use super::store::{LmdbStore, SCHEMA};
use super::writer::{Ask, Desk, Opener, Reply, Writer};
use crate::clock::{Clock, Millis, millis};
use crate::config::LedgerConfig;
use crate::sync::{self, Arc, Ordering, ThreadHandle};

/// Messages that may wait for the ledger thread; a further sender waits for its turn.
const COMMANDS_MAX: usize = 64;
/// Jobs that may wait for the store thread: one batch, and questions.
const JOBS_MAX: usize = 64;
/// How long the end of the threads is waited for, and how often it is looked for.
pub const JOIN_MAX: Duration = Duration::from_secs(1);
const JOIN_LOOK: Duration = Duration::from_millis(5);
/// The longest that the ledger thread sleeps without a look at who asks: a tick may be longer.
const SLEEP_MAX: Duration = Duration::from_millis(250);
/// Days that `fold` keeps when it is asked for none.
const FOLD_DAYS: u64 = 30;
const DAY_MS: u64 = 86_400_000;

/// What the ledger is started with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The data directory (`data`); the store is made in its `ledger` folder. `None` keeps everything in memory.
    pub data: Option<PathBuf>,
    /// Tick, whether the store is required, when minutes fold.
    pub config: LedgerConfig,
    /// Names of nodes, keys and models.
    pub names: Arc<Names>,
    /// One ring per worker.
    pub rings: Vec<Arc<Ring>>,
    /// Time.
    pub clock: Clock,
}

/// What can go wrong with the ledger.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another live process holds the store (exit code 75).
    #[error("the ledger in {} is held by another process", path.display())]
    Held {
        /// The store's directory.
        path: PathBuf,
    },
    /// A newer herdgate wrote the store.
    #[error("the ledger in {} has schema {found}, this herdgate knows {known}: it is left untouched", path.display())]
    Newer {
        /// The store's directory.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The store is damaged, or not a ledger.
    #[error("the ledger in {} is damaged: {reason}", path.display())]
    Damaged {
        /// The store's directory.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The store cannot be had or written now.
    #[error("the ledger cannot be written: {reason}")]
    Unavailable {
        /// The system's reason.
        reason: String,
    },
    /// The store is of an older schema, and being migrated.
    #[error("the ledger is migrated to schema {SCHEMA}: {done} of {of} rows")]
    Migrating {
        /// Rows rewritten since the start.
        done: u64,
        /// Rows there are.
        of: u64,
    },
    /// The ledger did not answer in time (a stalled disk).
    #[error("the ledger does not answer")]
    Busy,
    /// A question has more of an answer than one may have.
    #[error(
        "the answer would have more than {rows_max} rows (limits.usage_rows): ask for a shorter range, a longer step or fewer groups"
    )]
    TooMuch {
        /// The bound.
        rows_max: usize,
    },
    /// The ledger has ended.
    #[error("the ledger has ended")]
    Closed,
}

/// A handle to the running ledger; clones share it. When the last one is gone the ledger flushes and ends.
#[derive(Clone, Debug)]
pub struct Ledger {
    commands: flume::Sender<Command>,
    shown: Arc<Shown>,
}

/// The ledger's threads, to be joined after [`Ledger::shutdown`].
#[derive(Debug)]
pub struct LedgerThreads {
    ledger: ThreadHandle<()>,
    store: ThreadHandle<()>,
}

impl LedgerThreads {
    /// One of them has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ledger.is_finished() || self.store.is_finished()
    }

    /// Waits until both threads have ended, at most [`JOIN_MAX`]: a dead disk holds the store thread for ever, and must not hold
    /// the end of the process. Blocks: call it last, from `main`.
    pub fn join(self) {
        let clock = Clock::system();
        while !(self.ledger.is_finished() && self.store.is_finished()) && clock.now() < millis(JOIN_MAX) {
            sync::sleep(JOIN_LOOK);
        }
    }
}

impl Ledger {
    /// Opens the store and starts the ledger and store threads.
    ///
    /// # Errors
    /// [`LedgerError::Held`], [`LedgerError::Newer`] and [`LedgerError::Damaged`] unless `ledger.required` is false. A
    /// directory that cannot be written is no error, nor a store that has to be migrated: the ledger runs in memory until
    /// it can be had.
    pub fn start(setup: Setup) -> Result<(Self, LedgerThreads), LedgerError> {
        let mut writer = Writer::new(setup.names, opener(setup.data));
        let opened = match writer.open() {
            Ok(opened) => opened,
            Err(how_far @ LedgerError::Migrating { .. }) => {
                tracing::info!(%how_far, "the store is of an older version: the ledger is kept in memory until it is not");
                None
            }
            Err(error) if setup.config.required && !matches!(error, LedgerError::Unavailable { .. }) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(%error, "the ledger is kept in memory until its store can be had");
                None
            }
        };
        let (commands_tx, commands) = flume::bounded(COMMANDS_MAX);
        let (jobs, jobs_rx) = flume::bounded(JOBS_MAX);
        let (reports_tx, reports) = flume::bounded(JOBS_MAX);
        let shown = Arc::new(Shown::default());
        let links = Links {
            rings: setup.rings,
            clock: setup.clock,
            commands,
            jobs,
            reports,
            shown: shown.clone(),
            tick: setup.config.tick,
            fold_after: setup.config.fold_after,
            rows_max: ROWS_MAX,
        };
        let core = Core::new(links, opened);
        let desk = Desk::new(writer, jobs_rx, reports_tx);
        let failed = |error: std::io::Error| LedgerError::Unavailable { reason: error.to_string() };
        let store = sync::spawn_background("store", move || desk.run()).map_err(failed)?;
        let ledger = sync::spawn_background("ledger", move || run(core)).map_err(failed)?;
        Ok((Self { commands: commands_tx, shown }, LedgerThreads { ledger, store }))
    }

    /// A handle that talks to a core run by the caller: for tests and benches without threads.
    #[must_use]
    pub fn attach(commands: flume::Sender<Command>, shown: Arc<Shown>) -> Self {
        Self { commands, shown }
    }

    /// All-time tokens per (node, model) as they were when the store was first opened, in order of first sight: the
    /// base of `/api/usage`, to which this process' counters add. Empty until a store could be had.
    #[must_use]
    pub fn base(&self) -> Arc<Vec<TokenCount>> {
        self.shown.base.load_full()
    }

    /// How the ledger is doing, as of its last tick.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.shown.health.load_full()
    }

    /// How late the ledger thread is.
    #[must_use]
    pub fn late(&self, now: Millis) -> Millis {
        self.shown.pulse.late(now)
    }

    /// How fast nodes generate, lately; always the newest. Holding it does not keep the ledger.
    #[must_use]
    pub fn speeds(&self) -> Arc<ArcSwap<Vec<Speed>>> {
        Arc::clone(&self.shown.speeds)
    }

    /// All-time tokens per (node, model) that ever had any, in order of first sight, everything recorded before the
    /// call included. Answers within a tick or two.
    ///
    /// # Errors
    /// [`LedgerError::Busy`] after 5 s, [`LedgerError::Closed`] after the end, the store's own. Cancel safe.
    pub async fn token_counts(&self) -> Result<Vec<TokenCount>, LedgerError> {
        self.call(|reply| Command::Ask(Ask::TokenCounts(reply))).await
    }

    /// One model by its exact display name.
    ///
    /// # Errors
    /// As [`Ledger::token_counts`]. Cancel safe.
    pub async fn stats(&self, model: &str) -> Result<ModelStats, LedgerError> {
        self.call(|reply| Command::Ask(Ask::Stats(model.into(), reply))).await
    }

    /// Rows of a span, by time, then node, model, key in the order of first sight, at most 50,000.
    ///
    /// # Errors
    /// As [`Ledger::token_counts`]. Cancel safe.
    pub async fn rows(&self, span: Span) -> Result<Vec<NamedRow>, LedgerError> {
        self.call(|reply| Command::Ask(Ask::Rows(span, reply))).await
    }

    /// Sums over a range. Read in slices between commits, so it may take a while and delays nobody.
    ///
    /// # Errors
    /// As [`Ledger::token_counts`]; [`LedgerError::TooMuch`]; [`LedgerError::Busy`] too while others ask, or when minutes
    /// were folded meanwhile. Cancel safe.
    pub async fn usage(&self, query: UsageQuery) -> Result<UsageAnswer, LedgerError> {
        self.call(|reply| Command::Ask(Ask::Usage(query, reply))).await
    }

    /// Counts the (node, model, UTC day) groups with minutes older than `days` days (not positive: 30), and with `trim`
    /// folds those minutes into their days. Folding again adds nothing.
    ///
    /// # Errors
    /// As [`Ledger::token_counts`]. Not undone when dropped.
    pub async fn fold(&self, days: i64, trim: bool) -> Result<u64, LedgerError> {
        let days = u64::try_from(days).ok().filter(|days| *days > 0).unwrap_or(FOLD_DAYS);
        let keep_ms = days.saturating_mul(DAY_MS);
        self.call(|reply| Command::Fold { keep_ms, trim, reply }).await
    }

    /// Waits until everything recorded before the call is in the store.
    ///
    /// # Errors
    /// The store's, when it cannot be written now (the rows stay in memory and are tried again). Cancel safe.
    pub async fn flush(&self) -> Result<(), LedgerError> {
        self.call(Command::Flush).await
    }

    /// Imports sums of an earlier accounting, all of them or nothing; the same again changes nothing.
    ///
    /// # Errors
    /// The store's, when it cannot be written now, [`LedgerError::Closed`] after the end. Not undone when dropped.
    pub async fn import(&self, import: Import) -> Result<Imported, LedgerError> {
        self.call(|reply| Command::Import(Box::new(import), reply)).await
    }

    /// Final flush: drains the rings, writes, syncs to the disk, ends both threads. Call it when the workers are done.
    ///
    /// # Errors
    /// The store's, when the last rows could not be written after five attempts or 5 s.
    pub async fn shutdown(&self) -> Result<(), LedgerError> {
        self.call(Command::Shutdown).await
    }

    async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LedgerError> {
        let (reply, mut answer) = oneshot::channel();
        self.commands.send_async(command(reply)).await.map_err(|_| LedgerError::Closed)?;
        // Acquire: pairs with the Release in `Core::drop`; see `Shown::ended`.
        if self.shown.ended.load(Ordering::Acquire) {
            return answer.try_recv().unwrap_or(Err(LedgerError::Closed));
        }
        answer.await.map_err(|_| LedgerError::Closed)?
    }
}

/// How the store in a data directory is opened, and opened again after a failure.
#[must_use]
pub fn opener(data: Option<PathBuf>) -> Opener {
    match data {
        Some(data) => {
            let dir = data.join("ledger");
            let mut held = None;
            Box::new(move || {
                let store = LmdbStore::open_again(&dir, held.clone())?;
                held = Some(store.held());
                Ok(Box::new(store))
            })
        }
        None => Box::new(|| Ok(Box::new(MemoryStore::default()))),
    }
}

/// The ledger thread. When it ends, the desk finds its channel closed and ends too.
fn run(mut core: Core) {
    loop {
        match core.step() {
            Next::Sleep(tick) => doze(&core, tick.max(Duration::from_micros(100))),
            Next::End => return,
        }
    }
}

/// Sleeps a tick, less if somebody asks meanwhile: the end of the process must not wait for a long one.
fn doze(core: &Core, mut tick: Duration) {
    while tick > SLEEP_MAX {
        sync::sleep(SLEEP_MAX);
        tick -= SLEEP_MAX;
        if core.is_asked() {
            return;
        }
    }
    sync::sleep(tick);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_tick_holds_up_nobody_who_asks() {
        let (commands, received) = flume::bounded(1);
        let (jobs, _desk) = flume::bounded(1);
        let (_reporter, reports) = flume::bounded(1);
        let mut core = Core::new(Links::new((Vec::new(), Clock::manual(0)), received, (jobs, reports)), None);
        core.step();
        let (reply, _answer) = oneshot::channel();
        commands.try_send(Command::Shutdown(reply)).unwrap();
        // Returns after one slice, and not after a day.
        doze(&core, Duration::from_millis(DAY_MS));
    }
}
