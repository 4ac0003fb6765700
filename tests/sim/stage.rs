//! Sets a node up as the recorded one was, and plays a request to it.

use std::io::{Read, Write};
use std::time::Duration;

use herdgate::sim::{Capability, Cloud, Fault, Harm, ModelSpec, Node, NodeSpec, Remote};

use crate::wire::{self, Answer};

/// Recordings whose error text holds something of its own (an id, an address): compared by shape.
pub(crate) const WORDED_OTHERWISE: &[&str] = &[
    "035-body-empty-v1-messages",
    "065-cloud-unreachable-v1-messages",
    "073-valid-v1-messages-max-tokens",
    "143-queue-full-v1-messages",
];

/// Recordings that end at some point of a stream: repeated chunks of one shape count once.
pub(crate) const ANY_NUMBER: &[&str] = &[
    "111-v1-chat-max-completion-tokens",
    "144-runner-killed-chat",
    "145-runner-killed-v1-chat",
    "146-runner-killed-v1-completions",
    "147-runner-killed-v1-responses",
    "148-runner-killed-v1-messages",
    "150-node-kill-chat",
    "151-node-term-chat",
];

const WEIGHTS: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

fn chat(name: &str) -> ModelSpec {
    ModelSpec {
        weights: WEIGHTS.to_owned(),
        size: 98_363_007,
        parent: format!("/srv/ollama/models/blobs/sha256-{WEIGHTS}"),
        ..ModelSpec::chat(name)
    }
}

/// The recorded server's models.
fn spec() -> NodeSpec {
    let remote = |fails| Remote { model: "up:latest".into(), host: "http://127.0.0.1:45531".into(), fails };
    let mut models = vec![chat("smollm2:135m"), chat("second"), ModelSpec::embedding("e")];
    models.push(ModelSpec::tools("tools"));
    models.push(ModelSpec::thinking("thinks"));
    models.push(ModelSpec::stub("stub", remote(None)));
    NodeSpec { version: "0.33.0-rc2".to_owned(), ..NodeSpec::ollama(models) }
}

fn node_for(name: &str) -> Node {
    let mut spec = spec();
    match name {
        "005-tags-empty" | "006-v1-models-empty" => spec.models.clear(),
        "007-tags" | "008-tags-head" | "013-v1-models" => spec.models.truncate(3),
        "009-tags-head-long" => spec.models.extend((0..20).map(|i| ModelSpec::chat(&format!("m{i}")))),
        "030-origins-star" => spec.origins = vec!["*".to_owned()],
        "063-cloud-off-chat" | "064-cloud-off-v1-chat" => spec.cloud = Cloud::Disabled,
        "106-stub-404-chat" => {
            for model in &mut spec.models {
                if let Some(remote) = &mut model.remote {
                    remote.fails = Some(404);
                }
            }
        }
        "126-delete" => spec.models.push(chat("third")),
        "128-delete-chunked" => spec.models.push(chat("fourth")),
        "131-pull" => spec.registry.push(ModelSpec::chat("127.0.0.1:34767/a/m")),
        "132-pull-installed" => spec.models.push(ModelSpec::chat("127.0.0.1:34767/a/m")),
        "141-queue-full-chat" | "142-queue-full-v1-chat" | "143-queue-full-v1-messages" => spec.max_queue = 1,
        "111-v1-chat-max-completion-tokens" | "150-node-kill-chat" | "151-node-term-chat" => {
            spec.token_time = Duration::from_millis(1);
        }
        _ => {}
    }
    Node::start(spec).unwrap()
}

