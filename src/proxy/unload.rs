//! An unload frees the model everywhere: one Ollama would, so a fleet must.
//!
//! Goes to every node that is up and has the model loaded or loading (to one that merely has it, if there is none: its
//! answer is harmless). Answers with the first 200, once all have answered; one that takes its time is not waited for
//! long. 404 only if no node has it. Not cancelled when the client leaves.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode};

use crate::config::NodeKind;
use crate::error::ProxyError;
use crate::evidence::Why;
use crate::fleet::{Candidate, Model, Snapshot, Target};
use crate::ids::NodeId;
use crate::proxy::answer::OutBody;
use crate::proxy::asked::Asked;
use crate::proxy::decided;
use crate::proxy::denied::{Denials, Verdict, verdict};
use crate::proxy::headers;
use crate::proxy::hold::Hold;
use crate::proxy::lingering::Leave;
use crate::proxy::local::Client;
use crate::proxy::local::Local;
use crate::proxy::reserve::no_node;
use crate::proxy::tail::TailReport;
use crate::proxy::ticket::Ticket;
use crate::slots::Cell;
use crate::sync::{Arc, spawn_local};
use crate::usage::Ending;

/// An unload's answer is one short object.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long a node may take for it.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// How long the others may take once one node has answered: a client that looks then finds the model gone everywhere.
const OTHERS_TIME_MAX: Duration = Duration::from_millis(500);

/// Times that nodes are looked for: the inventories may be a moment old the first time.
const ROUNDS: usize = 2;

/// A node's answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// A node to ask.
struct Asking {
    node: NodeId,
    target: Arc<Target>,
    /// How often it had gained models by then.
    gained: u64,
    /// Its copy.
    cell: Arc<Cell>,
}

/// Sends the unload to every node that has the model loaded; to those that have it otherwise if these deny it.
///
/// # Errors
/// No node that is up has the model, or none answered.
pub(super) async fn everywhere(
    client: &Rc<Client>,
    mut ticket: Ticket,
    asked: &Asked,
    model: &str,
) -> Result<Response<OutBody>, (Ticket, ProxyError)> {
    let local = &client.local;
    let mut nodes = targets(local, &mut ticket, model);
    if nodes.is_empty() {
        let error = local.with_snapshot(|snapshot| no_node(snapshot.models.get(model).map(|model| &**model), asked));
        return Err((ticket, error));
    }
    decided::plainly(&ticket, NodeId::NONE, Why::Everywhere, 0);
    let mut denials = Denials::default();
    for _ in 0..ROUNDS {
        let Some(answer) = round(client, &mut ticket, asked, nodes, &mut denials).await else {
            return Err((ticket, ProxyError::Unanswered { model: asked.model_name().to_owned() }));
        };
        if answer.status != StatusCode::NOT_FOUND {
            return Ok(forward(ticket, answer));
        }
        match Box::pin(verdict(client, asked, model, &denials)).await {
            Verdict::Stands => return Ok(forward(ticket, answer)),
            Verdict::Unsure => break,
            Verdict::Elsewhere => nodes = local.with_snapshot(|now| others(now, model, &denials)),
        }
    }
    Err((ticket, ProxyError::NodesDown { model: asked.model_name().to_owned() }))
}

/// What the nodes of a round said so far.
#[derive(Default)]
struct Heard {
    good: Option<Answer>,
    worst: Option<Answer>,
}

