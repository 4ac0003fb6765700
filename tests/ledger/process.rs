//! Other processes: a store that is held, a writer that is killed, a process short of address space, the real threads.
//! Children are this test binary itself, told by the environment which part to play.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use herdgate::config::{LedgerConfig, UsageInjection};
use herdgate::ids::WorkerId;
use herdgate::sync::Arc;
use herdgate::usage::ledger::{Ledger, Setup};
use herdgate::usage::meters::Meters;
use herdgate::usage::recorder::{Recorder, Ring};

use super::*;

/// Directory a child works in; unset in the parent.
const DIR: &str = "HERDGATE_TEST_LEDGER_DIR";
/// Events per tick of the child that is killed.
const EVENTS: u64 = 40;

/// Starts this binary again to run one of its ignored tests.
fn child(test: &str, dir: &Path) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("process::{test}"), "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn child_dir() -> std::path::PathBuf {
    std::env::var_os(DIR).expect("only for children of other tests").into()
}

fn config(required: bool) -> LedgerConfig {
    LedgerConfig {
        tick: Duration::from_millis(5),
        required,
        usage_injection: UsageInjection::Off,
        fold_after: Duration::from_secs(30 * 86_400),
    }
}

fn setup(data: Option<&Path>, required: bool, rings: &[Arc<Ring>]) -> Setup {
    Setup {
        data: data.map(Path::to_owned),
        config: config(required),
        names: Arc::new(names()),
        rings: rings.to_vec(),
        clock: Clock::system(),
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
#[ignore = "a child of i11_a_kill_loses_at_most_one_tick"]
fn child_writes_until_killed() {
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(lmdb(&child_dir()), names(), &clock);
    for tick in 1_u64.. {
        for event in 0..EVENTS {
            let node = NodeId((event % 2) as u32);
            rig.record(0, &Outcome { node, model: ModelId(2 + (tick % 2) as u32), ..outcome(&clock) });
        }
        clock.advance(20_000);
        rig.step();
        rig.serve();
        println!("committed {tick}");
    }
}

#[test]
fn i11_a_kill_loses_at_most_one_tick() {
    let dir = tempfile::tempdir().unwrap();
    let mut stored_before = 0;
    for lines in [1, 30, 200] {
        let mut child = child("child_writes_until_killed", dir.path());
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let committed = |line: &String| line.strip_prefix("committed ").and_then(|tick| tick.parse::<u64>().ok());
        let mut last = output.by_ref().filter_map(|line| committed(&line)).nth(lines - 1).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        last = output.filter_map(|line| committed(&line)).last().unwrap_or(last);
        // Opens clean, though nobody closed it.
        let clock = Clock::manual(NOON);
        let mut rig = Rig::start(lmdb(dir.path()), names(), &clock);
        assert_eq!(rig.health().store, StoreState::Open);
        let stored = total(&mut rig);
        let ticks = (stored.requests_total() - stored_before) / EVENTS;
        assert_eq!((stored.requests_total() - stored_before) % EVENTS, 0, "a tick is stored whole or not at all");
        assert!(ticks == last || ticks == last + 1, "{ticks} ticks stored, {last} acknowledged");
        assert_eq!(requests_by_minute(&mut rig).values().sum::<u64>(), stored.requests_total());
        assert_eq!(stored.exact, tokens(3 * stored.requests_total(), 5 * stored.requests_total()));
        stored_before = stored.requests_total();
        rig.shutdown().unwrap();
    }
}

#[test]
#[ignore = "a child of a_store_held_by_a_live_process_is_refused"]
fn child_tries_to_start() {
    let held = matches!(Ledger::start(setup(Some(&child_dir()), true, &[])), Err(LedgerError::Held { .. }));
    println!("held {held}");
}

#[test]
fn a_store_held_by_a_live_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, threads) = Ledger::start(setup(Some(dir.path()), true, &[])).unwrap();
    let said = |child: Child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let output = said(child("child_tries_to_start", dir.path()));
    assert!(output.contains("held true"), "{output}");
    wait(ledger.shutdown()).unwrap();
    threads.join();
    let output = said(child("child_tries_to_start", dir.path()));
    assert!(output.contains("held false"), "{output}");
}

#[test]
fn a_held_store_that_is_not_required_is_taken_when_it_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOON);
    let mut holder = Rig::start(lmdb(dir.path()), names(), &clock);
    holder.record(0, &outcome(&clock));
    holder.flush().unwrap();
    let mut rig = Rig::start(lmdb(dir.path()), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.tick();
    rig.tick();
    let health = rig.health();
    assert_eq!(health.store, StoreState::Absent);
    assert!(health.last_error.as_deref().is_some_and(|error| error.contains("held by another")), "{health:?}");
    holder.shutdown().unwrap();
    clock.advance(1000);
    rig.flush().unwrap();
    assert_eq!(total(&mut rig).requests_total(), 2);
}

