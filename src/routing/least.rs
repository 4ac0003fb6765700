//! The least loaded copy: the one loop over all candidates that a decision with a free slot goes through.
//!
//! Of a large fleet nearly every candidate fails the first comparison, so that comparison is all there is: one load of the
//! word, one test of its flags, one product against another. What else speaks against a copy is asked of those that would
//! be better than the best so far, a handful even among a thousand. Pure: it takes nothing.

use super::Ask;
use crate::fleet::{Candidate, Model, Snapshot};
use crate::slots::{Residency, Share};

/// The copy below its limit, on an open node below its own, that admits the request, with the least relative load, a loaded one before a loading one;
/// the first from `start` on among equals. A sick one where `routing.degrade` says so when there is no other.
pub(super) fn with_room(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>, start: usize) -> Option<usize> {
    least(snapshot, model, ask, start, Share::FULL, &[Residency::Loaded, Residency::Loading])
}

/// The same whatever the limit: of the loaded copies whose limit is a preference.
pub(super) fn over_limit(snapshot: &Snapshot, model: &Model, ask: &Ask<'_>, start: usize) -> Option<usize> {
    least(snapshot, model, ask, start, Share::ANY, &[Residency::LoadedSoft])
}

fn least(
    snapshot: &Snapshot,
    model: &Model,
    ask: &Ask<'_>,
    start: usize,
    below: Share,
    order: &[Residency],
) -> Option<usize> {
    let serves = |c: &Candidate| ask.admits(snapshot, c) && c.pair.cell.node_word.takes_new();
    let mut passed_over = false;
    for &residency in order {
        let mut healthy = |c: &Candidate| {
            passed_over |= c.last_choice;
            !c.last_choice && serves(c)
        };
        if let Some(found) = scan(&model.candidates, start, residency, below, &mut healthy) {
            return Some(found);
        }
    }
    if !passed_over {
        return None;
    }
    order.iter().find_map(|&residency| scan(&model.candidates, start, residency, below, &mut |c| serves(c)))
}

/// The candidate of this residency with the least share below `below` that `serves`, the first from `start` on among
/// equals.
fn scan(
    candidates: &[Candidate],
    start: usize,
    residency: Residency,
    mut below: Share,
    serves: &mut impl FnMut(&Candidate) -> bool,
) -> Option<usize> {
    let mut best = None;
    let (before, from) = candidates.split_at(start);
    for (part, offset) in [(from, start), (before, 0)] {
        for (at, candidate) in part.iter().enumerate() {
            let reading = candidate.place.reading();
            // A copy of a node that is down looks idle: its line says so, where its word says nothing.
            if !reading.is(residency) || !reading.is_below(below) || !candidate.up || !serves(candidate) {
                continue;
            }
            best = Some(offset + at);
            if reading.is_idle() {
                return best;
            }
            below = reading.share();
        }
    }
    best
}
