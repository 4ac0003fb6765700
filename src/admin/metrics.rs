//! What `/metrics` says: names, types and help in one enum, and where each figure comes from.
//!
//! Labels have a known bound: nodes are configured, workers counted, outcomes and reasons enumerated, and at most
//! [`PAIRS_MAX`] (node, model) pairs have lines of their own; the others add up under `_other`.

use std::collections::BTreeMap;

use super::Answer;
use super::aside::{For, aside_for};
use super::exposition::{Distribution, Exposition, Kind};
use super::reading::{self, NodeReading, PairReading, WorkerReading};
use crate::clock::Millis;
use crate::fleet::fanout::tally::TallySums;
use crate::operator::LastReload;
use crate::shared::{Shared, Thread};
use crate::sync::Arc;
use crate::usage::answers::Health;
use crate::usage::meters::{BUCKETS, HistogramSums, MeterSums, Tally, Timeout};
use crate::usage::names::OTHER;
use crate::usage::{Ending, Rejection, Tokens};

/// `Content-Type` of Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// (node, model) pairs, and models, with a line of their own.
pub(crate) const PAIRS_MAX: usize = 4096;

macro_rules! metrics {
    ($($variant:ident = $name:literal, $kind:ident, $help:literal;)+) => {
        /// Every family but those of [`Tally`], which are named by its labels.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Metric { $($variant),+ }

        impl Metric {
            /// In the order in which they are shown.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),+];

            /// Name, type and help.
            pub(crate) const fn family(self) -> (&'static str, Kind, &'static str) {
                match self { $(Self::$variant => ($name, Kind::$kind, $help)),+ }
            }
        }
    };
}