#[test]
fn a_store_that_is_not_required_may_be_held_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOON);
    let holder = Rig::start(lmdb(dir.path()), names(), &clock);
    holder.record(0, &outcome(&clock));
    let rings = Ring::for_workers(1, 64);
    let (ledger, threads) = Ledger::start(setup(Some(dir.path()), false, &rings)).unwrap();
    assert!(ledger.health().degraded());
    Recorder::new(WorkerId(0), rings[0].clone(), Arc::new(Meters::new(1))).record(&outcome(&clock), None);
    assert!(matches!(wait(ledger.flush()), Err(LedgerError::Held { .. })), "a flush tries at once");
    holder.shutdown().unwrap();
    wait(ledger.flush()).unwrap();
    assert_eq!(wait(ledger.rows(Span::Totals)).unwrap()[0].row.requests[0], 2);
    assert_eq!((ledger.health().degraded(), ledger.base()[0].tokens()), (false, tokens(3, 5)));
    wait(ledger.shutdown()).unwrap();
    threads.join();
}

#[test]
#[ignore = "a child of a_short_address_space_halves_the_map"]
fn child_short_of_address_space() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::As, Rlimit { current: Some(12 << 30), maximum: Some(12 << 30) }).unwrap();
    let store = LmdbStore::open(&child_dir()).unwrap();
    println!("map {}", store.map_bytes() >> 30);
    drop(store);
    setrlimit(Resource::As, Rlimit { current: Some(512 << 20), maximum: Some(512 << 20) }).unwrap();
    println!("refused {}", matches!(LmdbStore::open(&child_dir()), Err(LedgerError::Unavailable { .. })));
}

#[test]
#[cfg(target_os = "linux")]
fn a_short_address_space_halves_the_map() {
    let dir = tempfile::tempdir().unwrap();
    let output = child("child_short_of_address_space", dir.path()).wait_with_output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.contains("map 8\n"), "{output}");
    assert!(output.contains("refused true\n"), "{output}");
}

#[test]
fn the_threads_account_flush_and_end() {
    let dir = tempfile::tempdir().unwrap();
    for start in 1..=2_u64 {
        let (rings, meters) = (Ring::for_workers(2, 4096), Arc::new(Meters::new(2)));
        let (ledger, threads) = Ledger::start(setup(Some(dir.path()), true, &rings)).unwrap();
        let clock = Clock::system();
        let workers: Vec<_> = rings
            .iter()
            .enumerate()
            .map(|(worker, ring)| Recorder::new(WorkerId(worker), ring.clone(), meters.clone()))
            .map(|recorder| {
                let clock = clock.clone();
                herdgate::sync::spawn_thread("worker", move || {
                    for _ in 0..1000 {
                        recorder.record(&outcome(&clock), None);
                    }
                })
                .unwrap()
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        wait(async {
            let counts = ledger.token_counts().await.unwrap();
            assert_eq!(counts[0].tokens(), tokens(6000 * start, 10_000 * start), "asked right after recording");
            ledger.flush().await.unwrap();
            assert_eq!(ledger.stats("llama3:latest").await.unwrap().totals, Some(counts[0].tokens()));
            assert_eq!(ledger.fold(30, true).await, Ok(0));
            assert_eq!(ledger.rows(Span::Totals).await.unwrap()[0].row.requests[0], 2000 * start);
            ledger.shutdown().await.unwrap();
            assert_eq!(ledger.flush().await, Err(LedgerError::Closed));
        });
        assert_eq!(ledger.base().len() as u64, start - 1);
        assert!(ledger.health().events == 2000 && !ledger.health().degraded());
        threads.join();
    }
}

#[test]
fn a_ledger_without_a_directory_lives_in_memory() {
    let rings = Ring::for_workers(1, 64);
    let (ledger, threads) = Ledger::start(setup(None, true, &rings)).unwrap();
    Recorder::new(WorkerId(0), rings[0].clone(), Arc::new(Meters::new(1))).record(&outcome(&Clock::system()), None);
    assert_eq!(wait(ledger.token_counts()).unwrap()[0].tokens(), tokens(3, 5));
    assert!(!ledger.health().degraded());
    // The last handle going away ends both threads.
    drop(ledger);
    threads.join();
}