/// Asks these nodes at once: the first 200, else what says more than the others (anything but 404 does).
async fn round(
    client: &Rc<Client>,
    ticket: &mut Ticket,
    asked: &Asked,
    nodes: Vec<Asking>,
    denials: &mut Denials,
) -> Option<Answer> {
    let local = &client.local;
    let (answers, arriving) = flume::bounded(nodes.len().max(1));
    for Asking { node, target, gained, cell } in nodes {
        ticket.node = node;
        let exchange = local.upstreams.begin(
            node,
            &target,
            asked.outgoing(&target, local.upstreams.buffer(), None),
            Hold(None),
            Leave::Close,
        );
        let answers = answers.clone();
        let (reports, clock) = (local.reports.clone(), local.clock.clone());
        spawn_local(async move {
            // A node that hangs answers nobody: its task and file end all the same.
            let answered = tokio::time::timeout(ANSWER_TIME_MAX, answer(exchange)).await.unwrap_or_default();
            if answered.as_ref().is_some_and(|answer| answer.status == StatusCode::OK) {
                // Later than any success so far, be it of this millisecond: the next request loads it.
                cell.mark_unloaded(clock.now() + 1);
            }
            reports.residency(node);
            let _ = answers.send((node, gained, answered));
        });
    }
    drop(answers);
    let mut heard = Heard::default();
    while heard.good.is_none() {
        let Ok(told) = arriving.recv_async().await else { break };
        hear(local, denials, &mut heard, told);
    }
    let others = async {
        while let Ok(told) = arriving.recv_async().await {
            hear(local, denials, &mut heard, told);
        }
    };
    // In vain: it frees its copy when it can.
    let _ = tokio::time::timeout(OTHERS_TIME_MAX, others).await;
    heard.good.or(heard.worst)
}

fn hear(
    local: &Local,
    denials: &mut Denials,
    heard: &mut Heard,
    (node, gained, answer): (NodeId, u64, Option<Answer>),
) {
    let Some(answer) = answer else { return };
    if answer.status == StatusCode::OK {
        heard.good.get_or_insert(answer);
        return;
    }
    if answer.status == StatusCode::NOT_FOUND {
        denials.add(node, gained);
        local.reports.lacks(node);
    }
    if heard.worst.as_ref().is_none_or(|worst| worst.status == StatusCode::NOT_FOUND) {
        heard.worst = Some(answer);
    }
}

fn usable(model: &Model) -> impl Iterator<Item = &Candidate> {
    model.candidates.iter().filter(|one| one.up && one.kind == NodeKind::Ollama)
}

fn asking(snapshot: &Snapshot, one: &Candidate) -> Asking {
    let view = &snapshot.nodes[one.node.0 as usize];
    let (target, cell) = (view.target.clone(), Arc::clone(&one.pair.cell));
    Asking { node: one.node, target, gained: view.gained, cell }
}

fn targets(local: &Local, ticket: &mut Ticket, model: &str) -> Vec<Asking> {
    local.with_snapshot(|snapshot| {
        let Some(model) = snapshot.models.get(model) else { return Vec::new() };
        ticket.model = model.id;
        let loaded = usable(model).filter(|one| {
            let view = one.pair.cell.view();
            view.loaded || view.loading
        });
        let mut nodes: Vec<_> = loaded.map(|one| asking(snapshot, one)).collect();
        if nodes.is_empty() {
            nodes.extend(usable(model).next().map(|one| asking(snapshot, one)));
        }
        nodes
    })
}

/// Those that have it and have not denied it: the answer of one that has it not loaded is harmless.
fn others(snapshot: &Snapshot, model: &str, denials: &Denials) -> Vec<Asking> {
    let Some(model) = snapshot.models.get(model) else { return Vec::new() };
    usable(model).filter(|one| !denials.holds(snapshot, one.node)).map(|one| asking(snapshot, one)).collect()
}

async fn answer(mut exchange: crate::proxy::upstream::Exchange<Hold>) -> Option<Answer> {
    let head = exchange.head().await.ok()?;
    let mut body = BytesMut::new();
    while let Some(data) = poll_fn(|cx| exchange.poll_data(cx)).await {
        body.extend_from_slice(&data.ok()?);
        if body.len() > ANSWER_BYTES_MAX {
            return None;
        }
    }
    Some(Answer { status: head.status, headers: headers::to_map(&head.lines), body: body.freeze() })
}

fn forward(mut ticket: Ticket, answer: Answer) -> Response<OutBody> {
    ticket.status = answer.status.as_u16();
    ticket.first_byte();
    ticket.end(Ending::Completed, &TailReport::default());
    let mut response = Response::new(OutBody::Whole((!answer.body.is_empty()).then_some(answer.body)));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}
