//! Routing against small herds: each test names the rule of the order it would see broken.
#![expect(clippy::unwrap_used, reason = "tests: a panic is a failed test")]

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;
use crate::fleet::{NodeView, OwnTimes};
use crate::ids::{CellId, ModelId, WorkerId};
use crate::slots::{Grant, Limit, ModelWord, NodeWord, Pair, Permit, Queue, Waiting};
use crate::usage::counters::PairCounters;

const SPILL: Millis = 10_000;

/// A herd with one model; each node is (kind, limit).
struct Herd {
    snapshot: Snapshot,
    model: Model,
}

fn herd(nodes: &[(NodeKind, Limit)]) -> Herd {
    let word = Arc::new(ModelWord::new());
    let views: Vec<_> = nodes.iter().enumerate().map(|(i, (kind, _))| Arc::new(node_view(i, *kind))).collect();
    let candidates = nodes.iter().zip(&views).map(|((kind, limit), view)| {
        let cell = Arc::new(Cell::new(CellId(view.id.0), view.id, Arc::clone(&view.word), *limit));
        if *kind == NodeKind::OpenAi {
            cell.mark_resident();
        }
        Candidate::new(pair(cell, Some(Arc::clone(&word))), *kind, Arc::from(""))
    });
    let model = Model {
        id: ModelId(2),
        name: Arc::from("m:latest"),
        queue: Arc::new(Queue::new(8)),
        word: Arc::clone(&word),
        candidates: candidates.collect(),
        conflict: false,
        times: OwnTimes::default(),
    };
    for candidate in &model.candidates {
        candidate.pair.cell.link(Arc::clone(&model.queue));
    }
    Herd { snapshot: Snapshot { nodes: views.into(), ready: true, ..Snapshot::empty() }, model }
}

fn node_view(at: usize, kind: NodeKind) -> NodeView {
    let id = NodeId(u32::try_from(at).unwrap());
    let node = NodeView { up: true, ..NodeView::bare(id, "node", kind, 1) };
    node.word.set_up(true);
    node
}

fn pair(cell: Arc<Cell>, model_word: Option<Arc<ModelWord>>) -> Arc<Pair> {
    Arc::new(Pair { cell, counters: Arc::new(PairCounters::new(1)), model: ModelId(2), model_word })
}

fn ollama(limits: &[Limit]) -> Herd {
    herd(&limits.iter().map(|limit| (NodeKind::Ollama, *limit)).collect::<Vec<_>>())
}

const HARD1: Limit = Limit::Hard(1);

impl Herd {
    fn cell(&self, at: usize) -> &Arc<Cell> {
        &self.model.candidates[at].pair.cell
    }

    fn word(&self, at: usize) -> &NodeWord {
        &self.snapshot.nodes[at].word
    }

    fn load(&self, at: usize, in_flight: u32) {
        self.cell(at).mark_loaded(1);
        for _ in 0..in_flight {
            assert!(self.cell(at).try_take_unbounded());
        }
    }

    fn ask_at(&self, now: Millis) -> Ask<'static> {
        Ask { native: true, tried: &[], now, spill_after: SPILL }
    }

    fn pick(&self) -> Choice {
        pick(&self.snapshot, &self.model, &self.ask_at(0))
    }

    fn pick_at(&self, now: Millis) -> Choice {
        pick(&self.snapshot, &self.model, &self.ask_at(now))
    }

    fn pick_after(&self, tried: &[NodeId]) -> Choice {
        pick(&self.snapshot, &self.model, &Ask { tried, ..self.ask_at(0) })
    }

    fn permit(&self, choice: Choice) -> Permit {
        let Choice::Go { candidate, taken } = choice else { panic!("no slot: {choice:?}") };
        Permit::new(Arc::clone(&self.model.candidates[candidate].pair), WorkerId(0), taken)
    }

    fn join(&self, native: bool, tried: &[NodeId]) -> Waiting {
        let ask = Ask { native, tried, now: 0, spill_after: SPILL };
        Waiting::join(&self.model.queue, ask.wants()).unwrap()
    }

    fn poll(&self, waiting: &mut Waiting, native: bool, tried: &[NodeId]) -> Poll<Grant> {
        let ask = Ask { native, tried, now: 0, spill_after: SPILL };
        let mut take = || take_for_waiter(&self.snapshot, &self.model, &ask);
        waiting.poll_grant(&mut Context::from_waker(Waker::noop()), &mut take)
    }

    fn serve(&self, now: Millis) {
        serve_waiting(&self.snapshot, &self.model, now, SPILL);
    }
}

