//! Loom models of a node's total: two models on one node whose seats are fewer than their slots.
//!
//! As in `slots/model.rs`, whose models leave the total out. The twin without marks is the same code with
//! [`without_marks`] set, and must deadlock: then only the cell that gives a seat back looks for waiters.

use std::cell::Cell as Flag;

use loom::thread;

use crate::ids::CellId;
use crate::slots::model::{A, assert_at_rest, explore, open_node, queue, take_of, wait_for_slot};
use crate::slots::{Cell, Limit, NodeWord, Queue, Taken, Waiting, Wants};
use crate::sync::{Arc, AtomicBool, Ordering};

thread_local! {
    static WITHOUT_MARKS: Flag<bool> = const { Flag::new(false) };
    static LEFT_OUT: Flag<bool> = const { Flag::new(true) };
}

/// The twin: nobody leaves a mark.
pub(super) fn without_marks() -> bool {
    WITHOUT_MARKS.get()
}

/// The models of `slots/model.rs` have no limit on a node, and do not branch on its count.
pub(super) fn is_left_out() -> bool {
    LEFT_OUT.get()
}

fn explore_total(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    LEFT_OUT.set(false);
    explore(preemptions, model);
}

/// A node with these seats, and a loaded cell with two slots for each of two models, with their queues.
struct Two {
    node: Arc<NodeWord>,
    cells: [Arc<Cell>; 2],
    queues: [Arc<Queue>; 2],
}

impl Two {
    fn new(slots: Option<u32>) -> Self {
        Self::with_limits(slots, [Limit::Hard(2); 2])
    }

    fn with_limits(slots: Option<u32>, limits: [Limit; 2]) -> Self {
        let node = open_node();
        let cell = |at: u32, limit| Arc::new(Cell::new(CellId(at), A, Arc::clone(&node), limit));
        let cells = [cell(0, limits[0]), cell(1, limits[1])];
        let queues = [queue(), queue()];
        for (cell, queue) in cells.iter().zip(&queues) {
            cell.mark_loaded(1);
            cell.link(Arc::clone(queue));
        }
        node.set_slots(slots, cells.iter());
        Self { node, cells, queues }
    }

    /// With one slot of the first cell held.
    fn held(slots: Option<u32>) -> Self {
        let two = Self::new(slots);
        assert!(two.cells[0].try_take_warm());
        two
    }

    fn in_flight(&self) -> u32 {
        self.cells.iter().map(|cell| cell.view().in_flight).sum()
    }

    fn set(&self, slots: Option<u32>) {
        self.node.set_slots(slots, self.cells.iter());
    }

    fn releaser(&self, at: usize) -> thread::JoinHandle<()> {
        let cell = Arc::clone(&self.cells[at]);
        thread::spawn(move || cell.release())
    }

    fn waiter(&self, at: usize) -> thread::JoinHandle<()> {
        let (queue, cell) = (Arc::clone(&self.queues[at]), Arc::clone(&self.cells[at]));
        thread::spawn(move || wait_for_slot(&queue, &[cell], Wants::ANY).release())
    }

    fn wait(&self, at: usize) -> Arc<Cell> {
        wait_for_slot(&self.queues[at], &[Arc::clone(&self.cells[at])], Wants::ANY)
    }

    fn assert_at_rest(&self) {
        assert_at_rest(&[&self.cells[0], &self.cells[1]], &[&self.queues[0], &self.queues[1]]);
        assert_eq!(self.node.seats(), 0, "seats held at rest");
    }
}

#[test]
fn two_models_one_seat() {
    explore_total(3, || {
        let two = Two::new(Some(1));
        let other = Arc::clone(&two.cells[1]);
        let there = thread::spawn(move || other.try_take_warm());
        let here = two.cells[0].try_take_warm();
        assert!(here ^ there.join().unwrap(), "one seat, one taker");
        assert_eq!((two.in_flight(), two.node.seats()), (1, 1));
    });
}

/// One seat, held by one model, and a waiter of the other: the core of the protocol.
fn seat_goes_to_the_other_model() {
    let two = Two::held(Some(1));
    let releaser = two.releaser(0);
    let got = two.wait(1);
    assert_eq!(two.in_flight(), 1, "above the limit");
    got.release();
    releaser.join().unwrap();
    two.assert_at_rest();
}

