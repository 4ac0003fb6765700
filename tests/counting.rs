//! Heap allocations of a worker per short request, counted over a kept connection in steady state.
//!
//! The budget is a count, not a time: it holds on any machine. What the workers' system calls cost is counted from
//! outside by a step of `.ci/run`.

#[path = "support/allocations.rs"]
mod allocations;
mod support;

use herdgate::sim::{ModelSpec, Node, NodeSpec};
use support::client::{Client, request};
use support::proxy::Proxy;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// With hyper's front; ours will need none.
const PER_REQUEST_MAX: u64 = 16;

/// Requests before counting: pools, scratch buffers and names are there afterwards.
const WARM_UP: u64 = 200;

/// Requests counted.
const COUNTED: u64 = 1000;

/// Allocations of the worker's ticks and of the poller's new Snapshots while the requests run.
const BACKGROUND_MAX: u64 = 500;

/// What ollama-python sends beside Host and Content-Length.
const HEADERS: [(&str, &str); 5] = [
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate"),
    ("connection", "keep-alive"),
    ("content-type", "application/json"),
    ("user-agent", "ollama-python/0.6.3 (x86_64 linux) Python/3.11.7"),
];

const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":false,"max_tokens":4,"options":{"num_predict":4}}"#;

/// Allocations of the worker on one connection while [`COUNTED`] requests run.
async fn counted(proxy: &Proxy, path: &str) -> u64 {
    let request = request("POST", path, &HEADERS, BODY.as_bytes());
    let mut client = Client::connect(proxy.address).await;
    let mut run = async |count: u64| {
        for _ in 0..count {
            client.send(&request).await;
            let answer = client.answer().await.expect("an answer");
            assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text());
        }
    };
    run(WARM_UP).await;
    allocations::arm();
    run(COUNTED).await;
    let (calls, bytes) = allocations::disarm();
    println!("{path}: {}.{:03} allocations, {} bytes per request", calls / COUNTED, calls % COUNTED, bytes / COUNTED);
    calls
}

#[tokio::test]
async fn a_short_request_allocates_within_its_budget() {
    let node = Node::start(NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8)).unwrap();
    // Polled seldom: the count is about requests.
    let health = "health: { probe: 10s, ps: 60s, tags: 60s }";
    let proxy = Proxy::start(&[node.url()], &format!("workers: 1\n{health}")).await;
    proxy.until_listed("m:latest").await;
    for path in ["/api/chat", "/v1/chat/completions"] {
        let calls = counted(&proxy, path).await;
        assert!(calls > COUNTED, "{calls} allocations: the worker was not counted");
        let most = PER_REQUEST_MAX * COUNTED + BACKGROUND_MAX;
        assert!(calls <= most, "{path}: {calls} allocations in {COUNTED} requests, {most} at most");
    }
    proxy.stop().await;
}
