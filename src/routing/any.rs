//! A node for requests that name no model we know: unparseable bodies, cloud names, pass-through.
//!
//! Called by the proxy. Such requests take the node's own `any` slot, which has no limit. Must never wait.

use crate::config::NodeKind;
use crate::fleet::{NodeView, Snapshot};
use crate::ids::NodeId;
use crate::sync::Arc;

/// Which nodes come into question for [`pick_any`].
#[derive(Clone, Copy, Debug)]
pub struct AnyAsk<'a> {
    /// What the node must speak; `None`: anything.
    pub kind: Option<NodeKind>,
    /// Only nodes that cloud models may be sent to.
    pub cloud: bool,
    /// Nodes that failed it already.
    pub tried: &'a [NodeId],
}

impl AnyAsk<'_> {
    fn serves(&self, node: &NodeView) -> bool {
        self.kind.is_none_or(|kind| kind == node.kind)
            && (!self.cloud || node.cloud)
            && !self.tried.contains(&node.id)
            && node.word.is_open()
    }
}

/// The open node with the least work, the one chosen least often among equals. Takes nothing.
#[must_use]
pub fn least_any<'s>(snapshot: &'s Snapshot, ask: &AnyAsk<'_>) -> Option<&'s Arc<NodeView>> {
    let all = snapshot.nodes.iter().filter(|node| ask.serves(node));
    all.min_by_key(|node| (node.word.work(), node.word.chosen_hint().get()))
}

/// [`least_any`], whose `any` slot is taken: make it a [`crate::slots::Permit`] of [`NodeView::any`] at once.
#[must_use]
pub fn pick_any(snapshot: &Snapshot, ask: &AnyAsk<'_>) -> Option<NodeId> {
    let least = least_any(snapshot, ask)?;
    // It may have closed since; then any other does.
    let node = if least.any.cell.try_take_unbounded() {
        least
    } else {
        snapshot.nodes.iter().find(|node| ask.serves(node) && node.any.cell.try_take_unbounded())?
    };
    node.word.chosen_hint().bump();
    Some(node.id)
}
