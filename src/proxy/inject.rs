//! `usage_injection`: asks Ollama for usage in a chat stream whose client did not, and takes the extra event out again.
//!
//! Called by proxy for `/v1/chat/completions` to Ollama nodes, uncompressed bodies only. Must never touch another byte
//! of either direction, nor hold back an event that cannot be the extra one. Source: decision 3; `ollama-api.md` §4.1.

use memchr::{memchr, memmem};

use super::scan::Scan;
use super::tail::probe::Probe;
use crate::dialect::{Route, TailFacts};
use crate::http1::Chunks;

/// Added as the last member, so that by Go's rules it wins over an earlier `stream_options` (absent, null, or an object
/// whose other members stay as they are).
const MEMBER: &[u8] = b",\"stream_options\":{\"include_usage\":true}";
/// The extra event is a few hundred bytes; what is longer and still undecided is not it.
const HELD_BYTES_MAX: usize = 8 * 1024;

/// One insertion into a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Splice {
    /// Where.
    pub at: usize,
    /// What.
    pub insert: &'static [u8],
}

impl Splice {
    /// The body with the insertion made: what comes before it, the insertion, what comes after.
    #[must_use]
    pub fn parts<'b>(&self, body: &'b [u8]) -> [&'b [u8]; 3] {
        let (before, after) = body.split_at(self.at.min(body.len()));
        [before, self.insert, after]
    }
}

/// Where and what to insert, if this body wants it: a chat stream that does not ask for usage already. A body that the
/// node will refuse is left alone.
#[must_use]
pub fn plan(scan: &Scan<'_>) -> Option<Splice> {
    let wanted = scan.route == Route::V1Chat
        && scan.streams()
        && scan.include_usage != Some(true)
        && !scan.usage_odd
        && scan.has_members;
    wanted.then_some(Splice { at: scan.object_end, insert: MEMBER })
}

/// Takes the injected event out of a stream. Give the [`Tail`](super::tail::Tail) the bytes *before* they come here.
///
/// An event is passed on as soon as it cannot be the injected one, so nothing is held of ordinary events but what of
/// them comes before `choices`, and that only when the node's bytes are cut there.
#[derive(Debug, Default)]
pub struct Filter {
    /// The beginning of an event that may be the injected one.
    held: Vec<u8>,
    /// In an ordinary event, up to its blank line.
    passing: Option<Passing>,
}

/// Where in an ordinary event the stream stands.
#[derive(Clone, Copy, Debug)]
struct Passing {
    /// Nothing of the line has come yet.
    line_empty: bool,
}

/// What an event is, as far as its bytes have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Ordinary,
    /// The injected one, of so many bytes with its blank line.
    Injected(usize),
    /// It may be; more bytes will tell. Says whether its `choices` are known to be empty.
    Undecided {
        no_choices: bool,
    },
}

impl Filter {
    /// A filter at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands what the client may have now of the stream to `out`, perhaps nothing; ordinary payload uncopied. Parts that
    /// come together are one piece to the client: the node framed them as one, around what was taken out.
    pub fn push(&mut self, payload: &[u8], out: &mut dyn FnMut(&[&[u8]])) {
        let joined;
        let bytes = if self.held.is_empty() {
            payload
        } else {
            joined = [&std::mem::take(&mut self.held), payload].concat();
            &joined
        };
        // One event is taken out, so there are two parts at most; were there more, they would be pieces of their own.
        let (mut parts, mut count) = ([&[][..]; 2], 0);
        let mut give = |range: std::ops::Range<usize>| {
            if range.is_empty() {
                return;
            }
            if count == parts.len() {
                out(&parts);
                count = 0;
            }
            parts[count] = &bytes[range];
            count += 1;
        };
        let (mut from, mut at) = (0, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            if let Some(passing) = self.passing {
                let (used, passing) = pass(rest, passing);
                self.passing = passing;
                at += used;
                continue;
            }
            match judge(rest) {
                Event::Ordinary => self.passing = Some(Passing { line_empty: true }),
                Event::Injected(length) => {
                    give(from..at);
                    at += length;
                    from = at;
                }
                Event::Undecided { .. } => {
                    self.held.extend_from_slice(rest);
                    break;
                }
            }
        }
        give(from..at);
        if count > 0 {
            out(&parts[..count]);
        }
    }

