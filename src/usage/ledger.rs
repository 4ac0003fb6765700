//! The ledger's handle (its threads follow).

use std::path::PathBuf;

use super::answers::{Health, ModelStats, NamedRow, Span, TokenCount};
use super::names::Names;
use super::recorder::Ring;
use crate::clock::Clock;
use crate::config::LedgerConfig;
use crate::sync::Arc;

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
    #[error("the ledger in {path} is held by another process")]
    Held {
        /// The store's directory.
        path: PathBuf,
    },
    /// A newer herdgate wrote the store.
    #[error("the ledger in {path} has schema {found}, this herdgate knows {known}: it is left untouched")]
    Newer {
        /// The store's directory.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The store is damaged, or not a ledger.
    #[error("the ledger in {path} is damaged: {reason}")]
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
    /// The ledger did not answer in time (a stalled disk).
    #[error("the ledger does not answer")]
    Busy,
    /// The ledger has ended.
    #[error("the ledger has ended")]
    Closed,
}

/// A handle to the running ledger; clones share it.
#[derive(Clone, Debug)]
pub struct Ledger {}

/// The ledger's threads, to be joined after [`Ledger::shutdown`].
#[derive(Debug)]
pub struct LedgerThreads {}

impl LedgerThreads {
    /// Waits until both threads have ended. Blocks: call it last, from `main`.
    pub fn join(self) {}
}

impl Ledger {
    /// Opens the store and starts the ledger and store threads.
    ///
    /// # Errors
    /// [`LedgerError::Held`], [`LedgerError::Newer`] and [`LedgerError::Damaged`] unless `ledger.required` is false. A
    /// directory that cannot be written is no error: the ledger runs in memory until it can.
    pub fn start(setup: Setup) -> Result<(Self, LedgerThreads), LedgerError> {
        let _ = setup;
        Ok((Self {}, LedgerThreads {}))
    }

    /// All-time tokens per (node, model) as they were when the store was opened, in order of first sight: the base of
    /// `/api/usage`, to which this process' counters add. Empty until a store could be had.
    #[must_use]
    pub fn base(&self) -> Arc<Vec<TokenCount>> {
        Arc::new(Vec::new())
    }

    /// How the ledger is doing, as of its last tick.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::new(Health::default())
    }

    /// All-time tokens per (node, model) that ever had any, in order of first sight, everything drained so far included.
    ///
    /// # Errors
    /// [`LedgerError::Busy`] after 5 s, [`LedgerError::Closed`] after the end, the store's own. Cancel safe.
    pub async fn token_counts(&self) -> Result<Vec<TokenCount>, LedgerError> {
        Err(LedgerError::Closed)
    }

    /// One model by its exact display name.
    ///
    /// # Errors
    /// As [`Ledger::token_counts`]. Cancel safe.
    pub async fn stats(&self, model: &str) -> Result<ModelStats, LedgerError> {
        let _ = model;
        Err(LedgerError::Closed)
    }

    /// Rows of a span, by time, then node, model, key, at most 50,000.
    ///
    /// # Errors
    /// As [`Ledger::token_counts`]. Cancel safe.
    pub async fn rows(&self, span: Span) -> Result<Vec<NamedRow>, LedgerError> {
        let _ = span;
        Err(LedgerError::Closed)
    }

    /// Counts the (node, model, UTC day) groups with minutes older than `days` days (not positive: 30), and with `trim`
    /// folds those minutes into their days. Folding twice changes nothing.
    ///
    /// # Errors
    /// As [`Ledger::token_counts`]. Not undone when dropped.
    pub async fn fold(&self, days: i64, trim: bool) -> Result<u64, LedgerError> {
        let _ = (days, trim);
        Err(LedgerError::Closed)
    }

    /// Waits until everything recorded before the call is in the store.
    ///
    /// # Errors
    /// The store's, when it cannot be written now (the rows stay in memory and are tried again). Cancel safe.
    pub async fn flush(&self) -> Result<(), LedgerError> {
        Err(LedgerError::Closed)
    }

    /// Final flush: drains the rings, writes, syncs to the disk, ends both threads. Call it when the workers are done.
    ///
    /// # Errors
    /// The store's, when the last rows could not be written.
    pub async fn shutdown(&self) -> Result<(), LedgerError> {
        Err(LedgerError::Closed)
    }
}
