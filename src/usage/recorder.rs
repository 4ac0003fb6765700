//! The hot side: counts a request's end and puts its event on the worker's ring.
//!
//! Each worker owns one [`Recorder`]; the ledger thread drains the [`Ring`]s. Must never wait, and never lose a count:
//! a full ring loses detail only, and that is counted.

use std::cell::RefCell;
use std::sync::OnceLock;

use super::Outcome;
use super::counters::PairCounters;
use super::lost::{Lost, LostRow};
use super::meters::{Meters, Tally, WorkerMeters};
use crate::ids::WorkerId;
use crate::sync::{Arc, ArrayQueue, AtomicU64, Ordering};

/// Events in a ring's first segment: 100 ms at ten thousand requests a second.
const FIRST_SEGMENT: usize = 1024;
/// Rows of dropped events that wait for the ledger: more than a worker can have at one time.
const LOST_MAX: usize = 512;

/// A bounded queue of events from one worker to the ledger thread.
///
/// It is a row of `ArrayQueue`s of doubling size, each allocated when all before it are full: one worker's 65,536
/// events would be 8 MB, touched at start, for a ring that seldom holds a hundred. Order between segments is lost;
/// folding is a sum, so nobody misses it.
///
/// # Invariants
/// One producer (the worker), one consumer (the ledger thread). At most `capacity` events are held.
/// # Orderings
/// A segment is published by its `OnceLock` (Release/Acquire inside), events by the queue's own stamps.
/// `high_water` is Relaxed, written by the consumer.
/// # Progress
/// `push` is lock-free and never waits: the only initialiser of a segment is the producer.
#[derive(Debug)]
pub struct Ring {
    segments: Box<[Segment]>,
    /// Sums of events that found no room. Set up by the first of them.
    lost: OnceLock<ArrayQueue<LostRow>>,
    high_water: AtomicU64,
}

#[derive(Debug)]
struct Segment {
    capacity: usize,
    queue: OnceLock<ArrayQueue<Outcome>>,
}

impl Ring {
    /// A ring that holds at most `capacity` events (at least one).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let mut segments = Vec::new();
        let mut left = capacity.max(1);
        let mut size = FIRST_SEGMENT;
        while left > 0 {
            let capacity = size.min(left);
            segments.push(Segment { capacity, queue: OnceLock::new() });
            left -= capacity;
            size *= 2;
        }
        Self { segments: segments.into(), lost: OnceLock::new(), high_water: AtomicU64::new(0) }
    }

    /// One ring per worker, ready to share.
    #[must_use]
    pub fn for_workers(workers: usize, capacity: usize) -> Vec<Arc<Self>> {
        (0..workers).map(|_| Arc::new(Self::new(capacity))).collect()
    }

    /// Puts an event on the ring; false when it is full. For the worker alone.
    #[must_use]
    pub fn push(&self, event: &Outcome) -> bool {
        self.segments
            .iter()
            .any(|segment| segment.queue.get_or_init(|| ArrayQueue::new(segment.capacity)).push(*event).is_ok())
    }

    /// Takes what is on the ring now; what comes meanwhile is left for the next time. For the ledger thread alone.
    pub fn drain(&self, mut take: impl FnMut(&Outcome)) -> usize {
        let waiting = self.len();
        if waiting as u64 > self.high_water.load(Ordering::Relaxed) {
            self.high_water.store(waiting as u64, Ordering::Relaxed);
        }
        for queue in self.segments.iter().filter_map(|segment| segment.queue.get()) {
            for _ in 0..queue.len() {
                let Some(event) = queue.pop() else { break };
                take(&event);
            }
        }
        waiting
    }

    /// Puts a sum of dropped events where the ledger finds it; false when there is no room. For the worker alone.
    fn push_lost(&self, row: LostRow) -> bool {
        self.lost.get_or_init(|| ArrayQueue::new(LOST_MAX)).push(row).is_ok()
    }

    /// Takes the sums of dropped events. For the ledger thread alone.
    pub fn drain_lost(&self, mut take: impl FnMut(&LostRow)) {
        let Some(lost) = self.lost.get() else { return };
        while let Some(row) = lost.pop() {
            take(&row);
        }
    }

    /// Events waiting now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.iter().filter_map(|segment| segment.queue.get()).map(ArrayQueue::len).sum()
    }

    /// Whether no event waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most events that ever waited at a drain.
    #[must_use]
    pub fn high_water(&self) -> u64 {
        self.high_water.load(Ordering::Relaxed)
    }
}

