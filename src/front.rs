//! One client connection: the front that serves it, what comes before and after a request's handler.
//!
//! Called by worker for each accepted socket. `own` serves HTTP/1.1 without an allocation of its own; what it leaves to
//! hyper (`general`) stays there for the rest of the connection. Both ask `checks` first and `perform` then.
//! Everything here runs on the worker's thread; when the client leaves, the handler's future is dropped, and whatever it
//! held gives itself back (see `proxy`). Must never wait for anything but the client's own bytes.
//!
//! # Deviations
//!
//! Answers that are not those of Ollama's own server (Go), on purpose; held by `tests/proxy/bad_input.rs` and
//! `tests/proxy/front.rs` where they can be provoked from outside.
//!
//! - Bounds, where Ollama has none: a body over `limits.max_body` is 413, a head over `limits.head` 431 (Go: 1 MiB), a
//!   slow head or body 408 (Go closes on the former without a word).
//! - More than 128 header lines: 431.
//! - A chunked body that breaks: 400 in the dialect of the route, with our text and a close.
//! - A panic: 500 with a text in the dialect and a close (Go: an empty 500). A client should see why.
//! - A client that closes its sending side before its answer began is gone, as Ollama takes it on the routes that matter.
//! - HTTP/1.0 and targets in absolute form are served by hyper, whose answers to malformed requests have no text.

mod administration;
pub mod auth;
mod checks;
pub mod cors;
mod general;
pub mod io;
mod listing;
mod monitor;
mod operator;
mod own;
mod query_form;
pub mod routes;

use std::pin::pin;
use std::rc::Rc;

use http::{Response, StatusCode};
use tokio::net::TcpStream;

use crate::dialect::Family;
use crate::front::checks::{Admitted, Asking, Work};
use crate::front::query_form::QueryForm;
use crate::proxy::answer::{self, OutBody};
use crate::proxy::body::BodySource;
use crate::proxy::local::{Client, Local};
use crate::shared::Phase;
use crate::sync::caught;
use crate::usage::meters::Tally;

/// Serves a connection until either side closes it.
pub async fn serve(local: Rc<Local>, stream: TcpStream, reserved: bool) {
    let watch = local.watches.add(local.rules().times.client_stall);
    let client = Rc::new(Client::new(local, watch, reserved));
    client.idle();
    if let Some((stream, read)) = own::serve(&client, stream).await {
        // In a box: hyper's state is large, and most connections never need it.
        Box::pin(general::serve(client, stream, read)).await;
    }
}

/// The answer to a request that was admitted, panics included: a panic costs this request alone.
async fn perform(
    client: &Rc<Client>,
    admitted: &Admitted,
    asking: &Asking<'_>,
    source: &mut dyn BodySource,
) -> Response<OutBody> {
    client.watch.disarm();
    let mut response = match caught(pin!(handled(client, admitted, asking, source))).await {
        Some(response) => response,
        None => panicked(client, asking.path),
    };
    cors::label(&admitted.verdict, response.headers_mut());
    finish(client, &mut response);
    response
}

/// What every answer goes through last, whoever gave it.
fn finish(client: &Client, response: &mut Response<OutBody>) {
    if !matches!(response.body(), OutBody::Stream(_) | OutBody::Other(_)) {
        client.idle();
    }
    if client.local.shared.phase() >= Phase::Leaving {
        answer::close(response);
    }
}

fn panicked(client: &Client, path: &str) -> Response<OutBody> {
    tracing::error!("a handler panicked; its request is answered with 500");
    client.local.tally(Tally::Panics);
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let mut response = answer::family_error(family_of(path), status, "internal error in the gate");
    answer::close(&mut response);
    response
}

async fn handled(
    client: &Rc<Client>,
    admitted: &Admitted,
    asking: &Asking<'_>,
    source: &mut dyn BodySource,
) -> Response<OutBody> {
    let key = admitted.key;
    let inbound = || asking.inbound(client);
    // A request with a body, as nearly all are, costs nothing here.
    let mut form = if source.is_end() { QueryForm::of(asking.path, asking.query) } else { None };
    let source = form.as_mut().map_or(source, |form| form as &mut dyn BodySource);
    match admitted.work {
        Work::Proxy(route) => crate::proxy::handle(client, route, inbound(), source, key).await,
        Work::Identity => crate::proxy::identity(client, inbound(), source, key).await,
        Work::AnyNode => crate::proxy::any_node(client, inbound(), source, key).await,
        Work::Admin(route) => bare(asking, monitor::answer(client, route, asking, source, key).await),
        Work::Operator => {
            let path = routes::decoded(asking.path);
            operator::answer(client, &path, asking.known.announced(), source, key).await
        }
        // In a box: it is rare, and its state would be carried along by every request.
        Work::Residency => Box::pin(listing::fresh(client)).await,
        Work::Administration => bare(asking, administration::answer(client, asking, source, key).await),
    }
}

/// A HEAD gets no body.
fn bare(asking: &Asking<'_>, response: Response<OutBody>) -> Response<OutBody> {
    if asking.is_head() { answer::without_body(response) } else { response }
}

/// Whose shapes an error on this path takes, before its route is known.
fn family_of(path: &str) -> Family {
    if path.starts_with("/v1/messages") {
        Family::Anthropic
    } else if path.starts_with("/v1/") {
        Family::OpenAi
    } else {
        Family::Ollama
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::slots::{Cell, Limit, NodeWord, Pair, Permit, Taken};
    use crate::sync::Arc;
    use crate::usage::counters::PairCounters;

    /// A slot of a node that is up.
    fn permit() -> (Arc<Cell>, Permit) {
        let word = Arc::new(NodeWord::new());
        word.set_up(true);
        let cell = Arc::new(Cell::new(crate::ids::CellId(0), crate::ids::NodeId(0), word, Limit::Hard(1)));
        cell.mark_loaded(Clock::manual(0).now());
        assert!(cell.try_take_warm());
        let counters = Arc::new(PairCounters::new(1));
        let pair = Pair { cell: cell.clone(), counters, model: crate::ids::ModelId(2), model_word: None };
        (cell, Permit::new(Arc::new(pair), crate::ids::WorkerId(0), Taken::Warm))
    }

    #[tokio::test]
    async fn i1_a_panic_costs_its_own_request_and_gives_the_slot_back() {
        let (cell, permit) = permit();
        let panics = async move {
            let _held = permit;
            tokio::task::yield_now().await;
            panic!("as a handler with a bug would");
        };
        assert_eq!(caught(pin!(panics)).await, None::<()>);
        assert_eq!(cell.view().in_flight, 0);
        assert_eq!(caught(pin!(async { 7 })).await, Some(7));
    }
}