metrics! {
    Build = "herdgate_build_info", Gauge, "Always 1; the version is a label.";
    Start = "process_start_time_seconds", Gauge, "Unix time of the start.";
    Requests = "herdgate_requests_total", Counter, "Requests by how they ended.";
    Rejections = "herdgate_rejections_total", Counter, "Requests never sent to a node, by reason.";
    Timeouts = "herdgate_timeouts_total", Counter, "Time-outs that passed, by their name in the configuration.";
    Answers = "herdgate_answers_total", Counter, "Answers by class of status; none: the client left before one.";
    FirstByte = "herdgate_first_byte_seconds", Histogram, "From a request's arrival to the first byte of its answer.";
    QueueWait = "herdgate_queue_wait_seconds", Histogram, "Waiting for a slot, of requests that waited.";
    Gap = "herdgate_token_gap_seconds", Histogram, "Between two arrivals of a streamed answer's bytes: a token each, or as many as came together.";
    Load = "herdgate_load_seconds", Histogram, "Load time that nodes report, of requests whose node does.";
    Total = "herdgate_request_seconds", Histogram, "From a request's arrival to its end.";
    InFlight = "herdgate_in_flight", Gauge, "Slots held now, by node and model.";
    Seats = "herdgate_node_in_flight", Gauge, "Slots held now of all models of a node together.";
    NodeSlots = "herdgate_node_slots", Gauge, "Slots of all models of a node together at most, of nodes with such a limit.";
    Started = "herdgate_started_total", Counter, "Slots ever taken, by node and model.";
    Queue = "herdgate_queue_length", Gauge, "Requests waiting for a slot, by model.";
    Tokens = "herdgate_tokens_total", Counter, "Tokens that nodes reported since the start; cached ones are part of input.";
    TokensEstimated = "herdgate_tokens_estimated_total", Counter, "Tokens worked out where a node reported none.";
    NodeUp = "herdgate_node_up", Gauge, "1 while the node answers its probes.";
    NodeSuspect = "herdgate_node_suspect", Gauge, "1 while the node answers but gets no new work.";
    NodeSick = "herdgate_node_sick", Gauge, "Sicknesses of the node by kind: copies of models that are slow or spilled out of the GPU's memory, silence, a shrunk inventory.";
    NodeDraining = "herdgate_node_draining", Gauge, "1 while the node is taken out by its operator.";
    Reloads = "herdgate_config_reloads_total", Counter, "Reloads of the configuration, by what came of them.";
    ReloadOk = "herdgate_config_last_reload_successful", Gauge, "0 while the last reload was refused and the configuration before it is in force.";
    ReloadTime = "herdgate_config_last_reload_success_timestamp_seconds", Gauge, "Unix time at which the configuration in force was taken.";
    RestartNeeded = "herdgate_config_restart_needed", Gauge, "Keys of the configuration that wait for a restart.";
    Panicking = "herdgate_fleet_panicking", Gauge, "1 while more than half of the nodes failed at once and the last known good ones are kept.";
    Conflicts = "herdgate_digest_conflicts", Gauge, "Models whose nodes disagree about their digest.";
    Generation = "herdgate_snapshot_generation", Gauge, "Generation of the fleet's snapshot.";
    SnapshotAge = "herdgate_snapshot_age_seconds", Gauge, "Age of the fleet's snapshot.";
    PollLag = "herdgate_poll_lag_seconds", Gauge, "How late the poller was with what was due last.";
    PollLagMax = "herdgate_poll_lag_max_seconds", Gauge, "How late the poller was at worst since the start.";
    NodePollAge = "herdgate_node_poll_age_seconds", Gauge, "Since a node told what it has loaded, of nodes that ever did.";
    NodeStateAge = "herdgate_node_state_seconds", Gauge, "Since a node's health last changed.";
    Names = "herdgate_model_names", Gauge, "Models that have a name of their own in ledger and metrics.";
    Connections = "herdgate_client_connections", Gauge, "Client connections open, by worker.";
    ConnectionBound = "herdgate_client_connections_max", Gauge, "Client connections at most.";
    BodyMemory = "herdgate_body_memory_bytes", Gauge, "Bytes of request bodies held now.";
    IdleNodeConnections = "herdgate_node_connections_idle", Gauge, "Idle connections to nodes, by worker.";
    LoopLag = "herdgate_loop_lag_seconds", Gauge, "How late the worker's last tick was.";
    LoopLagMax = "herdgate_loop_lag_max_seconds", Gauge, "How late the worker's latest tick since the start was.";
    ThreadLate = "herdgate_thread_late_seconds", Gauge, "How late a thread is that must move on; 30 s and more is stuck.";
    RingHighWater = "herdgate_ring_high_water", Gauge, "Most events that waited in the worker's ring at a tick.";
    RingCapacity = "herdgate_ring_capacity", Gauge, "Events that a worker's ring holds.";
    LedgerDegraded = "herdgate_ledger_degraded", Gauge, "1 while rows are in memory only.";
    LedgerAge = "herdgate_ledger_unwritten_age_seconds", Gauge, "Age of the oldest row that is not in the store.";
    LedgerRows = "herdgate_ledger_rows", Gauge, "Rows in memory.";
    LedgerRowsUnwritten = "herdgate_ledger_rows_unwritten", Gauge, "Rows in memory that the store lacks.";
    LedgerEvents = "herdgate_ledger_events_total", Counter, "Events folded into rows.";
    LedgerEventsLost = "herdgate_ledger_events_lost_total", Counter, "Events that found no room: missing in the ledger, counted here.";
    LedgerFoldedEarly = "herdgate_ledger_folded_early_total", Counter, "Minute rows folded into their day because memory was full.";
    LedgerCommits = "herdgate_ledger_commits_total", Counter, "Commits of the store.";
    LedgerCommitsFailed = "herdgate_ledger_commits_failed_total", Counter, "Commits that failed.";
    Operations = "herdgate_administration_total", Counter, "Operations on models over the fleet, by kind and what came of them.";
    OperationsUnderWay = "herdgate_administration_under_way", Gauge, "Operations on models under way.";
    Pending = "herdgate_pending_operations", Gauge, "Operations kept for nodes that are down.";
    CaughtUp = "herdgate_pending_attempts_total", Counter, "What came of operations kept for nodes that were down; void: the node's models had changed.";
    OpenListener = "herdgate_open_listener", Gauge, "1 if the listener is reachable from other machines and asks for no key.";
}

/// Help of a tally's family; its name is `herdgate_` + label + `_total`.
const fn tally_help(tally: Tally) -> &'static str {
    match tally {
        Tally::ConnectionsOpened => "Client connections accepted.",
        Tally::ConnectionsClosed => "Client connections closed.",
        Tally::HandedOver => "Client connections handed to a less busy worker.",
        Tally::AcceptPauses => "Times accepting waited for a file or a place.",
        Tally::NodeConnectionsOpened => "Connections opened to nodes.",
        Tally::NodeConnectionsClosed => "Connections to nodes closed.",
        Tally::NodeConnectionsReused => "Requests sent over a kept connection.",
        Tally::Retries => "Further attempts after a failed one.",
        Tally::RetriesRefused => "Attempts not made because the retry budget was spent.",
        Tally::CasRetries => "Compare-exchanges on slot words that lost.",
        Tally::Waits => "Requests that waited for a slot.",
        Tally::ColdStarts => "Requests sent to a node where the model was not loaded.",
        Tally::Detached => "Cold loads kept after their client left.",
        Tally::Lingered => "Node connections closed because their client left.",
        Tally::RequestBytes => "Bytes of request bodies read from clients.",
        Tally::AnswerBytes => "Bytes of answer bodies passed to clients.",
        Tally::BodyMemoryWaits => "Times a body waited for body memory.",
        Tally::Panics => "Handlers that panicked.",
        Tally::DetailDropped => "Events dropped because a ring was full: the ledger has them under the key _lost.",
        Tally::LogDropped => "Lines of the log dropped because they were not read in time, or could not be written.",
    }
}

