//! Token counts of an answer, without parsing it: the end of a stream is kept and read once, when it is over.
//!
//! Called by proxy: one [`Tail`] per exchange, [`Tail::push`] with every payload as the node sent it, [`Tail::finish`]
//! at the end. Must never change, hold or copy more than the end of what passes, nor take the model's text for a count.

use crate::dialect::{Route, TailFacts};
use crate::usage::Count;

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
    /// Time the node says it spent loading (its own queue included), nanoseconds.
    pub load_ns: u64,
    /// Prompt evaluation, nanoseconds.
    pub prompt_eval_ns: u64,
    /// Generation, nanoseconds.
    pub eval_ns: u64,
    /// The answer said that it is over: `done:true`, `[DONE]`, `message_stop`, `response.completed`, or one whole JSON value.
    pub complete: bool,
    /// The answer told of an error in band.
    pub error: bool,
}

/// The end of an answer.
#[derive(Debug)]
pub struct Tail {
    route: Route,
    streamed: bool,
}

impl Tail {
    /// A tail for an answer on this route; `streamed` is what the request asked for (the body decides).
    #[must_use]
    pub fn new(route: Route, streamed: bool) -> Self {
        Self { route, streamed }
    }

    /// Takes note of payload bytes, cut anywhere.
    pub fn push(&mut self, payload: &[u8]) {
        let _ = payload;
    }

    /// What the answer says, whole or cut.
    #[must_use]
    pub fn finish(&self, request: &RequestFacts) -> TailReport {
        let _ = request;
        TailReport::default()
    }

    /// Where the stream stands, for an error of our own at its end.
    #[must_use]
    pub fn facts(&self) -> TailFacts<'_> {
        let _ = self.route;
        TailFacts { streamed: self.streamed, mid_line: false, mid_event: false, sequence: 0, response_id: None }
    }
}
