//! The native dialect's error shapes.
//!
//! Called through [`super::error`] and [`super::broken_stream`]. Must never add a field a client did not know.

use super::json::push_string;

/// `{"error":"…"}`, no newline.
#[must_use]
pub fn error_object(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 16);
    out.extend_from_slice(b"{\"error\":");
    push_string(&mut out, text);
    out.push(b'}');
    out
}

/// The error line of a broken NDJSON stream; every client raises on it.
pub(super) fn write_broken(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&error_object(text));
    out.push(b'\n');
}
