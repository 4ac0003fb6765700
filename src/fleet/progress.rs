//! When a node last sent a byte, and how many requests wait for one: how a node that answers probes but serves
//! nothing is found out.
//!
//! Workers write ([`Awaiting`]), one padded row each; the poller reads all rows once a second and decides with
//! [`suspicion`], which is pure. Must never be used for slots or listings: it is allowed to be a second old.

use crossbeam::utils::CachePadded;

use crate::clock::Millis;
use crate::ids::WorkerId;
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};

/// Requests on loaded models of one node that wait for a byte, and when bytes came last.
///
/// # Invariants
/// 1. A row has one writer, its worker; so plain loads and stores do, no read-modify-write.
/// 2. `first` and `second` are meaningful only while `awaiting` is at least 1, or 2.
///
/// # Orderings
/// All relaxed: each value is judged alone, and a reading that is a moment old changes a verdict of 120 s by nothing.
#[derive(Debug)]
pub struct NodeProgress {
    rows: Box<[CachePadded<Row>]>,
}

#[derive(Debug, Default)]
struct Row {
    /// When a byte came last.
    byte: AtomicU64,
    /// When the first of the waiting requests began (of those, roughly: the end of one moves nothing).
    first: AtomicU64,
    /// When the second one joined it.
    second: AtomicU64,
    /// How long each of the two may be silent; 0: as long as is usual there.
    own: [AtomicU64; 2],
    awaiting: AtomicU32,
}

impl NodeProgress {
    /// One row for each worker.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { rows: (0..workers.max(1)).map(|_| CachePadded::default()).collect() }
    }

    /// A request on a loaded model was sent; call it only for those, a load may be silent for minutes. Its model may have
    /// a time of its `own` in which a byte must come.
    pub fn begin(&self, worker: WorkerId, now: Millis, own: Option<Millis>) {
        let row = self.row(worker);
        let awaiting = row.awaiting.load(Ordering::Relaxed);
        let stamp = match awaiting {
            0 => Some((&row.first, &row.own[0])),
            1 => Some((&row.second, &row.own[1])),
            _ => None,
        };
        if let Some((began, patience)) = stamp {
            began.store(now, Ordering::Relaxed);
            patience.store(own.unwrap_or(0), Ordering::Relaxed);
        }
        row.awaiting.store(awaiting.saturating_add(1), Ordering::Relaxed);
    }

    /// Bytes came from the node.
    pub fn byte(&self, worker: WorkerId, now: Millis) {
        let row = self.row(worker);
        if row.byte.load(Ordering::Relaxed) != now {
            row.byte.store(now, Ordering::Relaxed);
        }
    }

    /// A request that [`NodeProgress::begin`] counted has ended, however.
    pub fn end(&self, worker: WorkerId) {
        let row = self.row(worker);
        row.awaiting.store(row.awaiting.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }

    /// All rows, as the decision wants them.
    #[must_use]
    pub fn reading(&self) -> Reading {
        let mut reading = Reading::default();
        let mut starts = [(Millis::MAX, None); 2];
        for row in &self.rows {
            let awaiting = row.awaiting.load(Ordering::Relaxed);
            reading.awaiting += awaiting;
            reading.last_byte = reading.last_byte.max(row.byte.load(Ordering::Relaxed));
            for (waits, stamp, own) in [(1, &row.first, &row.own[0]), (2, &row.second, &row.own[1])] {
                if awaiting >= waits {
                    let own = Some(own.load(Ordering::Relaxed)).filter(|own| *own > 0);
                    insert_smallest(&mut starts, (stamp.load(Ordering::Relaxed), own));
                }
            }
        }
        reading.two_since = starts[1].0;
        reading.own = starts.map(|(_, own)| own);
        reading
    }

    fn row(&self, worker: WorkerId) -> &Row {
        // A worker beyond the rows can only be a mistake in wiring; sharing a row miscounts, it does not break.
        &self.rows[worker.0 % self.rows.len()]
    }
}

fn insert_smallest(two: &mut [(Millis, Option<Millis>); 2], stamp: (Millis, Option<Millis>)) {
    if stamp.0 < two[0].0 {
        *two = [stamp, two[0]];
    } else if stamp.0 < two[1].0 {
        two[1] = stamp;
    }
}

/// A request that waits for bytes of one node; its drop counts the end. Stays on its worker.
#[derive(Debug)]
pub struct Awaiting {
    progress: Arc<NodeProgress>,
    worker: WorkerId,
}

impl Awaiting {
    /// A request on a loaded model was sent.
    #[must_use]
    pub fn new(progress: Arc<NodeProgress>, worker: WorkerId, now: Millis, own: Option<Millis>) -> Self {
        progress.begin(worker, now, own);
        Self { progress, worker }
    }

    /// Bytes came.
    pub fn byte(&self, now: Millis) {
        self.progress.byte(self.worker, now);
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.progress.end(self.worker);
    }
}

