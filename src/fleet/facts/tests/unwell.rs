//! Nodes that serve, but are not what they were: shrunk inventories, and sick copies from look to look.

use super::*;
use crate::config::Degrade;
use crate::ids::ModelId;
use crate::usage::speed::Speed;

fn three() -> Vec<(String, String)> {
    ["a", "b", "c"].map(|name| (format!("{name}:latest"), format!("d-{name}"))).to_vec()
}

fn shrunk(herd: &Herd) -> Option<(usize, usize)> {
    herd.last().node(NodeId(0)).unwrap().shrunk
}

#[test]
fn a_node_that_loses_more_than_half_at_once_has_shrunk_though_nobody_saw_it_down() {
    let mut herd = Herd::new(vec![Script { models: three(), ..Script::ollama(&[]) }]);
    herd.run(10_000);
    herd.scripts[0].models.truncate(1);
    herd.run(70_000);
    assert_eq!((herd.listed(), shrunk(&herd)), (vec!["a:latest".to_owned()], Some((3, 1))));
    assert!(herd.model("b:latest").candidates.is_empty(), "remembered: 503, not 404");
    // Back to half of what it had: well again, and what is still missing stays remembered.
    herd.scripts[0].models = three();
    herd.scripts[0].models.truncate(2);
    herd.run(70_000);
    assert_eq!(shrunk(&herd), None);
    assert!(herd.model("c:latest").candidates.is_empty());
    assert!(herd.model("b:latest").candidates[0].up);
}

#[test]
fn one_model_removed_by_hand_is_gone() {
    let mut herd = Herd::new(vec![Script::ollama(&[("only:latest", "d")])]);
    herd.run(10_000);
    herd.scripts[0].models.clear();
    herd.run(70_000);
    assert!(herd.last().models.is_empty() && shrunk(&herd).is_none(), "404: a client may pull it");
}

#[test]
fn what_was_deleted_through_us_is_gone() {
    let mut herd = Herd::new(vec![Script { models: three(), ..Script::ollama(&[]) }]);
    herd.run(10_000);
    herd.scripts[0].models.clear();
    let (settled, _told) = tokio::sync::oneshot::channel();
    herd.facts.report(Report::Changed { nodes: vec![NodeId(0)], settled }, herd.now);
    herd.run(10_000);
    assert!(herd.last().models.is_empty() && shrunk(&herd).is_none());
}

#[test]
fn a_client_that_finds_a_model_gone_does_not_make_the_rest_forgotten() {
    let mut herd = Herd::new(vec![Script { models: three(), ..Script::ollama(&[]) }]);
    herd.run(10_000);
    herd.scripts[0].models.clear();
    herd.facts.report(Report::Lacks(NodeId(0)), herd.now);
    herd.run(10_000);
    assert_eq!((shrunk(&herd), herd.last().models.len()), (Some((3, 0)), 3), "503, not 404");
}

#[test]
fn a_shrunk_node_is_forgotten_with_its_names() {
    let mut config = Config::default();
    config.health.forget_models_after = std::time::Duration::from_secs(900);
    let scripts = vec![Script { models: three(), ..Script::ollama(&[]) }];
    let mut herd = Herd::with(scripts, config, Memory::default(), START_UNIX_MS);
    herd.run(10_000);
    herd.scripts[0].models.clear();
    herd.run(70_000);
    assert_eq!((shrunk(&herd), herd.last().models.len()), (Some((3, 0)), 3));
    herd.run(900_000);
    assert_eq!((shrunk(&herd), herd.last().models.len()), (None, 0));
}

#[test]
fn a_sick_copy_is_told_and_demoted_until_it_is_well() {
    for degrade in [Degrade::Warn, Degrade::Demote] {
        let mut config = Config::default();
        config.routing.degrade = degrade;
        let scripts = (0..3).map(|_| Script::ollama(&[("m:latest", "d"), ("n:latest", "e")])).collect();
        let mut herd = Herd::with(scripts, config, Memory::default(), START_UNIX_MS);
        herd.run(10_000);
        let model = herd.model("m:latest").id;
        let told = |herd: &Herd| -> Vec<usize> { herd.last().nodes.iter().map(|node| node.sick.len()).collect() };
        let last = |herd: &Herd, key: &str| -> Vec<bool> {
            herd.model(key).candidates.iter().map(|candidate| candidate.last_choice).collect()
        };
        let speeds = |third: u64, at: Millis| {
            let speed = |node, tokens| Speed { node: NodeId(node), model, tokens, eval_ns: 1_000_000_000, at };
            Arc::new(vec![speed(0, 40), speed(1, 40), speed(2, third)])
        };
        herd.facts.learn_speeds(speeds(10, herd.now.ms));
        herd.run(2_000);
        assert_eq!(told(&herd), [0, 0, 1]);
        assert_eq!(last(&herd, "m:latest"), [false, false, degrade == Degrade::Demote]);
        assert_eq!(last(&herd, "n:latest"), [false; 3], "its other models are well");
        assert_ne!(model, ModelId::UNKNOWN);
        let generation = herd.last().generation;
        herd.facts.learn_speeds(speeds(11, herd.now.ms));
        herd.run(4_000);
        assert_eq!(herd.last().generation, generation, "the same again is no news");
        herd.facts.learn_speeds(speeds(39, herd.now.ms));
        herd.run(2_000);
        assert_eq!(told(&herd), [0, 0, 1], "not every second something else");
        herd.run(5_000);
        assert_eq!((told(&herd), last(&herd, "m:latest")), (vec![0; 3], vec![false; 3]));
    }
}
