//! The ledger as a whole, without threads unless a test says so: the test is the ledger thread and the store thread,
//! time is a manual clock, the disk is a double that fails as told or LMDB in a temporary directory.
//!
//! Properties held here: I3 (sums by node = by model = by key = events), I4 (an event's minute is the one it ended in),
//! I8 (bounds), I11 (a clean end loses nothing, a kill at most one tick), and the rules of `src/usage/ledger.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a test that cannot go on fails")]

#[path = "ledger/fixture.rs"]
mod fixture;
#[path = "ledger/folding.rs"]
mod folding;
#[path = "ledger/lost.rs"]
mod lost;
#[path = "ledger/migrating.rs"]
mod migrating;
#[path = "ledger/model.rs"]
mod model;
#[path = "ledger/process.rs"]
mod process;
#[path = "support/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::path::Path;

use herdgate::clock::Clock;
use herdgate::ids::{KeyId, ModelId, NodeId, UnixMinute};
use herdgate::usage::answers::{Bucket, NamedRow, Span, StoreState};
use herdgate::usage::core::Command;
use herdgate::usage::ledger::{LedgerError, opener};
use herdgate::usage::names::Names;
use herdgate::usage::series::Row;
use herdgate::usage::store::{LmdbStore, Read, Store, Table, Writes};
use herdgate::usage::writer::Ask;
use herdgate::usage::{Count, Ending, Outcome, Rejection, Tokens};
use store::{Disk, Fault, Rig};

/// 2026-03-01 12:00:00 UTC.
const NOON: u64 = 1_772_366_400_000;

fn names() -> Names {
    let names = Names::new(&["http://a:11434", "b"], &["ops", "web"], 100);
    for model in ["llama3:latest", "qwen:7b"] {
        let _ = names.model(model);
    }
    names
}

fn tokens(input: u64, output: u64) -> Tokens {
    Tokens { input, cached: 0, output }
}

/// A completed request of three prompt tokens and five generated ones, ended now.
fn outcome(clock: &Clock) -> Outcome {
    Outcome {
        minute: clock.minute(),
        node: NodeId(0),
        model: ModelId(2),
        key: KeyId::NONE,
        ending: Ending::Completed,
        status: 200,
        count: Count::Exact(tokens(3, 5)),
        load_ns: 1,
        prompt_eval_ns: 2,
        eval_ns: 3,
        queue_us: 4,
        first_byte_us: 5,
        total_us: 6,
    }
}

fn rows(rig: &mut Rig, span: Span) -> Vec<NamedRow> {
    rig.call(|reply| Command::Ask(Ask::Rows(span, reply))).unwrap()
}

const MINUTES: Span = Span::Minutes(UnixMinute(0), UnixMinute(u32::MAX));
const DAYS: Span = Span::Days(herdgate::ids::UnixDay(0), herdgate::ids::UnixDay(u32::MAX));

/// Requests per minute.
fn requests_by_minute(rig: &mut Rig) -> BTreeMap<u32, u64> {
    let mut requests = BTreeMap::new();
    for row in rows(rig, MINUTES) {
        let Bucket::Minute(minute) = row.bucket else { panic!("not a minute: {row:?}") };
        *requests.entry(minute.0).or_default() += row.row.requests_total();
    }
    requests
}

fn total(rig: &mut Rig) -> Row {
    let mut sum = Row::default();
    for row in rows(rig, Span::Totals) {
        sum.merge(&row.row);
    }
    sum
}

fn lmdb(dir: &Path) -> herdgate::usage::writer::Opener {
    opener(Some(dir.to_owned()))
}

