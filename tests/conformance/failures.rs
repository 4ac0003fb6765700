//! Cases 38, 72 to 76, 91 and 98 to 100: what fails, what ends early, and what is freed everywhere.

use std::time::Duration;

use herdgate::sim::{Ending, Fault, Harm, ModelSpec, Node};

use crate::case::{Case, scene};
use crate::compare;
use crate::stage::Stage;
use crate::support::client::{self, Answer, Client, post, post_once};
use crate::support::proxy::eventually;

/// On all three nodes.
pub(crate) const ALL: [bool; 3] = [true; 3];

/// Chat models by name, and which nodes have them.
pub(crate) fn models(named: &[(&str, [bool; 3])]) -> Vec<(ModelSpec, [bool; 3])> {
    named.iter().map(|(name, nodes)| (ModelSpec::chat(name), *nodes)).collect()
}

/// A request whose body comes in one chunk.
pub(crate) fn chunked(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    let size = format!("{:x}\r\n", body.len());
    [head.as_bytes(), size.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        scene(38, || Box::pin(unloaded_everywhere())),
        scene(72, || Box::pin(the_runner_dies_inside())),
        scene(73, || Box::pin(the_node_dies_inside())),
        scene(74, || Box::pin(the_node_dies_before())),
        scene(75, || Box::pin(the_client_leaves_inside())),
        scene(76, || Box::pin(the_client_leaves_during_a_load())),
        scene(91, || Box::pin(the_queue_is_full())),
        scene(98, || Box::pin(a_half_close_is_a_departure())),
        scene(99, || Box::pin(a_late_terminator_and_a_departure())),
        scene(100, || Box::pin(closed_right_after_done())),
    ]
}

