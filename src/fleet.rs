//! The fleet as one immutable [`Snapshot`] behind one atomic pointer: who is up, who has which model, what listings say.
//!
//! The poller ([`poll`]) is its only writer; workers load it once per decision (I5) and never hold it across an await.
//! What changes faster than a poll (in flight, loading, loaded) lives in the cells of [`crate::slots`], which the
//! Snapshot carries from generation to generation. A generation shares with the one before whatever did not change:
//! nodes, models, listings, each behind an `Arc` of its own. Must not import routing.

mod build;
pub mod cells;
pub mod expansion;
pub mod facts;
pub mod fanout;
pub mod fetch;
pub(crate) mod file;
pub mod health;
pub mod inventory;
pub mod listing;
pub mod memory;
pub mod misses;
pub mod node;
pub mod poll;
pub mod progress;
pub mod reconfigure;
pub mod report;
pub mod resolve;
pub mod settle;
pub mod shelf;
pub mod shown;
pub mod sick;
mod weave;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;

use arc_swap::ArcSwap;

use crate::clock::{Millis, millis};
use crate::config::{NodeKind, Secret, TimeoutOverrides};
use crate::fleet::progress::NodeProgress;
use crate::ids::{CellId, ModelId, NodeId};
use crate::mix::Mix;
use crate::pulse::Pulse;
use crate::slots::{Cell, Limit, ModelWord, NodeWord, Pair, Place, Queue};
use crate::sync::{Arc, AtomicU64, Hint, Ordering};
use crate::usage::counters::{PairCounters, Used};

/// The one pointer to the current [`Snapshot`]; shared by everybody, written by the poller alone.
#[derive(Debug)]
pub struct Fleet {
    /// The current generation. Workers read it through an `arc_swap::Cache` of their own.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// How late the poller was with what was due, milliseconds: last, and the most since the start.
    pub lag: Arc<[Hint; 2]>,
    /// When the poller will be back.
    pub pulse: Arc<Pulse>,
}

impl Fleet {
    /// A fleet that nobody has polled yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty())),
            lag: Arc::default(),
            pulse: Arc::default(),
        }
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

/// Models by the key of their name ([`crate::dialect::name::key`]): nodes list the names, clients only look them up.
pub type Models = HashMap<Box<str>, Arc<Model>, BuildHasherDefault<Mix>>;

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
    /// Every node that is or was configured, indexed by [`NodeId`]; see [`Snapshot::configured`].
    pub nodes: Box<[Arc<NodeView>]>,
    /// Every model that a node, up or down, has or is remembered to have had.
    pub models: Arc<Models>,
    /// The first poll round is done (or 2 s have passed): clients are served.
    pub ready: bool,
    /// Some configured node has never told what it has and is configured for less than 60 s: unknown names are 503.
    pub incomplete: bool,
    /// More than half of the nodes failed at once: routing keeps to the last known good ones.
    pub panicking: bool,
    /// Merged listings, serialised once.
    pub listing: Arc<Listing>,
    /// The counters of every (node, model) that ever saw a request, those of `any` included; the same in all generations.
    pub used: Arc<Used>,
    /// So many reports of loads and unloads are in `listing`.
    pub shown: u64,
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
            shown: 0,
        }
    }

    /// The nodes that are configured now.
    pub fn configured(&self) -> impl Iterator<Item = &Arc<NodeView>> {
        self.nodes.iter().filter(|node| !node.removed)
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
    /// Time-outs of its own.
    pub times: OwnTimes,
    /// Taken out by its operator: it finishes what it has and gets nothing new.
    pub draining: bool,
    /// Not configured any more. It keeps its place, since ids are places; monitoring does not show it.
    pub removed: bool,
    /// Its name as a line of an answer's head, see [`name_line`].
    pub name_line: Arc<[u8]>,
    /// How often it was seen to have names that it did not have before.
    pub gained: u64,
}

impl NodeView {
    /// A node that nothing is known of yet: down, open to nobody, without an address. Tests and benches build theirs from
    /// it by struct update; `workers` is how many hold counters.
    #[must_use]
    pub fn bare(id: NodeId, name: &str, kind: NodeKind, workers: usize) -> Self {
        let word = Arc::new(if kind == NodeKind::OpenAi { NodeWord::v1_only() } else { NodeWord::new() });
        let cell = Arc::new(Cell::new(CellId(id.0), id, Arc::clone(&word), Limit::Soft(4)));
        let counters = Arc::new(PairCounters::new(workers));
        Self {
            id,
            name: name.into(),
            url: format!("http://{name}").into(),
            kind,
            llama: false,
            target: Arc::new(Target { host: name.into(), connect_ms: 2_000, ..Target::default() }),
            up: false,
            suspect: false,
            sick: Arc::default(),
            shrunk: None,
            cause: "".into(),
            since: 0,
            version: None,
            word,
            cloud: false,
            any: Arc::new(Pair { cell, counters, model: ModelId::UNKNOWN, model_word: None }),
            ps: Arc::default(),
            progress: Arc::new(NodeProgress::new(workers)),
            times: OwnTimes::default(),
            draining: false,
            removed: false,
            gained: 0,
            name_line: name_line(name),
        }
    }
}

