//! A tiny run of the whole lab without any proxy: nodes, generator, file, table, comparison. Proves that it measures,
//! never how fast anything is.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};

fn lab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_herdgate-perf")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_tiny_run_measures_and_its_file_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("results.json");
    let file = file.to_str().unwrap();
    let run =
        ["run", "--set", "short,burst64", "--peers", "direct", "--repeats", "2", "--window", "60", "--warm", "10"];
    let table = text(&lab(&[&run[..], &["--out", file]].concat()));
    assert!(table.contains("short: ") && table.contains("burst64: "), "{table}");
    let results: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let samples = results["samples"].as_array().unwrap();
    // Without a proxy nobody is the slowest, so nothing runs at half load.
    assert_eq!(samples.len(), 4);
    for sample in samples {
        let figures = &sample["figures"];
        assert!(figures["completed"].as_u64().unwrap() > 0 && figures["errors"] == 0, "{sample}");
        assert!(figures["latency"]["p50"].as_u64().unwrap() <= figures["latency"]["p999"].as_u64().unwrap());
    }
    assert!(text(&lab(&["table", file])).contains("direct"));
    assert!(text(&lab(&["compare", file, file])).contains("0 changes beyond noise"));
}

#[test]
fn a_peer_that_is_asked_for_by_name_must_be_there() {
    let output = lab(&["run", "--peers", "herdgate", "--herdgate", "/nowhere/herdgate"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("cargo build --release"));
    assert!(!lab(&["run", "--set", "nothing"]).status.success());
}
