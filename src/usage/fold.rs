//! Rows in memory: events are folded in, batches go out to the store and come back settled. Pure: no store, no clock.
//!
//! Used by the ledger thread ([`super::ledger`]). Must never lose or double an event, and never outgrow its bound.
//!
//! A row here is `base + delta`: what the store holds (once that was read), and what came since. Written is always the
//! sum, never a difference, so writing a batch again after a failure cannot double it.
//!
//! # When memory is full
//! At [`ROWS_MAX`] rows, first rows that the store has are forgotten (their next touch reads them again), then minutes
//! fold into their days, oldest first (sums stay exact, those minutes are gone). An event that finds no room even then
//! is left out and counted: the meters have it, the ledger does not.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::Outcome;
use super::answers::Bucket;
use super::lost::LostRow;
use super::series::{self, Ended, Row};
use crate::clock::Millis;
use crate::ids::{KeyId, ModelId, NodeId, UnixMinute};
use crate::mix::Mix;

/// Rows in memory: what a table of 131,072 places takes before it doubles. With its queue and one batch it has 52 MiB.
pub const ROWS_MAX: usize = (1 << 17) / 8 * 7;
const _: () = assert!(size_of::<(RowId, Entry)>() * (1 << 17) <= 48 << 20, "rows in memory are to stay within 64 MiB");
/// Rows in one batch: some 5 MB of copies, and a commit of some 50 ms.
const BATCH_MAX: usize = 16_384;
/// A row that the store has is forgotten when nobody touched it for this long: two minutes, so that the open minute
/// and the one before it stay.
const FORGET_AFTER_MS: Millis = 120_000;
/// How often rows to forget are looked for.
const SWEEP_EACH_MS: Millis = 10_000;

/// Whose row it is, in the process' ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowId {
    /// Minute, day or all time.
    pub bucket: Bucket,
    /// Node.
    pub node: NodeId,
    /// Model.
    pub model: ModelId,
    /// Router key.
    pub key: KeyId,
    /// How its requests ended.
    pub ended: Ended,
}

impl Hash for RowId {
    /// Two ids a word: hashing is a good part of what folding an event costs.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.bucket.hash(hasher);
        hasher.write_u64(u64::from(self.node.0) << 32 | u64::from(self.model.0));
        hasher.write_u64(u64::from(self.key.0) << 8 | u64::from(self.ended.0));
    }
}

/// A row in memory.
///
/// # Invariants
/// 1. `dirty` is true exactly while the id waits in [`Fold::dirty`] and `delta` is to be written.
/// 2. While `in_batch`, what was handed out is in neither `base` nor `delta`; the batch carries it.
#[derive(Debug)]
struct Entry {
    /// What the store holds; `None` until it was read.
    base: Option<Row>,
    /// What came since.
    delta: Row,
    dirty: bool,
    in_batch: bool,
    touched: Millis,
}

/// A row on its way to the store.
#[derive(Clone, Debug)]
pub struct BatchRow {
    /// Whose it is.
    pub id: RowId,
    /// What the store holds; the store thread fills it in where it is `None`.
    pub base: Option<Row>,
    /// What is to be added.
    pub delta: Row,
}

/// Rows that are written in one transaction.
#[derive(Default, Debug)]
pub struct Batch {
    /// The rows, in order of first touch.
    pub rows: Vec<BatchRow>,
    /// Since when the oldest of them waits.
    pub since: Millis,
}

/// Rows in memory.
#[derive(Debug)]
pub struct Fold {
    rows: HashMap<RowId, Entry, BuildHasherDefault<Mix>>,
    /// Ids to be written and since when, oldest first; ids whose row is no longer dirty are skipped.
    dirty: VecDeque<(RowId, Millis)>,
    rows_max: usize,
    /// Ids ever taken into batches, less those that came back unwritten.
    taken: u64,
    /// Since when the batch that is out waits.
    out_since: Option<Millis>,
    newest: Option<UnixMinute>,
    folded_before: UnixMinute,
    swept: Millis,
    /// Room was looked for in this step already.
    full: bool,
    /// Rows moved to their day, so what [`Fold::mark`] said before no longer covers them.
    moved: bool,
    /// Figures for [`super::answers::Health`].
    pub(super) stats: FoldStats,
}