/// Everything that `/metrics` shows, read at one moment.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) now: Millis,
    pub(crate) started_unix_ms: u64,
    pub(crate) sums: MeterSums,
    pub(crate) tallies: Vec<(Tally, u64)>,
    pub(crate) nodes: Vec<NodeReading>,
    pub(crate) pairs: Vec<PairReading>,
    pub(crate) queues: Vec<(Arc<str>, u64)>,
    pub(crate) workers: Vec<WorkerReading>,
    pub(crate) late: Vec<(Thread, Millis)>,
    pub(crate) ledger: Arc<Health>,
    pub(crate) panicking: bool,
    pub(crate) conflicts: u64,
    pub(crate) generation: u64,
    pub(crate) published: Millis,
    /// Last, and the most since the start.
    pub(crate) poll_lag_ms: [Millis; 2],
    pub(crate) names: u64,
    /// Reloads applied, and refused.
    pub(crate) reloads: (u64, u64),
    pub(crate) last_reload: Arc<LastReload>,
    pub(crate) connection_bound: u64,
    pub(crate) body_bytes: u64,
    pub(crate) ring_capacity: u64,
    pub(crate) open_listener: bool,
    pub(crate) administration: TallySums,
}

/// `GET /metrics`
pub async fn metrics(shared: &Arc<Shared>) -> Answer {
    let make = |shared: &Shared| {
        let text = exposed(&bounded(reading::everything(shared)));
        Answer { content_type: EXPOSITION, ..Answer::json(text) }
    };
    aside_for(For::Metrics, shared, make).await
}

/// Folds what goes beyond the bound into one line per node, and one for all further queues.
fn bounded(mut read: Reading) -> Reading {
    if read.pairs.len() > PAIRS_MAX {
        let mut rest: BTreeMap<Arc<str>, PairReading> = BTreeMap::new();
        for pair in read.pairs.drain(PAIRS_MAX..) {
            match rest.get_mut(&pair.node) {
                Some(sum) => sum.add(&pair),
                None => drop(rest.insert(pair.node.clone(), PairReading { model: OTHER.into(), ..pair })),
            }
        }
        read.pairs
            .retain(|pair| &*pair.model != OTHER || !rest.get_mut(&pair.node).is_some_and(|sum| sum.absorbs(pair)));
        read.pairs.extend(rest.into_values());
    }
    if read.queues.len() > PAIRS_MAX {
        let rest = read.queues.drain(PAIRS_MAX..).map(|(_, length)| length).sum();
        read.queues.push((OTHER.into(), rest));
    }
    read
}

fn exposed(read: &Reading) -> String {
    let mut text = Exposition::default();
    for metric in Metric::ALL {
        let (name, kind, help) = metric.family();
        text.family(name, kind, help);
        samples(*metric, read, &mut text);
    }
    for (tally, value) in &read.tallies {
        text.family(&format!("herdgate_{}_total", tally.label()), Kind::Counter, tally_help(*tally));
        text.whole(&[], *value);
    }
    text.finish()
}

