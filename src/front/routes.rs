//! (method, path) -> handler, by the rules of Ollama's own router; nothing else.
//!
//! Source: contract of the wire, "Method and path handling" and the route table (Ollama v0.33, gin).

use std::borrow::Cow;

use http::Method;

use crate::dialect::Route;
use crate::front::auth::percent_decode;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handler<'p> {
    /// `/`: `Ollama is running`.
    Root,
    /// `/api/version`
    Version,
    /// `/api/tags`
    Tags,
    /// `/api/ps`
    Ps,
    /// `/api/status`
    Status,
    /// `/v1/models`
    V1Models,
    /// `/v1/models/:model`
    V1Model(&'p str),
    /// A POST that goes to one node.
    Proxy(Route),
    /// A request for the identity node (account, web search).
    Identity,
    /// A GET that any healthy node can answer.
    AnyNode,
    /// Model administration over the fleet, and what is pending of it.
    Administration,
    /// An operator's order: a reload, a node taken out or in.
    Operator,
    /// A monitoring route of the ancestor, or one of our own.
    Admin(AdminRoute),
    /// 404 in plain text.
    NotFound,
    /// 405 in plain text, with the methods allowed.
    MethodNotAllowed(&'static str),
    /// Redirected to the path without what is superfluous.
    Redirect,
}

/// Monitoring routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminRoute {
    /// `/api/usage`
    Usage,
    /// `/api/usage-stream`
    UsageStream,
    /// `/api/token_counts`
    TokenCounts,
    /// `/api/stats`
    Stats,
    /// `/api/aggregate_time_series_days`
    Aggregate,
    /// `/api/config`
    Config,
    /// `/api/ps_details`
    PsDetails,
    /// `/api/cache/stats`: there is no cache of answers
    CacheStats,
    /// `/api/cache/invalidate`
    CacheInvalidate,
    /// `/health`
    Health,
    /// `/metrics`
    Metrics,
    /// `/herdgate/live`
    Live,
    /// `/herdgate/ready`
    Ready,
    /// `/herdgate/debug/flamegraph`
    Flamegraph,
    /// `/herdgate/status`
    Status,
    /// `/herdgate/import`
    Import,
    /// `/herdgate/decisions`
    Decisions,
    /// `/herdgate/explain`
    Explain,
    /// `GET /herdgate/log`
    Log,
    /// `POST /herdgate/log`
    SetLog,
    /// `/herdgate/usage`
    LedgerUsage,
}

impl AdminRoute {
    /// A route of the ancestor's: its errors take the ancestor's form.
    #[must_use]
    pub fn is_ancestors(self) -> bool {
        !matches!(
            self,
            Self::Metrics
                | Self::Live
                | Self::Ready
                | Self::Flamegraph
                | Self::Status
                | Self::Import
                | Self::Decisions
                | Self::Explain
                | Self::Log
                | Self::SetLog
                | Self::LedgerUsage
        )
    }

    /// Needs no router key.
    #[must_use]
    pub fn is_keyless(self) -> bool {
        matches!(self, Self::Live | Self::Ready)
    }
}

/// What a path serves: handlers by method, in the order of the `Allow` header (HEAD, GET, POST, DELETE).
struct Entry<'p> {
    head: Option<Handler<'p>>,
    get: Option<Handler<'p>>,
    post: Option<Handler<'p>>,
    delete: Option<Handler<'p>>,
}

const NOTHING: Entry<'static> = Entry { head: None, get: None, post: None, delete: None };

