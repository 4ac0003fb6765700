//! The one door to concurrency: atomics (std, or loom under `cfg(proxy_loom)`), the queue and waker of the waiters,
//! and the only place that spawns tasks and threads.
//!
//! No other file names `std::sync::atomic`, `crossbeam`'s queues for waiters, `tokio::spawn` or `std::thread`
//! (`tests/tidy.rs` checks it). Nothing here may block.

#[cfg(not(proxy_loom))]
pub use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(not(proxy_loom))]
pub use {atomic_waker::AtomicWaker, crossbeam::queue::SegQueue};

/// Runs a task on this worker's own thread. It ends when the worker's runtime is dropped.
#[expect(clippy::disallowed_methods, reason = "the one spawn of the data plane")]
pub fn spawn_local<F: Future + 'static>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F::Output: 'static,
{
    tokio::task::spawn_local(future)
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
