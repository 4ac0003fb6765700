//! What was loaded or unloaded through us and no Snapshot shows yet. Pure.
//!
//! One Ollama lists a model in `/api/ps` as soon as its load was answered. So a client that looks while such an answer is
//! younger than the last Snapshot waits for the node's own word. Called by [`crate::fleet::facts`]. Must never ask a node.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::ids::NodeId;

/// Clients that wait at once; a further one is told at once.
const WAITS_MAX: usize = 256;
/// Reports that no answer of their node has followed yet; the oldest of more count as shown.
const OPEN_MAX: usize = 4_096;

/// A node whose memory has changed, and has not been looked at since.
#[derive(Debug)]
struct Open {
    node: NodeId,
    /// Its number among all of these.
    number: u64,
    /// When it was reported, in the order of what happens.
    since: u64,
}

/// What is open, and who waits for it.
#[derive(Debug, Default)]
pub struct Shown {
    told: u64,
    open: VecDeque<Open>,
    waits: Vec<(u64, oneshot::Sender<()>)>,
}

impl Shown {
    /// A model was loaded or unloaded on this node.
    pub fn told(&mut self, node: NodeId, now: u64) {
        self.told += 1;
        if self.open.len() >= OPEN_MAX {
            self.open.pop_front();
        }
        self.open.push_back(Open { node, number: self.told, since: now });
    }

    /// A node told what it has in memory, or could not, when asked as this in that order.
    pub fn answered(&mut self, node: NodeId, asked_at: u64) {
        self.open.retain(|open| open.node != node || open.since > asked_at);
    }

    /// A node went down: nothing more is heard of it for now.
    pub fn lost(&mut self, node: NodeId) {
        self.answered(node, u64::MAX);
    }

    /// Somebody waits until a Snapshot shows the first so many reports.
    pub fn wait(&mut self, number: u64, shown: oneshot::Sender<()>) {
        self.waits.retain(|(_, shown)| !shown.is_closed());
        if self.waits.len() < WAITS_MAX {
            self.waits.push((number, shown));
        }
    }

    /// So many reports are known to the last, from the first on.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.open.front().map_or(self.told, |open| open.number - 1)
    }

    /// Nodes that somebody waits for.
    #[must_use]
    pub fn awaited(&self) -> Vec<NodeId> {
        let most = self.waits.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let mut nodes: Vec<NodeId> = Vec::new();
        for open in self.open.iter().take_while(|open| open.number <= most) {
            if !nodes.contains(&open.node) {
                nodes.push(open.node);
            }
        }
        nodes
    }

    /// Somebody waits for nothing but a Snapshot.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.waits.iter().any(|(number, _)| *number <= self.number())
    }

    /// The last Snapshot shows this many.
    pub fn published(&mut self, number: u64) {
        let (done, waiting) = std::mem::take(&mut self.waits).into_iter().partition(|(wanted, _)| *wanted <= number);
        self.waits = waiting;
        for (_, shown) in done {
            // One that has left wants no answer.
            let _ = shown.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_after_the_report_shows_it() {
        let mut shown = Shown::default();
        shown.told(NodeId(0), 5);
        shown.told(NodeId(1), 6);
        let (done, mut seen) = oneshot::channel();
        shown.wait(2, done);
        shown.answered(NodeId(0), 4);
        assert_eq!(shown.number(), 0, "that was asked before");
        shown.answered(NodeId(1), 6);
        assert_eq!(shown.number(), 0, "the first is still open");
        assert!(!shown.is_due());
        shown.answered(NodeId(0), 6);
        assert_eq!(shown.number(), 2);
        assert!(shown.is_due() && seen.try_recv().is_err(), "told only with a Snapshot");
        shown.published(shown.number());
        assert_eq!(seen.try_recv(), Ok(()));
    }

    #[test]
    fn a_lost_node_and_too_many_reports_hold_nobody_up() {
        let mut shown = Shown::default();
        shown.told(NodeId(0), 1);
        shown.lost(NodeId(0));
        assert_eq!(shown.number(), 1);
        (0..10_000).for_each(|at| shown.told(NodeId(1), at));
        assert_eq!(shown.open.len(), OPEN_MAX);
        for _ in 0..10 * WAITS_MAX {
            let (done, _left) = oneshot::channel();
            shown.wait(u64::MAX, done);
        }
        assert!(shown.waits.len() <= WAITS_MAX);
    }
}
