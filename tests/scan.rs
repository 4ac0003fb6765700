//! The body scanner against a reference decoder: Go's `encoding/json` as Ollama uses it, written down plainly, with
//! recursion, allocation and a whole tree in memory, from Go's documentation and behaviour and not from the scanner.
//!
//! Properties:
//! - scanner and reference agree on bodies with keys in any case and spelling, duplicates, nulls, wrong types, escapes,
//!   invalid UTF-8, white space, deep nesting, trailing junk and damage;
//! - the reference says what Go says on a table of hand-picked bodies (each was put to Go 1.26);
//! - any bytes at all are read without a panic, and in no more than linear steps (deep nesting, long strings).

#![expect(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests: a panic is a failed test")]

use herdgate::dialect::Route;
use herdgate::proxy::scan::{KeepAlive, RunnerOptions, Scan, Unparseable, scan};
use proptest::prelude::*;

#[path = "scan/reference.rs"]
mod reference;

use reference::{Decoded, Refused, decode};

const ROUTES: [Route; 11] = [
    Route::Generate,
    Route::Chat,
    Route::Embed,
    Route::Embeddings,
    Route::Show,
    Route::OtherApi,
    Route::V1Chat,
    Route::V1Completions,
    Route::V1Embeddings,
    Route::V1Responses,
    Route::V1Messages,
];

/// What the scanner found, in the reference's terms.
fn scanned(found: &Scan<'_>) -> Result<Decoded, Refused> {
    match found.error {
        Some(Unparseable::Empty) => return Err(Refused::Empty),
        Some(Unparseable::Syntax) => return Err(Refused::Syntax),
        Some(Unparseable::Type) => return Err(Refused::Type),
        None => {}
    }
    Ok(Decoded {
        model: found.model.as_deref().unwrap_or_default().to_owned(),
        stream: found.streams(),
        include_usage: found.include_usage,
        keep_alive_zero: match found.keep_alive {
            KeepAlive::Absent => None,
            KeepAlive::Zero => Some(true),
            KeepAlive::Other => Some(false),
        },
        runner_options: (0..RunnerOptions::NAMES.len()).map(|at| found.runner_options.has(at)).collect(),
        shift: found.shift,
        empty: found.prompt_or_messages_empty,
    })
}

#[track_caller]
fn assert_agree(route: Route, body: &[u8]) {
    let found = scan(body, route);
    let want = decode(route, body);
    assert_eq!(scanned(&found), want, "{route:?} {}", String::from_utf8_lossy(body));
    if let (None, Some(span)) = (found.error, &found.model_span) {
        assert_eq!((body[span.start], body[span.end - 1]), (b'"', b'"'));
    }
    if found.error.is_none() && found.object_end > 0 {
        assert_eq!(body[found.object_end], b'}');
    }
}

fn model(route: Route, body: &str) -> Option<String> {
    assert_agree(route, body.as_bytes());
    scan(body.as_bytes(), route).model.map(|name| name.into_owned())
}

fn error(route: Route, body: &[u8]) -> Option<Unparseable> {
    assert_agree(route, body);
    scan(body, route).error
}

