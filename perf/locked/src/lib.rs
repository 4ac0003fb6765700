//! The locked baseline: the ancestor's state and its locks, carried over to Rust, to measure the lock-free state against.
//!
//! Used by `benches/` side by side with the lock-free state, and by the whole proxy under `--cfg proxy_locked`, where it
//! takes that state's place. Must never ship, and never be worse than what it stands for: no lock, copy or JSON that the
//! ancestor does not have too.
//!
//! # What is carried over, and from where
//!
//! The ancestor is a single-process Python router; what has to be consistent, and under which lock, is what its own
//! document on race conditions says.
//!
//! | here | the ancestor's piece | its lock |
//! |---|---|---|
//! | [`Locked::available`] | models per node, fresh 300 s, stale to 600 s | `_models_cache_lock` |
//! | [`Locked::loaded`] | loaded models per node, fresh 10 s, stale to 60 s | `_loaded_models_cache_lock` |
//! | [`Locked::failed`] | errors per node, 300 s | `_error_cache_lock` |
//! | [`Locked::reserve`] | `choose_endpoint`: a lock round per node and cache, then choice and count in one step | `usage_lock` |
//! | [`Locked::release`] | `decrement_usage`, when the answer's generator ends | `usage_lock` |
//! | [`Locked::spend`], [`Locked::work`] | `token_queue`, `token_worker`: the timestamp once, before the lock | `buffer_lock`, then `token_usage_lock` |
//! | [`Locked::take_buffers`] | `flush_buffer`, `flush_remaining_buffers`: copied under the lock, written after | `buffer_lock` |
//! | [`Locked::subscribe`] | `_subscribers`: a set of bounded queues, the oldest state is dropped | `_subscribers_lock` |
//! | (private) `publish` | `publish_snapshot` at every change, inside the lock of what changed | `usage_lock`, then `_subscribers_lock` |
//!
//! # The order of the locks
//!
//! `usage`, then `token usage`, then `subscribers`; the caches and the buffers are taken alone. None is held while
//! something is written or fetched.
//!
//! # Where Rust forces a difference
//!
//! 1. The ancestor runs on one thread, so whoever holds one of the two count locks reads the other's counts without it.
//!    Here that would be a data race: a snapshot takes both, in order. The token worker therefore takes the usage lock too.
//! 2. A generator's `finally` may await; `Drop` may not. [`Locked::try_release`] gives a slot back at once when no lock is
//!    held by another, which on one thread is nearly always; else the caller spawns [`Locked::release`].
//! 3. The ancestor's queues belong to its one thread. Here a reader's queue is crossbeam's bounded one, and the token
//!    queue tokio's unbounded one (as `asyncio.Queue()` is unbounded): neither adds a lock of its own.
//! 4. Fetching is the caller's: where a cache has nothing, the ancestor asks the node and waits; here the node counts as
//!    having nothing until somebody [`Cache::put`]s what it said. (That favours the baseline.)
//!
//! # Where it is left better than it was
//!
//! `asyncio.gather` makes a task per node, here the rounds simply follow each other. Hashes of names are computed once
//! (as Python's are) and JSON is written from names that are quoted already. Buffers are moved out, not copied. The token
//! totals start empty, not with everything the database has ever seen, so snapshots are shorter.
#![expect(clippy::disallowed_types, reason = "the baseline is made of locks")]
#![expect(clippy::disallowed_methods, reason = "the ancestor's token queue has no bound")]

mod caches;
mod name;
mod snapshot;
mod subscribers;
mod tokens;
mod usage;

pub use caches::{Cache, Errors, Found, Models};
pub use name::{Map, Name, Set};
pub use subscribers::{BACKLOG, Subscription};
pub use tokens::{Buffers, Event, Row};
pub use usage::{Ask, Choice, Counts};

use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Milliseconds on any clock that only goes forward.
pub type Millis = u64;

/// The whole state. `R` is what a caller wants to find again in the rows of the time series.
#[derive(Debug)]
pub struct Locked<R> {
    /// Models that each node has.
    pub available: Cache,
    /// Models that each node has in memory.
    pub loaded: Cache,
    /// Nodes that failed, and when.
    pub failed: Errors,
    usage: Mutex<Counts>,
    token_usage: Mutex<Counts>,
    buffers: Mutex<Buffers<R>>,
    token_queue: UnboundedSender<Event<R>>,
    /// The token worker's end; locked for as long as it works.
    token_worker: Mutex<UnboundedReceiver<Event<R>>>,
    subscribers: Mutex<subscribers::Subscribers>,
    publishing: Publishing,
}

/// When a state is put together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Publishing {
    /// At every change, whether somebody reads or not: as the ancestor does.
    Always,
    /// At every change that somebody reads: tells the locks' share from the JSON's.
    WhenRead,
}

impl<R> Locked<R> {
    /// Nothing known, nothing in flight.
    #[must_use]
    pub fn new(publishing: Publishing) -> Self {
        let (token_queue, worker) = unbounded_channel();
        Self {
            available: Cache::new(300_000, 600_000),
            loaded: Cache::new(10_000, 60_000),
            failed: Errors::new(300_000),
            usage: Mutex::default(),
            token_usage: Mutex::default(),
            buffers: Mutex::new(Buffers::default()),
            token_queue,
            token_worker: Mutex::new(worker),
            subscribers: Mutex::default(),
            publishing,
        }
    }
}

#[cfg(test)]
mod tests;