#[test]
fn a_freed_seat_serves_the_other_model() {
    explore_total(3, seat_goes_to_the_other_model);
}

#[test]
#[should_panic(expected = "deadlock")]
fn twin_without_marks_loses_the_other_model() {
    WITHOUT_MARKS.set(true);
    explore_total(3, seat_goes_to_the_other_model);
}

#[test]
fn waiters_of_both_models_follow_each_other() {
    explore_total(2, || {
        let two = Two::held(Some(1));
        let waiter = two.waiter(1);
        two.cells[0].release();
        two.wait(0).release();
        waiter.join().unwrap();
        two.assert_at_rest();
    });
}

#[test]
fn waiters_of_both_models_and_a_release_by_three_threads() {
    explore_total(1, || {
        let two = Two::held(Some(1));
        let (waiter, releaser) = (two.waiter(1), two.releaser(0));
        two.wait(0).release();
        waiter.join().unwrap();
        releaser.join().unwrap();
        two.assert_at_rest();
    });
}

#[test]
fn two_seats_freed_at_once_serve_two() {
    explore_total(1, || {
        // Whoever looks first clears the mark; the other must not keep its seat to itself.
        let two = Two::new(Some(2));
        assert!(two.cells[0].try_take_warm() && two.cells[0].try_take_warm());
        let releasers = [two.releaser(0), two.releaser(0)];
        let first = Waiting::join(&two.queues[1], Wants::ANY).unwrap();
        let second = two.wait(1);
        // The first in the queue was served before it, and leaves with what it was given.
        drop(first);
        second.release();
        releasers.into_iter().for_each(|one| one.join().unwrap());
        two.assert_at_rest();
    });
}

#[test]
fn a_waiter_that_leaves_passes_the_seat_on() {
    explore_total(2, || {
        let two = Two::held(Some(1));
        let leaving = Waiting::join(&two.queues[0], Wants::ANY).unwrap();
        let leaver = thread::spawn(move || drop(leaving));
        let releaser = two.releaser(0);
        two.wait(1).release();
        leaver.join().unwrap();
        releaser.join().unwrap();
        two.assert_at_rest();
    });
}

#[test]
fn a_raised_limit_serves_a_waiter() {
    explore_total(3, || {
        let two = Arc::new(Two::held(Some(1)));
        let raiser = {
            let two = Arc::clone(&two);
            thread::spawn(move || two.set(Some(2)))
        };
        two.wait(1);
        raiser.join().unwrap();
        assert_eq!((two.in_flight(), two.node.seats()), (2, 2));
    });
}

#[test]
fn a_limit_taken_away_serves_a_waiter() {
    explore_total(2, || {
        let two = Arc::new(Two::held(Some(1)));
        let raiser = {
            let two = Arc::clone(&two);
            thread::spawn(move || two.set(None))
        };
        two.wait(1).release();
        raiser.join().unwrap();
        two.cells[0].release();
        two.assert_at_rest();
    });
}

/// Two takers of two models while the limit becomes one.
fn limit_becomes_one(before: Option<u32>) {
    let two = Two::new(before);
    let lowered = Arc::new(AtomicBool::new(false));
    let takers = [0, 1].map(|at| {
        let (cell, lowered) = (Arc::clone(&two.cells[at]), Arc::clone(&lowered));
        thread::spawn(move || {
            let after = lowered.load(Ordering::Acquire);
            (cell.try_take_warm(), after)
        })
    });
    two.set(Some(1));
    lowered.store(true, Ordering::Release);
    let took = takers.map(|one| one.join().unwrap());
    let all = took.iter().filter(|(taken, _)| *taken).count();
    assert_eq!((two.in_flight() as usize, usize::try_from(two.node.seats()).unwrap()), (all, all));
    assert!(all >= 1, "a seat was free throughout");
    assert!(all == 1 || took.iter().any(|(_, after)| !after), "two takes above the new limit");
    assert!(!two.cells[0].try_take_warm());
}

#[test]
fn limit_lowered_while_two_models_take() {
    explore_total(2, || limit_becomes_one(Some(2)));
}

#[test]
fn limit_set_while_two_models_take() {
    explore_total(2, || limit_becomes_one(None));
}

