//! The seats of a node: how many slots of all its models together are held, and how many may be (`node_slots`).
//!
//! A slot is held only with a seat of its node. Cells take and give back seats here, the poller sets the limit, the
//! control thread asks for a seat where a waiter's model is to be loaded. Must never lock, allocate on the way of a
//! request, or know why a limit is what it is.
//!
//! # Two words, and what may happen between them
//!
//! A cell's word decides about its model, this one about the node; nothing makes one step of both. So there is an order:
//! **the seat first, then the slot; back the slot first, then the seat.** Then `count >= slots held on the node` at every
//! moment, and a seat is given by one compare-exchange below the limit: never more than `node_slots` are in flight (I1).
//! What the order costs is a seat that is held for a moment by somebody who then gets no slot; whoever was refused
//! meanwhile is found when it goes back, as with any other seat.
//!
//! Nodes without a limit keep the cheaper order: slot, then `fetch_add`, the addition that orders nodes by work anyway.
//! Its result shows a limit that came in between: a slot counts as taken when the addition says so, not before. So a
//! limit may come and go at any time, and `count` is right when it comes.
//!
//! # No waiter is lost
//!
//! What the fences of [`Cell`] prove for its word goes on to hold: whoever waits is seen by whoever makes a slot, or sees
//! it. New is that a slot may be there and the seat not. Then the one who looks *on a waiter's behalf* (the waiter itself,
//! an offer) leaves WANTED in this word by a read-modify-write that finds it full: [`NodeTotal::try_enter`]. All changes of
//! the word stand in one order, so the next one that frees a seat reads the mark, and with it (Release, Acquire) the
//! waiter's entry in its queue: it takes a seat again and looks through all cells of the node ([`NodeTotal::pass`]).
//! A look that finds a seat and serves another waiter with it has marked nothing for its own, so it goes on until it is
//! refused, served, or has nothing to give (`Waiting::poll_grant`, [`Cell::offer`]).
//!
//! The mark is cleared *before* the look. A waiter that comes while the look is under way marks anew, and the looker, who
//! gives its seat up by a compare-exchange from a word without marks, sees it and looks again. A look that is about to
//! serve somebody marks again, since there may be more, and tries for a further seat afterwards, since whoever freed one
//! while the mark was away has looked for nobody. So a mark is gone only when a whole look after it has found nobody to serve.
//!
//! # In turn
//!
//! A seat goes round the node's cells: each look starts behind the cell that was served last, so no model starves while
//! another's waiters follow each other. A cell serves its own waiter without a look only while nobody else was refused.
//! Requests that have not waited take no seat of a node with a mark: they join their queue, and are served in turn. A
//! waiter whose model is not loaded cannot be served by a look; the control thread asks for it ([`NodeTotal::ask`]), and
//! that question has its turn behind the last cell: the seat is PARKED for the control thread, which loads with it.

#[cfg(all(test, proxy_loom))]
mod model;
#[cfg(all(test, not(proxy_loom)))]
mod tests;

use crossbeam::utils::CachePadded;

use crate::slots::Cell;
use crate::sync::{Arc, AtomicU64, Hint, Ordering, Swapped, Weak};

const COUNT_MAX: u64 = (1 << 24) - 1;
const LIMIT_SHIFT: u32 = 24;
/// There is a limit.
const LIMITED: u64 = 1 << 48;
/// A waiter was refused a seat.
const WANTED: u64 = 1 << 49;
/// The control thread wants a seat, to load a model for a waiter.
const ASKED: u64 = 1 << 50;
/// One of the seats counted is kept for the control thread.
const PARKED: u64 = 1 << 51;
const MARKS: u64 = WANTED | ASKED;