fn warm(candidate: usize) -> Choice {
    Choice::Go { candidate, taken: Taken::Warm }
}

fn cold(candidate: usize) -> Choice {
    Choice::Go { candidate, taken: Taken::Cold }
}

#[test]
fn least_relative_load_first() {
    let herd = ollama(&[Limit::Hard(3), Limit::Hard(8), Limit::Soft(4)]);
    herd.load(0, 1);
    herd.load(1, 2);
    herd.load(2, 3);
    assert_eq!(herd.pick(), warm(1), "2/8 < 1/3 < 3/4");
    assert_eq!(herd.pick(), warm(0), "1/3 < 3/8");
}

#[test]
fn ties_rotate() {
    let herd = ollama(&[Limit::Hard(1); 3]);
    (0..3).for_each(|at| herd.load(at, 0));
    let mut served = BTreeMap::new();
    for _ in 0..30 {
        *served.entry(herd.permit(herd.pick()).node()).or_insert(0) += 1;
    }
    assert_eq!(served.into_values().collect::<Vec<_>>(), [10, 10, 10]);
}

#[test]
fn a_last_choice_is_taken_when_no_other_has_room() {
    for sick in 0..3 {
        let mut herd = ollama(&[Limit::Hard(2); 3]);
        herd.model.candidates[sick].last_choice = true;
        let (loaded, loading) = ((sick + 1) % 3, (sick + 2) % 3);
        herd.load(sick, 0);
        herd.load(loaded, 1);
        assert!(herd.cell(loading).try_take_cold(0));
        assert_eq!(herd.pick(), warm(loaded), "though it is busier");
        assert_eq!(herd.pick(), warm(loading), "though it is not up yet");
        assert_eq!((herd.pick(), herd.pick(), herd.pick()), (warm(sick), warm(sick), Choice::Wait));
    }
    let mut herd = ollama(&[Limit::Hard(2); 2]);
    herd.model.candidates[0].last_choice = true;
    assert!(herd.snapshot.nodes[1].any.cell.try_take_unbounded());
    assert_eq!(herd.pick(), cold(1), "a load too goes elsewhere, though there is more work");
}

#[test]
fn loaded_then_loading_then_cold() {
    let herd = ollama(&[Limit::Hard(1); 3]);
    assert!(herd.cell(1).try_take_cold(0));
    herd.cell(1).set_limit(Limit::Hard(2));
    herd.load(2, 0);
    assert_eq!(herd.pick(), warm(2), "loaded");
    assert_eq!(herd.pick(), warm(1), "loading");
    assert_eq!(herd.pick(), Choice::Wait, "all full, but not for long");
}

#[test]
fn loaded_nowhere_starts_one_copy_on_the_node_with_the_least_work() {
    let herd = ollama(&[Limit::Hard(2); 3]);
    for (at, others) in [(0, 2), (1, 1), (2, 3)] {
        // Work of other models counts.
        (0..others).for_each(|_| assert!(herd.snapshot.nodes[at].any.cell.try_take_unbounded()));
    }
    assert_eq!(herd.pick(), cold(1));
    assert_eq!(herd.pick(), warm(1), "the loading copy, not a second one");
    assert_eq!(herd.pick(), Choice::Wait);
    assert_eq!(herd.pick_at(SPILL - 1), Choice::Wait, "one load at a time");
}

#[test]
fn full_for_long_spills_to_a_further_copy() {
    let herd = ollama(&[HARD1; 3]);
    herd.load(0, 1);
    assert_eq!(herd.pick_at(5), Choice::Wait);
    assert_eq!(herd.pick_at(4 + SPILL), Choice::Wait);
    let spilled = herd.pick_at(5 + SPILL);
    assert!(matches!(spilled, Choice::Go { candidate: 1 | 2, taken: Taken::Cold }), "{spilled:?}");
    assert_eq!(herd.pick_at(6 + SPILL), Choice::Wait, "one load at a time");
}

