//! One look at everything the monitoring routes show: the only file here that knows where a figure lives.
//!
//! Every figure is a sum of counters or a field of the Snapshot; nothing is waited for. Two looks may differ by what
//! happened in between.

use std::collections::BTreeMap;

use super::metrics::Reading;
use crate::clock::Millis;
use crate::config::NodeKind;
use crate::fleet::{NodePs, NodeView};
use crate::shared::{Shared, WorkerGauges};
use crate::sync::{Arc, Ordering};
use crate::usage::Tokens;
use crate::usage::answers::TokenCount;
use crate::usage::counters::UsedPair;
use crate::usage::meters::{Mark, Tally};
use crate::usage::names::Names;

/// A node, as the monitoring routes show it.
#[derive(Clone, Debug)]
pub(crate) struct NodeReading {
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<str>,
    pub(crate) kind: NodeKind,
    pub(crate) llama: bool,
    /// Health says that it answers.
    pub(crate) up: bool,
    /// Taken out by its operator.
    pub(crate) draining: bool,
    /// It answers, and takes new work.
    pub(crate) open: bool,
    /// Slots held of all its models together, and at most.
    pub(crate) seats: u64,
    pub(crate) slots: Option<u32>,
    /// What is wrong with it though it serves: the kind, and in words.
    pub(crate) sick: Vec<(&'static str, String)>,
    pub(crate) cause: Arc<str>,
    /// Since when it is so.
    pub(crate) since: Millis,
    pub(crate) version: Option<Arc<str>>,
    pub(crate) ps: Arc<NodePs>,
}

impl NodeReading {
    fn of(node: &NodeView) -> Self {
        Self {
            name: node.name.clone(),
            url: node.url.clone(),
            kind: node.kind,
            llama: node.llama,
            up: node.up,
            draining: node.draining,
            open: node.word.is_open(),
            seats: node.word.seats(),
            slots: node.word.slots(),
            sick: sick(node),
            cause: node.cause.clone(),
            since: node.since,
            version: node.version.clone(),
            ps: node.ps.clone(),
        }
    }

    /// Why it takes no work; `None` when it does.
    pub(crate) fn trouble(&self) -> Option<&str> {
        match (self.up, self.open) {
            (true, true) => None,
            _ if self.draining && self.up => Some("taken out by its operator"),
            (true, false) if self.cause.is_empty() => Some("answers, but takes no new work"),
            (false, _) if self.cause.is_empty() => Some("not reached yet"),
            _ => Some(&self.cause),
        }
    }

    /// Its version; OpenAI-compatible servers have none that they tell, the ancestor calls it so.
    pub(crate) fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("latest")
    }
}

/// Kinds of sickness, as metrics name them.
pub(crate) const SICK: [&str; 4] = ["slow", "spilled", "silent", "inventory_shrunk"];

/// What is wrong with a node though it serves: the kind, and in words.
pub(crate) fn sick(node: &NodeView) -> Vec<(&'static str, String)> {
    let copies = node.sick.iter().map(|one| (one.ill.label(), format!("{}: {}", one.name, one.ill)));
    let silent =
        node.suspect.then(|| ("silent", "silent: requests on it wait in vain, it gets no new ones".to_owned()));
    let shrunk = node
        .shrunk
        .map(|(had, has)| ("inventory_shrunk", format!("inventory_shrunk: it had {had} models and has {has}")));
    copies.chain(silent).chain(shrunk).collect()
}

/// Every configured node, in order.
pub(crate) fn nodes(shared: &Shared) -> Vec<NodeReading> {
    shared.fleet.load().configured().map(|node| NodeReading::of(node)).collect()
}

/// What one (node, model name) did since the start.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct PairReading {
    pub(crate) node: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) in_flight: u64,
    /// Requests that ever took a slot.
    pub(crate) starts: u64,
    /// Requests that ended here.
    pub(crate) requests: u64,
    pub(crate) exact: Tokens,
    pub(crate) estimated: Tokens,
    /// The node has gone: nothing is counted here any more.
    pub(crate) gone: bool,
}

impl PairReading {
    /// Adds another pair's figures.
    pub(crate) fn add(&mut self, other: &Self) {
        self.in_flight += other.in_flight;
        self.starts += other.starts;
        self.requests += other.requests;
        self.exact = self.exact.plus(other.exact);
        self.estimated = self.estimated.plus(other.estimated);
    }

    /// Adds the other pair's figures if it is of the same node; says whether it did.
    pub(crate) fn absorbs(&mut self, other: &Self) -> bool {
        let same = self.node == other.node;
        if same {
            self.add(other);
        }
        same
    }
}