/// The header line that names a node in answers, ready to be copied; what may not stand in one is percent-encoded.
#[must_use]
pub fn name_line(name: &str) -> Arc<[u8]> {
    use std::io::Write;
    let mut line = b"X-Herdgate-Node: ".to_vec();
    for byte in name.bytes() {
        if byte.is_ascii_graphic() {
            line.push(byte);
        } else {
            // Writing to memory cannot fail.
            let _ = write!(line, "%{byte:02X}");
        }
    }
    line.extend_from_slice(b"\r\n");
    line.into()
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

/// Time-outs that a node or a model has of its own, in milliseconds; a model's win over its node's.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[expect(missing_docs, reason = "each is the configuration key of the same name")]
pub struct OwnTimes {
    pub stream_idle: Option<Millis>,
    pub client_stall: Option<Millis>,
    pub queue_wait: Option<Millis>,
    pub suspect_after: Option<Millis>,
}

impl OwnTimes {
    /// As configured.
    #[must_use]
    pub fn of(overrides: &TimeoutOverrides) -> Self {
        Self {
            stream_idle: overrides.stream_idle.map(millis),
            client_stall: overrides.client_stall.map(millis),
            queue_wait: overrides.queue_wait.map(millis),
            suspect_after: overrides.suspect_after.map(millis),
        }
    }

    /// These, and where they say nothing the others.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            stream_idle: self.stream_idle.or(others.stream_idle),
            client_stall: self.client_stall.or(others.client_stall),
            queue_wait: self.queue_wait.or(others.queue_wait),
            suspect_after: self.suspect_after.or(others.suspect_after),
        }
    }
}

/// Where a node's requests go. Addresses are re-resolved by the control thread; everything else a reload replaces whole.
#[derive(Default, Debug)]
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
    /// How long its idle connections are kept, if it has its own word in that.
    pub pool_idle_ms: Option<Millis>,
    /// The name that is looked up again and again; `None` for a literal address.
    pub lookup: Option<(Box<str>, u16)>,
    /// Rises when the node is elsewhere from now on; see [`Target::epoch`].
    pub epoch: AtomicU64,
}

impl Target {
    /// Which of the places it had it is at. Relaxed: a connection opened a moment too early goes to where the node was a
    /// moment ago.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// It is at these addresses from now on; connections to others are not used again. For the control thread.
    pub fn moved(&self, addresses: Vec<SocketAddr>) {
        self.addresses.store(Arc::new(addresses));
        self.epoch.store(self.epoch() + 1, Ordering::Relaxed);
    }

    /// The same node under another configuration: at `before`'s addresses where the place is the same, else elsewhere.
    #[must_use]
    pub(crate) fn succeeding(self, before: &Self) -> Self {
        let place = |target: &Self| (target.host.clone(), target.lookup.clone());
        let same = place(&self) == place(before);
        if same {
            self.addresses.store(before.addresses.load_full());
        }
        self.epoch.store(before.epoch() + u64::from(!same), Ordering::Relaxed);
        self
    }
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
    /// Time-outs of its own.
    pub times: OwnTimes,
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
    /// Where the word of the pair's cell is: a decision reads every candidate's.
    pub place: Place,
    /// Slot word and counters of (node, name). Cells are shared by names with the same weights on that node.
    pub pair: Arc<Pair>,
    /// Digest of the manifest as `/api/tags` says (64 hex); empty for OpenAI-compatible nodes.
    pub digest: Arc<str>,
    /// A remote stub (`remote_host`): runs elsewhere.
    pub remote: bool,
    /// Sick, and `routing.degrade` says so: taken when no other copy has room.
    pub last_choice: bool,
}

impl Candidate {
    /// A copy on a node that is up, local to it, healthy.
    #[must_use]
    pub fn new(pair: Arc<Pair>, kind: NodeKind, digest: Arc<str>) -> Self {
        let (node, place) = (pair.cell.node, pair.cell.place());
        Self { node, up: true, kind, place, pair, digest, remote: false, last_choice: false }
    }
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