#[test]
fn room_in_between_starts_the_time_anew() {
    let herd = ollama(&[HARD1; 2]);
    herd.load(0, 1);
    assert_eq!(herd.pick_at(5), Choice::Wait);
    herd.cell(0).release();
    assert_eq!(herd.pick_at(100), warm(0));
    assert_eq!(herd.pick_at(200), Choice::Wait);
    assert_eq!(herd.pick_at(5 + SPILL), Choice::Wait, "full since 200, not since 5");
    assert_eq!(herd.pick_at(200 + SPILL), cold(1));
}

#[test]
fn soft_limit_is_exceeded_on_the_least_loaded_copy() {
    let herd = ollama(&[Limit::Soft(2), Limit::Soft(4), Limit::Hard(1)]);
    herd.load(0, 3);
    herd.load(1, 5);
    herd.load(2, 1);
    assert_eq!(herd.pick(), warm(1), "5/4 < 3/2; the hard one never");
    assert_eq!(herd.pick(), warm(0), "3/2 = 6/4, whose turn it is, and then the other");
}

#[test]
fn soft_limit_spills_before_it_is_exceeded_further() {
    let herd = ollama(&[Limit::Soft(1), Limit::Soft(1)]);
    herd.load(0, 1);
    assert_eq!(herd.pick_at(0), warm(0));
    assert_eq!(herd.pick_at(SPILL), cold(1));
    assert_eq!(herd.pick_at(SPILL), warm(0), "one load at a time");
}

#[test]
fn soft_limit_waits_only_for_a_full_loading_copy() {
    let herd = ollama(&[Limit::Soft(1)]);
    let mut permit = herd.permit(herd.pick());
    assert_eq!(permit.taken(), Taken::Cold);
    assert_eq!(herd.pick(), Choice::Wait);
    let mut waiting = [herd.join(true, &[]), herd.join(false, &[])];
    assert!(waiting.iter_mut().all(|w| herd.poll(w, false, &[]).is_pending()));
    permit.succeeded(5);
    for w in &mut waiting {
        assert!(matches!(herd.poll(w, false, &[]), Poll::Ready(Grant::Slot { taken: Taken::Warm, .. })));
    }
    assert_eq!(herd.cell(0).view().in_flight, 3);
}

#[test]
fn new_requests_do_not_overtake_but_retries_do() {
    let herd = ollama(&[HARD1, HARD1]);
    herd.load(0, 1);
    let waiting = herd.join(true, &[NodeId(1)]);
    herd.load(1, 0);
    assert_eq!(herd.pick(), Choice::Wait, "somebody waits already");
    assert_eq!(herd.pick_after(&[NodeId(0)]), warm(1));
    drop(waiting);
    herd.cell(0).release();
    assert_eq!(herd.pick(), warm(0));
}

#[test]
fn tried_nodes_are_skipped() {
    let herd = ollama(&[Limit::Hard(9); 2]);
    herd.load(0, 0);
    herd.load(1, 5);
    assert_eq!(herd.pick_after(&[NodeId(0)]), warm(1));
    assert_eq!(herd.pick_after(&[NodeId(0), NodeId(1)]), Choice::NoNode);
}

#[test]
fn retry_starts_a_copy_elsewhere_when_the_loaded_one_failed_it() {
    let herd = ollama(&[Limit::Hard(9); 2]);
    herd.load(0, 0);
    assert_eq!(herd.pick_after(&[NodeId(0)]), cold(1));
}

impl Herd {
    /// Another model on the same nodes, loaded on each, with its queue.
    fn other(&self) -> Self {
        let (queue, word) = (Arc::new(Queue::new(8)), Arc::new(ModelWord::new()));
        let candidates = self.model.candidates.iter().map(|one| {
            let (id, node_word) = (CellId(100 + one.node.0), Arc::clone(&one.pair.cell.node_word));
            let cell = Arc::new(Cell::new(id, one.node, node_word, Limit::Hard(9)));
            cell.mark_loaded(1);
            cell.link(Arc::clone(&queue));
            Candidate::new(pair(cell, Some(Arc::clone(&word))), one.kind, Arc::from(""))
        });
        let candidates = candidates.collect();
        let name = Arc::from("n:latest");
        let model =
            Model { id: ModelId(3), name, queue, word, candidates, conflict: false, times: OwnTimes::default() };
        let nodes = self.snapshot.nodes.clone();
        Self { snapshot: Snapshot { nodes, ready: true, ..Snapshot::empty() }, model }
    }
}

