//! Properties:
//! - a filtered stream is byte for byte what the client would have got without the injection, at every split;
//! - nothing is held of an event whose choices have come;
//! - a spliced body differs from the original in the one insertion, and by Go's rules asks for usage.

use proptest::prelude::*;

use super::*;
use crate::proxy::scan::scan;
use crate::proxy::tail::{RequestFacts, Tail};
use crate::usage::{Count, Tokens};

/// The payload of a recorded chunked answer.
fn payload(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/transcripts/{name}.resp", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let text = String::from_utf8(bytes).unwrap();
    let mut rest = text.split_once("\r\n\r\n").unwrap().1;
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    body.into_bytes()
}

/// The same stream without its injected event, worked out on whole events.
fn without_usage(stream: &str) -> String {
    stream.split_inclusive("\n\n").filter(|event| !event.contains("\"choices\":[],\"usage\":{")).collect()
}

/// What the client may have now.
fn push(filter: &mut Filter, payload: impl AsRef<[u8]>) -> String {
    let mut out = Vec::new();
    filter.push(payload.as_ref(), &mut |parts| out.extend_from_slice(&parts.concat()));
    String::from_utf8_lossy(&out).into_owned()
}

fn finish(filter: &mut Filter) -> String {
    let mut out = Vec::new();
    filter.finish(&mut |part| out.extend_from_slice(part));
    String::from_utf8_lossy(&out).into_owned()
}

fn filtered(stream: &[u8], step: usize) -> Vec<u8> {
    let mut filter = Filter::new();
    let mut out = Vec::new();
    for piece in stream.chunks(step.max(1)) {
        filter.push(piece, &mut |parts| out.extend_from_slice(&parts.concat()));
    }
    filter.finish(&mut |part| out.extend_from_slice(part));
    out
}

/// The body with usage asked for; `None` if it does not want that.
fn splice(body: &[u8], scan: &Scan<'_>) -> Option<Vec<u8>> {
    Some(plan(scan)?.parts(body).concat())
}

#[test]
fn recorded_streams_lose_the_usage_event_and_nothing_else() {
    for name in ["109-v1-chat-stream-usage", "111-v1-chat-max-completion-tokens"] {
        let with = payload(name);
        let text = String::from_utf8(with.clone()).unwrap();
        let want = without_usage(&text);
        let had_usage = want.len() < text.len();
        assert_eq!(had_usage, name.starts_with("109"), "{name}");
        for step in 1..=with.len() {
            assert_eq!(String::from_utf8(filtered(&with, step)).unwrap(), want, "{name} in steps of {step}");
        }
    }
    // The shape of what is left is that of the stream recorded without usage, time and id apart.
    let shape = |stream: &str| -> Vec<String> {
        stream.split("\n\n").map(|event| event.split("\"choices\"").last().unwrap_or_default().to_owned()).collect()
    };
    let plain = String::from_utf8(payload("108-v1-chat-stream")).unwrap();
    let filtered = String::from_utf8(filtered(&payload("109-v1-chat-stream-usage"), 7)).unwrap();
    assert_eq!(shape(&filtered), shape(&plain));
}

#[test]
fn streams_without_injection_pass_whole_and_uncopied() {
    for name in ["108-v1-chat-stream", "118-tools-v1-stream", "120-thinks-v1-stream", "145-runner-killed-v1-chat"] {
        let stream = payload(name);
        for step in 1..=stream.len().min(400) {
            assert_eq!(filtered(&stream, step), stream, "{name} in steps of {step}");
        }
        let mut passed = None;
        Filter::new().push(&stream, &mut |parts| passed = Some((parts[0].as_ptr(), parts[0].len())));
        assert_eq!(passed, Some((stream.as_ptr(), stream.len())), "{name}");
    }
}

#[test]
fn an_event_is_held_no_longer_than_it_may_be_the_injected_one() {
    let head = "data: {\"id\":\"x\",\"model\":\"m\",\"choices\":";
    let mut filter = Filter::new();
    assert_eq!(push(&mut filter, head), "");
    assert_eq!(push(&mut filter, "["), "");
    // The list has an element: ordinary, and what was held goes out with the byte that tells.
    assert_eq!(push(&mut filter, "{"), format!("{head}[{{"));
    assert_eq!(push(&mut filter, "\"delta\":{}}]}\n"), "\"delta\":{}}]}\n");
    assert_eq!(push(&mut filter, "\n"), "\n");
    // No JSON, other fields, comments: nothing is held.
    for line in ["data: [", "DONE]\n\n", ": ping\n\n", "event: x\n", "data: {\"choices\":[],\"usage\":{}}\n\n"] {
        assert_eq!(push(&mut filter, line), line, "{line}");
    }
    assert_eq!(finish(&mut filter), "");
}

/// Chunks on the wire, one for each event.
fn chunked(events: &[&str]) -> Vec<u8> {
    let chunks = events.iter().map(|event| format!("{:x}\r\n{event}\r\n", event.len()));
    chunks.collect::<String>().into_bytes()
}

