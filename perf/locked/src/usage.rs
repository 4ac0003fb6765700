//! Requests in flight by node and model: every increment, decrement and choice under the one usage lock.
//!
//! Called for each request, at its start and at its end. Must never fetch or wait for anything but locks.

use tokio::sync::MutexGuard;

use crate::name::{Map, Name};
use crate::{Locked, Millis, Models};

/// A number by node and model. A node stays once it was used; a model at zero goes.
pub type Counts = Map<Map<u64>>;

/// What a request asks.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Every configured node, in order.
    pub nodes: &'a [Name],
    /// The model.
    pub model: &'a Name,
    /// Requests of one model on one node that are preferred not to be exceeded.
    pub limit: u64,
    /// Any number: which of several idle nodes is taken.
    pub random: usize,
    /// Now.
    pub now: Millis,
}

/// Where a request goes; it is counted there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Place in [`Ask::nodes`].
    pub node: usize,
    /// The node has the model in memory, as far as the cache knows.
    pub loaded: bool,
}

/// A node that has the model.
#[derive(Debug)]
struct Candidate {
    node: usize,
    loaded: bool,
}

/// A request that is counted but not published yet: whoever is cancelled in between takes it back.
struct Counting<'a> {
    usage: MutexGuard<'a, Counts>,
    node: &'a Name,
    model: &'a Name,
    kept: bool,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        if !self.kept {
            subtract(&mut self.usage, self.node, self.model);
        }
    }
}

impl<R> Locked<R> {
    /// Chooses a node and counts the request there; `None` when no node that `admits` lets through has the model.
    ///
    /// Cancel safe: nothing stays counted. Lock rounds: `available` once per node (and `failed` where nothing is known), `loaded` once per candidate, `usage`,
    /// within it `token_usage` and `subscribers`.
    pub async fn reserve(&self, ask: &Ask<'_>, admits: impl Fn(usize) -> bool) -> Option<Choice> {
        let candidates = self.candidates(ask, admits).await;
        if candidates.is_empty() {
            return None;
        }
        let usage = self.usage.lock().await;
        let choice = choose(&usage, ask, &candidates);
        let mut counted = Counting { usage, node: &ask.nodes[choice.node], model: ask.model, kept: false };
        add(&mut counted.usage, counted.node, ask.model, 1);
        self.publish(&counted.usage).await;
        counted.kept = true;
        Some(choice)
    }

    async fn candidates(&self, ask: &Ask<'_>, admits: impl Fn(usize) -> bool) -> Vec<Candidate> {
        let mut advertised: Vec<Option<Models>> = Vec::with_capacity(ask.nodes.len());
        for node in ask.nodes {
            let models = self.available.get(node, ask.now).await.models();
            if models.is_none() {
                // A failure that is not recent would be asked again here; somebody else does.
                self.failed.is_recent(node, ask.now).await;
            }
            advertised.push(models);
        }
        let has = |models: &Models| models.contains(ask.model);
        let mut candidates = Vec::new();
        for (node, _) in advertised.iter().enumerate().filter(|(_, models)| models.as_ref().is_some_and(has)) {
            if admits(node) {
                let loaded = self.loaded.get(&ask.nodes[node], ask.now).await.models();
                candidates.push(Candidate { node, loaded: loaded.as_ref().is_some_and(has) });
            }
        }
        candidates
    }

    /// Takes a request back out of the counts.
    pub async fn release(&self, node: &Name, model: &Name) {
        let mut usage = self.usage.lock().await;
        subtract(&mut usage, node, model);
        self.publish(&usage).await;
    }

    /// The same without waiting: false, and nothing done, when another holds one of the locks.
    #[must_use]
    pub fn try_release(&self, node: &Name, model: &Name) -> bool {
        let Ok(mut usage) = self.usage.try_lock() else { return false };
        let Ok(tokens) = self.token_usage.try_lock() else { return false };
        let Ok(subscribers) = self.subscribers.try_lock() else { return false };
        subtract(&mut usage, node, model);
        self.hand_out(&subscribers, &usage, &tokens);
        true
    }

    /// Requests in flight on this node for this model.
    pub async fn in_flight(&self, node: &Name, model: &Name) -> u64 {
        count(&*self.usage.lock().await, node, model)
    }

    pub(crate) async fn lock_usage(&self) -> MutexGuard<'_, Counts> {
        self.usage.lock().await
    }
}

/// The ancestor's order: loaded and below the limit, the least of this model in flight; below the limit, the least in
/// flight on the node altogether; at random while none serves the model; else the least busy.
fn choose(usage: &Counts, ask: &Ask<'_>, candidates: &[Candidate]) -> Choice {
    let of_model = |candidate: &Candidate| count(usage, &ask.nodes[candidate.node], ask.model);
    let of_node = |candidate: &Candidate| total(usage, &ask.nodes[candidate.node]);
    let free: Vec<&Candidate> = candidates.iter().filter(|candidate| of_model(candidate) < ask.limit).collect();
    let warm: Vec<&Candidate> = free.iter().copied().filter(|candidate| candidate.loaded).collect();
    let idle = |some: &[&Candidate]| some.iter().all(|candidate| of_model(candidate) == 0);
    let chosen = match (&warm[..], &free[..]) {
        ([], []) => candidates.iter().min_by_key(|candidate| of_model(candidate)).unwrap_or(&candidates[0]),
        ([], free) if idle(free) => free[ask.random % free.len()],
        ([], free) => free.iter().min_by_key(|candidate| of_node(candidate)).unwrap_or(&free[0]),
        (warm, _) if idle(warm) => warm[ask.random % warm.len()],
        (warm, _) => warm.iter().min_by_key(|candidate| of_model(candidate)).unwrap_or(&warm[0]),
    };
    Choice { node: chosen.node, loaded: chosen.loaded }
}

fn count(counts: &Counts, node: &Name, model: &Name) -> u64 {
    counts.get(node).and_then(|models| models.get(model)).copied().unwrap_or(0)
}

fn total(counts: &Counts, node: &Name) -> u64 {
    counts.get(node).map_or(0, |models| models.values().sum())
}

pub(crate) fn add(counts: &mut Counts, node: &Name, model: &Name, by: u64) {
    if let Some(models) = counts.get_mut(node) {
        if let Some(count) = models.get_mut(model) {
            *count += by;
        } else {
            models.insert(model.clone(), by);
        }
    } else {
        counts.entry(node.clone()).or_default().insert(model.clone(), by);
    }
}

/// Never below zero; a model at zero goes, its node stays.
fn subtract(counts: &mut Counts, node: &Name, model: &Name) {
    let Some(models) = counts.get_mut(node) else { return };
    match models.get_mut(model) {
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => drop(models.remove(model)),
        None => {}
    }
}
