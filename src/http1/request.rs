//! Reads a client's request: its head, and the framing of its body. Pure. Called by front.
//!
//! What decides where a body ends is taken as Go takes it or refused, and a message that says it twice is the last of its
//! connection, so that no two readers in a row can disagree about where the next request begins.

use std::mem::MaybeUninit;

use super::chunked::{Chunked, Step};
use super::head::describe;
use super::says::{Coding, Length, Says};
use super::{DecodeError, Item};

/// Header lines of one head. SDKs send up to 25.
const LINES_MAX: usize = 128;

/// Where the lines of one head are parsed into; on the stack, and not touched before it is needed.
pub type LineRoom<'b> = [MaybeUninit<httparse::Header<'b>>; LINES_MAX];

/// Room for the lines of one head.
#[must_use]
pub fn line_room<'b>() -> LineRoom<'b> {
    [const { MaybeUninit::uninit() }; LINES_MAX]
}

/// A request's head, borrowed from the bytes it was read from.
#[derive(Debug)]
pub struct InboundHead<'h, 'b> {
    /// Method, as sent.
    pub method: &'b str,
    /// Request target, as sent.
    pub target: &'b str,
    /// HTTP/1.1, not 1.0.
    pub is_http11: bool,
    /// The header lines, values trimmed.
    pub lines: &'h [httparse::Header<'b>],
    /// Where its body ends.
    pub framing: BodyFraming,
    /// The connection ends with this request: the client says so, or its framing is in doubt.
    pub close: bool,
    /// `Connection` names other headers, which are then about this hop only.
    pub names_headers: bool,
    /// Bytes of the head, blank line included.
    pub length: usize,
}

/// Where a request's body ends. Source: RFC 9112 §6.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyFraming {
    /// After this many bytes; none where neither length nor coding is given.
    Length(u64),
    /// With the last chunk.
    Chunked,
}

/// Why a head is refused; the connection ends with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// It is not a head.
    #[error("malformed request head: {0}")]
    Malformed(&'static str),
    /// More bytes or lines than allowed.
    #[error("request head too large")]
    TooLarge,
    /// A transfer coding other than `chunked`.
    #[error("unsupported transfer encoding")]
    Coding,
}

/// Length of the empty lines at the start of `input`, which are no part of a request. Source: RFC 9112 §2.2.
#[must_use]
pub fn blank_lines(input: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match &input[at..] {
            [b'\n', ..] => at += 1,
            [b'\r', b'\n', ..] => at += 2,
            _ => return at,
        }
    }
}

/// Parses the head at the start of `input`; `None` while it is not complete. `bytes_max` bounds it.
///
/// Lines may end with a bare LF, and empty lines may stand before the first, as Go has it.
///
/// # Errors
/// It can never become a request that is served.
pub fn parse_request<'h, 'b>(
    input: &'b [u8],
    bytes_max: usize,
    room: &'h mut LineRoom<'b>,
) -> Result<Option<InboundHead<'h, 'b>>, Refused> {
    let mut parsed = httparse::Request::new(&mut []);
    let status = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, input, room);
    let length = match status {
        Ok(httparse::Status::Complete(length)) if length <= bytes_max => length,
        Ok(httparse::Status::Partial) if input.len() < bytes_max => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLarge),
        Err(error) => return Err(Refused::Malformed(describe(error))),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refused::Malformed("request line"));
    };
    let lines: &'h [httparse::Header<'b>] = parsed.headers;
    let mut says = Says::default();
    for line in lines {
        says.note(line.name.as_bytes(), line.value);
    }
    let is_http11 = version == 1;
    let (framing, doubtful) = framing(&says)?;
    Ok(Some(InboundHead {
        method,
        target,
        is_http11,
        lines,
        framing,
        close: doubtful || says.close || !is_http11,
        names_headers: says.names_headers,
        length,
    }))
}

/// The framing, and whether it was said twice.
fn framing(says: &Says) -> Result<(BodyFraming, bool), Refused> {
    let length = match says.length {
        Length::Absent => None,
        // The same length several times is one length; none has 64 bits. Source: Go, net/http transfer.go.
        Length::Once(length) | Length::Repeated(length) if i64::try_from(length).is_ok() => Some(length),
        Length::Once(_) | Length::Repeated(_) | Length::Bad => return Err(Refused::Malformed("Content-Length")),
    };
    // `identity`, lists and empty values are where servers differ. Source: Go, net/http transfer.go.
    if says.coding_is_odd {
        return Err(Refused::Coding);
    }
    match says.coding {
        Coding::Unsupported => Err(Refused::Coding),
        // Chunked wins; nothing may follow it. Source: RFC 9112 §6.1.
        Coding::Chunked => Ok((BodyFraming::Chunked, length.is_some())),
        Coding::Plain => Ok((BodyFraming::Length(length.unwrap_or(0)), false)),
    }
}

/// Finds the payload in a body's bytes, cut anywhere.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Length(u64),
    Chunked(Chunked),
    Ended,
}

impl BodyDecoder {
    /// For one body. `trailer_bytes_max` bounds what may follow its last chunk.
    #[must_use]
    pub fn new(framing: BodyFraming, trailer_bytes_max: usize) -> Self {
        let state = match framing {
            BodyFraming::Length(0) => State::Ended,
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::Chunked(Chunked::new(trailer_bytes_max)),
        };
        Self { state }
    }

