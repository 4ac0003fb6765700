//! Importing again: nothing twice, nothing lost.

use herdgate::usage::answers::{Group, Step, UsageQuery};

use super::*;

/// What `later` holds.
fn later() -> Vec<Line<'static>> {
    let mut lines = FIRST.to_vec();
    lines[0] = (A, "m:latest", 26, 58);
    lines.push((A, "new:1b", 9, 9));
    lines
}

#[test]
fn the_same_file_again_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    imported(&fixture("first"), data.path());
    let before = answers(data.path());
    assert!(imported(&fixture("first"), data.path()).contains("nothing to write"));
    let after = answers(data.path());
    assert_eq!(after.counts, before.counts);
    assert_eq!((after.minutes, after.days, after.totals), (before.minutes, before.days, before.totals));
}

#[test]
fn a_grown_and_trimmed_file_adds_what_is_new_and_takes_nothing_away() {
    let data = tempfile::tempdir().unwrap();
    imported(&fixture("first"), data.path());
    let summary = imported(&fixture("later"), data.path());
    let answers = answers(data.path());
    assert_eq!(counted(&answers.counts), later());
    // Its daily rows are three times too high: what the first import had stays.
    assert_eq!(sum(&answers.days, "m:latest"), tokens(30, 50));
    assert_eq!(sum(&answers.minutes, "m:latest"), tokens(6, 18));
    assert!(!summary.contains("have no date"), "{summary}");
}

#[test]
fn days_that_were_folded_meanwhile_are_not_added_again() {
    let data = tempfile::tempdir().unwrap();
    imported(&fixture("first"), data.path());
    // The proxy runs on and folds everything older than two days (llama3 of two days ago, the llama server's).
    with_ledger(data.path(), async |ledger| ledger.fold(1, true).await.unwrap());
    let folded = answers(data.path());
    assert_eq!(sum(&folded.days, "llama3:latest"), tokens(300, 3));
    assert!(imported(&fixture("first"), data.path()).contains("nothing to write"));
    imported(&fixture("later"), data.path());
    let after = answers(data.path());
    assert_eq!(counted(&after.counts), later());
    assert_eq!(sum(&after.days, "llama3:latest"), tokens(300, 3));
    assert_eq!(sum(&after.minutes, "llama3:latest"), tokens(7, 7));
}

#[test]
fn a_part_of_a_day_that_was_folded_meets_the_rest_once() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    // Two minutes of one day; the cut of the fold goes between them.
    let (early, late) = (NOW - DAY - 3600, NOW - DAY + 3600);
    count(&connection, A, "m:latest", 3, 0);
    point(&connection, A, "m:latest", 1, 0, early);
    point(&connection, A, "m:latest", 2, 0, late);
    imported(&file, data.path());
    with_ledger(data.path(), async |ledger| ledger.fold(1, true).await.unwrap());
    for _ in 0..2 {
        imported(&file, data.path());
        let answers = answers(data.path());
        assert_eq!(
            answers.days.iter().map(|row| (row.bucket, row.row.exact.input)).collect::<Vec<_>>(),
            [(day(early), 1)]
        );
        assert_eq!(
            answers.minutes.iter().map(|row| (row.bucket, row.row.exact.input)).collect::<Vec<_>>(),
            [(minute(late), 2)]
        );
    }
}

#[test]
fn a_file_in_which_a_sum_shrank_is_another_file() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    imported(&fixture("later"), data.path());
    let before = answers(data.path());
    let (file, connection) = database(place.path());
    count(&connection, A, "m:latest", 1, 1);
    let outcome = run(&args(&file, data.path())).unwrap();
    assert!(matches!(outcome.error, Some(ImportError::Conflict { count: 6, .. })), "{}", outcome.summary);
    assert!(outcome.summary.contains("m:latest: imported before 26 in, 58 out; in this file 1 in, 1 out"));
    assert!(outcome.summary.contains("new:1b: imported before 9 in, 9 out; not in this file"));
    assert_eq!(answers(data.path()).totals, before.totals, "nothing was written");

    // Beside it, as a source of its own.
    let beside = ImportArgs { source: "lab".to_owned(), ..args(&file, data.path()) };
    for _ in 0..2 {
        assert!(run(&beside).unwrap().error.is_none());
        assert_eq!(counted(&answers(data.path()).counts)[0], (A, "m:latest", 27, 59));
    }
    let keys: std::collections::BTreeSet<_> =
        answers(data.path()).totals.iter().map(|row| row.key.to_string()).collect();
    assert_eq!(keys.into_iter().collect::<Vec<_>>(), ["_imported", "_imported:lab"]);

    // In the place of the first one: the other source stays.
    let instead = ImportArgs { replace: true, ..args(&file, data.path()) };
    for _ in 0..2 {
        assert!(run(&instead).unwrap().error.is_none());
        let answers = answers(data.path());
        assert_eq!(counted(&answers.counts), [(A, "m:latest", 2, 2)]);
        assert!(answers.days.is_empty() && answers.minutes.is_empty());
    }
}