/// What all workers know of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Requests on loaded models that are under way.
    pub awaiting: u32,
    /// When two of them were under way at last; [`Millis::MAX`] if there are not two.
    pub two_since: Millis,
    /// When any byte came.
    pub last_byte: Millis,
    /// How long those two may be silent, where their models say so.
    pub own: [Option<Millis>; 2],
}

impl Default for Reading {
    fn default() -> Self {
        Self { awaiting: 0, two_since: Millis::MAX, last_byte: 0, own: [None; 2] }
    }
}

/// Whether the node is suspect now, given whether it was.
///
/// It becomes so when two or more requests on loaded models have waited without a byte from any for as long as both may:
/// their models' own time, else the `usual` one. It stays so
/// until a byte comes or nobody waits any more: while it is suspect it gets no work, so without the second way out a
/// node whose last waiter gave up would never be tried again.
#[must_use]
pub fn suspicion(was: bool, reading: Reading, now: Millis, usual: Millis) -> bool {
    let [one, other] = reading.own.map(|own| own.unwrap_or(usual));
    let quiet = |after| now.saturating_sub(reading.last_byte) >= after;
    if was {
        return quiet(one.min(other)) && reading.awaiting > 0;
    }
    let after = one.max(other);
    quiet(after) && reading.awaiting >= 2 && now.saturating_sub(reading.two_since.min(now)) >= after
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Millis = 120_000;

    fn suspect(progress: &NodeProgress, was: bool, now: Millis) -> bool {
        suspicion(was, progress.reading(), now, AFTER)
    }

    #[test]
    fn two_silent_requests_make_a_suspect() {
        let progress = NodeProgress::new(2);
        progress.begin(WorkerId(0), 1_000, None);
        progress.begin(WorkerId(1), 2_000, None);
        assert!(!suspect(&progress, false, 121_999), "the second has waited a moment less");
        assert!(suspect(&progress, false, 122_000));
    }

    #[test]
    fn two_requests_of_one_worker_do_too() {
        let progress = NodeProgress::new(4);
        progress.begin(WorkerId(3), 1_000, None);
        progress.begin(WorkerId(3), 5_000, None);
        assert!(!suspect(&progress, false, 124_999));
        assert!(suspect(&progress, false, 125_000));
    }

    #[test]
    fn a_models_own_time_counts_where_both_have_one_whatever_came_before() {
        let progress = NodeProgress::new(2);
        progress.byte(WorkerId(1), 900);
        progress.begin(WorkerId(0), 1_000, Some(5_000));
        progress.begin(WorkerId(1), 2_000, Some(4_000));
        assert!(!suspect(&progress, false, 6_999));
        assert!(suspect(&progress, false, 7_000), "long before the usual time, and before there was that much time");
        assert!(suspect(&progress, true, 7_000));
        progress.end(WorkerId(1));
        progress.begin(WorkerId(1), 3_000, None);
        assert!(!suspect(&progress, false, 122_999), "another model's request may be silent for longer");
        assert!(suspect(&progress, false, 123_000));
    }

    #[test]
    fn one_silent_request_is_a_long_prompt() {
        let progress = NodeProgress::new(2);
        progress.begin(WorkerId(0), 0, None);
        assert!(!suspect(&progress, false, 10_000_000));
    }

    #[test]
    fn hours_without_work_are_no_silence() {
        let progress = NodeProgress::new(2);
        progress.begin(WorkerId(0), 7_200_000, None);
        progress.begin(WorkerId(1), 7_200_000, None);
        assert!(!suspect(&progress, false, 7_200_100));
    }

    #[test]
    fn a_late_third_request_delays_nothing() {
        let progress = NodeProgress::new(2);
        progress.begin(WorkerId(0), 0, None);
        progress.begin(WorkerId(0), 0, None);
        progress.begin(WorkerId(1), 119_000, None);
        assert!(suspect(&progress, false, 120_000));
    }

    #[test]
    fn a_byte_on_any_worker_clears_all() {
        let progress = NodeProgress::new(2);
        progress.begin(WorkerId(0), 0, None);
        progress.begin(WorkerId(0), 0, None);
        progress.byte(WorkerId(1), 120_000);
        assert!(!suspect(&progress, false, 120_001));
        assert!(!suspect(&progress, true, 120_001));
    }

    #[test]
    fn suspicion_outlasts_one_waiter_and_ends_with_the_last() {
        let progress = Arc::new(NodeProgress::new(1));
        let first = Awaiting::new(Arc::clone(&progress), WorkerId(0), 0, None);
        let second = Awaiting::new(Arc::clone(&progress), WorkerId(0), 0, None);
        assert!(suspect(&progress, false, 120_000));
        drop(first);
        assert!(suspect(&progress, true, 130_000));
        second.byte(131_000);
        assert!(!suspect(&progress, true, 131_000));
        drop(second);
        assert_eq!(progress.reading().awaiting, 0);
        assert!(!suspect(&progress, true, 400_000));
    }
}
