//! Sums over a range of time, by step and by any of node, model, key and outcome: read in slices, so that a question about a year
//! delays a commit by milliseconds and no more.
//!
//! Run by the store thread between its jobs ([`super::writer`]). Must never write.

use std::collections::BTreeMap;

use super::answers::{Group, Step, UsageAnswer, UsageQuery, UsageSum};
use super::dictionary::{Dictionary, Kind};
use super::ledger::LedgerError;
use super::memory::MemoryStore;
use super::query::{self, scan_rows};
use super::series::{self, Ended, Row, StoredId, StoredParty};
use super::store::{Key, Order, Read, StoreError, Table};
use super::writer::Reply;
use crate::ids::UnixMinute;

/// Rows read in one slice: some 5 ms.
const SLICE: usize = 16_384;
/// Rows read for one question, at most: two minutes' work.
const VISITED_MAX: u64 = 20_000_000;
/// Questions answered in turns; a further one is told to come back.
pub(super) const SUMMING_MAX: usize = 4;

/// What a sum belongs to: the start of its step, whether it comes from a folded day, whose it is, and how it ended.
type Place = (u64, bool, Option<StoredId>, Option<StoredId>, Option<StoredId>, Option<Ended>);

/// A question being answered.
#[derive(Debug)]
pub(super) struct Summing {
    query: UsageQuery,
    /// Rows that were not written when it was asked.
    pub(super) above: MemoryStore,
    /// Folds that had been carried out when it was asked.
    pub(super) folds: u64,
    reply: Reply<UsageAnswer>,
    /// The table that is being read, and the key that comes next in it.
    table: Table,
    next: Key,
    visited: u64,
    sums: BTreeMap<Place, Row>,
}

/// How far a slice came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slice {
    /// There is more to read.
    More,
    /// Everything is summed.
    Done,
}

impl Summing {
    pub(super) fn new(query: UsageQuery, above: MemoryStore, folds: u64, reply: Reply<UsageAnswer>) -> Self {
        Self {
            next: edge(first_day(&query)),
            query,
            above,
            folds,
            reply,
            table: Table::DaysByTime,
            visited: 0,
            sums: BTreeMap::new(),
        }
    }

    /// Whoever asked has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Reads the next rows.
    ///
    /// # Errors
    /// The store's; more groups than the answer may have.
    pub(super) fn slice(&mut self, view: &dyn Read) -> Result<Slice, LedgerError> {
        let minutes = self.table == Table::MinutesByTime;
        let until = if minutes { until(self.query.to, 60) } else { until(self.query.to, DAY) };
        let Some(last) = until.checked_sub(1) else { return Ok(self.turn(minutes)) };
        let (from, to) = (self.next, query::times(last, last).1);
        let (mut left, mut seen) = (SLICE, None);
        let (query, sums) = (self.query, &mut self.sums);
        let ascending = Order::Ascending;
        let span = (from.as_bytes(), &to[..]);
        let read = scan_rows(view, self.table, span, ascending, series::split_by_time, |(time, party), row| {
            seen = Some(series::by_time(time, party));
            add(sums, place(&query, time, minutes, party), &row);
            left -= 1;
            left > 0 && sums.len() <= query.rows_max
        });
        read.map_err(|error: StoreError| LedgerError::Unavailable { reason: error.to_string() })?;
        self.visited += (SLICE - left) as u64;
        if self.sums.len() > self.query.rows_max || self.visited > VISITED_MAX {
            return Err(LedgerError::TooMuch { rows_max: self.query.rows_max });
        }
        match seen {
            Some(key) if left == 0 => {
                self.next = Key::after(&key);
                Ok(Slice::More)
            }
            _ => Ok(self.turn(minutes)),
        }
    }

    /// After the days, the minutes.
    fn turn(&mut self, minutes: bool) -> Slice {
        if minutes {
            return Slice::Done;
        }
        self.table = Table::MinutesByTime;
        self.next = edge(u32::try_from(self.query.from / 60).unwrap_or(u32::MAX));
        Slice::More
    }

