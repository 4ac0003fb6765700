//! Slots: how many requests run on each (node, weights) at once, and who waits for the next one.
//!
//! A [`Cell`] is one atomic word per (node, digest of the weights): decide and take in one compare-exchange.
//! A [`Queue`] is one FIFO per model name; a [`Permit`] gives its slot back on drop and serves the queues first.
//! Called by routing (to take), proxy (to hold) and the control thread (to offer new capacity).
//! Must never lock, allocate on the taken path, or know of health rules, names or HTTP.
//!
//! # The protocol of late binding
//!
//! ```text
//! release(cell): a waiter it may serve? hand the slot over, count unchanged
//!                else count - 1; fence; while somebody waits and a slot can be taken: take it, hand it over
//! wait:          enter the queue; then at every poll: register the waker, look for a grant, fence,
//!                take a slot of any cell if one is free and release it (that serves the head, perhaps us), look again:
//!                until we are served, or nothing is free, or nobody could be served with it
//! leave:         WAIT -> GONE; if a slot was granted meanwhile, release it
//! new capacity:  (limit raised, node opened, model loaded or found) then the same loop as after a release: `offer`
//! ```
//!
//! Where a node's models have a limit together (`node_slots`), a slot needs a seat of the node as well: `node_total.rs`.

mod bank;
mod cell;
mod links;
#[cfg(all(test, proxy_loom))]
mod model;
mod model_word;
mod node;
mod node_total;
mod permit;
mod waiters;

pub use bank::{Bank, Place};
pub use cell::{Cell, CellView, Limit, Taken};
pub(crate) use cell::{Residency, Share};
pub use model_word::{Load, ModelWord};
pub use node::NodeWord;
pub use permit::{Pair, Permit};
pub(crate) use waiters::Granted;
pub use waiters::{Grant, Queue, QueueFull, Waiting, Wants};

/// The fence between making capacity and looking for waiters, and between becoming a waiter and looking for capacity.
#[inline]
fn pairing_fence() {
    #[cfg(all(test, proxy_loom))]
    if model::without_fences() {
        return;
    }
    crate::sync::fence(crate::sync::Ordering::SeqCst);
}