fn samples(metric: Metric, read: &Reading, text: &mut Exposition) {
    use Metric as M;
    match metric {
        M::Build => text.whole(&[("version", env!("CARGO_PKG_VERSION"))], 1),
        M::Start => text.seconds_of_ms(&[], read.started_unix_ms),
        M::Requests | M::Rejections | M::Timeouts | M::Answers => requests(metric, &read.sums, text),
        M::FirstByte => text.distribution(&[], &distribution(&read.sums.first_byte)),
        M::QueueWait => text.distribution(&[], &distribution(&read.sums.queue_wait)),
        M::Gap => text.distribution(&[], &distribution(&read.sums.gap)),
        M::Load => text.distribution(&[], &distribution(&read.sums.load)),
        M::Total => text.distribution(&[], &distribution(&read.sums.total)),
        M::InFlight => by_pair(read, text, |pair| pair.in_flight),
        M::Seats => read.nodes.iter().for_each(|node| text.whole(&[("node", &node.name)], node.seats)),
        M::NodeSlots => {
            let limits = read.nodes.iter().filter_map(|node| Some((&node.name, node.slots?)));
            limits.for_each(|(node, slots)| text.whole(&[("node", node)], slots.into()));
        }
        M::Started => by_pair(read, text, |pair| pair.starts),
        M::Queue => read.queues.iter().for_each(|(model, length)| text.whole(&[("model", model)], *length)),
        M::Tokens => tokens(read, text, |pair| pair.exact),
        M::TokensEstimated => tokens(read, text, |pair| pair.estimated),
        M::NodeUp => by_node(read, text, |node| node.up),
        M::NodeSick => sick(read, text),
        M::NodeSuspect => by_node(read, text, |node| node.up && !node.open && !node.draining),
        M::NodeDraining => by_node(read, text, |node| node.draining),
        M::Reloads | M::ReloadOk | M::ReloadTime | M::RestartNeeded => reloads(metric, read, text),
        M::Panicking => text.whole(&[], u64::from(read.panicking)),
        M::Conflicts => text.whole(&[], read.conflicts),
        M::Generation => text.whole(&[], read.generation),
        M::SnapshotAge => text.seconds_of_ms(&[], read.now.saturating_sub(read.published)),
        M::PollLag => text.seconds_of_ms(&[], read.poll_lag_ms[0]),
        M::PollLagMax => text.seconds_of_ms(&[], read.poll_lag_ms[1]),
        M::NodePollAge => ages(read, text, |node| node.ps.at()),
        M::NodeStateAge => ages(read, text, |node| Some(node.since)),
        M::ThreadLate => {
            for (thread, late) in &read.late {
                text.seconds_of_ms(&[("thread", &thread.to_string())], *late);
            }
        }
        M::Names => text.whole(&[], read.names),
        M::ConnectionBound => text.whole(&[], read.connection_bound),
        M::BodyMemory => text.whole(&[], read.body_bytes),
        M::RingCapacity => text.whole(&[], read.ring_capacity),
        M::OpenListener => text.whole(&[], u64::from(read.open_listener)),
        M::Operations | M::OperationsUnderWay | M::Pending | M::CaughtUp => {
            administration(metric, &read.administration, text);
        }
        M::Connections | M::IdleNodeConnections | M::LoopLag | M::LoopLagMax | M::RingHighWater => {
            by_worker(metric, read, text);
        }
        _ => ledger(metric, &read.ledger, read.now, text),
    }
}

fn reloads(metric: Metric, read: &Reading, text: &mut Exposition) {
    let last = &read.last_reload;
    match metric {
        Metric::Reloads => {
            text.whole(&[("result", "applied")], read.reloads.0);
            text.whole(&[("result", "refused")], read.reloads.1);
        }
        Metric::ReloadOk => text.whole(&[], u64::from(last.mistakes.is_empty())),
        Metric::ReloadTime => text.seconds_of_ms(&[], last.applied_unix_ms),
        _ => text.whole(&[], last.needs_restart.len() as u64),
    }
}

fn requests(metric: Metric, sums: &MeterSums, text: &mut Exposition) {
    const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
    let (label, named): (_, Vec<(&str, u64)>) = match metric {
        Metric::Requests => ("outcome", Ending::LABELS.into_iter().zip(sums.endings).collect()),
        Metric::Rejections => {
            ("reason", Rejection::ALL.map(Rejection::label).into_iter().zip(sums.rejections).collect())
        }
        Metric::Timeouts => ("timeout", Timeout::ALL.map(Timeout::label).into_iter().zip(sums.timeouts).collect()),
        _ => ("class", CLASSES.into_iter().zip(sums.statuses).collect()),
    };
    for (name, value) in named {
        text.whole(&[(label, name)], value);
    }
}

fn administration(metric: Metric, sums: &TallySums, text: &mut Exposition) {
    match metric {
        Metric::Operations => {
            for (kind, ended, count) in &sums.ended {
                text.whole(&[("operation", kind.label()), ("result", ended.label())], *count);
            }
        }
        Metric::CaughtUp => {
            sums.caught_up.iter().for_each(|(how, count)| text.whole(&[("result", how.label())], *count));
        }
        Metric::Pending => text.whole(&[], sums.kept),
        _ => text.whole(&[], sums.under_way),
    }
}

