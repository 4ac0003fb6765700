//! Whether a node's "model not found" is the fleet's answer: only if no node, up or down, has the model.
//!
//! Clients pull on a 404, so it must not come out because an inventory is a moment old: the model may have moved between
//! two polls, or have come back to the very node that lacked it. Called by `attempts` and `unload` when every node that
//! they know of has denied a model. Cold: never on the way of a request that finds its model.

use crate::fleet::Snapshot;
use crate::ids::NodeId;
use crate::proxy::asked::Asked;
use crate::proxy::local::Client;
use crate::proxy::plan::Plan;

/// The nodes that have denied a request its model, and what each had gained when it was asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Denials(Vec<(NodeId, u64)>);

/// What a denial is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// No node has the model, or those that list it mean something else by their 404: their words stand.
    Stands,
    /// A node that is up has it, as far as is known now: ask that one.
    Elsewhere,
    /// A node that is down has it, or nobody can tell: no 404.
    Unsure,
}

impl Denials {
    /// A node said that it lacks the model; it had `gained` so much when it was chosen.
    pub(super) fn add(&mut self, node: NodeId, gained: u64) {
        self.0.push((node, gained));
    }

    /// None yet.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this node denied it and has gained models since.
    pub(super) fn is_lifted(&self, snapshot: &Snapshot, node: NodeId) -> bool {
        self.0.iter().any(|denial| denial.0 == node) && !self.holds(snapshot, node)
    }

    /// Forgets those of nodes that have gained models since: they may have it now.
    pub(super) fn lift(&mut self, snapshot: &Snapshot) {
        self.0.retain(|denial| holds(snapshot, *denial));
    }

    /// Whether this node's denial holds.
    pub(super) fn holds(&self, snapshot: &Snapshot, node: NodeId) -> bool {
        self.0.iter().any(|denial| denial.0 == node && holds(snapshot, *denial))
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.0.iter().map(|denial| denial.0).collect()
    }

    /// What this generation makes of it; `None`: no node has the model any more.
    fn weigh(&self, snapshot: &Snapshot, key: &str) -> Option<Verdict> {
        let candidates = &snapshot.models.get(key)?.candidates;
        weighed(candidates.iter().map(|one| (self.holds(snapshot, one.node), one.up)))
    }
}

/// Of the nodes that have the model: whether each denies it, and whether it is up.
fn weighed(nodes: impl Iterator<Item = (bool, bool)>) -> Option<Verdict> {
    // Whoever may serve it counts more than whoever may have it, and that more than those that deny it.
    let ranks = nodes.map(|(denies, up)| match (denies, up) {
        (false, true) => (2, Verdict::Elsewhere),
        (false, false) => (1, Verdict::Unsure),
        (true, _) => (0, Verdict::Stands),
    });
    ranks.max_by_key(|(rank, _)| *rank).map(|(_, verdict)| verdict)
}

fn holds(snapshot: &Snapshot, (node, gained): (NodeId, u64)) -> bool {
    snapshot.node(node).is_some_and(|view| view.gained == gained)
}

/// Weighs the denials of the nodes that were thought to have this model, after they were asked what they have.
pub(super) async fn verdict(client: &Client, asked: &Asked, key: &str, denials: &Denials) -> Verdict {
    let local = &client.local;
    let weigh = || local.with_snapshot(|snapshot| denials.weigh(snapshot, key));
    match weigh() {
        // All that are known deny it: is what is known of them still so?
        Some(Verdict::Stands) | None => {}
        Some(verdict) => return verdict,
    }
    if !local.reports.confirm(denials.nodes()).await {
        return Verdict::Unsure;
    }
    if let Some(verdict) = weigh() {
        return verdict;
    }
    match super::plan(client, asked).await {
        Ok(Plan::Unknown) => Verdict::Stands,
        Ok(_) => Verdict::Elsewhere,
        Err(_) => Verdict::Unsure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_stands_only_if_all_that_have_the_model_say_it() {
        let weighed = |nodes: &[(bool, bool)]| weighed(nodes.iter().copied());
        assert_eq!(weighed(&[]), None);
        assert_eq!(weighed(&[(true, true), (true, false)]), Some(Verdict::Stands));
        assert_eq!(weighed(&[(true, true), (false, false)]), Some(Verdict::Unsure));
        assert_eq!(weighed(&[(false, false), (false, true), (true, true)]), Some(Verdict::Elsewhere));
    }
}