#[test]
fn a_dry_run_says_the_same_and_writes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let dry = ImportArgs { dry_run: true, ..args(&fixture("first"), &data) };
    let said = run(&dry).unwrap().summary;
    assert!(!data.exists(), "it makes no directory");
    let done = imported(&fixture("first"), &data);
    assert!(said.contains("dry run: nothing was written"));
    let table = |summary: &str| {
        summary.lines().take_while(|line| !line.starts_with("models")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(table(&said), table(&done));
    // On a store: what would be new.
    let before = answers(&data);
    let dry = ImportArgs { file: fixture("later"), ..dry };
    let said = run(&dry).unwrap().summary;
    assert!(said.lines().any(|line| line.starts_with("all") && line.split_whitespace().nth(3) == Some("20")), "{said}");
    assert_eq!(answers(&data).totals, before.totals);
}

#[test]
fn what_the_gate_counted_itself_stays_and_adds_up() {
    use herdgate::ids::{ModelId, NodeId, WorkerId};
    use herdgate::usage::meters::Meters;
    use herdgate::usage::recorder::{Recorder, Ring};
    use herdgate::usage::{Count, Ending, Outcome};
    let data = tempfile::tempdir().unwrap();
    let names = Arc::new(Names::new(&[A], &[] as &[&str], 100));
    let model = names.model("m:latest");
    assert_ne!(model, ModelId::UNKNOWN);
    let rings = Ring::for_workers(1, 64);
    let clock = Clock::manual(NOW_MS);
    let (ledger, threads) = Ledger::start(Setup {
        data: Some(data.path().to_owned()),
        config: LedgerConfig::default(),
        names,
        rings: rings.clone(),
        clock: clock.clone(),
    })
    .unwrap();
    let recorder = Recorder::new(WorkerId(0), rings[0].clone(), Arc::new(Meters::new(1)));
    let count = Count::Exact(tokens(1000, 2000));
    let bare = Outcome::bare(clock.minute(), Ending::Completed);
    let outcome = Outcome { node: NodeId(0), model, status: 200, count, ..bare };
    recorder.record(&outcome, None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ledger.shutdown()).unwrap();
    threads.join();
    for _ in 0..2 {
        imported(&fixture("first"), data.path());
        let answers = answers(data.path());
        let count = &answers.counts[0];
        assert_eq!((&*count.node, &*count.model, count.exact), (A, "m:latest", tokens(1000, 2000)));
        assert_eq!((count.imported, count.tokens()), (tokens(25, 57), tokens(1025, 2057)));
        let own: Vec<_> = answers.minutes.iter().filter(|row| !row.is_imported()).collect();
        assert_eq!(own.len(), 1);
        assert_eq!((own[0].row.requests_total(), own[0].row.exact), (1, tokens(1000, 2000)));
        // As an operator asks for it: two origins, side by side.
        let group = Group { node: false, model: false, key: true, outcome: true };
        let query = UsageQuery { from: 0, to: NOW as u64 + 60, step: Step::All, group, rows_max: 10 };
        let usage = with_ledger(data.path(), async |ledger| ledger.usage(query).await.unwrap());
        let shown: Vec<_> = usage
            .rows
            .iter()
            .map(|sum| (sum.key.as_deref().unwrap(), sum.outcome.unwrap().label(), sum.row.requests_total()))
            .collect();
        assert_eq!(shown, [("_imported", "completed", 0), ("_none", "completed", 1)]);
        assert_eq!(usage.rows[1].row.exact, tokens(1000, 2000));
        let dated = |row: &NamedRow| row.is_imported().then_some(row.row.exact);
        let in_rows = answers.minutes.iter().chain(&answers.days).filter_map(dated);
        assert_eq!(usage.rows[0].row.exact, in_rows.fold(Tokens::default(), Tokens::plus), "what has a date");
    }
}

#[test]
fn a_store_of_an_older_version_is_migrated_by_an_import_and_not_by_a_dry_one() {
    let data = tempfile::tempdir().unwrap();
    let (store, old) = (data.path().join("ledger"), "tests/fixtures/ledger-v1/data.mdb");
    std::fs::create_dir(&store).unwrap();
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(old), store.join("data.mdb")).unwrap();
    let before = std::fs::read(store.join("data.mdb")).unwrap();
    let refused = run(&ImportArgs { dry_run: true, ..args(&fixture("first"), data.path()) }).err().unwrap();
    assert!(refused.to_string().contains("a dry run migrates nothing"), "{refused}");
    assert_eq!(std::fs::read(store.join("data.mdb")).unwrap(), before);
    assert!(imported(&fixture("first"), data.path()).contains("written to"));
    assert!(imported(&fixture("first"), data.path()).contains("nothing to write"));
    let counts = answers(data.path()).counts;
    let sum = |tokens: fn(&TokenCount) -> Tokens| counts.iter().map(|count| tokens(count).total()).sum::<u64>();
    assert_eq!((sum(|count| count.imported), sum(|count| count.exact), sum(|count| count.estimated)), (555, 16, 16));
}
