//! Recorded exchanges of a real Ollama, replayed through the proxy: as nodes (bytes unchanged, counts right) and as
//! clients (every request answered as its client can use it).

use std::collections::BTreeSet;
use std::path::PathBuf;

use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use herdgate::usage::Tokens;

use crate::support::client::{Answer, Client, find};
use crate::support::proxy::Proxy;
use crate::support::scripted::{self, After, Scripted, Step};

fn file(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transcripts").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of all recordings, `.req` cut off.
fn recordings() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transcripts");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter_map(|name| name.strip_suffix(".req").map(str::to_owned)).collect();
    names.sort();
    names
}

/// What is not replayed as a node, by number, with the reason.
const NOT_REPLAYED: &[(&str, &str)] = &[
    ("023", "answered by the proxy alone: a trailing slash"),
    ("025", "answered by the proxy alone: a double slash"),
    ("027", "a preflight"),
    ("152", "HTTP/1.0: the proxy's own framing, see bad_input"),
    ("153", "HTTP/1.0: the proxy's own framing, see bad_input"),
    ("155", "answered by the proxy alone: an unknown Expect"),
    ("156", "ambiguous framing, see bad_input"),
    ("157", "ambiguous framing, see bad_input"),
    ("064", "a cloud name: refused here, see bad_input"),
    ("065", "a cloud name: refused here, see bad_input"),
    ("063", "a cloud name: refused here, see bad_input"),
];

/// Answers that tell no tokens: the legacy embeddings, a stub whose server tells none, streams whose client asked for no usage, and what a dying runner or
/// node cut short.
const ESTIMATED: &[&str] = &[
    "101-embeddings",
    "105-stub-ok-chat",
    "108-v1-chat-stream",
    "111-v1-chat-max-completion-tokens",
    "118-tools-v1-stream",
    "120-thinks-v1-stream",
    "144-runner-killed-chat",
    "145-runner-killed-v1-chat",
    "146-runner-killed-v1-completions",
    "147-runner-killed-v1-responses",
    "148-runner-killed-v1-messages",
    "150-node-kill-chat",
    "151-node-term-chat",
];

const REPLAYED_PATHS: [&str; 11] = [
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/audio/transcriptions",
];

/// A recorded answer: interim heads skipped, chunks taken apart, and the raw pieces as they were sent.
struct Recorded {
    answer: Answer,
    pieces: Vec<Vec<u8>>,
}

fn read(raw: &[u8]) -> Recorded {
    let mut at = 0;
    let (mut answer, mut end);
    loop {
        end = at + find(&raw[at..], b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&raw[at..end]).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        answer = Answer { status, headers, ..Answer::default() };
        if status != 100 {
            break;
        }
        at = end;
    }
    let mut pieces = vec![raw[..end].to_vec()];
    if answer.header("transfer-encoding") != Some("chunked") {
        pieces.push(raw[end..].to_vec());
        answer.body = raw[end..].to_vec();
        answer.whole = true;
        return Recorded { answer, pieces };
    }
    let mut at = end;
    while let Some(line) = find(&raw[at..], b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[at..at + line]).unwrap(), 16).unwrap();
        let data = at + line + 2;
        pieces.push(raw[at..data + size + 2].to_vec());
        at = data + size + 2;
        if size == 0 {
            answer.whole = true;
            break;
        }
        answer.body.extend_from_slice(&raw[data..data + size]);
        answer.chunks.push(raw[data..data + size].to_vec());
    }
    Recorded { answer, pieces }
}

/// The model that a recorded request names, if its body can be read.
fn model_of(request: &[u8]) -> Option<String> {
    let body = &request[find(request, b"\r\n\r\n")? + 4..];
    let json: serde_json::Value = serde_json::Deserializer::from_slice(body).into_iter().next()?.ok()?;
    let named = ["model", "name"].iter().filter_map(|key| json[*key].as_str()).find(|name| !name.is_empty())?;
    let last = named.rsplit('/').next()?;
    Some(if last.contains(':') { named.to_owned() } else { format!("{named}:latest") })
}

