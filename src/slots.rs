//! Slots: how many requests run on each (node, weights) at once, and who waits for the next one.
//!
//! A [`Cell`] is one atomic word per (node, digest of the weights): decide and take in one compare-exchange.
//! A [`Queue`] is one FIFO per model name; a [`Permit`] gives its slot back on drop and serves the queues first.
//! Called by routing (to take), proxy (to hold) and the control thread (to offer new capacity).
//! Must never lock, allocate on the taken path, or know of health rules, names or HTTP.

mod cell;
mod permit;
mod waiters;

pub use cell::{Cell, CellView, Limit, NodeWord, Taken};
pub use permit::{ModelWord, Pair, Permit};
pub use waiters::Queue;
