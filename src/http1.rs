//! HTTP/1.1 without I/O, both sides of it: heads are written into buffers and read from byte slices.
//!
//! Called by front for what clients send, by the proxy's upstream client and by the poller for what nodes answer; each
//! owns its sockets and feeds what it read. The decoders
//! take any split of the bytes and borrows its payload from the caller's buffer. Must never read, write, wait, know a
//! clock or a node, or panic on any input.
//!
//! Strictness: what decides where a message ends is taken literally or refused ([`DecodeError`]), since a connection
//! whose framing is in doubt must not carry a second request. All else passes.

mod chunked;
mod decode;
mod encode;
mod head;
mod lines;
mod name;
mod request;
mod says;
#[cfg(test)]
mod tests;

pub use chunked::Chunks;
pub use decode::{ResponseDecoder, head_end};
pub use encode::{RequestHead, encode_request};
pub use lines::{Lines, push_decimal};
pub(crate) use lines::{decimal, push_line};
pub use name::{is_name, name_begins};
pub use request::{BodyDecoder, BodyFraming, InboundHead, LineRoom, Refused, blank_lines, line_room, parse_request};
pub(crate) use says::tokens;

use http::StatusCode;

/// The head of a final (not 1xx) response.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status code, 200 to 999.
    pub status: StatusCode,
    /// Every header line in order, hop-by-hop headers included.
    pub lines: Lines,
    /// Where the body ends.
    pub framing: Framing,
    /// The node will close, or the framing is such that the connection must not be used again.
    pub close: bool,
    /// What `Keep-Alive` promised.
    pub keep_alive: KeepAlive,
}

/// Where a response's body ends. Source: RFC 9112 §6.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// There is none: 204, 304, or an answer to HEAD.
    None,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// When the node closes.
    UntilClose,
}

/// The `Keep-Alive` header; `None` where it says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeepAlive {
    /// Seconds without a request after which the node closes.
    pub timeout_s: Option<u32>,
    /// Requests the node will serve on this connection: in all (llama.cpp, a constant) or from now on (Apache, falling).
    pub max: Option<u32>,
}

/// What [`ResponseDecoder::feed`] found.
#[derive(Debug)]
pub enum Item<'a> {
    /// All input was taken and the message goes on.
    More,
    /// The final head; interim ones (1xx) are skipped.
    Head(ResponseHead),
    /// Payload, never empty: the last bytes of what this call consumed.
    Data(&'a [u8]),
    /// The message is complete. Input beyond it is not consumed.
    End,
}

/// Why bytes are not a response.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not a head: bad status line or header line.
    #[error("malformed response head: {0}")]
    Head(&'static str),
    /// The head (or the trailer section) is larger than allowed.
    #[error("response head larger than {max} bytes")]
    HeadTooLarge {
        /// The limit it went over.
        max: usize,
    },
    /// `Content-Length` is not one plain number.
    #[error("bad Content-Length")]
    Length,
    /// A transfer coding other than `chunked`.
    #[error("unsupported Transfer-Encoding")]
    TransferEncoding,
    /// A chunk's size line or its end is malformed.
    #[error("malformed chunk: {0}")]
    Chunk(&'static str),
    /// 101, which we never ask for.
    #[error("unexpected 101 Switching Protocols")]
    Upgrade,
    /// The connection ended before the first byte of a head.
    #[error("closed before the response")]
    ClosedEarly,
    /// The connection ended inside the head.
    #[error("closed inside the response head")]
    CutHead,
    /// The connection ended inside the body.
    #[error("closed inside the response body")]
    CutBody,
}
