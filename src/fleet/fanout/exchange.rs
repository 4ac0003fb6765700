//! One exchange with one node, on a connection of its own: the request whole or piece by piece, the answer as it comes.
//!
//! Used by every operation of [`super`]; runs on the control thread. Apart from the poller's client because answers
//! here are streams without a bound in time, and bodies may be larger than any memory. The connection is closed whole
//! with its exchange, never half. Must never decide what a failure means for the others.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fleet::{Target, fetch};
use crate::http1::{DecodeError, Item, ResponseDecoder};
use crate::ids::RequestId;

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
/// The largest head taken from a node.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The longest line of a node's stream; Ollama's own clients take 8 MB, its progress lines have some 200 bytes.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// The largest answer gathered whole.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Time for the body of a refusal.
const REFUSAL_WAIT: Duration = Duration::from_secs(60);
/// A node that is gone without a word is noticed after some multiple of this, however long it may be silent.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Why a node did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fail {
    /// It refused, before anything else.
    Refused(Refused),
    /// It said an error within its stream.
    Said(String),
    /// It was lost, in our words.
    Lost(String),
}

/// A node's refusal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Status.
    pub status: u16,
    /// As sent.
    pub content_type: Option<Box<str>>,
    /// As sent.
    pub body: Bytes,
}

impl Refused {
    /// What it says: the `error` of its object, else the body.
    #[must_use]
    pub fn text(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Object {
            error: String,
        }
        match serde_json::from_slice::<Object>(&self.body) {
            Ok(object) => object.error,
            Err(_) if self.body.is_empty() => format!("status {}", self.status),
            Err(_) => String::from_utf8_lossy(&self.body).trim().to_owned(),
        }
    }
}

impl Fail {
    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Refused(refused) => refused.text(),
            Self::Said(text) | Self::Lost(text) => text.clone(),
        }
    }

    /// The node could not be reached or went away: what it was asked may be asked again when it is back.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

fn lost(error: &io::Error) -> Fail {
    Fail::Lost(format!("connection lost: {error}"))
}

fn undecodable(error: &DecodeError) -> Fail {
    Fail::Lost(error.to_string())
}

/// The head of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// Status.
    pub status: u16,
    /// As sent.
    pub content_type: Option<Box<str>>,
}

/// How a request's body is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// There is none.
    Nothing,
    /// So many bytes.
    Length(u64),
    /// In chunks, its length unknown.
    Chunked,
}

/// One exchange.
#[derive(Debug)]
pub struct Exchange {
    stream: TcpStream,
    decoder: ResponseDecoder,
    framing: Framing,
    buffer: Box<[u8]>,
    /// What of `buffer` was read and not decoded.
    at: usize,
    filled: usize,
    /// Of a line that has not ended.
    partial: BytesMut,
    ended: bool,
}

