//! Which queues a cell can serve: one in nearly every case, several where names share weights.
//!
//! Written by the poller alone, read at every release; the one queue is reached without a lock, a counter or a guard.

use crate::slots::{Cell, Granted, Queue};
use crate::sync::{Arc, AtomicU32, Hint, OneShot, Ordering, Swapped};

const FIRST: u32 = 1;
const MORE: u32 = 1 << 1;

/// The queues of one cell.
///
/// - Invariants: FIRST is set while the queue in `first` (which is written once) is linked, MORE while `more` holds any.
/// - Orderings: `state` is stored with Release after what it announces, read with Acquire before it. That a release sees
///   a link made meanwhile, or the link's offer the release, is due to the fences described at [`Cell`].
/// - Progress: reads are wait-free with one queue, lock-free with several; one writer.
/// - Model: `slots::model::linked_queue_is_served`, `two_queues_on_one_cell`.
#[derive(Debug)]
pub(crate) struct Links {
    state: AtomicU32,
    first: OneShot<Arc<Queue>>,
    more: Swapped<Vec<Arc<Queue>>>,
    /// Where the next round over several queues starts, so that none starves.
    turn: Hint,
}

impl Links {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU32::new(0), first: OneShot::new(), more: Swapped::new(Vec::new()), turn: Hint::default() }
    }

    /// False if it was linked already.
    pub(crate) fn add(&self, queue: Arc<Queue>) -> bool {
        if self.any(|q| Arc::ptr_eq(q, &queue)) {
            return false;
        }
        match self.first.get() {
            None => {
                self.first.put(queue);
                self.state.fetch_or(FIRST, Ordering::Release);
            }
            Some(first) if Arc::ptr_eq(&first, &queue) => {
                self.state.fetch_or(FIRST, Ordering::Release);
            }
            Some(_) => {
                self.more.update(|more| more.iter().chain([&queue]).cloned().collect());
                self.state.fetch_or(MORE, Ordering::Release);
            }
        }
        true
    }

    pub(crate) fn remove(&self, queue: &Arc<Queue>) {
        if self.first.get().is_some_and(|first| Arc::ptr_eq(&first, queue)) {
            self.state.fetch_and(!FIRST, Ordering::Release);
            return;
        }
        self.more.update(|more| more.iter().filter(|q| !Arc::ptr_eq(q, queue)).cloned().collect());
        if self.more.load().is_empty() {
            self.state.fetch_and(!MORE, Ordering::Release);
        }
    }

    pub(crate) fn any(&self, mut test: impl FnMut(&Arc<Queue>) -> bool) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & FIRST != 0 && self.first.with(&mut test).unwrap_or(false)
            || state & MORE != 0 && self.more.load().iter().any(test)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Queue>> {
        let state = self.state.load(Ordering::Acquire);
        let first = if state & FIRST != 0 { self.first.get() } else { None };
        first.into_iter().chain(self.more.load().iter().cloned()).collect()
    }

    /// Passes a held slot of `cell` to the first waiter of a queue that takes it.
    pub(crate) fn serve(&self, cell: &Cell, slot: &Granted) -> bool {
        if self.state.load(Ordering::Acquire) & MORE == 0 {
            return self.any(|queue| queue.serve(cell, slot));
        }
        let queues = self.all();
        let start = usize::try_from(self.turn.bump()).unwrap_or(0) % queues.len().max(1);
        queues.iter().cycle().skip(start).take(queues.len()).any(|queue| queue.serve(cell, slot))
    }
}
