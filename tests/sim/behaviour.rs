//! What a node does over sockets: counts, aborts, losses, faults, restarts.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use herdgate::sim::{Ending, Fault, Harm, Herd, ModelSpec, Node, NodeLedger, NodeSpec, Tokens};
use serde_json::Value;

use crate::wire::{self, Answer, exchange, post};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn start(spec: NodeSpec) -> Node {
    Node::start(spec).unwrap()
}

fn plain() -> Node {
    start(NodeSpec::ollama(vec![ModelSpec::chat("m"), ModelSpec::embedding("e")]))
}

/// A node whose answers take for ever and whose loads take none.
fn endless() -> NodeSpec {
    NodeSpec { token_time: Duration::from_secs(3600), ..NodeSpec::ollama(vec![ModelSpec::chat("m")]) }
}

/// Waits until the ledger says something; only a defect makes it wait long.
fn until(node: &Node, what: impl Fn(&NodeLedger) -> bool) {
    for _ in 0..30_000 {
        if what(&node.ledger()) {
            return;
        }
        std::thread::sleep(ms(1));
    }
    panic!("never came: {}", node.ledger().to_json());
}

fn send(node: &Node, request: &[u8]) -> TcpStream {
    let mut stream = wire::connect(node.address());
    stream.write_all(request).unwrap();
    stream
}

fn json(answer: &[u8]) -> Value {
    let answer = Answer::read(answer).unwrap();
    serde_json::from_slice(&answer.payload())
        .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(answer.body)))
}

fn status(answer: &[u8]) -> u16 {
    Answer::read(answer).unwrap().status()
}

fn get(node: &Node, path: &str) -> Value {
    json(&exchange(node.address(), format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()))
}

const CHAT: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"one two three"}],"options":{"num_predict":5}}"#;

