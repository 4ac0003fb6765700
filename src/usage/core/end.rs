//! The end of the ledger thread: the last rows are written, the store is synced, whoever asked for it is told.
//!
//! Called by [`Core::step`]. Must never wait longer than a stalled disk is given.

use super::{Core, PATIENCE_MS};
use crate::clock::Millis;
use crate::usage::answers::StoreState;
use crate::usage::ledger::LedgerError;
use crate::usage::writer::{Job, Reply};

/// Attempts to write the last rows at shutdown; 100 ms apart.
const LAST_ATTEMPTS: u32 = 5;

/// A migration is waited for while it goes on: the last rows have nowhere else to go. Copying a store is one piece.
const MIGRATION_PATIENCE_MS: Millis = 60_000;

/// The end, in progress.
#[derive(Debug)]
pub(super) struct Ending {
    reply: Option<Reply<()>>,
    pub(super) since: Millis,
    pub(super) attempts: u32,
    /// The sync came back, and nothing was written since.
    pub(super) synced: bool,
    pub(super) last_error: Option<LedgerError>,
}

impl Core {
    pub(super) fn begin_end(&mut self, reply: Option<Reply<()>>, now: Millis) {
        let ending =
            self.ending.get_or_insert(Ending { reply: None, since: now, attempts: 0, synced: false, last_error: None });
        if let Some(reply) = reply
            && let Some(earlier) = ending.reply.replace(reply)
        {
            let _ = earlier.send(Err(LedgerError::Closed));
        }
    }

    /// Drives the end; true when it is reached.
    pub(super) fn end(&mut self, now: Millis) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        let patience = if self.health.store == StoreState::Migrating { MIGRATION_PATIENCE_MS } else { PATIENCE_MS };
        let stalled = now.saturating_sub(ending.since) > patience;
        let unwritten = self.busy || self.fold.is_dirty();
        if !stalled && ending.attempts < LAST_ATTEMPTS {
            if unwritten {
                ending.synced = false;
                return false;
            }
            if !ending.synced {
                self.busy = self.links.jobs.try_send(Job::Sync).is_ok();
                return false;
            }
        }
        let answer = match ending.last_error.take() {
            Some(error) => Err(error),
            None if unwritten => Err(LedgerError::Busy),
            None => Ok(()),
        };
        if let Err(error) = &answer {
            tracing::error!(%error, rows = self.fold.sizes().1, "the ledger ends with rows that are not in the store");
        }
        if let Some(reply) = ending.reply.take() {
            let _ = reply.send(answer);
        }
        true
    }
}