/// Seats held on one node, and their limit: `count:24 | limit:24 | flags:4`.
///
/// - Invariants: `count` = slots held in the node's cells (those for unknown names aside), seats on their way to a slot or
///   back, and the parked one. No seat is given at or above the limit; a seat that goes from holder to holder leaves
///   the count as it is, and only while that is within the limit, so that a lowered limit is reached by giving back.
/// - Orderings: every change is AcqRel, and all that matters follows from their one order and from what each reads of the
///   one before; the loads that only begin a compare-exchange are Relaxed. No fence of its own is needed.
/// - Progress: lock-free. [`NodeTotal::pass`] goes round again only after it served somebody or another thread marked.
/// - Model: `slots::node_total::model`. Rejected: the total in each cell's word (a take would write them all); one queue for a
///   node (a waiter stands in its model's queue for all nodes); taking the slot first under a limit (a cold slot cannot
///   be taken back without a trace).
#[derive(Debug)]
pub(crate) struct NodeTotal {
    word: CachePadded<AtomicU64>,
    /// Those whose waiters a seat may serve, while there is a limit. Weak: a cell holds its node's word.
    cells: Swapped<Vec<Weak<Cell>>>,
    /// Where the next look begins; one past the last cell is the turn of a load.
    turn: Hint,
}

impl NodeTotal {
    /// Nothing held, no limit.
    pub(super) fn new() -> Self {
        Self { word: CachePadded::new(AtomicU64::new(0)), cells: Swapped::new(Vec::new()), turn: Hint::default() }
    }

    /// Seats held, those on their way included.
    pub(super) fn held(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & COUNT_MAX
    }

    /// The limit in force.
    pub(super) fn limit(&self) -> Option<u32> {
        let word = self.word.load(Ordering::Relaxed);
        (word & LIMITED != 0).then(|| u32::try_from(limit(word)).unwrap_or(u32::MAX))
    }

    /// A request that has not waited could have a seat: one is free, and nobody waits for it.
    pub(super) fn has_room_for_new(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        !is_full(word) && (word & MARKS == 0 || word & LIMITED == 0)
    }

    /// The control thread could load here for a waiter: a seat is free, or parked for it.
    pub(super) fn has_room_for_load(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        !is_full(word) || word & PARKED != 0
    }

    /// A cell may hand its slot to its own next waiter, seat and all: nobody else was refused one.
    pub(super) fn is_own(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word & MARKS == 0 && !is_over(word)
    }