    /// The first of these chunks, in which whole events lie and not the injected one, so that they may pass as they are;
    /// and the others, which must be pushed.
    ///
    /// The injected event has a member `usage`; a text that speaks of one has its quotes escaped.
    #[must_use]
    pub fn split<'a>(&self, chunks: Chunks<'a>) -> (Chunks<'a>, Chunks<'a>) {
        let is_between = self.held.is_empty() && self.passing.is_none();
        let at = || memmem::find(chunks.as_bytes(), b"\"usage\"").unwrap_or(chunks.as_bytes().len());
        let split = if is_between { chunks.split_before(at()) } else { None };
        // The end of an event, and of its chunk.
        split.filter(|(first, _)| first.as_bytes().ends_with(b"\n\n\r\n")).unwrap_or((Chunks::none(&[]), chunks))
    }

    /// Hands out what was held back when the stream has ended, unless it is (or began as) the injected event.
    pub fn finish(&mut self, out: &mut dyn FnMut(&[u8])) {
        let held = std::mem::take(&mut self.held);
        match judge(&held) {
            Event::Undecided { no_choices: true } | Event::Injected(_) => {}
            Event::Undecided { .. } | Event::Ordinary if held.is_empty() => {}
            Event::Undecided { .. } | Event::Ordinary => out(&held),
        }
    }

    /// Where the *client* stands: what is held back has not reached it, and never will once the node is lost.
    #[must_use]
    pub fn seen<'a>(&self, facts: TailFacts<'a>) -> TailFacts<'a> {
        match self.passing {
            Some(_) => facts,
            None => TailFacts { mid_line: false, mid_event: false, ..facts },
        }
    }
}

/// How much of an ordinary event is here, and where in it the stream then stands (`None`: at its end).
fn pass(bytes: &[u8], passing: Passing) -> (usize, Option<Passing>) {
    let (mut at, mut line_empty) = (0, passing.line_empty);
    let mut first = true;
    while let Some(length) = bytes.get(at..).and_then(|rest| memchr(b'\n', rest)) {
        let line = &bytes[at..at + length];
        at += length + 1;
        if line_empty && is_blank(line) {
            return (at, None);
        }
        line_empty = true;
        first = false;
    }
    let open = bytes.get(at..).unwrap_or_default();
    let line_empty = is_blank(open) && (line_empty || !first);
    (bytes.len(), Some(Passing { line_empty }))
}

fn is_blank(line: &[u8]) -> bool {
    matches!(line, b"" | b"\r")
}

/// Judges an event by the bytes of it that are here (and perhaps of others after it).
fn judge(bytes: &[u8]) -> Event {
    const FIELD: &[u8] = b"data:";
    let undecided = |no_choices| {
        if bytes.len() > HELD_BYTES_MAX { Event::Ordinary } else { Event::Undecided { no_choices } }
    };
    let Some(data) = bytes.strip_prefix(FIELD) else {
        return if FIELD.starts_with(bytes) { undecided(false) } else { Event::Ordinary };
    };
    let line_bytes = memchr(b'\n', data);
    let line = line_bytes.map_or(data, |length| &data[..length]).trim_ascii_start();
    match line.first() {
        None if line_bytes.is_none() => return undecided(false),
        Some(b'{') => {}
        _ => return Event::Ordinary,
    }
    let mut probe = Probe::of_no_choices();
    probe.feed(line);
    let no_choices = match probe.record().choices_empty {
        Some(false) => return Event::Ordinary,
        found => found.is_some(),
    };
    let Some(length) = line_bytes else { return undecided(no_choices) };
    if !(no_choices && probe.record().usage && probe.is_between()) {
        return Event::Ordinary;
    }
    let end = FIELD.len() + length + 1;
    let after = &bytes[end..];
    match memchr(b'\n', after) {
        Some(length) if is_blank(&after[..length]) => Event::Injected(end + length + 1),
        None if is_blank(after) => undecided(true),
        _ => Event::Ordinary,
    }
}

#[cfg(test)]
mod tests;