#[test]
fn counts_every_token_and_ending() {
    let node = plain();
    for _ in 0..3 {
        exchange(node.address(), &post("/api/chat", CHAT));
    }
    exchange(node.address(), &post("/v1/completions", r#"{"model":"m","prompt":"a b","max_tokens":7}"#));
    exchange(node.address(), &post("/api/embed", r#"{"model":"e","input":["a b","c"]}"#));
    exchange(node.address(), &post("/api/chat", r#"{"model":"nope","messages":[]}"#));
    exchange(node.address(), &post("/api/chat", "{"));
    let ledger = node.ledger();
    assert_eq!(ledger.model("m:latest").tokens, Tokens { prompt: 3 * 13 + 12, output: 3 * 5 + 7 });
    assert_eq!(ledger.model("e:latest").tokens, Tokens { prompt: 3, output: 0 });
    assert_eq!((ledger.ended(Ending::Done), ledger.ended(Ending::Refused)), (5, 2));
    assert_eq!((ledger.route("/api/chat"), ledger.route("/v1/completions"), ledger.in_flight()), (5, 1, 0));
    assert_eq!((ledger.model("m:latest").peak, ledger.model("m:latest").loads), (1, 1));
    assert_eq!(ledger.connections, 7);
}

#[test]
fn the_counts_on_the_wire_are_those_of_the_ledger() {
    let node = plain();
    let stream = exchange(node.address(), &post("/api/chat", CHAT));
    let payload = Answer::read(&stream).unwrap().payload();
    let last: Value = serde_json::from_slice(payload.split(|b| *b == b'\n').rev().nth(1).unwrap()).unwrap();
    let tokens = node.ledger().tokens();
    assert_eq!(last["eval_count"], tokens.output);
    assert_eq!(last["prompt_eval_count"], tokens.prompt);
}

#[test]
fn the_body_sets_size_and_bursts() {
    let node = plain();
    let body =
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"sim":{"tokens":64,"prompt":100}}"#;
    let answer = exchange(node.address(), &post("/v1/chat/completions", body));
    assert_eq!(Answer::read(&answer).unwrap().chunks().len(), 65);
    assert_eq!(node.ledger().tokens(), Tokens { prompt: 100, output: 64 });
    // All of it was there at once: one read is enough for a client that comes late.
    let mut stream = send(&node, &post("/v1/chat/completions", body));
    until(&node, |l| l.ended(Ending::Done) == 2);
    let mut first = vec![0; 64 << 10];
    let read = stream.read(&mut first).unwrap();
    assert_eq!(read, answer.len());
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let node = start(NodeSpec { loss_window: Duration::ZERO, ..endless() });
    let slow = send(&node, &post("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#));
    until(&node, |l| l.in_flight() == 1);
    let fast = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"sim":{"tokens":1,"pace_ms":0}}"#;
    let mut waiting = send(&node, &post("/api/chat", fast));
    until(&node, |l| l.in_flight() == 2);
    assert_eq!(node.waiting(), (0, 1));
    drop(slow);
    let answer = wire::read_answer(&mut waiting, false);
    assert_eq!(status(&answer), 200);
    let ledger = node.ledger();
    assert_eq!((ledger.ended(Ending::ClientGone), ledger.ended(Ending::Done), ledger.sockets_lost), (1, 1, 0));
    assert_eq!(ledger.model("m:latest").peak, 2);
}

#[test]
fn a_client_that_leaves_at_once_loses_its_socket() {
    let node = start(NodeSpec { loss_window: Duration::from_secs(60), ..endless() });
    exchange(node.address(), &post("/api/generate", r#"{"model":"m"}"#));
    for lost in 1..=5 {
        drop(send(&node, &post("/api/chat", CHAT)));
        until(&node, |l| l.sockets_lost == lost);
    }
    let ledger = node.ledger();
    assert_eq!((ledger.ended(Ending::Lost), ledger.in_flight()), (5, 0));
    assert_eq!(ledger.open, 5, "they stay");
    node.kill();
    assert_eq!(node.ledger().open, 0, "only the end of the process frees them");
}

#[test]
fn a_half_close_is_taken_for_a_cancel_and_never_answered() {
    let node = start(NodeSpec { loss_window: Duration::from_secs(60), ..endless() });
    let mut stream = send(&node, &post("/api/chat", CHAT));
    stream.shutdown(Shutdown::Write).unwrap();
    until(&node, |l| l.sockets_lost == 1);
    stream.set_read_timeout(Some(ms(20))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "neither answered nor closed");
    let half = |request: &[u8]| {
        let mut stream = send(&node, request);
        stream.shutdown(Shutdown::Write).unwrap();
        status(&wire::read_answer(&mut stream, false))
    };
    assert_eq!(half(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"), 200);
    assert_eq!(half(&post("/api/show", r#"{"model":"m"}"#)), 200);
}

#[test]
fn a_late_terminator_hides_the_clients_going() {
    let node = start(NodeSpec { token_time: ms(1), ..endless() });
    let body = r#"{"model":"m","prompt":"x","stream":false,"options":{"num_predict":3}}"#;
    let head = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let stream = send(&node, format!("{head}{:x}\r\n{body}\r\n", body.len()).as_bytes());
    until(&node, |l| l.in_flight() == 1);
    drop(stream);
    until(&node, |l| l.in_flight() == 0);
    let ledger = node.ledger();
    assert_eq!(ledger.ended(Ending::Lost), 0);
    assert_eq!(ledger.ended(Ending::Done) + ledger.ended(Ending::ClientGone), 1, "it ran to its end");
}

#[test]
fn the_loading_client_takes_the_load_with_it() {
    let mut spec = NodeSpec::ollama(vec![ModelSpec::chat("m").load_time(Duration::from_secs(3600))]);
    spec.loss_window = Duration::ZERO;
    let node = start(spec);
    let first = send(&node, &post("/api/generate", r#"{"model":"m"}"#));
    until(&node, |l| l.in_flight() == 1);
    assert_eq!(get(&node, "/api/ps")["models"], Value::Array(Vec::new()), "absent while loading");
    drop(first);
    until(&node, |l| l.model("m:latest").loads_aborted == 1);
    assert_eq!(node.ledger().model("m:latest").loads, 0);
}

#[test]
fn a_request_that_leaves_the_queue_is_lost() {
    let mut spec = NodeSpec::ollama(vec![ModelSpec::chat("m").load_time(Duration::from_secs(3600))]);
    spec.loss_window = Duration::ZERO;
    let node = start(spec);
    let _first = send(&node, &post("/api/generate", r#"{"model":"m"}"#));
    until(&node, |l| l.in_flight() == 1);
    let second = send(&node, &post("/api/generate", r#"{"model":"m"}"#));
    until(&node, |l| l.in_flight() == 2);
    drop(second);
    until(&node, |l| l.sockets_lost == 1);
}

#[test]
fn loads_evicts_reloads_and_unloads_as_asked() {
    let models = ["a", "b", "c"].map(ModelSpec::chat).to_vec();
    let node = start(NodeSpec { max_loaded: 2, ..NodeSpec::ollama(models) });
    let ask = |body: &str| exchange(node.address(), &post("/api/generate", body));
    ask(r#"{"model":"a"}"#);
    ask(r#"{"model":"b","keep_alive":"1m"}"#);
    ask(r#"{"model":"c"}"#);
    assert_eq!(node.ledger().model("b:latest").evictions, 1);
    let mut loaded = node.loaded();
    loaded.sort();
    assert_eq!(loaded, ["a:latest", "c:latest"]);
    ask(r#"{"model":"a","options":{"num_ctx":2048}}"#);
    assert_eq!(node.ledger().model("a:latest").reloads, 1);
    let shown = get(&node, "/api/ps");
    let a = shown["models"].as_array().unwrap().iter().find(|m| m["name"] == "a:latest").unwrap();
    assert_eq!(a["context_length"], 2048);
    ask(r#"{"model":"a","keep_alive":0}"#);
    assert_eq!(node.loaded(), ["c:latest"]);
    assert_eq!(status(&ask(r#"{"model":"a","keep_alive":0}"#)), 200, "again");
    assert_eq!(status(&ask(r#"{"model":"x","keep_alive":0}"#)), 404);
}

#[test]
fn faults_before_the_head() {
    let node = plain();
    let ask = || {
        let mut stream = send(&node, &post("/api/chat", CHAT));
        wire::read_answer(&mut stream, false)
    };
    node.fault(Fault::new(Harm::Reset).next(1));
    assert!(ask().is_empty());
    node.fault(Fault::new(Harm::Close).next(1));
    assert!(ask().is_empty());
    node.fault(Fault::new(Harm::Garbage).next(1));
    let mut garbage = Vec::new();
    send(&node, &post("/api/chat", CHAT)).read_to_end(&mut garbage).unwrap();
    assert!(garbage.starts_with(b"\x16\x03"));
    node.fault(Fault::new(Harm::Busy).next(1));
    assert_eq!(status(&ask()), 503);
    node.fault(Fault::new(Harm::Status(500, "CUDA error: out of memory".into())).next(2));
    assert_eq!(json(&ask())["error"], "CUDA error: out of memory");
    let v1 = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
    let answer = exchange(node.address(), &post("/v1/chat/completions", v1));
    assert_eq!(json(&answer)["error"]["type"], "api_error");
    assert_eq!(status(&ask()), 200, "used up");
    node.fault(Fault::new(Harm::Hang).next(1));
    let hung = send(&node, &post("/api/chat", CHAT));
    until(&node, |l| l.in_flight() == 1);
    drop(hung);
    until(&node, |l| l.in_flight() == 0);
    let ledger = node.ledger();
    assert_eq!((ledger.ended(Ending::Broken), ledger.ended(Ending::Busy), ledger.ended(Ending::Failed)), (4, 1, 2));
}

#[test]
fn cuts_at_any_byte() {
    let node = plain();
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"sim":{"tokens":2}}"#;
    let request = post("/v1/chat/completions", &body.replace("}]", "}],\"stream\":true"));
    // The id in each of three chunks has one to three digits.
    let whole = exchange(node.address(), &request).len() - 6;
    for at in 0..whole {
        node.fault(Fault::new(Harm::Cut { at: at as u64, reset: false }).next(1));
        let mut got = Vec::new();
        send(&node, &request).read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), at);
    }
    until(&node, |l| l.ended(Ending::Broken) == whole as u64);
    assert_eq!(node.ledger().tokens().output, 2, "only the first was sent to the end");
    assert_eq!(node.ledger().in_flight(), 0);
}

#[test]
fn hangs_in_mid_stream() {
    let node = plain();
    node.fault(Fault::new(Harm::HangAt(200)).next(1));
    let mut stream = send(&node, &post("/api/chat", CHAT));
    let mut got = [0; 200];
    stream.read_exact(&mut got).unwrap();
    stream.set_read_timeout(Some(ms(20))).unwrap();
    assert!(stream.read(&mut got).is_err(), "nothing more comes, and the connection stays");
    drop(stream);
    until(&node, |l| l.ended(Ending::Broken) == 1);
    // Killed while the last bytes of an answer hang: it was never sent, and counts no tokens.
    let before = node.ledger().tokens();
    node.fault(Fault::new(Harm::HangAt(200)).next(1));
    let mut stream = send(&node, &post("/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#));
    stream.read_exact(&mut got).unwrap();
    node.kill();
    until(&node, |l| l.ended(Ending::Killed) == 1);
    assert_eq!(node.ledger().tokens(), before);
}

#[test]
fn runners_die_and_loads_fail() {
    let node = plain();
    node.fault(Fault::new(Harm::LoadFails("llama-server process has terminated: killed".into())).next(1));
    let answer = exchange(node.address(), &post("/api/chat", CHAT));
    assert_eq!(
        (status(&answer), &json(&answer)["error"]),
        (500, &"llama-server process has terminated: killed".into())
    );
    node.fault(Fault::new(Harm::RunnerDies(2)).next(1));
    let answer = exchange(node.address(), &post("/api/chat", CHAT));
    let chunks = Answer::read(&answer).unwrap().chunks().len();
    assert_eq!(chunks, 3, "two tokens and the error");
    assert!(node.loaded().is_empty());
    let ledger = node.ledger();
    assert_eq!((ledger.ended(Ending::Failed), ledger.model("m:latest").loads_failed), (2, 1));
    assert_eq!(ledger.tokens().output, 0);
}

#[test]
fn lists_can_be_mute_empty_or_late() {
    let node = plain();
    node.fault(Fault::new(Harm::EmptyLists));
    assert_eq!(get(&node, "/api/tags")["models"].as_array().unwrap().len(), 0);
    node.clear_faults();
    assert_eq!(get(&node, "/api/tags")["models"].as_array().unwrap().len(), 2);
    node.fault(Fault::new(Harm::Hang).for_path("/api/ps"));
    let mut mute = send(&node, b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(get(&node, "/api/version")["version"].is_string(), "the others answer");
    mute.set_read_timeout(Some(ms(20))).unwrap();
    assert!(mute.read(&mut [0]).is_err());
    node.fault(Fault::new(Harm::Delay(ms(5))).for_path("/api/version"));
    assert!(get(&node, "/api/version")["version"].is_string());
}

#[test]
fn chances_come_from_the_seed() {
    let run = || {
        let node = plain();
        node.fault(Fault::new(Harm::Busy).chance(0.5));
        (0..40).map(|_| status(&exchange(node.address(), &post("/api/chat", CHAT)))).collect::<Vec<_>>()
    };
    let first = run();
    assert_eq!(first, run());
    assert!(first.contains(&503) && first.contains(&200));
}

#[test]
fn refuses_stops_and_restarts_on_its_port() {
    let node = start(endless());
    let running = send(&node, &post("/api/chat", CHAT));
    until(&node, |l| l.in_flight() == 1);
    node.fault(Fault::new(Harm::Refuse));
    assert!(TcpStream::connect(node.address()).is_err());
    assert_eq!(node.ledger().in_flight(), 1, "what runs goes on");
    node.clear_faults();
    drop(wire::connect(node.address()));
    node.kill();
    assert!(TcpStream::connect(node.address()).is_err());
    assert_eq!((node.ledger().in_flight(), node.ledger().ended(Ending::Killed)), (0, 1));
    assert_eq!(wire::read_answer(&mut { running }, false), b"");
    node.restart();
    assert!(node.loaded().is_empty());
    assert!(get(&node, "/api/version")["version"].is_string());
}

#[test]
fn many_connections_share_one_thread() {
    let specs = (0..4).map(|_| NodeSpec { token_time: ms(1), ..NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8) });
    let herd = Herd::start(specs.collect()).unwrap();
    let mut streams: Vec<TcpStream> = (0..100).map(|at| send(&herd[at % 4], &post("/api/chat", CHAT))).collect();
    for stream in &mut streams {
        assert_eq!(status(&wire::read_answer(stream, false)), 200);
    }
    for node in herd.iter() {
        assert_eq!(node.ledger().tokens(), Tokens { prompt: 25 * 13, output: 25 * 5 });
        assert_eq!(node.ledger().in_flight(), 0);
    }
}

#[test]
fn obeys_the_control_path() {
    let node = plain();
    let ask = |request: &[u8]| exchange(node.address(), request);
    assert_eq!(status(&ask(&post("/sim/fault", r#"{"harm":"busy","model":"m","next":1}"#))), 200);
    assert_eq!(status(&ask(&post("/api/chat", CHAT))), 503);
    assert_eq!(status(&ask(&post("/api/chat", CHAT))), 200);
    assert_eq!(status(&ask(&post("/sim/fault", r#"{"harm":"flood"}"#))), 400);
    ask(&post("/sim/model", r#"{"name":"new","capabilities":["embedding"]}"#));
    assert_eq!(get(&node, "/api/tags")["models"].as_array().unwrap().len(), 3);
    let ledger = get(&node, "/sim/ledger");
    assert_eq!(ledger["models"]["m:latest"]["requests"]["busy"], 1);
    assert_eq!(ledger["output_tokens"], 5);
}

#[test]
fn a_cut_pull_goes_on_where_it_was() {
    let registry = vec![ModelSpec::chat("new").size(1000)];
    let node = start(NodeSpec { registry, pull_time: ms(400), ..NodeSpec::ollama(Vec::new()) });
    let pull = post("/api/pull", r#"{"model":"new"}"#);
    let mut stream = send(&node, &pull);
    let (mut seen, mut buffer) = (String::new(), [0; 1024]);
    while !seen.contains("\"completed\":") {
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    drop(stream);
    until(&node, |ledger| ledger.ended(Ending::ClientGone) == 1);
    let answer = exchange(node.address(), &pull);
    let text = String::from_utf8(Answer::read(&answer).unwrap().payload()).unwrap();
    let completed: Vec<u64> =
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["completed"].as_u64()).collect();
    // Of six steps from nothing the first would be a sixth.
    assert!(completed[0] > 1000 / 6 && completed.is_sorted(), "{text}");
    assert!(text.ends_with("{\"status\":\"success\"}\n"), "{text}");
    assert_eq!(get(&node, "/api/tags")["models"][0]["name"], "new:latest");
}
