//! The HTTP/1.1 client of one worker towards the nodes: one attempt at one node, polled inside the request's own task.
//!
//! Called by the proxy: [`Upstreams::begin`] → [`Exchange::head`] → [`Exchange::poll_payload`] until [`Exchange::is_end`].
//! An exchange may be dropped at any await: nothing is lost then, its connection and what it holds (the permit) go to
//! [`super::lingering`], which closes it when the node can bear it (I12). Must never choose a node, retry on another,
//! wait on a timer of its own (only `dial` does) or outlive its worker's thread.
//!
//! An exchange reads the socket only when polled, at most once per poll, and hands out what it read at once: nothing is
//! held back (I7), and a client that does not take its bytes stops the reading.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use tokio::net::TcpStream;

use super::behind::Behind;
use super::dial::dial;
pub use super::failure::{AttemptError, BodyError, Cause, Stage};
use super::lingering::{Leave, Lingering};
use super::outgoing::JOIN_BYTES_MAX;
pub use super::outgoing::Outgoing;
use super::pool::Pool;
pub use super::wire::Payload;
use super::wire::{Fault, Scratch, Wire};
use crate::clock::{Clock, Millis};
use crate::fleet::Target;
use crate::http1::{DecodeError, ResponseHead};
use crate::ids::NodeId;
use crate::sync::Arc;

/// Read buffer of a worker. Source: 16 KiB is what other proxies settled on; more did not pay.
const SCRATCH_BYTES: usize = 16 * 1024;
/// Buffers kept for the next requests (up to three each: lines and head of the request, lines of the answer); the least
/// they hold, a head with a joined body, and the largest worth keeping.
const SPARES_MAX: usize = 256;
const SPARE_BYTES_MIN: usize = 2 * JOIN_BYTES_MAX;
const SPARE_BYTES_MAX: usize = SCRATCH_BYTES;
/// A reused connection that dies without a byte this soon after the request was sent was closed by the node before the
/// request reached it. Later it is the node that broke, and what to do about that is routing's decision.
const STALE_WITHIN_US: u64 = 1_000_000;

/// What an exchange holds for as long as the node may be working on its request: the permit.
pub trait Held: 'static {
    /// The model of the request is loaded on its node; asked while detached, each sweep.
    fn is_loaded(&self) -> bool;
    /// A detached exchange ended so. The value is dropped at once or, where the node was told to stop, soon after.
    fn detached(&mut self, how: Detached, now: Millis);
}

/// How a detached exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detached {
    /// The node's first byte came, with this status.
    Answered(StatusCode),
    /// The model came up ([`Held::is_loaded`]).
    Loaded,
    /// The connection broke before an answer.
    Failed,
    /// `cold_load_grace` went by.
    GaveUp,
}

/// Values of the configuration that the client needs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `timeouts.pool_idle`.
    pub pool_idle_ms: Millis,
    /// Idle connections per worker and node.
    pub pool_idle_max: usize,
    /// `limits.head`, for answers.
    pub head_bytes_max: usize,
    /// `routing.cold_load_grace`.
    pub cold_load_grace_ms: Millis,
    /// Detached requests per worker; one more is closed like any other.
    pub detached_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool_idle_ms: 60_000,
            pool_idle_max: 128,
            head_bytes_max: 64 * 1024,
            cold_load_grace_ms: 300_000,
            detached_max: 256,
        }
    }
}

/// What became of a worker's connections to nodes, so far. Plain numbers of one thread, taken over at each tick.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections opened.
    pub opened: Cell<u64>,
    /// Of those, closed by now.
    pub closed: Cell<u64>,
    /// Requests that went over a kept one.
    pub reused: Cell<u64>,
    /// Cold loads kept after their client left.
    pub detached: Cell<u64>,
    /// Exchanges given up because their client left.
    pub lingered: Cell<u64>,
}

/// Adds one.
pub(super) fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// The upstream side of one worker; clones share it and never leave its thread.
#[derive(Debug)]
pub struct Upstreams<P: Held> {
    inner: Rc<Inner<P>>,
}

