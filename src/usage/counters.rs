//! In flight and tokens of one (node, model name): per-worker rows with a single writer, summed by readers.
//!
//! A [`Permit`](crate::slots) counts `started` and `ended`, the [`Recorder`](super::recorder::Recorder) counts what a
//! request came to; `/api/usage`, `/metrics` and the live sampler read. Must never wait and never use a
//! read-modify-write: that is what one row per worker buys.
//!
//! Most of a large fleet's pairs never see a request: rows come with the first one, and [`Used`] lists the pairs that
//! have some, so that readers cost what was used and not what could be. When a node has gone and nobody can count there
//! any more, its rows make way for their sums ([`Used::settle`]).
//!
//! Rejected: one shared atomic per figure (neighbours cost 12 ns each under contention, padded rows 2), and rows
//! allocated up front (a fleet of a thousand nodes and a thousand names would own gigabytes of zeros).

use std::sync::OnceLock;

use crossbeam::utils::CachePadded;

use super::{Count, Outcome, Tokens};
use crate::ids::{ModelId, NodeId, WorkerId};
use crate::sync::{Arc, AtomicU64, Ordering};

/// Adds to a counter that only this thread writes.
///
/// Ordering: Relaxed; statistics publish nothing. Progress: wait-free, no read-modify-write.
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// Three token sums with a single writer.
#[derive(Debug, Default)]
pub(super) struct TokenCounters {
    input: AtomicU64,
    cached: AtomicU64,
    output: AtomicU64,
}

impl TokenCounters {
    pub(super) fn add(&self, tokens: Tokens) {
        bump(&self.input, tokens.input);
        bump(&self.cached, tokens.cached);
        bump(&self.output, tokens.output);
    }

    pub(super) fn read(&self) -> Tokens {
        Tokens {
            input: self.input.load(Ordering::Relaxed),
            cached: self.cached.load(Ordering::Relaxed),
            output: self.output.load(Ordering::Relaxed),
        }
    }
}

/// What one worker did with the pair.
#[derive(Debug, Default)]
struct PairRow {
    started: AtomicU64,
    ended: AtomicU64,
    requests: AtomicU64,
    exact: TokenCounters,
    estimated: TokenCounters,
}

/// Counters of one (node, model name).
///
/// # Invariants
/// 1. Row `w` is written by worker `w` alone: a permit is counted and dropped on one thread.
/// 2. `started >= ended` in every row, so in flight never reads negative.
///
/// # Orderings
/// `ended` is stored with Release and read with Acquire before `started` is read: a reader that sees an end also sees
/// its start. Everything else is Relaxed.
///
/// # Progress
/// Writers are wait-free once the rows exist. The first use of a pair allocates them; two workers that are first at
/// the same time may wait for one allocation, once in the pair's life.
#[derive(Debug)]
pub struct PairCounters {
    workers: usize,
    rows: OnceLock<Rows>,
    /// Where its first use is entered, and as what.
    listed: Option<(Arc<OfNode>, ModelId)>,
}

/// One row for each worker.
type Rows = Arc<[CachePadded<PairRow>]>;

/// The pairs that ever saw a request; grows by the pair's first user, read without a lock by the monitoring routes.
///
/// Rows: bounded by nodes times `limits.names`. A pair that goes and comes back finds what it counted here again.
#[derive(Debug, Default)]
pub struct Used {
    pairs: papaya::HashMap<(NodeId, ModelId), Entry>,
}

/// What is kept of a pair.
#[derive(Clone, Default, Debug)]
struct Entry {
    /// Its rows, while somebody may count there.
    rows: Option<Rows>,
    settled: Settled,
}

/// Sums of a pair from before its node went.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Settled {
    starts: u64,
    requests: u64,
    exact: Tokens,
    estimated: Tokens,
}

/// A node's counters can be found while one of these lives: every [`PairCounters`] of the node holds it.
///
/// So whoever has the last one knows that all that was counted can be seen, and that nothing will be added.
#[derive(Debug)]
pub struct OfNode {
    used: Arc<Used>,
    node: NodeId,
}

