//! Refresh on a miss: names that no inventory has, asked for again. Pure.
//!
//! At most one refresh each [`EVERY_MS`] for the whole fleet; a request waits at most [`WAIT_MS`] for it; a name that was
//! not found is remembered as missing for [`MISSING_MS`]. So a client that hammers an unknown name costs the nodes
//! nothing. Called by [`crate::fleet::facts`]. Must never ask a node itself.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use crate::clock::Millis;
use crate::ids::NodeId;

/// Between the starts of two refreshes.
pub const EVERY_MS: Millis = 2_000;
/// What a request waits for one.
pub const WAIT_MS: Millis = 1_000;
/// How long a name counts as missing.
pub const MISSING_MS: Millis = 5_000;

/// Names remembered as missing; when more come the oldest half is forgotten, which costs at most another refresh.
const NAMES_MAX: usize = 1_024;
/// Requests that wait for one refresh; the next is told "unknown" at once.
const WAITERS_MAX: usize = 4_096;

/// A request that waits.
type Waiter = (Box<str>, oneshot::Sender<bool>);

/// Refreshes under way and lately done.
#[derive(Debug, Default)]
pub struct Misses {
    round: Option<Round>,
    /// When the last refresh began.
    began: Option<Millis>,
    missing: HashMap<Box<str>, Millis>,
}

#[derive(Debug)]
struct Round {
    until: Millis,
    /// Nodes that have not answered yet.
    nodes: HashSet<NodeId>,
    waiters: Vec<Waiter>,
}

impl Misses {
    /// A request asks for a name that no Snapshot has. True: ask the nodes in `up` for their inventories now.
    pub fn ask(
        &mut self,
        key: Box<str>,
        reply: oneshot::Sender<bool>,
        now: Millis,
        up: impl Iterator<Item = NodeId>,
    ) -> bool {
        // Dropping the reply says no.
        if self.missing.get(&key).is_some_and(|&since| now.saturating_sub(since) < MISSING_MS) {
            return false;
        }
        if let Some(round) = &mut self.round {
            if round.waiters.len() < WAITERS_MAX {
                round.waiters.push((key, reply));
            }
            return false;
        }
        let too_soon = self.began.is_some_and(|began| now.saturating_sub(began) < EVERY_MS);
        let nodes: HashSet<NodeId> = up.collect();
        if too_soon || nodes.is_empty() {
            return false;
        }
        self.began = Some(now);
        self.round = Some(Round { until: now + WAIT_MS, nodes, waiters: vec![(key, reply)] });
        true
    }

    /// A node's inventory was told or could not be had.
    pub fn answered(&mut self, node: NodeId) {
        if let Some(round) = &mut self.round {
            round.nodes.remove(&node);
        }
    }

    /// Answers those whose name a published Snapshot `has`, and everybody once all nodes have answered or time is up.
    pub fn settle(&mut self, now: Millis, has: impl Fn(&str) -> bool) {
        let Some(mut round) = self.round.take() else { return };
        let mut still = Vec::new();
        for (key, reply) in round.waiters {
            if has(&key) {
                // A client that has left wants no answer.
                let _ = reply.send(true);
            } else {
                still.push((key, reply));
            }
        }
        if still.is_empty() || round.nodes.is_empty() || now >= round.until {
            for (key, reply) in still {
                let _ = reply.send(false);
                self.note_missing(key, now);
            }
            return;
        }
        round.waiters = still;
        self.round = Some(round);
    }

