//! One client connection: hyper's service, the checks before any route, graceful close.
//!
//! Called by worker for each accepted socket. Everything here runs on the worker's thread; when the client leaves,
//! hyper drops the service's future, and whatever it held gives itself back on drop (see `proxy`).
//! Must never wait for anything but the client's own bytes.
//!
//! # Deviations
//!
//! Answers that are not those of Ollama's own server (Go), on purpose or because hyper gives them before anything of
//! ours runs. `tests/proxy/bad_input.rs` holds each; all but the bounds end with a front of our own.
//!
//! - Bounds, where Ollama has none: a body over `limits.max_body` is 413, a head over `limits.head` 431 (Go: 1 MiB), a
//!   slow body 408; a slow head or an idle connection is closed without a word (hyper cannot be told to word it).
//! - More than 100 headers: 431. hyper's parser has a fixed table.
//! - Heads that cannot be parsed: 400 without type and text, where Go says `400 Bad Request` (hyper's own answer). So it
//!   is for two different lengths, and for a transfer coding other than chunked (Go: 501).
//! - Characters that no URI may hold (`<`, `>`, `"`, a backslash, `^`) unescaped in the target: 400 (the `http` crate's parser).
//! - A chunked body that breaks: 400 in the dialect of the route, with our text and a close (its cause is hyper's).
//! - A panic: 500 with a text in the dialect and a close (Go: an empty 500). A client should see why.
//! - A client that closes its sending side is gone, on cheap routes too, unless its answer was out before: hyper cannot
//!   tell the two ways of closing apart, and on the routes that matter Ollama takes it so as well.
//! - A client that has sent more than its request (pipelining) and then leaves is noticed at the next write only.

mod administration;
pub mod auth;
pub mod cors;
pub mod io;
mod listing;
mod monitor;
pub mod routes;

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use http::header::{EXPECT, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::TcpStream;

use crate::dialect::Family;
use crate::front::auth::Access;
use crate::front::io::ClientIo;
use crate::front::routes::Handler;
use crate::ids::KeyId;
use crate::proxy::answer::{self, OutBody};
use crate::proxy::local::{Client, Local};
use crate::shared::Phase;
use crate::usage::Rejection;
use crate::usage::meters::Tally;

/// Serves a connection until either side closes it.
pub async fn serve(local: Rc<Local>, stream: TcpStream, reserved: bool) {
    let watch = local.watches.add(local.times.client_stall);
    let client = Rc::new(Client { local: local.clone(), watch: watch.clone(), reserved });
    client.idle();
    let io = ClientIo::new(stream, watch, local.clock.clone(), local.times.request_head);
    let limits = &local.shared.config.limits;
    let service = service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(answer(client, request).await) }
    });
    let connection = http1::Builder::new()
        .half_close(false)
        .writev(false)
        .title_case_headers(true)
        .header_read_timeout(None)
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.unsent_bytes.max(limits.head_bytes))
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut leaving = false;
    let served = std::future::poll_fn(|cx| {
        if !leaving && local.shared.phase() >= Phase::Draining {
            leaving = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = served.await {
        tracing::debug!(%error, "client connection ended");
    }
}

/// One request, panics included: a panic costs this request alone.
async fn answer(client: Rc<Client>, request: Request<Incoming>) -> Response<OutBody> {
    client.watch.disarm();
    let family = family_of(request.uri().path());
    let mut response = match caught(checked(&client, request)).await {
        Some(response) => response,
        None => {
            tracing::error!("a handler panicked; its request is answered with 500");
            client.local.tally(Tally::Panics);
            let mut response =
                answer::family_error(family, StatusCode::INTERNAL_SERVER_ERROR, "internal error in the gate");
            answer::close(&mut response);
            response
        }
    };
    if !matches!(response.body(), OutBody::Stream(_) | OutBody::Other(_)) {
        client.idle();
    }
    if client.local.shared.phase() >= Phase::Leaving {
        answer::close(&mut response);
    }
    response
}

/// What a future comes to; `None` if it panics. What it held was given back while it unwound.
async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        let poll = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.as_mut().poll(cx)));
        match poll {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Some(value)),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
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

/// The checks that come before any route, in Ollama's order: framing, Host, Origin; then ours: phase, key.
async fn checked(client: &Rc<Client>, request: Request<Incoming>) -> Response<OutBody> {
    if let Some(refusal) = malformed(&request) {
        return refusal;
    }
    let config = client.local.shared.config.clone();
    let uri = request.uri().clone();
    let path = &*routes::decoded(uri.path());
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = own_route(path);
    if path == "*" && request.method() == Method::OPTIONS {
        // Go answers it before anything else looks at it.
        return answer::empty(StatusCode::OK);
    }
    let loopback = client.local.shared.listen.ip().is_loopback();
    if loopback && !cors::host_is_local(host, &client.local.shared.host_name, &config.allowed_hosts) {
        client.local.refused_host(host);
        return answer::empty(StatusCode::FORBIDDEN);
    }
    let verdict = cors::judge(request.headers(), &config.origins);
    if verdict == cors::Verdict::Refused {
        client.local.refused_origin();
        return answer::empty(StatusCode::FORBIDDEN);
    }
    if request.method() == Method::OPTIONS {
        return options(&verdict, path, loopback && cors::host_is_local_name(host));
    }
    if !own && (client.reserved || client.local.shared.phase() >= Phase::Draining) {
        return busy(client, path);
    }
    let handler = routes::route(request.method(), path);
    let keyless = matches!(handler, Handler::Root) || matches!(handler, Handler::Admin(route) if route.is_keyless());
    let key = match auth::check(&config.router_keys, request.headers(), request.uri().query()) {
        Access::Granted(key) => key,
        _ if keyless => KeyId::NONE,
        refused => return refuse_key(client, handler, path, refused),
    };
    let mut response = dispatch(client, request, key).await;
    cors::label(&verdict, response.headers_mut());
    response
}

