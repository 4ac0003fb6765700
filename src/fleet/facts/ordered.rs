//! What was just changed on some nodes through us: who waits until a Snapshot shows it, and what is not remembered any
//! more. Pure.
//!
//! Called by [`Facts::report`] alone, and for what time takes away. Must never ask a node itself.

use tokio::sync::oneshot;

use super::{Facts, place};
use crate::fleet::node::{Node, Now};
use crate::ids::NodeId;

impl Facts {
    /// Somebody waits until a Snapshot shows what these nodes say from here on.
    pub(super) fn settle(
        &mut self,
        nodes: Vec<NodeId>,
        settled: oneshot::Sender<()>,
        now: Now,
        note: impl Fn(&mut Node),
    ) {
        let nodes: Vec<NodeId> = nodes.into_iter().filter(|id| self.is_up(*id)).collect();
        self.settling.ask(nodes.iter().copied(), settled, self.serial);
        for node in nodes {
            self.each(node, |node| {
                note(node);
                node.refresh_inventory(now.ms);
            });
        }
        self.dirty.now |= self.settling.is_due();
    }

    /// A name is not to come back with these nodes, as far as they are down; those that are up tell for themselves.
    pub(super) fn forget(&mut self, nodes: &[NodeId], key: &str) {
        for at in nodes.iter().filter_map(|id| place(*id)) {
            let down = self.nodes.get_mut(at).filter(|node| !node.health.is_up());
            if down.is_some_and(|node| node.forget_model(key)) {
                self.remembers_less(at);
            }
        }
    }

    /// What was remembered of a node's models is less.
    pub(super) fn remembers_less(&mut self, at: usize) {
        self.reroute[at] = true;
        self.memorable = true;
        self.dirty.models = true;
        self.dirty.listing = true;
        self.dirty.now = true;
    }

    pub(super) fn is_up(&self, id: NodeId) -> bool {
        place(id).and_then(|at| self.nodes.get(at)).is_some_and(|node| node.health.is_up())
    }
}
