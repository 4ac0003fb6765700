//! What nodes had, over restarts: one JSON file beside the ledger, read at start, written now and then.
//!
//! It is a hint, not a record: a file that is absent, too new, torn or of another fleet is as good as none. It is
//! written in a thread of its own. Called by the poller alone.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::clock::millis;
use crate::config::{Config, HealthConfig, NodeKind};
use crate::fleet::file;
use crate::fleet::inventory::{self, Fields};
use crate::fleet::node::{Node, Now, Weights};
use crate::sync::Arc;

/// The form of the file; another number is not read.
const FORM: u32 = 1;
/// The largest file read.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What was stored of the fleet.
#[derive(Debug, Default, Deserialize)]
pub struct Memory {
    form: u32,
    /// By the node's name.
    nodes: BTreeMap<String, Remembered>,
}

/// What was stored of one node.
#[derive(Debug, Deserialize)]
struct Remembered {
    /// It speaks OpenAI's API only.
    openai: bool,
    /// It was up when this was written.
    up: bool,
    /// When it was up last.
    seen_unix_ms: u64,
    #[serde(default)]
    version: Option<String>,
    /// Its entries as received.
    models: Vec<Box<RawValue>>,
    /// Names lost while it was down, and the UTC millisecond until which they count.
    #[serde(default)]
    lost: BTreeMap<String, u64>,
    /// Blob of the weights by digest of the manifest.
    #[serde(default)]
    weights: BTreeMap<String, Option<String>>,
}

/// Where the file is.
#[must_use]
pub fn path(config: &Config) -> PathBuf {
    config.data.join("inventories.json")
}

/// What is to be stored of the fleet: the same form, sharing what the nodes hold, so that the poller is done at once and
/// the thread that writes needs no copy (a large fleet's is 100 MB).
#[derive(Debug, Default, Serialize)]
pub struct Keepsake {
    form: u32,
    nodes: BTreeMap<Shared, Kept>,
}

/// What is to be stored of one node; as [`Remembered`].
#[derive(Debug, Serialize)]
struct Kept {
    openai: bool,
    up: bool,
    seen_unix_ms: u64,
    version: Option<Shared>,
    models: Models,
    lost: BTreeMap<Shared, u64>,
    weights: BTreeMap<Shared, Option<Shared>>,
}

/// A text that others hold too.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Shared(Arc<str>);

impl Serialize for Shared {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// An inventory, of which the fields are stored.
#[derive(Debug)]
struct Models(Arc<Vec<inventory::Entry>>);

impl Serialize for Models {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|entry| &entry.fields))
    }
}

impl Keepsake {
    /// What is worth storing of these nodes; those never reached keep what an earlier process stored.
    #[must_use]
    pub fn of(nodes: &[Node]) -> Self {
        let seen = nodes.iter().filter_map(|node| Some((Shared(Arc::clone(&node.name)), Kept::of(node)?)));
        Self { form: FORM, nodes: seen.collect() }
    }

    /// Replaces the file, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        file::replace(path, |file| serde_json::to_writer(file, self))
    }
}

impl Kept {
    fn of(node: &Node) -> Option<Self> {
        let shared = |text: &Arc<str>| Shared(Arc::clone(text));
        let weight = |(digest, weights): (&Arc<str>, &Weights)| match weights {
            Weights::Known(blob) => Some((shared(digest), blob.as_ref().map(shared))),
            Weights::Retry(_) => None,
        };
        Some(Self {
            openai: node.config.kind == NodeKind::OpenAi,
            up: node.health.is_up(),
            seen_unix_ms: node.seen_unix_ms?,
            version: node.version.as_ref().map(shared),
            models: Models(Arc::clone(&node.inventory)),
            lost: node.lost.values().map(|(name, until)| (shared(name), *until)).collect(),
            weights: node.weights.iter().filter_map(weight).collect(),
        })
    }
}

impl Memory {
    /// Reads the file; whatever is wrong with it is logged and nothing is remembered.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        match file::read::<Self>(path, FILE_BYTES_MAX) {
            Ok(memory) if memory.form == FORM => memory,
            Ok(memory) => {
                tracing::warn!(path = %path.display(), form = memory.form, "inventories of another form are not read");
                Self::default()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "inventories cannot be read");
                Self::default()
            }
        }
    }

    /// Hands a node what was stored of it, unless that is too old or it was of another kind.
    pub(super) fn restore(&mut self, node: &mut Node, now: Now, rules: &HealthConfig) {
        let Some(stored) = self.nodes.remove(&*node.name) else { return };
        let forget_ms = millis(rules.forget_models_after);
        if stored.openai == node.is_ollama() || now.unix_ms.saturating_sub(stored.seen_unix_ms) >= forget_ms {
            return;
        }
        let entry = if stored.openai { inventory::serve } else { inventory::tag };
        let entries = stored.models.iter().filter_map(|raw| serde_json::from_str::<Fields>(raw.get()).ok());
        let entries: Vec<_> =
            entries.filter_map(entry).map(|entry| inventory::Entry { loaded: false, ..entry }).collect();
        node.version = stored.version.map(Arc::from);
        node.lost = lost(stored.lost, now);
        let known = stored.weights.into_iter();
        node.weights = known.map(|(digest, blob)| (digest.into(), Weights::Known(blob.map(Arc::from)))).collect();
        node.restore(entries, stored.seen_unix_ms, stored.up);
    }
}

fn lost(stored: BTreeMap<String, u64>, now: Now) -> HashMap<Arc<str>, (Arc<str>, u64)> {
    let alive = stored.into_iter().filter(|(_, until)| *until > now.unix_ms);
    alive.map(|(name, until)| (crate::dialect::name::key(&name).into(), (name.into(), until))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inventories.json");
        assert!(Memory::load(&path).nodes.is_empty(), "absent");
        for rubbish in ["", "{", r#"{"form":2,"nodes":{}}"#, r#"{"form":1,"nodes":{"a":{}}}"#] {
            std::fs::write(&path, rubbish).unwrap();
            assert!(Memory::load(&path).nodes.is_empty(), "{rubbish}");
        }
    }

    #[test]
    fn the_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inventories.json");
        std::fs::write(&path, "old").unwrap();
        Keepsake { form: FORM, nodes: BTreeMap::new() }.store(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), r#"{"form":1,"nodes":{}}"#);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let nowhere = dir.path().join("absent").join("inventories.json");
        assert!(Keepsake::default().store(&nowhere).is_err());
    }
}
