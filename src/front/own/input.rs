//! What a client sends: whole heads, and the body behind each. The bytes lie in a buffer that is lent to the connection
//! only while there are any.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::Connection;
use crate::clock::Millis;
use crate::http1::{BodyDecoder, BodyFraming, Item, Refused, blank_lines, head_end, line_room, parse_request};
use crate::ids::RequestId;
use crate::proxy::body::{self, BodySource};
use crate::proxy::watch::Expiry;
use crate::shared::Phase;

/// Room that is made for an announced body at once; beyond it, room follows the bytes. Only what is written to costs
/// memory.
const RESERVED_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The same for a body that is passed on piece by piece: whoever takes the pieces slowly holds several of them.
const PIECE_BYTES_MAX: u64 = 64 * 1024;
/// Room made when a buffer is full and nothing says how much more there is.
const GROW_BYTES: usize = 32 * 1024;
/// Bytes of later requests that are read while one is being answered; beyond it they wait in the socket.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a body that nobody wanted which are read before the answer, so that the connection can go on.
/// Source: Go's `net/http/server.go` (`maxPostHandlerReadBytes`).
const UNREAD_BYTES_MAX: usize = 256 * 1024;

/// How long the first request of a connection, or the end of a head, is waited for once the process drains.
const FIRST_REQUEST_MS: Millis = 1_000;

/// What came next on a connection.
pub(super) enum Next {
    /// A whole head.
    Head(Bytes),
    /// What can never become one.
    Refused(Refused),
    /// One that does not end in time.
    Late,
    /// The end, or nothing in time.
    Closed,
}

/// Where the body of the request being served stands.
#[derive(Debug)]
pub(super) struct Incoming {
    decoder: BodyDecoder,
    /// The client waits for a word before it sends the body.
    expects: bool,
    whole: bool,
}

impl Incoming {
    /// A body of this framing.
    pub(super) fn new(framing: BodyFraming, trailer_bytes_max: usize, expects: bool) -> Self {
        Self { decoder: BodyDecoder::new(framing, trailer_bytes_max), expects, whole: false }
    }

    /// All of it was taken.
    pub(super) fn is_ended(&self) -> bool {
        self.decoder.is_ended()
    }
}

impl Connection {
    /// Waits for the next head, for as long as `client_idle` and `request_head` allow and the process is not draining.
    pub(super) async fn next(&self) -> Next {
        let mut searched = 0;
        std::future::poll_fn(|cx| {
            self.client.watch.listen(cx);
            loop {
                match self.buffered_head(&mut searched) {
                    Some(next) => return Poll::Ready(next),
                    None if self.client.watch.fired() == Some(Expiry::RequestHead) => return Poll::Ready(Next::Late),
                    None if self.is_over() => return Poll::Ready(Next::Closed),
                    // Its first bytes may have come while the answer before it was sent.
                    None if !self.input.borrow().is_empty() => self.head_begins(),
                    None => {}
                }
                match ready!(self.poll_fill(cx)) {
                    Ok(count) if count > 0 => self.head_begins(),
                    _ => return Poll::Ready(Next::Closed),
                }
            }
        })
        .await
    }

    /// The head that lies in the buffer; gives the buffer back if that is empty.
    fn buffered_head(&self, searched: &mut usize) -> Option<Next> {
        let mut input = self.input.borrow_mut();
        let blank = blank_lines(&input);
        if blank > 0 {
            input.advance(blank);
            *searched = 0;
        }
        if input.is_empty() {
            self.client.local.buffers.reclaim_input(std::mem::take(&mut *input));
            return None;
        }
        if let Some(end) = head_end(&input, searched.saturating_sub(3)) {
            return Some(Next::Head(input.split_to(end).freeze()));
        }
        let fresh = input.get(*searched..).unwrap_or_default();
        let judged = *searched == 0 || fresh.contains(&b'\n') || input.len() >= self.head_bytes_max();
        *searched = input.len();
        if !judged {
            // Else a head that comes byte by byte would be read as often as it has bytes.
            return None;
        }
        // What is no head will not become one by waiting.
        parse_request(&input, self.head_bytes_max(), &mut line_room()).err().map(Next::Refused)
    }

    /// Nothing more is wanted of a client that has no request under way.
    fn is_over(&self) -> bool {
        let phase = self.client.local.shared.phase();
        let expired = matches!(self.client.watch.fired(), Some(Expiry::ClientIdle | Expiry::ClientStall));
        let idle = self.input.borrow().is_empty() && phase >= Phase::Draining;
        expired || (idle && !(phase < Phase::Ending && self.first_is_on_its_way()))
    }

    /// Who connected just before the drain has a request on its way, and hears in words that this is no time for it.
    fn first_is_on_its_way(&self) -> bool {
        let first = self.client.request_id.get() == RequestId::NONE;
        if first && !self.hurried.replace(true) {
            self.client.watch.arm(Expiry::ClientIdle, self.client.local.clock.now() + FIRST_REQUEST_MS);
        }
        first
    }

