//! What the header lines of a request say to us, which of them go to the node, and which of an answer's come back. Pure.
//!
//! Called by both fronts, which have the lines in forms of their own: here they are pairs of name and value.
//! Source: contract of the wire, "CORS, host check, auth, headers": hop-by-hop and credentials never pass, `Origin`
//! would be refused by a node that does not know it, `Accept-Encoding` would make a cloud answer unreadable.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http1::{Lines, decimal, is_name, name_begins, tokens};

/// The lines of a head that front and proxy ask for; of a repeated one the first.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "each is the header of the same name")]
pub struct Known<'h> {
    pub host: Option<&'h [u8]>,
    /// Lines named `Host`.
    pub hosts: usize,
    pub origin: Option<&'h [u8]>,
    pub expect: Option<&'h [u8]>,
    pub accept: Option<&'h [u8]>,
    pub authorization: Option<&'h [u8]>,
    pub api_key: Option<&'h [u8]>,
    pub content_type: Option<&'h [u8]>,
    pub content_encoding: Option<&'h [u8]>,
    pub content_length: Option<&'h [u8]>,
    pub transfer_encoding: Option<&'h [u8]>,
    /// `x-request-id`
    pub request_id: Option<&'h [u8]>,
    /// `x-herdgate-max-wait`
    pub max_wait: Option<&'h [u8]>,
    /// `x-herdgate-nodes`
    pub nodes: Option<&'h [u8]>,
    /// `Connection` names other headers, which are then about this hop only.
    pub names_headers: bool,
}

impl<'h> Known<'h> {
    /// Reads all lines once.
    #[must_use]
    pub fn read(lines: impl Iterator<Item = (&'h [u8], &'h [u8])>) -> Self {
        let mut known = Self::default();
        for (name, value) in lines {
            known.note(name, value);
        }
        known
    }

    fn note(&mut self, name: &[u8], value: &'h [u8]) {
        let is = |wanted| is_name(name, wanted);
        let place = match name.len() {
            4 if is("host") => {
                self.hosts += 1;
                &mut self.host
            }
            6 if is("origin") => &mut self.origin,
            6 if is("expect") => &mut self.expect,
            6 if is("accept") => &mut self.accept,
            9 if is("x-api-key") => &mut self.api_key,
            10 if is("connection") => {
                self.names_headers |= named(value).next().is_some();
                return;
            }
            12 if is("content-type") => &mut self.content_type,
            12 if is(REQUEST_ID) => &mut self.request_id,
            13 if is("authorization") => &mut self.authorization,
            14 if is("content-length") => &mut self.content_length,
            16 if is("content-encoding") => &mut self.content_encoding,
            16 if is("x-herdgate-nodes") => &mut self.nodes,
            17 if is("transfer-encoding") => &mut self.transfer_encoding,
            19 if is("x-herdgate-max-wait") => &mut self.max_wait,
            _ => return,
        };
        place.get_or_insert(value);
    }

    /// The length that the body was announced with.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        decimal(self.content_length?)
    }

    /// The value of `x-herdgate-max-wait` (seconds), in milliseconds.
    #[must_use]
    pub fn max_wait_ms(&self) -> Option<u64> {
        let seconds: f64 = std::str::from_utf8(self.max_wait?).ok()?.trim().parse().ok()?;
        (seconds.is_finite() && seconds >= 0.0).then(|| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "finite, not negative, clamped"
            )]
            let ms = (seconds.min(86_400.0) * 1000.0) as u64;
            ms
        })
    }
}

/// The lines of a map, as pairs.
pub fn of_map(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// Headers about one hop only. `Connection` may name more of them.
fn is_hop_by_hop(name: &[u8]) -> bool {
    let is = |wanted| is_name(name, wanted);
    match name.len() {
        2 => is("te"),
        7 => is("trailer") || is("upgrade"),
        10 => is("connection") || is("keep-alive"),
        16 => is("proxy-connection"),
        17 => is("transfer-encoding"),
        18 => is("proxy-authenticate"),
        19 => is("proxy-authorization"),
        _ => false,
    }
}

/// The header with a request's id, as nodes see it.
pub const REQUEST_ID: &str = "x-request-id";

/// Headers of a request that stay here; of those that name it, ours goes on.
fn stays_here(name: &[u8]) -> bool {
    let is = |wanted| is_name(name, wanted);
    match name.len() {
        4 => is("host"),
        6 => is("origin") || is("cookie") || is("expect"),
        9 => is("x-api-key"),
        12 => is(REQUEST_ID),
        13 => is("authorization"),
        14 => is("content-length"),
        15 => is("accept-encoding"),
        _ => name_begins(name, "x-herdgate-") || name_begins(name, "access-control-request-"),
    }
}

/// Header names in a value of `Connection`; usually none.
fn named(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    tokens(value).filter(|name| !name.eq_ignore_ascii_case(b"close") && !name.eq_ignore_ascii_case(b"keep-alive"))
}

/// Whether some `Connection` line among `lines` names this header.
fn is_named<'h>(mut lines: impl Iterator<Item = (&'h [u8], &'h [u8])>, header: &[u8]) -> bool {
    lines.any(|(name, value)| {
        is_name(name, "connection") && named(value).any(|named| named.eq_ignore_ascii_case(header))
    })
}

