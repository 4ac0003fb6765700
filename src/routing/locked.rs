//! Choosing a node as the ancestor does, under its locks: built under `--cfg proxy_locked` alone.
//!
//! `usage/locked.rs` says what that is for. [`pick`] stands in the place of `routing::pick`; [`start`] keeps the caches in
//! line with the Snapshot, from the control thread, and flushes. Must never be built into what ships.

use std::time::Duration;

use arc_swap::ArcSwap;
use herdgate_locked::{Models, Name};

use super::Ask;
use crate::clock::{Clock, Millis};
use crate::fleet::{Candidate, Fleet, Model, Snapshot};
use crate::slots::{Limit, Taken};
use crate::sync::{Arc, spawn_local};
use crate::usage::locked::{self, Directory, state};
use crate::usage::recorder::Ring;

/// How often the ancestor writes its buffers.
const FLUSH: Duration = Duration::from_secs(10);
/// How often the Snapshot is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A changed fleet is told to the caches this late at most, in a process' first minute and after it.
const YOUNG_MS: Millis = 250;
const OLD_MS: Millis = 5_000;
/// The caches are filled anew after this anyway: as long as a list of loaded models is fresh.
const AGE_MS: Millis = 10_000;

/// The model's candidate that serves this request; it is counted there, whatever the limit.
///
/// Where the caches know of nobody they are filled first, and looked into again, as the ancestor asks its nodes then.
pub async fn pick(
    snapshot: &Snapshot,
    model: &Model,
    ask: &Ask<'_>,
    clock: &Clock,
    random: u32,
) -> Option<(usize, Taken)> {
    state().ensure_worker(clock);
    let cached = from_caches(snapshot, model, ask, random).await;
    if cached.is_some() {
        return cached;
    }
    fill(snapshot, clock.now()).await;
    from_caches(snapshot, model, ask, random).await
}

async fn from_caches(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>, random: u32) -> Option<(usize, Taken)> {
    let names = state().names.load_full();
    let place = |node: usize| model.candidates.binary_search_by_key(&node, |c| c.node.0 as usize).ok();
    let admits = |c: &Candidate| ask.admits(snapshot, c) && c.pair.cell.node_word.is_open();
    let asked = herdgate_locked::Ask {
        nodes: &names.nodes,
        model: names.models.get(&model.id)?,
        limit: limit(model),
        random: random as usize,
        now: ask.now,
    };
    let admitted = |node| place(node).is_some_and(|candidate| admits(&model.candidates[candidate]));
    let chosen = state().locked.reserve(&asked, admitted).await?;
    let taken = if chosen.loaded { Taken::Warm } else { Taken::Cold };
    Some((place(chosen.node)?, taken))
}

/// One limit for all nodes, as the ancestor has it.
fn limit(model: &Model) -> u64 {
    let limit = model.candidates.first().map(|candidate| candidate.pair.cell.view().limit);
    u64::from(match limit {
        Some(Limit::Soft(limit) | Limit::Hard(limit)) => limit,
        None => 1,
    })
}

/// The periodic work, running.
pub struct Running {
    rings: Arc<[Arc<Ring>]>,
    clock: Clock,
}

/// Keeps the caches in line with the fleet and flushes, on this thread.
#[must_use]
pub fn start(fleet: &Fleet, clock: &Clock, rings: &[Arc<Ring>]) -> Running {
    let running = Running { rings: rings.into(), clock: clock.clone() };
    spawn_local(refresh(fleet.snapshot.clone(), clock.clone()));
    let rings = running.rings.clone();
    spawn_local(async move {
        loop {
            tokio::time::sleep(FLUSH).await;
            locked::flush(&rings).await;
        }
    });
    running
}

impl Running {
    /// The last flush; the workers have ended.
    pub async fn finish(self) {
        locked::finish(&self.rings, &self.clock).await;
    }
}

async fn refresh(fleet: Arc<ArcSwap<Snapshot>>, clock: Clock) {
    let (mut told, mut told_at) = (u64::MAX, 0);
    loop {
        let (snapshot, now) = (fleet.load_full(), clock.now());
        let pause = if now < 60_000 { YOUNG_MS } else { OLD_MS };
        let changed = snapshot.generation != told && (now - told_at >= pause || told == u64::MAX);
        if changed || now - told_at >= AGE_MS {
            (told, told_at) = (snapshot.generation, now);
            fill(&snapshot, now).await;
        }
        drop(snapshot);
        tokio::time::sleep(LOOK).await;
    }
}

/// What the Snapshot says of each node, into the caches: a lock round per node and cache.
async fn fill(snapshot: &Snapshot, now: Millis) {
    let state = state();
    let old = state.names.load_full();
    let nodes: Vec<Name> = match &old.nodes[..] {
        known if known.len() == snapshot.nodes.len() => known.to_vec(),
        _ => snapshot.nodes.iter().map(|node| Name::new(&node.name)).collect(),
    };
    let mut models = old.models.clone();
    let mut available = vec![herdgate_locked::Set::default(); nodes.len()];
    let mut loaded = available.clone();
    for model in snapshot.models.values() {
        let name = models.entry(model.id).or_insert_with(|| Name::new(&model.name));
        for candidate in model.candidates.iter().filter(|candidate| candidate.up) {
            let node = candidate.node.0 as usize;
            available[node].insert(name.clone());
            if candidate.pair.cell.view().loaded {
                loaded[node].insert(name.clone());
            }
        }
    }
    state.names.store(Arc::new(Directory { nodes: nodes.clone(), models }));
    let told = nodes.iter().zip(&snapshot.nodes).zip(available.into_iter().zip(loaded));
    for ((name, view), (available, loaded)) in told {
        if view.up {
            state.locked.available.put(name, Models::new(available), now).await;
            state.locked.loaded.put(name, Models::new(loaded), now).await;
        } else {
            state.locked.available.forget(name).await;
            state.locked.failed.put(name, now).await;
        }
    }
}
