//! Listings merged over the nodes and serialised once: tags, ps, version, `/v1/models`. Pure.
//!
//! Called by the poller for each generation whose facts changed; workers only clone the bytes. Shapes and key order are
//! Ollama's (contract §6, §9.3). Must never list what no route can serve, nor ask anything.

use std::cmp::Reverse;
use std::collections::HashMap;

use bytes::Bytes;
use jiff::Timestamp;

use crate::config::NodeKind;
use crate::dialect::name;
use crate::fleet::Listing;
use crate::fleet::inventory::{Entry, Fields, Loaded, write_text};
use crate::sync::Arc;

/// What `/api/version` says while no node has told its own: what a plain source build of Ollama says. It parses as
/// three integers, which clients insist on, and is below every version that a client might require.
const NO_VERSION: &str = "0.0.0";

/// What one node contributes.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What it speaks.
    pub kind: NodeKind,
    /// Up.
    pub healthy: bool,
    /// Cloud models may be sent there; without it its remote stubs cannot be served and are not listed.
    pub cloud: bool,
    /// Its version, last known.
    pub version: Option<&'a str>,
    /// Its models; the last known ones while it is briefly down, none once it has been down for long.
    pub inventory: &'a [Entry],
    /// What is in its memory; none while it is down or that is not known.
    pub loaded: &'a [Loaded],
}

/// Merges all nodes, in configuration order.
#[must_use]
pub fn merge(sources: &[Source<'_>]) -> Listing {
    let models = merge_tags(sources);
    Listing {
        tags: write_models(models.iter().map(|model| &model.fields)),
        ps: merge_ps(sources),
        version: write_version(sources),
        v1_models: write_v1(&models, sources),
    }
}

/// `/api/ps` alone: what is loaded changes with every request, what could be loaded seldom.
#[must_use]
pub fn merge_ps(sources: &[Source<'_>]) -> Bytes {
    write_models(merged_loaded(sources).iter())
}

/// The new listing, with the bytes of the old one wherever they are equal, so that clients of equal answers share them.
#[must_use]
pub fn keep(old: &Arc<Listing>, mut new: Listing) -> Arc<Listing> {
    let mut same = true;
    for (kept, fresh) in [
        (&old.tags, &mut new.tags),
        (&old.ps, &mut new.ps),
        (&old.version, &mut new.version),
        (&old.v1_models, &mut new.v1_models),
    ] {
        if kept == fresh {
            *fresh = kept.clone();
        } else {
            same = false;
        }
    }
    if same { Arc::clone(old) } else { Arc::new(new) }
}

/// Whether nodes disagree about the digest of a name; nodes without digests have no say.
#[must_use]
pub fn conflict<'a>(mut digests: impl Iterator<Item = &'a str>) -> bool {
    let Some(first) = digests.find(|digest| !digest.is_empty()) else { return false };
    digests.any(|digest| !digest.is_empty() && digest != first)
}

/// One line of `/api/tags`.
struct Model {
    key: Arc<str>,
    name: Arc<str>,
    modified: Option<Timestamp>,
    fields: Fields,
}

/// One entry of one node.
#[derive(Clone, Copy)]
struct Seen<'a, T> {
    source: &'a Source<'a>,
    entry: &'a T,
}

fn merge_tags(sources: &[Source<'_>]) -> Vec<Model> {
    let copies = sources.iter().filter(|source| source.kind == NodeKind::Ollama).flat_map(|source| {
        let servable = source.inventory.iter().filter(|entry| source.cloud || !entry.remote);
        servable.map(move |entry| Seen { source, entry })
    });
    let mut models: Vec<Model> =
        grouped(copies, |entry| (&*entry.key, "")).into_iter().filter_map(|group| merge_model(&group)).collect();
    models.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.key.cmp(&b.key)));
    models
}

