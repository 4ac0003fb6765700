//! The word of a node: does it take new work, is it back since a moment, how many cold loads run on it.
//!
//! Written by the poller (health), workers (a refused connection) and the control thread (suspect, drain); read at
//! every take. Must not know why a node is in its state.

use crossbeam::utils::CachePadded;

use crate::slots::Cell;
use crate::slots::node_total::NodeTotal;
use crate::sync::{Arc, AtomicU32, Hint, Ordering};

const UP: u32 = 1;
const SUSPECT: u32 = 1 << 1;
const DRAINING: u32 = 1 << 2;
const RECOVERING: u32 = 1 << 3;
/// Its total has a limit; says in which order to take, and where to look. The total itself decides.
const LIMITED: u32 = 1 << 4;
/// One cold load; the count sits above the flags.
const COLD_ONE: u32 = 1 << 8;

/// How a node takes work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Door {
    /// Not at all.
    Closed,
    /// By its cells' limits alone.
    Open,
    /// All cells together have a limit: the seat comes first.
    Limited,
}

/// Whether a node takes new work: up, not suspect, not draining. One word per node, shared by its cells.
///
/// - Invariants: `cold_loads` = cells of this node that are LOADING by a request of ours, plus takes under way; a
///   RECOVERING node starts no second one.
/// - Orderings: writes are AcqRel; whoever *opens* a node calls `Cell::offer` on its cells afterwards, whose
///   `fence(SeqCst)` pairs with the one in `Cell::release` and in `Waiting::poll_grant`, so that either the offer sees
///   the waiter and the free slot, or they see the open node.
/// - Progress: lock-free; reads are wait-free.
/// - Model: `slots::model::node_reopens_while_a_slot_is_released`.
#[derive(Debug)]
pub struct NodeWord {
    word: CachePadded<AtomicU32>,
    /// Seats of all cells together, and their limit: on a line of its own, so that the flags above stay shared by all
    /// cores while it moves.
    total: NodeTotal,
    /// Slots held for requests that name no known model: they take no seat.
    others: CachePadded<Hint>,
    /// Times this node was chosen for a request of no known model: order among equals.
    chosen: Hint,
    /// Loads of models begun here: order among equals.
    loads: Hint,
    /// Compare-exchanges on words of this node's cells that lost to another thread: contention, for the metrics.
    lost: Hint,
    v1_only: bool,
}

impl NodeWord {
    /// A node that is down and speaks Ollama's API.
    #[must_use]
    pub fn new() -> Self {
        Self {
            word: CachePadded::new(AtomicU32::new(0)),
            total: NodeTotal::new(),
            others: CachePadded::new(Hint::default()),
            chosen: Hint::default(),
            loads: Hint::default(),
            lost: Hint::default(),
            v1_only: false,
        }
    }

    /// A node that is down and serves `/v1` alone (`NodeKind::OpenAi`): waiters of native routes never get its slots.
    #[must_use]
    pub fn v1_only() -> Self {
        Self { v1_only: true, ..Self::new() }
    }

    /// Serves `/v1` alone.
    #[must_use]
    pub fn is_v1_only(&self) -> bool {
        self.v1_only
    }

