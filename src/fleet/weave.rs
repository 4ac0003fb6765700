//! One model's candidates from generation to generation: edits woven into the list, everything else shared. Pure.
//!
//! Called by `fleet::build` for the models that some node's change touches. Must never look at the nodes that did not
//! change: with a thousand of them that is what a generation would cost.

use crate::fleet::Candidate;
use crate::ids::NodeId;
use crate::sync::Arc;

/// What changed of one model on one node.
#[derive(Debug)]
pub(super) enum Edit {
    /// The node has it, like this.
    Put(Candidate),
    /// Work may go to the node, or not any more.
    Up(bool),
    /// The node has it no more.
    Remove,
}

/// The next list, in node order as both arguments are; `None` if it would be the old one.
pub(super) fn woven(old: &[Candidate], edits: &[(NodeId, Edit)]) -> Option<Box<[Candidate]>> {
    let found = |node: NodeId| old.binary_search_by_key(&node, |candidate| candidate.node).ok().map(|at| &old[at]);
    let changes = edits.iter().any(|(node, edit)| match (edit, found(*node)) {
        (Edit::Put(new), Some(old)) => !same(old, new),
        (Edit::Put(_), None) | (Edit::Remove, Some(_)) => true,
        (Edit::Up(up), Some(old)) => old.up != *up,
        (Edit::Up(_) | Edit::Remove, None) => false,
    });
    if !changes {
        return None;
    }
    let mut next = Vec::with_capacity(old.len() + edits.len());
    let mut rest = old;
    for (node, edit) in edits {
        let (before, from) = rest.split_at(rest.partition_point(|candidate| candidate.node < *node));
        next.extend_from_slice(before);
        let at_node = from.first().filter(|candidate| candidate.node == *node);
        rest = &from[usize::from(at_node.is_some())..];
        match edit {
            Edit::Put(new) => next.push(new.clone()),
            Edit::Up(up) => next.extend(at_node.map(|old| Candidate { up: *up, ..old.clone() })),
            Edit::Remove => {}
        }
    }
    next.extend_from_slice(rest);
    Some(next.into())
}

fn same(a: &Candidate, b: &Candidate) -> bool {
    a.up == b.up
        && a.last_choice == b.last_choice
        && a.remote == b.remote
        && a.digest == b.digest
        && Arc::ptr_eq(&a.pair, &b.pair)
}
