//! Loom models of cells, queues, words and permits: every interleaving up to the bound of each model.
//!
//! `RUSTFLAGS="--cfg proxy_loom" LOOM_MAX_PREEMPTIONS=3 cargo test --release --lib model`. A lost wake-up shows as loom's
//! deadlock. The queue, waker and lists are `sync/modelled.rs`, weaker than what runs. The twin without fences is the same
//! code with [`without_fences`] set, and must deadlock. The total of a node is left out here, since nothing depends on it
//! where it has no limit; `node_total/model.rs` explores it.

use std::cell::Cell as Flag;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use loom::future::block_on;
use loom::thread;

use super::{Cell, Grant, Limit, ModelWord, NodeWord, Pair, Permit, Queue, Taken, Waiting, Wants};
use crate::ids::{CellId, ModelId, NodeId, WorkerId};
use crate::sync::{Arc, AtomicBool, AtomicU32, Ordering};
use crate::usage::counters::PairCounters;

thread_local! {
    pub(super) static WITHOUT_FENCES: Flag<bool> = const { Flag::new(false) };
    /// Schedules explored so far.
    static SCHEDULES: Flag<u32> = const { Flag::new(0) };
}

/// The twin: the same code without its pairing fences. Loom runs a model's threads on the thread of the test.
pub(super) fn without_fences() -> bool {
    WITHOUT_FENCES.get()
}

pub(super) const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);

/// Explores with at most `preemptions`, or what the environment asks for if that is less. A model whose threads meet in
/// nothing that loom sees has one schedule and proves nothing: that fails.
pub(super) fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.map_or(preemptions, |asked| asked.min(preemptions)));
    SCHEDULES.set(0);
    builder.check(move || {
        SCHEDULES.set(SCHEDULES.get() + 1);
        model();
    });
    assert!(SCHEDULES.get() > 1, "loom found one schedule only");
}

pub(super) fn open_node() -> Arc<NodeWord> {
    let word = NodeWord::new();
    word.set_up(true);
    Arc::new(word)
}

fn loaded_cell(node: NodeId, limit: Limit) -> Arc<Cell> {
    let cell = Arc::new(Cell::new(CellId(node.0), node, open_node(), limit));
    cell.mark_loaded(1);
    cell
}

/// A loaded cell with a hard limit of one whose slot is taken, linked to `queue`.
fn full_cell(node: NodeId, queue: &Arc<Queue>) -> Arc<Cell> {
    let cell = loaded_cell(node, Limit::Hard(1));
    assert!(cell.try_take_warm());
    cell.link(Arc::clone(queue));
    cell
}

pub(super) fn queue() -> Arc<Queue> {
    Arc::new(Queue::new(8))
}

pub(super) fn take_of(cells: &[Arc<Cell>], wants: Wants) -> Option<Arc<Cell>> {
    cells.iter().find(|c| wants.accepts(c) && (c.try_take_warm() || c.try_take_over())).cloned()
}

fn wait(queue: &Arc<Queue>, cells: &[Arc<Cell>], wants: Wants) -> Grant {
    let mut waiting = Waiting::join(queue, wants).unwrap();
    block_on(poll_fn(|cx| waiting.poll_grant(cx, &mut || take_of(cells, wants))))
}

pub(super) fn wait_for_slot(queue: &Arc<Queue>, cells: &[Arc<Cell>], wants: Wants) -> Arc<Cell> {
    slot_of(wait(queue, cells, wants))
}

pub(super) fn slot_of(grant: Grant) -> Arc<Cell> {
    match grant {
        Grant::Slot { cell, .. } => cell,
        Grant::Refused => panic!("refused"),
    }
}

pub(super) fn assert_at_rest(cells: &[&Arc<Cell>], queues: &[&Arc<Queue>]) {
    for cell in cells {
        assert_eq!(cell.view().in_flight, 0, "slots held at rest");
        assert_eq!(cell.node_word.cold_loads(), 0, "cold loads at rest");
    }
    for queue in queues {
        assert_eq!(queue.len(), 0, "waiters at rest");
        queue.settle();
    }
}

#[test]
fn two_takers_one_slot() {
    explore(3, || {
        let cell = loaded_cell(A, Limit::Hard(1));
        let other = Arc::clone(&cell);
        let there = thread::spawn(move || other.try_take_warm());
        let here = cell.try_take_warm();
        assert!(here ^ there.join().unwrap(), "one slot, one taker");
        assert_eq!(cell.view().in_flight, 1);
    });
}

