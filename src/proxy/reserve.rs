//! Finds a node and a slot: at once where one is free, else by waiting in the model's queue (late binding).
//!
//! Called before each attempt. Cancel safe: a caller that goes away leaves the queue, and a slot granted to it in the
//! meantime goes to the next. Each decision loads the Snapshot once (I5).

use std::rc::Rc;
use std::task::Poll;

use crate::clock::Millis;
use crate::config::NodeKind;
use crate::dialect::Route;
use crate::error::ProxyError;
use crate::evidence::Why;
use crate::fleet::{Model, NodeView, OwnTimes, Snapshot, Target};
use crate::ids::NodeId;
use crate::proxy::asked::Asked;
use crate::proxy::decided;
use crate::proxy::local::Client;
use crate::proxy::local::Local;
use crate::proxy::plan::Plan;
use crate::proxy::rules::Patience;
use crate::proxy::ticket::Ticket;
use crate::proxy::watch::Expiry;
use crate::routing::{self, AnyAsk, Ask, Choice};
use crate::shared::Phase;
use crate::slots::{Cell, Grant, Limit, Pair, Permit, Queue, Taken, Waiting};
use crate::sync::Arc;
use crate::usage::meters::Tally;

/// Nodes one request tries at most.
pub(super) const TRIES_MAX: usize = 3;

/// The nodes that a request has tried in vain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    nodes: [NodeId; TRIES_MAX],
    count: usize,
}

impl Default for Tried {
    fn default() -> Self {
        Self { nodes: [NodeId::NONE; TRIES_MAX], count: 0 }
    }
}

impl Tried {
    /// Remembers one more.
    pub(super) fn add(&mut self, node: NodeId) {
        if let Some(place) = self.nodes.get_mut(self.count) {
            *place = node;
            self.count += 1;
        }
    }

    /// How many.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// None yet.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Those tried.
    #[must_use]
    pub(super) fn nodes(&self) -> &[NodeId] {
        &self.nodes[..self.count]
    }
}

/// A node to send to.
pub(super) struct Reserved {
    /// Which.
    pub(super) node: NodeId,
    /// Where.
    pub(super) target: Arc<Target>,
    /// What it speaks.
    pub(super) kind: NodeKind,
    /// The slot; `None` for requests that need none.
    pub(super) permit: Option<Permit>,
    /// Counters of (node, model).
    pub(super) pair: Arc<Pair>,
    /// Time-outs of the answer.
    pub(super) patience: Patience,
    /// How often it had gained models, as of the decision.
    pub(super) gained: u64,
}

enum Now {
    Go(Reserved),
    /// Where to wait, and how long at most if the model has its own word in that.
    Wait(Arc<Queue>, Option<Millis>),
}

/// Finds a node, waiting for a slot if it must.
///
/// # Errors
/// Nothing that is up can serve it, the queue is full, or waiting took too long.
pub(super) async fn reserve(
    client: &Rc<Client>,
    ticket: &mut Ticket,
    asked: &Asked,
    plan: &Plan,
    tried: &Tried,
) -> Result<Reserved, ProxyError> {
    let local = &client.local;
    #[cfg(proxy_locked)]
    if let Plan::Model(key) = plan {
        return reserve_locked(local, ticket, asked, key.as_str(), tried).await;
    }
    let began = local.clock.now();
    let waited_before = ticket.queue_us / 1000;
    loop {
        let (queue, own) = match now(local, ticket, asked, plan, tried)? {
            Now::Go(reserved) => return Ok(noted(client, ticket, reserved)),
            Now::Wait(queue, own) => (queue, own),
        };
        let longest = own.unwrap_or_else(|| local.rules().times.queue_wait);
        let longest = asked.max_wait_ms.map_or(longest, |asked| asked.min(longest));
        let deadline = began + longest.saturating_sub(waited_before);
        let waits_from_us = local.clock.now_us();
        let granted = wait(client, &queue, asked, plan, tried, deadline).await;
        client.watch.disarm();
        ticket.queue_us += local.clock.now_us().saturating_sub(waits_from_us);
        let (cell, taken) = granted?;
        if let Some(reserved) = accept(local, ticket, (asked, plan, tried), cell, taken) {
            return Ok(noted(client, ticket, reserved));
        }
    }
}

/// What the ticket and the connection must know of it.
fn noted(client: &Client, ticket: &mut Ticket, reserved: Reserved) -> Reserved {
    ticket.node = reserved.node;
    ticket.pair = Some(reserved.pair.clone());
    ticket.stream_idle = reserved.patience.stream_idle;
    client.watch.set_client_stall(reserved.patience.client_stall);
    reserved
}

