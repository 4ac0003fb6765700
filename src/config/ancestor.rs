//! The ancestor's configuration: its `config.yaml` as it is, and its `NOMYO_ROUTER_*` variables below any file.
//!
//! Keys, defaults and rules are the ancestor's; what cannot work here is refused with the reason, what is not needed
//! here is accepted with a warning.

use std::path::Path;

use super::expand::Rule;
use super::load::Env;
use super::mistake::Place;
use super::node_url;
use super::tree::{Kind, Node, Scalar, Value};
use super::walk::{Section, Walk, line, one_of, text};
use super::{Config, NodeConfig, NodeKind, RouterKey, Secret, SlotsConfig, ours};
use crate::sync::Arc;

/// The router key and its other spellings; the first is the usual one.
const ROUTER_KEYS: [&str; 7] = [
    "nomyo-router-api-key",
    "router_api_key",
    "nomyo_router_api_key",
    "nomyo-router_api_key",
    "nomyo_router-api_key",
    "NOMYO-ROUTER_API_KEY",
    "NOMYO_ROUTER_API_KEY",
];
const CACHE_KEYS: [&str; 7] = [
    "cache_enabled",
    "cache_backend",
    "cache_similarity",
    "cache_ttl",
    "cache_db_path",
    "cache_redis_url",
    "cache_history_weight",
];
/// Its other keys, each with what takes its place in a file of ours.
const OTHER_KEYS: [(&str, &str); 5] = [
    ("endpoints", "`nodes`"),
    ("llama_server_endpoints", "`nodes` with `kind: openai`"),
    ("max_concurrent_connections", "`slots: soft N` or `slots: N`"),
    ("api_keys", "`api_key` of each node"),
    ("db_path", "`data`"),
];
/// Its default for `endpoints`.
const DEFAULT_ENDPOINT: &str = "http://localhost:11434";

/// Whose file this is: the ancestor's if it has keys of the ancestor and none of ours. (`limits: hard` is a key of
/// both: its opt-in there, a section here.)
pub(super) fn rule_of(root: &Node) -> Rule {
    let Value::Map(entries) = &root.value else { return Rule::Ours };
    let own_keys = ours::root_keys();
    let is_own = |name: &str, value: &Value| {
        own_keys.iter().any(|own| own == name) && !(name == "limits" && matches!(value, Value::Scalar(_)))
    };
    let has_ours = entries.iter().any(|entry| is_own(&entry.name, &entry.node.value));
    let has_ancestors = entries.iter().any(|entry| our_key(&entry.name).is_some());
    if has_ancestors && !has_ours { Rule::Ancestor } else { Rule::Ours }
}

/// For a key of the ancestor's, what to write in a file of ours.
pub(super) fn our_key(name: &str) -> Option<String> {
    let instead = if ROUTER_KEYS.contains(&name) {
        "`router_keys`"
    } else if CACHE_KEYS.contains(&name) {
        "nothing, there is no response cache"
    } else {
        OTHER_KEYS.iter().find(|(key, _)| *key == name)?.1
    };
    Some(format!("it is the ancestor's, whose file has no key of ours; write {instead} instead"))
}

/// Reads the ancestor's file, if it is one, over the `NOMYO_ROUTER_*` variables.
pub(super) fn read(file: Option<Node>, env: &Env, walk: &mut Walk, config: &mut Config) {
    let is_file = file.is_some();
    config.ancestor = is_file;
    let root = file.unwrap_or(Node { place: Place::Default, value: Value::Map(Vec::new()) });
    let Some(mut top) = walk.section("", root) else { return };
    if is_file {
        config.origins = vec!["*".to_owned()];
        config.slots = SlotsConfig::Soft(1);
        config.slots_origin = "max_concurrent_connections";
    }
    let mut keys = api_keys(&mut top, env, walk);
    nodes(&mut top, env, walk, config, &mut keys, is_file);
    if !walk.node_keys.is_empty() {
        for (url, key) in keys.into_iter().filter(|(_, key)| !key.used) {
            walk.warn(&key.place, &format!("api_keys.{url}"), None, "belongs to no node: keys go by the exact URL");
        }
    }
    slots(&mut top, env, walk, config);
    router_key(&mut top, env, walk, config);
    if let Some(node) = take(&mut top, env, walk, "db_path")
        && let Some(path) = walk.scalar("db_path", &node, line)
    {
        let beside = Path::new(&path).parent().filter(|parent| !parent.as_os_str().is_empty());
        config.data = beside.unwrap_or(Path::new(".")).join("herdgate-data");
    }
    let cache = CACHE_KEYS.map(|name| top.take(walk, name).map(|node| (name, node)));
    if let Some((name, node)) = cache.into_iter().flatten().next() {
        walk.warn(&node.place, name, None, "there is no response cache here; the cache_* keys do nothing");
    }
    top.finish(walk);
}

