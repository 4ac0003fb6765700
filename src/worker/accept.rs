//! Accepting, the connection bound, and handing a socket to a less busy worker.
//!
//! The kernel spreads connections by hash; streams live long, so that does not even out. A worker clearly busier
//! than the least busy one (by more than 4 and a quarter) hands the socket over once, at accept: through the target's
//! inbox and one wake (about 20 us, once per connection).

use std::net::TcpStream;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use tokio::net::TcpListener;

use crate::proxy::local::Local;
use crate::shared::{Phase, RESERVED, Shared};
use crate::sync::{Arc, AtomicBool, AtomicWaker, Ordering, fence, spawn_local};

/// How long an accept waits for a free file or place before it looks again.
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// Sockets in an inbox at most; a full one makes the accepting worker keep the socket.
const INBOX: usize = 256;

/// One inbox per worker.
#[derive(Debug)]
pub struct Inboxes {
    boxes: Box<[Inbox]>,
}

#[derive(Debug)]
struct Inbox {
    sockets: ArrayQueue<(TcpStream, bool)>,
    waker: AtomicWaker,
    /// Its worker runs. Set once before sockets come, cleared once.
    alive: AtomicBool,
}

impl Inboxes {
    /// Inboxes for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let inbox =
            |_| Inbox { sockets: ArrayQueue::new(INBOX), waker: AtomicWaker::new(), alive: AtomicBool::new(true) };
        Self { boxes: (0..workers).map(inbox).collect() }
    }

    fn is_alive(&self, worker: usize) -> bool {
        self.boxes[worker].alive.load(Ordering::Acquire)
    }

    /// Hands a socket to a worker, unless that is full or has ended.
    ///
    /// Whoever ends clears its flag and then empties its inbox; whoever hands over pushes and then looks at the flag. With
    /// the fences between, one of the two sees the other's: no socket stays behind where nobody reads.
    fn hand(&self, worker: usize, handed: (TcpStream, bool)) -> Result<(), (TcpStream, bool)> {
        let inbox = &self.boxes[worker];
        inbox.sockets.push(handed)?;
        fence(Ordering::SeqCst);
        if inbox.alive.load(Ordering::Relaxed) {
            inbox.waker.wake();
            return Ok(());
        }
        // Any socket of this inbox will do: each of them wants somebody.
        inbox.sockets.pop().map_or(Ok(()), Err)
    }

    /// The inbox of a worker that begins; closed when this is dropped, however the worker ends.
    pub(super) fn open(self: &Arc<Self>, worker: usize, shared: &Arc<Shared>) -> OpenInbox {
        OpenInbox { inboxes: Arc::clone(self), worker, shared: Arc::clone(shared) }
    }

    /// Closes a worker's inbox; how many sockets were in it.
    fn close(&self, worker: usize) -> u32 {
        let inbox = &self.boxes[worker];
        inbox.alive.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        let mut lost = 0;
        while inbox.sockets.pop().is_some() {
            lost += 1;
        }
        lost
    }
}

/// An inbox whose worker runs.
#[derive(Debug)]
pub(super) struct OpenInbox {
    inboxes: Arc<Inboxes>,
    worker: usize,
    shared: Arc<Shared>,
}

impl Drop for OpenInbox {
    fn drop(&mut self) {
        let lost = self.inboxes.close(self.worker);
        self.shared.gauges[self.worker].pulse.rest();
        self.shared.gauges[self.worker].connections.fetch_sub(lost, Ordering::AcqRel);
        if self.shared.phase() < Phase::Draining {
            tracing::error!(worker = self.worker, lost, "a worker has ended by itself; the others serve on");
        }
    }
}

/// Takes sockets that other workers handed over.
pub(super) async fn inbox(local: Rc<Local>, inboxes: Arc<Inboxes>) {
    let mine = &inboxes.boxes[local.id.0];
    loop {
        let (socket, reserved) = std::future::poll_fn(|cx| {
            if let Some(handed) = mine.sockets.pop() {
                return Poll::Ready(handed);
            }
            mine.waker.register(cx.waker());
            mine.sockets.pop().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        match tokio::net::TcpStream::from_std(socket) {
            Ok(stream) => serve(&local, stream, reserved),
            Err(error) => {
                local.gauges().connections.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(%error, "a handed-over connection was lost");
            }
        }
    }
}

/// Accepts until the process drains. Never spins: out of files or places, it pauses.
pub(super) async fn accept(local: Rc<Local>, listener: TcpListener, inboxes: Arc<Inboxes>) {
    let shared = local.shared.clone();
    while shared.phase() < Phase::Draining {
        if shared.connections() >= shared.connection_bound() {
            pause(&local).await;
            continue;
        }
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = leaving(&local) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // Counted now: others may have been accepted while this one was waited for.
                let reserved = shared.connections() + RESERVED >= shared.connection_bound();
                local.gauges().accepted.fetch_add(1, Ordering::Relaxed);
                place(&local, &inboxes, stream, reserved);
            }
            Err(error) if is_per_connection(&error) => {}
            Err(error) => {
                tracing::debug!(%error, "accept failed; pausing");
                pause(&local).await;
            }
        }
    }
}

