//! Cells, limits, links and residency: what a generation carries to the next, and what opens.

use super::*;
use crate::slots::{Grant, Limit, Waiting, Wants};
use std::task::{Context, Poll, Waker};

fn shared() -> Script {
    // Two manifests of one blob, a third of its own.
    let blobs = HashMap::from([("d1", "aa"), ("d2", "aa"), ("d3", "bb")]);
    let blobs = blobs.into_iter().map(|(digest, start)| (digest.to_owned(), blob(start))).collect();
    Script { blobs, ..Script::ollama(&[("a:latest", "d1"), ("b:latest", "d2"), ("c:latest", "d3")]) }
}

/// One poll of a waiter that finds no free slot itself.
fn poll(waiting: &mut Waiting) -> Poll<Grant> {
    waiting.poll_grant(&mut Context::from_waker(Waker::noop()), &mut || None)
}

#[test]
fn names_of_the_same_weights_share_a_cell() {
    let mut herd = Herd::new(vec![shared()]);
    herd.run(1_000);
    let (a, b, c) = (herd.cell("a:latest", 0), herd.cell("b:latest", 0), herd.cell("c:latest", 0));
    assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
    assert_eq!((a.links().len(), c.links().len()), (2, 1));
    let pairs = |key: &str| Arc::clone(&herd.model(key).candidates[0].pair);
    assert!(!Arc::ptr_eq(&pairs("a:latest").counters, &pairs("b:latest").counters), "counted apart");
    assert_eq!(herd.scripts[0].times("/api/show").len(), 3);
}

#[test]
fn learning_the_weights_loses_no_slot_in_flight() {
    let mut herd = Herd::new(vec![shared()]);
    // The show of the first name is on its way: both still have cells of their own.
    herd.scripts[0].delay_ms = 400;
    herd.run(1_000);
    let (a, b) = (herd.cell("a:latest", 0), herd.cell("b:latest", 0));
    assert!(!Arc::ptr_eq(&a, &b));
    for cell in [&a, &b] {
        cell.mark_loaded(herd.now.ms);
        assert!(cell.try_take_warm());
    }
    let counters = Arc::clone(&herd.model("b:latest").candidates[0].pair.counters);
    herd.run(5_000);
    let kept = herd.cell("a:latest", 0);
    assert!(Arc::ptr_eq(&kept, &a), "the first name's cell is the weights' now");
    assert!(Arc::ptr_eq(&kept, &herd.cell("b:latest", 0)));
    assert_eq!((a.view().in_flight, b.view().in_flight), (1, 1), "each slot is given back where it was taken");
    assert!(b.links().is_empty(), "nobody is granted a slot of the cell that is going");
    assert!(Arc::ptr_eq(&counters, &herd.model("b:latest").candidates[0].pair.counters));
    a.release();
    b.release();
    assert_eq!((a.view().in_flight, b.view().in_flight), (0, 0));
}

#[test]
fn ps_says_what_is_loaded_by_weights_not_by_name() {
    let mut herd = Herd::new(vec![shared()]);
    herd.scripts[0].loaded = vec!["b:latest".to_owned()];
    herd.run(6_000);
    assert!(herd.cell("a:latest", 0).view().loaded, "b's runner serves a");
    assert!(!herd.cell("c:latest", 0).view().loaded);
    assert_eq!(names(&herd.last().listing.ps, "models", "name"), ["b:latest"]);
    herd.scripts[0].loaded.clear();
    herd.run(6_000);
    assert!(!herd.cell("a:latest", 0).view().loaded);
    assert!(names(&herd.last().listing.ps, "models", "name").is_empty());
}

#[test]
fn what_has_answered_stays_loaded_while_its_weights_become_known() {
    let mut herd = Herd::new(vec![Script { delay_ms: 10, ..shared() }]);
    herd.run(35);
    // Its show has come, and no generation since.
    let cell = herd.cell("a:latest", 0);
    cell.mark_loaded(herd.now.ms);
    herd.scripts[0].loaded = vec!["a:latest".to_owned()];
    herd.run(1);
    herd.facts.report(Report::Residency(NodeId(0)), herd.now);
    let generation = herd.last().generation;
    herd.run(212);
    assert_eq!(herd.last().generation, generation, "else it proves nothing");
    assert!(cell.view().loaded, "its node lists it, by the manifest it stands under");
    herd.run(5_000);
    assert!(Arc::ptr_eq(&cell, &herd.cell("b:latest", 0)) && cell.view().loaded);
}

#[test]
fn what_is_in_flight_stays_loaded_whatever_ps_says() {
    let mut herd = Herd::new(vec![shared()]);
    herd.run(1_000);
    let cell = herd.cell("c:latest", 0);
    cell.mark_loaded(herd.now.ms);
    assert!(cell.try_take_warm());
    herd.run(20_000);
    assert!(cell.view().loaded);
    cell.release();
    herd.run(6_000);
    assert!(!cell.view().loaded);
}

