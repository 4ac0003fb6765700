//! The lock-free state and the locked baseline (`perf/locked`: the ancestor's scheme) side by side, in one run.
//!
//! Times are the whole process' per operation: wall time over threads over operations each ([`threads::share`]), so a
//! figure that falls as threads are added scales, and one that rises is a queue. **The number that matters is the ratio
//! of the two at the same thread count**; absolute times move with the machine.
//!
//! - `reserve/…/T`: what a request asks of the state: a node for a model that 8 nodes have loaded, counted there, and given
//!   back. `free` is `pick` + `Permit`; `locked` is as the ancestor does it, states and their JSON included; `locked-quiet`
//!   makes states only for readers, of which there are none: the locks alone.
//! - `reserve-fleet/…/N`: the same on one thread for fleets of 8, 64 and 1,000 nodes.
//! - `read/…/T`: which of 8 nodes have the model and have it loaded, while the facts are replaced a thousand times a
//!   second: one generation through a cached pointer, against a lock round per node and list.
//! - `token/…/T`: requests' tokens, from the request to the sums and rows that wait to be written: ring and fold, against
//!   queue, worker, three locks and a state for each. T producers at once, then the one consumer; both count. The figure is
//!   events per second (one iteration is a batch from every producer).
//! - `publish/…/S`: one change made visible to S readers. `free-request` is the part a request pays, whoever reads;
//!   `free-state` what the control thread pays at most 20 times a second; `locked` what every change costs its request.
//!
//! Allocations per operation are counted first and printed: they are exact.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "support/counted.rs"]
mod counted;
#[path = "support/event.rs"]
mod event;
#[path = "support/herd.rs"]
mod herd;
#[path = "support/threads.rs"]
mod threads;

use std::hint::black_box;
use std::time::Duration;

use arc_swap::ArcSwap;
use counted::print_allocations;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use event::{outcome, place};
use herdgate::admin::usage_state;
use herdgate::clock::Clock;
use herdgate::config::{self, Sources};
use herdgate::fleet::{Model, Snapshot};
use herdgate::gate::Gate;
use herdgate::ids::{UnixMinute, WorkerId};
use herdgate::live::Live;
use herdgate::routing::{Ask, Choice, pick};
use herdgate::slots::{Limit, Permit};
use herdgate::sync::{Arc, AtomicBool, Ordering, spawn_thread};
use herdgate::usage::fold::Fold;
use herdgate::usage::meters::Meters;
use herdgate::usage::recorder::{Recorder, Ring};
use herdgate_locked::{Event, Locked, Models, Name, Publishing};
use threads::share;

const THREADS: [usize; 5] = [1, 2, 4, 8, 16];
const FLEETS: [u32; 3] = [8, 64, 1_000];
const READERS: [usize; 3] = [0, 1, 50];
/// Of every copy: nothing waits, nothing is refused, in either state.
const LIMIT: u32 = 1_000;
/// A batch of one producer; fits its ring.
const EVENTS: u64 = 4_096;
const NOON: u64 = 1_772_366_400;

/// One worker's view of the lock-free state.
struct Free {
    snapshot: Arc<Snapshot>,
    model: Arc<Model>,
}

impl Free {
    fn new(nodes: u32, workers: usize) -> Arc<Self> {
        let (snapshot, model) = herd::herd(nodes, Limit::Soft(LIMIT), workers);
        model.candidates.iter().for_each(|candidate| candidate.pair.cell.mark_loaded(1));
        // Something is in flight everywhere: a choice has to look at all of them.
        model.candidates.iter().for_each(|candidate| assert!(candidate.pair.cell.try_take_warm()));
        Arc::new(Self { snapshot: Arc::new(snapshot), model })
    }

    fn serve(&self, worker: WorkerId) {
        let ask = Ask { native: true, tried: &[], now: 1, spill_after: 10_000 };
        let Choice::Go { candidate, taken } = pick(&self.snapshot, &self.model, &ask) else {
            panic!("room everywhere")
        };
        drop(black_box(Permit::new(Arc::clone(&self.model.candidates[candidate].pair), worker, taken)));
    }
}

/// The ancestor's state.
struct Baseline {
    locked: Locked<()>,
    nodes: Vec<Name>,
    model: Name,
    models: Models,
}

