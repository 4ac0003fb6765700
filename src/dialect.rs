//! What the three dialects (Ollama, OpenAI, Anthropic) say on the wire: routes, error bodies, stream endings, model names.
//!
//! Pure text; called by front, proxy, fleet. Must never do I/O or know of nodes.
//! Source: `ollama-api.md` §2 (routes), §7 (errors), §8 (names).

pub mod anthropic;
mod json;
pub mod name;
pub mod ollama;
pub mod openai;
pub mod texts;

use bytes::Bytes;

/// An inference or pass-through route of the contract.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Route {
    /// `POST /api/generate`
    Generate,
    /// `POST /api/chat`
    Chat,
    /// `POST /api/embed`
    Embed,
    /// `POST /api/embeddings`
    Embeddings,
    /// `POST /api/show`
    Show,
    /// `POST /v1/chat/completions`
    V1Chat,
    /// `POST /v1/completions`
    V1Completions,
    /// `POST /v1/embeddings`
    V1Embeddings,
    /// `POST /v1/responses`
    V1Responses,
    /// `POST /v1/messages`
    V1Messages,
    /// `POST /v1/audio/transcriptions`
    V1Audio,
    /// Any other POST under `/api/` whose body names a model.
    OtherApi,
    /// Any other POST under `/v1/` whose body names a model.
    OtherV1,
}

/// Whose shapes errors take.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// `{"error":"…"}`
    Ollama,
    /// `{"error":{"message",…}}`
    OpenAi,
    /// `{"type":"error","error":{…}}`
    Anthropic,
}

/// How a streamed answer of a route is cut into records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wire {
    /// Never streamed: one JSON value.
    Single,
    /// One JSON object a line; the last has `done:true`.
    Ndjson,
    /// `data:` lines with a blank one after each; ends with `data: [DONE]`.
    Sse,
    /// `event:` and `data:` lines; the last event says by its type that it is the last.
    TypedSse,
}

impl Route {
    /// Every route, in the order of [`Route`].
    pub const ALL: [Self; 13] = [
        Self::Generate,
        Self::Chat,
        Self::Embed,
        Self::Embeddings,
        Self::Show,
        Self::V1Chat,
        Self::V1Completions,
        Self::V1Embeddings,
        Self::V1Responses,
        Self::V1Messages,
        Self::V1Audio,
        Self::OtherApi,
        Self::OtherV1,
    ];

    /// Whose error shapes the route uses.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Generate | Self::Chat | Self::Embed | Self::Embeddings | Self::Show | Self::OtherApi => {
                Family::Ollama
            }
            Self::V1Messages => Family::Anthropic,
            Self::V1Chat
            | Self::V1Completions
            | Self::V1Embeddings
            | Self::V1Responses
            | Self::V1Audio
            | Self::OtherV1 => Family::OpenAi,
        }
    }

    /// Whether only Ollama nodes know the route.
    #[must_use]
    pub const fn native(self) -> bool {
        matches!(self.family(), Family::Ollama)
    }

    /// What an absent `stream` means: the native routes stream, `/v1` does not.
    #[must_use]
    pub const fn stream_default(self) -> bool {
        matches!(self, Self::Generate | Self::Chat)
    }

    /// How the route's stream is cut, where it has one.
    #[must_use]
    pub const fn wire(self) -> Wire {
        match self {
            Self::Generate | Self::Chat => Wire::Ndjson,
            Self::V1Chat | Self::V1Completions => Wire::Sse,
            Self::V1Responses | Self::V1Messages => Wire::TypedSse,
            Self::Embed
            | Self::Embeddings
            | Self::Show
            | Self::V1Embeddings
            | Self::V1Audio
            | Self::OtherApi
            | Self::OtherV1 => Wire::Single,
        }
    }

    /// Whether a model computes the answer, so that there are tokens to count.
    #[must_use]
    pub const fn is_inference(self) -> bool {
        !matches!(self, Self::Show | Self::OtherApi | Self::OtherV1)
    }

    /// The route's path; `None` where it stands for many.
    #[must_use]
    pub const fn path(self) -> Option<&'static str> {
        Some(match self {
            Self::Generate => "/api/generate",
            Self::Chat => "/api/chat",
            Self::Embed => "/api/embed",
            Self::Embeddings => "/api/embeddings",
            Self::Show => "/api/show",
            Self::V1Chat => "/v1/chat/completions",
            Self::V1Completions => "/v1/completions",
            Self::V1Embeddings => "/v1/embeddings",
            Self::V1Responses => "/v1/responses",
            Self::V1Messages => "/v1/messages",
            Self::V1Audio => "/v1/audio/transcriptions",
            Self::OtherApi | Self::OtherV1 => return None,
        })
    }
}

