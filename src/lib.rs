//! herdgate: the gate in front of a herd of Ollama nodes.
//!
//! # The life of a request
//!
//! ```text
//! accept -> front (parse, auth) -> scan (model, stream, bounded) -> fleet snapshot (one load)
//!        -> routing (candidates in order) -> slots (reserve by one CAS, else wait in the model's queue)
//!        -> upstream (own HTTP/1.1 client, per-worker pool) -> tail (bytes untouched; counts from the last record)
//!        -> Outcome: permit released, counters bumped, one event on the ring
//! ledger thread: rings -> fold by (minute, node, model, key, outcome) -> LMDB, one transaction a tick
//! control thread: polls nodes -> next Snapshot -> publish; samples counters -> broadcast -> SSE
//! ```
//!
//! # Invariants
//!
//! - **I1** in-flight is exact: count = live permits, never above a hard limit, zero at rest.
//! - **I2** one Outcome per request.
//! - **I3** the ledger is exact: by node = by model = by key = by outcome = what the nodes reported.
//! - **I4** an event's minute is fixed at the event, before any queue.
//! - **I5** one Snapshot per decision.
//! - **I6** no retry once a byte has gone to the client.
//! - **I7** bytes through, both ways, flushed as they arrive.
//! - **I8** everything is bounded, and each bound has a number, a key and an answer.
//! - **I9** a dead or hanging node costs nothing to those who do not need it.
//! - **I10** a slow subscriber never slows the proxy.
//! - **I11** SIGTERM loses nothing; SIGKILL at most one tick.
//! - **I12** client gone means node told, whole, and not within 50 ms of the request.
//!
//! # Under `cfg(proxy_loom)`
//!
//! Only the rooms that loom models stand in are built, and those that they import, with the crates that these need.

#![cfg_attr(proxy_loom, expect(dead_code, unused_imports, reason = "what is left out under this cfg would use it"))]

#[cfg(not(proxy_loom))]
pub mod access;
#[cfg(not(proxy_loom))]
pub mod admin;
pub mod clock;
pub mod config;
#[cfg(not(proxy_loom))]
pub mod control;
#[cfg(not(proxy_loom))]
pub mod demo;
pub mod dialect;
#[cfg(not(proxy_loom))]
pub mod error;
pub mod evidence;
#[cfg(not(proxy_loom))]
pub mod fleet;
#[cfg(not(proxy_loom))]
pub mod front;
#[cfg(not(proxy_loom))]
pub mod gate;
#[cfg(not(proxy_loom))]
pub mod http1;
pub mod ids;
#[cfg(not(proxy_loom))]
pub mod import;
#[cfg(not(proxy_loom))]
pub mod live;
#[cfg(not(proxy_loom))]
pub mod log;
#[cfg(not(proxy_loom))]
pub mod manager;
pub mod mix;
#[cfg(not(proxy_loom))]
pub mod operator;
#[cfg(not(proxy_loom))]
pub mod package;
#[cfg(not(proxy_loom))]
pub mod proxy;
pub mod pulse;
#[cfg(not(proxy_loom))]
pub mod remote;
#[cfg(not(proxy_loom))]
pub mod routing;
#[cfg(not(proxy_loom))]
pub mod serve;
#[cfg(not(proxy_loom))]
pub mod shared;
#[cfg(not(proxy_loom))]
pub mod sim;
pub mod slots;
pub mod sync;
#[cfg(not(proxy_loom))]
pub mod terminal;
pub mod usage;
#[cfg(not(proxy_loom))]
pub mod worker;
