//! What nodes have: merged, remembered, lost, renamed, in conflict; over restarts and under rapid change.

use super::*;
use crate::fleet::memory::Keepsake;

/// Remembers for a quarter of an hour instead of a day.
fn forgetful() -> Config {
    let mut config = Config::default();
    config.health.forget_models_after = std::time::Duration::from_secs(900);
    config
}

#[test]
fn models_of_a_node_that_is_down_are_remembered_for_a_time() {
    let scripts = vec![Script::ollama(&[("a:latest", "d1")]), Script::ollama(&[("b:latest", "d2")])];
    let mut herd = Herd::with(scripts, forgetful(), Memory::default(), START_UNIX_MS);
    herd.run(10_000);
    herd.scripts[0].mood = Mood::Hangs;
    herd.run(10_000);
    assert!(!herd.is_up(0));
    assert_eq!(herd.listed(), ["a:latest", "b:latest"], "briefly down: a client's menu does not flicker");
    herd.run(60_000);
    assert_eq!(herd.listed(), ["b:latest"]);
    assert!(!herd.model("a:latest").candidates[0].up, "known, and 503 rather than 404");
    herd.run(800_000);
    assert!(herd.last().models.contains_key("a:latest"));
    herd.run(100_000);
    assert!(!herd.last().models.contains_key("a:latest"));
}

#[test]
fn names_lost_while_down_are_remembered_and_deleted_ones_are_not() {
    let scripts = vec![Script::ollama(&[("a:latest", "d1"), ("b:latest", "d2"), ("c:latest", "d3")])];
    let mut herd = Herd::with(scripts, forgetful(), Memory::default(), START_UNIX_MS);
    herd.run(10_000);
    herd.scripts[0].models.remove(2);
    herd.run(70_000);
    assert!(!herd.last().models.contains_key("c:latest"), "deleted while we looked on");
    herd.scripts[0].mood = Mood::Refuses;
    herd.run(10_000);
    herd.scripts[0].models.remove(1);
    herd.scripts[0].mood = Mood::Answers;
    herd.run(20_000);
    assert!(herd.is_up(0));
    assert_eq!(herd.listed(), ["a:latest"]);
    assert!(herd.model("b:latest").candidates.is_empty(), "only remembered");
    herd.run(900_000);
    assert!(!herd.last().models.contains_key("b:latest"));
    assert!(herd.last().models.contains_key("a:latest"));
}

#[test]
fn a_lost_name_that_returns_is_there_again() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    herd.run(10_000);
    let queue = Arc::clone(&herd.model("a:latest").queue);
    herd.scripts[0].mood = Mood::Refuses;
    herd.run(3_000);
    let models = std::mem::take(&mut herd.scripts[0].models);
    herd.scripts[0].mood = Mood::Answers;
    herd.run(20_000);
    assert!(herd.model("a:latest").candidates.is_empty());
    herd.scripts[0].models = models;
    herd.run(70_000);
    assert!(herd.model("a:latest").candidates[0].up);
    assert!(Arc::ptr_eq(&herd.model("a:latest").queue, &queue), "those who waited still do");
}

/// Stores what `herd` knows and starts another process `later` on the same file.
fn restart(herd: &Herd, scripts: Vec<Script>, later: Millis) -> Herd {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inventories.json");
    Keepsake::of(herd.facts.nodes()).store(&path).unwrap();
    Herd::with(scripts, Config::default(), Memory::load(&path), herd.now.unix_ms + later)
}