/// A field from the file, else from its variable (in any case).
fn take(top: &mut Section, env: &Env, walk: &mut Walk, name: &'static str) -> Option<Node> {
    top.take(walk, name).or_else(|| {
        let wanted = format!("NOMYO_ROUTER_{}", name.to_uppercase());
        let (variable, value) = env.iter().find(|(variable, _)| variable.to_uppercase() == wanted)?;
        let place = Place::Variable(Arc::from(variable.as_str()));
        Some(Node { place, value: Value::Scalar(Scalar { text: value.clone(), kind: Kind::Loose, written: None }) })
    })
}

/// One entry of `api_keys`.
struct ApiKey {
    place: Place,
    secret: Option<Secret>,
    used: bool,
}

fn api_keys(top: &mut Section, env: &Env, walk: &mut Walk) -> Vec<(String, ApiKey)> {
    let Some(node) = take(top, env, walk, "api_keys") else { return Vec::new() };
    if matches!(node.value, Value::Null) {
        // Unlike sections of ours, which may be left empty.
        walk.mistake(&node.place, "api_keys", None, "has no value; leave the key out for its default");
        return Vec::new();
    }
    let Some(section) = walk.section("api_keys", node) else { return Vec::new() };
    let mut keys = Vec::new();
    for entry in section.into_entries() {
        let path = format!("api_keys.{}", node_url::masked(&entry.name));
        if entry.kind != Kind::Text {
            walk.mistake(&entry.place, &path, None, "the URL must be text; put it in quotes");
            continue;
        }
        let is_empty = matches!(&entry.node.value, Value::Scalar(scalar) if scalar.text.is_empty());
        let secret = if is_empty {
            walk.warn(&entry.node.place, &path, None, "is empty; the node gets no key");
            None
        } else {
            walk.secret(&path, &entry.node).map(Secret)
        };
        keys.push((entry.name, ApiKey { place: entry.place, secret, used: false }));
    }
    keys
}

/// The nodes of `endpoints` and `llama_server_endpoints`. Without either, and without a file, the nodes stay.
fn nodes(
    top: &mut Section,
    env: &Env,
    walk: &mut Walk,
    config: &mut Config,
    keys: &mut [(String, ApiKey)],
    is_file: bool,
) {
    let endpoints = take(top, env, walk, "endpoints");
    let llamas = take(top, env, walk, "llama_server_endpoints");
    if endpoints.is_none() && llamas.is_none() && !is_file {
        return;
    }
    let place = top.place.clone();
    let llamas = llamas.and_then(|node| walk.list("llama_server_endpoints", node)).unwrap_or_default();
    let endpoints = match endpoints {
        Some(node) => walk.list("endpoints", node).unwrap_or_default(),
        None => {
            if !llamas.is_empty() {
                let reason = "is not set, which makes http://localhost:11434 a node too; `endpoints: []` leaves it out";
                walk.warn(&place, "endpoints", None, reason);
            }
            let text = DEFAULT_ENDPOINT.to_owned();
            vec![Node { place: Place::Default, value: Value::Scalar(Scalar { text, kind: Kind::Text, written: None }) }]
        }
    };
    config.nodes.clear();
    walk.node_keys.clear();
    let llama_urls: Vec<&str> = llamas.iter().filter_map(scalar_text).collect();
    for (index, node) in endpoints.iter().enumerate() {
        // The exact URL in both lists is one node, a llama one.
        if scalar_text(node).is_none_or(|url| !llama_urls.contains(&url)) {
            add_node(&format!("endpoints[{index}]"), node, Listed::Endpoint, walk, config, keys);
        }
    }
    for (index, node) in llamas.iter().enumerate() {
        add_node(&format!("llama_server_endpoints[{index}]"), node, Listed::Llama, walk, config, keys);
    }
    if config.nodes.is_empty() && endpoints.is_empty() && llamas.is_empty() {
        walk.warn(&place, "endpoints", None, "is empty: there is no node to send anything to");
    }
}

