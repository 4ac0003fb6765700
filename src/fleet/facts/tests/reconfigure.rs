//! Nodes that come, go, move and are taken out while the fleet serves.

use std::task::{Context, Waker};

use tokio::sync::oneshot;

use super::*;
use crate::config::NodeSlots;
use crate::fleet::reconfigure::{NodesChanged, Reconfigure};
use crate::slots::{Limit, Waiting, Wants};

impl Herd {
    /// Goes by another configuration, with these nodes in their places.
    fn reconfigure(
        &mut self,
        nodes: &[u32],
        change: impl FnOnce(&mut Config, &mut Vec<(NodeId, NodeConfig)>),
    ) -> NodesChanged {
        let mut config = Config::clone(&self.facts.config);
        let of = |at: &u32| (NodeId(*at), config_of(*at as usize, self.scripts[*at as usize].kind));
        let mut nodes = nodes.iter().map(of).collect();
        change(&mut config, &mut nodes);
        let (done, mut changed) = oneshot::channel();
        self.facts
            .report(Report::Reconfigure(Box::new(Reconfigure { config: Arc::new(config), nodes, done })), self.now);
        self.run(100);
        changed.try_recv().expect("told once it is published")
    }

    fn drain(&mut self, node: u32, on: bool) {
        let (done, mut shown) = oneshot::channel();
        self.facts.report(Report::Drain { node: NodeId(node), on, done }, self.now);
        self.run(100);
        shown.try_recv().expect("told once it is published");
    }

    fn holders(&self, key: &str) -> Vec<u32> {
        self.last().models.get(key).map_or_else(Vec::new, |model| model.candidates.iter().map(|c| c.node.0).collect())
    }
}

fn two() -> Herd {
    let script = || Script::ollama(&[("m:latest", "d1")]);
    let mut herd = Herd::new(vec![script(), script()]);
    herd.run(1_000);
    herd
}

#[test]
fn a_removed_node_is_asked_nothing_shown_nowhere_and_keeps_its_place() {
    let mut herd = two();
    let (cell, word) = (herd.cell("m:latest", 1), Arc::clone(&herd.facts.nodes()[1].word));
    cell.mark_loaded(herd.now.ms);
    assert!(cell.try_take_warm(), "a stream is running there");
    let changed = herd.reconfigure(&[0], |_, _| {});
    assert_eq!(changed, NodesChanged { removed: vec!["n1".to_owned()], ..NodesChanged::default() });
    assert_eq!(herd.holders("m:latest"), [0]);
    assert_eq!(herd.last().configured().count(), 1);
    assert!(!cell.try_take_warm() && !word.is_up(), "I1: nothing more is taken there");
    assert!(cell.links().is_empty());
    let asked = herd.scripts[1].asked.len();
    herd.run(120_000);
    assert_eq!(herd.scripts[1].asked.len(), asked);
    cell.release();
    assert_eq!(cell.view().in_flight, 0, "I1: its slot came back");
    let changed = herd.reconfigure(&[0, 1], |_, _| {});
    assert_eq!(changed.added, ["n1"]);
    herd.run(1_000);
    assert_eq!(herd.holders("m:latest"), [0, 1], "the same place again");
    assert!(!Arc::ptr_eq(&herd.cell("m:latest", 1), &cell) && herd.cell("m:latest", 1).view().open);
    assert!(!word.is_up(), "who holds an old Snapshot takes nothing");
}

#[test]
fn a_new_node_serves_and_its_counters_begin_where_its_name_left_off() {
    let script = || Script::ollama(&[("m:latest", "d1")]);
    let mut herd = Herd::new(vec![script(), script()]);
    let changed = herd.reconfigure(&[0], |_, _| {});
    assert_eq!(changed.removed, ["n1"]);
    herd.run(1_000);
    herd.reconfigure(&[0, 1], |_, _| {});
    herd.run(1_000);
    let pair = |herd: &Herd| Arc::clone(&herd.model("m:latest").candidates[1].pair);
    pair(&herd).counters.started(crate::ids::WorkerId(0));
    herd.reconfigure(&[0], |_, _| {});
    herd.reconfigure(&[0, 1], |_, _| {});
    herd.run(1_000);
    assert_eq!(herd.last().used.all()[0].starts(), 1, "the sums of a name go on");
}