    /// When the refresh under way has to be given up.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        self.round.as_ref().map_or(Millis::MAX, |round| round.until)
    }

    fn note_missing(&mut self, key: Box<str>, now: Millis) {
        if self.missing.len() >= NAMES_MAX {
            self.missing.retain(|_, since| now.saturating_sub(*since) < MISSING_MS);
        }
        if self.missing.len() >= NAMES_MAX {
            let mut ages: Vec<Millis> = self.missing.values().copied().collect();
            ages.sort_unstable();
            let middle = ages[ages.len() / 2];
            self.missing.retain(|_, since| *since > middle);
        }
        self.missing.insert(key, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(misses: &mut Misses, key: &str, now: Millis) -> (bool, oneshot::Receiver<bool>) {
        let (reply, answer) = oneshot::channel();
        (misses.ask(key.into(), reply, now, [NodeId(0), NodeId(1)].into_iter()), answer)
    }

    fn told(answer: &mut oneshot::Receiver<bool>) -> Option<bool> {
        match answer.try_recv() {
            Ok(found) => Some(found),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(false),
        }
    }

    #[test]
    fn a_name_that_appears_is_told_before_the_slowest_node_answers() {
        let mut misses = Misses::default();
        let (refresh, mut answer) = ask(&mut misses, "m:latest", 0);
        assert!(refresh);
        misses.answered(NodeId(1));
        misses.settle(10, |key| key == "m:latest");
        assert_eq!(told(&mut answer), Some(true));
        assert_eq!(misses.deadline(), Millis::MAX, "nobody waits any more");
    }

    #[test]
    fn a_name_that_nobody_has_is_told_when_all_have_answered() {
        let mut misses = Misses::default();
        let (_, mut answer) = ask(&mut misses, "m:latest", 0);
        misses.answered(NodeId(0));
        misses.settle(10, |_| false);
        assert_eq!(told(&mut answer), None);
        misses.answered(NodeId(1));
        misses.settle(20, |_| false);
        assert_eq!(told(&mut answer), Some(false));
    }

    #[test]
    fn a_hanging_node_costs_a_second_at_most() {
        let mut misses = Misses::default();
        let (_, mut answer) = ask(&mut misses, "m:latest", 100);
        misses.answered(NodeId(0));
        assert_eq!(misses.deadline(), 1_100);
        misses.settle(1_099, |_| false);
        assert_eq!(told(&mut answer), None);
        misses.settle(1_100, |_| false);
        assert_eq!(told(&mut answer), Some(false));
    }

    #[test]
    fn one_refresh_serves_many_and_two_seconds_pass_between_two() {
        let mut misses = Misses::default();
        let (first, mut a) = ask(&mut misses, "a:latest", 0);
        let (second, mut b) = ask(&mut misses, "b:latest", 500);
        assert!(first && !second);
        misses.settle(1_000, |_| false);
        assert_eq!((told(&mut a), told(&mut b)), (Some(false), Some(false)));
        let (third, mut c) = ask(&mut misses, "c:latest", 1_999);
        assert!(!third);
        assert_eq!(told(&mut c), Some(false));
        assert!(ask(&mut misses, "c:latest", 2_000).0);
    }

    #[test]
    fn a_missing_name_is_not_looked_for_again_for_five_seconds() {
        let mut misses = Misses::default();
        let (_, _a) = ask(&mut misses, "a:latest", 0);
        misses.settle(1_000, |_| false);
        assert!(!ask(&mut misses, "a:latest", 5_999).0);
        assert!(ask(&mut misses, "b:latest", 5_999).0, "another name is");
        misses.settle(8_000, |_| false);
        assert!(ask(&mut misses, "a:latest", 8_000).0);
    }

    #[test]
    fn without_a_node_that_is_up_nobody_waits() {
        let mut misses = Misses::default();
        let (reply, mut answer) = oneshot::channel();
        assert!(!misses.ask("a:latest".into(), reply, 0, std::iter::empty()));
        assert_eq!(told(&mut answer), Some(false));
    }

    #[test]
    fn memory_of_missing_names_is_bounded() {
        let mut misses = Misses::default();
        for n in 0..20_000 {
            misses.note_missing(format!("m{n}:latest").into(), n);
            assert!(misses.missing.len() <= NAMES_MAX);
        }
        assert!(misses.missing.contains_key("m19999:latest"));
    }
}