fn by_pair(read: &Reading, text: &mut Exposition, figure: impl Fn(&PairReading) -> u64) {
    for pair in &read.pairs {
        text.whole(&[("node", &pair.node), ("model", &pair.model)], figure(pair));
    }
}

fn tokens(read: &Reading, text: &mut Exposition, figure: impl Fn(&PairReading) -> Tokens) {
    for pair in &read.pairs {
        let tokens = figure(pair);
        for (kind, value) in [("input", tokens.input), ("cached", tokens.cached), ("output", tokens.output)] {
            text.whole(&[("node", &pair.node), ("model", &pair.model), ("kind", kind)], value);
        }
    }
}

fn by_node(read: &Reading, text: &mut Exposition, figure: impl Fn(&NodeReading) -> bool) {
    for node in &read.nodes {
        text.whole(&[("node", &node.name)], u64::from(figure(node)));
    }
}

fn sick(read: &Reading, text: &mut Exposition) {
    for node in &read.nodes {
        for kind in reading::SICK {
            let count = node.sick.iter().filter(|(label, _)| *label == kind).count();
            text.whole(&[("node", &node.name), ("kind", kind)], count as u64);
        }
    }
}

/// Since when something holds, by node; nodes of which it does not are left out.
fn ages(read: &Reading, text: &mut Exposition, since: impl Fn(&NodeReading) -> Option<Millis>) {
    for node in &read.nodes {
        if let Some(since) = since(node) {
            text.seconds_of_ms(&[("node", &node.name)], read.now.saturating_sub(since));
        }
    }
}

fn by_worker(metric: Metric, read: &Reading, text: &mut Exposition) {
    for (number, worker) in read.workers.iter().enumerate() {
        let number = number.to_string();
        let labels = [("worker", &*number)];
        match metric {
            Metric::Connections => text.whole(&labels, worker.connections),
            Metric::IdleNodeConnections => text.whole(&labels, worker.idle_node_connections),
            Metric::LoopLag => text.seconds_of_us(&labels, worker.lag_us),
            Metric::LoopLagMax => text.seconds_of_us(&labels, worker.lag_max_us),
            _ => text.whole(&labels, worker.ring_high_water),
        }
    }
}

fn ledger(metric: Metric, ledger: &Health, now: Millis, text: &mut Exposition) {
    let value = match metric {
        Metric::LedgerAge => return text.seconds_of_ms(&[], ledger.unwritten_age(now)),
        Metric::LedgerDegraded => u64::from(ledger.degraded()),
        Metric::LedgerRows => ledger.rows as u64,
        Metric::LedgerRowsUnwritten => ledger.rows_unwritten as u64,
        Metric::LedgerEvents => ledger.events,
        Metric::LedgerEventsLost => ledger.events_lost,
        Metric::LedgerFoldedEarly => ledger.minutes_folded_early,
        Metric::LedgerCommits => ledger.commits,
        Metric::LedgerCommitsFailed => ledger.commits_failed,
        other => unreachable!("{other:?} is no figure of the ledger"),
    };
    text.whole(&[], value);
}

/// The log2 buckets that are shown: below 128 us is one, above 536 s is one.
const SHOWN: std::ops::RangeInclusive<usize> = 7..=29;

const BOUNDS_US: [u64; 23] = {
    let mut bounds = [0; 23];
    let mut place = 0;
    while place < bounds.len() {
        bounds[place] = 1 << (place + *SHOWN.start());
        place += 1;
    }
    bounds
};

