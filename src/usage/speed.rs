//! How fast each node generates with each model, over its last twenty answers; worked out by the ledger thread.
//!
//! Fed with the events it folds anyway, so that a request pays nothing for it; read by the poller through
//! [`super::ledger::Ledger::speeds`]. Must never be a record: it says what was, lately, and forgets it with the process.

use std::collections::HashMap;

use super::{Count, Outcome};
use crate::clock::Millis;
use crate::ids::{ModelId, NodeId};

/// Answers that a speed is worked out over: fewer say more of the prompts than of the node.
pub const ANSWERS: u32 = 20;
/// (node, model) pairs that are followed; beyond that no new ones are.
const PAIRS_MAX: usize = 1 << 18;

/// The speed of one model on one node.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Speed {
    /// The node.
    pub node: NodeId,
    /// The model.
    pub model: ModelId,
    /// Tokens generated in the last whole [`ANSWERS`].
    pub tokens: u64,
    /// Time that the node says it took for them, nanoseconds.
    pub eval_ns: u64,
    /// When the last of them ended.
    pub at: Millis,
}

/// Answers of one pair, counted up to [`ANSWERS`], and the sum before.
#[derive(Clone, Copy, Default, Debug)]
struct Block {
    answers: u32,
    tokens: u64,
    eval_ns: u64,
    /// Tokens, nanoseconds and end of the last whole block.
    whole: Option<(u64, u64, Millis)>,
}

/// All pairs that generated something.
#[derive(Default, Debug)]
pub(super) struct Speeds {
    blocks: HashMap<(NodeId, ModelId), Block>,
    changed: bool,
}

impl Speeds {
    /// Counts an answer, if its node said how long it took to generate how much.
    pub(super) fn add(&mut self, event: &Outcome, now: Millis) {
        let Count::Exact(tokens) = event.count else { return };
        let own = event.node != NodeId::NONE && event.model != ModelId::UNKNOWN && event.model != ModelId::OTHER;
        if !own || tokens.output == 0 || event.eval_ns == 0 {
            return;
        }
        let pair = (event.node, event.model);
        if self.blocks.len() >= PAIRS_MAX && !self.blocks.contains_key(&pair) {
            return;
        }
        let block = self.blocks.entry(pair).or_default();
        block.answers += 1;
        block.tokens = block.tokens.saturating_add(tokens.output);
        block.eval_ns = block.eval_ns.saturating_add(event.eval_ns);
        if block.answers == ANSWERS {
            *block = Block { whole: Some((block.tokens, block.eval_ns, now)), ..Block::default() };
            self.changed = true;
        }
    }

    /// All speeds known, if one has changed since the last call.
    pub(super) fn news(&mut self) -> Option<Vec<Speed>> {
        std::mem::take(&mut self.changed).then(|| {
            let whole = |(&(node, model), block): (&(NodeId, ModelId), &Block)| {
                block.whole.map(|(tokens, eval_ns, at)| Speed { node, model, tokens, eval_ns, at })
            };
            self.blocks.iter().filter_map(whole).collect()
        })
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;
    use crate::usage::Tokens;
    use crate::usage::tests::outcome;

    fn answer(output: u64, eval_ns: u64) -> Outcome {
        Outcome { count: Count::Exact(Tokens { input: 1, cached: 0, output }), eval_ns, ..outcome() }
    }

    #[test]
    fn twenty_answers_make_a_speed_and_the_next_twenty_replace_it() {
        let mut speeds = Speeds::default();
        (0..19).for_each(|_| speeds.add(&answer(10, 1_000), 5));
        assert_eq!(speeds.news(), None);
        speeds.add(&answer(10, 1_000), 6);
        let own = Speed { node: NodeId(0), model: ModelId(2), tokens: 200, eval_ns: 20_000, at: 6 };
        assert_eq!(speeds.news(), Some(vec![own]));
        assert_eq!(speeds.news(), None, "told once");
        (0..20).for_each(|_| speeds.add(&answer(10, 9_000), 7));
        assert_eq!(speeds.news(), Some(vec![Speed { eval_ns: 180_000, at: 7, ..own }]));
    }

    #[test]
    fn answers_that_say_nothing_of_speed_do_not_count() {
        let mut speeds = Speeds::default();
        for _ in 0..50 {
            speeds.add(&outcome(), 1);
            speeds.add(&answer(0, 1_000), 1);
            speeds.add(&answer(5, 0), 1);
            speeds.add(&Outcome { node: NodeId::NONE, ..answer(5, 5) }, 1);
            speeds.add(&Outcome { model: ModelId::UNKNOWN, ..answer(5, 5) }, 1);
            let count = Count::Estimated(Tokens { input: 1, cached: 0, output: 9 });
            speeds.add(&Outcome { count, ..answer(5, 5) }, 1);
        }
        assert!(speeds.blocks.is_empty());
    }
}
