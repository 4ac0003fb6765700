//! One request on one connection: sends it, notices an early answer meanwhile, reads the answer. No task, no timer, no
//! policy; polled by an exchange and, once the client has left, by the lingering list.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pool::Life;
use super::upstream::{Counts, Outgoing, count};
use crate::clock::Millis;
use crate::http1::{Chunks, DecodeError, Item, KeepAlive, ResponseDecoder, ResponseHead};

/// Reads in one discarding turn before other tasks get theirs.
const DISCARD_READS_MAX: usize = 16;

/// Why an exchange cannot go on.
#[derive(Debug)]
pub(super) enum Fault {
    /// End of stream before the first byte of an answer.
    Closed,
    Io(io::Error),
    Malformed(DecodeError),
}

/// Payload of an answer, as the node framed it.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Whole chunks that came together.
    Chunks(Chunks<'a>),
    /// Anything else: of a body with a length, or of a chunk that has not come whole.
    Piece(&'a [u8]),
    /// What is left of a piece that had something taken out.
    Parts(&'a [&'a [u8]]),
}

impl Payload<'_> {
    /// Hands out the bytes alone, piece by piece.
    pub fn each(self, mut take: impl FnMut(&[u8])) {
        match self {
            Payload::Piece(piece) => take(piece),
            Payload::Parts(parts) => parts.iter().for_each(|part| take(part)),
            Payload::Chunks(chunks) => chunks.payloads().for_each(take),
        }
    }
}

/// Room for what is read from nodes; one for a worker.
#[derive(Debug)]
pub(super) struct Scratch {
    room: Box<[u8]>,
    /// Another one, for when the first is lent.
    spare: Option<Box<[u8]>>,
}

impl Scratch {
    /// Room for so many bytes a read.
    pub(super) fn new(bytes: usize) -> Self {
        Self { room: vec![0; bytes].into_boxed_slice(), spare: None }
    }

    /// Lends what was read instead of copying it.
    fn lend(&mut self) -> Box<[u8]> {
        let bytes = self.room.len();
        let other = self.spare.take().unwrap_or_else(|| vec![0; bytes].into_boxed_slice());
        std::mem::replace(&mut self.room, other)
    }

    /// Reads go on into what was lent, which is warm.
    fn give_back(&mut self, lent: Box<[u8]>) {
        self.spare = Some(std::mem::replace(&mut self.room, lent));
    }
}

/// What came in one read with a head, to be decoded when the payload is asked for: at once, as a rule.
#[derive(Debug)]
struct Pending {
    read: Box<[u8]>,
    from: usize,
    to: usize,
}

/// What one read gave.
#[derive(Debug, Default)]
pub(super) struct Got {
    /// The head of the answer; payload that came with it is for the next call.
    pub(super) head: Option<ResponseHead>,
    /// Payload was handed out.
    pub(super) payload: bool,
}

/// Counts a connection's end, whoever drops it.
#[derive(Debug)]
struct Counted(Rc<Counts>);

impl Drop for Counted {
    fn drop(&mut self) {
        count(&self.0.closed);
    }
}

/// A connection to a node, and the request in progress on it if there is one. Dropped, it closes the connection whole.
///
/// Lives in its box as long as the connection does: taking one from the pool costs no allocation.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    _counted: Counted,
    life: Life,
    /// [`Target::epoch`] when it was opened: where that has moved on, it leads to where the node no longer is.
    pub(super) epoch: u64,
    /// The node's own `pool_idle`.
    pub(super) pool_idle_ms: Option<Millis>,
    decoder: ResponseDecoder,
    /// Bytes of the request handed to the kernel.
    sent: usize,
    request_len: usize,
    write_error: Option<io::Error>,
    /// An error answer came before the request was sent: the rest of it is of no use.
    sending_stopped: bool,
    /// When the last byte of the request was handed over, in microseconds.
    pub(super) sent_at_us: Option<u64>,
    pub(super) reused: bool,
    /// Bytes of an answer were read.
    pub(super) heard: bool,
    /// Status of the answer, once its head was read.
    pub(super) status: Option<StatusCode>,
    close: bool,
    keep_alive: KeepAlive,
    /// Read with the head and not decoded yet.
    pending: Option<Pending>,
    /// Found behind payload that had to be delivered first.
    delayed: Option<DecodeError>,
}

impl Wire {
    /// A new connection.
    pub(super) fn open(stream: TcpStream, epoch: u64, head_bytes_max: usize, counts: &Rc<Counts>) -> Box<Self> {
        count(&counts.opened);
        Box::new(Self {
            stream,
            _counted: Counted(counts.clone()),
            life: Life::default(),
            epoch,
            pool_idle_ms: None,
            decoder: ResponseDecoder::new(false, head_bytes_max),
            sent: 0,
            request_len: 0,
            write_error: None,
            sending_stopped: false,
            sent_at_us: None,
            reused: false,
            heard: false,
            status: None,
            close: false,
            keep_alive: KeepAlive::default(),
            pending: None,
            delayed: None,
        })
    }

    /// Begins with a request; the head of its answer goes into the buffer `spare`.
    pub(super) fn begin(&mut self, request: &Outgoing, spare: Vec<u8>) {
        self.reused = self.life.served > 0;
        self.decoder.restart(request.is_head, spare);
        self.sent = 0;
        self.request_len = request.len();
        // A connection with these set was not kept (see `rest`).
        debug_assert!(!self.close && self.write_error.is_none() && self.pending.is_none() && self.delayed.is_none());
        self.sending_stopped = false;
        self.sent_at_us = None;
        self.heard = false;
        self.status = None;
        self.keep_alive = KeepAlive::default();
    }