fn scalar_text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(scalar) => Some(&scalar.text),
        _ => None,
    }
}

/// Which list a node stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    Endpoint,
    Llama,
}

fn add_node(
    path: &str,
    node: &Node,
    listed: Listed,
    walk: &mut Walk,
    config: &mut Config,
    keys: &mut [(String, ApiKey)],
) {
    let Some(mut parsed) = walk.scalar(path, node, |scalar| ancestors_node(&text(scalar)?)) else { return };
    if parsed.kind == NodeKind::OpenAi && !parsed.url.trim_end_matches('/').ends_with("/v1") {
        let reason = "has /v1 where its host begins, which makes it an OpenAI-compatible node, as it was there";
        walk.warn(&node.place, path, Some(&parsed.url), reason);
    }
    walk.set_place(path, &node.place);
    if config.nodes.iter().any(|earlier| earlier.name == parsed.name) {
        walk.warn(&node.place, path, Some(&parsed.url), "stands twice; it is one node");
        return;
    }
    if listed == Listed::Llama {
        parsed.kind = NodeKind::OpenAi;
        parsed.llama = true;
    }
    if let Some((_, key)) = keys.iter_mut().find(|(url, _)| *url == parsed.url) {
        key.used = true;
        // Ollama's native calls carry no key; what is configured for them there is noise.
        if parsed.kind == NodeKind::OpenAi {
            parsed.api_key.clone_from(&key.secret);
        }
    }
    config.nodes.push(parsed);
    walk.node_keys.push(path.to_owned());
}

/// A node by the ancestor's rule: `/v1` anywhere in the URL speaks OpenAI, in `http://v1.example` too. In the path only
/// its end can be served.
fn ancestors_node(url: &str) -> Result<NodeConfig, String> {
    let mut node = NodeConfig::from_url(url)?;
    if node.kind == NodeKind::Ollama && node.base_path.contains("/v1") {
        return Err("has /v1 in its path, which makes it an OpenAI node, but does not end with it".to_owned());
    }
    if url.contains("/v1") {
        node.kind = NodeKind::OpenAi;
    }
    Ok(node)
}

/// `max_concurrent_connections` is a preference there, never a wall; `limits: hard` makes it one here.
fn slots(top: &mut Section, env: &Env, walk: &mut Walk, config: &mut Config) {
    let key = "max_concurrent_connections";
    let node = take(top, env, walk, key);
    let count = node.as_ref().and_then(|node| walk.scalar(key, node, whole_number));
    if let Some(count) = count {
        if count < 1 {
            let place = node.as_ref().map_or(Place::Default, |node| node.place.clone());
            walk.warn(&place, key, Some(&count.to_string()), "below 1 every node is always full; taken as 1");
        }
        let count = u64::try_from(count).unwrap_or(1).clamp(1, ours::SLOTS_MAX);
        config.slots = SlotsConfig::Soft(u32::try_from(count).unwrap_or(1));
        config.slots_origin = key;
    }
    let mut hard = false;
    top.set(walk, "limits", &mut hard, one_of(&[("hard", true), ("soft", false)]));
    if let (true, SlotsConfig::Soft(count)) = (hard, config.slots) {
        config.slots = SlotsConfig::Hard(count);
    }
}

