//! The OpenAI dialect's error shapes: chat, completions, embeddings, audio, and the typed events of responses.
//!
//! Called through [`super::error`] and [`super::broken_stream`]. Must never say `[DONE]` or `response.completed`.

use super::TailFacts;
use super::json::push_string;

/// `error.type` for a status. Everything but 400 and 404 is one type.
#[must_use]
pub const fn error_type(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        _ => "api_error",
    }
}

/// `{"error":{"message","type","param":null,"code":null}}`, no newline.
#[must_use]
pub fn error_object(status: u16, text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 80);
    out.extend_from_slice(b"{\"error\":{\"message\":");
    push_string(&mut out, text);
    out.extend_from_slice(b",\"type\":");
    push_string(&mut out, error_type(status));
    out.extend_from_slice(b",\"param\":null,\"code\":null}}");
    out
}

/// The error event of a broken chat or completions stream; the SDKs raise on any chunk with an `error`.
pub(super) fn write_broken(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(&error_object(502, text));
    out.extend_from_slice(b"\n\n");
}

/// The `response.failed` event of a broken responses stream, keys sorted as Ollama sorts them.
pub(super) fn write_response_failed(out: &mut Vec<u8>, text: &str, seen: &TailFacts<'_>) {
    out.extend_from_slice(
        b"event: response.failed\ndata: {\"response\":{\"error\":{\"code\":\"api_error\",\"message\":",
    );
    push_string(out, text);
    out.push(b'}');
    if let Some(id) = seen.response_id {
        out.extend_from_slice(b",\"id\":");
        push_string(out, id);
    }
    out.extend_from_slice(b",\"object\":\"response\",\"output\":[],\"status\":\"failed\"},\"sequence_number\":");
    out.extend_from_slice(seen.sequence.to_string().as_bytes());
    out.extend_from_slice(b",\"type\":\"response.failed\"}\n\n");
}
