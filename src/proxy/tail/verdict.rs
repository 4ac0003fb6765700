//! Turns what an answer said into counts: exact where the dialect's last word was heard, estimated where not.
//!
//! Called by [`super::Tail::finish`]. Pure. Must never report zero for what is not known, nor call a guess exact.

use super::record::{Facts, Numbers};
use super::{RequestFacts, TailReport};
use crate::dialect::{Route, Wire};
use crate::usage::{Count, Tokens};

/// How much of an answer passed, for estimates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passed {
    pub(super) bytes: u64,
    pub(super) newlines: u64,
    /// It is a stream of records (not one JSON value).
    pub(super) stream: bool,
    /// No record is open.
    pub(super) between: bool,
}

/// English text has about four bytes a token; a wild guess is better than zero.
const BYTES_PER_TOKEN: u64 = 4;
/// What a JSON answer has around its text.
const ENVELOPE_BYTES: u64 = 256;

pub(super) fn report(route: Route, facts: &Facts, passed: &Passed, request: &RequestFacts) -> TailReport {
    let numbers = &facts.numbers;
    TailReport {
        count: count(route, facts, passed, request),
        load_ns: numbers.load_ns.unwrap_or(0),
        prompt_eval_ns: numbers.prompt_eval_ns.unwrap_or(0),
        eval_ns: numbers.eval_ns.unwrap_or(0),
        complete: complete(route, facts, passed),
        error: facts.error,
    }
}

/// Whether the answer itself said that it is over.
fn complete(route: Route, facts: &Facts, passed: &Passed) -> bool {
    if matches!(route, Route::V1Audio | Route::OtherApi | Route::OtherV1) {
        // Text, progress, anything: only the framing tells.
        return false;
    }
    if !passed.stream {
        // More than one value is a stream that was not asked for.
        return passed.between && (facts.records == 1 || facts.done || facts.end_marker);
    }
    match route.wire() {
        Wire::Ndjson => facts.done || facts.debug,
        _ => facts.end_marker,
    }
}

fn count(route: Route, facts: &Facts, passed: &Passed, request: &RequestFacts) -> Count {
    let nothing = !(200..400).contains(&request.status)
        || !route.is_inference()
        || route == Route::V1Audio
        || facts.load_or_unload
        || facts.debug
        || (facts.vectors_empty && facts.numbers.prompt_eval_count.is_none());
    // An error before any text: nothing was computed.
    if nothing || (facts.error && (!passed.stream || events_with_text(route, facts, passed) == 0)) {
        return Count::Nothing;
    }
    let whole = complete(route, facts, passed) && !facts.error;
    let exact = match route {
        Route::Generate | Route::Chat | Route::Embed | Route::Embeddings => native(&facts.numbers).filter(|_| whole),
        _ => compatible(route, &facts.numbers).filter(|_| whole || facts.usage_final),
    };
    match exact {
        Some(tokens) => Count::Exact(tokens),
        // A model that is loaded by an empty prompt says three zeros on this route.
        None if route == Route::V1Completions && request.empty && whole => Count::Nothing,
        None => Count::Estimated(estimate(route, facts, passed, request)),
    }
}

/// Ollama leaves out a count of zero; both left out means that the node does not know (a remote stub).
fn native(numbers: &Numbers) -> Option<Tokens> {
    if numbers.prompt_eval_count.is_none() && numbers.eval_count.is_none() {
        return None;
    }
    let input = numbers.prompt_eval_count.unwrap_or(0);
    Some(Tokens { input, cached: 0, output: numbers.eval_count.unwrap_or(0) })
}

/// From `usage`, else from llama.cpp's `timings`. All zero is what a converter says that was not told.
fn compatible(route: Route, numbers: &Numbers) -> Option<Tokens> {
    let from_usage = || {
        let said = numbers.usage_input.is_some() || numbers.usage_output.is_some();
        let (input, output) = (numbers.usage_input.unwrap_or(0), numbers.usage_output.unwrap_or(0));
        let tokens = if route == Route::V1Messages {
            // Anthropic counts cached tokens beside the input, not within it.
            let cached = numbers.cache_read.unwrap_or(0);
            Tokens { input: input + cached + numbers.cache_creation.unwrap_or(0), cached, output }
        } else {
            let cached = numbers.usage_cached.or(numbers.cache_n).unwrap_or(0);
            Tokens { input, cached: cached.min(input), output }
        };
        (said && tokens != Tokens::default()).then_some(tokens)
    };
    let from_timings = || {
        let cached = numbers.cache_n.unwrap_or(0);
        let output = numbers.predicted_n?;
        Some(Tokens { input: numbers.prompt_n? + cached, cached, output })
    };
    from_usage().or_else(from_timings)
}

fn estimate(route: Route, facts: &Facts, passed: &Passed, request: &RequestFacts) -> Tokens {
    // A count that came before the end (usage in each event) is a better guess than the size of the request.
    let known = compatible(route, &facts.numbers).unwrap_or_default();
    let guess = || (request.body_bytes / BYTES_PER_TOKEN).max(1);
    Tokens {
        input: if known.input > 0 { known.input } else { guess() },
        cached: known.cached,
        output: output_estimate(route, facts, passed).max(known.output),
    }
}

fn output_estimate(route: Route, facts: &Facts, passed: &Passed) -> u64 {
    if matches!(route, Route::Embed | Route::Embeddings | Route::V1Embeddings) || passed.bytes == 0 {
        0
    } else if passed.stream {
        events_with_text(route, facts, passed).max(1)
    } else {
        (passed.bytes.saturating_sub(ENVELOPE_BYTES) / BYTES_PER_TOKEN).max(1)
    }
}

/// Events of a stream that carry text: one token each, with every engine that streams.
fn events_with_text(route: Route, facts: &Facts, passed: &Passed) -> u64 {
    // Lines an event has, and events that carry no text: the first ones, and when the end was reached the last ones.
    let (lines, first, last) = match route {
        Route::V1Chat | Route::V1Completions => (2, 0, 2),
        Route::V1Responses => (3, 4, 4),
        Route::V1Messages => (3, 2, 3),
        _ => (1, 0, 1),
    };
    let ended = facts.done || facts.end_marker;
    let other = first + if ended { last } else { u64::from(facts.error) };
    (passed.newlines / lines).saturating_sub(other)
}
