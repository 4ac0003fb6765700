//! One word per (node, weights digest): in flight, limit and flags together, so that nothing tears.
//!
//! Layout of the word, low to high: `in_flight:24 | limit:24 | flags:4 | generation:12` with the flags
//! SOFT (the limit is a preference), LOADING (a cold request of ours is on its way, nothing came back yet),
//! LOADED (the node has the weights in memory: a success of ours, or `/api/ps`) and RESIDENT (LOADED for good: no
//! residency to speak of). The generation moves with every take. Whether the node itself takes work is the [`NodeWord`].
//! Must not know names, health rules or HTTP, and never lock or allocate on the taken path.

use crate::clock::Millis;
use crate::ids::{CellId, NodeId};
use crate::slots::bank::{Bank, Place};
use crate::slots::links::Links;
use crate::slots::node::Door;
use crate::slots::node_total::NodeTotal;
use crate::slots::waiters::Granted;
use crate::slots::{NodeWord, Queue, pairing_fence};
use crate::sync::{Arc, AtomicU64, Hint, Ordering};

const COUNT_MAX: u64 = (1 << 24) - 1;
const LIMIT_SHIFT: u32 = 24;
const SOFT: u64 = 1 << 48;
const LOADING: u64 = 1 << 49;
const LOADED: u64 = 1 << 50;
const RESIDENT: u64 = 1 << 51;
/// One step of the generation; it wraps out of the top of the word.
const GENERATION_ONE: u64 = 1 << 52;

/// How many requests may run at once on one (node, weights). Counts above 16,777,215 mean that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// A preference: exceeded when every loaded copy is at its own.
    Soft(u32),
    /// Never exceeded; what does not fit waits.
    Hard(u32),
}

/// What a take did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// A slot of a loaded or loading copy.
    Warm,
    /// The first slot of a copy that was neither: the taker's request loads it, the cell is now LOADING.
    Cold,
}

/// One reading of a cell, for decisions, listings and metrics; stale at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CellView {
    /// Requests that hold a slot.
    pub in_flight: u32,
    /// The limit in force.
    pub limit: Limit,
    /// A copy is in the node's memory.
    pub loaded: bool,
    /// A copy is being loaded by a request of ours.
    pub loading: bool,
    /// The node takes new work.
    pub open: bool,
}

/// A cell's word, read once.
#[derive(Clone, Copy)]
pub(crate) struct Reading(u64);

/// What a decision asks of a copy.
#[derive(Clone, Copy)]
pub(crate) enum Residency {
    /// In the node's memory.
    Loaded,
    /// The same, and its limit is a preference.
    LoadedSoft,
    /// On its way there by a request of ours.
    Loading,
}

/// Slots taken relative to the limit.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    in_flight: u64,
    limit: u64,
}

impl Share {
    /// All of them: what has room is below.
    pub(crate) const FULL: Self = Self { in_flight: 1, limit: 1 };
    /// More than any copy has.
    pub(crate) const ANY: Self = Self { in_flight: 1, limit: 0 };
}

impl Place {
    /// The word as it is, for decisions; stale at once.
    #[inline]
    pub(crate) fn reading(&self) -> Reading {
        Reading(self.word().load(Ordering::Relaxed))
    }
}

impl Reading {
    pub(crate) fn is_warm(self) -> bool {
        self.0 & (LOADED | LOADING) != 0
    }

    #[inline]
    pub(crate) fn is(self, residency: Residency) -> bool {
        let (of, flags) = match residency {
            Residency::Loaded => (LOADED, LOADED),
            Residency::LoadedSoft => (LOADED | SOFT, LOADED | SOFT),
            Residency::Loading => (LOADED | LOADING, LOADING),
        };
        self.0 & of == flags
    }

    pub(crate) fn is_below_limit(self) -> bool {
        below_limit(self.0)
    }

    pub(crate) fn is_idle(self) -> bool {
        self.0 & COUNT_MAX == 0
    }

