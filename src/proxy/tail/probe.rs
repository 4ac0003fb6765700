//! Reads the few members that count tokens out of JSON records, from bytes cut anywhere, without keeping them.
//!
//! Called by [`super::Tail`] and the filter of `proxy::inject`. Must never take a number for a count unless it stands
//! where the dialect puts it: an object is entered only along the dialect's own path, everything else is passed over,
//! whatever a model wrote into it. Lenient about JSON that is not valid: it finds less, it never fails.

use memchr::{memchr, memchr2};

use super::record::{Facts, Record};
use crate::dialect::Route;
use crate::proxy::word;

/// Bytes kept of a key or a short value: the longest id worth repeating. Longer ones are not of interest.
const KEPT_BYTES: usize = 64;
/// Objects entered one inside the other: record, response, usage, its details.
const ENTERED_MAX: usize = 4;

/// An object that is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Top,
    /// What `response` (responses) or `message` (messages) wraps in a streamed event.
    Wrapped,
    Usage,
    Details,
    Timings,
}

/// A member that is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// Not read.
    Other,
    /// An object to be entered.
    Enter(Inner),
    Done,
    DoneReason,
    Error,
    DebugInfo,
    /// `choices`: only whether it is empty.
    Choices,
    /// `embeddings` or `embedding`: only whether it is empty.
    Vectors,
    Type,
    Id,
    Sequence,
    PromptEvalCount,
    EvalCount,
    LoadDuration,
    PromptEvalDuration,
    EvalDuration,
    UsageInput,
    UsageOutput,
    UsageCached,
    CacheRead,
    CacheCreation,
    CacheN,
    PromptN,
    PredictedN,
    PromptMs,
    PredictedMs,
}

/// Which object a slot leads into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inner {
    Wrapped,
    Usage,
    Details,
    Timings,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before a record.
    Between,
    /// In an entered object, before a key.
    Key,
    InKey,
    InKeyEscape,
    Colon,
    Value,
    InString,
    InStringEscape,
    Scalar,
    /// After the `[` of a list of which only the emptiness counts.
    List,
    AfterValue,
    /// In a container that is passed over.
    Skip,
    /// Not JSON: nothing more until the caller says that a new record begins.
    Lost,
}

/// The reader. `facts` grows with each record that ends.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// What the records so far say together.
    pub(crate) facts: Facts,
    record: Record,
    state: State,
    places: [Place; ENTERED_MAX],
    entered: usize,
    /// Containers open inside the one that is passed over, itself included.
    skipping: usize,
    slot: Slot,
    kept: [u8; KEPT_BYTES],
    /// Bytes in `kept`; beyond its length the text was longer.
    kept_bytes: usize,
    route: Route,
    /// Nothing is read beyond the first `choices` that are not empty.
    choices_only: bool,
}

impl Probe {
    pub(crate) fn new(route: Route) -> Self {
        Self::with(route, Facts::default())
    }

    /// A reader at the start of a record that adds to these facts.
    pub(crate) fn with(route: Route, facts: Facts) -> Self {
        Self {
            facts,
            record: Record::default(),
            state: State::Between,
            places: [Place::Top; ENTERED_MAX],
            entered: 0,
            skipping: 0,
            slot: Slot::Other,
            kept: [0; KEPT_BYTES],
            kept_bytes: 0,
            route,
            choices_only: false,
        }
    }

    /// A reader that gives up on a record as soon as it has `choices` that are not empty.
    pub(crate) fn of_no_choices() -> Self {
        Self { choices_only: true, ..Self::new(Route::V1Chat) }
    }

    /// What the record that has begun says so far.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Whether no record is open.
    pub(crate) fn is_between(&self) -> bool {
        self.state == State::Between
    }

    /// A record that has not ended ends here without counting.
    pub(crate) fn restart(&mut self) {
        self.state = State::Between;
        self.record = Record::default();
    }

