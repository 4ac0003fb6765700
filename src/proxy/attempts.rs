//! Sends a request to one node after another until one answers; bounded, and never after a byte has gone out (I6).
//!
//! At most three nodes on a refused connection or a 503; at most one further node once the request had been sent whole
//! (reset, 502, 504, a 500 whose text speaks of runner, load or memory). A client's own error is never retried.
//! Source: contract of the wire, "Which errors say something about the node".

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::RETRY_AFTER;
use http::{Response, StatusCode};

use crate::clock::Millis;
use crate::config::{NodeKind, UsageInjection};
use crate::dialect::Route;
use crate::error::ProxyError;
use crate::evidence::{Chosen, Why};
use crate::fleet::Snapshot;
use crate::http1::{Framing, ResponseHead};
use crate::ids::{ModelId, NodeId};
use crate::proxy::answer::OutBody;
use crate::proxy::asked::Asked;
use crate::proxy::denied::{Denials, Verdict, verdict};
use crate::proxy::headers;
use crate::proxy::hold::Hold;
use crate::proxy::inject::Filter;
use crate::proxy::lingering::Leave;
use crate::proxy::local::{Client, Local};
use crate::proxy::plan::Plan;
use crate::proxy::reserve::{Reserved, TRIES_MAX, Tried, reserve};
use crate::proxy::retry_after;
use crate::proxy::stream::{Parts, TailBody};
use crate::proxy::tail::{RequestFacts, Tail, TailReport};
use crate::proxy::ticket::Ticket;
use crate::proxy::upstream::{AttemptError, Exchange, Outgoing};
use crate::proxy::watch::Expiry;
use crate::shared::Phase;
use crate::slots::{Pair, Taken};
use crate::sync::Arc;
use crate::usage::meters::{Tally, Timeout};
use crate::usage::{Ending, Rejection};

/// The text of a node's error answer that is read before deciding about a retry, at most: more than any says.
const ERROR_BYTES_MAX: usize = 1024 * 1024;

/// When a client may come back to nodes that are all busy, milliseconds.
const BUSY_MS: u64 = 5_000;

/// Texts of a 500 that speak of the node's state, not of the request. Source: Ollama v0.33, llm/ and server/.
const NODES_FAULT: [&str; 9] = [
    "runner",
    "llama-server",
    "llama runner",
    "out of memory",
    "cudamalloc",
    "unable to allocate",
    "requires more system memory",
    "unexpected eof",
    "connection reset",
];

/// Why another node should be tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The node did not take the request: refused, 503, broken before it was sent whole.
    NotTaken,
    /// The node had all of it and failed.
    Broke,
    /// The node does not have the model (any more).
    Lacks,
    /// We are out of files or ports: it says nothing of the node, and another one would fare no better.
    Ours,
    /// The process ends, and with it all that have no answer yet.
    Ending,
}

/// A node's error answer, read whole.
struct Buffered {
    /// Whose it is, and why that one was asked: others may be tried before it is forwarded after all.
    chosen: Chosen,
    pair: Option<Arc<Pair>>,
    head: ResponseHead,
    body: Bytes,
}

impl Buffered {
    fn is_not_found(&self) -> bool {
        self.head.status == StatusCode::NOT_FOUND
    }
}

