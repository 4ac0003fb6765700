//! A global allocator that counts what worker threads allocate while it is armed, and where. For `tests/counting.rs`
//! alone.
//!
//! Only threads named `worker-…` are counted: the client, the node, ledger and control threads are not.
//! What is counted are calls that may take memory: alloc, alloc_zeroed and realloc. Each one's call stack is kept
//! when asked for ([`arm_with_stacks`]); nothing that is done for it is counted.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]
#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait; every call goes to the system's allocator as it came")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;

use herdgate::sync::{AtomicBool, AtomicU64, Ordering};

/// The allocator; `#[global_allocator]` of the test that counts.
pub(crate) struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static WITH_STACKS: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[expect(
    clippy::disallowed_types,
    reason = "cold: a worker waits for nobody while stacks are taken, but that is no measurement"
)]
static STACKS: std::sync::Mutex<Vec<Taken>> = std::sync::Mutex::new(Vec::new());

/// One allocation and who asked for it.
pub(crate) struct Taken {
    pub(crate) bytes: usize,
    pub(crate) stack: Backtrace,
}

/// What is known of the calling thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    Unknown,
    /// Its name is being read, or a stack taken: both allocate.
    Asking,
    Worker,
    Other,
}

thread_local! {
    static THREAD: Cell<Thread> = const { Cell::new(Thread::Unknown) };
}

/// Starts to count from zero.
pub(crate) fn arm() {
    CALLS.store(0, Ordering::Relaxed);
    BYTES.store(0, Ordering::Relaxed);
    ARMED.store(true, Ordering::Release);
}

/// Stops; calls and bytes since [`arm`].
pub(crate) fn disarm() -> (u64, u64) {
    ARMED.store(false, Ordering::Release);
    (CALLS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed))
}

/// Starts to count from zero, and keeps the stack of each allocation.
pub(crate) fn arm_with_stacks() {
    WITH_STACKS.store(true, Ordering::Relaxed);
    arm();
}

/// Stops; the allocations since [`arm_with_stacks`] in their order.
pub(crate) fn disarm_with_stacks() -> Vec<Taken> {
    disarm();
    WITH_STACKS.store(false, Ordering::Relaxed);
    std::mem::take(&mut STACKS.lock().unwrap())
}

fn note(bytes: usize) {
    if !ARMED.load(Ordering::Relaxed) {
        return;
    }
    let counted = THREAD.try_with(|thread| {
        if thread.get() == Thread::Unknown {
            thread.set(Thread::Asking);
            let name = std::fs::read("/proc/thread-self/comm").unwrap_or_default();
            thread.set(if name.starts_with(b"worker-") { Thread::Worker } else { Thread::Other });
        }
        thread.get() == Thread::Worker
    });
    if counted == Ok(true) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
        if WITH_STACKS.load(Ordering::Relaxed) {
            keep(bytes);
        }
    }
}

/// Takes the stack; what that allocates is not counted, nor does it come back here.
fn keep(bytes: usize) {
    THREAD.set(Thread::Asking);
    // Symbols are looked up when it is printed.
    STACKS.lock().unwrap().push(Taken { bytes, stack: Backtrace::force_capture() });
    THREAD.set(Thread::Worker);
}

// SAFETY: every call is passed on unchanged, so the system's allocator keeps the contract; counting touches only
// atomics and a thread-local without destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are System's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}