    /// Answers with what was summed.
    pub(super) fn finish(self, names: &Dictionary, folded_before: UnixMinute) {
        let named = |kind, id: Option<StoredId>| id.map(|id| names.name(kind, id));
        let sums = self.sums.into_iter().map(|((start, day, node, model, key, outcome), row)| UsageSum {
            start,
            step: if day { Step::Day } else { self.query.step },
            node: named(Kind::Node, node),
            model: named(Kind::Model, model),
            key: named(Kind::Key, key),
            outcome,
            row,
        });
        let mut rows: Vec<UsageSum> = sums.collect();
        rows.sort_by(|a, b| {
            let of = |sum: &UsageSum| (sum.start, sum.key.clone(), sum.model.clone(), sum.node.clone(), sum.outcome);
            of(a).cmp(&of(b))
        });
        // Whoever asked may have gone: nothing is owed to them then.
        let _ = self.reply.send(Ok(UsageAnswer { rows, folded_before }));
    }

    /// Answers with an error.
    pub(super) fn refuse(self, error: LedgerError) {
        let _ = self.reply.send(Err(error));
    }
}

const DAY: u64 = 86_400;

/// Buckets of `unit` seconds that begin before `to`.
fn until(to: u64, unit: u64) -> u32 {
    u32::try_from(to.div_ceil(unit)).unwrap_or(u32::MAX)
}

/// The first day that begins in the range.
fn first_day(query: &UsageQuery) -> u32 {
    u32::try_from(query.from.div_ceil(DAY)).unwrap_or(u32::MAX)
}

/// The smallest key of a time.
fn edge(time: u32) -> Key {
    Key::new(&query::times(time, time).0)
}

/// Adds a row to its sum. Of one that holds several endings, the requests go to theirs: nothing else is known of them.
fn add(sums: &mut BTreeMap<Place, Row>, place: Place, row: &Row) {
    if place.5 != Some(Ended::MIXED) {
        return sums.entry(place).or_default().merge(row);
    }
    for (ending, requests) in row.requests.into_iter().enumerate().filter(|(_, requests)| *requests > 0) {
        let mut alone = Row::default();
        alone.requests[ending] = requests;
        let (start, day, node, model, key, _) = place;
        sums.entry((start, day, node, model, key, Some(Ended(ending as u8)))).or_default().merge(&alone);
    }
    let rest = Row { requests: Default::default(), far: false, ..*row };
    if rest != Row::default() {
        sums.entry(place).or_default().merge(&rest);
    }
}

