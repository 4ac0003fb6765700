//! The whole proxy in front of a simulated herd, over real sockets: exactness, invariants, bad input, recorded nodes.

#[path = "../support/mod.rs"]
mod support;

mod exact;
mod minutes;