    /// Takes a seat below the limit. Refused at it, and then marked: who is refused may look for a waiter.
    pub(super) fn try_enter(&self) -> bool {
        #[cfg(all(test, proxy_loom))]
        if model::is_left_out() {
            return true;
        }
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if is_full(word) {
                word = self.mark();
                if is_full(word) {
                    return false;
                }
                word |= WANTED;
            }
            match self.word.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Counts a slot that was taken while the node had no limit. False when one has come since and is reached: then the
    /// slot is not held, goes back to its cell, and the seat after it by [`NodeTotal::retract`].
    #[inline]
    pub(super) fn count(&self) -> bool {
        #[cfg(all(test, proxy_loom))]
        if model::is_left_out() {
            return true;
        }
        !is_full(self.word.fetch_add(1, Ordering::AcqRel))
    }

    /// Gives back what [`NodeTotal::count`] refused. Its slot was away for a moment, so somebody may have missed it.
    pub(super) fn retract(&self) {
        self.mark();
        self.leave();
    }

    /// Counts whatever the limit.
    pub(super) fn force(&self) {
        self.word.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives back a seat: to a waiter of any cell of this node if there may be one. True if it went to one, or is parked.
    #[inline]
    pub(super) fn leave(&self) -> bool {
        #[cfg(all(test, proxy_loom))]
        if model::is_left_out() {
            return false;
        }
        let before = self.word.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before & COUNT_MAX > 0, "a seat is given back once");
        before & MARKS != 0 && self.pass_if_any()
    }

    /// Changes the limit, and serves whom a higher one has room for.
    pub(super) fn set_limit(&self, limit: Option<u32>) {
        let bits = limit.map_or(0, |limit| u64::from(limit).min(COUNT_MAX) << LIMIT_SHIFT | LIMITED);
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let next = word & !(COUNT_MAX << LIMIT_SHIFT | LIMITED) | bits;
            match self.word.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    if word & MARKS != 0 {
                        self.pass_if_any();
                    }
                    return;
                }
                Err(now) => word = now,
            }
        }
    }

    /// The cells that a seat may serve, instead of those it had; the poller's.
    pub(super) fn list(&self, cells: &[Weak<Cell>]) {
        self.cells.update(|_| cells.to_vec());
    }

    /// One more of them, before it is offered. Drops those that are gone.
    pub(super) fn enlist(&self, cell: &Arc<Cell>) {
        let same = |one: &Weak<Cell>| std::ptr::eq(one.as_ptr(), Arc::as_ptr(cell));
        if !self.cells.load().iter().any(same) {
            let lives = |one: &&Weak<Cell>| one.strong_count() > 0;
            self.cells.update(|all| all.iter().filter(lives).chain([&Arc::downgrade(cell)]).cloned().collect());
        }
    }

    /// The control thread would load a model here for a waiter, and finds no seat: the next one is parked for it when its
    /// turn comes.
    pub(super) fn ask(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        while is_full(word) && word & (ASKED | PARKED) == 0 {
            match self.word.compare_exchange_weak(word, word | ASKED, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// A seat is parked.
    pub(super) fn is_parked(&self) -> bool {
        self.word.load(Ordering::Relaxed) & PARKED != 0
    }

    /// Takes the parked seat, or another, for a load; the control thread's.
    pub(super) fn try_enter_to_load(&self) -> bool {
        if !self.is_parked() || self.word.fetch_and(!PARKED, Ordering::AcqRel) & PARKED == 0 {
            return self.try_enter();
        }
        if is_over(self.word.load(Ordering::Relaxed)) {
            self.leave();
            return false;
        }
        true
    }

    /// Gives back the parked seat, which nobody loads with.
    pub(super) fn unpark(&self) {
        if self.word.fetch_and(!PARKED, Ordering::AcqRel) & PARKED != 0 {
            self.leave();
        }
    }

    fn mark(&self) -> u64 {
        #[cfg(all(test, proxy_loom))]
        if model::without_marks() {
            return self.word.load(Ordering::Acquire);
        }
        self.word.fetch_or(WANTED, Ordering::AcqRel)
    }

    fn pass_if_any(&self) -> bool {
        self.try_enter() && self.pass()
    }

    /// Passes a held seat on: to whom it serves next, else back to the count. True if anybody has it now.
    fn pass(&self) -> bool {
        let mut passed = false;
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if word & MARKS == 0 || is_over(word) {
                // What is marked above a lowered limit stays so, for whoever gives back within it.
                if self.change(word, word - 1) {
                    return passed;
                }
                continue;
            }
            let cells = self.cells.load();
            let turn = usize::try_from(self.turn.get()).unwrap_or(0).min(cells.len());
            let loads = word & ASKED != 0;
            if loads && (turn == cells.len() || word & WANTED == 0) {
                if self.change(word, word & !ASKED | PARKED) {
                    self.turn.set(0);
                    return true;
                }
                continue;
            }
            if !self.change(word, word & !WANTED) {
                continue;
            }
            // A load that waits for its turn has it before those in front of where this look began.
            let again = if loads { 0 } else { turn };
            // Before anybody is served: whoever is may be done before this thread runs again.
            let next = |at: usize| {
                self.turn.set(at as u64 + 1);
                self.mark();
            };
            let served = (turn..cells.len()).chain(0..again).any(|at| serves(&cells[at], || next(at)));
            passed |= served;
            if served && !self.try_enter() {
                return true;
            }
            if !served && loads {
                self.turn.set(cells.len() as u64);
                self.mark();
            }
        }
    }

    fn change(&self, from: u64, to: u64) -> bool {
        self.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

fn serves(cell: &Weak<Cell>, before: impl Fn()) -> bool {
    cell.upgrade().is_some_and(|cell| cell.serve_with_seat(before))
}

fn limit(word: u64) -> u64 {
    word >> LIMIT_SHIFT & COUNT_MAX
}

fn is_full(word: u64) -> bool {
    word & LIMITED != 0 && word & COUNT_MAX >= limit(word)
}

fn is_over(word: u64) -> bool {
    word & LIMITED != 0 && word & COUNT_MAX > limit(word)
}
