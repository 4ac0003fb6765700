//! Routing: which node serves a request, and whether it has to wait; version 1 (least relative load, one load at a time).
//!
//! Decides from one [`Snapshot`] and the cells' words, and takes the slot in the same call: ordering is pure, taking is one
//! compare-exchange, and a lost race means looking again. The proxy calls [`pick`] and [`take_for_waiter`], the control
//! thread [`serve_waiting`]. Must never wait, allocate where a slot is free, or touch sockets; `now` is passed in.
//!
//! # Order
//!
//! 1. a loaded copy below its limit, least relative load first, ties rotate; a sick one where `routing.degrade` says so
//!    when no other has room;
//! 2. a loading copy below its limit, likewise;
//! 3. a further copy, on the node with the least work that has the model on disk: when it is loaded nowhere and loading
//!    nowhere, or all copies have been full for `spill_after`; one load of a name at a time, one on a recovering node;
//! 4. soft limits only: the loaded copy with the least relative load, over its limit;
//! 5. wait, if a node that is up could serve later.
//!
//! A node that is at its `node_slots`, or has a seat that others wait for, counts as full for new requests in each of these.

mod any;
mod cold;
pub mod explain;
mod least;
#[cfg(proxy_locked)]
pub mod locked;
mod retry;

pub use any::{AnyAsk, least_any, pick_any};
pub use cold::{Parked, serve_waiting};
pub use retry::RetryBudget;

use crate::clock::Millis;
use crate::config::NodeKind;
use crate::fleet::{Candidate, Model, Snapshot};
use crate::ids::NodeId;
use crate::slots::{Cell, Taken, Wants};
use crate::sync::Arc;

/// Rounds of choosing the best candidate and losing it to another thread before the first that fits is taken.
const ROUNDS: usize = 4;

/// What a request asks of routing.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Only a node that speaks Ollama's API can serve it.
    pub native: bool,
    /// Nodes that failed it already: skipped. A request with any counts as a retry, which does not queue behind others.
    pub tried: &'a [NodeId],
    /// Now.
    pub now: Millis,
    /// `routing.cold_spill_after`.
    pub spill_after: Millis,
}

impl Ask<'_> {
    /// The same, for a place in the queue.
    #[must_use]
    pub fn wants(&self) -> Wants {
        let mut tried = [NodeId::NONE; 3];
        for (to, from) in tried.iter_mut().zip(self.tried.iter().filter(|&&node| node != NodeId::NONE)) {
            *to = *from;
        }
        Wants { native: self.native, tried }
    }

    fn is_retry(&self) -> bool {
        self.tried.iter().any(|&node| node != NodeId::NONE)
    }

    /// This candidate may serve the request, its node's state aside.
    pub(crate) fn admits(&self, snapshot: &Snapshot, candidate: &Candidate) -> bool {
        let wrong_kind = self.native && candidate.kind == NodeKind::OpenAi;
        let leaves = candidate.remote && !may_leave_the_house(snapshot, candidate.node);
        !wrong_kind && !leaves && !self.tried.contains(&candidate.node)
    }
}

/// What [`pick`] decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Send it there; the slot is taken: make it a [`crate::slots::Permit`] at once.
    Go {
        /// Index into the model's candidates.
        candidate: usize,
        /// `Cold`: this request loads the model.
        taken: Taken,
    },
    /// Something could serve it later: join the model's queue.
    Wait,
    /// Nothing that is up could serve it.
    NoNode,
}

/// Decides where a request goes and takes its slot.
#[must_use]
pub fn pick(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>) -> Choice {
    let overtakes = !ask.is_retry() && !model.queue.is_empty();
    if overtakes {
        return wait_or_none(snapshot, model, ask);
    }
    // Twice: whoever loses the start of a load to another thread finds that copy loading the second time.
    for _ in 0..2 {
        if let Some(candidate) = take_warm(snapshot, model, ask) {
            return Choice::Go { candidate, taken: Taken::Warm };
        }
        if let Some(candidate) = cold::start(snapshot, model, ask, cold::By::New) {
            return Choice::Go { candidate, taken: Taken::Cold };
        }
        if let Some(candidate) = take_over(snapshot, model, ask) {
            return Choice::Go { candidate, taken: Taken::Warm };
        }
    }
    wait_or_none(snapshot, model, ask)
}

