//! Origin and Host, checked as Ollama checks them before any route.
//!
//! Source: contract of the wire, "CORS, host check" (Ollama v0.33, gin-contrib/cors v1.7.2). Pure.

use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, VARY};
use http::{HeaderMap, HeaderValue};

/// Origins that Ollama allows unasked; `*` stands for any run of characters.
const DEFAULT_ORIGINS: [&str; 17] = [
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
    "http://localhost",
    "https://localhost",
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1",
    "https://127.0.0.1",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "http://0.0.0.0",
    "https://0.0.0.0",
    "http://0.0.0.0:*",
    "https://0.0.0.0:*",
];

/// Value of `Access-Control-Allow-Headers` on a preflight. Source: recorded from Ollama v0.33.
pub const ALLOW_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,\
X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,\
X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
X-Stainless-Runtime-Version,X-Stainless-Timeout";

/// What the `Origin` header means for a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// None, or our own: no CORS headers.
    SameOrigin,
    /// Allowed: these headers go on the answer.
    Allowed {
        /// The origin echoed, or `*`.
        allow_origin: HeaderValue,
        /// Not with `*`.
        vary: bool,
    },
    /// 403 with an empty body.
    Refused,
}

/// Judges the `Origin` of a request; `extra` is the configuration's `origins`.
#[must_use]
pub fn judge(origin: Option<&[u8]>, host: &str, extra: &[String]) -> Verdict {
    let Some(origin) = origin.filter(|origin| !origin.is_empty()) else { return Verdict::SameOrigin };
    let Some(text) = std::str::from_utf8(origin).ok().filter(|text| text.is_ascii()) else { return Verdict::Refused };
    let own = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if own == Some(host) {
        return Verdict::SameOrigin;
    }
    if extra.iter().any(|pattern| pattern == "*") {
        return Verdict::Allowed { allow_origin: HeaderValue::from_static("*"), vary: false };
    }
    let allowed = DEFAULT_ORIGINS.iter().copied().chain(extra.iter().map(String::as_str));
    if allowed.into_iter().any(|pattern| matches(pattern, text)) {
        match HeaderValue::from_bytes(origin) {
            Ok(allow_origin) => Verdict::Allowed { allow_origin, vary: true },
            Err(_) => Verdict::Refused,
        }
    } else {
        Verdict::Refused
    }
}

/// Puts the headers of an allowed origin on an answer.
pub fn label(verdict: &Verdict, headers: &mut HeaderMap) {
    if let Verdict::Allowed { allow_origin, vary } = verdict {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allow_origin.clone());
        if *vary {
            headers.insert(VARY, HeaderValue::from_static("Origin"));
        }
    }
}

/// One `*` matches any run of characters, the empty one included.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end),
    }
}

/// Whether a loopback listener accepts this `Host`: a local address or name, or one of `allowed_hosts`.
#[must_use]
pub fn host_is_local(host: &str, own_name: &str, allowed_hosts: &[String]) -> bool {
    let name = without_port(host);
    if name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.eq_ignore_ascii_case(own_name) {
        return true;
    }
    if let Ok(address) = name.parse::<std::net::IpAddr>() {
        return is_local_address(address);
    }
    let lower = name.to_ascii_lowercase();
    [".localhost", ".local", ".internal"].iter().any(|suffix| lower.ends_with(suffix))
        || allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
}

/// Whether `Host` is a local *name*: such an OPTIONS without Origin is a 204 on a loopback listener.
#[must_use]
pub fn host_is_local_name(host: &str) -> bool {
    let lower = without_port(host).to_ascii_lowercase();
    lower == "localhost" || [".localhost", ".local", ".internal"].iter().any(|suffix| lower.ends_with(suffix))
}

fn is_local_address(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_unspecified(),
        std::net::IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || (v6.segments()[0] & 0xfe00) == 0xfc00,
    }
}

/// A `Host` value without its port and brackets.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(origin: &str, host: &str, extra: &[&str]) -> Verdict {
        let extra: Vec<String> = extra.iter().map(|text| (*text).to_owned()).collect();
        judge(Some(origin.as_bytes()), host, &extra)
    }

    #[test]
    fn origins_as_ollama_judges_them() {
        assert_eq!(judge(None, "x", &[]), Verdict::SameOrigin);
        assert_eq!(ask("http://10.0.0.1:12434", "10.0.0.1:12434", &[]), Verdict::SameOrigin);
        assert!(matches!(ask("http://localhost:3000", "x", &[]), Verdict::Allowed { vary: true, .. }));
        assert!(matches!(ask("app://obsidian.md", "x", &[]), Verdict::Allowed { .. }));
        assert_eq!(ask("http://evil.example", "x", &[]), Verdict::Refused);
        assert!(matches!(ask("http://a.b.example", "x", &["http://*.example"]), Verdict::Allowed { .. }));
        assert!(matches!(ask("http://evil.example", "x", &["*"]), Verdict::Allowed { vary: false, .. }));
    }

    #[test]
    fn hosts_as_ollama_judges_them() {
        for host in ["localhost:12434", "127.0.0.1", "[::1]:80", "192.168.1.4:1", "box.local", "me:1", "a.internal"] {
            assert!(host_is_local(host, "me", &[]), "{host}");
        }
        for host in ["evil.example", "8.8.8.8", "local", "x.internal.example"] {
            assert!(!host_is_local(host, "me", &[]), "{host}");
        }
        assert!(host_is_local("gate.example:12434", "me", &["gate.example".to_owned()]));
    }
}