impl OfNode {
    /// For the counters of this node, from now until it goes.
    #[must_use]
    pub fn new(used: &Arc<Used>, node: NodeId) -> Self {
        Self { used: Arc::clone(used), node }
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }
}

/// A pair that saw a request.
#[derive(Debug)]
pub struct UsedPair {
    /// Its node.
    pub node: NodeId,
    /// Its model.
    pub model: ModelId,
    /// What it counts, unless its node has gone.
    counters: Option<PairCounters>,
    /// What comes on top: from before its node went, and perhaps came back.
    settled: Settled,
}

impl UsedPair {
    /// Its node has gone, and nothing is counted here any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.counters.is_none()
    }

    /// As [`PairCounters::in_flight`].
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.counters.as_ref().map_or(0, PairCounters::in_flight)
    }

    /// As [`PairCounters::starts`].
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.counters.as_ref().map_or(0, PairCounters::starts).wrapping_add(self.settled.starts)
    }

    /// As [`PairCounters::requests`].
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.counters.as_ref().map_or(0, PairCounters::requests).wrapping_add(self.settled.requests)
    }

    /// As [`PairCounters::tokens`].
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.settled.exact.plus(self.counters.as_ref().map(PairCounters::tokens).unwrap_or_default())
    }

    /// As [`PairCounters::estimated`].
    #[must_use]
    pub fn estimated(&self) -> Tokens {
        self.settled.estimated.plus(self.counters.as_ref().map(PairCounters::estimated).unwrap_or_default())
    }

    fn all_settled(&self) -> Settled {
        let (exact, estimated) = (self.tokens(), self.estimated());
        Settled { starts: self.starts(), requests: self.requests(), exact, estimated }
    }
}

impl Used {
    /// Every pair that ever saw a request, by node and model in the order of their ids.
    #[must_use]
    pub fn all(&self) -> Vec<UsedPair> {
        let pairs = self.pairs.pin();
        let mut all: Vec<_> = pairs.iter().map(|(pair, entry)| entry.read(*pair)).collect();
        all.sort_unstable_by_key(|pair| (pair.node, pair.model));
        all
    }

    /// Takes rows of nodes that have gone away and keeps their sums: a kilobyte or two becomes a hundred bytes, about what
    /// the ledger's totals cost after the next start. Nobody may hold an [`OfNode`] of theirs. For the control thread alone.
    pub fn settle(&self, is_gone: impl Fn(NodeId) -> bool) {
        let pairs = self.pairs.pin();
        for (pair, entry) in pairs.iter().filter(|((node, _), entry)| entry.rows.is_some() && is_gone(*node)) {
            pairs.insert(*pair, Entry { rows: None, settled: entry.read(*pair).all_settled() });
        }
    }
}

impl Entry {
    fn read(&self, (node, model): (NodeId, ModelId)) -> UsedPair {
        UsedPair { node, model, counters: self.rows.as_ref().map(PairCounters::of), settled: self.settled }
    }
}

impl PairCounters {
    /// Counters for `workers` writers that no list shows; allocates nothing yet.
    #[must_use]
    pub const fn new(workers: usize) -> Self {
        Self { workers, rows: OnceLock::new(), listed: None }
    }

    /// Counters that [`Used`] shows from their first use on, with the rows that it has of this pair, if any.
    #[must_use]
    pub fn listed(workers: usize, of: &Arc<OfNode>, model: ModelId) -> Self {
        let pairs = of.used.pairs.pin();
        let rows = pairs.get(&(of.node, model)).and_then(|entry| entry.rows.as_ref());
        let rows = rows.map_or_else(OnceLock::new, |rows| OnceLock::from(Arc::clone(rows)));
        Self { workers, rows, listed: Some((Arc::clone(of), model)) }
    }

    /// What a reader needs.
    fn of(rows: &Rows) -> Self {
        Self { workers: rows.len(), rows: OnceLock::from(Arc::clone(rows)), listed: None }
    }

