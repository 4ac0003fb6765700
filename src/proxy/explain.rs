//! A dry run: what would become of a request now, and why; nothing is reserved, sent, counted or kept.
//!
//! Called by front for `POST /herdgate/explain`. Uses the plan and the order that a real request meets. Must never take a
//! slot, nor ask a node.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::config::NodeKind;
use crate::dialect::Route;
use crate::error::ProxyError;
use crate::evidence::Why;
use crate::fleet::{Model, Snapshot};
use crate::ids::NodeId;
use crate::proxy::asked::Asked;
use crate::proxy::local::{Client, Local};
use crate::proxy::plan::{self, Drawn, Plan};
use crate::proxy::reserve::no_node;
use crate::routing::explain::{Explained, Stand, Would, explain};
use crate::routing::{AnyAsk, Ask, least_any};
use crate::slots::Limit;

/// The route that a dry run is about, by its path; without one, `/api/chat`.
#[must_use]
pub fn route(path: Option<&str>) -> Option<Route> {
    match path {
        None => Some(Route::Chat),
        Some(path) => Route::ALL.into_iter().find(|route| route.path() == Some(path)),
    }
}

/// What would become of this request.
#[must_use]
pub fn explained(client: &Rc<Client>, asked: &Asked) -> Value {
    let local = &client.local;
    let mut answer = local.with_snapshot(|snapshot| match plan::draw(snapshot, asked) {
        Err(error) => refused(&error),
        Ok(Drawn::Unknown(_)) => {
            let mut answer = match plan::unknown(snapshot, asked.model_name()) {
                Ok(plan) => planned(local, snapshot, asked, &plan),
                Err(error) => refused(&error),
            };
            answer["note"] = "a real request would have the inventories read once more first".into();
            answer
        }
        Ok(Drawn::Plan(plan)) => planned(local, snapshot, asked, &plan),
    });
    answer["route"] = asked.route.path().into();
    answer["model"] = asked.model_name().into();
    answer
}

fn refused(error: &ProxyError) -> Value {
    let why = match super::ending(error) {
        crate::usage::Ending::Rejected(why) => Why::Refused(why),
        _ => Why::Unanswered,
    };
    json!({
        "would": "refuse", "reason": why.label(), "because": error.to_string(), "status": error.status(),
        "node": null, "candidates": [],
    })
}

fn goes(snapshot: &Snapshot, node: NodeId, why: Why) -> Value {
    json!({
        "would": "go", "reason": why.label(), "because": why.because(), "node": name(snapshot, node), "candidates": [],
    })
}

fn name(snapshot: &Snapshot, node: NodeId) -> Value {
    snapshot.node(node).map_or(Value::Null, |node| (*node.name).into())
}

fn planned(local: &Local, snapshot: &Snapshot, asked: &Asked, plan: &Plan) -> Value {
    let down = || refused(&ProxyError::NodesDown { model: asked.model_name().to_owned() });
    match plan {
        Plan::Anywhere | Plan::Unknown | Plan::Cloud => {
            let cloud = *plan == Plan::Cloud;
            let only_ollama = asked.native() || *plan == Plan::Unknown;
            let of = |kind| least_any(snapshot, &AnyAsk { kind, cloud, tried: &[] });
            let node = of(Some(NodeKind::Ollama)).or_else(|| if only_ollama { None } else { of(None) });
            let why = if cloud { Why::Cloud } else { Why::AnyNode };
            node.map_or_else(down, |node| goes(snapshot, node.id, why))
        }
        Plan::Model(key) | Plan::Details(key) | Plan::Unload(key) => {
            let Some(model) = snapshot.models.get(key.as_str()) else { return down() };
            match plan {
                Plan::Model(_) => of_model(local, snapshot, model, asked),
                Plan::Details(_) => {
                    let fits =
                        model.candidates.iter().find(|one| one.up && (!asked.native() || one.kind == NodeKind::Ollama));
                    fits.map_or_else(
                        || refused(&no_node(Some(model), asked)),
                        |one| goes(snapshot, one.node, Why::Details),
                    )
                }
                _ => goes(snapshot, NodeId::NONE, Why::Everywhere),
            }
        }
    }
}

fn of_model(local: &Local, snapshot: &Snapshot, model: &Model, asked: &Asked) -> Value {
    let ask = Ask {
        native: asked.native(),
        tried: &[],
        now: local.clock.now(),
        spill_after: local.rules().times.cold_spill_after,
    };
    let (would, all) = explain(snapshot, model, &ask);
    let mut answer = match would {
        Would::Go(stand) => {
            let like = all.iter().filter(|one| one.stand == stand);
            let node = like.clone().next().map_or(NodeId::NONE, |one| model.candidates[one.candidate].node);
            goes(snapshot, node, why(stand))
        }
        Would::NoNode => refused(&no_node(Some(model), asked)),
        Would::Wait | Would::WaitBehind(_) if model.queue.len() >= local.rules().config.limits.queue_length => {
            refused(&ProxyError::QueueFull { drain_ms: 0 })
        }
        Would::Wait => waits(0, "nothing has room, and no further copy may be loaded now"),
        Would::WaitBehind(others) => waits(others, "others that came before wait for the same model"),
    };
    answer["candidates"] = all.iter().enumerate().map(|(at, one)| candidate(snapshot, model, at, one)).collect();
    answer
}

fn waits(others: u32, because: &str) -> Value {
    json!({ "would": "wait", "reason": "waiting", "because": because, "node": null, "waiting_before": others })
}

fn candidate(snapshot: &Snapshot, model: &Model, at: usize, one: &Explained) -> Value {
    let (limit, soft) = match one.view.limit {
        Limit::Soft(limit) => (limit, true),
        Limit::Hard(limit) => (limit, false),
    };
    let node = &model.candidates[one.candidate].pair.cell.node_word;
    json!({
        "order": at + 1,
        "node": name(snapshot, model.candidates[one.candidate].node),
        "stands": label(one.stand),
        "because": because(one.stand),
        "in_flight": one.view.in_flight,
        "limit": limit,
        "limit_is": if soft { "soft" } else { "hard" },
        "model_is": if one.view.loaded { "loaded" } else if one.view.loading { "loading" } else { "on_disk" },
        "takes_work": one.view.open,
        "node_in_flight": node.seats(),
        "node_slots": node.slots(),
        "last_choice": model.candidates[one.candidate].last_choice,
    })
}

fn why(stand: Stand) -> Why {
    match stand {
        Stand::Loaded => Why::Loaded,
        Stand::Loading => Why::Loading,
        Stand::OnDisk => Why::Cold,
        _ => Why::OverLimit,
    }
}

fn label(stand: Stand) -> &'static str {
    match stand {
        Stand::Loaded => "loaded",
        Stand::Loading => "loading",
        Stand::OnDisk => "on_disk",
        Stand::OverLimit => "over_limit",
        Stand::Full => "full",
        Stand::NodeFull => "node_full",
        Stand::Closed => "closed",
        Stand::Unfit => "unfit",
    }
}

fn because(stand: Stand) -> &'static str {
    match stand {
        Stand::Loaded => "loaded, below its limit",
        Stand::Loading => "being loaded, below its limit",
        Stand::OnDisk => "on disk: loads it when no copy has room and no other load is under way",
        Stand::OverLimit => "loaded, at its soft limit: taken when nothing better is left",
        Stand::Full => "at its limit",
        Stand::NodeFull => "its node is at its node_slots, all models together, or others wait for the next",
        Stand::Closed => "its node takes no new work: down, silent or being drained",
        Stand::Unfit => "its node cannot serve this: another dialect, or a cloud model where none may be asked",
    }
}
