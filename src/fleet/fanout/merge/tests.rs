//! What holds of a merged stream, on written scripts and on random ones.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn line(text: &str) -> Line {
    Line::read(text.as_bytes()).unwrap()
}

fn layer(digest: &str, total: u64, completed: u64) -> Line {
    let (digest, status) = (digest.into(), format!("pulling {digest}").into());
    Line::Progress { status, digest, total, completed }
}

/// All that can be told now.
fn told(merge: &mut Merge, now: Millis) -> Vec<String> {
    std::iter::from_fn(|| merge.take(now)).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect()
}

#[test]
fn one_node_passes_as_it_spoke() {
    let mut merge = Merge::new(1);
    let mut now = 0;
    let mut out = String::new();
    let script = [
        r#"{"status":"pulling manifest"}"#,
        r#"{"status":"pulling 5a49980df282","digest":"sha256:5a49","total":100}"#,
        r#"{"status":"pulling 5a49980df282","digest":"sha256:5a49","total":100,"completed":60}"#,
        r#"{"status":"pulling 5a49980df282","digest":"sha256:5a49","total":100,"completed":100}"#,
        r#"{"status":"verifying sha256 digest"}"#,
        r#"{"status":"writing manifest"}"#,
    ];
    for text in script {
        now += 60;
        merge.line(0, line(text));
        out += &told(&mut merge, now).concat();
    }
    merge.line(0, line(r#"{"status":"success"}"#));
    merge.done(0);
    assert_eq!(told(&mut merge, now), [""; 0]);
    assert_eq!(out, script.map(|text| format!("{text}\n")).concat());
}

#[test]
fn lines_are_read() {
    assert_eq!(line(r#"{"status":"success"}"#), Line::Success);
    assert_eq!(line(r#"{"error":"pull model manifest: file does not exist"}"#), {
        Line::Error("pull model manifest: file does not exist".to_owned())
    });
    assert_eq!(line("{}"), Line::Other);
    assert_eq!(Line::read(b""), None);
    assert_eq!(Line::read(b"[1]"), None);
}

#[test]
fn a_closing_status_waits_for_the_last_node_and_an_opening_one_for_none() {
    let mut merge = Merge::new(3);
    merge.line(0, line(r#"{"status":"pulling manifest"}"#));
    merge.line(1, line(r#"{"status":"pulling manifest"}"#));
    assert_eq!(told(&mut merge, 0), ["{\"status\":\"pulling manifest\"}\n"]);
    merge.line(0, line(r#"{"status":"writing manifest"}"#));
    merge.done(0);
    merge.line(1, line(r#"{"status":"writing manifest"}"#));
    assert_eq!(told(&mut merge, 1), [""; 0], "the third has not begun");
    merge.failed(2);
    assert_eq!(told(&mut merge, 2), ["{\"status\":\"writing manifest\"}\n"]);
}

#[test]
fn the_bar_is_the_mean_and_waits_for_nodes_not_begun() {
    let mut merge = Merge::new(2);
    merge.line(0, layer("a", 100, 100));
    assert_eq!(told(&mut merge, 0), ["{\"status\":\"pulling a\",\"digest\":\"a\",\"total\":100,\"completed\":50}\n"]);
    merge.done(0);
    merge.line(1, layer("a", 100, 50));
    assert_eq!(told(&mut merge, 10), [""; 0], "too soon");
    assert_eq!(merge.next_due(), 60);
    assert!(told(&mut merge, 60)[0].contains("\"completed\":75"));
    merge.line(1, layer("a", 100, 100));
    assert!(told(&mut merge, 61)[0].contains("\"completed\":100"), "the end of a bar is not held back");
    assert_eq!(merge.next_due(), Millis::MAX);
}

#[test]
fn a_layer_is_whole_once_its_node_verifies() {
    let mut merge = Merge::new(1);
    merge.line(0, layer("a", 100, 98));
    merge.line(0, line(r#"{"status":"verifying sha256 digest"}"#));
    let lines = told(&mut merge, 0);
    assert!(lines[0].contains("\"completed\":100") && lines[1].contains("verifying"), "{lines:?}");
}

#[test]
fn memory_is_bounded_whatever_a_node_says() {
    let mut merge = Merge::new(1);
    for n in 0..3 * KNOWN_MAX {
        merge.line(0, layer(&n.to_string(), 10, 1));
        merge.line(0, Line::Status(format!("s{n}").into()));
        while merge.take(n as Millis).is_some() {}
    }
    assert!(merge.layers.len() <= KNOWN_MAX && merge.told.len() <= KNOWN_MAX);
}

/// What may happen to a merge: which node, and what.
#[derive(Clone, Debug)]
enum Step {
    Layer(u8, u64, u64),
    Status(u8),
    Done,
    Failed,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u8, 0..200_u64, 0..250_u64).prop_map(|(digest, total, done)| Step::Layer(digest, total, done)),
        3 => (0..6_u8).prop_map(Step::Status),
        1 => Just(Step::Done),
        1 => Just(Step::Failed),
        2 => (0..100_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn numbers_only_grow_and_no_status_comes_twice(script in proptest::collection::vec((0..4_usize, step()), 1..200)) {
        let statuses = ["pulling manifest", CLOSING[0], CLOSING[1], CLOSING[2], "converting model", "parsing GGUF"];
        let mut merge = Merge::new(4);
        let mut now = 0;
        let mut lines = Vec::new();
        for (node, step) in script {
            match step {
                Step::Layer(digest, total, completed) => merge.line(node, layer(&digest.to_string(), total, completed)),
                Step::Status(at) => merge.line(node, Line::Status(statuses[usize::from(at)].into())),
                Step::Done => merge.done(node),
                Step::Failed => merge.failed(node),
                Step::Wait(ms) => now += ms,
            }
            lines.extend(told(&mut merge, now));
        }
        merge.flush();
        lines.extend(told(&mut merge, now));
        prop_assert_eq!(merge.next_due(), Millis::MAX);
        let mut bars: HashMap<String, (u64, u64)> = HashMap::new();
        let mut seen = HashSet::new();
        for text in lines {
            prop_assert_eq!(text.chars().last(), Some(char::from(10)));
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_ne!(&value["status"], "success");
            let Some(digest) = value["digest"].as_str() else {
                prop_assert!(seen.insert(text.clone()), "twice: {text}");
                continue;
            };
            let now = (value["total"].as_u64().unwrap(), value["completed"].as_u64().unwrap_or(0));
            let before = bars.insert(digest.to_owned(), now).unwrap_or((0, 0));
            prop_assert!(now.0 >= before.0 && now.1 >= before.1, "{before:?} then {now:?}");
            prop_assert!(now.1 <= now.0, "{now:?}");
        }
    }
}