/// Every (node, model) that saw a request in this process, by node and model in the order of first sight.
pub(crate) fn pairs(shared: &Shared) -> Vec<PairReading> {
    let used = shared.fleet.load().used.all();
    used.iter().map(|pair| pair_reading(&shared.names, pair)).collect()
}

fn pair_reading(names: &Names, pair: &UsedPair) -> PairReading {
    PairReading {
        node: names.node_name(pair.node).into(),
        model: names.model_name(pair.model),
        in_flight: pair.in_flight(),
        starts: pair.starts(),
        requests: pair.requests(),
        exact: pair.tokens(),
        estimated: pair.estimated(),
        gone: pair.is_gone(),
    }
}

/// All-time tokens by node and model: what the ledger had at the start, and what was counted since.
pub(crate) fn totals(base: &[TokenCount], pairs: &[PairReading]) -> Vec<TokenCount> {
    let mut totals = base.to_vec();
    let mut places: BTreeMap<(Arc<str>, Arc<str>), usize> =
        totals.iter().enumerate().map(|(place, total)| ((total.node.clone(), total.model.clone()), place)).collect();
    for pair in pairs {
        let place = *places.entry((pair.node.clone(), pair.model.clone())).or_insert_with(|| {
            totals.push(TokenCount {
                node: pair.node.clone(),
                model: pair.model.clone(),
                exact: Tokens::default(),
                estimated: Tokens::default(),
                imported: Tokens::default(),
            });
            totals.len() - 1
        });
        totals[place].exact = totals[place].exact.plus(pair.exact);
        totals[place].estimated = totals[place].estimated.plus(pair.estimated);
    }
    totals
}

/// All that `/metrics` shows.
pub(crate) fn everything(shared: &Shared) -> Reading {
    let snapshot = shared.fleet.load();
    let ledger = shared.ledger.health();
    let now = shared.clock.now();
    Reading {
        now,
        started_unix_ms: shared.clock.unix_ms().saturating_sub(now),
        sums: shared.meters.sums(),
        tallies: Tally::ALL.map(|tally| (tally, tallied(shared, tally))).into(),
        nodes: nodes(shared),
        // Series of a node that has gone end, as a target's do that is scraped no more: adding them up under another
        // name would show as work done in that moment.
        pairs: pairs(shared).into_iter().filter(|pair| !pair.gone).collect(),
        queues: queues(shared),
        workers: workers(shared, &ledger.ring_high_water),
        late: shared.late().collect(),
        ledger,
        reloads: shared.operator.reloads(),
        last_reload: shared.operator.last_reload(),
        panicking: snapshot.panicking,
        conflicts: snapshot.models.values().filter(|model| model.conflict).count() as u64,
        generation: snapshot.generation,
        published: snapshot.published,
        poll_lag_ms: shared.fleet.lag.each_ref().map(crate::sync::Hint::get),
        names: shared.names.models() as u64,
        connection_bound: u64::from(shared.connection_bound()),
        body_bytes: shared.body_bytes.load(Ordering::Relaxed),
        ring_capacity: shared.config.now().limits.ring as u64,
        open_listener: !shared.listen.ip().is_loopback() && shared.config.now().router_keys.is_empty(),
        administration: shared.orders.tally().sums(),
    }
}

/// What accepting did is written to the gauges, which handing over reads; everything else to the meters.
fn tallied(shared: &Shared, tally: Tally) -> u64 {
    let gauges = |figure: fn(&WorkerGauges) -> u64| shared.gauges.iter().map(|worker| figure(worker)).sum::<u64>();
    let accepted = |worker: &WorkerGauges| worker.accepted.load(Ordering::Relaxed);
    match tally {
        Tally::CasRetries => shared.fleet.load().nodes.iter().map(|node| node.word.cas_retries()).sum(),
        Tally::ConnectionsOpened => gauges(accepted),
        Tally::ConnectionsClosed => gauges(accepted).saturating_sub(u64::from(shared.connections())),
        Tally::HandedOver => gauges(|worker| worker.handed_over.load(Ordering::Relaxed)),
        Tally::AcceptPauses => gauges(|worker| worker.accept_waits.load(Ordering::Relaxed)),
        Tally::LogDropped => shared.access.lost() + crate::log::dropped(),
        tally => shared.meters.tally(tally),
    }
}