#[test]
fn i4_events_queued_across_a_minute_boundary_stay_in_their_minute() {
    let clock = Clock::manual(NOON + 59_950);
    let mut rig = Rig::start(Disk::default().opener(), names(), &clock);
    let first = clock.minute();
    // Twenty events on each side of the boundary, 5 ms apart, on both rings; nothing is drained meanwhile.
    for event in 0..40 {
        rig.record(event % 2, &outcome(&clock));
        clock.advance(5);
        if event == 9 {
            // Seen by the ledger in the second minute only.
            assert_eq!(clock.minute().0, first.0 + 1);
        }
    }
    clock.advance(60_000);
    let expected = BTreeMap::from([(first.0, 10), (first.0 + 1, 30)]);
    assert_eq!(requests_by_minute(&mut rig), expected, "before the commit");
    rig.flush().unwrap();
    assert_eq!(requests_by_minute(&mut rig), expected, "after it");
}

#[test]
fn i4_a_batch_does_not_straddle_by_delay() {
    let clock = Clock::manual(NOON + 59_000);
    let mut rig = Rig::start(Disk::default().opener(), names(), &clock);
    let mut expected: BTreeMap<u32, u64> = BTreeMap::new();
    for event in 0..600_u64 {
        *expected.entry(clock.minute().0).or_default() += 1;
        rig.record(0, &outcome(&clock));
        clock.advance(500);
        // The store falls behind for minutes at a time.
        rig.step();
        if event % 250 == 249 {
            rig.serve();
        }
    }
    rig.serve();
    rig.flush().unwrap();
    assert_eq!(requests_by_minute(&mut rig), expected);
    assert_eq!(expected.len(), 6);
}

#[test]
fn a_restart_within_a_minute_keeps_what_was_there() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    for _ in 0..3 {
        let mut rig = Rig::start(disk.opener(), names(), &clock);
        rig.record(0, &outcome(&clock));
        rig.tick();
        rig.record(1, &outcome(&clock));
        rig.shutdown().unwrap();
        clock.advance(1000);
    }
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    assert_eq!(requests_by_minute(&mut rig), BTreeMap::from([(clock.minute().0, 6)]));
    assert_eq!(total(&mut rig).exact, tokens(18, 30));
    let base = rig.shown.base.load_full();
    assert_eq!((base.len(), base[0].tokens()), (1, tokens(18, 30)), "the base of /api/usage");
    let row = rows(&mut rig, MINUTES)[0].row;
    assert_eq!((row.load_ns, row.prompt_eval_ns, row.eval_ns), (6, 12, 18), "GPU time of six requests");
    assert_eq!((row.queue_us, row.first_byte_us, row.first_bytes), (24, 30, 6), "and what their clients waited");
}

#[test]
fn a_clock_step_overwrites_nothing() {
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(Disk::default().opener(), names(), &clock);
    let start = clock.minute().0;
    let mut expected: BTreeMap<u32, u64> = BTreeMap::new();
    for step_minutes in [0, 1, -1, 30, -30, 0, -1, 2, 61, -61] {
        clock.step_utc(step_minutes * 60_000);
        *expected.entry(clock.minute().0).or_default() += 1;
        rig.record(0, &outcome(&clock));
        rig.tick();
        // Long enough for every row to be forgotten, so that the next touch reads the store.
        for _ in 0..3 {
            clock.advance(100_000);
            clock.step_utc(-100_000);
            rig.tick();
            clock.step_utc(-100);
        }
        clock.step_utc(-100);
    }
    assert_eq!(requests_by_minute(&mut rig), expected);
    assert_eq!(total(&mut rig).requests_total(), 10);
    let far: Vec<bool> = rows(&mut rig, MINUTES).iter().map(|row| row.row.far).collect();
    let newest = expected.keys().max().unwrap();
    assert!(far.iter().any(|far| *far) && *newest > start + 61, "{far:?}");
}

