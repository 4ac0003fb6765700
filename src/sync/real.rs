//! The primitives of the waiters as they run: thin names over `atomic-waker`, `OnceLock` and `arc-swap`.
//!
//! Used through [`crate::sync`] alone; the twin under loom is `modelled.rs`. Must not grow logic: what is here is not modelled.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

/// The waker of one waiting task. Progress: wait-free.
#[derive(Debug, Default)]
pub struct AtomicWaker(atomic_waker::AtomicWaker);

impl AtomicWaker {
    /// No waker yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the waker; a wake that runs at the same time wakes this one at once.
    pub fn register(&self, waker: &Waker) {
        self.0.register(waker);
    }

    /// Wakes the task registered last, once.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Forgets the waker (a queue entry that outlives its task must not keep the task).
    pub fn forget(&self) {
        drop(self.0.take());
    }
}

/// A value written at most once, by whoever holds the right to; read after a Release/Acquire pair of the caller's.
#[derive(Debug)]
pub struct OneShot<T>(OnceLock<T>);

impl<T: Clone> OneShot<T> {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Writes; a second write is lost (callers have the exclusive right, so there is none).
    pub fn put(&self, value: T) {
        let first = self.0.set(value).is_ok();
        debug_assert!(first, "a one-shot slot is written once");
    }

    /// What `look` makes of the value, if written.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.get().map(look)
    }

    /// A copy of the value, if written.
    #[must_use]
    pub fn get(&self) -> Option<T> {
        self.0.get().cloned()
    }
}

impl<T: Clone> Default for OneShot<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// An immutable value replaced whole; readers never wait.
#[derive(Debug)]
pub struct Swapped<T>(arc_swap::ArcSwap<T>);

impl<T> Swapped<T> {
    /// Holds `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(arc_swap::ArcSwap::from_pointee(value))
    }

    /// The value now. Short-lived: never across an await.
    pub fn load(&self) -> impl Deref<Target = Arc<T>> {
        self.0.load()
    }

    /// Replaces the value by what `change` makes of it, again if another was faster.
    pub fn update(&self, mut change: impl FnMut(&T) -> T) {
        self.0.rcu(|old| change(old));
    }
}
