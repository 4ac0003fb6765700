//! Simulated nodes: Ollama servers (and llama.cpp ones) without models, on which demo, tests and perf stand.
//!
//! A [`Node`] listens on loopback and answers as a real node does, byte for byte where that is known: the routes and
//! errors, the scheduler with its loads, evictions and slots, the sockets it loses. It counts what it did
//! ([`NodeLedger`]) and goes wrong on command ([`Fault`]). It shares no code with the proxy's own reading and writing
//! of HTTP and JSON, so that each can contradict the other.
//!
//! # What a request can ask of the simulation
//!
//! The answer's tokens are filler words. Their number is `num_predict`, `max_tokens` or `max_output_tokens` exactly,
//! or the spec's default. A top-level object `sim` in any inference body, which real servers ignore, sets more:
//! `{"sim":{"tokens":64,"prompt":100,"first_ms":5,"pace_ms":2.5,"burst":16}}` gives 64 tokens for a prompt of 100,
//! the first after 5 ms, 16 of them every 40 ms. Without any pace a stream leaves in writes of up to 64 chunks.

mod ask;
mod ask_v1;
mod audio;
mod codec;
mod conn;
mod control;
mod embed;
mod fault;
mod gojson;
mod host;
mod http;
mod infer;
mod job;
mod ledger;
mod lists;
mod llama;
mod model;
mod names;
mod node;
mod paths;
mod sched;
mod serve;
mod spec;
mod store;
mod text;
mod voice;

pub use fault::{Fault, Harm, Only};
pub use ledger::{Ending, ModelLedger, NodeLedger, Tokens};
pub use node::{Herd, Node};
pub use spec::{Capability, Cloud, Engine, ModelSpec, NodeSpec, Remote};
