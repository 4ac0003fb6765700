//! Which nodes are chosen, over small fleets: `a` to `d`, of which `c` is down and `d` is no Ollama.

use super::*;
use crate::config::ModelConfig;
use crate::fleet::fanout::ask::{self, Read};
use crate::fleet::{Candidate, OwnTimes};
use crate::ids::{CellId, ModelId};
use crate::slots::{Cell, Limit, ModelWord, NodeWord, Pair, Queue};
use crate::usage::counters::PairCounters;

fn pair(id: NodeId) -> Arc<Pair> {
    let cell = Arc::new(Cell::new(CellId(id.0), id, Arc::new(NodeWord::new()), Limit::Soft(4)));
    Arc::new(Pair { cell, counters: Arc::new(PairCounters::new(1)), model: ModelId(2), model_word: None })
}

fn node(at: u32, name: &str) -> NodeView {
    let kind = if name == "d" { NodeKind::OpenAi } else { NodeKind::Ollama };
    NodeView { url: name.into(), up: name != "c", ..NodeView::bare(NodeId(at), name, kind, 1) }
}

/// The fleet, with models as (name, nodes and digests).
fn fleet(models: &[(&str, &[(u32, &str)])]) -> Snapshot {
    let nodes: Vec<NodeView> = (0..).zip(["a", "b", "c", "d"]).map(|(at, name)| node(at, name)).collect();
    let candidate = |(at, digest): &(u32, &str)| {
        let pair = pair(NodeId(*at));
        let node = &nodes[*at as usize];
        Candidate { up: node.up, ..Candidate::new(pair, node.kind, (*digest).into()) }
    };
    let model = |(name, copies): &(&str, &[(u32, &str)])| {
        let model = Model {
            id: ModelId(2),
            name: (*name).into(),
            queue: Arc::new(Queue::new(1)),
            word: Arc::new(ModelWord::new()),
            candidates: copies.iter().map(candidate).collect(),
            conflict: false,
            times: OwnTimes::default(),
        };
        (name::key(name), Arc::new(model))
    };
    let models = Arc::new(models.iter().map(model).collect());
    Snapshot {
        nodes: nodes.into_iter().map(Arc::new).collect(),
        models,
        ready: true,
        incomplete: false,
        ..Snapshot::empty()
    }
}

fn asked(verb: Verb, body: &str) -> Asked {
    match ask::read(verb, body.as_bytes()) {
        Read::Asked(asked) => asked,
        other => panic!("{other:?}"),
    }
}

/// Names of those that are up, and of those that are down.
fn chosen(snapshot: &Snapshot, config: &Config, asked: &Asked, header: Option<&str>) -> Result<String, NoGoal> {
    let goals = choose(snapshot, config, asked, header)?;
    let names = |goals: &[Goal]| goals.iter().map(|goal| &*goal.name).collect::<Vec<_>>().join(",");
    Ok(format!("{}|{}", names(&goals.up), names(&goals.down)))
}

fn plain(snapshot: &Snapshot, asked: &Asked, header: Option<&str>) -> Result<String, NoGoal> {
    chosen(snapshot, &Config::default(), asked, header)
}