    /// Reads on.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            let used = match self.state {
                State::Between => self.between(bytes),
                State::Key => self.before_key(byte, bytes),
                State::InKey => self.in_key(bytes),
                State::InKeyEscape => {
                    self.kept_bytes = KEPT_BYTES + 1;
                    self.to(State::InKey)
                }
                State::Colon => match byte {
                    b':' => self.to(State::Value),
                    _ => self.space_or_lost(byte),
                },
                State::Value => self.value(byte, bytes),
                State::InString => self.in_string(bytes),
                State::InStringEscape => {
                    self.kept_bytes = KEPT_BYTES + 1;
                    self.to(State::InString)
                }
                State::Scalar => self.scalar(bytes),
                State::List => self.list(byte),
                State::AfterValue => match byte {
                    b',' => self.to(State::Key),
                    b'}' => self.leave(),
                    _ => self.space_or_lost(byte),
                },
                State::Skip => self.skip(bytes),
                State::Lost => bytes.len(),
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    /// One byte used, and on to another state.
    fn to(&mut self, state: State) -> usize {
        self.state = state;
        1
    }

    fn space_or_lost(&mut self, byte: u8) -> usize {
        if !byte.is_ascii_whitespace() {
            self.state = State::Lost;
        }
        1
    }

    fn between(&mut self, bytes: &[u8]) -> usize {
        let Some(at) = memchr(b'{', bytes) else { return bytes.len() };
        self.record = Record::default();
        self.entered = 0;
        self.enter(Place::Top);
        at + 1
    }

    fn enter(&mut self, place: Place) {
        match self.places.get_mut(self.entered) {
            Some(innermost) => {
                *innermost = place;
                self.entered += 1;
                self.state = State::Key;
            }
            None => self.state = State::Lost,
        }
    }

    fn leave(&mut self) -> usize {
        self.entered -= 1;
        if self.entered > 0 {
            return self.to(State::AfterValue);
        }
        self.facts.absorb(&self.record);
        self.to(State::Between)
    }

    fn before_key(&mut self, byte: u8, bytes: &[u8]) -> usize {
        match byte {
            b'"' => match whole_string(bytes) {
                // The key is here whole, as nearly always, and its colon too.
                Some(key) if bytes.get(key.len() + 2) == Some(&b':') => {
                    self.slot = self.slot_of(key);
                    self.after_colon(key.len() + 3, bytes)
                }
                _ => {
                    self.kept_bytes = 0;
                    self.to(State::InKey)
                }
            },
            b'}' => self.leave(),
            _ => self.space_or_lost(byte),
        }
    }

    /// The value that begins at `at`, and the comma behind it, where both are here: what a member nearly always is.
    fn after_colon(&mut self, at: usize, bytes: &[u8]) -> usize {
        self.state = State::Value;
        let Some((&first, rest)) = bytes.get(at..).and_then(|rest| Some((rest.first()?, rest))) else { return at };
        let end = at + self.value(first, rest);
        if self.state == State::AfterValue && bytes.get(end) == Some(&b',') {
            return end + self.to(State::Key);
        }
        end
    }

    fn in_key(&mut self, bytes: &[u8]) -> usize {
        match self.keep_until_quote(bytes) {
            (used, Some(b'"')) => {
                self.slot = self.kept.get(..self.kept_bytes).map_or(Slot::Other, |key| self.slot_of(key));
                self.state = State::Colon;
                used
            }
            (used, Some(_)) => {
                self.state = State::InKeyEscape;
                used
            }
            (used, None) => used,
        }
    }

    fn in_string(&mut self, bytes: &[u8]) -> usize {
        match self.keep_until_quote(bytes) {
            (used, Some(b'"')) => {
                if self.skipping > 0 {
                    self.state = State::Skip;
                } else {
                    self.record.string(self.slot, self.kept.get(..self.kept_bytes));
                    self.state = State::AfterValue;
                }
                used
            }
            (used, Some(_)) => {
                self.state = State::InStringEscape;
                used
            }
            (used, None) => used,
        }
    }

    /// Bytes up to and with the next quote or backslash, and which of them it is; what comes before is kept if it fits.
    fn keep_until_quote(&mut self, bytes: &[u8]) -> (usize, Option<u8>) {
        let end = memchr2(b'"', b'\\', bytes);
        let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        self.keep(text);
        (text.len() + usize::from(end.is_some()), end.and_then(|end| bytes.get(end).copied()))
    }