fn limit_nodes(slots: u32, herds: [&Herd; 2]) {
    for (at, node) in herds[0].snapshot.nodes.iter().enumerate() {
        node.word.set_slots(Some(slots), herds.map(|herd| herd.cell(at)).into_iter());
    }
}

#[test]
fn a_node_at_its_limit_for_all_models_is_full_for_each() {
    let one = ollama(&[Limit::Hard(9), Limit::Soft(9)]);
    (0..2).for_each(|at| one.load(at, 0));
    let other = one.other();
    limit_nodes(2, [&one, &other]);
    let permits: Vec<_> = (0..4).map(|at| [&one, &other][at % 2].pick()).collect();
    assert!(permits.iter().all(|choice| matches!(choice, Choice::Go { .. })), "{permits:?}");
    assert_eq!((one.pick(), other.pick()), (Choice::Wait, Choice::Wait), "a soft limit is no way around it");
    assert_eq!((one.word(0).seats(), one.word(1).seats()), (2, 2));
}

#[test]
fn a_waiter_of_one_model_takes_the_seat_that_another_gives_back() {
    let one = ollama(&[Limit::Hard(9)]);
    one.load(0, 0);
    let other = one.other();
    limit_nodes(1, [&one, &other]);
    let held = one.permit(one.pick());
    assert_eq!(other.pick(), Choice::Wait);
    let mut waiting = other.join(true, &[]);
    assert!(other.poll(&mut waiting, true, &[]).is_pending());
    drop(held);
    assert_eq!(one.pick(), Choice::Wait, "it went to who waited");
    let Poll::Ready(Grant::Slot { cell, .. }) = other.poll(&mut waiting, true, &[]) else { panic!("not served") };
    cell.release();
    assert_eq!(one.pick(), warm(0), "nobody waits any more");
}

#[test]
fn a_model_that_is_not_loaded_gets_its_turn_on_a_node_that_never_idles() {
    let cold = ollama(&[Limit::Hard(9)]);
    let busy = cold.other();
    limit_nodes(1, [&cold, &busy]);
    let mut holder = busy.permit(busy.pick());
    assert_eq!(cold.pick(), Choice::Wait);
    let mut waiting = cold.join(true, &[]);
    assert!(cold.poll(&mut waiting, true, &[]).is_pending());
    let mut loaded = false;
    for turn in 0..3 {
        let mut next = busy.join(true, &[]);
        assert!(busy.poll(&mut next, true, &[]).is_pending());
        // The control thread's round.
        let round = || {
            let parked = Parked::before(&cold.snapshot);
            cold.serve(turn);
            parked.give_back();
        };
        round();
        drop(holder);
        round();
        loaded = matches!(cold.poll(&mut waiting, true, &[]), Poll::Ready(Grant::Slot { taken: Taken::Cold, .. }));
        if loaded {
            drop(next);
            break;
        }
        let Poll::Ready(Grant::Slot { taken, .. }) = busy.poll(&mut next, true, &[]) else { panic!("no turn") };
        holder = busy.permit(Choice::Go { candidate: 0, taken });
    }
    assert!(loaded, "the other model's waiters keep the node among themselves");
    assert_eq!(cold.word(0).seats(), 1);
    cold.cell(0).return_unused(Taken::Cold);
    assert!(!cold.word(0).is_parked() && cold.word(0).seats() == 0);
}

#[test]
fn native_requests_never_reach_a_v1_only_node() {
    let herd = herd(&[(NodeKind::OpenAi, Limit::Hard(4)), (NodeKind::Ollama, HARD1)]);
    let v1 = Ask { native: false, ..herd.ask_at(0) };
    assert_eq!(pick(&herd.snapshot, &herd.model, &v1), warm(0), "counts as loaded");
    assert_eq!(herd.pick(), cold(1));
    herd.word(1).set_up(false);
    assert_eq!(herd.pick(), Choice::NoNode);
    assert_eq!(pick(&herd.snapshot, &herd.model, &v1), warm(0));
}

