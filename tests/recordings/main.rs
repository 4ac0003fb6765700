//! Recorded exchanges of a real Ollama, every one through the proxy: as nodes (bytes unchanged, chunks where they were,
//! tokens counted) and as clients (byte for byte what they sent, answered as their libraries can use it).
//!
//! `claims.rs` says for each file what is asserted. A file that nobody claims fails, and so does a claim without files.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod administered;
mod alone;
mod claims;
mod clients;
mod listed;
mod node;
mod passing;
mod recording;

use std::collections::BTreeSet;

use claims::CLAIMS;

#[test]
fn every_file_is_claimed_once() {
    let claimed: Vec<&str> = CLAIMS.iter().map(|(name, _)| *name).collect();
    let disordered = claimed.windows(2).find(|pair| pair[0] >= pair[1]);
    assert_eq!(disordered, None, "in the order of their names");
    let files = recording::files();
    let mut wanted = BTreeSet::from([".gitattributes".to_owned(), "README.md".to_owned()]);
    for name in &claimed {
        wanted.insert(format!("{name}.req"));
        if !name.starts_with("client-") {
            wanted.insert(format!("{name}.resp"));
            // Times of the chunks: their own test holds them against the answer.
            let timed = format!("{name}.chunks.json");
            wanted.extend(files.contains(&timed).then_some(timed));
        }
    }
    let unclaimed: Vec<_> = files.difference(&wanted).collect();
    let absent: Vec<_> = wanted.difference(&files).collect();
    assert!(unclaimed.is_empty() && absent.is_empty(), "not in claims.rs: {unclaimed:?}; not there: {absent:?}");
}

/// The chunks' own list and the answer they were taken from say the same.
#[test]
fn chunk_times_name_the_chunks_of_their_answer() {
    let mut held = 0;
    for name in recording::files().iter().filter_map(|file| file.strip_suffix(".chunks.json")) {
        let times: Vec<(f64, usize)> =
            serde_json::from_slice(&recording::file(&format!("{name}.chunks.json"))).unwrap();
        let answer = recording::Recording::load(name).answer;
        let mut sizes: Vec<usize> = answer.chunks.iter().map(Vec::len).collect();
        sizes.extend(answer.whole.then_some(0));
        assert_eq!(times.iter().map(|(_, size)| *size).collect::<Vec<_>>(), sizes, "{name}");
        assert!(times.is_sorted_by(|one, other| one.0 <= other.0), "{name}: {times:?}");
        held += 1;
    }
    assert!(held > 30, "{held} lists of chunks");
}
