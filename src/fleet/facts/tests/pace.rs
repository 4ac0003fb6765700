//! When nodes are asked, what makes them go down and come back, when clients are served (I9).

use super::*;

#[test]
fn the_first_round_makes_the_fleet_ready() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")]), Script::ollama(&[("b:latest", "d2")])]);
    herd.run(0);
    assert!(!herd.last().ready && herd.last().incomplete);
    herd.run(10);
    assert!(herd.last().ready && !herd.last().incomplete);
    assert_eq!(herd.listed(), ["a:latest", "b:latest"]);
    assert_eq!(herd.now.ms, 10, "nobody waited for anything");
}

#[test]
fn a_hanging_node_delays_nothing_and_is_not_listed() {
    let hanging = Script { mood: Mood::Hangs, ..Script::ollama(&[("gone:latest", "d9")]) };
    let mut herd = Herd::new(vec![hanging, Script::ollama(&[("a:latest", "d1")])]);
    herd.run(10);
    assert!(!herd.last().ready);
    assert_eq!(herd.listed(), ["a:latest"]);
    herd.run(1_990);
    assert!(herd.last().ready, "clients are served after two seconds");
    assert!(herd.last().incomplete && !herd.is_up(0));
    assert_eq!(herd.listed(), ["a:latest"]);
    let probes = herd.scripts[1].times("/api/version");
    assert_eq!(probes[0], 0);
    herd.run(60_000);
    assert!(!herd.last().incomplete, "after a minute an unknown name is unknown");
    let probes = herd.scripts[1].times("/api/version");
    let gaps: Vec<_> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (1_800..=2_200).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "with jitter");
}

#[test]
fn each_question_keeps_its_own_pace() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    herd.run(300_000);
    let count = |path| herd.scripts[0].times(path).len();
    assert!((135..=170).contains(&count("/api/version")), "{}", count("/api/version"));
    assert!((54..=68).contains(&count("/api/ps")), "{}", count("/api/ps"));
    assert!((5..=7).contains(&count("/api/tags")), "{}", count("/api/tags"));
    assert_eq!(count("/api/show"), 1, "once for each manifest");
}

#[test]
fn silence_of_lists_never_marks_a_node_down() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    herd.run(1_000);
    herd.scripts[0].mood = Mood::OnlyProbes;
    herd.run(300_000);
    assert!(herd.is_up(0));
    assert_eq!(herd.listed(), ["a:latest"], "an inventory does not age");
}

#[test]
fn an_inventory_that_blocks_during_start_up_is_asked_for_again_soon() {
    let mut herd = Herd::new(vec![Script { mood: Mood::OnlyProbes, ..Script::ollama(&[("a:latest", "d1")]) }]);
    herd.run(9_000);
    assert!(herd.is_up(0) && herd.last().models.is_empty());
    herd.scripts[0].mood = Mood::Answers;
    herd.run(7_000);
    assert_eq!(herd.listed(), ["a:latest"]);
}

#[test]
fn a_silent_node_goes_down_after_two_probes_and_backs_off() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")]), Script::ollama(&[("b:latest", "d2")])]);
    herd.run(10_000);
    herd.scripts[0].mood = Mood::Hangs;
    herd.run(8_000);
    assert!(!herd.is_up(0) && herd.is_up(1));
    assert!(herd.last().node(NodeId(0)).unwrap().cause.contains("timed out"));
    assert!(!herd.model("a:latest").candidates[0].up);
    herd.scripts[0].asked.clear();
    herd.run(300_000);
    let probes = herd.scripts[0].times("/api/version");
    assert_eq!(probes.len(), herd.scripts[0].asked.len(), "a node that is down is only probed");
    let gaps: Vec<_> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[5..].iter().all(|gap| (13_500..=16_500).contains(gap)), "{gaps:?}");
    herd.scripts[0].mood = Mood::Answers;
    herd.run(16_500);
    assert!(herd.is_up(0), "one success");
}

