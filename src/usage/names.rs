//! Names and their dense ids: nodes, models, keys. Append-only; read by workers, the ledger and the metrics.
//!
//! Nodes and keys come with the configuration and its reloads; models appear as inventories show them or nodes answer for
//! them.
//! These ids live as long as the process; the ledger has its own on disk. Must never wait, and never forget a name.

use std::sync::OnceLock;

use crate::ids::{KeyId, ModelId, NodeId};
use crate::sync::{Arc, AtomicU32, Ordering};

/// How a request that reached no node, or came without a key, is named.
pub const NONE: &str = "_none";
/// How [`ModelId::UNKNOWN`] is named.
pub const UNKNOWN: &str = "_unknown";
/// How [`ModelId::OTHER`] is named.
pub const OTHER: &str = "_other";
/// How [`KeyId::LOST`] is named.
pub const LOST: &str = "_lost";

/// Reverse entries per chunk; a chunk is allocated when its first name comes.
const CHUNK: usize = 1024;
/// Nodes, and keys, that can have a name in one life of the process, reloads and all.
pub const ROLL_MAX: usize = 64 * CHUNK;
/// First id that belongs to a real name.
const FIRST_MODEL: u32 = 2;

type Chunk = Box<[OnceLock<Arc<str>>]>;

/// Names and their ids.
///
/// # Invariants
/// 1. A name that has an id keeps it; an id's name never changes.
/// 2. At most `limit` ids are given out; further names share [`ModelId::OTHER`].
/// 3. An id's name is set before the id can be found by name.
///
/// # Orderings
/// `next` is Relaxed: it only hands out numbers; names are published by their `OnceLock` and by the map.
///
/// # Progress
/// Lookups are lock-free. Two threads that register one name at the same time may burn a number (its entry stays in
/// the reverse table, unreachable by name); two that open one chunk at the same time may wait for one allocation.
#[derive(Debug)]
pub struct Names {
    nodes: Roll,
    keys: Roll,
    ids: papaya::HashMap<Arc<str>, ModelId>,
    names: Box<[OnceLock<Chunk>]>,
    next: AtomicU32,
    limit: u32,
}

impl Names {
    /// Names of the configured nodes and router keys, in their order, and room for `limit` models.
    #[must_use]
    pub fn new<S: AsRef<str>>(nodes: &[S], keys: &[S], limit: u32) -> Self {
        let chunks = (limit as usize).saturating_add(FIRST_MODEL as usize).div_ceil(CHUNK);
        let names = Self {
            nodes: Roll::of(nodes),
            keys: Roll::of(keys),
            ids: papaya::HashMap::with_capacity((limit as usize).min(CHUNK)),
            names: (0..chunks).map(|_| OnceLock::new()).collect(),
            next: AtomicU32::new(FIRST_MODEL),
            limit,
        };
        names.set_name(ModelId::UNKNOWN, UNKNOWN.into());
        names.set_name(ModelId::OTHER, OTHER.into());
        names
    }

    /// The id of a model's display name, given out now if it has none yet; [`ModelId::OTHER`] when all are given out.
    ///
    /// Call it for names that an inventory lists or a node answered 2xx for, never for what a client merely sent.
    #[must_use]
    pub fn model(&self, display: &str) -> ModelId {
        let ids = self.ids.pin();
        if let Some(id) = ids.get(display) {
            return *id;
        }
        // Checked before the add, so that a flood of new names cannot make the number wrap.
        if self.next.load(Ordering::Relaxed) >= FIRST_MODEL.saturating_add(self.limit) {
            return ModelId::OTHER;
        }
        let id = ModelId(self.next.fetch_add(1, Ordering::Relaxed));
        if id.0 >= FIRST_MODEL.saturating_add(self.limit) {
            return ModelId::OTHER;
        }
        let name: Arc<str> = display.into();
        self.set_name(id, name.clone());
        *ids.get_or_insert(name, id)
    }

    /// The id of a model's display name, if it has one.
    #[must_use]
    pub fn find(&self, display: &str) -> Option<ModelId> {
        self.ids.pin().get(display).copied()
    }

    /// A model's display name; `_unknown` and `_other` for the two shared ids, and for ids never given out.
    #[must_use]
    pub fn model_name(&self, id: ModelId) -> Arc<str> {
        self.slot(id).and_then(OnceLock::get).cloned().unwrap_or_else(|| UNKNOWN.into())
    }

    /// A node's id as configured; `_none` for [`NodeId::NONE`].
    #[must_use]
    pub fn node_name(&self, id: NodeId) -> &str {
        self.nodes.get(id.0 as usize).map_or(NONE, |name| name)
    }

    /// The node of this name, if it is or was configured.
    #[must_use]
    pub fn find_node(&self, name: &str) -> Option<NodeId> {
        u32::try_from(self.nodes.find(name)?).ok().map(NodeId)
    }

    /// The id of a node's name, given out now if it has none yet; `None` when [`ROLL_MAX`] are given out. For the control
    /// thread alone.
    #[must_use]
    pub fn add_node(&self, name: &str) -> Option<NodeId> {
        u32::try_from(self.nodes.find_or_push(name)?).ok().map(NodeId)
    }

    /// The id of a router key's name; [`KeyId::NONE`] if it has none.
    #[must_use]
    pub fn find_key(&self, name: &str) -> KeyId {
        self.keys.find(name).map_or(KeyId::NONE, key_id)
    }

    /// The id of a router key's name, given out now if it has none yet; `None` when [`ROLL_MAX`] are given out. For the
    /// control thread alone.
    #[must_use]
    pub fn add_key(&self, name: &str) -> Option<KeyId> {
        self.keys.find_or_push(name).map(key_id)
    }