impl Baseline {
    fn new(nodes: u32, publishing: Publishing) -> Arc<Self> {
        let nodes: Vec<Name> = (0..nodes).map(|at| Name::new(&format!("http://10.0.0.{at}:11434"))).collect();
        let model = Name::new(herd::MODEL);
        let models: Models = Arc::new([model.clone()].into_iter().collect());
        let baseline = Self { locked: Locked::new(publishing), nodes, model, models };
        block_on(async {
            for node in &baseline.nodes {
                baseline.tell(node).await;
                // As in the lock-free state: something is in flight everywhere.
                baseline.reserve(std::slice::from_ref(node)).await;
            }
        });
        Arc::new(baseline)
    }

    async fn tell(&self, node: &Name) {
        self.locked.available.put(node, self.models.clone(), 0).await;
        self.locked.loaded.put(node, self.models.clone(), 0).await;
    }

    async fn reserve(&self, nodes: &[Name]) -> usize {
        let ask = herdgate_locked::Ask { nodes, model: &self.model, limit: u64::from(LIMIT), random: 0, now: 1 };
        self.locked.reserve(&ask, |_| true).await.unwrap().node
    }

    async fn serve(&self) {
        let node = self.reserve(&self.nodes).await;
        self.locked.release(&self.nodes[node], &self.model).await;
    }
}

/// A thread's own runtime, as a worker has.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    runtime().block_on(work)
}

/// `n` rounds of locked work on a thread of its own.
fn rounds<F: Future<Output = ()>>(n: u64, mut work: impl FnMut() -> F) {
    block_on(async {
        for _ in 0..n {
            work().await;
        }
    });
}

fn served_by(baseline: &Arc<Baseline>, thread_count: usize, n: u64) -> Duration {
    let baseline = Arc::clone(baseline);
    share(thread_count, n, move |_| {
        let baseline = Arc::clone(&baseline);
        move |n| rounds(n, || baseline.serve())
    })
}

fn served_free(free: &Arc<Free>, thread_count: usize, n: u64) -> Duration {
    let free = Arc::clone(free);
    share(thread_count, n, move |thread| {
        let free = Arc::clone(&free);
        move |n| (0..n).for_each(|_| free.serve(WorkerId(thread)))
    })
}

fn reserve(c: &mut Criterion) {
    let (free, always) = (Free::new(8, 16), Baseline::new(8, Publishing::Always));
    let quiet = Baseline::new(8, Publishing::WhenRead);
    print_allocations("reserve/free", {
        let free = Arc::clone(&free);
        move || move || free.serve(WorkerId(0))
    });
    for (name, baseline) in [("reserve/locked", &always), ("reserve/locked-quiet", &quiet)] {
        let baseline = Arc::clone(baseline);
        print_allocations(name, move || {
            let runtime = runtime();
            move || runtime.block_on(baseline.serve())
        });
    }
    let mut group = c.benchmark_group("reserve");
    for threads in THREADS {
        group.bench_function(BenchmarkId::new("free", threads), |b| b.iter_custom(|n| served_free(&free, threads, n)));
        for (name, baseline) in [("locked", &always), ("locked-quiet", &quiet)] {
            let bench = |b: &mut criterion::Bencher<'_>| b.iter_custom(|n| served_by(baseline, threads, n));
            group.bench_function(BenchmarkId::new(name, threads), bench);
        }
    }
    group.finish();
    let mut group = c.benchmark_group("reserve-fleet");
    for nodes in FLEETS {
        let (free, always) = (Free::new(nodes, 1), Baseline::new(nodes, Publishing::Always));
        let quiet = Baseline::new(nodes, Publishing::WhenRead);
        group.bench_function(BenchmarkId::new("free", nodes), |b| b.iter_custom(|n| served_free(&free, 1, n)));
        for (name, baseline) in [("locked", &always), ("locked-quiet", &quiet)] {
            let bench = |b: &mut criterion::Bencher<'_>| b.iter_custom(|n| served_by(baseline, 1, n));
            group.bench_function(BenchmarkId::new(name, nodes), bench);
        }
    }
    group.finish();
}