#[test]
fn room_on_a_v1_only_node_does_not_hold_back_a_native_spill() {
    let herd = herd(&[(NodeKind::OpenAi, Limit::Hard(9)), (NodeKind::Ollama, HARD1), (NodeKind::Ollama, HARD1)]);
    herd.load(1, 1);
    assert_eq!(herd.pick_at(0), Choice::Wait);
    let v1 = Ask { native: false, ..herd.ask_at(5) };
    assert_eq!(pick(&herd.snapshot, &herd.model, &v1), warm(0));
    assert_eq!(herd.pick_at(SPILL), cold(2));
}

#[test]
fn remote_stub_is_warm_where_prompts_may_leave_the_house() {
    let mut herd = ollama(&[HARD1, HARD1]);
    for stub in &mut herd.model.candidates {
        stub.remote = true;
        stub.pair.cell.mark_resident();
    }
    assert_eq!(herd.pick(), Choice::NoNode);
    Arc::get_mut(&mut herd.snapshot.nodes[1]).expect("nobody else has it").cloud = true;
    assert_eq!(herd.pick(), warm(1));
    assert_eq!(herd.pick(), Choice::Wait);
}

#[test]
fn closed_nodes_get_nothing() {
    let herd = ollama(&[Limit::Hard(9); 3]);
    (0..3).for_each(|at| herd.load(at, 0));
    herd.word(0).set_up(false);
    herd.word(1).set_draining(true);
    herd.word(2).set_suspect(true);
    assert_eq!(herd.pick(), Choice::Wait, "the suspect node may come back");
    herd.word(2).set_up(false);
    assert_eq!(herd.pick(), Choice::NoNode, "down, draining, down");
    herd.word(1).set_draining(false);
    assert_eq!(herd.pick(), warm(1));
}

#[test]
fn recovering_node_loads_one_model_at_a_time() {
    let herd = ollama(&[HARD1]);
    herd.word(0).set_recovering(true);
    let other = Cell::new(CellId(7), NodeId(0), Arc::clone(&herd.snapshot.nodes[0].word), HARD1);
    assert!(other.try_take_cold(0));
    assert_eq!(herd.pick(), Choice::Wait);
    other.mark_load_failed();
    assert_eq!(herd.pick(), cold(0));
}

#[test]
fn failed_load_makes_room_for_the_next() {
    let herd = ollama(&[HARD1; 2]);
    let permit = herd.permit(herd.pick());
    let first = permit.node();
    assert_eq!(herd.pick(), Choice::Wait);
    drop(permit);
    assert_eq!(herd.word(0).cold_loads() + herd.word(1).cold_loads(), 0);
    let mut permit = herd.permit(herd.pick_after(&[first]));
    assert_ne!(permit.node(), first);
    permit.load_failed();
    assert_eq!(herd.model.word.loading(), None);
}

#[test]
fn load_is_over_when_ps_shows_the_model_or_its_node_closes() {
    let herd = ollama(&[HARD1; 3]);
    let permit = herd.permit(herd.pick());
    let first = permit.node().0 as usize;
    herd.cell(first).mark_loaded(3);
    assert_eq!(herd.pick_at(5), Choice::Wait);
    let permit_two = herd.permit(herd.pick_at(5 + SPILL));
    assert_eq!(permit_two.taken(), Taken::Cold, "shown by ps: the next load may begin");
    let second = permit_two.node().0 as usize;
    herd.word(second).set_up(false);
    assert!(
        matches!(herd.pick_at(6 + SPILL), Choice::Go { taken: Taken::Cold, .. }),
        "a node that hangs keeps nothing"
    );
}

#[test]
fn waiter_gets_the_first_slot_that_frees_on_any_copy() {
    let herd = ollama(&[HARD1; 2]);
    herd.load(0, 1);
    herd.load(1, 1);
    let mut waiting = herd.join(true, &[]);
    assert!(herd.poll(&mut waiting, true, &[]).is_pending());
    herd.cell(1).release();
    let Poll::Ready(Grant::Slot { cell, taken: Taken::Warm }) = herd.poll(&mut waiting, true, &[]) else {
        panic!("not served")
    };
    assert_eq!(candidate_of(&herd.model, &cell), Some(1));
    assert_eq!(cell.view().in_flight, 1);
}

