//! What the requests of one worker share: its pools, counters, ring, deadlines and its view of the fleet.
//!
//! Lives on the worker's thread alone (`Rc`, `Cell`), so that nothing here needs an atomic. Built by worker, used by
//! front and proxy. Must never be sent to another thread, nor hold the Snapshot across an await.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

use crate::clock::{Clock, Millis};
use crate::config::Reader;
use crate::evidence::{Chosen, Decisions, Why};
use crate::fleet::Snapshot;
use crate::fleet::progress::Awaiting;
use crate::fleet::report::Reports;
use crate::http1::push_decimal;
use crate::ids::{NodeId, RequestId, WorkerId};
use crate::proxy::buffers::Buffers;
use crate::proxy::hold::Hold;
use crate::proxy::rules::Rules;
use crate::proxy::spares::Spares;
use crate::proxy::stream::TailBody;
use crate::proxy::upstream::Upstreams;
use crate::proxy::watch::{Expiry, Watch, Watches};
use crate::routing::RetryBudget;
use crate::shared::{Shared, WorkerGauges};
use crate::sync::Arc;
use crate::usage::meters::{Tally, Timeout};
use crate::usage::recorder::Recorder;
use crate::usage::{Ending, Outcome, Rejection};

/// A node that is not well is reported as reached at most this often: not for each chunk of its streams.
const REACHED_EVERY_MS: Millis = 100;

/// How old a mean that decides about `Retry-After` may be, milliseconds.
const MEAN_AGE_MS: Millis = 1_000;

/// One worker's state; lives on its thread alone.
pub struct Local {
    /// Which one.
    pub id: WorkerId,
    /// The process' handles.
    pub shared: Arc<Shared>,
    /// The process' clock.
    pub clock: Clock,
    /// Counters and event ring.
    pub recorder: Recorder,
    /// Connections to nodes.
    pub upstreams: Upstreams<Hold>,
    /// Buffers of client connections that have bytes under way.
    pub buffers: Buffers,
    /// Boxes for answers on their way.
    pub tails: Rc<Spares<TailBody>>,
    /// Deadlines of client connections.
    pub watches: Watches,
    /// How many retries are still allowed.
    pub retries: RefCell<RetryBudget>,
    /// Rare events for the poller; full: dropped, the poller finds out by itself.
    pub reports: Reports,
    /// When each node was last reported as reached.
    reached: RefCell<Vec<Option<Millis>>>,
    /// Connections that wait for body memory; woken each tick.
    pub memory_waiters: RefCell<Vec<std::rc::Weak<Watch>>>,
    rules: RefCell<(Reader, Rc<Rules>)>,
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    /// State of a small generator for jitter and rotation.
    random: Cell<u32>,
    /// The `Date` of this second, and which second it is.
    date: RefCell<(u64, String)>,
    /// When it was worked out, and how long a request takes.
    mean_ms: Cell<(Millis, u64)>,
    /// When a refused Host or Origin was last logged.
    refusal_logged: Cell<Option<Millis>>,
    /// The last id given out, and its count.
    request_id: Cell<(RequestId, u64)>,
}

/// What requests of one client connection share.
pub struct Client {
    /// The worker that serves it.
    pub local: Rc<Local>,
    /// Its deadlines.
    pub watch: Rc<Watch>,
    /// One of the last 64 places: only our own routes are served.
    pub reserved: bool,
    /// The request being served.
    pub request_id: Cell<RequestId>,
    /// Where it went and why.
    pub chosen: Cell<Chosen>,
    /// The same among this worker's last decisions.
    pub decision: Cell<Option<u64>>,
}

impl Client {
    /// A connection that has asked for nothing yet.
    #[must_use]
    pub fn new(local: Rc<Local>, watch: Rc<Watch>, reserved: bool) -> Self {
        Self {
            local,
            watch,
            reserved,
            request_id: Cell::new(RequestId::NONE),
            chosen: Cell::new(Chosen::NOTHING),
            decision: Cell::new(None),
        }
    }

