//! The keys of our own configuration: which there are, what they may hold. `default.yaml` describes them.
//!
//! Fills a [`Config`] in place, so that one source of values lies over another; absent keys change nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::defaults::DEFAULT_FILE;
use super::mistake::Place;
use super::node_url;
use super::tree::{self, Node, Scalar, Value};
use super::walk::{Hint, Section, Walk, auto_or, duration, line, number, one_of, size, text, toggle};
use super::{
    AccessLog, Administration, Config, DebugConfig, Degrade, HealthConfig, LedgerConfig, Limits, LogConfig, LogFormat,
    ModelConfig, NodeConfig, NodeKind, NodeSlots, RouterKey, RoutingConfig, Secret, ShutdownConfig, SlotsConfig,
    TimeoutOverrides, Timeouts, UsageInjection,
};
use crate::sync::Arc;

/// Slots are counted in 24 bits; a million on one node is a slip of the hand.
pub(super) const SLOTS_MAX: u64 = 1_000_000;
/// More workers than cores of any machine.
const WORKERS_MAX: u64 = 1024;
/// Names go into keys of the store, which holds 511 bytes a key.
const NAME_BYTES_MAX: usize = 256;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Reads every key of a configuration's root.
pub(super) fn read(root: Node, walk: &mut Walk, config: &mut Config) {
    let Some(mut top) = walk.section("", root) else { return };
    top.set(walk, "listen", &mut config.listen, listen);
    top.set(walk, "data", &mut config.data, |scalar| line(scalar).map(PathBuf::from));
    top.set(walk, "workers", &mut config.workers, workers);
    if let Some(items) = top.list(walk, "nodes") {
        nodes(items, walk, config);
    }
    if let Some(node) = top.take(walk, "slots")
        && let Some(slots) = walk.scalar("slots", &node, slots)
    {
        config.slots = slots;
        config.slots_origin = if slots == SlotsConfig::SOFT_DEFAULT { "default" } else { "slots" };
    }
    top.set(walk, "node_slots", &mut config.node_slots, node_slots);
    if let Some(section) = top.section(walk, "models") {
        config.models = section.into_entries().into_iter().filter_map(|entry| model(entry, walk)).collect();
    }
    if let Some(items) = top.list(walk, "router_keys") {
        config.router_keys =
            items.into_iter().enumerate().filter_map(|(at, item)| router_key(at, item, walk)).collect();
    }
    let administration = [
        ("auto", Administration::Auto),
        ("off", Administration::Off),
        ("key", Administration::Key),
        ("open", Administration::Open),
    ];
    top.set(walk, "administration", &mut config.administration, one_of(&administration));
    strings(&mut top, walk, "allowed_hosts", &mut config.allowed_hosts, allowed_host);
    strings(&mut top, walk, "origins", &mut config.origins, |scalar| origin(&line(scalar)?));
    sections(&mut top, walk, config);
    top.set(walk, "headers", &mut config.headers, toggle);
    top.finish(walk);
}

fn sections(top: &mut Section, walk: &mut Walk, config: &mut Config) {
    if let Some(section) = top.section(walk, "timeouts") {
        timeouts(section, walk, &mut config.timeouts);
    }
    if let Some(section) = top.section(walk, "limits") {
        limits(section, walk, &mut config.limits);
    }
    if let Some(section) = top.section(walk, "health") {
        health(section, walk, &mut config.health);
    }
    if let Some(section) = top.section(walk, "routing") {
        routing(section, walk, &mut config.routing);
    }
    if let Some(section) = top.section(walk, "ledger") {
        ledger(section, walk, &mut config.ledger);
    }
    if let Some(section) = top.section(walk, "shutdown") {
        shutdown(section, walk, &mut config.shutdown);
    }
    if let Some(section) = top.section(walk, "log") {
        log(section, walk, &mut config.log);
    }
    if let Some(section) = top.section(walk, "debug") {
        debug(section, walk, &mut config.debug);
    }
}

/// Reads the address of the listener.
pub(super) fn listen(scalar: &Scalar) -> Result<SocketAddr, String> {
    // A port alone reads as a number; what is missing is the address, not the quotes.
    let text = &scalar.text;
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok());
    if let Some(port) = local {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(|_| {
        "must be an address and a port: 127.0.0.1:12434 for this machine, 0.0.0.0:12434 or [::]:12434 for all"
            .to_owned()
    })
}

