//! The traps of the ancestor's records, one by one.

use super::*;
use herdgate::import::Offset;

#[test]
fn one_model_under_names_of_several_times_is_one() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    for (endpoint, model) in [
        (A, "llama3"),
        (A, "llama3:latest"),
        (A, "hf.co/bartowski/some-model"),
        (A, "registry.ollama.ai/library/qwen3:8b"),
        (A, "gpt-oss:120b-cloud"),
        (OPENAI, "gpt-x:latest"),
        (OPENAI, "gpt-x"),
        (OPENAI, "org/model:F16"),
        (LLAMA, "unsloth/gpt-oss-20b-GGUF:F16"),
        (LLAMA, "unsloth/gpt-oss-20b-GGUF:Q4_K_M"),
        (LLAMA, "gpt-oss-20b-GGUF"),
        // Not configured any more: the ancestor's own guess from the URL.
        (B, "gone"),
        ("http://old:1/v1", "gpt-x"),
    ] {
        count(&connection, endpoint, model, 1, 0);
    }
    imported(&file, data.path());
    let answers = answers(data.path());
    let expected = [
        (A, "llama3:latest", 2, 0),
        (A, "hf.co/bartowski/some-model:latest", 1, 0),
        (A, "qwen3:8b", 1, 0),
        (A, "gpt-oss:120b-cloud", 1, 0),
        (OPENAI, "gpt-x", 2, 0),
        (OPENAI, "org/model:F16", 1, 0),
        (LLAMA, "gpt-oss-20b-GGUF", 3, 0),
        (B, "gone:latest", 1, 0),
        ("http://old:1/v1", "gpt-x", 1, 0),
    ];
    assert_eq!(counted(&answers.counts), expected);
}

#[test]
fn endpoints_are_the_nodes_they_are_here() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    for (input, endpoint) in
        (1..).zip(["http://gpu1:11434", "http://GPU1:11434/", "http://gpu2:11434", "http://gone:1", "hello"])
    {
        count(&connection, endpoint, "m:latest", input, 0);
    }
    let config = configured("nodes: [ { url: 'http://gpu1:11434', name: big }, { url: 'http://gpu2:11434' } ]\n");
    let outcome = import::run(&args(&file, data.path()), &config, &Clock::manual(NOW_MS)).unwrap();
    let answers = answers(data.path());
    let expected = [
        ("big", "m:latest", 3, 0),
        ("http://gpu2:11434", "m:latest", 3, 0),
        ("http://gone:1", "m:latest", 4, 0),
        ("hello", "m:latest", 5, 0),
    ];
    assert_eq!(counted(&answers.counts), expected);
    assert!(outcome.summary.contains("http://gpu1:11434 -> big"), "{}", outcome.summary);
    assert!(
        outcome.summary.contains("not configured (kept under their URLs): hello, http://gone:1"),
        "{}",
        outcome.summary
    );
}

#[test]
fn totals_are_input_plus_output_and_figures_are_numbers() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    connection
        .execute_batch(&format!(
            "INSERT INTO token_counts VALUES ('{A}', 'wrong:1', 3, 4, 100), ('{A}', 'null:1', NULL, 4, NULL),
             ('{A}', 'negative:1', -5, 6, 1), ('{A}', 'text:1', '7', 8.0, 15), (NULL, NULL, 1, 1, 2), ('{A}', 'zero:1', 0, 0, 0)"
        ))
        .unwrap();
    let summary = imported(&file, data.path());
    let answers = answers(data.path());
    let expected = [
        (A, "wrong:1", 3, 4),
        (A, "null:1", 0, 4),
        (A, "negative:1", 0, 6),
        (A, "text:1", 7, 8),
        ("_none", "_unknown", 1, 1),
    ];
    assert_eq!(counted(&answers.counts), expected);
    assert!(summary.contains("3 totals are not the sum"), "{summary}");
    assert!(summary.contains("2 figures are negative or no numbers"), "{summary}");
}

#[test]
fn daily_rows_count_only_where_nothing_else_is_known() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    // Two days of which only the daily row is left, one of which minutes are there too (counted twice there).
    count(&connection, A, "m:latest", 100, 0);
    daily(&connection, A, "m:latest", "2026-09-01", 30, 0);
    daily(&connection, A, "m:latest", "2026-09-02", 20, 0);
    daily(&connection, A, "m:latest", "2026-10-01", 50, 0);
    point(&connection, A, "m:latest", 25, 0, NOW - 55 * DAY);
    // Aggregated twice before it was trimmed: more than there ever was.
    count(&connection, A, "doubled:1", 30, 0);
    daily(&connection, A, "doubled:1", "2026-09-01", 60, 0);
    // No dates.
    daily(&connection, A, "m:latest", "soon", 1, 0);
    daily(&connection, A, "m:latest", "2226-09-02", 1, 0);
    let summary = imported(&file, data.path());
    let first = answers(data.path());
    let days: Vec<_> = first.days.iter().map(|row| (&*row.model, row.row.exact.input)).collect();
    assert_eq!(days, [("m:latest", 30), ("m:latest", 20), ("m:latest", 25)]);
    assert!(summary.contains("1 daily rows left out: the minutes of these days are there"), "{summary}");
    assert!(summary.contains("1 daily rows left out: they exceed the totals"), "{summary}");
    assert!(summary.contains("55 tokens have no date"), "{summary}");
    // Doubled again by the next aggregation: what stands stays.
    connection.execute("UPDATE token_time_series_daily SET input_tokens = input_tokens * 2", []).unwrap();
    imported(&file, data.path());
    assert_eq!(answers(data.path()).days, first.days);
}

