//! What no ring had room for: added up by the worker, handed to the ledger as rows under the key `_lost`.
//!
//! Used by the [`Recorder`](super::recorder::Recorder) alone. What is lost is which key a request came with; its minute,
//! node, model, ending, tokens and durations are kept, so that the ledger's sums agree with the counters. Must never
//! wait, and never grow beyond its bound.

use super::Outcome;
use super::series::{Ended, Row};
use crate::ids::{ModelId, NodeId, UnixMinute};

/// Rows of their own; what comes beyond adds up under no node and [`ModelId::OTHER`], by minute and ending.
const ROWS_MAX: usize = 256;

/// Requests of one minute, node, model and ending whose events were dropped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LostRow {
    /// The minute of their end.
    pub minute: UnixMinute,
    /// The node.
    pub node: NodeId,
    /// The model.
    pub model: ModelId,
    /// How they ended.
    pub ended: Ended,
    /// What they came to.
    pub row: Row,
}

impl LostRow {
    fn is_of(&self, other: &Self) -> bool {
        (self.minute, self.node, self.model, self.ended) == (other.minute, other.node, other.model, other.ended)
    }
}

/// Dropped events, added up until the ledger takes them.
#[derive(Debug, Default)]
pub(super) struct Lost {
    rows: Vec<LostRow>,
}

impl Lost {
    /// Whether there is nothing to hand over: the only thing that a request without trouble pays for.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds an event.
    #[cold]
    pub(super) fn add(&mut self, event: &Outcome) {
        let &Outcome { minute, node, model, ending, .. } = event;
        let own = LostRow { minute, node, model, ended: Ended::of(ending), row: Row::of(event) };
        if self.merge(&own) {
            return;
        }
        if self.rows.len() < ROWS_MAX {
            return self.rows.push(own);
        }
        let shared = LostRow { node: NodeId::NONE, model: ModelId::OTHER, ..own };
        // At most one more a minute and ending, and a minute is handed over long before the next is full.
        if !self.merge(&shared) {
            self.rows.push(shared);
        }
    }

    fn merge(&mut self, lost: &LostRow) -> bool {
        let found = self.rows.iter_mut().find(|row| row.is_of(lost));
        found.map(|row| row.row.merge(&lost.row)).is_some()
    }

    /// Hands rows over for as long as they are taken.
    #[cold]
    pub(super) fn hand_over(&mut self, mut take: impl FnMut(LostRow) -> bool) {
        while let Some(row) = self.rows.last() {
            if !take(*row) {
                return;
            }
            self.rows.pop();
        }
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;
    use crate::usage::tests::outcome;

    #[test]
    fn i8_rows_are_bounded_and_nothing_is_left_out() {
        let mut lost = Lost::default();
        for model in 0..1000 {
            for _ in 0..2 {
                lost.add(&Outcome { model: ModelId(model), eval_ns: 3, ..outcome() });
            }
        }
        let mut rows = Vec::new();
        lost.hand_over(|row| {
            rows.push(row);
            rows.len() < 100
        });
        assert!(!lost.is_empty(), "one that was not taken stays");
        rows.pop();
        lost.hand_over(|row| {
            rows.push(row);
            true
        });
        assert!(lost.is_empty());
        assert_eq!(rows.len(), ROWS_MAX + 1);
        assert_eq!(rows.iter().map(|row| row.row.requests_total()).sum::<u64>(), 2000);
        assert_eq!(rows.iter().map(|row| row.row.eval_ns).sum::<u64>(), 6000);
    }
}