/// What a [`Fold`] counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FoldStats {
    /// Events folded.
    pub events: u64,
    /// Minute rows folded into days because memory was full.
    pub minutes_folded_early: u64,
    /// Events without room.
    pub events_lost: u64,
    /// Minute rows begun far from the newest.
    pub minutes_far: u64,
}

impl Default for Fold {
    fn default() -> Self {
        Self::new(ROWS_MAX)
    }
}

impl Fold {
    /// An empty fold with room for this many rows.
    #[must_use]
    pub fn new(rows_max: usize) -> Self {
        Self {
            rows: HashMap::default(),
            dirty: VecDeque::new(),
            rows_max,
            taken: 0,
            out_since: None,
            newest: None,
            folded_before: UnixMinute(0),
            swept: 0,
            full: false,
            moved: false,
            stats: FoldStats::default(),
        }
    }

    /// Adds an event to its minute (or its day, if that minute was folded) and to its total.
    pub fn add(&mut self, event: &Outcome, now: Millis) {
        let of = (event.node, event.model, event.key, Ended::of(event.ending));
        self.add_row(event.minute, of, &Row::of(event), 1, now);
    }

    /// Adds what dropped events came to, under the key `_lost`.
    pub fn add_lost(&mut self, lost: &LostRow, now: Millis) {
        let of = (lost.node, lost.model, KeyId::LOST, lost.ended);
        self.add_row(lost.minute, of, &lost.row, lost.row.requests_total(), now);
    }

    fn add_row(
        &mut self,
        minute: UnixMinute,
        (node, model, key, ended): (NodeId, ModelId, KeyId, Ended),
        row: &Row,
        events: u64,
        now: Millis,
    ) {
        let folded = minute < self.folded_before;
        let far = !folded && series::is_far(minute, self.newest);
        let bucket = if folded { series::day_of(minute) } else { Bucket::Minute(minute) };
        let id = |bucket| RowId { bucket, node, model, key, ended };
        let (mut detail, total) = (id(bucket), id(Bucket::Total));
        if self.rows.len() + 2 > self.rows_max && !self.room_for(detail, total, now) {
            // The minute has no room; its day may be here already.
            detail = id(series::day_of(minute));
            if !self.room_for(detail, total, now) {
                self.stats.events_lost += events;
                return;
            }
        }
        let far = far && detail.bucket == bucket;
        self.newest = self.newest.max(Some(minute));
        self.stats.events += events;
        let begun_far = self.touch(detail, &Row { far, ..*row }, now);
        self.stats.minutes_far += u64::from(begun_far);
        self.touch(total, row, now);
    }

    /// Adds to a row; true if this made it a far one.
    fn touch(&mut self, id: RowId, row: &Row, now: Millis) -> bool {
        let was_far = row.far
            && self.rows.get(&id).is_some_and(|entry| entry.delta.far || entry.base.is_some_and(|base| base.far));
        if self.touch_quietly(id, row, now) {
            self.dirty.push_back((id, now));
        }
        row.far && !was_far
    }

    /// Adds to a row; true if it was not dirty before, and its id must be queued.
    fn touch_quietly(&mut self, id: RowId, row: &Row, now: Millis) -> bool {
        let entry = self.rows.entry(id).or_insert_with(|| Entry {
            base: None,
            delta: Row::default(),
            dirty: false,
            in_batch: false,
            touched: now,
        });
        entry.delta.merge(row);
        entry.touched = now;
        !std::mem::replace(&mut entry.dirty, true)
    }

    /// Whether both rows are there or can be made, after making what room there is (at most once a step).
    fn room_for(&mut self, detail: RowId, total: RowId, now: Millis) -> bool {
        if !self.full {
            self.full = true;
            self.rows.retain(|_, entry| entry.dirty || entry.in_batch);
            if self.rows.len() + 2 > self.rows_max {
                self.fold_early(now);
            }
        }
        let missing = [detail, total].iter().filter(|id| !self.rows.contains_key(id)).count();
        self.rows.len() + missing <= self.rows_max
    }