#[test]
fn times_are_minutes_that_can_be() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    count(&connection, A, "m:latest", 15, 0);
    point(&connection, A, "m:latest", 1, 0, NOW - 30);
    point(&connection, A, "m:latest", 2, 0, NOW - 60);
    point(&connection, A, "m:latest", 4, 0, NOW + 2 * 3600);
    point(&connection, A, "m:latest", 8, 0, -1);
    connection
        .execute("INSERT INTO token_time_series (endpoint, model, input_tokens, output_tokens) VALUES (?1, 'm:latest', 0, 0)", [A])
        .unwrap();
    let summary = imported(&file, data.path());
    let answers = answers(data.path());
    assert_eq!(counted(&answers.counts), [(A, "m:latest", 15, 0)]);
    let minutes: Vec<_> = answers.minutes.iter().map(|row| (row.bucket, row.row.exact.input)).collect();
    assert_eq!(minutes, [(minute(NOW - 60), 3)], "floored to the minute");
    assert!(summary.contains("3 rows have no time that can be (12 tokens)"), "{summary}");
}

#[test]
fn rows_of_november_2025_are_said_and_moved_on_demand() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    // 2025-11-19 00:30 UTC, written in a zone one hour ahead: an hour early, on the day before.
    let written = 1_763_512_200 - 3600;
    count(&connection, A, "m:latest", 5, 0);
    point(&connection, A, "m:latest", 5, 0, written);
    let summary = imported(&file, data.path());
    assert!(summary.contains("1 rows of 18 to 20 November 2025: off by that host's UTC offset"), "{summary}");
    assert_eq!(answers(data.path()).days[0].bucket, day(written));
    let moved = ImportArgs { november_offset: Some(Offset(60)), replace: true, ..args(&file, data.path()) };
    assert!(run(&moved).unwrap().summary.contains("moved by the offset given"));
    let days = answers(data.path()).days;
    assert_eq!((days.len(), days[0].bucket), (1, day(written + 3600)));
    assert_ne!(day(written), day(written + 3600));
}

#[test]
fn november_dated_otherwise_the_second_time_stands_at_one_time_only() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    let written = 1_763_512_200 - 3600;
    count(&connection, A, "m:latest", 100, 0);
    point(&connection, A, "m:latest", 40, 0, written - 7200);
    point(&connection, A, "m:latest", 50, 0, written);
    imported(&file, data.path());
    let dated = || answers(data.path()).days.iter().map(|row| (row.bucket, row.row.exact.input)).collect::<Vec<_>>();
    assert_eq!(dated(), [(day(written), 90)]);
    let offset = |minutes| run(&ImportArgs { november_offset: Some(Offset(minutes)), ..args(&file, data.path()) });
    let moved = [(day(written), 40), (day(written + 3600), 50)];
    for minutes in [60, 60, 0, 60] {
        assert!(offset(minutes).unwrap().error.is_none());
        let expected = if minutes == 0 { &[(day(written), 90)][..] } else { &moved };
        let mut found = dated();
        found.sort_by_key(|(_, input)| *input);
        assert_eq!(found, expected, "by {minutes} minutes");
    }
    // What a file has lost since is not dated otherwise.
    connection.execute("DELETE FROM token_time_series WHERE input_tokens = 40", []).unwrap();
    offset(60).unwrap();
    assert_eq!(dated().iter().map(|(_, input)| input).sum::<u64>(), 90);
}

#[test]
fn minutes_without_a_total_and_more_minutes_than_total() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    point(&connection, A, "lost:1", 3, 4, NOW);
    count(&connection, A, "more:1", 1, 1);
    point(&connection, A, "more:1", 2, 2, NOW);
    let summary = imported(&file, data.path());
    assert_eq!(counted(&answers(data.path()).counts), [(A, "more:1", 1, 1), (A, "lost:1", 3, 4)]);
    assert!(summary.contains("1 (node, model) have minutes and no total"), "{summary}");
    assert!(summary.contains("1 (node, model) have more in minutes and days than in total"), "{summary}");
}

#[test]
fn an_early_database_has_fewer_tables() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, connection) = database(place.path());
    count(&connection, A, "m:latest", 1, 2);
    connection.execute_batch("DROP TABLE token_time_series").unwrap();
    imported(&file, data.path());
    assert_eq!(counted(&answers(data.path()).counts), [(A, "m:latest", 1, 2)]);
}

#[test]
fn what_is_no_database_of_the_ancestors_is_refused_in_words() {
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let refused = |file: &Path| match run(&args(file, data.path())) {
        Err(error) => error.to_string(),
        Ok(outcome) => panic!("{}", outcome.summary),
    };
    assert!(refused(&place.path().join("absent")).contains("No such file"));
    assert!(refused(place.path()).contains("is not a file"));
    let text = place.path().join("text");
    for content in ["", "no database at all, but long enough"] {
        std::fs::write(&text, content).unwrap();
        assert!(refused(&text).contains("is not an SQLite database"), "{content:?}");
    }
    let other = place.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(refused(&other).contains("has no table token_counts"));
    let damaged = place.path().join("damaged.db");
    let mut bytes = std::fs::read(fixture("later")).unwrap();
    bytes.truncate(bytes.len() / 2);
    bytes[5000..8000].fill(0x5a);
    std::fs::write(&damaged, bytes).unwrap();
    let words = refused(&damaged);
    assert!(words.contains("is damaged") || words.contains("cannot be"), "{words}");
    assert!(!data.path().join("ledger").exists(), "the ledger is made for what can be read alone");
}
