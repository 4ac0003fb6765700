//! herdgate: the gate in front of a herd of Ollama nodes.
//!
//! # The life of a request
//!
//! ```text
//! accept -> front (parse, auth) -> scan (model, stream, bounded) -> fleet snapshot (one load)
//!        -> routing (candidates in order) -> slots (reserve by one CAS, else wait in the model's queue)
//!        -> upstream (own HTTP/1.1 client, per-worker pool) -> tail (bytes untouched; counts from the last record)
//!        -> Outcome: permit released, counters bumped, one event on the ring
//! ledger thread: rings -> fold by (minute, node, model, key) -> LMDB, one transaction a tick
//! control thread: polls nodes -> next Snapshot -> publish; samples counters -> broadcast -> SSE
//! ```
//!
//! # Invariants
//!
//! - **I1** in-flight is exact: count = live permits, never above a hard limit, zero at rest.
//! - **I2** one Outcome per request.
//! - **I3** the ledger is exact: by node = by model = by key = what the nodes reported.
//! - **I4** an event's minute is fixed at the event, before any queue.
//! - **I5** one Snapshot per decision.
//! - **I6** no retry once a byte has gone to the client.
//! - **I7** bytes through, both ways, flushed as they arrive.
//! - **I8** everything is bounded, and each bound has a number, a key and an answer.
//! - **I9** a dead or hanging node costs nothing to those who do not need it.
//! - **I10** a slow subscriber never slows the proxy.
//! - **I11** SIGTERM loses nothing; SIGKILL at most one tick.
//! - **I12** client gone means node told, whole, and not within 50 ms of the request.

pub mod access;
pub mod admin;
pub mod clock;
pub mod config;
pub mod control;
pub mod demo;
pub mod dialect;
pub mod error;
pub mod evidence;
pub mod fleet;
pub mod front;
pub mod gate;
pub mod http1;
pub mod ids;
pub mod import;
pub mod live;
pub mod log;
pub mod mix;
pub mod operator;
pub mod package;
pub mod proxy;
pub mod remote;
pub mod routing;
pub mod shared;
pub mod sim;
pub mod slots;
pub mod sync;
pub mod usage;
pub mod worker;