/// The same where the ancestor's locks stand in the place of the slots: nobody waits, the limit is a preference.
#[cfg(proxy_locked)]
async fn reserve_locked(
    local: &Rc<Local>,
    ticket: &mut Ticket,
    asked: &Asked,
    key: &str,
    tried: &Tried,
) -> Result<Reserved, ProxyError> {
    let snapshot = local.snapshot();
    let model = snapshot.models.get(key).ok_or_else(|| nodes_down(asked))?;
    ticket.model = model.id;
    let chosen = routing::locked::pick(&snapshot, model, &ask(local, asked, tried), &local.clock, local.random()).await;
    let (candidate, taken) = chosen.ok_or_else(|| no_node(Some(model), asked))?;
    let candidate = &model.candidates[candidate];
    let permit = Permit::new(candidate.pair.clone(), local.id, taken);
    let view = &snapshot.nodes[candidate.node.0 as usize];
    ticket.node = view.id;
    ticket.pair = Some(candidate.pair.clone());
    Ok(reserved(local, view, Some(model), Some(permit), candidate.pair.clone()))
}

fn nodes_down(asked: &Asked) -> ProxyError {
    ProxyError::NodesDown { model: asked.model_name().to_owned() }
}

/// Decides and takes, or says where to wait.
fn now(local: &Rc<Local>, ticket: &mut Ticket, asked: &Asked, plan: &Plan, tried: &Tried) -> Result<Now, ProxyError> {
    local.with_snapshot(|snapshot| match plan {
        Plan::Model(key) => {
            let model = snapshot.models.get(key.as_str()).ok_or_else(|| nodes_down(asked))?;
            ticket.model = model.id;
            with_slot(local, ticket, (snapshot, model), asked, tried)
        }
        Plan::Details(key) | Plan::Unload(key) => {
            let model = snapshot.models.get(key.as_str()).ok_or_else(|| nodes_down(asked))?;
            ticket.model = model.id;
            let reserved = details(local, snapshot, model, asked, tried)?;
            decided::plainly(ticket, reserved.node, Why::Details, tried.len());
            Ok(Now::Go(reserved))
        }
        Plan::Anywhere | Plan::Unknown | Plan::Cloud => {
            let cloud = *plan == Plan::Cloud;
            // An Ollama node words errors best; a fleet without one has only its own to offer, on `/v1`, where some
            // servers answer whatever model is named.
            let ollama = AnyAsk { kind: Some(NodeKind::Ollama), cloud, tried: tried.nodes() };
            let any = AnyAsk { kind: None, ..ollama };
            let only_ollama = asked.native() || *plan == Plan::Unknown;
            let node = routing::pick_any(snapshot, &ollama)
                .or_else(|| if only_ollama { None } else { routing::pick_any(snapshot, &any) })
                .ok_or_else(|| nodes_down(asked))?;
            let why = if cloud { Why::Cloud } else { Why::AnyNode };
            decided::plainly(ticket, node, why, tried.len());
            let view = &snapshot.nodes[node.0 as usize];
            let permit = Permit::new(view.any.clone(), local.id, Taken::Warm);
            Ok(Now::Go(reserved(local, view, None, Some(permit), view.any.clone())))
        }
    })
}

fn reserved(
    local: &Local,
    view: &NodeView,
    model: Option<&Model>,
    permit: Option<Permit>,
    pair: Arc<Pair>,
) -> Reserved {
    let model = model.map_or_else(OwnTimes::default, |model| model.times);
    let patience = Patience::of(&local.rules().times, view.times, model);
    let gained = view.gained;
    Reserved { node: view.id, target: view.target.clone(), kind: view.kind, permit, pair, patience, gained }
}

fn ask<'t>(local: &Local, asked: &Asked, tried: &'t Tried) -> Ask<'t> {
    Ask {
        native: asked.native(),
        tried: tried.nodes(),
        now: local.clock.now(),
        spill_after: local.rules().times.cold_spill_after,
    }
}

fn with_slot(
    local: &Rc<Local>,
    ticket: &Ticket,
    (snapshot, model): (&Snapshot, &Arc<Model>),
    asked: &Asked,
    tried: &Tried,
) -> Result<Now, ProxyError> {
    let ask = ask(local, asked, tried);
    match routing::pick(snapshot, model, &ask) {
        Choice::Go { candidate, taken } => {
            decided::goes(ticket, (snapshot, model), &ask, candidate, taken);
            let candidate = &model.candidates[candidate];
            let permit = Permit::new(candidate.pair.clone(), local.id, taken);
            let view = &snapshot.nodes[candidate.node.0 as usize];
            Ok(Now::Go(reserved(local, view, Some(model), Some(permit), candidate.pair.clone())))
        }
        Choice::Wait => {
            decided::stays(ticket, (snapshot, model), &ask, Why::Waiting);
            Ok(Now::Wait(model.queue.clone(), model.times.queue_wait))
        }
        Choice::NoNode => {
            decided::stays(ticket, (snapshot, model), &ask, Why::Undecided);
            Err(no_node(Some(model), asked))
        }
    }
}

/// Nothing that is up can serve it: because of the dialect, or because those that could are down.
pub(super) fn no_node(model: Option<&Model>, asked: &Asked) -> ProxyError {
    let candidates = model.map_or(&[][..], |model| &model.candidates);
    let all_openai = !candidates.is_empty() && candidates.iter().all(|one| one.kind == NodeKind::OpenAi);
    if asked.native() && all_openai {
        ProxyError::OnlyOpenAi { model: asked.model_name().to_owned(), instead: openai_counterpart(asked.route) }
    } else {
        nodes_down(asked)
    }
}