#[test]
fn a_minute_far_from_the_newest_stored_is_flagged_over_a_restart() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.shutdown().unwrap();
    clock.step_utc(-2 * 3_600_000);
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.flush().unwrap();
    assert_eq!(rows(&mut rig, MINUTES).iter().map(|row| row.row.far).collect::<Vec<_>>(), [true, false]);
    assert_eq!(rig.health().minutes_far, 1);
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    for _ in 0..100 {
        rig.record(0, &outcome(&clock));
    }
    rig.tick();
    rig.tick();
    let after_one = disk.tried();
    assert_eq!((after_one.0, rig.health().commits), (1, 1));
    // Two names (node, model), one pair, the minute twice, the total.
    assert_eq!(after_one.1, 6);
    for _ in 0..5000 {
        rig.tick();
    }
    rig.flush().unwrap();
    assert_eq!(disk.tried(), after_one);
    assert_eq!(rig.health().rows, 0, "rows that the store has are forgotten");
}

#[test]
fn answers_include_what_is_not_written_yet() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.flush().unwrap();
    rig.record(0, &outcome(&clock));
    rig.record(1, &Outcome { model: ModelId(3), node: NodeId(1), key: KeyId(2), ..outcome(&clock) });
    disk.plan(&[Fault::Fails; 3]);
    let counts = rig.call(|reply| Command::Ask(Ask::TokenCounts(reply))).unwrap();
    let shown: Vec<_> = counts.iter().map(|count| (&*count.node, &*count.model, count.tokens())).collect();
    let expected = [("http://a:11434", "llama3:latest", tokens(6, 10)), ("b", "qwen:7b", tokens(3, 5))];
    assert_eq!(shown, expected, "in order of first sight");
    let stats = rig.call(|reply| Command::Ask(Ask::Stats("qwen:7b".into(), reply))).unwrap();
    assert_eq!((stats.totals, stats.series.len()), (Some(tokens(3, 5)), 1));
}

#[test]
fn token_counts_stand_in_order_of_first_sight_and_know_earlier_nodes() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let rig = Rig::start(disk.opener(), names(), &clock);
    // A request without tokens is no token record.
    rig.record(0, &Outcome { node: NodeId(0), count: Count::Nothing, ..outcome(&clock) });
    rig.record(0, &Outcome { node: NodeId(1), count: Count::Estimated(tokens(1, 1)), ..outcome(&clock) });
    rig.shutdown().unwrap();
    // The configuration changed: b is gone, a comes second, the models were seen in another order.
    let other = Names::new(&["c", "http://a:11434"], &[], 100);
    let (qwen, llama) = (other.model("qwen:7b"), other.model("llama3:latest"));
    let mut rig = Rig::start(disk.opener(), other, &clock);
    rig.record(0, &Outcome { node: NodeId(1), model: llama, ..outcome(&clock) });
    rig.record(0, &Outcome { node: NodeId(0), model: qwen, ..outcome(&clock) });
    let counts = rig.call(|reply| Command::Ask(Ask::TokenCounts(reply))).unwrap();
    let shown: Vec<_> = counts.iter().map(|count| (&*count.node, &*count.model, count.tokens().total())).collect();
    assert_eq!(shown, [("b", "llama3:latest", 2), ("http://a:11434", "llama3:latest", 8), ("c", "qwen:7b", 8)]);
    assert_eq!((counts[0].exact, counts[0].estimated), (tokens(0, 0), tokens(1, 1)));
}

