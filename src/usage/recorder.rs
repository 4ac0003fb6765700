//! The hot side: counts a request's end and puts its event on the worker's ring.
//!
//! Each worker owns one [`Recorder`]; the ledger thread drains the [`Ring`]s. Must never wait, and never lose a count:
//! a full ring loses detail only, and that is counted.

use std::cell::RefCell;
use std::sync::OnceLock;

use crossbeam::utils::CachePadded;

use super::Outcome;
use super::counters::PairCounters;
use super::lost::{Lost, LostRow};
use super::meters::{Meters, Tally, WorkerMeters};
use crate::ids::WorkerId;
use crate::sync::{Arc, ArrayQueue, AtomicU64, Ordering};

/// Events in a ring's first lane: 100 ms at ten thousand requests a second.
const FIRST_LANE: usize = 1024;
/// Rows of dropped events that wait for the ledger: more than a worker can have at one time.
const LOST_MAX: usize = 512;

/// A bounded queue of events from one worker to the ledger thread.
///
/// It is a row of lanes of doubling size, each allocated when all before it are full: one worker's 65,536 events would
/// be 8 MB, touched at start, for a ring that seldom holds a hundred. Order between lanes is lost; folding is a sum, so
/// nobody misses it.
///
/// # Invariants
/// One producer (the worker), one consumer (the ledger thread). At most `capacity` events are held.
/// # Orderings
/// Those of the lanes; `high_water` is Relaxed, written by the consumer.
/// # Progress
/// Wait-free on both sides, but for the allocation of a lane.
#[derive(Debug)]
pub struct Ring {
    lanes: Box<[Lane<Outcome>]>,
    /// Sums of events that found no room.
    lost: Lane<LostRow>,
    high_water: AtomicU64,
}

/// A bounded queue between two threads, allocated by the first push.
///
/// An `ArrayQueue` alone makes one side spin while the other is between claiming a place and being done with it, and
/// that is for as long as the scheduler likes: a worker was seen to spin for half a second on an event that the ledger
/// thread, which shared its core, had claimed. So each side says how far it is *done*, and the other goes no further.
///
/// # Invariants
/// `taken <= pushed <= taken + capacity`; `pushed` has one writer, the producer, `taken` the consumer.
/// # Orderings
/// A step's store is Release and the other side's load Acquire: who sees the number sees the queue's own stamps of that
/// step, and never meets a place in the middle of one.
/// # Progress
/// Wait-free on both sides: no place that a call touches is claimed by the other thread.
///
/// Model: `usage::recorder::model`.
#[derive(Debug)]
struct Lane<T> {
    capacity: u64,
    queue: OnceLock<ArrayQueue<T>>,
    pushed: CachePadded<AtomicU64>,
    taken: CachePadded<AtomicU64>,
}

impl<T> Lane<T> {
    fn new(capacity: usize) -> Self {
        let count = || CachePadded::new(AtomicU64::new(0));
        Self { capacity: capacity as u64, queue: OnceLock::new(), pushed: count(), taken: count() }
    }

    /// False when it is full. For the producer alone.
    fn push(&self, value: T) -> bool {
        let pushed = self.pushed.load(Ordering::Relaxed);
        if pushed - self.taken.load(Ordering::Acquire) >= self.capacity {
            return false;
        }
        let queue = self.queue.get_or_init(|| ArrayQueue::new(usize::try_from(self.capacity).unwrap_or(usize::MAX)));
        let went = queue.push(value).is_ok();
        self.pushed.store(pushed + u64::from(went), Ordering::Release);
        went
    }

    /// Takes what was there at the call. For the consumer alone.
    fn drain(&self, mut take: impl FnMut(&T)) {
        let pushed = self.pushed.load(Ordering::Acquire);
        let Some(queue) = self.queue.get() else { return };
        for done in self.taken.load(Ordering::Relaxed)..pushed {
            let Some(value) = queue.pop() else { return };
            take(&value);
            self.taken.store(done + 1, Ordering::Release);
        }
    }

