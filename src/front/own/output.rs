//! Writes an answer's bytes into a buffer: its head, and the framing of its body. Pure.
//!
//! Lines of a node go out as the node spelled them; our own as Go spells its own.

use http::header::{CONNECTION, CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderName, StatusCode};

use crate::http1::{Lines, is_name, push_decimal, push_line};
use crate::proxy::headers;
use crate::proxy::upstream::Payload;

/// How a client finds the end of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    /// There is none, and no line says so.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
}

impl Framing {
    /// Bytes that were announced.
    pub(super) fn length(self) -> u64 {
        match self {
            Self::Length(length) => length,
            Self::None | Self::Chunked => 0,
        }
    }
}

/// What a head is made of.
pub(super) struct Head<'a> {
    pub(super) status: StatusCode,
    /// Our own lines.
    pub(super) ours: &'a HeaderMap,
    /// The node's lines.
    pub(super) node: Option<&'a Lines>,
    pub(super) framing: Framing,
    /// The connection ends with this answer.
    pub(super) close: bool,
    /// It has a `Date`.
    pub(super) dated: bool,
}

/// Appends the head, blank line included. `tell` appends the lines about the request, `date` the value of a `Date` line.
pub(super) fn head(
    out: &mut Vec<u8>,
    head: &Head<'_>,
    tell: impl FnOnce(&mut Vec<u8>),
    date: impl FnOnce(&mut Vec<u8>),
) {
    status_line(out, head.status);
    let mut dated = !head.dated;
    if let Some(lines) = head.node {
        for (name, value) in headers::to_client(lines) {
            dated |= is_name(name, "date");
            push_line(out, name, value);
        }
    }
    for (name, value) in head.ours {
        if *name == CONNECTION {
            continue;
        }
        dated |= *name == DATE;
        title_case(out, name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    tell(out);
    if !dated {
        out.extend_from_slice(b"Date: ");
        date(out);
        out.extend_from_slice(b"\r\n");
    }
    match head.framing {
        Framing::Length(length) if !head.ours.contains_key(CONTENT_LENGTH) => {
            out.extend_from_slice(b"Content-Length: ");
            push_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::None | Framing::Length(_) => {}
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    if head.close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `content-type` as `Content-Type`.
fn title_case(out: &mut Vec<u8>, name: &HeaderName) {
    let mut begins = true;
    for byte in name.as_str().bytes() {
        out.push(if begins { byte.to_ascii_uppercase() } else { byte });
        begins = byte == b'-';
    }
}

/// Appends one piece of a body.
pub(super) fn piece(out: &mut Vec<u8>, framing: Framing, piece: &[u8]) {
    match framing {
        Framing::None => {}
        Framing::Length(_) => out.extend_from_slice(piece),
        Framing::Chunked => chunk(out, &[piece]),
    }
}

/// Appends one chunk; none of no bytes, which would end the body.
fn chunk(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum();
    if length == 0 {
        return;
    }
    push_hex(out, length);
    out.extend_from_slice(b"\r\n");
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.extend_from_slice(b"\r\n");
}

/// Appends a piece of a body with a length, and not a byte beyond it: that would begin the next answer.
pub(super) fn owed(out: &mut Vec<u8>, owed: &mut u64, piece: &[u8]) {
    let take = usize::try_from(*owed).map_or(piece.len(), |owed| owed.min(piece.len()));
    out.extend_from_slice(&piece[..take]);
    *owed -= take as u64;
}

/// Appends payload as the node framed it: whole chunks as they are.
pub(super) fn payload(out: &mut Vec<u8>, framing: Framing, payload: Payload<'_>) {
    match payload {
        Payload::Chunks(chunks) if framing == Framing::Chunked => out.extend_from_slice(chunks.as_bytes()),
        Payload::Parts(parts) if framing == Framing::Chunked => chunk(out, parts),
        payload => payload.each(|part| piece(out, framing, part)),
    }
}

/// Appends the end of a body.
pub(super) fn end(out: &mut Vec<u8>, framing: Framing) {
    if framing == Framing::Chunked {
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

fn push_hex(out: &mut Vec<u8>, value: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - value.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.push(DIGITS[value >> (4 * place) & 15]);
    }
}

/// The whole answer to a head that cannot be served: as Go words it, without a `Date`.
/// Source: contract of the wire, "Bad framing"; Go's `net/http/server.go`.
pub(super) fn refusal(out: &mut Vec<u8>, status: StatusCode, text: Option<&str>) {
    const LINES: &[u8] = b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n";
    status_line(out, status);
    out.extend_from_slice(LINES);
    match text {
        Some(text) => out.extend_from_slice(text.as_bytes()),
        None => {
            out.extend_from_slice(status.as_str().as_bytes());
            out.push(b' ');
            out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_head_has_the_nodes_lines_then_ours_then_the_framing() {
        let mut node = Lines::default();
        for (name, value) in [
            ("Content-Type", "application/x-ndjson"),
            ("Date", "Wed, 25 Nov 2026 10:00:00 GMT"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "keep-alive"),
        ] {
            node.push(name.as_bytes(), value.as_bytes());
        }
        let mut ours = HeaderMap::new();
        ours.insert("access-control-allow-origin", HeaderValue::from_static("*"));
        ours.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut out = Vec::new();
        let parts = Head {
            status: StatusCode::OK,
            ours: &ours,
            node: Some(&node),
            framing: Framing::Chunked,
            close: true,
            dated: true,
        };
        let tell = |out: &mut Vec<u8>| out.extend_from_slice(b"X-Request-Id: 7\r\n");
        head(&mut out, &parts, tell, |_| panic!("the node gave one"));
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\n\
                        Access-Control-Allow-Origin: *\r\nX-Request-Id: 7\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        assert_eq!(std::str::from_utf8(&out), Ok(expected));
    }

    #[test]
    fn an_answer_of_ours_is_dated_and_has_one_length() {
        let mut ours = HeaderMap::new();
        ours.insert(CONTENT_LENGTH, HeaderValue::from_static("17"));
        let mut out = Vec::new();
        let status = StatusCode::NOT_FOUND;
        let parts = Head { status, ours: &ours, node: None, framing: Framing::Length(0), close: false, dated: true };
        head(&mut out, &parts, |_| {}, |out| out.extend_from_slice(b"now"));
        assert_eq!(out, b"HTTP/1.1 404 Not Found\r\nContent-Length: 17\r\nDate: now\r\n\r\n");
    }

    #[test]
    fn pieces_are_framed_each_on_its_own() {
        let mut out = Vec::new();
        for bytes in [&b"a"[..], b"", &[b'x'; 16], &[b'y'; 255]] {
            piece(&mut out, Framing::Chunked, bytes);
        }
        end(&mut out, Framing::Chunked);
        let expected = format!("1\r\na\r\n10\r\n{}\r\nff\r\n{}\r\n0\r\n\r\n", "x".repeat(16), "y".repeat(255));
        assert_eq!(out, expected.as_bytes());
        out.clear();
        piece(&mut out, Framing::Length(3), b"abc");
        end(&mut out, Framing::Length(3));
        assert_eq!(out, b"abc");
    }
}