/// The `/v1` route that serves the same purpose.
fn openai_counterpart(route: Route) -> &'static str {
    match route {
        Route::Generate => "/v1/completions",
        Route::Embed | Route::Embeddings => "/v1/embeddings",
        _ => "/v1/chat/completions",
    }
}

/// The first node (in configuration order, so that answers do not flap) that is up and has the model; one that is being
/// drained only where there is no other.
fn details(
    local: &Local,
    snapshot: &Snapshot,
    model: &Model,
    asked: &Asked,
    tried: &Tried,
) -> Result<Reserved, ProxyError> {
    let fits = |one: &&crate::fleet::Candidate| {
        one.up && (!asked.native() || one.kind == NodeKind::Ollama) && !tried.nodes().contains(&one.node)
    };
    let stays = |one: &&crate::fleet::Candidate| fits(one) && !one.pair.cell.node_word.is_draining();
    let candidates = || model.candidates.iter();
    let found = candidates().find(stays).or_else(|| candidates().find(fits));
    let candidate = found.ok_or_else(|| no_node(Some(model), asked))?;
    let view = &snapshot.nodes[candidate.node.0 as usize];
    Ok(reserved(local, view, Some(model), None, candidate.pair.clone()))
}

/// Waits for a slot of this model.
async fn wait(
    client: &Rc<Client>,
    queue: &Arc<Queue>,
    asked: &Asked,
    plan: &Plan,
    tried: &Tried,
    deadline: u64,
) -> Result<(Arc<Cell>, Taken), ProxyError> {
    let local = &client.local;
    let full = |_| ProxyError::QueueFull { drain_ms: drain_ms(local, plan, queue) };
    let mut waiting = Waiting::join(queue, ask(local, asked, tried).wants()).map_err(full)?;
    local.tally(Tally::Waits);
    client.watch.arm(Expiry::QueueWait, deadline);
    let granted = std::future::poll_fn(|cx| {
        if client.watch.fired() == Some(Expiry::QueueWait) {
            return Poll::Ready(Err(ProxyError::QueueTimeout));
        }
        if local.shared.phase() >= Phase::Draining {
            return Poll::Ready(Err(ProxyError::Draining));
        }
        waiting.poll_grant(cx, &mut || free_cell(local, asked, plan, tried)).map(Ok)
    });
    match granted.await? {
        Grant::Slot { cell, taken } => Ok((cell, taken)),
        Grant::Refused => Err(nodes_down(asked)),
    }
}

/// Takes a slot that is free by now, for whoever stands first in the queue.
fn free_cell(local: &Local, asked: &Asked, plan: &Plan, tried: &Tried) -> Option<Arc<Cell>> {
    let Plan::Model(key) = plan else { return None };
    local.with_snapshot(|snapshot| {
        let model = snapshot.models.get(key.as_str())?;
        routing::take_for_waiter(snapshot, model, &ask(local, asked, tried))
    })
}

/// The node and counters that belong to a granted slot; gives the slot back if the model is gone from there.
fn accept(
    local: &Rc<Local>,
    ticket: &Ticket,
    (asked, plan, tried): (&Asked, &Plan, &Tried),
    cell: Arc<Cell>,
    taken: Taken,
) -> Option<Reserved> {
    let Plan::Model(key) = plan else { return None };
    let found = local.with_snapshot(|snapshot| {
        let model = snapshot.models.get(key.as_str())?;
        let to = routing::candidate_of(model, &cell)?;
        decided::goes(ticket, (snapshot, model), &ask(local, asked, tried), to, taken);
        let candidate = &model.candidates[to];
        let view = snapshot.nodes[candidate.node.0 as usize].clone();
        Some((candidate.pair.clone(), view, model.clone()))
    });
    let Some((pair, view, model)) = found else {
        cell.return_unused(taken);
        return None;
    };
    let permit = Permit::new(pair.clone(), local.id, taken);
    Some(reserved(local, &view, Some(&model), Some(permit), pair))
}

/// When the queue will have drained, if requests go on to take as long as they did: waiting times mean service, by slots.
fn drain_ms(local: &Local, plan: &Plan, queue: &Queue) -> u64 {
    let mean_ms = local.mean_ms();
    let Plan::Model(key) = plan else { return mean_ms };
    let slots: u64 = local.with_snapshot(|snapshot| {
        let candidates = snapshot.models.get(key.as_str()).map_or(&[][..], |model| &model.candidates);
        candidates
            .iter()
            .map(|one| (one.pair.cell.view(), one.pair.cell.node_word.slots()))
            .filter(|(view, _)| view.open)
            .map(|(view, of_node)| slots_of(view.limit).min(of_node.map_or(u64::MAX, u64::from)))
            .sum()
    });
    u64::from(queue.len()) * mean_ms / slots.max(1)
}

fn slots_of(limit: Limit) -> u64 {
    match limit {
        Limit::Soft(slots) | Limit::Hard(slots) => u64::from(slots),
    }
}