#[test]
fn a_refused_request_closes_the_node_at_once() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    herd.run(1_000);
    herd.scripts[0].mood = Mood::Refuses;
    herd.facts.report(Report::Refused(NodeId(0)), herd.now);
    assert!(!herd.facts.nodes()[0].word.is_up(), "before anything is published");
    herd.step();
    assert!(!herd.is_up(0));
    herd.scripts[0].mood = Mood::Answers;
    herd.facts.report(Report::Reached(NodeId(0)), herd.now);
    herd.step();
    assert!(!herd.is_up(0), "a stream of before proves nothing");
    herd.run(2_500);
    assert!(herd.is_up(0) && herd.facts.nodes()[0].word.is_recovering());
    herd.run(31_000);
    assert!(!herd.facts.nodes()[0].word.is_recovering());
}

#[test]
fn a_word_closed_by_a_worker_whose_report_was_lost_opens_again() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    herd.run(1_500);
    herd.facts.nodes()[0].word.set_up(false);
    herd.offered.clear();
    herd.run(1_000);
    assert!(herd.facts.nodes()[0].word.is_open());
    let cell = herd.cell("a:latest", 0);
    assert!(herd.offered.iter().any(|offered| Arc::ptr_eq(offered, &cell)), "those who wait are served");
}

#[test]
fn the_router_itself_is_never_a_node() {
    let ourselves = Script { instance: Some("me".to_owned()), ..Script::ollama(&[("a:latest", "d1")]) };
    let another = Script { instance: Some("you".to_owned()), ..Script::ollama(&[("b:latest", "d2")]) };
    let mut herd = Herd::new(vec![ourselves, another]);
    herd.run(60_000);
    assert!(!herd.is_up(0) && herd.is_up(1));
    assert!(herd.last().node(NodeId(0)).unwrap().cause.contains("herdgate itself"));
}

#[test]
fn requests_without_a_byte_make_a_suspect() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    herd.run(1_000);
    let progress = Arc::clone(&herd.facts.nodes()[0].progress);
    for _ in 0..2 {
        progress.begin(crate::ids::WorkerId(0), herd.now.ms, None);
    }
    herd.run(119_000);
    assert!(herd.facts.nodes()[0].word.is_open() && herd.facts.nodes()[0].word.takes_new());
    herd.run(2_000);
    assert!(herd.is_up(0) && herd.last().nodes[0].suspect && !herd.facts.nodes()[0].word.is_open());
    assert!(!herd.facts.nodes()[0].word.takes_new(), "routing asks this, of each candidate");
    progress.byte(crate::ids::WorkerId(1), herd.now.ms);
    herd.run(1_000);
    assert!(!herd.last().nodes[0].suspect && herd.facts.nodes()[0].word.is_open());
    assert!(herd.facts.nodes()[0].word.takes_new());
}

/// What a subscriber writes, a line at a time.
struct Log(flume::Sender<Vec<u8>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_suspect_is_named_in_the_log() {
    let (written, lines) = flume::bounded(1_000);
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Log(written.clone())).finish();
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")])]);
    tracing::subscriber::with_default(log, || {
        herd.run(1_000);
        let progress = Arc::clone(&herd.facts.nodes()[0].progress);
        (0..2).for_each(|_| progress.begin(crate::ids::WorkerId(0), herd.now.ms, None));
        herd.run(122_000);
    });
    let text: String = lines.drain().map(|line| String::from_utf8(line).unwrap()).collect();
    let named = text.lines().find(|line| line.contains("node is suspect")).expect("a line");
    assert!(named.contains("requests on it are silent") && named.contains(&*herd.facts.nodes()[0].name), "{named}");
}

#[test]
fn when_most_nodes_fall_silent_at_once_routing_keeps_to_them() {
    let script = |_| Script::ollama(&[("a:latest", "d1")]);
    let mut herd = Herd::new((0..4).map(script).collect());
    herd.run(10_000);
    for script in &mut herd.scripts[..3] {
        script.mood = Mood::Hangs;
    }
    herd.run(9_000);
    assert!(herd.last().panicking);
    assert!(!herd.is_up(0), "health says what it saw");
    assert!(herd.facts.nodes().iter().all(|node| node.word.is_open()), "routing does not believe it");
    assert!(herd.model("a:latest").candidates.iter().all(|candidate| candidate.up));
    herd.run(70_000);
    assert!(!herd.last().panicking && !herd.facts.nodes()[0].word.is_open(), "it was them after all");
    assert!(herd.facts.nodes()[3].word.is_open());
}

