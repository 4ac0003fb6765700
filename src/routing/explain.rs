//! What [`super::pick`] would do with a request, without doing it: the candidates in its order, and what speaks against
//! each. Pure: nothing is taken, marked or counted.
//!
//! Called for dry runs. Held against `pick` itself by a property test.

use super::Ask;
use super::cold::burden;
use crate::fleet::{Candidate, Model, Snapshot};
use crate::ids::NodeId;
use crate::slots::{CellView, Limit};

/// How a candidate stands, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stand {
    /// Loaded, below its limit.
    Loaded,
    /// Loading, below its limit.
    Loading,
    /// Not loaded: could be the next to load it, if a load may begin.
    OnDisk,
    /// Loaded, at or above a soft limit.
    OverLimit,
    /// At its limit.
    Full,
    /// Its node is at its `node_slots`, or has seats that others wait for.
    NodeFull,
    /// The node takes no new work: down, silent or being drained.
    Closed,
    /// The node cannot serve this request: it speaks another dialect, or would send it out of the house.
    Unfit,
}

/// A candidate and how it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explained {
    /// Index into the model's candidates.
    pub candidate: usize,
    /// How it stands.
    pub stand: Stand,
    /// Its word, as read.
    pub view: CellView,
}

/// What would become of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Would {
    /// It goes to one of these at once; among equals they take turns.
    Go(Stand),
    /// It waits behind others that came before.
    WaitBehind(u32),
    /// It waits: nothing has room, and no load may begin now.
    Wait,
    /// Nothing that is up can serve it.
    NoNode,
}

/// What would become of a request now, and every candidate in the order in which it would be tried.
#[must_use]
pub fn explain(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>) -> (Would, Vec<Explained>) {
    let stands = model.candidates.iter().enumerate().map(|(at, one)| {
        let view = one.pair.cell.view();
        Explained { candidate: at, stand: stand(snapshot, one, &view, ask), view }
    });
    let mut all: Vec<Explained> = stands.collect();
    all.sort_by_key(|one| {
        let candidate = &model.candidates[one.candidate];
        (one.stand.max(Stand::Loading), candidate.last_choice, one.stand, rank(snapshot, candidate, one))
    });
    (would(model, ask, &all), all)
}

fn stand(snapshot: &Snapshot, candidate: &Candidate, view: &CellView, ask: &Ask<'_>) -> Stand {
    let (limit, soft) = match view.limit {
        Limit::Soft(limit) => (limit, true),
        Limit::Hard(limit) => (limit, false),
    };
    if !ask.admits(snapshot, candidate) {
        return Stand::Unfit;
    }
    if !view.open {
        return Stand::Closed;
    }
    if !candidate.pair.cell.node_word.takes_new() {
        return Stand::NodeFull;
    }
    match (view.in_flight < limit, view.loaded, view.loading) {
        (true, true, _) => Stand::Loaded,
        (true, false, true) => Stand::Loading,
        (true, false, false) => Stand::OnDisk,
        (false, true, _) if soft => Stand::OverLimit,
        (false, ..) => Stand::Full,
    }
}

/// Among those that stand alike (of those with room, a sick one behind the others): less relative load first, or the less
/// burdened node where the model would be loaded.
fn rank(snapshot: &Snapshot, candidate: &Candidate, one: &Explained) -> ((u64, usize, u64), usize) {
    let limit = match one.view.limit {
        Limit::Soft(limit) | Limit::Hard(limit) => u64::from(limit.max(1)),
    };
    let load = match one.stand {
        Stand::OnDisk => burden(snapshot, candidate),
        _ => ((u64::from(one.view.in_flight) << 24) / limit, 0, 0),
    };
    (load, one.candidate)
}

fn would(model: &Model, ask: &Ask<'_>, all: &[Explained]) -> Would {
    let later = |one: &Explained| {
        one.stand != Stand::Unfit && model.candidates[one.candidate].pair.cell.node_word.may_serve_later()
    };
    let wait = |otherwise| if all.iter().any(later) { otherwise } else { Would::NoNode };
    if !model.queue.is_empty() && ask.tried.iter().all(|&node| node == NodeId::NONE) {
        return wait(Would::WaitBehind(model.queue.len()));
    }
    if let Some(first) = all.iter().find(|one| matches!(one.stand, Stand::Loaded | Stand::Loading)) {
        return Would::Go(first.stand);
    }
    if may_load(model, ask, all) {
        return Would::Go(Stand::OnDisk);
    }
    if all.iter().any(|one| one.stand == Stand::OverLimit) { Would::Go(Stand::OverLimit) } else { wait(Would::Wait) }
}

/// Whether a further copy may be started: order 3.
fn may_load(model: &Model, ask: &Ask<'_>, all: &[Explained]) -> bool {
    let warm = all
        .iter()
        .any(|one| !matches!(one.stand, Stand::Unfit | Stand::Closed) && (one.view.loaded || one.view.loading));
    if warm && model.word.full_for(ask.now) < ask.spill_after {
        return false;
    }
    let loading = model.word.loading().is_some_and(|load| {
        // One on a node that no longer has the model or takes no work, or whose cell is not loading any more, is over.
        let goes_on = |one: &Explained| one.view.open && (!load.confirmed || one.view.loading);
        all.iter().any(|one| model.candidates[one.candidate].node == load.node && goes_on(one))
    });
    let may_begin = |one: &Explained| {
        one.stand == Stand::OnDisk && model.candidates[one.candidate].pair.cell.node_word.may_begin_cold()
    };
    !loading && all.iter().any(may_begin)
}
