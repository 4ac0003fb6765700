//! Properties:
//! - every split of a body gives the report that the whole gives;
//! - every recorded answer gives the counts that its JSON says, and every cut of one an estimate, never zero or exact;
//! - generated answers give what a full parse of them gives, whatever the model wrote and however long their parts are.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::http1::{Item, ResponseDecoder};
use crate::usage::Tokens;

const ASKED: RequestFacts = RequestFacts { status: 200, body_bytes: 400, empty: false };

fn tail_of(route: Route, streamed: bool, body: &[u8], step: usize) -> Tail {
    let mut tail = Tail::new(route, streamed);
    for piece in body.chunks(step.max(1)) {
        tail.push(piece);
    }
    tail
}

fn report(route: Route, streamed: bool, body: &[u8]) -> TailReport {
    tail_of(route, streamed, body, body.len()).finish(&ASKED)
}

fn exact(input: u64, cached: u64, output: u64) -> Count {
    Count::Exact(Tokens { input, cached, output })
}

/// A recorded answer's status and body, without its framing.
fn recorded(name: &str) -> (u16, Vec<u8>) {
    let path = format!("{}/tests/fixtures/transcripts/{name}.resp", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut rest = &bytes[end + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (status, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(line_end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line_end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[line_end + 2..line_end + 2 + size]);
        rest = &rest[line_end + 4 + size..];
    }
    (status, body)
}

/// Recording, route, whether a stream was asked for, input, output.
const EXACT: &[(&str, Route, bool, u64, u64)] = &[
    ("041-body-case-keys", Route::Generate, true, 12, 1),
    ("046-zstd-v1-chat", Route::V1Chat, false, 12, 2),
    ("088-generate-stream", Route::Generate, true, 12, 8),
    ("089-generate", Route::Generate, false, 12, 8),
    ("090-generate-logprobs", Route::Generate, true, 12, 3),
    ("092-chat-stream", Route::Chat, true, 12, 8),
    ("093-chat-stream-stop", Route::Chat, true, 12, 8),
    ("094-chat", Route::Chat, false, 12, 8),
    ("096-native-chat-stream", Route::Chat, true, 33, 4),
    ("097-embed-string", Route::Embed, false, 1, 0),
    ("098-embed-list", Route::Embed, false, 2, 0),
    ("103-thinks-chat-stream", Route::Chat, true, 16, 4),
    ("104-tools-chat-stream", Route::Chat, true, 60, 18),
    ("107-v1-chat", Route::V1Chat, false, 12, 8),
    ("109-v1-chat-stream-usage", Route::V1Chat, true, 12, 8),
    ("110-v1-chat-logprobs", Route::V1Chat, false, 12, 2),
    ("112-v1-completions-stream-usage", Route::V1Completions, true, 12, 4),
    ("114-v1-embeddings-base64", Route::V1Embeddings, false, 1, 0),
    ("115-v1-responses", Route::V1Responses, false, 12, 8),
    ("116-v1-responses-stream", Route::V1Responses, true, 12, 4),
    ("117-tools-v1", Route::V1Chat, false, 60, 18),
    ("119-tools-v1-responses-stream", Route::V1Responses, true, 60, 18),
    ("121-v1-messages", Route::V1Messages, false, 12, 8),
    ("122-v1-messages-stream", Route::V1Messages, true, 12, 4),
    ("123-thinks-v1-messages-stream", Route::V1Messages, true, 16, 3),
    ("124-v1-messages-web-search-stream", Route::V1Messages, true, 94, 8),
    ("153-http10-stream", Route::Generate, true, 12, 3),
];

#[test]
fn recorded_answers_are_counted_exactly_however_they_are_cut_into_pieces() {
    for &(name, route, streamed, input, output) in EXACT {
        let (status, body) = recorded(name);
        assert_eq!(status, 200, "{name}");
        let want = report(route, streamed, &body);
        assert_eq!(want.count, exact(input, 0, output), "{name}");
        assert!(want.complete && !want.error, "{name}");
        for step in (1..300).chain([1000, 4096]) {
            assert_eq!(tail_of(route, streamed, &body, step).finish(&ASKED), want, "{name} in steps of {step}");
        }
        // A wrong hint costs time, not counts.
        assert_eq!(report(route, !streamed, &body).count, want.count, "{name}");
    }
}

#[test]
fn durations_are_the_nodes_own() {
    let said = report(Route::Generate, true, &recorded("088-generate-stream").1);
    assert_eq!((said.load_ns, said.prompt_eval_ns, said.eval_ns), (1_037_259_927, 134_483_000, 175_515_000));
}

#[test]
fn a_recorded_stream_cut_anywhere_before_its_last_word_is_an_estimate_and_never_zero() {
    for &(name, route, streamed, input, output) in EXACT {
        let (_, body) = recorded(name);
        for cut in 0..body.len() {
            let said = report(route, streamed, &body[..cut]);
            match said.count {
                // The count itself had come, only end marks or the closing brace were missing.
                Count::Exact(tokens) => assert_eq!((tokens.input, tokens.output), (input, output), "{name} at {cut}"),
                Count::Estimated(tokens) => {
                    assert!(tokens.input > 0, "{name} at {cut}");
                    assert!(cut == 0 || output == 0 || tokens.output > 0, "{name} at {cut}");
                    assert!(!said.complete, "{name} at {cut}");
                }
                Count::Nothing => panic!("{name} at {cut}: nothing"),
            }
        }
    }
}

#[test]
fn what_is_no_inference_counts_nothing() {
    for (name, route) in [
        ("079-load-generate", Route::Generate),
        ("081-load-chat", Route::Chat),
        ("085-unload-generate", Route::Generate),
        ("087-unload-chat", Route::Chat),
        ("091-generate-debug-render", Route::Generate),
        ("095-chat-debug-render", Route::Chat),
        ("099-embed-empty-list", Route::Embed),
    ] {
        for streamed in [false, true] {
            let said = report(route, streamed, &recorded(name).1);
            assert_eq!((said.count, said.complete, said.error), (Count::Nothing, true, false), "{name}");
        }
    }
    let (_, body) = recorded("113-v1-completions-empty");
    let mut tail = Tail::new(Route::V1Completions, false);
    tail.push(&body);
    assert_eq!(tail.finish(&RequestFacts { empty: true, ..ASKED }).count, Count::Nothing);
    for (name, route) in [
        ("100-embed-chat-model", Route::Embed),
        ("102-chat-embed-model", Route::Chat),
        ("106-stub-404-chat", Route::Chat),
        ("149-runner-killed-chat-nostream", Route::Chat),
    ] {
        let (status, body) = recorded(name);
        let mut tail = Tail::new(route, false);
        tail.push(&body);
        assert_eq!(tail.finish(&RequestFacts { status, ..ASKED }).count, Count::Nothing, "{name}");
    }
}

#[test]
fn what_the_node_does_not_count_is_estimated() {
    let estimated = |input, output| Count::Estimated(Tokens { input, cached: 0, output });
    for (name, route, streamed, want) in [
        // Complete, but without a word on tokens: a remote stub, a chat stream without usage, legacy embeddings.
        ("105-stub-ok-chat", Route::Chat, true, estimated(100, 1)),
        ("108-v1-chat-stream", Route::V1Chat, true, estimated(100, 8)),
        ("101-embeddings", Route::Embeddings, false, estimated(100, 0)),
        ("118-tools-v1-stream", Route::V1Chat, true, estimated(100, 1)),
        ("120-thinks-v1-stream", Route::V1Chat, true, estimated(100, 2)),
    ] {
        let said = report(route, streamed, &recorded(name).1);
        assert_eq!((said.count, said.complete), (want, true), "{name}");
    }
    // Broken: the runner or the node was killed.
    for (name, route, error) in [
        ("144-runner-killed-chat", Route::Chat, true),
        ("145-runner-killed-v1-chat", Route::V1Chat, false),
        ("146-runner-killed-v1-completions", Route::V1Completions, false),
        ("147-runner-killed-v1-responses", Route::V1Responses, false),
        ("148-runner-killed-v1-messages", Route::V1Messages, false),
        ("150-node-kill-chat", Route::Chat, false),
        ("151-node-term-chat", Route::Chat, false),
    ] {
        let said = report(route, true, &recorded(name).1);
        assert_eq!((said.complete, said.error), (false, error), "{name}");
        let Count::Estimated(tokens) = said.count else { panic!("{name}: {said:?}") };
        assert!(tokens.input > 0 && (15..=30).contains(&tokens.output), "{name}: {tokens:?}");
    }
}

#[test]
fn an_answer_that_may_be_anything_is_never_called_complete() {
    for route in [Route::V1Audio, Route::OtherApi, Route::OtherV1] {
        for body in
            ["{\"status\":\"pulling manifest\"}\n", "some text", "{\"text\":\"x\",\"usage\":{\"prompt_tokens\":3}}"]
        {
            let said = report(route, false, body.as_bytes());
            assert_eq!((said.count, said.complete), (Count::Nothing, false), "{body}");
        }
    }
    assert!(report(Route::Show, false, b"{\"details\":{}}").complete);
    assert!(!report(Route::Show, false, b"{\"details\":{}").complete);
}

#[test]
fn an_error_in_band_before_any_text_counts_nothing() {
    for (route, body) in [
        (Route::Chat, "{\"error\":\"boom\"}\n"),
        (Route::Generate, "{\"error\":\"boom\"}"),
        (Route::V1Chat, "data: {\"error\":{\"message\":\"boom\"}}\n\ndata: [DONE]\n\n"),
        (Route::V1Messages, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"x\"}}\n\n"),
        (Route::V1Chat, "{\"error\":{\"message\":\"boom\"}}"),
    ] {
        let said = report(route, true, body.as_bytes());
        assert_eq!((said.count, said.error), (Count::Nothing, true), "{body}");
    }
    let said = report(Route::V1Responses, false, br#"{"error":null,"usage":{"input_tokens":3,"output_tokens":4}}"#);
    assert_eq!((said.count, said.error), (exact(3, 0, 4), false));
}

/// One record or event each of the shapes that other servers send.
#[test]
fn other_servers_shapes_are_counted() {
    let llama_chat = concat!(
        r#"{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"x"}}],"created":1,"#,
        r#""model":"m","object":"chat.completion","usage":{"completion_tokens":7,"prompt_tokens":31,"total_tokens":38,"#,
        r#""prompt_tokens_details":{"cached_tokens":30}},"id":"chatcmpl-x","timings":{"cache_n":30,"prompt_n":1,"#,
        r#""prompt_ms":12.5,"predicted_n":7,"predicted_ms":100.25}}"#
    );
    let said = report(Route::V1Chat, false, llama_chat.as_bytes());
    assert_eq!(said.count, exact(31, 30, 7));
    assert_eq!((said.prompt_eval_ns, said.eval_ns), (12_500_000, 100_250_000));

    let timings_only = r#"{"usage":null,"timings":{"cache_n":4,"prompt_n":1,"predicted_n":3}}"#;
    assert_eq!(report(Route::V1Chat, false, timings_only.as_bytes()).count, exact(5, 4, 3));

    let event = |data: &str| format!("data: {data}\n\n");
    let token = event(r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}"#);
    let finish = event(
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"timings":{"cache_n":0,"prompt_n":9,"predicted_n":2}}"#,
    );
    let done = event("[DONE]");
    let stream = [token.as_str(), &token, &finish, ":\n\n", &done].concat();
    assert_eq!(report(Route::V1Chat, true, stream.as_bytes()).count, exact(9, 0, 2), "timings in the finish chunk");

    let usage = event(
        r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}"#,
    );
    let stream = [token.as_str(), &token, &usage].concat();
    let said = report(Route::V1Chat, true, stream.as_bytes());
    assert_eq!((said.count, said.complete), (exact(9, 8, 2), false), "the last word was heard, the end mark not");

    let each =
        event(r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}"#);
    assert_eq!(
        report(Route::V1Chat, true, each.as_bytes()).count,
        Count::Estimated(Tokens { input: 9, cached: 0, output: 1 }),
        "usage in each event is not final"
    );
    assert_eq!(report(Route::V1Chat, true, [each.as_str(), &done].concat().as_bytes()).count, exact(9, 0, 1));

    // llama.cpp counts the input in the first event of a messages stream, and cached tokens beside it.
    let typed = |kind: &str, data: Value| format!("event: {kind}\ndata: {data}\n\n");
    let start = json!({"type":"message_start","message":{"id":"m","usage":{"input_tokens":5,"cache_read_input_tokens":90,"output_tokens":0}}});
    let mut stream = typed("message_start", start);
    for _ in 0..200 {
        stream += &typed(
            "content_block_delta",
            json!({"type":"content_block_delta","delta":{"type":"text_delta","text":"word"}}),
        );
    }
    stream += &typed("message_delta", json!({"type":"message_delta","delta":{},"usage":{"output_tokens":200}}));
    let cut = report(Route::V1Messages, true, stream.as_bytes());
    stream += &typed("message_stop", json!({"type":"message_stop"}));
    let whole = report(Route::V1Messages, true, stream.as_bytes());
    assert_eq!((cut.count, cut.complete), (exact(95, 90, 200), false));
    assert_eq!((whole.count, whole.complete), (exact(95, 90, 200), true));

    // Embeddings with usage before the vectors.
    let vectors: Vec<f32> = (0..3000_u16).map(|i| f32::from(i) / 7.0).collect();
    let body = format!(
        r#"{{"model":"e","object":"list","usage":{{"prompt_tokens":6,"total_tokens":6}},"data":[{{"embedding":{}}}]}}"#,
        json!(vectors)
    );
    assert_eq!(report(Route::V1Embeddings, false, body.as_bytes()).count, exact(6, 0, 0));
}

#[test]
fn text_of_a_model_is_never_taken_for_a_count() {
    let evil = r#"\"eval_count\":7,\"prompt_eval_count\":7},\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":7}"#;
    let args = r#"{"eval_count":7,"prompt_eval_count":7,"done":true,"usage":{"prompt_tokens":7,"completion_tokens":7},"a\"usage":{"prompt_tokens":7}}"#;
    // Ollama leaves a count of zero out; the argument object of a tool call must not fill it in.
    for streamed in [false, true] {
        let body = format!(
            r#"{{"model":"m","message":{{"role":"assistant","content":"{evil}","tool_calls":[{{"function":{{"name":"f","arguments":{args}}}}}]}},"done":true,"done_reason":"stop","prompt_eval_count":3}}"#
        );
        assert_eq!(report(Route::Chat, streamed, body.as_bytes()).count, exact(3, 0, 0));
        let cut = &body[..body.len() - 30];
        assert!(matches!(report(Route::Chat, streamed, cut.as_bytes()).count, Count::Estimated(_)), "{cut}");
    }
    let messages = format!(
        r#"{{"type":"message","content":[{{"type":"tool_use","input":{args}}},{{"type":"text","text":"{evil}"}}],"usage":{{"input_tokens":2,"output_tokens":1}}}}"#
    );
    assert_eq!(report(Route::V1Messages, false, messages.as_bytes()).count, exact(2, 0, 1));
    let stream = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{evil}\"}},\"usage\":{args}}}]}}\n\ndata: [DONE]\n\n"
    );
    assert!(matches!(report(Route::V1Chat, true, stream.as_bytes()).count, Count::Estimated(_)));
    let text = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", r"data: [DONE]\n\n");
    assert!(!report(Route::V1Chat, true, text.as_bytes()).complete);
}