/// Takes a warm slot for a request that waits already (for [`crate::slots::Waiting::poll_grant`]), in the order of
/// [`pick`]; cold starts for waiters are the control thread's ([`serve_waiting`]).
#[must_use]
pub fn take_for_waiter(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>) -> Option<Arc<Cell>> {
    let candidate = take_warm(snapshot, model, ask)
        .or_else(|| take_over(snapshot, model, ask))
        .or_else(|| take_in_turn(snapshot, model, ask))?;
    Some(Arc::clone(&model.candidates[candidate].pair.cell))
}

/// The candidate whose slot a waiter was granted; `None` if the model left that node meanwhile.
#[must_use]
pub fn candidate_of(model: &Model, cell: &Arc<Cell>) -> Option<usize> {
    model.candidates.iter().position(|c| Arc::ptr_eq(&c.pair.cell, cell))
}

/// Orders 1 and 2.
fn take_warm(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>) -> Option<usize> {
    let start = first(model);
    for _ in 0..ROUNDS {
        let best = least::with_room(snapshot, model, ask, start)?;
        if model.candidates[best].pair.cell.try_take_warm() {
            return Some(took(model, best));
        }
    }
    let fits = |c: &Candidate| ask.admits(snapshot, c) && c.pair.cell.try_take_warm();
    let first = model.candidates.iter().position(fits)?;
    Some(took(model, first))
}

/// Order 4.
fn take_over(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>) -> Option<usize> {
    let start = first(model);
    for _ in 0..ROUNDS {
        let best = least::over_limit(snapshot, model, ask, start)?;
        if model.candidates[best].pair.cell.try_take_over() {
            model.word.set_turn(best + 1);
            return Some(best);
        }
    }
    let fits = |c: &Candidate| ask.admits(snapshot, c) && c.pair.cell.try_take_over();
    model.candidates.iter().position(fits)
}

/// A node whose models have a limit together is asked on behalf of a waiter even where it looks full to new requests: being
/// refused leaves the mark by which the next seat that is given back there finds the waiter.
fn take_in_turn(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>) -> Option<usize> {
    let fits = |c: &Candidate| {
        c.pair.cell.node_word.is_limited()
            && ask.admits(snapshot, c)
            && (c.pair.cell.try_take_warm() || c.pair.cell.try_take_over())
    };
    model.candidates.iter().position(fits)
}

fn wait_or_none(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>) -> Choice {
    let later = |c: &Candidate| ask.admits(snapshot, c) && c.pair.cell.node_word.may_serve_later();
    if model.candidates.iter().any(later) { Choice::Wait } else { Choice::NoNode }
}

/// A slot below the limit was taken: the copies are not all full. (Where a name lives on nodes of both kinds, room on
/// a `/v1`-only node says nothing to native requests, which wait for the others.)
fn took(model: &Model, candidate: usize) -> usize {
    model.word.set_turn(candidate + 1);
    let native_warm = |c: &Candidate| c.kind == NodeKind::Ollama && c.place.reading().is_warm();
    if model.word.is_full()
        && (model.candidates[candidate].kind == NodeKind::Ollama || !model.candidates.iter().any(native_warm))
    {
        model.word.note_free();
    }
    candidate
}

/// Where to begin among equals: behind the copy that was taken last.
fn first(model: &Model) -> usize {
    let turn = model.word.turn();
    if turn < model.candidates.len() { turn } else { 0 }
}

/// Cloud models may be sent to this node.
fn may_leave_the_house(snapshot: &Snapshot, node: NodeId) -> bool {
    snapshot.nodes.get(node.0 as usize).is_some_and(|n| n.cloud)
}

#[cfg(all(test, not(proxy_loom)))]
mod tests;