    fn keep(&mut self, text: &[u8]) {
        match self.kept.get_mut(self.kept_bytes..self.kept_bytes + text.len()) {
            Some(room) => {
                room.copy_from_slice(text);
                self.kept_bytes += text.len();
            }
            None => self.kept_bytes = KEPT_BYTES + 1,
        }
    }

    fn value(&mut self, byte: u8, bytes: &[u8]) -> usize {
        match byte {
            b'"' => match whole_string(bytes) {
                Some(text) => {
                    self.record.string(self.slot, Some(text));
                    self.state = State::AfterValue;
                    text.len() + 2
                }
                None => {
                    self.kept_bytes = 0;
                    self.to(State::InString)
                }
            },
            b'{' => {
                self.record.container(self.slot);
                match self.slot {
                    Slot::Enter(Inner::Wrapped) => self.enter(Place::Wrapped),
                    Slot::Enter(Inner::Usage) => self.enter(Place::Usage),
                    Slot::Enter(Inner::Details) => self.enter(Place::Details),
                    Slot::Enter(Inner::Timings) => self.enter(Place::Timings),
                    _ => self.start_skip(),
                }
                1
            }
            b'[' if matches!(self.slot, Slot::Choices | Slot::Vectors) => self.to(State::List),
            b'[' => {
                self.record.container(self.slot);
                self.start_skip();
                1
            }
            _ if byte.is_ascii_whitespace() => 1,
            _ => match end_of_scalar(bytes) {
                // Here whole, as nearly always.
                Some(end) if end <= KEPT_BYTES => {
                    self.record.scalar(self.slot, bytes.get(..end).unwrap_or_default());
                    self.state = State::AfterValue;
                    end
                }
                _ => {
                    self.kept_bytes = 0;
                    self.state = State::Scalar;
                    0
                }
            },
        }
    }

    fn start_skip(&mut self) {
        self.skipping = 1;
        self.state = State::Skip;
    }

    fn list(&mut self, byte: u8) -> usize {
        if byte.is_ascii_whitespace() {
            return 1;
        }
        self.record.list(self.slot, byte == b']');
        if byte == b']' {
            return self.to(State::AfterValue);
        }
        if self.choices_only {
            return self.to(State::Lost);
        }
        self.start_skip();
        0
    }

    fn scalar(&mut self, bytes: &[u8]) -> usize {
        let end = end_of_scalar(bytes);
        let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        self.keep(text);
        if end.is_some() {
            if let Some(kept) = self.kept.get(..self.kept_bytes) {
                self.record.scalar(self.slot, kept);
            }
            self.state = State::AfterValue;
        }
        text.len()
    }

    fn skip(&mut self, bytes: &[u8]) -> usize {
        let Some(at) = structural(bytes) else { return bytes.len() };
        match bytes.get(at) {
            Some(b'"') => self.state = State::InString,
            Some(b'[' | b'{') => self.skipping += 1,
            _ => {
                self.skipping -= 1;
                if self.skipping == 0 {
                    self.state = State::AfterValue;
                }
            }
        }
        at + 1
    }

    fn slot_of(&self, key: &[u8]) -> Slot {
        let place = self.entered.checked_sub(1).and_then(|at| self.places.get(at));
        match place {
            Some(Place::Top) => self.slot_at_top(key),
            Some(Place::Wrapped) => match key {
                b"usage" => Slot::Enter(Inner::Usage),
                b"id" => Slot::Id,
                _ => Slot::Other,
            },
            Some(Place::Usage) => match key {
                b"prompt_tokens" | b"input_tokens" => Slot::UsageInput,
                b"completion_tokens" | b"output_tokens" => Slot::UsageOutput,
                b"prompt_tokens_details" | b"input_tokens_details" => Slot::Enter(Inner::Details),
                b"cache_read_input_tokens" => Slot::CacheRead,
                b"cache_creation_input_tokens" => Slot::CacheCreation,
                _ => Slot::Other,
            },
            Some(Place::Details) if key == b"cached_tokens" => Slot::UsageCached,
            Some(Place::Timings) => match key {
                b"cache_n" => Slot::CacheN,
                b"prompt_n" => Slot::PromptN,
                b"predicted_n" => Slot::PredictedN,
                b"prompt_ms" => Slot::PromptMs,
                b"predicted_ms" => Slot::PredictedMs,
                _ => Slot::Other,
            },
            _ => Slot::Other,
        }
    }