#[test]
fn stats_have_one_point_per_minute_and_node_newest_first() {
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(Disk::default().opener(), names(), &clock);
    for _ in 0..3 {
        for (node, key) in [(0, 0), (0, 1), (1, 2), (0, 2)] {
            rig.record(0, &Outcome { node: NodeId(node), key: KeyId(key), ..outcome(&clock) });
        }
        rig.record(0, &Outcome { node: NodeId(1), model: ModelId(3), ..outcome(&clock) });
        let refused = Ending::Rejected(Rejection::NoNode);
        rig.record(0, &Outcome { node: NodeId::NONE, ending: refused, count: Count::Nothing, ..outcome(&clock) });
        rig.tick();
        clock.advance(60_000);
    }
    let stats = rig.call(|reply| Command::Ask(Ask::Stats("llama3:latest".into(), reply))).unwrap();
    assert_eq!(stats.totals, Some(tokens(36, 60)));
    let points: Vec<_> =
        stats.series.iter().map(|point| (point.minute.0, &*point.node, point.tokens.total())).collect();
    let first = UnixMinute::of_unix_ms(NOON).0;
    let expected: Vec<_> =
        (first..first + 3).rev().flat_map(|minute| [(minute, "b", 8), (minute, "http://a:11434", 24)]).collect();
    assert_eq!(points, expected);
    assert_eq!(stats.distribution, [("b".into(), 24), ("http://a:11434".into(), 72)]);
    let unknown = rig.call(|reply| Command::Ask(Ask::Stats("llama3".into(), reply))).unwrap();
    assert_eq!((unknown.totals, unknown.series.len(), unknown.distribution.len()), (None, 0, 0));
    // The rejected ones are there, under their own names.
    let rejected: Vec<_> = rows(&mut rig, Span::Totals).into_iter().filter(|row| row.row.requests[4] > 0).collect();
    assert_eq!(rejected.len(), 1);
    assert_eq!((&*rejected[0].node, &*rejected[0].key, rejected[0].row.requests[4]), ("_none", "_none", 3));
}

#[test]
fn shared_names_have_rows_of_their_own() {
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(Disk::default().opener(), names(), &clock);
    rig.record(0, &Outcome { model: ModelId::OTHER, ..outcome(&clock) });
    rig.record(0, &Outcome { model: ModelId::UNKNOWN, count: Count::Nothing, ..outcome(&clock) });
    let other = rig.call(|reply| Command::Ask(Ask::Stats("_other".into(), reply))).unwrap();
    assert_eq!(other.totals, Some(tokens(3, 5)));
    let models: Vec<_> = rows(&mut rig, Span::Totals).iter().map(|row| row.model.clone()).collect();
    assert_eq!(models, ["_unknown".into(), "_other".into()]);
}

#[test]
fn a_failing_disk_keeps_rows_in_memory_and_says_so() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.flush().unwrap();
    disk.plan(&[Fault::Fails; 50]);
    let since = clock.now();
    for _ in 0..40 {
        rig.record(1, &outcome(&clock));
        rig.tick();
    }
    let failed = rig.flush().unwrap_err();
    assert!(matches!(&failed, LedgerError::Unavailable { reason } if reason.contains("no space left")), "{failed}");
    let health = rig.health();
    assert_eq!((health.store, health.degraded()), (StoreState::Failing, true));
    assert!(health.last_error.as_deref().is_some_and(|error| error.contains("no space left")));
    assert!(health.unwritten_age(clock.now()) >= clock.now() - since - 200, "{health:?}");
    // Tried once a second, not each tick.
    assert!(health.commits_failed <= 7, "{health:?}");
    disk.heal();
    clock.advance(1000);
    // It is opened again first, in case it broke.
    for _ in 0..3 {
        rig.tick();
    }
    let health = rig.health();
    assert_eq!((health.store, health.oldest_unwritten, health.rows_unwritten), (StoreState::Open, None, 0));
    assert_eq!(total(&mut rig).requests_total(), 41);
}

#[test]
fn i3_a_commit_that_was_stored_but_reported_as_failed_counts_once() {
    for fault in [Fault::StoredButFails, Fault::Fails, Fault::Breaks, Fault::Panics] {
        let (disk, clock) = (Disk::default(), Clock::manual(NOON));
        let mut rig = Rig::start(disk.opener(), names(), &clock);
        disk.plan(&[fault, fault]);
        for _ in 0..30 {
            rig.record(0, &outcome(&clock));
            rig.tick();
        }
        clock.advance(1000);
        rig.flush().unwrap();
        assert_eq!(total(&mut rig).requests_total(), 30, "{fault:?}");
        assert_eq!(rig.health().commits_failed, 2, "{fault:?}");
        rig.shutdown().unwrap();
        let mut rig = Rig::start(disk.opener(), names(), &clock);
        assert_eq!(requests_by_minute(&mut rig).values().sum::<u64>(), 30, "{fault:?}");
    }
}