    /// Folds minutes into days in memory, oldest first, until an eighth of the room is free.
    fn fold_early(&mut self, now: Millis) {
        let mut minutes: Vec<(UnixMinute, RowId)> = self
            .rows
            .iter()
            .filter(|(_, entry)| !entry.in_batch)
            .filter_map(|(id, _)| if let Bucket::Minute(minute) = id.bucket { Some((minute, *id)) } else { None })
            .collect();
        minutes.sort_unstable_by_key(|(minute, id)| (*minute, id.node, id.model, id.key, id.ended));
        for (minute, id) in minutes {
            if self.rows.len() <= self.rows_max - self.rows_max / 8 {
                break;
            }
            self.move_to_day(minute, id, now);
            self.stats.minutes_folded_early += 1;
        }
        // Their ids would pile up here for as long as no store takes them.
        self.dirty.retain(|(id, _)| self.rows.get(id).is_some_and(|entry| entry.dirty));
    }

    /// Takes a minute row away and adds what it held unwritten to its day.
    fn move_to_day(&mut self, minute: UnixMinute, id: RowId, now: Millis) {
        let Some(entry) = self.rows.remove(&id) else { return };
        self.moved = true;
        if entry.delta == Row::default() {
            return;
        }
        let day = RowId { bucket: series::day_of(minute), ..id };
        let since = self.dirty.front().map_or(now, |(_, since)| *since);
        if self.touch_quietly(day, &Row { far: false, ..entry.delta }, now) {
            // To the front: it is as old as what it took over.
            self.dirty.push_front((day, since));
        }
    }