/// Reads a whole number as leniently as the ancestor: `4`, `"4"`, `2.0`, and without quotes as YAML 1.1 has it.
fn whole_number(scalar: &Scalar) -> Result<i64, String> {
    if let Some(number) = scalar.written.as_deref().and_then(yaml_1_1) {
        return Ok(number);
    }
    let text = scalar.text.trim();
    let plain =
        text.split_once('.').map_or(text, |(whole, rest)| if rest.bytes().all(|b| b == b'0') { whole } else { text });
    match plain.parse() {
        Ok(number) if scalar.kind != Kind::Bool => Ok(number),
        _ if text.is_empty() => Err("is empty; must be a whole number".to_owned()),
        _ => Err("must be a whole number".to_owned()),
    }
}

/// A whole number of YAML 1.1, which the ancestor's parser speaks: `010` is 8, `0b11` 3, `1:30` 90. Ours speaks 1.2,
/// where the first is 10 and the others are text.
/// Source: <https://yaml.org/type/int.html>
fn yaml_1_1(written: &str) -> Option<i64> {
    let written = written.replace('_', "");
    let (sign, digits) = match written.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, written.strip_prefix('+').unwrap_or(&written)),
    };
    let all = |digits: &str, is_digit: fn(&char) -> bool| !digits.is_empty() && digits.chars().all(|c| is_digit(&c));
    let magnitude = if let Some(binary) = digits.strip_prefix("0b") {
        i64::from_str_radix(binary, 2).ok().filter(|_| all(binary, char::is_ascii_digit))?
    } else if let Some(hexadecimal) = digits.strip_prefix("0x") {
        i64::from_str_radix(hexadecimal, 16).ok().filter(|_| all(hexadecimal, char::is_ascii_hexdigit))?
    } else if let Some(octal) = digits.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        i64::from_str_radix(octal, 8).ok().filter(|_| all(octal, char::is_ascii_digit))?
    } else {
        let mut parts = digits.split(':');
        let first = parts.next().filter(|first| all(first, char::is_ascii_digit))?.parse::<i64>().ok()?;
        parts.try_fold(first, |sum, part| {
            let part = part.parse::<i64>().ok().filter(|number| all(part, char::is_ascii_digit) && *number < 60)?;
            sum.checked_mul(60)?.checked_add(part)
        })?
    };
    Some(sign * magnitude)
}