#[derive(Debug)]
pub(super) struct Inner<P> {
    pub(super) settings: Cell<Settings>,
    pub(super) clock: Clock,
    pub(super) pool: RefCell<Pool<Box<Wire>>>,
    pub(super) lingering: Lingering<P>,
    pub(super) scratch: RefCell<Scratch>,
    pub(super) counts: Rc<Counts>,
    spares: RefCell<Vec<Vec<u8>>>,
}

impl<P: Held> Clone for Upstreams<P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<P: Held> Upstreams<P> {
    /// For one worker. [`Upstreams::run`] must be spawned on the same thread.
    #[must_use]
    pub fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            inner: Rc::new(Inner {
                settings: Cell::new(settings),
                clock,
                pool: RefCell::new(Pool::new(settings.pool_idle_max)),
                lingering: Lingering::new(),
                scratch: RefCell::new(Scratch::new(SCRATCH_BYTES)),
                counts: Rc::default(),
                spares: RefCell::new(Vec::new()),
            }),
        }
    }

    /// From now on these values hold, but for the bound of idle connections.
    pub fn set(&self, settings: Settings) {
        self.inner.settings.set(settings);
    }

    /// An empty buffer for a head or its lines.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        self.inner.buffer()
    }

    /// Takes such a buffer back, for others to use.
    pub fn reclaim(&self, buffer: Vec<u8>) {
        self.inner.reclaim(buffer);
    }

    /// Prepares an attempt; the first poll of [`Exchange::head`] takes or opens a connection. `held` lives as long as
    /// the node may work on the request; `leave` says what happens when the exchange is dropped before its end.
    #[must_use]
    pub fn begin(&self, node: NodeId, target: &Arc<Target>, request: Outgoing, held: P, leave: Leave) -> Exchange<P> {
        Exchange {
            upstreams: self.clone(),
            node,
            target: Arc::clone(target),
            request,
            phase: Phase::Start,
            held: Some(held),
            leave,
            epoch: 0,
            retried: false,
            behind: Behind::default(),
        }
    }

    /// The worker's one task for exchanges whose client has left. Never ends.
    pub async fn run(self) {
        self.inner.lingering.run(&self.inner).await;
    }

    /// The worker's tick: closes idle connections that expired or died.
    pub fn tick(&self) {
        self.inner.pool.borrow_mut().sweep(self.inner.clock.now(), |wire| wire.is_silent());
    }

    /// Closes a node's idle connections.
    pub fn clear(&self, node: NodeId) {
        self.inner.pool.borrow_mut().clear(node);
    }

    /// What became of its connections so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    /// Idle connections now.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.inner.pool.borrow().idle()
    }

    /// Exchanges without a client now (lingering, draining, detached).
    #[must_use]
    pub fn lingering(&self) -> usize {
        self.inner.lingering.len()
    }
}

impl<P> Inner<P> {
    /// Keeps the connection of an ended exchange for the next one, if it is fit for it.
    pub(super) fn recycle(&self, node: NodeId, mut wire: Box<Wire>) {
        if let Some(idle_ms) = wire.rest(wire.pool_idle_ms.unwrap_or(self.settings.get().pool_idle_ms)) {
            self.pool.borrow_mut().put(node, wire, self.clock.now() + idle_ms);
        }
    }

    fn buffer(&self) -> Vec<u8> {
        self.spares.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(SPARE_BYTES_MIN))
    }

    fn reclaim(&self, mut buffer: Vec<u8>) {
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES_MAX && (SPARE_BYTES_MIN..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            spares.push(buffer);
        }
    }
}

/// One attempt at one node.
///
/// Cancel safety: every method may be dropped while pending, and the exchange itself at any time.
#[derive(Debug)]
pub struct Exchange<P: Held> {
    upstreams: Upstreams<P>,
    node: NodeId,
    target: Arc<Target>,
    request: Outgoing,
    phase: Phase,
    held: Option<P>,
    leave: Leave,
    /// [`Target::epoch`] when a connection was asked for.
    epoch: u64,
    /// The free retry was used.
    retried: bool,
    behind: Behind,
}

