//! A node's answer on its way to the client: bytes untouched, tokens counted, one Outcome at the end.
//!
//! Hyper polls it in the connection's task and drops it when the client leaves; then the exchange drops too, and its
//! connection moves to the worker's lingering list together with its permit. Must never hold back a byte (but the one
//! event of `usage_injection`), and never copy more than one read.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::dialect::{self, Route};
use crate::proxy::answer::BodyError;
use crate::proxy::hold::Hold;
use crate::proxy::inject::Filter;
use crate::proxy::lingering::Leave;
use crate::proxy::local::Client;
use crate::proxy::tail::{RequestFacts, Tail, TailReport};
use crate::proxy::ticket::Ticket;
use crate::proxy::upstream::Exchange;
use crate::proxy::watch::Expiry;
use crate::shared::Phase;
use crate::usage::Ending;
use crate::usage::meters::Tally;

/// The answer's body; see the module.
pub struct TailBody {
    client: Rc<Client>,
    ticket: Ticket,
    route: Route,
    tail: Tail,
    facts: RequestFacts,
    /// Takes the usage event out that we asked for and the client did not.
    filter: Option<Filter>,
    /// The node's side; `None` once the answer is over.
    exchange: Option<Exchange<Hold>>,
    /// Bytes still to come, where the node said so and we do not change them.
    remaining: Option<u64>,
    /// An error can be told in the stream's own dialect.
    streamed: bool,
    /// Held back by the filter until the end.
    rest: Option<Bytes>,
}

/// What a [`TailBody`] is made of.
pub struct Parts {
    /// The client's connection.
    pub client: Rc<Client>,
    /// The request's ticket.
    pub ticket: Ticket,
    /// The request's route.
    pub route: Route,
    /// What the tail must know of the request.
    pub facts: RequestFacts,
    /// Set when usage was injected.
    pub filter: Option<Filter>,
    /// Positioned at the body.
    pub exchange: Exchange<Hold>,
    /// The body's length, if the node announced it.
    pub length: Option<u64>,
    /// The answer is a stream of records.
    pub streamed: bool,
}

impl TailBody {
    /// Starts to forward; the deadline for the node's silence runs from now on.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { client, ticket, route, facts, filter, mut exchange, length, streamed } = parts;
        exchange.set_leave(Leave::Close);
        let mut body = Self {
            tail: Tail::new(route, streamed),
            remaining: length.filter(|_| filter.is_none()),
            client,
            ticket,
            route,
            facts,
            filter,
            exchange: Some(exchange),
            streamed,
            rest: None,
        };
        body.arm();
        if body.exchange.as_ref().is_some_and(Exchange::is_end) {
            body.complete();
        }
        body
    }

    /// Nothing more will come.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.exchange.is_none() && self.rest.is_none()
    }

    /// Bytes still to come, if known.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    fn arm(&self) {
        let local = &self.client.local;
        self.client.watch.arm(Expiry::StreamIdle, local.clock.now() + local.times.stream_idle);
    }

    /// The next bytes for the client; one read of the node's socket at most.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(rest)));
        }
        loop {
            let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
            if self.client.watch.fired() == Some(Expiry::StreamIdle) {
                return Poll::Ready(self.lose("the node fell silent"));
            }
            if self.client.local.shared.phase() == Phase::Ending {
                return Poll::Ready(self.lose("the gate is shutting down"));
            }
            match exchange.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    self.complete();
                    return Poll::Ready(self.rest.take().map(Ok));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a node was lost in mid-answer");
                    return Poll::Ready(self.lose("the node was lost"));
                }
                Poll::Ready(Some(Ok(data))) => {
                    let ended = exchange.is_end();
                    let out = self.pass(data);
                    if ended {
                        self.complete();
                    }
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(out)));
                    }
                    if ended {
                        return Poll::Ready(self.rest.take().map(Ok));
                    }
                }
            }
        }
    }

    /// Counts what came, and takes the injected event out.
    fn pass(&mut self, data: Bytes) -> Bytes {
        self.arm();
        self.ticket.first_byte();
        self.client.local.heard(self.ticket.node);
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(data.len() as u64);
        }
        self.client.local.recorder.meters().add(Tally::AnswerBytes, data.len() as u64);
        self.tail.push(&data);
        match &mut self.filter {
            None => data,
            Some(filter) => filter.push(data),
        }
    }

    fn report(&self) -> TailReport {
        self.tail.finish(&self.facts)
    }

    /// The node's answer is whole: slot back first, then the Outcome.
    fn complete(&mut self) {
        let report = self.report();
        if let Some(filter) = &mut self.filter {
            let rest = filter.finish();
            self.rest = (!rest.is_empty()).then_some(rest);
        }
        self.exchange = None;
        self.ticket.end(Ending::Completed, &report);
        self.client.idle();
    }

    /// The node is lost (or must be left): tell it in the stream's dialect where there is one, else cut the body.
    fn lose(&mut self, text: &str) -> Option<Result<Bytes, BodyError>> {
        let report = self.report();
        // Dropped, never half-closed: for the node, closed is the only way to say "stop" (I12).
        self.exchange = None;
        if report.complete {
            self.ticket.end(Ending::Completed, &report);
            self.client.idle();
            return None;
        }
        self.ticket.end(Ending::NodeErrorAfter, &report);
        if !self.streamed {
            return Some(Err(text.to_owned().into()));
        }
        self.client.idle();
        Some(Ok(dialect::broken_stream(self.route, text, &self.tail.facts())))
    }
}

impl Drop for TailBody {
    /// The client left (or hyper took all it wanted of a body whose length it knew).
    fn drop(&mut self) {
        let Some(mut exchange) = self.exchange.take() else { return };
        let report = self.report();
        // Clients hang up at `[DONE]`, before the terminator: that answer is complete, and its connection reusable.
        let ending = if report.complete {
            exchange.set_leave(Leave::Drain);
            Ending::Completed
        } else {
            Ending::ClientGone
        };
        self.ticket.end(ending, &report);
        self.client.idle();
    }
}
