//! A node's seats: who is next, what a limit that changes does, and what is parked. Order alone; races are the models'.
#![expect(clippy::unwrap_used, reason = "tests: a panic is a failed test")]

use std::task::{Context, Poll, Waker};

use crate::ids::{CellId, NodeId};
use crate::slots::{Cell, Grant, Limit, NodeWord, Queue, Taken, Waiting, Wants};
use crate::sync::Arc;

/// A node with a loaded cell and a queue for each of some models.
struct Herd {
    node: Arc<NodeWord>,
    cells: Vec<Arc<Cell>>,
    queues: Vec<Arc<Queue>>,
}

fn herd(models: u32, slots: Option<u32>) -> Herd {
    let node = Arc::new(NodeWord::new());
    node.set_up(true);
    let cells: Vec<_> =
        (0..models).map(|at| Arc::new(Cell::new(CellId(at), NodeId(0), Arc::clone(&node), Limit::Hard(2)))).collect();
    let queues: Vec<_> = (0..models).map(|_| Arc::new(Queue::new(64))).collect();
    for (cell, queue) in cells.iter().zip(&queues) {
        cell.mark_loaded(1);
        cell.link(Arc::clone(queue));
    }
    node.set_slots(slots, cells.iter());
    Herd { node, cells, queues }
}

impl Herd {
    /// Joins the queue of a model, and looks.
    fn join(&self, at: usize) -> Waiting {
        let mut waiting = Waiting::join(&self.queues[at], Wants::ANY).unwrap();
        assert!(self.look(&mut waiting, at).is_none());
        waiting
    }

    fn look(&self, waiting: &mut Waiting, at: usize) -> Option<Arc<Cell>> {
        let mut take = || Some(&self.cells[at]).filter(|cell| cell.try_take_warm()).cloned();
        match waiting.poll_grant(&mut Context::from_waker(Waker::noop()), &mut take) {
            Poll::Ready(Grant::Slot { cell, .. }) => Some(cell),
            Poll::Ready(Grant::Refused) => panic!("refused"),
            Poll::Pending => None,
        }
    }

    /// The models in the order in which they are served, one seat going round; and the rest at the end.
    fn order(&self, mut waiting: Vec<(usize, Waiting)>) -> Vec<usize> {
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let got: Vec<_> = (0..waiting.len())
                .rev()
                .filter_map(|i| {
                    let (at, one) = &mut waiting[i];
                    let cell = self.look(one, *at)?;
                    Some((waiting.remove(i).0, cell))
                })
                .collect();
            assert_eq!(got.len(), 1, "one seat, one holder");
            for (at, cell) in got {
                assert!(Arc::ptr_eq(&cell, &self.cells[at]));
                order.push(at);
                cell.release();
            }
        }
        order
    }
}

#[test]
fn models_take_turns_whatever_their_queues() {
    let herd = herd(3, Some(1));
    assert!(herd.cells[0].try_take_warm());
    let waiting = [0, 0, 0, 0, 2, 2, 1].map(|at| (at, herd.join(at))).into();
    herd.cells[0].release();
    let order = herd.order(waiting);
    assert_eq!(order, [0, 1, 2, 0, 2, 0, 0]);
    assert_eq!(herd.node.seats(), 0);
}

#[test]
fn the_limit_holds_over_all_models_and_a_new_one_serves_at_once() {
    let herd = herd(2, Some(2));
    assert!(herd.cells[0].try_take_warm() && herd.cells[1].try_take_warm());
    assert!(!herd.cells[0].try_take_warm() && !herd.cells[1].try_take_warm(), "each has a slot, the node no seat");
    let mut waiting = [0, 1].map(|at| (at, herd.join(at)));
    herd.node.set_slots(Some(3), herd.cells.iter());
    let served = waiting.each_mut().map(|(at, one)| herd.look(one, *at).is_some());
    assert_eq!((served.iter().filter(|one| **one).count(), herd.node.seats()), (1, 3));
    herd.node.set_slots(None, herd.cells.iter());
    let served = waiting.each_mut().map(|(at, one)| herd.look(one, *at).is_some());
    assert_eq!((served, herd.node.seats()), ([true; 2], 4));
}

#[test]
fn a_lowered_limit_is_reached_by_giving_back() {
    let herd = herd(2, Some(3));
    assert!((0..2).all(|_| herd.cells[0].try_take_warm()) && herd.cells[1].try_take_warm());
    herd.node.set_slots(Some(1), herd.cells.iter());
    let mut waiting = herd.join(1);
    for left in [2, 1] {
        herd.cells[0].release();
        assert_eq!((herd.node.seats(), herd.look(&mut waiting, 1).is_some()), (left, false));
    }
    herd.cells[1].release();
    assert!(herd.look(&mut waiting, 1).is_some());
    assert_eq!(herd.node.seats(), 1);
}

#[test]
fn a_seat_that_others_wait_for_is_not_for_new_requests() {
    let herd = herd(2, Some(1));
    assert!(herd.cells[0].try_take_warm() && !herd.node.takes_new());
    let mut waiting = herd.join(1);
    herd.cells[0].release();
    assert!(herd.look(&mut waiting, 1).is_some() && !herd.node.takes_new());
    // Nobody waits any more: who gives back finds that out.
    herd.cells[1].release();
    assert!(herd.node.takes_new());
}

#[test]
fn a_load_has_its_turn_behind_the_cells() {
    let herd = herd(2, Some(1));
    let cold = Arc::new(Cell::new(CellId(9), NodeId(0), Arc::clone(&herd.node), Limit::Hard(2)));
    assert!(herd.cells[0].try_take_warm());
    let mut waiting = [0, 1, 0].map(|at| (at, herd.join(at)));
    herd.node.ask_seat();
    let mut served = |holder: usize| {
        herd.cells[holder].release();
        waiting.each_mut().map(|(at, one)| herd.look(one, *at).is_some())
    };
    assert_eq!(served(0), [true, false, false]);
    assert_eq!(served(0), [true, true, false]);
    assert!(!herd.node.is_parked());
    assert_eq!(served(1), [true, true, false]);
    assert!(herd.node.is_parked() && herd.node.seats() == 1 && !herd.node.takes_new());
    assert!(!cold.try_take_cold(1), "the seat is the control thread's");
    assert!(cold.try_take_cold_for_waiter(1) && !herd.node.is_parked());
    cold.return_unused(Taken::Cold);
    assert_eq!(waiting.each_mut().map(|(at, one)| herd.look(one, *at).is_some()), [true; 3]);
}

#[test]
fn a_seat_parked_in_vain_goes_to_who_waits() {
    let herd = herd(1, Some(1));
    assert!(herd.cells[0].try_take_warm());
    herd.node.ask_seat();
    herd.cells[0].release();
    let mut waiting = herd.join(0);
    assert!(herd.node.is_parked());
    herd.node.unpark();
    assert!(herd.look(&mut waiting, 0).is_some());
    herd.node.unpark();
    assert_eq!(herd.node.seats(), 1);
}

#[test]
fn requests_for_unknown_names_take_no_seat() {
    let herd = herd(1, Some(1));
    let any = Arc::new(Cell::any(CellId(9), NodeId(0), Arc::clone(&herd.node)));
    assert!(any.try_take_unbounded() && herd.cells[0].try_take_warm() && any.try_take_unbounded());
    assert_eq!((herd.node.seats(), herd.node.work()), (1, 3));
    any.release();
    any.release();
    herd.cells[0].release();
    assert_eq!((herd.node.seats(), herd.node.work()), (0, 0));
}