#[test]
fn ten_thousand_names_that_come_and_go_leave_their_sums_and_nothing_else() {
    use crate::usage::Count;
    use crate::usage::tests::outcome;
    const NAMES: u32 = 10_000;
    const AT_ONCE: usize = 2_500;
    let mut herd = two();
    let tokens = crate::usage::Tokens { input: 1, cached: 0, output: 2 };
    let count = crate::usage::Outcome { count: Count::Exact(tokens), ..outcome() };
    let cells = herd.last().models["m:latest"].candidates.len();
    let mut kept = None;
    for first in (2..NAMES + 2).step_by(AT_ONCE) {
        let names: Vec<u32> = (first..).take(AT_ONCE).collect();
        herd.scripts.extend(names.iter().map(|_| Script { mood: Mood::Hangs, ..Script::ollama(&[]) }));
        herd.reconfigure(&[&[0, 1], &names[..]].concat(), |_, _| {});
        for name in names {
            let any = Arc::clone(&herd.last().nodes[name as usize].any);
            any.counters.started(crate::ids::WorkerId(0));
            any.counters.count(crate::ids::WorkerId(0), &count);
            // The stream of the last one runs on when its node has gone.
            kept = Some(any);
        }
        herd.reconfigure(&[0, 1], |_, _| {});
        // Nobody reads the older ones any more.
        herd.snapshots.drain(..herd.snapshots.len() - 1);
    }
    herd.run(3_000);
    let rows = |herd: &Herd| herd.last().used.all().iter().filter(|pair| !pair.is_gone()).count();
    assert_eq!(rows(&herd), 1, "only what runs on has rows");
    if let Some(any) = kept {
        any.counters.ended(crate::ids::WorkerId(0));
    }
    herd.run(3_000);
    assert_eq!(rows(&herd), 0);
    let all = herd.last().used.all();
    assert_eq!(
        all.iter().map(|pair| (pair.starts(), pair.requests())).collect::<Vec<_>>(),
        vec![(1, 1); NAMES as usize]
    );
    assert_eq!(all.iter().map(|pair| pair.tokens().output).sum::<u64>(), 2 * u64::from(NAMES));
    assert_eq!(herd.last().models["m:latest"].candidates.len(), cells);
}

#[test]
fn a_node_that_moves_is_known_anew_and_one_that_only_changes_keeps_what_it_has() {
    let mut herd = two();
    let (cell, target) = (herd.cell("m:latest", 0), Arc::clone(&herd.last().nodes[0].target));
    let changed = herd.reconfigure(&[0, 1], |_, nodes| {
        nodes[0].1.api_key = Some(crate::config::Secret("k".to_owned()));
        nodes[0].1.slots = Some(SlotsConfig::Hard(3));
        nodes[1].1.port = 1;
    });
    assert_eq!((changed.changed, changed.moved), (vec!["n0".to_owned()], vec!["n1".to_owned()]));
    assert!(Arc::ptr_eq(&cell, &herd.cell("m:latest", 0)), "in flight goes on being counted there");
    assert_eq!(cell.view().limit, Limit::Hard(3));
    let now = Arc::clone(&herd.last().nodes[0].target);
    assert!(now.api_key.is_some() && now.epoch() == target.epoch(), "its connections are as good as before");
    assert_eq!(**now.addresses.load(), **target.addresses.load());
    assert!(herd.last().nodes[1].target.epoch() > 0, "connections to where it was are not used again");
}

#[test]
fn the_limit_of_all_models_of_a_node_follows_the_configuration() {
    let mut herd = two();
    let limits = |herd: &Herd| herd.last().nodes.iter().map(|node| node.word.slots()).collect::<Vec<_>>();
    assert_eq!(limits(&herd), [None, None]);
    let changed = herd.reconfigure(&[0, 1], |config, nodes| {
        config.node_slots = NodeSlots::Hard(7);
        nodes[0].1.node_slots = Some(NodeSlots::Hard(1));
    });
    assert_eq!((changed.changed, limits(&herd)), (vec!["n0".to_owned()], vec![Some(1), Some(7)]));
    let (m, word) = (herd.cell("m:latest", 0), Arc::clone(&herd.last().nodes[0].word));
    m.mark_loaded(1);
    assert!(m.try_take_warm() && !m.try_take_warm(), "whatever the model's own limit");
    let mut waiting = Waiting::join(&herd.model("m:latest").queue, Wants::ANY).unwrap();
    let mut look = || {
        let mut take = || m.try_take_warm().then(|| Arc::clone(&m));
        waiting.poll_grant(&mut Context::from_waker(Waker::noop()), &mut take).is_ready()
    };
    assert!(!look());
    herd.reconfigure(&[0, 1], |config, nodes| {
        config.node_slots = NodeSlots::Hard(2);
        nodes[1].1.node_slots = Some(NodeSlots::Off);
    });
    assert_eq!(limits(&herd), [Some(2), None]);
    assert!(look() && word.seats() == 2, "a waiter has what was raised");
    herd.reconfigure(&[1], |_, _| {});
    assert!(!word.is_open() && word.seats() == 2, "what runs on a removed node goes on");
}