#[test]
fn hostile_numbers_are_not_counts() {
    for number in ["-1", "1e300", "99999999999999999999", "\"12\"", "true", "[1]", "{}", "1152921504606846976"] {
        let body = format!(r#"{{"done":true,"prompt_eval_count":{number},"eval_count":{number},"load_duration":-5}}"#);
        let said = report(Route::Chat, false, body.as_bytes());
        assert!(matches!(said.count, Count::Estimated(_)), "{number}: {said:?}");
        assert_eq!(said.load_ns, 0);
    }
}

#[test]
fn the_place_in_a_stream_is_known_at_every_byte() {
    let (_, body) = recorded("116-v1-responses-stream");
    let text = String::from_utf8(body).unwrap();
    for cut in 1..text.len() {
        let mut tail = tail_of(Route::V1Responses, true, &text.as_bytes()[..cut], 60);
        let (facts, seen) = (tail.facts(), &text[..cut]);
        assert!(facts.streamed);
        assert_eq!(facts.mid_line, !seen.ends_with('\n'), "{cut}");
        assert_eq!(facts.mid_event, !seen.ends_with("\n\n"), "{cut}");
        // Events whose data is whole, its closing brace at least.
        let whole =
            seen.lines().filter(|l| l.starts_with("data: ") && serde_json::from_str::<Value>(&l[6..]).is_ok()).count();
        assert_eq!(facts.sequence, whole as u64, "{cut}");
        assert_eq!(facts.response_id, (whole > 0).then_some("resp_855712"), "{cut}");
    }
    let mut empty = Tail::new(Route::V1Responses, true);
    assert!(empty.facts().streamed && !empty.facts().mid_event);
    assert!(!Tail::new(Route::V1Responses, false).facts().streamed);
    let mut single = tail_of(Route::V1Responses, true, b"{\"id\":", 9);
    assert!(!single.facts().streamed, "one value, whatever was asked for");
}

#[test]
fn a_tail_can_be_used_again() {
    let mut tail = tail_of(Route::Chat, true, &recorded("092-chat-stream").1, 100);
    tail.reset(Route::V1Chat, true);
    assert_eq!(tail.finish(&ASKED).count, Count::Estimated(Tokens { input: 100, cached: 0, output: 0 }));
    tail.push(&recorded("109-v1-chat-stream-usage").1);
    assert_eq!(tail.finish(&ASKED), report(Route::V1Chat, true, &recorded("109-v1-chat-stream-usage").1));
}

/// Text and structures as a model may write them.
fn written() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[ -~\n\"\\\\{}é]{0,40}",
        Just(r#"","eval_count":99,"usage":{"prompt_tokens":99}"#.to_owned()),
        Just("x".repeat(3000)),
    ];
    let leaf = prop_oneof![text.prop_map(Value::from), any::<u32>().prop_map(Value::from), Just(Value::Null)];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let key = prop_oneof![
            Just("usage"),
            Just("eval_count"),
            Just("prompt_tokens"),
            Just("done"),
            Just("a"),
            Just("error")
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..3)
                .prop_map(|members| { Value::Object(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()) }),
        ]
    })
}

