//! The client's socket as hyper sees it, recording progress on the connection's [`Watch`].
//!
//! Deadlines that hyper cannot know (idle, slow head, stalled client) fail the next poll here.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::clock::{Clock, Millis};
use crate::proxy::watch::{Expiry, Watch};

/// A client connection's bytes.
#[derive(Debug)]
pub struct ClientIo {
    inner: TokioIo<TcpStream>,
    /// Read before hyper came in, and not given to it yet.
    read: BytesMut,
    watch: Rc<Watch>,
    clock: Clock,
    request_head_ms: Millis,
}

impl ClientIo {
    /// Wraps a socket from which `read` was read before.
    #[must_use]
    pub fn new(stream: TcpStream, read: BytesMut, watch: Rc<Watch>, clock: Clock, request_head_ms: Millis) -> Self {
        Self { inner: TokioIo::new(stream), read, watch, clock, request_head_ms }
    }

    /// The deadline that ends the connection without a word, if one passed.
    fn expired(&self) -> io::Result<()> {
        match self.watch.fired() {
            Some(Expiry::ClientIdle | Expiry::RequestHead | Expiry::ClientStall) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl Read for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.watch.listen(cx);
        self.expired()?;
        if !self.read.is_empty() {
            let room = buf.remaining().min(self.read.len());
            buf.put_slice(&self.read.split_to(room));
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        // The first bytes after idleness begin a head; an end of stream arms it too, harmlessly.
        if self.watch.armed() == Some(Expiry::ClientIdle) {
            self.watch.arm(Expiry::RequestHead, self.clock.now() + self.request_head_ms);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.expired()?;
        match Pin::new(&mut self.inner).poll_write(cx, buf) {
            Poll::Pending => {
                self.watch.write_blocked(self.clock.now());
                Poll::Pending
            }
            Poll::Ready(written) => {
                self.watch.write_flows();
                Poll::Ready(written)
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
