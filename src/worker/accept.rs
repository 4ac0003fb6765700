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
use crate::sync::{Arc, AtomicWaker, Ordering, spawn_local};

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
}

impl Inboxes {
    /// Inboxes for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let inbox = |_| Inbox { sockets: ArrayQueue::new(INBOX), waker: AtomicWaker::new() };
        Self { boxes: (0..workers).map(inbox).collect() }
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
    let target = least_busy(&local.shared, local.id.0);
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
    match inboxes.boxes[target].sockets.push((socket, reserved)) {
        Ok(()) => {
            local.gauges().handed_over.fetch_add(1, Ordering::Relaxed);
            inboxes.boxes[target].waker.wake();
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

/// Where a new connection goes: here, unless here is above the least busy worker by more than 4 and a quarter.
fn least_busy(shared: &Shared, here: usize) -> usize {
    let load = |local: usize| shared.gauges[local].connections.load(Ordering::Relaxed);
    let least = (0..shared.gauges.len()).min_by_key(|local| load(*local)).unwrap_or(here);
    if stays(load(here), load(least)) { here } else { least }
}

fn stays(here: u32, least: u32) -> bool {
    here <= least + 4.max(least / 4)
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
        assert!(stays(0, 0));
        assert!(stays(4, 0));
        assert!(!stays(5, 0));
        assert!(stays(125, 100));
        assert!(!stays(126, 100));
    }
}
