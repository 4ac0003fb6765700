//! A request's way through: read, plan, reserve, send, forward, count.
//!
//! Called by front for every request that a node answers. When the client leaves, hyper drops the future: the queue
//! place, the slot, the node's connection and the Outcome take care of themselves on drop (`reserve`, `slots`,
//! `lingering`, `ticket`). Must never hold the Snapshot across an await, nor lock, nor start a task per request.

pub mod answer;
pub mod asked;
mod attempts;
pub mod behind;
mod block;
pub mod body;
pub mod buffers;
mod decided;
mod denied;
mod dial;
pub mod explain;
mod failure;
pub mod headers;
pub mod hold;
pub mod inject;
pub mod keyring;
pub mod lingering;
pub mod local;
mod outgoing;
pub mod plan;
pub mod pool;
mod reserve;
pub mod rules;
pub mod scan;
pub mod spares;
pub mod stream;
pub mod tail;
pub mod text;
pub mod ticket;
mod unload;
pub mod upstream;
pub mod watch;
mod wire;
mod word;

use std::rc::Rc;

use http::header::CACHE_CONTROL;
use http::{HeaderValue, Response, StatusCode};

use crate::clock::Millis;
use crate::config::NodeKind;
use crate::dialect::{self, Route, name, texts};
use crate::error::ProxyError;
use crate::evidence::Why;
use crate::fleet::NodeView;
use crate::fleet::report::Sought;
use crate::ids::{KeyId, NodeId};
use crate::proxy::answer::OutBody;
use crate::proxy::asked::{Asked, Inbound};
use crate::proxy::body::BodySource;
use crate::proxy::local::Client;
use crate::proxy::plan::{Drawn, Plan};
use crate::proxy::tail::TailReport;
use crate::proxy::ticket::Ticket;
use crate::usage::{Ending, Rejection};

/// Answers an inference or pass-through request.
pub async fn handle(
    client: &Rc<Client>,
    route: Route,
    inbound: Inbound<'_>,
    source: &mut dyn BodySource,
    key: KeyId,
) -> Response<OutBody> {
    let ticket = Ticket::draw(client, key, route);
    let gathered = match body::gather(client, inbound.known.announced(), source).await {
        Ok(gathered) => gathered,
        Err(error) => return refuse(client, ticket, route, &error),
    };
    let asked = Asked::read(route, inbound, gathered.bytes.clone()).await;
    let response = answer(client, ticket, &asked, key).await;
    client.local.upstreams.reclaim(asked.lines.into_buffer());
    response
}

async fn answer(client: &Rc<Client>, ticket: Ticket, asked: &Asked, key: KeyId) -> Response<OutBody> {
    let route = asked.route;
    if matches!(route, Route::OtherApi | Route::OtherV1) && asked.model_name().is_empty() {
        // Not a route of Ollama's, and nothing says where it should go.
        ticket.withdraw();
        return answer::not_found();
    }
    let plan = match plan(client, asked).await {
        Ok(plan) => plan,
        Err(error) => return refuse_asked(client, ticket, asked, &error),
    };
    let done = match &plan {
        Plan::Unload(model) => {
            let shared = &client.local.shared;
            let loopback = shared.listen.ip().is_loopback();
            if client.local.rules().config.administration.admits(loopback, key) {
                unload::everywhere(client, ticket, asked, model.as_str()).await
            } else {
                Err((ticket, ProxyError::AdministrationClosed))
            }
        }
        plan => attempts::run(client, ticket, asked, plan).await,
    };
    match done {
        Ok(response) => response,
        Err((ticket, _)) if plan == Plan::Unknown => {
            let refusal = texts::unknown_model(route, asked.model_name());
            refuse_asked(client, ticket, asked, &ProxyError::Refused(refusal))
        }
        Err((ticket, error)) => refuse_asked(client, ticket, asked, &error),
    }
}

