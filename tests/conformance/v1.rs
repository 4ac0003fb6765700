//! Cases 64 to 71: streams of the OpenAI and Anthropic routes, zstd, prompts that are too long.

use herdgate::sim::{Capability, ModelSpec};
use serde_json::Value;

use crate::case::{Case, JSON, NDJSON, SSE, V1, case};
use crate::compare;
use crate::stage::Stage;
use crate::support::client::{Answer, once, request};

const CHAT: &str = r#""messages":[{"role":"user","content":"x"}]"#;

pub(crate) fn cases() -> Vec<Case> {
    let mut all = openai();
    all.extend(others());
    all.push(too_long());
    all
}

fn is_first_of_the_assistant(events: &[Value]) -> bool {
    events[0]["choices"][0]["delta"]["role"] == "assistant"
}

/// The finish chunk, what follows it and `[DONE]` are one chunk.
fn ends_in_one_chunk(answer: &Answer) -> bool {
    let last = String::from_utf8_lossy(answer.chunks.last().unwrap()).into_owned();
    last.contains("\"finish_reason\":\"stop\"") && last.ends_with("data: [DONE]\n\n")
}

fn openai() -> Vec<Case> {
    let chat = |rest: &str| format!(r#"{{"model":"m",{CHAT}{rest}}}"#);
    let completion = |rest: &str| format!(r#"{{"model":"m","prompt":"x"{rest}}}"#);
    let usage = r#","stream":true,"stream_options":{"include_usage":true}"#;
    vec![
        case(64)
            .post("/v1/chat/completions", &chat(r#","stream":true"#))
            .gives(200, SSE)
            .events("the first has the role", is_first_of_the_assistant)
            .events("an empty delta finishes", |events| {
                let last = &events.last().unwrap()["choices"][0];
                last["delta"] == serde_json::json!({}) && last["finish_reason"] == "stop"
            })
            .that("ends in one chunk", ends_in_one_chunk)
            .lacks("usage")
            .post("/v1/chat/completions", &chat(""))
            .gives(200, V1)
            .json("/object", "chat.completion")
            .json_that("usage adds up", |body| {
                let of = |key: &str| body["usage"][key].as_u64().unwrap();
                of("prompt_tokens") + of("completion_tokens") == of("total_tokens")
            })
            .that("ends with a newline", |answer| answer.text().ends_with("}\n"))
            .post("/v1/chat/completions", &chat(r#","max_completion_tokens":2"#))
            .gives(200, V1)
            .json("/usage/completion_tokens", 32),
        case(65)
            .post("/v1/chat/completions", &chat(usage))
            .gives(200, SSE)
            .events("one with usage, the last", |events| {
                let with: Vec<usize> = (0..events.len()).filter(|at| events[*at].get("usage").is_some()).collect();
                with == [events.len() - 1] && events.last().unwrap()["choices"] == serde_json::json!([])
            })
            .that("ends in one chunk", ends_in_one_chunk),
        case(66)
            .post("/v1/completions", &completion(usage))
            .gives(200, SSE)
            .events("zeroes, then the real one", |events| {
                let (last, before) = events.split_last().unwrap();
                before.iter().all(|event| event["usage"]["total_tokens"] == 0)
                    && last["usage"]["total_tokens"].as_u64().unwrap() > 0
                    && last["choices"] == serde_json::json!([])
            })
            .that("ends in one chunk", ends_in_one_chunk)
            .post("/v1/completions", r#"{"model":"m","prompt":""}"#)
            .gives(200, V1)
            .json("/choices/0/finish_reason", "load"),
        case(67)
            .post("/v1/completions", r#"{"model":"m","prompt":["a"]}"#)
            .gives(400, JSON)
            .json("/error/type", "invalid_request_error")
            .post("/v1/completions", r#"{"model":"nope","prompt":["a"]}"#)
            .gives(400, JSON),
    ]
}

/// The types of events, in order; each pair is one chunk.
fn event_names(answer: &Answer) -> Vec<String> {
    answer
        .chunks
        .iter()
        .map(|chunk| {
            let text = String::from_utf8_lossy(chunk).into_owned();
            assert_eq!(text.matches("event: ").count(), 1, "{text}");
            text.lines().next().unwrap().trim_start_matches("event: ").to_owned()
        })
        .collect()
}

/// One block that is not compressed, in a frame that says how long it is.
fn zstd(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&((length << 3) | 1).to_le_bytes()[..3]);
    out.extend_from_slice(body);
    out
}

fn others() -> Vec<Case> {
    let packed =
        |path: &str, body: &str| request("POST", path, &[("Content-Encoding", "zstd")], &zstd(body.as_bytes()));
    let responses = r#"{"model":"m","input":"x","stream":true}"#;
    vec![
        case(68)
            .post("/v1/responses", responses)
            .gives(200, SSE)
            .line("cache-control", "no-cache")
            .that("created first, completed last, one event a chunk", |answer| {
                let names = event_names(answer);
                names[..2] == ["response.created", "response.in_progress"] && names.last().unwrap() == "response.completed"
            })
            .events("numbered from zero", |events| {
                events.iter().enumerate().all(|(at, event)| event["sequence_number"] == at)
            })
            .lacks("[DONE]"),
        case(69)
            .ask(packed("/v1/responses", r#"{"model":"m","input":"x"}"#))
            .gives(200, V1)
            .json("/status", "completed")
            .ask(packed("/v1/chat/completions", &format!(r#"{{"model":"m",{CHAT},"stream":true}}"#)))
            .gives(200, SSE)
            .ask(packed("/v1/chat/completions", &format!(r#"{{"model":"nope",{CHAT}}}"#)))
            .gives(404, V1)
            .json("/error/message", "model 'nope' not found")
            .ask(packed("/api/chat", &format!(r#"{{"model":"m",{CHAT}}}"#)))
            .gives(400, JSON)
            .has("invalid character")
            .ask(request("POST", "/v1/chat/completions", &[("Content-Encoding", "zstd")], b"no frame at all"))
            .gives(400, JSON)
            .ask(request("POST", "/v1/chat/completions", &[("Content-Encoding", "gzip")], b"\x1f\x8b\x08\x00"))
            .gives(400, JSON)
            .has("invalid character '\\\\x1f'"),
        case(70)
            .post("/v1/messages", &format!(r#"{{"model":"m","max_tokens":8,{CHAT},"stream":true}}"#))
            .gives(200, SSE)
            .that("start first, stop last, one event a chunk", |answer| {
                let names = event_names(answer);
                names[0] == "message_start" && names.last().unwrap() == "message_stop"
            })
            .events("totals in message_delta", |events| {
                let delta = events.iter().find(|event| event["type"] == "message_delta").unwrap();
                delta["usage"]["output_tokens"] == 8 && delta["usage"]["input_tokens"].as_u64().unwrap() > 0
            })
            .post("/v1/messages", &format!(r#"{{"model":"m","max_tokens":8,{CHAT}}}"#))
            .gives(200, V1)
            .json("/stop_reason", "max_tokens")
            .post(
                "/v1/messages",
                &format!(r#"{{"model":"m","max_tokens":8,"stream":true,"tools":[{{"type":"web_search_20250305","name":"web_search"}}],{CHAT}}}"#),
            )
            .gives(200, NDJSON)
            .has("event: message_stop"),
    ]
}

fn too_long() -> Case {
    let long = "word ".repeat(600);
    let body = |model: &str, rest: &str| {
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"{long}"}}],"stream":false{rest}}}"#)
    };
    let refused = |answer: &Answer| {
        let inner = answer.json()["error"].as_str().unwrap().to_owned();
        let inner: Value = serde_json::from_str(&inner).unwrap();
        inner["error"]["type"] == "exceed_context_size_error" && inner["error"]["n_ctx"] == 256
    };
    case(71)
        // The GGUF's own template: never truncated.
        .post("/api/chat", &body("narrow", ""))
        .gives(400, JSON)
        .that("llama-server's refusal as a text", refused)
        .post("/api/chat", &body("m", r#","options":{"num_ctx":256}"#))
        .json("/prompt_eval_count", 256)
        .post("/api/chat", &body("m", r#","options":{"num_ctx":256},"truncate":false"#))
        .gives(400, JSON)
        .that("llama-server's refusal as a text", refused)
        .post("/v1/chat/completions", &body("narrow", ""))
        .gives(400, V1)
        .json("/error/type", "invalid_request_error")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transcription_takes_its_fields_from_the_query_first() {
    let hears = || ModelSpec::new("hears", &[Capability::Completion, Capability::Audio]);
    let stage = Stage::with(vec![(hears(), [false, true, false]), (ModelSpec::chat("m"), [true; 3])], "", |_| ()).await;
    let form = |model: &str| {
        format!(
            "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n\
             --X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--X--\r\n"
        )
    };
    let kind = [("Content-Type", "multipart/form-data; boundary=X")];
    for (query, model, status) in [
        ("", "hears", 200),
        ("?model=hears", "m", 200),
        ("?model=hears%3Alatest&response_format=text", "nope", 200),
        ("?model=nope", "hears", 404),
        ("?model=", "hears", 400),
        ("", "nope", 404),
    ] {
        let path = format!("/v1/audio/transcriptions{query}");
        let bytes = request("POST", &path, &kind, form(model).as_bytes());
        let direct = once(stage.node.address(), &bytes).await;
        let through = once(stage.proxy.address, &bytes).await;
        assert_eq!(direct.status, status, "{path} {}", direct.text());
        let differ = compare::differences(&direct, &through);
        assert!(differ.is_empty(), "{path} {model}\n{}", differ.join("\n"));
    }
}
