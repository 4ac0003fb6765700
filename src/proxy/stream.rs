//! A node's answer on its way to the client: bytes untouched, tokens counted, one Outcome at the end.
//!
//! Hyper polls it in the connection's task and drops it when the client leaves; then the exchange drops too, and its
//! connection moves to the worker's lingering list together with its permit. Must never hold back a byte (but the one
//! event of `usage_injection`), and never copy more than one read.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::dialect::{self, Route};
use crate::http1::Lines;
use crate::proxy::answer::BodyError;
use crate::proxy::hold::Hold;
use crate::proxy::inject::Filter;
use crate::proxy::lingering::Leave;
use crate::proxy::local::Client;
use crate::proxy::tail::{RequestFacts, Tail, TailReport};
use crate::proxy::ticket::Ticket;
use crate::proxy::upstream::{Exchange, Payload};
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
    /// When bytes came last, microseconds; 0: none did.
    came_us: u64,
    /// The head's lines, until they are sent.
    lines: Lines,
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
    /// The lines of the answer's head, as the node sent them.
    pub lines: Lines,
}

impl TailBody {
    /// Starts to forward; the deadline for the node's silence runs from now on.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { client, ticket, route, facts, filter, mut exchange, length, streamed, lines } = parts;
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
            came_us: 0,
            lines,
        };
        body.arm();
        if body.exchange.as_ref().is_some_and(Exchange::is_end) {
            body.complete(&mut |_| {});
        }
        body
    }

    /// Nothing more will come.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.exchange.is_none()
    }

    /// The lines of the node's head; of the kind that clients must not see as well.
    #[must_use]
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// The head was sent: its lines are not needed any more.
    pub fn head_sent(&mut self) {
        self.client.local.upstreams.reclaim(std::mem::take(&mut self.lines).into_buffer());
    }

    /// Bytes still to come, if known.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    fn arm(&self) {
        let local = &self.client.local;
        self.client.watch.arm(Expiry::StreamIdle, local.clock.now() + self.ticket.stream_idle);
    }

    /// Hands the next bytes for the client to `take`, in the pieces that the node framed; one read of the node's socket
    /// at most, but where the filter holds all of it back.
    pub fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(Payload<'_>),
    ) -> Poll<Option<Result<(), BodyError>>> {
        loop {
            let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
            if self.client.local.shared.phase() == Phase::Ending {
                return Poll::Ready(self.lose("the gate is shutting down", take));
            }
            let (tail, filter) = (&mut self.tail, &mut self.filter);
            let (mut came, mut gone) = (0_u64, false);
            let mut give = |payload: Payload<'_>| {
                gone = true;
                take(payload);
            };
            let polled = exchange.poll_payload(cx, &mut |payload| {
                came += tail.push_payload(payload);
                let Some(filter) = filter.as_mut() else { return give(payload) };
                let to_filter = match payload {
                    Payload::Chunks(chunks) => {
                        let (as_they_are, others) = filter.split(chunks);
                        if as_they_are.count() > 0 {
                            give(Payload::Chunks(as_they_are));
                        }
                        Payload::Chunks(others)
                    }
                    payload => payload,
                };
                to_filter.each(|piece| filter.push(piece, &mut |parts| give(Payload::Parts(parts))));
            });
            let ended = exchange.is_end();
            match polled {
                // Only now: the client may have been the slow one, and what the node sent meanwhile lies in its socket.
                Poll::Pending if self.client.watch.fired() == Some(Expiry::StreamIdle) => {
                    return Poll::Ready(self.lose("the node fell silent", take));
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    self.complete(&mut give);
                    return Poll::Ready(gone.then_some(Ok(())));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a node was lost in mid-answer");
                    return Poll::Ready(self.lose("the node was lost", take));
                }
                Poll::Ready(Some(Ok(()))) => {
                    self.came(came);
                    if ended {
                        self.complete(&mut give);
                    }
                    if gone || ended {
                        return Poll::Ready(gone.then_some(Ok(())));
                    }
                }
            }
        }
    }

    /// As [`TailBody::poll_payload`], in one allocation of its own: for hyper.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut data = Vec::new();
        let polled = self.poll_payload(cx, &mut |payload| payload.each(|piece| data.extend_from_slice(piece)));
        polled.map(|read| read.map(|read| read.map(|()| data.into())))
    }

    /// Takes note of bytes that came.
    fn came(&mut self, bytes: u64) {
        self.arm();
        self.ticket.first_byte();
        let local = &self.client.local;
        local.heard(self.ticket.node);
        let meters = local.recorder.meters();
        meters.add(Tally::AnswerBytes, bytes);
        if self.streamed {
            // The time of this turn, which is read already.
            let now_us = local.clock.now_us();
            if self.came_us != 0 {
                meters.gap(now_us.saturating_sub(self.came_us));
            }
            self.came_us = now_us.max(1);
        }
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(bytes);
        }
    }

    fn report(&mut self) -> TailReport {
        self.tail.finish(&self.facts)
    }

    /// The node's answer is whole: slot back first, then the Outcome.
    fn complete(&mut self, take: &mut dyn FnMut(Payload<'_>)) {
        let report = self.report();
        if let Some(filter) = &mut self.filter {
            filter.finish(&mut |part| take(Payload::Piece(part)));
        }
        self.exchange = None;
        self.ticket.end(Ending::Completed, &report);
        self.client.idle();
    }

    /// The node is lost (or must be left): tell it in the stream's dialect where there is one, else cut the body.
    fn lose(&mut self, text: &str, take: &mut dyn FnMut(Payload<'_>)) -> Option<Result<(), BodyError>> {
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
        let facts = self.tail.facts();
        // Where the client stands, which has not seen what the filter held back.
        let facts = self.filter.as_ref().map_or(facts, |filter| filter.seen(facts));
        let told = dialect::broken_stream(self.route, text, &facts);
        if told.is_empty() {
            // No words for it on this route: a clean end would pass off half an answer for whole.
            return Some(Err(text.to_owned().into()));
        }
        self.client.idle();
        take(Payload::Piece(&told));
        Some(Ok(()))
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
