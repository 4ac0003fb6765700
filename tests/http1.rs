//! The parser of client requests against hyper's: the same bytes to both, whole and cut, alone and with a second request
//! behind them. Where ours serves a request, hyper reads the same method, target, lines and body, and finds the next
//! request at the same place: nobody in a row of servers can be made to see another request than we do.
//!
//! Where the two differ the case says so: `Stricter` (we refuse or close, hyper goes on) or `Laxer` (we serve what hyper
//! refuses, as Go does).

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;

use bytes::Bytes;
use herdgate::http1::{BodyDecoder, Item, blank_lines, head_end, line_room, parse_request};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A request as a server saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    method: String,
    target: String,
    /// Names in lower case; without the length where chunks outrank it.
    lines: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// What a server made of a connection's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Read {
    requests: Vec<Seen>,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// All bytes were taken, or what is left is no whole request.
    Taken,
    /// The connection ends with the last request, whatever follows.
    Closed,
    /// What follows is refused, and the connection closed.
    Refused,
    /// Not for our own parser: HTTP/1.0, or no path.
    Left,
}

fn seen(method: &str, target: &str, lines: Vec<(String, Vec<u8>)>, body: Vec<u8>) -> Seen {
    let chunked = lines.iter().any(|(name, _)| name == "transfer-encoding");
    let mut lines: Vec<_> = lines.into_iter().filter(|(name, _)| !(chunked && name == "content-length")).collect();
    // A map keeps the lines of one name together.
    lines.sort_by(|one, other| one.0.cmp(&other.0));
    // Of one length said twice it keeps one.
    lines.dedup_by(|one, other| one.0 == "content-length" && one == other);
    Seen { method: method.to_owned(), target: target.to_owned(), lines, body }
}

/// Our reading, with the bytes coming in these pieces: as the front does it, a head first, then its body.
fn ours(pieces: &[&[u8]]) -> Read {
    let mut requests = Vec::new();
    let mut pieces = pieces.iter();
    let mut input: Vec<u8> = Vec::new();
    let mut more = move |input: &mut Vec<u8>| pieces.next().map(|piece| input.extend_from_slice(piece)).is_some();
    loop {
        input.drain(..blank_lines(&input));
        let Some(end) = head_end(&input, 0) else {
            if !input.is_empty() && parse_request(&input, HEAD_BYTES_MAX, &mut line_room()).is_err() {
                return Read { requests, end: End::Refused };
            }
            if !more(&mut input) {
                return Read { requests, end: End::Taken };
            }
            continue;
        };
        let head: Vec<u8> = input.drain(..end).collect();
        let mut room = line_room();
        let Ok(Some(found)) = parse_request(&head, HEAD_BYTES_MAX, &mut room) else {
            return Read { requests, end: End::Refused };
        };
        assert_eq!(found.length, head.len(), "the end of a head is one place");
        if !found.is_http11 || !(found.target.starts_with('/') || found.target == "*") {
            return Read { requests, end: End::Left };
        }
        let mut decoder = BodyDecoder::new(found.framing, HEAD_BYTES_MAX);
        let mut body = Vec::new();
        while !decoder.is_ended() {
            let Ok((used, item)) = decoder.feed(&input) else { return Read { requests, end: End::Refused } };
            if let Item::Data(data) = item {
                body.extend_from_slice(data);
            }
            input.drain(..used);
            if input.is_empty() && !decoder.is_ended() && !more(&mut input) {
                return Read { requests, end: End::Taken };
            }
        }
        let lines = found.lines.iter().map(|line| (line.name.to_ascii_lowercase(), line.value.to_vec())).collect();
        requests.push(seen(found.method, found.target, lines, body));
        if found.close {
            return Read { requests, end: End::Closed };
        }
    }
}

/// Hyper's reading. A request counts when its body has come whole.
async fn hypers(bytes: &[u8]) -> Read {
    let requests = Rc::new(RefCell::new(Vec::new()));
    let (mut client, server) = tokio::io::duplex(1024 * 1024);
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let requests = requests.clone();
        async move {
            let (head, body) = request.into_parts();
            let mut body = pin!(body);
            let mut all = Vec::new();
            loop {
                match std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                    Some(Ok(frame)) => all.extend_from_slice(&frame.into_data().unwrap_or_default()),
                    None => break,
                    Some(Err(_)) => return Ok::<_, Infallible>(Response::new(Nothing)),
                }
            }
            let lines =
                head.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
            requests.borrow_mut().push(seen(head.method.as_str(), &head.uri.to_string(), lines, all));
            Ok(Response::new(Nothing))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_header_size(HEAD_BYTES_MAX)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(server), service);
    let talk = async {
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answers = Vec::new();
        let _ = client.read_to_end(&mut answers).await;
    };
    let (served, ()) = tokio::join!(served, talk);
    let end = if served.is_err() { End::Refused } else { End::Taken };
    let requests = requests.borrow().clone();
    Read { requests, end }
}