fn get(handler: Handler<'_>) -> Entry<'_> {
    Entry { get: Some(handler), ..NOTHING }
}

fn get_head(handler: Handler<'_>) -> Entry<'_> {
    Entry { get: Some(handler), head: Some(handler), ..NOTHING }
}

fn post(handler: Handler<'_>) -> Entry<'_> {
    Entry { post: Some(handler), ..NOTHING }
}

/// The path as Go's router matches it: escapes decoded once, so that no spelling of a path slips past its handler.
#[must_use]
pub fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    String::from_utf8_lossy(&percent_decode(path)).into_owned().into()
}

/// The handler of a request, by method and decoded path (no query).
#[must_use]
pub fn route<'p>(method: &Method, path: &'p str) -> Handler<'p> {
    // No entry holds what a redirect takes out.
    if let Some(entry) = entry(path) {
        return pick(&entry, method);
    }
    if path.contains("//") || path.contains("/./") || path.contains("/../") {
        return Handler::Redirect;
    }
    if let Some(shorter) = path.strip_suffix('/')
        && !shorter.is_empty()
        && entry(shorter).is_some()
    {
        return Handler::Redirect;
    }
    match *method {
        Method::POST if path.starts_with("/api/") => Handler::Proxy(Route::OtherApi),
        Method::POST if path.starts_with("/v1/") => Handler::Proxy(Route::OtherV1),
        _ => Handler::NotFound,
    }
}

fn pick<'p>(entry: &Entry<'p>, method: &Method) -> Handler<'p> {
    let found = match *method {
        Method::GET => entry.get,
        Method::HEAD => entry.head,
        Method::POST => entry.post,
        Method::DELETE => entry.delete,
        _ => None,
    };
    found.unwrap_or(Handler::MethodNotAllowed(allow(entry)))
}

fn allow(entry: &Entry<'_>) -> &'static str {
    match (entry.head.is_some(), entry.get.is_some(), entry.post.is_some(), entry.delete.is_some()) {
        (true, true, ..) => "HEAD, GET",
        (true, false, true, _) => "HEAD, POST",
        (false, true, true, _) => "GET, POST",
        (_, true, ..) => "GET",
        (_, _, true, _) => "POST",
        _ => "DELETE",
    }
}

/// Whether a path that goes through as it is manages the node and not the request: models and adapters in and out of
/// its memory, its slots, its sleep. What llama.cpp and vLLM have of that, by decoded path.
#[must_use]
pub fn manages_node(path: &str) -> bool {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty()).skip(1).peekable();
    while let Some(segment) = segments.next() {
        let manages = match segment {
            "models" => matches!(segments.peek(), Some(&("load" | "unload" | "download" | "delete"))),
            "slots" | "sleep" | "wake_up" | "lora-adapters" => true,
            segment => segment.ends_with("_lora_adapter") || segment.starts_with("reset_"),
        };
        if manages {
            return true;
        }
    }
    false
}

/// Whether a path takes the identity node's account away: all cloud models with it, until somebody signs in on that host.
#[must_use]
pub fn signs_out(path: &str) -> bool {
    path == "/api/signout" || path.starts_with("/api/user/keys/")
}

/// The methods a path answers to, for `Allow` on OPTIONS; `None` for an unknown path.
#[must_use]
pub fn allowed(path: &str) -> Option<&'static str> {
    entry(path).map(|entry| allow(&entry))
}

fn entry(path: &str) -> Option<Entry<'_>> {
    use Handler as H;
    Some(match path {
        "/" => get_head(H::Root),
        "/api/version" => get_head(H::Version),
        "/api/tags" => get_head(H::Tags),
        "/api/ps" => get(H::Ps),
        "/api/status" => get(H::Status),
        "/api/generate" => post(H::Proxy(Route::Generate)),
        "/api/chat" => post(H::Proxy(Route::Chat)),
        "/api/embed" => post(H::Proxy(Route::Embed)),
        "/api/embeddings" => post(H::Proxy(Route::Embeddings)),
        "/api/show" => post(H::Proxy(Route::Show)),
        "/api/pull" | "/api/push" | "/api/create" | "/api/copy" => post(H::Administration),
        "/api/delete" => Entry { delete: Some(H::Administration), ..NOTHING },
        "/api/me" | "/api/signout" | "/api/experimental/web_search" | "/api/experimental/web_fetch" => {
            post(H::Identity)
        }
        "/api/experimental/model-recommendations" => get(H::AnyNode),
        "/v1/models" => get(H::V1Models),
        "/v1/chat/completions" => post(H::Proxy(Route::V1Chat)),
        "/v1/completions" => post(H::Proxy(Route::V1Completions)),
        "/v1/embeddings" => post(H::Proxy(Route::V1Embeddings)),
        "/v1/responses" => post(H::Proxy(Route::V1Responses)),
        "/v1/messages" => post(H::Proxy(Route::V1Messages)),
        "/v1/audio/transcriptions" => post(H::Proxy(Route::V1Audio)),
        _ => return entry_with_parameter(path).or_else(|| admin_entry(path)),
    })
}

