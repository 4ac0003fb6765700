//! Work on several threads at once, and the allocations of one: for the benches that compare under contention.

use std::time::Duration;

use herdgate::sync::{Arc, spawn_thread};

use crate::allocations;

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

/// Prints how often `work` allocates, once it is warm; whole numbers, so they are the same on every machine.
pub(crate) fn print_allocations<W: FnMut()>(name: &str, make: impl FnOnce() -> W + Send + 'static) {
    const ROUNDS: u64 = 1_000;
    let counted = spawn_thread("worker-bench", move || {
        let mut work = make();
        (0..ROUNDS).for_each(|_| work());
        allocations::arm();
        (0..ROUNDS).for_each(|_| work());
        allocations::disarm()
    });
    let (calls, bytes) = counted.unwrap().join().unwrap();
    let per = |sum: u64| f64::from(u32::try_from(sum).unwrap()) / f64::from(u32::try_from(ROUNDS).unwrap());
    println!("allocations: {name:<40} {:>8.2} calls {:>10.1} bytes", per(calls), per(bytes));
}
