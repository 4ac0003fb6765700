//! Who waits for a slot: one FIFO per model name, late binding, bounded, cancellable.
//!
//! Requests join through [`Waiting`]; cells serve the queue when a slot is released or offered. A grant moves the slot
//! without touching the cell's count. Must never lock, and never decide who may wait or for how long.

use std::task::{Context, Poll};

use crate::ids::NodeId;
use crate::slots::{Cell, Pair, Taken, pairing_fence};
use crate::sync::{Arc, AtomicBool, AtomicU32, AtomicWaker, Hint, OneShot, Ordering, SegQueue, Swapped};

const WAIT: u32 = 0;
const CLAIMED: u32 = 1;
const GRANTED: u32 = 2;
const REFUSED: u32 = 3;
const GONE: u32 = 4;

/// Cancelled entries tolerated beyond twice the live ones before the queue is swept.
const SLACK: usize = 64;

/// Who a waiter can be served by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wants {
    /// Only a node that speaks Ollama's API.
    pub native: bool,
    /// Nodes that failed it already; filled up with [`NodeId::NONE`]. One that has tried any stands at the head's place.
    pub tried: [NodeId; 3],
}

impl Wants {
    /// Whatever serves the name.
    pub const ANY: Self = Self { native: false, tried: [NodeId::NONE; 3] };

    /// This cell's node may serve it.
    #[must_use]
    pub fn accepts(&self, cell: &Cell) -> bool {
        let wrong_kind = self.native && cell.node_word.is_v1_only();
        !wrong_kind && !self.tried.contains(&cell.node)
    }

    /// Has been to a node before.
    #[must_use]
    pub fn is_retry(&self) -> bool {
        self.tried.iter().any(|&node| node != NodeId::NONE)
    }
}

/// The queue holds as many waiters as it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{bound} requests wait for this model already")]
pub struct QueueFull {
    /// The bound.
    pub bound: u32,
}

/// What a waiter got.
#[derive(Clone, Debug)]
pub enum Grant {
    /// A slot, taken already: make it a [`crate::slots::Permit`] at once, or release it.
    Slot {
        /// Where.
        cell: Arc<Cell>,
        /// `Cold`: this request is to load the model there.
        taken: Taken,
    },
    /// Nothing can serve it any more: 503.
    Refused,
}

/// A held slot on its way to a waiter.
#[derive(Clone, Debug)]
pub(crate) enum Granted {
    Warm(Arc<Cell>),
    Cold(Arc<Pair>),
}

impl Granted {
    /// Gives the slot back; a cold one counts as a failed load.
    pub(crate) fn undo(self) {
        match self {
            Self::Warm(cell) => cell.release(),
            Self::Cold(pair) => {
                pair.load_failed();
                pair.cell.release();
            }
        }
    }
}

/// One waiting request's entry.
///
/// States: `WAIT -> CLAIMED -> GRANTED` by whoever serves it (the claim is the right to write `slot`), `WAIT -> REFUSED`,
/// and `WAIT | CLAIMED -> GONE` by the waiter that leaves; a claimer that finds GONE keeps its slot and serves the next.
/// Orderings: `GRANTED` is stored with Release after `slot`, read with Acquire before it. Progress: leaving, granting and
/// refusing are wait-free.
#[derive(Debug)]
pub(crate) struct Waiter {
    state: AtomicU32,
    waker: AtomicWaker,
    slot: OneShot<Granted>,
    wants: Wants,
}

impl Waiter {
    fn waits(&self) -> bool {
        self.state.load(Ordering::Relaxed) == WAIT
    }

    /// Moves on from WAIT; the winner takes the waiter out of the live count.
    fn leave_wait(&self, queue: &Queue, to: u32) -> Result<(), u32> {
        self.state.compare_exchange(WAIT, to, Ordering::AcqRel, Ordering::Acquire)?;
        queue.live.fetch_sub(1, Ordering::Relaxed);
        queue.natives.sub(u64::from(self.wants.native));
        Ok(())
    }