    /// Nothing was heard since the last answer. tokio answers from its cached readiness: no system call as long as
    /// epoll has reported nothing. Bytes nobody asked for are as bad as an end.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.stream.try_read(&mut [0_u8]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    pub(super) fn is_sent_whole(&self) -> bool {
        self.sent == self.request_len
    }

    pub(super) fn is_ended(&self) -> bool {
        self.decoder.is_ended()
    }

    pub(super) fn take_write_error(&mut self) -> Option<io::Error> {
        self.write_error.take()
    }

    /// Hands over as much of the request as the kernel takes: one write if it fits. A failed write is kept, not
    /// returned: the node may have answered before it closed, and then its answer is what counts.
    pub(super) fn send(&mut self, cx: &mut Context<'_>, request: &Outgoing, now_us: impl Fn() -> u64) {
        while self.sent < self.request_len && self.write_error.is_none() && !self.sending_stopped {
            let stream = Pin::new(&mut self.stream);
            let (slices, count) = request.rest(self.sent);
            let polled = match &slices[..count] {
                [one] => stream.poll_write(cx, one),
                several => stream.poll_write_vectored(cx, several),
            };
            match polled {
                Poll::Pending => return,
                Poll::Ready(Ok(0)) => self.write_error = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.sent += count;
                    if self.sent == self.request_len {
                        self.sent_at_us = Some(now_us());
                    }
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => self.write_error = Some(error),
            }
        }
    }

    /// Reads once, into `scratch`, and decodes all of it, giving each piece of payload to `take` as the node framed it;
    /// reads again only if that gave neither head, payload nor end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        take: &mut dyn FnMut(Payload<'_>),
    ) -> Poll<Result<Got, Fault>> {
        if let Some(Pending { read, from, to }) = self.pending.take() {
            let decoded = self.decode(&read[from..to], take).map_err(Fault::Malformed);
            scratch.give_back(read);
            let (got, _) = decoded?;
            if got.payload || self.is_ended() {
                return Poll::Ready(Ok(got));
            }
        }
        loop {
            let length = match ready!(self.poll_fill(cx, &mut scratch.room)) {
                Ok(0) => return Poll::Ready(Ok(Got::default())),
                Ok(length) => length,
                Err(fault) => return Poll::Ready(Err(fault)),
            };
            let (got, taken) = self.decode(&scratch.room[..length], take).map_err(Fault::Malformed)?;
            if taken < length && !self.is_ended() && self.delayed.is_none() {
                self.pending = Some(Pending { read: scratch.lend(), from: taken, to: length });
            }
            if got.head.is_some() || got.payload || self.is_ended() {
                return Poll::Ready(Ok(got));
            }
        }
    }

    /// Reads and forgets until nothing is there (`Pending`), or the answer ended (`Ok`) or broke off.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<(), Fault>> {
        for _ in 0..DISCARD_READS_MAX {
            if self.is_ended() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read(cx, scratch, &mut |_| {}))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// For how long the connection may wait for another request, in milliseconds; `None`: it must be closed.
    pub(super) fn rest(&mut self, pool_idle_ms: u64) -> Option<u64> {
        if !self.is_ended() || self.close || !self.is_sent_whole() || self.write_error.is_some() {
            return None;
        }
        self.life.answered(self.keep_alive, pool_idle_ms)
    }

    /// One read. `Ok(0)`: the node closed, and that was the end of the answer.
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<usize, Fault>> {
        if let Some(error) = self.delayed.take() {
            return Poll::Ready(Err(Fault::Malformed(error)));
        }
        // AsyncRead rather than try_read: after a short read it clears the readiness without another system call.
        let mut buffer = ReadBuf::new(scratch);
        if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
            return Poll::Ready(Err(Fault::Io(error)));
        }
        let length = buffer.filled().len();
        if length > 0 {
            self.heard = true;
            return Poll::Ready(Ok(length));
        }
        self.close = true;
        Poll::Ready(match self.decoder.eof() {
            Ok(_) => Ok(0),
            Err(DecodeError::ClosedEarly) if !self.heard => Err(Fault::Closed),
            Err(error) => Err(Fault::Malformed(error)),
        })
    }

    /// Decodes up to the head, or all of the payload; says how many bytes were taken.
    fn decode(&mut self, input: &[u8], take: &mut dyn FnMut(Payload<'_>)) -> Result<(Got, usize), DecodeError> {
        let (mut got, mut at) = (Got::default(), 0);
        loop {
            let run = self.decoder.run(&input[at..]);
            if !run.as_bytes().is_empty() {
                at += run.as_bytes().len();
                got.payload = true;
                take(Payload::Chunks(run));
            }
            match self.decoder.feed(&input[at..]) {
                Ok((used, Item::Data(data))) => {
                    take(Payload::Piece(data));
                    got.payload = true;
                    at += used;
                }
                Ok((used, Item::More)) => return Ok((got, at + used)),
                Ok((used, Item::Head(head))) => {
                    self.note(&head);
                    got.head = Some(head);
                    at += used;
                    if !self.is_ended() {
                        return Ok((got, at));
                    }
                }
                Ok((used, Item::End)) => {
                    // Bytes behind the end belong to no request of ours.
                    self.close |= at + used < input.len();
                    return Ok((got, at + used));
                }
                Err(error) if got.payload || got.head.is_some() => {
                    self.delayed = Some(error);
                    return Ok((got, at));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn note(&mut self, head: &ResponseHead) {
        self.status = Some(head.status);
        self.keep_alive = head.keep_alive;
        self.close |= head.close;
        if !self.is_sent_whole() {
            // Answered before it had the request. An error needs no more of it; anything else may.
            self.close = true;
            self.sending_stopped = !head.status.is_success();
        }
    }
}