#[test]
fn old_residency_is_unknown() {
    let mut herd = Herd::new(vec![shared()]);
    herd.scripts[0].loaded = vec!["a:latest".to_owned()];
    herd.run(6_000);
    assert!(herd.cell("a:latest", 0).view().loaded);
    herd.scripts[0].mood = Mood::OnlyProbes;
    herd.run(25_000);
    assert!(herd.cell("a:latest", 0).view().loaded, "younger than 30 s");
    herd.run(12_000);
    assert!(!herd.cell("a:latest", 0).view().loaded);
    assert!(names(&herd.last().listing.ps, "models", "name").is_empty());
    assert!(herd.last().nodes[0].ps.at().is_some(), "with its age it is still to be seen");
    let cell = herd.cell("a:latest", 0);
    cell.mark_loaded(herd.now.ms);
    herd.run(10_000);
    assert!(cell.view().loaded, "a success of ours counts meanwhile");
}

#[test]
fn a_node_that_comes_back_has_nothing_loaded_until_it_says_so() {
    let mut herd = Herd::new(vec![shared()]);
    herd.scripts[0].loaded = vec!["a:latest".to_owned()];
    herd.run(6_000);
    herd.scripts[0].mood = Mood::Refuses;
    herd.run(5_000);
    herd.scripts[0].mood = Mood::Answers;
    herd.scripts[0].loaded.clear();
    herd.run(10_000);
    assert!(herd.is_up(0) && !herd.cell("a:latest", 0).view().loaded);
}

#[test]
fn limits_follow_configuration_and_the_tightest_name_wins() {
    let mut config = Config { slots: SlotsConfig::Soft(6), ..Config::default() };
    let model = |pattern: &str, slots| crate::config::ModelConfig {
        pattern: pattern.to_owned(),
        slots: Some(slots),
        timeouts: TimeoutOverrides::default(),
        pull_targets: Vec::new(),
    };
    config.models = vec![model("b*", SlotsConfig::Hard(2)), model("c*", SlotsConfig::Soft(9))];
    let mut herd = Herd::with(vec![shared()], config, Memory::default(), START_UNIX_MS);
    herd.run(1_000);
    assert_eq!(herd.cell("a:latest", 0).view().limit, Limit::Hard(2), "a shares b's weights");
    assert_eq!(herd.cell("c:latest", 0).view().limit, Limit::Soft(9));
}

#[test]
fn who_waits_is_served_by_a_node_that_comes_up() {
    let script = || Script { total_slots: Some(4), ..Script::openai(&["q"]) };
    let mut herd = Herd::new(vec![script(), Script { mood: Mood::Refuses, ..script() }]);
    herd.run(1_000);
    let first = herd.cell("q:latest", 0);
    let mut held = Vec::new();
    for _ in 0..4 {
        assert!(first.try_take_warm());
        held.push(&first);
    }
    let queue = Arc::clone(&herd.model("q:latest").queue);
    let mut waiting = Waiting::join(&queue, Wants::ANY).unwrap();
    assert!(poll(&mut waiting).is_pending());
    herd.scripts[1].mood = Mood::Answers;
    herd.run(20_000);
    herd.offered.drain(..).for_each(|cell| cell.offer());
    let Poll::Ready(Grant::Slot { cell, .. }) = poll(&mut waiting) else { panic!("still waiting") };
    assert!(Arc::ptr_eq(&cell, &herd.cell("q:latest", 1)), "its cell stands in the Snapshot");
    cell.release();
    held.into_iter().for_each(|cell| cell.release());
}

#[test]
fn who_waits_for_a_name_that_is_deleted_everywhere_is_refused() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    herd.run(1_000);
    let old = Arc::clone(herd.model("a:latest"));
    let mut waiting = Waiting::join(&old.queue, Wants::ANY).unwrap();
    assert!(poll(&mut waiting).is_pending());
    herd.scripts[0].models.clear();
    herd.facts.report(Report::Lacks(NodeId(0)), herd.now);
    herd.run(10);
    assert!(matches!(poll(&mut waiting), Poll::Ready(Grant::Refused)));
    drop(waiting);
    let mut late = Waiting::join(&old.queue, Wants::ANY).unwrap();
    assert!(poll(&mut late).is_pending());
    herd.run(1_000);
    assert!(matches!(poll(&mut late), Poll::Ready(Grant::Refused)), "who joined by an old Snapshot, too");
}

#[test]
fn a_load_that_takes_too_long_is_given_up() {
    let mut herd = Herd::new(vec![shared()]);
    herd.run(1_000);
    let cell = herd.cell("c:latest", 0);
    assert!(cell.try_take_cold(herd.now.ms));
    herd.run(299_000);
    assert!(cell.view().loading);
    herd.run(2_000);
    assert!(!cell.view().loading);
    cell.release();
}
