//! What outlives a generation: cells, pairs, queues, model words, counters. Created here and nowhere else.
//!
//! Owned by the poller's [`crate::fleet::facts`]; the Snapshot holds clones of the `Arc`s. Must never decide health.
//!
//! # Invariants
//! 1. One cell per (node, weights). The weights are the blob where `/api/show` told it; until then the manifest's digest
//!    stands in, or the name for nodes without digests.
//! 2. *Re-keying.* When the blob becomes known the cell of the manifest is entered under the blob: same `Arc`, same
//!    count. If the blob has a cell already (a second name of the same weights), the name moves to that one. Permits of
//!    the cell it leaves keep it alive and give their slots back to it; for their rest of life they are not counted
//!    against the shared limit, which is no more than was allowed while the two were thought to be different.
//!    Counters belong to (node, name) and move nowhere.
//! 3. A queue is linked to cells after the Snapshot that lists them was published, so that whoever is granted a slot finds
//!    its cell there; linking offers, so a waiter that came between is served.
//! 4. A name that left every node keeps its queue until nobody can join it any more; until then its waiters are refused
//!    at each [`Cells::sweep`].

use std::collections::{HashMap, HashSet};

use crate::clock::Millis;
use crate::fleet::Models;
use crate::ids::{CellId, ModelId, NodeId};
use crate::slots::{Bank, Cell, Limit, ModelWord, NodeWord, Pair, Queue};
use crate::sync::Arc;
use crate::usage::counters::{OfNode, PairCounters, Used};
use crate::usage::names::Names;

/// What a name keeps from generation to generation.
#[derive(Clone, Debug)]
pub struct Name {
    /// Its id in counters and ledger.
    pub id: ModelId,
    /// Its display name, as first seen.
    pub name: Arc<str>,
    /// Who waits for it.
    pub queue: Arc<Queue>,
    /// Facts shared by its copies.
    pub word: Arc<ModelWord>,
}

/// The weights behind a name on one node.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// Digest of the manifest, or what stands in for it.
    pub manifest: &'a str,
    /// Their blob, where known.
    pub blob: Option<&'a str>,
}

impl Key<'_> {
    fn weights(&self) -> &str {
        self.blob.unwrap_or(self.manifest)
    }
}

/// How one name uses a cell of its node.
#[derive(Debug)]
pub struct Use {
    /// The cell of its weights.
    pub cell: Arc<Cell>,
    /// Those who wait for it, unless its requests must not be sent there.
    pub queue: Option<Arc<Queue>>,
    /// What it wants the limit to be.
    pub limit: Limit,
}

/// Cells and names in use, and the counters of all that ever were used.
#[derive(Debug)]
pub struct Cells {
    names: Arc<Names>,
    workers: usize,
    queue_length: u32,
    /// Per node, by weights.
    cells: HashMap<NodeId, HashMap<Arc<str>, Arc<Cell>>>,
    /// The words of those with the same weights lie together; by what the weights were called when a cell was made.
    banks: HashMap<Arc<str>, Bank>,
    next_cell: u32,
    by_key: HashMap<Arc<str>, Name>,
    /// Names that left every node and whose queue can still be joined by holders of an old Snapshot.
    gone: Vec<(Arc<str>, Name)>,
    used: Arc<Used>,
    /// By node that is configured: what its counters hold on to.
    counted: HashMap<NodeId, Arc<OfNode>>,
    /// The same of nodes that went, or were replaced, and may be counted on still.
    leaving: Vec<Arc<OfNode>>,
}

impl Cells {
    /// Nothing yet. `queue_length` bounds the waiters of one name.
    #[must_use]
    pub fn new(names: Arc<Names>, workers: usize, queue_length: u32) -> Self {
        Self {
            names,
            workers,
            queue_length,
            cells: HashMap::new(),
            banks: HashMap::new(),
            next_cell: 0,
            by_key: HashMap::new(),
            gone: Vec::new(),
            used: Arc::default(),
            counted: HashMap::new(),
            leaving: Vec::new(),
        }
    }

    /// The pair of requests that name no known model, for one node.
    pub fn any(&mut self, node: NodeId, word: &Arc<NodeWord>) -> Arc<Pair> {
        let id = CellId(self.next_cell);
        self.next_cell += 1;
        let cell = Arc::new(Cell::any(id, node, Arc::clone(word)));
        let counters = self.counters(node, ModelId::UNKNOWN);
        Arc::new(Pair { cell, counters, model: ModelId::UNKNOWN, model_word: None })
    }

