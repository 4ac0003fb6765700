//! One word per (node, weights digest): in flight, limit and flags together, so that nothing tears.
//!
//! Layout of the word, low to high: `in_flight:24 | limit:24 | flags:16` with the flags
//! SOFT (the limit is a preference), LOADING (a cold request of ours is on its way, nothing came back yet) and
//! LOADED (the node has the weights in memory: a success of ours, or `/api/ps`).
//! Whether the node itself takes work is the [`NodeWord`], shared by all cells of a node.

use crate::ids::{CellId, NodeId};
use crate::slots::Queue;
use crate::sync::{Arc, AtomicU32, AtomicU64};

/// How many requests may run at once on one (node, weights).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// A preference: exceeded when every loaded copy is at its own.
    Soft(u32),
    /// Never exceeded; what does not fit waits.
    Hard(u32),
}

/// Whether a node takes new work: up, not suspect, not draining. One word per node, shared by its cells.
///
/// Writers: the poller (health), workers (a refused connection), the control thread (suspect).
#[derive(Debug)]
pub struct NodeWord {
    _word: AtomicU32,
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

/// The capacity word of one (node, weights digest).
#[derive(Debug)]
pub struct Cell {
    /// This cell's place in the Snapshot's list.
    pub id: CellId,
    /// The node it belongs to.
    pub node: NodeId,
    /// The node's own word.
    pub node_word: Arc<NodeWord>,
    _word: crossbeam::utils::CachePadded<AtomicU64>,
    /// The queues whose waiters this cell can serve (one, unless several names share the weights).
    pub(crate) queues: arc_swap::ArcSwap<Vec<Arc<Queue>>>,
}