/// Runs `refresh` a thousand times a second on a thread of its own while `measured` runs.
fn while_refreshed<T>(mut refresh: impl FnMut() + Send + 'static, measured: impl FnOnce() -> T) -> T {
    let ends = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ends);
    let thread = spawn_thread("refresh", move || {
        while !seen.load(Ordering::Relaxed) {
            refresh();
            herdgate::sync::sleep(Duration::from_millis(1));
        }
    });
    let result = measured();
    ends.store(true, Ordering::Relaxed);
    thread.unwrap().join().unwrap();
    result
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    let pointer = Arc::new(ArcSwap::new(Arc::clone(&Free::new(8, 1).snapshot)));
    let baseline = Baseline::new(8, Publishing::WhenRead);
    for threads in THREADS {
        group.bench_function(BenchmarkId::new("free", threads), |b| {
            b.iter_custom(|n| {
                let written = Arc::clone(&pointer);
                let next = [Arc::clone(&Free::new(8, 1).snapshot), Arc::clone(&Free::new(8, 1).snapshot)];
                let mut turn = 0;
                let swap = move || {
                    turn ^= 1;
                    drop(written.swap(Arc::clone(&next[turn])));
                };
                let read = Arc::clone(&pointer);
                while_refreshed(swap, || {
                    share(threads, n, move |_| {
                        let mut cache = arc_swap::Cache::new(Arc::clone(&read));
                        move |n| {
                            for _ in 0..n {
                                let model = &cache.load().models[herd::MODEL];
                                let loaded = model.candidates.iter().filter(|c| c.up && c.pair.cell.view().loaded);
                                assert_eq!(black_box(loaded.count()), 8);
                            }
                        }
                    })
                })
            });
        });
        group.bench_function(BenchmarkId::new("locked", threads), |b| {
            b.iter_custom(|n| {
                let (written, read) = (Arc::clone(&baseline), Arc::clone(&baseline));
                let runtime = runtime();
                let tell = move || {
                    runtime.block_on(async {
                        for node in &written.nodes {
                            written.tell(node).await;
                        }
                    });
                };
                while_refreshed(tell, || {
                    share(threads, n, move |_| {
                        let baseline = Arc::clone(&read);
                        move |n| rounds(n, || look(&baseline))
                    })
                })
            });
        });
    }
    group.finish();
}

/// The two lists of every node, a lock round each.
async fn look(baseline: &Baseline) {
    let mut loaded = 0;
    for node in &baseline.nodes {
        let available = baseline.locked.available.get(node, 1).await.models().unwrap();
        if available.contains(&baseline.model) {
            let models = baseline.locked.loaded.get(node, 1).await.models().unwrap();
            loaded += usize::from(models.contains(&baseline.model));
        }
    }
    assert_eq!(black_box(loaded), 8);
}

fn noon() -> UnixMinute {
    UnixMinute(u32::try_from(NOON / 60).unwrap())
}

/// Events are told apart by what fits their place.
fn number(event: u64) -> u32 {
    u32::try_from(event & 0xFFFF_FFFF).unwrap()
}

/// `EVENTS` from each of several producers at once, then ring to rows on this thread.
fn fold_events(threads: usize) -> Duration {
    let (rings, meters) = (Ring::for_workers(threads, 1 << 16), Arc::new(Meters::new(threads)));
    let (produced, mut fold) = (rings.clone(), Fold::default());
    let producing = share(threads, EVENTS, move |thread| {
        let recorder = Recorder::new(WorkerId(thread), Arc::clone(&produced[thread]), Arc::clone(&meters));
        move |n| (0..n).for_each(|event| recorder.record(&outcome(noon(), number(event)), None))
    });
    let mut seen = 0;
    let folding = timed(|| seen = rings.iter().map(|ring| ring.drain(|event| fold.add(event, 0)) as u64).sum());
    assert_eq!(seen, EVENTS * threads as u64);
    producing * u32::try_from(threads).unwrap() + folding
}

/// The same through the token queue, and its worker on this thread.
fn account_events(threads: usize) -> Duration {
    let locked = Arc::new(Locked::<()>::new(Publishing::Always));
    let nodes: Arc<[Name]> = (0..20).map(|at| Name::new(&format!("http://10.0.0.{at}:11434"))).collect();
    let models: Arc<[Name]> = (0..50).map(|at| Name::new(&format!("model-{at}:latest"))).collect();
    let spent = Arc::clone(&locked);
    let producing = share(threads, EVENTS, move |_| {
        let (spent, nodes, models) = (Arc::clone(&spent), Arc::clone(&nodes), Arc::clone(&models));
        move |n| {
            for event in 0..n {
                let (node, model) = place(number(event));
                let (node, model) = (nodes[node as usize].clone(), models[model as usize].clone());
                spent.spend(Event { node, model, input: 100, output: 200, detail: () });
            }
        }
    });
    let runtime = runtime();
    let accounting = timed(|| runtime.block_on(locked.work_off(|| NOON)));
    assert_eq!(runtime.block_on(locked.take_buffers()).series.len() as u64, EVENTS * threads as u64);
    producing * u32::try_from(threads).unwrap() + accounting
}