/// Bucket `i` of the counters holds values below `2^i` us, which are shown as at or below it.
fn distribution(sums: &HistogramSums) -> Distribution {
    let (first, last) = (*SHOWN.start(), *SHOWN.end());
    let mut counts = vec![sums.buckets[..=first].iter().sum()];
    counts.extend_from_slice(&sums.buckets[first + 1..=last]);
    counts.push(sums.buckets[last + 1..BUCKETS].iter().sum());
    Distribution { bounds_us: &BOUNDS_US, counts, sum_us: sums.sum_us }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::exposition::strict::{Families, parse};
    use crate::admin::reading::tests::{node, pair};

    fn read() -> Reading {
        let mut sums = MeterSums { endings: [5, 1, 0, 0, 2], ..MeterSums::default() };
        sums.rejections[2] = 2;
        sums.first_byte.buckets[3] = 1;
        sums.first_byte.buckets[8] = 2;
        sums.first_byte.buckets[37] = 1;
        sums.first_byte.sum_us = 1_000_001;
        Reading {
            now: 2500,
            started_unix_ms: 1_700_000_000_250,
            sums,
            tallies: Tally::ALL.map(|tally| (tally, 3)).into(),
            nodes: vec![node("http://a:1", true), node("odd \"name\"\\", false)],
            pairs: vec![pair("http://a:1", "m:latest", 2, 40)],
            queues: vec![("m:latest".into(), 1)],
            workers: vec![WorkerReading { lag_us: 1500, ring_high_water: 9, ..WorkerReading::default() }; 2],
            late: vec![(Thread::Control, 0), (Thread::Worker(1), 31_500)],
            ledger: Arc::new(Health { oldest_unwritten: Some(500), ..Health::default() }),
            panicking: false,
            conflicts: 0,
            generation: 7,
            published: 1000,
            poll_lag_ms: [3, 40],
            names: 1,
            reloads: (1, 2),
            last_reload: Arc::default(),
            connection_bound: 100,
            body_bytes: 0,
            ring_capacity: 64,
            open_listener: false,
            administration: crate::fleet::fanout::tally::Tally::default().sums(),
        }
    }

    fn value(families: &Families, family: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |found: &[(String, String)]| {
            labels.iter().all(|(name, value)| found.iter().any(|(n, v)| n == name && v == value))
        };
        let samples = &families[family].1;
        samples.iter().find(|sample| wanted(&sample.1)).unwrap_or_else(|| panic!("{family} {labels:?}")).2
    }

    #[test]
    fn the_text_is_strictly_valid_and_every_family_has_samples() {
        let text = exposed(&read());
        let families = parse(&text);
        assert_eq!(families.len(), Metric::ALL.len() + Tally::ALL.len());
        for (name, (_, samples)) in &families {
            assert!(!samples.is_empty(), "{name} has no sample");
            assert!(name.starts_with("herdgate_") || name == "process_start_time_seconds", "{name}");
        }
        let about = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        about(value(&families, "herdgate_requests_total", &[("outcome", "rejected")]), 2.0);
        about(value(&families, "herdgate_rejections_total", &[("reason", Rejection::ALL[2].label())]), 2.0);
        about(value(&families, "herdgate_in_flight", &[("model", "m:latest")]), 2.0);
        about(value(&families, "herdgate_tokens_total", &[("kind", "output")]), 40.0);
        about(value(&families, "herdgate_node_up", &[("node", "odd \"name\"\\")]), 0.0);
        about(value(&families, "herdgate_ledger_unwritten_age_seconds", &[]), 2.0);
        about(value(&families, "herdgate_snapshot_age_seconds", &[]), 1.5);
        about(value(&families, "herdgate_thread_late_seconds", &[("thread", "worker-1")]), 31.5);
        about(value(&families, "herdgate_loop_lag_seconds", &[("worker", "1")]), 0.0015);
        about(value(&families, "process_start_time_seconds", &[]), 1_700_000_000.25);
    }

    #[test]
    fn distributions_lose_nothing_at_either_end() {
        let shown = distribution(&read().sums.first_byte);
        assert_eq!(shown.counts.len(), shown.bounds_us.len() + 1);
        assert_eq!(shown.counts.iter().sum::<u64>(), 4);
        assert_eq!((shown.counts[0], shown.counts[1], *shown.counts.last().unwrap()), (1, 2, 1));
        assert_eq!(shown.bounds_us.last(), Some(&(1 << 29)));
    }

    #[test]
    fn pairs_beyond_the_bound_add_up_under_other() {
        let mut read = read();
        let named = |node: &str, number: usize| pair(node, &format!("m{number}"), 1, 10);
        read.pairs = (0..PAIRS_MAX - 1).map(|number| named("a", number)).collect();
        read.pairs.push(pair("b", OTHER, 1, 10));
        read.pairs.extend((0..5).map(|number| named("b", number)));
        read.queues = (0..PAIRS_MAX + 3).map(|number| (format!("m{number}").into(), 1)).collect();
        let read = bounded(read);
        assert_eq!(read.pairs.len(), PAIRS_MAX);
        let other = read.pairs.last().unwrap();
        assert_eq!((&*other.node, &*other.model, other.in_flight, other.exact.output), ("b", OTHER, 6, 60));
        assert_eq!(read.queues.last().unwrap(), &(OTHER.into(), 3));
        assert_eq!(parse(&exposed(&read))["herdgate_in_flight"].1.len(), PAIRS_MAX);
    }
}
