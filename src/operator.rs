//! What an operator orders of the running process: read the configuration again, take a node out or in.
//!
//! Workers and the signal loop place orders; the control thread carries them out, one after the other
//! (`control/operator.rs`). How the last reload went is kept here for `/health` and the metrics. Must never be needed by
//! a request.

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::config::{Env, Flags, Mistake, NeedsRestart, Sources};
use crate::sync::{Arc, AtomicU64, Ordering};

/// Orders under way at most.
const ORDERS_MAX: usize = 16;

/// What is ordered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read the configuration again.
    Reload,
    /// Take the node out, or in again.
    Drain {
        /// Its name.
        node: String,
        /// Out.
        on: bool,
    },
}

/// An order, with the way back.
#[derive(Debug)]
pub struct Order {
    /// What is ordered.
    pub command: Command,
    /// Where the answer goes; whoever ordered may have left.
    pub reply: oneshot::Sender<Answer>,
}

/// What came of an order.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON.
    pub body: Value,
}

/// Where the configuration of this process comes from, to be read again.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Origin {
    /// `--config`, or what was found without it.
    pub named: Option<std::path::PathBuf>,
    /// The directory in which it was started.
    pub directory: std::path::PathBuf,
    /// The command line.
    pub flags: Flags,
    /// The environment, as it was at the start.
    pub env: Env,
}

impl Origin {
    /// Reads what there is at the start, and keeps to the file that was found: should it be gone when it is to be read
    /// again, that is a mistake, and not a configuration of defaults without keys.
    ///
    /// # Errors
    /// As [`Origin::sources`].
    pub fn found(&mut self) -> Result<Sources, Mistake> {
        let sources = self.sources()?;
        if let Some((path, _)) = &sources.file {
            self.named = Some(path.clone());
        }
        Ok(sources)
    }

    /// Reads the file anew and puts the sources together.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn sources(&self) -> Result<Sources, Mistake> {
        let file = crate::config::find(self.named.as_deref(), &self.directory, &self.env)?;
        Ok(Sources { file, flags: self.flags.clone(), env: self.env.clone() })
    }
}

/// How the last reload went.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LastReload {
    /// When it was tried, Unix milliseconds; 0: never.
    pub tried_unix_ms: u64,
    /// When one was applied last; at the start that of the start.
    pub applied_unix_ms: u64,
    /// Why it was refused; empty: it was applied.
    pub mistakes: Vec<Mistake>,
    /// What was read and waits for a restart.
    pub needs_restart: Vec<NeedsRestart>,
}

/// The handle that everybody has.
#[derive(Clone, Debug)]
pub struct Operator {
    orders: flume::Sender<Order>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    last: ArcSwap<LastReload>,
    applied: AtomicU64,
    refused: AtomicU64,
}

impl Operator {
    /// The handle, and the control thread's end.
    #[must_use]
    pub fn new(started_unix_ms: u64) -> (Self, flume::Receiver<Order>) {
        let (orders, taken) = flume::bounded(ORDERS_MAX);
        let state = State::default();
        state.last.store(Arc::new(LastReload { applied_unix_ms: started_unix_ms, ..LastReload::default() }));
        (Self { orders, state: Arc::new(state) }, taken)
    }

    /// Places an order; what comes of it is told through the receiver. `None`: too many are under way, or the process
    /// ends.
    #[must_use]
    pub fn order(&self, command: Command) -> Option<oneshot::Receiver<Answer>> {
        let (reply, answer) = oneshot::channel();
        self.orders.try_send(Order { command, reply }).ok().map(|()| answer)
    }

    /// How the last reload went.
    #[must_use]
    pub fn last_reload(&self) -> Arc<LastReload> {
        self.state.last.load_full()
    }

    /// Reloads that were applied, and refused, since the start.
    #[must_use]
    pub fn reloads(&self) -> (u64, u64) {
        (self.state.applied.load(Ordering::Relaxed), self.state.refused.load(Ordering::Relaxed))
    }

    /// A reload was tried. For the control thread.
    pub fn tried(&self, last: LastReload) {
        let counter = if last.mistakes.is_empty() { &self.state.applied } else { &self.state.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        self.state.last.store(Arc::new(last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_found_at_the_start_is_the_one_that_is_read_again() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut origin = Origin { directory: directory.path().to_owned(), ..Origin::default() };
        assert_eq!(origin.found().unwrap().file, None, "none is there");
        let path = directory.path().join("herdgate.yaml");
        std::fs::write(&path, "router_keys: [k]").unwrap();
        assert_eq!(origin.found().unwrap().file, Some((path.clone(), "router_keys: [k]".to_owned())));
        std::fs::rename(&path, elsewhere.path().join("herdgate.yaml")).unwrap();
        let gone = origin.sources().unwrap_err().to_string();
        assert!(gone.contains("herdgate.yaml") && gone.contains("cannot be read"), "{gone}");
    }
}
