//! The scenarios of the loom models on real threads: late binding under load, with cancellation, retries, refusals,
//! changing limits and nodes that close. Bounded work, no clock: what is asserted is counts and order.
//!
//! Properties: a hard limit, a model's or a node's, is never exceeded (peak = limit); nothing is held at rest; no waiter is lost (a lost one hangs
//! the test); the slots are served in the order of the queue; counters agree with permits.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use herdgate::ids::{CellId, ModelId, NodeId, WorkerId};
use herdgate::slots::{Cell, Grant, Limit, ModelWord, NodeWord, Pair, Permit, Queue, Taken, Waiting, Wants};
use herdgate::sync::{Arc, AtomicBool, AtomicU32, Ordering, SegQueue, spawn_local, spawn_thread};
use herdgate::usage::counters::PairCounters;

const THREADS: usize = 4;

/// A cell and the most that was ever seen in it at once, as its holders count.
struct Watched {
    pair: Arc<Pair>,
    holders: AtomicU32,
    peak: AtomicU32,
}

impl Watched {
    fn new(node: u32, limit: Limit, queues: &[Arc<Queue>]) -> Arc<Self> {
        let word = Arc::new(NodeWord::new());
        word.set_up(true);
        Self::on(&word, node, limit, queues)
    }

    fn on(word: &Arc<NodeWord>, node: u32, limit: Limit, queues: &[Arc<Queue>]) -> Arc<Self> {
        let cell = Arc::new(Cell::new(CellId(node), NodeId(node), Arc::clone(word), limit));
        cell.mark_loaded(1);
        queues.iter().for_each(|q| cell.link(Arc::clone(q)));
        let counters = Arc::new(PairCounters::new(THREADS));
        let pair = Pair { cell, counters, model: ModelId(2), model_word: Some(Arc::new(ModelWord::new())) };
        Arc::new(Self { pair: Arc::new(pair), holders: AtomicU32::new(0), peak: AtomicU32::new(0) })
    }

    fn cell(&self) -> &Arc<Cell> {
        &self.pair.cell
    }

    /// Holds the slot over a few turns of the runtime.
    async fn hold(&self, worker: usize, turns: u32) {
        self.hold_and(worker, turns, || {}).await;
    }

    /// The same; `end` is called before it is given back.
    async fn hold_and(&self, worker: usize, turns: u32, end: impl FnOnce()) {
        let permit = Permit::new(Arc::clone(&self.pair), WorkerId(worker), Taken::Warm);
        let now = self.holders.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        self.holders.fetch_sub(1, Ordering::SeqCst);
        end();
        drop(permit);
    }

    fn assert_at_rest(&self) {
        assert_eq!(self.cell().view().in_flight, 0, "slots held at rest");
        assert_eq!(self.pair.counters.in_flight(), 0, "counted at rest");
        assert_eq!(self.cell().node_word.work(), 0, "work of the node at rest");
    }
}