#[test]
fn limit_lowered_while_taking() {
    explore(3, || {
        let cell = loaded_cell(A, Limit::Hard(2));
        let lowered = Arc::new(AtomicBool::new(false));
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let (cell, lowered) = (Arc::clone(&cell), Arc::clone(&lowered));
                thread::spawn(move || {
                    let after = lowered.load(Ordering::Acquire);
                    (cell.try_take_warm(), after)
                })
            })
            .collect();
        cell.set_limit(Limit::Hard(1));
        lowered.store(true, Ordering::Release);
        let took: Vec<_> = takers.into_iter().map(|t| t.join().unwrap()).collect();
        let all = took.iter().filter(|(taken, _)| *taken).count();
        assert_eq!(cell.view().in_flight as usize, all);
        assert!(all >= 1, "a slot was free throughout");
        assert!(all == 1 || took.iter().any(|(_, after)| !after), "two takes above the lowered limit");
        assert!(!cell.try_take_warm());
    });
}

/// One slot, one release, one waiter: the core of the protocol.
fn release_meets_waiter() {
    let queue = queue();
    let cell = full_cell(A, &queue);
    let releaser = {
        let cell = Arc::clone(&cell);
        thread::spawn(move || cell.release())
    };
    wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
    releaser.join().unwrap();
    assert_at_rest(&[&cell], &[&queue]);
}

#[test]
fn no_wake_is_lost() {
    explore(3, release_meets_waiter);
}

#[test]
#[should_panic(expected = "deadlock")]
fn twin_without_fences_loses_a_wake() {
    WITHOUT_FENCES.set(true);
    explore(3, release_meets_waiter);
}