fn place(query: &UsageQuery, time: u32, minutes: bool, party: StoredParty) -> Place {
    let Group { node, model, key, outcome } = query.group;
    let seconds = u64::from(time) * if minutes { 60 } else { DAY };
    let start = match query.step {
        Step::All => query.from,
        Step::Minute if minutes => seconds,
        Step::Hour if minutes => seconds - seconds % 3600,
        Step::Minute | Step::Hour | Step::Day => seconds - seconds % DAY,
    };
    let finer = matches!(query.step, Step::Minute | Step::Hour);
    let (node, model) = (node.then_some(party.node), model.then_some(party.model));
    (start, !minutes && finer, node, model, key.then_some(party.key), outcome.then_some(party.ended))
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use tokio::sync::oneshot;

    use super::super::store::{Store, Writes};
    use super::*;

    fn party(node: u32, model: u32, key: u32) -> StoredParty {
        StoredParty { node: StoredId(node), model: StoredId(model), key: StoredId(key), ended: Ended::COMPLETED }
    }

    fn row(requests: u64) -> Row {
        Row { requests: [requests, 0, 0, 0, 0], ..Row::default() }
    }

    fn store(minutes: &[(u32, StoredParty, u64)], days: &[(u32, StoredParty, u64)]) -> MemoryStore {
        let (mut store, mut writes) = (MemoryStore::default(), Writes::default());
        for (table, rows) in [(Table::MinutesByTime, minutes), (Table::DaysByTime, days)] {
            for (time, party, requests) in rows {
                writes.put(table, &series::by_time(*time, *party), &row(*requests).encode());
            }
        }
        store.commit(&writes).expect("memory takes everything");
        store
    }

    const ALL: Group = Group { node: true, model: true, key: true, outcome: true };
    const NONE: Group = Group { node: false, model: false, key: false, outcome: false };

    /// (start, step, requests) of every sum.
    fn ask(store: &MemoryStore, query: UsageQuery) -> Result<Vec<(u64, Step, u64)>, LedgerError> {
        let (reply, mut answer) = oneshot::channel();
        let mut summing = Summing::new(query, MemoryStore::default(), 0, reply);
        while summing.slice(store)? == Slice::More {}
        summing.finish(&Dictionary::default(), UnixMinute(0));
        let rows = answer.try_recv().expect("an answer")?.rows;
        Ok(rows.into_iter().map(|sum| (sum.start, sum.step, sum.row.requests[0])).collect())
    }

    fn query(from: u64, to: u64, step: Step, group: Group) -> UsageQuery {
        UsageQuery { from, to, step, group, rows_max: 1000 }
    }

    #[test]
    fn the_range_takes_its_first_minute_and_not_its_last() {
        let store = store(&[(9, party(1, 1, 1), 1), (10, party(1, 1, 1), 2), (11, party(1, 1, 1), 4)], &[]);
        let sum = |from, to| ask(&store, query(from, to, Step::All, NONE)).unwrap();
        assert_eq!(sum(600, 660), [(600, Step::All, 2)]);
        assert_eq!(sum(540, 720), [(540, Step::All, 7)]);
        assert_eq!(sum(0, 540), []);
        assert_eq!(sum(0, 0), []);
    }

    #[test]
    fn steps_and_groups_split_the_same_total() {
        let mut minutes = Vec::new();
        for minute in 0..3000 {
            minutes.push((minute, party(minute % 3, minute % 2, 0), 1));
        }
        let store = store(&minutes, &[]);
        for step in [Step::Minute, Step::Hour, Step::Day, Step::All] {
            for group in [ALL, NONE, Group { node: true, ..NONE }] {
                let all = UsageQuery { rows_max: 10_000, ..query(0, 3000 * 60, step, group) };
                let sums = ask(&store, all).unwrap();
                assert_eq!(sums.iter().map(|sum| sum.2).sum::<u64>(), 3000, "{step:?}");
            }
        }
        let hours = ask(&store, query(0, 7200, Step::Hour, NONE)).unwrap();
        assert_eq!(hours, [(0, Step::Hour, 60), (3600, Step::Hour, 60)]);
    }

    #[test]
    fn more_rows_than_a_slice_are_all_summed_once() {
        let minutes: Vec<_> = (0..20).flat_map(|m| (0..2500).map(move |node| (m, party(node, 0, 0), 1))).collect();
        let store = store(&minutes, &[]);
        assert_eq!(ask(&store, query(0, 1200, Step::All, NONE)).unwrap(), [(0, Step::All, 50_000)]);
    }

    #[test]
    fn folded_days_stand_as_days_among_finer_steps() {
        let day = 20_000;
        let store =
            store(&[((day + 1) * 1440, party(1, 1, 1), 1)], &[(day, party(1, 1, 1), 5), (day + 9, party(1, 1, 1), 9)]);
        let start = u64::from(day) * DAY;
        let sums = ask(&store, query(start, start + 2 * DAY, Step::Hour, NONE)).unwrap();
        assert_eq!(sums, [(start, Step::Day, 5), (start + DAY, Step::Hour, 1)]);
        let sums = ask(&store, query(start, start + 2 * DAY, Step::Day, NONE)).unwrap();
        assert_eq!(sums, [(start, Step::Day, 5), (start + DAY, Step::Day, 1)]);
        assert_eq!(ask(&store, query(start + 1, start + DAY, Step::All, NONE)).unwrap(), [], "that day began before");
    }

    #[test]
    fn i8_an_answer_has_a_bound() {
        let minutes: Vec<_> = (0..50).map(|minute| (minute, party(1, 1, 1), 1)).collect();
        let store = store(&minutes, &[]);
        let bounded = |rows_max| UsageQuery { rows_max, ..query(0, 3000, Step::Minute, NONE) };
        assert_eq!(ask(&store, bounded(50)).unwrap().len(), 50);
        assert_eq!(ask(&store, bounded(49)), Err(LedgerError::TooMuch { rows_max: 49 }));
    }
}
