//! The primitives of waiters and rings as loom sees them: weaker than the real ones, so that what passes here holds there.
//!
//! Only Acquire/Release cells order anything; the values themselves lie in plain storage that loom does not branch on.
//! A model pushes at most [`CAPACITY`] entries. Compiled under `proxy_loom` alone.
#![expect(clippy::disallowed_types, reason = "cold: storage of values in models; loom runs one thread at a time")]

use std::collections::HashMap;
use std::sync::Mutex;

use super::{Arc, AtomicUsize, Ordering};

/// Pushes a model queue can take in its life.
const CAPACITY: usize = 8;

/// FIFO with the interface of `crossbeam::queue::SegQueue`; a push is visible to a popper only through its own cell.
#[derive(Debug)]
pub struct SegQueue<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    cells: [AtomicUsize; CAPACITY],
    values: Mutex<HashMap<usize, T>>,
}

impl<T> SegQueue<T> {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self {
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            cells: std::array::from_fn(|_| AtomicUsize::new(0)),
            values: Mutex::new(HashMap::new()),
        }
    }

    /// Appends.
    pub fn push(&self, value: T) {
        let at = self.tail.fetch_add(1, Ordering::Relaxed);
        assert!(at < CAPACITY, "a model pushes at most {CAPACITY} entries");
        self.values.lock().unwrap_or_else(|e| e.into_inner()).insert(at, value);
        self.cells[at].store(1, Ordering::Release);
    }

    /// Takes the oldest entry that is visible to this thread.
    pub fn pop(&self) -> Option<T> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            if head >= CAPACITY || self.cells[head].load(Ordering::Acquire) == 0 {
                return None;
            }
            match self.head.compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return self.values.lock().unwrap_or_else(|e| e.into_inner()).remove(&head),
                Err(now) => head = now,
            }
        }
    }

    /// Nothing is visible to this thread.
    pub fn is_empty(&self) -> bool {
        let head = self.head.load(Ordering::Acquire);
        head >= CAPACITY || self.cells[head].load(Ordering::Acquire) == 0
    }

    /// Entries pushed and not popped, roughly.
    pub fn len(&self) -> usize {
        self.tail.load(Ordering::Relaxed).saturating_sub(self.head.load(Ordering::Relaxed))
    }
}

impl<T> Default for SegQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// States of a place of an [`ArrayQueue`].
const EMPTY: usize = 0;
const FULL: usize = 1;
const CHANGING: usize = 2;

/// Bounded FIFO of one producer and one consumer with the interface of `crossbeam::queue::ArrayQueue`. Where the real one
/// spins, for the other thread is in the middle of a step, this one fails the model.
#[derive(Debug)]
pub struct ArrayQueue<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    places: Box<[AtomicUsize]>,
    values: Mutex<HashMap<usize, T>>,
}

impl<T> ArrayQueue<T> {
    /// Empty, with so many places.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            places: (0..capacity).map(|_| AtomicUsize::new(EMPTY)).collect(),
            values: Mutex::new(HashMap::new()),
        }
    }

    /// Appends; the value comes back where the place that is next looks full to this thread.
    ///
    /// # Errors
    /// It does.
    pub fn push(&self, value: T) -> Result<(), T> {
        let tail = self.tail.load(Ordering::Relaxed);
        let place = &self.places[tail % self.places.len()];
        match place.load(Ordering::Acquire) {
            EMPTY => {}
            FULL => return Err(value),
            _ => panic!("a push would spin"),
        }
        place.store(CHANGING, Ordering::Relaxed);
        self.values.lock().unwrap_or_else(|e| e.into_inner()).insert(tail, value);
        self.tail.store(tail + 1, Ordering::Relaxed);
        place.store(FULL, Ordering::Release);
        Ok(())
    }

    /// Takes the oldest one.
    pub fn pop(&self) -> Option<T> {
        let head = self.head.load(Ordering::Relaxed);
        let place = &self.places[head % self.places.len()];
        match place.load(Ordering::Acquire) {
            FULL => {}
            EMPTY => return None,
            _ => panic!("a pop would spin"),
        }
        place.store(CHANGING, Ordering::Relaxed);
        let value = self.values.lock().unwrap_or_else(|e| e.into_inner()).remove(&head);
        self.head.store(head + 1, Ordering::Relaxed);
        place.store(EMPTY, Ordering::Release);
        value
    }
}

/// The waker of one waiting task.
#[derive(Debug)]
pub struct AtomicWaker(loom::future::AtomicWaker);

impl AtomicWaker {
    /// No waker yet.
    #[must_use]
    pub fn new() -> Self {
        Self(loom::future::AtomicWaker::new())
    }

    /// Replaces the waker.
    pub fn register(&self, waker: &std::task::Waker) {
        self.0.register_by_ref(waker);
    }

    /// Wakes the task registered last, once.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Forgets the waker.
    pub fn forget(&self) {
        drop(self.0.take_waker());
    }
}

impl Default for AtomicWaker {
    fn default() -> Self {
        Self::new()
    }
}

/// A value written at most once; reading it before it is visible is the caller's mistake, and shows as `None`.
#[derive(Debug)]
pub struct OneShot<T> {
    written: AtomicUsize,
    value: Mutex<Option<T>>,
}

impl<T: Clone> OneShot<T> {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self { written: AtomicUsize::new(0), value: Mutex::new(None) }
    }

    /// Writes.
    pub fn put(&self, value: T) {
        let before = self.value.lock().unwrap_or_else(|e| e.into_inner()).replace(value);
        assert!(before.is_none(), "a one-shot slot is written once");
        self.written.store(1, Ordering::Relaxed);
    }

    /// What `look` makes of the value, if the write is visible.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.get().map(|value| look(&value))
    }

    /// A copy of the value, if the write is visible: Relaxed, so that the caller's own pair has to carry it.
    pub fn get(&self) -> Option<T> {
        if self.written.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.value.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

impl<T: Clone> Default for OneShot<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// An immutable value replaced whole: an index into all its versions.
#[derive(Debug)]
pub struct Swapped<T> {
    current: AtomicUsize,
    versions: Mutex<Vec<Arc<T>>>,
}

impl<T> Swapped<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self { current: AtomicUsize::new(0), versions: Mutex::new(vec![Arc::new(value)]) }
    }

    /// The version visible to this thread.
    pub fn load(&self) -> impl std::ops::Deref<Target = Arc<T>> {
        Box::new(self.version(self.current.load(Ordering::Acquire)))
    }

    /// Replaces the value by what `change` makes of it, again if another was faster.
    pub fn update(&self, mut change: impl FnMut(&T) -> T) {
        let mut current = self.current.load(Ordering::Acquire);
        loop {
            let next = Arc::new(change(&self.version(current)));
            let at = {
                let mut versions = self.versions.lock().unwrap_or_else(|e| e.into_inner());
                versions.push(next);
                versions.len() - 1
            };
            match self.current.compare_exchange(current, at, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => current = now,
            }
        }
    }

    /// Drops every version but the last; no thread may read any more.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        let current = self.current.load(Ordering::Acquire);
        let keep = self.version(current);
        let mut versions = self.versions.lock().unwrap_or_else(|e| e.into_inner());
        let last = versions.len();
        versions.clear();
        versions.resize(last, keep);
    }

    fn version(&self, at: usize) -> Arc<T> {
        Arc::clone(&self.versions.lock().unwrap_or_else(|e| e.into_inner())[at])
    }
}
