//! The fleet as one immutable [`Snapshot`] behind one atomic pointer: who is up, who has which model, what listings say.
//!
//! The poller ([`poll`]) is its only writer; workers load it once per decision (I5) and never hold it across an await.
//! What changes faster than a poll (in flight, loading, loaded) lives in the cells of [`crate::slots`], which the
//! Snapshot carries from generation to generation. A generation shares with the one before whatever did not change:
//! nodes, models, listings, each behind an `Arc` of its own. Must not import routing.

mod build;
pub mod cells;
pub mod facts;
pub mod fanout;
pub mod fetch;
pub mod health;
pub mod inventory;
pub mod listing;
pub mod memory;
pub mod misses;
pub mod node;
pub mod poll;
pub mod progress;
pub mod report;
pub mod resolve;
pub mod settle;
pub mod shelf;
pub mod sick;
mod weave;

use std::collections::HashMap;
use std::net::SocketAddr;

use arc_swap::ArcSwap;

use crate::clock::Millis;
use crate::config::{NodeKind, Secret};
use crate::fleet::progress::NodeProgress;
use crate::ids::{ModelId, NodeId};
use crate::slots::{Cell, ModelWord, NodeWord, Pair, Queue};
use crate::sync::{Arc, AtomicU64, Ordering};
use crate::usage::counters::Used;

/// The one pointer to the current [`Snapshot`]; shared by everybody, written by the poller alone.
#[derive(Debug)]
pub struct Fleet {
    /// The current generation. Workers read it through an `arc_swap::Cache` of their own.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
}

impl Fleet {
    /// A fleet that nobody has polled yet.
    #[must_use]
    pub fn new() -> Self {
        Self { snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty())) }
    }

    /// The current generation, to keep across an await.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

/// One generation of facts.
///
/// It owns up to nodes times models candidates: the last reader must not be the one to free them on a worker, so the
/// poller keeps each until nobody else does ([`poll`]).
#[derive(Debug)]
pub struct Snapshot {
    /// Rises by one with each publication.
    pub generation: u64,
    /// When it was published.
    pub published: Millis,
    /// Every configured node, indexed by [`NodeId`].
    pub nodes: Box<[Arc<NodeView>]>,
    /// Every model that a node, up or down, has or is remembered to have had; by [`crate::dialect::name::key`].
    pub models: Arc<HashMap<Box<str>, Arc<Model>>>,
    /// The first poll round is done (or 2 s have passed): clients are served.
    pub ready: bool,
    /// Some configured node has never been reached and the process is younger than 60 s: unknown names are 503.
    pub incomplete: bool,
    /// More than half of the nodes failed at once: routing keeps to the last known good ones.
    pub panicking: bool,
    /// Merged listings, serialised once.
    pub listing: Arc<Listing>,
    /// The counters of every (node, model) that ever saw a request, those of `any` included; the same in all generations.
    pub used: Arc<Used>,
}

impl Snapshot {
    /// Generation zero: no nodes, no models, not ready. Tests build theirs from it by struct update.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            generation: 0,
            published: 0,
            nodes: Box::default(),
            models: Arc::default(),
            ready: false,
            incomplete: true,
            panicking: false,
            listing: Arc::new(listing::merge(&[])),
            used: Arc::default(),
        }
    }

    /// The node with this id, unless it is [`NodeId::NONE`].
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.get(usize::try_from(id.0).ok()?).map(|node| &**node)
    }
}

