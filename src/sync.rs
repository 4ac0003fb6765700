//! The one door to concurrency: atomics (std, or loom under `cfg(proxy_loom)`), the queue and waker of the waiters,
//! and the only place that spawns tasks and threads.
//!
//! No other file names `std::sync::atomic`, `crossbeam`'s queues for waiters, `tokio::spawn` or `std::thread`
//! (`tests/tidy.rs` checks it). Nothing here may block.
//!
//! Under `proxy_loom` only loom models may run: loom's atomics panic outside of one.
//! [`Arc`] stays std's under loom: loom's own can hold neither `str` nor stand behind `arc-swap`, and what it would add
//! (leaks, order of the last drop) the models check by counting.

use std::pin::Pin;
use std::task::Poll;

pub use std::sync::{Arc, Weak};

/// How far a background thread stands behind the others: the scheduler gives it a tenth of their weight.
const BACKGROUND_NICE: i32 = 10;

#[cfg(not(proxy_loom))]
pub use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(proxy_loom)]
pub use loom::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(not(proxy_loom))]
pub use crossbeam::queue::{ArrayQueue, SegQueue};

#[cfg(proxy_loom)]
mod modelled;
#[cfg(proxy_loom)]
pub use modelled::{ArrayQueue, AtomicWaker, OneShot, SegQueue, Swapped};

#[cfg(not(proxy_loom))]
mod real;
#[cfg(not(proxy_loom))]
pub use real::{AtomicWaker, OneShot, Swapped};

/// A number that decides nothing: rotation, order among equals, display.
///
/// Invariants: none; a lost or late update is harmless, which is why loads and stores are all Relaxed and why it is
/// std's atomic under loom too (a model need not branch on it). Progress: wait-free.
#[derive(Debug, Default)]
pub struct Hint(std::sync::atomic::AtomicU64);

impl Hint {
    /// Starts at `value`.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(std::sync::atomic::AtomicU64::new(value))
    }

    /// The value, perhaps an old one.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, std::sync::atomic::Ordering::Relaxed);
    }

    /// Replaces the value by a higher one; does not touch it otherwise.
    pub fn raise(&self, to: u64) {
        if self.get() < to {
            self.set(to);
        }
    }

    /// Adds one and loses it when another thread does the same at once: cheaper than a locked addition.
    pub fn bump(&self) -> u64 {
        let value = self.get();
        self.set(value.wrapping_add(1));
        value
    }

    /// Adds exactly.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, std::sync::atomic::Ordering::Relaxed);
    }

    /// Subtracts exactly.
    pub fn sub(&self, by: u64) {
        self.0.fetch_sub(by, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Runs a task on this worker's own thread. It ends when the worker's runtime is dropped.
#[expect(clippy::disallowed_methods, reason = "the one spawn of the data plane")]
pub fn spawn_local<F: Future + 'static>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F::Output: 'static,
{
    tokio::task::spawn_local(future)
}

/// What a future comes to; `None` if it panics. What it held was given back while it unwound.
pub async fn caught<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|cx| {
        let poll = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match poll {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Some(value)),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// Starts a named thread.
///
/// # Errors
/// The operating system's, when no further thread can be had.
#[expect(clippy::disallowed_methods, reason = "the one thread start")]
pub fn spawn_thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Starts a named thread whose work can wait: where cores are scarce, workers come before it.
///
/// On one core beside a busy worker, ledger and store together took some two milliseconds of every 400, and whoever came
/// meanwhile waited for all of it. They still get their share, about a tenth of a core (nice(2): on Linux a thread's own).
///
/// # Errors
/// As [`spawn_thread`].
pub fn spawn_background<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    spawn_thread(name, move || {
        // Refused only by a sandbox that allows no such call: then it runs as the others do.
        let _ = rustix::process::nice(BACKGROUND_NICE);
        body()
    })
}

/// Handle of a thread from [`spawn_thread`].
pub type ThreadHandle<T> = std::thread::JoinHandle<T>;

/// Puts this thread to sleep: for the ledger's tick (a plain sleep costs no futex), never on a worker.
pub fn sleep(duration: std::time::Duration) {
    std::thread::sleep(duration);
}
