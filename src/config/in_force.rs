//! The configuration in force: one atomic pointer, replaced whole by a reload.
//!
//! Everybody holds a clone of the handle; whoever decides loads it once for the decision. Written by the control thread
//! alone. Must never be changed in part.

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

use super::Config;
use crate::sync::Arc;

/// The handle; clones share what is in force.
#[derive(Clone, Debug)]
pub struct InForce {
    current: Arc<ArcSwap<Config>>,
}

impl InForce {
    /// In force from the start.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(config)) }
    }

    /// What is in force now, to keep for a decision.
    #[must_use]
    pub fn now(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Puts another one in force.
    pub fn put(&self, config: Arc<Config>) {
        self.current.store(config);
    }

    /// For one thread that asks often.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader(Cache::new(Arc::clone(&self.current)))
    }
}

/// One thread's view: a look costs one relaxed load while nothing was put in force.
#[derive(Debug)]
pub struct Reader(Cache<Arc<ArcSwap<Config>>, Arc<Config>>);

impl Reader {
    /// What is in force now.
    pub fn load(&mut self) -> &Arc<Config> {
        self.0.load()
    }
}
