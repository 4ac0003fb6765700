//! Puts the next Snapshot together from [`Facts`], and brings cells in line with it after it was published.
//!
//! Called by [`crate::fleet::poll`]: [`Facts::snapshot`], then the swap, then [`Facts::published`].

use std::collections::HashMap;

use crate::clock::Millis;
use crate::config::SlotsConfig;
use crate::fleet::cells::{Cells, Key};
use crate::fleet::facts::{Facts, INCOMPLETE_MS, is_known, place};
use crate::fleet::inventory::{Entry, Loaded};
use crate::fleet::listing::{self, Source};
use crate::fleet::node::{Node, Now};
use crate::fleet::{Candidate, Listing, Model, NodeView, Snapshot};
use crate::ids::NodeId;
use crate::slots::{Cell, Limit};
use crate::sync::Arc;

impl Facts {
    /// The next generation, if something has changed that is due to be told.
    pub fn snapshot(&mut self, now: Now) -> Option<Arc<Snapshot>> {
        if !self.dirty.now && self.lazy_at() > now.ms {
            return None;
        }
        let models = if self.dirty.models { self.models() } else { self.last.models.clone() };
        let listed: Vec<bool> = self.nodes.iter().map(|node| node.is_listed(now)).collect();
        self.dirty.listing |= listed != self.listed;
        self.listed = listed;
        let snapshot = Arc::new(Snapshot {
            generation: self.last.generation + 1,
            published: now.ms,
            nodes: self.nodes.iter().enumerate().map(|(at, node)| self.view(at, node)).collect(),
            models,
            ready: self.ready,
            incomplete: self.is_incomplete(now),
            panicking: self.panicking,
            listing: if self.dirty.listing { self.listing() } else { Arc::clone(&self.last.listing) },
            pairs: self.cells.all(),
        });
        self.last = Arc::clone(&snapshot);
        Some(snapshot)
    }

    /// Brings links, limits, residency and the nodes' words in line with the Snapshot, if one was `published` since the
    /// last call, and says which cells can take work since then: offer them.
    pub fn published(&mut self, now: Now, published: bool) -> Vec<Arc<Cell>> {
        if published && std::mem::take(&mut self.dirty).models {
            let last = Arc::clone(&self.last);
            let nodes = &self.nodes;
            let cloud = |node: NodeId| place(node).and_then(|at| nodes.get(at)).is_some_and(|node| node.config.cloud);
            self.cells.settle(&last.models, |candidate| !candidate.remote || cloud(candidate.node));
            for at in 0..self.nodes.len() {
                self.mark_new(at);
            }
        }
        if published {
            self.set_words();
        }
        let last = &self.last;
        self.misses.settle(now.ms, |key| is_known(last, key));
        std::mem::take(&mut self.opened)
    }

    /// Some configured node was never reached, and the process is young.
    pub(super) fn is_incomplete(&self, now: Now) -> bool {
        now.ms.saturating_sub(self.started) < INCOMPLETE_MS && self.nodes.iter().any(|node| !node.health.reached)
    }

    /// What a node just told of its memory, into its cells.
    pub(super) fn mark_residency(&self, id: NodeId, asked_at: Millis) {
        let Some(node) = place(id).and_then(|at| self.nodes.get(at)) else { return };
        let loaded = in_memory(node, &self.cells);
        for cell in self.cells.of_node(id) {
            if !loaded.iter().any(|(known, _)| Arc::ptr_eq(known, cell)) {
                cell.mark_unloaded(asked_at);
            }
        }
        for (cell, for_good) in loaded {
            if for_good {
                cell.mark_resident();
            } else {
                cell.mark_loaded(asked_at);
            }
        }
    }

    /// What is known of a node's memory, into cells that came after it was told.
    fn mark_new(&self, at: usize) {
        let node = &self.nodes[at];
        let known = if node.is_ollama() { node.residency_asked } else { node.ps.at };
        for (cell, for_good) in in_memory(node, &self.cells) {
            if for_good {
                cell.mark_resident();
            } else if let (false, Some(at)) = (cell.view().loaded, known) {
                cell.mark_loaded(at);
            }
        }
    }

    fn view(&self, at: usize, node: &Node) -> NodeView {
        NodeView {
            id: node.id,
            name: Arc::clone(&node.name),
            url: Arc::clone(&node.url),
            kind: node.config.kind,
            llama: node.config.llama,
            target: Arc::clone(&node.target),
            up: node.health.is_up(),
            suspect: node.health.suspect,
            cause: Arc::clone(&node.health.cause),
            since: node.health.since,
            version: node.version.clone(),
            word: Arc::clone(&node.word),
            cloud: node.config.cloud,
            any: Arc::clone(&self.any[at]),
            ps: Arc::clone(&node.ps),
            progress: Arc::clone(&node.progress),
        }
    }