fn workers(shared: &Shared, ring_high_water: &[u64]) -> Vec<WorkerReading> {
    let idle = shared.meters.marks(Mark::IdleNodeConnections);
    let lag_max = shared.meters.marks(Mark::LoopLagMaxUs);
    let levels = idle.zip(lag_max).enumerate();
    levels
        .zip(&shared.gauges)
        .map(|((place, (idle_node_connections, lag_max_us)), gauges)| {
            let lag_us = gauges.loop_lag_us.load(Ordering::Relaxed);
            WorkerReading {
                connections: u64::from(gauges.connections.load(Ordering::Relaxed)),
                idle_node_connections,
                lag_us,
                lag_max_us: lag_max_us.max(lag_us),
                ring_high_water: ring_high_water.get(place).copied().unwrap_or(0),
            }
        })
        .collect()
}

/// A worker's levels.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct WorkerReading {
    pub(crate) connections: u64,
    pub(crate) idle_node_connections: u64,
    pub(crate) lag_us: u64,
    pub(crate) lag_max_us: u64,
    pub(crate) ring_high_water: u64,
}

/// How many wait for each model, in order of first sight.
pub(crate) fn queues(shared: &Shared) -> Vec<(Arc<str>, u64)> {
    let snapshot = shared.fleet.load();
    let mut found: Vec<_> =
        snapshot.models.values().map(|model| (model.id, model.name.clone(), u64::from(model.queue.len()))).collect();
    found.sort();
    found.into_iter().map(|(_, name, length)| (name, length)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node to show, up or refusing.
    pub(crate) fn node(name: &str, up: bool) -> NodeReading {
        NodeReading {
            name: name.into(),
            url: name.into(),
            kind: NodeKind::Ollama,
            llama: false,
            up,
            draining: false,
            open: up,
            seats: 2,
            slots: Some(8),
            sick: Vec::new(),
            cause: if up { "" } else { "connection refused" }.into(),
            since: 500,
            version: up.then(|| "0.12.0".into()),
            ps: Arc::new(NodePs::new(2000, Vec::new())),
        }
    }

    /// A pair that was asked once for this many output tokens.
    pub(crate) fn pair(node: &str, model: &str, in_flight: u64, output: u64) -> PairReading {
        PairReading {
            node: node.into(),
            model: model.into(),
            in_flight,
            starts: 1,
            requests: 1,
            exact: Tokens { input: 1, cached: 0, output },
            estimated: Tokens::default(),
            gone: false,
        }
    }

    #[test]
    fn totals_add_what_was_counted_since_the_start() {
        let old = |node: &str, output| TokenCount {
            node: node.into(),
            model: "m:latest".into(),
            exact: Tokens { input: 10, cached: 0, output },
            estimated: Tokens { input: 0, cached: 0, output: 5 },
            imported: Tokens::default(),
        };
        let base = [old("gone", 1), old("a", 2)];
        let totals = totals(&base, &[pair("b", "m:latest", 0, 7), pair("a", "m:latest", 3, 7)]);
        let seen: Vec<_> = totals.iter().map(|total| (&*total.node, total.tokens().output)).collect();
        assert_eq!(seen, [("gone", 6), ("a", 14), ("b", 7)]);
        assert_eq!(totals[1].estimated.output, 5);
    }

    #[test]
    fn a_pair_is_read_under_its_names() {
        use crate::ids::{NodeId, WorkerId};
        use crate::usage::counters::{OfNode, PairCounters};
        use crate::usage::tests::outcome;
        use crate::usage::{Count, Outcome};

        let names = Names::new(&["a", "b"], &[], 8);
        let (used, model) = (Arc::default(), names.model("m:latest"));
        let counters = PairCounters::listed(1, &Arc::new(OfNode::new(&used, NodeId(1))), model);
        counters.started(WorkerId(0));
        let read = || pair_reading(&names, &used.all()[0]);
        assert_eq!((&*read().node, &*read().model, read().in_flight, read().starts), ("b", "m:latest", 1, 1));
        counters.ended(WorkerId(0));
        let tokens = Tokens { input: 1, cached: 0, output: 2 };
        counters.count(WorkerId(0), &Outcome { count: Count::Exact(tokens), ..outcome() });
        assert_eq!((read().in_flight, read().exact, read().gone), (0, tokens, false));
        drop(counters);
        used.settle(|_| true);
        assert_eq!((read().requests, read().exact, read().gone), (1, tokens, true));
        let kept = totals(&[], &[read()]);
        assert_eq!((&*kept[0].node, kept[0].exact), ("b", tokens), "all-time tokens never fall");
    }
}