#[test]
fn answers_to_an_earlier_node_in_the_place_are_not_taken() {
    let mut herd = two();
    herd.scripts[1].delay_ms = 50;
    while !herd.pending.iter().any(|(_, job, _)| job.node == NodeId(1)) {
        herd.run(10);
    }
    herd.reconfigure(&[0], |_, _| {});
    herd.run(1_000);
    assert!(!herd.is_up(1) && herd.holders("m:latest") == [0]);
}

#[test]
fn a_drained_node_takes_nothing_new_and_is_open_again_after() {
    let mut herd = two();
    let cell = herd.cell("m:latest", 1);
    cell.mark_loaded(herd.now.ms);
    assert!(cell.try_take_warm());
    herd.drain(1, true);
    assert!(herd.is_up(1) && herd.last().nodes[1].draining && !cell.try_take_warm());
    assert_eq!(herd.holders("m:latest"), [0, 1], "what it has is still known");
    herd.scripts[1].mood = Mood::Refuses;
    herd.run(30_000);
    herd.scripts[1].mood = Mood::Answers;
    herd.run(30_000);
    assert!(herd.is_up(1) && !herd.cell("m:latest", 1).view().open, "back, and still taken out");
    herd.offered.clear();
    herd.drain(1, false);
    assert!(herd.cell("m:latest", 1).view().open);
    assert!(herd.offered.iter().any(|cell| cell.node == NodeId(1)), "who waits is served there");
    cell.release();
}

#[test]
fn nodes_that_are_taken_out_cause_no_panic() {
    let script = || Script::ollama(&[("m:latest", "d1")]);
    let mut herd = Herd::new((0..4).map(|_| script()).collect());
    herd.run(1_000);
    for node in 0..3 {
        herd.drain(node, true);
        herd.scripts[node as usize].mood = Mood::Hangs;
    }
    herd.run(20_000);
    assert!(!herd.last().panicking && herd.is_up(3));
}

#[test]
fn times_of_a_model_and_of_a_node_follow_the_configuration() {
    let mut herd = two();
    assert_eq!(herd.model("m:latest").times, crate::fleet::OwnTimes::default());
    let times = |seconds| TimeoutOverrides {
        stream_idle: Some(std::time::Duration::from_secs(seconds)),
        ..TimeoutOverrides::default()
    };
    herd.reconfigure(&[0, 1], |config, nodes| {
        nodes[0].1.timeouts = times(7);
        let model = crate::config::ModelConfig {
            pattern: "m*".to_owned(),
            slots: None,
            timeouts: times(9),
            pull_targets: Vec::new(),
        };
        config.models = vec![model];
    });
    assert_eq!(herd.model("m:latest").times.stream_idle, Some(9_000));
    assert_eq!(herd.last().nodes[0].times.stream_idle, Some(7_000));
    assert_eq!(herd.last().nodes[1].times.stream_idle, None);
}

#[test]
fn a_node_that_moves_takes_its_count_of_lost_exchanges_along() {
    let mut herd = two();
    herd.facts.nodes()[1].word.lost_hint().add(7);
    let changed = herd.reconfigure(&[0, 1], |_, nodes| nodes[1].1.port += 1);
    assert_eq!(changed.moved, ["n1"]);
    assert_eq!(herd.last().nodes[1].word.cas_retries(), 7);
}

#[test]
fn nobody_waits_for_what_was_loaded_on_a_node_that_is_removed() {
    let mut herd = two();
    herd.scripts[1].mood = Mood::OnlyProbes;
    herd.facts.report(Report::Residency(NodeId(1)), herd.now);
    let (shown, mut done) = oneshot::channel();
    herd.facts.report(Report::Shown { number: 1, shown }, herd.now);
    herd.run(100);
    assert!(done.try_recv().is_err());
    herd.reconfigure(&[0], |_, _| {});
    assert_eq!(done.try_recv(), Ok(()));
}