#[test]
fn control_thread_starts_a_copy_for_the_first_waiter() {
    let herd = ollama(&[HARD1; 2]);
    herd.load(0, 1);
    let mut waiting = herd.join(true, &[]);
    herd.serve(0);
    assert!(herd.poll(&mut waiting, true, &[]).is_pending());
    herd.serve(SPILL);
    let Poll::Ready(Grant::Slot { cell, taken: Taken::Cold }) = herd.poll(&mut waiting, true, &[]) else {
        panic!("not served")
    };
    assert_eq!(cell.node, NodeId(1));
    assert!(cell.view().loading);
    assert_eq!(herd.model.word.loading().map(|load| load.node), Some(NodeId(1)));
}

#[test]
fn uncollected_cold_grant_is_a_failed_load() {
    let herd = ollama(&[HARD1]);
    let waiting = herd.join(true, &[]);
    herd.serve(0);
    assert!(herd.cell(0).view().loading);
    drop(waiting);
    assert!(!herd.cell(0).view().loading);
    assert_eq!((herd.cell(0).view().in_flight, herd.model.word.loading()), (0, None));
}

#[test]
fn a_loading_copy_serves_further_waiters_up_to_its_limit() {
    let herd = ollama(&[Limit::Hard(2)]);
    let mut waiting: Vec<_> = (0..3).map(|_| herd.join(true, &[])).collect();
    herd.serve(0);
    let ready: Vec<_> = waiting.iter_mut().map(|w| herd.poll(w, true, &[]).is_ready()).collect();
    assert_eq!(ready, [true, true, false]);
}

#[test]
fn waiters_end_at_once_when_nothing_can_serve_them() {
    let herd = ollama(&[HARD1; 2]);
    herd.load(0, 1);
    herd.load(1, 1);
    let mut retry = herd.join(true, &[NodeId(0)]);
    let mut first = herd.join(true, &[]);
    herd.word(1).set_up(false);
    herd.serve(0);
    assert!(matches!(herd.poll(&mut retry, true, &[NodeId(0)]), Poll::Ready(Grant::Refused)), "the one left failed it");
    assert!(herd.poll(&mut first, true, &[]).is_pending());
    herd.word(0).set_up(false);
    herd.serve(0);
    assert!(matches!(herd.poll(&mut first, true, &[]), Poll::Ready(Grant::Refused)));
    assert_eq!(herd.model.queue.len(), 0);
}

#[test]
fn native_waiters_end_when_only_v1_nodes_are_left() {
    let herd = herd(&[(NodeKind::OpenAi, HARD1), (NodeKind::Ollama, HARD1)]);
    herd.cell(0).mark_resident();
    herd.load(0, 1);
    herd.load(1, 1);
    let (mut native, mut v1) = (herd.join(true, &[]), herd.join(false, &[]));
    herd.word(1).set_up(false);
    herd.serve(0);
    assert!(matches!(herd.poll(&mut native, true, &[]), Poll::Ready(Grant::Refused)));
    assert!(herd.poll(&mut v1, false, &[]).is_pending());
    herd.cell(0).release();
    assert!(matches!(herd.poll(&mut v1, false, &[]), Poll::Ready(Grant::Slot { .. })));
}

#[test]
fn native_waiter_behind_a_full_v1_node_gets_a_copy_of_its_own_at_once() {
    let herd = herd(&[(NodeKind::OpenAi, HARD1), (NodeKind::Ollama, HARD1)]);
    herd.cell(0).mark_resident();
    herd.load(0, 1);
    let mut native = herd.join(true, &[]);
    herd.serve(0);
    assert!(matches!(herd.poll(&mut native, true, &[]), Poll::Ready(Grant::Slot { taken: Taken::Cold, .. })));
}

#[test]
fn retried_waiter_gets_a_copy_on_another_node() {
    let herd = ollama(&[HARD1; 2]);
    herd.load(0, 1);
    let tried = [NodeId(0)];
    let mut retry = herd.join(true, &tried);
    herd.serve(0);
    let grant = herd.poll(&mut retry, true, &tried);
    assert!(matches!(grant, Poll::Ready(Grant::Slot { taken: Taken::Cold, .. })), "{grant:?}");
}