#[test]
fn whole_chunks_pass_at_once_up_to_the_one_that_may_be_the_injected_event() {
    let (token, says) = ("data: {\"choices\":[{}]}\n\n", "data: {\"choices\":[{\"text\":\"\\\"usage\\\"\"}]}\n\n");
    let injected = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n";
    let done = "data: [DONE]\n\n";
    let split = |filter: &Filter, events: &[&str]| {
        let wire = chunked(events);
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut decoder = crate::http1::ResponseDecoder::new(false, 4096);
        decoder.feed(head).unwrap();
        let (as_they_are, others) = filter.split(decoder.run(&wire));
        let bytes = [as_they_are.as_bytes(), others.as_bytes()].concat();
        assert_eq!(bytes, wire, "nothing is lost or doubled");
        (as_they_are.count(), others.count())
    };
    let mut filter = Filter::new();
    assert_eq!(split(&filter, &[token, says, token]), (3, 0));
    assert_eq!(split(&filter, &[token, injected]), (1, 1));
    assert_eq!(split(&filter, &[&[token; 12][..], &[injected, done]].concat()), (12, 2));
    assert_eq!(split(&filter, &[injected, done]), (0, 2));
    assert_eq!(split(&filter, &[&[injected][..], &[token; 12]].concat()), (0, 13), "its place is not remembered");
    assert_eq!(split(&filter, &[token, "data: {\"choi"]), (0, 2), "its end is not here");
    assert_eq!(split(&filter, &["data: {\"choi", injected]), (0, 2), "its end is not here");
    assert_eq!(push(&mut filter, "data: {\"choi"), "");
    assert_eq!(split(&filter, &[token]), (0, 1), "something is held");
    assert_eq!(push(&mut filter, "ces\":[{}]}"), "data: {\"choices\":[{}]}");
    assert_eq!(split(&filter, &[token]), (0, 1), "in the middle of an event");
}

#[test]
fn only_the_injected_event_is_taken() {
    for stays in [
        "data: {\"choices\":[]}\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"usage\":{}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"error\":{\"message\":\"x\"}}\n\n",
        "data: {\"choices\":[],\"usage\":{}}\ndata: more\n\n",
        "data: {\"choices\":[],\"usage\":{}\n\n",
        "data: \n\n",
        "\n\n\n",
        "data: {\"a\":\"\\\"choices\\\":[],\\\"usage\\\":{}\"}\n\n",
    ] {
        for step in 1..=stays.len() {
            assert_eq!(filtered(stays.as_bytes(), step), stays.as_bytes(), "{stays:?} in steps of {step}");
        }
    }
    for goes in [
        "data: {\"choices\":[],\"usage\":{}}\n\n",
        "data:{\"usage\": {\"prompt_tokens\":1} , \"choices\" : [ ] }\r\n\r\n",
        "data: {\"choices\":[],\"usage\":{\"a\":[{\"choices\":[1]}]}}\n\n",
        // Cut by the stream's end.
        "data: {\"choices\":[],\"usage\":{}}\n",
        "data: {\"choices\":[],\"usage\":{}}",
        "data: {\"choices\":[],\"usa",
    ] {
        for step in 1..=goes.len() {
            assert_eq!(filtered(goes.as_bytes(), step), b"", "{goes:?} in steps of {step}");
        }
    }
}

#[test]
fn what_stood_around_the_injected_event_stays_one_piece() {
    let stream = String::from_utf8(payload("109-v1-chat-stream-usage")).unwrap();
    let last = &stream[stream.find("data: {\"id\"").unwrap()..];
    let finish = &last[last.rfind("\"delta\":{}").unwrap()..];
    let finish = &last[last.len() - finish.len()..];
    let at = last.len() - finish.len();
    let start = last[..at].rfind("data: ").unwrap();
    let mut pieces = Vec::new();
    Filter::new().push(&last.as_bytes()[start..], &mut |parts| pieces.push(parts.len()));
    assert_eq!(pieces, [2], "the finish and the end of the stream, in one");
}

#[test]
fn what_is_held_is_bounded() {
    let long = format!("data: {{\"id\":\"{}", "x".repeat(2 * HELD_BYTES_MAX));
    let mut filter = Filter::new();
    let mut passed = 0;
    for piece in long.as_bytes().chunks(100) {
        filter.push(piece, &mut |parts| passed += parts.concat().len());
        assert!(filter.held.len() <= HELD_BYTES_MAX);
    }
    assert_eq!(passed, long.len());
}

#[test]
fn the_client_stands_at_a_boundary_while_something_is_held() {
    let facts = TailFacts { streamed: true, mid_line: true, mid_event: true, sequence: 0, response_id: None };
    let mut filter = Filter::new();
    let _ = push(&mut filter, "data: {\"id\":");
    assert!(!filter.seen(facts).mid_line && !filter.seen(facts).mid_event);
    let _ = push(&mut filter, "\"x\",\"choices\":[{");
    assert!(filter.seen(facts).mid_line && filter.seen(facts).mid_event);
}