/// Reads the number of workers.
pub(super) fn workers(scalar: &Scalar) -> Result<Option<usize>, String> {
    auto_or(number(1, WORKERS_MAX))(scalar)
}

/// Reads `soft`, `soft N`, or a hard limit.
fn slots(scalar: &Scalar) -> Result<SlotsConfig, String> {
    let wanted = format!("must be soft, or a number from 1 to {SLOTS_MAX} (a hard limit per node and model)");
    if scalar.text == "soft" {
        return Ok(SlotsConfig::SOFT_DEFAULT);
    }
    let (digits, make): (_, fn(u32) -> SlotsConfig) = match scalar.text.strip_prefix("soft ") {
        Some(digits) => (digits, SlotsConfig::Soft),
        None => (scalar.text.as_str(), SlotsConfig::Hard),
    };
    count_of(digits).map(make).ok_or(wanted)
}

/// Slots of all models of a node together.
fn node_slots(scalar: &Scalar) -> Result<NodeSlots, String> {
    if scalar.text == "off" {
        return Ok(NodeSlots::Off);
    }
    let wanted =
        || format!("must be off, or a number from 1 to {SLOTS_MAX} (a hard limit for all models of a node together)");
    count_of(&scalar.text).map(NodeSlots::Hard).ok_or_else(wanted)
}

fn count_of(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|slots| plain && (1..=SLOTS_MAX).contains(&u64::from(*slots)))
}

fn nodes(items: Vec<Node>, walk: &mut Walk, config: &mut Config) {
    let place = walk.place_of("nodes");
    if items.is_empty() {
        walk.mistake(
            &place,
            "nodes",
            None,
            "is empty; a gate needs a node: nodes: [ { url: http://127.0.0.1:11434 } ]",
        );
    }
    config.nodes.clear();
    walk.node_keys.clear();
    for (index, item) in items.into_iter().enumerate() {
        let key = format!("nodes[{index}]");
        walk.set_place(&key, &item.place);
        let node = match item.value {
            Value::Scalar(_) => walk.scalar(&key, &item, |scalar| NodeConfig::from_url(&text(scalar)?)),
            _ => walk.section(&key, item).and_then(|section| node(section, walk)),
        };
        if let Some(node) = node {
            config.nodes.push(node);
            walk.node_keys.push(key);
        }
    }
}

fn node(mut section: Section, walk: &mut Walk) -> Option<NodeConfig> {
    let mut node = None;
    match section.take(walk, "url") {
        Some(url) => {
            node = walk.scalar(&section.path("url"), &url, |scalar| NodeConfig::from_url(&text(scalar)?));
        }
        None => walk.mistake(&section.place, &section.path("url"), None, "is missing, as in url: http://gpu1:11434"),
    }
    // With a wrong URL the other keys are checked all the same, into a node that goes nowhere.
    let known = node.is_some();
    let mut node = node.or_else(|| NodeConfig::from_url("http://127.0.0.1").ok())?;
    section.set(walk, "name", &mut node.name, node_name);
    let mut kind = None;
    section.set_some(walk, "kind", &mut kind, one_of(&[("ollama", NodeKind::Ollama), ("openai", NodeKind::OpenAi)]));
    if kind == Some(NodeKind::Ollama) && known && node.kind == NodeKind::OpenAi {
        let key = section.path("url");
        let reason = "ends with /v1, which is a node of kind openai; without it, it is one of kind ollama";
        walk.mistake(&walk.place_of(&key), &key, Some(&node.url), reason);
    }
    node.kind = kind.unwrap_or(node.kind);
    section.set_some(walk, "slots", &mut node.slots, slots);
    section.set_some(walk, "node_slots", &mut node.node_slots, node_slots);
    if let Some(secret) = section.take(walk, "api_key") {
        node.api_key = walk.secret(&section.path("api_key"), &secret).map(Secret);
    }
    section.set(walk, "expand", &mut node.expand, toggle);
    section.set(walk, "cloud", &mut node.cloud, toggle);
    if let Some(mut timeouts) = section.section(walk, "timeouts") {
        let over = &mut node.timeouts;
        timeouts.set_some(walk, "connect", &mut node.connect_timeout, duration(MS, HOUR));
        timeouts.set_some(walk, "pool_idle", &mut over.pool_idle, duration(MS, DAY));
        shared_timeouts(&mut timeouts, walk, over);
        timeouts.finish(walk);
    }
    section.finish(walk);
    known.then_some(node)
}