/// An empty answer.
struct Nothing;

impl Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

fn hyper_reads(bytes: &[u8]) -> Read {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(hypers(bytes))
}

/// What the two may do with a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// The same requests.
    Same,
    /// Both refuse, or wait for more.
    Neither,
    /// Ours stops before hyper does, because of this.
    Stricter(&'static str),
    /// Ours serves what hyper refuses, because of this.
    Laxer(&'static str),
    /// Handed to hyper.
    Left,
}

/// What they did. The requests that both read are the same ones, or this fails.
fn compared(bytes: &[u8]) -> Verdict {
    let shown = String::from_utf8_lossy(bytes);
    let (ours, hypers) = (ours(&[bytes]), hyper_reads(bytes));
    for (our, hyper) in ours.requests.iter().zip(&hypers.requests) {
        assert_eq!(our, hyper, "{shown:?}");
    }
    if ours.end == End::Left {
        return Verdict::Left;
    }
    match ours.requests.len().cmp(&hypers.requests.len()) {
        std::cmp::Ordering::Less => Verdict::Stricter(""),
        std::cmp::Ordering::Greater => Verdict::Laxer(""),
        std::cmp::Ordering::Equal if ours.requests.is_empty() => Verdict::Neither,
        std::cmp::Ordering::Equal => Verdict::Same,
    }
}

/// However the bytes are cut, we read the same.
fn cut_anywhere(bytes: &[u8]) {
    let whole = ours(&[bytes]);
    for cut in 0..=bytes.len() {
        assert_eq!(ours(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}: {:?}", String::from_utf8_lossy(bytes));
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(ours(&single), whole, "byte by byte: {:?}", String::from_utf8_lossy(bytes));
}

/// A whole request that may follow any other.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n";

/// With a second request behind: what is read of the first does not depend on it.
fn check(bytes: &[u8], verdict: Verdict) -> Option<String> {
    let found = compared(bytes);
    let same = matches!(
        (found, verdict),
        (Verdict::Stricter(_), Verdict::Stricter(_)) | (Verdict::Laxer(_), Verdict::Laxer(_))
    ) || found == verdict;
    if !same {
        return Some(format!("{found:?} instead of {verdict:?}: {:?}", String::from_utf8_lossy(bytes)));
    }
    cut_anywhere(bytes);
    let alone = ours(&[bytes]);
    let followed = [bytes, NEXT].concat();
    cut_anywhere(&followed);
    let both = ours(&[&followed]);
    compared(&followed);
    assert!(both.requests.starts_with(&alone.requests), "{:?}", String::from_utf8_lossy(&followed));
    if verdict == Verdict::Same && alone.end == End::Taken {
        let last = both.requests.last().unwrap();
        assert_eq!((both.requests.len(), last.target.as_str()), (alone.requests.len() + 1, "/next"));
    }
    None
}

use Verdict::{Laxer, Left, Neither, Same, Stricter};

#[test]
fn framing_lines_are_read_as_hyper_reads_them_or_refused() {
    let go_te = "Go serves `chunked`, once and alone, and nothing else";
    let cases: &[(&str, &str, Verdict)] = &[
        ("", "", Same),
        ("Content-Length: 5", "hello", Same),
        ("content-LENGTH:5", "hello", Same),
        ("Content-Length: \t 5 \t", "hello", Same),
        ("Content-Length: 0005", "hello", Same),
        ("Content-Length: 5\r\nContent-Length: 5", "hello", Same),
        ("Content-Length: 5\r\nContent-Length: 6", "hello!", Neither),
        ("Content-Length: 5, 5", "hello", Neither),
        ("Content-Length: 5, 6", "hello!", Neither),
        ("Content-Length: +5", "hello", Neither),
        ("Content-Length: -5", "hello", Neither),
        ("Content-Length: 5 5", "hello", Neither),
        ("Content-Length: 1_0", "helloworld", Neither),
        ("Content-Length: 0x5", "hello", Neither),
        ("Content-Length: 5.0", "hello", Neither),
        ("Content-Length: ", "", Neither),
        ("Content-Length: 9223372036854775807", "x", Neither),
        ("Content-Length: 9223372036854775808", "x", Neither),
        ("Content-Length: 18446744073709551615", "x", Neither),
        ("Content-Length: 18446744073709551616", "x", Neither),
        ("Content-Length : 5", "hello", Neither),
        (" Content-Length: 5", "hello", Neither),
        ("Content_Length: 5", "", Same),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", Same),
        ("TRANSFER-ENCODING: Chunked", "5\r\nhello\r\n0\r\n\r\n", Same),
        ("Transfer-Encoding: \t chunked \t", "5\r\nhello\r\n0\r\n\r\n", Same),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", "5\r\nhello\r\n0\r\n\r\n", Same),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", Same),
        (
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "5\r\nhello\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            Same,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: x",
            "5\r\nhello\r\n0\r\n\r\n",
            Stricter("a bad length is one even where chunks outrank it"),
        ),
        ("Transfer-Encoding: identity", "", Neither),
        ("Transfer-Encoding: identity\r\nContent-Length: 5", "hello", Neither),
        ("Transfer-Encoding: ", "", Neither),
        ("Transfer-Encoding: \r\nContent-Length: 5", "hello", Neither),
        ("Transfer-Encoding: chunked,", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: , chunked", "5\r\nhello\r\n0\r\n\r\n", Stricter(go_te)),
        ("Transfer-Encoding: identity, chunked", "5\r\nhello\r\n0\r\n\r\n", Stricter(go_te)),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", Stricter(go_te)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", Stricter(go_te)),
        ("Transfer-Encoding: chunked, chunked", "5\r\nhello\r\n0\r\n\r\n", Stricter(go_te)),
        ("Transfer-Encoding: gzip, chunked", "5\r\nhello\r\n0\r\n\r\n", Stricter(go_te)),
        ("Transfer-Encoding: chunked, gzip", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: xchunked", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: \"chunked\"", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: chunked;q=1", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding : chunked", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding:\r\n chunked", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("X: y\r\n Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: chun\tked", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: \x0bchunked", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer-Encoding: chunked\0", "5\r\nhello\r\n0\r\n\r\n", Neither),
        ("Transfer_Encoding: chunked", "", Same),
        ("Connection: close", "", Same),
        ("Connection: keep-alive, CLOSE", "", Same),
        ("Expect: 100-continue\r\nContent-Length: 5", "hello", Same),
        ("Upgrade: h2c\r\nConnection: upgrade", "", Same),
    ];
    let mut wrong = Vec::new();
    for (lines, body, verdict) in cases {
        let lines = if lines.is_empty() { String::new() } else { format!("{lines}\r\n") };
        wrong.extend(check(format!("POST /api/chat HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}").as_bytes(), *verdict));
        wrong.extend(check(format!("GET / HTTP/1.1\r\n{lines}Host: a\r\n\r\n{body}").as_bytes(), *verdict));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn chunks_are_read_as_hyper_reads_them_or_refused() {
    let cases: &[(&[u8], Verdict)] = &[
        (b"0\r\n\r\n", Same),
        (b"5\r\nhello\r\n0\r\n\r\n", Same),
        (b"A\r\nhelloworld\r\n0\r\n\r\n", Same),
        (b"00000005\r\nhello\r\n000\r\n\r\n", Same),
        (b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n", Same),
        (b"5;x=y\r\nhello\r\n0;z\r\n\r\n", Same),
        (b"5 \t\r\nhello\r\n0\r\n\r\n", Same),
        (b"5 ;x\r\nhello\r\n0\r\n\r\n", Same),
        (b"5\r\nhello\r\n0\r\nX: y\r\nZ: 1\r\n\r\n", Same),
        (b"5\r\nhello\r\n0\r\n", Neither),
        (b"5\r\nhello\r\n0\r\n\r", Neither),
        (b"5\r\nhello", Neither),
        (b"5\r\nhello0\r\n\r\n", Neither),
        (b"5\r\nhelloX\r\n0\r\n\r\n", Neither),
        (b"4\r\nhello\r\n0\r\n\r\n", Neither),
        (b"5\nhello\r\n0\r\n\r\n", Neither),
        (b"5\r\nhello\n0\r\n\r\n", Neither),
        (b"5\r\nhello\r\n0\n\r\n", Neither),
        (b"5\r\nhello\r\n0\r\n\n", Neither),
        (b"5;x\nhello\r\n0\r\n\r\n", Neither),
        (b"5\r\nhello\r\n0\r\nX: y\n\r\n", Neither),
        (b"5\r\nhello\r\n0\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"5\r\nhello\r\n0\r\nX : y\r\n\r\n", Neither),
        (b"5\rhello\r\n0\r\n\r\n", Neither),
        (b"\r\n5\r\nhello\r\n0\r\n\r\n", Neither),
        (b" 5\r\nhello\r\n0\r\n\r\n", Neither),
        (b"+5\r\nhello\r\n0\r\n\r\n", Neither),
        (b"-5\r\nhello\r\n0\r\n\r\n", Neither),
        (b"0x5\r\nhello\r\n0\r\n\r\n", Neither),
        (b"5h\r\nhello\r\n0\r\n\r\n", Neither),
        (b"1 0\r\nhello\r\n0\r\n\r\n", Neither),
        (b";x\r\n\r\n", Neither),
        (b"\r\n\r\n", Neither),
        (b"ffffffffffffffff\r\nhello", Neither),
        (b"10000000000000000\r\nhello\r\n0\r\n\r\n", Neither),
        (b"00000000000000005\r\nhello\r\n0\r\n\r\n", Stricter("no size has more than 16 digits: Go")),
        (b"fffffffffffffffff5\r\nhello\r\n0\r\n\r\n", Neither),
        (b"5\0\r\nhello\r\n0\r\n\r\n", Neither),
    ];
    let mut wrong = Vec::new();
    for (body, verdict) in cases {
        let head = b"POST /api/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        wrong.extend(check(&[head, *body].concat(), *verdict));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn heads_are_read_as_hyper_reads_them_or_refused() {
    let cases: &[(&[u8], Verdict)] = &[
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b"GET / HTTP/1.1\nHost: a\n\n", Same),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", Same),
        (b"GET / HTTP/1.1\nHost: a\r\n\n", Same),
        (b"GET / HTTP/1.1\rHost: a\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\n\rX: y\r\n\r\n", Neither),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b"\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b"\r\n", Neither),
        (b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"\r\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"\n\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Neither),
        (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b"M-SEARCH /x HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", Neither),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", Neither),
        (b"GET / HTTP/11\r\nHost: a\r\n\r\n", Neither),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Neither),
        (b"GET /\r\n", Neither),
        (b"GET /\r\n\r\n", Neither),
        (b"GET / HTTP/1.0\r\n\r\n", Left),
        (b"POST / HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", Left),
        (b"GET http://a/api/tags HTTP/1.1\r\nHost: a\r\n\r\n", Left),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", Left),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b"GET /?a={x}&b=<y>|^`\" HTTP/1.1\r\nHost: a\r\n\r\n", Laxer("Go takes any printable byte of a target")),
        (b"GET /caf\xc3\xa9?x=\xff HTTP/1.1\r\nHost: a\r\n\r\n", Neither),
        (b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", Same),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: caf\xe9\r\n\r\n", Same),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: y\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\tb\r\n\r\n", Same),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", Same),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX(: y\r\n\r\n", Neither),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Same),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Neither),
    ];
    let mut wrong = Vec::new();
    for (bytes, verdict) in cases {
        wrong.extend(check(bytes, *verdict));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Pieces of which requests are put together, well-formed and not.
fn piece() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /api/chat HTTP/1.1\r\n",
        "POST /x HTTP/1.1\n",
        "HEAD /a?b HTTP/1.1\r\n",
        "Host: a\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 3\n",
        "content-length:5\r\n",
        "Content-Length: 12\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: \tchunked \r\n",
        "Connection: close\r\n",
        "X: y\r\n",
        " folded\r\n",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        "hello",
        "5\r\nhello\r\n",
        "5;x\r\nhello\r\n",
        "3\r\nabc\r\n",
        "0\r\n\r\n",
        "0\r\nT: r\r\n\r\n",
        "0\r\n",
        "a",
        ":",
        " ",
        "\t",
        "\0",
        ";",
        "GET /next HTTP/1.1\r\nHost: b\r\n\r\n",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever we read of a heap of pieces hyper reads too, and any cut leaves it the same.
    #[test]
    fn nothing_is_served_that_hyper_would_read_otherwise(pieces in proptest::collection::vec(piece(), 1..14), cut in any::<prop::sample::Index>()) {
        let bytes = pieces.concat().into_bytes();
        let read = ours(&[&bytes]);
        let hypers = hyper_reads(&bytes);
        prop_assert!(hypers.requests.starts_with(&read.requests), "{read:?}\n{hypers:?}\n{:?}", pieces.concat());
        let cut = cut.index(bytes.len() + 1);
        prop_assert_eq!(ours(&[&bytes[..cut], &bytes[cut..]]), read);
    }

    /// Any bytes at all: no panic, and the same read however they come.
    #[test]
    fn any_bytes_are_read_without_a_panic(tail in proptest::collection::vec(any::<u8>(), 0..200), known in 0..4_usize) {
        let heads = ["", "POST / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\n"];
        let bytes = [heads[known].as_bytes(), &tail].concat();
        cut_anywhere(&bytes);
    }
}
