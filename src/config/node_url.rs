//! URLs of nodes: what can be dialled, in words where it cannot. Pure; resolves nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{NodeConfig, NodeKind, TimeoutOverrides};

/// A URL is a name as well, and names go into keys of the store, which holds 511 bytes a key.
const URL_BYTES_MAX: usize = 256;

/// The parts of a node's URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NodeUrl {
    /// Without brackets, as written.
    pub(super) host: String,
    pub(super) port: u16,
    /// The port stood in the URL.
    pub(super) port_given: bool,
    /// Without a trailing slash and without `/v1` at its end.
    pub(super) base_path: String,
    /// The path ended with `/v1`.
    pub(super) v1: bool,
}

impl NodeConfig {
    /// A node by its URL alone: named by it, everything else by default; OpenAI-compatible if the path ends with `/v1`.
    ///
    /// # Errors
    /// What is wrong with the URL, in words.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let parts = parse(url)?;
        let kind = if parts.v1 { NodeKind::OpenAi } else { NodeKind::Ollama };
        Ok(Self {
            name: url.to_owned(),
            url: url.to_owned(),
            host: parts.host,
            port: parts.port,
            base_path: parts.base_path,
            kind,
            slots: None,
            node_slots: None,
            api_key: None,
            expand: false,
            cloud: false,
            connect_timeout: None,
            timeouts: TimeoutOverrides::default(),
            llama: false,
        })
    }

    /// Host, port and path in one spelling: two nodes with the same are one server.
    pub(super) fn normalised(&self) -> String {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host.trim_end_matches('.').to_ascii_lowercase(),
        };
        format!("http://{host}:{}{}", self.port, self.base_path)
    }
}

/// Takes a URL apart.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn parse(url: &str) -> Result<NodeUrl, String> {
    let example = "a node's URL looks like http://gpu1:11434";
    let Some((scheme, rest)) = url.split_once("://") else {
        let fits = !url.is_empty() && url.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
        let hint = if fits && url.contains(':') { format!("; did you mean http://{url}?") } else { String::new() };
        return Err(format!("no URL: {example}{hint}"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => {}
        "https" => {
            let advice = "use http:// inside your network, or a local TLS tunnel to the node";
            return Err(format!("https is not supported yet: {advice}"));
        }
        _ => return Err(format!("`{scheme}` is not a scheme herdgate speaks: {example}")),
    }
    if url.len() > URL_BYTES_MAX {
        return Err(format!("is longer than {URL_BYTES_MAX} bytes"));
    }
    if let Some(odd) = rest.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!("holds {odd:?}, which no URL may: {example}"));
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // Anywhere: a slash in a password would put the rest of it into what looks like the path.
    if rest.contains('@') {
        return Err(
            "holds a user or password, which belong in `api_key` (`api_keys` of the ancestor's file)".to_owned()
        );
    }
    if path.contains(['?', '#']) {
        return Err(format!("has a query or fragment: {example}"));
    }
    let (host, port) = split_authority(authority)?;
    let path = path.trim_end_matches('/');
    let (base_path, v1) = match path.strip_suffix("/v1") {
        Some(base) => (base, true),
        None => (path, false),
    };
    if base_path.split('/').any(|segment| segment == "v1") {
        return Err("has /v1 in the middle of its path; herdgate adds /v1/… itself, end the URL with /v1".to_owned());
    }
    let base_path = base_path.trim_end_matches('/').to_owned();
    Ok(NodeUrl { host, port: port.unwrap_or(80), port_given: port.is_some(), base_path, v1 })
}

fn split_authority(authority: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("has `[` without `]`")?;
        inside.parse::<Ipv6Addr>().map_err(|_| format!("`{inside}` is no IPv6 address"))?;
        let port = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').ok_or_else(|| format!("`{after}` after `]` is no port"))?),
        };
        (inside, port)
    } else {
        match authority.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err("an IPv6 address needs brackets: http://[::1]:11434".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    check_host(host)?;
    let port = match port {
        None => None,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Some(port),
            _ => return Err(format!("`{text}` is no port: 1 to 65535, as in http://gpu1:11434")),
        },
    };
    Ok((host.to_owned(), port))
}

