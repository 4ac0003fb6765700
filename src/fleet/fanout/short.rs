//! Copy and delete: to every node at once, each a short exchange; the answer says what came of all.
//!
//! Not cancelled when the client leaves: Ollama finishes them too, and half a fleet's deletion is worse than all of it.
//! Must never answer 404 while a node had the model.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::dialect::texts::Refusal;
use crate::fleet::fanout::ask::{Asked, Verb};
use crate::fleet::fanout::exchange::{Exchange, Fail};
use crate::fleet::fanout::keeper::Aside;
use crate::fleet::fanout::outcome::{Outcome, words};
use crate::fleet::fanout::pending::{Entry, Operation};
use crate::fleet::fanout::tally::Ended;
use crate::fleet::fanout::targets::{Goal, Goals, NoGoal};
use crate::fleet::fanout::{Body, By, Desk, Order, Reply, progress};
use crate::ids::{NodeId, RequestId};
use crate::sync::{Arc, spawn_local};

/// A node deletes files and copies a manifest; on a busy disk that takes a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a copy or a delete to its end.
pub(super) async fn run(desk: &Rc<Desk>, order: Order, asked: &Asked) -> Ended {
    let explicit = order.nodes.is_some();
    // Before the nodes are chosen: a pull that is kept for a node must not bring the model back, and one that is being
    // caught up may have brought it.
    let early = match asked.verb == Verb::Delete && !explicit {
        true => Some(desk.aside(asked, explicit, &Goals::default()).await),
        false => None,
    };
    let mut goals = match desk.goals(asked, order.nodes.as_deref()).await {
        Ok(goals) => goals,
        Err(none) => {
            if let Some(aside) = early {
                let nowhere = none == NoGoal::NoModel;
                desk.keeper.put_back(aside, |entry| !nowhere || is_deletion(entry)).await;
            }
            return order.client.answer(Reply::refusal(&none.refusal(Some(asked))));
        }
    };
    let aside = match early {
        Some(aside) => aside,
        None => desk.aside(asked, explicit, &goals).await,
    };
    let mut results = everywhere(&goals.up, order.by.request, asked.verb, &order.body).await;
    if results.iter().all(lacks_it)
        && let Some(moved) = elsewhere(desk, &order, asked, &goals).await
    {
        goals = moved;
        results = everywhere(&goals.up, order.by.request, asked.verb, &order.body).await;
    }
    let some = results.iter().any(Result::is_ok);
    let untouched = !some && !results.iter().all(lacks_it);
    let reply = verdict(desk, (asked, &order.by), (&goals, &aside), results).await;
    // What is to be deleted elsewhere is so still.
    let again = |entry: &Entry| untouched || asked.verb == Verb::Delete && is_deletion(entry);
    desk.keeper.put_back(aside, again).await;
    // Anything but Ollama's own empty answer says who is left without.
    let is_full = reply.status == 200 && matches!(&reply.body, Body::Whole(bytes) if bytes.is_empty());
    let ended = order.client.answer(reply);
    if some && !is_full { Ended::Partial } else { ended }
}

/// Every node that was thought to have the model denies it: those that have it now, if there are any others.
async fn elsewhere(desk: &Desk, order: &Order, asked: &Asked, denied: &Goals) -> Option<Goals> {
    desk.reports.confirm(denied.up.iter().map(|goal| goal.node).collect()).await;
    let goals = desk.goals(asked, order.nodes.as_deref()).await.ok()?;
    goals.up.iter().any(|goal| denied.up.iter().all(|known| known.node != goal.node)).then_some(goals)
}

/// Asks all nodes at once; their results in order.
pub(super) async fn everywhere(goals: &[Goal], id: RequestId, verb: Verb, body: &Bytes) -> Vec<Result<(), Fail>> {
    let under_way: Vec<_> = goals
        .iter()
        .map(|goal| {
            let (target, body) = (Arc::clone(&goal.target), body.clone());
            spawn_local(async move {
                let exchange = async {
                    let (method, path) = verb.route();
                    let (mut exchange, head) = Exchange::ask(&target, id, method, path, &body).await?;
                    if head.status == 200 { Ok(()) } else { Err(exchange.refused(head).await) }
                };
                let late = || Err(Fail::Lost(format!("no answer for {} s", PATIENCE.as_secs())));
                tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| late())
            })
        })
        .collect();
    let mut results = Vec::with_capacity(under_way.len());
    for task in under_way {
        results.push(task.await.unwrap_or_else(|error| Err(Fail::Lost(error.to_string()))));
    }
    results
}

fn is_deletion(entry: &Entry) -> bool {
    entry.operation == Operation::Delete
}

fn lacks_it(result: &Result<(), Fail>) -> bool {
    matches!(result, Err(Fail::Refused(refused)) if refused.status == 404)
}

async fn verdict(
    desk: &Desk,
    (asked, by): (&Asked, &By),
    (goals, aside): (&Goals, &Aside),
    results: Vec<Result<(), Fail>>,
) -> Reply {
    let mut outcome = Outcome::default();
    let mut failures = Vec::new();
    let mut missing: Vec<&Goal> = goals.down.iter().collect();
    let nowhere = results.iter().all(lacks_it);
    for (goal, result) in goals.up.iter().zip(results) {
        // A node that was without it already is as it should be, unless all are.
        let lacks = lacks_it(&result);
        match result {
            Ok(()) => outcome.done.push((&*goal.name).into()),
            Err(_) if lacks && !nowhere => {}
            Err(fail) => {
                if fail.is_lost() {
                    missing.push(goal);
                }
                failures.push((Arc::clone(&goal.name), fail));
            }
        }
    }
    let touched: Vec<NodeId> = goals.up.iter().map(|goal| goal.node).collect();
    if !outcome.done.is_empty() {
        progress::keep(desk, asked, &missing, aside, &mut outcome).await;
    }
    desk.reports.changed(touched).await;
    failures.retain(|(name, _)| !outcome.pending.iter().any(|kept| **kept == **name));
    tracing::info!(
        request_id = %by.request,
        model = asked.model,
        operation = asked.verb.word(),
        done = outcome.done.len(),
        failed = failures.len(),
        pending = outcome.pending.len(),
        "models administered"
    );
    if outcome.done.is_empty() && nowhere && !goals.down.is_empty() {
        let names: Vec<&str> = goals.down.iter().map(|goal| &*goal.name).collect();
        return Reply::refusal(&Refusal::of(503, format!("only nodes that are down have it ({})", names.join(", "))));
    }
    if outcome.done.is_empty() {
        return progress::refusal(&failures);
    }
    if let Some((_, first)) = failures.first() {
        return partly(&outcome, &failures, first);
    }
    if outcome.is_full() { Reply::empty(200) } else { Reply::json(200, &outcome.success()) }
}

/// Some did it and some refused: the first refusal's status, every failure by name, and who did it.
fn partly(outcome: &Outcome, failures: &[(Arc<str>, Fail)], first: &Fail) -> Reply {
    let status = match first {
        Fail::Refused(refused) => refused.status,
        Fail::Said(_) | Fail::Lost(_) => 500,
    };
    let texts: Vec<_> =
        failures.iter().map(|(name, fail)| (Arc::clone(name), format!("{} on {name}", fail.text()))).collect();
    let text = format!("{}; done on {}", words(&texts), outcome.done.join(", "));
    Reply::refusal(&Refusal::of(status, text))
}