    fn grant(&self, queue: &Queue, slot: &Granted) -> bool {
        if self.leave_wait(queue, CLAIMED).is_err() {
            return false;
        }
        self.slot.put(slot.clone());
        let granted = self.state.compare_exchange(CLAIMED, GRANTED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if granted {
            self.waker.wake();
        }
        granted
    }

    fn refuse(&self, queue: &Queue) {
        if self.leave_wait(queue, REFUSED).is_ok() {
            self.waker.wake();
        }
    }
}

/// The waiters of one model name.
///
/// Invariants
/// 1. `live` = entries in WAIT, never above `bound`; it rises before an entry is reachable, so zero means nobody waits.
/// 2. An entry in WAIT is in `head`, in `tail`, or held by one thread that will grant it, or put it in `head` and wake it;
///    a woken waiter looks for capacity itself, which covers what it missed while it was held.
/// 3. `head` stands before `tail`: retried requests, and entries that a cell popped but must not serve. Entries of `head`
///    are claimed in place, never popped, so one that waits for another node hides from nobody.
/// 4. FIFO among the entries one cell may serve, new arrivals last. (An entry set aside while another thread serves may be
///    overtaken by those behind it, once.)
/// 5. Memory: a cancelled entry gives back its waker at once, and lingers as an empty shell until popped; whoever cancels
///    sweeps the queue when more than twice the live entries + 64 are in it, so shells never outnumber that.
///
/// Orderings: `live` is Relaxed; what makes it safe to trust is the pair of SeqCst fences described at [`Cell`].
/// Progress: lock-free, but for a popper that may spin while a pusher is between its two writes (`SegQueue`).
/// Model: `slots::model`. Rejected: `Semaphore` and `Notify` (both lock as soon as someone waits); popping and putting back
/// retried entries (a wake for each of them at every release).
#[derive(Debug)]
pub struct Queue {
    /// May change at any time; decides about whoever joins from then on.
    bound: AtomicU32,
    slack: usize,
    live: AtomicU32,
    /// Of those, native ones; only tells the control thread where to look.
    natives: Hint,
    tail: SegQueue<Arc<Waiter>>,
    head: Swapped<Vec<Arc<Waiter>>>,
    sweeping: AtomicBool,
}

impl Queue {
    /// Takes up to `bound` waiters.
    #[must_use]
    pub fn new(bound: u32) -> Self {
        Self::with_slack(bound, SLACK)
    }

    /// Takes up to so many from now on; those who wait already stay.
    pub fn set_bound(&self, bound: u32) {
        self.bound.store(bound, Ordering::Relaxed);
    }

    pub(crate) fn with_slack(bound: u32, slack: usize) -> Self {
        Self {
            bound: AtomicU32::new(bound),
            slack,
            live: AtomicU32::new(0),
            natives: Hint::default(),
            tail: SegQueue::new(),
            head: Swapped::new(Vec::new()),
            sweeping: AtomicBool::new(false),
        }
    }

    /// Waiters now; cancelled ones do not count.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Entries in memory, cancelled ones included; see invariant 5.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.tail.len() + self.head.load().len()
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every wait with [`Grant::Refused`]. One that joins meanwhile may be missed: the caller comes again.
    pub fn refuse_all(&self) {
        self.popped().for_each(|w| w.refuse(self));
        self.refuse_at_head(&|_| true);
    }

    /// Ends the waits at the head's place whose wants `hopeless` confirms.
    pub(crate) fn refuse_at_head(&self, hopeless: &dyn Fn(&Wants) -> bool) {
        self.head.load().iter().filter(|w| w.waits() && hopeless(&w.wants)).for_each(|w| w.refuse(self));
        self.prune_head();
    }

    /// Moves the tail to the head's place, where each entry can be looked at.
    pub(crate) fn set_tail_aside(&self) {
        let stay: Vec<_> = self.popped().filter(|w| w.waits()).collect();
        self.set_aside(&stay);
    }

    /// Some waiter can be served by nodes that speak Ollama's API only.
    pub(crate) fn has_natives(&self) -> bool {
        self.natives.get() > 0
    }

    /// The different wants of retried waiters.
    pub(crate) fn retries(&self) -> Vec<Wants> {
        let mut wants: Vec<Wants> = Vec::new();
        for waiter in self.head.load().iter().filter(|w| w.waits() && w.wants.is_retry()) {
            if !wants.contains(&waiter.wants) {
                wants.push(waiter.wants);
            }
        }
        wants
    }

    /// Somebody may be here that `cell` can serve; exact for the head, and for the tail until it was popped.
    pub(crate) fn wants(&self, cell: &Cell) -> bool {
        !self.is_empty()
            && (!self.tail.is_empty() || self.head.load().iter().any(|w| w.waits() && w.wants.accepts(cell)))
    }

    /// Passes the held slot to the first waiter that may take it; false leaves it with the caller.
    pub(crate) fn serve(&self, cell: &Cell, slot: &Granted) -> bool {
        if self.is_empty() {
            return false;
        }
        let served = self.head.load().iter().any(|w| w.wants.accepts(cell) && w.grant(self, slot));
        if served {
            self.prune_head();
            return true;
        }
        let mut aside = Vec::new();
        let served = loop {
            match self.tail.pop() {
                None => break false,
                Some(w) if !w.wants.accepts(cell) => aside.push(w),
                Some(w) if w.grant(self, slot) => break true,
                Some(_) => {}
            }
        };
        self.set_aside(&aside);
        served
    }

    fn popped(&self) -> impl Iterator<Item = Arc<Waiter>> {
        (0..=self.tail.len()).map_while(|_| self.tail.pop())
    }

