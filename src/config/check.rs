//! Checks across keys, once every source has been read.

use super::mistake::Place;
use super::walk::Walk;
use super::{Administration, Config, node_url, units};

/// Reports what is wrong between keys. `nodes_replaced`: the nodes come from the command line, and what refers to the
/// file's own is then no mistake.
pub(super) fn check(config: &Config, nodes_replaced: bool, walk: &mut Walk) {
    nodes(config, walk);
    router_keys(config, walk);
    pull_targets(config, nodes_replaced, walk);
    numbers(config, walk);
    exposure(config, walk);
}

/// Path and place of a node; the default node has neither.
fn whereabouts(walk: &Walk, index: usize) -> (String, Place) {
    let key = walk.node_keys.get(index).cloned().unwrap_or_else(|| format!("nodes[{index}]"));
    let place = walk.place_of(&key);
    (key, place)
}

fn nodes(config: &Config, walk: &mut Walk) {
    for (index, node) in config.nodes.iter().enumerate() {
        let (key, place) = whereabouts(walk, index);
        let same_name = config.nodes[..index].iter().position(|earlier| earlier.name == node.name);
        let spelling = node.normalised();
        let same_server = config.nodes[..index].iter().position(|earlier| earlier.normalised() == spelling);
        if let Some(earlier) = same_name {
            let reason = format!("has the name of {}; give one of them another `name`", whereabouts(walk, earlier).0);
            walk.mistake(&place, &key, Some(&node.name), reason);
        } else if let Some(earlier) = same_server {
            let reason = format!("is the same server as {}; its load is counted twice", whereabouts(walk, earlier).0);
            walk.warn(&place, &key, Some(&node.url), reason);
        }
        if node_url::parse(&node.url).is_ok_and(|url| !url.port_given) {
            walk.warn(&place, &key, Some(&node.url), "names no port: 80 is used (Ollama listens on 11434)");
        }
    }
}

fn router_keys(config: &Config, walk: &mut Walk) {
    for (index, key) in config.router_keys.iter().enumerate() {
        let path = format!("router_keys[{index}]");
        let place = walk.place_of(&path);
        let earlier = &config.router_keys[..index];
        if let Some(same) = earlier.iter().position(|earlier| earlier.name == key.name) {
            walk.mistake(&place, &path, Some(&key.name), format!("has the name of router_keys[{same}]"));
        }
        if let Some(same) = earlier.iter().position(|earlier| earlier.secret == key.secret) {
            walk.mistake(&place, &path, None, format!("is the key of router_keys[{same}] again"));
        }
    }
}

fn pull_targets(config: &Config, nodes_replaced: bool, walk: &mut Walk) {
    for model in &config.models {
        for (index, target) in model.pull_targets.iter().enumerate() {
            if config.nodes.iter().any(|node| node.name == *target) {
                continue;
            }
            let path = format!("models.{}.pull_targets[{index}]", model.pattern);
            let place = walk.place_of(&path);
            let near = units::nearest(target, config.nodes.iter().map(|node| node.name.as_str()));
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let reason = format!("is the name of no node{hint}");
            if nodes_replaced {
                walk.warn(&place, &path, Some(target), reason);
            } else {
                walk.mistake(&place, &path, Some(target), reason);
            }
        }
    }
}

fn numbers(config: &Config, walk: &mut Walk) {
    let limits = &config.limits;
    if limits.body_memory_bytes < limits.max_body_bytes {
        let key = later(walk, "limits.body_memory", "limits.max_body");
        let reason = format!(
            "limits.body_memory ({}) must hold at least one body of limits.max_body ({})",
            units::show_size(limits.body_memory_bytes),
            units::show_size(limits.max_body_bytes)
        );
        walk.mistake(&walk.place_of(key), key, None, reason);
    }
    let health = &config.health;
    if health.backoff_max < health.probe {
        let key = later(walk, "health.backoff_max", "health.probe");
        let reason = format!(
            "health.backoff_max ({}) must not be below health.probe ({})",
            units::show_duration(health.backoff_max),
            units::show_duration(health.probe)
        );
        walk.mistake(&walk.place_of(key), key, None, reason);
    }
    if health.stale_residency < health.ps {
        let key = later(walk, "health.stale_residency", "health.ps");
        let reason = "health.stale_residency is below health.ps: what is loaded is never known between two polls";
        walk.warn(&walk.place_of(key), key, None, reason);
    }
}

/// Of two keys the one that was set, the first if both were.
fn later(walk: &Walk, first: &'static str, second: &'static str) -> &'static str {
    if walk.place_of(first) == Place::Default { second } else { first }
}

fn exposure(config: &Config, walk: &mut Walk) {
    let place = walk.place_of("listen");
    let listen = config.listen.to_string();
    if !config.listen.ip().is_loopback() && config.router_keys.is_empty() {
        let reason = "is beyond this machine and no router key is set: whoever reaches it may use every model";
        walk.warn(&place, "listen", Some(&listen), reason);
    }
    if config.administration == Administration::Key && config.router_keys.is_empty() {
        let reason = "needs router_keys, of which there are none: nobody can administer";
        walk.warn(&walk.place_of("administration"), "administration", Some("key"), reason);
    }
}
