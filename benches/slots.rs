//! What a slot costs, alone and when threads meet on it.
//!
//! - `cell/one/N`: N threads take and give back slots of one cell: **the number that matters**, contention at its worst.
//! - `cell/own/N`: the same, a cell for each thread (on one node: what the shared counter of the node's work adds).
//! - `mutex/one/N`: the same decision under a `std::sync::Mutex`: what a lock would cost if nothing else were done under it.
//!   (What the ancestor does under its lock is in `benches/locked.rs`.)
//! - `permit`: a permit made and dropped, counters included.
//! - `wait`: a place in the queue, a hand-over, the grant collected; one thread, so without the wake of another.
//! - `node_work`: the two additions of the node's counter alone, which every take and release pay for ordering by work.
#![expect(clippy::disallowed_types, reason = "a bench reads the clock and measures a lock as the baseline")]
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "support/counted.rs"]
mod counted;

use std::hint::black_box;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use counted::print_allocations;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use herdgate::ids::{CellId, ModelId, NodeId, WorkerId};
use herdgate::slots::{Cell, Grant, Limit, NodeWord, Pair, Permit, Queue, Taken, Waiting, Wants};
use herdgate::sync::{Arc, Hint, spawn_thread};
use herdgate::usage::counters::PairCounters;

const THREADS: [u32; 5] = [1, 2, 4, 8, 16];

fn cell(word: &Arc<NodeWord>, limit: Limit) -> Arc<Cell> {
    word.set_up(true);
    let cell = Arc::new(Cell::new(CellId(0), NodeId(0), Arc::clone(word), limit));
    cell.mark_loaded(1);
    cell.link(Arc::new(Queue::new(1_024)));
    cell
}

/// Time per thread of `n` rounds of `work` on each of `threads`.
fn on_threads<W: FnMut() + Send + 'static>(threads: u32, n: u64, work: impl Fn(u32) -> W) -> Duration {
    let running: Vec<_> = (0..threads)
        .map(|at| {
            let mut work = work(at);
            spawn_thread("bench", move || {
                let start = Instant::now();
                (0..n).for_each(|_| work());
                start.elapsed()
            })
            .unwrap()
        })
        .collect();
    running.into_iter().map(|t| t.join().unwrap()).sum::<Duration>() / threads
}

fn take_and_release(cell: &Arc<Cell>) {
    if black_box(cell.try_take_warm()) {
        cell.release();
    }
}

fn contention(c: &mut Criterion) {
    let mut group = c.benchmark_group("slots");
    for threads in THREADS {
        let word = Arc::new(NodeWord::new());
        let one = cell(&word, Limit::Hard(8));
        group.bench_function(BenchmarkId::new("cell/one", threads), |b| {
            b.iter_custom(|n| {
                on_threads(threads, n, |_| {
                    let cell = Arc::clone(&one);
                    move || take_and_release(&cell)
                })
            });
        });
        let own: Vec<_> = (0..threads).map(|_| cell(&word, Limit::Hard(8))).collect();
        group.bench_function(BenchmarkId::new("cell/own", threads), |b| {
            b.iter_custom(|n| {
                on_threads(threads, n, |at| {
                    let cell = Arc::clone(&own[at as usize]);
                    move || take_and_release(&cell)
                })
            });
        });
        let locked = Arc::new(Mutex::new((0u32, 8u32)));
        group.bench_function(BenchmarkId::new("mutex/one", threads), |b| {
            b.iter_custom(|n| {
                on_threads(threads, n, |_| {
                    let locked = Arc::clone(&locked);
                    move || {
                        let taken = {
                            let mut state = locked.lock().unwrap();
                            let free = state.0 < state.1;
                            state.0 += u32::from(free);
                            free
                        };
                        if black_box(taken) {
                            locked.lock().unwrap().0 -= 1;
                        }
                    }
                })
            });
        });
        let work = Arc::new(Hint::default());
        group.bench_function(BenchmarkId::new("node_work", threads), |b| {
            b.iter_custom(|n| {
                on_threads(threads, n, |_| {
                    let work = Arc::clone(&work);
                    move || {
                        work.add(1);
                        work.sub(1);
                    }
                })
            });
        });
    }
    group.finish();
}

fn permits(c: &mut Criterion) {
    let word = Arc::new(NodeWord::new());
    let cell = cell(&word, Limit::Hard(8));
    let counters = Arc::new(PairCounters::new(1));
    let pair = Arc::new(Pair { cell: Arc::clone(&cell), counters, model: ModelId(2), model_word: None });
    print_allocations("slots/permit", {
        let pair = Arc::clone(&pair);
        move || {
            move || {
                assert!(pair.cell.try_take_warm());
                drop(black_box(Permit::new(Arc::clone(&pair), WorkerId(0), Taken::Warm)));
            }
        }
    });
    c.bench_function("slots/permit", |b| {
        b.iter(|| {
            assert!(cell.try_take_warm());
            drop(black_box(Permit::new(Arc::clone(&pair), WorkerId(0), Taken::Warm)));
        });
    });
}

fn waiting(c: &mut Criterion) {
    let word = Arc::new(NodeWord::new());
    let cell = cell(&word, Limit::Hard(1));
    let queue = Arc::clone(&cell.links()[0]);
    assert!(cell.try_take_warm());
    c.bench_function("slots/wait", |b| {
        b.iter(|| {
            let mut waiting = Waiting::join(&queue, Wants::ANY).unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(waiting.poll_grant(&mut cx, &mut || None).is_pending());
            cell.release();
            let grant = waiting.poll_grant(&mut cx, &mut || None);
            assert!(matches!(grant, Poll::Ready(Grant::Slot { .. })));
        });
    });
}

criterion_group!(benches, contention, permits, waiting);
criterion_main!(benches);
