//! Which handler a method and path mean, and what CORS and the host check say first.
//!
//! Called by `serve.rs` for every request to an Ollama node. Pure; order and answers are those of gin and Go's mux.

use std::net::IpAddr;

use super::http::{Head, Reply};
use super::job::Dialect;
use super::spec::NodeSpec;

/// A handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Do {
    Root,
    Version,
    Status,
    Tags,
    Ps,
    Show,
    V1Models,
    V1Model,
    Infer(Dialect),
    Pull,
    Push,
    Create,
    Copy,
    Delete,
    BlobHead,
    BlobPost,
    Me,
    Signout,
    Web(&'static str),
    Recommendations,
}

type Methods = &'static [(&'static str, Do)];

const ROUTES: &[(&str, Methods)] = &[
    ("/", &[("HEAD", Do::Root), ("GET", Do::Root)]),
    ("/api/version", &[("HEAD", Do::Version), ("GET", Do::Version)]),
    ("/api/status", &[("GET", Do::Status)]),
    ("/api/tags", &[("HEAD", Do::Tags), ("GET", Do::Tags)]),
    ("/api/ps", &[("GET", Do::Ps)]),
    ("/api/show", &[("POST", Do::Show)]),
    ("/api/generate", &[("POST", Do::Infer(Dialect::Generate))]),
    ("/api/chat", &[("POST", Do::Infer(Dialect::Chat))]),
    ("/api/embed", &[("POST", Do::Infer(Dialect::Embed))]),
    ("/api/embeddings", &[("POST", Do::Infer(Dialect::Embeddings))]),
    ("/v1/chat/completions", &[("POST", Do::Infer(Dialect::V1Chat))]),
    ("/v1/completions", &[("POST", Do::Infer(Dialect::V1Completions))]),
    ("/v1/embeddings", &[("POST", Do::Infer(Dialect::V1Embeddings))]),
    ("/v1/responses", &[("POST", Do::Infer(Dialect::Responses))]),
    ("/v1/messages", &[("POST", Do::Infer(Dialect::Messages))]),
    ("/v1/audio/transcriptions", &[("POST", Do::Infer(Dialect::Audio))]),
    ("/v1/models", &[("GET", Do::V1Models)]),
    ("/v1/models/:model", &[("GET", Do::V1Model)]),
    ("/api/pull", &[("POST", Do::Pull)]),
    ("/api/push", &[("POST", Do::Push)]),
    ("/api/create", &[("POST", Do::Create)]),
    ("/api/copy", &[("POST", Do::Copy)]),
    ("/api/delete", &[("DELETE", Do::Delete)]),
    ("/api/blobs/:digest", &[("HEAD", Do::BlobHead), ("POST", Do::BlobPost)]),
    ("/api/me", &[("POST", Do::Me)]),
    ("/api/signout", &[("POST", Do::Signout)]),
    ("/api/user/keys/:encodedKey", &[("DELETE", Do::Signout)]),
    ("/api/experimental/web_search", &[("POST", Do::Web("web search"))]),
    ("/api/experimental/web_fetch", &[("POST", Do::Web("web fetch"))]),
    ("/api/experimental/model-recommendations", &[("GET", Do::Recommendations)]),
];

fn lookup(path: &str) -> Option<(&'static str, Methods)> {
    let matches = |pattern: &str| match pattern.split_once(':') {
        None => pattern == path,
        Some((fixed, _)) => path.strip_prefix(fixed).is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
    };
    ROUTES.iter().find(|(pattern, _)| matches(pattern)).copied()
}

