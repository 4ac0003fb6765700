//! What a generation costs, as counts: what did not change is shared, and nothing is done for it.

use super::*;
use std::collections::HashMap;

const NODES: usize = 40;
const MODELS: usize = 12;

fn name(model: usize) -> String {
    format!("m{model}:latest")
}

/// Each node has all models; their weights are the same everywhere.
fn fleet() -> Herd {
    let models: Vec<_> = (0..MODELS).map(|model| (name(model), format!("d{model}"))).collect();
    let blobs: HashMap<_, _> = (0..MODELS).map(|model| (format!("d{model}"), blob(&format!("a{model}")))).collect();
    let script = |_| Script { models: models.clone(), blobs: blobs.clone(), ..Script::ollama(&[]) };
    let mut herd = Herd::new((0..NODES).map(script).collect());
    herd.run(30_000);
    assert_eq!(herd.last().models.len(), MODELS);
    herd
}

fn shared_nodes(a: &Snapshot, b: &Snapshot) -> usize {
    a.nodes.iter().zip(&b.nodes).filter(|(a, b)| Arc::ptr_eq(a, b)).count()
}

fn shared_models(a: &Snapshot, b: &Snapshot) -> usize {
    a.models.iter().filter(|(key, model)| b.models.get(*key).is_some_and(|other| Arc::ptr_eq(model, other))).count()
}

/// The first generation from now on, and the one before it.
fn next(herd: &mut Herd) -> (Arc<Snapshot>, Arc<Snapshot>) {
    let before = Arc::clone(herd.snapshots.last().unwrap());
    while herd.snapshots.last().unwrap().generation == before.generation {
        herd.run(1);
    }
    (before, Arc::clone(herd.snapshots.last().unwrap()))
}

#[test]
fn weights_are_asked_for_once_in_the_fleet() {
    let herd = fleet();
    let asked: usize = herd.scripts.iter().map(|script| script.times("/api/show").len()).sum();
    assert_eq!(asked, MODELS);
    let cells = |key: &str| (0..NODES as u32).map(|node| herd.cell(key, node).links().len()).sum::<usize>();
    assert_eq!(cells("m3:latest"), NODES);
}

#[test]
fn two_names_of_one_weight_share_a_cell_on_nodes_that_were_never_asked() {
    let blobs: HashMap<_, _> = [("d1", "aa"), ("d2", "aa")].map(|(digest, at)| (digest.to_owned(), blob(at))).into();
    let script = |_| Script { blobs: blobs.clone(), ..Script::ollama(&[("a:latest", "d1"), ("b:latest", "d2")]) };
    let mut herd = Herd::new((0..3).map(script).collect());
    herd.run(2_000);
    assert!((0..3).all(|node| Arc::ptr_eq(&herd.cell("a:latest", node), &herd.cell("b:latest", node))));
}

#[test]
fn rounds_that_changed_nothing_publish_and_merge_nothing() {
    let mut herd = fleet();
    herd.scripts[1].loaded = vec![name(0)];
    herd.run(60_000);
    let (before, merges) = (herd.last().generation, herd.facts.merges);
    let tags = herd.last().listing.tags.clone();
    let asked: usize = herd.scripts.iter().map(|script| script.asked.len()).sum();
    herd.run(300_000);
    assert_eq!((herd.last().generation, herd.facts.merges), (before, merges));
    assert_eq!(herd.last().listing.tags.as_ptr(), tags.as_ptr());
    let again: usize = herd.scripts.iter().map(|script| script.asked.len()).sum();
    assert!(again - asked > 8_000, "{} questions without news", again - asked);
    let age = herd.now.ms - herd.last().nodes[1].ps.at().unwrap();
    assert!(age < 6_000, "facts told again are young: {age}");
}

#[test]
fn a_node_that_gets_a_model_leaves_the_others_alone() {
    let mut herd = fleet();
    herd.scripts[7].models.push(("new:latest".to_owned(), "d0".to_owned()));
    herd.facts.report(Report::Lacks(NodeId(7)), herd.now);
    let merges = herd.facts.merges;
    let (before, after) = next(&mut herd);
    assert_eq!(shared_nodes(&before, &after), NODES - 1, "the view of the one that gained something is new");
    assert_eq!((shared_models(&before, &after), after.models.len()), (MODELS, MODELS + 1));
    assert_eq!(herd.facts.merges, (merges.0 + 1, merges.1));
}

#[test]
fn a_node_that_goes_down_shares_the_others_views_and_their_models() {
    let mut herd = fleet();
    herd.scripts[3].models = vec![("own:latest".to_owned(), "d0".to_owned())];
    herd.facts.report(Report::Lacks(NodeId(3)), herd.now);
    herd.run(10_000);
    let merges = herd.facts.merges;
    herd.facts.report(Report::Refused(NodeId(3)), herd.now);
    let (before, after) = next(&mut herd);
    assert!(!after.nodes[3].up);
    assert_eq!(shared_nodes(&before, &after), NODES - 1);
    assert_eq!(shared_models(&before, &after), MODELS, "all but the one that it alone has");
    assert!(!after.models["own:latest"].candidates[0].up);
    assert_eq!(herd.facts.merges, (merges.0 + 1, merges.1), "once for one change");
}

#[test]
fn a_model_that_is_loaded_merges_residency_alone() {
    let mut herd = fleet();
    let merges = herd.facts.merges;
    herd.scripts[5].loaded = vec![name(2)];
    herd.facts.report(Report::Residency(NodeId(5)), herd.now);
    herd.run(1_000);
    let after = herd.snapshots.last().unwrap();
    assert_eq!(names(&after.listing.ps, "models", "name"), [name(2)]);
    assert_eq!(herd.facts.merges, (merges.0, merges.1 + 1));
}

#[test]
fn nodes_that_are_not_due_are_not_asked() {
    let mut herd = fleet();
    let due = herd.facts.next_due();
    assert!(due > herd.now.ms && herd.facts.due(herd.now).is_empty());
    let pairs: Vec<_> = herd.last().models[&*name(1)].candidates.iter().map(|one| Arc::clone(&one.pair)).collect();
    herd.run(60_000);
    let again = &herd.last().models[&*name(1)].candidates;
    assert!(again.iter().zip(&pairs).all(|(one, pair)| Arc::ptr_eq(&one.pair, pair)));
}

#[test]
fn a_large_change_makes_the_next_one_wait_and_is_told_whole() {
    // As many candidates as take a few milliseconds of rest.
    const COPIES: usize = 300;
    let models: Vec<_> = (0..10).map(|model| (name(model), format!("d{model}"))).collect();
    let script = |_| Script { models: models.clone(), ..Script::ollama(&[]) };
    let mut herd = Herd::new((0..COPIES).map(script).collect());
    for (at, script) in herd.scripts.iter_mut().enumerate() {
        script.delay_ms = 1 + at as u64 / 10;
    }
    herd.run(2_000);
    assert!(herd.last().ready);
    assert_eq!(herd.last().models[&*name(9)].candidates.len(), COPIES);
    let gaps = herd.snapshots.windows(2).filter(|pair| pair[0].models.values().any(|m| m.candidates.len() > 250));
    for pair in gaps.filter(|pair| !Arc::ptr_eq(&pair[0].listing, &pair[1].listing)) {
        assert!(pair[1].published > pair[0].published, "not twice in one millisecond");
    }
    let generations = herd.snapshots.len();
    assert!(generations < COPIES / 4, "{generations} for {COPIES} nodes that came up and told their models");
}