/// Resolves once the process drains; looked at when the tick wakes the runtime anyway.
async fn leaving(local: &Local) {
    while local.shared.phase() < Phase::Draining {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn pause(local: &Local) {
    local.gauges().accept_waits.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(FULL_PAUSE).await;
}

/// Errors of the connection that was just accepted, not of the listener.
fn is_per_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Keeps the socket, or hands it to the least busy worker if this one is clearly busier.
fn place(local: &Rc<Local>, inboxes: &Inboxes, stream: tokio::net::TcpStream, reserved: bool) {
    let _ = stream.set_nodelay(true);
    let target = least_busy(&local.shared, inboxes, local.id.0);
    let gauges = &local.shared.gauges[target];
    gauges.connections.fetch_add(1, Ordering::AcqRel);
    if target == local.id.0 {
        serve(local, stream, reserved);
        return;
    }
    let Ok(socket) = stream.into_std() else {
        gauges.connections.fetch_sub(1, Ordering::AcqRel);
        return;
    };
    match inboxes.hand(target, (socket, reserved)) {
        Ok(()) => {
            local.gauges().handed_over.fetch_add(1, Ordering::Relaxed);
        }
        Err((socket, reserved)) => {
            gauges.connections.fetch_sub(1, Ordering::AcqRel);
            if let Ok(stream) = tokio::net::TcpStream::from_std(socket) {
                local.gauges().connections.fetch_add(1, Ordering::AcqRel);
                serve(local, stream, reserved);
            }
        }
    }
}

/// Where a new connection goes: here, unless here is above the least busy worker by more than 4 and a quarter, and both
/// go on.
fn least_busy(shared: &Shared, inboxes: &Inboxes, here: usize) -> usize {
    let load = |local: usize| shared.gauges[local].connections.load(Ordering::Relaxed);
    let alive = (0..shared.gauges.len()).filter(|local| inboxes.is_alive(*local));
    let least = alive.min_by_key(|local| load(*local)).unwrap_or(here);
    if stays(shared.phase(), load(here), load(least)) { here } else { least }
}

/// One that drains may have nothing left to do, and end before it looks into its inbox.
fn stays(phase: Phase, here: u32, least: u32) -> bool {
    phase >= Phase::Draining || here <= least + 4.max(least / 4)
}

/// Serves a connection in a task of its own; the connection's place is given back when the task ends, panics included.
fn serve(local: &Rc<Local>, stream: tokio::net::TcpStream, reserved: bool) {
    struct Place(Rc<Local>);
    impl Drop for Place {
        fn drop(&mut self) {
            self.0.gauges().connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
    let place = Place(local.clone());
    let local = local.clone();
    spawn_local(async move {
        let _place = place;
        let clock = local.clock.clone();
        clock.in_turns(pin!(crate::front::serve(local, stream, reserved))).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_moves_only_from_a_clearly_busier_worker() {
        for (here, least, moves) in [(0, 0, false), (4, 0, false), (5, 0, true), (125, 100, false), (126, 100, true)] {
            for phase in [Phase::Running, Phase::Leaving] {
                assert_eq!(stays(phase, here, least), !moves, "{phase:?}: {here} beside {least}");
            }
            for phase in [Phase::Draining, Phase::Ending] {
                assert!(stays(phase, here, least), "{phase:?}: whoever would take it may be gone");
            }
        }
    }

    #[test]
    fn nothing_is_handed_to_a_worker_that_has_ended() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let inboxes = Inboxes::new(2);
        inboxes.hand(1, (socket(), false)).unwrap();
        inboxes.hand(1, (socket(), true)).unwrap();
        assert_eq!(inboxes.close(1), 2, "what nobody will read is let go");
        assert!(inboxes.is_alive(0) && !inboxes.is_alive(1));
        let (_, reserved) = inboxes.hand(1, (socket(), true)).unwrap_err();
        assert!(reserved && inboxes.boxes[1].sockets.is_empty());
    }
}
