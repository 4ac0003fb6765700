//! What a decision looked like, kept for whoever asks: the chosen candidate, those around it, and why.
//!
//! Called by reserve when it has decided, on the worker. Reads the words that routing has just read; must never decide
//! anything, nor allocate.

use crate::evidence::{CANDIDATES_MAX, Standing, Why};
use crate::fleet::{Candidate, Model, Snapshot};
use crate::ids::NodeId;
use crate::proxy::ticket::Ticket;
use crate::routing::Ask;
use crate::slots::{CellView, Limit, Taken};

/// Notes where a request for a model goes; the slot is taken.
pub(super) fn goes(ticket: &Ticket, (snapshot, model): (&Snapshot, &Model), ask: &Ask<'_>, to: usize, taken: Taken) {
    let candidate = &model.candidates[to];
    let why = why(candidate.pair.cell.view(), taken);
    let mut record = ticket.record(why, candidate.node, ask.tried.len());
    record.candidates = u16::try_from(model.candidates.len()).unwrap_or(u16::MAX);
    let (before, from) = model.candidates.split_at(to);
    for (at, candidate) in from.iter().chain(before).take(CANDIDATES_MAX).enumerate() {
        let mut standing = standing(snapshot, candidate, ask);
        if at == 0 {
            // Its own slot is not what it found.
            standing.in_flight = standing.in_flight.saturating_sub(1);
        }
        record.push(standing);
    }
    ticket.decided(&record);
}

/// Notes that it goes nowhere now: it waits, or no node can serve it.
pub(super) fn stays(ticket: &Ticket, (snapshot, model): (&Snapshot, &Model), ask: &Ask<'_>, why: Why) {
    let mut record = ticket.record(why, NodeId::NONE, ask.tried.len());
    record.candidates = u16::try_from(model.candidates.len()).unwrap_or(u16::MAX);
    for candidate in model.candidates.iter().take(CANDIDATES_MAX) {
        record.push(standing(snapshot, candidate, ask));
    }
    ticket.decided(&record);
}

/// Notes a node that was chosen for other reasons than a model's slots.
pub(super) fn plainly(ticket: &Ticket, node: NodeId, why: Why, retries: usize) {
    let record = ticket.record(why, node, retries);
    ticket.decided(&record);
}

/// Why a slot was taken, as its word says now.
fn why(view: CellView, taken: Taken) -> Why {
    match taken {
        Taken::Cold => Why::Cold,
        Taken::Warm if !view.loaded => Why::Loading,
        Taken::Warm => match view.limit {
            Limit::Soft(limit) if view.in_flight > limit => Why::OverLimit,
            Limit::Soft(_) | Limit::Hard(_) => Why::Loaded,
        },
    }
}

fn standing(snapshot: &Snapshot, candidate: &Candidate, ask: &Ask<'_>) -> Standing {
    let view = candidate.pair.cell.view();
    let tried = ask.tried.contains(&candidate.node);
    let (limit, soft) = match view.limit {
        Limit::Soft(limit) => (limit, true),
        Limit::Hard(limit) => (limit, false),
    };
    Standing {
        node: candidate.node,
        in_flight: view.in_flight,
        limit,
        soft,
        loaded: view.loaded,
        loading: view.loading,
        open: view.open,
        fits: tried || ask.admits(snapshot, candidate),
        tried,
        last_choice: candidate.last_choice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_follows_from_the_word_and_the_way_of_taking() {
        let view = |in_flight, limit, loaded| CellView { in_flight, limit, loaded, loading: !loaded, open: true };
        assert_eq!(why(view(1, Limit::Soft(4), true), Taken::Warm), Why::Loaded);
        assert_eq!(why(view(4, Limit::Soft(4), true), Taken::Warm), Why::Loaded);
        assert_eq!(why(view(5, Limit::Soft(4), true), Taken::Warm), Why::OverLimit);
        assert_eq!(why(view(2, Limit::Hard(4), false), Taken::Warm), Why::Loading);
        assert_eq!(why(view(1, Limit::Hard(4), false), Taken::Cold), Why::Cold);
    }
}
