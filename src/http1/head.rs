//! Parses one response head and derives framing and connection reuse from it. Pure; called by the decoder only.

use std::mem::MaybeUninit;

use http::StatusCode;

use super::says::{Coding, Length, Says};
use super::{DecodeError, Framing, Lines, ResponseHead};

/// Header lines of one head. Ollama sends about 5, llama.cpp about 10, relayed cloud answers about 40.
const LINES_MAX: usize = 128;

/// Parses a head at the start of `input`, its lines into the buffer `spare`; `None` when it is not complete. The number
/// is the head's length in bytes.
pub(super) fn parse(
    input: &[u8],
    to_head: bool,
    spare: &mut Vec<u8>,
) -> Result<Option<(ResponseHead, usize)>, DecodeError> {
    let mut lines = [const { MaybeUninit::uninit() }; LINES_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, input, &mut lines)
        .map_err(|error| DecodeError::Head(describe(error)))?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let code = parsed.code.ok_or(DecodeError::Head("no status code"))?;
    let status = StatusCode::from_u16(code).map_err(|_| DecodeError::Head("status code out of range"))?;
    let mut says = Says::default();
    for line in parsed.headers.iter() {
        says.note(line.name.as_bytes(), line.value);
    }
    let is_http11 = parsed.version == Some(1);
    let (framing, doubtful) = framing(status, &says, to_head)?;
    // Chunks in HTTP/1.0 are out of order, so that a second answer is not to be trusted. Source: RFC 9112 §6.1.
    let doubtful = doubtful || (!is_http11 && framing == Framing::Chunked);
    let close = doubtful || says.close || (!is_http11 && !says.keep) || framing == Framing::UntilClose;
    let mut lines = Lines::in_buffer(std::mem::take(spare));
    for line in parsed.headers.iter() {
        lines.push_parsed(line.name.as_bytes(), line.value);
    }
    let head = ResponseHead { status, lines, framing, close, keep_alive: says.keep_alive };
    Ok(Some((head, length)))
}

/// The framing, and whether the connection must be closed because of how it was said.
fn framing(status: StatusCode, says: &Says, to_head: bool) -> Result<(Framing, bool), DecodeError> {
    let length = match says.length {
        Length::Absent => None,
        Length::Once(length) => Some(length),
        // One plain decimal number, once. Repeated lines are refused even where they agree.
        Length::Repeated(_) | Length::Bad => return Err(DecodeError::Length),
    };
    if says.coding == Coding::Unsupported {
        return Err(DecodeError::TransferEncoding);
    }
    if to_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED || status.is_informational() {
        return Ok((Framing::None, false));
    }
    Ok(match (says.coding, length) {
        // Chunked wins and the length is dropped. Source: RFC 9112 §6.1; Go's client does the same.
        (Coding::Chunked, length) => (Framing::Chunked, length.is_some()),
        (_, Some(length)) => (Framing::Length(length), false),
        (_, None) => (Framing::UntilClose, true),
    })
}

/// What is wrong with a head, in a few words.
pub(super) fn describe(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "header name",
        httparse::Error::HeaderValue => "header value",
        httparse::Error::NewLine => "line end",
        httparse::Error::Status => "status line",
        httparse::Error::TooManyHeaders => "too many header lines",
        httparse::Error::Version => "not HTTP/1",
        httparse::Error::Token => "token",
    }
}
