//! `GET /herdgate/status`: what an operator wants to see of the process and its nodes at one look.

use serde_json::{Value, json};

use super::aside::aside;
use super::{Answer, reading};
use crate::config::NodeKind;
use crate::fleet::{NodeView, Snapshot};
use crate::shared::{Phase, Shared};
use crate::slots::Limit;
use crate::sync::Arc;

/// Process, configuration and each node with what runs on it.
pub async fn status(shared: &Arc<Shared>) -> Answer {
    aside(shared, shown).await
}

fn shown(shared: &Shared) -> Answer {
    let snapshot = shared.fleet.load();
    let nodes: Vec<Value> = snapshot.configured().map(|node| node_entry(&snapshot, node, shared.clock.now())).collect();
    let waiting: u64 = reading::queues(shared).iter().map(|(_, count)| count).sum();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "listen": shared.listen.to_string(),
        "phase": phase(shared.phase(), snapshot.ready),
        "uptime_ms": shared.clock.now(),
        "generation": snapshot.generation,
        "waiting": waiting,
        "connections": shared.connections(),
        "connections_max": shared.connection_bound(),
        "configuration": configuration(shared),
        "nodes": nodes,
    });
    Answer::json(body.to_string())
}

fn phase(phase: Phase, ready: bool) -> &'static str {
    match phase {
        Phase::Running if ready => "ready",
        Phase::Running => "first poll",
        Phase::Leaving => "leaving",
        Phase::Draining | Phase::Ending => "draining",
    }
}

/// How the last reload went; `ok` when there was none.
pub(crate) fn configuration(shared: &Shared) -> Value {
    let last = shared.operator.last_reload();
    let mut told = json!({
        "status": if last.mistakes.is_empty() { "ok" } else { "error" },
        "applied_unix_ms": last.applied_unix_ms,
    });
    if let Some(first) = last.mistakes.first() {
        let count = last.mistakes.len();
        told["detail"] = format!("the last reload was refused, {count} mistake(s); the first: {first}").into();
        told["refused_unix_ms"] = last.tried_unix_ms.into();
    }
    if !last.needs_restart.is_empty() {
        told["needs_restart"] = last.needs_restart.iter().map(|held| held.key).collect();
    }
    told
}

/// In one word: what an operator does about it differs.
pub(crate) fn state(node: &NodeView) -> &'static str {
    match (node.draining, node.up, node.suspect) {
        (true, true, _) => "draining",
        (true, false, _) => "draining, down",
        (false, true, true) => "suspect",
        (false, true, false) if node.word.is_up() => "up",
        (false, ..) => "down",
    }
}

fn node_entry(snapshot: &Snapshot, node: &NodeView, now: u64) -> Value {
    let mut models = Vec::new();
    for model in snapshot.models.values() {
        // They are in the nodes' order.
        let Ok(at) = model.candidates.binary_search_by_key(&node.id, |candidate| candidate.node) else { continue };
        let view = model.candidates[at].pair.cell.view();
        if view.loaded || view.loading || view.in_flight > 0 {
            models.push((model.name.clone(), view));
        }
    }
    models.sort_by(|(a, _), (b, _)| a.cmp(b));
    let models: Vec<Value> = models
        .into_iter()
        .map(|(name, view)| {
            let (limit, hard) = match view.limit {
                Limit::Hard(limit) => (limit, true),
                Limit::Soft(limit) => (limit, false),
            };
            let state = if view.loaded {
                "loaded"
            } else if view.loading {
                "loading"
            } else {
                "not loaded"
            };
            json!({ "model": &*name, "state": state, "in_flight": view.in_flight, "limit": limit, "hard": hard })
        })
        .collect();
    json!({
        "name": &*node.name,
        "url": &*node.url,
        "kind": if node.kind == NodeKind::OpenAi { "openai" } else { "ollama" },
        "state": state(node),
        "draining": node.draining,
        "cause": &*node.cause,
        "sick": reading::sick(node).into_iter().map(|(_, words)| words).collect::<Vec<_>>(),
        "for_ms": now.saturating_sub(node.since),
        "version": node.version.as_deref(),
        // Of all its cells, those included that no name uses any more.
        "in_flight": node.word.work(),
        // Of all its models together: what counts against the limit, and the limit.
        "models_in_flight": node.word.seats(),
        "node_slots": node.word.slots(),
        "models": models,
    })
}