/// A worker's way to account for a request.
///
/// May be sent to its worker's thread, never shared with another: the counters behind it have one writer.
#[derive(Debug)]
pub struct Recorder {
    worker: WorkerId,
    ring: Arc<Ring>,
    meters: Arc<Meters>,
    /// What the ring had no room for. (It also makes the type `!Sync`.)
    lost: RefCell<Lost>,
}

impl Recorder {
    /// The recorder of `worker`, whose ring this is.
    #[must_use]
    pub fn new(worker: WorkerId, ring: Arc<Ring>, meters: Arc<Meters>) -> Self {
        Self { worker, ring, meters, lost: RefCell::default() }
    }

    /// The worker it belongs to.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// The worker's own figures.
    #[must_use]
    pub fn meters(&self) -> &WorkerMeters {
        self.meters.worker(self.worker)
    }

    /// Accounts for the end of a request (I2: once for each). Never waits.
    ///
    /// Counters first, ring second: whoever sees the event in the ledger sees it counted.
    pub fn record(&self, outcome: &Outcome, pair: Option<&PairCounters>) {
        let meters = self.meters();
        meters.count(outcome);
        if let Some(pair) = pair {
            pair.count(self.worker, outcome);
        }
        #[cfg(proxy_locked)]
        if super::locked::spend(outcome) {
            return;
        }
        if !self.ring.push(outcome) {
            meters.add(Tally::DetailDropped, 1);
            self.lost.borrow_mut().add(outcome);
        }
    }

    /// Hands what the ring had no room for to the ledger; called by the worker's tick, and at its end.
    pub fn hand_over(&self) {
        let mut lost = self.lost.borrow_mut();
        if !lost.is_empty() {
            lost.hand_over(|row| self.ring.push_lost(row));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;
    use crate::usage::tests::outcome;

    #[test]
    fn i8_ring_is_bounded_and_counts_what_it_drops() {
        let (ring, meters) = (Arc::new(Ring::new(3000)), Arc::new(Meters::new(1)));
        let recorder = Recorder::new(WorkerId(0), ring.clone(), meters.clone());
        let pair = PairCounters::new(1);
        for _ in 0..3500 {
            recorder.record(&outcome(), Some(&pair));
        }
        assert_eq!(ring.len(), 3000);
        assert_eq!(meters.tally(Tally::DetailDropped), 500);
        assert_eq!(meters.sums().endings[0], 3500, "totals stay exact");
        assert_eq!(pair.requests(), 3500);
        let mut drained = 0;
        assert_eq!(ring.drain(|_| drained += 1), 3000);
        assert_eq!((drained, ring.len(), ring.high_water()), (3000, 0, 3000));
        recorder.hand_over();
        let mut lost = Vec::new();
        ring.drain_lost(|row| lost.push(row.row.requests_total()));
        assert_eq!(lost, [500], "their sums reach the ledger all the same");
    }

    #[test]
    fn idle_ring_owns_one_small_segment() {
        let ring = Ring::new(65_536);
        assert!(ring.push(&outcome()));
        assert_eq!(ring.segments.iter().filter(|segment| segment.queue.get().is_some()).count(), 1);
        assert_eq!(ring.segments.iter().map(|segment| segment.capacity).sum::<usize>(), 65_536);
    }

    #[test]
    fn every_event_crosses_or_is_counted() {
        const EVENTS: u64 = 100_000;
        let (ring, meters) = (Arc::new(Ring::new(2000)), Arc::new(Meters::new(1)));
        let recorder = Recorder::new(WorkerId(0), ring.clone(), meters.clone());
        let mut sum = 0;
        std::thread::scope(|scope| {
            let producer = scope.spawn(move || {
                for event in 0..EVENTS {
                    recorder.record(&Outcome { total_us: event, ..outcome() }, None);
                }
            });
            let mut taken = 0_u64;
            while !producer.is_finished() || !ring.is_empty() {
                ring.drain(|_| taken += 1);
            }
            sum = taken;
        });
        assert_eq!(sum + meters.tally(Tally::DetailDropped), EVENTS);
    }
}