/// The request's lines, which a parser has read, as a node may see them, written into `out`; `lines` begins with the first one whenever called.
pub fn to_node<'h, I>(out: &mut Lines, lines: impl Fn() -> I, names_headers: bool)
where
    I: Iterator<Item = (&'h [u8], &'h [u8])>,
{
    for (name, value) in lines() {
        let stays = is_hop_by_hop(name) || stays_here(name) || (names_headers && is_named(lines(), name));
        if !stays {
            out.push_parsed(name, value);
        }
    }
}

/// The lines of a node's head that the client may see; framing, CORS and what names the request are ours to set.
pub fn to_client(lines: &Lines) -> impl Iterator<Item = (&[u8], &[u8])> {
    let names_headers = lines.get("connection").is_some_and(|value| named(value).next().is_some());
    lines.iter().filter(move |(name, _)| {
        let ours = is_hop_by_hop(name)
            || is_name(name, "content-length")
            || name_begins(name, "access-control-")
            || name_begins(name, "x-herdgate-")
            || is_name(name, REQUEST_ID)
            || (names_headers && is_named(lines.iter(), name));
        !ours
    })
}

/// The same as a map, for hyper. What it would not take is left out.
#[must_use]
pub fn to_map(lines: &Lines) -> HeaderMap {
    let mut map = HeaderMap::new();
    append(&mut map, to_client(lines));
    map
}

/// Appends lines to a map.
pub fn append<'l>(map: &mut HeaderMap, lines: impl Iterator<Item = (&'l [u8], &'l [u8])>) {
    for (name, value) in lines {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
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

    type Pairs = [(&'static str, &'static str)];

    fn pairs(pairs: &'static Pairs) -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
        pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }

    #[test]
    fn credentials_and_hop_by_hop_never_reach_a_node() {
        let sent: &'static Pairs = &[
            ("host", "gate"),
            ("Authorization", "Bearer k"),
            ("X-Api-Key", "k"),
            ("cookie", "c"),
            ("origin", "http://localhost"),
            ("accept-encoding", "gzip"),
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("Transfer-Encoding", "chunked"),
            ("content-length", "7"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("X-Herdgate-Max-Wait", "3"),
            ("X-Request-ID", "7"),
            ("access-control-request-method", "POST"),
            ("Content-Type", "application/json"),
            ("user-agent", "GitHubCopilotChat/1"),
            ("x-openwebui-chat-id", "7"),
        ];
        let known = Known::read(pairs(sent));
        let mut lines = Lines::default();
        to_node(&mut lines, || pairs(sent), known.names_headers);
        let expected =
            "Content-Type: application/json\r\nuser-agent: GitHubCopilotChat/1\r\nx-openwebui-chat-id: 7\r\n";
        assert_eq!(lines.as_bytes(), expected.as_bytes());
    }

    #[test]
    fn framing_cors_and_names_of_a_node_stay_behind() {
        let mut lines = Lines::default();
        for (name, value) in [
            ("Content-Type", "text/event-stream"),
            ("Connection", "keep-alive, x-hop"),
            ("Keep-Alive", "timeout=5, max=100"),
            ("Access-Control-Allow-Origin", ""),
            ("X-Hop", "1"),
            ("X-Request-ID", "the node's own"),
            ("X-Herdgate-Node", "another gate's"),
            ("Cache-Control", "no-cache"),
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
        ] {
            lines.push(name.as_bytes(), value.as_bytes());
        }
        let names: Vec<_> = to_client(&lines).map(|(name, _)| name).collect();
        assert_eq!(names, [&b"Content-Type"[..], &b"Cache-Control"[..]]);
        assert_eq!(to_map(&lines).len(), 2);
    }

    #[test]
    fn known_lines_are_found_by_any_spelling_the_first_counts() {
        let known = Known::read(pairs(&[("HOST", "a"), ("host", "b"), ("Content-Length", "12"), ("x-API-key", "k")]));
        assert_eq!((known.host, known.hosts), (Some(&b"a"[..]), 2));
        assert_eq!((known.announced(), known.api_key), (Some(12), Some(&b"k"[..])));
    }

    #[test]
    fn max_wait_is_read_in_seconds() {
        let read = |value: &'static str| Known { max_wait: Some(value.as_bytes()), ..Known::default() }.max_wait_ms();
        assert_eq!(read("1.5"), Some(1500));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }

    #[test]
    fn the_key_is_cut_from_the_query() {
        assert_eq!(without_key("api_key=x"), None);
        assert_eq!(without_key("a=1&api_key=x&b=2").as_deref(), Some("a=1&b=2"));
        assert_eq!(without_key("a=1").as_deref(), Some("a=1"));
    }
}
