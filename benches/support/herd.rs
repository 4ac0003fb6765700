//! A fleet for benches: nodes without sockets, one model on all of them, its copies in the state a bench asks for.

use herdgate::config::NodeKind;
use herdgate::fleet::{Candidate, Model, NodeView, OwnTimes, Snapshot};
use herdgate::ids::{CellId, ModelId, NodeId};
use herdgate::slots::{Bank, Cell, Limit, ModelWord, Pair, Queue};
use herdgate::sync::Arc;
use herdgate::usage::counters::PairCounters;

/// The one model's name.
pub(crate) const MODEL: &str = "m:latest";

/// A Snapshot of `count` nodes that are up, and the model that all of them have; counters for `workers`.
pub(crate) fn herd(count: u32, limit: Limit, workers: usize) -> (Snapshot, Arc<Model>) {
    let word = Arc::new(ModelWord::new());
    let queue = Arc::new(Queue::new(1_024));
    let nodes: Box<[_]> = (0..count).map(|at| Arc::new(node(at, workers))).collect();
    let mut bank = Bank::default();
    let candidate = |node: &Arc<NodeView>| {
        let cell = Cell::beside(&mut bank, CellId(node.id.0), node.id, Arc::clone(&node.word), limit);
        let (cell, counters, model_word) = (Arc::new(cell), Arc::new(PairCounters::new(workers)), Arc::clone(&word));
        cell.link(Arc::clone(&queue));
        let pair = Arc::new(Pair { cell, counters, model: ModelId(2), model_word: Some(model_word) });
        Candidate::new(pair, node.kind, Arc::from(""))
    };
    let candidates = nodes.iter().map(candidate).collect();
    let (id, name) = (ModelId(2), Arc::from(MODEL));
    let model = Arc::new(Model { id, name, queue, word, candidates, conflict: false, times: OwnTimes::default() });
    let models = Arc::new([(Box::from(MODEL), Arc::clone(&model))].into_iter().collect());
    (Snapshot { nodes, models, ready: true, ..Snapshot::empty() }, model)
}

fn node(at: u32, workers: usize) -> NodeView {
    let node = NodeView { up: true, ..NodeView::bare(NodeId(at), "node", NodeKind::Ollama, workers) };
    node.word.set_up(true);
    node
}
