//! How an answer is spoken: one generation, in the wire form of each dialect, chunk by chunk.
//!
//! Called by `infer.rs` with tokens that are due. Writes into a buffer and never waits; event order, key order and
//! chunk boundaries are those of the recordings.

use std::time::Duration;

use super::http;
use super::job::{Dialect, Job, Piece};
use super::text;

mod anthropic;
mod ollama;
mod openai;
mod responses;

/// Chunks of a stream, framed for the wire.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    pub(super) buf: Vec<u8>,
    framed: bool,
    line: String,
}

impl Chunks {
    pub(super) fn new(framed: bool) -> Self {
        Self { buf: Vec::with_capacity(1024), framed, line: String::with_capacity(512) }
    }

    /// One chunk.
    pub(super) fn chunk(&mut self, write: impl FnOnce(&mut String)) {
        self.line.clear();
        write(&mut self.line);
        http::chunk(&mut self.buf, self.line.as_bytes(), self.framed);
    }

    /// The end of the body.
    pub(super) fn finish(&mut self) {
        if self.framed {
            self.buf.extend_from_slice(b"0\r\n\r\n");
        }
    }
}

/// What the last event of an answer says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    pub(super) total: Duration,
    pub(super) load: Duration,
    pub(super) prefill: Duration,
    pub(super) eval: Duration,
}

/// One answer being spoken.
pub(super) struct Voice<'a> {
    job: &'a Job,
    /// A number that looks random, for ids.
    die: u64,
    /// Time since 1970, set before each call.
    pub(super) now: Duration,
    created: u64,
    /// Nothing was said yet.
    first: bool,
    /// Everything shown so far, where the dialect repeats it.
    said: String,
    thought: String,
    /// What the dialect's current block or item is.
    open: Open,
    /// Next sequence number, and items finished.
    sequence: u32,
    items: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Think,
    Text,
}

impl<'a> Voice<'a> {
    pub(super) fn new(job: &'a Job, die: u64, now: Duration) -> Self {
        Self {
            job,
            die,
            now,
            created: now.as_secs(),
            first: true,
            said: String::new(),
            thought: String::new(),
            open: Open::Nothing,
            sequence: 0,
            items: Vec::new(),
        }
    }

    /// Headers of a stream.
    pub(super) fn stream_headers(&self) -> Vec<(&'static str, String)> {
        let kind = match self.job.dialect {
            Dialect::Generate | Dialect::Chat | Dialect::Audio => "application/x-ndjson",
            Dialect::Messages if self.job.web_search => "application/x-ndjson",
            _ => "text/event-stream",
        };
        let mut headers = stream_marks(self.job.dialect, true);
        headers.push(("Content-Type", kind.to_owned()));
        headers
    }

    /// Says a token.
    pub(super) fn piece(&mut self, piece: Piece, out: &mut Chunks) {
        if piece == Piece::Silent {
            return;
        }
        match self.job.dialect {
            Dialect::Generate | Dialect::Chat => self.ollama_piece(piece, out),
            Dialect::V1Chat => self.v1_chat_piece(piece, out),
            Dialect::V1Completions => self.v1_completion_piece(piece, out),
            Dialect::Responses => self.responses_piece(piece, out),
            Dialect::Messages => self.messages_piece(piece, out),
            _ => self.keep(piece),
        }
        self.first = false;
    }

    /// Says that the answer is complete, without the body's end.
    pub(super) fn close(&mut self, end: &End, out: &mut Chunks) {
        match self.job.dialect {
            Dialect::Generate | Dialect::Chat => self.ollama_close(end, out),
            Dialect::V1Chat => self.v1_chat_close(out),
            Dialect::V1Completions => self.v1_completion_close(out),
            Dialect::Responses => self.responses_close(out),
            Dialect::Messages => self.messages_close(out),
            _ => {}
        }
    }

    /// What a stream says when its runner dies: nothing much, outside the native API.
    pub(super) fn fail(&mut self, error: &str, out: &mut Chunks) {
        match self.job.dialect {
            Dialect::Generate | Dialect::Chat => out.chunk(|line| {
                line.push_str("{\"error\":");
                text::quote(line, error);
                line.push_str("}\n");
            }),
            Dialect::V1Chat => self.v1_chat_fail(out),
            Dialect::V1Completions => self.v1_completion_fail(out),
            _ => {}
        }
    }

    /// The whole answer as one object, and its type.
    pub(super) fn whole(&mut self, end: &End) -> (&'static str, String) {
        for at in 0..self.job.plan.total {
            self.keep(self.job.plan.piece(at));
        }
        let body = match self.job.dialect {
            Dialect::Generate | Dialect::Chat => {
                return ("application/json; charset=utf-8", self.ollama_whole(end));
            }
            Dialect::V1Chat => self.v1_chat_whole(),
            Dialect::V1Completions => self.v1_completion_whole(),
            Dialect::Responses => self.responses_whole(),
            Dialect::Audio if self.job.text => return ("application/x-ndjson", self.said.clone()),
            Dialect::Audio => {
                return ("application/x-ndjson", format!("{{\"text\":{}}}\n", text::quoted(&self.said)));
            }
            _ => self.messages_whole(),
        };
        ("application/json", body)
    }

    fn keep(&mut self, piece: Piece) {
        match piece {
            Piece::Think(token) => self.thought.push_str(token),
            Piece::Text(token) => self.said.push_str(token),
            Piece::Silent | Piece::Tool => {}
        }
    }

    /// Prompt and answer tokens.
    fn counts(&self) -> (u32, u32) {
        (self.job.prompt, self.job.plan.total)
    }

    /// The reason in OpenAI's words.
    fn finish_reason(&self) -> &'static str {
        if self.job.plan.tool.is_some() { "tool_calls" } else { self.job.plan.reason }
    }
}

/// Headers that some streams carry, and their errors too.
pub(super) fn stream_marks(dialect: Dialect, stream: bool) -> Vec<(&'static str, String)> {
    if stream && matches!(dialect, Dialect::Responses | Dialect::Messages) {
        vec![("Cache-Control", "no-cache".to_owned()), ("Connection", "keep-alive".to_owned())]
    } else {
        Vec::new()
    }
}

/// Appends the log probabilities of a token.
fn logprob(out: &mut String, token: &str, top: u32) {
    let one = |out: &mut String, token: &str, logprob: f64| {
        out.push_str("{\"token\":");
        text::quote(out, token);
        out.push_str(&format!(",\"logprob\":{logprob},\"bytes\":{:?}", token.as_bytes()).replace(", ", ","));
    };
    one(out, token, -0.525_271_117_687_225_3);
    if top > 0 {
        out.push_str(",\"top_logprobs\":[");
        for i in 0..top {
            out.push_str(if i > 0 { "," } else { "" });
            one(out, if i == 0 { token } else { text::token(i) }, -0.525_271_117_687_225_3 - f64::from(i));
            out.push('}');
        }
        out.push(']');
    }
    out.push('}');
}
