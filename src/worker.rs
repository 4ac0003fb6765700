//! One core: a current-thread runtime, its own listener, its own pools, counters and ring.
//!
//! Owns everything a request touches but the fleet's words; nothing here is shared with another worker except
//! through `Shared`'s gauges and the inbox of handed-over sockets. Called by `main` (and demo, tests).
//! Must never run anything longer than about 200 us: that goes to the control thread.

pub mod accept;
pub mod watch;

use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use tokio::runtime::{Builder, LocalOptions};

use crate::clock::{Clock, Millis};
use crate::fleet::Snapshot;
use crate::fleet::progress::Awaiting;
use crate::fleet::report::Reports;
use crate::ids::{KeyId, ModelId, NodeId, WorkerId};
use crate::proxy::hold::Hold;
use crate::proxy::upstream::{Settings, Upstreams};
use crate::routing::RetryBudget;
use crate::shared::{Phase, Shared, WorkerGauges};
use crate::sync::{Arc, Ordering, spawn_local};
use crate::usage::meters::{Mark, Tally};
use crate::usage::recorder::Recorder;
use crate::usage::{Count, Ending, Outcome, Rejection};
use crate::worker::accept::Inboxes;
use crate::worker::watch::Watches;

/// The worker's tick, on which every coarse deadline lives.
const TICK: Duration = Duration::from_millis(100);

/// The time-outs a worker uses, in milliseconds.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the configuration key of the same name")]
pub struct Times {
    pub request_head: Millis,
    pub request_body_idle: Millis,
    pub client_idle: Millis,
    pub stream_idle: Millis,
    pub client_stall: Millis,
    pub queue_wait: Millis,
    pub cold_spill_after: Millis,
}

/// One worker's state; lives on its thread alone.
pub struct Worker {
    /// Which one.
    pub id: WorkerId,
    /// The process' handles.
    pub shared: Arc<Shared>,
    /// The process' clock.
    pub clock: Clock,
    /// Time-outs in milliseconds.
    pub times: Times,
    /// Counters and event ring.
    pub recorder: Recorder,
    /// Connections to nodes.
    pub upstreams: Upstreams<Hold>,
    /// Deadlines of client connections.
    pub watches: Watches,
    /// How many retries are still allowed.
    pub retries: RefCell<RetryBudget>,
    /// Rare events for the poller; full: dropped, the poller finds out by itself.
    pub reports: Reports,
    /// Connections that wait for body memory; woken each tick.
    pub memory_waiters: RefCell<Vec<std::rc::Weak<watch::Watch>>>,
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    /// State of a small generator for jitter and rotation.
    random: Cell<u32>,
    /// When a refused Host or Origin was last logged.
    refusal_logged: Cell<Option<Millis>>,
}

/// What a worker is started with.
pub struct Start {
    /// Which one.
    pub id: WorkerId,
    /// The process' handles.
    pub shared: Arc<Shared>,
    /// Its own SO_REUSEPORT listener.
    pub listener: TcpListener,
    /// Counters and ring.
    pub recorder: Recorder,
    /// To the poller.
    pub reports: Reports,
    /// Where sockets are handed over.
    pub inboxes: Arc<Inboxes>,
}

/// Runs a worker on the calling thread until the process drains and its last connection is gone.
///
/// # Errors
/// When the runtime or the listener cannot be set up.
pub fn run(start: Start) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    let Start { id, shared, listener, recorder, reports, inboxes } = start;
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(id, shared, recorder, reports));
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        spawn_local(tick(worker.clone()));
        spawn_local(worker.upstreams.clone().run());
        spawn_local(accept::inbox(worker.clone(), inboxes.clone()));
        accept::accept(worker.clone(), listener, inboxes).await;
        drained(&worker).await;
        Ok(())
    })
}