    /// The same pair once its node has gone: it takes nothing, and holds on to no counters.
    #[must_use]
    pub fn closed(&self, pair: &Pair) -> Arc<Pair> {
        let counters = Arc::new(PairCounters::new(self.workers));
        Arc::new(Pair { cell: Arc::clone(&pair.cell), counters, model: pair.model, model_word: None })
    }

    /// The counters of every pair that ever saw a request.
    #[must_use]
    pub fn used(&self) -> Arc<Used> {
        Arc::clone(&self.used)
    }

    /// The lasting part of a name.
    pub fn name(&mut self, key: &Arc<str>, display: &Arc<str>) -> Name {
        if let Some(name) = self.by_key.get(key) {
            return name.clone();
        }
        let back = self.gone.iter().position(|(gone, _)| gone == key).map(|at| self.gone.swap_remove(at).1);
        let name = back.unwrap_or_else(|| Name {
            id: self.names.model(display),
            name: Arc::clone(display),
            queue: Arc::new(Queue::new(self.queue_length)),
            word: Arc::new(ModelWord::new()),
        });
        self.by_key.insert(Arc::clone(key), name.clone());
        name
    }

    /// A name that [`Cells::name`] gave a lasting part.
    #[must_use]
    pub fn known(&self, key: &str) -> Option<&Name> {
        self.by_key.get(key)
    }

    /// The display name of a model's id.
    #[must_use]
    pub fn display(&self, id: ModelId) -> Arc<str> {
        self.names.model_name(id)
    }

    /// The pair of a name on a node, with the cell of its weights; the one it had `before` if nothing changed.
    pub fn pair(
        &mut self,
        node: (NodeId, &Arc<NodeWord>),
        name: &Name,
        of: Key<'_>,
        limit: Limit,
        before: Option<&Arc<Pair>>,
    ) -> Arc<Pair> {
        let cell = self.cell(node, of, limit);
        let same_name = before.filter(|pair| pair.model == name.id);
        if let Some(pair) = before {
            if Arc::ptr_eq(&pair.cell, &cell) && same_name.is_some() {
                return Arc::clone(pair);
            }
            if pair.cell.view().loaded && !cell.view().loaded {
                // The weights did not leave the node's memory because we learnt their name. Waiters are offered this
                // cell when it is linked.
                cell.mark_loaded(0);
            }
        }
        let counters = same_name.map_or_else(|| self.counters(node.0, name.id), |pair| Arc::clone(&pair.counters));
        Arc::new(Pair { cell, counters, model: name.id, model_word: Some(Arc::clone(&name.word)) })
    }

    /// The cell of these weights on a node, if a name has them.
    #[must_use]
    pub fn find(&self, node: NodeId, weights: &str) -> Option<&Arc<Cell>> {
        self.cells.get(&node)?.get(weights)
    }

    /// Lets go of a node's cells, whose word is closed already: permits keep them until they end.
    pub fn forget(&mut self, node: NodeId) {
        self.leaving.extend(self.counted.remove(&node));
        for cell in self.cells.remove(&node).into_iter().flat_map(HashMap::into_values) {
            for queue in cell.links() {
                cell.unlink(&queue);
            }
        }
    }

    /// Another bound for the waiters of one name, here and in the queues that come.
    pub fn set_queue_length(&mut self, queue_length: u32) {
        self.queue_length = queue_length;
        let gone = self.gone.iter().map(|(_, name)| name);
        self.by_key.values().chain(gone).for_each(|name| name.queue.set_bound(queue_length));
    }

    /// The cells of one node.
    pub fn of_node(&self, node: NodeId) -> impl Iterator<Item = &Arc<Cell>> {
        self.cells.get(&node).into_iter().flat_map(HashMap::values)
    }

    /// Puts one node's links and limits in force after they were published, and lets go of the cells it does not use any
    /// more. Where several names share a cell the tightest of their limits holds.
    pub fn settle(&mut self, node: NodeId, uses: &[Use]) {
        let mut wanted: HashMap<CellId, (Vec<&Arc<Queue>>, Limit)> = HashMap::with_capacity(uses.len());
        for one in uses {
            let (queues, limit) = wanted.entry(one.cell.id).or_insert_with(|| (Vec::new(), one.limit));
            *limit = tightest(*limit, one.limit);
            queues.extend(&one.queue);
        }
        let Some(cells) = self.cells.get_mut(&node) else { return };
        cells.retain(|_, cell| {
            let wanted = wanted.remove(&cell.id);
            let (queues, limit) = wanted.as_ref().map_or((&[][..], None), |(queues, limit)| (&**queues, Some(*limit)));
            put_in_force(cell, queues, limit);
            wanted.is_some()
        });
    }

