//! Process-wide figures for `/metrics`: one padded block of counters per worker, one writer each, summed by readers.
//!
//! The [`Recorder`](super::recorder::Recorder) counts each request's end here; front, proxy and pools tally the rest.
//! Must never wait, never allocate after start, and never hold a label that comes from a request.

use crossbeam::utils::CachePadded;

use super::counters::{TokenCounters, bump};
use super::{Count, Ending, Outcome, Rejection, Tokens};
use crate::ids::WorkerId;
use crate::sync::{AtomicU64, Ordering};

/// Declares an enum of figures with the label each has in `/metrics`.
macro_rules! figures {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(usize)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every figure, in order.
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// Its name in `/metrics`, without prefix and unit suffix rules applied.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }
        }
    };
}

figures! {
    /// A count that only rises.
    Tally {
        /// Client connections accepted.
        ConnectionsOpened = "client_connections_opened",
        /// Client connections closed; open ones are the difference.
        ConnectionsClosed = "client_connections_closed",
        /// Client connections handed to another worker at accept.
        HandedOver = "client_connections_handed_over",
        /// Times accepting paused because no file or connection was left.
        AcceptPauses = "accept_pauses",
        /// Connections opened to nodes.
        NodeConnectionsOpened = "node_connections_opened",
        /// Connections to nodes closed.
        NodeConnectionsClosed = "node_connections_closed",
        /// Requests that went over a kept connection.
        NodeConnectionsReused = "node_connections_reused",
        /// Further attempts after a failed one.
        Retries = "retries",
        /// Attempts not made because the retry budget was spent.
        RetriesRefused = "retries_refused",
        /// Compare-exchanges on slot words that lost.
        CasRetries = "cas_retries",
        /// Requests that had to wait for a slot.
        Waits = "slot_waits",
        /// Requests sent to a node where the model was not loaded.
        ColdStarts = "cold_starts",
        /// Cold loads kept after their client left.
        Detached = "detached",
        /// Node connections closed because their client left.
        Lingered = "lingered",
        /// Bytes of request bodies read from clients.
        RequestBytes = "request_body_bytes",
        /// Bytes of answer bodies passed to clients.
        AnswerBytes = "answer_body_bytes",
        /// Times a body had to wait for `body_memory`.
        BodyMemoryWaits = "body_memory_waits",
        /// Handlers that panicked.
        Panics = "handler_panics",
        /// Events dropped because the worker's ring was full: their detail is missing in the ledger, not here.
        DetailDropped = "ledger_detail_dropped",
        /// Access lines dropped because the log's ring was full.
        LogDropped = "log_lines_dropped",
    }
}

figures! {
    /// A time-out that passed, by its name in the configuration.
    Timeout {
        /// No connection to a node in time.
        Connect = "connect",
        /// A client's head did not end.
        RequestHead = "request_head",
        /// A client's body did not go on.
        RequestBodyIdle = "request_body_idle",
        /// A client's connection was not used.
        ClientIdle = "client_idle",
        /// No room for a body.
        BodyMemory = "body_memory",
        /// No slot.
        QueueWait = "queue_wait",
        /// A node fell silent in mid-answer.
        StreamIdle = "stream_idle",
        /// A client took no byte.
        ClientStall = "client_stall",
    }
}

figures! {
    /// A level: the last value set, or the highest since start (see each).
    Mark {
        /// Longest delay of the worker's tick beyond its time, microseconds, highest since start.
        LoopLagMaxUs = "loop_lag_max_us",
        /// Delay of the worker's last tick, microseconds.
        LoopLagUs = "loop_lag_us",
        /// Bytes of request bodies this worker holds now.
        BodyBytesHeld = "body_bytes_held",
        /// Idle connections to nodes this worker keeps now.
        IdleNodeConnections = "node_connections_idle",
    }
}

/// Buckets of a histogram: bucket `i` counts values below `2^i` microseconds and not below `2^(i-1)`; 2^36 us is
/// 19 hours, the last bucket takes the rest.
pub const BUCKETS: usize = 38;

/// A log2 histogram of microseconds with a single writer.
#[derive(Debug)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn observe(&self, value_us: u64) {
        let bits = (u64::BITS - value_us.leading_zeros()) as usize;
        bump(&self.buckets[bits.min(BUCKETS - 1)], 1);
        bump(&self.sum_us, value_us);
    }
}

/// A histogram as read: not cumulative.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistogramSums {
    /// Values per bucket; bucket `i` holds values in `[2^(i-1), 2^i)` microseconds, bucket 0 holds zeros.
    pub buckets: [u64; BUCKETS],
    /// Sum of all values, microseconds.
    pub sum_us: u64,
}

impl Default for HistogramSums {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_us: 0 }
    }
}

