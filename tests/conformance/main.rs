//! The contract of the wire, case by case: each request is sent to one simulated node directly and through the gate over
//! three of them, must be answered as the contract says by both, and alike, to the byte where the contract means bytes
//! (status, header lines, framing, chunk boundaries, bodies; times, durations and made-up ids are masked).
//!
//! The simulated node is held against recordings of a real one by `tests/sim.rs`; here the gate is held against the node.
//! A case of the contract that is not played fails the suite, as does one that is listed as answered otherwise and is not.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod administration;
mod case;
mod child;
mod compare;
mod failures;
mod http;
mod names;
mod native;
mod stage;
mod transport;
mod traps;
mod v1;

use std::collections::BTreeSet;

use case::Case;

/// Numbers of the contract's cases.
const CASES: std::ops::RangeInclusive<u16> = 1..=101;

/// Where the gate answers otherwise than one node would, on purpose: the case, what differs, why.
const OTHERWISE: &[(u16, &str)] = &[
    // No client can tell it from a node that is slower at first: totals and what is completed only grow, every bar ends
    // full, `success` comes once and last. The least of the nodes would stand still until the last has begun, the most
    // would be full before the first is done.
    (77, "the bar is the mean over three nodes, so it does not begin at its end"),
    (79, "the bar is the mean over three nodes"),
];

/// Scenes in which a node and the gate are meant to differ; the scene says both sides.
const SCENES_THAT_DIFFER: &[(u16, &str)] = &[
    (73, "a node that dies breaks off; the gate ends the stream in the dialect of the route"),
    (74, "a node that dies answers nothing; the gate asks another one"),
    (76, "a node gives up a load whose client left; the gate keeps it for those who wait"),
    (85, "about the gate's memory alone"),
    (91, "the same answer with Retry-After"),
    (98, "a node never answers and loses its socket; the gate frees the node"),
    (99, "a node may not notice; the gate gives every body a length, so that it does"),
    (100, "about the gate's connection and its count"),
];

fn all() -> Vec<Case> {
    let rooms =
        [transport::cases(), names::cases(), native::cases(), v1::cases(), administration::cases(), failures::cases()];
    rooms.into_iter().flatten().collect()
}

/// Plays cases on the thread of the test, and holds what came against the lists above.
async fn play(cases: Vec<Case>) {
    let numbers: BTreeSet<u16> = cases.iter().map(|case| case.number).collect();
    let (mut wrong, other) = stage::play(cases).await;
    for (number, how) in &other {
        if !OTHERWISE.iter().any(|(listed, _)| listed == number) {
            wrong.push(format!("{number} is answered otherwise: {how}"));
        }
    }
    for (number, _) in OTHERWISE.iter().filter(|(number, _)| numbers.contains(number)) {
        if !other.iter().any(|(found, _)| found == number) {
            wrong.push(format!("{number} is listed as answered otherwise, and is not"));
        }
    }
    assert!(wrong.is_empty(), "{} to mend\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_case_of_the_contract_is_played() {
    let played: Vec<u16> = all().iter().map(|case| case.number).collect();
    let once: BTreeSet<u16> = played.iter().copied().collect();
    assert_eq!(once.len(), played.len(), "a case has one place");
    let missing: Vec<u16> = CASES.filter(|number| !once.contains(number)).collect();
    assert!(missing.is_empty(), "not played: {missing:?}");
    assert!(once.iter().all(|number| CASES.contains(number)));
    for (number, why) in OTHERWISE.iter().chain(SCENES_THAT_DIFFER) {
        assert!(once.contains(number) && !why.is_empty(), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_listings_and_origins() {
    play(transport::cases()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_missing_unknown_and_malformed() {
    play(names::cases()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_inference() {
    play(native::cases()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_and_anthropic() {
    play(v1::cases()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administration_of_models() {
    play(administration::cases()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_departures() {
    play(failures::cases()).await;
}