fn count_field() -> impl Strategy<Value = Option<u64>> {
    prop::option::weighted(0.8, 1..100_000_u64)
}

/// Members of the final object in any order, the text and other parts among them.
fn object(mut members: Vec<(&'static str, Value)>, order: u64) -> String {
    let mut at = order;
    for i in (1..members.len()).rev() {
        members.swap(i, (at % (i as u64 + 1)) as usize);
        at = at.rotate_left(11).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    let inner: Vec<String> = members.iter().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
    format!("{{{}}}", inner.join(","))
}

fn assert_every_way(route: Route, streamed: bool, body: &str, step: usize, want: Count) -> Result<(), TestCaseError> {
    let whole = report(route, streamed, body.as_bytes());
    prop_assert_eq!(whole.count, want, "{}", body);
    prop_assert_eq!(tail_of(route, streamed, body.as_bytes(), step).finish(&ASKED), whole, "in steps of {}", step);
    Ok(())
}

proptest! {
    #[test]
    fn native_objects_of_any_order_and_length_are_counted(
        text in written(), context in prop::collection::vec(any::<u16>(), 0..800),
        input in count_field(), output in count_field(), order in any::<u64>(), step in 1..700_usize, lines in 0..30_usize,
        streamed in any::<bool>(),
    ) {
        let mut members = vec![("message", json!({"content": text})), ("context", json!(context)), ("done", json!(true)),
            ("logprobs", text.clone()), ("model", json!("m"))];
        members.extend(input.map(|n| ("prompt_eval_count", json!(n))));
        members.extend(output.map(|n| ("eval_count", json!(n))));
        let token = "{\"model\":\"m\",\"message\":{\"content\":\"a\"},\"done\":false}\n".repeat(if streamed { lines } else { 0 });
        let body = format!("{token}{}\n", object(members, order));
        let want = match (input, output) {
            (None, None) if streamed => Count::Estimated(Tokens { input: 100, cached: 0, output: lines.max(1) as u64 }),
            (None, None) => report(Route::Chat, streamed, body.as_bytes()).count,
            _ => exact(input.unwrap_or(0), 0, output.unwrap_or(0)),
        };
        assert_every_way(Route::Chat, streamed, &body, step, want)?;
    }

    #[test]
    fn usage_anywhere_in_a_value_is_counted(
        text in written(), input in 1..100_000_u64, output in 1..100_000_u64, cached in 0..1000_u64, order in any::<u64>(), step in 1..700_usize,
    ) {
        let cached = cached.min(input);
        let usage = json!({"completion_tokens": output, "prompt_tokens": input, "prompt_tokens_details": {"cached_tokens": cached}, "x": text});
        let body = object(vec![("choices", json!([{"message": text, "usage": usage}])), ("usage", usage.clone()), ("id", json!("c")),
            ("metadata", text.clone())], order);
        assert_every_way(Route::V1Chat, false, &body, step, exact(input, cached, output))?;
        let usage = json!({"input_tokens": input, "output_tokens": output, "input_tokens_details": {"cached_tokens": cached}});
        let response = object(vec![("output", text.clone()), ("usage", usage), ("id", json!("r")), ("tools", text.clone())], order);
        assert_every_way(Route::V1Responses, false, &response, step, exact(input, cached, output))?;
        let first = format!("event: response.created\ndata: {}\n\n", json!({"response": {"id": "r", "usage": null}, "sequence_number": 0, "type": "response.created"}));
        let stream = format!("{first}event: response.completed\ndata: {{\"response\":{response},\"type\":\"response.completed\"}}\n\n");
        assert_every_way(Route::V1Responses, true, &stream, step, exact(input, cached, output))?;
    }

    #[test]
    fn any_bytes_in_any_pieces_give_one_report(
        bytes in prop::collection::vec(prop_oneof![Just(b'{'), Just(b'"'), Just(b'\n'), Just(b':'), Just(b'}'), any::<u8>()], 0..3000),
        prefix in prop_oneof![Just(""), Just("{"), Just("data: {"), Just("{\"usage\":{"), Just("data: {\"usage\":{\"prompt_tokens\":")],
        step in 1..500_usize, route in prop::sample::select(&Route::ALL[..]), streamed in any::<bool>(),
    ) {
        let body = [prefix.as_bytes(), &bytes].concat();
        let whole = report(route, streamed, &body);
        prop_assert_eq!(tail_of(route, streamed, &body, step).finish(&ASKED), whole);
        let (mut bytewise, mut at_once) = (tail_of(route, streamed, &body, 1), tail_of(route, streamed, &body, body.len()));
        prop_assert_eq!(bytewise.facts(), at_once.facts());
    }
    #[test]
    fn chunks_that_come_together_say_what_their_bytes_say_one_by_one(
        chunks in prop::collection::vec(prop::collection::vec(line(), 1..4), 1..30), step in 1..4000_usize,
        route in prop::sample::select(&Route::ALL[..]), ends in any::<bool>(),
    ) {
        let mut chunks: Vec<String> = chunks.iter().map(|lines| lines.concat()).collect();
        if !ends && let Some(last) = chunks.last_mut() {
            last.pop();
        }
        chunks.retain(|chunk| !chunk.is_empty());
        let body = chunks.concat();
        let framed: String = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
        let mut together = chunked(route, framed.as_bytes(), step);
        let mut bytewise = tail_of(route, true, body.as_bytes(), 1);
        prop_assert_eq!(together.finish(&ASKED), bytewise.finish(&ASKED));
        prop_assert_eq!(together.facts(), bytewise.facts());
    }
}

/// A line as streams have them, or nearly.
fn line() -> impl Strategy<Value = String> {
    let count = (0..100_000_u32, 0..1_300_usize);
    prop_oneof![
        Just("\n".to_owned()),
        Just("data: [DONE]\n\n".to_owned()),
        Just("event: message_delta\n".to_owned()),
        Just("{\"message\":{\"content\":\"a\"},\"done\":false}\n".to_owned()),
        Just("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".to_owned()),
        count.clone().prop_map(|(n, long)| {
            format!("{{\"done\":true,\"prompt_eval_count\":{n},\"eval_count\":7,\"x\":\"{}\"}}\n", "y".repeat(long))
        }),
        count.prop_map(|(n, long)| {
            let padding = "y".repeat(long);
            format!("data: {{\"x\":\"{padding}\",\"usage\":{{\"prompt_tokens\":{n},\"completion_tokens\":3}}}}\n\n")
        }),
    ]
}

/// What is left of an answer whose chunks came in reads of so many bytes.
fn chunked(route: Route, framed: &[u8], step: usize) -> Tail {
    let mut decoder = ResponseDecoder::new(false, 1024);
    decoder.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let mut tail = Tail::new(route, true);
    for read in framed.chunks(step) {
        let mut at = 0;
        loop {
            let run = decoder.run(&read[at..]);
            at += run.as_bytes().len();
            tail.push_payload(Payload::Chunks(run));
            match decoder.feed(&read[at..]).unwrap() {
                (used, Item::Data(data)) => {
                    tail.push_payload(Payload::Piece(data));
                    at += used;
                }
                _ => break,
            }
        }
    }
    tail
}
