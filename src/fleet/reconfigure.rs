//! What a reload and an operator change of the fleet while it serves: nodes that come, go, move and are drained. Pure.
//!
//! Called by [`Facts::report`]. An id is a place for the life of the process, and belongs to a name: a node that is
//! removed leaves its place behind, closed and empty, and has it again when it is configured again; so counters, ledger and
//! whoever still holds an old Snapshot never meet another node there.
//!
//! A node that is removed or moved loses its cells with the next Snapshot. Their word is closed first, so that nothing
//! more is taken there; permits keep them alive and give their slots back to them (I1), and streams run to their end.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use crate::config::{Config, NodeConfig};
use crate::fleet::Target;
use crate::fleet::build::Routes;
use crate::fleet::facts::{Facts, place};
use crate::fleet::node::{Node, Now};
use crate::fleet::resolve;
use crate::ids::NodeId;
use crate::sync::Arc;

/// Another configuration for the fleet.
#[derive(Debug)]
pub struct Reconfigure {
    /// The configuration to go by from now on.
    pub config: Arc<Config>,
    /// Its nodes, expanded, with the ids that [`crate::usage::names::Names`] gave their names.
    pub nodes: Vec<(NodeId, NodeConfig)>,
    /// Told what it came to once a Snapshot shows it.
    pub done: oneshot::Sender<NodesChanged>,
}

/// What a reconfiguration did to the nodes; names.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NodesChanged {
    /// Not there before.
    pub added: Vec<String>,
    /// No longer configured; what runs there runs to its end.
    pub removed: Vec<String>,
    /// Elsewhere or of another kind from now on: known anew.
    pub moved: Vec<String>,
    /// The same node with another key, other limits or time-outs.
    pub changed: Vec<String>,
}

/// Whom to tell once a Snapshot shows what they asked for.
#[derive(Debug)]
pub(super) enum Told {
    Reconfigured(oneshot::Sender<NodesChanged>, NodesChanged),
    Drained(oneshot::Sender<()>),
}

impl Told {
    pub(super) fn tell(self) {
        // Whoever has left needs no answer.
        match self {
            Self::Reconfigured(done, changed) => drop(done.send(changed)),
            Self::Drained(done) => drop(done.send(())),
        }
    }
}

impl Facts {
    /// Goes by another configuration from now on.
    pub fn reconfigure(&mut self, wanted: Reconfigure, now: Now) {
        let Reconfigure { config, nodes, done } = wanted;
        let old = std::mem::replace(&mut self.config, config);
        let mut changed = NodesChanged::default();
        let kept: BTreeSet<NodeId> = nodes.iter().map(|(id, _)| *id).collect();
        for at in 0..self.nodes.len() {
            if !kept.contains(&self.nodes[at].id) && !self.nodes[at].removed {
                changed.removed.push(self.nodes[at].name.to_string());
                self.remove(at, now);
            }
        }
        for (id, node) in nodes {
            let name = node.name.clone();
            match place(id).filter(|&at| at < self.nodes.len()) {
                None if place(id) == Some(self.nodes.len()) => {
                    self.push(id, node, now);
                    changed.added.push(name);
                }
                None => tracing::error!(node = %name, "a node without a place: it is left out"),
                Some(at) if self.nodes[at].removed => {
                    self.replace(at, node, now);
                    changed.added.push(name);
                }
                Some(at) if !same_place(&self.nodes[at].config, &node) => {
                    self.replace(at, node, now);
                    changed.moved.push(name);
                }
                Some(at) if self.nodes[at].config != node || old.timeouts != self.config.timeouts => {
                    let itself = self.nodes[at].config != node;
                    self.keep(at, node);
                    changed.changed.extend(itself.then_some(name));
                }
                Some(_) => {}
            }
        }
        self.limit_nodes();
        self.reroute.fill(true);
        self.retargeted = true;
        self.cells.set_queue_length(self.config.limits.queue_length);
        self.publish_all();
        self.told.push(Told::Reconfigured(done, changed));
    }

