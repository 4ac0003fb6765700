//! Which headers go to the node, and which come back. Pure.
//!
//! Source: contract of the wire, "CORS, host check, auth, headers": hop-by-hop and credentials never pass, `Origin`
//! would be refused by a node that does not know it, `Accept-Encoding` would make a cloud answer unreadable.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, ORIGIN, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

/// Headers about one hop only. `Connection` may name more of them.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-authenticate" | "proxy-authorization" | "proxy-connection")
}

/// Headers of a request that stay here.
fn stays_here(name: &HeaderName) -> bool {
    [HOST, CONTENT_LENGTH, ORIGIN, AUTHORIZATION, COOKIE, EXPECT, ACCEPT_ENCODING].contains(name)
        || name.as_str() == "x-api-key"
        || name.as_str().starts_with("x-herdgate-")
        || name.as_str().starts_with("access-control-request-")
}

/// The request's headers as a node may see them.
#[must_use]
pub fn to_node(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !is_hop_by_hop(name) && !stays_here(name) && !is_among(&named, name) {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

/// The node's headers as the client may see them; framing and CORS are ours to set.
pub fn to_client(headers: &mut HeaderMap) {
    let named = named_by_connection(headers);
    let drop: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name) || name.as_str().starts_with("access-control-") || is_among(&named, name))
        .cloned()
        .collect();
    for name in drop {
        headers.remove(name);
    }
}

/// Header names that `Connection` lists, lower-cased; usually none.
fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| {
            !name.is_empty() && !name.eq_ignore_ascii_case("close") && !name.eq_ignore_ascii_case("keep-alive")
        })
        .map(str::to_ascii_lowercase)
        .collect()
}

fn is_among(named: &[String], name: &HeaderName) -> bool {
    named.iter().any(|named| named == name.as_str())
}

/// The value of `x-herdgate-max-wait`, in milliseconds.
#[must_use]
pub fn max_wait_ms(headers: &HeaderMap) -> Option<u64> {
    let value: &HeaderValue = headers.get("x-herdgate-max-wait")?;
    let seconds: f64 = value.to_str().ok()?.trim().parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then(|| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "finite, not negative, clamped")]
        let ms = (seconds.min(86_400.0) * 1000.0) as u64;
        ms
    })
}

/// The query without `api_key`; `None` if nothing is left.
#[must_use]
pub fn without_key(query: &str) -> Option<String> {
    let kept: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("api_key=") && *pair != "api_key").collect();
    let joined = kept.join("&");
    (!joined.is_empty()).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn credentials_and_hop_by_hop_never_reach_a_node() {
        let sent = to_node(&map(&[
            ("host", "gate"),
            ("authorization", "Bearer k"),
            ("x-api-key", "k"),
            ("cookie", "c"),
            ("origin", "http://localhost"),
            ("accept-encoding", "gzip"),
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("x-herdgate-max-wait", "3"),
            ("content-type", "application/json"),
            ("user-agent", "GitHubCopilotChat/1"),
            ("x-openwebui-chat-id", "7"),
        ]));
        let names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "user-agent", "x-openwebui-chat-id"]);
    }

    #[test]
    fn framing_and_cors_of_a_node_stay_behind() {
        let mut got = map(&[
            ("content-type", "text/event-stream"),
            ("connection", "keep-alive"),
            ("keep-alive", "timeout=5, max=100"),
            ("access-control-allow-origin", ""),
            ("cache-control", "no-cache"),
            ("transfer-encoding", "chunked"),
        ]);
        to_client(&mut got);
        let names: Vec<&str> = got.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn max_wait_is_read_in_seconds() {
        assert_eq!(max_wait_ms(&map(&[("x-herdgate-max-wait", "1.5")])), Some(1500));
        assert_eq!(max_wait_ms(&map(&[("x-herdgate-max-wait", "soon")])), None);
        assert_eq!(max_wait_ms(&map(&[("x-herdgate-max-wait", "-1")])), None);
    }

    #[test]
    fn the_key_is_cut_from_the_query() {
        assert_eq!(without_key("api_key=x"), None);
        assert_eq!(without_key("a=1&api_key=x&b=2").as_deref(), Some("a=1&b=2"));
        assert_eq!(without_key("a=1").as_deref(), Some("a=1"));
    }
}
