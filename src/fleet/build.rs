//! Puts the next Snapshot together from [`Facts`], and brings cells in line with it after it was published.
//!
//! Called by [`crate::fleet::poll`]: [`Facts::snapshot`], then the swap, then [`Facts::published`].
//!
//! A generation costs what changed: a node that did not keeps its view, a model that no changed node has keeps its
//! candidates, listings are merged when what they list changed. After a generation that cost much the next one waits
//! ([`WORK_PER_MS`]), so that a thousand nodes that come up one by one are told together.

use std::collections::HashMap;

use crate::clock::Millis;
use crate::config::{Config, Degrade, NodeKind, SlotsConfig};
use crate::fleet::cells::{Cells, Key, Use};
use crate::fleet::facts::{Facts, INCOMPLETE_MS, is_known, place};
use crate::fleet::inventory::{Entry, Loaded};
use crate::fleet::listing::{self, Source};
use crate::fleet::node::{Node, Now};
use crate::fleet::reconfigure::Told;
use crate::fleet::weave::{Edit, woven};
use crate::fleet::{Candidate, Listing, Model, Models, NodeView, OwnTimes, Snapshot, name_line};
use crate::ids::NodeId;
use crate::slots::{Cell, Limit, Pair};
use crate::sync::Arc;

/// What one millisecond's rest is taken for: candidates, copies and entries that a generation had to go through. Each is
/// some 50 to 100 ns of this thread, so that it is at most a sixth busy with generations, whatever the fleet's size.
const WORK_PER_MS: usize = 2_000;
/// The longest rest.
const REST_MAX_MS: Millis = 1_000;

/// What a node's models were in the last generation.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Work may go there.
    up: bool,
    /// By the models' keys, sorted.
    pairs: Box<[(Arc<str>, Arc<Pair>)]>,
}

/// What changed, by the models' keys; of each the nodes in order.
type Edits = HashMap<Arc<str>, Vec<(NodeId, Edit)>>;

