//! The scheduler's rules, one by one, on a clock that the tests hold.

use super::*;

fn limits() -> Limits {
    Limits {
        max_loaded: 2,
        max_queue: 2,
        memory: 0,
        keep_alive: Some(Duration::from_secs(300)),
        unload_time: Duration::ZERO,
    }
}

fn ask(model: &str) -> Ask {
    Ask {
        weights: model.into(),
        name: model.into(),
        digest: model.into(),
        size: 1,
        slots: 1,
        launch: Launch::automatic(4096),
        keep_alive: None,
        load_time: Duration::from_secs(1),
        load_fails: None,
        wants_slot: true,
    }
}

fn s(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ticket(answer: &Answer) -> Ticket {
    match answer {
        Answer::Wait(ticket) => *ticket,
        Answer::Ready(grant) => grant.ticket,
        Answer::Busy => panic!("busy"),
    }
}

/// Tickets granted since the last look.
fn granted(sched: &mut Sched) -> Vec<Ticket> {
    std::mem::take(&mut sched.events).into_iter().filter_map(|(t, a)| a.is_ok().then_some(t)).collect()
}

fn notes(sched: &mut Sched) -> Vec<(String, Note)> {
    std::mem::take(&mut sched.notes).into_iter().map(|(n, note)| (n.to_string(), note)).collect()
}

fn names(sched: &Sched) -> Vec<String> {
    sched.loaded().map(|r| r.name.to_string()).collect()
}

#[test]
fn a_load_takes_its_time_and_shows_only_when_done() {
    let mut sched = Sched::new(limits());
    let first = ticket(&sched.ask(s(0), ask("a")));
    assert!(names(&sched).is_empty());
    assert_eq!(sched.next_deadline(), Some(s(1)));
    sched.advance(s(1));
    assert_eq!(granted(&mut sched), [first]);
    assert_eq!(names(&sched), ["a"]);
}

#[test]
fn slots_are_first_come_first_served_without_bound() {
    let mut sched = Sched::new(limits());
    let a = ticket(&sched.ask(s(0), ask("a")));
    sched.advance(s(1));
    assert_eq!(granted(&mut sched), [a]);
    let waiting: Vec<Ticket> = (0..600).map(|_| ticket(&sched.ask(s(1), ask("a")))).collect();
    assert!(granted(&mut sched).is_empty());
    assert_eq!(sched.waiting(), 600);
    sched.done(s(2), a);
    assert_eq!(granted(&mut sched), [waiting[0]]);
    sched.cancel(s(2), waiting[1]);
    sched.done(s(2), waiting[0]);
    assert_eq!(granted(&mut sched), [waiting[2]]);
}

#[test]
fn the_queue_is_bounded_when_cold_only() {
    let mut sched = Sched::new(limits());
    for _ in 0..3 {
        assert!(matches!(sched.ask(s(0), ask("a")), Answer::Wait(_)), "one served, two queued");
    }
    assert_eq!(sched.ask(s(0), ask("a")), Answer::Busy);
    sched.advance(s(1));
    assert!(matches!(sched.ask(s(1), ask("a")), Answer::Wait(_)), "loaded: bypasses the queue");
}

#[test]
fn the_loading_client_takes_the_load_with_it() {
    let mut sched = Sched::new(limits());
    let first = ticket(&sched.ask(s(0), ask("a")));
    let second = ticket(&sched.ask(s(0), ask("a")));
    sched.advance(Duration::from_millis(900));
    assert_eq!(sched.cancel(Duration::from_millis(900), first), Cancel::Aborted);
    assert_eq!(notes(&mut sched), [("a".to_owned(), Note::LoadAborted)]);
    sched.advance(s(1));
    assert!(granted(&mut sched).is_empty(), "the next one starts from zero");
    sched.advance(Duration::from_millis(1900));
    assert_eq!(granted(&mut sched), [second]);
}

#[test]
fn a_cancelled_queued_request_is_lost_and_skipped() {
    let mut sched = Sched::new(limits());
    let first = ticket(&sched.ask(s(0), ask("a")));
    let second = ticket(&sched.ask(s(0), ask("b")));
    assert_eq!(sched.cancel(s(0), second), Cancel::Lost);
    sched.advance(s(1));
    assert_eq!(granted(&mut sched), [first]);
    assert_eq!(sched.pending(), 0);
    assert_eq!(names(&sched), ["a"]);
}

#[test]
fn the_shortest_keep_alive_goes_first_and_busy_ones_drain() {
    let mut sched = Sched::new(limits());
    let a = ticket(&sched.ask(s(0), ask("a")));
    sched.advance(s(1));
    sched.done(s(1), a);
    let short = Ask { keep_alive: Some(Some(s(10))), ..ask("b") };
    let b = ticket(&sched.ask(s(1), short));
    sched.advance(s(2));
    sched.done(s(2), b);
    granted(&mut sched);
    let c = ticket(&sched.ask(s(3), ask("c")));
    assert!(notes(&mut sched).contains(&("b".to_owned(), Note::Eviction)));
    sched.advance(s(4));
    assert_eq!(granted(&mut sched), [c]);
    let a = ticket(&sched.ask(s(4), ask("a")));
    granted(&mut sched);
    let d = ticket(&sched.ask(s(4), ask("d")));
    sched.advance(s(9));
    assert!(granted(&mut sched).is_empty(), "all are busy: it waits");
    sched.done(s(9), a);
    assert_eq!(names(&sched), ["c"]);
    sched.advance(s(10));
    assert_eq!(granted(&mut sched), [d]);
}

#[test]
fn memory_evicts_too() {
    let mut sched = Sched::new(Limits { memory: 10, ..limits() });
    let a = ticket(&sched.ask(s(0), Ask { size: 6, ..ask("a") }));
    sched.advance(s(1));
    sched.done(s(1), a);
    sched.ask(s(1), Ask { size: 6, ..ask("b") });
    sched.advance(s(2));
    assert_eq!(names(&sched), ["b"]);
}

#[test]
fn idle_models_go_and_ps_is_stale_while_they_are_busy() {
    let mut sched = Sched::new(limits());
    let a = ticket(&sched.ask(s(0), ask("a")));
    sched.advance(s(1));
    assert_eq!(sched.loaded().next().unwrap().expires, Some(s(301)));
    sched.advance(s(400));
    assert_eq!(names(&sched), ["a"], "busy: the timer does not run");
    assert_eq!(sched.loaded().next().unwrap().expires, Some(s(301)), "and what shows lies in the past");
    sched.done(s(400), a);
    assert_eq!(sched.next_deadline(), Some(s(700)));
    sched.advance(s(700));
    assert!(names(&sched).is_empty());
    assert!(notes(&mut sched).contains(&("a".to_owned(), Note::Unload)));
}

#[test]
fn keep_alive_zero_and_for_ever() {
    let mut sched = Sched::new(limits());
    let a = ticket(&sched.ask(s(0), Ask { keep_alive: Some(Some(Duration::ZERO)), ..ask("a") }));
    sched.advance(s(1));
    sched.done(s(1), a);
    assert!(names(&sched).is_empty());
    let a = ticket(&sched.ask(s(2), Ask { keep_alive: Some(None), ..ask("a") }));
    sched.advance(s(3));
    sched.done(s(3), a);
    assert_eq!(sched.next_deadline(), None);
}

#[test]
fn unload_waits_for_the_busy() {
    let mut sched = Sched::new(limits());
    let a = ticket(&sched.ask(s(0), ask("a")));
    sched.advance(s(1));
    sched.unload(s(1), "a");
    assert_eq!(names(&sched), ["a"]);
    sched.done(s(2), a);
    assert!(names(&sched).is_empty());
    sched.unload(s(2), "a");
}

#[test]
fn another_context_reloads_after_the_drain() {
    let mut sched = Sched::new(limits());
    let a = ticket(&sched.ask(s(0), ask("a")));
    sched.advance(s(1));
    granted(&mut sched);
    let other = Ask { launch: Launch::automatic(8192), ..ask("a") };
    let b = ticket(&sched.ask(s(1), other));
    let behind = ticket(&sched.ask(s(1), ask("c")));
    sched.advance(s(5));
    assert!(granted(&mut sched).is_empty(), "waits for the one in flight, and blocks the other load");
    sched.done(s(5), a);
    assert!(notes(&mut sched).contains(&("a".to_owned(), Note::Reload)));
    sched.advance(s(6));
    assert_eq!(granted(&mut sched), [b]);
    sched.advance(s(7));
    assert_eq!(granted(&mut sched), [behind]);
    assert_eq!(sched.loaded().next().unwrap().launch.num_ctx, 8192);
}

#[test]
fn a_dead_runner_tells_those_that_wait() {
    let mut sched = Sched::new(limits());
    let a = ticket(&sched.ask(s(0), ask("a")));
    sched.advance(s(1));
    granted(&mut sched);
    let b = ticket(&sched.ask(s(1), ask("a")));
    let runner = sched.loaded().next().unwrap().id;
    sched.kill(s(1), runner);
    assert!(!sched.lives(runner));
    assert_eq!(std::mem::take(&mut sched.events), [(b, Err(Refusal::RunnerGone))]);
    sched.done(s(1), a);
    assert!(names(&sched).is_empty());
}

#[test]
fn a_failed_load_leaves_nothing() {
    let mut sched = Sched::new(limits());
    let fails = Ask { load_fails: Some("killed".to_owned()), ..ask("a") };
    let a = ticket(&sched.ask(s(0), fails));
    sched.advance(s(1));
    let events = std::mem::take(&mut sched.events);
    assert_eq!(events, [(a, Err(Refusal::LoadFailed("killed".to_owned())))]);
    assert!(names(&sched).is_empty());
    assert!(sched.is_cold("a"));
}