/// Tokens that an answer tells, read without any help of the proxy's code.
fn told(path: &str, answer: &Answer) -> Option<Tokens> {
    if answer.status != 200 {
        return None;
    }
    let text = answer.text();
    let mut values: Vec<serde_json::Value> = Vec::new();
    for line in text.lines() {
        let line = line.strip_prefix("data: ").unwrap_or(line);
        values.extend(serde_json::from_str::<serde_json::Value>(line));
    }
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    let mut found = None;
    for value in &values {
        let usage = [&value["usage"], &value["response"]["usage"]].into_iter().find(|usage| usage.is_object());
        if path.starts_with("/api/") {
            if value.get("eval_count").or(value.get("prompt_eval_count")).is_some() {
                let (input, output) = (number(&value["prompt_eval_count"]), number(&value["eval_count"]));
                found = Some(Tokens { input, output, cached: 0 });
            }
        } else if let Some(usage) = usage {
            let one_of = |a: &str, b: &str| number(usage.get(a).unwrap_or(&usage[b]));
            let input = one_of("prompt_tokens", "input_tokens");
            let output = one_of("completion_tokens", "output_tokens");
            // Legacy completions carry empty usages until the last.
            if input + output > 0 {
                found = Some(Tokens { input, output, cached: 0 });
            }
        }
    }
    found
}

