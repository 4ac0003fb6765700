//! Who waits until a Snapshot shows what was just changed on some nodes. Pure.
//!
//! An operation on models reports success only when the gate itself knows of it: a client that pulls and then chats must
//! not be told that the model is unknown. Called by [`crate::fleet::facts`]. Must never ask a node itself.

use std::collections::HashSet;

use tokio::sync::oneshot;

use crate::ids::NodeId;

/// Operations that wait at once; a further one is told at once.
const WAITS_MAX: usize = 256;

/// Operations that wait.
#[derive(Debug, Default)]
pub struct Settling {
    waits: Vec<Wait>,
}

#[derive(Debug)]
struct Wait {
    /// When it was asked, in the order of what happens: two things of one millisecond have one too.
    since: u64,
    /// Nodes whose inventory has not been told since.
    nodes: HashSet<NodeId>,
    settled: oneshot::Sender<()>,
}

impl Settling {
    /// An operation on these nodes ended now.
    pub fn ask(&mut self, nodes: impl Iterator<Item = NodeId>, settled: oneshot::Sender<()>, now: u64) {
        self.waits.retain(|wait| !wait.settled.is_closed());
        if self.waits.len() < WAITS_MAX {
            self.waits.push(Wait { since: now, nodes: nodes.collect(), settled });
        }
    }

    /// A node's inventory, asked for as this in that order, came or could not be had.
    pub fn answered(&mut self, node: NodeId, asked_at: u64) {
        for wait in self.waits.iter_mut().filter(|wait| wait.since <= asked_at) {
            wait.nodes.remove(&node);
        }
    }

    /// A node went down: nothing more is heard of it for now.
    pub fn lost(&mut self, node: NodeId) {
        self.answered(node, u64::MAX);
    }

    /// Something waits for nothing but a Snapshot.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.waits.iter().any(|wait| wait.nodes.is_empty())
    }

    /// The last Snapshot holds all that was told.
    pub fn published(&mut self) {
        let (done, waiting) = std::mem::take(&mut self.waits).into_iter().partition(|wait| wait.nodes.is_empty());
        self.waits = waiting;
        for wait in done {
            // One that has left wants no answer.
            let _ = wait.settled.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(settling: &mut Settling, nodes: &[u32], now: u64) -> oneshot::Receiver<()> {
        let (settled, done) = oneshot::channel();
        settling.ask(nodes.iter().copied().map(NodeId), settled, now);
        done
    }

    #[test]
    fn an_answer_that_was_asked_for_before_does_not_count() {
        let mut settling = Settling::default();
        let mut done = ask(&mut settling, &[1], 100);
        settling.answered(NodeId(1), 99);
        assert!(!settling.is_due());
        settling.answered(NodeId(1), 100);
        assert!(settling.is_due() && done.try_recv().is_err(), "told only with a Snapshot");
        settling.published();
        assert_eq!(done.try_recv(), Ok(()));
    }

    #[test]
    fn every_node_counts_and_a_lost_one_is_not_waited_for() {
        let mut settling = Settling::default();
        let mut done = ask(&mut settling, &[1, 2], 0);
        settling.answered(NodeId(1), 5);
        settling.published();
        assert!(done.try_recv().is_err());
        settling.lost(NodeId(2));
        settling.published();
        assert_eq!(done.try_recv(), Ok(()));
    }

    #[test]
    fn those_that_left_are_forgotten() {
        let mut settling = Settling::default();
        for _ in 0..10 * WAITS_MAX {
            drop(ask(&mut settling, &[1], 0));
        }
        assert!(settling.waits.len() <= 1);
    }
}