fn entry_with_parameter(path: &str) -> Option<Entry<'_>> {
    if let Some(model) = path.strip_prefix("/v1/models/") {
        // One segment: an encoded slash was decoded before matching, so it makes two (404).
        let one = !model.is_empty() && !model.contains('/');
        return one.then(|| get(Handler::V1Model(model)));
    }
    if let Some(digest) = path.strip_prefix("/api/blobs/") {
        let one = !digest.is_empty() && !digest.contains('/');
        return one.then_some(Entry {
            head: Some(Handler::Administration),
            post: Some(Handler::Administration),
            ..NOTHING
        });
    }
    let key = path.strip_prefix("/api/user/keys/")?;
    (!key.is_empty() && !key.contains('/')).then_some(Entry { delete: Some(Handler::Identity), ..NOTHING })
}

fn admin_entry(path: &str) -> Option<Entry<'_>> {
    use AdminRoute as A;
    let admin = |route| Some(Handler::Admin(route));
    Some(match path {
        "/api/usage" => Entry { get: admin(A::Usage), ..NOTHING },
        "/api/usage-stream" => Entry { get: admin(A::UsageStream), ..NOTHING },
        "/api/token_counts" => Entry { get: admin(A::TokenCounts), ..NOTHING },
        "/api/stats" => Entry { post: admin(A::Stats), ..NOTHING },
        "/api/aggregate_time_series_days" => Entry { post: admin(A::Aggregate), ..NOTHING },
        "/api/config" => Entry { get: admin(A::Config), ..NOTHING },
        "/api/ps_details" => Entry { get: admin(A::PsDetails), ..NOTHING },
        "/api/cache/stats" => Entry { get: admin(A::CacheStats), ..NOTHING },
        "/api/cache/invalidate" => Entry { post: admin(A::CacheInvalidate), ..NOTHING },
        "/herdgate/status" => Entry { get: admin(A::Status), ..NOTHING },
        _ if super::operator::command(path).is_some() => post(Handler::Operator),
        "/herdgate/pending" => get(Handler::Administration),
        _ if path.strip_prefix("/herdgate/pending/").is_some_and(|id| !id.is_empty() && !id.contains('/')) => {
            Entry { delete: Some(Handler::Administration), ..NOTHING }
        }
        "/health" => Entry { get: admin(A::Health), head: admin(A::Health), ..NOTHING },
        "/metrics" => Entry { get: admin(A::Metrics), ..NOTHING },
        "/herdgate/live" => Entry { get: admin(A::Live), head: admin(A::Live), ..NOTHING },
        "/herdgate/import" => post(Handler::Admin(A::Import)),
        "/herdgate/decisions" => Entry { get: admin(A::Decisions), ..NOTHING },
        "/herdgate/explain" => Entry { post: admin(A::Explain), ..NOTHING },
        "/herdgate/log" => Entry { get: admin(A::Log), post: admin(A::SetLog), ..NOTHING },
        "/herdgate/usage" => Entry { get: admin(A::LedgerUsage), ..NOTHING },
        "/herdgate/debug/flamegraph" => Entry { get: admin(A::Flamegraph), ..NOTHING },
        "/herdgate/ready" => Entry { get: admin(A::Ready), head: admin(A::Ready), ..NOTHING },
        _ => return None,
    })
}