    fn slot_at_top(&self, key: &[u8]) -> Slot {
        match (self.route, key) {
            (_, b"error") => Slot::Error,
            (Route::Generate | Route::Chat | Route::Embed | Route::Embeddings, _) => match key {
                b"done" => Slot::Done,
                b"done_reason" => Slot::DoneReason,
                b"_debug_info" => Slot::DebugInfo,
                b"embeddings" | b"embedding" => Slot::Vectors,
                b"prompt_eval_count" => Slot::PromptEvalCount,
                b"eval_count" => Slot::EvalCount,
                b"load_duration" => Slot::LoadDuration,
                b"prompt_eval_duration" => Slot::PromptEvalDuration,
                b"eval_duration" => Slot::EvalDuration,
                _ => Slot::Other,
            },
            (Route::V1Responses, b"response") | (Route::V1Messages, b"message") => Slot::Enter(Inner::Wrapped),
            (Route::V1Responses | Route::V1Messages, b"type") => Slot::Type,
            (Route::V1Responses, b"sequence_number") => Slot::Sequence,
            (_, b"usage") => Slot::Enter(Inner::Usage),
            (_, b"timings") => Slot::Enter(Inner::Timings),
            (_, b"choices") => Slot::Choices,
            _ => Slot::Other,
        }
    }
}

/// The short string that begins here with its quote, if it is here whole and without an escape.
fn whole_string(bytes: &[u8]) -> Option<&[u8]> {
    let text = bytes.get(1..)?;
    let mut end = 0;
    for chunk in text.chunks_exact(8).take(KEPT_BYTES / 8) {
        let word = word::of(chunk)?;
        if let Some(hit) = word::first(word::equal(word, b'"') | word::equal(word, b'\\')) {
            end += hit;
            return if text.get(end) == Some(&b'"') { text.get(..end) } else { None };
        }
        end += 8;
    }
    // Short of a word, or at the bound.
    let rest = text.get(end..KEPT_BYTES + 1).or_else(|| text.get(end..))?;
    end += rest.iter().position(|&byte| matches!(byte, b'"' | b'\\'))?;
    if text.get(end) == Some(&b'"') { text.get(..end) } else { None }
}

/// Where a number or a word ends: at white space, or what follows a value.
fn end_of_scalar(bytes: &[u8]) -> Option<usize> {
    // Mostly digits, and then the end.
    let digits = bytes.iter().position(|byte| !byte.is_ascii_digit())?;
    let ends = |byte: u8| byte <= b' ' || matches!(byte, b',' | b'}' | b']');
    bytes.iter().skip(digits).position(|&byte| ends(byte)).map(|at| digits + at)
}

/// Where the next quote, bracket or brace is. They stand close together in ordinary records, but lists of numbers
/// (embeddings, contexts) are megabytes without one, so after a few words whole blocks are tested, in a form that the
/// compiler turns into vector instructions.
fn structural(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 32;
    let mut at = 0;
    for chunk in bytes.chunks_exact(8).take(BLOCK / 8) {
        let text = word::of(chunk)?;
        // Brackets and braces differ in one bit.
        let braces = word::equal(word::folded(text), b'{') | word::equal(word::folded(text), b'}');
        if let Some(hit) = word::first(braces | word::equal(text, b'"')) {
            return Some(at + hit);
        }
        at += 8;
    }
    let of_interest = |byte: u8| byte == b'"' || byte | 0x20 == b'{' || byte | 0x20 == b'}';
    let rest = bytes.get(at..)?;
    let plain = rest.chunks_exact(BLOCK).take_while(|block| !block.iter().fold(false, |hit, &b| hit | of_interest(b)));
    let from = plain.count() * BLOCK;
    let hit = rest.get(from..)?.iter().position(|&byte| of_interest(byte))?;
    Some(at + from + hit)
}
