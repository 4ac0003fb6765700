//! What accounting costs away from the workers, and the little it costs on them.
//!
//! - `record`: one event: meters, the pair's row and the ring. The part a worker pays for.
//! - `fold`: ring to rows, one tick's drain of 10,000 events of 50 models on 20 nodes (uniform: the worst case for
//!   folding), no store. **The number that matters is events per second**: at least 1,000,000.
//! - `commit`: one tick as it is at 5,000 requests a second: 500 events over those 1,000 (node, model), folded and
//!   committed to LMDB in a temporary directory, flush included. **Times ten is the share of a core**; the budget is 2 %
//!   of CPU, while the figure here is wall time, with the disk in it: `commit/memory` is the same without LMDB.
//! - `commit/quiet`: a tick in which nothing happened.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "support/counted.rs"]
mod counted;
#[path = "support/event.rs"]
mod event;

use std::hint::black_box;

use counted::print_allocations;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use event::{MODELS, NODES, outcome};
use herdgate::clock::Clock;
use herdgate::ids::WorkerId;
use herdgate::sync::Arc;
use herdgate::usage::core::{Core, Links};
use herdgate::usage::counters::PairCounters;
use herdgate::usage::fold::Fold;
use herdgate::usage::ledger::opener;
use herdgate::usage::meters::Meters;
use herdgate::usage::names::Names;
use herdgate::usage::recorder::{Recorder, Ring};
use herdgate::usage::writer::{Desk, Opener, Writer};

/// Events of a tick at 5,000 requests a second.
const TICK_EVENTS: u32 = 500;
const FOLD_EVENTS: u32 = 10_000;
/// 2026-03-01 12:00:00 UTC.
const NOON: u64 = 1_772_366_400_000;

/// A ledger without threads.
struct Bench {
    clock: Clock,
    recorder: Recorder,
    core: Core,
    desk: Desk,
    _commands: flume::Sender<herdgate::usage::core::Command>,
    next: u32,
}

impl Bench {
    fn new(opener: Opener) -> Self {
        let nodes: Vec<String> = (0..NODES).map(|node| format!("http://10.0.0.{node}:11434")).collect();
        let names = Arc::new(Names::new(&nodes, &[], 1000));
        for model in 0..MODELS {
            let _ = names.model(&format!("model-{model}:latest"));
        }
        let (clock, rings) = (Clock::manual(NOON), Ring::for_workers(1, 65_536));
        let recorder = Recorder::new(WorkerId(0), rings[0].clone(), Arc::new(Meters::new(1)));
        let mut writer = Writer::new(names, opener);
        let opened = writer.open().unwrap();
        let (commands, commands_rx) = flume::bounded(1);
        let (jobs, jobs_rx) = flume::bounded(4);
        let (reports_tx, reports) = flume::bounded(4);
        let core = Core::new(Links::new((rings, clock.clone()), commands_rx, (jobs, reports)), opened);
        let mut bench =
            Self { clock, recorder, core, desk: Desk::new(writer, jobs_rx, reports_tx), _commands: commands, next: 0 };
        // Every name known, every row read once: the steady state.
        for _ in 0..20 {
            bench.record();
            bench.tick();
        }
        bench
    }

    fn record(&mut self) {
        for _ in 0..TICK_EVENTS {
            self.recorder.record(&outcome(self.clock.minute(), self.next), None);
            self.next = self.next.wrapping_add(1);
        }
    }

    /// One tick of both threads.
    fn tick(&mut self) {
        self.clock.advance(100);
        black_box(self.core.step());
        while self.desk.work_one() {}
    }
}

fn record(c: &mut Criterion) {
    let (ring, meters, clock) = (Arc::new(Ring::new(1 << 16)), Arc::new(Meters::new(1)), Clock::manual(NOON));
    let recorder = Recorder::new(WorkerId(0), ring.clone(), meters);
    let (pair, event) = (PairCounters::new(1), outcome(clock.minute(), 1));
    print_allocations("ledger/record", move || {
        let (ring, meters) = (Arc::new(Ring::new(1 << 16)), Arc::new(Meters::new(1)));
        let (recorder, pair) = (Recorder::new(WorkerId(0), ring, meters), PairCounters::new(1));
        move || recorder.record(&event, Some(&pair))
    });
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("record", |b| {
        b.iter_batched(
            || ring.drain(|_| {}),
            |_| {
                for _ in 0..1000 {
                    recorder.record(black_box(&event), Some(&pair));
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn fold(c: &mut Criterion) {
    let (ring, clock) = (Ring::new(1 << 16), Clock::manual(NOON));
    let mut fold = Fold::default();
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(u64::from(FOLD_EVENTS)));
    group.bench_function("fold", |b| {
        b.iter_batched(
            || {
                for n in 0..FOLD_EVENTS {
                    assert!(ring.push(&outcome(clock.minute(), n)));
                }
            },
            |()| ring.drain(|event| fold.add(event, 0)),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn commit(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let mut group = c.benchmark_group("ledger/commit");
    let lmdb = opener(Some(dir.path().to_owned()));
    for (name, opener) in [("lmdb", lmdb), ("memory", opener(None))] {
        let mut bench = Bench::new(opener);
        group.throughput(Throughput::Elements(u64::from(TICK_EVENTS)));
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                // Recording is the workers' part: not timed.
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..rounds {
                    bench.record();
                    spent += timed(|| bench.tick());
                }
                spent
            });
        });
    }
    let mut bench = Bench::new(opener(None));
    group.throughput(Throughput::Elements(1));
    group.bench_function("quiet", |b| b.iter(|| bench.tick()));
    group.finish();
}

#[expect(clippy::disallowed_types, reason = "a bench reads the clock")]
fn timed(work: impl FnOnce()) -> std::time::Duration {
    let start = std::time::Instant::now();
    work();
    start.elapsed()
}

criterion_group!(benches, record, fold, commit);
criterion_main!(benches);
