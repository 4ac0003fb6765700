//! Carries out what nodes have missed, once they are back: one operation at a time on each, few at once over all.
//!
//! A task of the control thread beside the orders'. It asks the node itself for its inventory first, since what the
//! Snapshot says of a node that just came back may be what it had before. Must never act on a node whose models are not
//! as they were when the operation was ordered.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::fleet::fanout::Desk;
use crate::fleet::fanout::ask::Verb;
use crate::fleet::fanout::exchange::{Exchange, Fail};
use crate::fleet::fanout::pending::{Entry, Operation};
use crate::fleet::fanout::progress;
use crate::fleet::fanout::tally::CaughtUp;
use crate::fleet::fetch::{Ask, Client};
use crate::fleet::{NodeView, Target, inventory};
use crate::ids::RequestId;
use crate::sync::{Arc, spawn_local};

/// Between two looks at who is back, while something is pending.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Nodes caught up at once: a rack that comes back must not pull everything at the same time.
const AT_ONCE: usize = 2;
/// Time for an inventory, and for a copy or a deletion.
const SHORT_MS: u64 = 60_000;

/// Looks for ever.
pub(super) async fn run(desk: Rc<Desk>) {
    loop {
        desk.keeper.wait().await;
        desk.keeper.store_again(desk.clock.now()).await;
        let snapshot = desk.snapshot.load_full();
        let find = |name: &str| snapshot.configured().find(|node| &*node.name == name);
        desk.keeper.give_up(desk.clock.unix_ms(), |name| find(name).is_some_and(|node| node.up)).await;
        let due = desk
            .keeper
            .due(desk.clock.unix_ms(), |name| find(name).is_some_and(|node| node.up && !node.draining))
            .await;
        for entry in due {
            let Some(node) = find(&entry.node).filter(|_| desk.keeper.under_way() < AT_ONCE) else { continue };
            let sent = Rc::new(Cell::new(false));
            let attempt = attempt(Rc::clone(&desk), entry.clone(), Arc::clone(node), Rc::clone(&sent));
            desk.keeper.begun(&entry, spawn_local(attempt).abort_handle(), sent);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn how(result: &Result<bool, String>) -> CaughtUp {
    match result {
        Ok(true) => CaughtUp::Done,
        Ok(false) => CaughtUp::Void,
        Err(_) => CaughtUp::Failed,
    }
}

async fn attempt(desk: Rc<Desk>, entry: Entry, node: Arc<NodeView>, sent: Rc<Cell<bool>>) {
    let result = carry_out(&desk, &entry, &node.target, &sent).await;
    let (id, name, model) = (entry.id, &*node.name, &entry.model);
    desk.tally.caught_up(how(&result), 1);
    match &result {
        Ok(true) => tracing::info!(node = name, model, operation = ?entry.operation, id, "caught up"),
        Ok(false) => tracing::warn!(
            node = name,
            model,
            operation = ?entry.operation,
            id,
            "not caught up: the node's models are not as they were when it was ordered"
        ),
        Err(error) => tracing::warn!(node = name, model, operation = ?entry.operation, id, error, "not caught up yet"),
    }
    // Off the list only when the gate itself knows.
    desk.reports.changed(vec![node.id]).await;
    desk.keeper.attempted(id, result.map(|_| ()), desk.clock.unix_ms()).await;
}

/// False: it must not be carried out any more.
pub(super) async fn carry_out(
    desk: &Desk,
    entry: &Entry,
    target: &Arc<Target>,
    sent: &Cell<bool>,
) -> Result<bool, String> {
    let body = match entry.operation {
        Operation::Pull if entry.insecure => serde_json::json!({ "model": entry.model, "insecure": true }),
        Operation::Pull | Operation::Delete => serde_json::json!({ "model": entry.model }),
        Operation::Copy => serde_json::json!({ "source": entry.model, "destination": entry.destination }),
    };
    let body = Bytes::from(body.to_string());
    // As it stands in `/herdgate/pending`: the request that ordered it is long over.
    let id = RequestId::of_client(format!("pending-{}", entry.id).as_bytes()).unwrap_or(RequestId::NONE);
    if !entry.still_holds(&inventory_of(target).await?) {
        return Ok(false);
    }
    let verb = match entry.operation {
        Operation::Pull => {
            let followed =
                progress::follow(target, id, Verb::Pull, &body, desk.config.now().timeouts.stream_idle, None).await;
            return followed.map(|()| true).map_err(|fail| fail.text());
        }
        Operation::Delete => Verb::Delete,
        Operation::Copy => Verb::Copy,
    };
    sent.set(true);
    match tokio::time::timeout(Duration::from_millis(SHORT_MS), short(target, id, verb, &body)).await {
        Ok(result) => result.map(|()| true).map_err(|fail| fail.text()),
        Err(_) => Err(format!("no answer for {SHORT_MS} ms")),
    }
}

async fn short(target: &Target, id: RequestId, verb: Verb, body: &[u8]) -> Result<(), Fail> {
    let (method, path) = verb.route();
    let (mut exchange, head) = Exchange::ask(target, id, method, path, body).await?;
    if head.status == 200 { Ok(()) } else { Err(exchange.refused(head).await) }
}

async fn inventory_of(target: &Arc<Target>) -> Result<Vec<inventory::Entry>, String> {
    let ask = Ask { path: "/api/tags", body: None, timeout_ms: SHORT_MS, fresh: false };
    let answer = Client::new(Arc::clone(target)).fetch(&ask).await.map_err(|error| error.to_string())?;
    if answer.status.as_u16() != 200 {
        return Err(format!("/api/tags answers {}", answer.status));
    }
    inventory::tags(&answer.body)
}
