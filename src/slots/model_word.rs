//! Facts shared by all copies of one model name: which one loads, since when all are full.
//!
//! Written by routing and by permits. Must not know nodes beyond their id.

use crate::clock::Millis;
use crate::ids::NodeId;
use crate::slots::Cell;
use crate::sync::{AtomicU64, Hint, Ordering};

/// `since` fills the low 40 bits (34 years of milliseconds), above it the phase and the node plus one.
const SINCE_BITS: u32 = 40;
const SINCE_MASK: u64 = (1 << SINCE_BITS) - 1;
const CONFIRMED: u64 = 1 << SINCE_BITS;
const NODE_SHIFT: u32 = SINCE_BITS + 1;

/// The load under way of a model name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// The node that loads.
    pub node: NodeId,
    /// The cell was marked LOADING after this load began; until then its flag says nothing.
    pub confirmed: bool,
    /// Since when.
    pub since: Millis,
}

/// Which copy of a name loads (at most one), since when all copies are full, and whose turn it is among equals.
///
/// - Invariants: between a `try_begin_load` that returned true and the matching end no other returns true. The load and
///   its beginning share one word; "full since" changes for other reasons and has its own.
/// - Orderings: begin, confirm and end are AcqRel, readers Acquire: who sees a confirmed load also sees the LOADING flag of
///   its cell, or what came after it.
/// - Progress: lock-free.
/// - Model: `slots::model::one_load_at_a_time`.
#[derive(Debug, Default)]
pub struct ModelWord {
    load: AtomicU64,
    /// Milliseconds plus one; zero: not full.
    full_since: AtomicU64,
    turn: Hint,
}

impl ModelWord {
    /// Nothing loads, nothing is full.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reserves the one load of this name for a node; false if another load is under way.
    #[must_use]
    pub fn try_begin_load(&self, node: NodeId, now: Millis) -> bool {
        let word = (u64::from(node.0) + 1) << NODE_SHIFT | now & SINCE_MASK;
        self.load.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The cell is LOADING now: from here on a cleared flag means that the load is over.
    pub fn confirm_load(&self, node: NodeId) {
        let word = self.load.load(Ordering::Acquire);
        if load_of(word).is_some_and(|load| load.node == node) {
            // Lost only to an end, which is as good.
            let _ = self.load.compare_exchange(word, word | CONFIRMED, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The load on this node is over. No effect if another node loads.
    pub fn end_load(&self, node: NodeId) {
        let mut word = self.load.load(Ordering::Acquire);
        while load_of(word).is_some_and(|load| load.node == node) {
            match self.load.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Ends the load on this cell's node if it is over: the cell is no longer LOADING (success, failure or expiry, perhaps
    /// under another name or by `/api/ps`), or its node takes no work any more, since a node that hangs must not keep the
    /// model from coming up elsewhere. True if it did.
    pub(crate) fn end_if_over(&self, cell: &Cell) -> bool {
        let over = self.loading().is_some_and(|load| {
            load.node == cell.node && (!cell.node_word.is_open() || load.confirmed && !cell.view().loading)
        });
        if over {
            self.end_load(cell.node);
        }
        over
    }

    /// Ends a load that has been under way for `grace` or longer; the control thread calls it.
    pub fn expire_load(&self, now: Millis, grace: Millis) {
        let word = self.load.load(Ordering::Acquire);
        if load_of(word).is_some_and(|load| now.saturating_sub(load.since) >= grace) {
            // Lost only to an end or a confirmation; the next call comes soon.
            let _ = self.load.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The load under way.
    #[must_use]
    pub fn loading(&self) -> Option<Load> {
        load_of(self.load.load(Ordering::Acquire))
    }

    /// Every copy is at its limit. Keeps the first time.
    pub fn note_full(&self, now: Millis) {
        if self.full_since.load(Ordering::Relaxed) == 0 {
            // Lost to another that noted the same.
            let _ = self.full_since.compare_exchange(0, now + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Some copy has room.
    pub fn note_free(&self) {
        if self.full_since.load(Ordering::Relaxed) != 0 {
            self.full_since.store(0, Ordering::Relaxed);
        }
    }

    /// All copies were full when last looked at.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full_since.load(Ordering::Relaxed) != 0
    }

    /// How long all copies have been full; zero if they are not.
    #[must_use]
    pub fn full_for(&self, now: Millis) -> Millis {
        match self.full_since.load(Ordering::Relaxed) {
            0 => 0,
            since => now.saturating_sub(since - 1),
        }
    }

    /// Which candidate comes first among equals.
    #[must_use]
    pub fn turn(&self) -> usize {
        usize::try_from(self.turn.get()).unwrap_or(0)
    }

    /// The candidate before this one was taken: it comes last among equals now.
    pub fn set_turn(&self, turn: usize) {
        self.turn.set(turn as u64);
    }
}

fn load_of(word: u64) -> Option<Load> {
    let node = (word >> NODE_SHIFT).checked_sub(1)?;
    Some(Load {
        node: NodeId(u32::try_from(node).unwrap_or(u32::MAX)),
        confirmed: word & CONFIRMED != 0,
        since: word & SINCE_MASK,
    })
}