impl Exchange {
    /// Connects and sends the head, under the id of the request that it is for. A body follows by [`Exchange::send`] and [`Exchange::finish`].
    ///
    /// # Errors
    /// The node cannot be reached.
    pub async fn begin(
        target: &Target,
        id: RequestId,
        method: &str,
        path: &str,
        framing: Framing,
    ) -> Result<Self, Fail> {
        let mut stream = fetch::dial(target).await.map_err(|error| Fail::Lost(error.to_string()))?;
        // Without it a node that vanished would be waited for without end; failing to set it costs only that.
        let _ = SockRef::from(&stream)
            .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE));
        let head = head(target, id, method, path, framing);
        stream.write_all(&head).await.map_err(|error| lost(&error))?;
        Ok(Self {
            stream,
            decoder: ResponseDecoder::new(method == "HEAD", HEAD_BYTES_MAX),
            framing,
            buffer: vec![0; READ_BYTES].into(),
            at: 0,
            filled: 0,
            partial: BytesMut::new(),
            ended: false,
        })
    }

    /// Sends a request with a whole JSON body (none if it is empty) and reads the answer's head.
    ///
    /// # Errors
    /// The node cannot be reached, or went away.
    pub async fn ask(
        target: &Target,
        id: RequestId,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(Self, Head), Fail> {
        let framing = if body.is_empty() { Framing::Nothing } else { Framing::Length(body.len() as u64) };
        let mut exchange = Self::begin(target, id, method, path, framing).await?;
        exchange.stream.write_all(body).await.map_err(|error| lost(&error))?;
        let head = exchange.head().await?;
        Ok((exchange, head))
    }

    /// Sends a piece of the body. True: the node has begun to answer (or left), and takes no more.
    ///
    /// # Errors
    /// The connection broke, or the node took nothing for `patience`.
    pub async fn send(&mut self, piece: &[u8], patience: Duration) -> Result<bool, Fail> {
        if piece.is_empty() {
            return Ok(false);
        }
        if self.framing != Framing::Chunked {
            return self.write(piece, patience).await;
        }
        let size = format!("{:x}\r\n", piece.len());
        Ok(self.write(size.as_bytes(), patience).await?
            || self.write(piece, patience).await?
            || self.write(b"\r\n", patience).await?)
    }

    /// The body is complete.
    ///
    /// # Errors
    /// As [`Exchange::send`].
    pub async fn finish(&mut self, patience: Duration) -> Result<bool, Fail> {
        if self.framing == Framing::Chunked { self.write(b"0\r\n\r\n", patience).await } else { Ok(false) }
    }

    async fn write(&mut self, mut rest: &[u8], patience: Duration) -> Result<bool, Fail> {
        while !rest.is_empty() {
            let turn = async {
                tokio::select! {
                    biased;
                    readable = self.stream.readable() => readable.map(|()| true),
                    writable = self.stream.writable() => writable.map(|()| false),
                }
            };
            let answers = match tokio::time::timeout(patience, turn).await {
                Ok(turn) => turn.map_err(|error| lost(&error))?,
                Err(_) => return Err(Fail::Lost(format!("took no byte for {} s", patience.as_secs()))),
            };
            if answers {
                match self.stream.try_read(&mut self.buffer) {
                    Ok(read) => {
                        (self.at, self.filled) = (0, read);
                        return Ok(true);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(lost(&error)),
                }
            }
            match self.stream.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(lost(&error)),
            }
        }
        Ok(false)
    }

    /// Reads the answer's head.
    ///
    /// # Errors
    /// The node went away, or does not speak HTTP.
    pub async fn head(&mut self) -> Result<Head, Fail> {
        loop {
            let (used, item) = self.decoder.feed(&self.buffer[self.at..self.filled]).map_err(|e| undecodable(&e))?;
            self.at += used;
            if let Item::Head(head) = item {
                let content_type = head.lines.get("content-type");
                let content_type = content_type.and_then(|value| std::str::from_utf8(value).ok()).map(Box::from);
                return Ok(Head { status: head.status.as_u16(), content_type });
            }
            self.read().await?;
        }
    }

    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// It broke off.
    pub async fn data(&mut self) -> Result<Option<Bytes>, Fail> {
        while !self.ended {
            let (used, item) = self.decoder.feed(&self.buffer[self.at..self.filled]).map_err(|e| undecodable(&e))?;
            self.at += used;
            match item {
                Item::Data(data) => return Ok(Some(Bytes::copy_from_slice(data))),
                Item::End => self.ended = true,
                Item::Head(_) => {}
                Item::More => self.read().await?,
            }
        }
        Ok(None)
    }

    /// The next line of the body without its end, empty ones left out; `None` at its end.
    ///
    /// # Errors
    /// It broke off, or has no lines.
    pub async fn line(&mut self) -> Result<Option<Bytes>, Fail> {
        let mut searched = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.partial[searched..]) {
                let mut line = self.partial.split_to(searched + end + 1);
                searched = 0;
                line.truncate(line.trim_ascii_end().len());
                if !line.is_empty() {
                    return Ok(Some(line.freeze()));
                }
                continue;
            }
            searched = self.partial.len();
            if searched > LINE_BYTES_MAX {
                return Err(Fail::Lost(format!("a line of more than {LINE_BYTES_MAX} bytes")));
            }
            match self.data().await? {
                Some(data) => self.partial.extend_from_slice(&data),
                None if self.partial.trim_ascii().is_empty() => return Ok(None),
                None => return Ok(Some(self.partial.split().freeze())),
            }
        }
    }

    /// The whole body of a short answer.
    ///
    /// # Errors
    /// It broke off, or is not short.
    pub async fn whole(&mut self) -> Result<Bytes, Fail> {
        let mut all = self.partial.split();
        while let Some(data) = self.data().await? {
            all.extend_from_slice(&data);
            if all.len() > BODY_BYTES_MAX {
                return Err(Fail::Lost(format!("an answer of more than {BODY_BYTES_MAX} bytes")));
            }
        }
        Ok(all.freeze())
    }

    /// The answer is a refusal: reads the rest of it.
    pub async fn refused(&mut self, head: Head) -> Fail {
        match tokio::time::timeout(REFUSAL_WAIT, self.whole()).await {
            Ok(Ok(body)) => Fail::Refused(Refused { status: head.status, content_type: head.content_type, body }),
            Ok(Err(fail)) => fail,
            Err(_) => Fail::Lost(format!("a refusal ({}) without an end", head.status)),
        }
    }

    async fn read(&mut self) -> Result<(), Fail> {
        let read = self.stream.read(&mut self.buffer).await.map_err(|error| lost(&error))?;
        (self.at, self.filled) = (0, read);
        if read == 0 {
            // The end of a body without a length; whatever else it cuts is an error.
            self.decoder.eof().map_err(|error| undecodable(&error))?;
            self.ended = true;
        }
        Ok(())
    }
}

/// The request's head. One exchange a connection, and the node is told so.
fn head(target: &Target, id: RequestId, method: &str, path: &str, framing: Framing) -> Vec<u8> {
    let mut out = format!("{method} {}{path} HTTP/1.1\r\nhost: {}\r\n", clean(&target.base_path), clean(&target.host));
    out += concat!("user-agent: herdgate/", env!("CARGO_PKG_VERSION"), "\r\n");
    out += "accept: application/json\r\nconnection: close\r\n";
    match framing {
        Framing::Nothing => {}
        Framing::Length(length) => out += &format!("content-type: application/json\r\ncontent-length: {length}\r\n"),
        Framing::Chunked => out += "content-type: application/json\r\ntransfer-encoding: chunked\r\n",
    }
    if let Some(key) = &target.api_key {
        out += &format!("authorization: Bearer {}\r\n", clean(&key.0));
    }
    let mut out = out.into_bytes();
    if id != RequestId::NONE {
        out.extend_from_slice(b"x-request-id: ");
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Text of the configuration without what would end its line.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
