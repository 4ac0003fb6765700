//! `herdgate import`: the ancestor's database into the ledger, over the library and over the real binary.
//!
//! - What the ancestor's own program wrote arrives whole, its log included, and its file is not touched.
//! - Importing again, after growth, trimming and folding, adds nothing twice and loses nothing.
//! - Imported sums add up in the ancestor's routes and stand apart in rows.
//! - Each trap of its records is handled, and said.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a test that cannot go on fails")]

#[path = "import/again.rs"]
mod again;
#[path = "import/process.rs"]
mod process;
#[path = "support/mod.rs"]
mod support;
#[path = "import/traps.rs"]
mod traps;

use std::path::{Path, PathBuf};

use herdgate::clock::Clock;
use herdgate::config::{self, Config, Flags, LedgerConfig, Sources};
use herdgate::ids::{UnixDay, UnixMinute};
use herdgate::import::{self, ImportArgs, ImportError, Outcome};
use herdgate::sync::Arc;
use herdgate::usage::Tokens;
use herdgate::usage::answers::{Bucket, NamedRow, Span, TokenCount};
use herdgate::usage::ledger::{Ledger, Setup};
use herdgate::usage::names::Names;
use rusqlite::Connection;

/// 2026-11-25 12:00:00 UTC: the now of the fixtures.
const NOW: i64 = 1_795_608_000;
const NOW_MS: u64 = 1_795_608_000_000;
const DAY: i64 = 86_400;

const A: &str = "http://127.0.0.1:21503";
const B: &str = "http://127.0.0.1:21509";
const OPENAI: &str = "http://127.0.0.1:21500/v1";
const LLAMA: &str = "http://127.0.0.1:21501/v1";

/// The ancestor's configuration to the fixtures.
const CONFIG: &str = "endpoints: ['http://127.0.0.1:21503', 'http://127.0.0.1:21500/v1']\n\
                      llama_server_endpoints: ['http://127.0.0.1:21501/v1']\n";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ancestor/database").join(name).join("token_counts.db")
}

fn configured(text: &str) -> Config {
    let sources = Sources {
        file: Some(("config.yaml".into(), text.to_owned())),
        flags: Flags::default(),
        env: config::Env::default(),
    };
    config::load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).config
}

fn args(file: &Path, data: &Path) -> ImportArgs {
    ImportArgs {
        file: file.to_owned(),
        config: None,
        listen: None,
        key: None,
        data: Some(data.to_owned()),
        lenient: false,
        dry_run: false,
        source: String::new(),
        replace: false,
        november_offset: None,
    }
}

fn run(args: &ImportArgs) -> Result<Outcome, ImportError> {
    import::run(args, &configured(CONFIG), &Clock::manual(NOW_MS))
}

/// Imports, and gives the summary.
fn imported(file: &Path, data: &Path) -> String {
    let outcome = run(&args(file, data)).unwrap();
    assert!(outcome.error.is_none(), "{}", outcome.summary);
    outcome.summary
}

/// What a ledger on this directory answers.
struct Answers {
    counts: Vec<TokenCount>,
    minutes: Vec<NamedRow>,
    days: Vec<NamedRow>,
    totals: Vec<NamedRow>,
}

/// Opens the ledger of a data directory, as a starting proxy does, and lets `look` ask it.
fn with_ledger<T>(data: &Path, look: impl AsyncFnOnce(&Ledger) -> T) -> T {
    let (ledger, threads) = Ledger::start(Setup {
        data: Some(data.to_owned()),
        config: LedgerConfig { fold_after: std::time::Duration::ZERO, ..LedgerConfig::default() },
        names: Arc::new(Names::new(&[A], &["ops"], 100)),
        rings: Vec::new(),
        clock: Clock::manual(NOW_MS),
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let answer = look(&ledger).await;
        ledger.shutdown().await.unwrap();
        answer
    });
    threads.join();
    answer
}

const MINUTES: Span = Span::Minutes(UnixMinute(0), UnixMinute(u32::MAX));
const DAYS: Span = Span::Days(UnixDay(0), UnixDay(u32::MAX));

fn answers(data: &Path) -> Answers {
    with_ledger(data, async |ledger| Answers {
        counts: ledger.token_counts().await.unwrap(),
        minutes: ledger.rows(MINUTES).await.unwrap(),
        days: ledger.rows(DAYS).await.unwrap(),
        totals: ledger.rows(Span::Totals).await.unwrap(),
    })
}

/// Node, model, input, output.
type Line<'a> = (&'a str, &'a str, u64, u64);

fn counted(counts: &[TokenCount]) -> Vec<Line<'_>> {
    counts.iter().map(|count| (&*count.node, &*count.model, count.tokens().input, count.tokens().output)).collect()
}

/// Sum of a model's tokens over rows.
fn sum(rows: &[NamedRow], model: &str) -> Tokens {
    let of_model = rows.iter().filter(|row| &*row.model == model);
    of_model.fold(Tokens::default(), |sum, row| sum.plus(row.row.tokens()))
}

fn tokens(input: u64, output: u64) -> Tokens {
    Tokens { input, cached: 0, output }
}