/// One entry for one name: the canonical digest's, as its newest node shows it, with the latest date.
fn merge_model(copies: &[Seen<'_, Entry>]) -> Option<Model> {
    let canonical = canonical_digest(copies)?;
    let copies = copies.iter().filter(|copy| *copy.entry.digest == *canonical);
    let base = newest_node(copies.clone())?;
    let latest = copies.max_by_key(|copy| copy.entry.modified)?;
    let mut fields = base.entry.fields.clone();
    if base.entry.modified != latest.entry.modified
        && let Some(raw) = latest.entry.fields.raw("modified_at")
    {
        fields.replace("modified_at", raw);
    }
    let entry = base.entry;
    Some(Model { key: Arc::clone(&entry.key), name: Arc::clone(&entry.name), modified: latest.entry.modified, fields })
}

/// The digest that most healthy nodes have, then the newest, then the smallest (so that the choice is stable).
fn canonical_digest<'a>(copies: &[Seen<'a, Entry>]) -> Option<&'a str> {
    let mut digests: Vec<(&str, usize, Option<Timestamp>)> = Vec::with_capacity(1);
    for copy in copies {
        let (healthy, modified) = (usize::from(copy.source.healthy), copy.entry.modified);
        match digests.iter_mut().find(|(digest, ..)| *digest == &*copy.entry.digest) {
            Some((_, nodes, newest)) => (*nodes, *newest) = (*nodes + healthy, (*newest).max(modified)),
            None => digests.push((&copy.entry.digest, healthy, modified)),
        }
    }
    digests
        .into_iter()
        .max_by_key(|&(digest, nodes, newest)| (nodes, newest, Reverse(digest)))
        .map(|(digest, ..)| digest)
}

/// The copy whose node shows the most: healthy before not, newest version, first configured.
fn newest_node<'a, 'b: 'a, T: 'b>(copies: impl Iterator<Item = &'a Seen<'b, T>>) -> Option<&'a Seen<'b, T>> {
    // Of equals max_by_key takes the last, so the order is turned round.
    let copies: Vec<_> = copies.collect();
    copies.into_iter().rev().max_by_key(|copy| (copy.source.healthy, copy.source.version.and_then(number)))
}

fn merged_loaded(sources: &[Source<'_>]) -> Vec<Fields> {
    let nodes = sources.iter().filter(|source| source.healthy && source.kind == NodeKind::Ollama);
    let copies = nodes.flat_map(|source| source.loaded.iter().map(move |entry| Seen { source, entry }));
    let groups = grouped(copies, |entry| (&*entry.key, &*entry.digest));
    let mut merged: Vec<_> = groups.iter().filter_map(|group| merge_loaded(group)).collect();
    merged.sort_by(|(a, a_key, _), (b, b_key, _)| b.cmp(a).then_with(|| a_key.cmp(b_key)));
    merged.into_iter().map(|(_, _, fields)| fields).collect()
}

/// Sizes are sums (that keeps the CLI's split between CPU and GPU right), the expiry is the latest, the context the
/// smallest (clients budget their prompts by it).
fn merge_loaded<'a>(copies: &[Seen<'a, Loaded>]) -> Option<(Option<Timestamp>, &'a str, Fields)> {
    let base = newest_node(copies.iter())?;
    let key: &str = &base.entry.key;
    let latest = copies.iter().max_by_key(|copy| copy.entry.expires)?;
    let expires = latest.entry.expires;
    let mut fields = base.entry.fields.clone();
    if copies.len() > 1 {
        let numbers = |key| copies.iter().filter_map(move |copy| copy.entry.fields.value::<u64>(key));
        for key in ["size", "size_vram"] {
            fields.replace(key, &numbers(key).fold(0_u64, u64::saturating_add).to_string());
        }
        if let Some(least) = numbers("context_length").filter(|&tokens| tokens > 0).min() {
            fields.replace("context_length", &least.to_string());
        }
        if let Some(raw) = latest.entry.fields.raw("expires_at") {
            fields.replace("expires_at", raw);
        }
    }
    Some((expires, key, fields))
}

