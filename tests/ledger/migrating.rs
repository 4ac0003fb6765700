//! A store of schema 1 under a herdgate of schema 2: copied, migrated while the ledger goes on in memory, whatever fails.
//!
//! What becomes of each row, and a kill between any two steps, are tested beside the code (src/usage/migration.rs).

use super::fixture::{copy_of_fixture, migrated};
use super::*;
use herdgate::usage::answers::{Group, Step, UsageQuery, UsageSum};
use herdgate::usage::store::{Key, Order};

/// Minutes with rows: more than a go of the store thread rewrites.
const MINUTES_STORED: u32 = 40_000;

/// A row as schema 1 had it: a version, flags, 17 figures.
fn old_row(row: &Row) -> Vec<u8> {
    let Tokens { input, cached, output } = row.exact;
    let figures = row.requests.into_iter().chain([input, cached, output]).chain([0; 3]);
    let figures =
        figures.chain([row.load_ns, row.prompt_eval_ns, row.eval_ns, row.queue_us, row.first_byte_us, row.first_bytes]);
    [1, 0].into_iter().chain(figures.flat_map(u64::to_be_bytes)).collect()
}

fn old_key(parts: &[u32]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_be_bytes()).collect()
}

/// A store of schema 1: one node, model and key; in each minute a request that completed, in every fourth another that was
/// left, in every hundredth one that was left alone. Returns what it holds.
fn old_store(minutes: u32) -> (Writes, Row) {
    old_store_from(0, minutes)
}

/// As [`old_store`], of these minutes.
fn old_store_from(begin: u32, minutes: u32) -> (Writes, Row) {
    let (mut writes, mut total) = (Writes::default(), Row::default());
    writes.put(Table::Meta, b"schema", &1_u32.to_be_bytes());
    for (kind, name) in [(1, "http://a:11434"), (2, "llama3:latest"), (3, "ops")] {
        writes.put(Table::Dictionary, &[kind, 0, 0, 0, 16], name.as_bytes());
    }
    writes.put(Table::Pairs, &old_key(&[16, 16]), &[0; 4]);
    let first = UnixMinute::of_unix_ms(NOON).0 - begin - minutes;
    for minute in 0..minutes {
        let completed = u64::from(minute % 100 != 1);
        let left = u64::from(minute % 4 == 0 || minute % 100 == 1);
        let requests = [completed, left, 0, 0, 0];
        let row = Row { requests, exact: tokens(3, 5), eval_ns: 7, first_bytes: 1, ..Row::default() };
        total.merge(&row);
        writes.put(Table::MinutesByTime, &old_key(&[first + minute, 16, 16, 16]), &old_row(&row));
        writes.put(Table::MinutesByModel, &old_key(&[16, first + minute, 16, 16]), &old_row(&row));
    }
    writes.put(Table::Totals, &old_key(&[16, 16, 16]), &old_row(&total));
    (writes, total)
}

fn by_outcome(rig: &mut Rig) -> Vec<UsageSum> {
    let group = Group { node: false, model: false, key: false, outcome: true };
    let query = UsageQuery { from: 0, to: 2 * NOON / 1000, step: Step::All, group, rows_max: 100 };
    rig.call(|reply| Command::Ask(Ask::Usage(query, reply))).unwrap().rows
}

#[test]
fn a_store_of_schema_1_is_migrated_behind_a_ledger_in_memory() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let (writes, old) = old_store(MINUTES_STORED);
    disk.fill(&writes);
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    assert_eq!(rig.health().store, StoreState::Absent);
    assert_eq!(disk.tried().0, 0, "a start waits for no migration");
    let left = Outcome { ending: Ending::ClientGone, key: KeyId(0), ..outcome(&clock) };
    rig.record(0, &left);
    let mut asked = rig.send(|reply| Command::Ask(Ask::Rows(Span::Totals, reply)));
    rig.step();
    rig.serve();
    let rows = asked.try_recv().unwrap().unwrap();
    assert_eq!((rows.len(), rows[0].row.requests_total()), (1, 1), "answers come from memory meanwhile");
    let mut early = rig.send(|reply| Command::Fold { keep_ms: 0, trim: true, reply });
    rig.step();
    assert_eq!(rig.health().store, StoreState::Migrating);
    assert!(
        rig.health().last_error.as_ref().is_some_and(|words| words.contains("of 80001 rows")),
        "{:?}",
        rig.health()
    );
    let early = early.try_recv().unwrap().unwrap_err();
    assert!(early.to_string().contains("migrated"), "{early}");
    // A commit that fails and one that panics: each is given again, from where it was.
    disk.plan(&[Fault::Fails, Fault::StoredButFails, Fault::Breaks, Fault::Panics]);
    for _ in 0..4 {
        rig.tick();
        clock.advance(1000);
    }
    migrated(&mut rig);
    assert_eq!(disk.copies().len(), 1);
    assert_eq!(rig.shown.base.load()[0].tokens(), tokens(old.exact.input, old.exact.output), "the base of /api/usage");
    rig.record(1, &left);
    rig.flush().unwrap();
    let mut sum = old;
    (0..2).for_each(|_| sum.merge(&Row::of(&left)));
    assert_eq!(total(&mut rig), sum);
    let outcomes: Vec<_> = by_outcome(&mut rig)
        .iter()
        .map(|sum| (sum.outcome.unwrap().label(), sum.row.requests, sum.row.exact))
        .collect();
    let (minutes, mixed) = (u64::from(MINUTES_STORED), u64::from(MINUTES_STORED) / 4);
    let (alone, both) = (minutes / 100, minutes - mixed - minutes / 100);
    assert_eq!(
        outcomes,
        [
            ("completed", [minutes - alone, 0, 0, 0, 0], tokens(3 * both, 5 * both)),
            ("client_gone", [0, alone + mixed + 2, 0, 0, 0], tokens(3 * (alone + 2), 5 * (alone + 2))),
            ("_mixed", [0; 5], tokens(3 * mixed, 5 * mixed)),
        ]
    );
    // What was folded before outcomes stood apart folds on.
    rig.call(|reply| Command::Fold { keep_ms: 86_400_000, trim: true, reply }).unwrap();
    let again: Vec<_> = by_outcome(&mut rig)
        .iter()
        .map(|sum| (sum.outcome.unwrap().label(), sum.row.requests, sum.row.exact))
        .collect();
    assert_eq!(again, outcomes);
    rig.shutdown().unwrap();
}

