//! Cases 36 to 63 and 95 to 97: load, generation, embedding on the native routes.

use serde_json::Value;

use crate::case::{Case, JSON, NDJSON, V1, case};
use crate::support::client::Answer;

/// A chat of one message with these fields around it.
fn chat(model: &str, fields: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"x"}}]{fields}}}"#)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = loads();
    all.extend(generation());
    all.extend(options());
    all.extend(abilities());
    all.extend(embedding());
    all
}

/// An answer of a load or an unload: one object, no metrics.
fn is_short(answer: &Answer, reason: &str) -> bool {
    let body = answer.json();
    body["done"] == true && body["done_reason"] == reason && body.get("total_duration").is_none()
}

fn loads() -> Vec<Case> {
    vec![
        case(36)
            .post("/api/generate", r#"{"model":"m"}"#)
            .json("/response", "")
            .that("a load", |answer| is_short(answer, "load"))
            .get("/api/ps")
            .json("/models/0/name", "m:latest")
            .json_that("its keys in their order", |body| {
                let keys: Vec<&str> = body["models"][0].as_object().unwrap().keys().map(String::as_str).collect();
                keys == ["name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"]
            }),
        case(37)
            .post("/api/chat", r#"{"model":"m"}"#)
            .json("/message/content", "")
            .json("/message/role", "assistant")
            .that("a load", |answer| is_short(answer, "load")),
        case(39)
            .post("/api/generate", r#"{"model":"nope","keep_alive":0}"#)
            .gives(404, JSON)
            .error("model 'nope' not found")
            .post("/api/chat", r#"{"model":"nope","messages":[],"keep_alive":"0s"}"#)
            .gives(404, JSON)
            .error("model 'nope' not found"),
    ]
}

fn every_line_is_one(lines: &[Value]) -> bool {
    lines.iter().all(|line| line["model"].is_string() && line["created_at"].is_string() && line["done"].is_boolean())
}

fn last_has_the_counts(lines: &[Value]) -> bool {
    let (last, before) = lines.split_last().unwrap();
    let counts = ["prompt_eval_count", "eval_count", "total_duration", "load_duration", "eval_duration"];
    last["done"] == true
        && last["done_reason"].is_string()
        && counts.iter().all(|key| last[*key].is_u64())
        && before.iter().all(|line| line["done"] == false && line.get("eval_count").is_none())
}

fn one_line_a_chunk(answer: &Answer) -> bool {
    answer.chunks.iter().all(|chunk| chunk.ends_with(b"\n") && chunk.iter().filter(|byte| **byte == b'\n').count() == 1)
        && !answer.text().contains("\n\n")
}

fn generation() -> Vec<Case> {
    vec![
        case(40)
            .post("/api/generate", r#"{"model":"m","prompt":"x"}"#)
            .gives(200, NDJSON)
            .lines("model, created_at and done on every line", every_line_is_one)
            .lines("counts in the last", last_has_the_counts)
            .lines("context in the last", |lines| lines.last().unwrap()["context"].is_array())
            .that("one line a chunk, none blank", one_line_a_chunk),
        case(41)
            .post("/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#)
            .json("/done", true)
            .json_that("context", |body| body["context"].is_array()),
        case(42)
            .post("/api/generate", r#"{"model":"m","prompt":"x","raw":true,"stream":false}"#)
            .json_that("no context", |body| body.get("context").is_none())
            .post("/api/generate", r#"{"model":"m","prompt":"x","raw":true,"system":"y"}"#)
            .gives(400, JSON)
            .error("raw mode does not support template, system, or context"),
        case(43)
            .post("/api/chat", &chat("m", ""))
            .gives(200, NDJSON)
            .lines("model, created_at and done on every line", every_line_is_one)
            .lines("counts in the last", last_has_the_counts)
            .lines("the assistant speaks, no context", |lines| {
                lines.iter().all(|line| line["message"]["role"] == "assistant" && line.get("context").is_none())
            })
            .that("one line a chunk, none blank", one_line_a_chunk),
        case(95)
            .post("/api/chat", &chat("m", r#","_debug_render_only":true"#))
            .json("/done", false)
            .json("/message/role", "")
            .json_that("the prompt as rendered", |body| {
                body["_debug_info"]["rendered_template"].as_str().unwrap().contains("assistant")
            })
            .post("/api/generate", r#"{"model":"m","prompt":"x","_debug_render_only":true}"#)
            .json("/done", false),
        case(96).post("/api/generate", &long_context()).gives(200, NDJSON).that(
            "its last line has more than a megabyte",
            |answer| {
                let text = answer.text();
                let last = text.lines().last().unwrap();
                last.len() > 1 << 20 && answer.lines().last().unwrap()["done"] == true
            },
        ),
    ]
}

/// A generation whose `context` alone is over a megabyte.
fn long_context() -> String {
    let ids: Vec<String> = (0..250_000).map(|at| (10_000 + at % 30_000).to_string()).collect();
    let context = ids.join(",");
    format!(r#"{{"model":"wide","prompt":"x","context":[{context}],"options":{{"num_ctx":400000}}}}"#)
}

fn options() -> Vec<Case> {
    vec![
        case(44)
            .post("/api/chat", &chat("m", r#","stream":false,"options":{"num_predict":1}"#))
            .json("/done_reason", "length")
            .json("/eval_count", 1),
        case(45)
            .post("/api/chat", &chat("m", r#","options":{"temperature":"hot"}"#))
            .gives(500, JSON)
            .error("option \"temperature\" must be of type float32")
            .post("/api/chat", &chat("m", r#","options":{"num_ctx":"x"}"#))
            .gives(500, JSON)
            .error("option \"num_ctx\" must be of type integer")
            .post("/v1/chat/completions", &chat("m", r#","temperature":"hot""#))
            .gives(400, JSON)
            // All nodes are still there.
            .post("/api/chat", &chat("m", r#","stream":false"#))
            .json("/done", true),
        case(46).post("/api/chat", &chat("m", r#","stream":false,"options":{"bogus":1}"#)).json("/done", true),
        case(47)
            .post("/api/chat", &chat("m", r#","stream":false,"format":"json""#))
            .json_that("its content is JSON", content_is_json)
            .post("/api/chat", &chat("m", r#","format":"json""#))
            .gives(200, NDJSON)
            .lines("the pieces make JSON", |lines| {
                let said: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
                serde_json::from_str::<Value>(&said).is_ok()
            })
            .post(
                "/api/chat",
                &chat(
                    "m",
                    r#","stream":false,"format":{"type":"object","properties":{"age":{"type":"integer"}},"required":["age"]}"#,
                ),
            )
            .json_that("its content is as the schema says", |body| {
                let said = body["message"]["content"].as_str().unwrap();
                serde_json::from_str::<Value>(said).unwrap()["age"].is_i64()
            })
            .post("/api/chat", &chat("m", r#","format":"xml""#))
            .gives(500, V1)
            .has(r#"{"error":"invalid format: "#)
            .post("/api/chat", &chat("m", r#","format":"xml","stream":false"#))
            .gives(500, JSON)
            .has("expected \\\"json\\\" or a valid JSON Schema object"),
        case(53)
            .post("/api/chat", &chat("m", r#","stream":false,"logprobs":true,"top_logprobs":3"#))
            .json_that("token, logprob, bytes, three alternatives", |body| {
                let all = body["logprobs"].as_array().unwrap();
                !all.is_empty()
                    && all.iter().all(|one| {
                        one["token"].is_string()
                            && one["logprob"].is_f64()
                            && one["bytes"].is_array()
                            && one["top_logprobs"].as_array().unwrap().len() == 3
                    })
            })
            .post("/api/chat", &chat("nope", r#","top_logprobs":21"#))
            .gives(400, JSON)
            .error("top_logprobs must be between 0 and 20"),
        case(54)
            .post("/api/generate", r#"{"model":"m","prompt":"x","keep_alive":"abc"}"#)
            .gives(400, JSON)
            .error("time: invalid duration \"abc\"")
            .post("/api/generate", r#"{"model":"m","keep_alive":"5"}"#)
            .gives(400, JSON)
            .error("time: missing unit in duration \"5\"")
            .post("/api/generate", r#"{"model":"nope","keep_alive":true}"#)
            .gives(400, JSON)
            .error("Unsupported type: 'bool'"),
        case(55)
            .post("/api/generate", r#"{"model":"m","keep_alive":-1}"#)
            .that("a load", |answer| is_short(answer, "load"))
            .get("/api/ps")
            .in_the_end()
            .json("/models/0/name", "m:latest")
            .json_that("centuries ahead", |body| body["models"][0]["expires_at"].as_str().unwrap().starts_with("23"))
            .post("/api/generate", r#"{"model":"m","keep_alive":"5m"}"#)
            .that("a load", |answer| is_short(answer, "load")),
    ]
}

fn content_is_json(body: &Value) -> bool {
    serde_json::from_str::<Value>(body["message"]["content"].as_str().unwrap()).is_ok()
}

const TOOL: &str = r#"{"type":"function","function":{"name":"weather","description":"d","parameters":{"type":"object","required":["city"],"properties":{"city":{"type":"string"}}}}}"#;

fn abilities() -> Vec<Case> {
    let tools = format!(r#","stream":false,"tools":[{TOOL}]"#);
    let big = format!(r#","stream":false,"sim":{{"tokens":2}},"pad":"{}""#, "x".repeat(11 << 20));
    let image = |data: &str| {
        format!(r#"{{"model":"sees","stream":false,"messages":[{{"role":"user","content":"x","images":["{data}"]}}]}}"#)
    };
    vec![
        case(48)
            .post("/api/chat", &chat("m", r#","think":true"#))
            .gives(400, JSON)
            .error("\"m\" does not support thinking")
            .post("/v1/messages", &chat("m", r#","max_tokens":4,"thinking":{"type":"enabled"}"#))
            .gives(200, V1),
        case(49)
            .post("/api/chat", &chat("thinks", ""))
            .gives(200, NDJSON)
            .lines("thoughts before content", |lines| {
                let thinks = |line: &Value| line["message"].get("thinking").is_some();
                let says = |line: &Value| line["message"]["content"] != "";
                let first_said = lines.iter().position(says).unwrap();
                thinks(&lines[0]) && lines.iter().rposition(thinks).unwrap() < first_said
            })
            .post("/api/chat", &chat("thinks", r#","think":false,"stream":false"#))
            .json_that("no thought", |body| body["message"].get("thinking").is_none())
            .post("/api/chat", &chat("thinks", r#","think":"foo""#))
            .gives(400, JSON)
            .error("invalid think value: \"foo\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)"),
        case(50)
            .post("/api/chat", &chat("m", &tools))
            .gives(400, JSON)
            .error("registry.ollama.ai/library/m:latest does not support tools"),
        case(51)
            .post("/api/chat", &chat("tools", &tools))
            .json_that("arguments are an object", |body| {
                body["message"]["tool_calls"][0]["function"]["arguments"]["city"].is_string()
            })
            .post("/v1/chat/completions", &chat("tools", &tools))
            .gives(200, V1)
            .json("/choices/0/finish_reason", "tool_calls")
            .json_that("arguments are a string", |body| {
                let call = &body["choices"][0]["message"]["tool_calls"][0];
                serde_json::from_str::<Value>(call["function"]["arguments"].as_str().unwrap()).unwrap()["city"]
                    .is_string()
            })
            .post("/v1/chat/completions", &chat("tools", &tools.replace("false", "true")))
            .gives(200, "text/event-stream")
            .has("tool_calls"),
        case(52)
            .post("/api/chat", &image("aGVsbG8="))
            .json("/done", true)
            .post("/api/chat", &image("a!b"))
            .gives(400, JSON)
            .has("illegal base64 data")
            .post("/api/chat", &chat("m", &big))
            .json("/eval_count", 2)
            .post("/api/chat", &image("aGVsbG8=").replace("sees", "m"))
            .gives(400, JSON)
            .has("does not support multimodal requests"),
        case(62)
            .post("/api/chat", &chat("e", ""))
            .gives(400, JSON)
            .error("\"e\" does not support chat")
            .post("/api/generate", r#"{"model":"e","prompt":"x"}"#)
            .gives(400, JSON)
            .error("\"e\" does not support generate"),
    ]
}

fn is_unit(vector: &Value) -> bool {
    let norm: f64 = vector.as_array().unwrap().iter().map(|x| x.as_f64().unwrap().powi(2)).sum();
    (norm - 1.0).abs() < 1e-4
}

fn embedding() -> Vec<Case> {
    let long = format!(r#"{{"model":"e","input":"{}""#, "a ".repeat(5_000));
    vec![
        case(56).post("/api/embed", r#"{"model":"e","input":["a","b"]}"#).json("/prompt_eval_count", 2).json_that(
            "two unit vectors",
            |body| {
                let all = body["embeddings"].as_array().unwrap();
                all.len() == 2 && all[0] != all[1] && all.iter().all(is_unit)
            },
        ),
        case(57)
            .post("/api/embed", r#"{"model":"e","input":""}"#)
            .body(r#"{"model":"e","embeddings":[]}"#)
            .post("/api/embed", r#"{"model":"E"}"#)
            .body(r#"{"model":"E","embeddings":[]}"#)
            .post("/api/embed", r#"{"model":"e","input":[]}"#)
            .body(r#"{"model":"e","embeddings":[]}"#),
        case(58)
            .post("/api/embed", r#"{"model":"e","input":[1]}"#)
            .gives(400, JSON)
            .error("invalid input type")
            .post("/api/embed", r#"{"model":"nope","input":5}"#)
            .gives(400, JSON)
            .error("invalid input type"),
        case(59)
            .post("/api/embed", &format!(r#"{long},"truncate":false}}"#))
            .gives(400, JSON)
            .error("the input length exceeds the context length")
            .post("/api/embed", &format!("{long}}}"))
            .json("/prompt_eval_count", 4096),
        case(60).post("/api/embed", r#"{"model":"e","input":"a","dimensions":16}"#).json_that(
            "16 numbers, norm 1",
            |body| {
                let vector = &body["embeddings"][0];
                vector.as_array().unwrap().len() == 16 && is_unit(vector)
            },
        ),
        case(61)
            .post("/api/embeddings", r#"{"model":"e","prompt":"a"}"#)
            .json_that("the vector alone", |body| body.as_object().unwrap().keys().eq(["embedding"]))
            .post("/api/embeddings", r#"{"model":"e","prompt":""}"#)
            .body(r#"{"embedding":[]}"#)
            // The one inference route that does not map the case of a name.
            .post("/api/embeddings", r#"{"model":"E","prompt":"a"}"#)
            .gives(404, JSON)
            .error("model \"E\" not found, try pulling it first"),
        case(63)
            .post("/v1/embeddings", r#"{"model":"e","input":"a","encoding_format":"base64"}"#)
            .gives(200, V1)
            .json_that("a text", |body| body["data"][0]["embedding"].is_string())
            .post("/v1/embeddings", r#"{"model":"e","input":"a","encoding_format":"hex"}"#)
            .gives(400, JSON)
            .post("/v1/embeddings", r#"{"model":"e","input":null}"#)
            .gives(400, JSON)
            .json("/error/message", "invalid input"),
        case(97)
            .post("/api/embed", r#"{"model":"m","input":"a"}"#)
            .gives(501, JSON)
            .has("This server does not support embeddings")
            .post("/api/embeddings", r#"{"model":"m","prompt":"a"}"#)
            .gives(500, JSON)
            .has("This server does not support embeddings")
            .post("/v1/embeddings", r#"{"model":"m","input":"a"}"#)
            .gives(501, V1)
            .json("/error/type", "api_error"),
    ]
}