/// Groups copies by what `of` says of their entry, in order of first sight.
fn grouped<'a, T>(
    copies: impl Iterator<Item = Seen<'a, T>>,
    of: impl Fn(&'a T) -> (&'a str, &'a str),
) -> Vec<Vec<Seen<'a, T>>> {
    let mut places: HashMap<(&str, &str), usize> = HashMap::new();
    let mut groups: Vec<Vec<Seen<'a, T>>> = Vec::new();
    for copy in copies {
        let place = *places.entry(of(copy.entry)).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(copy),
            None => groups.push(vec![copy]),
        }
    }
    groups
}

fn write_models<'a>(models: impl Iterator<Item = &'a Fields>) -> Bytes {
    let mut out = b"{\"models\":[".to_vec();
    for (at, fields) in models.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        fields.write(&mut out);
    }
    out.extend_from_slice(b"]}");
    out.into()
}

/// `/v1/models`: the tags in OpenAI's shape, then what OpenAI-compatible nodes serve, in their own words. `data` is
/// null when there is nothing, and the body ends with a newline, both as Ollama has it.
fn write_v1(models: &[Model], sources: &[Source<'_>]) -> Bytes {
    let mut out = b"{\"object\":\"list\",\"data\":".to_vec();
    let start = out.len();
    let mut listed: std::collections::HashSet<&str> = std::collections::HashSet::new();
    for model in models {
        listed.insert(&model.key);
        out.push(b',');
        write_v1_model(&mut out, model);
    }
    let served = sources.iter().filter(|source| source.kind == NodeKind::OpenAi).flat_map(|source| source.inventory);
    for entry in served {
        if listed.insert(&entry.key) {
            out.push(b',');
            entry.fields.write(&mut out);
        }
    }
    if out.len() == start {
        out.extend_from_slice(b"null}\n");
    } else {
        // The first comma's place is the bracket's.
        out[start] = b'[';
        out.extend_from_slice(b"]}\n");
    }
    out.into()
}

fn write_v1_model(out: &mut Vec<u8>, model: &Model) {
    out.extend_from_slice(b"{\"id\":");
    write_text(out, &model.name);
    let created = model.modified.map_or(0, Timestamp::as_second);
    out.extend_from_slice(format!(",\"object\":\"model\",\"created\":{created},\"owned_by\":").as_bytes());
    write_text(out, name::parse(&model.name).map_or(name::DEFAULT_NAMESPACE, |parsed| parsed.namespace));
    out.push(b'}');
}

/// The lowest version of the healthy nodes, so that nobody is promised what one of them lacks; without any the lowest
/// last known. What does not parse as numbers is passed over: clients would choke on it.
fn write_version(sources: &[Source<'_>]) -> Bytes {
    let lowest = |healthy: bool| {
        let nodes = sources.iter().filter(|source| !healthy || source.healthy);
        let versions = nodes.filter_map(|source| source.version).filter_map(|text| Some((number(text)?, text)));
        versions.min().map(|(_, text)| text)
    };
    let version = lowest(true).or_else(|| lowest(false)).unwrap_or(NO_VERSION);
    let mut out = b"{\"version\":".to_vec();
    write_text(&mut out, version);
    out.push(b'}');
    out.into()
}

/// `0.33.0-rc2` as something to compare: its numbers, then release before nothing else (a pre-release comes first).
fn number(version: &str) -> Option<([u64; 3], bool, &str)> {
    let bare = version.strip_prefix('v').unwrap_or(version);
    let (numbers, suffix) = bare.split_once('-').map_or((bare, ""), |(numbers, suffix)| (numbers, suffix));
    let mut parts = [0; 3];
    let mut places = parts.iter_mut();
    for part in numbers.split('.') {
        *places.next()? = part.parse().ok()?;
    }
    Some((parts, suffix.is_empty(), suffix))
}

#[cfg(test)]
mod tests;
