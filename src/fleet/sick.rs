//! Which copies of a model are sick: far slower than elsewhere, or not wholly in the GPU's memory. Pure but for its log.
//!
//! Called by [`Facts::tick`] each second with what the ledger worked out of speeds and what `/api/ps` told; what it
//! finds is named in log, metric and status, and makes the copy the last choice where `routing.degrade` says so. A node
//! whose requests are silent is [`crate::fleet::progress`]' matter: it gets no work at all. Must never close a node: a
//! slow answer is better than none.

use std::collections::HashMap;
use std::fmt;

use crate::clock::Millis;
use crate::config::Degrade;
use crate::fleet::facts::{Facts, place};
use crate::fleet::health::LOG_EVERY_MS;
use crate::fleet::node::Now;
use crate::ids::{ModelId, NodeId};
use crate::sync::Arc;
use crate::usage::speed::Speed;

/// Between two looks.
pub(super) const LOOK_MS: Millis = 1_000;
/// A speed measured longer ago says nothing any more; a node that gets no requests is tried again then.
const SPEED_STALE_MS: Millis = 600_000;
/// Below this share of the fleet's median a copy is slow, and until it is above the second it stays so.
const SLOW: (f64, f64) = (0.5, 0.6);
/// Below this share of its size in the GPU's memory a copy is spilled, where another is whole.
const SPILLED: f64 = 0.9;

/// What is wrong with a copy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Ill {
    /// It generates less than half as fast as the fleet's median.
    Slow {
        /// Its tokens a second.
        speed: f64,
        /// The fleet's.
        median: f64,
    },
    /// Part of it is not in the GPU's memory, while elsewhere all is.
    Spilled {
        /// The part that is.
        share: f64,
    },
}

impl Ill {
    /// Its name in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Slow { .. } => "slow",
            Self::Spilled { .. } => "spilled",
        }
    }
}

impl fmt::Display for Ill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow { speed, median } => {
                write!(f, "slow: {speed:.1} tokens/s where the fleet's median is {median:.1}")
            }
            Self::Spilled { share } => {
                write!(f, "spilled: {:.0} % of it is in the GPU's memory, elsewhere all is", share * 100.0)
            }
        }
    }
}

/// A sick copy.
#[derive(Clone, PartialEq, Debug)]
pub struct Symptom {
    /// The model.
    pub model: ModelId,
    /// Its name.
    pub name: Arc<str>,
    /// What is wrong.
    pub ill: Ill,
}

impl Symptom {
    fn is_same(&self, other: &Self) -> bool {
        self.model == other.model && self.ill.label() == other.ill.label()
    }
}

/// The part of a copy that is in its GPU's memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Share {
    /// The node.
    pub node: NodeId,
    /// The model.
    pub model: ModelId,
    /// `size_vram` by `size`.
    pub share: f64,
}

/// The sick copies, by node and model; `was_slow` says which were slow at the last look.
#[must_use]
pub fn diagnose(
    speeds: &[Speed],
    shares: &[Share],
    was_slow: impl Fn(NodeId, ModelId) -> bool,
    now: Millis,
) -> Vec<(NodeId, ModelId, Ill)> {
    let mut found = Vec::new();
    let mut by_model: HashMap<ModelId, Vec<(NodeId, f64)>> = HashMap::new();
    for speed in speeds.iter().filter(|speed| now.saturating_sub(speed.at) < SPEED_STALE_MS) {
        by_model.entry(speed.model).or_default().push((speed.node, per_second(speed)));
    }
    for (model, measured) in by_model {
        let Some(median) = median(measured.iter().map(|(_, speed)| *speed).collect()) else { continue };
        for (node, speed) in measured {
            let bound = if was_slow(node, model) { SLOW.1 } else { SLOW.0 };
            if speed < bound * median {
                found.push((node, model, Ill::Slow { speed, median }));
            }
        }
    }
    for part in shares.iter().filter(|part| part.share < SPILLED) {
        let whole_elsewhere = shares.iter().any(|o| o.model == part.model && o.node != part.node && o.share >= 1.0);
        if whole_elsewhere {
            found.push((part.node, part.model, Ill::Spilled { share: part.share }));
        }
    }
    found.sort_by_key(|(node, model, ill)| (*node, *model, ill.label()));
    found
}

/// All of it in one line; a node may be sick with hundreds of models.
fn listed(symptoms: &[Symptom]) -> String {
    const SHOWN: usize = 5;
    let mut words: Vec<String> = symptoms.iter().take(SHOWN).map(|one| format!("{}: {}", one.name, one.ill)).collect();
    if symptoms.len() > SHOWN {
        words.push(format!("and {} more", symptoms.len() - SHOWN));
    }
    words.join("; ")
}

#[expect(clippy::cast_precision_loss, reason = "a speed that is right to fifteen digits will do")]
fn per_second(speed: &Speed) -> f64 {
    speed.tokens as f64 * 1e9 / speed.eval_ns.max(1) as f64
}

/// `None` for fewer than two: there is nobody to compare with.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 | 1 => None,
        even if even % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

