//! Token counts of an answer, without parsing it: the end of a stream is kept and read once, when it is over.
//!
//! Called by proxy: one [`Tail`] per exchange, [`Tail::push`] with every payload as the node sent it, [`Tail::finish`]
//! at the end. Must never change or hold what passes, keep more than 2 KiB of it, nor take the model's text for a count.
//!
//! A stream is short lines: the last 2 KiB of them are kept (a copy and a newline count a chunk), and the last few are
//! read at the end. What such a window cannot hold is read as it passes, by a `probe` that keeps only numbers: a line
//! beyond [`LONG_LINE_BYTES`] (a final object with a long `context`, a `response.completed` that repeats the whole
//! answer), the first event of the typed dialects (llama.cpp counts the input there), and an answer that is one JSON
//! value, where `usage` may stand before, between or after parts of any length.

pub(crate) mod probe;
mod record;
mod verdict;
mod window;

use memchr::{memchr, memchr_iter, memrchr};

use crate::dialect::{Route, TailFacts, Wire};
use crate::http1::Chunks;
use crate::proxy::upstream::Payload;
use crate::usage::Count;

use probe::Probe;
use verdict::Passed;
use window::{Kept, Window};

pub use window::WINDOW_BYTES;

/// A longer line is read as it passes. Half a window, so that the last line and what precedes it both fit.
pub const LONG_LINE_BYTES: usize = WINDOW_BYTES / 2;
/// Lines with data that are read at the end of events: what counts is within the last three (text, usage, end mark).
const LINES_READ: usize = 3;

/// What the counting must know of the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestFacts {
    /// The answer's status.
    pub status: u16,
    /// Bytes of the request's body (decoded, if it was compressed).
    pub body_bytes: u64,
    /// The request had no prompt, messages or input.
    pub empty: bool,
}

/// What an answer cost and how it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TailReport {
    /// Tokens, and how sure they are.
    pub count: Count,
    /// Time the node says it spent loading (its own queue included), nanoseconds; 0 where it does not say.
    pub load_ns: u64,
    /// Prompt evaluation, nanoseconds.
    pub prompt_eval_ns: u64,
    /// Generation, nanoseconds.
    pub eval_ns: u64,
    /// The answer said that it is over: `done:true`, `[DONE]`, `message_stop`, `response.completed`, or one whole JSON
    /// value. Never true on routes whose answers may be anything (audio, pass-through): there only the framing tells.
    pub complete: bool,
    /// The answer told of an error in band.
    pub error: bool,
}

/// What the answer turned out to be, by its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// No byte yet that tells.
    Unknown,
    /// One JSON value.
    Value,
    /// One JSON object a line.
    Lines,
    /// Server-sent events.
    Events,
}

/// The end of an answer.
#[derive(Debug)]
pub struct Tail {
    route: Route,
    streamed: bool,
    form: Form,
    bytes: u64,
    newlines: u64,
    /// The last two bytes that passed.
    last: [u8; 2],
    /// Bytes of the line that has begun.
    line_bytes: usize,
    /// The line that has begun is being read as it passes.
    in_probe: bool,
    window: Window,
    probe: Probe,
}

impl Tail {
    /// A tail for an answer on this route; `streamed` is what the request asked for. On `/v1` the body itself tells, on
    /// the native routes both forms begin alike and the wrong one only costs time.
    #[must_use]
    pub fn new(route: Route, streamed: bool) -> Self {
        Self {
            route,
            streamed,
            form: Form::Unknown,
            bytes: 0,
            newlines: 0,
            last: [0; 2],
            line_bytes: 0,
            in_probe: false,
            window: Window::default(),
            probe: Probe::new(route),
        }
    }

    /// The same, for another answer, with the window already allocated.
    pub fn reset(&mut self, route: Route, streamed: bool) {
        let mut window = std::mem::take(&mut self.window);
        window.clear();
        *self = Self { window, ..Self::new(route, streamed) };
    }

