//! Parses one response head and derives framing and connection reuse from it. Pure; called by the decoder only.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{DecodeError, Framing, KeepAlive, ResponseHead};

/// Header lines of one head. Ollama sends about 5, llama.cpp about 10, relayed cloud answers about 40.
const LINES_MAX: usize = 128;

/// Lines for which a head's map has room from the start. hyper takes the map of an answer for the client's next
/// request, which has more lines (SDKs send up to 12): a smaller one would grow, by two allocations.
const LINES_ROOM: usize = 12;

/// Parses a head at the start of `input`; `None` when it is not complete. The number is the head's length in bytes.
pub(super) fn parse(input: &[u8], to_head: bool) -> Result<Option<(Box<ResponseHead>, usize)>, DecodeError> {
    let mut lines = [const { MaybeUninit::uninit() }; LINES_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, input, &mut lines)
        .map_err(|error| DecodeError::Head(describe(error)))?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let code = parsed.code.ok_or(DecodeError::Head("no status code"))?;
    let status = StatusCode::from_u16(code).map_err(|_| DecodeError::Head("status code out of range"))?;
    let headers = header_map(input, length, parsed.headers)?;
    let is_http11 = parsed.version == Some(1);
    let (framing, doubtful) = framing(status, &headers, to_head)?;
    let (says_close, says_keep) = connection(&headers);
    // Chunks in HTTP/1.0 are out of order, so that a second answer is not to be trusted. Source: RFC 9112 §6.1.
    let doubtful = doubtful || (!is_http11 && framing == Framing::Chunked);
    let close = doubtful || says_close || (!is_http11 && !says_keep) || framing == Framing::UntilClose;
    let keep_alive = keep_alive(&headers);
    Ok(Some((Box::new(ResponseHead { status, headers, framing, close, keep_alive }), length)))
}

/// One shared copy of the head's bytes; every value is a slice of it.
fn header_map(input: &[u8], length: usize, lines: &[httparse::Header<'_>]) -> Result<HeaderMap, DecodeError> {
    let base = input.as_ptr() as usize;
    let shared = Bytes::copy_from_slice(&input[..length]);
    let mut headers = HeaderMap::with_capacity(lines.len().max(LINES_ROOM));
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| DecodeError::Head("header name"))?;
        let start = line.value.as_ptr() as usize - base;
        let value = HeaderValue::from_maybe_shared(shared.slice(start..start + line.value.len()))
            .map_err(|_| DecodeError::Head("header value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// The framing, and whether the connection must be closed because of how it was said.
fn framing(status: StatusCode, headers: &HeaderMap, to_head: bool) -> Result<(Framing, bool), DecodeError> {
    let length = content_length(headers)?;
    let chunked = is_chunked(headers)?;
    if to_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED || status.is_informational() {
        return Ok((Framing::None, false));
    }
    Ok(match (chunked, length) {
        // Chunked wins and the length is dropped. Source: RFC 9112 §6.1; Go's client does the same.
        (true, length) => (Framing::Chunked, length.is_some()),
        (false, Some(length)) => (Framing::Length(length), false),
        (false, None) => (Framing::UntilClose, true),
    })
}

/// One plain decimal number, once. Repeated lines are refused even where they agree.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, DecodeError> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() || line.is_empty() || !line.as_bytes().iter().all(u8::is_ascii_digit) {
        return Err(DecodeError::Length);
    }
    let text = line.to_str().map_err(|_| DecodeError::Length)?;
    text.parse().map(Some).map_err(|_| DecodeError::Length)
}

fn is_chunked(headers: &HeaderMap) -> Result<bool, DecodeError> {
    let mut chunked = false;
    for coding in tokens(headers, &header::TRANSFER_ENCODING) {
        // Anything but a single `chunked` would need decoding, or ends we cannot see.
        if chunked || !(coding.eq_ignore_ascii_case(b"chunked") || coding.eq_ignore_ascii_case(b"identity")) {
            return Err(DecodeError::TransferEncoding);
        }
        chunked = coding.eq_ignore_ascii_case(b"chunked");
    }
    Ok(chunked)
}

/// (close, keep-alive) as `Connection` says.
fn connection(headers: &HeaderMap) -> (bool, bool) {
    let (mut close, mut keep) = (false, false);
    for token in tokens(headers, &header::CONNECTION) {
        close |= token.eq_ignore_ascii_case(b"close");
        keep |= token.eq_ignore_ascii_case(b"keep-alive");
    }
    (close, keep)
}

fn keep_alive(headers: &HeaderMap) -> KeepAlive {
    let mut said = KeepAlive::default();
    for token in tokens(headers, &HeaderName::from_static("keep-alive")) {
        let Some((name, value)) = std::str::from_utf8(token).ok().and_then(|t| t.split_once('=')) else { continue };
        let value = value.trim().trim_matches('"').parse().ok();
        match name.trim() {
            name if name.eq_ignore_ascii_case("timeout") => said.timeout_s = value,
            name if name.eq_ignore_ascii_case("max") => said.max = value,
            _ => {}
        }
    }
    said
}

/// The comma-separated elements of all lines of one header, trimmed, empty ones left out.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

fn describe(error: httparse::Error) -> &'static str {
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