/// Sends the request until a node answers.
///
/// # Errors
/// No node could be found, or every attempt failed before the first byte.
pub(super) async fn run(
    client: &Rc<Client>,
    mut ticket: Ticket,
    asked: &Asked,
    plan: &Plan,
) -> Result<Response<OutBody>, (Ticket, ProxyError)> {
    let local = client.local.clone();
    let mut broke = 0_u32;
    let mut seen = Seen::default();
    local.retries.borrow_mut().note_request(local.clock.now());
    loop {
        let error = match reserve(client, &mut ticket, asked, plan, &seen.tried).await {
            Ok(reserved) if reserved.kind == NodeKind::OpenAi && !asked.exact_case => {
                return Err((ticket, ProxyError::OddKeys));
            }
            Ok(reserved) => {
                let (node, gained) = (reserved.node, reserved.gained);
                let (returned, fault, buffered) = match attempt(client, ticket, asked, plan, reserved).await {
                    Ok(response) => return Ok(response),
                    Err(failure) => failure,
                };
                ticket = returned;
                if fault == Fault::Ending {
                    return Err((ticket, ProxyError::Draining));
                }
                seen.note((node, gained), fault, buffered);
                broke += u32::from(fault == Fault::Broke);
                if fault != Fault::Ours && seen.tried.len() < TRIES_MAX && broke < 2 && local.may_retry() {
                    continue;
                }
                ProxyError::Unanswered { model: asked.model_name().to_owned() }
            }
            Err(error) => error,
        };
        match weigh(client, asked, plan, &seen).await {
            Verdict::Stands => return exhausted(client, ticket, asked, seen, error),
            Verdict::Elsewhere if !seen.again && local.may_retry() => local.with_snapshot(|now| seen.look_again(now)),
            Verdict::Elsewhere | Verdict::Unsure => {
                return Err((ticket, ProxyError::NodesDown { model: asked.model_name().to_owned() }));
            }
        }
    }
}

/// What the 404 is worth that the attempts came to, if it was one.
async fn weigh(client: &Client, asked: &Asked, plan: &Plan, seen: &Seen) -> Verdict {
    let denied = !seen.denials.is_empty() && seen.kept.as_ref().is_some_and(Buffered::is_not_found);
    match plan {
        Plan::Model(key) | Plan::Details(key) if denied => {
            // In a box: it is rare, and its state would be carried along by every request.
            Box::pin(verdict(client, asked, key.as_str(), &seen.denials)).await
        }
        _ => Verdict::Stands,
    }
}

/// What the attempts that failed came to.
#[derive(Default)]
struct Seen {
    tried: Tried,
    /// Those that said that they do not have the model.
    denials: Denials,
    /// Some node was found to have it after all.
    again: bool,
    /// The last whole answer of a node; one that knows the model says more than one that does not.
    kept: Option<Buffered>,
}

impl Seen {
    fn note(&mut self, (node, gained): (NodeId, u64), fault: Fault, buffered: Option<Buffered>) {
        self.tried.add(node);
        if fault == Fault::Lacks {
            self.denials.add(node, gained);
        }
        let says_more = fault != Fault::Lacks || self.kept.as_ref().is_none_or(Buffered::is_not_found);
        if says_more && buffered.is_some() {
            self.kept = buffered;
        }
    }

    /// Those that have gained models since they denied this one are asked again, once.
    fn look_again(&mut self, snapshot: &Snapshot) {
        self.again = true;
        let mut tried = Tried::default();
        self.tried.nodes().iter().filter(|node| !self.denials.is_lifted(snapshot, **node)).for_each(|n| tried.add(*n));
        self.tried = tried;
        self.denials.lift(snapshot);
    }
}