/// One node as of this generation.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its place.
    pub id: NodeId,
    /// Its id in ledger, metrics and logs.
    pub name: Arc<str>,
    /// URL exactly as configured.
    pub url: Arc<str>,
    /// What it speaks.
    pub kind: NodeKind,
    /// Stood in the ancestor's `llama_server_endpoints`.
    pub llama: bool,
    /// Where requests go.
    pub target: Arc<Target>,
    /// Up, as health says.
    pub up: bool,
    /// Up, but requests on it have been silent for `suspect_after`: it gets no new work.
    pub suspect: bool,
    /// Its sick copies.
    pub sick: Arc<[sick::Symptom]>,
    /// It came back with less than half of its models: how many it had, how many it has.
    pub shrunk: Option<(usize, usize)>,
    /// Why it is in that state, for people.
    pub cause: Arc<str>,
    /// Since when.
    pub since: Millis,
    /// Its `/api/version`, last known; `None` for OpenAI-compatible nodes.
    pub version: Option<Arc<str>>,
    /// Takes new work; shared with its cells.
    pub word: Arc<NodeWord>,
    /// Cloud models may be sent here.
    pub cloud: bool,
    /// Slot and counters of requests that name no known model (unparseable bodies, cloud names, pass-through).
    pub any: Arc<Pair>,
    /// Its `/api/ps` entries, each a JSON object as received, with its age; for `/api/ps_details`.
    pub ps: Arc<NodePs>,
    /// When bytes came last, and from how many requests they are awaited; written by workers, read each second.
    pub progress: Arc<NodeProgress>,
}

/// What a node's `/api/ps` said last (for an OpenAI-compatible node: its served models).
#[derive(Debug, Default)]
pub struct NodePs {
    /// The entries, as received.
    pub entries: Vec<Box<serde_json::value::RawValue>>,
    /// When they were told last, plus one; 0: never. Relaxed: it is shown and decides nothing in a reader.
    told: AtomicU64,
}

impl NodePs {
    /// Entries told at this time.
    #[must_use]
    pub fn new(at: Millis, entries: Vec<Box<serde_json::value::RawValue>>) -> Self {
        Self { entries, told: AtomicU64::new(at + 1) }
    }

    /// When the answer came; `None` before the first.
    #[must_use]
    pub fn at(&self) -> Option<Millis> {
        self.told.load(Ordering::Relaxed).checked_sub(1)
    }

    /// The same was told again: no news, only younger. For the poller.
    fn told_again(&self, at: Millis) {
        self.told.store(at + 1, Ordering::Relaxed);
    }
}

/// Where a node's requests go. Addresses are re-resolved by the control thread.
#[derive(Debug)]
pub struct Target {
    /// Tried in turn within `connect`; empty until the name first resolves.
    pub addresses: ArcSwap<Vec<SocketAddr>>,
    /// Value of `Host`.
    pub host: Box<str>,
    /// Prefix of every path, usually empty.
    pub base_path: Box<str>,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<Secret>,
    /// Time-out of a connect.
    pub connect_ms: Millis,
}

/// One model by name.
#[derive(Debug)]
pub struct Model {
    /// Its id in counters and ledger.
    pub id: ModelId,
    /// Normalised display name.
    pub name: Arc<str>,
    /// Who waits for it.
    pub queue: Arc<Queue>,
    /// Facts shared by all its copies (which one loads, since when all are full, rotation).
    pub word: Arc<ModelWord>,
    /// The nodes that have it (or, being down, had it), in node order. Empty: only remembered.
    pub candidates: Box<[Candidate]>,
    /// Nodes disagree about the digest of this name.
    pub conflict: bool,
}

/// One node that has a model.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Copied from the node: up in this generation.
    pub up: bool,
    /// Copied from the node.
    pub kind: NodeKind,
    /// The pair's cell, one step nearer: a decision reads every candidate's.
    pub cell: Arc<Cell>,
    /// Slot word and counters of (node, name). Cells are shared by names with the same weights on that node.
    pub pair: Arc<Pair>,
    /// Digest of the manifest as `/api/tags` says (64 hex); empty for OpenAI-compatible nodes.
    pub digest: Arc<str>,
    /// A remote stub (`remote_host`): runs elsewhere.
    pub remote: bool,
    /// Sick, and `routing.degrade` says so: taken when no other copy has room.
    pub last_choice: bool,
}

/// Listings merged over the nodes that are up (plus the memory of those briefly down), serialised once per change.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// `GET /api/tags`.
    pub tags: bytes::Bytes,
    /// `GET /api/ps`.
    pub ps: bytes::Bytes,
    /// `GET /api/version`.
    pub version: bytes::Bytes,
    /// `GET /v1/models`.
    pub v1_models: bytes::Bytes,
}
