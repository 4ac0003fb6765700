//! Writes a request's head. Called with a buffer that the caller completes with the body, so that both leave in one
//! write; must never emit a line the arguments did not ask for.

use http::{HeaderMap, Method, header};

/// What a request's head is made of.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Origin form with query, the node's base path included.
    pub target: &'a str,
    /// Value of `Host`.
    pub host: &'a str,
    /// End-to-end headers, already filtered. `Host`, `Content-Length`, `Transfer-Encoding` and `Connection` in it are
    /// ignored, `Authorization` too where `bearer` is given.
    pub headers: &'a HeaderMap,
    /// The node's own credentials.
    pub bearer: Option<&'a str>,
    /// Length of the body; `None` writes no such line (a GET without body).
    pub content_length: Option<u64>,
}

/// Appends the head, blank line included. The body, exactly `content_length` bytes, is the caller's to append.
pub fn encode_request(out: &mut Vec<u8>, head: &RequestHead<'_>) {
    let values: usize = head.headers.values().map(http::HeaderValue::len).sum();
    out.reserve(128 + head.target.len() + head.host.len() + values + 32 * head.headers.len());
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    push_clean(out, head.target);
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    push_clean(out, head.host);
    out.extend_from_slice(b"\r\n");
    for (name, value) in head.headers {
        if is_ours(name) || (head.bearer.is_some() && name == header::AUTHORIZATION) {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(bearer) = head.bearer {
        out.extend_from_slice(b"authorization: Bearer ");
        push_clean(out, bearer);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(length) = head.content_length {
        out.extend_from_slice(b"content-length: ");
        push_decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Headers that this client decides itself.
fn is_ours(name: &header::HeaderName) -> bool {
    name == header::HOST
        || name == header::CONTENT_LENGTH
        || name == header::TRANSFER_ENCODING
        || name == header::CONNECTION
}

/// Appends text without the bytes that would end its line: these strings come from configuration, unchecked by `http`.
fn push_clean(out: &mut Vec<u8>, text: &str) {
    if memchr::memchr3(b'\r', b'\n', 0, text.as_bytes()).is_none() {
        out.extend_from_slice(text.as_bytes());
    } else {
        out.extend(text.bytes().filter(|b| !matches!(b, b'\r' | b'\n' | 0)));
    }
}

fn push_decimal(out: &mut Vec<u8>, mut value: u64) {
    // u64::MAX has 20 digits.
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