/// Streams of every dialect, for model `m`.
pub(crate) const STREAMS: [(&str, &str); 6] = [
    ("/api/generate", r#"{"model":"m","prompt":"x"}"#),
    ("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
    ("/v1/chat/completions", r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}"#),
    ("/v1/completions", r#"{"model":"m","prompt":"x","stream":true}"#),
    ("/v1/responses", r#"{"model":"m","input":"x","stream":true}"#),
    ("/v1/messages", r#"{"model":"m","max_tokens":40,"messages":[{"role":"user","content":"x"}],"stream":true}"#),
];

fn nodes(stage: &Stage) -> impl Iterator<Item = &Node> {
    std::iter::once(&stage.node).chain(stage.herd.nodes())
}

async fn same(stage: &Stage, path: &str, body: &str) -> Answer {
    let direct = post_once(stage.node.address(), path, body).await;
    let through = post_once(stage.proxy.address, path, body).await;
    let differ = compare::differences(&direct, &through);
    assert!(differ.is_empty(), "{path} {body}\n{}", differ.join("\n"));
    through
}

async fn unloaded_everywhere() {
    let stage = Stage::with(models(&[("m", ALL), ("other", [true, false, false])]), "", |_| ()).await;
    for (path, body) in [
        ("/api/generate", r#"{"model":"m","keep_alive":0}"#),
        ("/api/generate", r#"{"model":"m","prompt":"","keep_alive":"0s","stream":true}"#),
        ("/api/chat", r#"{"model":"M","messages":[],"keep_alive":"0"}"#),
        ("/api/chat", r#"{"keep_alive":0.0,"model":"m"}"#),
    ] {
        for node in nodes(&stage) {
            assert_eq!(
                post_once(node.address(), "/api/generate", r#"{"model":"m","keep_alive":"1h"}"#).await.status,
                200
            );
        }
        stage.proxy.until("loaded on three", || async { stage.proxy.loaded("m") == 3 }).await;
        let answer = same(&stage, path, body).await;
        assert_eq!((answer.status, &answer.json()["done_reason"]), (200, &"unload".into()), "{body}");
        assert_eq!(client::get(stage.proxy.address, "/api/ps").await.text(), r#"{"models":[]}"#, "at once");
        assert!(nodes(&stage).all(|node| node.loaded().is_empty()), "gone from memory everywhere");
        // Again, with nothing loaded: still a 200.
        let answer = same(&stage, path, body).await;
        assert_eq!((answer.status, &answer.json()["done_reason"]), (200, &"unload".into()), "{body}");
    }
    // With a prompt it is a generation like any other.
    let answer = same(&stage, "/api/generate", r#"{"model":"m","prompt":"x","keep_alive":0,"stream":false}"#).await;
    assert_eq!(answer.json()["done_reason"], "stop");
}

async fn the_runner_dies_inside() {
    let stage = Stage::with(models(&[("m", ALL)]), "", |_| ()).await;
    let mut bodies: Vec<(&str, String)> = STREAMS.iter().map(|(path, body)| (*path, (*body).to_owned())).collect();
    bodies.push(("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":false}"#.to_owned()));
    for (path, body) in &bodies {
        nodes(&stage).for_each(|node| node.fault(Fault::new(Harm::RunnerDies(8))));
        let answer = same(&stage, path, body).await;
        nodes(&stage).for_each(Node::clear_faults);
        let text = answer.text();
        assert!(
            !text.contains("\"done\":true") && !text.contains("[DONE]") && !text.contains("message_stop"),
            "{text}"
        );
        if path.starts_with("/api/") {
            let error = r#"{"error":"an error was encountered while running the model: unexpected EOF"}"#;
            assert_eq!(text.lines().last().unwrap(), error);
        }
    }
}

/// The last record of a stream that the gate had to end.
fn own_error(path: &str, text: &str) -> bool {
    match path {
        "/v1/responses" => text.contains("event: response.failed\n") && text.contains("\"status\":\"failed\""),
        "/v1/messages" => text.contains("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
        "/api/generate" | "/api/chat" => text.lines().last().unwrap_or_default().starts_with("{\"error\":"),
        _ => text.contains("data: {\"error\":{\"message\":"),
    }
}

async fn the_node_dies_inside() {
    let stage = Stage::with(models(&[("m", [true, false, false])]), "", |_| ()).await;
    for (path, body) in STREAMS {
        let cut = || Fault::new(Harm::Cut { at: 1500, reset: false }).next(1);
        stage.node.fault(cut());
        stage.herd.nodes()[0].fault(cut());
        let direct = post_once(stage.node.address(), path, body).await;
        assert!(!direct.whole, "{path}: a node that dies breaks off");
        let through = post_once(stage.proxy.address, path, body).await;
        let text = through.text();
        assert!(through.status == 200 && through.whole, "{path}: {text}");
        assert!(own_error(path, &text), "{path}: {text}");
        for end in ["\"done\":true", "[DONE]", "message_stop", "response.completed"] {
            assert!(!text.contains(end), "{path}: {text}");
        }
        // What had come was passed on.
        let both = direct.chunks.iter().zip(&through.chunks).take(2);
        for (theirs, ours) in both {
            let mask = |chunk: &[u8]| compare::masked(&String::from_utf8_lossy(chunk));
            assert_eq!(mask(theirs), mask(ours), "{path}");
        }
    }
}

async fn the_node_dies_before() {
    let stage = Stage::with(models(&[("m", ALL)]), "routing: { retry_share: 100, retry_floor: 100 }", |_| ()).await;
    for harm in [Harm::Reset, Harm::Close, Harm::Busy, Harm::Refuse] {
        for (path, body) in STREAMS {
            // Whichever node is asked first fails; the next one answers.
            for node in stage.herd.nodes() {
                node.fault(Fault::new(harm.clone()).next(1));
            }
            let keeps = if harm == Harm::Refuse { 2 } else { 1 };
            for node in &stage.herd.nodes()[..keeps] {
                node.clear_faults();
            }
            let answer = post_once(stage.proxy.address, path, body).await;
            assert!(answer.status == 200 && answer.whole, "{harm:?} {path} {}", answer.text());
            assert!(!answer.text().contains("\"error\":\""), "{harm:?} {path} {}", answer.text());
            stage.herd.nodes().iter().for_each(Node::clear_faults);
        }
        let up = || stage.proxy.shared().fleet.load().nodes.iter().all(|node| node.up);
        stage.proxy.until("all are up again", || async { up() }).await;
    }
}

async fn the_client_leaves_inside() {
    let paced = |spec: &mut herdgate::sim::NodeSpec| {
        (spec.token_time, spec.num_parallel) = (Duration::from_millis(20), 1);
    };
    let stage = Stage::with(models(&[("m", [true, false, false])]), "slots: 1", paced).await;
    let long = r#"{"model":"m","prompt":"x","options":{"num_predict":100000}}"#;
    for address in [stage.node.address(), stage.proxy.address] {
        let mut client = Client::connect(address).await;
        client.send(&post("/api/generate", long)).await;
        client.begin().await.unwrap();
        client.chunk().await.unwrap();
        client.chunk().await.unwrap();
        drop(client);
        // The only slot there is: this would wait for half an hour.
        let short = r#"{"model":"m","prompt":"x","options":{"num_predict":1}}"#;
        assert_eq!(post_once(address, "/api/generate", short).await.status, 200);
    }
    for node in [&stage.node, &stage.herd.nodes()[0]] {
        eventually("noticed", || async { node.ledger().ended(Ending::ClientGone) == 1 }).await;
        assert_eq!(node.ledger().sockets_lost, 0);
    }
}

async fn the_client_leaves_during_a_load() {
    let slow = |spec: &mut herdgate::sim::NodeSpec| spec.load_time = Duration::from_millis(600);
    let stage = Stage::with(models(&[("m", [true, false, false])]), "", slow).await;
    for address in [stage.node.address(), stage.proxy.address] {
        let mut client = Client::connect(address).await;
        client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
        let node = if address == stage.node.address() { &stage.node } else { &stage.herd.nodes()[0] };
        eventually("asked for", || async { node.waiting().0 > 0 || node.ledger().model("m:latest").in_flight > 0 })
            .await;
        // Past the moment in which a node would lose its socket.
        tokio::time::sleep(Duration::from_millis(60)).await;
        drop(client);
    }
    eventually("given up", || async { stage.node.ledger().model("m:latest").loads_aborted == 1 }).await;
    // The gate keeps the load for whoever comes next.
    let node = &stage.herd.nodes()[0];
    eventually("loaded all the same", || async { node.ledger().model("m:latest").loads == 1 }).await;
    assert_eq!(node.ledger().model("m:latest").loads_aborted, 0);
    let next = post_once(stage.proxy.address, "/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#).await;
    assert_eq!((next.status, node.ledger().model("m:latest").loads), (200, 1));
}

async fn the_queue_is_full() {
    let stage = Stage::with(models(&[("m", ALL)]), "", |_| ()).await;
    nodes(&stage).for_each(|node| node.fault(Fault::new(Harm::Busy)));
    for (path, body) in STREAMS {
        let direct = post_once(stage.node.address(), path, body).await;
        let through = post_once(stage.proxy.address, path, body).await;
        assert_eq!(direct.status, 503);
        assert!(direct.text().contains("server busy, please try again.  maximum pending requests exceeded"));
        // Clients of the libraries come back by themselves: the gate tells them when.
        assert!(through.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        let mut without = through.clone();
        without.headers.retain(|(name, _)| name != "retry-after");
        let differ = compare::differences(&direct, &without);
        assert!(differ.is_empty(), "{path}\n{}", differ.join("\n"));
    }
}

async fn a_half_close_is_a_departure() {
    let slow = |spec: &mut herdgate::sim::NodeSpec| spec.token_time = Duration::from_millis(20);
    let stage = Stage::with(models(&[("m", [true, false, false])]), "", slow).await;
    let mut client = Client::connect(stage.proxy.address).await;
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x","options":{"num_predict":100000}}"#)).await;
    let node = &stage.herd.nodes()[0];
    eventually("running", || async { node.ledger().model("m:latest").in_flight == 1 }).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    client.half_close().await;
    eventually("given up", || async { node.ledger().ended(Ending::ClientGone) == 1 }).await;
    assert_eq!((node.ledger().sockets_lost, stage.proxy.in_flight()), (0, 0));
    // What costs nothing is answered, as a node answers it.
    for address in [stage.node.address(), stage.proxy.address] {
        let mut client = Client::connect(address).await;
        client.send(&client::request("GET", "/api/version", &[], b"")).await;
        client.half_close().await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
}

async fn a_late_terminator_and_a_departure() {
    let slow = |spec: &mut herdgate::sim::NodeSpec| spec.token_time = Duration::from_millis(20);
    let stage = Stage::with(models(&[("m", [true, false, false])]), "", slow).await;
    let body = br#"{"model":"m","prompt":"x","stream":false,"options":{"num_predict":100000}}"#;
    let bytes = chunked("POST", "/api/generate", body);
    let (most, terminator) = bytes.split_at(bytes.len() - 5);
    let mut client = Client::connect(stage.proxy.address).await;
    client.send(most).await;
    client.send(terminator).await;
    let node = &stage.herd.nodes()[0];
    eventually("running", || async { node.ledger().model("m:latest").in_flight == 1 }).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    drop(client);
    // A node would not see this of a chunked body; that it does shows that its body had a length.
    eventually("cancelled", || async { node.ledger().ended(Ending::ClientGone) == 1 }).await;
}

async fn closed_right_after_done() {
    let stage = Stage::with(models(&[("m", [true, false, false])]), "", |_| ()).await;
    let (path, body) = STREAMS[2];
    assert_eq!(post_once(stage.proxy.address, path, body).await.status, 200);
    let node = &stage.herd.nodes()[0];
    let before = (node.ledger().connections, node.ledger().route(path));
    for _ in 0..5 {
        let mut client = Client::connect(stage.proxy.address).await;
        client.send(&post(path, body)).await;
        client.begin().await.unwrap();
        let mut said = String::new();
        while !said.ends_with("data: [DONE]\n\n") {
            said += &String::from_utf8(client.chunk().await.unwrap()).unwrap();
        }
        drop(client);
        eventually("over", || async { stage.proxy.in_flight() == 0 }).await;
    }
    let after = node.ledger();
    assert_eq!(after.route(path), before.1 + 5);
    assert_eq!(after.ended(Ending::ClientGone), 0);
    // The gate's own polls may have opened one; the requests did not.
    assert!(after.connections <= before.0 + 2, "{} then {}", before.0, after.connections);
    stage.proxy.flush().await;
    let endings = stage.proxy.shared().meters.sums().endings;
    assert_eq!(endings[0], 6, "all counted as completed: {endings:?}");
}