    /// Less is taken of it than that; exact: products of two 24-bit numbers.
    #[inline]
    pub(crate) fn is_below(self, than: Share) -> bool {
        let Share { in_flight, limit } = self.share();
        in_flight * than.limit < than.in_flight * limit
    }

    #[inline]
    pub(crate) fn share(self) -> Share {
        Share { in_flight: self.0 & COUNT_MAX, limit: self.0 >> LIMIT_SHIFT & COUNT_MAX }
    }
}

/// The capacity word of one (node, weights digest).
///
/// Invariants
/// 1. `in_flight` = slots held: taken by `try_take_*` or received in a hand-over, and not yet released.
/// 2. No take raises `in_flight` above a hard limit; a hand-over leaves the count as it is, and happens only while the
///    count is within the limit, so a lowered limit is reached by releases alone.
/// 3. No hand-over to a waiter from a cell that is neither LOADED nor LOADING, or whose node is closed.
/// 4. While a linked queue holds a waiter that this cell may serve and a slot of it can be taken, some thread is about to
///    try: whoever made the waiter or the slot (see Orderings).
///    Where the node's models have a limit together, a slot can be taken only with a seat: `NodeTotal`.
/// 5. LOADING is set by exactly one cold take and cleared by exactly one of success, failure or expiry; each pair moves the
///    node's `cold_loads` up and down once.
///
/// Orderings: a take is AcqRel (partner: the releasing `fetch_sub`, AcqRel, and every other change of the word); loads
/// that only decide whether to try are Relaxed. Two `fence(SeqCst)` pair up for invariant 4: the one between *making
/// capacity* (`release`, `set_limit`, `mark_loaded`, `NodeWord::set_*`, `link`) and *looking for waiters* in `offer`, and
/// the one in `Waiting::poll_grant` between *being in the queue* and *trying the cells*. Each (cell, queue) pairs for
/// itself, so several queues on one cell and several cells under one queue need nothing more. The fence has to be
/// SeqCst: it orders a store before a load of another location, which nothing weaker does.
///
/// Progress: lock-free. A failed compare-exchange means another's success; `offer` goes round again only after it
/// removed an entry or another thread claimed one.
///
/// Model: `slots::model`. Rejected: `fetch_add` and taking back on overflow, which refuses wrongly while another's doomed
/// increment is visible and so loses admissions.
#[derive(Debug)]
pub struct Cell {
    /// This cell's place in the Snapshot's list.
    pub id: CellId,
    /// The node it belongs to.
    pub node: NodeId,
    /// The node's own word.
    pub node_word: Arc<NodeWord>,
    place: Place,
    /// When the copy was last known to be loaded. A late reading only delays a `mark_unloaded` by one poll.
    known_loaded: Hint,
    /// When LOADING was set last; written before the flag, published by it.
    loading_since: AtomicU64,
    /// The queues whose waiters this cell can serve.
    links: Links,
    /// Its slots take no seat of their node: they are for requests that name no known model.
    is_any: bool,
}

impl Cell {
    /// A cell with nothing in flight, neither loaded nor loading, linked to no queue; its word has no neighbours.
    #[must_use]
    pub fn new(id: CellId, node: NodeId, node_word: Arc<NodeWord>, limit: Limit) -> Self {
        Self::beside(&mut Bank::default(), id, node, node_word, limit)
    }

    /// The same, with its word beside those that `bank` gave other copies of the model.
    #[must_use]
    pub fn beside(bank: &mut Bank, id: CellId, node: NodeId, node_word: Arc<NodeWord>, limit: Limit) -> Self {
        Self {
            id,
            node,
            node_word,
            place: bank.place(limit_bits(limit)),
            known_loaded: Hint::default(),
            loading_since: AtomicU64::new(0),
            links: Links::new(),
            is_any: false,
        }
    }