type Dialing = Pin<Box<dyn Future<Output = Result<TcpStream, Cause>>>>;

enum Phase {
    Start,
    Connecting(Dialing),
    Open(Box<Wire>),
    /// The answer is complete and the connection gone to the pool, or the exchange failed.
    Over,
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "Start",
            Self::Connecting(_) => "Connecting",
            Self::Open(_) => "Open",
            Self::Over => "Over",
        })
    }
}

impl<P: Held> Exchange<P> {
    /// Sends the request and waits for the head of the answer, however long the node takes.
    ///
    /// A reused connection that turns out to be dead is replaced by a fresh one, once and unseen.
    ///
    /// # Errors
    /// The attempt failed before a head came; the exchange is over then, and [`Exchange::take_held`] gives back what
    /// it holds.
    pub async fn head(&mut self) -> Result<ResponseHead, AttemptError> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// As [`Exchange::head`].
    ///
    /// # Errors
    /// As there.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, AttemptError>> {
        loop {
            match &mut self.phase {
                Phase::Start => {
                    ready!(self.behind.poll(cx));
                    self.phase = self.start();
                }
                Phase::Connecting(dialing) => match ready!(dialing.as_mut().poll(cx)) {
                    Ok(stream) => self.open(stream),
                    Err(cause) => return Poll::Ready(Err(self.failed_to_connect(cause))),
                },
                Phase::Open(wire) => {
                    let inner = &self.upstreams.inner;
                    wire.send(cx, &self.request, || inner.clock.exact_us());
                    let read = ready!(wire.poll_read(cx, &mut inner.scratch.borrow_mut(), &mut |_| {}));
                    match read {
                        Ok(read) => {
                            if let Some(head) = read.head {
                                self.answered();
                                return Poll::Ready(Ok(head));
                            }
                        }
                        Err(fault) => {
                            if let Some(error) = self.faulted(fault) {
                                return Poll::Ready(Err(error));
                            }
                        }
                    }
                }
                Phase::Over => {
                    let cause = Cause::Closed;
                    return Poll::Ready(Err(AttemptError {
                        stage: Stage::Connect,
                        cause,
                        reused: false,
                        heard: false,
                    }));
                }
            }
        }
    }

    /// Hands the next payload to `take`, as much as one read gave and in the pieces that the node framed; `None` after
    /// the end. To be called after [`Exchange::head`].
    ///
    /// # Errors
    /// The body broke off; the exchange is over then.
    pub fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(Payload<'_>),
    ) -> Poll<Option<Result<(), BodyError>>> {
        let Phase::Open(wire) = &mut self.phase else { return Poll::Ready(None) };
        let inner = &self.upstreams.inner;
        wire.send(cx, &self.request, || inner.clock.exact_us());
        let read = ready!(wire.poll_read(cx, &mut inner.scratch.borrow_mut(), take));
        match read {
            Ok(read) => {
                if wire.is_ended() {
                    self.end();
                }
                Poll::Ready(read.payload.then_some(Ok(())))
            }
            Err(fault) => {
                self.phase = Phase::Over;
                Poll::Ready(Some(Err(match fault {
                    Fault::Io(error) => error.into(),
                    Fault::Malformed(error) => error.into(),
                    Fault::Closed => DecodeError::CutBody.into(),
                })))
            }
        }
    }

    /// As [`Exchange::poll_payload`], in one allocation of its own.
    ///
    /// # Errors
    /// As there.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut data = Vec::new();
        let polled = self.poll_payload(cx, &mut |payload| payload.each(|piece| data.extend_from_slice(piece)));
        polled.map(|read| read.map(|read| read.map(|()| data.into())))
    }

    /// All payload was handed out and the answer is complete. True together with the last payload where its end came
    /// with it, so that nobody has to poll once more.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its node has the request, as far as can be known here: it was written whole, and the connection stands.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        matches!(&self.phase, Phase::Open(wire) if wire.is_sent_whole())
    }

    /// What it holds; `None` once taken.
    pub fn held(&mut self) -> Option<&mut P> {
        self.held.as_mut()
    }

    /// Takes it out: after a failed attempt, or when the answer is known to be complete.
    pub fn take_held(&mut self) -> Option<P> {
        self.held.take()
    }

    /// Changes what happens when the exchange is dropped before its end.
    pub fn set_leave(&mut self, leave: Leave) {
        self.leave = leave;
    }

    fn start(&mut self) -> Phase {
        let inner = &self.upstreams.inner;
        let epoch = self.target.epoch();
        let idle =
            inner.pool.borrow_mut().take(self.node, inner.clock.now(), |wire| wire.epoch == epoch && wire.is_silent());
        match idle {
            Some(mut wire) => {
                wire.pool_idle_ms = self.target.pool_idle_ms;
                count(&inner.counts.reused);
                wire.begin(&self.request, inner.buffer());
                Phase::Open(wire)
            }
            None => self.connecting(),
        }
    }

    fn connecting(&mut self) -> Phase {
        self.epoch = self.target.epoch();
        Phase::Connecting(Box::pin(dial(self.target.addresses.load_full(), self.target.connect_ms)))
    }

    fn open(&mut self, stream: TcpStream) {
        let inner = &self.upstreams.inner;
        let mut wire = Wire::open(stream, self.epoch, inner.settings.get().head_bytes_max, &inner.counts);
        wire.pool_idle_ms = self.target.pool_idle_ms;
        wire.begin(&self.request, self.upstreams.inner.buffer());
        self.phase = Phase::Open(wire);
    }

    fn failed_to_connect(&mut self, cause: Cause) -> AttemptError {
        self.phase = Phase::Over;
        if cause.is_ours() {
            // Out of files: idle connections are the ones we can do without.
            self.upstreams.inner.pool.borrow_mut().clear_all();
        }
        AttemptError { stage: Stage::Connect, cause, reused: false, heard: false }
    }

    /// A head came: no retry from here on, so that the request is not needed any more once it is sent.
    fn answered(&mut self) {
        let Phase::Open(wire) = &self.phase else { return };
        if wire.is_sent_whole() {
            self.upstreams.inner.reclaim(self.request.take_buffer());
        }
        if wire.is_ended() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Phase::Open(wire) = std::mem::replace(&mut self.phase, Phase::Over) {
            self.upstreams.inner.recycle(self.node, wire);
        }
    }

    /// Before a head: another try on a fresh connection (`None`), or the attempt's error.
    fn faulted(&mut self, fault: Fault) -> Option<AttemptError> {
        let Phase::Open(mut wire) = std::mem::replace(&mut self.phase, Phase::Over) else { return None };
        let died = matches!(fault, Fault::Closed | Fault::Io(_)) && !wire.heard;
        let now_us = self.upstreams.inner.clock.now_us();
        let soon = wire.sent_at_us.is_none_or(|sent| now_us.saturating_sub(sent) <= STALE_WITHIN_US);
        if wire.reused && died && soon && !self.retried {
            self.retried = true;
            self.phase = self.connecting();
            return None;
        }
        let cause = match fault {
            Fault::Malformed(error) => Cause::Malformed(error),
            Fault::Io(error) => Cause::Io(error),
            Fault::Closed => wire.take_write_error().map_or(Cause::Closed, Cause::Io),
        };
        let stage = if wire.is_sent_whole() { Stage::Answer } else { Stage::Send };
        Some(AttemptError { stage, cause, reused: wire.reused, heard: wire.heard })
    }
}

impl<P: Held> Drop for Exchange<P> {
    fn drop(&mut self) {
        let inner = &self.upstreams.inner;
        inner.reclaim(self.request.take_buffer());
        if let Phase::Open(wire) = std::mem::replace(&mut self.phase, Phase::Over) {
            inner.lingering.leave(inner, self.node, wire, self.held.take(), self.leave);
        }
    }
}
