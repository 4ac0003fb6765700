//! An unload frees the model everywhere: one Ollama would, so a fleet must.
//!
//! Goes to every node that is up and has the model loaded or loading (to one that merely has it, if there is none: its
//! answer is harmless). Answers with the first 200; 404 only if all say so. Not cancelled when the client leaves.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode};

use crate::config::NodeKind;
use crate::error::ProxyError;
use crate::evidence::Why;
use crate::fleet::Target;
use crate::ids::NodeId;
use crate::proxy::answer::OutBody;
use crate::proxy::asked::Asked;
use crate::proxy::decided;
use crate::proxy::headers;
use crate::proxy::hold::Hold;
use crate::proxy::lingering::Leave;
use crate::proxy::local::Client;
use crate::proxy::local::Local;
use crate::proxy::reserve::no_node;
use crate::proxy::tail::TailReport;
use crate::proxy::ticket::Ticket;
use crate::sync::{Arc, spawn_local};
use crate::usage::Ending;

/// An unload's answer is one short object.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long a node may take for it.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// A node's answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// Sends the unload to every node that has the model loaded.
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
    let nodes = targets(local, &mut ticket, model);
    if nodes.is_empty() {
        let error = local.with_snapshot(|snapshot| no_node(snapshot.models.get(model).map(|model| &**model), asked));
        return Err((ticket, error));
    }
    decided::plainly(&ticket, NodeId::NONE, Why::Everywhere, 0);
    let (answers, arriving) = flume::bounded(nodes.len());
    for (node, target) in nodes {
        ticket.node = node;
        let exchange = local.upstreams.begin(
            node,
            &target,
            asked.outgoing(&target, local.upstreams.buffer(), asked.body.clone()),
            Hold(None),
            Leave::Close,
        );
        let answers = answers.clone();
        let reports = local.reports.clone();
        spawn_local(async move {
            // A node that hangs answers nobody: its task and file end all the same.
            let answered = tokio::time::timeout(ANSWER_TIME_MAX, answer(exchange)).await;
            let _ = answers.send(answered.unwrap_or_default());
            reports.residency(node);
        });
    }
    drop(answers);
    let mut worst: Option<Answer> = None;
    while let Ok(answer) = arriving.recv_async().await {
        let Some(answer) = answer else { continue };
        if answer.status == StatusCode::OK {
            return Ok(forward(ticket, answer));
        }
        // Anything but 404 says more than 404.
        if worst.as_ref().is_none_or(|worst| worst.status == StatusCode::NOT_FOUND) {
            worst = Some(answer);
        }
    }
    match worst {
        Some(answer) => Ok(forward(ticket, answer)),
        None => Err((ticket, ProxyError::Unanswered { model: asked.model_name().to_owned() })),
    }
}

fn targets(local: &Local, ticket: &mut Ticket, model: &str) -> Vec<(NodeId, Arc<Target>)> {
    local.with_snapshot(|snapshot| {
        let Some(model) = snapshot.models.get(model) else { return Vec::new() };
        ticket.model = model.id;
        let usable = || model.candidates.iter().filter(|one| one.up && one.kind == NodeKind::Ollama);
        let target = |node: NodeId| (node, snapshot.nodes[node.0 as usize].target.clone());
        let loaded = usable().filter(|one| {
            let view = one.pair.cell.view();
            view.loaded || view.loading
        });
        let mut nodes: Vec<_> = loaded.map(|one| target(one.node)).collect();
        if nodes.is_empty() {
            nodes.extend(usable().next().map(|one| target(one.node)));
        }
        nodes
    })
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