    /// Lets go of names that no model of the published Snapshot has, and of weights that nobody has.
    pub fn keep_names(&mut self, models: &Models) {
        let gone = &mut self.gone;
        self.by_key.retain(|key, name| {
            let stays = models.contains_key(&**key);
            if !stays {
                gone.push((Arc::clone(key), name.clone()));
            }
            stays
        });
        self.banks.retain(|_, bank| !bank.is_unused());
        self.sweep();
    }

    /// Refuses those who wait for a name that no node has any more, and forgets it once nobody can join.
    pub fn sweep(&mut self) {
        self.gone.retain(|(_, name)| {
            // Who holds the queue: this list, old Snapshots' models, waiters.
            let reachable = Arc::strong_count(&name.queue) > 1;
            if reachable && !name.queue.is_empty() {
                name.queue.refuse_all();
            }
            reachable
        });
        self.settle_counters();
    }

    /// Takes the counters' rows of nodes that have gone, once no Snapshot and no stream can count there any more.
    fn settle_counters(&mut self) {
        let mut free = HashSet::new();
        // Acquire in `get_mut`: what was counted before the last one else let go is seen.
        self.leaving.retain_mut(|of| {
            let alone = Arc::get_mut(of).is_some();
            if alone {
                free.insert(of.node());
            }
            !alone
        });
        // One that came back goes on with its rows; so does one of which another incarnation still runs.
        let running: HashSet<NodeId> = self.leaving.iter().map(|of| of.node()).collect();
        free.retain(|node| !self.counted.contains_key(node) && !running.contains(node));
        if !free.is_empty() {
            self.used.settle(|node| free.contains(&node));
        }
    }

    /// Ends loads that have been under way for too long, on the nodes that have any.
    pub fn expire_loads(&self, nodes: impl Iterator<Item = NodeId>, now: Millis, grace: Millis) {
        for name in self.by_key.values() {
            name.word.expire_load(now, grace);
        }
        for cell in nodes.flat_map(|node| self.of_node(node)) {
            cell.expire_load(now, grace);
        }
    }

    fn cell(&mut self, (node, word): (NodeId, &Arc<NodeWord>), of: Key<'_>, limit: Limit) -> Arc<Cell> {
        let cells = self.cells.entry(node).or_default();
        if let Some(cell) = cells.get(of.weights()) {
            return Arc::clone(cell);
        }
        let stand_in = of.blob.and_then(|_| cells.remove(of.manifest));
        let cell = stand_in.unwrap_or_else(|| {
            let id = CellId(self.next_cell);
            self.next_cell += 1;
            let bank = self.banks.entry(of.weights().into()).or_default();
            Arc::new(Cell::beside(bank, id, node, Arc::clone(word), limit))
        });
        cells.insert(of.weights().into(), Arc::clone(&cell));
        cell
    }

    fn counters(&mut self, node: NodeId, model: ModelId) -> Arc<PairCounters> {
        let of = self.counted.entry(node).or_insert_with(|| Arc::new(OfNode::new(&self.used, node)));
        Arc::new(PairCounters::listed(self.workers, of, model))
    }
}

/// Links this cell to exactly these queues and gives it its limit; both offer what they make available.
fn put_in_force(cell: &Arc<Cell>, queues: &[&Arc<Queue>], limit: Option<Limit>) {
    for linked in cell.links() {
        if !queues.iter().any(|queue| Arc::ptr_eq(queue, &linked)) {
            cell.unlink(&linked);
        }
    }
    if let Some(limit) = limit.filter(|&limit| !same_limit(cell.view().limit, limit)) {
        cell.set_limit(limit);
    }
    for &queue in queues {
        cell.link(Arc::clone(queue));
    }
}

fn tightest(a: Limit, b: Limit) -> Limit {
    match (a, b) {
        (Limit::Hard(x), Limit::Hard(y)) => Limit::Hard(x.min(y)),
        (hard @ Limit::Hard(_), _) | (_, hard @ Limit::Hard(_)) => hard,
        (Limit::Soft(x), Limit::Soft(y)) => Limit::Soft(x.min(y)),
    }
}

/// A cell counts to 2^24; larger limits read back as that.
fn same_limit(now: Limit, wanted: Limit) -> bool {
    let cap = |limit: u32| limit.min((1 << 24) - 1);
    match (now, wanted) {
        (Limit::Hard(a), Limit::Hard(b)) | (Limit::Soft(a), Limit::Soft(b)) => a == cap(b),
        _ => false,
    }
}
