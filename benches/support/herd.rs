//! A fleet for benches: nodes without sockets, one model on all of them, its copies in the state a bench asks for.

use herdgate::config::NodeKind;
use herdgate::fleet::progress::NodeProgress;
use herdgate::fleet::{Candidate, Model, NodePs, NodeView, OwnTimes, Snapshot, Target};
use herdgate::ids::{CellId, ModelId, NodeId};
use herdgate::slots::{Bank, Cell, Limit, ModelWord, NodeWord, Pair, Queue};
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
        let pair = pair(cell, Some(Arc::clone(&word)), workers);
        pair.cell.link(Arc::clone(&queue));
        Candidate::new(pair, node.kind, Arc::from(""))
    };
    let candidates = nodes.iter().map(candidate).collect();
    let (id, name) = (ModelId(2), Arc::from(MODEL));
    let model = Arc::new(Model { id, name, queue, word, candidates, conflict: false, times: OwnTimes::default() });
    let models = Arc::new([(Box::from(MODEL), Arc::clone(&model))].into_iter().collect());
    (Snapshot { nodes, models, ready: true, ..Snapshot::empty() }, model)
}

fn node(at: u32, workers: usize) -> NodeView {
    let word = Arc::new(NodeWord::new());
    word.set_up(true);
    let target = Target {
        addresses: arc_swap::ArcSwap::from_pointee(Vec::new()),
        host: Box::from("node"),
        base_path: Box::from(""),
        api_key: None,
        connect_ms: 2_000,
        ..Target::default()
    };
    NodeView {
        id: NodeId(at),
        name: Arc::from("node"),
        url: Arc::from("http://node"),
        kind: NodeKind::Ollama,
        llama: false,
        target: Arc::new(target),
        up: true,
        suspect: false,
        sick: Arc::default(),
        shrunk: None,
        cause: Arc::from(""),
        since: 0,
        version: None,
        any: pair(Cell::new(CellId(at), NodeId(at), Arc::clone(&word), Limit::Soft(4)), None, workers),
        word,
        cloud: false,
        ps: Arc::new(NodePs::default()),
        progress: Arc::new(NodeProgress::new(workers)),
        times: OwnTimes::default(),
        draining: false,
        removed: false,
        name_line: herdgate::fleet::name_line("node"),
    }
}

fn pair(cell: Cell, model_word: Option<Arc<ModelWord>>, workers: usize) -> Arc<Pair> {
    Arc::new(Pair {
        cell: Arc::new(cell),
        counters: Arc::new(PairCounters::new(workers)),
        model: ModelId(2),
        model_word,
    })
}
