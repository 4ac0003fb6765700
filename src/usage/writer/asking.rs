//! Answers questions, with what is not written yet laid over the store; sums over a range a slice at a time.
//!
//! Called by the store thread ([`super::Desk`]). Must never write.

use super::{Ask, Writer, ledger_error};
use crate::usage::fold::Batch;
use crate::usage::ledger::LedgerError;
use crate::usage::memory::{Layered, MemoryStore};
use crate::usage::query;
use crate::usage::store::{Read, StoreError};
use crate::usage::sums::{SUMMING_MAX, Slice, Summing};

impl Writer {
    /// Answers a question.
    pub(super) fn ask(&mut self, mut unwritten: Batch, ask: Ask) {
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
    pub(super) fn sum_on(&mut self) -> bool {
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
}
