//! HTTP/1.1 as Go's server writes it: request heads, response heads, chunks.
//!
//! Called by the connection of a simulated node. Pure: bytes in, bytes out.

use std::time::Duration;

use super::text;

/// The longest head that Go reads.
const HEAD_MAX: usize = (1 << 20) + 4096;
/// A body up to this length that is written in one go carries its length.
pub(super) const BUFFERED: usize = 2048;

/// How a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Sized(u64),
    Chunked,
}

/// What a request expects before it sends its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Nothing,
    Continue,
    Unknown,
}

/// A request's head.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    /// HTTP/1.1, not 1.0.
    pub(super) modern: bool,
    pub(super) headers: Vec<(String, String)>,
    pub(super) length: Length,
    pub(super) expect: Expect,
    pub(super) keep_alive: bool,
}

impl Head {
    /// The first header of this name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The path, percent-encoding removed, and the query with its question mark.
    pub(super) fn path(&self) -> (String, &str) {
        let target = match self.target.split_once("://") {
            Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
            _ => self.target.as_str(),
        };
        let at = target.find('?').unwrap_or(target.len());
        (decode(&target[..at]), &target[at..])
    }
}

fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).and_then(|d| std::str::from_utf8(d).ok());
        let is_hex = |d: &&str| d.bytes().all(|digit| digit.is_ascii_hexdigit());
        match pair.filter(is_hex).and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A head that Go refuses before any handler: the words after the version, and those of the body if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadHead(pub(super) &'static str, pub(super) Option<&'static str>);

impl BadHead {
    /// The whole answer; the connection closes after it.
    pub(super) fn answer(&self) -> Vec<u8> {
        let words = self.0;
        let Some(body) = self.1 else {
            return format!("HTTP/1.1 {words}\r\nConnection: close\r\n\r\n").into_bytes();
        };
        format!("HTTP/1.1 {words}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n{body}")
            .into_bytes()
    }

    /// One whose body repeats its words.
    const fn said(words: &'static str) -> Self {
        Self(words, Some(words))
    }
}

/// Reads a head from the front of the input: it and its length, or nothing while it is incomplete.
pub(super) fn head(input: &[u8]) -> Result<Option<(Head, usize)>, BadHead> {
    const BAD: BadHead = BadHead::said("400 Bad Request");
    let mut small = [httparse::EMPTY_HEADER; 64];
    let mut large;
    let mut request = httparse::Request::new(&mut small);
    let mut parsed = request.parse(input);
    if matches!(parsed, Err(httparse::Error::TooManyHeaders)) {
        large = vec![httparse::EMPTY_HEADER; 16_384];
        request = httparse::Request::new(&mut large);
        parsed = request.parse(input);
    }
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() > HEAD_MAX => {
            return Err(BadHead::said("431 Request Header Fields Too Large"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::Version) => return Err(BadHead("400 Bad Request", None)),
        Err(_) => return Err(BAD),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers: Vec<(String, String)> = request.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect();
    let modern = request.version == Some(1);
    let mut head = Head {
        method: request.method.unwrap_or("").to_owned(),
        target: request.path.unwrap_or("").to_owned(),
        modern,
        headers,
        length: Length::Sized(0),
        expect: Expect::Nothing,
        keep_alive: modern,
    };
    judge(&mut head)?;
    Ok(Some((head, length)))
}

/// Fills in what the headers say of body, expectation and connection.
fn judge(head: &mut Head) -> Result<(), BadHead> {
    let all = |name: &'static str| {
        head.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    };
    match all("host").count() {
        0 if head.modern => return Err(BadHead::said("400 Bad Request: missing required Host header")),
        0 | 1 => {}
        _ => return Err(BadHead::said("400 Bad Request: too many Host headers")),
    }
    let mut length = Length::Sized(0);
    let mut sizes = all("content-length");
    if let Some(first) = sizes.next() {
        if sizes.any(|other| other != first) {
            return Err(BadHead::said("400 Bad Request"));
        }
        length = Length::Sized(first.parse().map_err(|_| BadHead::said("400 Bad Request"))?);
    }
    match all("transfer-encoding").next_back() {
        Some(coding) if coding.eq_ignore_ascii_case("chunked") => length = Length::Chunked,
        Some(_) => return Err(BadHead("501 Not Implemented", Some("Unsupported transfer encoding"))),
        None => {}
    }
    let expect = match all("expect").next() {
        Some(what) if what.eq_ignore_ascii_case("100-continue") => Expect::Continue,
        Some(what) if !what.is_empty() => Expect::Unknown,
        _ => Expect::Nothing,
    };
    let says =
        |word: &str| all("connection").any(|v| v.split(',').any(|token| token.trim().eq_ignore_ascii_case(word)));
    let keep_alive = if head.modern { !says("close") } else { says("keep-alive") };
    (head.length, head.expect, head.keep_alive) = (length, expect, keep_alive);
    Ok(())
}

/// An answer that is known whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Headers of the handler; sorted when written.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Written by a flushing handler: chunked whatever its length.
    pub(super) flushed: bool,
    /// Written line by line, a chunk each; `body` is empty then.
    pub(super) lines: Vec<String>,
    /// No length is announced (a HEAD answer without body).
    pub(super) bare: bool,
    /// The connection ends after it.
    pub(super) close: bool,
}