impl Facts {
    /// Looks for sick copies, says what has changed, and has them told and, where so configured, avoided.
    pub(super) fn look_for_sick(&mut self, now: Now) {
        let shares = self.shares();
        let slow_before = |node: NodeId, model: ModelId| {
            let symptoms = place(node).and_then(|at| self.nodes.get(at)).map_or(&[][..], |node| &node.sick);
            symptoms.iter().any(|known| known.model == model && matches!(known.ill, Ill::Slow { .. }))
        };
        let is_there = |node: NodeId| place(node).and_then(|at| self.nodes.get(at)).is_some_and(|node| !node.removed);
        let speeds: Vec<Speed> = self.speeds.iter().filter(|speed| is_there(speed.node)).copied().collect();
        let found = diagnose(&speeds, &shares, slow_before, now.ms);
        for at in 0..self.nodes.len() {
            let id = self.nodes[at].id;
            let own = found.iter().filter(|(node, ..)| *node == id);
            let symptoms: Vec<Symptom> =
                own.map(|&(_, model, ill)| Symptom { model, name: self.cells.display(model), ill }).collect();
            self.settle_sick(at, symptoms, now);
        }
    }

    /// Takes what was found of one node, if that is news and the last news is not too fresh: one line in a while.
    fn settle_sick(&mut self, at: usize, symptoms: Vec<Symptom>, now: Now) {
        let node = &mut self.nodes[at];
        let known = |list: &[Symptom], one: &Symptom| list.iter().any(|other| other.is_same(one));
        let fresh = symptoms.iter().any(|one| !known(&node.sick, one));
        let over = node.sick.iter().any(|one| !known(&symptoms, one));
        if !fresh && !over {
            return;
        }
        if node.sick_told.is_some_and(|at| now.ms.saturating_sub(at) < LOG_EVERY_MS) {
            // Whatever goes to and fro is looked at again then.
            return;
        }
        node.sick_told = Some(now.ms);
        if symptoms.is_empty() {
            tracing::info!(node = %node.name, "node is well again");
        } else {
            tracing::warn!(node = %node.name, ills = listed(&symptoms), "node is sick");
        }
        node.sick = symptoms.into();
        self.dirty.now = true;
        if self.config.routing.degrade == Degrade::Demote {
            self.reroute[at] = true;
            self.dirty.models = true;
        }
    }

    /// What `/api/ps` told of copies in memory.
    fn shares(&self) -> Vec<Share> {
        let mut shares = Vec::new();
        for node in &self.nodes {
            for loaded in node.loaded.iter() {
                let figure = |key| loaded.fields.value::<f64>(key);
                let (Some(size), Some(vram)) = (figure("size"), figure("size_vram")) else { continue };
                let Some(name) = self.cells.known(&loaded.key).filter(|_| size > 0.0) else { continue };
                shares.push(Share { node: node.id, model: name.id, share: vram / size });
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: ModelId = ModelId(2);

    fn speed(node: u32, tokens: u64) -> Speed {
        Speed { node: NodeId(node), model: M, tokens, eval_ns: 1_000_000_000, at: 1_000 }
    }

    fn slow(speeds: &[Speed], was: &[u32], now: Millis) -> Vec<u32> {
        let was = |node: NodeId, _| was.contains(&node.0);
        diagnose(speeds, &[], was, now).iter().map(|(node, ..)| node.0).collect()
    }

    #[test]
    fn below_half_of_the_median_is_slow_and_above_three_fifths_well_again() {
        let fleet = |last| [speed(0, 40), speed(1, 42), speed(2, 38), speed(3, last)];
        assert_eq!(slow(&fleet(19), &[], 1_000), [3]);
        assert_eq!(slow(&fleet(20), &[], 1_000), [] as [u32; 0]);
        assert_eq!(slow(&fleet(20), &[3], 1_000), [3], "it does not flap around the bound");
        assert_eq!(slow(&fleet(24), &[3], 1_000), [] as [u32; 0]);
        assert_eq!(slow(&fleet(19), &[], 1_000 + SPEED_STALE_MS), [] as [u32; 0], "old speeds say nothing");
    }

    #[test]
    fn nobody_is_slow_alone_and_other_models_do_not_count() {
        let other = Speed { model: ModelId(3), ..speed(1, 400) };
        assert_eq!(slow(&[speed(0, 1), other], &[], 1_000), [] as [u32; 0]);
        assert_eq!(slow(&[speed(0, 10), speed(1, 40)], &[], 1_000), [0], "10 of a median of 25");
    }

    #[test]
    fn spilled_where_another_is_whole() {
        let share = |node, share| Share { node: NodeId(node), model: M, share };
        let spilled = |shares: &[Share]| -> Vec<u32> {
            diagnose(&[], shares, |_, _| false, 0).iter().map(|(node, ..)| node.0).collect()
        };
        assert_eq!(spilled(&[share(0, 1.0), share(1, 0.89), share(2, 0.9)]), [1]);
        assert_eq!(spilled(&[share(0, 0.99), share(1, 0.5)]), [] as [u32; 0], "nobody is whole: the model is too big");
        let elsewhere = Share { model: ModelId(3), ..share(0, 1.0) };
        assert_eq!(spilled(&[elsewhere, share(1, 0.5)]), [] as [u32; 0]);
    }

    #[test]
    fn words_for_people() {
        let slow = Ill::Slow { speed: 12.04, median: 40.0 };
        assert_eq!(slow.to_string(), "slow: 12.0 tokens/s where the fleet's median is 40.0");
        let spilled = Ill::Spilled { share: 0.42 };
        assert_eq!(spilled.to_string(), "spilled: 42 % of it is in the GPU's memory, elsewhere all is");
    }
}