    /// How many wait now; never too many for the consumer, never too few for the producer.
    fn len(&self) -> usize {
        // In this order: what is taken had been pushed.
        let taken = self.taken.load(Ordering::Acquire);
        usize::try_from(self.pushed.load(Ordering::Acquire) - taken).unwrap_or(usize::MAX)
    }
}

impl Ring {
    /// A ring that holds at most `capacity` events (at least one).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let mut lanes = Vec::new();
        let mut left = capacity.max(1);
        let mut size = FIRST_LANE;
        while left > 0 {
            let capacity = size.min(left);
            lanes.push(Lane::new(capacity));
            left -= capacity;
            size *= 2;
        }
        Self { lanes: lanes.into(), lost: Lane::new(LOST_MAX), high_water: AtomicU64::new(0) }
    }

    /// One ring per worker, ready to share.
    #[must_use]
    pub fn for_workers(workers: usize, capacity: usize) -> Vec<Arc<Self>> {
        (0..workers).map(|_| Arc::new(Self::new(capacity))).collect()
    }

    /// Puts an event on the ring; false when it is full. For the worker alone.
    #[must_use]
    pub fn push(&self, event: &Outcome) -> bool {
        self.lanes.iter().any(|lane| lane.push(*event))
    }

    /// Takes what is on the ring now; what comes meanwhile is left for the next time. For the ledger thread alone.
    pub fn drain(&self, mut take: impl FnMut(&Outcome)) -> usize {
        let waiting = self.len();
        if waiting as u64 > self.high_water.load(Ordering::Relaxed) {
            self.high_water.store(waiting as u64, Ordering::Relaxed);
        }
        self.lanes.iter().for_each(|lane| lane.drain(&mut take));
        waiting
    }

    /// Puts a sum of dropped events where the ledger finds it; false when there is no room. For the worker alone.
    fn push_lost(&self, row: LostRow) -> bool {
        self.lost.push(row)
    }

    /// Takes the sums of dropped events. For the ledger thread alone.
    pub fn drain_lost(&self, take: impl FnMut(&LostRow)) {
        self.lost.drain(take);
    }

    /// Events waiting now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.iter().map(Lane::len).sum()
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
    fn idle_ring_owns_one_small_lane() {
        let ring = Ring::new(65_536);
        assert!(ring.push(&outcome()));
        assert_eq!(ring.lanes.iter().filter(|lane| lane.queue.get().is_some()).count(), 1);
        assert_eq!(ring.lanes.iter().map(|lane| lane.capacity).sum::<u64>(), 65_536);
    }

    /// A producer that went for such a place would spin until the consumer has its core back.
    #[test]
    fn a_place_is_free_once_its_event_is_done_with_and_not_before() {
        let ring = Ring::new(3);
        for _ in 0..3 {
            assert!(ring.push(&outcome()));
        }
        let mut nth = 0;
        ring.drain(|_| {
            assert_eq!(ring.push(&outcome()), nth > 0, "event {nth} is not done with, those before it are");
            nth += 1;
        });
        assert_eq!((nth, ring.len()), (3, 2), "what came meanwhile is left");
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

#[cfg(all(test, proxy_loom))]
mod model {
    use loom::thread;

    use super::*;

    /// Over two laps: the queue fails the model where a side would spin, and a push where there is room never fails.
    #[test]
    fn i8_neither_side_meets_the_other_in_the_middle_of_a_step() {
        loom::model(|| {
            let lane = Arc::new(Lane::new(2));
            assert!(lane.push(0));
            let producer = {
                let lane = Arc::clone(&lane);
                thread::spawn(move || {
                    (1..5_u32)
                        .filter(|&value| {
                            let room = lane.len() < 2;
                            let went = lane.push(value);
                            assert!(went || !room, "there is room, and it can only grow");
                            went
                        })
                        .collect::<Vec<_>>()
                })
            };
            let mut taken = Vec::new();
            for _ in 0..2 {
                lane.drain(|&value| taken.push(value));
            }
            let pushed = producer.join().unwrap();
            lane.drain(|&value| taken.push(value));
            assert_eq!(taken, [vec![0], pushed].concat());
        });
    }
}
