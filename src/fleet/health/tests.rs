//! One test per transition, and a property over random histories.

use super::*;
use proptest::prelude::*;

const RULES: Rules = Rules { probe_ms: 2_000, backoff_max_ms: 15_000 };
/// The middle of the range: intervals come out as configured.
const MIDDLE: u32 = 500;

fn go(health: &mut Health, event: Event, now: Millis) -> Effects {
    let (next, effects) = step(health, event, now, &RULES, MIDDLE);
    *health = next;
    effects
}

fn ok(at: Millis) -> Event {
    Event::ProbeOk { asked_at: at }
}

fn failed(at: Millis) -> Event {
    Event::ProbeFailed { asked_at: at, cause: "timed out".into() }
}

fn node_up() -> Health {
    let mut health = Health::new(0);
    go(&mut health, ok(0), 1);
    health
}

#[test]
fn unknown_to_up_by_a_probe() {
    let mut health = Health::new(0);
    let effects = go(&mut health, ok(0), 5);
    assert!(effects.came_up && effects.changed);
    assert_eq!((health.phase, health.since, health.probe_at), (Phase::Up, 5, 2_000));
    assert_eq!(health.recovering_until, 0, "a first start is no recovery");
}

#[test]
fn unknown_to_up_by_a_request() {
    let mut health = Health::new(0);
    assert!(go(&mut health, Event::Reached, 5).came_up);
    assert!(health.is_up());
}

#[test]
fn unknown_to_down_by_one_failure() {
    let mut health = Health::new(0);
    let effects = go(&mut health, failed(0), 2_000);
    assert_eq!(health.phase, Phase::Down);
    assert!(!health.reached);
    assert_eq!(&*effects.log.unwrap().cause, "timed out");
}

/// No file left to ask with, for however long: the node is what it was, and is asked again at its pace.
#[test]
fn what_we_lack_says_nothing_of_a_node() {
    let unasked = |at| Event::Unasked { asked_at: at, cause: "too many open files".into() };
    let mut up = node_up();
    for at in [2_000, 4_000, 6_000, 8_000] {
        assert_eq!(go(&mut up, unasked(at), at), Effects::default());
        assert_eq!((up.is_up(), up.failures, up.probe_at), (true, 0, at + 2_000));
    }
    go(&mut up, failed(10_000), 12_000);
    assert!(up.is_up(), "and one failure is one");
    let mut down = Health::new(0);
    go(&mut down, failed(0), 2_000);
    let failures = down.failures;
    assert_eq!(go(&mut down, unasked(4_000), 4_000), Effects::default());
    assert_eq!((down.phase, down.failures, &*down.cause), (Phase::Down, failures, "too many open files"));
    let mut unknown = Health::new(0);
    go(&mut unknown, unasked(0), 1);
    assert_eq!((unknown.phase, &*unknown.cause), (Phase::Unknown, "too many open files"));
}

#[test]
fn up_to_down_by_two_failed_probes() {
    let mut health = node_up();
    let effects = go(&mut health, failed(2_000), 4_000);
    assert_eq!(effects, Effects::default());
    assert!(health.is_up());
    assert_eq!(health.probe_at, 4_000, "the next probe waits for no second time-out");
    let effects = go(&mut health, failed(4_000), 6_000);
    assert!(effects.changed);
    assert_eq!((health.phase, health.fall), (Phase::Down, Fall::Silent));
}

#[test]
fn a_success_between_two_failures_keeps_it_up() {
    let mut health = node_up();
    for round in 1..10 {
        go(&mut health, failed(round * 4_000), round * 4_000);
        go(&mut health, Event::Reached, round * 4_000 + 1);
    }
    assert!(health.is_up());
}

#[test]
fn up_to_down_by_one_refused_connection() {
    let mut health = node_up();
    let effects = go(&mut health, Event::Refused, 20_000);
    assert!(effects.changed);
    assert_eq!((health.phase, health.fall, health.probe_at), (Phase::Down, Fall::Answered, 22_000));
    assert_eq!(&*health.cause, "connection refused");
}

#[test]
fn a_silent_node_that_refuses_has_said_no_from_then_on() {
    // Fallen from up, and never reached at all.
    for reached in [true, false] {
        let mut health = if reached { node_up() } else { Health::new(0) };
        go(&mut health, failed(2_000), 4_000);
        go(&mut health, failed(4_000), 6_000);
        assert_eq!((health.phase, health.fall), (Phase::Down, Fall::Silent));
        let effects = go(&mut health, Event::Refused, 8_000);
        assert!(effects.changed && effects.log.is_none(), "no state of its own, but routing must know");
        assert_eq!((health.fall, &*health.cause), (Fall::Answered, "connection refused"));
        assert_eq!(Standing::of(&health).fell_silent_at, None, "its network works: it is not us");
        assert_eq!(go(&mut health, Event::Refused, 8_001), Effects::default());
        go(&mut health, Event::Reached, 9_000);
        assert!(!health.is_up(), "what goes on over a connection of before proves nothing");
        go(&mut health, ok(9_500), 9_501);
        assert!(health.is_up());
    }
}

