//! Where cases are played: one simulated node, and three of the same behind the gate.

use std::time::Duration;

use herdgate::sim::{Capability, Cloud, Herd, ModelSpec, Node, NodeSpec};

use crate::case::{Case, Play, Set, Step};
use crate::compare;
use crate::support::client::{Answer, Client};
use crate::support::proxy::{Proxy, eventually};

/// When the models were written: a second apart, so that lists have one order.
const WRITTEN_S: u64 = 1_790_000_000;

/// Models of the full stage, and which of the three nodes have them.
fn models() -> Vec<(ModelSpec, [bool; 3])> {
    let everywhere = [true; 3];
    let copy = |name: &str| ModelSpec { weights: ModelSpec::chat("m").weights, ..ModelSpec::chat(name) };
    let narrow = ModelSpec { context: 256, native: true, ..ModelSpec::chat("narrow") };
    let models = vec![
        (ModelSpec::chat("m"), everywhere),
        (copy("second"), [true, true, false]),
        (ModelSpec::embedding("e"), [false, true, true]),
        (ModelSpec::thinking("thinks"), [true, false, true]),
        (ModelSpec::tools("tools"), [false, false, true]),
        (ModelSpec::new("sees", &[Capability::Completion, Capability::Vision]), [true, false, false]),
        (narrow, [false, true, false]),
        (ModelSpec { context: 1 << 20, ..ModelSpec::chat("wide") }, [true, false, false]),
        (ModelSpec::chat("me/own:v1"), [false, true, true]),
    ];
    let dated =
        |at: usize, model: ModelSpec| ModelSpec { modified: Some(Duration::from_secs(WRITTEN_S + at as u64)), ..model };
    models.into_iter().enumerate().map(|(at, (model, nodes))| (dated(at, model), nodes)).collect()
}

/// A node with these models and what every node of a stage has.
fn spec(models: Vec<ModelSpec>) -> NodeSpec {
    NodeSpec { max_loaded: 64, registry: vec![ModelSpec::chat("new")], ..NodeSpec::ollama(models).slots(2) }
}

/// One node, and the gate before three.
pub(crate) struct Stage {
    pub(crate) node: Node,
    pub(crate) herd: Herd,
    pub(crate) proxy: Proxy,
}

impl Stage {
    pub(crate) async fn of(set: Set) -> Self {
        let placed = if set == Set::Full { models() } else { Vec::new() };
        let edit = |spec: &mut NodeSpec| {
            if set == Set::CloudOff {
                spec.cloud = Cloud::Disabled;
            }
        };
        Self::with(placed, "", edit).await
    }

    /// Nodes whose specs were edited.
    pub(crate) async fn with(placed: Vec<(ModelSpec, [bool; 3])>, extra: &str, edit: impl Fn(&mut NodeSpec)) -> Self {
        let edited = |models: Vec<ModelSpec>| {
            let mut spec = spec(models);
            edit(&mut spec);
            spec
        };
        let node = Node::start(edited(placed.iter().map(|(model, _)| model.clone()).collect())).unwrap();
        let of = |at: usize| placed.iter().filter(|(_, nodes)| nodes[at]).map(|(model, _)| model.clone()).collect();
        let herd = Herd::start((0..3).map(|at| edited(of(at))).collect()).unwrap();
        let names: Vec<String> = herd
            .urls()
            .iter()
            .zip(["a", "b", "c"])
            .map(|(url, name)| format!("{{ url: '{url}', name: {name} }}"))
            .collect();
        let proxy = Proxy::start(&[], &format!("nodes: [ {} ]\n{extra}", names.join(", "))).await;
        let up = || proxy.shared().fleet.load().nodes.iter().all(|node| node.up);
        proxy.until("all nodes are up", || async { up() }).await;
        for (model, nodes) in &placed {
            let wanted = nodes.iter().filter(|has| **has).count();
            proxy.until(&model.name, || async { copies(&proxy, &model.name) == wanted }).await;
        }
        Self { node, herd, proxy }
    }

    /// The answer of the bare node.
    pub(crate) async fn direct(&self, step: &Step) -> Answer {
        exchange(self.node.address(), step).await
    }

    /// The answer of the gate.
    pub(crate) async fn through(&self, step: &Step) -> Answer {
        exchange(self.proxy.address, step).await
    }
}

/// How many nodes that are up have this model, as the proxy knows it now.
pub(crate) fn copies(proxy: &Proxy, name: &str) -> usize {
    let snapshot = proxy.shared().fleet.load();
    let model = snapshot.models.get(&herdgate::dialect::name::key(name));
    model.map_or(0, |model| model.candidates.iter().filter(|candidate| candidate.up).count())
}

async fn exchange(address: std::net::SocketAddr, step: &Step) -> Answer {
    let ask = || async {
        let mut client = Client::connect(address).await;
        client.send(&step.bytes).await;
        let answer = if step.is_head() { client.head_answer().await } else { client.answer().await };
        answer.unwrap_or_else(|| panic!("no answer to {}", step.shown()))
    };
    if !step.patient {
        return ask().await;
    }
    let last = std::cell::RefCell::new(None);
    eventually(&step.shown(), || async {
        let answer = ask().await;
        let right = step.faults(&answer).is_empty();
        *last.borrow_mut() = Some(answer);
        right
    })
    .await;
    last.into_inner().expect("asked at least once")
}

/// Plays steps and scenes one after another; what went wrong, by number, and which numbers answered otherwise than the
/// node did.
pub(crate) async fn play(cases: Vec<Case>) -> (Vec<String>, Vec<(u16, String)>) {
    let (mut wrong, mut other) = (Vec::new(), Vec::new());
    let mut stages: Vec<(Set, Stage)> = Vec::new();
    for case in cases {
        match case.play {
            Play::Scene(play) => play().await,
            Play::Steps(steps) => {
                assert!(!steps.is_empty(), "{}: no request", case.number);
                if !stages.iter().any(|(set, _)| *set == case.set) {
                    stages.push((case.set, Stage::of(case.set).await));
                }
                let (_, stage) = stages.iter().find(|(set, _)| *set == case.set).expect("just set up");
                for step in steps {
                    let direct = stage.direct(&step).await;
                    let through = stage.through(&step).await;
                    for (who, answer) in [("node", &direct), ("gate", &through)] {
                        let faults = step.faults(answer);
                        if !faults.is_empty() {
                            wrong.push(format!(
                                "{} {who}: {}\n    {}",
                                case.number,
                                step.shown(),
                                faults.join("\n    ")
                            ));
                        }
                    }
                    let differ = compare::differences(&direct, &through);
                    if !differ.is_empty() {
                        other.push((case.number, format!("{}\n    {}", step.shown(), differ.join("\n    "))));
                    }
                }
            }
        }
    }
    (wrong, other)
}