/// Runs `task` as many tasks on each of [`THREADS`] threads, each a runtime of its own, and waits for all.
fn on_threads<F: Future<Output = ()> + 'static>(
    tasks: usize,
    task: impl Fn(usize, usize) -> F + Send + Clone + 'static,
) {
    let threads: Vec<_> = (0..THREADS)
        .map(|worker| {
            let task = task.clone();
            spawn_thread("worker", move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                tokio::task::LocalSet::new().block_on(&runtime, async {
                    let running: Vec<_> = (0..tasks).map(|n| spawn_local(task(worker, n))).collect();
                    for one in running {
                        one.await.unwrap();
                    }
                });
            })
            .unwrap()
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

fn take(cells: &[Arc<Watched>], wants: Wants, start: usize) -> Option<Arc<Cell>> {
    let mut order = cells.iter().cycle().skip(start % cells.len()).take(cells.len());
    order
        .find(|c| wants.accepts(c.cell()) && (c.cell().try_take_warm() || c.cell().try_take_over()))
        .map(|c| Arc::clone(c.cell()))
}

/// A slot, waiting if need be; `None` if refused.
async fn acquire(queue: &Arc<Queue>, cells: &[Arc<Watched>], wants: Wants, start: usize) -> Option<Arc<Cell>> {
    if (queue.is_empty() || wants.is_retry())
        && let Some(cell) = take(cells, wants, start)
    {
        return Some(cell);
    }
    let mut waiting = Waiting::join(queue, wants).unwrap();
    match poll_fn(|cx| waiting.poll_grant(cx, &mut || take(cells, wants, start))).await {
        Grant::Slot { cell, .. } => Some(cell),
        Grant::Refused => None,
    }
}

/// Joins, looks a few times, leaves.
async fn lose_patience(queue: &Arc<Queue>, cells: &[Arc<Watched>], looks: usize) {
    let mut waiting = Waiting::join(queue, Wants::ANY).unwrap();
    for _ in 0..looks {
        let look = poll_fn(|cx| Poll::Ready(waiting.poll_grant(cx, &mut || take(cells, Wants::ANY, looks)))).await;
        if let Poll::Ready(grant) = look {
            if let Grant::Slot { cell, .. } = grant {
                cell.release();
            }
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn watched<'a>(cells: &'a [Arc<Watched>], cell: &Arc<Cell>) -> &'a Watched {
    cells.iter().find(|c| Arc::ptr_eq(c.cell(), cell)).expect("a cell of the herd")
}

/// A number that looks random and is the same in every run.
fn mixed(worker: usize, task: usize, round: usize) -> usize {
    (worker * 7_919 + task * 104_729 + round * 1_299_709).wrapping_mul(0x9E37_79B9) >> 7
}

#[test]
fn i1_peak_is_the_limit_and_rest_is_zero() {
    let queue = Arc::new(Queue::new(1_024));
    let cells: Arc<[_]> = (0..3).map(|node| Watched::new(node, Limit::Hard(4), &[Arc::clone(&queue)])).collect();
    let (at_work, q) = (Arc::clone(&cells), Arc::clone(&queue));
    on_threads(25, move |worker, task| {
        let (cells, queue) = (Arc::clone(&at_work), Arc::clone(&q));
        async move {
            for round in 0..300 {
                let random = mixed(worker, task, round);
                if random.is_multiple_of(16) {
                    lose_patience(&queue, &cells, random % 3).await;
                    continue;
                }
                let tried = if random % 16 == 1 { NodeId(0) } else { NodeId::NONE };
                let wants = Wants { native: false, tried: [tried, NodeId::NONE, NodeId::NONE] };
                let cell = acquire(&queue, &cells, wants, random).await.expect("nobody refuses");
                assert!(wants.accepts(&cell), "a node that failed this request");
                watched(&cells, &cell).hold(worker, 1 + random as u32 % 3).await;
            }
        }
    });
    for cell in cells.iter() {
        assert_eq!(cell.peak.load(Ordering::SeqCst), 4, "peak");
        cell.assert_at_rest();
    }
    assert_eq!(queue.len(), 0);
}

#[test]
fn two_names_share_a_cell_and_neither_starves() {
    let queues = [Arc::new(Queue::new(1_024)), Arc::new(Queue::new(1_024))];
    let shared = Watched::new(0, Limit::Hard(2), &queues);
    let own = Watched::new(1, Limit::Hard(1), &queues[..1]);
    let (a, b) = (Arc::clone(&shared), Arc::clone(&own));
    let q = queues.clone();
    on_threads(12, move |worker, task| {
        let (shared, own, queues) = (Arc::clone(&a), Arc::clone(&b), q.clone());
        async move {
            let name = task % 2;
            let cells = if name == 0 { vec![shared, own] } else { vec![shared] };
            for round in 0..300 {
                let random = mixed(worker, task, round);
                let cell = acquire(&queues[name], &cells, Wants::ANY, random).await.expect("nobody refuses");
                watched(&cells, &cell).hold(worker, 1).await;
            }
        }
    });
    assert!(shared.peak.load(Ordering::SeqCst) <= 2 && own.peak.load(Ordering::SeqCst) <= 1);
    shared.assert_at_rest();
    own.assert_at_rest();
}

#[test]
fn limits_move_and_nodes_close_without_losing_anybody() {
    const LIMIT_MAX: u32 = 3;
    let queue = Arc::new(Queue::new(1_024));
    let cells: Arc<[_]> = (0..2).map(|node| Watched::new(node, Limit::Hard(1), &[Arc::clone(&queue)])).collect();
    let done = Arc::new(AtomicBool::new(false));
    let control = {
        let (cells, done) = (Arc::clone(&cells), Arc::clone(&done));
        spawn_thread("control", move || {
            for round in 0u32.. {
                let cell = cells[round as usize % 2].cell();
                cell.set_limit(Limit::Hard(1 + round % LIMIT_MAX));
                cell.node_word.set_up(round % 3 != 0);
                cell.offer();
                if done.load(Ordering::Acquire) {
                    break;
                }
                std::thread::yield_now();
            }
            for cell in cells.iter() {
                cell.cell().node_word.set_up(true);
                cell.cell().offer();
            }
        })
        .unwrap()
    };
    let (at_work, q) = (Arc::clone(&cells), Arc::clone(&queue));
    on_threads(10, move |worker, task| {
        let (cells, queue) = (Arc::clone(&at_work), Arc::clone(&q));
        async move {
            for round in 0..200 {
                let random = mixed(worker, task, round);
                let cell = acquire(&queue, &cells, Wants::ANY, random).await.expect("nobody refuses");
                watched(&cells, &cell).hold(worker, 1).await;
            }
        }
    });
    done.store(true, Ordering::Release);
    control.join().unwrap();
    for cell in cells.iter() {
        assert!(cell.peak.load(Ordering::SeqCst) <= LIMIT_MAX);
        cell.assert_at_rest();
    }
    assert_eq!(queue.len(), 0);
}

/// Three models with two slots each on one node, and who holds what of all of them together.
struct Shared {
    word: Arc<NodeWord>,
    queues: Vec<Arc<Queue>>,
    cells: Vec<Arc<Watched>>,
    holders: AtomicU32,
    peak: AtomicU32,
    /// Grants of each model while the other two wait as well.
    grants: [AtomicU32; 3],
}

impl Shared {
    fn new(slots: u32) -> Arc<Self> {
        let word = Arc::new(NodeWord::new());
        word.set_up(true);
        let queues: Vec<_> = (0..3).map(|_| Arc::new(Queue::new(1_024))).collect();
        let cells: Vec<_> =
            (0..3).map(|at| Watched::on(&word, at, Limit::Hard(2), &queues[at as usize..=at as usize])).collect();
        word.set_slots(Some(slots), cells.iter().map(|one| one.cell()));
        Arc::new(Self {
            word,
            queues,
            cells,
            holders: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            grants: Default::default(),
        })
    }

    fn limit(&self, slots: Option<u32>) {
        self.word.set_slots(slots, self.cells.iter().map(|one| one.cell()));
    }

    async fn serve(&self, worker: usize, task: usize, round: usize) {
        let (model, random) = (task % 3, mixed(worker, task, round));
        let cells = &self.cells[model..=model];
        if random.is_multiple_of(16) {
            return lose_patience(&self.queues[model], cells, random % 3).await;
        }
        let cell = acquire(&self.queues[model], cells, Wants::ANY, random).await.expect("nobody refuses");
        assert!(Arc::ptr_eq(&cell, cells[0].cell()), "a slot of another model");
        if self.queues.iter().all(|queue| !queue.is_empty()) {
            self.grants[model].fetch_add(1, Ordering::SeqCst);
        }
        let now = self.holders.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        cells[0].hold_and(worker, 1 + random as u32 % 3, || _ = self.holders.fetch_sub(1, Ordering::SeqCst)).await;
    }

    fn assert_at_rest(&self) {
        self.cells.iter().for_each(|one| one.assert_at_rest());
        assert_eq!((self.word.seats(), self.queues.iter().map(|one| one.len()).sum::<u32>()), (0, 0));
    }
}

#[test]
fn i1_the_limit_of_a_node_holds_over_its_models_and_none_starves() {
    let node = Shared::new(3);
    let at_work = Arc::clone(&node);
    on_threads(24, move |worker, task| {
        let node = Arc::clone(&at_work);
        async move {
            for round in 0..300 {
                node.serve(worker, task, round).await;
            }
        }
    });
    assert_eq!(node.peak.load(Ordering::SeqCst), 3, "peak");
    let grants = node.grants.each_ref().map(|one| one.load(Ordering::SeqCst));
    let (least, most) = (*grants.iter().min().unwrap(), *grants.iter().max().unwrap());
    assert!(least > 0 && most < 3 * least, "turns while all three wait: {grants:?}");
    node.assert_at_rest();
}

#[test]
fn the_limit_of_a_node_comes_moves_and_goes_without_losing_anybody() {
    let node = Shared::new(1);
    let done = Arc::new(AtomicBool::new(false));
    let control = {
        let (node, done) = (Arc::clone(&node), Arc::clone(&done));
        spawn_thread("control", move || {
            for round in 0u32.. {
                node.limit([Some(2), None, Some(1), Some(3)][round as usize % 4]);
                if round % 3 == 0 {
                    node.word.set_up(round % 2 == 0);
                }
                node.cells.iter().for_each(|one| one.cell().offer());
                if done.load(Ordering::Acquire) {
                    break;
                }
                std::thread::yield_now();
            }
            node.word.set_up(true);
            node.cells.iter().for_each(|one| one.cell().offer());
        })
        .unwrap()
    };
    let at_work = Arc::clone(&node);
    on_threads(12, move |worker, task| {
        let node = Arc::clone(&at_work);
        async move {
            for round in 0..200 {
                node.serve(worker, task, round).await;
            }
        }
    });
    done.store(true, Ordering::Release);
    control.join().unwrap();
    assert!(node.peak.load(Ordering::SeqCst) <= 6, "the models' own limits");
    node.assert_at_rest();
}

#[test]
fn everyone_is_either_served_or_refused() {
    let queue = Arc::new(Queue::new(1_024));
    let cells: Arc<[_]> = [Watched::new(0, Limit::Hard(2), &[Arc::clone(&queue)])].into();
    let served = Arc::new(AtomicU32::new(0));
    let refused = Arc::new(AtomicU32::new(0));
    let counts = (Arc::clone(&served), Arc::clone(&refused));
    let (at_work, q) = (Arc::clone(&cells), Arc::clone(&queue));
    on_threads(10, move |worker, task| {
        let (cells, queue, counts) = (Arc::clone(&at_work), Arc::clone(&q), counts.clone());
        async move {
            for round in 0..200 {
                if mixed(worker, task, round).is_multiple_of(64) {
                    queue.refuse_all();
                }
                match acquire(&queue, &cells, Wants::ANY, 0).await {
                    Some(cell) => {
                        counts.0.fetch_add(1, Ordering::SeqCst);
                        watched(&cells, &cell).hold(worker, 2).await;
                    }
                    None => {
                        counts.1.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        }
    });
    let (served, refused) = (served.load(Ordering::SeqCst), refused.load(Ordering::SeqCst));
    assert_eq!(served + refused, u32::try_from(THREADS * 10 * 200).unwrap());
    assert!(served > 0 && refused > 0, "{served} served, {refused} refused");
    cells[0].assert_at_rest();
    assert_eq!(queue.len(), 0);
}

#[test]
fn waiters_are_served_in_order_across_threads() {
    let queue = Arc::new(Queue::new(1_024));
    let cell = Watched::new(0, Limit::Hard(1), &[Arc::clone(&queue)]);
    assert!(cell.cell().try_take_warm());
    let order = Arc::new(SegQueue::new());
    // They join in order here and wait on different threads; with one slot, grants follow one another.
    let mut waiting: Vec<Vec<(usize, Waiting)>> = (0..THREADS).map(|_| Vec::new()).collect();
    for n in 0..200 {
        waiting[n % THREADS].push((n, Waiting::join(&queue, Wants::ANY).unwrap()));
    }
    let threads: Vec<_> = waiting
        .into_iter()
        .map(|mine| {
            let order = Arc::clone(&order);
            spawn_thread("worker", move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    for (n, mut place) in mine {
                        match poll_fn(|cx| place.poll_grant(cx, &mut || None)).await {
                            Grant::Slot { cell, .. } => {
                                order.push(n);
                                cell.release();
                            }
                            Grant::Refused => panic!("nobody refuses"),
                        }
                    }
                });
            })
            .unwrap()
        })
        .collect();
    cell.cell().release();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let order: Vec<_> = std::iter::from_fn(|| order.pop()).collect();
    assert_eq!(order, (0..200).collect::<Vec<_>>());
    cell.assert_at_rest();
}

#[test]
fn a_look_that_serves_another_looks_again() {
    // Both slots are free and neither waiter has looked: what the second finds first is the first one's, who will not look
    // any more then. Nobody else knows that the other slot is free.
    let queue = Arc::new(Queue::new(8));
    let cells = [0, 1].map(|node| Watched::new(node, Limit::Hard(1), &[Arc::clone(&queue)]));
    let mut waiting = [(); 2].map(|()| Waiting::join(&queue, Wants::ANY).unwrap());
    let mut look = |at: usize| {
        let mut cx = Context::from_waker(Waker::noop());
        waiting[at].poll_grant(&mut cx, &mut || take(&cells, Wants::ANY, 0)).is_ready()
    };
    assert!(look(1) && look(0));
}

#[test]
fn retried_waiters_stand_before_new_ones() {
    let queue = Arc::new(Queue::new(8));
    let cell = Watched::new(0, Limit::Hard(1), &[Arc::clone(&queue)]);
    assert!(cell.cell().try_take_warm());
    let mut first = Waiting::join(&queue, Wants::ANY).unwrap();
    let mut retry =
        Waiting::join(&queue, Wants { native: false, tried: [NodeId(9), NodeId::NONE, NodeId::NONE] }).unwrap();
    let look = |place: &mut Waiting| place.poll_grant(&mut Context::from_waker(Waker::noop()), &mut || None);
    cell.cell().release();
    assert!(look(&mut first).is_pending());
    let Poll::Ready(Grant::Slot { cell, .. }) = look(&mut retry) else { panic!("not served") };
    cell.release();
    assert!(look(&mut first).is_ready());
}

#[test]
fn queue_counts_the_living_and_forgets_the_dead() {
    let queue = Arc::new(Queue::new(100));
    let cell = Watched::new(0, Limit::Hard(1), &[Arc::clone(&queue)]);
    assert!(cell.cell().try_take_warm());
    let mut kept: Vec<_> = (0..99).map(|_| Waiting::join(&queue, Wants::ANY).unwrap()).collect();
    let witness = Arc::new(());
    for _ in 0..10_000 {
        // A cancelled waiter frees its place, and its waker with the task behind it.
        let mut place = Waiting::join(&queue, Wants::ANY).expect("a free place");
        let waker = Waker::from(Arc::new(Task(Arc::clone(&witness))));
        assert!(place.poll_grant(&mut Context::from_waker(&waker), &mut || None).is_pending());
        assert!(Waiting::join(&queue, Wants::ANY).is_err(), "the bound");
    }
    assert_eq!(Arc::strong_count(&witness), 1, "a task outlives its wait");
    assert_eq!(queue.len(), 99);
    assert!(queue.entries() <= 2 * 100 + 64 + 99, "{} entries linger", queue.entries());
    // Order survived the sweeping.
    let look = |place: &mut Waiting| place.poll_grant(&mut Context::from_waker(Waker::noop()), &mut || None);
    for place in &mut kept {
        cell.cell().release();
        let Poll::Ready(Grant::Slot { .. }) = look(place) else { panic!("out of order") };
    }
    cell.cell().release();
    cell.assert_at_rest();
}

struct Task(#[expect(dead_code, reason = "held, so that a leak is seen")] Arc<()>);

impl std::task::Wake for Task {
    fn wake(self: Arc<Self>) {}
}