    /// A request begins: it keeps the id that its client gave it if that is sane, else it gets one of ours.
    pub fn begin(&self, sent: Option<&[u8]>) -> RequestId {
        let id = sent.and_then(RequestId::of_client).unwrap_or_else(|| self.local.next_request_id());
        self.request_id.set(id);
        self.chosen.set(Chosen::NOTHING);
        self.decision.set(None);
        id
    }

    /// Refuses the request before anything is known of it: counted, and said in the answer.
    pub fn reject(&self, why: Rejection) {
        self.chosen.set(Chosen::refused(Why::Refused(why)));
        let outcome = self.local.reject(why);
        let mode = self.local.rules().config.log.access;
        self.local.shared.access.note(mode, &outcome, None, (self.request_id.get(), None));
    }

    /// Appends the lines that tell of the request: its id, and (unless `headers` is off) its node and the reason.
    pub fn tell(&self, out: &mut Vec<u8>) {
        let id = self.request_id.get();
        if id == RequestId::NONE {
            return;
        }
        out.extend_from_slice(b"X-Request-Id: ");
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(b"\r\n");
        let Chosen { node, why, retries, queue_us } = self.chosen.get();
        if why == Why::Undecided || !self.local.rules().config.headers {
            return;
        }
        self.local.with_snapshot(|snapshot| {
            if let Some(node) = snapshot.node(node) {
                out.extend_from_slice(&node.name_line);
            }
        });
        out.extend_from_slice(b"X-Herdgate-Reason: ");
        out.extend_from_slice(why.label().as_bytes());
        for (what, count) in [(&b"; retries="[..], u64::from(retries)), (b"; waited_ms=", queue_us / 1000)] {
            if count > 0 {
                out.extend_from_slice(what);
                push_decimal(out, count);
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The answer is out: the connection waits for its next request.
    pub fn idle(&self) {
        let times = self.local.rules().times;
        self.watch.set_client_stall(times.client_stall);
        self.watch.arm(Expiry::ClientIdle, self.local.clock.now() + times.client_idle);
    }
}

impl Local {
    /// For the worker `id`.
    #[must_use]
    pub fn new(id: WorkerId, shared: Arc<Shared>, recorder: Recorder, reports: Reports) -> Self {
        let mut reader = shared.config.reader();
        let rules = Rules::of(reader.load(), &shared.names);
        Self {
            id,
            clock: shared.clock.clone(),
            recorder,
            upstreams: Upstreams::new(rules.upstream(), shared.clock.clone()),
            buffers: Buffers::default(),
            tails: Rc::default(),
            watches: Watches::default(),
            retries: RefCell::new(retries(&rules)),
            reports,
            reached: RefCell::default(),
            memory_waiters: RefCell::default(),
            rules: RefCell::new((reader, Rc::new(rules))),
            snapshot: RefCell::new(Cache::new(shared.fleet.snapshot.clone())),
            random: Cell::new(0x9e37_79b9 ^ u32::try_from(id.0).unwrap_or(1).wrapping_mul(0x85eb_ca6b)),
            date: RefCell::default(),
            mean_ms: Cell::new((0, 0)),
            refusal_logged: Cell::new(None),
            request_id: Cell::new((RequestId::made(shared.clock.unix_ms(), id, 0), 0)),
            shared,
        }
    }

    /// The configuration in force: one relaxed load when nothing was put in force since. A request asks once for what
    /// must agree.
    #[must_use]
    pub fn rules(&self) -> Rc<Rules> {
        let (reader, rules) = &mut *self.rules.borrow_mut();
        let config = reader.load();
        if !Arc::ptr_eq(config, &rules.config) {
            let fresh = Rules::of(config, &self.shared.names);
            self.upstreams.set(fresh.upstream());
            if fresh.config.routing != rules.config.routing {
                *self.retries.borrow_mut() = retries(&fresh);
            }
            *rules = Rc::new(fresh);
        }
        Rc::clone(rules)
    }

    /// The current Snapshot: one relaxed load when nothing was published since (I5: load it once per decision).
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow_mut().load().clone()
    }

    /// Hands the value of a `Date` header to `write`; formatted once a second.
    pub fn date(&self, write: impl FnOnce(&str)) {
        let second = self.clock.unix_ms() / 1000;
        let mut date = self.date.borrow_mut();
        if date.0 != second || date.1.is_empty() {
            let now = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
            let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
            let text = now.and_then(|now| printer.timestamp_to_rfc9110_string(&now).ok());
            *date = (second, text.unwrap_or_default());
        }
        write(&date.1);
    }

    /// An id for a request that came without one: this worker's next. No lock, no allocation, no look at a clock.
    #[must_use]
    pub fn next_request_id(&self) -> RequestId {
        let (last, count) = self.request_id.get();
        let next = (last.with_count(count + 1), count + 1);
        self.request_id.set(next);
        next.0
    }

    /// This worker's last decisions.
    #[must_use]
    pub fn decisions(&self) -> &Decisions {
        &self.shared.decisions[self.id.0]
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

    /// Counts a time-out that passed.
    pub fn timed_out(&self, timeout: Timeout) {
        self.recorder.meters().timed_out(timeout);
    }

    /// Decides on the current Snapshot without sharing it: the cheapest way to look (one relaxed load).
    pub fn with_snapshot<T>(&self, decide: impl FnOnce(&Snapshot) -> T) -> T {
        decide(self.snapshot.borrow_mut().load())
    }

    /// A byte of a node's answer came.
    pub fn heard(&self, node: NodeId) {
        self.with_snapshot(|snapshot| {
            if let Some(view) = snapshot.nodes.get(node.0 as usize) {
                let now = self.clock.now();
                view.progress.byte(self.id, now);
                if !view.word.is_well() && !view.removed {
                    self.reached(node, now);
                }
            }
        });
    }

    /// It answers although its word says down or suspect: told once a tick.
    #[cold]
    fn reached(&self, node: NodeId, now: Millis) {
        let mut told = self.reached.borrow_mut();
        let at = node.0 as usize;
        if told.len() <= at {
            told.resize(at + 1, None);
        }
        if told[at].is_none_or(|last| now.saturating_sub(last) >= REACHED_EVERY_MS) {
            told[at] = Some(now);
            self.reports.reached(node);
        }
    }

    /// A request was sent to a loaded model: from now on its node owes a byte, until the guard is dropped; in the
    /// model's own `suspect_after` where it has one.
    #[must_use]
    pub fn awaiting(&self, node: NodeId, cold: bool, own_suspect_after: Option<Millis>) -> Option<Awaiting> {
        if cold {
            return None;
        }
        self.with_snapshot(|snapshot| {
            let view = snapshot.nodes.get(node.0 as usize)?;
            Some(Awaiting::new(view.progress.clone(), self.id, self.clock.now(), own_suspect_after))
        })
    }

    /// How long a request takes on average, milliseconds; summed over all workers at most once a second, for turning
    /// requests away must cost less than serving them.
    #[must_use]
    pub fn mean_ms(&self) -> u64 {
        let (at, mean) = self.mean_ms.get();
        let now = self.clock.now();
        if at != 0 && now.saturating_sub(at) < MEAN_AGE_MS {
            return mean;
        }
        let total = self.shared.meters.sums().total;
        let mean = total.sum_us / total.count().max(1) / 1000;
        self.mean_ms.set((now.max(1), mean));
        mean
    }

    /// Whether the retry budget has room for one more; counted either way.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        let may = self.retries.borrow_mut().try_retry(self.clock.now());
        self.tally(if may { Tally::Retries } else { Tally::RetriesRefused });
        may
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
        self.reports.lacks(node);
    }

    /// Records a request that was refused before anything was known of it.
    pub fn reject(&self, why: Rejection) -> Outcome {
        let outcome = Outcome::bare(self.clock.minute(), Ending::Rejected(why));
        self.recorder.record(&outcome, None);
        outcome
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

fn retries(rules: &Rules) -> RetryBudget {
    RetryBudget::new(rules.config.routing.retry_share_percent, rules.config.routing.retry_floor)
}
