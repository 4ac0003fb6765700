//! Allocations of what a bench times, counted on the side: whole numbers, the same on every machine.
//!
//! Brings the counting allocator as the bench's global one; it costs an allocation one relaxed load while it is not armed.

#[path = "../../tests/support/allocations.rs"]
#[expect(dead_code, reason = "stacks are for the test")]
mod allocations;

use herdgate::sync::spawn_thread;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Prints how often `work` allocates once it is warm.
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