/// Requests that had been answered before.
fn before(name: &str) -> Vec<(&'static str, String)> {
    let generate = |body: &str| ("/api/generate", body.to_owned());
    match name {
        "080-ps-loaded" => vec![generate(r#"{"model":"smollm2:135m"}"#)],
        "082-ps-forever" => vec![generate(r#"{"model":"smollm2:135m","keep_alive":-1}"#)],
        "084-ps-second-name" => {
            vec![generate(r#"{"model":"smollm2:135m"}"#), generate(r#"{"model":"second","keep_alive":300}"#)]
        }
        "086-ps-after-unload" => {
            vec![generate(r#"{"model":"smollm2:135m"}"#), generate(r#"{"model":"second","keep_alive":0}"#)]
        }
        "136-blob-head" | "138-blob-post-again" => {
            vec![(BLOB, "hello\n".to_owned())]
        }
        _ => Vec::new(),
    }
}

const BLOB: &str = "/api/blobs/sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

/// Plays a recorded request and returns all that came back.
pub(crate) fn play(name: &str, request: &[u8]) -> Vec<u8> {
    let node = node_for(name);
    for (path, body) in before(name) {
        let answer = wire::exchange(node.address(), &wire::post(path, &body));
        assert!(Answer::read(&answer).unwrap().status() < 300, "{name}: {}", String::from_utf8_lossy(&answer));
    }
    let number: u32 = name[..3].parse().unwrap();
    match number {
        111 => until(&node, request, b"\"content\":\" herd\"},\"finish_reason\":null}]}\n\n\r\n", None),
        141..=143 => queue_full(&node, request),
        144..=149 => {
            node.fault(Fault::new(Harm::RunnerDies(28)).next(1));
            wire::exchange(node.address(), request)
        }
        150 => until(&node, request, b"\"content\":\".\"", Some(&Node::kill)),
        151 => until(&node, request, b"\"content\":\".\"", Some(&Node::stop)),
        _ => wire::exchange(node.address(), request),
    }
}

/// Fills the queue with loads that never end, then asks.
fn queue_full(node: &Node, request: &[u8]) -> Vec<u8> {
    node.fault(Fault::new(Harm::LoadHangs));
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut stream = wire::connect(node.address());
        stream.write_all(&wire::post("/api/generate", r#"{"model":"smollm2:135m"}"#)).unwrap();
        waiting.push(stream);
    }
    while node.waiting().0 < 2 {
        std::thread::yield_now();
    }
    wire::exchange(node.address(), request)
}

/// Reads until a text has come; then leaves, or does something and reads what is left.
fn until(node: &Node, request: &[u8], text: &[u8], then: Option<&dyn Fn(&Node)>) -> Vec<u8> {
    let mut stream = wire::connect(node.address());
    stream.write_all(request).unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 1];
    while !got.windows(text.len()).any(|w| w == text) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "ended early: {}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&buffer[..read]);
    }
    let Some(then) = then else { return got };
    then(node);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        got.extend_from_slice(&buffer[..read]);
        if Answer::read(&got).is_some_and(|a| a.body.ends_with(b"0\r\n\r\n")) {
            break;
        }
    }
    got
}

/// Plays what a client sent on one connection; the statuses that came back.
pub(crate) fn play_client(requests: &[u8]) -> Vec<u16> {
    let mut spec = spec();
    for model in &mut spec.models {
        if model.name.starts_with("smollm2") {
            model.capabilities.push(Capability::Tools);
        }
    }
    spec.output_tokens = 4;
    let node = Node::start(spec).unwrap();
    let mut statuses = Vec::new();
    let mut rest = requests;
    let mut stream = wire::connect(node.address());
    while !rest.is_empty() {
        let head = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let text = String::from_utf8_lossy(&rest[..head]).to_ascii_lowercase();
        let length =
            text.split("content-length: ").nth(1).map_or(0, |l| l.split("\r\n").next().unwrap().parse().unwrap());
        let (one, after) = rest.split_at(head + length);
        stream.write_all(one).unwrap();
        let answer = wire::read_answer(&mut stream, one.starts_with(b"HEAD "));
        statuses.push(Answer::read(&answer).unwrap().status());
        rest = after;
    }
    statuses
}