fn check_host(host: &str) -> Result<(), String> {
    if host.parse::<Ipv6Addr>().is_ok() {
        return Ok(());
    }
    if host.is_empty() {
        return Err("names no machine: a node's URL looks like http://gpu1:11434".to_owned());
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.len() > 253 || !host.chars().all(fits) {
        return Err(format!("`{host}` is no host name"));
    }
    // All digits and dots is meant as an address: 10.0.0 or 10.0.0.256 would be looked up as a name otherwise.
    let numeric = host.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(format!("`{host}` is no IPv4 address"));
    }
    Ok(())
}

/// The URL as it may be shown: without what stands before an `@`.
pub(super) fn masked(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@') {
        Some((_, host)) if scheme.is_empty() => format!("…@{host}"),
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_ones() {
        for (url, host, port, base, v1) in [
            ("http://gpu1:11434", "gpu1", 11434, "", false),
            ("HTTP://GPU1", "GPU1", 80, "", false),
            ("http://10.0.0.1:8080/v1", "10.0.0.1", 8080, "", true),
            ("http://10.0.0.1:8080/v1/", "10.0.0.1", 8080, "", true),
            ("http://[::1]:11434/", "::1", 11434, "", false),
            ("http://[fd00::2]", "fd00::2", 80, "", false),
            ("http://proxy/ollama//", "proxy", 80, "/ollama", false),
            ("http://proxy/a/b/v1", "proxy", 80, "/a/b", true),
            ("http://v1:1/v1x", "v1", 1, "/v1x", false),
            ("http://a_b.local.:1", "a_b.local.", 1, "", false),
        ] {
            let parts = parse(url).unwrap_or_else(|reason| panic!("{url}: {reason}"));
            assert_eq!(
                (parts.host.as_str(), parts.port, parts.base_path.as_str(), parts.v1),
                (host, port, base, v1),
                "{url}"
            );
        }
    }

    #[test]
    fn wrong_ones_say_why() {
        for (url, word) in [
            ("hello", "looks like http://gpu1:11434"),
            ("", "no URL"),
            ("gpu1:11434", "did you mean http://gpu1:11434?"),
            ("https://gpu1", "https is not supported yet"),
            ("ftp://gpu1", "scheme"),
            ("http://", "names no machine"),
            ("http://:11434", "names no machine"),
            ("http://me:secret@gpu1:1", "user or password"),
            ("http://gpu1:0", "no port"),
            ("http://gpu1:+1", "no port"),
            ("http://gpu1:65536", "no port"),
            ("http://gpu1:", "no port"),
            ("http://::1:11434", "brackets"),
            ("http://[::1", "without `]`"),
            ("http://[::1]x", "no port"),
            ("http://[hello]:1", "no IPv6"),
            ("http://10.0.0.256:1", "no IPv4"),
            ("http://10.0.0:1", "no IPv4"),
            ("http://gpu1:1?x=y", "query"),
            ("http://gpu1:1/#x", "query"),
            ("http://gpu 1:1", "which no URL may"),
            ("http://gpü:1", "which no URL may"),
            ("http://gpu1:1/v1/openai", "/v1 in the middle"),
            ("http://gpu1:1/v1/v1", "/v1 in the middle"),
            ("http://a%41:1", "no host name"),
        ] {
            let reason = parse(url).expect_err(url);
            assert!(reason.contains(word), "{url}: {reason}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        assert_eq!(masked("http://me:secret@gpu1:1"), "http://…@gpu1:1");
        assert_eq!(masked("me:secret@gpu1"), "…@gpu1");
        assert_eq!(masked("http://gpu1"), "http://gpu1");
    }

    #[test]
    fn one_server_has_one_spelling() {
        let spelling = |url| NodeConfig::from_url(url).unwrap().normalised();
        assert_eq!(spelling("http://GPU1:80/"), spelling("http://gpu1"));
        assert_eq!(spelling("http://gpu1.:11434/v1"), spelling("http://gpu1:11434"));
        assert_eq!(spelling("http://[0:0::1]:1"), spelling("http://[::1]:1"));
        assert_ne!(spelling("http://gpu1/a"), spelling("http://gpu1/b"));
    }
}