#[test]
fn a_stalled_disk_delays_answers_but_not_the_fold() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.step();
    // The batch is with the store thread, which hangs.
    let mut flush = rig.send(Command::Flush);
    let mut ask = rig.send(|reply| Command::Ask(Ask::TokenCounts(reply)));
    for _ in 0..60 {
        rig.record(1, &outcome(&clock));
        clock.advance(100);
        rig.step();
    }
    assert_eq!(flush.try_recv(), Ok(Err(LedgerError::Busy)));
    assert_eq!(ask.try_recv(), Ok(Err(LedgerError::Busy)));
    let health = rig.health();
    assert_eq!((health.events, disk.tried().0), (61, 0), "folded on, with one batch out");
    assert!(health.unwritten_age(clock.now()) >= 6000);
    assert_eq!((health.store, health.degraded()), (StoreState::Stalled, true), "no error, and not well");
    rig.serve();
    rig.flush().unwrap();
    assert_eq!((rig.health().store, rig.health().degraded()), (StoreState::Open, false));
    assert_eq!((total(&mut rig).requests_total(), disk.tried().0), (61, 2));
}

#[test]
fn a_store_that_cannot_be_had_is_taken_later_and_added_to() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.shutdown().unwrap();
    disk.refuse(Some(LedgerError::Unavailable { reason: "read-only file system".into() }));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    assert_eq!(rig.health().store, StoreState::Absent);
    for _ in 0..30 {
        rig.record(0, &outcome(&clock));
        rig.tick();
    }
    assert_eq!(total(&mut rig).requests_total(), 30, "memory answers meanwhile, without what is in the store");
    assert!(rig.shown.base.load().is_empty());
    disk.refuse(None);
    clock.advance(1000);
    rig.tick();
    rig.tick();
    assert_eq!(rig.health().store, StoreState::Open);
    assert_eq!(total(&mut rig).requests_total(), 31);
    assert_eq!(requests_by_minute(&mut rig).values().sum::<u64>(), 31);
    assert_eq!(rig.shown.base.load()[0].tokens(), tokens(3, 5), "the base is what the store had before us");
}

#[test]
fn an_idle_ledger_takes_the_store_too() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    disk.refuse(Some(LedgerError::Held { path: "elsewhere".into() }));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    for _ in 0..20 {
        rig.tick();
    }
    disk.refuse(None);
    clock.advance(1000);
    rig.tick();
    rig.tick();
    assert_eq!(rig.health().store, StoreState::Open);
    assert_eq!(disk.tried().0, 0, "nothing changed, nothing is written");
}

#[test]
fn i8_memory_is_bounded_while_no_store_can_be_had_and_sums_stay_exact() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    disk.refuse(Some(LedgerError::Unavailable { reason: "no space left on device".into() }));
    let mut rig = Rig::start_with(disk.opener(), names(), &clock, |links| links.rows_max = 100);
    for event in 0..3000 {
        let (node, model) = (NodeId(event % 2), ModelId(2 + event % 3));
        rig.record(0, &Outcome { node, model, ..outcome(&clock) });
        rig.tick();
        clock.advance(20_000);
    }
    let health = rig.health();
    assert!(health.rows <= 100 && health.minutes_folded_early > 500, "{health:?}");
    assert_eq!((health.events, health.events_lost), (3000, 0));
    assert!(health.unwritten_age(clock.now()) + 100 >= clock.now(), "as old as the first of them: {health:?}");
    // A flush asked for before rows moved to their day waits for them there.
    disk.refuse(None);
    clock.advance(1000);
    rig.flush().unwrap();
    rig.shutdown().unwrap();
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    let kept: u64 = rows(&mut rig, DAYS).iter().map(|row| row.row.requests_total()).sum();
    let minutes: u64 = requests_by_minute(&mut rig).values().sum();
    assert_eq!((kept + minutes, total(&mut rig).requests_total()), (3000, 3000));
    assert_eq!(total(&mut rig).exact, tokens(9000, 15_000));
}