    /// Whether rows moved to their day since the last call: who waits for a mark must take it anew.
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Takes the rows to be written next. At most one batch is out at a time; [`Fold::settle`] ends it.
    pub fn take_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        while let Some((id, since)) = self.dirty.front().copied() {
            if batch.rows.len() == BATCH_MAX {
                break;
            }
            self.dirty.pop_front();
            self.taken += 1;
            let Some(entry) = self.rows.get_mut(&id).filter(|entry| entry.dirty) else { continue };
            if batch.rows.is_empty() {
                batch.since = since;
            }
            (entry.dirty, entry.in_batch) = (false, true);
            batch.rows.push(BatchRow { id, base: entry.base, delta: std::mem::take(&mut entry.delta) });
        }
        if batch.rows.is_empty() {
            return None;
        }
        self.out_since = Some(batch.since);
        Some(batch)
    }

    /// Ends the batch that was out: its rows are in the store, or come back to be written again.
    pub fn settle(&mut self, batch: Batch, stored: bool) {
        self.out_since = None;
        for row in batch.rows.into_iter().rev() {
            let Some(entry) = self.rows.get_mut(&row.id) else { continue };
            entry.in_batch = false;
            entry.base = row.base;
            if stored {
                if let Some(base) = &mut entry.base {
                    base.merge(&row.delta);
                }
                continue;
            }
            entry.delta.merge(&row.delta);
            entry.dirty = true;
            // To the front, in the old order. If it waits further back as well, it is skipped there.
            self.dirty.push_front((row.id, batch.since));
            self.taken -= 1;
        }
    }

    /// Every row that is not written, for answers that include it. Only while no batch is out.
    #[must_use]
    pub fn unwritten(&self) -> Batch {
        let rows = self
            .dirty
            .iter()
            .filter_map(|(id, _)| self.rows.get(id).filter(|entry| entry.dirty).map(|entry| (id, entry)))
            .map(|(id, entry)| BatchRow { id: *id, base: entry.base, delta: entry.delta })
            .collect();
        Batch { rows, since: self.oldest_unwritten().unwrap_or_default() }
    }

    /// Takes what the store said at opening: its newest minute, and the first one that is not folded.
    pub fn opened(&mut self, newest: Option<UnixMinute>, folded_before: UnixMinute, now: Millis) {
        self.newest = self.newest.max(newest);
        self.rehome(folded_before, now);
    }

    /// The store folded minutes: rows of theirs move to their days, and what is known of stored days is out of date.
    /// Only while no batch is out.
    pub fn folded(&mut self, folded_before: UnixMinute, now: Millis) {
        self.rows.retain(|id, entry| {
            if matches!(id.bucket, Bucket::Day(_)) {
                entry.base = None;
                return entry.dirty;
            }
            true
        });
        self.rehome(folded_before, now);
    }

    /// Moves rows of folded minutes to their days.
    fn rehome(&mut self, folded_before: UnixMinute, now: Millis) {
        self.folded_before = self.folded_before.max(folded_before);
        let mut late: Vec<_> = self
            .rows
            .keys()
            .filter_map(|id| match id.bucket {
                Bucket::Minute(minute) if minute < self.folded_before => Some((minute, *id)),
                _ => None,
            })
            .collect();
        late.sort_unstable_by_key(|(minute, id)| (*minute, id.node, id.model, id.key, id.ended));
        for (minute, id) in late {
            self.move_to_day(minute, id, now);
        }
    }

    /// A fold failed without saying how far it came: what is known of stored minutes and days may be out of date.
    /// Only while no batch is out.
    pub fn distrust_stored(&mut self) {
        self.rows.retain(|id, entry| {
            if id.bucket != Bucket::Total {
                entry.base = None;
            }
            entry.base.is_some() || entry.dirty
        });
    }

    /// Begins a step: forgets rows that the store has and nobody touched for a while.
    pub fn begin_step(&mut self, now: Millis) {
        self.full = false;
        if now.saturating_sub(self.swept) < SWEEP_EACH_MS {
            return;
        }
        self.swept = now;
        self.rows
            .retain(|_, entry| entry.dirty || entry.in_batch || now.saturating_sub(entry.touched) < FORGET_AFTER_MS);
        // What a burst needed is given back, else one busy hour stays resident for ever.
        if self.rows.capacity() > 4 * (self.rows.len() + 1024) {
            self.rows.shrink_to(2 * self.rows.len());
        }
    }

    /// Whether something waits to be written (what is out aside).
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What [`Fold::written`] must reach until everything added so far is in the store.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.taken + self.dirty.len() as u64
    }

    /// How far writing has come, in terms of [`Fold::mark`]. Only meaningful while no batch is out.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.taken
    }

    /// Since when the oldest unwritten row waits.
    #[must_use]
    pub fn oldest_unwritten(&self) -> Option<Millis> {
        let waiting = self.dirty.front().map(|(_, since)| *since);
        self.out_since.into_iter().chain(waiting).min()
    }

    /// Rows in memory, and of those the unwritten ones (what is out aside).
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.rows.len(), self.dirty.len())
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;
    use crate::usage::tests::outcome;
    use crate::usage::{Count, Tokens};

    fn event(minute: u32, model: u32) -> Outcome {
        let tokens = Tokens { input: 1, cached: 0, output: 2 };
        Outcome { minute: UnixMinute(minute), model: ModelId(model), count: Count::Exact(tokens), ..outcome() }
    }

    /// Sum of requests over rows of details and over totals, unwritten.
    fn sums(fold: &Fold) -> (u64, u64) {
        let mut sums = (0, 0);
        for row in fold.unwritten().rows {
            match row.id.bucket {
                Bucket::Total => sums.1 += row.delta.requests_total(),
                _ => sums.0 += row.delta.requests_total(),
            }
        }
        sums
    }

    fn written(mut batch: Batch) -> Batch {
        for row in &mut batch.rows {
            row.base.get_or_insert_default();
        }
        batch
    }

    #[test]
    fn a_row_is_written_once_per_batch_whatever_it_saw() {
        let mut fold = Fold::default();
        for _ in 0..100 {
            fold.add(&event(1000, 2), 5);
        }
        let batch = fold.take_batch().unwrap();
        assert_eq!((batch.rows.len(), batch.since), (2, 5));
        assert_eq!(batch.rows[0].delta.requests[0], 100);
        assert!(fold.take_batch().is_none(), "nothing changed since");
        assert_eq!(fold.oldest_unwritten(), Some(5));
        fold.settle(written(batch), true);
        assert_eq!(fold.oldest_unwritten(), None);
    }

    #[test]
    fn what_comes_while_a_batch_is_out_is_neither_lost_nor_doubled() {
        for stored in [true, false] {
            let mut fold = Fold::default();
            fold.add(&event(1000, 2), 1);
            let batch = fold.take_batch().unwrap();
            let mark = fold.mark();
            fold.add(&event(1000, 2), 2);
            fold.settle(written(batch), stored);
            assert_eq!(fold.written() >= mark, stored);
            let next = fold.take_batch().unwrap();
            for row in &next.rows {
                let mut absolute = row.base.unwrap();
                absolute.merge(&row.delta);
                assert_eq!(absolute.requests_total(), 2);
            }
            fold.settle(written(next), true);
            assert!(!fold.is_dirty() || fold.take_batch().is_none());
        }
    }

    #[test]
    fn i8_full_memory_folds_minutes_into_days_and_keeps_sums() {
        let mut fold = Fold::new(64);
        for minute in 0..500 {
            fold.begin_step(0);
            fold.add(&event(1440 + minute, 2), 0);
        }
        assert!(fold.sizes().0 <= 64);
        assert_eq!(sums(&fold), (500, 500));
        assert!(fold.stats.minutes_folded_early > 400);
        assert_eq!((fold.stats.events, fold.stats.events_lost), (500, 0));
    }

    #[test]
    fn i8_an_event_without_room_is_counted() {
        let mut fold = Fold::new(8);
        for model in 0..10 {
            fold.begin_step(0);
            fold.add(&event(1440, model), 0);
        }
        let (details, totals) = sums(&fold);
        assert_eq!(details, totals);
        assert_eq!(details + fold.stats.events_lost, 10);
        assert!(fold.stats.events_lost > 0 && fold.sizes().0 <= 8);
        // A row that exists still takes events.
        fold.add(&event(1440, 0), 0);
        assert_eq!(sums(&fold).0, details + 1);
    }

    #[test]
    fn stored_rows_are_forgotten_when_idle_or_when_room_is_needed() {
        let mut fold = Fold::new(4);
        fold.add(&event(1440, 2), 0);
        let batch = fold.take_batch().unwrap();
        fold.settle(written(batch), true);
        fold.add(&event(1440, 3), 0);
        fold.begin_step(0);
        fold.add(&event(1440, 4), 0);
        assert_eq!(fold.stats.events_lost, 0);
        let batch = fold.take_batch().unwrap();
        fold.settle(written(batch), true);
        fold.begin_step(FORGET_AFTER_MS);
        assert_eq!(fold.sizes(), (0, 0));
    }

    #[test]
    fn events_of_folded_minutes_add_to_the_day() {
        let mut fold = Fold::default();
        fold.add(&event(1500, 2), 0);
        fold.add(&event(9000, 2), 0);
        fold.folded(UnixMinute(2000), 0);
        fold.add(&event(1501, 2), 0);
        let rows = fold.unwritten().rows;
        let requests = |bucket| {
            rows.iter().filter(|row| row.id.bucket == bucket).map(|row| row.delta.requests_total()).sum::<u64>()
        };
        assert_eq!(requests(series::day_of(UnixMinute(1500))), 2);
        assert_eq!(requests(Bucket::Minute(UnixMinute(9000))), 1);
        assert_eq!(requests(Bucket::Minute(UnixMinute(1500))), 0);
        assert_eq!(requests(Bucket::Total), 3);
    }

    #[test]
    fn a_minute_far_from_the_newest_is_kept_and_flagged() {
        let mut fold = Fold::default();
        for minute in [5000, 5061, 5000, 5061, 5061] {
            fold.add(&event(minute, 2), 0);
        }
        let rows = fold.unwritten().rows;
        let far = |minute| {
            rows.iter().find(|row| row.id.bucket == Bucket::Minute(UnixMinute(minute))).map(|row| row.delta.far)
        };
        assert_eq!((far(5061), far(5000)), (Some(true), Some(true)), "both lie more than an hour apart");
        assert_eq!(fold.stats.minutes_far, 2);
        assert!(!rows.iter().any(|row| row.id.bucket == Bucket::Total && row.delta.far));
    }
}
