//! The ancestor's locks in the place of the lock-free state, for measurements: built under `--cfg proxy_locked` alone.
//!
//! `RUSTFLAGS='--cfg proxy_locked' cargo build --release` makes the same proxy with the state of `perf/locked`. This file
//! holds that state and its half below routing; `routing/locked.rs` has the other half. What goes through it, and where
//! the switch stands:
//!
//! | act | lock-free | here | switch |
//! |---|---|---|---|
//! | which nodes have, have loaded the model; choose, take a slot | `routing::pick` | [`Locked::reserve`] | `proxy/reserve.rs` |
//! | give the slot back | `Cell::release` | [`give_back`] | `slots/permit.rs` |
//! | tell what it spent | `Ring::push` | [`spend`], the token worker, [`flush`] | `usage/recorder.rs` |
//! | publish | the control thread's sampling | at every change, [`forward`] | `admin/monitor.rs` |
//! | refresh the caches, flush | the poller's swap | `routing::locked` | `control.rs` |
//!
//! What stays as it is in both builds: the Snapshot (it says what the caches are filled with and where requests are sent),
//! the single-writer counters that the monitoring routes sum, the ledger (it plays the ancestor's database: a flush hands
//! its rows over). Nobody waits for a slot here: limits are preferences, as they were. Like the ancestor's, this state is
//! one per process. Must never be built into what ships.

use std::collections::HashMap;
use std::sync::OnceLock;

use arc_swap::ArcSwap;
use herdgate_locked::{Event, Locked, Name, Publishing};

use super::recorder::Ring;
use super::{Count, Outcome};
use crate::clock::Clock;
use crate::ids::{ModelId, NodeId, UnixMinute};
use crate::sync::{Arc, AtomicBool, Ordering, spawn_local};

/// How long a flush waits when the ledger's ring is full.
const RING_FULL: std::time::Duration = std::time::Duration::from_millis(5);

static STATE: OnceLock<State> = OnceLock::new();

/// The state, and the names it goes by.
#[derive(Debug)]
pub struct State {
    /// The ancestor's scheme.
    pub locked: Locked<Outcome>,
    /// Names of nodes and models as of the last refresh.
    pub names: ArcSwap<Directory>,
    works: AtomicBool,
}

/// Names by id.
#[derive(Debug, Default)]
pub struct Directory {
    /// By [`NodeId`].
    pub nodes: Vec<Name>,
    /// Of every model that some node has.
    pub models: HashMap<ModelId, Name>,
}

impl Directory {
    fn of(&self, node: NodeId, model: ModelId) -> Option<(Name, Name)> {
        Some((self.nodes.get(usize::try_from(node.0).ok()?)?.clone(), self.models.get(&model)?.clone()))
    }
}

/// The process' one state. `HERDGATE_LOCKED_PUBLISH=read` makes states only for readers, which the ancestor does not do:
/// it tells the locks' share from that of the JSON.
#[must_use]
pub fn state() -> &'static State {
    STATE.get_or_init(|| {
        let when_read = std::env::var("HERDGATE_LOCKED_PUBLISH").is_ok_and(|when| when == "read");
        let publishing = if when_read { Publishing::WhenRead } else { Publishing::Always };
        State { locked: Locked::new(publishing), names: ArcSwap::default(), works: AtomicBool::new(false) }
    })
}

impl State {
    /// Starts the token worker on this thread unless it runs: beside requests, as in the ancestor, so that with one worker
    /// nobody is woken on another core.
    pub fn ensure_worker(&'static self, clock: &Clock) {
        if !self.works.load(Ordering::Relaxed) && !self.works.swap(true, Ordering::AcqRel) {
            let clock = clock.clone();
            spawn_local(async move { self.locked.work(|| clock.unix_ms() / 1000).await });
        }
    }
}

/// A slot comes back: at once if no lock is held, else by a task.
pub fn give_back(node: NodeId, model: ModelId) {
    let state = state();
    let Some((node, model)) = state.names.load().of(node, model) else { return };
    if !state.locked.try_release(&node, &model) {
        spawn_local(async move { state.locked.release(&node, &model).await });
    }
}

/// Hands a request's tokens to the token worker; false if there are none, of which the ancestor makes no record.
#[must_use]
pub fn spend(outcome: &Outcome) -> bool {
    let (Count::Exact(tokens) | Count::Estimated(tokens)) = outcome.count else { return false };
    let state = state();
    let names = state.names.load().of(outcome.node, outcome.model);
    let Some((node, model)) = names.filter(|_| tokens.total() > 0) else { return false };
    state.locked.spend(Event { node, model, input: tokens.input, output: tokens.output, detail: *outcome });
    true
}

/// Takes the buffers under their lock and writes them after: to the ledger, through its rings.
pub async fn flush(rings: &[Arc<Ring>]) {
    let buffers = state().locked.take_buffers().await;
    for (place, row) in buffers.series.into_iter().enumerate() {
        let minute = UnixMinute(u32::try_from(row.timestamp / 60).unwrap_or(u32::MAX));
        let outcome = Outcome { minute, ..row.event.detail };
        while !rings[place % rings.len()].push(&outcome) {
            tokio::time::sleep(RING_FULL).await;
        }
    }
}

/// Takes what is left on the token queue and in the buffers: the workers have ended.
pub async fn finish(rings: &[Arc<Ring>], clock: &Clock) {
    state().locked.work_off(|| clock.unix_ms() / 1000).await;
    flush(rings).await;
}

/// Passes every state on until `publish` says that nobody reads any more.
pub fn forward(publish: impl Fn(&[u8]) -> bool + 'static) {
    spawn_local(async move {
        let locked = &state().locked;
        let reader = locked.subscribe().await;
        while publish(&reader.next().await) {}
        locked.unsubscribe(&reader).await;
    });
}
