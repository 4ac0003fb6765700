//! What the store thread does next: questions at once, then an import, a slice of a fold or a batch, one at a time.
//!
//! Called by [`Core::step`] alone, while nothing but questions is with the store thread. Must never wait: what finds the
//! channel full is offered again in the next step.

use super::{Core, FoldRun};
use crate::clock::Millis;
use crate::usage::answers::StoreState;
use crate::usage::ledger::LedgerError;
use crate::usage::series;
use crate::usage::writer::{FoldJob, Job};

/// How often minutes beyond `fold_after` fold on their own.
const POLICY_EACH_MS: Millis = 3_600_000;

impl Core {
    /// Gives the store thread what it should do next, if anything.
    pub(super) fn give_job(&mut self, now: Millis) {
        self.give_asks();
        self.begin_policy(now);
        let healthy = self.open && self.health.store == StoreState::Open;
        // Who flushes wants to know now, not at the next attempt.
        let may_try = now >= self.retry_at || !self.flushes.is_empty();
        if self.health.store != StoreState::Open {
            self.refuse_folds();
            self.refuse_imports();
        }
        if !self.open {
            // Taken as soon as it can be had, whether or not there is something to write.
            if may_try {
                self.busy = self.links.jobs.try_send(Job::Open).is_ok();
            }
            return;
        }
        let fold_ready = self.folds.front().is_some_and(|fold| fold.mark <= self.fold.written());
        if healthy && self.give_import() {
            return;
        }
        if healthy && fold_ready && (self.wrote_last || !self.fold.is_dirty()) {
            self.give_fold();
        } else if may_try {
            self.give_batch(now);
        }
    }

    fn give_batch(&mut self, now: Millis) {
        let Some(batch) = self.fold.take_batch() else { return };
        self.wrote_last = true;
        match self.links.jobs.try_send(Job::Write(batch)) {
            Ok(()) => self.busy = true,
            Err(refused) => {
                let closed = matches!(refused, flume::TrySendError::Disconnected(_));
                if let Job::Write(batch) = refused.into_inner() {
                    self.fold.settle(batch, false);
                }
                if closed {
                    self.failed(LedgerError::Closed, now);
                }
            }
        }
    }

    /// Hands questions over together with what is not written. No batch is out, so that is well defined.
    fn give_asks(&mut self) {
        while let Some((ask, since)) = self.asks.pop_front() {
            match self.links.jobs.try_send(Job::Ask(self.fold.unwritten(), ask)) {
                Ok(()) => {}
                Err(flume::TrySendError::Full(Job::Ask(_, ask))) => return self.asks.push_front((ask, since)),
                Err(refused) => {
                    if let Job::Ask(_, ask) = refused.into_inner() {
                        ask.refuse(LedgerError::Closed);
                    }
                }
            }
        }
    }

    /// Begins the hourly fold when it is due.
    fn begin_policy(&mut self, now: Millis) {
        if now < self.policy_at || self.links.fold_after.is_zero() || self.ending.is_some() {
            return;
        }
        self.policy_at = now + POLICY_EACH_MS;
        let keep_ms = u64::try_from(self.links.fold_after.as_millis()).unwrap_or(u64::MAX);
        let mark = self.fold.mark();
        self.folds.push_back(FoldRun { mark, since: now, keep_ms, trim: true, begun: None, reply: None });
    }

    /// A fold rewrites days; while commits fail it would race with what is not written.
    fn refuse_folds(&mut self) {
        for fold in self.folds.drain(..) {
            if let Some(reply) = fold.reply {
                let reason = self.health.last_error.as_deref().unwrap_or("the store is not open").to_owned();
                let _ = reply.send(Err(LedgerError::Unavailable { reason }));
            }
        }
    }

    /// An import reads rows and writes absolute ones: it goes when the store is well, or not at all.
    fn refuse_imports(&mut self) {
        for (_, reply) in self.imports.drain(..) {
            let reason = self.health.last_error.as_deref().unwrap_or("the store is not open").to_owned();
            let _ = reply.send(Err(LedgerError::Unavailable { reason }));
        }
    }

    /// Hands an import over, if one waits. No batch is out, and its rows are nobody else's.
    fn give_import(&mut self) -> bool {
        let Some((import, reply)) = self.imports.pop_front() else { return false };
        match self.links.jobs.try_send(Job::Import(import)) {
            Ok(()) => (self.busy, self.importing) = (true, Some(reply)),
            Err(flume::TrySendError::Full(Job::Import(import))) => self.imports.push_front((import, reply)),
            Err(_) => drop(reply.send(Err(LedgerError::Closed))),
        }
        self.busy
    }

    fn give_fold(&mut self) {
        let unix_ms = self.links.clock.unix_ms();
        let Some(fold) = self.folds.front_mut() else { return };
        let count = fold.begun.is_none() && fold.reply.is_some();
        let (_, first_kept) = *fold.begun.get_or_insert_with(|| (0, series::first_kept(unix_ms, fold.keep_ms)));
        let job = FoldJob { first_kept, count, trim: fold.trim };
        self.wrote_last = false;
        match self.links.jobs.try_send(Job::Fold(job)) {
            Ok(()) => self.busy = true,
            Err(flume::TrySendError::Full(_)) => {}
            Err(flume::TrySendError::Disconnected(_)) => self.refuse_folds(),
        }
    }
}
