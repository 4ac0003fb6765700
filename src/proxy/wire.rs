//! One request on one connection: sends it, notices an early answer meanwhile, reads the answer. No task, no timer, no
//! policy; polled by an exchange and, once the client has left, by the lingering list.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pool::Life;
use super::upstream::Outgoing;
use crate::http1::{DecodeError, Item, KeepAlive, ResponseDecoder, ResponseHead};

/// Reads in one discarding turn before other tasks get theirs.
const DISCARD_READS_MAX: usize = 16;

/// An open connection that carries no request.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) life: Life,
}

impl Connection {
    /// Nothing was heard since the last answer. tokio answers from its cached readiness: no system call as long as
    /// epoll has reported nothing. Bytes nobody asked for are as bad as an end.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.stream.try_read(&mut [0_u8]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Why an exchange cannot go on.
#[derive(Debug)]
pub(super) enum Fault {
    /// End of stream before the first byte of an answer.
    Closed,
    Io(io::Error),
    Malformed(DecodeError),
}

/// What one read gave.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) head: Option<Box<ResponseHead>>,
    /// All payload of the read; empty where it was only counted.
    pub(super) data: Bytes,
}

/// A request in progress. It owns the connection; dropped, it closes it whole.
#[derive(Debug)]
pub(super) struct Wire {
    connection: Connection,
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
    /// Found behind payload that had to be delivered first.
    delayed: Option<DecodeError>,
}

impl Wire {
    pub(super) fn new(connection: Connection, request: &Outgoing, head_bytes_max: usize) -> Self {
        Self {
            reused: connection.life.served > 0,
            connection,
            decoder: ResponseDecoder::new(request.is_head, head_bytes_max),
            sent: 0,
            request_len: request.len(),
            write_error: None,
            sending_stopped: false,
            sent_at_us: None,
            heard: false,
            status: None,
            close: false,
            keep_alive: KeepAlive::default(),
            delayed: None,
        }
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
            let stream = Pin::new(&mut self.connection.stream);
            let in_head = self.sent < request.head.len();
            let polled = if in_head && !request.body.is_empty() {
                let slices = [IoSlice::new(&request.head[self.sent..]), IoSlice::new(&request.body)];
                stream.poll_write_vectored(cx, &slices)
            } else if in_head {
                stream.poll_write(cx, &request.head[self.sent..])
            } else {
                stream.poll_write(cx, &request.body[self.sent - request.head.len()..])
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

    /// Reads once, into `scratch`, and decodes all of it; again only if that gave neither head, payload nor end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<Gathered, Fault>> {
        loop {
            let length = match ready!(self.poll_fill(cx, scratch)) {
                Ok(0) => return Poll::Ready(Ok(Gathered::default())),
                Ok(length) => length,
                Err(fault) => return Poll::Ready(Err(fault)),
            };
            let (head, payload) = self.decode(&mut scratch[..length]).map_err(Fault::Malformed)?;
            if head.is_some() || !payload.is_empty() || self.is_ended() {
                return Poll::Ready(Ok(Gathered { head, data: Bytes::copy_from_slice(&scratch[payload]) }));
            }
        }
    }

    /// Reads and forgets until nothing is there (`Pending`), or the answer ended (`Ok`) or broke off.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<(), Fault>> {
        for _ in 0..DISCARD_READS_MAX {
            if self.is_ended() {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.poll_fill(cx, scratch)) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(length) => self.decode(&mut scratch[..length]).map_err(Fault::Malformed)?,
                Err(fault) => return Poll::Ready(Err(fault)),
            };
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The connection, if it can carry another request.
    pub(super) fn into_reusable(mut self, pool_idle_ms: u64) -> Option<(Connection, u64)> {
        if !self.is_ended() || self.close || !self.is_sent_whole() || self.write_error.is_some() {
            return None;
        }
        let idle_ms = self.connection.life.answered(self.keep_alive, pool_idle_ms)?;
        Some((self.connection, idle_ms))
    }

    /// One read. `Ok(0)`: the node closed, and that was the end of the answer.
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<usize, Fault>> {
        if let Some(error) = self.delayed.take() {
            return Poll::Ready(Err(Fault::Malformed(error)));
        }
        // AsyncRead rather than try_read: after a short read it clears the readiness without another system call.
        let mut buffer = ReadBuf::new(scratch);
        if let Err(error) = ready!(Pin::new(&mut self.connection.stream).poll_read(cx, &mut buffer)) {
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

    /// Decodes all of one read. Payload is moved together in place; the range says where it lies.
    fn decode(&mut self, input: &mut [u8]) -> Result<(Option<Box<ResponseHead>>, std::ops::Range<usize>), DecodeError> {
        let (mut head, mut payload, mut at) = (None, 0..0, 0);
        loop {
            let (used, found) = match self.decoder.feed(&input[at..]) {
                Ok((used, Item::Data(data))) => (used, data.len()),
                Ok((_, Item::More)) => break,
                Ok((used, Item::Head(found))) => {
                    self.note(&found);
                    head = Some(found);
                    (used, 0)
                }
                Ok((used, Item::End)) => {
                    // Bytes behind the end belong to no request of ours.
                    self.close |= at + used < input.len();
                    break;
                }
                Err(error) if head.is_none() && payload.is_empty() => return Err(error),
                Err(error) => {
                    self.delayed = Some(error);
                    break;
                }
            };
            at += used;
            if payload.is_empty() {
                payload = at - found..at;
            } else {
                input.copy_within(at - found..at, payload.end);
                payload.end += found;
            }
        }
        Ok((head, payload))
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
