//! Which weights lie behind a manifest: asked once for the whole fleet, known to all of its nodes. Pure.
//!
//! Called by [`Node::due`] for the next question, and by [`crate::fleet::facts`], which owns the [`Blobs`].

use std::collections::{HashMap, HashSet};

use super::{Node, Question};
use crate::clock::Millis;
use crate::sync::Arc;

/// Another node is being asked for the same weights: look again after this.
const ASKED_ELSEWHERE_MS: Millis = 250;
/// Weights known to the fleet at most; beyond that all are forgotten, which costs each one another question.
const BLOBS_MAX: usize = 65_536;

/// What is known of the weights behind a manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Weights {
    /// Their blob; `None`: the node shows none, the manifest's digest stands for good.
    Known(Option<Arc<str>>),
    /// Asked in vain; ask again then.
    Retry(Millis),
}

impl Node {
    /// One model whose weights are not known yet; one question at a time, since a show reads the model's file.
    pub(super) fn unknown_weights(&mut self, now: Millis, blobs: &mut Blobs) -> Option<Question> {
        if self.weights_busy || self.weights_at > now || !self.is_ollama() {
            return None;
        }
        self.weights_at = Millis::MAX;
        for entry in self.inventory.iter().filter(|entry| !entry.remote && !entry.digest.is_empty()) {
            match self.weights.get(&entry.digest) {
                Some(Weights::Known(_)) => {}
                Some(Weights::Retry(at)) if *at > now => self.weights_at = self.weights_at.min(*at),
                None | Some(Weights::Retry(_)) => {
                    if let Some((digest, blob)) = blobs.known.get_key_value(&entry.digest) {
                        self.weights.insert(Arc::clone(digest), Weights::Known(Some(Arc::clone(blob))));
                        self.adopted = true;
                    } else if blobs.asked.insert(Arc::clone(&entry.digest)) {
                        self.weights_busy = true;
                        let (digest, name) = (Arc::clone(&entry.digest), Arc::clone(&entry.name));
                        return Some(Question::Weights { digest, name });
                    } else {
                        self.weights_at = self.weights_at.min(now + ASKED_ELSEWHERE_MS);
                    }
                }
            }
        }
        None
    }
}

/// Weights that some node told, by digest of the manifest, for all nodes: the digest is the hash of the very text that
/// names the weights, so equal digests have equal weights wherever they lie. A thousand nodes with two hundred models
/// are asked two hundred times instead of two hundred thousand.
#[derive(Debug, Default)]
pub struct Blobs {
    known: HashMap<Arc<str>, Arc<str>>,
    /// Some node is being asked.
    asked: HashSet<Arc<str>>,
}

impl Blobs {
    /// What nodes told an earlier process.
    pub fn learn(&mut self, node: &Node) {
        for (digest, weights) in &node.weights {
            if let Weights::Known(Some(blob)) = weights {
                self.insert(digest, blob);
            }
        }
    }

    /// A node answered for this manifest; a blob that it showed serves all nodes.
    pub fn answered(&mut self, digest: &Arc<str>, node: &Node) {
        self.asked.remove(digest);
        if let Some(blob) = node.blob(digest) {
            self.insert(digest, blob);
        }
    }

    /// Whoever was asked for this manifest is gone.
    pub fn unanswered(&mut self, digest: &Arc<str>) {
        self.asked.remove(digest);
    }

    fn insert(&mut self, digest: &Arc<str>, blob: &Arc<str>) {
        if self.known.len() >= BLOBS_MAX {
            self.known.clear();
        }
        self.known.insert(Arc::clone(digest), Arc::clone(blob));
    }
}