/// What happens to a request.
pub(super) enum Way {
    /// A handler, its route, and the path's variable part.
    To(Do, &'static str, String),
    /// An answer without a handler.
    Reply(Reply),
}

/// A redirect as Go writes it.
fn redirect(head: &Head, status: u16, location: String) -> Reply {
    match head.method.as_str() {
        "GET" => {}
        // The type alone: a handler that writes nothing leaves a HEAD without any framing.
        "HEAD" => {
            let mut reply = Reply::new(status, "text/html; charset=utf-8", "").with("Location", location);
            reply.bare = true;
            return reply;
        }
        _ => return Reply::empty(status).with("Location", location),
    }
    let words = if status == 301 { "Moved Permanently" } else { "Temporary Redirect" };
    let body = format!("<a href=\"{}\">{words}</a>.\n\n", location.replace('&', "&amp;"));
    Reply::new(status, "text/html; charset=utf-8", body).with("Location", location)
}

/// Go's `path.Clean` for a path that starts with a slash, keeping one at the end.
fn clean(path: &str) -> String {
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
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

/// Finds the way of a request; CORS headers for its answer are added to `cors`.
pub(super) fn route(head: &Head, spec: &NodeSpec, cors: &mut Vec<(&'static str, String)>) -> Way {
    if head.target == "*" && head.method == "OPTIONS" {
        return Way::Reply(Reply::empty(200));
    }
    let (path, query) = head.path();
    let cleaned = clean(&path);
    if cleaned != path {
        return Way::Reply(redirect(head, 307, format!("{cleaned}{query}")));
    }
    let found = lookup(&path);
    if found.is_none()
        && let Some(other) = path.strip_suffix('/').filter(|p| lookup(p).is_some())
    {
        let status = if head.method == "GET" { 301 } else { 307 };
        return Way::Reply(redirect(head, status, format!("{other}{query}")));
    }
    let allow = found.map(|(_, methods)| methods.iter().map(|(m, _)| *m).collect::<Vec<_>>().join(", "));
    if let Some(reply) = cross_origin(head, &spec.origins, allow.as_deref(), cors) {
        return Way::Reply(reply);
    }
    let host = head.header("host").unwrap_or("");
    match host_is_allowed(host) {
        _ if !spec.listen.ip().is_loopback() => {}
        Allowed::No => return Way::Reply(Reply::empty(403)),
        Allowed::Name if head.method == "OPTIONS" && found.is_some() => {
            return Way::Reply(Reply::empty(204).with("Allow", allow.unwrap_or_default()));
        }
        _ => {}
    }
    let Some((pattern, methods)) = found else {
        return Way::Reply(Reply::new(404, "text/plain", "404 page not found"));
    };
    match methods.iter().find(|(method, _)| *method == head.method) {
        Some((_, handler)) => {
            let fixed = pattern.split(':').next().unwrap_or("").len();
            Way::To(*handler, pattern, path.get(fixed..).unwrap_or("").to_owned())
        }
        None => {
            Way::Reply(Reply::new(405, "text/plain", "405 method not allowed").with("Allow", allow.unwrap_or_default()))
        }
    }
}

const ALLOWED_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,\
X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,\
X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
X-Stainless-Runtime-Version,X-Stainless-Timeout";

/// The CORS middleware: an answer of its own, or headers for the handler's.
fn cross_origin(
    head: &Head,
    origins: &[String],
    allow: Option<&str>,
    cors: &mut Vec<(&'static str, String)>,
) -> Option<Reply> {
    let origin = head.header("origin").filter(|origin| !origin.is_empty())?;
    let host = head.header("host").unwrap_or("");
    if origin == format!("http://{host}") || origin == format!("https://{host}") {
        return None;
    }
    let star = origins.iter().any(|o| o == "*");
    if !star && !origin_is_allowed(origin, origins) {
        return Some(Reply::empty(403));
    }
    let shown = if star { "*" } else { origin };
    cors.push(("Access-Control-Allow-Origin", shown.to_owned()));
    if head.method != "OPTIONS" {
        if !star {
            cors.push(("Vary", "Origin".to_owned()));
        }
        return None;
    }
    let mut reply = Reply::empty(204)
        .with("Access-Control-Allow-Headers", ALLOWED_HEADERS)
        .with("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS")
        .with("Access-Control-Max-Age", "43200");
    if let Some(allow) = allow {
        reply = reply.with("Allow", allow);
    }
    if !star {
        for name in ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"] {
            reply = reply.with("Vary", name);
        }
    }
    Some(reply)
}

fn origin_is_allowed(origin: &str, origins: &[String]) -> bool {
    let Some((scheme, rest)) = origin.split_once("://") else { return false };
    let local = ["localhost", "127.0.0.1", "0.0.0.0"]
        .iter()
        .any(|name| rest.strip_prefix(name).is_some_and(|port| port.is_empty() || port.starts_with(':')));
    let built_in = match scheme {
        "http" | "https" => local,
        "app" | "file" | "tauri" | "vscode-webview" | "vscode-file" => true,
        _ => false,
    };
    built_in
        || origins.iter().any(|pattern| match pattern.split_once('*') {
            Some((before, after)) => {
                origin.len() >= before.len() + after.len() && origin.starts_with(before) && origin.ends_with(after)
            }
            None => pattern == origin,
        })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Allowed {
    No,
    Address,
    Name,
}

/// The host check of a server that is bound to a loopback address.
fn host_is_allowed(host: &str) -> Allowed {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        let private = match ip {
            IpAddr::V4(v4) => v4.is_private(),
            IpAddr::V6(v6) => (v6.segments()[0] & 0xfe00) == 0xfc00,
        };
        return if ip.is_loopback() || ip.is_unspecified() || private { Allowed::Address } else { Allowed::No };
    }
    let lower = name.to_ascii_lowercase();
    if lower.is_empty() {
        return Allowed::Address;
    }
    let local = lower == "localhost" || [".localhost", ".local", ".internal"].iter().any(|end| lower.ends_with(end));
    if local { Allowed::Name } else { Allowed::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_paths_as_go_does() {
        assert_eq!(clean("//api/tags"), "/api/tags");
        assert_eq!(clean("/api/./tags/"), "/api/tags/");
        assert_eq!(clean("/"), "/");
    }

    #[test]
    fn checks_hosts() {
        for host in ["127.0.0.1:11434", "localhost", "x.internal:80", "10.1.2.3", "[::1]:11434", ""] {
            assert!(host_is_allowed(host) != Allowed::No, "{host}");
        }
        assert!(host_is_allowed("ollama.example.com") == Allowed::No);
        assert!(host_is_allowed("8.8.8.8") == Allowed::No);
    }

    #[test]
    fn checks_origins() {
        assert!(origin_is_allowed("http://localhost:3000", &[]));
        assert!(!origin_is_allowed("http://localhost.evil.example", &[]));
        assert!(origin_is_allowed("https://a.example.com", &["https://*.example.com".to_owned()]));
    }
}