impl From<Route> for Family {
    fn from(route: Route) -> Self {
        route.family()
    }
}

/// The type of native answers, and of errors that a `/v1` converter itself words.
pub const JSON_UTF8: &str = "application/json; charset=utf-8";
/// The type of what passed through a `/v1` converter.
pub const JSON: &str = "application/json";

/// An error answer's type and body. The status is the caller's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorBody {
    /// `Content-Type`, exactly.
    pub content_type: &'static str,
    /// Body, exactly; a final newline where the dialect has one.
    pub body: Bytes,
}

/// The error as a node's handler words it: native with charset and without a final newline, on `/v1` (behind the
/// converter) without charset and with one.
#[must_use]
pub fn error(family: impl Into<Family>, status: u16, text: &str) -> ErrorBody {
    let family = family.into();
    let mut body = error_object(family, status, text);
    let content_type = match family {
        Family::Ollama => JSON_UTF8,
        Family::OpenAi | Family::Anthropic => {
            body.push(b'\n');
            JSON
        }
    };
    ErrorBody { content_type, body: body.into() }
}

/// The error as the `/v1` converter itself words it (bad JSON, an empty body, a missing field): with charset, without a
/// final newline. For the native family the same as [`error`].
#[must_use]
pub fn converter_error(family: impl Into<Family>, status: u16, text: &str) -> ErrorBody {
    ErrorBody { content_type: JSON_UTF8, body: error_object(family.into(), status, text).into() }
}

fn error_object(family: Family, status: u16, text: &str) -> Vec<u8> {
    match family {
        Family::Ollama => ollama::error_object(text),
        Family::OpenAi => openai::error_object(status, text),
        Family::Anthropic => anthropic::error_object(status, text),
    }
}

/// Where in a stream the client stands, as far as an error event of ours must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TailFacts<'a> {
    /// Whether the bytes sent so far are a stream; an error cannot be told within a single JSON value.
    pub streamed: bool,
    /// The last line was begun and not ended.
    pub mid_line: bool,
    /// Lines of the last event went out, its blank line did not.
    pub mid_event: bool,
    /// The `sequence_number` that comes next (`/v1/responses`).
    pub sequence: u64,
    /// The response's `id` (`/v1/responses`), where it was seen.
    pub response_id: Option<&'a str>,
}

/// What ends a stream whose node *we* lost: the dialect's in-band error, after which the body ends cleanly. Never
/// `[DONE]`, `message_stop` or `done:true`. Empty when nothing can be said in band: then the connection must be cut.
///
/// A record that was cut in the middle is ended first; no client can parse it, which is an error to them as well.
#[must_use]
pub fn broken_stream(route: Route, text: &str, seen: &TailFacts<'_>) -> Bytes {
    if !seen.streamed {
        return Bytes::new();
    }
    let mut out = Vec::with_capacity(256);
    match route.wire() {
        Wire::Single => return Bytes::new(),
        Wire::Ndjson if seen.mid_line => out.push(b'\n'),
        Wire::Ndjson => {}
        Wire::Sse | Wire::TypedSse if seen.mid_line => out.extend_from_slice(b"\n\n"),
        Wire::Sse | Wire::TypedSse if seen.mid_event => out.push(b'\n'),
        Wire::Sse | Wire::TypedSse => {}
    }
    match route {
        Route::V1Responses => openai::write_response_failed(&mut out, text, seen),
        Route::V1Messages => anthropic::write_broken(&mut out, text),
        Route::V1Chat | Route::V1Completions => openai::write_broken(&mut out, text),
        _ => ollama::write_broken(&mut out, text),
    }
    out.into()
}

#[cfg(test)]
mod tests;
