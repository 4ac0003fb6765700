//! What a decision costs: `pick` over 8, 64 and 1,000 candidates, the slot's compare-exchange included, the release not.
//!
//! - `pick/idle`, `pick/busy`: every copy loaded; idle ends at the first candidate, busy has to look at all of them. **The
//!   number that matters is busy**; budgets: 50 ns / 200 ns / 2 us.
//! - `pick/full`: every copy at its hard limit: what it costs to find out that a request waits.
//! - `pick/cold`: loaded nowhere, the node with the least work is chosen.
//! - `pick/contended`: busy, 8 candidates, several threads at once.
//! - `pick_any`: the least busy node for a request that names no known model.
//!
//! Allocations are printed; there are none.
//!
//! Time is the thread's own on a CPU (`/proc/thread-self/schedstat`), so a busy machine distorts little.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "support/counted.rs"]
mod counted;
#[path = "support/herd.rs"]
mod herd;

use std::hint::black_box;
use std::time::Duration;

use counted::print_allocations;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use herdgate::fleet::{Model, Snapshot};
use herdgate::routing::{AnyAsk, Ask, Choice, pick, pick_any};
use herdgate::slots::{Limit, Taken};
use herdgate::sync::{Arc, spawn_thread};

const SIZES: [u32; 3] = [8, 64, 1_000];
/// Decisions timed between two releases: many, since reading the time costs microseconds.
const BATCH: u64 = 4_096;
/// Of every copy, so that a batch hardly moves the relative loads.
const LIMIT: u32 = 16_000_000;

struct Herd {
    snapshot: Snapshot,
    model: Arc<Model>,
}

impl Herd {
    fn new(count: u32, limit: Limit) -> Self {
        let (snapshot, model) = herd::herd(count, limit, 1);
        Self { snapshot, model }
    }

    /// Every copy loaded and under some load, which looks random.
    fn busy(count: u32) -> Self {
        let herd = Self::new(count, Limit::Hard(LIMIT));
        for (at, candidate) in (1u32..).zip(&herd.model.candidates) {
            let cell = &candidate.pair.cell;
            cell.mark_loaded(1);
            cell.set_limit(Limit::Hard(LIMIT - at.wrapping_mul(0x9E37_79B9) % (LIMIT / 2)));
            (0..BATCH).for_each(|_| assert!(cell.try_take_warm()));
        }
        herd
    }

    /// Every copy loaded and at its limit.
    fn full(count: u32) -> Self {
        let herd = Self::new(count, Limit::Hard(1));
        for candidate in &herd.model.candidates {
            candidate.pair.cell.mark_loaded(1);
            assert!(candidate.pair.cell.try_take_warm());
        }
        herd
    }

    fn pick(&self) -> Choice {
        pick(&self.snapshot, &self.model, &Ask { native: true, tried: &[], now: 1, spill_after: 10_000 })
    }

    fn undo(&self, choice: Choice) {
        if let Choice::Go { candidate, taken } = choice {
            let cell = &self.model.candidates[candidate].pair.cell;
            if taken == Taken::Cold {
                cell.mark_load_failed();
                self.model.word.end_load(cell.node);
            }
            cell.release();
        }
    }

    /// Time of `decisions` calls of `pick`, given back between batches while the clock stands.
    fn time(&self, decisions: u64, batch: u64) -> Duration {
        let mut total = Duration::ZERO;
        let mut choices = Vec::with_capacity(usize::try_from(batch).unwrap());
        let mut left = decisions;
        while left > 0 {
            let now = left.min(batch);
            let start = on_cpu();
            for _ in 0..now {
                choices.push(black_box(self.pick()));
            }
            total += on_cpu() - start;
            choices.drain(..).for_each(|c| self.undo(c));
            left -= now;
        }
        total
    }
}

/// Time this thread has spent on a CPU.
fn on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for size in SIZES {
        let idle = Herd::new(size, Limit::Hard(LIMIT));
        idle.model.candidates.iter().for_each(|c| c.pair.cell.mark_loaded(1));
        group.bench_function(BenchmarkId::new("idle", size), |b| b.iter_custom(|n| idle.time(n, BATCH)));
        print_allocations(&format!("pick/busy/{size}"), move || {
            let herd = Herd::busy(size);
            move || herd.undo(herd.pick())
        });
        let busy = Herd::busy(size);
        group.bench_function(BenchmarkId::new("busy", size), |b| b.iter_custom(|n| busy.time(n, BATCH)));
        let full = Herd::full(size);
        group.bench_function(BenchmarkId::new("full", size), |b| b.iter_custom(|n| full.time(n, BATCH)));
        // One decision a batch: the time includes that of reading the clock, some microseconds.
        let cold = Herd::new(size, Limit::Hard(4));
        group.bench_function(BenchmarkId::new("cold", size), |b| b.iter_custom(|n| cold.time(n, 1)));
    }
    for threads in [2u64, 4, 8, 16] {
        let herd = Arc::new(Herd::busy(8));
        group.bench_function(BenchmarkId::new("contended", threads), |b| {
            b.iter_custom(|n| {
                let running: Vec<_> = (0..threads)
                    .map(|_| {
                        let herd = Arc::clone(&herd);
                        spawn_thread("bench", move || herd.time(n, BATCH)).unwrap()
                    })
                    .collect();
                running.into_iter().map(|t| t.join().unwrap()).sum::<Duration>() / u32::try_from(threads).unwrap()
            });
        });
    }
    group.finish();
}

fn any(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick_any");
    for size in SIZES {
        let herd = Herd::new(size, Limit::Soft(4));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                let node = pick_any(&herd.snapshot, &AnyAsk { kind: None, cloud: false, tried: &[] }).unwrap();
                herd.snapshot.node(node).unwrap().any.cell.release();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decisions, any);
criterion_main!(benches);