    /// Takes note of payload bytes, cut anywhere.
    pub fn push(&mut self, payload: &[u8]) {
        match *payload {
            [] => return,
            [only] => self.last = [self.last[1], only],
            [.., one, two] => self.last = [one, two],
        }
        self.bytes += payload.len() as u64;
        let mut payload = payload;
        if self.form == Form::Unknown {
            payload = payload.trim_ascii_start();
            self.form = payload.first().map_or(Form::Unknown, |&first| self.form_of(first));
        }
        match self.form {
            Form::Unknown => {}
            Form::Value => self.probe.feed(payload),
            Form::Lines | Form::Events => self.push_lines(payload),
        }
    }

    /// Takes note of payload as the node framed it; its bytes.
    pub fn push_payload(&mut self, payload: Payload<'_>) -> u64 {
        let before = self.bytes;
        match payload {
            Payload::Piece(piece) => self.push(piece),
            Payload::Parts(parts) => parts.iter().for_each(|part| self.push(part)),
            Payload::Chunks(mut chunks) => {
                // The first ones tell what the answer is; mostly one is enough.
                while !self.is_plain()
                    && let Some((first, others)) = chunks.split_first()
                {
                    self.push(first);
                    chunks = others;
                }
                self.push_chunks(chunks);
            }
        }
        self.bytes - before
    }

    /// Between two short lines of a stream: what follows is only kept and counted.
    fn is_plain(&self) -> bool {
        matches!(self.form, Form::Lines | Form::Events)
            && self.line_bytes == 0
            && !self.in_probe
            && !self.first_is_read()
    }

    /// Many tokens at once, as a node sends them that is faster than its way here: the last ones are kept, and of the
    /// others only counted what was seen of them already.
    fn push_chunks(&mut self, chunks: Chunks<'_>) {
        let last = if chunks.are_lines_within(LONG_LINE_BYTES) { self.chunks_read(chunks) } else { None };
        let Some(last) = last.and_then(|last| chunks.last(last)) else {
            return chunks.payloads().for_each(|payload| self.push(payload));
        };
        // Two of each chunk's framing.
        self.newlines += (memchr_iter(b'\n', chunks.as_bytes()).count() - 2 * chunks.count()) as u64;
        self.bytes += chunks.payload_bytes() as u64;
        self.window.clear();
        for payload in last {
            self.window.push(payload);
            if let [.., one, two] = *payload {
                self.last = [one, two];
            } else {
                self.last = [self.last[1], b'\n'];
            }
        }
    }

    /// How many of the last chunks hold as many lines of data as are read in the end; `None` if that is not easily seen.
    fn chunks_read(&self, chunks: Chunks<'_>) -> Option<usize> {
        let wanted = self.lines_read();
        (wanted..=2 * LINES_READ).find(|&last| {
            chunks.last(last).is_some_and(|payloads| payloads.filter(|payload| is_data(payload)).count() >= wanted)
        })
    }

    /// What the answer says, whole or cut.
    #[must_use]
    pub fn finish(&mut self, request: &RequestFacts) -> TailReport {
        let facts = self.settled();
        let passed = Passed {
            bytes: self.bytes,
            newlines: self.newlines,
            stream: matches!(self.form, Form::Lines | Form::Events),
            between: self.probe.is_between(),
        };
        verdict::report(self.route, &facts, &passed, request)
    }