impl HistogramSums {
    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum: u64, bucket| sum.wrapping_add(*bucket))
    }

    /// Upper bound of a bucket in microseconds, exclusive; `None` for the last, which has none.
    #[must_use]
    pub const fn bound_us(bucket: usize) -> Option<u64> {
        if bucket + 1 < BUCKETS { Some(1 << bucket) } else { None }
    }

    fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum = sum.wrapping_add(bucket.load(Ordering::Relaxed));
        }
        self.sum_us = self.sum_us.wrapping_add(histogram.sum_us.load(Ordering::Relaxed));
    }
}

/// One worker's figures.
///
/// # Invariants
/// Written by its worker alone, so every add is a plain load and store. Orderings: Relaxed throughout (display only).
/// Progress: wait-free.
#[derive(Debug)]
pub struct WorkerMeters {
    endings: [AtomicU64; Ending::COUNT],
    rejections: [AtomicU64; Rejection::ALL.len()],
    statuses: [AtomicU64; 6],
    exact: TokenCounters,
    estimated: TokenCounters,
    first_byte: Histogram,
    queue_wait: Histogram,
    total: Histogram,
    load: Histogram,
    gap: Histogram,
    tallies: [AtomicU64; Tally::ALL.len()],
    timeouts: [AtomicU64; Timeout::ALL.len()],
    marks: [AtomicU64; Mark::ALL.len()],
}

impl WorkerMeters {
    fn new() -> Self {
        Self {
            endings: zeros(),
            rejections: zeros(),
            statuses: zeros(),
            exact: TokenCounters::default(),
            estimated: TokenCounters::default(),
            first_byte: Histogram::default(),
            queue_wait: Histogram::default(),
            total: Histogram::default(),
            load: Histogram::default(),
            gap: Histogram::default(),
            tallies: zeros(),
            timeouts: zeros(),
            marks: zeros(),
        }
    }

    /// Adds to a tally.
    pub fn add(&self, tally: Tally, by: u64) {
        bump(&self.tallies[tally as usize], by);
    }

    /// Counts a time-out that passed.
    pub fn timed_out(&self, timeout: Timeout) {
        bump(&self.timeouts[timeout as usize], 1);
    }

    /// Sets a level.
    pub fn set(&self, mark: Mark, value: u64) {
        self.marks[mark as usize].store(value, Ordering::Relaxed);
    }

    /// Raises a level to `value` if it is below.
    pub fn raise(&self, mark: Mark, value: u64) {
        let mark = &self.marks[mark as usize];
        if mark.load(Ordering::Relaxed) < value {
            mark.store(value, Ordering::Relaxed);
        }
    }

    /// Sets a tally that is counted elsewhere on this worker, to all of it so far.
    pub fn publish(&self, tally: Tally, so_far: u64) {
        self.tallies[tally as usize].store(so_far, Ordering::Relaxed);
    }

    /// Counts the time between two arrivals of one streamed answer's bytes.
    pub fn gap(&self, gap_us: u64) {
        self.gap.observe(gap_us);
    }

    /// Counts the end of a request.
    pub fn count(&self, outcome: &Outcome) {
        bump(&self.endings[outcome.ending.index()], 1);
        if let Ending::Rejected(why) = outcome.ending {
            bump(&self.rejections[why as usize], 1);
        }
        bump(&self.statuses[status_class(outcome.status)], 1);
        match outcome.count {
            Count::Exact(tokens) => self.exact.add(tokens),
            Count::Estimated(tokens) => self.estimated.add(tokens),
            Count::Nothing => {}
        }
        if outcome.first_byte_us > 0 {
            self.first_byte.observe(outcome.first_byte_us);
        }
        if outcome.queue_us > 0 {
            self.queue_wait.observe(outcome.queue_us);
        }
        if outcome.load_ns > 0 {
            self.load.observe(outcome.load_ns / 1000);
        }
        self.total.observe(outcome.total_us);
    }
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// 1 to 5 for 1xx to 5xx; 0 for no status at all.
fn status_class(status: u16) -> usize {
    match status / 100 {
        class @ 1..=5 => usize::from(class),
        _ => 0,
    }
}

/// All workers' figures.
#[derive(Debug)]
pub struct Meters {
    workers: Box<[CachePadded<WorkerMeters>]>,
}

impl Meters {
    /// Figures for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| CachePadded::new(WorkerMeters::new())).collect() }
    }

    /// One worker's own block; only that worker may write it.
    ///
    /// # Panics
    /// If `worker` is not below the number given to [`Meters::new`].
    #[must_use]
    pub fn worker(&self, worker: WorkerId) -> &WorkerMeters {
        &self.workers[worker.0]
    }

