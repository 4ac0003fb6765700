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

/// The open node with the least work, the one chosen least often among equals; its `any` slot is taken: make it a
/// [`crate::slots::Permit`] of [`NodeView::any`] at once.
#[must_use]
pub fn pick_any(snapshot: &Snapshot, ask: &AnyAsk<'_>) -> Option<NodeId> {
    let serves = |n: &&Arc<NodeView>| {
        ask.kind.is_none_or(|kind| kind == n.kind)
            && (!ask.cloud || n.cloud)
            && !ask.tried.contains(&n.id)
            && n.word.is_open()
    };
    let least = snapshot.nodes.iter().filter(serves).min_by_key(|n| (n.word.work(), n.word.chosen_hint().get()))?;
    // It may have closed since; then any other does.
    let node = if least.any.cell.try_take_unbounded() {
        least
    } else {
        snapshot.nodes.iter().filter(serves).find(|n| n.any.cell.try_take_unbounded())?
    };
    node.word.chosen_hint().bump();
    Some(node.id)
}
