//! The Anthropic dialect's error shapes.
//!
//! Called through [`super::error`] and [`super::broken_stream`]. Must never say `message_stop`.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::json::push_string;

/// `error.type` for a status.
#[must_use]
pub const fn error_type(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        _ => "api_error",
    }
}

/// `{"type":"error","error":{"type","message"},"request_id":"req_…"}`, no newline.
#[must_use]
pub fn error_object(status: u16, text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 120);
    write_error(&mut out, status, text);
    out.extend_from_slice(b",\"request_id\":\"");
    out.extend_from_slice(request_id().as_bytes());
    out.extend_from_slice(b"\"}");
    out
}

/// The error event of a broken messages stream, without a request id, as the dialect documents it.
pub(super) fn write_broken(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(b"event: error\ndata: ");
    write_error(out, 502, text);
    out.extend_from_slice(b"}\n\n");
}

/// The object up to its last member, still open.
fn write_error(out: &mut Vec<u8>, status: u16, text: &str) {
    out.extend_from_slice(b"{\"type\":\"error\",\"error\":{\"type\":");
    push_string(out, error_type(status));
    out.extend_from_slice(b",\"message\":");
    push_string(out, text);
    out.push(b'}');
}

/// `req_` and 24 hex digits. It names an answer in a log, it guards nothing: the hasher's random keys are random enough.
fn request_id() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("req_{:016x}{:08x}", random(), random() & 0xffff_ffff)
}