    /// A router key's name; `_none` for [`KeyId::NONE`], `_lost` for [`KeyId::LOST`].
    #[must_use]
    pub fn key_name(&self, id: KeyId) -> &str {
        if id == KeyId::LOST {
            return LOST;
        }
        let place = (id.0 as usize).checked_sub(1);
        place.and_then(|place| self.keys.get(place)).map_or(NONE, |name| name)
    }

    /// Names of the nodes that are or were configured, in the order in which they came.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &str)> {
        (0..).map(NodeId).zip(self.nodes.iter().map(|name| &**name))
    }

    /// Models that have an id of their own.
    #[must_use]
    pub fn models(&self) -> usize {
        self.ids.len()
    }

    fn slot(&self, id: ModelId) -> Option<&OnceLock<Arc<str>>> {
        self.names.get(id.0 as usize / CHUNK)?.get()?.get(id.0 as usize % CHUNK)
    }

    fn set_name(&self, id: ModelId, name: Arc<str>) {
        let Some(chunk) = self.names.get(id.0 as usize / CHUNK) else { return };
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| OnceLock::new()).collect());
        // A number is given out once, so the slot is empty.
        let _ = chunk[id.0 as usize % CHUNK].set(name);
    }
}

/// Zero is [`KeyId::NONE`].
fn key_id(place: usize) -> KeyId {
    KeyId(u32::try_from(place + 1).unwrap_or(u32::MAX))
}

/// A list that only grows: an entry never moves and never changes, so that readers need no guard.
///
/// # Orderings
/// An entry is published by its `OnceLock`, `length` (Release, read with Acquire) after it. One writer at a time.
#[derive(Debug)]
struct Roll {
    chunks: Box<[OnceLock<Chunk>]>,
    length: AtomicU32,
}

impl Roll {
    fn of<S: AsRef<str>>(names: &[S]) -> Self {
        let chunks = (0..ROLL_MAX.max(names.len()).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        let roll = Self { chunks, length: AtomicU32::new(0) };
        for name in names {
            roll.push(name.as_ref());
        }
        roll
    }

    fn get(&self, place: usize) -> Option<&Arc<str>> {
        self.chunks.get(place / CHUNK)?.get()?.get(place % CHUNK)?.get()
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        (0..self.length.load(Ordering::Acquire) as usize).filter_map(|place| self.get(place))
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.iter().position(|known| &**known == name)
    }

    fn find_or_push(&self, name: &str) -> Option<usize> {
        self.find(name).or_else(|| self.push(name))
    }

    fn push(&self, name: &str) -> Option<usize> {
        let place = self.length.load(Ordering::Relaxed) as usize;
        let chunk = self.chunks.get(place / CHUNK)?;
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| OnceLock::new()).collect());
        chunk[place % CHUNK].set(name.into()).ok()?;
        self.length.store(u32::try_from(place + 1).ok()?, Ordering::Release);
        Some(place)
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn gives_one_id_per_name_and_shares_other_when_full() {
        let names = Names::new(&["http://a:1", "b"], &["ops"], 2);
        let first = names.model("llama3:latest");
        assert_eq!(names.model("llama3:latest"), first);
        assert_eq!(names.find("llama3:latest"), Some(first));
        assert_eq!(names.find("LLAMA3:latest"), None);
        let second = names.model("qwen:7b");
        assert_ne!(first, second);
        assert_eq!(names.model("third:1b"), ModelId::OTHER, "I8: names are bounded");
        assert_eq!(names.models(), 2);
        assert_eq!(&*names.model_name(second), "qwen:7b");
        assert_eq!(&*names.model_name(ModelId::OTHER), OTHER);
        assert_eq!(&*names.model_name(ModelId(77)), UNKNOWN);
    }

    #[test]
    fn fixed_names() {
        let names = Names::new(&["http://a:1", "b"], &["ops"], 2);
        assert_eq!((names.node_name(NodeId(1)), names.node_name(NodeId::NONE)), ("b", NONE));
        assert_eq!(names.find_node("http://a:1"), Some(NodeId(0)));
        assert_eq!(
            (names.key_name(KeyId(1)), names.key_name(KeyId::NONE), names.key_name(KeyId(9))),
            ("ops", NONE, NONE)
        );
        assert_eq!(names.nodes().map(|(_, name)| name).collect::<Vec<_>>(), ["http://a:1", "b"]);
    }

    #[test]
    fn nodes_and_keys_of_a_reload_get_the_next_ids_and_keep_them() {
        let names = Names::new(&["a", "b"], &["old"], 2);
        assert_eq!((names.add_node("c"), names.add_node("a")), (Some(NodeId(2)), Some(NodeId(0))));
        assert_eq!((names.add_key("new"), names.find_key("new")), (Some(KeyId(2)), KeyId(2)));
        assert_eq!((names.find_key("old"), names.find_key("none")), (KeyId(1), KeyId::NONE));
        for n in 0..2 * CHUNK {
            assert!(names.add_node(&format!("n{n}")).is_some());
        }
        assert_eq!(
            (names.node_name(NodeId(0)), names.node_name(NodeId(2)), names.node_name(NodeId(3))),
            ("a", "c", "n0")
        );
        assert_eq!(names.nodes().count(), 2 * CHUNK + 3);
    }

    #[test]
    fn threads_agree_on_ids() {
        let names = Names::new::<&str>(&[], &[], 5000);
        let seen: Vec<Vec<ModelId>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| (0..2000).map(|n| names.model(&format!("m{n}"))).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(seen[0], seen[1]);
        for (n, id) in seen[0].iter().enumerate() {
            assert_eq!(&*names.model_name(*id), format!("m{n}"));
        }
        let distinct: std::collections::BTreeSet<_> = seen[0].iter().collect();
        assert_eq!(distinct.len(), 2000);
    }
}