    /// Counts a slot taken by this worker.
    ///
    /// # Panics
    /// If `worker` is not below the number given to [`PairCounters::new`].
    pub fn started(&self, worker: WorkerId) {
        bump(&self.row(worker).started, 1);
    }

    /// Counts a slot given back by this worker.
    ///
    /// # Panics
    /// If `worker` is not below the number given to [`PairCounters::new`].
    pub fn ended(&self, worker: WorkerId) {
        let ended = &self.row(worker).ended;
        // Release: pairs with the Acquire of `in_flight`, so that the start is seen with its end.
        ended.store(ended.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Counts what a request came to.
    ///
    /// # Panics
    /// If `worker` is not below the number given to [`PairCounters::new`].
    pub fn count(&self, worker: WorkerId, outcome: &Outcome) {
        let row = self.row(worker);
        bump(&row.requests, 1);
        match outcome.count {
            Count::Exact(tokens) => row.exact.add(tokens),
            Count::Estimated(tokens) => row.estimated.add(tokens),
            Count::Nothing => {}
        }
    }

    /// Slots taken and not given back. Never below the truth at the moment the call began.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let Some(rows) = self.rows.get() else { return 0 };
        let ended = rows.iter().fold(0_u64, |sum, row| sum.wrapping_add(row.ended.load(Ordering::Acquire)));
        let started = rows.iter().fold(0_u64, |sum, row| sum.wrapping_add(row.started.load(Ordering::Relaxed)));
        started.saturating_sub(ended)
    }

    /// Slots ever taken; rises with each one, so a sampler sees what came and went between two looks.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.sum(|row| row.started.load(Ordering::Relaxed))
    }