/// Routes of our own, which are served while everything else is refused.
fn own_route(path: &str) -> bool {
    path.starts_with("/herdgate/") || path == "/health" || path == "/metrics"
}

/// What hyper lets pass and Go does not.
fn malformed(request: &Request<Incoming>) -> Option<Response<OutBody>> {
    let headers = request.headers();
    let hosts = headers.get_all(HOST).iter().count();
    let bad = |text: &'static str| {
        let mut response = answer::whole(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", text);
        answer::close(&mut response);
        Some(response)
    };
    if request.version() == Version::HTTP_11 && hosts == 0 && request.uri().authority().is_none() {
        return bad("400 Bad Request: missing required Host header");
    }
    if hosts > 1 {
        return bad("400 Bad Request: too many Host headers");
    }
    let expects = headers.get(EXPECT);
    if expects.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        let mut response = answer::empty(StatusCode::EXPECTATION_FAILED);
        answer::close(&mut response);
        return Some(response);
    }
    None
}

fn options(verdict: &cors::Verdict, path: &str, local_name: bool) -> Response<OutBody> {
    let allow = routes::allowed(path);
    let set_allow = |response: &mut Response<OutBody>| {
        if let Some(allow) = allow {
            response.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(allow));
        }
    };
    let cors::Verdict::Allowed { allow_origin, vary } = verdict else {
        let mut response = match allow {
            None => answer::not_found(),
            Some(_) if local_name => answer::empty(StatusCode::NO_CONTENT),
            Some(allow) => answer::method_not_allowed(allow),
        };
        set_allow(&mut response);
        return response;
    };
    let mut response = answer::empty(StatusCode::NO_CONTENT);
    set_allow(&mut response);
    let headers = response.headers_mut();
    headers.insert("access-control-allow-headers", HeaderValue::from_static(cors::ALLOW_HEADERS));
    headers.insert("access-control-allow-methods", HeaderValue::from_static("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"));
    headers.insert("access-control-allow-origin", allow_origin.clone());
    headers.insert("access-control-max-age", HeaderValue::from_static("43200"));
    if *vary {
        for value in ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"] {
            headers.append("vary", HeaderValue::from_static(value));
        }
    }
    response
}

/// The process is draining, or the last places are kept for our own routes.
fn busy(client: &Client, path: &str) -> Response<OutBody> {
    let draining = client.local.shared.phase() >= Phase::Draining;
    client.local.reject(if draining { Rejection::Draining } else { Rejection::NoNode });
    let text = if draining { "the gate is shutting down" } else { "the gate has no free connection" };
    let body = crate::dialect::error(family_of(path), 503, text);
    let mut response = answer::error(StatusCode::SERVICE_UNAVAILABLE, body, Some(5));
    answer::close(&mut response);
    response
}

/// 401 for a missing key, 403 for a wrong one: in the ancestor's form on its monitoring routes, else in the dialect.
fn refuse_key(client: &Client, handler: Handler<'_>, path: &str, access: Access) -> Response<OutBody> {
    let (status, text) = match access {
        Access::Missing => (StatusCode::UNAUTHORIZED, "Missing NOMYO Router API key"),
        _ => (StatusCode::FORBIDDEN, "Invalid NOMYO Router API key"),
    };
    if matches!(handler, Handler::Proxy(_)) {
        client.local.reject(Rejection::Forbidden);
    }
    if matches!(handler, Handler::Admin(route) if route.is_ancestors()) {
        return answer::whole(status, "application/json", format!("{{\"detail\":\"{text}\"}}"));
    }
    let text = if access == Access::Missing { "missing router key" } else { "invalid router key" };
    answer::family_error(family_of(path), status, text)
}

async fn dispatch(client: &Rc<Client>, request: Request<Incoming>, key: KeyId) -> Response<OutBody> {
    let head = request.method() == Method::HEAD;
    // Shares hyper's bytes: no copy.
    let uri = request.uri().clone();
    let path = &*routes::decoded(uri.path());
    let handler = routes::route(request.method(), path);
    let response = match handler {
        Handler::Proxy(route) => return crate::proxy::handle(client, route, request, key).await,
        Handler::Identity => return crate::proxy::identity(client, request, key).await,
        Handler::AnyNode => return crate::proxy::any_node(client, request, key).await,
        Handler::Admin(route) => monitor::answer(client, route, request, key).await,
        Handler::Administration => administration::answer(client, request, key).await,
        Handler::NotFound => answer::not_found(),
        Handler::MethodNotAllowed(allow) => answer::method_not_allowed(allow),
        Handler::Redirect => {
            let (status, clean) = routes::redirect(request.method(), path);
            answer::redirect(request.method(), status, &clean, request.uri().query())
        }
        handler => listing::answer(client, handler),
    };
    if head { without_body(response) } else { response }
}

/// A HEAD: the headers of the GET, its length only where Go would know it (bodies up to 2 KiB), no body.
fn without_body(mut response: Response<OutBody>) -> Response<OutBody> {
    const GO_BUFFERS: usize = 2048;
    let length = match response.body() {
        OutBody::Whole(Some(bytes)) => Some(bytes.len()).filter(|length| *length <= GO_BUFFERS),
        OutBody::Whole(None) => Some(0),
        _ => None,
    };
    if let Some(length) = length {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.body_mut() = OutBody::empty();
    response
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
        assert_eq!(caught(panics).await, None::<()>);
        assert_eq!(cell.view().in_flight, 0);
        assert_eq!(caught(async { 7 }).await, Some(7));
    }
}