/// No node is left: the last whole answer of a node, else our own 503.
fn exhausted(
    client: &Client,
    mut ticket: Ticket,
    asked: &Asked,
    seen: Seen,
    error: ProxyError,
) -> Result<Response<OutBody>, (Ticket, ProxyError)> {
    let model = asked.model_name().to_owned();
    match seen.kept {
        Some(kept) => {
            // Told and counted as the one whose words they are, not as the one tried last.
            let retries = u8::try_from(seen.tried.len().saturating_sub(1)).unwrap_or(u8::MAX);
            client.chosen.set(Chosen { retries, queue_us: ticket.queue_us, ..kept.chosen });
            (ticket.node, ticket.pair) = (kept.chosen.node, kept.pair.clone());
            let busy = kept.head.status == StatusCode::SERVICE_UNAVAILABLE;
            let mut response = forward_whole(ticket, asked, kept);
            if busy && !response.headers().contains_key(RETRY_AFTER) {
                let seconds = retry_after(BUSY_MS, client.local.random());
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            Ok(response)
        }
        None if seen.tried.is_empty() || !matches!(error, ProxyError::NodesDown { .. }) => Err((ticket, error)),
        None => Err((ticket, ProxyError::Unanswered { model })),
    }
}

/// The answer to forward; or the fault, with the node's whole error answer, to be forwarded if no other does better.
type Attempted = Result<Response<OutBody>, (Ticket, Fault, Option<Buffered>)>;

/// One attempt at one node.
async fn attempt(client: &Rc<Client>, mut ticket: Ticket, asked: &Asked, plan: &Plan, reserved: Reserved) -> Attempted {
    let local = &client.local;
    let (node, own_suspect_after) = (reserved.node, reserved.patience.suspect_after);
    let injected = injects(local, asked, reserved.kind);
    let cold = reserved.permit.as_ref().is_some_and(|permit| permit.taken() == Taken::Cold);
    let loaded = !cold && reserved.permit.as_ref().is_none_or(|permit| permit.pair().cell.view().loaded);
    if cold {
        local.tally(Tally::ColdStarts);
    }
    let leave = if cold { Leave::Detach { streamed: asked.streams } } else { Leave::Close };
    let request = outgoing(local, asked, &reserved, injected);
    let mut exchange = local.upstreams.begin(node, &reserved.target, request, Hold(reserved.permit), leave);
    // Only a loaded copy owes an answer: whoever waits for a load that another began may wait for minutes.
    let awaiting = local.awaiting(node, !loaded, own_suspect_after);
    let sent = Some(facts(asked, StatusCode::OK.as_u16()));
    let next = |cx: &mut Context<'_>| {
        let polled = exchange.poll_head(cx);
        // Not before: a client that leaves while its node is dialled has cost no node anything.
        ticket.sent = sent.filter(|_| polled.is_ready() || exchange.is_sent());
        polled
    };
    let head = match unless_ending(client, poll_fn(next)).await {
        None => return Err((ticket, Fault::Ending, None)),
        Some(Ok(head)) => head,
        Some(Err(error)) => {
            let fault = failed(local, node, &mut exchange, &error);
            ticket.sent = sent.filter(|_| error.sent_whole());
            return Err((ticket, fault, None));
        }
    };
    drop(awaiting);
    ticket.first_byte();
    local.heard(node);
    settle(local, &mut exchange, head.status);
    let loads = asked.empty && matches!(asked.route, Route::Generate | Route::Chat);
    if (cold || loads) && head.status.is_success() {
        // Clients that load a model, or keep it longer, look whether it is there, and long before the next poll.
        local.reports.residency(node);
    }
    match head.status {
        StatusCode::NOT_FOUND
        | StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let Some(body) = read_whole(client, &mut exchange, ticket.stream_idle).await else {
                return Err((ticket, Fault::Broke, None));
            };
            let (chosen, pair) = (client.chosen.get(), ticket.pair.clone());
            let buffered = Buffered { chosen, pair, head, body };
            match (judge(&buffered), plan) {
                (Some(Fault::Lacks), Plan::Unknown) => Ok(forward_unknown(ticket, asked, buffered)),
                // It was asked for nothing that it is known to have: its words are the answer.
                (Some(Fault::Lacks), Plan::Anywhere | Plan::Cloud) => Ok(forward_whole(ticket, asked, buffered)),
                (Some(fault), _) => {
                    if fault == Fault::Lacks {
                        local.lacks(node);
                    }
                    // It did not work on it: nothing to be counted should the client leave now.
                    ticket.sent = None;
                    Err((ticket, fault, Some(buffered)))
                }
                (None, _) => Ok(forward_whole(ticket, asked, buffered)),
            }
        }
        _ => Ok(forward(client, ticket, asked, head, exchange, injected)),
    }
}