#[test]
fn i11_a_clean_end_loses_nothing_even_without_power() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    for event in 0..500 {
        rig.record(event % 2, &outcome(&clock));
        if event % 50 == 0 {
            rig.tick();
        }
    }
    // In the middle of a failing spell, with a batch out.
    disk.plan(&[Fault::Fails, Fault::StoredButFails]);
    rig.step();
    rig.record(0, &outcome(&clock));
    rig.shutdown().unwrap();
    disk.lose_power();
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    assert_eq!(total(&mut rig).requests_total(), 501);
}

#[test]
fn the_end_gives_up_on_a_dead_disk_and_says_so() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    disk.plan(&[Fault::Fails; 100]);
    let rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    assert!(matches!(rig.shutdown(), Err(LedgerError::Unavailable { .. })));
    assert_eq!(disk.tried().0, 5);
}

#[test]
fn a_full_map_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let mut store = LmdbStore::open_with_map(&path, 1 << 20, 1 << 20).unwrap();
    for round in 0..20_u32 {
        let mut writes = Writes::default();
        for row in 0..1000_u32 {
            writes.put(Table::MinutesByTime, &[round.to_be_bytes(), row.to_be_bytes()].concat(), &[7; 138]);
        }
        store.commit(&writes).unwrap();
    }
    assert!(store.map_bytes() >= 4 << 20, "{}", store.map_bytes());
    let mut seen = 0;
    let everything = (&[][..], &[0xff; 16][..]);
    let order = herdgate::usage::store::Order::Ascending;
    store
        .scan(Table::MinutesByTime, everything.0, everything.1, order, &mut |_, value| {
            assert_eq!(value, [7; 138]);
            seen += 1;
            true
        })
        .unwrap();
    assert_eq!(seen, 20_000);
    drop(store);
    // A later start with the small map again sees it all: LMDB takes the larger of both.
    let store = LmdbStore::open_with_map(&path, 1 << 20, 1 << 20).unwrap();
    let mut found = 0;
    let key = herdgate::usage::store::Key::new(&[19_u32.to_be_bytes(), 999_u32.to_be_bytes()].concat());
    store.get_many(&[(Table::MinutesByTime, key)], &mut |_, _| found += 1).unwrap();
    assert_eq!(found, 1);
}

#[test]
fn a_store_that_is_opened_again_was_held_all_the_while() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = herdgate::usage::ledger::opener(Some(dir.path().to_owned()));
    let path = dir.path().join("ledger");
    drop(open().unwrap());
    assert!(matches!(LmdbStore::open(&path), Err(LedgerError::Held { .. })), "between the two openings");
    let again = open().unwrap();
    assert!(matches!(LmdbStore::open(&path), Err(LedgerError::Held { .. })));
    drop((again, open));
    assert!(LmdbStore::open(&path).is_ok());
}

#[test]
fn a_directory_that_heals_is_taken_and_exact() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // A file where the directory should be: refused to root as well, unlike a permission.
    std::fs::write(&data, "in the way").unwrap();
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(lmdb(&data), names(), &clock);
    for _ in 0..30 {
        rig.record(0, &outcome(&clock));
        rig.tick();
    }
    let health = rig.health();
    assert_eq!((health.store, health.commits), (StoreState::Absent, 0));
    assert!(health.last_error.is_some());
    assert_eq!(total(&mut rig).requests_total(), 30);
    std::fs::remove_file(&data).unwrap();
    clock.advance(1000);
    rig.flush().unwrap();
    rig.record(0, &outcome(&clock));
    rig.shutdown().unwrap();
    let mut rig = Rig::start(lmdb(&data), names(), &clock);
    assert_eq!(total(&mut rig).requests_total(), 31);
    assert_eq!(total(&mut rig).exact, tokens(93, 155));
}
