//! What the ledger answers: plain data, by name, ready for the monitoring routes and `/metrics`.
//!
//! Node and model are names, not ids: the ledger also knows nodes and models of earlier configurations.

use super::Tokens;
use super::series::{Ended, Row};
use crate::clock::Millis;
use crate::ids::{UnixDay, UnixMinute};
use crate::sync::Arc;

/// All-time tokens of one (node, model).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenCount {
    /// The node's id, as configured when it served.
    pub node: Arc<str>,
    /// The model's display name.
    pub model: Arc<str>,
    /// Tokens that the node reported.
    pub exact: Tokens,
    /// Tokens that we worked out.
    pub estimated: Tokens,
    /// Tokens that an earlier accounting counted ([`super::imported`]).
    pub imported: Tokens,
}

impl TokenCount {
    /// All together: what the ancestor's routes show.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.exact.plus(self.estimated).plus(self.imported)
    }
}

/// One model, as `/api/stats` shows it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ModelStats {
    /// All-time tokens over all nodes, exact plus estimated; `None` if the model never had any.
    pub totals: Option<Tokens>,
    /// One point per (minute, node) with tokens, newest first, at most [`SERIES_MAX`].
    pub series: Vec<SeriesPoint>,
    /// Total tokens (input + output) per node over all minutes still there, by node name ascending.
    pub distribution: Vec<(Arc<str>, u64)>,
}

/// Most points in [`ModelStats::series`], as in the ancestor.
pub const SERIES_MAX: usize = 50_000;

/// Tokens of one (minute, node) of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeriesPoint {
    /// The UTC minute.
    pub minute: UnixMinute,
    /// The node.
    pub node: Arc<str>,
    /// Exact plus estimated.
    pub tokens: Tokens,
}

/// Which rows to read with [`Ledger::rows`](super::ledger::Ledger::rows); bounds are inclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Span {
    /// Minutes that were not folded.
    Minutes(UnixMinute, UnixMinute),
    /// Days, holding what was folded out of their minutes.
    Days(UnixDay, UnixDay),
    /// All-time sums: minutes and days together.
    Totals,
}

/// Which bucket a row belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Bucket {
    /// A UTC minute.
    Minute(UnixMinute),
    /// A UTC day, for what was folded out of its minutes.
    Day(UnixDay),
    /// All time.
    Total,
}

/// A row, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedRow {
    /// Its bucket.
    pub bucket: Bucket,
    /// Node, or `_none`.
    pub node: Arc<str>,
    /// Model, or `_unknown`, `_other`.
    pub model: Arc<str>,
    /// Router key, or `_none`.
    pub key: Arc<str>,
    /// Its sums. Of an imported row, the tokens in the place of exact ones are the earlier accounting's.
    pub row: Row,
}

impl NamedRow {
    /// Whether an earlier accounting counted it, not this gate ([`super::imported`]).
    #[must_use]
    pub fn is_imported(&self) -> bool {
        super::imported::is_imported(&self.key)
    }
}

/// How finely a question about usage cuts time, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// By minute; minutes that were folded into their day come as that day.
    Minute,
    /// By hour, likewise.
    Hour,
    /// By day.
    Day,
    /// Not at all: one sum over the whole range.
    All,
}

/// What sums are kept apart by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Group {
    pub node: bool,
    pub model: bool,
    pub key: bool,
    pub outcome: bool,
}

/// A question about usage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsageQuery {
    /// Unix seconds, inclusive; the minute that holds them counts whole.
    pub from: u64,
    /// Unix seconds, exclusive.
    pub to: u64,
    /// How time is cut.
    pub step: Step,
    /// What is kept apart.
    pub group: Group,
    /// Sums in the answer, at most.
    pub rows_max: usize,
}

/// Sums of one step and group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageSum {
    /// Where the step begins, Unix seconds.
    pub start: u64,
    /// Its length: the step asked for, or a day where the minutes were folded.
    pub step: Step,
    /// The node, if grouped by it.
    pub node: Option<Arc<str>>,
    /// The model, if grouped by it.
    pub model: Option<Arc<str>>,
    /// The router key, if grouped by it.
    pub key: Option<Arc<str>>,
    /// How its requests ended, if grouped by it.
    pub outcome: Option<Ended>,
    /// The sums.
    pub row: Row,
}

/// The answer to a question about usage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageAnswer {
    /// By time, then key, model, node, outcome.
    pub rows: Vec<UsageSum>,
    /// Minutes before this one stand in their days alone.
    pub folded_before: UnixMinute,
}

/// Where rows go.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum StoreState {
    /// No store could be had yet: everything is in memory.
    #[default]
    Absent,
    /// The store is open and the last commit succeeded.
    Open,
    /// The store is of an older schema and is being migrated: what comes is in memory until that is done.
    Migrating,
    /// The store was had, but commits fail: what came since is in memory.
    Failing,
    /// The store was had, and does not come back from what it was given: what came since is in memory.
    Stalled,
}

/// How the ledger is doing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Health {
    /// Where rows go.
    pub store: StoreState,
    /// Monotonic time since which something is not in the store; `None` when all is.
    pub oldest_unwritten: Option<Millis>,
    /// Monotonic time of the last commit.
    pub last_commit: Option<Millis>,
    /// What went wrong last; kept after it healed.
    pub last_error: Option<Arc<str>>,
    /// Commits since start.
    pub commits: u64,
    /// Commits that failed since start.
    pub commits_failed: u64,
    /// Events folded since start.
    pub events: u64,
    /// Rows in memory.
    pub rows: usize,
    /// Rows in memory that the store lacks or has older.
    pub rows_unwritten: usize,
    /// Minute rows folded into their day early, because memory was full: sums are exact, the minutes are gone.
    pub minutes_folded_early: u64,
    /// Events that found no room in memory at all: missing in the ledger, present in the meters.
    pub events_lost: u64,
    /// Rows begun more than an hour away from the newest minute (flagged in the store).
    pub minutes_far: u64,
    /// Most events that waited in each worker's ring at a tick.
    pub ring_high_water: Vec<u64>,
}

impl Health {
    /// Whether rows are in memory only.
    #[must_use]
    pub fn degraded(&self) -> bool {
        self.store != StoreState::Open
    }

    /// Age of the oldest thing that is not in the store: what a SIGKILL now would lose, in milliseconds.
    #[must_use]
    pub fn unwritten_age(&self, now: Millis) -> Millis {
        self.oldest_unwritten.map_or(0, |since| now.saturating_sub(since))
    }
}