/// What comes of `work`, unless the process ends first.
async fn unless_ending<T>(client: &Client, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    // Everybody is polled when the phase changes.
    let next = |cx: &mut Context<'_>| match client.local.shared.phase() {
        Phase::Ending => Poll::Ready(None),
        _ => work.as_mut().poll(cx).map(Some),
    };
    poll_fn(next).await
}

/// Whether usage is asked for on behalf of the client.
fn injects(local: &Local, asked: &Asked, kind: NodeKind) -> bool {
    let wanted = local.rules().config.ledger.usage_injection == UsageInjection::Auto;
    wanted && asked.route == Route::V1Chat && kind == NodeKind::Ollama && asked.splice.is_some()
}

/// The request for one node, with usage asked for on behalf of the client where that is wanted.
fn outgoing(local: &Local, asked: &Asked, reserved: &Reserved, injected: bool) -> Outgoing {
    asked.outgoing(&reserved.target, local.upstreams.buffer(), asked.splice.filter(|_| injected))
}

/// No head came: what that says of the node, and whether its slot loads any more.
fn failed(local: &Local, node: NodeId, exchange: &mut Exchange<Hold>, error: &AttemptError) -> Fault {
    tracing::debug!(%error, node = local.shared.names.node_name(node), "an attempt failed");
    if let Some(permit) = exchange.take_held().and_then(|hold| hold.0).as_mut() {
        permit.load_failed();
    }
    if error.is_refused() {
        local.refused(node);
    }
    if error.is_late() {
        local.timed_out(Timeout::Connect);
    }
    match error {
        error if error.is_ours() => Fault::Ours,
        error if error.sent_whole() => Fault::Broke,
        _ => Fault::NotTaken,
    }
}

/// A head came: a success means loaded; anything else means that nothing is being loaded on our account.
fn settle(local: &Local, exchange: &mut Exchange<Hold>, status: StatusCode) {
    let Some(permit) = exchange.held().and_then(|hold| hold.0.as_mut()) else { return };
    if status.is_success() {
        permit.succeeded(local.clock.now());
    } else {
        permit.load_failed();
    }
}

/// Reads the body of an error answer to its end; `None` if it breaks off or falls silent.
async fn read_whole(client: &Client, exchange: &mut Exchange<Hold>, stream_idle: Millis) -> Option<Bytes> {
    let mut body = BytesMut::new();
    client.watch.arm(Expiry::StreamIdle, client.local.clock.now() + stream_idle);
    let next = |cx: &mut Context<'_>, exchange: &mut Exchange<Hold>| {
        if client.watch.fired() == Some(Expiry::StreamIdle) {
            Poll::Ready(None)
        } else {
            exchange.poll_data(cx).map(Some)
        }
    };
    while let Some(data) = poll_fn(|cx| next(cx, exchange)).await? {
        body.extend_from_slice(&data.ok()?);
        if body.len() > ERROR_BYTES_MAX {
            return None;
        }
    }
    client.watch.disarm();
    Some(body.freeze())
}

/// Whether an error answer speaks of the node's state (then another node may do better) or of the request.
fn judge(answer: &Buffered) -> Option<Fault> {
    let text = String::from_utf8_lossy(&answer.body).to_lowercase();
    match answer.head.status {
        StatusCode::SERVICE_UNAVAILABLE => Some(Fault::NotTaken),
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Some(Fault::Broke),
        StatusCode::NOT_FOUND if text.contains("not found") && text.contains("model") => Some(Fault::Lacks),
        StatusCode::INTERNAL_SERVER_ERROR => NODES_FAULT.iter().any(|part| text.contains(part)).then_some(Fault::Broke),
        _ => None,
    }
}

fn facts(asked: &Asked, status: u16) -> RequestFacts {
    RequestFacts { status, body_bytes: asked.body.len() as u64, empty: asked.empty }
}

