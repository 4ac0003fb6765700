//! What comes before any route, in Ollama's order: framing, Host, Origin; then ours: phase, key. Listings and refusals
//! are answered here at once; what has to wait is admitted as [`Work`].
//!
//! Called by both fronts with a head each has parsed in its own way. Must never wait, nor read a body.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::dialect::{Family, Route};
use crate::front::auth::{self, Access};
use crate::front::routes::{self, AdminRoute, Handler};
use crate::front::{cors, family_of, finish, listing};
use crate::http1::Lines;
use crate::ids::KeyId;
use crate::proxy::answer::{self, OutBody};
use crate::proxy::asked::{self, Inbound};
use crate::proxy::headers::{self, Known};
use crate::proxy::local::Client;
use crate::proxy::text::Text;
use crate::shared::Phase;
use crate::usage::Rejection;

/// A request's head, from either front.
pub(super) struct Asking<'r> {
    pub(super) method: Method,
    /// Path and query as sent.
    pub(super) target: &'r str,
    pub(super) path: &'r str,
    pub(super) query: Option<&'r str>,
    /// The request cannot do without a `Host`.
    pub(super) needs_host: bool,
    pub(super) known: Known<'r>,
    pub(super) lines: HeadLines<'r>,
}

/// All lines of the head.
pub(super) enum HeadLines<'r> {
    /// hyper's.
    Map(&'r HeaderMap),
    /// Our own: what may go to a node was picked while they were parsed; and the head's bytes.
    Own(Cell<Lines>, &'r Bytes),
}

impl<'r> Asking<'r> {
    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// The same as the proxy takes it. Its lines are handed out once.
    pub(super) fn inbound(&self, client: &Client) -> Inbound<'r> {
        let nothing = Bytes::new();
        let (lines, whole) = match &self.lines {
            HeadLines::Own(lines, head) => (lines.take(), *head),
            HeadLines::Map(map) => {
                let mut lines = Lines::in_buffer(client.local.upstreams.buffer());
                headers::to_node(&mut lines, || headers::of_map(map), self.known.names_headers);
                lines.push_parsed(headers::REQUEST_ID.as_bytes(), client.request_id.get().as_bytes());
                (lines, &nothing)
            }
        };
        let target = asked::without_key(self.path, self.query).unwrap_or_else(|| Text::part_of(whole, self.target));
        Inbound { method: self.method.clone(), target, lines, known: self.known }
    }
}

/// What a request that was let in asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// A POST that goes to one node.
    Proxy(Route),
    /// A request for the identity node.
    Identity,
    /// A GET that any healthy node can answer.
    AnyNode,
    /// A monitoring route.
    Admin(AdminRoute),
    /// What is loaded, a moment after that changed.
    Residency,
    /// Model administration.
    Administration,
    /// An operator's order.
    Operator,
}

/// A request that was let in.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) work: Work,
    pub(super) key: KeyId,
    /// What its `Origin` means for the answer.
    pub(super) verdict: cors::Verdict,
}

/// Lets in, or ends with an answer.
pub(super) type Door = ControlFlow<Response<OutBody>, Admitted>;

/// Lets a request in, or answers it.
pub(super) fn admit(client: &Client, asking: &Asking<'_>) -> Door {
    let mut door = judge(client, asking);
    if let Door::Break(response) = &mut door {
        finish(client, response);
    }
    door
}