    fn models(&mut self) -> HashMap<Box<str>, Arc<Model>> {
        let mut candidates: HashMap<Arc<str>, (Arc<str>, Vec<Candidate>)> = HashMap::new();
        for node in &self.nodes {
            let up = self.is_routable(node);
            for entry in node.inventory.iter() {
                let name = self.cells.name(&entry.key, &entry.name);
                let limit = limit(&self.config, node, &name.name);
                let pair = self.cells.pair((node.id, &node.word), &entry.key, &name, key(node, entry), limit);
                let digest = Arc::clone(&entry.digest);
                let candidate =
                    Candidate { node: node.id, up, kind: node.config.kind, pair, digest, remote: entry.remote };
                let place =
                    candidates.entry(Arc::clone(&entry.key)).or_insert_with(|| (Arc::clone(&name.name), Vec::new()));
                place.1.push(candidate);
            }
        }
        let lost = self.nodes.iter().flat_map(|node| &node.lost);
        for (key, (name, _)) in lost {
            candidates.entry(Arc::clone(key)).or_insert_with(|| (Arc::clone(name), Vec::new()));
        }
        let model = |(key, (display, candidates)): (Arc<str>, (Arc<str>, Vec<Candidate>))| {
            let name = self.cells.name(&key, &display);
            let conflict = listing::conflict(candidates.iter().filter(|c| c.up).map(|c| &*c.digest));
            let model = Model {
                id: name.id,
                name: name.name,
                queue: name.queue,
                word: name.word,
                candidates: candidates.into(),
                conflict,
            };
            (Box::from(&*key), Arc::new(model))
        };
        candidates.into_iter().map(model).collect()
    }

    fn listing(&self) -> Arc<Listing> {
        let sources: Vec<Source<'_>> = self
            .nodes
            .iter()
            .zip(&self.listed)
            .map(|(node, &listed)| Source {
                kind: node.config.kind,
                healthy: node.health.is_up(),
                cloud: node.config.cloud,
                version: node.version.as_deref(),
                inventory: if listed { &node.inventory } else { &[] },
                loaded: &node.loaded,
            })
            .collect();
        listing::keep(&self.last.listing, listing::merge(&sources))
    }
}

/// The slots of a model on a node. What an OpenAI-compatible node says of its own slots is exact, so it is a hard limit
/// that makes requests wait here for whichever node is free first; only what was configured for the node or the model
/// itself, or on purpose for all, wins over it.
fn limit(config: &crate::config::Config, node: &Node, display: &str) -> Limit {
    let (slots, from) = config.slots_for(&node.config, display);
    let is_default = matches!(from, "default" | "max_concurrent_connections");
    match (node.total_slots, slots) {
        (Some(total), _) if is_default => Limit::Hard(total),
        (_, SlotsConfig::Soft(limit)) => Limit::Soft(limit),
        (_, SlotsConfig::Hard(limit)) => Limit::Hard(limit),
    }
}

/// What a name's cell is known by on its node.
fn key<'a>(node: &'a Node, entry: &'a Entry) -> Key<'a> {
    // A key holds a colon after its last slash or is no valid name; a digest is neither.
    let manifest = if entry.digest.is_empty() { &entry.key } else { &entry.digest };
    Key { manifest, blob: node.blob(&entry.digest).map(|blob| &**blob) }
}

/// The cells of what a node has in memory, and whether that is for good.
///
/// By weights, not by name: ps shows the name that loaded a runner, a second name of the same weights is served by it and
/// never shows. A digest that is not in the inventory is a model replaced on disk while the old one still runs: no cell.
fn in_memory(node: &Node, cells: &Cells) -> Vec<(Arc<Cell>, bool)> {
    let cell = |entry: &Entry| {
        let key = key(node, entry);
        cells.find(node.id, key.blob.unwrap_or(key.manifest)).cloned()
    };
    if !node.is_ollama() {
        let served = node.inventory.iter().filter(|entry| entry.loaded);
        return served.filter_map(|entry| Some((cell(entry)?, entry.fields.raw("status").is_none()))).collect();
    }
    let of_loaded = |loaded: &Loaded| {
        if loaded.digest.is_empty() {
            return node.inventory.iter().find(|entry| entry.key == loaded.key).and_then(cell);
        }
        cells.find(node.id, node.blob(&loaded.digest).map_or(&*loaded.digest, |blob| &**blob)).cloned()
    };
    // A stub has nothing to load: it is as ready as its node.
    let stubs = node.inventory.iter().filter(|entry| entry.remote).filter_map(cell).map(|cell| (cell, true));
    node.loaded.iter().filter_map(of_loaded).map(|cell| (cell, false)).chain(stubs).collect()
}