    /// Where its word is, for a list of copies that a decision reads.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    fn word(&self) -> &AtomicU64 {
        self.place.word()
    }

    /// The cell of a node for requests that name no known model: without a limit, and outside of `node_slots`, since what
    /// they run is none of the node's models as far as we know.
    #[must_use]
    pub fn any(id: CellId, node: NodeId, node_word: Arc<NodeWord>) -> Self {
        Self { is_any: true, ..Self::new(id, node, node_word, Limit::Soft(u32::MAX)) }
    }

    /// One reading.
    #[must_use]
    pub fn view(&self) -> CellView {
        let word = self.word().load(Ordering::Acquire);
        let count = |bits: u64| u32::try_from(bits & COUNT_MAX).unwrap_or(u32::MAX);
        let limit = count(word >> LIMIT_SHIFT);
        CellView {
            in_flight: count(word),
            limit: if word & SOFT != 0 { Limit::Soft(limit) } else { Limit::Hard(limit) },
            loaded: word & LOADED != 0,
            loading: word & LOADING != 0,
            open: self.node_word.is_open(),
        }
    }

    /// Takes a slot of a loaded or loading copy below its limit, on an open node.
    #[must_use]
    pub fn try_take_warm(&self) -> bool {
        self.take(is_warm_below)
    }

    /// Takes the first slot of a copy that is neither loaded nor loading, and marks it LOADING in the same step; refused
    /// above the limit, on a closed node, and on a recovering node that loads something already.
    #[must_use]
    pub fn try_take_cold(&self, now: Millis) -> bool {
        self.take_cold(now, NodeTotal::try_enter)
    }

    /// The same for a waiter, with the seat that was parked for it if there is one; the control thread's.
    #[must_use]
    pub(crate) fn try_take_cold_for_waiter(&self, now: Millis) -> bool {
        self.take_cold(now, NodeTotal::try_enter_to_load)
    }

    fn take_cold(&self, now: Millis, enter: impl Fn(&NodeTotal) -> bool) -> bool {
        let cold = |w: u64| w & (LOADED | LOADING) == 0 && below_limit(w);
        if !cold(self.word().load(Ordering::Relaxed)) || !self.node_word.begin_cold() {
            return false;
        }
        if !enter(self.node_word.total()) {
            self.node_word.end_cold();
            return false;
        }
        self.loading_since.store(now, Ordering::Relaxed);
        let taken = self.take_slot(LOADING, cold);
        if !taken {
            self.node_word.end_cold();
            self.node_word.total().leave();
        }
        taken
    }

    /// Takes a slot of a loaded copy whose limit is soft, whatever the limit, on an open node.
    #[must_use]
    pub fn try_take_over(&self) -> bool {
        self.take(is_loaded_soft)
    }

    /// Takes a slot on an open node whatever limits and flags say: requests that name no known model.
    #[must_use]
    pub fn try_take_unbounded(&self) -> bool {
        let taken = self.node_word.is_open() && self.take_slot(0, |_| true);
        if taken && self.is_any {
            self.node_word.others().add(1);
        } else if taken {
            self.node_word.total().force();
        }
        taken
    }

    /// The copy is loaded: a success of ours, or `/api/ps` shows it. Then serves waiters (all of them if the limit is soft).
    pub fn mark_loaded(self: &Arc<Self>, now: Millis) {
        self.known_loaded.raise(now);
        let mut word = self.word().load(Ordering::Relaxed);
        // A permit in flight keeps LOADED from being cleared, so a success may trust this reading.
        while word & (LOADED | LOADING) != LOADED {
            let next = (word | LOADED) & !LOADING;
            match self.word().compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    if word & LOADING != 0 {
                        self.node_word.end_cold();
                    }
                    return self.offer();
                }
                Err(now) => word = now,
            }
        }
    }

    /// Loaded for good: OpenAI-compatible nodes and remote stubs have no residency. Then serves waiters.
    pub fn mark_resident(self: &Arc<Self>) {
        let before = self.word().fetch_or(RESIDENT | LOADED, Ordering::AcqRel);
        if before & LOADED == 0 {
            self.offer();
        }
    }

    /// The load failed, was given up, or took too long: no longer LOADING. No effect unless it was.
    pub fn mark_load_failed(&self) {
        let before = self.word().fetch_and(!LOADING, Ordering::AcqRel);
        if before & LOADING != 0 {
            self.node_word.end_cold();
        }
    }

    /// `/api/ps`, asked at `asked_at`, does not show the copy: no longer LOADED, unless it was known to be loaded since,
    /// something is in flight, or the copy is resident for good.
    pub fn mark_unloaded(&self, asked_at: Millis) {
        let mut word = self.word().load(Ordering::Acquire);
        // The word is read before `known_loaded`: a request that came, succeeded and went in between moved the generation.
        while word & (LOADED | RESIDENT) == LOADED && word & COUNT_MAX == 0 && self.known_loaded.get() < asked_at {
            match self.word().compare_exchange_weak(word, word & !LOADED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Since when the copy is loading, if it is.
    #[must_use]
    pub fn loading_since(&self) -> Option<Millis> {
        let word = self.word().load(Ordering::Acquire);
        (word & LOADING != 0).then(|| self.loading_since.load(Ordering::Relaxed))
    }

    /// Ends a load that has been under way for `grace` or longer; the control thread calls it.
    pub fn expire_load(&self, now: Millis, grace: Millis) {
        if self.loading_since().is_some_and(|since| now.saturating_sub(since) >= grace) {
            self.mark_load_failed();
        }
    }

    /// Changes the limit, then offers what it freed. What is in flight above a lowered limit stays until released.
    pub fn set_limit(self: &Arc<Self>, limit: Limit) {
        let mut word = self.word().load(Ordering::Relaxed);
        loop {
            let next = word & !(COUNT_MAX << LIMIT_SHIFT | SOFT) | limit_bits(limit);
            match self.word().compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return self.offer(),
                Err(now) => word = now,
            }
        }
    }

    /// Lets this cell serve the waiters of `queue`, then offers. No effect if it does already. Written by the poller alone;
    /// link only queues of names that may be sent to this node.
    pub fn link(self: &Arc<Self>, queue: Arc<Queue>) {
        if self.links.add(queue) {
            if self.node_word.is_limited() {
                self.node_word.total().enlist(self);
            }
            self.offer();
        }
    }

    /// The name is gone from this node: its waiters get no further slot of this cell.
    pub fn unlink(&self, queue: &Arc<Queue>) {
        self.links.remove(queue);
    }

    /// The queues this cell can serve.
    #[must_use]
    pub fn links(&self) -> Vec<Arc<Queue>> {
        self.links.all()
    }

    /// Capacity appeared without a release: while someone waits and a slot can be taken, grants it.
    pub fn offer(self: &Arc<Self>) {
        self.serve_free();
    }

    /// The same; true if it served anybody.
    fn serve_free(self: &Arc<Self>) -> bool {
        let mut served = false;
        pairing_fence();
        while self.is_wanted() && (self.try_take_warm() || self.try_take_over()) {
            if self.links.serve(self, &Granted::Warm(Arc::clone(self))) {
                served = true;
            } else {
                served |= self.give_back();
                pairing_fence();
            }
        }
        served
    }

    /// Serves a waiter with a seat of the node that the caller holds; false leaves the seat with the caller. `before`
    /// is called before anybody may be served. A slot that served nobody was away for a moment, so it is looked again.
    pub(super) fn serve_with_seat(self: &Arc<Self>, before: impl Fn()) -> bool {
        let take =
            || self.node_word.is_open() && (self.take_slot(0, is_warm_below) || self.take_slot(0, is_loaded_soft));
        while self.is_wanted() && take() {
            before();
            if self.links.serve(self, &Granted::Warm(Arc::clone(self))) {
                return true;
            }
            self.give_back_slot();
            pairing_fence();
        }
        false
    }

    /// Gives back one held slot: to a waiter if this cell may serve one (and on a node with a limit for all models, if none
    /// of another cell was refused), else to the counts.
    pub fn release(self: &Arc<Self>) {
        self.pass_on();
    }

    /// The same; true if it, or what was free besides, went to a waiter.
    pub(super) fn pass_on(self: &Arc<Self>) -> bool {
        if self.is_wanted() && self.may_hand_over() && self.links.serve(self, &Granted::Warm(Arc::clone(self))) {
            return true;
        }
        let passed = self.give_back();
        self.serve_free() || passed
    }

    /// Gives back a slot that was taken or granted and never became a [`crate::slots::Permit`]; a cold one is a failed load
    /// (the name's [`crate::slots::ModelWord`] notices when it is next looked at).
    pub fn return_unused(self: &Arc<Self>, taken: Taken) {
        if taken == Taken::Cold {
            self.mark_load_failed();
        }
        self.release();
    }

    /// Some linked queue holds a waiter this cell may serve (cancelled entries of a tail count until they are popped).
    fn is_wanted(&self) -> bool {
        self.links.any(|queue| queue.wants(self))
    }

    fn may_hand_over(&self) -> bool {
        let word = self.word().load(Ordering::Relaxed);
        let within = word & COUNT_MAX <= word >> LIMIT_SHIFT & COUNT_MAX;
        let serves = if word & SOFT != 0 { within || word & LOADED != 0 } else { within };
        let own = || match self.node_word.door() {
            Door::Closed => false,
            Door::Open => true,
            Door::Limited => self.node_word.total().is_own(),
        };
        serves && word & (LOADED | LOADING) != 0 && own()
    }

    /// Gives a held slot back to the count without looking for this cell's waiters, and its seat to the node.
    /// True if that went to a waiter of the node.
    pub(crate) fn give_back(&self) -> bool {
        self.give_back_slot();
        if self.is_any {
            self.node_word.others().sub(1);
            return false;
        }
        self.node_word.total().leave()
    }

    fn give_back_slot(&self) {
        let before = self.word().fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before & COUNT_MAX > 0, "a slot is released once");
    }

    /// Takes slot and seat on an open node; in which order, and why, says [`NodeTotal`].
    #[inline]
    fn take(&self, may: impl Fn(u64) -> bool) -> bool {
        match self.node_word.door() {
            Door::Closed => false,
            Door::Open => self.take_slot(0, may) && (self.node_word.total().count() || self.retract()),
            Door::Limited => self.take_with_seat(may),
        }
    }

    #[cold]
    fn take_with_seat(&self, may: impl Fn(u64) -> bool) -> bool {
        let total = self.node_word.total();
        if !may(self.word().load(Ordering::Relaxed)) || !total.try_enter() {
            return false;
        }
        let taken = self.take_slot(0, may);
        if !taken {
            total.leave();
        }
        taken
    }

    /// The node got a limit between slot and seat, and is at it.
    #[cold]
    fn retract(&self) -> bool {
        self.give_back_slot();
        self.node_word.total().retract();
        false
    }

    fn take_slot(&self, flags: u64, may: impl Fn(u64) -> bool) -> bool {
        let mut word = self.word().load(Ordering::Relaxed);
        while may(word) && word & COUNT_MAX < COUNT_MAX {
            let next = (word + 1).wrapping_add(GENERATION_ONE) | flags;
            match self.word().compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => {
                    self.node_word.lost_hint().add(1);
                    word = now;
                }
            }
        }
        false
    }
}

fn is_warm_below(word: u64) -> bool {
    word & (LOADED | LOADING) != 0 && below_limit(word)
}

fn is_loaded_soft(word: u64) -> bool {
    word & (LOADED | SOFT) == LOADED | SOFT
}

fn below_limit(word: u64) -> bool {
    word & COUNT_MAX < word >> LIMIT_SHIFT & COUNT_MAX
}

fn limit_bits(limit: Limit) -> u64 {
    let (count, soft) = match limit {
        // A share of nothing compares with nothing.
        Limit::Soft(count) => (count.max(1), SOFT),
        Limit::Hard(count) => (count, 0),
    };
    u64::from(count).min(COUNT_MAX) << LIMIT_SHIFT | soft
}