impl Facts {
    /// The next generation, if something has changed that is due to be told.
    pub fn snapshot(&mut self, now: Now) -> Option<Arc<Snapshot>> {
        if self.publish_at() > now.ms {
            return None;
        }
        self.work = 0;
        let models = if self.dirty.models { self.models() } else { Arc::clone(&self.last.models) };
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
            listing: self.listing(),
            used: self.cells.used(),
            shown: self.shown.number(),
        });
        let work = self.work + self.listing_work();
        self.rest_ms = Millis::try_from(work / WORK_PER_MS).map_or(REST_MAX_MS, |ms| ms.min(REST_MAX_MS));
        self.last = Arc::clone(&snapshot);
        Some(snapshot)
    }

    /// When the next generation is due; 0: now.
    pub(super) fn publish_at(&self) -> Millis {
        let wanted = if self.dirty.now { 0 } else { self.lazy_at() };
        // The first generations follow each other at once: nothing has been gone through yet.
        wanted.max(if self.rest_ms == 0 { 0 } else { self.last.published + self.rest_ms })
    }

    /// Brings links, limits, residency and the nodes' words in line with the Snapshot, if one was `published` since the
    /// last call, and says which cells can take work since then: offer them.
    pub fn published(&mut self, now: Now, published: bool) -> Vec<Arc<Cell>> {
        if published && std::mem::take(&mut self.dirty).models {
            for (at, uses) in std::mem::take(&mut self.unsettled) {
                self.cells.settle(self.nodes[at].id, &uses);
                self.mark_new(at);
            }
            self.cells.keep_names(&self.last.models);
        }
        if published {
            self.set_words();
            self.settling.published();
            self.shown.published(self.last.shown);
            std::mem::take(&mut self.told).into_iter().for_each(Told::tell);
        }
        let last = &self.last;
        // While a generation rests, what nodes have told since is in no Snapshot.
        self.misses.settle(now.ms, !self.dirty.models, |key| is_known(last, key));
        std::mem::take(&mut self.opened)
    }

    /// Some configured node never told what it has, and has not been configured for long.
    pub(super) fn is_incomplete(&self, now: Now) -> bool {
        let awaited = |node: &Node| !node.removed && !node.told && now.ms.saturating_sub(node.born) < INCOMPLETE_MS;
        self.nodes.iter().any(awaited)
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
        let known = if node.is_ollama() { node.residency_asked } else { node.ps.at() };
        for (cell, for_good) in in_memory(node, &self.cells) {
            if for_good {
                cell.mark_resident();
            } else if let (false, Some(at)) = (cell.view().loaded, known) {
                cell.mark_loaded(at);
            }
        }
    }

    /// The node as it is now: the same view as in the last generation if nothing about it changed.
    fn view(&self, at: usize, node: &Node) -> Arc<NodeView> {
        if let Some(last) = self.last.nodes.get(at).filter(|last| shows(last, node)) {
            return Arc::clone(last);
        }
        Arc::new(NodeView {
            id: node.id,
            name: Arc::clone(&node.name),
            url: Arc::clone(&node.url),
            kind: node.config.kind,
            llama: node.config.llama,
            target: Arc::clone(&node.target),
            up: node.health.is_up(),
            suspect: node.health.suspect,
            sick: Arc::clone(&node.sick),
            shrunk: node.shrunk,
            cause: Arc::clone(&node.health.cause),
            since: node.health.since,
            version: node.version.clone(),
            word: Arc::clone(&node.word),
            cloud: node.config.cloud,
            any: Arc::clone(&self.any[at]),
            ps: Arc::clone(&node.ps),
            progress: Arc::clone(&node.progress),
            times: OwnTimes::of(&node.config.timeouts),
            draining: node.draining,
            removed: node.removed,
            name_line: name_line(&node.name),
            gained: node.gained,
        })
    }

    /// The models of the next generation: those that no changed node has are the old ones.
    fn models(&mut self) -> Arc<Models> {
        let edits = self.edits();
        let lost: Vec<_> = self.nodes.iter().map(|node| &node.lost).filter(|lost| !lost.is_empty()).collect();
        let is_lost = |key: &str| lost.iter().any(|lost| lost.contains_key(key));
        let mut models = Models::clone(&self.last.models);
        for (key, edits) in edits {
            let old = models.get(&*key);
            let candidates = woven(old.map_or(&[], |old| &old.candidates), &edits);
            let Some(name) = self.cells.known(&key) else { continue };
            let times = own_times(&self.config, &name.name);
            if candidates.is_none() && old.is_some_and(|old| old.times == times) {
                continue;
            }
            let candidates = candidates.or_else(|| old.map(|old| old.candidates.clone())).unwrap_or_default();
            self.work += candidates.len();
            let conflict = listing::conflict(candidates.iter().filter(|c| c.up).map(|c| &*c.digest));
            let (id, queue, word) = (name.id, Arc::clone(&name.queue), Arc::clone(&name.word));
            let model = Model { id, name: Arc::clone(&name.name), queue, word, candidates, conflict, times };
            models.insert(Box::from(&*key), Arc::new(model));
        }
        models.retain(|key, model| !model.candidates.is_empty() || is_lost(key));
        Arc::new(models)
    }

    /// What the nodes that changed change of the models.
    fn edits(&mut self) -> Edits {
        let mut edits = Edits::new();
        for at in 0..self.nodes.len() {
            let (id, up) = (self.nodes[at].id, self.is_routable(&self.nodes[at]));
            if std::mem::take(&mut self.reroute[at]) {
                self.reroute(at, up, &mut edits);
            } else if self.routes[at].up != up {
                for (key, _) in &self.routes[at].pairs {
                    edits.entry(Arc::clone(key)).or_default().push((id, Edit::Up(up)));
                }
            }
            self.routes[at].up = up;
        }
        edits
    }

    /// Works out anew what a node has; its cells are settled after the publication.
    fn reroute(&mut self, at: usize, up: bool, edits: &mut Edits) {
        let node = &self.nodes[at];
        let old = std::mem::take(&mut self.routes[at].pairs);
        let before = |key: &str| old.binary_search_by(|(known, _)| (**known).cmp(key)).ok().map(|found| &old[found].1);
        let demote = self.config.routing.degrade == Degrade::Demote;
        let mut routes = Vec::with_capacity(node.inventory.len());
        let mut uses = Vec::with_capacity(node.inventory.len());
        for entry in node.inventory.iter() {
            let name = self.cells.name(&entry.key, &entry.name);
            let limit = limit(&self.config, node, &name.name);
            let of = key(node, entry);
            let pair = self.cells.pair((node.id, &node.word), &name, of, limit, before(&entry.key));
            let may_serve = !entry.remote || node.config.cloud;
            uses.push(Use { cell: Arc::clone(&pair.cell), queue: may_serve.then_some(name.queue), limit });
            routes.push((Arc::clone(&entry.key), Arc::clone(&pair)));
            let (kind, digest) = (node.config.kind, Arc::clone(&entry.digest));
            let last_choice = demote && node.sick.iter().any(|symptom| symptom.model == name.id);
            if kind == NodeKind::OpenAi || entry.remote {
                // Nothing is loaded or unloaded there. Linked queues, if any, have seen the cell published.
                pair.cell.mark_resident();
            }
            let candidate = Candidate { up, remote: entry.remote, last_choice, ..Candidate::new(pair, kind, digest) };
            edits.entry(Arc::clone(&entry.key)).or_default().push((node.id, Edit::Put(candidate)));
        }
        self.work += routes.len();
        routes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (key, _) in &old {
            if routes.binary_search_by(|(known, _)| known.cmp(key)).is_err() {
                edits.entry(Arc::clone(key)).or_default().push((node.id, Edit::Remove));
            }
        }
        for (key, (name, _)) in &node.lost {
            // Only known to have been there: a model without a candidate of this node.
            self.cells.name(key, name);
            edits.entry(Arc::clone(key)).or_default();
        }
        self.routes[at].pairs = routes.into();
        self.unsettled.push((at, uses));
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let sources = self.nodes.iter().zip(&self.listed).map(|(node, &listed)| Source {
            kind: node.config.kind,
            healthy: node.health.is_up(),
            cloud: node.config.cloud,
            version: node.version.as_deref(),
            inventory: if listed { &node.inventory } else { &[] },
            loaded: &node.loaded,
        });
        sources.collect()
    }

    /// The listings, merged anew as far as what they are made of changed.
    fn listing(&mut self) -> Arc<Listing> {
        let (merges, last) = (&mut self.merges, &self.last.listing);
        match (self.dirty.listing, self.dirty.ps) {
            (true, _) => {
                merges.0 += 1;
                listing::keep(last, listing::merge(&self.sources()))
            }
            (false, true) => {
                merges.1 += 1;
                listing::keep(last, Listing { ps: listing::merge_ps(&self.sources()), ..Listing::clone(last) })
            }
            (false, false) => Arc::clone(last),
        }
    }

    /// How much [`Facts::listing`] had to go through.
    fn listing_work(&self) -> usize {
        let loaded = || self.nodes.iter().map(|node| node.loaded.len()).sum::<usize>();
        match (self.dirty.listing, self.dirty.ps) {
            (true, _) => self.nodes.iter().map(|node| node.inventory.len()).sum::<usize>() + loaded(),
            (false, true) => loaded(),
            (false, false) => 0,
        }
    }
}

