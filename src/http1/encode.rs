//! Writes a request's head. Called with a buffer that the caller completes with the body, so that both leave in one
//! write; must never emit a line the arguments did not ask for.

use http::Method;

use super::Lines;
use super::lines::{push_clean, push_decimal};

/// What a request's head is made of.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Origin form with query, without the node's base path.
    pub target: &'a str,
    /// What the node's paths begin with; mostly empty.
    pub base_path: &'a str,
    /// Value of `Host`.
    pub host: &'a str,
    /// End-to-end headers; written as they are, so that nothing of what follows may be among them.
    pub lines: &'a Lines,
    /// The node's own credentials.
    pub bearer: Option<&'a str>,
    /// Length of the body; `None` writes no such line (a GET without body).
    pub content_length: Option<u64>,
}

/// Appends the head, blank line included. The body, exactly `content_length` bytes, is the caller's to append.
pub fn encode_request(out: &mut Vec<u8>, head: &RequestHead<'_>) {
    out.reserve(128 + head.base_path.len() + head.target.len() + head.host.len() + head.lines.as_bytes().len());
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    push_clean(out, head.base_path.as_bytes());
    push_clean(out, head.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    push_clean(out, head.host.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(head.lines.as_bytes());
    if let Some(bearer) = head.bearer {
        out.extend_from_slice(b"authorization: Bearer ");
        push_clean(out, bearer.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(length) = head.content_length {
        out.extend_from_slice(b"content-length: ");
        push_decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}
