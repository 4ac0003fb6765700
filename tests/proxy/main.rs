//! The whole proxy in front of a simulated herd, over real sockets: exactness, invariants, bad input, recorded nodes.

#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "in a test, a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod bounds;
mod bytes;
mod counted;
mod crowd;
mod exact;
mod failover;
mod front;
mod isolation;
mod kinds;
mod leaving;
mod minutes;
mod waiting;
