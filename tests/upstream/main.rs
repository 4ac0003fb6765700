//! The upstream client over real loopback sockets, against a node that follows a script.
//!
//! Time is a manual clock wherever a deadline decides; the order of events comes from the sockets themselves.

mod exchange;
mod leaving;
mod node;
