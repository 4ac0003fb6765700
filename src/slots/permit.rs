//! A slot that is held, and the counters of the (node, model name) it is held for.
//!
//! The proxy makes a [`Permit`] of every slot it took or was granted and keeps it with the answer's body; dropping it is
//! the one way a slot comes back. Must never be forgotten (`mem::forget`), whatever the ending.

use crate::clock::Millis;
use crate::ids::{ModelId, NodeId, WorkerId};
use crate::slots::{Cell, ModelWord, Taken};
use crate::sync::Arc;
use crate::usage::counters::PairCounters;

/// Slot word and counters of one (node, model name).
#[derive(Debug)]
pub struct Pair {
    /// The capacity word.
    pub cell: Arc<Cell>,
    /// The counters.
    pub counters: Arc<PairCounters>,
    /// The name's id.
    pub model: ModelId,
    /// Facts shared by all copies of the name; `None` for requests that name no known model.
    pub model_word: Option<Arc<ModelWord>>,
}

impl Pair {
    /// A cold load of this pair is over without success.
    pub(crate) fn load_failed(&self) {
        self.cell.mark_load_failed();
        if let Some(word) = &self.model_word {
            word.end_load(self.cell.node);
        }
    }
}

/// One held slot. Drop gives it back: to a waiter first, else to the count.
#[derive(Debug)]
pub struct Permit {
    pair: Arc<Pair>,
    worker: WorkerId,
    taken: Taken,
    /// A cold load that neither succeeded nor was reported as failed.
    load_open: bool,
}

impl Permit {
    /// Wraps a slot that was taken already (by `pick`, or a grant), and counts the request as started.
    #[must_use]
    pub fn new(pair: Arc<Pair>, worker: WorkerId, taken: Taken) -> Self {
        pair.counters.started(worker);
        Self { pair, worker, taken, load_open: taken == Taken::Cold }
    }

    /// The (node, name) it is for.
    #[must_use]
    pub fn pair(&self) -> &Arc<Pair> {
        &self.pair
    }

    /// The node it is on.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.pair.cell.node
    }

    /// How it was taken.
    #[must_use]
    pub fn taken(&self) -> Taken {
        self.taken
    }

    /// The first byte of a 2xx answer came: the copy is loaded, its load is over.
    pub fn succeeded(&mut self, now: Millis) {
        self.load_open = false;
        if let Some(word) = &self.pair.model_word
            && word.loading().is_some_and(|load| load.node == self.pair.cell.node)
        {
            word.end_load(self.pair.cell.node);
        }
        self.pair.cell.mark_loaded(now);
    }

    /// The attempt failed before a byte came. No effect on a warm permit or after a success.
    pub fn load_failed(&mut self) {
        if self.load_open {
            self.load_open = false;
            self.pair.load_failed();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load_failed();
        self.pair.counters.ended(self.worker);
        #[cfg(proxy_locked)]
        if self.pair.model_word.is_some() {
            return crate::usage::locked::give_back(self.pair.cell.node, self.pair.model);
        }
        self.pair.cell.release();
    }
}