#[test]
fn a_pull_goes_to_every_ollama_node_unless_told_otherwise() {
    let snapshot = fleet(&[]);
    let pull = asked(Verb::Pull, r#"{"model":"m"}"#);
    assert_eq!(plain(&snapshot, &pull, None), Ok("a,b|c".to_owned()));
    assert_eq!(plain(&snapshot, &pull, Some(" b , c,b")), Ok("b|c".to_owned()));
    assert_eq!(plain(&snapshot, &pull, Some("b,x")), Err(NoGoal::Unknown("x".to_owned())));
    assert_eq!(plain(&snapshot, &pull, Some("d")), Err(NoGoal::NotOllama("d".to_owned())));
    assert_eq!(plain(&snapshot, &pull, Some(" ")), Err(NoGoal::Unknown(String::new())));
    assert_eq!(plain(&snapshot, &pull, Some("c")), Err(NoGoal::Down(vec!["c".into()])));
}

#[test]
fn pull_targets_of_the_first_pattern_that_sets_them_count() {
    let snapshot = fleet(&[]);
    let over = |pattern: &str, targets: &[&str]| ModelConfig {
        pattern: pattern.to_owned(),
        slots: None,
        timeouts: crate::config::TimeoutOverrides::default(),
        pull_targets: targets.iter().map(|target| (*target).to_owned()).collect(),
    };
    let models = vec![over("m*", &[]), over("m", &["b", "c"]), over("*", &["a"])];
    let config = Config { models, ..Config::default() };
    for (verb, body, expected) in [
        (Verb::Pull, r#"{"model":"M"}"#, "b|c"),
        (Verb::Create, r#"{"model":"m","from":"x"}"#, "b|c"),
        (Verb::Pull, r#"{"model":"x:1b"}"#, "a|"),
    ] {
        assert_eq!(chosen(&snapshot, &config, &asked(verb, body), None), Ok(expected.to_owned()), "{body}");
    }
    let pull = asked(Verb::Pull, r#"{"model":"m"}"#);
    assert_eq!(chosen(&snapshot, &config, &pull, Some("a")), Ok("a|".to_owned()), "the header wins");
}

#[test]
fn a_create_goes_to_those_that_have_what_it_begins_with() {
    let snapshot = fleet(&[("m", &[(1, "d1")]), ("down", &[(2, "d2")])]);
    let without = |body: &str, header| {
        let goals = choose(&snapshot, &Config::default(), &asked(Verb::Create, body), header).unwrap();
        let names = |goals: &[Goal]| goals.iter().map(|goal| &*goal.name).collect::<Vec<_>>().join(",");
        format!("{}|{}|{}", names(&goals.up), names(&goals.down), names(&goals.without))
    };
    assert_eq!(without(r#"{"model":"x","from":"M"}"#, None), "b|c|a");
    assert_eq!(without(r#"{"model":"x","from":"down"}"#, None), "a,b|c|", "each pulls it");
    assert_eq!(without(r#"{"model":"x","from":"nope"}"#, None), "a,b|c|");
    assert_eq!(without(r#"{"model":"x"}"#, None), "a,b|c|");
    assert_eq!(without(r#"{"model":"x","from":"m"}"#, Some("a,b")), "a,b||", "as the header says");
}

#[test]
fn copy_and_delete_go_to_those_that_have_it() {
    let snapshot = fleet(&[("m", &[(1, "d1"), (2, "d2")]), ("gone", &[]), ("c", &[(2, "d3")]), ("llama", &[(3, "")])]);
    let delete = |model: &str| asked(Verb::Delete, &format!("{{\"model\":\"{model}\"}}"));
    assert_eq!(plain(&snapshot, &delete("m"), None), Ok("b|c".to_owned()));
    assert_eq!(plain(&snapshot, &delete("m"), Some("a,b")), Ok("a,b|".to_owned()));
    assert_eq!(plain(&snapshot, &delete("nope"), None), Err(NoGoal::NoModel));
    assert_eq!(plain(&snapshot, &delete("gone"), None), Err(NoGoal::Unsure), "only remembered");
    assert_eq!(plain(&snapshot, &delete("llama"), None), Err(NoGoal::NoModel), "no Ollama has it");
    assert_eq!(plain(&snapshot, &delete("c"), None), Err(NoGoal::Down(vec!["c".into()])));
    let young = Snapshot { incomplete: true, ..fleet(&[]) };
    assert_eq!(plain(&young, &delete("nope"), None), Err(NoGoal::Unsure));
}

#[test]
fn a_node_that_is_taken_out_misses_it_unless_it_is_named() {
    let mut snapshot = fleet(&[("m", &[(0, "d"), (1, "d")])]);
    snapshot.nodes[1] = Arc::new(NodeView { draining: true, ..NodeView::clone(&snapshot.nodes[1]) });
    let delete = asked(Verb::Delete, r#"{"model":"m"}"#);
    assert_eq!(plain(&snapshot, &delete, None), Ok("a|b".to_owned()), "kept for its return");
    assert_eq!(plain(&snapshot, &delete, Some("b")), Ok("b|".to_owned()), "an operator makes it ready");
    snapshot.nodes[1] = Arc::new(NodeView { removed: true, ..NodeView::clone(&snapshot.nodes[1]) });
    let pull = asked(Verb::Pull, r#"{"model":"x"}"#);
    assert_eq!(plain(&snapshot, &pull, None), Ok("a|c".to_owned()));
    assert_eq!(plain(&snapshot, &pull, Some("b")), Err(NoGoal::Unknown("b".to_owned())));
}

#[test]
fn what_a_node_has_is_noted_with_it() {
    let snapshot = fleet(&[("m", &[(1, "d1"), (2, "d2")]), ("x", &[(2, "d9")])]);
    let copy = asked(Verb::Copy, r#"{"source":"m","destination":"X"}"#);
    let goals = choose(&snapshot, &Config::default(), &copy, None).unwrap();
    assert_eq!((goals.up[0].digest.as_deref(), goals.up[0].there.as_deref()), (Some("d1"), None));
    assert_eq!((goals.down[0].digest.as_deref(), goals.down[0].there.as_deref()), (Some("d2"), Some("d9")));
}

#[test]
fn a_push_goes_to_one_node_that_has_what_most_have() {
    let mut snapshot = fleet(&[("m", &[(0, "odd"), (1, "d"), (2, "d")]), ("n", &[(0, "d"), (1, "d")])]);
    let push = |model: &str| asked(Verb::Push, &format!("{{\"model\":\"{model}\"}}"));
    assert_eq!(plain(&snapshot, &push("n"), None), Ok("a|".to_owned()));
    assert_eq!(plain(&snapshot, &push("nope"), None), Ok("a|".to_owned()), "which words the error");
    assert_eq!(plain(&snapshot, &push("n"), Some("b,c")), Ok("b|".to_owned()));
    let cloud = |snapshot: &mut Snapshot, at: usize| {
        snapshot.nodes[at] = Arc::new(NodeView { cloud: true, ..NodeView::clone(&snapshot.nodes[at]) });
    };
    cloud(&mut snapshot, 1);
    assert_eq!(plain(&snapshot, &push("n"), None), Ok("b|".to_owned()), "an identity is preferred");
    assert_eq!(plain(&snapshot, &push("m"), None), Ok("b|".to_owned()));
}

#[test]
fn refusals_say_what_ollama_would_or_what_is_wrong() {
    let delete = asked(Verb::Delete, r#"{"model":"nope"}"#);
    let copy = asked(Verb::Copy, r#"{"source":"nope","destination":"x"}"#);
    assert_eq!(NoGoal::NoModel.refusal(Some(&delete)), Refusal::of(404, "model 'nope' not found"));
    assert_eq!(NoGoal::NoModel.refusal(Some(&copy)), Refusal::of(404, "model \"nope\" not found"));
    assert_eq!(NoGoal::NoneUp.refusal(None).status, 503);
    assert_eq!(NoGoal::Unknown("x".into()).refusal(None).status, 400);
}