#[test]
fn unknown_models_go_to_the_least_busy_node() {
    let herd = herd(&[(NodeKind::Ollama, HARD1), (NodeKind::OpenAi, HARD1), (NodeKind::Ollama, HARD1)]);
    herd.load(2, 1);
    let any = |kind, tried: &[NodeId]| pick_any(&herd.snapshot, &AnyAsk { kind, cloud: false, tried });
    assert_eq!(any(Some(NodeKind::Ollama), &[]), Some(NodeId(0)));
    assert_eq!(any(None, &[]), Some(NodeId(1)), "one request each on the others");
    assert_eq!(any(Some(NodeKind::Ollama), &[NodeId(0)]), Some(NodeId(2)));
    assert_eq!(pick_any(&herd.snapshot, &AnyAsk { kind: None, cloud: true, tried: &[] }), None);
    assert_eq!(herd.snapshot.nodes[0].any.cell.view().in_flight, 1);
}

#[test]
fn retry_budget_is_a_share_of_ten_seconds_and_at_least_a_few() {
    let mut budget = RetryBudget::new(20, 10);
    assert_eq!((0..20).filter(|_| budget.try_retry(0)).count(), 10, "the floor");
    assert!(!budget.try_retry(9_999));
    (0..100).for_each(|_| budget.note_request(10_000));
    assert_eq!((0..50).filter(|_| budget.try_retry(10_500)).count(), 20, "the share; the first ten are forgotten");
    assert_eq!((0..50).filter(|_| budget.try_retry(20_000)).count(), 10, "the floor again");
    assert_eq!((0..50).filter(|_| budget.try_retry(90_000_000)).count(), 10);
}