/// A name becomes a key of the store, a label and part of a path.
fn node_name(scalar: &Scalar) -> Result<String, String> {
    let name = line(scalar)?;
    if name.starts_with('_') {
        return Err("begins with _, which is kept for sums (_other)".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("is longer than {NAME_BYTES_MAX} bytes"));
    }
    Ok(name)
}

fn shared_timeouts(section: &mut Section, walk: &mut Walk, over: &mut TimeoutOverrides) {
    section.set_some(walk, "stream_idle", &mut over.stream_idle, duration(MS, DAY));
    section.set_some(walk, "client_stall", &mut over.client_stall, duration(MS, DAY));
    section.set_some(walk, "suspect_after", &mut over.suspect_after, duration(MS, DAY));
}

fn model(entry: tree::Entry, walk: &mut Walk) -> Option<ModelConfig> {
    let key = format!("models.{}", entry.name);
    if entry.name.trim().is_empty() {
        walk.mistake(&entry.place, &key, None, "names no model; right are llama3:8b and qwen*");
        return None;
    }
    walk.set_place(&key, &entry.place);
    let mut section = walk.section(&key, entry.node)?;
    let (mut own_slots, mut over, mut pull_targets) = (None, TimeoutOverrides::default(), Vec::new());
    section.set_some(walk, "slots", &mut own_slots, slots);
    if let Some(mut timeouts) = section.section(walk, "timeouts") {
        timeouts.set_some(walk, "queue_wait", &mut over.queue_wait, duration(MS, DAY));
        shared_timeouts(&mut timeouts, walk, &mut over);
        timeouts.finish(walk);
    }
    strings(&mut section, walk, "pull_targets", &mut pull_targets, line);
    section.finish(walk);
    Some(ModelConfig { pattern: entry.name, slots: own_slots, timeouts: over, pull_targets })
}

fn router_key(index: usize, item: Node, walk: &mut Walk) -> Option<RouterKey> {
    let key = format!("router_keys[{index}]");
    let mut name = format!("key{}", index + 1);
    let place = item.place.clone();
    let secret = match item.value {
        Value::Map(_) => {
            let mut section = walk.section(&key, item)?;
            section.set(walk, "name", &mut name, node_name);
            let secret = match section.take(walk, "key") {
                Some(node) => walk.secret(&section.path("key"), &node),
                None => {
                    walk.mistake(&place, &section.path("key"), None, "is missing");
                    None
                }
            };
            section.finish(walk);
            secret
        }
        Value::Null => {
            walk.mistake(&place, &key, None, "is empty; an empty key never means \"no key\": leave it out instead");
            None
        }
        _ => walk.secret(&key, &item),
    };
    walk.set_place(&key, &place);
    secret.map(|secret| RouterKey { name, secret: Secret(secret) })
}

/// Reads a list of words; a wrong one is reported and left out.
fn strings(
    section: &mut Section,
    walk: &mut Walk,
    name: &'static str,
    into: &mut Vec<String>,
    read: fn(&Scalar) -> Result<String, String>,
) {
    let Some(items) = section.list(walk, name) else { return };
    let key = section.path(name);
    into.clear();
    for (index, item) in items.iter().enumerate() {
        let key = format!("{key}[{index}]");
        walk.set_place(&key, &item.place);
        into.extend(walk.scalar(&key, item, read));
    }
}

fn allowed_host(scalar: &Scalar) -> Result<String, String> {
    let host = line(scalar)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
    let is_address = bare.parse::<std::net::Ipv6Addr>().is_ok();
    let is_name = bare.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if !is_address && !is_name {
        return Err("must be a host name or address alone, without scheme, port or path: gate.example.org".to_owned());
    }
    Ok(bare.to_ascii_lowercase())
}

/// Checks one origin: `*`, or a scheme and a host with at most one `*`.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let stars = text.matches('*').count();
    let shaped =
        text == "*" || text.split_once("://").is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty());
    if shaped && stars <= 1 && text.chars().all(|c| c.is_ascii_graphic() && c != ',') {
        return Ok(text.to_owned());
    }
    Err("must be * or a scheme and a host, with one * at most: https://chat.example.org, http://10.0.0.1:*".to_owned())
}