#[test]
fn a_lowered_limit_is_reached_before_a_waiter_is_served() {
    explore_total(2, || {
        let two = Arc::new(Two::held(Some(2)));
        assert!(two.cells[0].try_take_warm());
        two.set(Some(1));
        let releasers = [two.releaser(0), two.releaser(0)];
        let got = two.wait(1);
        assert!(two.in_flight() <= 1, "served above the lowered limit");
        got.release();
        releasers.into_iter().for_each(|one| one.join().unwrap());
        two.assert_at_rest();
    });
}

#[test]
fn a_limit_set_while_a_slot_is_taken_loses_nobody() {
    explore_total(1, || {
        // The take may be taken back, between its slot and its seat; the waiter may meet it there.
        let two = Arc::new(Two::held(None));
        let taker = {
            let cell = Arc::clone(&two.cells[1]);
            thread::spawn(move || {
                if cell.try_take_warm() {
                    cell.release();
                }
            })
        };
        let setter = {
            let two = Arc::clone(&two);
            thread::spawn(move || {
                two.set(Some(1));
                two.cells[0].release();
            })
        };
        two.wait(1).release();
        taker.join().unwrap();
        setter.join().unwrap();
        two.assert_at_rest();
    });
}

#[test]
fn a_seat_without_a_slot_is_passed_on() {
    explore_total(2, || {
        // Two takers and one slot: the loser holds the second seat for a moment, perhaps just when the waiter looks.
        let two = Two::with_limits(Some(2), [Limit::Hard(1), Limit::Hard(2)]);
        let takers = [(); 2].map(|()| {
            let cell = Arc::clone(&two.cells[0]);
            thread::spawn(move || cell.try_take_warm())
        });
        let got = two.wait(1);
        let [one, other] = takers.map(|taker| taker.join().unwrap());
        assert!(one ^ other, "one slot, one taker");
        assert_eq!((two.in_flight(), two.node.seats()), (2, 2));
        got.release();
        two.cells[0].release();
        two.assert_at_rest();
    });
}

#[test]
fn a_seat_parked_for_a_load_is_not_lost() {
    explore_total(2, || {
        let two = Two::held(Some(1));
        let served = Arc::new(AtomicBool::new(false));
        let waiter = {
            let (queue, cell, served) = (Arc::clone(&two.queues[1]), Arc::clone(&two.cells[1]), Arc::clone(&served));
            thread::spawn(move || {
                wait_for_slot(&queue, &[cell], Wants::ANY).release();
                served.store(true, Ordering::Release);
            })
        };
        // The control thread: it asks, and finds nobody to load for whenever it looks again.
        two.node.ask_seat();
        two.cells[0].release();
        while !served.load(Ordering::Acquire) {
            two.node.unpark();
            thread::yield_now();
        }
        waiter.join().unwrap();
        two.node.unpark();
        two.assert_at_rest();
    });
}

#[test]
fn a_load_takes_the_seat_parked_for_it() {
    explore_total(3, || {
        let two = Two::held(Some(1));
        let cold = Arc::new(Cell::new(CellId(2), A, Arc::clone(&two.node), Limit::Hard(1)));
        let releaser = two.releaser(0);
        two.node.ask_seat();
        releaser.join().unwrap();
        assert!(cold.try_take_cold_for_waiter(1), "parked, or free");
        assert_eq!((cold.view().in_flight, two.node.seats()), (1, 1));
        cold.return_unused(Taken::Cold);
        two.assert_at_rest();
    });
}

#[test]
fn a_node_that_reopens_serves_the_other_model() {
    explore_total(1, || {
        let two = Arc::new(Two::held(Some(1)));
        let breaker = {
            let two = Arc::clone(&two);
            thread::spawn(move || {
                two.node.set_up(false);
                two.node.set_up(true);
                two.cells.iter().for_each(Cell::offer);
            })
        };
        let releaser = two.releaser(0);
        two.wait(1).release();
        breaker.join().unwrap();
        releaser.join().unwrap();
        two.assert_at_rest();
    });
}

#[test]
fn without_a_limit_the_total_only_counts() {
    explore_total(2, || {
        let two = Two::held(None);
        let releaser = two.releaser(0);
        let cells = [Arc::clone(&two.cells[0])];
        wait_for_slot(&two.queues[0], &cells, Wants::ANY).release();
        assert!(take_of(&cells, Wants::ANY).is_some());
        releaser.join().unwrap();
        assert_eq!(two.node.seats(), 1);
    });
}