proptest! {
    /// A dry run says what `pick` then does: the same kind of place, and none with less load among its like.
    #[test]
    fn a_dry_run_says_what_pick_does(
        nodes in prop::collection::vec((1u32..4, any::<bool>(), 0u32..6, 0u8..4, any::<bool>(), any::<bool>()), 1..7),
        node_slots in prop::option::of(1u32..6),
        native in any::<bool>(),
        waited in prop::sample::select(vec![0, SPILL]),
    ) {
        use super::explain::{Stand, Would, explain};
        let specs = nodes.iter().map(|(n, soft, .., openai)| {
            let kind = if *openai { NodeKind::OpenAi } else { NodeKind::Ollama };
            (kind, if *soft { Limit::Soft(*n) } else { Limit::Hard(*n) })
        });
        let herd = herd(&specs.collect::<Vec<_>>());
        herd.model.candidates.iter().for_each(|one| one.pair.cell.node_word.set_up(true));
        for (at, (n, soft, load, residency, open, _)) in nodes.iter().enumerate() {
            match residency {
                0 => {}
                1 => { let _ = herd.cell(at).try_take_cold(0); }
                _ => herd.load(at, if *soft { *load } else { (*load).min(*n) }),
            }
            herd.word(at).set_up(*open);
            herd.word(at).set_slots(node_slots, [herd.cell(at)].into_iter());
        }
        if waited > 0 {
            herd.model.word.note_full(0);
        }
        let ask = Ask { native, tried: &[], now: waited, spill_after: SPILL };
        let (would, all) = explain(&herd.snapshot, &herd.model, &ask);
        prop_assert!(all.iter().is_sorted_by_key(|one| one.stand), "best first");
        match (would, pick(&herd.snapshot, &herd.model, &ask)) {
            (Would::Go(stand), Choice::Go { candidate, taken }) => {
                let took = all.iter().find(|one| one.candidate == candidate).unwrap();
                prop_assert_eq!(took.stand, stand);
                prop_assert_eq!(taken == Taken::Cold, stand == Stand::OnDisk);
                let load = |view: &crate::slots::CellView| {
                    let (Limit::Soft(n) | Limit::Hard(n)) = view.limit;
                    (u64::from(view.in_flight) << 24) / u64::from(n)
                };
                let best = all.iter().find(|one| one.stand == stand).unwrap();
                prop_assert!(stand == Stand::OnDisk || load(&took.view) == load(&best.view));
            }
            (Would::Wait, Choice::Wait) | (Would::NoNode, Choice::NoNode) => {}
            (would, choice) => prop_assert!(false, "{would:?}, and then {choice:?}"),
        }
    }

    /// `pick` on any mix of loads takes exactly what sorting says, and never exceeds a hard limit.
    #[test]
    fn pick_agrees_with_sorting(
        nodes in prop::collection::vec((1u32..6, any::<bool>(), 0u32..8, 0u8..4, any::<bool>()), 1..9),
        turns in 0u32..9,
    ) {
        let limit = |n: u32, soft: bool| if soft { Limit::Soft(n) } else { Limit::Hard(n) };
        let herd = ollama(&nodes.iter().map(|(n, soft, ..)| limit(*n, *soft)).collect::<Vec<_>>());
        for (at, (n, soft, load, residency, open)) in nodes.iter().enumerate() {
            match residency {
                0 => {}
                1 => { assert!(herd.cell(at).try_take_cold(0)); }
                _ => herd.load(at, if *soft { *load } else { (*load).min(*n) }),
            }
            herd.word(at).set_up(*open);
        }
        herd.model.word.set_turn(turns as usize);
        let before: Vec<_> = (0..nodes.len()).map(|at| herd.cell(at).view()).collect();
        let relative = |at: usize| {
            let (Limit::Soft(n) | Limit::Hard(n)) = before[at].limit;
            f64::from(before[at].in_flight) / f64::from(n)
        };
        let least = |fits: &dyn Fn(usize) -> bool| (0..nodes.len()).filter(|&at| before[at].open && fits(at))
            .map(relative).min_by(f64::total_cmp);
        let room = |at: usize| relative(at) < 1.0;
        let loaded = least(&|at| before[at].loaded && room(at));
        let loading = least(&|at| before[at].loading && room(at));
        let warm = before.iter().any(|v| v.open && (v.loaded || v.loading));
        let over = least(&|at| before[at].loaded && matches!(before[at].limit, Limit::Soft(_)));
        match herd.pick() {
            Choice::Go { candidate, taken: Taken::Cold } => {
                prop_assert!(!warm && before[candidate].open && herd.cell(candidate).view().loading);
            }
            Choice::Go { candidate, .. } => {
                prop_assert!(before[candidate].open);
                let expected = loaded.or(loading).or(over);
                prop_assert_eq!(Some(relative(candidate)), expected);
                prop_assert_eq!(herd.cell(candidate).view().in_flight, before[candidate].in_flight + 1);
                prop_assert_eq!(before[candidate].loading, loaded.is_none() && loading.is_some());
            }
            Choice::Wait => prop_assert!(warm && loaded.is_none() && loading.is_none() && over.is_none()),
            Choice::NoNode => prop_assert!(before.iter().all(|v| !v.open)),
        }
        for at in 0..nodes.len() {
            let view = herd.cell(at).view();
            prop_assert!(!matches!(view.limit, Limit::Hard(n) if view.in_flight > n));
        }
    }
}

#[test]
fn sparse_copies_take_turns() {
    let herd = ollama(&[Limit::Hard(1); 20]);
    let copies = [10, 11, 17];
    copies.into_iter().for_each(|at| herd.load(at, 0));
    let mut served = BTreeMap::new();
    for _ in 0..30 {
        *served.entry(herd.permit(herd.pick()).node()).or_insert(0) += 1;
    }
    assert_eq!(served.into_values().collect::<Vec<_>>(), [10, 10, 10]);
}

#[test]
fn an_idle_fleet_loads_its_models_on_different_nodes() {
    let (a, b) = (ollama(&[Limit::Hard(1); 3]), ollama(&[Limit::Hard(1); 3]));
    // The same nodes, another model: what one began there counts for the other.
    let began = |herd: &Herd, at: usize| {
        let word = herd.word(at);
        assert!(word.begin_cold());
        word.end_cold();
    };
    began(&a, 0);
    assert_eq!(a.pick(), cold(1));
    began(&b, 1);
    began(&b, 0);
    assert_eq!(b.pick(), cold(2));
}