    /// Takes bytes up to the next item and says how many; never [`Item::Head`].
    ///
    /// # Errors
    /// The framing is broken: nothing more can be read from this connection.
    pub fn feed<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Item<'a>), DecodeError> {
        match &mut self.state {
            State::Ended => Ok((0, Item::End)),
            State::Length(left) => {
                let take = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::Ended;
                }
                Ok((take, if take == 0 { Item::More } else { Item::Data(&input[..take]) }))
            }
            State::Chunked(chunked) => match chunked.step(input)? {
                Step::More => Ok((input.len(), Item::More)),
                Step::Data { start, end } => Ok((end, Item::Data(&input[start..end]))),
                Step::End(used) => {
                    self.state = State::Ended;
                    Ok((used, Item::End))
                }
            },
        }
    }

    /// Bytes still to come, where the length is known.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Ended => Some(0),
            State::Chunked(_) => None,
        }
    }

    /// The body is complete.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<(BodyFraming, bool, usize)>, Refused> {
        let mut room = line_room();
        let head = parse_request(text.as_bytes(), 4096, &mut room)?;
        Ok(head.map(|head| (head.framing, head.close, head.length)))
    }

    fn framed(lines: &str) -> Result<(BodyFraming, bool), Refused> {
        let text = format!("POST /api/chat HTTP/1.1\r\nHost: x\r\n{lines}\r\nrest");
        read(&text).map(|head| head.map(|(framing, close, _)| (framing, close)).expect("complete"))
    }

    #[test]
    fn a_head_ends_at_its_blank_line_however_it_comes() {
        let text = "\r\nPOST /api/chat?x=1 HTTP/1.1\r\nHost: a\r\nX-Y:  v \r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(read(&text[..cut]), Ok(None), "{cut}");
        }
        let mut room = line_room();
        let head = parse_request(text.as_bytes(), 4096, &mut room).expect("valid").expect("complete");
        assert_eq!((head.method, head.target, head.is_http11), ("POST", "/api/chat?x=1", true));
        assert_eq!((head.lines.len(), head.lines[1].name, head.lines[1].value), (2, "X-Y", &b"v"[..]));
        assert_eq!((head.length, head.close), (text.len(), false));
    }

    #[test]
    fn framing_is_taken_as_go_takes_it_or_refused() {
        assert_eq!(framed(""), Ok((BodyFraming::Length(0), false)));
        assert_eq!(framed("Content-Length: 7\r\n"), Ok((BodyFraming::Length(7), false)));
        assert_eq!(framed("Content-Length: 7\r\nContent-Length: 7\r\n"), Ok((BodyFraming::Length(7), false)));
        assert_eq!(framed("Transfer-Encoding: Chunked\r\n"), Ok((BodyFraming::Chunked, false)));
        assert_eq!(framed("Transfer-Encoding: chunked\r\nContent-Length: 7\r\n"), Ok((BodyFraming::Chunked, true)));
        for bad in ["7, 7", "+7", "-1", "0x7", "7 7", "", "9223372036854775808", "99999999999999999999"] {
            let length = framed(&format!("Content-Length: {bad}\r\n"));
            assert_eq!(length, Err(Refused::Malformed("Content-Length")), "{bad}");
        }
        assert!(framed("Content-Length: 7\r\nContent-Length: 8\r\n").is_err());
        for bad in
            ["gzip", "gzip, chunked", "chunked, chunked", "xchunked", "chunked, identity", "identity", "", "chunked,"]
        {
            assert_eq!(framed(&format!("Transfer-Encoding: {bad}\r\n")), Err(Refused::Coding), "{bad}");
        }
    }

    #[test]
    fn what_could_hide_a_request_is_malformed() {
        for bad in [
            "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET /a b HTTP/1.1\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\nA: \0\r\n\r\n",
            "GET / HTTP/1.1\r\nA\r\n\r\n",
            "GET / HTTP/1.1\rHost: x\r\n\r\n",
        ] {
            assert!(matches!(read(bad), Err(Refused::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_head_is_bounded_in_bytes_and_lines() {
        let endless = format!("GET / HTTP/1.1\r\nA: {}", "v".repeat(5000));
        assert_eq!(read(&endless), Err(Refused::TooLarge));
        assert_eq!(read(&format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "v".repeat(5000))), Err(Refused::TooLarge));
        assert_eq!(read(&format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(129))), Err(Refused::TooLarge));
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        for (framing, bytes, payload, rest) in [
            (BodyFraming::Length(0), "next", "", 4),
            (BodyFraming::Length(3), "abcnext", "abc", 4),
            (BodyFraming::Chunked, "2\r\nab\r\n1\r\nc\r\n0\r\n\r\nnext", "abc", 4),
        ] {
            for step in 1..=bytes.len() {
                let mut decoder = BodyDecoder::new(framing, 100);
                let (mut found, mut left) = (String::new(), bytes.as_bytes());
                while !decoder.is_ended() {
                    let input = &left[..step.min(left.len())];
                    let (used, item) = decoder.feed(input).expect("well-formed");
                    if let Item::Data(data) = item {
                        found.push_str(std::str::from_utf8(data).expect("text"));
                    }
                    left = &left[used..];
                }
                assert_eq!((found.as_str(), left.len()), (payload, rest), "{bytes} by {step}");
            }
        }
    }
}
