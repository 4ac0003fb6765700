//! What one JSON record of an answer says, and what all of them say together.
//!
//! Filled by [`super::probe::Probe`], judged by [`super::verdict`]. Must never hold text of a model.

use super::probe::{Inner, Slot};

/// No prompt is longer and no answer either; a larger number is a mistake, and adding it up would overflow a sum.
const COUNT_MAX: u64 = 1 << 40;
/// About 100 days in nanoseconds.
const DURATION_NS_MAX: u64 = 1 << 53;

/// The event types that matter, of both typed dialects.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Kind {
    /// Any other, or none.
    #[default]
    Other,
    /// `message_delta`: the final usage.
    MessageDelta,
    /// `message_stop`: the end.
    MessageStop,
    /// `response.completed` or `response.incomplete`: final usage and end.
    ResponseEnd,
    /// `response.failed` or `error`.
    Failed,
}

/// A record's (or all records') numbers. Absent is not zero.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(crate) struct Numbers {
    pub(crate) prompt_eval_count: Option<u64>,
    pub(crate) eval_count: Option<u64>,
    pub(crate) load_ns: Option<u64>,
    pub(crate) prompt_eval_ns: Option<u64>,
    pub(crate) eval_ns: Option<u64>,
    pub(crate) usage_input: Option<u64>,
    pub(crate) usage_output: Option<u64>,
    pub(crate) usage_cached: Option<u64>,
    pub(crate) cache_read: Option<u64>,
    pub(crate) cache_creation: Option<u64>,
    pub(crate) cache_n: Option<u64>,
    pub(crate) prompt_n: Option<u64>,
    pub(crate) predicted_n: Option<u64>,
}

/// One record.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Record {
    numbers: Numbers,
    done: bool,
    load_or_unload: bool,
    debug: bool,
    error: bool,
    kind: Kind,
    /// `choices`, if there: whether it is empty.
    pub(crate) choices_empty: Option<bool>,
    vectors_empty: Option<bool>,
    sequence: Option<u64>,
    /// Usage stands in it (an object, not null).
    pub(crate) usage: bool,
    id: Id,
}

/// The response's id, kept to repeat it in an error event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Id {
    bytes: [u8; 64],
    len: usize,
}

impl Default for Id {
    fn default() -> Self {
        Self { bytes: [0; 64], len: 0 }
    }
}

impl Id {
    pub(crate) fn as_str(&self) -> Option<&str> {
        let text = std::str::from_utf8(self.bytes.get(..self.len)?).ok()?;
        (!text.is_empty()).then_some(text)
    }
}

impl Record {
    /// An object or a list begins in this slot.
    pub(super) fn container(&mut self, slot: Slot) {
        match slot {
            Slot::Error => self.error = true,
            Slot::DebugInfo => self.debug = true,
            Slot::Enter(Inner::Usage) => self.usage = true,
            _ => {}
        }
    }

    /// A list of which only the emptiness counts.
    pub(super) fn list(&mut self, slot: Slot, empty: bool) {
        match slot {
            Slot::Choices => self.choices_empty = Some(empty),
            _ => self.vectors_empty = Some(empty),
        }
    }

    /// A string; `None` if it was too long to be kept or holds an escape.
    pub(super) fn string(&mut self, slot: Slot, text: Option<&[u8]>) {
        match (slot, text) {
            (Slot::Error, text) => self.error = text.is_none_or(|text| !text.is_empty()),
            (Slot::DoneReason, Some(b"load" | b"unload")) => self.load_or_unload = true,
            (Slot::Type, Some(text)) => {
                self.kind = match text {
                    b"message_delta" => Kind::MessageDelta,
                    b"message_stop" => Kind::MessageStop,
                    b"response.completed" | b"response.incomplete" => Kind::ResponseEnd,
                    b"response.failed" | b"error" => Kind::Failed,
                    _ => Kind::Other,
                }
            }
            (Slot::Id, Some(text)) => {
                if let Some(room) = self.id.bytes.get_mut(..text.len()) {
                    room.copy_from_slice(text);
                    self.id.len = text.len();
                }
            }
            _ => {}
        }
    }

