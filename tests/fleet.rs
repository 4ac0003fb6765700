//! The poller over real sockets: simulated nodes that hang, die, come back and change, and what is published of them.
//!
//! Intervals and deadlines are tested in `src/fleet/facts/tests` on a clock that jumps; here no assertion looks at
//! time, and a wait that never ends fails after a bound far beyond any interval.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use herdgate::clock::Clock;
use herdgate::config::{Config, NodeConfig, NodeKind};
use herdgate::fleet::facts::Parts;
use herdgate::fleet::poll::Poller;
use herdgate::fleet::report::{Reports, Sought, channel};
use herdgate::fleet::{Fleet, Snapshot};
use herdgate::ids::NodeId;
use herdgate::sim::{Fault, Harm, ModelSpec, Node, NodeSpec};
use herdgate::slots::{Cell, Limit};
use herdgate::sync::{AtomicBool, Ordering, spawn_thread};
use herdgate::usage::names::Names;

/// Far more than any interval of the poller.
const PATIENCE: Duration = Duration::from_secs(60);

/// A poller with its fleet, on a thread of its own runtime.
struct Polled {
    poller: Poller,
    fleet: Fleet,
    reports: Reports,
    names: Arc<Names>,
}

impl Polled {
    fn new(data: &std::path::Path, nodes: &[(String, NodeKind)]) -> Self {
        let of = |(url, kind): &(String, NodeKind)| NodeConfig { kind: *kind, ..NodeConfig::from_url(url).unwrap() };
        let nodes: Vec<NodeConfig> = nodes.iter().map(of).collect();
        let node_names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let names = Arc::new(Names::new(&node_names, &[], 1_000));
        let config = Config { data: data.to_owned(), nodes: nodes.clone(), ..Config::default() };
        let (reports, received) = channel();
        let fleet = Fleet::new();
        let parts = Parts {
            config: Arc::new(config),
            nodes,
            names: names.clone(),
            workers: 2,
            instance: "test".into(),
            seed: 11,
            drained: std::collections::BTreeSet::new(),
        };
        let poller = Poller::new(parts, &fleet, received, &Clock::system());
        Self { poller, fleet, reports, names }
    }

    fn ollama(data: &std::path::Path, nodes: &[&Node]) -> Self {
        let nodes: Vec<_> = nodes.iter().map(|node| (node.url(), NodeKind::Ollama)).collect();
        Self::new(data, &nodes)
    }

    /// Polls until a published Snapshot is as wanted.
    async fn until(&mut self, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let polling = async {
            loop {
                let snapshot = self.fleet.load();
                if wanted(&snapshot) {
                    return snapshot;
                }
                self.poller.step().await.offer();
            }
        };
        let found = tokio::time::timeout(PATIENCE, polling).await;
        found.unwrap_or_else(|_| panic!("never: {:#?}", self.fleet.load()))
    }

    /// Polls while `doing` runs.
    async fn during<T>(&mut self, doing: impl Future<Output = T>) -> T {
        tokio::pin!(doing);
        loop {
            tokio::select! {
                done = &mut doing => return done,
                capacity = self.poller.step() => capacity.offer(),
            }
        }
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn node(models: &[&str]) -> Node {
    Node::start(NodeSpec::ollama(models.iter().map(|name| ModelSpec::chat(name)).collect())).unwrap()
}

fn listed(body: &[u8]) -> Vec<String> {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap();
    let names =
        |entries: &Vec<serde_json::Value>| entries.iter().map(|e| e["name"].as_str().unwrap().to_owned()).collect();
    let mut names: Vec<String> = value["models"].as_array().map(names).unwrap();
    names.sort();
    names
}

fn cell(snapshot: &Snapshot, key: &str, node: u32) -> Arc<Cell> {
    let model = snapshot.models.get(key).unwrap_or_else(|| panic!("no {key}"));
    let candidate = model.candidates.iter().find(|candidate| candidate.node == NodeId(node));
    candidate.unwrap_or_else(|| panic!("{key} is not on {node}")).pair.cell.clone()
}

fn is_up(snapshot: &Snapshot, node: u32) -> bool {
    snapshot.node(NodeId(node)).is_some_and(|node| node.up)
}

/// I9: a dead node and a hanging one add nothing to listings, and neither keeps clients from being served.
#[test]
fn i9_dead_and_hanging_nodes_cost_listings_nothing() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let (alive, hanging, dead) = (node(&["a"]), node(&["hidden"]), node(&["buried"]));
        hanging.fault(Fault::new(Harm::Hang).for_all());
        dead.kill();
        let mut polled = Polled::ollama(data.path(), &[&alive, &hanging, &dead]);
        let first = polled.until(|snapshot| is_up(snapshot, 0) && !snapshot.models.is_empty()).await;
        assert_eq!(listed(&first.listing.tags), ["a:latest"]);
        assert!(!first.ready, "two nodes have not been heard of yet");
        let ready = polled.until(|snapshot| snapshot.ready).await;
        assert_eq!(listed(&ready.listing.tags), ["a:latest"]);
        assert!(ready.incomplete && !is_up(&ready, 1) && !is_up(&ready, 2));
        assert!(cell(&ready, "a:latest", 0).view().open);
        // The hanging node's silence holds up no answer of the living one.
        alive.add_model(ModelSpec::chat("b"));
        polled.reports.lacks(NodeId(0));
        polled.until(|snapshot| snapshot.models.contains_key("b:latest")).await;
    });
}