#[expect(clippy::disallowed_types, reason = "a bench reads the clock")]
fn timed(work: impl FnOnce()) -> Duration {
    let start = std::time::Instant::now();
    work();
    start.elapsed()
}

fn token(c: &mut Criterion) {
    print_allocations("token/free (record)", || {
        let (ring, meters) = (Arc::new(Ring::new(1 << 16)), Arc::new(Meters::new(1)));
        let recorder = Recorder::new(WorkerId(0), Arc::clone(&ring), meters);
        move || {
            recorder.record(&outcome(noon(), 1), None);
            ring.drain(|_| {});
        }
    });
    print_allocations("token/locked (spend and account)", || {
        let locked = Locked::<()>::new(Publishing::Always);
        let (node, model, runtime) = (Name::new("http://10.0.0.1:11434"), Name::new(herd::MODEL), runtime());
        move || {
            let event = Event { node: node.clone(), model: model.clone(), input: 100, output: 200, detail: () };
            locked.spend(event);
            runtime.block_on(locked.work_off(|| NOON));
        }
    });
    let mut group = c.benchmark_group("token");
    group.sample_size(10);
    for threads in THREADS {
        group.throughput(Throughput::Elements(EVENTS * threads as u64));
        let (free, locked) = (BenchmarkId::new("free", threads), BenchmarkId::new("locked", threads));
        group.bench_function(free, |b| b.iter_custom(|n| (0..n).map(|_| fold_events(threads)).sum()));
        group.bench_function(locked, |b| b.iter_custom(|n| (0..n).map(|_| account_events(threads)).sum()));
    }
    group.finish();
}

fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    let free = Free::new(8, 1);
    let pair = Arc::clone(&free.model.candidates[0].pair);
    group.bench_function("free-request", |b| {
        b.iter(|| {
            pair.counters.started(black_box(WorkerId(0)));
            pair.counters.ended(black_box(WorkerId(0)));
        });
    });
    let (gate, _data) = watched_gate();
    for readers in READERS {
        group.bench_function(BenchmarkId::new("free-state", readers), |b| {
            let live = Live::new();
            let streams: Vec<_> = (0..readers).map(|_| live.subscribe()).collect();
            let snapshot = gate.shared.fleet.load();
            b.iter(|| {
                // Something has changed, so the state is a new one.
                snapshot.nodes[0].any.counters.started(WorkerId(0));
                live.publish(&usage_state(&gate.shared));
            });
            drop(streams);
        });
        group.bench_function(BenchmarkId::new("locked", readers), |b| {
            let baseline = Baseline::new(8, Publishing::Always);
            let runtime = runtime();
            let streams: Vec<_> = (0..readers).map(|_| runtime.block_on(baseline.locked.subscribe())).collect();
            // Two changes an iteration.
            b.iter_custom(|n| timed(|| (0..n.div_ceil(2)).for_each(|_| runtime.block_on(change(&baseline)))));
            drop(streams);
        });
    }
    group.finish();
    gate.stop().unwrap();
}

/// One node's count goes up and down: two changes, each with its state.
async fn change(baseline: &Baseline) {
    baseline.reserve(&baseline.nodes[..1]).await;
    baseline.locked.release(&baseline.nodes[0], &baseline.model).await;
}

/// A proxy in front of 8 nodes that are down, each of which has served somebody.
fn watched_gate() -> (Gate, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    let nodes: String =
        (0..8).map(|at| format!("  - {{ url: 'http://127.0.0.{}:9', name: 'node-{at}' }}\n", at + 1)).collect();
    let text = format!("listen: 127.0.0.1:0\ndata: {}\nworkers: 1\nnodes:\n{nodes}", data.path().display());
    let sources = Sources { file: Some(("bench.yaml".into(), text)), ..Sources::default() };
    let gate = Gate::start(config::load(&sources).unwrap().config, Clock::system()).unwrap();
    // Its first Snapshot is there before it starts; no request comes, so this thread may play the worker.
    for node in &gate.shared.fleet.load().nodes {
        node.any.counters.started(WorkerId(0));
    }
    (gate, data)
}

criterion_group!(benches, reserve, read, token, publish);
criterion_main!(benches);