/// The router key: one spelling in the file, else its variables. Empty is never "off".
fn router_key(top: &mut Section, env: &Env, walk: &mut Walk, config: &mut Config) {
    let mut given = Vec::new();
    for name in ROUTER_KEYS {
        given.extend(top.take(walk, name).map(|node| (name, node)));
    }
    for (name, node) in given.iter().skip(1) {
        walk.mistake(&node.place, name, None, format!("`{}` is set too; they are one key", given[0].0));
    }
    let variable = |name: &str| {
        let (variable, value) = env.iter().find(|(variable, _)| variable.to_uppercase() == name)?;
        let place = Place::Variable(Arc::from(variable.as_str()));
        Some(Node { place, value: Value::Scalar(Scalar { text: value.clone(), kind: Kind::Loose, written: None }) })
    };
    let is_blank = |node: &Node| match &node.value {
        Value::Null => true,
        Value::Scalar(scalar) => scalar.text.is_empty(),
        _ => false,
    };
    let first = given.into_iter().next();
    let from_file = first.as_ref().map(|(name, node)| ((*name).to_owned(), node.clone()));
    let from_env = ["NOMYO_ROUTER_ROUTER_API_KEY", "NOMYO_ROUTER_API_KEY"]
        .map(|name| variable(name).map(|node| ("router_keys".to_owned(), node)));
    let candidates: Vec<(String, Node)> = from_file.into_iter().chain(from_env.into_iter().flatten()).collect();
    let chosen = candidates.iter().find(|(_, node)| !is_blank(node)).or_else(|| candidates.first());
    let Some((name, node)) = chosen else { return };
    if matches!(node.value, Value::Null) {
        walk.warn(&node.place, name, None, "has no value: no key is asked for");
        return;
    }
    if let Some(secret) = walk.secret(name, node) {
        walk.set_place("router_keys[0]", &node.place);
        config.router_keys = vec![RouterKey { name: "key1".to_owned(), secret: Secret(secret) }];
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::{file, file_and_env, right, shown, wrong};
    use super::super::{Config, NodeKind, Secret, SlotsConfig, Sources};
    use super::CACHE_KEYS;

    /// The usual form of the file.
    const SAMPLE: &str = r#"
# Ollama nodes
endpoints:
  - http://192.168.0.50:11434
  - http://192.168.0.51:11434
  - http://192.168.0.52:8000/v1

llama_server_endpoints:
  - http://192.168.0.33:8889/v1

max_concurrent_connections: 2

nomyo-router-api-key: "${ROUTER_KEY}"

api_keys:
  "http://192.168.0.50:11434": "ollama"
  "http://192.168.0.51:11434": "ollama"
  "http://192.168.0.52:8000/v1": "${OPENAI_KEY}"
  "http://192.168.0.33:8889/v1": "llama"

db_path: state/token_counts.db
cache_enabled: false
cache_backend: memory
"#;

    fn config(text: &str) -> Config {
        right(&file(text)).config
    }

    #[test]
    fn the_sample_works_as_it_is() {
        let loaded = right(&file_and_env(SAMPLE, &[("ROUTER_KEY", "open sesame"), ("OPENAI_KEY", "sk-1")]));
        let config = &loaded.config;
        let nodes: Vec<(&str, NodeKind, bool, Option<&str>)> = config
            .nodes
            .iter()
            .map(|node| (node.name.as_str(), node.kind, node.llama, node.api_key.as_ref().map(|key| key.0.as_str())))
            .collect();
        let wanted = [
            ("http://192.168.0.50:11434", NodeKind::Ollama, false, None),
            ("http://192.168.0.51:11434", NodeKind::Ollama, false, None),
            ("http://192.168.0.52:8000/v1", NodeKind::OpenAi, false, Some("sk-1")),
            ("http://192.168.0.33:8889/v1", NodeKind::OpenAi, true, Some("llama")),
        ];
        assert_eq!(nodes, wanted);
        assert!(config.ancestor);
        assert_eq!(config.slots_for(&config.nodes[0], "m"), (SlotsConfig::Soft(2), "max_concurrent_connections"));
        assert_eq!(config.router_keys[0].secret, Secret("open sesame".to_owned()));
        assert_eq!(config.data, Path::new("state/herdgate-data"));
        assert_eq!(config.origins, ["*"]);
        let warnings = shown(&loaded.warnings);
        assert!(warnings.len() == 1 && warnings[0].contains("no response cache"), "{warnings:?}");
    }

    #[test]
    fn what_is_missing_is_as_it_was_there() {
        let config = config("endpoints: [http://a:1]");
        assert_eq!(config.slots, SlotsConfig::Soft(1));
        assert_eq!(config.router_keys, []);
        assert_eq!(config.data, Path::new("./herdgate-data"));
        let loaded = right(&file("max_concurrent_connections: 3"));
        assert!(loaded.config.ancestor);
        assert_eq!(loaded.config.nodes[0].name, "http://localhost:11434");
        let loaded = right(&file("llama_server_endpoints: [http://a:1]"));
        assert_eq!(loaded.config.nodes.len(), 2);
        assert!(shown(&loaded.warnings)[0].contains("`endpoints: []` leaves it out"));
        let loaded = right(&file("endpoints: []"));
        assert!(loaded.config.nodes.is_empty() && loaded.warnings.len() == 1);
    }

    #[test]
    fn numbers_as_leniently_as_there() {
        for (text, slots) in [("4", 4), ("\"4\"", 4), ("2.0", 2), ("0", 1), ("-3", 1)] {
            assert_eq!(
                config(&format!("max_concurrent_connections: {text}")).slots,
                SlotsConfig::Soft(slots),
                "{text}"
            );
        }
        for text in ["four", "2.5", "", "[]", "true"] {
            assert_eq!(wrong(&file(&format!("max_concurrent_connections: {text}"))).len(), 1, "{text}");
        }
        // Numbers of YAML 1.1, without quotes and in whatever the file puts around them.
        for (text, slots) in [
            ("010", 8),
            ("'010'", 10),
            ("010   # eight", 8),
            ("+5", 5),
            ("08", 8),
            ("0x10", 16),
            ("0b11", 3),
            ("1_000", 1000),
            ("1:30", 90),
            ("-010", 1),
        ] {
            for file in
                [format!("max_concurrent_connections: {text}\n"), format!("{{ max_concurrent_connections: {text}\n}}")]
            {
                assert_eq!(config(&file).slots, SlotsConfig::Soft(slots), "{file}");
            }
        }
        let env = [("N", "010"), ("NOMYO_ROUTER_MAX_CONCURRENT_CONNECTIONS", "011")];
        let expanded = right(&file_and_env("endpoints: [http://a:1]\nmax_concurrent_connections: ${N}", &env));
        assert_eq!(expanded.config.slots, SlotsConfig::Soft(10), "text from the environment is no YAML");
        let variable = right(&file_and_env("endpoints: [http://a:1]", &env));
        assert_eq!(variable.config.slots, SlotsConfig::Soft(11));
        for text in ["0b12", "1:60", "0b", "0x", "_", "0b+1", "1:", ":1"] {
            assert_eq!(super::yaml_1_1(text), None, "{text}");
        }
        let hard = config("endpoints: [http://a:1]\nmax_concurrent_connections: 3\nlimits: hard");
        assert_eq!(hard.slots, SlotsConfig::Hard(3));
        assert_eq!(config("endpoints: [http://a:1]\nlimits: hard").slots, SlotsConfig::Hard(1));
        assert!(wrong(&file("endpoints: [http://a:1]\nlimits: hadr"))[0].contains("did you mean hard?"));
    }

    #[test]
    fn braces_only_whole_and_unset_is_empty() {
        let text = "endpoints: ['${A}', 'http://${A}:1']\nmax_concurrent_connections: ${N}\n";
        let mistakes = wrong(&file_and_env(text, &[("A", "http://a:1")]));
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes[0].starts_with("gate.yaml:1:21: endpoints[1]: value `http://${A}:1`"), "{}", mistakes[0]);
        assert!(mistakes[1].contains("is empty; must be a whole number"), "{}", mistakes[1]);
        let right = right(&file_and_env(
            "endpoints: ['${A}']\nmax_concurrent_connections: ${N}",
            &[("A", "http://a:1"), ("N", "5")],
        ));
        assert_eq!((right.config.nodes[0].name.as_str(), right.config.slots), ("http://a:1", SlotsConfig::Soft(5)));
    }

    #[test]
    fn nodes_that_cannot_be_are_mistakes_here_too() {
        for (url, words) in [
            ("hello", "no URL"),
            ("https://api.example.com/v1", "https is not supported yet"),
            ("http://a:1/v1beta/openai", "does not end with it"),
            ("http://me:pw@a:1", "`api_keys`"),
            ("''", "no URL"),
        ] {
            let mistakes = wrong(&file(&format!("endpoints:\n  - {url}\n")));
            assert!(mistakes.len() == 1 && mistakes[0].starts_with("gate.yaml:2:5: endpoints[0]"), "{mistakes:?}");
            assert!(mistakes[0].contains(words), "{mistakes:?}");
        }
        for text in ["endpoints: http://a:1", "endpoints:", "api_keys: []", "endpoints: [1]", "api_keys: { 1234: x }"] {
            assert_eq!(wrong(&file(&format!("{text}\ncache_ttl: 1"))).len(), 1, "{text}");
        }
        assert!(wrong(&file("endpoints: []\nendpoint: []"))[0].contains("did you mean `endpoints`?"));
    }

    #[test]
    fn v1_anywhere_in_the_url_speaks_openai() {
        for (url, kind, warnings) in [
            ("http://a:1/v1", NodeKind::OpenAi, 0),
            ("http://a:1/base/v1/", NodeKind::OpenAi, 0),
            ("http://v1.example:8000", NodeKind::OpenAi, 1),
            ("http://v100:8000/", NodeKind::OpenAi, 1),
            ("http://gpu-v1:11434", NodeKind::Ollama, 0),
            ("http://V1:11434", NodeKind::Ollama, 0),
        ] {
            let loaded = right(&file(&format!("endpoints: ['{url}']\napi_keys: {{ '{url}': k }}")));
            let node = &loaded.config.nodes[0];
            assert_eq!((node.kind, node.api_key.is_some()), (kind, kind == NodeKind::OpenAi), "{url}");
            assert_eq!(loaded.warnings.len(), warnings, "{url}: {:?}", shown(&loaded.warnings));
        }
        for url in ["http://a:1/v1beta/openai", "http://a:1/v1/openai", "http://a:1/x/v1/y"] {
            assert_eq!(wrong(&file(&format!("endpoints: ['{url}']\ncache_ttl: 1"))).len(), 1, "{url}");
        }
    }

    #[test]
    fn keys_are_as_strict_as_there() {
        for (text, words) in [
            ("Endpoints: [http://a:1]\ncache_ttl: 1", "Endpoints"),
            ("endpoints: [http://a:1]\nsettings: {}", "settings"),
            ("endpoints: [http://a:1]\nllama_server_endpoints:", "llama_server_endpoints"),
            ("endpoints: [http://a:1]\napi_keys:", "api_keys"),
            ("endpoints: [http://a:1]\nmax_concurrent_connections: four", "max_concurrent_connections"),
        ] {
            let mistakes = wrong(&file(text));
            assert!(mistakes.len() == 1 && mistakes[0].contains(words), "{text}: {mistakes:?}");
        }
        // What the response cache is told is taken and does nothing, one warning for all of it.
        let cache = CACHE_KEYS.map(|key| format!("{key}: x\n")).concat();
        let loaded = right(&file(&format!("endpoints: [http://a:1]\n{cache}")));
        assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    }

    #[test]
    fn every_field_has_its_variable() {
        let env = [
            ("NOMYO_ROUTER_ENDPOINTS", r#"["http://a:1", "http://b:1/v1"]"#),
            ("NOMYO_ROUTER_LLAMA_SERVER_ENDPOINTS", r#"["http://c:1/v1"]"#),
            ("NOMYO_ROUTER_MAX_CONCURRENT_CONNECTIONS", "3"),
            ("NOMYO_ROUTER_ROUTER_API_KEY", "k"),
        ];
        let loaded = right(&Sources { file: None, ..file_and_env("", &env) });
        let nodes: Vec<_> =
            loaded.config.nodes.iter().map(|node| (node.name.as_str(), node.kind, node.llama)).collect();
        let wanted = [
            ("http://a:1", NodeKind::Ollama, false),
            ("http://b:1/v1", NodeKind::OpenAi, false),
            ("http://c:1/v1", NodeKind::OpenAi, true),
        ];
        assert_eq!(nodes, wanted);
        assert_eq!(loaded.config.slots, SlotsConfig::Soft(3));
        assert_eq!(loaded.config.router_keys[0].secret, Secret("k".to_owned()));
    }

    #[test]
    fn one_url_twice_is_one_node() {
        let loaded = right(&file("endpoints: [http://a:1, http://a:1]"));
        assert_eq!((loaded.config.nodes.len(), loaded.warnings.len()), (1, 1));
        let loaded = right(&file("endpoints: [http://a:1/v1, http://b:1]\nllama_server_endpoints: [http://a:1/v1]"));
        let llama: Vec<bool> = loaded.config.nodes.iter().map(|node| node.llama).collect();
        assert_eq!(llama, [false, true]);
        let loaded = right(&file("endpoints: [http://a:11434, http://a:11434/v1]"));
        assert_eq!((loaded.config.nodes.len(), loaded.warnings.len()), (2, 1));
        let loaded = right(&file("endpoints: [http://a:1]\nendpoints: [http://b:1]"));
        assert_eq!(loaded.config.nodes[0].host, "b", "the last one counts, as there");
        assert_eq!(loaded.warnings.len(), 1);
    }

    #[test]
    fn node_keys_go_by_the_exact_url() {
        let loaded = right(&file("endpoints: [http://a:1/v1]\napi_keys: { 'http://a:1/v1/': k, 'http://a:1/v1': '' }"));
        assert_eq!(loaded.config.nodes[0].api_key, None);
        let warnings = shown(&loaded.warnings);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0].contains("belongs to no node") && warnings[1].contains("the node gets no key"),
            "{warnings:?}"
        );
    }

    #[test]
    fn the_router_key_has_seven_names_and_one_value() {
        for name in super::ROUTER_KEYS {
            let config = config(&format!("{name}: k1\n"));
            assert_eq!(
                (config.router_keys[0].name.as_str(), &config.router_keys[0].secret),
                ("key1", &Secret("k1".to_owned()))
            );
        }
        let two = wrong(&file("nomyo-router-api-key: k1\nrouter_api_key: k2"));
        assert!(
            two.len() == 1 && two[0].starts_with("gate.yaml:2:17: router_api_key: `nomyo-router-api-key` is set too"),
            "{two:?}"
        );
        assert!(!two[0].contains("k2"));
        for (text, env) in [
            ("nomyo-router-api-key: ''", None),
            ("nomyo-router-api-key: ${UNSET}", None),
            ("endpoints: [http://a:1]", Some(("NOMYO_ROUTER_API_KEY", ""))),
        ] {
            let mistakes = wrong(&file_and_env(text, &env.into_iter().collect::<Vec<_>>()));
            assert!(mistakes.len() == 1 && mistakes[0].contains("leave it out instead"), "{text}: {mistakes:?}");
        }
        let null = right(&file("nomyo-router-api-key:"));
        assert_eq!((null.config.router_keys.len(), null.warnings.len()), (0, 1));
    }

    #[test]
    fn its_variables_lie_below_its_file() {
        let env = [
            ("NOMYO_ROUTER_ENDPOINTS", r#"["http://env:1"]"#),
            ("nomyo_router_max_concurrent_connections", "6"),
            ("NOMYO_ROUTER_API_KEYS", r#"{"http://env:1/v1": "k"}"#),
            ("NOMYO_ROUTER_DB_PATH", "/app/data/token_counts.db"),
            ("NOMYO_ROUTER_API_KEY", "from-env"),
            ("NOMYO_ROUTER_CACHE_TTL", "5"),
            ("NOMYO_ROUTER_SOMETHING", "else"),
        ];
        let loaded = right(&file_and_env("endpoints: [http://file:1]\nnomyo-router-api-key: ''", &env));
        let config = &loaded.config;
        assert_eq!((config.nodes[0].host.as_str(), config.slots), ("file", SlotsConfig::Soft(6)));
        assert_eq!(config.data, Path::new("/app/data/herdgate-data"));
        assert_eq!(config.router_keys[0].secret, Secret("from-env".to_owned()));
        let no_file = Sources { file: None, ..file_and_env("", &env) };
        let loaded = right(&no_file);
        assert_eq!((loaded.config.nodes[0].host.as_str(), loaded.config.ancestor), ("env", false));
        assert_eq!(loaded.config.router_keys.len(), 1, "a key is honoured without a file, too");
        let bad = wrong(&file_and_env("max_concurrent_connections: 1", &[("NOMYO_ROUTER_ENDPOINTS", "http://a:1")]));
        assert!(bad.len() == 1 && bad[0].starts_with("NOMYO_ROUTER_ENDPOINTS: endpoints: "), "{bad:?}");
    }
}