#[test]
fn the_tail_counts_what_the_filter_takes_out() {
    let stream = payload("109-v1-chat-stream-usage");
    let (mut tail, mut filter) = (Tail::new(Route::V1Chat, true), Filter::new());
    for piece in stream.chunks(50) {
        tail.push(piece);
        let _ = push(&mut filter, piece);
    }
    let report = tail.finish(&RequestFacts { status: 200, body_bytes: 100, empty: false });
    assert_eq!(report.count, Count::Exact(Tokens { input: 12, cached: 0, output: 8 }));
    assert!(report.complete);
}

#[test]
fn bodies_are_spliced_when_and_only_when_usage_is_not_asked_for() {
    for body in [
        r#"{"model":"m","messages":[],"stream":true}"#,
        r#"{"model":"m","stream":true,"stream_options":{}}"#,
        r#"{"model":"m","stream":true,"stream_options":null}"#,
        r#"{"model":"m","stream":true,"stream_options":{"include_usage":false,"x":1}}"#,
        r#"{"model":"m","stream":true,"stream_options":{"include_usage":null}}"#,
        r#"{"STREAM":true,"model":"m","Stream_Options":{"include_usage":false} } trailing"#,
        r#"{"stream_options":{"include_usage":true},"stream_options":null,"model":"m","stream":true}"#,
        "{\"model\":\"m\",\"stream\":true}\n",
        " { \"model\" : \"m\" , \"stream\" : true } }",
    ] {
        let found = scan(body.as_bytes(), Route::V1Chat);
        let spliced = splice(body.as_bytes(), &found).unwrap_or_else(|| panic!("{body}"));
        let text = String::from_utf8(spliced.clone()).unwrap();
        assert_eq!(text.replacen(std::str::from_utf8(MEMBER).unwrap(), "", 1), body);
        let again = scan(&spliced, Route::V1Chat);
        assert_eq!((again.error, again.include_usage, again.streams()), (None, Some(true), true), "{text}");
        assert_eq!(again.model, found.model);
    }
    for body in [
        r#"{"model":"m","messages":[]}"#,
        r#"{"model":"m","stream":false}"#,
        r#"{"model":"m","stream":null}"#,
        r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"model":"m","stream":true,"stream_options":{"Include_Usage":true}}"#,
        r#"{"model":"m","stream":true,"stream_options":"x"}"#,
        r#"{"model":"m","stream":true,"stream_options":{"include_usage":1}}"#,
        r#"{"model":"m","stream":"yes"}"#,
        r#"{"model":"m","stream":true"#,
        "null",
        "",
    ] {
        assert_eq!(splice(body.as_bytes(), &scan(body.as_bytes(), Route::V1Chat)), None, "{body}");
    }
    for route in [Route::V1Completions, Route::Chat, Route::V1Responses, Route::V1Messages] {
        assert_eq!(plan(&scan(br#"{"model":"m","stream":true}"#, route)), None);
    }
}

fn event() -> impl Strategy<Value = String> {
    let text = "[a-z\"\\\\\n{}\\[\\]:,]{0,30}";
    prop_oneof![
        4 => text.prop_map(|text| {
            let delta = serde_json::json!({"index": 0, "delta": {"content": text}});
            format!("data: {{\"id\":\"c\",\"model\":\"m\",\"choices\":[{delta}]}}\n\n")
        }),
        1 => text.prop_map(|text| format!("data: {{\"model\":{},\"choices\":[],\"usage\":{{\"prompt_tokens\":3}}}}\n\n", serde_json::json!(text))),
        1 => Just("data: [DONE]\n\n".to_owned()),
        1 => Just(": ping\n\n".to_owned()),
        1 => Just("event: x\ndata: {\"choices\":[]}\n\n".to_owned()),
    ]
}

proptest! {
    #[test]
    fn any_split_gives_the_stream_without_the_injected_events(
        events in prop::collection::vec(event(), 0..12),
        cuts in prop::collection::vec(1..60_usize, 1..40),
    ) {
        let stream = events.concat();
        let want = without_usage(&stream);
        let mut filter = Filter::new();
        let (mut out, mut rest, mut cuts) = (Vec::new(), stream.as_bytes(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            filter.push(piece, &mut |parts| out.extend_from_slice(&parts.concat()));
            rest = after;
        }
        filter.finish(&mut |part| out.extend_from_slice(part));
        prop_assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn any_bytes_pass_without_panic_and_in_order(bytes in prop::collection::vec(any::<u8>(), 0..200), step in 1..20_usize) {
        let out = filtered(&bytes, step);
        // Hardly ever an injected event; then nothing may be missing.
        if !bytes.windows(5).any(|w| w == b"data:") {
            prop_assert_eq!(out, bytes);
        }
    }
}