#[test]
fn a_node_goes_and_comes_back() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let (first, second) = (node(&["a"]), node(&["b"]));
        let mut polled = Polled::ollama(data.path(), &[&first, &second]);
        let up = polled.until(|snapshot| snapshot.ready).await;
        let (before, word) = (cell(&up, "a:latest", 0), up.nodes[0].word.clone());
        assert!(word.is_open());
        first.kill();
        let down = polled.until(|snapshot| !is_up(snapshot, 0)).await;
        assert!(!word.is_up() && is_up(&down, 1));
        assert!(!down.models["a:latest"].candidates[0].up, "known, though nobody has it now");
        first.restart();
        let back = polled.until(|snapshot| is_up(snapshot, 0)).await;
        assert!(word.is_open() && word.is_recovering());
        assert!(Arc::ptr_eq(&cell(&back, "a:latest", 0), &before), "cells outlive what happens to nodes");
    });
}

#[test]
fn a_refused_request_tells_before_the_probe_does() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let only = node(&["a"]);
        let mut polled = Polled::ollama(data.path(), &[&only]);
        polled.until(|snapshot| snapshot.ready).await;
        polled.reports.refused(NodeId(0));
        let down = polled.until(|snapshot| !is_up(snapshot, 0)).await;
        assert_eq!(&*down.nodes[0].cause, "connection refused");
        polled.until(|snapshot| is_up(snapshot, 0)).await;
    });
}

#[test]
fn a_miss_asks_the_nodes_again() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let (first, second) = (node(&["a"]), node(&[]));
        let mut polled = Polled::ollama(data.path(), &[&first, &second]);
        polled.until(|snapshot| snapshot.ready).await;
        let reports = polled.reports.clone();
        second.add_model(ModelSpec::chat("pulled"));
        assert_eq!(polled.during(reports.miss("pulled:latest")).await, Sought::Found, "pulled behind our back");
        assert!(polled.fleet.load().models.contains_key("pulled:latest"));
        assert_eq!(polled.during(reports.miss("nope:latest")).await, Sought::Missing);
        assert!(polled.names.find("nope:latest").is_none(), "what nobody has gets no id");
    });
}

#[test]
fn two_names_of_one_model_share_its_slots() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let original = ModelSpec::chat("m").copy_of("weights");
        let copy = ModelSpec { digest: "7".repeat(64), ..ModelSpec::chat("tuned").copy_of("weights") };
        let only = Node::start(NodeSpec::ollama(vec![original, copy, ModelSpec::chat("other")])).unwrap();
        let mut polled = Polled::ollama(data.path(), &[&only]);
        let shares = |snapshot: &Snapshot| {
            snapshot.models.len() == 3
                && Arc::ptr_eq(&cell(snapshot, "m:latest", 0), &cell(snapshot, "tuned:latest", 0))
        };
        let snapshot = polled.until(shares).await;
        assert_eq!(cell(&snapshot, "m:latest", 0).links().len(), 2);
        assert!(!Arc::ptr_eq(&cell(&snapshot, "m:latest", 0), &cell(&snapshot, "other:latest", 0)));
        assert_ne!(snapshot.models["m:latest"].id, snapshot.models["tuned:latest"].id, "counted apart");
    });
}