    /// Takes new work: up, neither suspect nor draining.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) & (UP | SUSPECT | DRAINING) == UP
    }

    /// Up, as health and workers say; newer than the Snapshot, never older.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.word.load(Ordering::Acquire) & UP != 0
    }

    /// Answers, as far as is known: up and not suspect, draining or not.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.word.load(Ordering::Acquire) & (UP | SUSPECT) == UP
    }

    /// Up and, though perhaps suspect, not draining: a request may wait for it.
    #[must_use]
    pub fn may_serve_later(&self) -> bool {
        self.word.load(Ordering::Acquire) & (UP | DRAINING) == UP
    }

    /// Requests of this node hang.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.word.load(Ordering::Acquire) & SUSPECT != 0
    }

    /// Taken out by its operator.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.word.load(Ordering::Acquire) & DRAINING != 0
    }

    /// Has just come back: one cold load at a time.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        self.word.load(Ordering::Acquire) & RECOVERING != 0
    }

    /// Up or down. Whoever sets it up then offers the node's cells.
    pub fn set_up(&self, on: bool) {
        self.set(UP, on);
    }

    /// Suspect or not. Whoever clears it then offers the node's cells.
    pub fn set_suspect(&self, on: bool) {
        self.set(SUSPECT, on);
    }

    /// Draining or not. Whoever clears it then offers the node's cells.
    pub fn set_draining(&self, on: bool) {
        self.set(DRAINING, on);
    }

    /// Just come back (one cold load at a time), or settled again.
    pub fn set_recovering(&self, on: bool) {
        self.set(RECOVERING, on);
    }

    /// Cold loads of ours under way on this node.
    #[must_use]
    pub fn cold_loads(&self) -> u32 {
        self.word.load(Ordering::Acquire) / COLD_ONE
    }

    /// Slots held on this node now, roughly.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.total.held() + self.others.get()
    }

    /// `node_slots` as it is in force.
    #[must_use]
    pub fn slots(&self) -> Option<u32> {
        self.total.limit()
    }

    /// Slots held of all models together, as they count against [`Self::slots`]: those for unknown names do not.
    #[must_use]
    pub fn seats(&self) -> u64 {
        self.total.held()
    }

    /// Another limit for all of these cells together, the node's; then serves whom it has room for. What is held above a
    /// lowered one stays until released. The poller's.
    pub fn set_slots<'a>(&self, slots: Option<u32>, cells: impl Iterator<Item = &'a Arc<Cell>>) {
        if self.slots() == slots {
            return;
        }
        if slots.is_some() {
            self.total.list(&cells.map(Arc::downgrade).collect::<Vec<_>>());
        }
        self.total.set_limit(slots);
        self.set(LIMITED, slots.is_some());
    }

    /// Has a limit for all models together.
    pub(crate) fn is_limited(&self) -> bool {
        self.word.load(Ordering::Relaxed) & LIMITED != 0
    }

    /// Whether a take may go on, and in which order.
    #[inline]
    pub(super) fn door(&self) -> Door {
        match self.word.load(Ordering::Acquire) & (UP | SUSPECT | DRAINING | LIMITED) {
            UP => Door::Open,
            word if word == UP | LIMITED => Door::Limited,
            _ => Door::Closed,
        }
    }

    /// Takes new work now: open, and where all models together have a limit, below it with nobody waiting.
    #[inline]
    pub(crate) fn takes_new(&self) -> bool {
        match self.door() {
            Door::Open => true,
            Door::Limited => self.total.has_room_for_new(),
            Door::Closed => false,
        }
    }

    /// A seat is free or parked for a model that is loaded for a waiter.
    pub(crate) fn has_room_for_load(&self) -> bool {
        self.total.has_room_for_load()
    }

    /// A waiter is to load its model here as soon as a seat is free.
    pub(crate) fn ask_seat(&self) {
        self.total.ask();
    }

    /// A seat waits for a load.
    pub(crate) fn is_parked(&self) -> bool {
        self.is_limited() && self.total.is_parked()
    }

    /// Nobody loads with the seat that is parked: the next waiter has it.
    pub(crate) fn unpark(&self) {
        self.total.unpark();
    }

    pub(super) fn total(&self) -> &NodeTotal {
        &self.total
    }

    /// Slots for requests that name no known model.
    pub(super) fn others(&self) -> &Hint {
        &self.others
    }

    pub(crate) fn chosen_hint(&self) -> &Hint {
        &self.chosen
    }

    /// Compare-exchanges on its cells' words that lost to another thread, since start.
    #[must_use]
    pub fn cas_retries(&self) -> u64 {
        self.lost.get()
    }

    pub(crate) fn lost_hint(&self) -> &Hint {
        &self.lost
    }

    /// A cold load could begin.
    pub(crate) fn may_begin_cold(&self) -> bool {
        may_begin_cold(self.word.load(Ordering::Acquire))
    }

    /// Counts a cold load, unless the node is closed, or recovering with one under way.
    pub(crate) fn begin_cold(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if !may_begin_cold(word) {
                return false;
            }
            match self.word.compare_exchange_weak(word, word + COLD_ONE, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.loads.bump();
                    return true;
                }
                Err(now) => word = now,
            }
        }
    }

    /// Loads of models begun here so far, roughly.
    pub(crate) fn loads_begun(&self) -> u64 {
        self.loads.get()
    }

    /// Ends what [`Self::begin_cold`] counted.
    pub(crate) fn end_cold(&self) {
        let before = self.word.fetch_sub(COLD_ONE, Ordering::AcqRel);
        debug_assert!(before >= COLD_ONE, "a cold load ends once");
    }

    fn set(&self, flag: u32, on: bool) {
        // Set again each second, and read by every decision: a write that changes nothing would take the line from all.
        if (self.word.load(Ordering::Relaxed) & flag != 0) == on {
            return;
        }
        if on {
            self.word.fetch_or(flag, Ordering::AcqRel);
        } else {
            self.word.fetch_and(!flag, Ordering::AcqRel);
        }
    }
}

impl Default for NodeWord {
    fn default() -> Self {
        Self::new()
    }
}

fn may_begin_cold(word: u32) -> bool {
    word & (UP | SUSPECT | DRAINING) == UP && (word & RECOVERING == 0 || word < COLD_ONE)
}
