//! Refresh on a miss: names that no inventory has, asked for again. Pure.
//!
//! At most one refresh each [`EVERY_MS`] for the whole fleet; a request waits at most [`WAIT_MS`] for it; a name that was
//! not found is remembered as missing for [`MISSING_MS`]. So a client that hammers an unknown name costs the nodes
//! nothing. Called by [`crate::fleet::facts`]. Must never ask a node itself, nor call a name missing that was not looked
//! for: clients pull what is missing.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use crate::clock::Millis;
use crate::fleet::report::Sought;
use crate::ids::NodeId;

/// Between the starts of two refreshes.
pub const EVERY_MS: Millis = 2_000;
/// What a request waits for one: a little less than [`crate::fleet::report::MISS_WAIT`], so that who hears nothing knows
/// that nobody looked.
pub const WAIT_MS: Millis = 900;
/// How long a name counts as missing.
pub const MISSING_MS: Millis = 5_000;

/// Names remembered as missing; when more come the oldest half is forgotten, which costs at most another refresh.
const NAMES_MAX: usize = 1_024;
/// Requests that wait for one refresh; the next is told at once that nobody looked.
const WAITERS_MAX: usize = 4_096;

/// A request that waits.
type Waiter = (Box<str>, oneshot::Sender<Sought>);

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
    /// The order of what happened when it began: an answer to an earlier question says nothing of it.
    serial: u64,
    /// Nodes that have not answered yet.
    nodes: HashSet<NodeId>,
    waiters: Vec<Waiter>,
}

impl Misses {
    /// A request asks for a name that no Snapshot has. True: ask the nodes in `up` for their inventories now.
    pub fn ask(
        &mut self,
        key: Box<str>,
        reply: oneshot::Sender<Sought>,
        (now, serial): (Millis, u64),
        up: impl Iterator<Item = NodeId>,
    ) -> bool {
        // (A client that has left wants no answer.)
        if self.missing.get(&key).is_some_and(|&since| now.saturating_sub(since) < MISSING_MS) {
            let _ = reply.send(Sought::Missing);
            return false;
        }
        if let Some(round) = &mut self.round {
            if round.waiters.len() < WAITERS_MAX {
                round.waiters.push((key, reply));
            } else {
                let _ = reply.send(Sought::Unsure);
            }
            return false;
        }
        let too_soon = self.began.is_some_and(|began| now.saturating_sub(began) < EVERY_MS);
        let nodes: HashSet<NodeId> = up.collect();
        if too_soon || nodes.is_empty() {
            let _ = reply.send(Sought::Missing);
            return false;
        }
        self.began = Some(now);
        self.round = Some(Round { until: now + WAIT_MS, serial, nodes, waiters: vec![(key, reply)] });
        true
    }

    /// A node's inventory, asked for as this in the order of what happens, was told or could not be had.
    pub fn answered(&mut self, node: NodeId, serial: u64) {
        if let Some(round) = self.round.as_mut().filter(|round| round.serial <= serial) {
            round.nodes.remove(&node);
        }
    }