#[test]
fn i11_a_clean_end_amid_a_migration_waits_for_it_and_loses_nothing() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let (writes, old) = old_store(MINUTES_STORED);
    disk.fill(&writes);
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &outcome(&clock));
    rig.tick();
    rig.shutdown().unwrap();
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    assert_eq!(total(&mut rig).requests_total(), old.requests_total() + 1);
}

#[test]
fn a_clean_end_with_nothing_to_write_does_not_wait_and_the_next_start_goes_on() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let (writes, old) = old_store(MINUTES_STORED);
    disk.fill(&writes);
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    rig.tick();
    rig.tick();
    assert_eq!(rig.health().store, StoreState::Migrating);
    rig.shutdown().unwrap();
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    migrated(&mut rig);
    assert_eq!(total(&mut rig), old);
    assert_eq!(disk.copies().len(), 1);
}

/// Every entry of a store.
fn contents(store: &LmdbStore) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for table in Table::ALL {
        let visit = &mut |key: &[u8], value: &[u8]| {
            all.push((table, key.to_vec(), value.to_vec()));
            true
        };
        store.scan(table, &[], &[0xff; 18], Order::Ascending, visit).unwrap();
    }
    all
}

#[test]
fn the_copy_is_the_store_as_it_was_and_can_be_taken_back() {
    let (dir, clock) = (copy_of_fixture(), Clock::manual(NOON));
    let (store, kept) = (dir.path().join("ledger"), tempfile::tempdir().unwrap());
    std::fs::copy(store.join("data.mdb"), kept.path().join("data.mdb")).unwrap();
    // What a copy that was killed left behind.
    std::fs::write(dir.path().join("ledger.copying"), "half").unwrap();
    let mut rig = Rig::start(lmdb(dir.path()), names(), &clock);
    migrated(&mut rig);
    drop(rig);
    let beside: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "ledger")
        .collect();
    let [copy] = &beside[..] else { panic!("one copy, and nothing else: {beside:?}") };
    assert!(copy.starts_with("ledger.schema-1.txn-"), "{copy}");
    let copy = dir.path().join(copy);
    let of = |dir: &Path| contents(&LmdbStore::open(dir).unwrap());
    assert_eq!(of(&copy), of(kept.path()));
    // Going back: the copy takes the store's place. Coming again, it is found and not made twice.
    std::fs::rename(&store, dir.path().join("put away")).unwrap();
    std::fs::rename(&copy, &store).unwrap();
    let mut schema = Vec::new();
    LmdbStore::open(&store)
        .unwrap()
        .get_many(&[(Table::Meta, Key::new(b"schema"))], &mut |_, value| schema = value.to_vec())
        .unwrap();
    assert_eq!(schema, 1_u32.to_be_bytes());
    let mut rig = Rig::start(lmdb(dir.path()), names(), &clock);
    migrated(&mut rig);
    assert!(copy.join("data.mdb").is_file());
}

#[test]
fn the_first_opening_only_looks() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let (writes, old) = old_store(100);
    disk.fill(&writes);
    let mut writer = herdgate::usage::writer::Writer::new(std::sync::Arc::new(names()), disk.opener());
    assert!(matches!(writer.open(), Err(LedgerError::Migrating { done: 0, of: 201 })));
    assert_eq!(disk.tried(), (0, 0), "looked at, not written");
    drop(writer);
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    migrated(&mut rig);
    assert_eq!(total(&mut rig), old);
}

/// How long five million minutes take: `cargo test --release --test ledger large -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, and gigabytes"]
fn a_large_store_in_how_long() {
    let minutes: u32 = std::env::var("MINUTES").map_or(5_000_000, |minutes| minutes.parse().unwrap());
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::manual(NOON));
    let path = dir.path().join("ledger");
    let mut store = LmdbStore::open(&path).unwrap();
    let (mut done, mut total) = (0, Row::default());
    while done < minutes {
        let (writes, sum) = old_store_from(done, (minutes - done).min(100_000));
        store.commit(&writes).unwrap();
        (done, total) = ((done + 100_000).min(minutes), sum);
    }
    drop(store);
    let bytes = || std::fs::metadata(path.join("data.mdb")).unwrap().len() >> 20;
    println!("{} rows, {} MiB", 2 * minutes, bytes());
    let start = Clock::system();
    let mut rig = Rig::start(lmdb(dir.path()), names(), &clock);
    let mut longest = 0;
    while rig.health().store != StoreState::Open {
        let before = start.now();
        rig.tick();
        longest = longest.max(start.now() - before);
    }
    println!("{} ms, the longest step {longest} ms, {} MiB after", start.now(), bytes());
    assert!(super::total(&mut rig).requests_total() >= total.requests_total());
}