/// Forwards an answer that was read whole.
fn forward_whole(mut ticket: Ticket, asked: &Asked, answer: Buffered) -> Response<OutBody> {
    let mut response = Response::new(OutBody::Whole((!answer.body.is_empty()).then(|| answer.body.clone())));
    *response.status_mut() = answer.head.status;
    *response.headers_mut() = headers::to_map(&answer.head.lines);
    ticket.status = response.status().as_u16();
    let mut tail = Tail::new(asked.route, false);
    tail.push(&answer.body);
    ticket.end(Ending::Completed, &tail.finish(&facts(asked, ticket.status)));
    response
}

/// Forwards a node's words for a name that nobody has; counted as a request that no node was to serve.
fn forward_unknown(mut ticket: Ticket, asked: &Asked, answer: Buffered) -> Response<OutBody> {
    (ticket.node, ticket.pair, ticket.status) = (NodeId::NONE, None, answer.head.status.as_u16());
    ticket.tell(NodeId::NONE, Why::Refused(Rejection::UnknownModel));
    ticket.end(Ending::Rejected(Rejection::UnknownModel), &TailReport::default());
    forward_whole(ticket, asked, answer)
}

/// Forwards an answer as it comes; its head's lines travel in the body until they are sent.
fn forward(
    client: &Rc<Client>,
    mut ticket: Ticket,
    asked: &Asked,
    head: ResponseHead,
    exchange: Exchange<Hold>,
    injected: bool,
) -> Response<OutBody> {
    let ResponseHead { status, lines, framing, .. } = head;
    ticket.status = status.as_u16();
    if ticket.model == ModelId::UNKNOWN && status.is_success() && !asked.model_name().is_empty() {
        // A name that no inventory lists (cloud) and a node answers for is known from now on.
        ticket.model = client.local.shared.names.model(asked.model_name());
    }
    let length = match framing {
        Framing::Length(length) => Some(length),
        _ => None,
    };
    let streamed = asked.streams && length.is_none() && status.is_success();
    let facts = facts(asked, ticket.status);
    let body = TailBody::new(Parts {
        client: client.clone(),
        ticket,
        route: asked.route,
        facts,
        filter: (injected && streamed).then(Filter::new),
        exchange,
        length,
        streamed,
        lines,
    });
    let mut response = Response::new(OutBody::Stream(client.local.tails.hold(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Lines;

    fn answer(status: u16, body: &'static str) -> Buffered {
        let head = ResponseHead {
            status: StatusCode::from_u16(status).unwrap(),
            lines: Lines::default(),
            framing: Framing::None,
            close: false,
            keep_alive: Default::default(),
        };
        Buffered { chosen: Chosen::NOTHING, pair: None, head, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn only_errors_of_the_node_are_tried_elsewhere() {
        let cases = [
            (
                503,
                r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#,
                Some(Fault::NotTaken),
            ),
            (503, r#"{"error":{"code":503,"message":"Loading model"}}"#, Some(Fault::NotTaken)),
            (500, r#"{"error":"model runner has unexpectedly stopped, this may be due to"}"#, Some(Fault::Broke)),
            (500, r#"{"error":"llama-server process has terminated: exit status 2"}"#, Some(Fault::Broke)),
            (500, r#"{"error":"model requires more system memory (9 GiB) than is available"}"#, Some(Fault::Broke)),
            (500, r#"{"error":"option \"num_ctx\" must be of type integer"}"#, None),
            (500, r#"{"error":"invalid format: \"xml\"; expected \"json\" or a valid JSON Schema object"}"#, None),
            (502, "", Some(Fault::Broke)),
            (404, r#"{"error":"model 'm' not found"}"#, Some(Fault::Lacks)),
            (404, "404 page not found", None),
        ];
        for (status, body, expected) in cases {
            assert_eq!(judge(&answer(status, body)), expected, "{status} {body}");
        }
    }
}