fn timeouts(mut section: Section, walk: &mut Walk, timeouts: &mut Timeouts) {
    section.set(walk, "connect", &mut timeouts.connect, duration(MS, HOUR));
    section.set(walk, "request_head", &mut timeouts.request_head, duration(MS, HOUR));
    section.set(walk, "request_body_idle", &mut timeouts.request_body_idle, duration(MS, HOUR));
    section.set(walk, "client_idle", &mut timeouts.client_idle, duration(MS, DAY));
    section.set(walk, "pool_idle", &mut timeouts.pool_idle, duration(MS, DAY));
    section.set(walk, "stream_idle", &mut timeouts.stream_idle, duration(MS, DAY));
    section.set(walk, "client_stall", &mut timeouts.client_stall, duration(MS, DAY));
    section.set(walk, "queue_wait", &mut timeouts.queue_wait, duration(MS, DAY));
    section.set(walk, "suspect_after", &mut timeouts.suspect_after, duration(MS, DAY));
    section.finish(walk);
}

fn limits(mut section: Section, walk: &mut Walk, limits: &mut Limits) {
    section.set(walk, "max_body", &mut limits.max_body_bytes, size(KIB, TIB));
    section.set(walk, "body_memory", &mut limits.body_memory_bytes, size(KIB, TIB));
    section.set(walk, "unsent", &mut limits.unsent_bytes, size(4 * KIB, 64 * MIB));
    section.set(walk, "head", &mut limits.head_bytes, size(8 * KIB, MIB));
    section.set(walk, "queue_length", &mut limits.queue_length, number(1, 1_000_000));
    section.set(walk, "names", &mut limits.names, number(64, 16_000_000));
    section.set(walk, "ring", &mut limits.ring, number(64, 16_000_000));
    // 64 are kept back for our own routes; one more is a gate for one client.
    section.set(walk, "connections", &mut limits.connections, auto_or(number(65, 10_000_000)));
    section.set(walk, "usage_rows", &mut limits.usage_rows, number(1, 1_000_000));
    section.finish(walk);
}

fn health(mut section: Section, walk: &mut Walk, health: &mut HealthConfig) {
    let interval = || duration(10 * MS, HOUR);
    section.set(walk, "probe", &mut health.probe, interval());
    section.set(walk, "probe_timeout", &mut health.probe_timeout, interval());
    section.set(walk, "backoff_max", &mut health.backoff_max, interval());
    section.set(walk, "ps", &mut health.ps, interval());
    section.set(walk, "tags", &mut health.tags, duration(10 * MS, DAY));
    section.set(walk, "stale_residency", &mut health.stale_residency, duration(10 * MS, DAY));
    section.set(walk, "panic_threshold", &mut health.panic_threshold_percent, number(1, 100));
    section.set(walk, "forget_models_after", &mut health.forget_models_after, duration(Duration::ZERO, YEAR));
    section.set(walk, "resolve", &mut health.resolve, duration(SECOND, DAY));
    section.finish(walk);
}

fn routing(mut section: Section, walk: &mut Walk, routing: &mut RoutingConfig) {
    section.set(walk, "cold_spill_after", &mut routing.cold_spill_after, duration(Duration::ZERO, DAY));
    section.set(walk, "cold_load_grace", &mut routing.cold_load_grace, duration(Duration::ZERO, DAY));
    section.set(walk, "retry_share", &mut routing.retry_share_percent, number(0, 100));
    section.set(walk, "retry_floor", &mut routing.retry_floor, number(0, 1_000_000));
    let degrade = [("warn", Degrade::Warn), ("demote", Degrade::Demote)];
    section.set(walk, "degrade", &mut routing.degrade, one_of(&degrade));
    section.finish(walk);
}

fn ledger(mut section: Section, walk: &mut Walk, ledger: &mut LedgerConfig) {
    section.set(walk, "tick", &mut ledger.tick, duration(10 * MS, 10 * SECOND));
    section.set(walk, "required", &mut ledger.required, toggle);
    let injection = [("auto", UsageInjection::Auto), ("off", UsageInjection::Off)];
    section.set(walk, "usage_injection", &mut ledger.usage_injection, one_of(&injection));
    section.set(walk, "fold_after", &mut ledger.fold_after, duration(DAY, 100 * YEAR));
    section.finish(walk);
}

