//! The monitoring routes on the wire, over the whole proxy and a simulated herd.
//!
//! - They agree with each other and with what the nodes count.
//! - The stream sends the state at once, each change, one chunk an event, and ends when the process drains.
//! - A dead or hanging node costs them nothing (I9).
//! - A reader that does not read costs nobody anything (I10).
//! - Keys open what they should.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

mod support;

use std::time::Duration;

use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};
use herdgate::sync::Ordering;
use serde_json::{Value, json};
use support::client::{self, Client, get, once, post, post_once, request};
use support::proxy::{Proxy, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing here takes longer; a bound against hanging, not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

const MODEL: &str = "llama3:latest";

fn herd(nodes: usize) -> Herd {
    Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat(MODEL)]); nodes]).unwrap()
}

fn chat() -> String {
    json!({ "model": "llama3", "messages": [{ "role": "user", "content": "hello" }] }).to_string()
}

/// A stream that goes on until its client leaves: a token each 20 ms, 100,000 of them.
fn endless() -> String {
    let sim = json!({ "tokens": 100_000, "pace_ms": 20 });
    json!({ "model": "llama3", "prompt": "go on", "options": { "num_predict": 100_000 }, "sim": sim }).to_string()
}

/// Tokens that the nodes sent to the end: by node URL, prompt and output.
fn sent(herd: &Herd) -> Vec<(String, u64, u64)> {
    let of = |node: &herdgate::sim::Node| {
        let ledger = node.ledger();
        let tokens = ledger.models.values().map(|model| model.tokens);
        let sum = tokens.fold((0, 0), |sum, tokens| (sum.0 + tokens.prompt, sum.1 + tokens.output));
        (node.url(), sum.0, sum.1)
    };
    herd.nodes().iter().map(of).filter(|(_, input, output)| input + output > 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_routes_agree_with_each_other_and_with_the_nodes() {
    let herd = herd(2);
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed(MODEL).await;
    for _ in 0..6 {
        assert_eq!(post_once(proxy.address, "/api/chat", &chat()).await.status, 200);
    }
    proxy.until("six ends", || async { proxy.shared().meters.sums().endings[0] == 6 }).await;
    let sent = sent(&herd);
    let total: u64 = sent.iter().map(|(_, input, output)| input + output).sum();
    assert!(total > 0);

    let usage = get(proxy.address, "/api/usage").await;
    assert_eq!(usage.header("content-type"), Some("application/json"));
    assert!(usage.text().starts_with("{\"usage_counts\":{"), "{}", usage.text());
    for (node, input, output) in &sent {
        assert_eq!(usage.json()["usage_counts"][node], json!({}));
        assert_eq!(usage.json()["token_usage_counts"][node][MODEL], json!(input + output));
    }

    proxy.flush().await;
    let counts = get(proxy.address, "/api/token_counts").await.json();
    assert_eq!(counts["total_tokens"], json!(total));
    let breakdown = counts["breakdown"].as_array().unwrap();
    assert_eq!(breakdown.len(), sent.len());
    for row in breakdown {
        let (_, input, output) = sent.iter().find(|(node, ..)| row["endpoint"] == json!(node)).unwrap();
        assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(input), &json!(output)));
    }

    let stats = post_once(proxy.address, "/api/stats?model=llama3%3Alatest", "").await.json();
    assert_eq!(stats["total_tokens"], json!(total));
    let series: u64 =
        stats["time_series"].as_array().unwrap().iter().map(|row| row["total_tokens"].as_u64().unwrap()).sum();
    assert_eq!(series, total);
    let unknown = post_once(proxy.address, "/api/stats", "{\"model\":\"llama3\"}").await.json();
    assert_eq!(unknown["total_tokens"], Value::Null);

    let metrics = get(proxy.address, "/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(metrics.text().contains("herdgate_requests_total{outcome=\"completed\"} 6\n"));
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_loaded_where() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed(MODEL).await;
    assert_eq!(get(proxy.address, "/api/ps_details").await.text(), "{\"models\":[]}");
    post_once(proxy.address, "/api/chat", &chat()).await;
    let shown = || async { get(proxy.address, "/api/ps_details").await.json()["models"][0]["name"] == json!(MODEL) };
    proxy.until("the model is shown as loaded", shown).await;
    let details = get(proxy.address, "/api/ps_details").await.json();
    let keys: Vec<&String> = details["models"][0].as_object().unwrap().keys().collect();
    assert_eq!(keys.last().unwrap().as_str(), "endpoint");
    assert_eq!(details["models"][0]["endpoint"], json!(herd.urls()[0]));
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_sends_the_state_at_once_and_each_change_and_ends_with_the_process() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed(MODEL).await;
    let mut stream = Client::connect(proxy.address).await;
    stream.send(&request("GET", "/api/usage-stream", &[], b"")).await;
    let first = stream.answer_up_to(1).await.unwrap();
    assert_eq!(first.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(first.chunks[0], b"data: {\"token_usage_counts\":{},\"usage_counts\":{}}\n\n");

    let mut second = TcpStream::connect(proxy.address).await.unwrap();
    second.write_all(&request("GET", "/api/usage-stream", &[], b"")).await.unwrap();
    let mut seen = String::new();
    read_until(&mut second, &mut seen, "\r\n\r\n").await;
    let mut endless_client = Client::connect(proxy.address).await;
    endless_client.send(&post("/api/generate", &endless())).await;
    assert_eq!(endless_client.answer_up_to(1).await.unwrap().status, 200);
    let url = &herd.urls()[0];
    let running = format!("\"usage_counts\":{{\"{url}\":{{\"{MODEL}\":1}}}}");
    read_until(&mut second, &mut seen, &running).await;
    drop(endless_client);
    let before = seen.len();
    read_until(&mut second, &mut seen, &format!("\"usage_counts\":{{\"{url}\":{{}}}}")).await;
    assert!(seen.len() > before);
    proxy.gate().leave();
    read_until(&mut second, &mut seen, "0\r\n\r\n").await;
    let (_, body) = seen.split_once("\r\n\r\n").unwrap();
    let mut chunks = body.split("\r\n").collect::<Vec<_>>();
    chunks.retain(|line| !line.is_empty());
    assert_eq!(chunks.pop(), Some("0"));
    for pair in chunks.chunks(2) {
        let [size, event] = pair else { panic!("{body:?}") };
        assert_eq!(usize::from_str_radix(size, 16).unwrap(), event.len(), "one event a chunk: {body:?}");
        assert!(event.starts_with("data: {") && event.ends_with("\n\n"), "{event:?}");
        assert_eq!(event.matches("\n\n").count(), 1, "{event:?}");
    }
    let first = "data: {\"token_usage_counts\":{},\"usage_counts\":{}}\n\n";
    assert_eq!(chunks.get(1), Some(&first), "the state comes at once");
    proxy.stop().await;
}

/// Reads on until what was read since the last call, or this time, holds `needle`.
async fn read_until(stream: &mut TcpStream, seen: &mut String, needle: &str) {
    let from = seen.len();
    while !seen[from..].contains(needle) {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect(needle).expect(needle);
        assert!(read > 0, "it ended before {needle:?}: {seen:?}");
        seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_a_dead_or_hanging_node_costs_the_monitoring_routes_nothing() {
    let herd = herd(3);
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed(MODEL).await;
    herd.nodes()[1].fault(Fault::new(Harm::Hang).for_all());
    herd.nodes()[2].kill();
    // Nothing can wait for a node that never answers: had a route asked it, its own answer would never come.
    for path in ["/api/usage", "/api/token_counts", "/api/config", "/api/ps_details", "/health", "/metrics"] {
        assert_eq!(get(proxy.address, path).await.status, 200, "{path}");
    }
    let seen =
        || async { get(proxy.address, "/health").await.json()["endpoints"][&herd.urls()[2]]["status"] == "error" };
    proxy.until("the dead node is seen", seen).await;
    let config = get(proxy.address, "/api/config").await.json();
    assert_eq!(config["endpoints"][0], json!({ "url": herd.urls()[0], "status": "ok", "version": "0.33.0" }));
    assert_eq!(config["endpoints"][2]["status"], "error");
    assert!(config["endpoints"][2]["detail"].is_string());
    assert_eq!(get(proxy.address, "/health?strict").await.status, 503);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_503_when_no_node_can_serve() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "").await;
    assert_eq!(get(proxy.address, "/health").await.status, 200);
    herd.nodes()[0].kill();
    let unwell = || async { get(proxy.address, "/health").await.status == 503 };
    proxy.until("unwell", unwell).await;
    let health = get(proxy.address, "/health").await.json();
    assert_eq!(health["status"], "error");
    assert_eq!(get(proxy.address, "/herdgate/live").await.status, 200);
    herd.nodes()[0].restart();
    let well = || async { get(proxy.address, "/health").await.status == 200 };
    proxy.until("well again", well).await;
    proxy.gate().leave();
    let mut head = Client::connect(proxy.address).await;
    head.send(&request("HEAD", "/herdgate/ready", &[], b"")).await;
    assert_eq!(head.head_answer().await.unwrap().status, 503);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_a_reader_that_does_not_read_costs_nobody_anything() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed(MODEL).await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&request("GET", "/api/usage-stream", &[], b"")).await;
        stuck.push(client);
    }
    let mut reader = Client::connect(proxy.address).await;
    reader.send(&request("GET", "/api/usage-stream", &[], b"")).await;
    assert!(reader.answer_up_to(1).await.is_some());
    for _ in 0..30 {
        assert_eq!(post_once(proxy.address, "/api/chat", &chat()).await.status, 200);
    }
    let tokens = get(proxy.address, "/api/usage").await.json()["token_usage_counts"].to_string();
    assert!(tokens.len() > 2);
    // A reader that comes now gets the newest state first.
    let mut late = Client::connect(proxy.address).await;
    late.send(&request("GET", "/api/usage-stream", &[], b"")).await;
    let newest = late.answer_up_to(1).await.unwrap().text();
    assert!(newest.contains(&tokens), "{newest} lacks {tokens}");
    drop(stuck);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_open_what_they_should() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "router_keys: [ { name: ops, key: secret } ]").await;
    let address = proxy.address;
    assert_eq!(get(address, "/herdgate/live").await.status, 200);
    for path in ["/api/usage", "/health", "/metrics", "/api/config"] {
        assert_eq!(get(address, path).await.status, 401, "{path}");
        assert_eq!(with_key(address, path, "wrong").await.status, 403, "{path}");
        assert_eq!(with_key(address, path, "secret").await.status, 200, "{path}");
    }
    assert_eq!(get(address, "/api/usage?api_key=secret").await.status, 200);
    let missing = get(address, "/api/usage").await;
    assert!(missing.json()["detail"].is_string(), "{}", missing.text());
    let fold = request(
        "POST",
        "/api/aggregate_time_series_days",
        &[("Authorization", "Bearer secret")],
        b"{\"days\":30,\"trim_old\":true}",
    );
    let text = "{\"status\":\"ok\",\"days\":30,\"trim_old\":true,\"aggregated_groups\":0}";
    assert_eq!(once(address, &fold).await.text(), text);
    assert_eq!(with_key(address, "/api/config", "secret").await.json()["require_router_api_key"], true);
    proxy.stop().await;

    let open = Proxy::start(&herd.urls(), "").await;
    let answer = post_once(open.address, "/api/aggregate_time_series_days", "{\"trim_old\":true}").await;
    assert_eq!(answer.json()["trim_old"], false, "nobody trims without a key");
    let broken = post_once(open.address, "/api/aggregate_time_series_days", "junk").await;
    assert_eq!(broken.status, 400);
    assert!(broken.json()["detail"].as_str().unwrap().starts_with("Invalid JSON"));
    open.stop().await;
}