#[test]
fn when_most_nodes_refuse_they_are_down() {
    let script = |_| Script::ollama(&[("a:latest", "d1")]);
    let mut herd = Herd::new((0..4).map(script).collect());
    herd.run(10_000);
    for script in &mut herd.scripts[..3] {
        script.mood = Mood::Refuses;
    }
    herd.run(3_000);
    assert!(!herd.last().panicking && !herd.facts.nodes()[0].word.is_open());
}

#[test]
fn silent_nodes_that_refuse_in_the_end_are_not_kept_to() {
    let script = |_| Script::ollama(&[("a:latest", "d1")]);
    let mut herd = Herd::new((0..4).map(script).collect());
    herd.run(10_000);
    for script in &mut herd.scripts[..3] {
        script.mood = Mood::Hangs;
    }
    herd.run(10_000);
    assert!(herd.last().panicking && herd.facts.nodes()[0].word.is_open());
    // Their machines are back, their servers are not yet.
    for script in &mut herd.scripts[..3] {
        script.mood = Mood::Refuses;
    }
    herd.run(20_000);
    assert!(!herd.last().panicking && !herd.facts.nodes()[0].word.is_open());
}

#[test]
fn a_node_that_refuses_from_the_start_has_said_no() {
    let mut herd = Herd::new(vec![Script { mood: Mood::Refuses, ..Script::ollama(&[("a:latest", "d1")]) }]);
    herd.run(3_000);
    let health = &herd.facts.nodes()[0].health;
    assert_eq!((health.phase, health.fall), (Phase::Down, crate::fleet::health::Fall::Answered));
}

fn miss(herd: &mut Herd, key: &str) -> tokio::sync::oneshot::Receiver<Sought> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    herd.facts.report(Report::Miss { key: key.into(), reply }, herd.now);
    answer
}

#[test]
fn a_miss_finds_what_was_pulled_a_moment_ago() {
    let mut herd = Herd::new(vec![
        Script::ollama(&[("a:latest", "d1")]),
        Script { mood: Mood::Hangs, ..Script::ollama(&[]) },
        Script::ollama(&[("b:latest", "d2")]),
    ]);
    herd.run(10_000);
    herd.scripts[2].models.push(("new:latest".to_owned(), "d3".to_owned()));
    let (asked, before) = (herd.now.ms, herd.scripts[1].times("/api/tags").len());
    let mut answer = miss(&mut herd, "new:latest");
    herd.run(2);
    assert_eq!(answer.try_recv(), Ok(Sought::Found), "{} ms later", herd.now.ms - asked);
    assert_eq!(herd.model("new:latest").candidates.len(), 1);
    assert_eq!(herd.scripts[1].times("/api/tags").len(), before, "a node that is down is not asked");
}

#[test]
fn what_a_node_was_asked_before_the_miss_does_not_answer_it() {
    let mut herd = Herd::new(vec![Script { delay_ms: 50, ..Script::ollama(&[("a:latest", "d1")]) }]);
    herd.run(10_000);
    // The node has read its disk and is about to say so; the model comes, and a client at once.
    herd.facts.report(Report::Lacks(NodeId(0)), herd.now);
    herd.step();
    herd.scripts[0].models.push(("new:latest".to_owned(), "d3".to_owned()));
    let mut answer = miss(&mut herd, "new:latest");
    herd.run(60);
    assert!(answer.try_recv().is_err(), "the old answer is no news");
    herd.run(60);
    assert_eq!(answer.try_recv(), Ok(Sought::Found));
}

