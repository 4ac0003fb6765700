//! The habits of a simulated llama.cpp server.

use std::io::Write;

use herdgate::sim::{Ending, Fault, Harm, ModelSpec, Node, NodeSpec, Tokens};
use serde_json::Value;

use crate::wire::{self, Answer, exchange, post};

fn node() -> Node {
    Node::start(NodeSpec::llama_cpp(ModelSpec::chat("smollm2:135m")).slots(2)).unwrap()
}

fn get(node: &Node, path: &str) -> Vec<u8> {
    exchange(node.address(), format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
}

fn json(answer: &[u8]) -> Value {
    serde_json::from_slice(&Answer::read(answer).unwrap().payload()).unwrap()
}

const CHAT: &str = r#"{"model":"whatever","messages":[{"role":"user","content":"one two"}],"max_tokens":3}"#;

#[test]
fn says_who_it_is() {
    let node = node();
    assert_eq!(json(&get(&node, "/health"))["status"], "ok");
    let models = json(&get(&node, "/v1/models"));
    assert_eq!(models["models"][0]["name"], "smollm2:135m");
    assert_eq!(models["data"][0]["id"], "smollm2:135m");
    assert!(models["data"][0]["meta"]["n_ctx"].is_number());
    assert_eq!(json(&get(&node, "/props"))["total_slots"], 2);
    assert_eq!(Answer::read(&get(&node, "/api/tags")).unwrap().status(), 404);
}

#[test]
fn ignores_the_model_and_counts_in_timings() {
    let node = node();
    let answer = exchange(node.address(), &post("/v1/chat/completions", CHAT));
    let body = json(&answer);
    assert_eq!(body["model"], "smollm2:135m");
    let (timings, usage) = (&body["timings"], &body["usage"]);
    assert_eq!(timings["cache_n"].as_u64().unwrap() + timings["prompt_n"].as_u64().unwrap(), 12);
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"], &timings["predicted_n"]),
        (&12.into(), &3.into(), &3.into())
    );
    assert_eq!(node.ledger().model("smollm2:135m").tokens, Tokens { prompt: 12, output: 3 });
}

#[test]
fn streams_usage_only_when_asked_and_timings_always() {
    let node = node();
    let stream = |more: &str| {
        let body = CHAT.replace("\"max_tokens\"", &format!("\"stream\":true{more},\"max_tokens\""));
        String::from_utf8(
            Answer::read(&exchange(node.address(), &post("/v1/chat/completions", &body))).unwrap().payload(),
        )
        .unwrap()
    };
    let bare = stream("");
    assert!(bare.contains("\"timings\"") && !bare.contains("\"usage\"") && bare.ends_with("data: [DONE]\n\n"));
    let counted = stream(r#","stream_options":{"include_usage":true}"#);
    let last = counted.trim_end().rsplit("\n\n").nth(1).unwrap();
    assert!(last.starts_with("data: {\"choices\":[]") && last.contains("\"usage\"") && last.contains("\"timings\""));
}

#[test]
fn means_its_keep_alive() {
    let node = node();
    let mut stream = wire::connect(node.address());
    for served in 1..=100 {
        stream.write_all(&post("/v1/chat/completions", CHAT)).unwrap();
        let answer = wire::read_answer(&mut stream, false);
        let answer = Answer::read(&answer).unwrap();
        let expected = if served < 100 { (Some("timeout=5, max=100"), None) } else { (None, Some("close")) };
        assert_eq!((answer.header("Keep-Alive"), answer.header("Connection")), expected, "answer {served}");
    }
    assert!(wire::read_answer(&mut stream, false).is_empty(), "closed");
}

#[test]
fn closes_after_every_error() {
    let node = node();
    for request in [
        post("/v1/chat/completions", "{"),
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
    ] {
        let mut stream = wire::connect(node.address());
        stream.write_all(&request).unwrap();
        let answer = wire::read_answer(&mut stream, request.starts_with(b"HEAD"));
        let answer = Answer::read(&answer).unwrap();
        assert!(answer.status() >= 400);
        assert_eq!(answer.header("Connection"), Some("close"));
        assert!(wire::read_answer(&mut stream, false).is_empty());
    }
    assert_eq!(node.ledger().ended(Ending::Refused), 3);
}

#[test]
fn says_when_it_loads() {
    let node = node();
    node.fault(Fault::new(Harm::Busy).for_path("/health").next(1));
    let answer = get(&node, "/health");
    assert_eq!(Answer::read(&answer).unwrap().status(), 503);
    assert_eq!(json(&answer)["error"]["message"], "Loading model");
    assert_eq!(json(&get(&node, "/health"))["status"], "ok");
}