    /// A number, `true`, `false` or `null`.
    pub(super) fn scalar(&mut self, slot: Slot, text: &[u8]) {
        let numbers = &mut self.numbers;
        let duration = || number(text, 1.0, DURATION_NS_MAX);
        let count = || number(text, 1.0, COUNT_MAX);
        let place = match slot {
            Slot::Done => {
                self.done = text == b"true";
                return;
            }
            Slot::Error => {
                self.error = text != b"null" && text != b"false";
                return;
            }
            Slot::LoadDuration => return set(&mut numbers.load_ns, duration()),
            Slot::PromptEvalDuration => return set(&mut numbers.prompt_eval_ns, duration()),
            Slot::EvalDuration => return set(&mut numbers.eval_ns, duration()),
            Slot::PromptMs => return set(&mut numbers.prompt_eval_ns, number(text, 1e6, DURATION_NS_MAX)),
            Slot::PredictedMs => return set(&mut numbers.eval_ns, number(text, 1e6, DURATION_NS_MAX)),
            Slot::PromptEvalCount => &mut numbers.prompt_eval_count,
            Slot::EvalCount => &mut numbers.eval_count,
            Slot::UsageInput => &mut numbers.usage_input,
            Slot::UsageOutput => &mut numbers.usage_output,
            Slot::UsageCached => &mut numbers.usage_cached,
            Slot::CacheRead => &mut numbers.cache_read,
            Slot::CacheCreation => &mut numbers.cache_creation,
            Slot::CacheN => &mut numbers.cache_n,
            Slot::PromptN => &mut numbers.prompt_n,
            Slot::PredictedN => &mut numbers.predicted_n,
            Slot::Sequence => &mut self.sequence,
            _ => return,
        };
        set(place, count());
    }
}

fn set(place: &mut Option<u64>, value: Option<u64>) {
    *place = value.or(*place);
}

/// A number times `unit`, rounded down. `None` for what is none, negative, or beyond `max`.
fn number(text: &[u8], unit: f64, max: u64) -> Option<u64> {
    // Eighteen digits always fit; counts and durations have fewer.
    if unit == 1.0 && matches!(text.len(), 1..=18) && text.iter().all(u8::is_ascii_digit) {
        let value = text.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
        return (value <= max).then_some(value);
    }
    let text = std::str::from_utf8(text).ok()?;
    let value = match text.parse::<u64>() {
        Ok(value) if unit == 1.0 => value,
        _ => {
            let value = text.parse::<f64>().ok()? * unit;
            if !(0.0..=max as f64).contains(&value) {
                return None;
            }
            value as u64
        }
    };
    (value <= max).then_some(value)
}

/// What the records so far say together; a later one wins member by member.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Facts {
    pub(crate) numbers: Numbers,
    /// Records that ended.
    pub(crate) records: u64,
    /// The last record has `done:true`.
    pub(crate) done: bool,
    pub(crate) load_or_unload: bool,
    pub(crate) debug: bool,
    /// A record told of an error.
    pub(crate) error: bool,
    /// Usage came where it is final: with empty `choices`, in a `message_delta`, at a response's end.
    pub(crate) usage_final: bool,
    /// `message_stop`, `response.completed`, `[DONE]`.
    pub(crate) end_marker: bool,
    pub(crate) vectors_empty: bool,
    /// The last `sequence_number`.
    pub(crate) sequence: Option<u64>,
    pub(crate) id: Id,
}

impl Facts {
    pub(super) fn absorb(&mut self, record: &Record) {
        self.records += 1;
        self.done = record.done;
        self.load_or_unload |= record.load_or_unload;
        self.debug |= record.debug;
        self.error |= record.error || record.kind == Kind::Failed;
        self.usage_final |= match record.kind {
            Kind::MessageDelta | Kind::ResponseEnd => record.usage,
            _ => record.usage && record.choices_empty == Some(true),
        };
        self.end_marker |= matches!(record.kind, Kind::MessageStop | Kind::ResponseEnd);
        self.vectors_empty |= record.vectors_empty == Some(true);
        self.sequence = record.sequence.or(self.sequence);
        if self.id.len == 0 {
            self.id = record.id;
        }
        let (all, new) = (&mut self.numbers, &record.numbers);
        for (place, value) in [
            (&mut all.prompt_eval_count, new.prompt_eval_count),
            (&mut all.eval_count, new.eval_count),
            (&mut all.load_ns, new.load_ns),
            (&mut all.prompt_eval_ns, new.prompt_eval_ns),
            (&mut all.eval_ns, new.eval_ns),
            (&mut all.usage_input, new.usage_input),
            (&mut all.usage_output, new.usage_output),
            (&mut all.usage_cached, new.usage_cached),
            (&mut all.cache_read, new.cache_read),
            (&mut all.cache_creation, new.cache_creation),
            (&mut all.cache_n, new.cache_n),
            (&mut all.prompt_n, new.prompt_n),
            (&mut all.predicted_n, new.predicted_n),
        ] {
            set(place, value);
        }
    }
}