    /// Reads what is left of a body that nobody wanted. Whether that was all: not beyond Go's bound, nor where the client
    /// waits for a word to send it, nor when it falls silent.
    pub(super) async fn skip_body(&self) -> bool {
        {
            let body = self.body.borrow();
            let too_much = body.decoder.left().is_some_and(|left| left > UNREAD_BYTES_MAX as u64);
            if body.is_ended() || body.expects || too_much {
                return body.is_ended();
            }
        }
        let watch = &self.client.watch;
        body::arm_idle(&self.client);
        let (mut source, mut left) = (Body(self), UNREAD_BYTES_MAX);
        let whole = std::future::poll_fn(|cx| {
            watch.listen(cx);
            loop {
                if watch.fired() == Some(Expiry::RequestBody) {
                    return Poll::Ready(false);
                }
                match ready!(source.poll_piece(cx)) {
                    None => return Poll::Ready(true),
                    Some(Ok(piece)) if piece.len() <= left => left -= piece.len(),
                    Some(_) => return Poll::Ready(false),
                }
            }
        })
        .await;
        watch.disarm();
        whole
    }

    /// A head has begun, and has its time to end; once the process drains, which it must not hold up, only a moment.
    fn head_begins(&self) {
        let (local, watch) = (&self.client.local, &self.client.watch);
        let draining = local.shared.phase() >= Phase::Draining;
        if watch.armed() == Some(Expiry::ClientIdle) || (draining && !self.hurried.replace(true)) {
            let wait = if draining { FIRST_REQUEST_MS } else { local.rules().times.request_head };
            watch.arm(Expiry::RequestHead, local.clock.now() + wait);
        }
    }

    /// Reads once; the number of bytes, zero at the end. Holds no buffer while nothing comes.
    pub(super) fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut stream = self.stream.borrow_mut();
        ready!(stream.poll_read_ready(cx))?;
        let mut input = self.input.borrow_mut();
        if input.capacity() == 0 {
            *input = self.client.local.buffers.input();
        } else if input.len() == input.capacity() {
            input.reserve(GROW_BYTES);
        }
        // AsyncRead rather than try_read: after a short read it clears the readiness without another system call.
        let read = pin!(stream.read_buf(&mut *input)).poll(cx);
        if read.is_pending() && input.is_empty() {
            // Readiness was stale: nothing came, and nobody knows when something will.
            self.client.local.buffers.reclaim_input(std::mem::take(&mut *input));
        }
        read
    }

    /// Resolves when the client has left. To be polled while its answer is waited for; what it sends meanwhile is kept.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        while self.input.borrow().len() < AHEAD_BYTES_MAX {
            match ready!(self.poll_fill(cx)) {
                Ok(count) if count > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Makes room for what is known to come.
    fn expect_bytes(&self, left: u64) {
        let mut input = self.input.borrow_mut();
        let most = if self.body.borrow().whole { RESERVED_BYTES_MAX } else { PIECE_BYTES_MAX };
        let missing = left.min(most).saturating_sub(input.len() as u64);
        if input.capacity() > 0 || missing > 0 {
            reserve(&mut input, usize::try_from(missing).unwrap_or(0));
        }
    }

    /// Takes the next piece of the body out of the buffer.
    fn buffered_piece(&self) -> Option<Result<Bytes, String>> {
        let mut body = self.body.borrow_mut();
        let mut input = self.input.borrow_mut();
        if let (true, Some(left)) = (body.whole, body.decoder.left())
            && (input.len() as u64) < left
            && left <= RESERVED_BYTES_MAX
        {
            return None;
        }
        let (used, length) = match body.decoder.feed(&input) {
            Ok((used, Item::Data(data))) => (used, data.len()),
            Ok((used, Item::More | Item::End | Item::Head(_))) => {
                input.advance(used);
                return None;
            }
            Err(error) => return Some(Err(error.to_string())),
        };
        // Payload is the last of what was taken.
        let taken = input.split_to(used).freeze();
        Some(Ok(taken.slice(used - length..)))
    }
}

fn reserve(input: &mut BytesMut, missing: usize) {
    if missing > input.capacity() - input.len() {
        input.reserve(missing);
    }
}

/// The body of the request being served.
pub(super) struct Body<'c>(pub(super) &'c Connection);

impl BodySource for Body<'_> {
    fn is_end(&self) -> bool {
        self.0.body.borrow().is_ended()
    }

    fn want_whole(&mut self) {
        self.0.body.borrow_mut().whole = true;
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        let connection = self.0;
        let local = &connection.client.local;
        // Once, and only to a client that has sent nothing of its body yet.
        if std::mem::take(&mut connection.body.borrow_mut().expects)
            && connection.input.borrow().is_empty()
            && !connection.body.borrow().is_ended()
        {
            connection.lent_output().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        // Only what was just written stands there, and no client sends a body without reading: a turn at most.
        if ready!(connection.poll_flush(cx)).is_err() {
            return Poll::Ready(Some(Err("the client left".to_owned())));
        }
        loop {
            if let Some(piece) = connection.buffered_piece() {
                return Poll::Ready(Some(piece));
            }
            if connection.body.borrow().is_ended() {
                return Poll::Ready(None);
            }
            if let Some(left) = connection.body.borrow().decoder.left() {
                connection.expect_bytes(left);
            }
            match ready!(connection.poll_fill(cx)) {
                Ok(count) if count > 0 => {
                    let until = local.clock.now() + local.rules().times.request_body_idle;
                    connection.client.watch.arm(Expiry::RequestBody, until);
                }
                Ok(_) => return Poll::Ready(Some(Err("the client left inside the body".to_owned()))),
                Err(error) => return Poll::Ready(Some(Err(error.to_string()))),
            }
        }
    }
}
