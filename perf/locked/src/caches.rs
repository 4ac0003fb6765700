//! What each node said last, with its age: freshness is looked at, and what is too old removed, while the lock is held.
//!
//! Read by [`crate::Locked::reserve`] once per node, written by whoever asks the nodes. Must never be locked across a
//! question to a node.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::Millis;
use crate::name::{Map, Name, Set};

/// Models of one node; handed out by reference, as Python does.
pub type Models = Arc<Set>;

/// What a look into a cache found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Young enough.
    Fresh(Models),
    /// Usable, and to be asked for again.
    Stale(Models),
    /// Never asked, forgotten, or too old (and removed by this look).
    Nothing,
}

impl Found {
    /// The models, fresh or stale.
    #[must_use]
    pub fn models(self) -> Option<Models> {
        match self {
            Self::Fresh(models) | Self::Stale(models) => Some(models),
            Self::Nothing => None,
        }
    }
}

/// A list of models per node, under one lock.
#[derive(Debug)]
pub struct Cache {
    entries: Mutex<Map<(Models, Millis)>>,
    fresh: Millis,
    stale: Millis,
}

impl Cache {
    pub(crate) fn new(fresh: Millis, stale: Millis) -> Self {
        Self { entries: Mutex::default(), fresh, stale }
    }

    /// What is known of this node. One lock round.
    pub async fn get(&self, node: &Name, now: Millis) -> Found {
        let mut entries = self.entries.lock().await;
        let Some((models, at)) = entries.get(node) else { return Found::Nothing };
        let age = now.saturating_sub(*at);
        if age < self.fresh {
            return Found::Fresh(Arc::clone(models));
        }
        if age < self.stale {
            return Found::Stale(Arc::clone(models));
        }
        entries.remove(node);
        Found::Nothing
    }

    /// The node answered. One lock round.
    pub async fn put(&self, node: &Name, models: Models, now: Millis) {
        let old = self.entries.lock().await.insert(node.clone(), (models, now));
        // Freed after the lock.
        drop(old);
    }

    /// The node has nothing to offer any more. One lock round.
    pub async fn forget(&self, node: &Name) {
        self.entries.lock().await.remove(node);
    }

    /// Entries held, whatever their age.
    pub async fn len(&self) -> usize {
        self.entries.lock().await.len()
    }

    /// No entry is held.
    pub async fn is_empty(&self) -> bool {
        self.len().await == 0
    }
}

/// When each node failed last, under one lock.
#[derive(Debug)]
pub struct Errors {
    entries: Mutex<Map<Millis>>,
    fresh: Millis,
}

impl Errors {
    pub(crate) fn new(fresh: Millis) -> Self {
        Self { entries: Mutex::default(), fresh }
    }

    /// The node failed a short while ago. One lock round.
    pub async fn is_recent(&self, node: &Name, now: Millis) -> bool {
        let mut entries = self.entries.lock().await;
        let Some(at) = entries.get(node) else { return false };
        if now.saturating_sub(*at) < self.fresh {
            return true;
        }
        entries.remove(node);
        false
    }

    /// The node failed now. One lock round.
    pub async fn put(&self, node: &Name, now: Millis) {
        self.entries.lock().await.insert(node.clone(), now);
    }
}