#[test]
fn nodes_with_different_digests_are_flagged_and_listed_once() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let with = |text: &str| Node::start(NodeSpec::ollama(vec![ModelSpec::chat("m").copy_of(text)])).unwrap();
        let nodes = [with("one"), with("two"), with("two")];
        let mut polled = Polled::ollama(data.path(), &nodes.each_ref());
        let all =
            |snapshot: &Snapshot| snapshot.models.get("m:latest").is_some_and(|model| model.candidates.len() == 3);
        let snapshot = polled.until(all).await;
        let model = &snapshot.models["m:latest"];
        assert!(model.conflict);
        let tags: serde_json::Value = serde_json::from_slice(&snapshot.listing.tags).unwrap();
        assert_eq!(tags["models"].as_array().unwrap().len(), 1);
        assert_eq!(tags["models"][0]["digest"].as_str().unwrap(), &*model.candidates[1].digest, "what most nodes have");
    });
}

#[test]
fn an_openai_node_brings_its_models_and_slots() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let llama = Node::start(NodeSpec::llama_cpp(ModelSpec::chat("smollm2:135m")).slots(2)).unwrap();
        let ollama = node(&["a"]);
        let nodes = [(llama.url(), NodeKind::OpenAi), (ollama.url(), NodeKind::Ollama)];
        let mut polled = Polled::new(data.path(), &nodes);
        let limited = |snapshot: &Snapshot| {
            let model = snapshot.models.get("smollm2:135m");
            model.is_some_and(|model| model.candidates[0].pair.cell.view().limit == Limit::Hard(2))
        };
        let snapshot = polled.until(limited).await;
        let view = cell(&snapshot, "smollm2:135m", 0).view();
        assert!(view.open && view.loaded, "what is served is loaded");
        let snapshot = polled.until(|snapshot| snapshot.models.contains_key("a:latest")).await;
        assert_eq!(listed(&snapshot.listing.tags), ["a:latest"], "native routes cannot serve the other");
        let models: serde_json::Value = serde_json::from_slice(&snapshot.listing.v1_models).unwrap();
        let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["a:latest", "smollm2:135m"]);
        assert!(snapshot.nodes[0].version.is_none());
    });
}

#[test]
fn what_nodes_had_is_known_after_a_restart() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let only = node(&["a", "me/b:v1"]);
        let mut polled = Polled::ollama(data.path(), &[&only]);
        polled.until(|snapshot| snapshot.models.len() == 2).await;
        polled.poller.store_last().recv().unwrap();
        only.kill();
        drop(polled);
        let polled = Polled::ollama(data.path(), &[&only]);
        let snapshot = polled.fleet.load();
        assert!(!snapshot.models["a:latest"].candidates[0].up, "before anybody was asked");
        assert_eq!(listed(&snapshot.listing.tags), ["a:latest", "me/b:v1"], "it was there a moment ago");
    });
}

/// The ancestor's race: listings and loaded sets read while they change. Another thread reads every Snapshot it can get
/// and checks it against itself.
#[test]
fn snapshots_stay_consistent_while_models_come_and_go() {
    let data = tempfile::tempdir().unwrap();
    let nodes: Vec<Node> = (0..3).map(|_| node(&[])).collect();
    let mut polled = Polled::ollama(data.path(), &nodes.iter().collect::<Vec<_>>());
    let snapshots = polled.fleet.snapshot.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let reader = spawn_thread("reader", move || {
        let (mut read, mut generation) = (0_u64, 0);
        while !stopped.load(Ordering::Relaxed) {
            let snapshot = snapshots.load_full();
            assert!(snapshot.generation >= generation, "generations only rise");
            generation = snapshot.generation;
            check(&snapshot);
            read += 1;
        }
        read
    })
    .unwrap();
    run(async {
        polled.until(|snapshot| snapshot.ready).await;
        for round in 0..150_u32 {
            let at = round as usize % nodes.len();
            let name = format!("m{}", round % 7);
            if !nodes[at].remove_model(&name) {
                nodes[at].add_model(ModelSpec::chat(&name));
            }
            polled.reports.lacks(NodeId(u32::try_from(at).unwrap()));
            let generation = polled.fleet.load().generation;
            polled.until(|snapshot| snapshot.generation > generation).await;
        }
    });
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 150);
}

/// I5: what one generation says fits together.
fn check(snapshot: &Snapshot) {
    let listed = listed(&snapshot.listing.tags);
    for name in &listed {
        let model = snapshot.models.get(name.as_str()).expect("what is listed can be routed");
        assert!(!model.candidates.is_empty());
    }
    for (key, model) in snapshot.models.iter() {
        for candidate in &model.candidates {
            let node = snapshot.node(candidate.node).expect("candidates are nodes of this generation");
            assert_eq!(candidate.up, node.up);
            assert_eq!(candidate.pair.cell.node, node.id);
            assert!(!node.up || listed.iter().any(|name| **name == **key), "what is up is listed");
        }
    }
}