#[test]
fn two_waiters_one_slot() {
    explore(3, || {
        let queue = queue();
        let cell = full_cell(A, &queue);
        let waiter = {
            let (queue, cell) = (Arc::clone(&queue), Arc::clone(&cell));
            thread::spawn(move || wait_for_slot(&queue, &[cell], Wants::ANY).release())
        };
        cell.release();
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        waiter.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn two_waiters_one_slot_by_three_threads() {
    explore(1, || {
        let queue = queue();
        let cell = full_cell(A, &queue);
        let waiter = {
            let (queue, cell) = (Arc::clone(&queue), Arc::clone(&cell));
            thread::spawn(move || wait_for_slot(&queue, &[cell], Wants::ANY).release())
        };
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        waiter.join().unwrap();
        releaser.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn cancelled_waiter_passes_its_grant_on() {
    explore(3, || {
        let queue = queue();
        let cell = full_cell(A, &queue);
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        // Joins, looks once, leaves.
        let cells = [Arc::clone(&cell)];
        let mut leaver = Waiting::join(&queue, Wants::ANY).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Grant::Slot { cell, .. }) = leaver.poll_grant(&mut cx, &mut || take_of(&cells, Wants::ANY)) {
            cell.release();
        }
        drop(leaver);
        wait_for_slot(&queue, &cells, Wants::ANY).release();
        releaser.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn cancelled_waiter_costs_the_next_nothing() {
    explore(2, || {
        let queue = queue();
        let cell = full_cell(A, &queue);
        let first = Waiting::join(&queue, Wants::ANY).unwrap();
        let leaver = thread::spawn(move || drop(first));
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        leaver.join().unwrap();
        releaser.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

/// No slack: the second entry that lingers makes its canceller sweep, and the waiter moves to the head's place.
fn swept() -> (Arc<Queue>, Arc<Cell>, Waiting) {
    let queue = Arc::new(Queue::with_slack(8, 0));
    let cell = full_cell(A, &queue);
    let [first, second] = [(); 2].map(|()| Waiting::join(&queue, Wants::ANY).unwrap());
    drop(first);
    (queue, cell, second)
}

#[test]
fn swept_queue_loses_nobody() {
    explore(3, || {
        let (queue, cell, second) = swept();
        let mut waiting = Waiting::join(&queue, Wants::ANY).unwrap();
        let leaver = thread::spawn(move || drop(second));
        cell.release();
        let cells = [Arc::clone(&cell)];
        slot_of(block_on(poll_fn(|cx| waiting.poll_grant(cx, &mut || take_of(&cells, Wants::ANY))))).release();
        drop(waiting);
        leaver.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn swept_queue_loses_nobody_by_three_threads() {
    explore(1, || {
        let (queue, cell, second) = swept();
        let leaver = thread::spawn(move || drop(second));
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        leaver.join().unwrap();
        releaser.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

/// A waiter meets capacity that no release makes.
fn capacity_appears(prepare: fn(&Arc<Queue>) -> Arc<Cell>, make: fn(&Arc<Cell>, &Arc<Queue>)) {
    let queue = queue();
    let cell = prepare(&queue);
    let before = cell.view().in_flight;
    let maker = {
        let (cell, queue) = (Arc::clone(&cell), Arc::clone(&queue));
        thread::spawn(move || make(&cell, &queue))
    };
    let got = wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY);
    maker.join().unwrap();
    assert_eq!(got.view().in_flight, before + 1);
}

fn closed_cell(queue: &Arc<Queue>) -> Arc<Cell> {
    let cell = loaded_cell(A, Limit::Hard(1));
    cell.link(Arc::clone(queue));
    cell.node_word.set_up(false);
    cell
}

fn open_and_offer(cell: &Arc<Cell>, _: &Arc<Queue>) {
    cell.node_word.set_up(true);
    cell.offer();
}

#[test]
fn raised_limit_serves_a_waiter() {
    explore(3, || capacity_appears(|q| full_cell(A, q), |cell, _| cell.set_limit(Limit::Hard(2))));
}

#[test]
fn opened_node_serves_a_waiter() {
    explore(3, || capacity_appears(closed_cell, open_and_offer));
}

#[test]
#[should_panic(expected = "deadlock")]
fn twin_without_fences_opens_in_vain() {
    WITHOUT_FENCES.set(true);
    explore(3, || capacity_appears(closed_cell, open_and_offer));
}

#[test]
fn loaded_copy_serves_a_waiter() {
    let unloaded = |queue: &Arc<Queue>| {
        let cell = Arc::new(Cell::new(CellId(0), A, open_node(), Limit::Hard(1)));
        cell.link(Arc::clone(queue));
        cell
    };
    explore(3, move || capacity_appears(unloaded, |cell, _| cell.mark_loaded(2)));
}

#[test]
fn soft_copy_serves_beyond_its_limit_once_loaded() {
    let loading = |queue: &Arc<Queue>| {
        let cell = Arc::new(Cell::new(CellId(0), A, open_node(), Limit::Soft(1)));
        assert!(cell.try_take_cold(1));
        cell.link(Arc::clone(queue));
        cell
    };
    explore(3, move || capacity_appears(loading, |cell, _| cell.mark_loaded(2)));
}

#[test]
fn linked_queue_is_served() {
    explore(3, || {
        // Linked while its only slot is on the way back; the waiter's own look does not know the cell yet.
        let queue = queue();
        let cell = loaded_cell(A, Limit::Hard(1));
        assert!(cell.try_take_warm());
        let mut waiting = Waiting::join(&queue, Wants::ANY).unwrap();
        let linker = {
            let (cell, queue) = (Arc::clone(&cell), Arc::clone(&queue));
            thread::spawn(move || cell.link(queue))
        };
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        let grant = block_on(poll_fn(|cx| waiting.poll_grant(cx, &mut || None)));
        slot_of(grant).release();
        drop(waiting);
        linker.join().unwrap();
        releaser.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

/// A Snapshot that lists the cell is published, then the queue is linked. The waiter decided to wait by an older one; its
/// own look is into the newest, and that is what it is owed: the poller may have looked before it was in the queue.
fn joined_by_an_old_snapshot() {
    let queue = queue();
    let cell = loaded_cell(A, Limit::Hard(1));
    // The Snapshot in force; what publishes it orders less here than where it runs.
    let published = Arc::new(AtomicU32::new(0));
    let poller = {
        let (queue, cell, published) = (Arc::clone(&queue), Arc::clone(&cell), Arc::clone(&published));
        thread::spawn(move || {
            published.store(1, Ordering::Relaxed);
            cell.link(queue);
        })
    };
    let mut waiting = Waiting::join(&queue, Wants::ANY).unwrap();
    let mut look = || (published.load(Ordering::Relaxed) == 1 && cell.try_take_warm()).then(|| Arc::clone(&cell));
    let grant = block_on(poll_fn(|cx| waiting.poll_grant(cx, &mut look)));
    slot_of(grant).release();
    drop(waiting);
    poller.join().unwrap();
    assert_at_rest(&[&cell], &[&queue]);
}

#[test]
fn waiter_with_an_old_snapshot_looks_into_the_new_one() {
    explore(3, joined_by_an_old_snapshot);
}

#[test]
#[should_panic(expected = "deadlock")]
fn twin_without_fences_misses_the_new_snapshot() {
    WITHOUT_FENCES.set(true);
    explore(3, joined_by_an_old_snapshot);
}

#[test]
fn waiter_with_an_old_snapshot_follows_its_model() {
    explore(1, || {
        // The model's weights get another cell (a new Snapshot, then the links) while the old one's only slot comes back.
        // Who is granted a slot that the newest Snapshot does not list returns it and decides again, as the proxy does.
        let queue = queue();
        let (old, new) = (full_cell(A, &queue), loaded_cell(A, Limit::Hard(1)));
        let published = Arc::new(AtomicU32::new(0));
        let poller = {
            let (queue, old, new) = (Arc::clone(&queue), Arc::clone(&old), Arc::clone(&new));
            let published = Arc::clone(&published);
            thread::spawn(move || {
                published.store(1, Ordering::Release);
                old.unlink(&queue);
                new.link(queue);
            })
        };
        let releaser = {
            let old = Arc::clone(&old);
            thread::spawn(move || old.release())
        };
        let listed = || if published.load(Ordering::Acquire) == 0 { &old } else { &new };
        loop {
            let mut waiting = Waiting::join(&queue, Wants::ANY).unwrap();
            let mut look = || Some(listed()).filter(|cell| cell.try_take_warm()).cloned();
            let got = slot_of(block_on(poll_fn(|cx| waiting.poll_grant(cx, &mut look))));
            if Arc::ptr_eq(&got, listed()) {
                break got.release();
            }
            got.return_unused(Taken::Warm);
        }
        poller.join().unwrap();
        releaser.join().unwrap();
        assert_at_rest(&[&old, &new], &[&queue]);
    });
}

#[test]
fn retried_waiter_gets_the_other_node() {
    explore(2, || {
        let queue = queue();
        let cells = [full_cell(A, &queue), full_cell(B, &queue)];
        let releasers = cells.clone().map(|cell| thread::spawn(move || cell.release()));
        let wants = Wants { native: false, tried: [A, NodeId::NONE, NodeId::NONE] };
        let got = wait_for_slot(&queue, &cells, wants);
        assert_eq!(got.node, B, "a node that failed this request");
        got.release();
        let [one, two] = releasers;
        one.join().unwrap();
        two.join().unwrap();
        assert_at_rest(&[&cells[0], &cells[1]], &[&queue]);
    });
}

#[test]
fn retried_waiter_hides_nobody() {
    explore(2, || {
        // The head cannot use A; the one behind can, and must get it from the only release.
        let queue = queue();
        let cell = full_cell(A, &queue);
        let wants = Wants { native: false, tried: [A, NodeId::NONE, NodeId::NONE] };
        let head = Waiting::join(&queue, wants).unwrap();
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        releaser.join().unwrap();
        assert_eq!(queue.len(), 1);
        drop(head);
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn native_waiter_set_aside_by_another_kind_is_served() {
    explore(2, || {
        // The `/v1`-only cell pops it and must not serve it, perhaps just when the other cell looks.
        let queue = queue();
        let word = NodeWord::v1_only();
        word.set_up(true);
        let v1_only = Arc::new(Cell::new(CellId(0), A, Arc::new(word), Limit::Hard(1)));
        v1_only.mark_resident();
        assert!(v1_only.try_take_warm());
        v1_only.link(Arc::clone(&queue));
        let cells = [v1_only, full_cell(B, &queue)];
        let releasers = cells.clone().map(|cell| thread::spawn(move || cell.release()));
        let got = wait_for_slot(&queue, &cells, Wants { native: true, ..Wants::ANY });
        assert_eq!(got.node, B, "a node of another dialect");
        got.release();
        let [one, two] = releasers;
        one.join().unwrap();
        two.join().unwrap();
        assert_at_rest(&[&cells[0], &cells[1]], &[&queue]);
    });
}

#[test]
fn refusal_races_a_grant() {
    explore(3, || {
        let queue = queue();
        let cell = full_cell(A, &queue);
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        let mut waiting = Waiting::join(&queue, Wants::ANY).unwrap();
        let refuser = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.refuse_all())
        };
        let cells = [Arc::clone(&cell)];
        match block_on(poll_fn(|cx| waiting.poll_grant(cx, &mut || take_of(&cells, Wants::ANY)))) {
            Grant::Slot { cell, .. } => cell.release(),
            Grant::Refused => {}
        }
        drop(waiting);
        releaser.join().unwrap();
        refuser.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn two_queues_on_one_cell() {
    explore(3, || {
        let queues = [queue(), queue()];
        let cell = full_cell(A, &queues[0]);
        cell.link(Arc::clone(&queues[1]));
        let mut first = Waiting::join(&queues[0], Wants::ANY).unwrap();
        let waiter = {
            let (queue, cell) = (Arc::clone(&queues[1]), Arc::clone(&cell));
            thread::spawn(move || wait_for_slot(&queue, &[cell], Wants::ANY).release())
        };
        cell.release();
        let cells = [Arc::clone(&cell)];
        let grant = block_on(poll_fn(|cx| first.poll_grant(cx, &mut || take_of(&cells, Wants::ANY))));
        slot_of(grant).release();
        drop(first);
        waiter.join().unwrap();
        assert_at_rest(&[&cell], &[&queues[0], &queues[1]]);
    });
}

#[test]
fn two_queues_on_one_cell_by_three_threads() {
    explore(1, || {
        let queues = [queue(), queue()];
        let cell = full_cell(A, &queues[0]);
        cell.link(Arc::clone(&queues[1]));
        let waiter = {
            let (queue, cell) = (Arc::clone(&queues[0]), Arc::clone(&cell));
            thread::spawn(move || wait_for_slot(&queue, &[cell], Wants::ANY).release())
        };
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        wait_for_slot(&queues[1], &[Arc::clone(&cell)], Wants::ANY).release();
        waiter.join().unwrap();
        releaser.join().unwrap();
        assert_at_rest(&[&cell], &[&queues[0], &queues[1]]);
    });
}

#[test]
fn node_reopens_while_a_slot_is_released() {
    explore(2, || {
        let queue = queue();
        let cell = full_cell(A, &queue);
        let breaker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                cell.node_word.set_suspect(true);
                cell.node_word.set_suspect(false);
                cell.offer();
            })
        };
        let releaser = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.release())
        };
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        breaker.join().unwrap();
        releaser.join().unwrap();
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn closed_node_hands_nothing_over() {
    explore(3, || {
        let queue = queue();
        let cell = full_cell(A, &queue);
        let closed = Arc::new(AtomicBool::new(false));
        let breaker = {
            let (cell, closed) = (Arc::clone(&cell), Arc::clone(&closed));
            thread::spawn(move || {
                cell.node_word.set_up(false);
                closed.store(true, Ordering::Release);
            })
        };
        let waiting = Waiting::join(&queue, Wants::ANY).unwrap();
        let was_closed = closed.load(Ordering::Acquire);
        cell.release();
        assert!(!was_closed || queue.len() == 1, "a hand-over from a closed node");
        breaker.join().unwrap();
        drop(waiting);
        assert_eq!(cell.view().in_flight, 0);
    });
}

#[test]
fn one_load_at_a_time() {
    explore(3, || {
        let word = Arc::new(ModelWord::new());
        let loads = Arc::new(AtomicU32::new(0));
        let load = |node: NodeId, word: &ModelWord, loads: &AtomicU32| {
            if word.try_begin_load(node, 5) {
                assert_eq!(loads.fetch_add(1, Ordering::Relaxed), 0, "two loads at once");
                word.confirm_load(node);
                loads.fetch_sub(1, Ordering::Relaxed);
                word.end_load(node);
            }
        };
        let other = {
            let (word, loads) = (Arc::clone(&word), Arc::clone(&loads));
            thread::spawn(move || load(B, &word, &loads))
        };
        load(A, &word, &loads);
        other.join().unwrap();
        assert_eq!(word.loading(), None);
    });
}

#[test]
fn load_under_way_is_not_ended_by_another() {
    explore(3, || {
        let word = Arc::new(ModelWord::new());
        let cell = Arc::new(Cell::new(CellId(0), A, open_node(), Limit::Hard(1)));
        let looker = {
            let (word, cell) = (Arc::clone(&word), Arc::clone(&cell));
            thread::spawn(move || word.end_if_over(&cell))
        };
        assert!(word.try_begin_load(A, 5));
        assert!(cell.try_take_cold(5));
        word.confirm_load(A);
        looker.join().unwrap();
        assert!(word.loading().is_some(), "a load that goes on was ended");
        cell.mark_load_failed();
        word.end_if_over(&cell);
        assert_eq!(word.loading(), None);
    });
}

#[test]
fn recovering_node_loads_one() {
    explore(3, || {
        let node = open_node();
        node.set_recovering(true);
        let cell = |id| Arc::new(Cell::new(CellId(id), A, Arc::clone(&node), Limit::Hard(1)));
        let (one, two) = (cell(0), cell(1));
        let other = thread::spawn(move || two.try_take_cold(1));
        let here = one.try_take_cold(1);
        assert!(here ^ other.join().unwrap());
        assert_eq!(node.cold_loads(), 1);
    });
}

#[test]
fn unloading_spares_what_succeeded_since() {
    explore(3, || {
        let cell = loaded_cell(A, Limit::Hard(1));
        let poller = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.mark_unloaded(5))
        };
        let taken = cell.try_take_warm();
        if taken {
            cell.mark_loaded(10);
            cell.release();
        }
        poller.join().unwrap();
        assert_eq!(cell.view().loaded, taken, "asked before the success, forgotten after it");
    });
}

fn pair(cell: &Arc<Cell>) -> Arc<Pair> {
    Arc::new(Pair {
        cell: Arc::clone(cell),
        counters: Arc::new(PairCounters::new(2)),
        model: ModelId(2),
        model_word: Some(Arc::new(ModelWord::new())),
    })
}

fn cold_permit(pair: &Arc<Pair>) -> Permit {
    let word = pair.model_word.as_ref().unwrap();
    assert!(word.try_begin_load(A, 1));
    assert!(pair.cell.try_take_cold(1));
    word.confirm_load(A);
    Permit::new(Arc::clone(pair), WorkerId(0), Taken::Cold)
}

#[test]
fn cold_permit_loads_for_the_waiter() {
    explore(3, || {
        let queue = queue();
        let cell = Arc::new(Cell::new(CellId(0), A, open_node(), Limit::Hard(1)));
        cell.link(Arc::clone(&queue));
        let pair = pair(&cell);
        let mut permit = cold_permit(&pair);
        let loader = thread::spawn(move || {
            permit.succeeded(3);
            drop(permit);
        });
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        loader.join().unwrap();
        assert!(cell.view().loaded && !cell.view().loading);
        assert_eq!(pair.model_word.as_ref().unwrap().loading(), None);
        assert_eq!(pair.counters.in_flight(), 0);
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn dropped_cold_permit_meets_a_poll_that_shows_the_model() {
    explore(2, || {
        let queue = queue();
        let cell = Arc::new(Cell::new(CellId(0), A, open_node(), Limit::Hard(1)));
        cell.link(Arc::clone(&queue));
        let pair = pair(&cell);
        let permit = cold_permit(&pair);
        let poller = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.mark_loaded(3))
        };
        let dropper = thread::spawn(move || drop(permit));
        wait_for_slot(&queue, &[Arc::clone(&cell)], Wants::ANY).release();
        poller.join().unwrap();
        dropper.join().unwrap();
        assert!(cell.view().loaded && !cell.view().loading, "a failed attempt unloads nothing");
        assert_at_rest(&[&cell], &[&queue]);
    });
}

#[test]
fn cold_grant_is_undone_by_a_waiter_that_leaves() {
    explore(3, || {
        let queue = queue();
        let cell = Arc::new(Cell::new(CellId(0), A, open_node(), Limit::Hard(1)));
        let pair = pair(&cell);
        let word = Arc::clone(pair.model_word.as_ref().unwrap());
        assert!(word.try_begin_load(A, 1));
        assert!(cell.try_take_cold(1));
        word.confirm_load(A);
        let waiting = Waiting::join(&queue, Wants::ANY).unwrap();
        let granter = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let slot = super::Granted::Cold(Arc::clone(&pair));
                if !queue.serve(&pair.cell, &slot) {
                    slot.undo();
                }
            })
        };
        drop(waiting);
        granter.join().unwrap();
        assert!(!cell.view().loading);
        assert_eq!(word.loading(), None);
        assert_at_rest(&[&cell], &[&queue]);
    });
}
