//! Work on several threads at once, timed as a whole: for the benches that compare under contention.

use std::time::Duration;

use herdgate::sync::{Arc, spawn_thread};

/// Time of the whole process per operation: `threads` threads do `n` each; wall time from a common start to the last
/// one's end, divided by `threads`. On a machine with as many cores, perfect scaling keeps `time * threads` constant.
#[expect(clippy::disallowed_types, reason = "a bench reads the clock and starts its threads together")]
pub(crate) fn share<W: FnMut(u64) + 'static>(
    threads: usize,
    n: u64,
    work: impl Fn(usize) -> W + Send + Sync + 'static,
) -> Duration {
    let start = Arc::new(std::sync::Barrier::new(threads + 1));
    let work = Arc::new(work);
    let running: Vec<_> = (0..threads)
        .map(|thread| {
            let (start, work) = (Arc::clone(&start), Arc::clone(&work));
            spawn_thread("bench", move || {
                let mut work = work(thread);
                start.wait();
                work(n);
                std::time::Instant::now()
            })
            .unwrap()
        })
        .collect();
    start.wait();
    let begun = std::time::Instant::now();
    let ends: Vec<_> = running.into_iter().map(|thread| thread.join().unwrap()).collect();
    ends.into_iter().map(|end| end.duration_since(begun)).max().unwrap() / u32::try_from(threads).unwrap()
}