/// Waits for the last connection, or for the end of patience.
async fn drained(worker: &Rc<Worker>) {
    while worker.gauges().connections.load(Ordering::Acquire) > 0 && worker.shared.phase() < Phase::Ending {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Clients are gone, but nodes must not be left sooner than they can bear (I12).
    for _ in 0..5 {
        if worker.upstreams.lingering() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Streams were told to end: one more second for their last bytes, then the runtime drops what is left.
    for _ in 0..50 {
        if worker.gauges().connections.load(Ordering::Acquire) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Coarse deadlines, pool ageing, loop lag. One early interval keeps the timer wheel from waking itself (hotpath, 0.5).
async fn tick(worker: Rc<Worker>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut phase = Phase::Running;
    loop {
        let due = interval.tick().await;
        let late = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        worker.gauges().loop_lag_us.store(late, Ordering::Relaxed);
        let now = worker.clock.now();
        worker.watches.tick(now);
        worker.upstreams.tick();
        let meters = worker.recorder.meters();
        meters.set(Mark::IdleNodeConnections, worker.upstreams.idle() as u64);
        meters.raise(Mark::LoopLagMaxUs, late);
        for watch in worker.memory_waiters.take().iter().filter_map(std::rc::Weak::upgrade) {
            watch.wake();
        }
        if worker.shared.phase() != phase {
            phase = worker.shared.phase();
            worker.watches.wake_all();
        }
    }
}

impl Worker {
    fn new(id: WorkerId, shared: Arc<Shared>, recorder: Recorder, reports: Reports) -> Self {
        let config = shared.config.clone();
        let timeouts = &config.timeouts;
        let times = Times {
            request_head: millis(timeouts.request_head),
            request_body_idle: millis(timeouts.request_body_idle),
            client_idle: millis(timeouts.client_idle),
            stream_idle: millis(timeouts.stream_idle),
            client_stall: millis(timeouts.client_stall),
            queue_wait: millis(timeouts.queue_wait),
            cold_spill_after: millis(config.routing.cold_spill_after),
        };
        let settings = Settings {
            pool_idle_ms: millis(timeouts.pool_idle),
            head_bytes_max: config.limits.head_bytes,
            cold_load_grace_ms: millis(config.routing.cold_load_grace),
            ..Settings::default()
        };
        Self {
            id,
            clock: shared.clock.clone(),
            times,
            recorder,
            upstreams: Upstreams::new(settings, shared.clock.clone()),
            watches: Watches::default(),
            retries: RefCell::new(RetryBudget::new(config.routing.retry_share_percent, config.routing.retry_floor)),
            reports,
            memory_waiters: RefCell::default(),
            snapshot: RefCell::new(Cache::new(shared.fleet.snapshot.clone())),
            random: Cell::new(0x9e37_79b9 ^ u32::try_from(id.0).unwrap_or(1).wrapping_mul(0x85eb_ca6b)),
            refusal_logged: Cell::new(None),
            shared,
        }
    }

    /// The current Snapshot: one relaxed load when nothing was published since (I5: load it once per decision).
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow_mut().load().clone()
    }

    /// This worker's gauges.
    #[must_use]
    pub fn gauges(&self) -> &WorkerGauges {
        &self.shared.gauges[self.id.0]
    }

    /// The next of a cheap pseudo-random sequence (xorshift): jitter, not secrets.
    pub fn random(&self) -> u32 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.random.set(x);
        x
    }

    /// Counts one more of something rare.
    pub fn tally(&self, what: Tally) {
        self.recorder.meters().add(what, 1);
    }

    /// Decides on the current Snapshot without sharing it: the cheapest way to look (one relaxed load).
    pub fn with_snapshot<T>(&self, decide: impl FnOnce(&Snapshot) -> T) -> T {
        decide(self.snapshot.borrow_mut().load())
    }

    /// A byte of a node's answer came.
    pub fn heard(&self, node: NodeId) {
        self.with_snapshot(|snapshot| {
            if let Some(view) = snapshot.nodes.get(node.0 as usize) {
                view.progress.byte(self.id, self.clock.now());
                if !view.word.is_open() {
                    self.reports.reached(node);
                }
            }
        });
    }

    /// A request was sent to a loaded model: from now on its node owes a byte, until the guard is dropped.
    #[must_use]
    pub fn awaiting(&self, node: NodeId, cold: bool) -> Option<Awaiting> {
        if cold {
            return None;
        }
        self.with_snapshot(|snapshot| {
            let view = snapshot.nodes.get(node.0 as usize)?;
            Some(Awaiting::new(view.progress.clone(), self.id, self.clock.now()))
        })
    }

    /// A node refused a connection: it is down, for everybody and at once.
    pub fn refused(&self, node: NodeId) {
        self.with_snapshot(|snapshot| {
            if let Some(view) = snapshot.nodes.get(node.0 as usize) {
                view.word.set_up(false);
            }
        });
        self.upstreams.clear(node);
        self.reports.refused(node);
    }

    /// A node does not have a model that its inventory lists: read the inventory again.
    pub fn lacks(&self, node: NodeId) {
        self.reports.administered(node);
    }

    /// Records a request that was refused before anything was known of it.
    pub fn reject(&self, why: Rejection) {
        let outcome = Outcome {
            minute: self.clock.minute(),
            node: NodeId::NONE,
            model: ModelId::UNKNOWN,
            key: KeyId::NONE,
            ending: Ending::Rejected(why),
            status: 0,
            count: Count::Nothing,
            load_ns: 0,
            prompt_eval_ns: 0,
            eval_ns: 0,
            queue_us: 0,
            first_byte_us: 0,
            total_us: 0,
        };
        self.recorder.record(&outcome, None);
    }

    /// A foreign `Host` was refused: says what to set, once a minute.
    pub fn refused_host(&self, host: &str) {
        if self.may_log_refusal() {
            tracing::warn!(%host, "refused a foreign Host on a loopback listener; set allowed_hosts to accept it");
        }
    }

    /// A foreign `Origin` was refused: says what to set, once a minute.
    pub fn refused_origin(&self) {
        if self.may_log_refusal() {
            tracing::warn!("refused a foreign Origin; set origins (or OLLAMA_ORIGINS) to accept it");
        }
    }

    fn may_log_refusal(&self) -> bool {
        let now = self.clock.now();
        let quiet = self.refusal_logged.get().is_none_or(|last| now - last >= 60_000);
        if quiet {
            self.refusal_logged.set(Some(now));
        }
        quiet
    }
}

/// A duration in whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