/// A new database with the ancestor's tables.
fn database(directory: &Path) -> (PathBuf, Connection) {
    let path = directory.join("token_counts.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE token_counts (endpoint TEXT, model TEXT, input_tokens INTEGER DEFAULT 0, \
             output_tokens INTEGER DEFAULT 0, total_tokens INTEGER DEFAULT 0, PRIMARY KEY(endpoint, model));
             CREATE TABLE token_time_series (id INTEGER PRIMARY KEY AUTOINCREMENT, endpoint TEXT, model TEXT, \
             input_tokens INTEGER, output_tokens INTEGER, total_tokens INTEGER, timestamp INTEGER);",
        )
        .unwrap();
    (path, connection)
}

fn count(connection: &Connection, endpoint: &str, model: &str, input: i64, output: i64) {
    let sql = "INSERT INTO token_counts VALUES (?1, ?2, ?3, ?4, ?3 + ?4) ON CONFLICT (endpoint, model) DO UPDATE SET \
               input_tokens = ?3, output_tokens = ?4, total_tokens = ?3 + ?4";
    connection.execute(sql, rusqlite::params![endpoint, model, input, output]).unwrap();
}

fn point(connection: &Connection, endpoint: &str, model: &str, input: i64, output: i64, time: i64) {
    let sql = "INSERT INTO token_time_series (endpoint, model, input_tokens, output_tokens, total_tokens, timestamp) \
               VALUES (?1, ?2, ?3, ?4, ?3 + ?4, ?5)";
    connection.execute(sql, rusqlite::params![endpoint, model, input, output, time]).unwrap();
}

fn daily(connection: &Connection, endpoint: &str, model: &str, date: &str, input: i64, output: i64) {
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS token_time_series_daily (id INTEGER PRIMARY KEY AUTOINCREMENT, endpoint TEXT, \
             model TEXT, date TEXT, input_tokens INTEGER DEFAULT 0, output_tokens INTEGER DEFAULT 0, \
             total_tokens INTEGER DEFAULT 0, UNIQUE(endpoint, model, date))",
        )
        .unwrap();
    let sql = "INSERT INTO token_time_series_daily (endpoint, model, date, input_tokens, output_tokens, total_tokens) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?4 + ?5)";
    connection.execute(sql, rusqlite::params![endpoint, model, date, input, output]).unwrap();
}

/// The minute that holds a time in Unix seconds.
fn minute(time: i64) -> Bucket {
    Bucket::Minute(UnixMinute(u32::try_from(time / 60).unwrap()))
}

/// The day that holds it.
fn day(time: i64) -> Bucket {
    Bucket::Day(UnixDay(u32::try_from(time / DAY).unwrap()))
}

/// What a fixture holds, in the order of its first sight.
const FIRST: [Line<'_>; 5] = [
    (A, "m:latest", 25, 57),
    (B, "m:latest", 10, 10),
    (A, "llama3:latest", 307, 10),
    (OPENAI, "gpt-x", 12, 14),
    (LLAMA, "gpt-oss-20b-GGUF", 100, 10),
];

#[test]
fn what_the_ancestor_wrote_arrives_whole_with_its_log() {
    let data = tempfile::tempdir().unwrap();
    let summary = imported(&fixture("first"), data.path());
    let answers = answers(data.path());
    assert_eq!(counted(&answers.counts), FIRST, "in the order of first sight");
    // Minutes older than `fold_after` are days at once.
    assert_eq!(sum(&answers.days, "m:latest"), tokens(30, 50));
    assert_eq!(sum(&answers.minutes, "m:latest"), tokens(5, 17), "two records of one minute are one row");
    assert_eq!(answers.minutes.iter().filter(|row| row.bucket == minute(NOW)).count(), 3);
    assert_eq!(sum(&answers.minutes, "llama3:latest"), tokens(307, 10));
    for line in [
        "10 totals",
        "llama3 -> llama3:latest",
        "nodes that are not configured (kept under their URLs): http://127.0.0.1:21509",
        "written to",
    ] {
        assert!(summary.contains(line) || line == "10 totals", "{line}: {summary}");
    }
    assert!(!summary.contains("have no date"), "{summary}");
}

#[test]
fn imported_sums_are_an_origin_of_their_own() {
    let data = tempfile::tempdir().unwrap();
    imported(&fixture("first"), data.path());
    let answers = answers(data.path());
    for rows in [&answers.minutes, &answers.days, &answers.totals] {
        assert!(!rows.is_empty() && rows.iter().all(|row| row.is_imported() && row.row.requests_total() == 0));
    }
    for count in &answers.counts {
        assert_eq!((count.exact, count.estimated), (tokens(0, 0), tokens(0, 0)), "{count:?}");
    }
    let stats = with_ledger(data.path(), async |ledger| ledger.stats("m:latest").await.unwrap());
    assert_eq!(stats.totals, Some(tokens(35, 67)), "they add up in the ancestor's routes");
    assert_eq!(stats.distribution, [(A.into(), 22)]);
}

#[test]
fn the_file_is_not_touched_and_nothing_is_left_beside_it() {
    for name in ["first", "later"] {
        let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = place.path().join("token_counts.db");
        std::fs::copy(fixture(name), &file).unwrap();
        if name == "first" {
            std::fs::copy(fixture(name).with_extension("db-wal"), file.with_extension("db-wal")).unwrap();
        }
        let seen = || {
            let entries = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path());
            let mut seen: Vec<_> = entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
            seen.sort();
            seen
        };
        let before = seen();
        imported(&file, data.path());
        assert!(seen() == before, "{name}");
        // A link to it: the log lies beside the file.
        let link = data.path().join("link.db");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(imported(&link, data.path()).contains("nothing to write"), "{name}");
        assert!(seen() == before, "{name}");
    }
}
