//! Deadlines without timers: one [`Watch`] per client connection, looked at by the worker's tick (100 ms).
//!
//! The connection's wrapper, the request future and the response body arm and disarm it; all of them run in the
//! connection's task, so one waker serves them. Single-threaded: `Cell`s, no atomics. Must never allocate per request.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};

use crate::clock::Millis;
use crate::usage::meters::Timeout;

/// Which bound passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expiry {
    /// `client_idle`: no request on a kept-alive connection.
    ClientIdle,
    /// `request_head`: a head that does not end.
    RequestHead,
    /// `request_body_idle`: a body that does not go on.
    RequestBody,
    /// 30 s without room in `body_memory`.
    BodyMemory,
    /// `queue_wait`: no slot.
    QueueWait,
    /// `stream_idle`: the node fell silent after its first byte.
    StreamIdle,
    /// `client_stall`: the client takes no byte.
    ClientStall,
}

impl Expiry {
    /// Its name in the configuration, in metrics and logs.
    #[must_use]
    pub const fn timeout(self) -> Timeout {
        match self {
            Self::ClientIdle => Timeout::ClientIdle,
            Self::RequestHead => Timeout::RequestHead,
            Self::RequestBody => Timeout::RequestBodyIdle,
            Self::BodyMemory => Timeout::BodyMemory,
            Self::QueueWait => Timeout::QueueWait,
            Self::StreamIdle => Timeout::StreamIdle,
            Self::ClientStall => Timeout::ClientStall,
        }
    }
}

/// No deadline.
const NEVER: Millis = Millis::MAX;

/// The deadlines of one client connection.
#[derive(Debug)]
pub struct Watch {
    deadline: Cell<Millis>,
    armed: Cell<Expiry>,
    fired: Cell<Option<Expiry>>,
    /// When the write now blocked began to block; `NEVER` while bytes flow.
    blocked_since: Cell<Millis>,
    client_stall_ms: Cell<Millis>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    fn new(client_stall_ms: Millis) -> Self {
        Self {
            deadline: Cell::new(NEVER),
            armed: Cell::new(Expiry::ClientIdle),
            fired: Cell::new(None),
            blocked_since: Cell::new(NEVER),
            client_stall_ms: Cell::new(client_stall_ms),
            waker: RefCell::new(None),
        }
    }

    /// From now on `what` is due at `at`; replaces whatever was armed.
    pub fn arm(&self, what: Expiry, at: Millis) {
        self.armed.set(what);
        self.deadline.set(at);
        self.fired.set(None);
    }

    /// Nothing is due.
    pub fn disarm(&self) {
        self.deadline.set(NEVER);
        self.fired.set(None);
    }

    /// What is armed now, if anything.
    #[must_use]
    pub fn armed(&self) -> Option<Expiry> {
        (self.deadline.get() != NEVER).then(|| self.armed.get())
    }

    /// What passed, if anything did since the last `arm`.
    #[must_use]
    pub fn fired(&self) -> Option<Expiry> {
        self.fired.get()
    }

    /// How long the client of this request may take no byte.
    pub fn set_client_stall(&self, client_stall_ms: Millis) {
        self.client_stall_ms.set(client_stall_ms);
    }

    /// The socket took nothing: the client stalls from now on, if it did not before.
    pub fn write_blocked(&self, now: Millis) {
        if self.blocked_since.get() == NEVER {
            self.blocked_since.set(now);
        }
    }

    /// The socket took bytes.
    pub fn write_flows(&self) {
        self.blocked_since.set(NEVER);
    }

    /// Remembers the connection task's waker.
    pub fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &*waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    /// Wakes the connection's task.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Fires what is due, and says what; called by the tick.
    fn check(&self, now: Millis) -> Option<Expiry> {
        let stalled = now.saturating_sub(self.blocked_since.get()) >= self.client_stall_ms.get();
        if stalled {
            self.blocked_since.set(NEVER);
            self.fired.set(Some(Expiry::ClientStall));
        } else if now >= self.deadline.get() {
            self.deadline.set(NEVER);
            self.fired.set(Some(self.armed.get()));
        } else {
            return None;
        }
        self.wake();
        self.fired.get()
    }
}

/// All watches of a worker.
#[derive(Debug, Default)]
pub struct Watches {
    all: RefCell<Vec<Weak<Watch>>>,
}

impl Watches {
    /// A watch for a new connection.
    #[must_use]
    pub fn add(&self, client_stall_ms: Millis) -> Rc<Watch> {
        let watch = Rc::new(Watch::new(client_stall_ms));
        self.all.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    /// Fires what is due, telling each, and forgets connections that are gone.
    pub fn tick(&self, now: Millis, mut fired: impl FnMut(Expiry)) {
        self.all.borrow_mut().retain(|watch| {
            watch.upgrade().is_some_and(|watch| {
                if let Some(expiry) = watch.check(now) {
                    fired(expiry);
                }
                true
            })
        });
    }

    /// Wakes every connection: the process' phase changed.
    pub fn wake_all(&self) {
        for watch in self.all.borrow().iter().filter_map(Weak::upgrade) {
            watch.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_fires_once_at_its_time() {
        let watches = Watches::default();
        let watch = watches.add(1000);
        watch.arm(Expiry::QueueWait, 500);
        watches.tick(499, |_| {});
        assert_eq!(watch.fired(), None);
        watches.tick(500, |_| {});
        assert_eq!(watch.fired(), Some(Expiry::QueueWait));
        assert_eq!(watch.armed(), None);
    }

    #[test]
    fn rearming_takes_a_fired_deadline_back() {
        let watches = Watches::default();
        let watch = watches.add(1000);
        watch.arm(Expiry::RequestBody, 10);
        watches.tick(10, |_| {});
        watch.arm(Expiry::StreamIdle, 1000);
        assert_eq!(watch.fired(), None);
    }

    #[test]
    fn a_stalled_client_is_found_whatever_else_is_armed() {
        let watches = Watches::default();
        let watch = watches.add(100);
        watch.arm(Expiry::StreamIdle, 10_000);
        watch.write_blocked(50);
        watch.write_blocked(90);
        watches.tick(149, |_| {});
        assert_eq!(watch.fired(), None);
        watches.tick(150, |_| {});
        assert_eq!(watch.fired(), Some(Expiry::ClientStall));
    }

    #[test]
    fn a_closed_connection_is_forgotten() {
        let watches = Watches::default();
        drop(watches.add(100));
        watches.tick(0, |_| {});
        assert!(watches.all.borrow().is_empty());
    }
}
