//! Folds minutes that are older than what is kept into their days, a slice a transaction.
//!
//! Called by the store thread ([`super::Desk`]). Must never take more than a slice at once: commits wait meanwhile.

use std::collections::HashMap;

use super::{FOLDED_KEY, FoldJob, Folded, Writer, ledger_error, not_open, put_day, read_rows};
use crate::ids::UnixMinute;
use crate::usage::ledger::LedgerError;
use crate::usage::query;
use crate::usage::series::{self, Row, StoredParty};
use crate::usage::store::{Key, Order, Read, Store, StoreError, Table, Writes};

/// Minute rows folded in one transaction, so that a fold of months delays commits by no more than some 50 ms.
const FOLD_SLICE: usize = 8192;

impl Writer {
    /// Folds a slice of minutes into their days.
    ///
    /// A minute is taken from the minutes and added to its day in one transaction, so a request stands in exactly one
    /// of the two at any time and folding again finds nothing to add.
    pub(super) fn fold(&mut self, job: FoldJob) -> Result<Folded, LedgerError> {
        let Some(mut store) = self.store.take() else { return Err(not_open()) };
        let result = self.fold_in(job, &mut *store);
        if !matches!(result, Err(StoreError::Broken(_))) {
            self.store = Some(store);
        }
        result.map_err(|error| ledger_error(&error))
    }

    fn fold_in(&mut self, job: FoldJob, store: &mut dyn Store) -> Result<Folded, StoreError> {
        let groups = if job.count { query::groups_before(store, job.first_kept)? } else { 0 };
        let mut folded = Folded { groups, folded_before: self.folded_before, done: true };
        let Some(last) = job.first_kept.0.checked_sub(1).filter(|_| job.trim) else { return Ok(folded) };
        let mut minutes = Vec::new();
        let (from, to) = query::times(0, last);
        let (span, ascending) = ((&from[..], &to[..]), Order::Ascending);
        query::scan_rows(
            store,
            Table::MinutesByTime,
            span,
            ascending,
            series::split_by_time,
            |(minute, party), row| {
                minutes.push((minute, party, row));
                minutes.len() < FOLD_SLICE
            },
        )?;
        let Some((newest, _, _)) = minutes.last() else {
            store.housekeep()?;
            return Ok(folded);
        };
        // Not the cut itself: a clock that ran ahead for a while must not send the minutes of a year to their days.
        folded.folded_before = self.folded_before.max(UnixMinute(newest.saturating_add(1)));
        folded.done = minutes.len() < FOLD_SLICE;
        store.commit(&fold_writes(&minutes, folded.folded_before, store)?)?;
        self.folded_before = folded.folded_before;
        self.folds += 1;
        Ok(folded)
    }
}

/// Moves minutes to their days.
fn fold_writes(
    minutes: &[(u32, StoredParty, Row)],
    folded_before: UnixMinute,
    view: &dyn Read,
) -> Result<Writes, StoreError> {
    let mut writes = Writes::default();
    let mut days: HashMap<(u32, StoredParty), Row> = HashMap::new();
    for (minute, party, row) in minutes {
        days.entry((series::day_number(*minute).0, *party)).or_default().merge(row);
        writes.delete(Table::MinutesByTime, &series::by_time(*minute, *party));
        writes.delete(Table::MinutesByModel, &series::by_model(*minute, *party));
    }
    let days: Vec<_> = days.into_iter().collect();
    let keys: Vec<_> =
        days.iter().map(|((day, party), _)| (Table::DaysByTime, Key::new(&series::by_time(*day, *party)))).collect();
    for (((day, party), sum), mut row) in days.into_iter().zip(read_rows(view, &keys)?) {
        row.merge(&sum);
        put_day(&mut writes, day, party, &Row { far: false, ..row });
    }
    writes.put(Table::Meta, FOLDED_KEY, &folded_before.0.to_be_bytes());
    Ok(writes)
}
