//! One client connection of a simulated node: requests in, answers out, and the eye on a client that goes.
//!
//! Owned by one task. Every byte of an answer passes [`Conn::send`], which is where cuts and hangs happen.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::gojson;
use super::http::{self, BadHead, Expect, Head, Length};

/// The most of an unread body that Go reads before it answers.
const UNREAD_MAX: u64 = 256 << 10;

/// Why nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The client has gone.
    Client,
    /// A fault ended the answer.
    Fault,
}

/// What the wire does to an answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire {
    /// End the connection after so many bytes of the answer, by a reset or not.
    pub(super) cut: Option<(u64, bool)>,
    /// Send nothing more after so many bytes.
    pub(super) hang: Option<u64>,
}

/// A request's body.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// Its end has not arrived yet, but its JSON value has: the client's going will not be noticed.
    pub(super) open: bool,
    /// It broke off, with Go's text.
    pub(super) broken: Option<&'static str>,
}

/// A connection.
pub(super) struct Conn {
    stream: TcpStream,
    inbox: Vec<u8>,
    at: usize,
    /// Bytes of the current answer.
    sent: u64,
    pub(super) wire: Wire,
    /// Whether the client's going is looked for.
    watch: bool,
    /// The client has closed its side.
    ended: bool,
    chunks: Chunks,
}

/// Where the reading of a chunked body stands.
#[derive(Debug, Default, Clone, Copy)]
struct Chunks {
    left: u64,
    /// The line break after a chunk's data is due.
    line_due: bool,
    trailer: bool,
    /// The last line has been read.
    ended: bool,
}

