//! Holds the simulated node against recorded exchanges with a real Ollama, and tests what it does over sockets.
//!
//! Every recording that `sim::RECORDINGS` claims is replayed, byte for byte as it was sent, to a node that is set up
//! as the recorded one was. Status, header names, order and values, chunk boundaries and the shape of every JSON value
//! (key order, types) must be those of the recording; error bodies must be equal.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

#[path = "sim/behaviour.rs"]
mod behaviour;
#[path = "sim/llama.rs"]
mod llama;
#[path = "sim/shape.rs"]
mod shape;
#[path = "sim/stage.rs"]
mod stage;
#[path = "sim/wire.rs"]
mod wire;

use std::path::PathBuf;

use herdgate::sim;
use wire::Answer;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transcripts").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn recordings() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transcripts");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter_map(|name| name.strip_suffix(".resp").map(str::to_owned)).collect();
    names.sort();
    names
}

/// What differs between two answers.
fn differences(name: &str, recorded: &Answer<'_>, got: &Answer<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, recorded: String, got: String| {
        if recorded != got {
            found.push(format!("{name}: {what}\n  recorded {recorded}\n  got      {got}"));
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    compare("interim answer", text(recorded.interim), text(got.interim));
    compare("status line", recorded.status_line.to_owned(), got.status_line.to_owned());
    compare("headers", headers(recorded), headers(got));
    let exact = recorded.status() >= 400 && !stage::WORDED_OTHERWISE.contains(&name);
    if exact {
        compare("body", text(&recorded.payload()), text(&got.payload()));
        compare(
            "length",
            format!("{:?}", recorded.header("content-length")),
            format!("{:?}", got.header("content-length")),
        );
    }
    let repeats = stage::ANY_NUMBER.contains(&name);
    let shapes = |answer: &Answer<'_>| {
        let mut shapes: Vec<String> = answer.chunks().into_iter().map(shape::chunk).collect();
        if repeats {
            shapes.dedup();
        }
        shapes.join("\n           ")
    };
    compare("chunks", shapes(recorded), shapes(got));
    compare("end of the body", ended(recorded).to_string(), ended(got).to_string());
    found
}

/// Whether a chunked body has its terminator.
fn ended(answer: &Answer<'_>) -> bool {
    answer.header("transfer-encoding").is_none() || answer.body.ends_with(b"0\r\n\r\n")
}

/// Headers with what may vary taken out.
fn headers(answer: &Answer<'_>) -> String {
    let shown = answer.headers.iter().map(|(name, value)| match *name {
        "Date" => "Date: *".to_owned(),
        "Content-Length" if *value != "0" => "Content-Length: *".to_owned(),
        name => format!("{name}: {value}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[test]
fn answers_every_claimed_recording_as_recorded() {
    let mut found = Vec::new();
    for name in sim::RECORDINGS {
        let request = fixture(&format!("{name}.req"));
        let response = fixture(&format!("{name}.resp"));
        let got = stage::play(name, &request);
        let recorded = Answer::read(&response).unwrap();
        match Answer::read(&got) {
            Some(got) => found.extend(differences(name, &recorded, &got)),
            None => found.push(format!("{name}: no answer but {:?}", String::from_utf8_lossy(&got))),
        }
    }
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_recording_is_claimed_or_named_with_a_reason() {
    let mut known: Vec<&str> =
        sim::RECORDINGS.iter().copied().chain(sim::NOT_CLAIMED.iter().map(|(n, _)| *n)).collect();
    known.sort_unstable();
    assert_eq!(known, recordings());
}

/// The comparison itself must be able to fail.
#[test]
fn the_comparison_sees_what_differs() {
    let recorded = fixture("108-v1-chat-stream.resp");
    let recorded = Answer::read(&recorded).unwrap();
    let spoil = |from: &str, to: &str| {
        let text = String::from_utf8(fixture("108-v1-chat-stream.resp")).unwrap().replacen(from, to, 1);
        assert!(
            !differences("108-v1-chat-stream", &recorded, &Answer::read(text.as_bytes()).unwrap()).is_empty(),
            "{from}"
        );
    };
    spoil("text/event-stream", "text/event-streem");
    spoil("\"created\":1795469852,\"model\":\"smollm2:135m\"", "\"model\":\"smollm2:135m\",\"created\":1795469852");
    spoil("\"index\":0,\"delta\"", "\"index\":\"\",\"delt\"");
    spoil("0\r\n\r\n", "");
    spoil("d5\r\ndata", "d5\r\ndatb");
}

/// The requests of real clients are read without a complaint about their form.
#[test]
fn reads_what_real_clients_send() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transcripts");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("client-") || !name.ends_with(".req") {
            continue;
        }
        let statuses = stage::play_client(&fixture(&name));
        let absent = ["unknown", "count-tokens", "cli-rm", "ollama-py-delete"].iter().any(|part| name.contains(part));
        assert!(statuses.iter().all(|status| *status == 200 || (absent && *status == 404)), "{name}: {statuses:?}");
        assert_eq!(statuses.contains(&404), absent, "{name}: {statuses:?}");
    }
}
