//! I4: an event's bucket is its UTC minute, fixed before any queue, on a clock that the test moves.

use std::collections::BTreeMap;

use herdgate::clock::Clock;
use herdgate::sim::{ModelSpec, Node, NodeSpec};

use crate::support::client::{self, Client, post};
use crate::support::proxy::Proxy;

/// 2026-11-25 12:00:00 UTC, on a minute boundary.
const NOON_S: u64 = 1_795_608_000;

/// Output tokens by the Unix second of their minute.
async fn series(proxy: &Proxy) -> BTreeMap<u64, u64> {
    proxy.flush().await;
    let stats = client::post_once(proxy.address, "/api/stats?model=m:latest", "").await.json();
    let points = stats["time_series"].as_array().unwrap();
    points
        .iter()
        .map(|point| (point["timestamp"].as_u64().unwrap(), point["output_tokens"].as_u64().unwrap()))
        .collect()
}

async fn generate(proxy: &Proxy, tokens: u64) {
    let body = format!(r#"{{"model":"m","prompt":"x","stream":false,"options":{{"num_predict":{tokens}}}}}"#);
    let answer = client::post_once(proxy.address, "/api/generate", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_events_fall_into_the_minute_of_their_end_even_if_queued_across_the_boundary() {
    let node = Node::start(NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8)).unwrap();
    let clock = Clock::manual(NOON_S * 1000);
    let data = tempfile::tempdir().unwrap();
    // A tick of a second: events wait in the ring until the flush, which comes after the boundary.
    let extra = "ledger: { tick: 1s }";
    let proxy = Proxy::start_in(data, &[node.url()], extra, clock.clone()).await;
    proxy.until_listed("m:latest").await;

    clock.advance(59_999);
    generate(&proxy, 3).await;
    // A stream that begins in the first minute and ends in the second belongs to the second.
    let mut stream = Client::connect(proxy.address).await;
    let body = r#"{"model":"m","prompt":"x","sim":{"tokens":20,"pace_ms":25}}"#;
    stream.send(&post("/api/generate", body)).await;
    clock.advance(1);
    generate(&proxy, 5).await;
    assert!(stream.answer().await.unwrap().whole);
    let minutes = series(&proxy).await;
    assert_eq!(minutes, BTreeMap::from([(NOON_S, 3), (NOON_S + 60, 25)]));

    // A step of the system's clock back into the first minute adds to it, and overwrites nothing.
    clock.step_utc(-30_000);
    generate(&proxy, 7).await;
    let minutes = series(&proxy).await;
    assert_eq!(minutes, BTreeMap::from([(NOON_S, 10), (NOON_S + 60, 25)]));
    assert!(minutes.keys().all(|second| second % 60 == 0));

    // A restart within the minute keeps what was there.
    let data = proxy.stop().await;
    let proxy = Proxy::start_in(data, &[node.url()], extra, Clock::manual(NOON_S * 1000 + 61_000)).await;
    proxy.until_listed("m:latest").await;
    generate(&proxy, 1).await;
    assert_eq!(series(&proxy).await, BTreeMap::from([(NOON_S, 10), (NOON_S + 60, 26)]));
    drop(proxy.stop().await);
}
