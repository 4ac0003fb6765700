//! Starting a further copy of a model, and what the control thread does for waiters.
//!
//! A load costs seconds to minutes of a GPU, so it is decided in one compare-exchange on the model's word and one on the
//! cell's. Called by `pick` on workers and by [`serve_waiting`] on the control thread.

use crate::clock::Millis;
use crate::config::NodeKind;
use crate::fleet::{Candidate, Model, NodeView, Snapshot};
use crate::slots::{Cell, Granted, Load, NodeWord, Wants};
use crate::sync::Arc;

use super::{Ask, Choice, first, least, took, wait_or_none};

/// Whose request starts a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    /// One that has not waited: a seat of a node that others wait for is not for it.
    New,
    /// The control thread for a waiter: it may load with a seat that is parked, and asks for one where there is none.
    Waiter,
}

impl By {
    fn finds_room(self, node: &NodeWord) -> bool {
        match self {
            Self::New => node.takes_new(),
            Self::Waiter => node.has_room_for_load(),
        }
    }

    fn takes(self, cell: &Cell, now: Millis) -> bool {
        match self {
            Self::New => cell.try_take_cold(now),
            Self::Waiter => cell.try_take_cold_for_waiter(now),
        }
    }
}

/// Starts a copy for this request if the rules allow one now: order 3. The slot is taken, the cell LOADING.
pub(super) fn start(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>, by: By) -> Option<usize> {
    // The word first: of a large fleet, nearly all end there.
    let serves = |c: &Candidate| {
        c.place.reading().is_warm() && c.up && ask.admits(snapshot, c) && c.pair.cell.node_word.is_open()
    };
    let warm = model.candidates.iter().any(serves);
    if warm {
        if !ask.is_retry() {
            model.word.note_full(ask.now);
        }
        if model.word.full_for(ask.now) < ask.spill_after {
            return None;
        }
    }
    if model.word.loading().is_some_and(|load| !end_if_over(model, load)) {
        return None;
    }
    let candidate = coldest(snapshot, model, ask, by)?;
    let cell = &model.candidates[candidate].pair.cell;
    if !model.word.try_begin_load(cell.node, ask.now) {
        return None;
    }
    if !by.takes(cell, ask.now) {
        model.word.end_load(cell.node);
        return None;
    }
    model.word.confirm_load(cell.node);
    model.word.set_turn(candidate + 1);
    Some(candidate)
}

/// The least burdened node that has the model on disk and may load it now; ties rotate. Where only the `node_slots` of
/// nodes are in a waiter's way, each is asked for its next seat.
fn coldest(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>, by: By) -> Option<usize> {
    let may_load = |c: &Candidate| {
        let reading = c.place.reading();
        !reading.is_warm()
            && reading.is_below_limit()
            && ask.admits(snapshot, c)
            && c.pair.cell.node_word.may_begin_cold()
    };
    let (start, count) = (first(model), model.candidates.len());
    let coldest = (0..count)
        .map(|i| (start + i) % count)
        .filter(|&i| may_load(&model.candidates[i]) && by.finds_room(&model.candidates[i].pair.cell.node_word))
        .min_by_key(|&i| (model.candidates[i].last_choice, burden(snapshot, &model.candidates[i])));
    if coldest.is_none() && by == By::Waiter {
        model.candidates.iter().filter(|c| may_load(c)).for_each(|c| c.pair.cell.node_word.ask_seat());
    }
    coldest
}

/// What speaks for loading elsewhere: the node's work; among equals the models that it has in memory as it said last, and
/// how many loads were begun there (an idle fleet would have all of its models on one node).
pub(super) fn burden(snapshot: &Snapshot, candidate: &Candidate) -> (u64, usize, u64) {
    let in_memory = snapshot.nodes.get(candidate.node.0 as usize).map_or(0, |node| node.ps.entries.len());
    let word = &candidate.pair.cell.node_word;
    (word.work(), in_memory, word.loads_begun())
}

/// Ends a load that is over; one on a node that no longer has the model is.
fn end_if_over(model: &Model, load: Load) -> bool {
    match model.candidates.iter().find(|c| c.node == load.node) {
        Some(c) => model.word.end_if_over(&c.pair.cell),
        None => {
            model.word.end_load(load.node);
            true
        }
    }
}

/// For a model with waiters, each 50 ms, on the control thread: refuses those that nothing can serve any more, offers
/// what is free, and starts a copy for the first waiter that may use it when `pick` would start one.
pub fn serve_waiting(snapshot: &Snapshot, model: &Model, now: Millis, spill_after: Millis) {
    if model.queue.is_empty() {
        return;
    }
    refuse_hopeless(snapshot, model);
    model.candidates.iter().for_each(|c| c.pair.cell.offer());
    let ask = |wants: &Wants| start_for_waiter(snapshot, model, wants, now, spill_after);
    if model.queue.has_natives() && is_mixed(model) {
        ask(&Wants { native: true, ..Wants::ANY });
    }
    ask(&Wants::ANY);
    model.queue.retries().iter().for_each(ask);
}

/// Starts a copy as [`start`] does for a new request with these wants, and grants its first slot.
fn start_for_waiter(snapshot: &Snapshot, model: &Model, wants: &Wants, now: Millis, spill_after: Millis) {
    let ask = Ask { native: wants.native, tried: &wants.tried, now, spill_after };
    if model.queue.is_empty() {
        return;
    }
    if let Some(room) = least::with_room(snapshot, model, &ask, 0) {
        took(model, room);
        return;
    }
    let Some(candidate) = start(snapshot, model, &ask, By::Waiter) else { return };
    let pair = &model.candidates[candidate].pair;
    let slot = Granted::Cold(Arc::clone(pair));
    if model.queue.serve(&pair.cell, &slot) {
        pair.cell.offer();
    } else {
        slot.undo();
    }
}

/// The nodes with a seat that was parked for a load before a round of [`serve_waiting`] over all models.
#[derive(Debug)]
pub struct Parked(Vec<Arc<NodeView>>);

impl Parked {
    /// Those with one now.
    #[must_use]
    pub fn before(snapshot: &Snapshot) -> Self {
        Self(snapshot.nodes.iter().filter(|node| node.word.is_parked()).cloned().collect())
    }

    /// The round is over: what it did not load with goes to whoever waits there.
    pub fn give_back(self) {
        self.0.iter().for_each(|node| node.word.unpark());
    }
}

fn refuse_hopeless(snapshot: &Snapshot, model: &Model) {
    let hopeless = |wants: &Wants| {
        let ask = Ask { native: wants.native, tried: &wants.tried, now: 0, spill_after: 0 };
        wait_or_none(snapshot, model, &ask) == Choice::NoNode
    };
    if hopeless(&Wants::ANY) {
        return model.queue.refuse_all();
    }
    if model.queue.has_natives() && hopeless(&Wants { native: true, ..Wants::ANY }) {
        model.queue.set_tail_aside();
    }
    model.queue.refuse_at_head(&hopeless);
}

fn is_mixed(model: &Model) -> bool {
    model.candidates.iter().any(|c| c.kind == NodeKind::OpenAi)
}
