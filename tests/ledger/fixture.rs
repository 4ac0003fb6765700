//! The store's format over time: a committed store of version 1 opens, a newer schema is refused untouched.

use std::path::PathBuf;

use super::*;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ledger-v1/data.mdb")
}

fn fixture_names() -> Names {
    let names = Names::new(&["http://10.0.0.1:11434", "gpu-2"], &["team"], 100);
    for model in ["llama3.2:latest", "qwen3:8b"] {
        let _ = names.model(model);
    }
    names
}

/// Writes the fixture anew; only for a new version of the format, into a directory of its own.
#[test]
#[ignore = "makes tests/fixtures/ledger-v1; run by hand when the format gets a new version"]
fn make_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(lmdb(dir.path()), fixture_names(), &clock);
    let at = |minutes: i64| UnixMinute(u32::try_from(i64::from(clock.minute().0) + minutes).unwrap());
    let day = -24 * 60;
    rig.record(0, &Outcome { minute: at(40 * day), ..outcome(&clock) });
    rig.record(0, &Outcome { minute: at(-1), key: KeyId(1), ..outcome(&clock) });
    let estimated = Count::Estimated(Tokens { input: 7, cached: 2, output: 9 });
    let (node, model) = (NodeId(1), ModelId(3));
    rig.record(0, &Outcome { node, model, count: estimated, ending: Ending::NodeErrorAfter, ..outcome(&clock) });
    rig.call(|reply| Command::Fold { keep_ms: 30 * 86_400_000, trim: true, reply }).unwrap();
    rig.shutdown().unwrap();
    std::fs::create_dir_all(fixture().parent().unwrap()).unwrap();
    std::fs::copy(dir.path().join("ledger/data.mdb"), fixture()).unwrap();
}

/// Runs until the store was migrated and is open.
pub(super) fn migrated(rig: &mut Rig) {
    for _ in 0..100 {
        if rig.health().store == StoreState::Open {
            return;
        }
        rig.tick();
    }
    panic!("not migrated: {:?}", rig.health());
}

pub(super) fn copy_of_fixture() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("ledger")).unwrap();
    std::fs::copy(fixture(), dir.path().join("ledger/data.mdb")).unwrap();
    dir
}

#[test]
fn a_store_of_version_1_opens_with_all_that_is_in_it() {
    let dir = copy_of_fixture();
    let clock = Clock::manual(NOON);
    // Other nodes in another order: stored names are not mixed up with them.
    let mut rig = Rig::start(lmdb(dir.path()), Names::new(&["new", "gpu-2"], &[], 10), &clock);
    migrated(&mut rig);
    let base = rig.shown.base.load_full();
    let shown: Vec<_> = base.iter().map(|count| (&*count.node, &*count.model, count.exact, count.estimated)).collect();
    let estimated = Tokens { input: 7, cached: 2, output: 9 };
    assert_eq!(
        shown,
        [
            ("http://10.0.0.1:11434", "llama3.2:latest", tokens(6, 10), tokens(0, 0)),
            ("gpu-2", "qwen3:8b", tokens(0, 0), estimated),
        ]
    );
    let days = rows(&mut rig, DAYS);
    let old = UnixMinute::of_unix_ms(NOON - 40 * 86_400_000);
    assert_eq!((days.len(), days[0].bucket), (1, Bucket::Day(old.day())));
    let minutes = rows(&mut rig, MINUTES);
    assert_eq!(minutes.iter().map(|row| &*row.key).collect::<Vec<_>>(), ["team", "_none"]);
    let row = minutes[1].row;
    assert_eq!((row.requests, row.estimated), ([0, 0, 0, 1, 0], estimated));
    assert_eq!((row.load_ns, row.prompt_eval_ns, row.eval_ns), (1, 2, 3));
    assert_eq!((row.queue_us, row.first_byte_us, row.first_bytes), (4, 5, 1));
    // A late event of the folded day, and one that adds to what is there.
    rig.record(0, &Outcome { minute: old, node: NodeId(1), ..outcome(&clock) });
    rig.flush().unwrap();
    assert_eq!(rows(&mut rig, DAYS).len(), 2);
}

#[test]
fn a_newer_schema_is_refused_and_left_untouched() {
    let dir = copy_of_fixture();
    let path = dir.path().join("ledger");
    let mut store = LmdbStore::open(&path).unwrap();
    let mut writes = Writes::default();
    writes.put(Table::Meta, b"schema", &3_u32.to_be_bytes());
    store.commit(&writes).unwrap();
    drop(store);
    let before = std::fs::read(path.join("data.mdb")).unwrap();
    let refused = LmdbStore::open(&path).unwrap_err();
    assert_eq!(refused, LedgerError::Newer { path: path.clone(), found: 3, known: 2 });
    assert_eq!(std::fs::read(path.join("data.mdb")).unwrap(), before);
    // Not required: it serves from memory, and still does not touch it.
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(lmdb(dir.path()), names(), &clock);
    rig.record(0, &outcome(&clock));
    assert_eq!(total(&mut rig).requests_total(), 1);
    assert!(rig.flush().is_err());
    drop(rig);
    assert_eq!(std::fs::read(path.join("data.mdb")).unwrap(), before);
}

#[test]
fn a_file_that_is_no_ledger_is_refused_and_left_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let junk = vec![0x5a; 64 << 10];
    std::fs::write(dir.path().join("data.mdb"), &junk).unwrap();
    assert!(matches!(LmdbStore::open(dir.path()), Err(LedgerError::Damaged { .. })));
    assert_eq!(std::fs::read(dir.path().join("data.mdb")).unwrap(), junk);
}

#[test]
fn a_row_that_cannot_be_read_is_an_error_not_a_crash() {
    let dir = copy_of_fixture();
    let path = dir.path().join("ledger");
    let mut store = LmdbStore::open(&path).unwrap();
    let mut writes = Writes::default();
    writes.put(Table::Totals, &[0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0], b"not a row");
    store.commit(&writes).unwrap();
    drop(store);
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(lmdb(dir.path()), fixture_names(), &clock);
    assert_eq!(rig.health().store, StoreState::Absent);
    rig.record(0, &outcome(&clock));
    let failed = rig.flush().unwrap_err();
    assert!(failed.to_string().contains("damaged"), "{failed}");
    assert_eq!(total(&mut rig).requests_total(), 1, "memory goes on");
}