/// What the first of the models' overrides that says something of a time-out says.
fn own_times(config: &Config, display: &str) -> OwnTimes {
    config.overrides_of(display).fold(OwnTimes::default(), |times, model| times.or(OwnTimes::of(&model.timeouts)))
}

/// Whether a view shows the node as it is; what is left out here changes only with the word.
fn shows(view: &NodeView, node: &Node) -> bool {
    let health = &node.health;
    (view.draining, view.removed, view.cloud, view.llama)
        == (node.draining, node.removed, node.config.cloud, node.config.llama)
        && Arc::ptr_eq(&view.word, &node.word)
        && Arc::ptr_eq(&view.target, &node.target)
        && view.times == OwnTimes::of(&node.config.timeouts)
        && (view.up, view.suspect, view.since) == (health.is_up(), health.suspect, health.since)
        && Arc::ptr_eq(&view.cause, &health.cause)
        && Arc::ptr_eq(&view.sick, &node.sick)
        && view.shrunk == node.shrunk
        && view.version == node.version
        && view.gained == node.gained
        && Arc::ptr_eq(&view.ps, &node.ps)
}

/// The slots of a model on a node. What an OpenAI-compatible node says of its own slots is exact, so it is a hard limit
/// that makes requests wait here for whichever node is free first; only what was configured for the node or the model
/// itself, or on purpose for all, wins over it.
fn limit(config: &Config, node: &Node, display: &str) -> Limit {
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
            let entry = node.inventory.iter().find(|entry| entry.key == loaded.key);
            return [entry.and_then(cell), None];
        }
        // Until the next generation is published the cell stands under its manifest, though the blob is known.
        let of_weights = |weights: &str| cells.find(node.id, weights).cloned();
        [node.blob(&loaded.digest).and_then(|blob| of_weights(blob)), of_weights(&loaded.digest)]
    };
    // A stub has nothing to load: it is as ready as its node.
    let stubs = node.inventory.iter().filter(|entry| entry.remote).filter_map(cell).map(|cell| (cell, true));
    node.loaded.iter().flat_map(of_loaded).flatten().map(|cell| (cell, false)).chain(stubs).collect()
}
