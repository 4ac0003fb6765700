//! std's `Mutex` and `RwLock` with their acquisitions counted: how many, where, and how many of them are meetings.
//!
//! `.ci/python/lock_copies.py` puts these types under copies of tokio, hyper and the other crates that a worker runs;
//! `tests/locks.rs` reads the counts. Counted is what concerns a worker thread (one named `worker-…`): its own
//! acquisitions, and every meeting it has part in. A meeting is an acquisition by another thread than the one before,
//! whether or not they came at the same time: a lock without meetings belongs to one thread and never makes it wait.
//!
//! Must behave exactly as std's types do otherwise, and never allocate or lock anything itself.

use std::cell::Cell;
use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LockResult, OnceLock, TryLockResult};
use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// Places that can be told apart.
const PLACES: usize = 512;

/// Set in a thread's number if it is a worker.
const WORKER: u64 = 1 << 63;

static ARMED: AtomicBool = AtomicBool::new(false);
static THREADS: AtomicU64 = AtomicU64::new(0);
static TABLE: [Slot; PLACES] = [const { Slot::new() }; PLACES];

/// Counts of one place.
struct Slot {
    place: OnceLock<&'static Location<'static>>,
    locks: AtomicU64,
    meetings: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self { place: OnceLock::new(), locks: AtomicU64::new(0), meetings: AtomicU64::new(0) }
    }
}

/// What was counted at one place between [`arm`] and [`disarm`].
#[derive(Clone, Debug)]
pub struct Place {
    /// File and line.
    pub at: String,
    /// Acquisitions by worker threads.
    pub locks: u64,
    /// Those, and those by others after a worker, whose last holder was another thread.
    pub meetings: u64,
}

thread_local! {
    /// This thread's number; 0 while unknown.
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// Starts to count from zero.
pub fn arm() {
    for slot in &TABLE {
        slot.locks.store(0, Ordering::Relaxed);
        slot.meetings.store(0, Ordering::Relaxed);
    }
    ARMED.store(true, Ordering::SeqCst);
}

/// Stops; what was counted since [`arm`], most locks first.
pub fn disarm() -> Vec<Place> {
    ARMED.store(false, Ordering::SeqCst);
    let told = |slot: &Slot| {
        let at = slot.place.get()?;
        let (locks, meetings) = (slot.locks.load(Ordering::Relaxed), slot.meetings.load(Ordering::Relaxed));
        (locks + meetings > 0).then(|| Place { at: format!("{}:{}", at.file(), at.line()), locks, meetings })
    };
    let mut places: Vec<Place> = TABLE.iter().filter_map(told).collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.locks));
    places
}

/// Notes that this thread takes a lock that `last` held before, at `place`.
fn note(last: &AtomicU64, place: &'static Location<'static>) {
    let me = me();
    // Always kept, so that what happened before counting decides what the first acquisition is.
    let before = last.swap(me, Ordering::Relaxed);
    if !ARMED.load(Ordering::Relaxed) || (me | before) & WORKER == 0 {
        return;
    }
    let slot = slot(place);
    if me & WORKER != 0 {
        slot.locks.fetch_add(1, Ordering::Relaxed);
    }
    if before != 0 && before != me {
        slot.meetings.fetch_add(1, Ordering::Relaxed);
    }
}

fn me() -> u64 {
    let known = THREAD.get();
    if known != 0 {
        return known;
    }
    let number = THREADS.fetch_add(1, Ordering::Relaxed) + 1;
    let is_worker = std::thread::current().name().is_some_and(|name| name.starts_with("worker-"));
    THREAD.set(if is_worker { number | WORKER } else { number });
    THREAD.get()
}

/// The slot of a place: found by its line, then by looking on.
fn slot(place: &'static Location<'static>) -> &'static Slot {
    let start = place.line() as usize * 31 + place.file().len();
    for step in 0..PLACES {
        let slot = &TABLE[(start + step) % PLACES];
        if *slot.place.get_or_init(|| place) == place {
            return slot;
        }
    }
    panic!("more than {PLACES} places take locks");
}

/// `std::sync::Mutex`.
pub struct Mutex<T: ?Sized> {
    last: AtomicU64,
    inner: std::sync::Mutex<T>,
}

impl<T> Mutex<T> {
    /// As std's.
    pub const fn new(value: T) -> Self {
        Self { last: AtomicU64::new(0), inner: std::sync::Mutex::new(value) }
    }

    /// As std's.
    pub fn into_inner(self) -> LockResult<T> {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// As std's, counted.
    #[track_caller]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = self.inner.lock();
        note(&self.last, Location::caller());
        guard
    }

    /// As std's, counted where it succeeds.
    #[track_caller]
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        let guard = self.inner.try_lock()?;
        note(&self.last, Location::caller());
        Ok(guard)
    }

    /// As std's.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.inner.get_mut()
    }

    /// As std's.
    pub fn is_poisoned(&self) -> bool {
        self.inner.is_poisoned()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// `std::sync::RwLock`. A reader counts as a writer does: it writes to the lock's word.
pub struct RwLock<T: ?Sized> {
    last: AtomicU64,
    inner: std::sync::RwLock<T>,
}

impl<T> RwLock<T> {
    /// As std's.
    pub const fn new(value: T) -> Self {
        Self { last: AtomicU64::new(0), inner: std::sync::RwLock::new(value) }
    }
}

impl<T: ?Sized> RwLock<T> {
    /// As std's, counted.
    #[track_caller]
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        let guard = self.inner.read();
        note(&self.last, Location::caller());
        guard
    }

    /// As std's, counted where it succeeds.
    #[track_caller]
    pub fn try_read(&self) -> TryLockResult<RwLockReadGuard<'_, T>> {
        let guard = self.inner.try_read()?;
        note(&self.last, Location::caller());
        Ok(guard)
    }

    /// As std's, counted.
    #[track_caller]
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        let guard = self.inner.write();
        note(&self.last, Location::caller());
        guard
    }

    /// As std's, counted where it succeeds.
    #[track_caller]
    pub fn try_write(&self) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        let guard = self.inner.try_write()?;
        note(&self.last, Location::caller());
        Ok(guard)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
