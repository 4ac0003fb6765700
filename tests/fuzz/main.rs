//! Differential fuzz over the whole proxy: what a client sends against what a node receives, judged by readers of our own.
//!
//! The seeds are fixed and a run is short; `HERDGATE_FUZZ_CASES=20000 cargo test --test fuzz` takes longer. Parsers alone
//! are held against hyper's (`tests/http1.rs`) and the Go decoder (`tests/scan.rs`).

#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "in a test, a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod framing;
#[expect(unreachable_pub, reason = "shared with tests/scan.rs")]
#[path = "../scan/reference.rs"]
mod reference;
mod strict;