impl Conn {
    pub(super) fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            inbox: Vec::with_capacity(2048),
            at: 0,
            sent: 0,
            wire: Wire::default(),
            watch: true,
            ended: false,
            chunks: Chunks::default(),
        }
    }

    /// The next request's head; nothing when the client has closed.
    pub(super) async fn head(&mut self) -> io::Result<Result<Option<Head>, BadHead>> {
        self.inbox.drain(..self.at);
        self.at = 0;
        self.sent = 0;
        self.wire = Wire::default();
        self.watch = true;
        self.chunks = Chunks::default();
        loop {
            let blank = self.inbox.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            self.inbox.drain(..blank);
            if !self.inbox.is_empty() {
                match http::head(&self.inbox) {
                    Ok(Some((head, length))) => {
                        self.at = length;
                        return Ok(Ok(Some(head)));
                    }
                    Ok(None) => {}
                    Err(bad) => return Ok(Err(bad)),
                }
            }
            if self.fill().await? == 0 {
                return Ok(Ok(None));
            }
        }
    }

    /// Reads more; 0 when the client has closed its side.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        loop {
            self.stream.readable().await?;
            match self.try_fill() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    fn try_fill(&mut self) -> io::Result<usize> {
        if self.inbox.capacity() - self.inbox.len() < 1024 {
            self.inbox.reserve(self.inbox.capacity().clamp(1024, 1 << 20));
        }
        let read = self.stream.try_read_buf(&mut self.inbox)?;
        self.ended = read == 0;
        Ok(read)
    }

    /// Reads the whole body, as far as it is needed to start.
    pub(super) async fn body(&mut self, head: &Head) -> io::Result<Body> {
        let mut body = Body::default();
        if head.expect == Expect::Continue && head.length != Length::Sized(0) {
            self.push(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        loop {
            match self.take(head, &mut body) {
                Ok(true) => return Ok(body),
                Ok(false) => {}
                Err(text) => {
                    body.broken = Some(text);
                    return Ok(body);
                }
            }
            let whole = head.length == Length::Chunked && body.bytes.trim_ascii_end().ends_with(b"}");
            if whole && gojson::parse(&body.bytes).is_ok() {
                body.open = true;
                self.watch = false;
                return Ok(body);
            }
            if self.fill().await? == 0 {
                body.broken = Some("unexpected EOF");
                return Ok(body);
            }
        }
    }

    /// Reads a body's next piece; nothing at its end.
    pub(super) async fn piece(&mut self, head: &Head, taken: &mut u64) -> io::Result<Option<Vec<u8>>> {
        loop {
            let mut body = Body::default();
            let whole = match head.length {
                Length::Sized(size) => {
                    let take = (size - *taken).min((self.inbox.len() - self.at) as u64);
                    body.bytes.extend_from_slice(&self.inbox[self.at..self.at + usize::try_from(take).unwrap_or(0)]);
                    self.at += body.bytes.len();
                    *taken += take;
                    *taken == size
                }
                Length::Chunked => self.take(head, &mut body).map_err(io::Error::other)?,
            };
            self.inbox.drain(..self.at);
            self.at = 0;
            if !body.bytes.is_empty() {
                return Ok(Some(body.bytes));
            }
            if whole {
                return Ok(None);
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Moves what has arrived of a body; whether that was its end.
    fn take(&mut self, head: &Head, body: &mut Body) -> Result<bool, &'static str> {
        match head.length {
            Length::Sized(size) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                if self.inbox.len() - self.at < size {
                    return Ok(size == 0);
                }
                body.bytes.extend_from_slice(&self.inbox[self.at..self.at + size]);
                self.at += size;
                Ok(true)
            }
            Length::Chunked => self.take_chunks(body),
        }
    }

    fn take_chunks(&mut self, body: &mut Body) -> Result<bool, &'static str> {
        while !self.chunks.ended {
            if self.chunks.left > 0 {
                let here = self.inbox.len() - self.at;
                let take = usize::try_from(self.chunks.left).unwrap_or(usize::MAX).min(here);
                if take == 0 {
                    return Ok(false);
                }
                body.bytes.extend_from_slice(&self.inbox[self.at..self.at + take]);
                self.at += take;
                self.chunks.left -= take as u64;
                self.chunks.line_due = self.chunks.left == 0;
                continue;
            }
            let rest = &self.inbox[self.at..];
            let Some(end) = memchr::memchr(b'\n', rest) else { return Ok(false) };
            let line = rest[..end].trim_ascii();
            self.at += end + 1;
            if self.chunks.trailer {
                self.chunks.ended = line.is_empty();
            } else if self.chunks.line_due {
                self.chunks.line_due = false;
                if !line.is_empty() {
                    return Err("malformed chunked encoding");
                }
            } else {
                let digits = line.split(|b| *b == b';').next().unwrap_or(b"").trim_ascii();
                let size = std::str::from_utf8(digits).ok().and_then(|d| u64::from_str_radix(d, 16).ok());
                let size = size.ok_or("invalid byte in chunk length")?;
                self.chunks.left = size;
                self.chunks.trailer = size == 0;
            }
        }
        Ok(true)
    }

    /// Reads and drops a body that no handler wants, as far as Go does; whether the connection must close instead.
    pub(super) async fn discard(&mut self, head: &Head) -> io::Result<bool> {
        if head.length == Length::Sized(0) {
            return Ok(false);
        }
        if head.expect == Expect::Continue || matches!(head.length, Length::Sized(size) if size > UNREAD_MAX) {
            return Ok(true);
        }
        let mut taken = 0;
        let mut dropped = 0;
        while let Some(piece) = self.piece(head, &mut taken).await? {
            dropped += piece.len() as u64;
            if dropped > UNREAD_MAX {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends the connection so that an answer before an unread body still arrives.
    pub(super) async fn close_gently(mut self) {
        let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
        let drain = async {
            while !self.ended {
                self.inbox.clear();
                if self.fill().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), drain).await;
    }

    /// Waits for the end of a body that was open when its request started: Go holds the answer back till then.
    pub(super) async fn rest(&mut self, head: &Head) -> io::Result<()> {
        let mut scrap = Body::default();
        while self.take(head, &mut scrap) == Ok(false) {
            if self.fill().await? == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the client is already known to have gone, asked without waiting.
    pub(super) fn gone_now(&mut self) -> bool {
        if !self.watch || self.at < self.inbox.len() {
            return false;
        }
        match self.try_fill() {
            Ok(read) => read == 0,
            Err(e) => e.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Resolves when the client goes; never if that cannot be seen.
    pub(super) async fn gone(&mut self) {
        loop {
            if !self.watch || self.at < self.inbox.len() {
                return std::future::pending().await;
            }
            if !matches!(self.fill().await, Ok(1..)) {
                return;
            }
        }
    }

    /// Sends bytes of an answer.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let end = self.sent + bytes.len() as u64;
        let limit = self.wire.cut.map(|(at, _)| at).into_iter().chain(self.wire.hang).min().filter(|at| *at < end);
        let here = limit.map_or(bytes.len(), |at| usize::try_from(at.saturating_sub(self.sent)).unwrap_or(0));
        self.push(&bytes[..here]).await.map_err(|_| Stop::Client)?;
        self.sent += here as u64;
        let Some(limit) = limit else { return Ok(()) };
        if self.wire.hang.is_some_and(|at| at <= limit) {
            self.watch = true;
            self.gone().await;
        } else if self.wire.cut.is_some_and(|(_, reset)| reset) {
            self.reset();
        }
        Err(Stop::Fault)
    }

    /// Writes bytes that belong to no answer, whole.
    pub(super) async fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Makes the closing of this connection a reset.
    pub(super) fn reset(&self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// The bare socket, for one that is never answered nor closed.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}