async fn with_key(address: std::net::SocketAddr, path: &str, key: &str) -> client::Answer {
    let bearer = format!("Bearer {key}");
    once(address, &request("GET", path, &[("Authorization", &bearer)], b"")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_survive_a_restart() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed(MODEL).await;
    post_once(proxy.address, "/api/chat", &chat()).await;
    let tokens = |address| async move { get(address, "/api/usage").await.json()["token_usage_counts"].clone() };
    eventually("counted", || async { tokens(proxy.address).await != json!({}) }).await;
    let before = tokens(proxy.address).await;
    let data = proxy.stop().await;
    let again = Proxy::start_in(data, &herd.urls(), "", herdgate::clock::Clock::system()).await;
    assert_eq!(tokens(again.address).await, before);
    assert_eq!(get(again.address, "/api/usage").await.json()["usage_counts"], json!({}));
    again.stop().await;
}

/// Workers make no answer that grows with the fleet: where no thread may make one, it waits, and is then refused.
#[expect(clippy::disallowed_methods, reason = "a test: requests at once")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_made_aside_and_others_cannot_turn_health_and_metrics_away() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed(MODEL).await;
    let address = proxy.address;
    let [health, metrics, others] = &proxy.shared().aside;
    let (most, most_others) = (2, 4);
    others.store(most_others, Ordering::Release);
    for path in ["/health", "/metrics", "/herdgate/live", "/herdgate/ready", "/herdgate/log"] {
        assert_eq!(get(address, path).await.status, 200, "{path}");
    }
    health.store(most, Ordering::Release);
    metrics.store(most, Ordering::Release);
    let paths = [
        "/health",
        "/metrics",
        "/herdgate/status",
        "/herdgate/decisions",
        "/herdgate/usage",
        "/api/usage",
        "/api/usage-stream",
        "/api/token_counts",
        "/api/config",
        "/api/ps_details",
        "/api/stats?model=llama3",
    ];
    let ask = |path: &'static str| async move {
        let asked =
            if path.contains("stats") { post_once(address, path, "{}").await } else { get(address, path).await };
        (path, asked.status)
    };
    let asked: Vec<_> = paths.into_iter().map(|path| tokio::spawn(ask(path))).collect();
    for answer in asked {
        let (path, status) = answer.await.unwrap();
        assert_eq!(status, 503, "{path}");
    }
    let import = post_once(address, "/herdgate/import", "{}").await;
    assert_eq!(import.status, 503, "{}", import.text());
    // One that waits gets the place that becomes free.
    let waits = tokio::spawn(ask("/api/config"));
    others.store(0, Ordering::Release);
    assert_eq!(waits.await.unwrap().1, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_a_question_to_ourselves_is_a_few_words() {
    let herd = herd(1);
    let proxy = Proxy::start(&herd.urls(), "").await;
    let most = 64 * 1024;
    for path in [
        "/api/stats",
        "/api/aggregate_time_series_days",
        "/herdgate/log",
        "/herdgate/reload",
        "/herdgate/nodes/x/drain",
    ] {
        // Announced or not: it is refused before it is read, and parsed by nobody.
        let announced = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", most + 1);
        let chunk = format!("{:x}\r\n{}\r\n", most + 1, "1".repeat(most + 1));
        let chunked = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
        for bytes in [announced, chunked] {
            let mut client = Client::connect(proxy.address).await;
            client.send(bytes.as_bytes()).await;
            let answer = client.answer().await.unwrap();
            assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "{path}: {}", answer.text());
            assert!(answer.text().contains("65536 bytes"), "{path}: {}", answer.text());
        }
    }
    let fits = |length: usize| format!("{{\"model\":\"m\"{}}}", " ".repeat(length - 13));
    assert_eq!(post_once(proxy.address, "/api/stats", &fits(most)).await.status, 200);
    // A dry run takes what a request may be.
    let long = format!(r#"{{"model":"m","prompt":"{}"}}"#, "a".repeat(4 * most));
    assert_eq!(post_once(proxy.address, "/herdgate/explain?route=/api/generate", &long).await.status, 200);
}