fn shutdown(mut section: Section, walk: &mut Walk, shutdown: &mut ShutdownConfig) {
    section.set(walk, "delay", &mut shutdown.delay, duration(Duration::ZERO, HOUR));
    section.set(walk, "drain", &mut shutdown.drain, duration(Duration::ZERO, DAY));
    section.finish(walk);
}

fn log(mut section: Section, walk: &mut Walk, log: &mut LogConfig) {
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
    section.set(walk, "level", &mut log.level, |scalar| one_of(&levels)(scalar).map(str::to_owned));
    let formats = [("auto", LogFormat::Auto), ("json", LogFormat::Json), ("human", LogFormat::Human)];
    section.set(walk, "format", &mut log.format, one_of(&formats));
    let access = [("all", AccessLog::All), ("errors", AccessLog::Errors), ("off", AccessLog::Off)];
    section.set(walk, "access", &mut log.access, one_of(&access));
    section.finish(walk);
}

fn debug(mut section: Section, walk: &mut Walk, debug: &mut DebugConfig) {
    section.set(walk, "flamegraph", &mut debug.flamegraph, toggle);
    section.finish(walk);
}

/// The keys at the root, as the embedded default file has them.
pub(super) fn root_keys() -> Vec<String> {
    match default_tree() {
        Some(Value::Map(entries)) => entries.into_iter().map(|entry| entry.name).collect(),
        _ => Vec::new(),
    }
}

fn default_tree() -> Option<Value> {
    tree::parse(&Arc::from("default.yaml"), DEFAULT_FILE).ok().map(|root| root.value)
}

/// Finds where an unknown key has its place; looks the default file up once.
pub(super) fn hints() -> Hint {
    let tree = default_tree();
    Box::new(move |section, name| hint(tree.as_ref(), section, name))
}

/// Where a key that is unknown here has its place: in another section, or under another name.
fn hint(default_tree: Option<&Value>, section: &str, name: &str) -> Option<String> {
    if section.is_empty()
        && let Some(hint) = super::ancestor::our_key(name)
    {
        return Some(hint);
    }
    if let Some(whose) = section.strip_suffix(".timeouts")
        && let Some(why) = not_overridden(whose.starts_with("nodes"), name)
    {
        return Some(format!("{why}; it is `timeouts.{name}` for all"));
    }
    let Some(Value::Map(entries)) = default_tree else { return None };
    let holder = entries.iter().find(|entry| match &entry.node.value {
        Value::Map(below) => entry.name != section && below.iter().any(|below| below.name == name),
        _ => false,
    });
    if let Some(holder) = holder {
        return Some(format!("did you mean `{}.{name}`?", holder.name));
    }
    let at_root = !section.is_empty() && entries.iter().any(|entry| entry.name == name);
    at_root.then(|| format!("`{name}` stands at the left margin, in no section"))
}

/// Why a time-out cannot be a node's, or a model's, own; `None` where it can, or where there is no such time-out.
fn not_overridden(node: bool, name: &str) -> Option<&'static str> {
    Some(match (name, node) {
        ("request_head" | "request_body_idle", true) => "it runs while a client sends, before a node is chosen",
        ("request_head" | "request_body_idle", false) => "it runs while a client sends, before its model is known",
        ("client_idle", _) => "it runs between two requests, when neither node nor model is known",
        ("queue_wait", true) => "a request that waits has no node yet (a model may have its own)",
        ("connect" | "pool_idle", false) => "a connection to a node serves all of its models (a node may have its own)",
        _ => return None,
    })
}

/// Replaces the nodes by those of the command line.
pub(super) fn nodes_from_flags(urls: &[String], walk: &mut Walk, config: &mut Config) {
    let place = Place::Flag("--node");
    config.nodes.clear();
    walk.node_keys.clear();
    for (index, url) in urls.iter().enumerate() {
        let key = format!("nodes[{index}]");
        walk.set_place(&key, &place);
        match NodeConfig::from_url(url) {
            Ok(node) => {
                config.nodes.push(node);
                walk.node_keys.push(key);
            }
            Err(reason) => walk.mistake(&place, &key, Some(&node_url::masked(url)), reason),
        }
    }
}