    /// Each worker's value of a level.
    pub fn marks(&self, mark: Mark) -> impl Iterator<Item = u64> + '_ {
        self.workers.iter().map(move |worker| worker.marks[mark as usize].load(Ordering::Relaxed))
    }

    /// One tally, summed over the workers.
    #[must_use]
    pub fn tally(&self, tally: Tally) -> u64 {
        self.workers
            .iter()
            .fold(0, |sum: u64, worker| sum.wrapping_add(worker.tallies[tally as usize].load(Ordering::Relaxed)))
    }

    /// Everything that requests' ends left, summed over the workers.
    #[must_use]
    pub fn sums(&self) -> MeterSums {
        let mut sums = MeterSums::default();
        for worker in &self.workers {
            add_all(&mut sums.endings, &worker.endings);
            add_all(&mut sums.rejections, &worker.rejections);
            add_all(&mut sums.statuses, &worker.statuses);
            add_all(&mut sums.timeouts, &worker.timeouts);
            sums.exact = sums.exact.plus(worker.exact.read());
            sums.estimated = sums.estimated.plus(worker.estimated.read());
            sums.first_byte.add(&worker.first_byte);
            sums.queue_wait.add(&worker.queue_wait);
            sums.total.add(&worker.total);
            sums.load.add(&worker.load);
            sums.gap.add(&worker.gap);
        }
        sums
    }
}

fn add_all<const N: usize>(sums: &mut [u64; N], counters: &[AtomicU64; N]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum = sum.wrapping_add(counter.load(Ordering::Relaxed));
    }
}

/// What requests' ends came to, all workers together.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MeterSums {
    /// Requests by ending, in the order of [`Ending::LABELS`].
    pub endings: [u64; Ending::COUNT],
    /// Rejections by reason, in the order of [`Rejection::ALL`].
    pub rejections: [u64; Rejection::ALL.len()],
    /// Time-outs that passed, in the order of [`Timeout::ALL`].
    pub timeouts: [u64; Timeout::ALL.len()],
    /// Requests by status class; 0 is "no status was sent".
    pub statuses: [u64; 6],
    /// Tokens that nodes reported.
    pub exact: Tokens,
    /// Tokens that we worked out.
    pub estimated: Tokens,
    /// Time to the first byte of the answer, of requests that got one.
    pub first_byte: HistogramSums,
    /// Time spent waiting for a slot, of requests that waited.
    pub queue_wait: HistogramSums,
    /// Arrival to end, of all requests.
    pub total: HistogramSums,
    /// Load time as nodes report it, of requests whose node did.
    pub load: HistogramSums,
    /// Between two arrivals of a streamed answer's bytes.
    pub gap: HistogramSums,
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;
    use crate::usage::tests::outcome;

    #[test]
    fn counts_by_ending_status_and_reason() {
        let meters = Meters::new(2);
        let tokens = Tokens { input: 3, cached: 0, output: 4 };
        meters.worker(WorkerId(0)).count(&Outcome { count: Count::Exact(tokens), first_byte_us: 1000, ..outcome() });
        meters.worker(WorkerId(1)).count(&Outcome {
            ending: Ending::Rejected(Rejection::QueueFull),
            status: 503,
            queue_us: 7,
            ..outcome()
        });
        let sums = meters.sums();
        assert_eq!(sums.endings, [1, 0, 0, 0, 1]);
        assert_eq!(sums.rejections[Rejection::QueueFull as usize], 1);
        assert_eq!(sums.rejections.iter().sum::<u64>(), 1);
        assert_eq!(sums.statuses, [0, 0, 1, 0, 0, 1]);
        assert_eq!(sums.exact, tokens);
        assert_eq!((sums.first_byte.count(), sums.first_byte.buckets[10]), (1, 1));
        assert_eq!((sums.queue_wait.count(), sums.queue_wait.buckets[3]), (1, 1));
        assert_eq!(sums.total.count(), 2);
    }

    #[test]
    fn buckets_hold_what_their_bound_says() {
        for value in [0, 1, 2, 3, 4, 1023, 1024, u64::MAX / 2, u64::MAX] {
            let histogram = Histogram::default();
            histogram.observe(value);
            let mut sums = HistogramSums::default();
            sums.add(&histogram);
            let bucket = sums.buckets.iter().position(|count| *count == 1).unwrap();
            assert!(HistogramSums::bound_us(bucket).is_none_or(|bound| value < bound), "{value} in {bucket}");
            assert!(bucket == 0 || HistogramSums::bound_us(bucket - 1).is_some_and(|bound| value >= bound));
        }
    }

    #[test]
    fn every_label_is_its_own() {
        let labels: std::collections::BTreeSet<_> =
            Tally::ALL.map(Tally::label).into_iter().chain(Mark::ALL.map(Mark::label)).collect();
        assert_eq!(labels.len(), Tally::ALL.len() + Mark::ALL.len());
    }

    #[test]
    fn tallies_and_marks() {
        let meters = Meters::new(2);
        meters.worker(WorkerId(0)).add(Tally::Retries, 2);
        meters.worker(WorkerId(1)).add(Tally::Retries, 3);
        assert_eq!(meters.tally(Tally::Retries), 5);
        meters.worker(WorkerId(0)).raise(Mark::LoopLagMaxUs, 9);
        meters.worker(WorkerId(0)).raise(Mark::LoopLagMaxUs, 4);
        meters.worker(WorkerId(1)).set(Mark::LoopLagMaxUs, 1);
        assert_eq!(meters.marks(Mark::LoopLagMaxUs).collect::<Vec<_>>(), [9, 1]);
    }
}