/// As [`refuse`], with what a node adds to the head of a stream on these routes even where it comes to none.
fn refuse_asked(client: &Client, ticket: Ticket, asked: &Asked, error: &ProxyError) -> Response<OutBody> {
    let mut response = refuse(client, ticket, asked.route, error);
    if asked.streams && matches!(asked.route, Route::V1Responses | Route::V1Messages) {
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}

/// The plan, after one refresh of the inventories if the name is new here.
async fn plan(client: &Client, asked: &Asked) -> Result<Plan, ProxyError> {
    let key = match client.local.with_snapshot(|snapshot| plan::draw(snapshot, asked))? {
        Drawn::Plan(plan) => return nobody_to_ask(client, asked, plan),
        Drawn::Unknown(key) => key,
    };
    let sought = client.local.reports.miss(key.as_str()).await;
    client.local.with_snapshot(|snapshot| match plan::draw(snapshot, asked)? {
        Drawn::Plan(plan) => Ok(plan),
        // A control thread that is late has looked for nothing.
        Drawn::Unknown(_) if sought == Sought::Unsure => Err(plan::nobody_knows(asked.model_name())),
        Drawn::Unknown(_) => plan::unknown(snapshot, asked.model_name()),
    })
}

/// A body that a node would refuse is refused in its words when no Ollama node is up to do it.
fn nobody_to_ask(client: &Client, asked: &Asked, plan: Plan) -> Result<Plan, ProxyError> {
    let words_errors = |node: &NodeView| node.up && (node.kind == NodeKind::Ollama || !asked.native());
    let somebody = || client.local.with_snapshot(|snapshot| snapshot.nodes.iter().any(|node| words_errors(node)));
    if plan != Plan::Anywhere || somebody() {
        return Ok(plan);
    }
    if asked.body.is_empty() {
        return Err(ProxyError::Refused(texts::empty_body(asked.route)));
    }
    if asked.readable {
        let sent = asked.model_name();
        let why = name::parse(sent).err().unwrap_or(name::NameError::Missing);
        return Err(ProxyError::Refused(texts::bad_name(asked.route, sent, why)));
    }
    Err(ProxyError::NodesDown { model: asked.model_name().to_owned() })
}

/// A request for the node whose account and cloud access stand for the fleet's.
pub async fn identity(
    client: &Rc<Client>,
    inbound: Inbound<'_>,
    source: &mut dyn BodySource,
    key: KeyId,
) -> Response<OutBody> {
    pass(client, inbound, source, key, &Plan::Cloud).await
}

/// A request that any healthy node can answer.
pub async fn any_node(
    client: &Rc<Client>,
    inbound: Inbound<'_>,
    source: &mut dyn BodySource,
    key: KeyId,
) -> Response<OutBody> {
    pass(client, inbound, source, key, &Plan::Anywhere).await
}

async fn pass(
    client: &Rc<Client>,
    inbound: Inbound<'_>,
    source: &mut dyn BodySource,
    key: KeyId,
    plan: &Plan,
) -> Response<OutBody> {
    let route = Route::OtherApi;
    let ticket = Ticket::draw(client, key, route);
    if *plan == Plan::Cloud && !client.local.with_snapshot(|snapshot| snapshot.configured().any(|node| node.cloud)) {
        return refuse(client, ticket, route, &ProxyError::Refused(texts::no_account(inbound.target.as_str())));
    }
    let gathered = match body::gather(client, inbound.known.announced(), source).await {
        Ok(gathered) => gathered,
        Err(error) => return refuse(client, ticket, route, &error),
    };
    let asked = Asked::read(route, inbound, gathered.bytes.clone()).await;
    match attempts::run(client, ticket, &asked, plan).await {
        Ok(response) => response,
        Err((ticket, error)) => refuse(client, ticket, route, &error),
    }
}

/// The one place where an error becomes an answer, in the dialect of the route.
fn refuse(client: &Client, mut ticket: Ticket, route: Route, error: &ProxyError) -> Response<OutBody> {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    ticket.status = status.as_u16();
    let ending = ending(error);
    ticket.tell(NodeId::NONE, if let Ending::Rejected(why) = ending { Why::Refused(why) } else { Why::Unanswered });
    ticket.end(ending, &TailReport::default());
    let body = match error {
        ProxyError::Refused(refusal) => refusal.body(route),
        error => dialect::error(route, status.as_u16(), &error.to_string()),
    };
    let after = error.retry_after_ms().map(|ms| retry_after(ms, client.local.random()));
    let mut response = answer::error(status, body, after);
    if error.closes() {
        answer::close(&mut response);
    }
    response
}

/// How a refused request is counted.
fn ending(error: &ProxyError) -> Ending {
    Ending::Rejected(match error {
        ProxyError::Unanswered { .. } => return Ending::NodeErrorBefore,
        ProxyError::BodyTooLarge { .. } | ProxyError::QuestionTooLarge { .. } => Rejection::BodyTooLarge,
        ProxyError::BodySlow => Rejection::SlowClient,
        ProxyError::BodyMemoryFull => Rejection::BodyMemory,
        ProxyError::BodyBroken { .. } | ProxyError::OddKeys => Rejection::BadRequest,
        ProxyError::Refused(refusal) => match refusal.status {
            404 => Rejection::UnknownModel,
            403 => Rejection::Forbidden,
            _ => Rejection::BadRequest,
        },
        ProxyError::AdministrationClosed => Rejection::Forbidden,
        ProxyError::NodesDown { .. } => Rejection::NoNode,
        ProxyError::QueueFull { .. } => Rejection::QueueFull,
        ProxyError::QueueTimeout => Rejection::QueueTimeout,
        ProxyError::Draining => Rejection::Draining,
        ProxyError::OnlyOpenAi { .. } => Rejection::NotImplemented,
    })
}

/// The least and the most that `Retry-After` says, milliseconds.
const RETRY_AFTER_MS: (u64, u64) = (1_000, 30_000);

/// Seconds for `Retry-After`: what is predicted, and up to half as much again by chance, so that those who are sent away
/// together do not come back together; 1 to 30. From 20 s on the half lies within the bound as well: 20 to 30.
fn retry_after(predicted_ms: Millis, random: u32) -> u32 {
    let (least, most) = RETRY_AFTER_MS;
    let spread = predicted_ms.clamp(least, most * 2 / 3) / 2;
    let from = predicted_ms.clamp(least, most - spread);
    // A second more, for what is told is whole seconds and rounded down: the shortest would have no spread at all.
    let by_chance = (u64::from(random) * (spread + 1_000)) >> 32;
    u32::try_from((from + by_chance).min(most) / 1_000).unwrap_or(30)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::retry_after;

    proptest! {
        #[test]
        fn retry_after_is_what_is_predicted_up_to_half_more_and_1_to_30(predicted_ms: u64, random: u32) {
            let told = u64::from(retry_after(predicted_ms, random));
            prop_assert!((1..=30).contains(&told), "{told}");
            let predicted = predicted_ms.clamp(1_000, 20_000);
            prop_assert!(told >= predicted / 1_000 && told * 1_000 <= predicted + predicted / 2 + 1_000, "{told}");
        }

        #[test]
        fn retry_after_never_shrinks_with_the_prediction(less in 0_u64..60_000, more in 0_u64..60_000, random: u32) {
            let (less, more) = (less.min(more), less.max(more));
            prop_assert!(retry_after(less, random) <= retry_after(more, random));
        }
    }

    /// Whatever is predicted, the shortest and the longest included, clients come back at different times.
    #[test]
    fn retry_after_spreads() {
        for predicted_ms in [0, 1_000, 1_999, 2_000, 5_000, 10_000, 19_999, 20_000, 29_000, 30_000, 60_000, u64::MAX] {
            let mut told = BTreeMap::<u32, u32>::new();
            for step in 0..3_000_u32 {
                *told.entry(retry_after(predicted_ms, step * (u32::MAX / 3_000))).or_default() += 1;
            }
            let (first, last) = (*told.first_key_value().unwrap().0, *told.last_key_value().unwrap().0);
            let most = *told.values().max().unwrap();
            assert!(last > first && most <= 2_100, "{predicted_ms} ms: {told:?}");
            let seconds = u32::try_from(predicted_ms.clamp(1_000, 20_000) / 1_000).unwrap();
            assert!(last - first >= seconds / 2, "{predicted_ms} ms: {told:?}");
        }
    }
}