/// A node that answers with the recording that the request's header names, in the recorded pieces.
fn recorded_node(models: &BTreeSet<String>) -> Scripted {
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    Scripted::start(&models, |asked| {
        let name = asked.header("x-recording").expect("a replay names its recording");
        let recorded = read(&file(&format!("{name}.resp")));
        let (pace, act) = scripted::paced();
        for piece in recorded.pieces {
            pace.send(Step::Send(piece)).unwrap();
        }
        let closes = recorded.answer.header("connection") == Some("close") || !recorded.answer.whole;
        pace.send(Step::After(if closes { After::Close } else { After::Keep })).unwrap();
        act
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_i7_recorded_answers_pass_unchanged_and_are_counted_right() {
    let replayed: Vec<(String, Vec<u8>, String)> = recordings()
        .into_iter()
        .filter(|name| !name.starts_with("client-"))
        .filter(|name| !NOT_REPLAYED.iter().any(|(number, _)| name.starts_with(number)))
        .map(|name| (file(&format!("{name}.req")), name))
        .map(|(request, name)| {
            let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
            (name, request, line)
        })
        .filter(|(_, _, line)| {
            let mut words = line.split(' ');
            words.next() == Some("POST") && REPLAYED_PATHS.contains(&words.next().unwrap_or_default())
        })
        .collect();
    assert!(replayed.len() > 80, "{} recordings", replayed.len());
    // The node claims every name, the unknown ones too: then it words the answers, as it did.
    let models: BTreeSet<String> = replayed.iter().filter_map(|(_, request, _)| model_of(request)).collect();
    let node = recorded_node(&models);
    let proxy = Proxy::start(&[node.url()], "").await;
    proxy.until_listed("smollm2:135m").await;
    let (mut exact, mut estimated, mut own) = (0, Vec::new(), Vec::new());
    for (name, request, line) in &replayed {
        let path = line.split(' ').nth(1).unwrap();
        let recorded = read(&file(&format!("{name}.resp"))).answer;
        let at = find(request, b"\r\n").unwrap() + 2;
        let header = format!("x-recording: {name}\r\nx-of-a-test: 1\r\n");
        let bytes = [&request[..at], header.as_bytes(), &request[at..]].concat();
        let before = proxy.shared().meters.sums();
        let mut client = Client::connect(proxy.address).await;
        client.send(&bytes).await;
        let answer = client.answer().await.unwrap_or_else(|| panic!("{name}: no answer"));
        let after = proxy.shared().meters.sums();

        assert_eq!(answer.status, recorded.status, "{name}: {}", answer.text());
        for kept in ["content-type", "allow", "location", "cache-control"] {
            assert_eq!(answer.header(kept), recorded.header(kept), "{name}: {kept}");
        }
        if recorded.whole {
            assert_eq!(answer.text(), recorded.text(), "{name}");
        } else {
            // The node died inside: what it sent, then the error of the dialect.
            assert!(answer.text().starts_with(&recorded.text()) && answer.whole, "{name}: {}", answer.text());
            assert!(answer.text()[recorded.body.len()..].contains("\"error\""), "{name}");
        }
        if node.untaken() == 0 {
            own.push(name.as_str());
        } else {
            node.next().await;
        }
        match told(path, &recorded) {
            Some(tokens) => {
                exact += 1;
                let ours = Tokens {
                    input: after.exact.input - before.exact.input,
                    output: after.exact.output - before.exact.output,
                    cached: 0,
                };
                assert_eq!(ours, tokens, "{name}");
                assert_eq!(after.estimated, before.estimated, "{name}");
            }
            None => {
                assert_eq!(after.exact, before.exact, "{name}: nothing told, nothing exact");
                if after.estimated != before.estimated {
                    estimated.push(name.as_str());
                }
            }
        }
    }
    assert!(exact >= 25, "{exact} recordings told their tokens");
    assert_eq!(estimated, ESTIMATED);
    // Its last `model` is a name that no node has.
    assert_eq!(own, ["042-body-duplicate-case"]);
}

/// The requests of one recorded client, one after another.
fn split(raw: &[u8]) -> Vec<Vec<u8>> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < raw.len() {
        let end = at + find(&raw[at..], b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&raw[at..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let mut whole = end + length.unwrap_or(0);
        if head.contains("transfer-encoding: chunked") {
            whole = end + find(&raw[end..], b"0\r\n\r\n").expect("a last chunk") + 5;
        }
        out.push(raw[at..whole].to_vec());
        at = whole;
    }
    out
}

/// What a recorded client's request must get.
fn expected(name: &str, line: &str) -> &'static [u16] {
    let path = line.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let administers = ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"];
    if administers.contains(&path) || path.starts_with("/api/blobs/") {
        // What is pulled is nowhere, and what one client deletes is gone for the next.
        return &[200, 404, 500];
    }
    if name.contains("client-cli-rm") {
        return &[200, 404];
    }
    if path == "/api/me" || path.contains("experimental") {
        return &[200, 403];
    }
    if name.contains("unknown") || name.contains("count-tokens") {
        return &[200, 404];
    }
    &[200]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_clients_are_answered_as_they_can_use_it() {
    let models = || {
        vec![
            ModelSpec::chat("smollm2:135m"),
            ModelSpec::chat("second"),
            ModelSpec::chat("cc"),
            ModelSpec::embedding("e"),
            ModelSpec::tools("tools"),
            ModelSpec::thinking("thinks"),
        ]
    };
    let herd = Herd::start(vec![NodeSpec::ollama(models()).slots(4), NodeSpec::ollama(models()).slots(4)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("thinks:latest").await;
    let (mut clients, mut requests) = (0, 0);
    for name in recordings().into_iter().filter(|name| name.starts_with("client-")) {
        clients += 1;
        let mut client = Client::connect(proxy.address).await;
        for request in split(&file(&format!("{name}.req"))) {
            requests += 1;
            let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
            if !client.try_send(&request).await {
                client = Client::connect(proxy.address).await;
                client.send(&request).await;
            }
            let head_only = line.starts_with("HEAD");
            let answer = if head_only { client.head_answer().await } else { client.answer().await };
            let answer = answer.unwrap_or_else(|| panic!("{name}: {line}: no answer"));
            let allowed = expected(&name, &line);
            assert!(allowed.contains(&answer.status), "{name}: {line}: {} {}", answer.status, answer.text());
            assert!(answer.whole, "{name}: {line}");
            if answer.header("connection") == Some("close") {
                client = Client::connect(proxy.address).await;
            }
        }
    }
    assert!(clients >= 40 && requests >= clients, "{clients} clients, {requests} requests");
    assert_eq!(proxy.in_flight(), 0);
}