#[test]
fn the_model_is_the_one_the_node_will_run() {
    let chat = |body: &str| model(Route::Chat, body);
    for (body, name) in [
        (r#"{"model":"m"}"#, Some("m")),
        (r#"{"MODEL":"m"}"#, Some("m")),
        (r#"{"mod\u0065l":"m"}"#, Some("m")),
        (r#"{"M\u004fDEL":"m"}"#, Some("m")),
        (r#"{"model":"a","Model":"b"}"#, Some("b")),
        (r#"{"Model":"b","model":"a"}"#, Some("a")),
        (r#"{"model":"a","model":null}"#, Some("a")),
        (r#"{"model":"a","model":""}"#, None),
        (r#"{"model":""}"#, None),
        (r#"{"model":null}"#, None),
        ("{}", None),
        ("null", None),
        ("null junk", None),
        (r#" {"model":"m"} junk"#, Some("m")),
        (r#"{"model":"m"}{"model":"z"}"#, Some("m")),
        (r#"{"messages":[{"model":"z","content":"\"model\":\"y\""}],"model":"m","tools":[{"model":"x"}]}"#, Some("m")),
        (r#"{"model":" m "}"#, Some(" m ")),
        (r#"{"model":"a\u002fb\n\ud83d\ude00"}"#, Some("a/b\n😀")),
        (r#"{"model":"\ud800"}"#, Some("\u{fffd}")),
        (r#"{"model":"\ud800\u0041"}"#, Some("\u{fffd}A")),
        (r#"{"model":"\ud83d\ud83d\ude00"}"#, Some("\u{fffd}😀")),
        (r#"{"model ":"m","models":"n","mode":"o"}"#, None),
        (r#"{"name":"m"}"#, None),
    ] {
        assert_eq!(chat(body).as_deref(), name, "{body}");
    }
    for (body, name) in [
        (r#"{"name":"n"}"#, Some("n")),
        (r#"{"model":"m","name":"n"}"#, Some("m")),
        (r#"{"model":"","name":"n"}"#, Some("n")),
        (r#"{"name":"n","model":""}"#, Some("n")),
        (r#"{"model":"m","name":""}"#, Some("m")),
    ] {
        assert_eq!(model(Route::Show, body).as_deref(), name, "{body}");
        assert_eq!(model(Route::OtherApi, body).as_deref(), name, "{body}");
    }
}

#[test]
fn bytes_that_are_no_utf8_become_replacement_characters_one_by_one() {
    for (bytes, name) in [
        (&b"\xff"[..], "\u{fffd}"),
        (b"a\xe2\x82b", "a\u{fffd}\u{fffd}b"),
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\xf0\x9f\x98", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\xc0\xaf", "\u{fffd}\u{fffd}"),
        (b"\xf4\x90\x80\x80", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
        (b"\xe2\x82\xac", "€"),
    ] {
        let body = [&b"{\"model\":\""[..], bytes, b"\"}"].concat();
        assert_agree(Route::Generate, &body);
        assert_eq!(scan(&body, Route::Generate).model.as_deref(), Some(name));
    }
}

#[test]
fn names_without_escapes_are_borrowed() {
    let body = "{\"model\":\"hf.co/ä/b:c\"}";
    assert!(matches!(scan(body.as_bytes(), Route::Chat).model, Some(std::borrow::Cow::Borrowed("hf.co/ä/b:c"))));
    assert_eq!(scan(body.as_bytes(), Route::Chat).model_span, Some(9..body.len() - 1));
}

#[test]
fn stream_follows_the_routes_default_and_type() {
    let streams = |route, body: &str| {
        assert_agree(route, body.as_bytes());
        scan(body.as_bytes(), route).streams()
    };
    for (body, native, plain) in [
        ("{}", true, false),
        (r#"{"stream":true}"#, true, true),
        (r#"{"stream":false}"#, false, false),
        (r#"{"Stream":false}"#, false, false),
        ("{\"\u{17f}tream\":false}", false, false),
        (r#"{"\u017ftream":false}"#, false, false),
        (r#"{"stream":null}"#, true, false),
        // A pointer is reset by null, a flag is left as it was.
        (r#"{"stream":false,"stream":null}"#, true, false),
        (r#"{"stream":true,"stream":null}"#, true, true),
        (r#"{"stream":true,"STREAM":false}"#, false, false),
    ] {
        assert_eq!(streams(Route::Chat, body), native, "{body}");
        assert_eq!(streams(Route::Generate, body), native, "{body}");
        assert_eq!(streams(Route::V1Chat, body), plain, "{body}");
        assert_eq!(streams(Route::V1Messages, body), plain, "{body}");
    }
    assert!(!streams(Route::V1Responses, r#"{"stream":true,"stream":null}"#));
    assert!(!streams(Route::Embed, r#"{"stream":true}"#), "never a stream");
    for body in [r#"{"stream":"yes"}"#, r#"{"stream":1}"#, r#"{"stream":{}}"#, r#"{"stream":"yes","stream":true}"#] {
        assert_eq!(error(Route::Chat, body.as_bytes()), Some(Unparseable::Type), "{body}");
        assert_eq!(error(Route::Embed, body.as_bytes()), None, "{body}: no such member there");
    }
}

#[test]
fn what_is_no_json_to_go_is_unparseable() {
    for body in ["", " ", "\n\t\r "] {
        assert_eq!(error(Route::Chat, body.as_bytes()), Some(Unparseable::Empty));
    }
    for body in [
        "not json",
        "{",
        r#"{"model":"#,
        r#"{"model":"m""#,
        r#"{"model":"m",}"#,
        r#"{"model":"m" "a":1}"#,
        r#"{model:"m"}"#,
        r#"{'model':'m'}"#,
        r#"{"a":01,"model":"m"}"#,
        r#"{"a":1.,"model":"m"}"#,
        r#"{"a":.5,"model":"m"}"#,
        r#"{"a":+1,"model":"m"}"#,
        r#"{"a":-,"model":"m"}"#,
        r#"{"a":1e,"model":"m"}"#,
        r#"{"a":tru,"model":"m"}"#,
        r#"{"a":nullx,"model":"m"}"#,
        r#"{"a":NaN,"model":"m"}"#,
        r#"{"a":[1,],"model":"m"}"#,
        r#"{"a":[1}"#,
        r#"{"a":{"b":1]}"#,
        r#"{"a":"\x","model":"m"}"#,
        r#"{"a":"\u12g4","model":"m"}"#,
        r#"{"a":"\u123","model":"m"}"#,
        "{\"a\":\"\n\",\"model\":\"m\"}",
        "{\"a\":\"\u{1f}\",\"model\":\"m\"}",
        "{\"a\n\":1,\"model\":\"m\"}",
        "\u{feff}{\"model\":\"m\"}",
        "{\"model\":\"m\"\u{a0}}",
        "\u{c}{}",
    ] {
        assert_eq!(error(Route::Chat, body.as_bytes()), Some(Unparseable::Syntax), "{body}");
    }
    for body in
        ["[]", "\"m\"", "1", "true", "false", r#"[{"model":"m"}]"#, r#"{"model":1}"#, r#"{"model":["m"],"model":"m"}"#]
    {
        assert_eq!(error(Route::Chat, body.as_bytes()), Some(Unparseable::Type), "{body}");
    }
    // A control character far inside a long string, and DEL, which is none.
    for (at, byte) in [(0, 0x1f), (15, 0), (16, 9), (4095, 0x0a), (4096, 0x1f), (9999, 1)] {
        let mut text = vec![b'x'; 10_000];
        text[at] = byte;
        let body = [&b"{\"model\":\"m\",\"a\":\""[..], &text, b"\"}"].concat();
        assert_eq!(error(Route::Chat, &body), Some(Unparseable::Syntax), "{byte} at {at}");
        text[at] = 0x7f;
        let body = [&b"{\"model\":\"m\",\"a\":\""[..], &text, b"\"}"].concat();
        assert_eq!(error(Route::Chat, &body), None);
    }
}

/// Strings are read in words, blocks and windows: whatever matters in them may lie across their borders.
#[test]
fn what_ends_or_breaks_a_string_is_seen_at_every_place() {
    let marks: [&[u8]; 9] =
        [b"\"", b"\\\"", b"\\\\", b"\\u00e9", b"\\u12g4", b"\\x", b"\\\\\\\"\\n", b"\x1f", b"\\n\x01"];
    for length in (0..140).chain([1_023, 1_056, 4_100, 5_150]) {
        let from = length - length.min(140);
        for at in from..=length {
            for mark in marks {
                let mut body = b"{\"model\":\"a\",\"k\":\"".to_vec();
                body.resize(body.len() + at, b'x');
                body.extend_from_slice(mark);
                body.resize(body.len() + length - at, b'y');
                body.extend_from_slice(b"\",\"model\":\"b\"}");
                assert_agree(Route::Chat, &body);
            }
        }
    }
}

#[test]
fn lists_of_numbers_are_what_they_are_to_go() {
    let elements = [
        "0",
        "7",
        "-1",
        "00",
        "01",
        "10",
        "128000",
        "999999",
        "1234567",
        "12345678",
        "123456789012",
        "1.5",
        "1e9",
        "1E+2",
        "1.",
        "-",
        "",
        " 2",
        "3 ",
        "1 2",
        "x",
        "[]",
        "[1,2]",
        "{}",
        "\"4\"",
        "null",
        "\u{e9}",
        "1:2",
        "1/2",
    ];
    for first in elements {
        for second in elements {
            for third in ["", ",5", ",06", ",", ",12345678"] {
                for end in ["],\"model\":\"b\"}", "]", "}", ""] {
                    let body = format!("{{\"model\":\"a\",\"context\":[{first},{second}{third}{end}");
                    assert_agree(Route::Generate, body.as_bytes());
                }
            }
        }
    }
}

#[test]
fn unparseable_bodies_claim_nothing() {
    let found = scan(br#"{"model":"m","stream":true,"keep_alive":0"#, Route::Generate);
    assert_eq!(found.model, None);
    assert!(!found.streams() && !found.is_unload());
}

#[test]
fn nesting_ends_where_gos_does() {
    for (depth, fine) in
        [(1, true), (63, true), (64, true), (65, true), (9_999, true), (10_000, false), (200_000, false)]
    {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let inner = if open == "[" { "" } else { "1" };
            let body = format!("{{\"a\":{}{inner}{},\"model\":\"m\"}}", open.repeat(depth), close.repeat(depth));
            let found = scan(body.as_bytes(), Route::Chat);
            assert_eq!(found.error, (!fine).then_some(Unparseable::Syntax), "{open} {depth}");
            assert_eq!(found.model.as_deref(), fine.then_some("m"));
        }
    }
    // Inside a member that is read itself, one level is taken already.
    for (depth, fine) in [(9_998, true), (9_999, false)] {
        let body = format!("{{\"options\":{{\"a\":{}{}}}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(scan(body.as_bytes(), Route::Chat).error.is_none(), fine, "{depth}");
    }
}

#[test]
fn keep_alive_of_zero_is_known_in_every_spelling() {
    let unload = |value: &str| {
        let body = format!("{{\"model\":\"m\",\"keep_alive\":{value}}}");
        assert_agree(Route::Generate, body.as_bytes());
        assert_agree(Route::Chat, body.as_bytes());
        scan(body.as_bytes(), Route::Generate).is_unload()
    };
    for zero in [
        "0",
        "-0",
        "0.0",
        "0e9",
        "1e-10",
        "1E-400",
        r#""0""#,
        r#""0s""#,
        r#""-0s""#,
        r#""+0h""#,
        r#""0h0m0s""#,
        r#""0.0ms""#,
        r#"".0s""#,
        r#""0.s""#,
        r#""0.1ns""#,
        r#""0.5ns0.6ns""#,
        "\"0µs\"",
        "\"0\u{3bc}s\"",
        r#""\u0030s""#,
        r#""00000000000000000000000s""#,
    ] {
        assert!(unload(zero), "{zero}");
    }
    for other in [
        "1",
        "-1",
        "0.5",
        "1e-9",
        "null",
        "true",
        "[]",
        "{}",
        "[0]",
        r#""""#,
        r#""5m""#,
        r#""-1s""#,
        r#""1ns""#,
        r#""s""#,
        r#"".s""#,
        r#""0x""#,
        r#""0 s""#,
        r#"" 0s""#,
        r#""0s ""#,
        r#""00""#,
        r#""-""#,
        r#""1h0s""#,
        r#""0s5""#,
    ] {
        assert!(!unload(other), "{other}");
    }
}

#[test]
fn an_unload_is_an_empty_request_of_a_generating_native_route() {
    for (route, body, unload) in [
        (Route::Generate, r#"{"model":"m","keep_alive":0}"#, true),
        (Route::Generate, r#"{"model":"m","keep_alive":0,"prompt":""}"#, true),
        (Route::Generate, r#"{"model":"m","keep_alive":0,"prompt":null}"#, true),
        (Route::Generate, r#"{"model":"m","keep_alive":0,"prompt":"a","prompt":null}"#, false),
        (Route::Generate, r#"{"model":"m","keep_alive":0,"prompt":" "}"#, false),
        (Route::Generate, r#"{"model":"m","keep_alive":0,"Prompt":"a"}"#, false),
        (Route::Generate, r#"{"model":"m","keep_alive":0,"keep_alive":null}"#, false),
        (Route::Generate, "{\"model\":\"m\",\"\u{212a}eep_alive\":0}", true),
        (Route::Generate, r#"{"model":"m"}"#, false),
        (Route::Chat, r#"{"model":"m","keep_alive":"0s","messages":[ ]}"#, true),
        (Route::Chat, r#"{"model":"m","keep_alive":"0s","messages":[{}],"messages":null}"#, true),
        (Route::Chat, r#"{"model":"m","keep_alive":"0s","messages":[{}]}"#, false),
        (Route::Chat, r#"{"model":"m","keep_alive":"0s","prompt":"x"}"#, true),
        (Route::Embed, r#"{"model":"m","keep_alive":0}"#, false),
        (Route::V1Chat, r#"{"model":"m","keep_alive":0}"#, false),
    ] {
        assert_agree(route, body.as_bytes());
        assert_eq!(scan(body.as_bytes(), route).is_unload(), unload, "{body}");
    }
}

#[test]
fn runner_options_are_those_with_a_value_and_the_exact_name() {
    let named = |body: &str| {
        assert_agree(Route::Chat, body.as_bytes());
        let options = scan(body.as_bytes(), Route::Chat).runner_options;
        let names: Vec<_> =
            RunnerOptions::NAMES.iter().enumerate().filter(|(at, _)| options.has(*at)).map(|(_, n)| *n).collect();
        assert_eq!(options.any(), !names.is_empty());
        names
    };
    assert_eq!(
        named(r#"{"options":{"num_ctx":1,"temperature":0,"use_mmap":false,"draft_num_predict":"x"}}"#),
        ["num_ctx", "use_mmap", "draft_num_predict"]
    );
    assert_eq!(named(r#"{"options":{"Num_Ctx":1,"num_ctx ":1,"a":{"num_ctx":1}}}"#), [""; 0]);
    assert_eq!(named(r#"{"options":{"num\u005fctx":1}}"#), ["num_ctx"]);
    assert_eq!(named(r#"{"options":{"num_ctx":1,"num_ctx":null}}"#), [""; 0]);
    assert_eq!(named(r#"{"options":{"num_ctx":1},"Options":{"num_gpu":null,"main_gpu":0}}"#), ["num_ctx", "main_gpu"]);
    assert_eq!(named(r#"{"options":{"num_ctx":1},"options":null}"#), [""; 0]);
    assert_eq!(scan(br#"{"options":{"num_ctx":1}}"#, Route::V1Chat).runner_options, RunnerOptions::default());
    assert_eq!(scan(br#"{"shift":false}"#, Route::Chat).shift, Some(false));
}

#[test]
fn bodies_that_other_servers_would_read_differently_are_told() {
    for (body, same) in [
        (r#"{"model":"m","stream":true,"messages":[]}"#, true),
        (r#"{"mod\u0065l":"m"}"#, true),
        (r#"{"model":"a","model":"b"}"#, true),
        (r#"{"stream":null}"#, true),
        (r#"{"Temperature":1,"model":"m"}"#, true),
        (r#"{"Model":"m"}"#, false),
        (r#"{"model":"m","Stream":true}"#, false),
        (r#"{"model":"m","model":null}"#, false),
        (r#"{"model":"m","stream_options":{"Include_usage":true}}"#, false),
        ("{\"me\u{17f}\u{17f}ages\":[]}", false),
    ] {
        assert_eq!(scan(body.as_bytes(), Route::V1Chat).exact_case, same, "{body}");
    }
}

/// A key in one of the ways that name it, or nearly.
fn key(names: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(names), any::<u64>()).prop_map(|(name, dice)| {
        let mut out = vec![b'"'];
        for (at, c) in name.chars().enumerate() {
            match (dice >> (at * 4 % 61) & 15, c) {
                (0, c) => out.extend_from_slice(format!("\\u{:04X}", u32::from(c)).as_bytes()),
                (1, c) => out.push(c.to_ascii_uppercase() as u8),
                (2, 's') => out.extend_from_slice("\u{17f}".as_bytes()),
                (2, 'k') => out.extend_from_slice("\u{212a}".as_bytes()),
                (3, 's') => out.extend_from_slice(b"\\u017F"),
                (4, 'e') if dice % 7 == 0 => out.extend_from_slice("é".as_bytes()),
                (_, c) => out.push(c as u8),
            }
        }
        out.push(b'"');
        out
    })
}

const PIECES: &[&[u8]] = &[
    b"\\n",
    b"\\\"",
    b"\\\\",
    b"\\/",
    b"\\u0041",
    b"\\ud83d\\ude00",
    b"\\ud800",
    b"\\udc00",
    b"\\ud800\\u0041",
    b"\xff",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    "é😀".as_bytes(),
    b"\x7f",
];

/// Short ones mostly; and long ones full of escapes, in runs and across the borders of what is read at once.
fn string() -> impl Strategy<Value = Vec<u8>> {
    let pieces = |odd: u32, most: usize| {
        let piece = prop_oneof![
            8 => "[a-zA-Z0-9:/. _-]{1,8}".prop_map(String::into_bytes),
            odd => prop::sample::select(PIECES).prop_map(<[u8]>::to_vec),
        ];
        prop::collection::vec(piece, 0..most)
    };
    let backslashes = (1..70_usize).prop_map(|pairs| vec![b"\\\\".repeat(pairs)]);
    prop_oneof![8 => pieces(1, 5), 1 => pieces(8, 80), 1 => (pieces(1, 10), backslashes, pieces(8, 20)).prop_map(
        |(before, runs, after)| [before, runs, after].concat()
    )]
    .prop_map(|pieces| [b"\"".to_vec(), pieces.concat(), b"\"".to_vec()].concat())
}

/// One of these texts.
fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> + Clone {
    prop::sample::select(texts).prop_map(|text| text.as_bytes().to_vec())
}

const SCALARS: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-1",
    "0.0",
    "1e-10",
    "5",
    "1E+2",
    "-0",
    "\"\"",
    "[]",
    "{}",
    "[ ]",
    "\"0s\"",
    "\"5m\"",
    "\"0.1ns\"",
    "\"0\"",
];

fn scalar() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => one_of(SCALARS), 2 => string()].boxed()
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    scalar().prop_recursive(4, 24, 4, |inner| {
        let names: &'static [&'static str] = &[
            "model",
            "stream",
            "include_usage",
            "num_ctx",
            "num_gpu",
            "use_mmap",
            "main_gpu",
            "draft_num_predict",
            "x",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| [
                b"[".to_vec(),
                items.join(&b","[..]),
                b"]".to_vec()
            ]
            .concat()),
            prop::collection::vec((key(names), inner), 0..4).prop_map(|members| {
                let members: Vec<_> = members.into_iter().map(|(k, v)| [k, b":".to_vec(), v].concat()).collect();
                [b"{".to_vec(), members.join(&b" , "[..]), b"}".to_vec()].concat()
            }),
        ]
    })
}

fn member() -> impl Strategy<Value = Vec<u8>> {
    let names: &'static [&'static str] = &[
        "model",
        "name",
        "stream",
        "stream_options",
        "keep_alive",
        "options",
        "shift",
        "prompt",
        "messages",
        "input",
        "temperature",
        "tools",
    ];
    let space = one_of(&["", "", "", " ", "\n\t", "\r\n"]);
    let any_member = (key(names), value());
    let typed = prop_oneof![
        (key(&["model", "name"]), string()),
        (key(&["stream", "shift"]), one_of(&["true", "false", "null"])),
        (
            key(&["stream_options"]),
            prop::sample::select(
                &[
                    "null",
                    "{}",
                    r#"{"include_usage":true}"#,
                    r#"{"include_usage":null}"#,
                    r#"{"Include_Usage":false,"include_usage":true}"#,
                ][..]
            )
            .prop_map(|s| s.as_bytes().to_vec())
        ),
    ];
    (prop_oneof![typed, any_member], space.clone(), space)
        .prop_map(|((key, value), before, after)| [&before[..], &key, &after, b":", &before, &value, &after].concat())
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let junk = one_of(&["", "", "", " ", "junk", "}", "{\"model\":\"z\"}", "\0"]);
    (prop::collection::vec(member(), 0..7), junk)
        .prop_map(|(members, junk)| [b"{", &members.join(&b","[..])[..], b"}", &junk].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn scanner_and_reference_agree(body in body(), route in prop::sample::select(&ROUTES[..])) {
        prop_assert_eq!(scanned(&scan(&body, route)), decode(route, &body), "{}", String::from_utf8_lossy(&body));
    }

    #[test]
    fn they_agree_on_damaged_bodies(
        body in body(), route in prop::sample::select(&ROUTES[..]), at in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0..3,
    ) {
        let mut body = body;
        let at = at.index(body.len());
        match how {
            0 => body.truncate(at),
            1 => body[at] = byte,
            _ => { body.remove(at); }
        }
        prop_assert_eq!(scanned(&scan(&body, route)), decode(route, &body), "{}", String::from_utf8_lossy(&body));
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        bytes in prop::collection::vec(prop_oneof![prop::sample::select(&b"{}[]\",:\\ \n0-.eutrfalsn"[..]), any::<u8>()], 0..400),
        route in prop::sample::select(&Route::ALL[..]),
    ) {
        let found = scan(&bytes, route);
        prop_assert!(found.error.is_none() || found.model.is_none());
        if route != Route::V1Audio && route != Route::OtherV1 {
            prop_assert_eq!(scanned(&found), decode(route, &bytes));
        }
    }
}