    /// Where the stream stands, for an error of our own at its end.
    #[must_use]
    pub fn facts(&mut self) -> TailFacts<'_> {
        let streamed = match self.form {
            Form::Unknown => self.streamed && self.route.wire() != Wire::Single,
            Form::Value => false,
            Form::Lines | Form::Events => true,
        };
        let settled = self.settled();
        let mid_line = self.bytes > 0 && self.last[1] != b'\n';
        TailFacts {
            streamed,
            mid_line,
            mid_event: mid_line || (self.form == Form::Events && self.last != *b"\n\n"),
            // Events are numbered from zero; three lines each.
            sequence: settled.sequence.map_or(self.newlines / 3, |last| last + 1),
            response_id: self.probe.facts.id.as_str(),
        }
    }

    /// What begins with this byte.
    fn form_of(&self, first: u8) -> Form {
        match (first, self.route.wire()) {
            (b'{', Wire::Ndjson) if self.streamed => Form::Lines,
            (b'{', _) | (_, Wire::Single | Wire::Ndjson) => Form::Value,
            (_, Wire::Sse | Wire::TypedSse) => Form::Events,
        }
    }

    fn push_lines(&mut self, payload: &[u8]) {
        let newlines = memchr_iter(b'\n', payload).count();
        self.newlines += newlines as u64;
        // No line here can be long, and none is being read: the rule, once a stream has begun.
        if self.line_bytes + payload.len() <= LONG_LINE_BYTES && !self.in_probe && !self.first_is_read() {
            self.window.push(payload);
            self.line_bytes = match memrchr(b'\n', payload) {
                _ if self.last[1] == b'\n' => 0,
                Some(at) => payload.len() - at - 1,
                None => self.line_bytes + payload.len(),
            };
            return;
        }
        let mut rest = payload;
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
            let (line, after) = rest.split_at(end);
            self.push_line(line);
            rest = after;
        }
    }

    /// Whether the stream's first record is still to be read as it passes.
    fn first_is_read(&self) -> bool {
        self.route.wire() == Wire::TypedSse && self.probe.facts.records == 0
    }

    /// A line, or as much of it as there is; the newline last if there.
    fn push_line(&mut self, line: &[u8]) {
        let ends = line.last() == Some(&b'\n');
        if !self.in_probe && (self.line_bytes + line.len() > LONG_LINE_BYTES || self.first_is_read()) {
            self.read_window();
            self.in_probe = true;
        }
        if self.in_probe {
            self.probe.feed(line);
        } else {
            self.window.push(line);
        }
        self.line_bytes = if ends { 0 } else { self.line_bytes + line.len() };
        if ends && self.in_probe {
            self.in_probe = false;
            self.probe.restart();
        }
    }

    /// How many of the last lines that have ended matter: of objects a line each, the last one says all.
    fn lines_read(&self) -> usize {
        if self.form == Form::Lines { 1 } else { LINES_READ }
    }

    /// What all that passed says together.
    fn settled(&mut self) -> record::Facts {
        if self.in_probe || self.window.is_empty() {
            return self.probe.facts;
        }
        let mut probe = Probe::with(self.route, self.probe.facts);
        let lines = self.lines_read();
        read_lines(&mut probe, self.window.in_order(), lines);
        probe.facts
    }

    /// Reads what the window holds, so that it can be given up; a line that has not ended stays open in the probe.
    fn read_window(&mut self) {
        if !self.window.is_empty() {
            // No more of what precedes the line than is there however the bytes were cut into pieces.
            let lines = self.lines_read();
            let kept = self.window.in_order().last(self.line_bytes + WINDOW_BYTES - LONG_LINE_BYTES);
            read_lines(&mut self.probe, kept, lines);
            self.window.clear();
        }
        if self.line_bytes == 0 {
            self.probe.restart();
        }
    }
}

/// Reads the last lines that hold data, oldest first: so many that have ended, and what there is of the one that has not,
/// which is left open.
fn read_lines(probe: &mut Probe, kept: Kept<'_>, wanted: usize) {
    let bytes = kept.bytes;
    let mut lines = [&bytes[..0]; LINES_READ + 1];
    let (mut found, mut ended, mut end) = (0, 0, bytes.len());
    while ended < wanted.min(LINES_READ) && end > 0 {
        let start = match memrchr(b'\n', &bytes[..end - 1]) {
            Some(at) => at + 1,
            // Its beginning is gone.
            None if kept.cut => break,
            None => 0,
        };
        let line = &bytes[start..end];
        let has_ended = line.last() == Some(&b'\n');
        if is_data(line) || !has_ended {
            lines[found] = line;
            found += 1;
            ended += usize::from(has_ended);
        }
        end = start;
    }
    for line in lines.iter().take(found).rev() {
        probe.restart();
        probe.facts.end_marker |= is_end_mark(line);
        probe.feed(line);
    }
}

/// A line of JSON or of server-sent data.
fn is_data(line: &[u8]) -> bool {
    line.starts_with(b"data:") || line.trim_ascii_start().first() == Some(&b'{')
}

fn is_end_mark(line: &[u8]) -> bool {
    line.strip_prefix(b"data:").is_some_and(|data| data.trim_ascii() == b"[DONE]")
}

#[cfg(test)]
mod tests;