impl Reply {
    /// An answer of this type.
    pub(super) fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers =
            if content_type.is_empty() { Vec::new() } else { vec![("Content-Type", content_type.to_owned())] };
        Self { status, headers, body: body.into(), ..Self::default() }
    }

    /// Lines of NDJSON, a chunk each.
    pub(super) fn lines(lines: &[String]) -> Self {
        let lines = lines.iter().map(|line| format!("{line}\n")).collect();
        Self { lines, flushed: true, ..Self::new(200, "application/x-ndjson", Vec::new()) }
    }

    /// JSON as native handlers send it.
    pub(super) fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "application/json; charset=utf-8", body)
    }

    /// No body and no type.
    pub(super) fn empty(status: u16) -> Self {
        Self::new(status, "", Vec::new())
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The bytes for this request.
    pub(super) fn encode(mut self, head: &Head, now: Duration) -> Vec<u8> {
        let long = self.flushed || self.body.len() > BUFFERED;
        let mut out = begin(self.status, &mut self.headers, head.modern, now);
        let nothing = self.body.is_empty() && self.lines.is_empty();
        // Go counts what a HEAD would have been sent, and says nothing where that is nothing.
        let no_body = self.bare || self.status == 204 || (head.method == "HEAD" && (long || nothing));
        let framed = long && head.modern && head.method != "HEAD";
        if !no_body && !long {
            out.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        if self.close || (head.modern && !head.keep_alive) {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if !head.modern && head.keep_alive {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        if framed {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if head.method != "HEAD" && !no_body {
            if framed {
                chunk(&mut out, &self.body, true);
                self.lines.iter().for_each(|line| chunk(&mut out, line.as_bytes(), true));
                out.extend_from_slice(b"0\r\n\r\n");
            } else {
                out.extend_from_slice(&self.body);
                self.lines.iter().for_each(|line| out.extend_from_slice(line.as_bytes()));
            }
        }
        out
    }
}

/// The head of a stream, up to its empty line.
pub(super) fn stream_head(headers: &mut [(&'static str, String)], head: &Head, now: Duration) -> Vec<u8> {
    let mut out = begin(200, headers, head.modern, now);
    if head.modern && !head.keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    if head.modern {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn begin(status: u16, headers: &mut [(&'static str, String)], modern: bool, now: Duration) -> Vec<u8> {
    headers.sort_by_key(|(name, _)| *name);
    let mut out = Vec::with_capacity(512);
    let version = if modern { "HTTP/1.1" } else { "HTTP/1.0" };
    out.extend_from_slice(format!("{version} {status} {}\r\n", reason(status)).as_bytes());
    for (name, value) in headers {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("Date: {}\r\n", text::http_date(now)).as_bytes());
    out
}

/// Appends one chunk, or the bare payload where the connection is not chunked.
pub(super) fn chunk(out: &mut Vec<u8>, payload: &[u8], framed: bool) {
    if payload.is_empty() {
        return;
    }
    if framed {
        out.extend_from_slice(format!("{:x}\r\n", payload.len()).as_bytes());
    }
    out.extend_from_slice(payload);
    if framed {
        out.extend_from_slice(b"\r\n");
    }
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("")
}