    /// Puts each node's limit for all its models together in force; a higher one serves waiters at once.
    pub(super) fn limit_nodes(&self) {
        for node in self.nodes.iter().filter(|node| !node.removed) {
            let (slots, _) = self.config.node_slots_of(&node.config);
            node.word.set_slots(slots.limit(), self.cells.of_node(node.id));
        }
    }

    /// Takes a node out, or in again.
    pub fn drain(&mut self, id: NodeId, on: bool, done: oneshot::Sender<()>) {
        if let Some(node) = place(id).and_then(|at| self.nodes.get_mut(at)).filter(|node| !node.removed) {
            if on {
                self.drained.insert(node.name.to_string());
                // At once; opening waits for the Snapshot, like every opening.
                node.word.set_draining(true);
            } else {
                self.drained.remove(&*node.name);
            }
            node.draining = on;
        }
        self.publish_all();
        self.told.push(Told::Drained(done));
    }

    /// Whether nodes are elsewhere, or others, since the last call.
    pub fn take_retargeted(&mut self) -> bool {
        std::mem::take(&mut self.retargeted)
    }

    fn publish_all(&mut self) {
        self.dirty.models = true;
        self.dirty.listing = true;
        self.dirty.now = true;
    }

    fn push(&mut self, id: NodeId, config: NodeConfig, now: Now) {
        let target = resolve::target(&config, self.config.timeouts.connect);
        let node = self.fresh(id, config, target, 0, now);
        self.any.push(self.cells.any(id, &node.word));
        self.nodes.push(node);
        self.reroute.push(true);
        self.routes.push(Routes::default());
        self.dues.push(0);
    }

    /// A new node in a place that another one, or the same elsewhere, had.
    fn replace(&mut self, at: usize, config: NodeConfig, now: Now) {
        self.empty(at);
        let old = &self.nodes[at];
        let target = resolve::target(&config, self.config.timeouts.connect).succeeding(&old.target);
        let (id, incarnation) = (old.id, old.incarnation + 1);
        let node = self.fresh(id, config, target, incarnation, now);
        // A counter that is shown never goes back. What the old place's last streams add is not worth a word of its own.
        node.word.lost_hint().set(self.nodes[at].word.cas_retries());
        self.any[at] = self.cells.any(id, &node.word);
        self.nodes[at] = node;
        self.dues[at] = 0;
    }

    fn fresh(&self, id: NodeId, config: NodeConfig, target: Target, incarnation: u32, now: Now) -> Node {
        let mut node = Node::new(id, config, Arc::new(target), self.workers, Arc::clone(&self.instance), now);
        node.incarnation = incarnation;
        node.draining = self.drained.contains(&*node.name);
        node.word.set_draining(node.draining);
        node
    }

    /// The same node under another configuration: what is known of it stays.
    fn keep(&mut self, at: usize, config: NodeConfig) {
        let node = &mut self.nodes[at];
        let target = resolve::target(&config, self.config.timeouts.connect).succeeding(&node.target);
        node.target = Arc::new(target);
        node.url = config.url.as_str().into();
        node.config = config;
    }

    fn remove(&mut self, at: usize, now: Now) {
        self.empty(at);
        self.any[at] = self.cells.closed(&self.any[at]);
        let node = &mut self.nodes[at];
        tracing::info!(node = %node.name, "node is removed; what runs there runs to its end");
        node.retire(now.ms);
        self.dues[at] = node.next_due();
    }

    /// Nothing more is taken on this node, and nobody waits for it.
    fn empty(&mut self, at: usize) {
        let node = &self.nodes[at];
        node.word.set_up(false);
        self.misses.answered(node.id, u64::MAX);
        self.settling.lost(node.id);
        self.shown.lost(node.id);
        self.cells.forget(node.id);
        self.opened.retain(|cell| cell.node != node.id);
        self.unsettled.retain(|(unsettled, _)| *unsettled != at);
    }
}

/// The same server, as far as a configuration can tell.
fn same_place(a: &NodeConfig, b: &NodeConfig) -> bool {
    let place = |node: &NodeConfig| (node.host.clone(), node.port, node.base_path.clone(), node.kind);
    place(a) == place(b)
}