/// Where a superfluous path is redirected to, as Go's mux (`//`, `/./`) and gin (trailing slash) do.
///
/// Returns status (301 for a GET's trailing slash, else 307) and the clean path.
#[must_use]
pub fn redirect(method: &Method, path: &str) -> (u16, String) {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    let by_mux = path.contains("//") || path.contains("/./") || path.contains("/../");
    if by_mux && path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    let status = if !by_mux && *method == Method::GET { 301 } else { 307 };
    (status, clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_paths_by_method() {
        assert_eq!(route(&Method::GET, "/"), Handler::Root);
        assert_eq!(route(&Method::HEAD, "/api/tags"), Handler::Tags);
        assert_eq!(route(&Method::POST, "/api/chat"), Handler::Proxy(Route::Chat));
        assert_eq!(route(&Method::GET, "/v1/models/m:1b"), Handler::V1Model("m:1b"));
        assert_eq!(route(&Method::POST, "/api/stats"), Handler::Admin(AdminRoute::Stats));
    }

    #[test]
    fn wrong_methods_name_the_right_ones() {
        assert_eq!(route(&Method::HEAD, "/api/ps"), Handler::MethodNotAllowed("GET"));
        assert_eq!(route(&Method::GET, "/api/generate"), Handler::MethodNotAllowed("POST"));
        assert_eq!(route(&Method::POST, "/api/tags"), Handler::MethodNotAllowed("HEAD, GET"));
        assert_eq!(route(&Method::GET, "/api/blobs/sha256:x"), Handler::MethodNotAllowed("HEAD, POST"));
        assert_eq!(route(&Method::POST, "/api/delete"), Handler::MethodNotAllowed("DELETE"));
    }

    #[test]
    fn paths_that_manage_a_node() {
        for path in
            ["/v1/load_lora_adapter", "/v1/unload_lora_adapter/", "/v1/models/unload", "/v1/slots/0", "/api/sleep"]
        {
            assert!(manages_node(path), "{path}");
        }
        for path in ["/v1/rerank", "/v1/models/m", "/api/chat", "/v1/messages/count_tokens", "/v1/", "/slots"] {
            assert!(!manages_node(path), "{path}");
        }
    }

    #[test]
    fn unknown_paths() {
        assert_eq!(route(&Method::GET, "/nope"), Handler::NotFound);
        assert_eq!(route(&Method::GET, &decoded("/v1/models/hf.co%2Fa%2Fb")), Handler::NotFound);
        assert_eq!(route(&Method::POST, "/v1/messages/count_tokens"), Handler::Proxy(Route::OtherV1));
        assert_eq!(route(&Method::POST, "/rerank"), Handler::NotFound);
        assert_eq!(route(&Method::GET, "/API/tags"), Handler::NotFound);
    }

    #[test]
    fn no_spelling_of_a_path_slips_past_its_handler() {
        assert_eq!(route(&Method::POST, &decoded("/api/%70ull")), Handler::Administration);
        assert_eq!(route(&Method::POST, &decoded("/v1/%2e%2e/api/pull")), Handler::Redirect);
        assert_eq!(route(&Method::POST, &decoded("%2Fapi/%2Fpull")), Handler::Redirect);
        assert_eq!(route(&Method::GET, &decoded("/v1/models/a%252Fb")), Handler::V1Model("a%2Fb"));
        assert_eq!(decoded("/a+b%2"), "/a+b%2");
    }

    #[test]
    fn superfluous_slashes_are_redirected() {
        assert_eq!(route(&Method::GET, "/api/tags/"), Handler::Redirect);
        assert_eq!(redirect(&Method::GET, "/api/tags/"), (301, "/api/tags".into()));
        assert_eq!(redirect(&Method::POST, "/api/chat/"), (307, "/api/chat".into()));
        assert_eq!(redirect(&Method::GET, "//api/tags"), (307, "/api/tags".into()));
        assert_eq!(redirect(&Method::POST, "/api/./chat"), (307, "/api/chat".into()));
        assert_eq!(redirect(&Method::GET, "/../api/tags"), (307, "/api/tags".into()));
    }
}