    /// Answers those whose name a published Snapshot `has`, and everybody once all nodes have answered or time is up.
    /// `shown`: that Snapshot holds all that was told; one that rests after a costly generation does not.
    pub fn settle(&mut self, now: Millis, shown: bool, has: impl Fn(&str) -> bool) {
        let Some(mut round) = self.round.take() else { return };
        let mut still = Vec::new();
        for (key, reply) in round.waiters {
            if has(&key) {
                // A client that has left wants no answer.
                let _ = reply.send(Sought::Found);
            } else {
                still.push((key, reply));
            }
        }
        let told = shown && round.nodes.is_empty();
        if still.is_empty() || told || now >= round.until {
            for (key, reply) in still {
                let _ = reply.send(if shown { Sought::Missing } else { Sought::Unsure });
                if shown {
                    self.note_missing(key, now);
                }
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

    fn ask(misses: &mut Misses, key: &str, now: Millis) -> (bool, oneshot::Receiver<Sought>) {
        let (reply, answer) = oneshot::channel();
        (misses.ask(key.into(), reply, (now, now), [NodeId(0), NodeId(1)].into_iter()), answer)
    }

    fn told(answer: &mut oneshot::Receiver<Sought>) -> Option<bool> {
        match answer.try_recv() {
            Ok(Sought::Found) => Some(true),
            Ok(Sought::Missing) => Some(false),
            Ok(Sought::Unsure) | Err(oneshot::error::TryRecvError::Closed) => panic!("looked for"),
            Err(oneshot::error::TryRecvError::Empty) => None,
        }
    }

    #[test]
    fn a_name_that_appears_is_told_before_the_slowest_node_answers() {
        let mut misses = Misses::default();
        let (refresh, mut answer) = ask(&mut misses, "m:latest", 0);
        assert!(refresh);
        misses.answered(NodeId(1), 0);
        misses.settle(10, true, |key| key == "m:latest");
        assert_eq!(told(&mut answer), Some(true));
        assert_eq!(misses.deadline(), Millis::MAX, "nobody waits any more");
    }

    #[test]
    fn a_name_that_nobody_has_is_told_when_all_have_answered() {
        let mut misses = Misses::default();
        let (_, mut answer) = ask(&mut misses, "m:latest", 0);
        misses.answered(NodeId(0), 100);
        misses.settle(10, true, |_| false);
        assert_eq!(told(&mut answer), None);
        misses.answered(NodeId(1), 0);
        misses.settle(20, true, |_| false);
        assert_eq!(told(&mut answer), Some(false));
    }

    #[test]
    fn an_answer_to_an_earlier_question_says_nothing() {
        let mut misses = Misses::default();
        let (_, mut answer) = ask(&mut misses, "m:latest", 50);
        misses.answered(NodeId(0), 49);
        misses.answered(NodeId(1), 50);
        misses.settle(60, true, |_| false);
        assert_eq!(told(&mut answer), None, "what a node said before it was asked is no answer");
        misses.answered(NodeId(0), 50);
        misses.settle(70, true, |_| false);
        assert_eq!(told(&mut answer), Some(false));
    }

    #[test]
    fn what_was_told_but_is_not_shown_yet_makes_no_name_missing() {
        let mut misses = Misses::default();
        let (_, mut answer) = ask(&mut misses, "m:latest", 0);
        [0, 1].into_iter().for_each(|node| misses.answered(NodeId(node), 0));
        misses.settle(10, false, |_| false);
        assert_eq!(told(&mut answer), None, "the Snapshot that is to come may have it");
        misses.settle(20, true, |_| true);
        assert_eq!(told(&mut answer), Some(true));
        let (_, mut late) = ask(&mut misses, "n:latest", 3_000);
        misses.settle(3_000 + WAIT_MS, false, |_| false);
        assert_eq!(late.try_recv(), Ok(Sought::Unsure));
        assert!(!misses.missing.contains_key("n:latest"));
    }

    #[test]
    fn one_waiter_too_many_is_told_that_nobody_looked() {
        let mut misses = Misses::default();
        let waiting: Vec<_> = (0..WAITERS_MAX).map(|n| ask(&mut misses, &format!("m{n}"), 0)).collect();
        let (_, mut answer) = ask(&mut misses, "m:latest", 0);
        assert_eq!(answer.try_recv(), Ok(Sought::Unsure));
        drop(waiting);
    }

    #[test]
    fn a_hanging_node_costs_a_second_at_most() {
        let mut misses = Misses::default();
        let (_, mut answer) = ask(&mut misses, "m:latest", 100);
        misses.answered(NodeId(0), 100);
        assert_eq!(misses.deadline(), 1_000);
        misses.settle(999, true, |_| false);
        assert_eq!(told(&mut answer), None);
        misses.settle(1_000, true, |_| false);
        assert_eq!(told(&mut answer), Some(false));
    }

    #[test]
    fn one_refresh_serves_many_and_two_seconds_pass_between_two() {
        let mut misses = Misses::default();
        let (first, mut a) = ask(&mut misses, "a:latest", 0);
        let (second, mut b) = ask(&mut misses, "b:latest", 500);
        assert!(first && !second);
        misses.settle(1_000, true, |_| false);
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
        misses.settle(1_000, true, |_| false);
        assert!(!ask(&mut misses, "a:latest", 5_999).0);
        assert!(ask(&mut misses, "b:latest", 5_999).0, "another name is");
        misses.settle(8_000, true, |_| false);
        assert!(ask(&mut misses, "a:latest", 8_000).0);
    }

    #[test]
    fn without_a_node_that_is_up_nobody_waits() {
        let mut misses = Misses::default();
        let (reply, mut answer) = oneshot::channel();
        assert!(!misses.ask("a:latest".into(), reply, (0, 0), std::iter::empty()));
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