fn judge(client: &Client, asking: &Asking<'_>) -> Door {
    if let Some(refusal) = malformed(asking) {
        return Door::Break(refusal);
    }
    let rules = client.local.rules();
    let config = &rules.config;
    let path = &*routes::decoded(asking.path);
    let host = asking.known.host.and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default();
    if path == "*" && asking.method == Method::OPTIONS {
        // Go answers it before anything else looks at it.
        return Door::Break(answer::empty(StatusCode::OK));
    }
    let loopback = client.local.shared.listen.ip().is_loopback();
    if loopback && !cors::host_is_local(host, &client.local.shared.host_name, &config.allowed_hosts) {
        client.local.refused_host(host);
        return Door::Break(answer::empty(StatusCode::FORBIDDEN));
    }
    let verdict = cors::judge(asking.known.origin, host, &config.origins);
    if verdict == cors::Verdict::Refused {
        client.local.refused_origin();
        return Door::Break(answer::empty(StatusCode::FORBIDDEN));
    }
    if asking.method == Method::OPTIONS {
        return Door::Break(options(&verdict, path, loopback && cors::host_is_local_name(host)));
    }
    let labelled = |mut response: Response<OutBody>| {
        cors::label(&verdict, response.headers_mut());
        response
    };
    if !own_route(path) && (client.reserved || client.local.shared.phase() >= Phase::Draining) {
        return Door::Break(labelled(busy(client, path)));
    }
    let handler = routes::route(&asking.method, path);
    let keyless = matches!(handler, Handler::Root) || matches!(handler, Handler::Admin(route) if route.is_keyless());
    let key = match auth::check(&rules.keys, &asking.known, asking.query) {
        Access::Granted(key) => key,
        _ if keyless => KeyId::NONE,
        refused => return Door::Break(labelled(refuse_key(client, handler, path, refused))),
    };
    let manages = match handler {
        Handler::Proxy(Route::OtherApi | Route::OtherV1) => routes::manages_node(path),
        Handler::Identity => routes::signs_out(path),
        _ => false,
    };
    if manages && !config.administration.admits(loopback, key) {
        client.reject(Rejection::Forbidden);
        return Door::Break(labelled(administration_closed()));
    }
    let work = match handler {
        Handler::Proxy(route) => Work::Proxy(route),
        Handler::Identity => Work::Identity,
        Handler::AnyNode => Work::AnyNode,
        Handler::Admin(route) => Work::Admin(route),
        Handler::Administration => Work::Administration,
        Handler::Operator => Work::Operator,
        Handler::Ps if client.local.reports.are_ahead_of(client.local.with_snapshot(|now| now.shown)) => {
            Work::Residency
        }
        handler => {
            let response = at_once(client, asking, handler, path);
            let bare = if asking.is_head() { answer::without_body(response) } else { response };
            return Door::Break(labelled(bare));
        }
    };
    Door::Continue(Admitted { work, key, verdict })
}

/// What needs no node and no waiting.
fn at_once(client: &Client, asking: &Asking<'_>, handler: Handler<'_>, path: &str) -> Response<OutBody> {
    match handler {
        Handler::NotFound => answer::not_found(),
        Handler::MethodNotAllowed(allow) => answer::method_not_allowed(allow),
        Handler::Redirect => {
            let (status, clean) = routes::redirect(&asking.method, path);
            answer::redirect(&asking.method, status, &clean, asking.query)
        }
        handler => listing::answer(client, handler),
    }
}

/// Routes of our own, which are served while everything else is refused.
fn own_route(path: &str) -> bool {
    path.starts_with("/herdgate/") || path == "/health" || path == "/metrics"
}

/// What a parser lets pass and Go does not.
fn malformed(asking: &Asking<'_>) -> Option<Response<OutBody>> {
    let bad = |text: &'static str| {
        let mut response = answer::whole(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", text);
        answer::close(&mut response);
        response.extensions_mut().insert(answer::Undated);
        Some(response)
    };
    if asking.needs_host && asking.known.hosts == 0 {
        return bad("400 Bad Request: missing required Host header");
    }
    if asking.known.hosts > 1 {
        return bad("400 Bad Request: too many Host headers");
    }
    if asking.known.host.is_some_and(|host| !host.iter().all(|&byte| is_of_host(byte))) {
        return bad("400 Bad Request: malformed Host header");
    }
    if asking.known.expect.is_some_and(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
        let mut response = answer::empty(StatusCode::EXPECTATION_FAILED);
        answer::close(&mut response);
        return Some(response);
    }
    None
}

/// What a `Host` may hold. Source: Go, net/http; RFC 3986 §3.2.2.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'$' | b'%' | b'&' | b'\'' | b'('..=b'.' | b':' | b';' | b'=' | b'[' | b']' | b'_' | b'~'
        )
}

fn options(verdict: &cors::Verdict, path: &str, local_name: bool) -> Response<OutBody> {
    let allow = routes::allowed(path);
    let set_allow = |response: &mut Response<OutBody>| {
        if let Some(allow) = allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
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

/// Who asks may not administer.
pub(super) fn administration_closed() -> Response<OutBody> {
    let text = "model administration needs a router key here (administration)";
    answer::family_error(Family::Ollama, StatusCode::FORBIDDEN, text)
}

/// The process is draining, or the last places are kept for our own routes.
fn busy(client: &Client, path: &str) -> Response<OutBody> {
    let draining = client.local.shared.phase() >= Phase::Draining;
    client.reject(if draining { Rejection::Draining } else { Rejection::NoNode });
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
        client.reject(Rejection::Forbidden);
    }
    if matches!(handler, Handler::Admin(route) if route.is_ancestors()) {
        return answer::whole(status, "application/json", format!("{{\"detail\":\"{text}\"}}"));
    }
    let text = if access == Access::Missing { "missing router key" } else { "invalid router key" };
    answer::family_error(family_of(path), status, text)
}