#[test]
fn memory_survives_a_restart() {
    let blobs = HashMap::from([("d1".to_owned(), blob("aa"))]);
    let mut before = Herd::new(vec![
        Script { blobs: blobs.clone(), ..Script::ollama(&[("a:latest", "d1")]) },
        Script::openai(&["Org/Q.gguf"]),
    ]);
    before.run(10_000);
    let hanging = || {
        vec![Script { mood: Mood::Hangs, ..Script::ollama(&[]) }, Script { mood: Mood::Hangs, ..Script::openai(&[]) }]
    };
    let mut after = restart(&before, hanging(), 5_000);
    after.run(0);
    assert_eq!(after.listed(), ["a:latest"], "it was there five seconds ago");
    assert!(!after.model("a:latest").candidates[0].up);
    assert!(!after.model("org/q.gguf:latest").candidates[0].up);
    assert_eq!(&after.last().listing.version[..], br#"{"version":"0.33.0"}"#, "last known");
    let mut late = restart(&before, hanging(), 3_600_000);
    late.run(0);
    assert!(late.listed().is_empty(), "known, not listed");
    assert!(late.last().models.contains_key("a:latest"));
    let mut too_late = restart(&before, hanging(), 25 * 3_600_000);
    too_late.run(0);
    assert!(too_late.last().models.is_empty());
    let mut back =
        restart(&before, vec![Script { blobs, ..Script::ollama(&[("a:latest", "d1")]) }, Script::openai(&[])], 5_000);
    back.run(10_000);
    assert!(back.scripts[0].times("/api/show").is_empty(), "weights are remembered too");
}

#[test]
fn what_was_deleted_between_two_processes_is_gone_unless_the_node_was_down() {
    let mut before = Herd::new(vec![Script::ollama(&[("a:latest", "d1")]), Script::ollama(&[("b:latest", "d2")])]);
    before.run(10_000);
    before.scripts[1].mood = Mood::Refuses;
    before.run(5_000);
    let mut after = restart(&before, vec![Script::ollama(&[]), Script::ollama(&[])], 5_000);
    after.run(1_000);
    assert!(!after.last().models.contains_key("a:latest"));
    assert!(after.model("b:latest").candidates.is_empty());
    let mut again = restart(&after, vec![Script::ollama(&[]), Script::ollama(&[])], 5_000);
    again.run(1_000);
    assert!(again.model("b:latest").candidates.is_empty(), "what is lost stays remembered");
}

#[test]
fn nodes_that_disagree_about_a_digest_all_serve_it() {
    let mut herd = Herd::new(vec![
        Script::ollama(&[("m:latest", "old")]),
        Script::ollama(&[("M", "new")]),
        Script::openai(&["m"]),
    ]);
    herd.run(1_000);
    let model = herd.model("m:latest");
    assert!(model.conflict);
    assert_eq!(model.candidates.len(), 3);
    assert_eq!(herd.listed().len(), 1);
    herd.scripts[1].mood = Mood::Refuses;
    herd.run(3_000);
    assert!(!herd.model("m:latest").conflict, "one that is down has no say");
}

#[test]
fn a_renamed_model_keeps_its_weights_and_its_slots() {
    let mut herd = Herd::new(vec![Script {
        blobs: HashMap::from([("d1".to_owned(), blob("aa"))]),
        ..Script::ollama(&[("old:latest", "d1")])
    }]);
    herd.run(1_000);
    let cell = herd.cell("old:latest", 0);
    cell.mark_loaded(herd.now.ms);
    assert!(cell.try_take_warm());
    herd.scripts[0].models[0].0 = "new:latest".to_owned();
    herd.facts.report(Report::Lacks(NodeId(0)), herd.now);
    herd.run(1_000);
    assert!(!herd.last().models.contains_key("old:latest"));
    assert!(Arc::ptr_eq(&herd.cell("new:latest", 0), &cell));
    assert_eq!(cell.view().in_flight, 1);
    assert_eq!(cell.links().len(), 1);
    assert!(Arc::ptr_eq(&cell.links()[0], &herd.model("new:latest").queue));
    cell.release();
}

#[test]
fn an_openai_node_serves_what_it_says() {
    let mut herd = Herd::new(vec![
        Script { total_slots: Some(3), ..Script::openai(&["Org/Q.gguf"]) },
        Script { has_health: false, ..Script::openai(&["z"]) },
        Script::ollama(&[("a:latest", "d1")]),
    ]);
    herd.run(1_000);
    assert!(herd.is_up(0) && herd.is_up(1), "one by /health, one by /v1/models");
    assert_eq!(herd.listed(), ["a:latest"]);
    assert_eq!(names(&herd.last().listing.v1_models, "data", "id"), ["Org/Q.gguf", "a:latest", "z"]);
    let model = herd.model("org/q.gguf:latest");
    assert_eq!((&*model.name, &*model.candidates[0].digest), ("Org/Q.gguf", ""));
    let view = herd.cell("org/q.gguf:latest", 0).view();
    assert!(view.loaded && view.open);
    assert_eq!(view.limit, crate::slots::Limit::Hard(3));
    assert_eq!(herd.cell("z:latest", 1).view().limit, crate::slots::Limit::Soft(4));
    assert!(herd.scripts[0].times("/api/ps").is_empty() && herd.scripts[0].times("/api/show").is_empty());
    assert_eq!(herd.last().nodes[0].ps.entries.len(), 1);
    herd.run(60_000);
    assert!(herd.cell("org/q.gguf:latest", 0).view().loaded, "served is loaded");
}

#[test]
fn a_remote_stub_counts_as_loaded_from_its_first_generation() {
    let mut herd = Herd::new(vec![Script::ollama(&[("gpt-oss:120b-cloud", "d1"), ("a:latest", "d2")])]);
    herd.run(6_000);
    let stub = herd.model("gpt-oss:120b:cloud");
    assert!(stub.candidates[0].remote && stub.candidates[0].pair.cell.view().loaded, "though /api/ps lists nothing");
    assert!(!herd.cell("a:latest", 0).view().loaded);
}

#[test]
fn rapid_changes_leave_each_snapshot_consistent() {
    let all: Vec<(String, String)> = (0..12).map(|n| (format!("m{n}:latest"), format!("d{}", n % 5))).collect();
    let script = |at: usize| Script {
        blobs: HashMap::from([
            ("d0".to_owned(), blob("aa")),
            ("d1".to_owned(), blob("aa")),
            ("d2".to_owned(), blob("bb")),
        ]),
        delay_ms: 1 + at as u64 * 7,
        ..Script::ollama(&[])
    };
    let mut herd = Herd::new((0..5).map(script).collect());
    let mut random = 42;
    let mut roll = |n: u32| jitter(&mut random) % n;
    for _ in 0..400 {
        let node = roll(5) as usize;
        let models: Vec<_> = all.iter().filter(|_| roll(2) == 0).cloned().collect();
        let script = &mut herd.scripts[node];
        script.loaded = models.iter().map(|(name, _)| name.clone()).take(2).collect();
        script.models = models;
        script.mood = [Mood::Answers, Mood::Answers, Mood::Answers, Mood::OnlyProbes, Mood::Refuses, Mood::Hangs]
            [roll(6) as usize];
        let id = NodeId(u32::try_from(node).unwrap());
        herd.facts.report(Report::Lacks(id), herd.now);
        herd.facts.report(if roll(2) == 0 { Report::Residency(id) } else { Report::Reached(id) }, herd.now);
        herd.run(u64::from(roll(1_000)));
    }
    assert!(herd.snapshots.len() > 300, "{} snapshots were checked", herd.snapshots.len());
    for script in &mut herd.scripts {
        script.mood = Mood::Answers;
        script.models = all.clone();
    }
    herd.run(120_000);
    assert_eq!(herd.listed().len(), all.len(), "at rest the listing is the union");
    assert!(herd.last().models.values().all(|model| model.candidates.len() == 5));
}

#[test]
fn what_was_deleted_is_not_remembered_of_a_node_that_is_down() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1"), ("b:latest", "d2")])]);
    herd.run(10_000);
    let gone = |herd: &mut Herd| {
        herd.facts.report(Report::Gone { nodes: vec![NodeId(0)], key: "a:latest".into() }, herd.now);
        herd.run(10);
    };
    gone(&mut herd);
    assert_eq!(herd.listed(), ["a:latest", "b:latest"], "a node that is up tells for itself");
    herd.scripts[0].mood = Mood::Refuses;
    herd.run(10_000);
    assert!(!herd.is_up(0));
    assert_eq!(herd.listed(), ["a:latest", "b:latest"]);
    gone(&mut herd);
    assert_eq!(herd.listed(), ["b:latest"]);
    assert!(!herd.last().models.contains_key("a:latest"), "no ground for a 503");
    // It is back, with what it had, in the very words of before.
    herd.scripts[0].mood = Mood::Answers;
    herd.run(20_000);
    assert_eq!(herd.listed(), ["a:latest", "b:latest"]);
}