#[test]
fn up_to_down_when_it_is_ourselves_and_never_up_by_that() {
    let mut health = node_up();
    go(&mut health, Event::Ourselves { asked_at: 2_000 }, 2_001);
    assert_eq!(health.phase, Phase::Down);
    assert!(health.cause.contains("herdgate itself"));
    go(&mut health, Event::Ourselves { asked_at: 17_000 }, 17_001);
    assert_eq!((health.phase, health.probe_at), (Phase::Down, 32_000));
}

#[test]
fn down_to_up_by_one_success_and_recovering() {
    let mut health = node_up();
    go(&mut health, Event::Refused, 10_000);
    let effects = go(&mut health, ok(12_000), 12_001);
    assert!(effects.came_up);
    assert_eq!(health.recovering_until, 12_001 + RECOVERING_MS);
    assert!(!go(&mut health, Event::Tick, 42_000).changed);
    assert!(go(&mut health, Event::Tick, 42_001).changed);
    assert_eq!(health.recovering_until, 0);
}

#[test]
fn down_to_down_backs_off_to_fifteen_seconds() {
    let mut health = node_up();
    go(&mut health, Event::Refused, 0);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let at = health.probe_at;
        go(&mut health, failed(at), at);
        pauses.push(health.probe_at - at);
    }
    assert_eq!(pauses, [2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
    let at = health.probe_at;
    go(&mut health, ok(at), at);
    assert_eq!(health.probe_at - at, 2_000);
}

#[test]
fn a_request_that_reaches_it_ends_the_long_pause() {
    for refused in [false, true] {
        let mut health = node_up();
        if refused {
            go(&mut health, Event::Refused, 1);
        } else {
            go(&mut health, failed(1), 1);
            go(&mut health, failed(1), 1);
        }
        long_pause_ends(health, refused);
    }
}

/// A node that was silent is up by that; one that refused is only asked sooner.
fn long_pause_ends(mut health: Health, refused: bool) {
    for _ in 0..6 {
        let at = health.probe_at;
        go(&mut health, failed(at), at);
    }
    let now = health.probe_at - 14_000;
    go(&mut health, Event::Reached, now);
    let phase = if refused { Phase::Down } else { Phase::Up };
    assert_eq!((health.phase, health.probe_at), (phase, now + 2_000));
    // Each chunk of a stream says so again: no later for that.
    go(&mut health, Event::Reached, now + 1_000);
    assert_eq!((health.phase, health.probe_at), (phase, now + 2_000));
}

#[test]
fn streams_of_before_do_not_lift_a_refusal_a_probe_sent_since_does() {
    let mut health = node_up();
    go(&mut health, Event::Refused, 10_000);
    for at in 10_000..10_100 {
        assert_eq!(go(&mut health, Event::Reached, at), Effects::default());
    }
    assert!(!go(&mut health, ok(9_000), 10_100).came_up, "sent before it refused");
    assert_eq!(health.phase, Phase::Down);
    assert!(go(&mut health, ok(11_000), 11_001).came_up);
}

#[test]
fn a_refusal_of_a_node_that_is_down_moves_nothing() {
    let mut health = node_up();
    go(&mut health, Event::Refused, 0);
    let before = health.clone();
    assert_eq!(go(&mut health, Event::Refused, 1_000), Effects::default());
    assert_eq!(health, before);
}

#[test]
fn suspicion_keeps_it_up_and_a_fall_forgets_it() {
    let mut health = node_up();
    assert!(go(&mut health, Event::Suspicion(true), 130_000).changed);
    assert!(health.is_up() && health.suspect);
    assert_eq!(go(&mut health, Event::Suspicion(true), 131_000), Effects::default());
    go(&mut health, Event::Refused, 132_000);
    assert!(!health.suspect);
    assert_eq!(go(&mut health, Event::Suspicion(true), 133_000), Effects::default());
    assert!(!health.suspect);
}

#[test]
fn one_line_in_ten_seconds_and_the_last_state_is_told() {
    let mut health = Health::new(0);
    assert!(go(&mut health, ok(0), 0).log.is_some());
    assert!(go(&mut health, Event::Refused, 1_000).log.is_none());
    assert!(go(&mut health, ok(3_000), 3_000).log.is_none());
    assert!(go(&mut health, Event::Refused, 4_000).log.is_none());
    assert!(go(&mut health, Event::Tick, 9_999).log.is_none());
    let line = go(&mut health, Event::Tick, 10_000).log.unwrap();
    assert_eq!((line.phase, line.unlogged), (Phase::Down, 2));
    assert!(go(&mut health, Event::Tick, 30_000).log.is_none(), "nothing new to say");
}

#[test]
fn jitter_moves_an_interval_by_a_tenth() {
    assert_eq!([jittered(2_000, 0), jittered(2_000, 500), jittered(2_000, 1_000)], [1_800, 2_000, 2_200]);
}

fn standing(up: bool, fell: Option<Millis>) -> Standing {
    Standing { up, fell_silent_at: fell }
}

fn panics(was: bool, falls: &[Option<Millis>], now: Millis) -> bool {
    let nodes: Vec<_> = falls.iter().map(|&fell| standing(fell.is_none(), fell)).collect();
    panicking(was, &nodes, now, 4_000, 60_000, 50)
}

#[test]
fn panic_needs_more_than_half_of_four_or_more() {
    let at = Some(10_000);
    assert!(!panics(false, &[at, at, at], 10_000), "three nodes are too few to tell");
    assert!(!panics(false, &[at, at, None, None], 10_000), "half is not more than half");
    assert!(panics(false, &[at, at, at, None], 10_000));
    assert!(panics(false, &[at, at, at, at], 10_000));
}

#[test]
fn panic_needs_falls_within_one_interval() {
    assert!(!panics(false, &[Some(1_000), Some(10_000), Some(20_000), None], 20_000));
    assert!(panics(false, &[Some(7_000), Some(8_000), Some(10_000), None], 10_500));
}

#[test]
fn panic_ends_when_they_return_or_stay_away() {
    let at = Some(10_000);
    assert!(panics(true, &[at, at, at, None], 69_999));
    assert!(!panics(true, &[at, at, at, None], 70_000));
    assert!(!panics(true, &[at, at, None, None], 20_000));
    assert!(panics(true, &[Some(1_000), Some(10_000), Some(20_000), None], 21_000), "it was panic, it is not over");
}

#[test]
fn a_refusal_is_no_silence() {
    let mut health = node_up();
    go(&mut health, Event::Refused, 5_000);
    assert_eq!(Standing::of(&health), standing(false, None));
    let mut never = Health::new(0);
    go(&mut never, failed(0), 2_000);
    assert_eq!(Standing::of(&never), standing(false, None), "a node never reached did not fall");
}

fn events() -> impl Strategy<Value = (Event, Millis)> {
    let kinds = prop_oneof![
        Just(ok(0)),
        Just(failed(0)),
        Just(Event::Refused),
        Just(Event::Reached),
        any::<bool>().prop_map(Event::Suspicion),
        Just(Event::Tick),
    ];
    (kinds, 1..6_000u64)
}

proptest! {
    /// Properties: (1) a suspect or recovering node is up; (2) `changed` exactly when phase, suspicion or recovery
    /// differ; (3) two lines are 10 s apart; (4) the next probe lies between now and 1.1 back-offs ahead;
    /// (5) coming up is told exactly when the phase becomes Up.
    #[test]
    fn any_history_keeps_the_rules(history in proptest::collection::vec((events(), 0..=1_000u32), 1..200)) {
        let (mut health, mut now, mut last_line) = (Health::new(0), 0, None::<Millis>);
        for ((event, gap), jitter) in history {
            now += gap;
            let event = match event {
                Event::ProbeOk { .. } => ok(now),
                Event::ProbeFailed { .. } => failed(now - gap.min(2_000)),
                other => other,
            };
            let probed = matches!(event, Event::ProbeOk { .. } | Event::ProbeFailed { .. });
            let (next, effects) = step(&health, event, now, &RULES, jitter);
            prop_assert!(next.is_up() || (!next.suspect && next.recovering_until == 0));
            let differs = (health.phase, health.fall, health.suspect, health.recovering_until)
                != (next.phase, next.fall, next.suspect, next.recovering_until);
            prop_assert_eq!(effects.changed, differs);
            prop_assert_eq!(effects.came_up, next.is_up() && !health.is_up());
            if effects.log.is_some() {
                prop_assert!(last_line.is_none_or(|at| now - at >= LOG_EVERY_MS));
                last_line = Some(now);
            }
            if probed {
                prop_assert!(next.probe_at >= now && next.probe_at <= now + 16_500);
            }
            health = next;
        }
    }
}