#[test]
fn a_node_that_never_told_what_it_has_may_have_anything() {
    let mute = Script { mood: Mood::OnlyProbes, ..Script::ollama(&[]) };
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")]), mute]);
    herd.run(30_000);
    assert!(herd.is_up(1) && herd.last().incomplete, "it reads its disk at its start");
    herd.scripts[1].mood = Mood::Answers;
    herd.run(25_000);
    assert!(!herd.last().incomplete, "an empty inventory is one");
}

#[test]
fn a_miss_waits_a_second_for_a_hanging_node_and_refreshes_are_rare() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")]), Script::ollama(&[])]);
    herd.run(10_000);
    herd.scripts[1].mood = Mood::OnlyProbes;
    let before = herd.scripts[0].times("/api/tags").len();
    let mut first = miss(&mut herd, "nope:latest");
    herd.run(899);
    assert!(first.try_recv().is_err());
    herd.run(1);
    assert_eq!(first.try_recv(), Ok(Sought::Missing));
    for _ in 0..100 {
        let mut again = miss(&mut herd, "nope:latest");
        herd.run(9);
        assert_eq!(again.try_recv(), Ok(Sought::Missing));
    }
    assert_eq!(herd.scripts[0].times("/api/tags").len(), before + 1);
    let mut known = miss(&mut herd, "a:latest");
    assert_eq!(known.try_recv(), Ok(Sought::Found), "the worker's Snapshot was old");
}

#[test]
fn denials_and_unloads_are_looked_at_at_once() {
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")]), Script::ollama(&[])]);
    herd.run(10_000);
    herd.scripts.iter_mut().for_each(|script| script.asked.clear());
    let ms = herd.now.ms;
    herd.facts.report(Report::Lacks(NodeId(0)), herd.now);
    herd.facts.report(Report::Residency(NodeId(1)), herd.now);
    herd.run(250);
    assert_eq!(herd.scripts[0].times("/api/tags"), [ms]);
    assert!(herd.scripts[1].times("/api/tags").is_empty());
    assert_eq!(herd.scripts[1].times("/api/ps"), [ms + 200], "an unload takes a moment");
}

#[test]
fn whoever_looks_after_a_load_waits_for_its_nodes_word_alone() {
    let hangs = Script { delay_ms: 50, ..Script::ollama(&[("a:latest", "d1")]) };
    let mut herd = Herd::new(vec![Script::ollama(&[("a:latest", "d1")]), hangs]);
    herd.run(10_000);
    let shown = |herd: &mut Herd, number| {
        let (shown, done) = tokio::sync::oneshot::channel();
        herd.facts.report(Report::Shown { number, shown }, herd.now);
        done
    };
    herd.scripts[0].loaded = vec!["a:latest".to_owned()];
    herd.facts.report(Report::Residency(NodeId(0)), herd.now);
    let mut done = shown(&mut herd, 1);
    herd.run(1);
    assert_eq!(done.try_recv(), Ok(()));
    assert_eq!(names(&herd.last().listing.ps, "models", "name"), ["a:latest"]);
    // Once it is shown nobody waits, not even for a generation.
    let generation = herd.last().generation;
    assert_eq!(shown(&mut herd, 1).try_recv(), Ok(()));
    herd.step();
    assert_eq!(herd.last().generation, generation);
    // The other takes its time; what was asked of it before does not count.
    herd.scripts[0].loaded.clear();
    herd.facts.report(Report::Residency(NodeId(1)), herd.now);
    let mut first = shown(&mut herd, 2);
    herd.step();
    herd.facts.report(Report::Residency(NodeId(1)), herd.now);
    herd.facts.report(Report::Residency(NodeId(0)), herd.now);
    let mut all = shown(&mut herd, 4);
    herd.run(49);
    assert!(first.try_recv().is_err());
    herd.run(1);
    assert_eq!(first.try_recv(), Ok(()));
    assert!(all.try_recv().is_err());
    herd.scripts[1].mood = Mood::Refuses;
    herd.facts.report(Report::Refused(NodeId(1)), herd.now);
    herd.step();
    assert_eq!(all.try_recv(), Ok(()), "nothing more is heard of a node that is down");
    assert!(names(&herd.last().listing.ps, "models", "name").is_empty());
}