    /// Puts popped entries at the head's place and wakes them: a cell may have looked for them while they were held.
    fn set_aside(&self, entries: &[Arc<Waiter>]) {
        if !entries.is_empty() {
            self.head.update(|head| head.iter().filter(|w| w.waits()).chain(entries).cloned().collect());
            entries.iter().for_each(|w| w.waker.wake());
        }
    }

    fn prune_head(&self) {
        let head = self.head.load();
        if head.iter().filter(|w| !w.waits()).count() * 2 > head.len() {
            self.head.update(|head| head.iter().filter(|w| w.waits()).cloned().collect());
        }
    }

    /// Called by whoever cancels: keeps what lingers in proportion to what lives.
    fn tidy(&self) {
        self.prune_head();
        let live = usize::try_from(self.len()).unwrap_or(usize::MAX);
        if self.tail.len() <= live.saturating_mul(2).saturating_add(self.slack)
            || self.sweeping.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return;
        }
        self.set_tail_aside();
        self.sweeping.store(false, Ordering::Release);
    }

    /// Forgets what the model's lists keep for late readers, which would hold queue and cell in a circle.
    #[cfg(all(test, proxy_loom))]
    pub(super) fn settle(&self) {
        self.head.settle();
    }

    fn admit(&self) -> Result<(), QueueFull> {
        let bound = self.bound.load(Ordering::Relaxed);
        let mut live = self.live.load(Ordering::Relaxed);
        loop {
            if live >= bound {
                return Err(QueueFull { bound });
            }
            match self.live.compare_exchange_weak(live, live + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => live = now,
            }
        }
    }
}

/// A place in a queue. Dropping it leaves the queue, or gives back a slot that was granted and not collected.
#[derive(Debug)]
pub struct Waiting {
    queue: Arc<Queue>,
    waiter: Arc<Waiter>,
    collected: bool,
}

impl Waiting {
    /// Takes a place: the last one, or the head's if some node was tried.
    ///
    /// # Errors
    /// [`QueueFull`] when the bound is reached.
    pub fn join(queue: &Arc<Queue>, wants: Wants) -> Result<Self, QueueFull> {
        queue.admit()?;
        queue.natives.add(u64::from(wants.native));
        let waiter =
            Arc::new(Waiter { state: AtomicU32::new(WAIT), waker: AtomicWaker::new(), slot: OneShot::new(), wants });
        if wants.is_retry() {
            queue.head.update(|head| head.iter().filter(|w| w.waits()).chain([&waiter]).cloned().collect());
        } else {
            queue.tail.push(Arc::clone(&waiter));
        }
        Ok(Self { queue: Arc::clone(queue), waiter, collected: false })
    }

    /// Looks for a grant. `take` takes a warm slot of any cell that may serve this request
    /// ([`crate::routing::take_for_waiter`]); what it takes goes to the first in the queue, perhaps this one, else it looks
    /// again.
    /// Cancel safe: a grant that was not collected is given back when the place is dropped.
    pub fn poll_grant(&mut self, cx: &mut Context<'_>, take: &mut dyn FnMut() -> Option<Arc<Cell>>) -> Poll<Grant> {
        self.waiter.waker.register(cx.waker());
        if let Some(grant) = self.collect() {
            return Poll::Ready(grant);
        }
        pairing_fence();
        // What serves another leaves this one where it was: nobody else has looked for it at what is free besides.
        while take().is_some_and(|cell| cell.pass_on()) {
            if let Some(grant) = self.collect() {
                return Poll::Ready(grant);
            }
        }
        match self.collect() {
            Some(grant) => Poll::Ready(grant),
            None => Poll::Pending,
        }
    }

    fn collect(&mut self) -> Option<Grant> {
        let grant = match self.waiter.state.load(Ordering::Acquire) {
            GRANTED => match self.waiter.slot.get()? {
                Granted::Warm(cell) => Grant::Slot { cell, taken: Taken::Warm },
                Granted::Cold(pair) => Grant::Slot { cell: Arc::clone(&pair.cell), taken: Taken::Cold },
            },
            REFUSED => Grant::Refused,
            _ => return None,
        };
        self.collected = true;
        Some(grant)
    }

    /// Leaves the queue; true if a slot had been granted meanwhile.
    fn leave(&self) -> bool {
        match self.waiter.leave_wait(&self.queue, GONE) {
            Ok(()) => false,
            Err(CLAIMED) => self
                .waiter
                .state
                .compare_exchange(CLAIMED, GONE, Ordering::AcqRel, Ordering::Acquire)
                .is_err_and(|now| now == GRANTED),
            Err(state) => state == GRANTED,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let granted = !self.collected && self.leave();
        // The entry may outlive this place in the queue; the task behind the waker must not.
        self.waiter.waker.forget();
        if granted && let Some(slot) = self.waiter.slot.get() {
            slot.undo();
        } else if !self.collected {
            self.queue.tidy();
        }
    }
}