    /// Requests counted.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.sum(|row| row.requests.load(Ordering::Relaxed))
    }

    /// Tokens that nodes reported.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.sum_tokens(|row| row.exact.read())
    }

    /// Tokens that we worked out.
    #[must_use]
    pub fn estimated(&self) -> Tokens {
        self.sum_tokens(|row| row.estimated.read())
    }

    fn row(&self, worker: WorkerId) -> &PairRow {
        &self.rows.get_or_init(|| self.first_rows())[worker.0]
    }

    /// The rows of a first use. Under two counters of one pair (one of them of an older generation) both get the same.
    #[cold]
    fn first_rows(&self) -> Rows {
        let fresh = || (0..self.workers).map(|_| CachePadded::default()).collect::<Rows>();
        let Some((of, model)) = &self.listed else { return fresh() };
        let rows_of = |entry: &Entry| entry.rows.clone().unwrap_or_else(fresh);
        let pairs = of.used.pairs.pin();
        let entry = pairs.update_or_insert_with(
            (of.node, *model),
            |entry| Entry { rows: Some(rows_of(entry)), settled: entry.settled },
            || Entry { rows: Some(fresh()), settled: Settled::default() },
        );
        rows_of(entry)
    }

    fn sum(&self, figure: impl Fn(&PairRow) -> u64) -> u64 {
        self.rows.get().map_or(0, |rows| rows.iter().fold(0, |sum: u64, row| sum.wrapping_add(figure(row))))
    }

    fn sum_tokens(&self, figure: impl Fn(&PairRow) -> Tokens) -> Tokens {
        self.rows
            .get()
            .map_or_else(Tokens::default, |rows| rows.iter().fold(Tokens::default(), |sum, row| sum.plus(figure(row))))
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;
    use crate::usage::tests::outcome;

    #[test]
    fn sums_over_workers_and_allocates_at_first_use() {
        let pair = PairCounters::new(2);
        assert_eq!((pair.in_flight(), pair.requests(), pair.tokens()), (0, 0, Tokens::default()));
        assert!(pair.rows.get().is_none());
        pair.started(WorkerId(0));
        pair.started(WorkerId(1));
        pair.started(WorkerId(1));
        assert_eq!(pair.in_flight(), 3);
        pair.ended(WorkerId(1));
        assert_eq!((pair.in_flight(), pair.starts()), (2, 3));
        let exact = Tokens { input: 5, cached: 1, output: 7 };
        pair.count(WorkerId(0), &Outcome { count: Count::Exact(exact), ..outcome() });
        pair.count(WorkerId(1), &Outcome { count: Count::Estimated(exact), ..outcome() });
        pair.count(WorkerId(1), &Outcome { count: Count::Exact(exact), ..outcome() });
        assert_eq!(pair.requests(), 3);
        assert_eq!(pair.tokens(), exact.plus(exact));
        assert_eq!(pair.estimated(), exact);
    }

    #[test]
    fn a_pair_is_listed_from_its_first_use_and_finds_its_rows_again() {
        let used = Arc::new(Used::default());
        let of = |node| Arc::new(OfNode::new(&used, NodeId(node)));
        let counters = |node, model| PairCounters::listed(2, &of(node), ModelId(model));
        let (old, idle) = (counters(3, 5), counters(1, 5));
        let older = counters(3, 5);
        assert!(used.all().is_empty());
        old.started(WorkerId(1));
        older.started(WorkerId(0));
        counters(2, 9).started(WorkerId(0));
        let all: Vec<_> = used.all().iter().map(|pair| (pair.node.0, pair.model.0, pair.in_flight())).collect();
        assert_eq!(all, [(2, 9, 1), (3, 5, 2)]);
        drop((old, older));
        let back = counters(3, 5);
        back.ended(WorkerId(1));
        assert_eq!((back.starts(), back.in_flight(), idle.starts()), (2, 1, 0));
        assert_eq!(used.all().len(), 2);
    }

    #[test]
    fn what_a_node_that_has_gone_counted_is_kept_without_its_rows() {
        let used = Arc::new(Used::default());
        let of = Arc::new(OfNode::new(&used, NodeId(1)));
        let tokens = Tokens { input: 5, cached: 1, output: 7 };
        let exact = Outcome { count: Count::Exact(tokens), ..outcome() };
        let counters = PairCounters::listed(2, &of, ModelId(3));
        counters.started(WorkerId(1));
        counters.ended(WorkerId(1));
        counters.count(WorkerId(0), &exact);
        used.settle(|node| node == NodeId(2));
        assert!(!used.all()[0].is_gone());
        drop((counters, of));
        for _ in 0..2 {
            used.settle(|node| node == NodeId(1));
            let all = used.all();
            assert_eq!((all.len(), all[0].is_gone(), all[0].starts(), all[0].requests()), (1, true, 1, 1));
            assert_eq!((all[0].tokens(), all[0].in_flight()), (tokens, 0));
        }
        // It comes back: it counts on from what it had, under whichever counters.
        let of = Arc::new(OfNode::new(&used, NodeId(1)));
        let (one, other) = (PairCounters::listed(2, &of, ModelId(3)), PairCounters::listed(2, &of, ModelId(3)));
        one.count(WorkerId(0), &exact);
        other.count(WorkerId(1), &exact);
        for gone in [false, true] {
            let pair = &used.all()[0];
            let thrice = tokens.plus(tokens).plus(tokens);
            assert_eq!((pair.is_gone(), pair.requests(), pair.tokens()), (gone, 3, thrice));
            used.settle(|_| true);
        }
    }

    #[test]
    fn i1_in_flight_never_reads_negative_and_ends_at_zero() {
        const ROUNDS: usize = 20_000;
        let pair = PairCounters::new(2);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|worker| {
                    let pair = &pair;
                    scope.spawn(move || {
                        for _ in 0..ROUNDS {
                            pair.started(WorkerId(worker));
                            pair.ended(WorkerId(worker));
                        }
                    })
                })
                .collect();
            while writers.iter().any(|writer| !writer.is_finished()) {
                // A torn read would show as a huge number after the wrap, or as more than was ever taken.
                assert!(pair.in_flight() <= (2 * ROUNDS) as u64);
            }
        });
        assert_eq!(pair.in_flight(), 0);
        assert_eq!(pair.starts(), (2 * ROUNDS) as u64);
    }
}
