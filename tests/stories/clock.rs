//! The machine's clock steps under a running proxy: minutes may repeat or be skipped, tokens may not.

use std::collections::BTreeMap;

use herdgate::clock::Clock;
use herdgate::sim::{ModelSpec, Node, NodeSpec};

use crate::support::client;
use crate::support::proxy::Proxy;

/// 2026-11-25 12:00:30 UTC.
const NOON_MS: u64 = 1_795_608_030_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_back_two_minutes_and_forward_a_day_loses_nothing() {
    let node = Node::start(NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8)).unwrap();
    let clock = Clock::manual(NOON_MS);
    let proxy = Proxy::start_in(tempfile::tempdir().unwrap(), &[node.url()], "", clock.clone()).await;
    proxy.until_listed("m:latest").await;
    let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
    for (at, step_minutes) in [0, -2, 2, 24 * 60, -24 * 60, 0].into_iter().enumerate() {
        clock.step_utc(step_minutes * 60_000);
        let tokens = 3 + at as u64;
        for _ in 0..5 {
            let body = format!(r#"{{"model":"m","prompt":"x","stream":false,"options":{{"num_predict":{tokens}}}}}"#);
            let answer = client::post_once(proxy.address, "/api/generate", &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        *expected.entry(clock.minute().unix_seconds()).or_default() += 5 * tokens;
        proxy.flush().await;
    }
    assert_eq!(expected.len(), 3, "noon, two minutes before, a day after");
    let told = expected.values().sum::<u64>();
    assert_eq!(node.ledger().tokens().output, told);
    assert_eq!(series(&proxy).await, expected);
    let data = proxy.stop().await;
    let proxy = Proxy::start_in(data, &[node.url()], "", Clock::manual(NOON_MS)).await;
    assert_eq!(series(&proxy).await, expected, "after a restart");
}

/// The control thread reads the wall clock once a second of the monotonic one: a step counts from there on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wall_clock_is_read_anew_each_second() {
    let node = Node::start(NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8)).unwrap();
    let clock = Clock::manual(NOON_MS);
    let proxy = Proxy::start_in(tempfile::tempdir().unwrap(), &[node.url()], "", clock.clone()).await;
    proxy.until_listed("m:latest").await;
    let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
    let ask = async |tokens: u64| {
        let body = format!(r#"{{"model":"m","prompt":"x","stream":false,"options":{{"num_predict":{tokens}}}}}"#);
        assert_eq!(client::post_once(proxy.address, "/api/generate", &body).await.status, 200);
    };
    for step_ms in [-120_000_i64, 86_400_000] {
        let before = clock.unix_ms();
        clock.step_wall(step_ms);
        // The monotonic clock stands still: nobody reads the other.
        ask(3).await;
        *expected.entry(clock.minute().unix_seconds()).or_default() += 3;
        assert_eq!(clock.unix_ms(), before);
        clock.advance(1_000);
        let stepped = before.saturating_add_signed(step_ms) + 1_000;
        proxy.until("the wall clock is read", || async { clock.unix_ms() == stepped }).await;
        ask(5).await;
        *expected.entry(clock.minute().unix_seconds()).or_default() += 5;
        proxy.flush().await;
    }
    assert_eq!(expected.len(), 3, "noon, two minutes before, a day after");
    assert_eq!(series(&proxy).await, expected);
}

/// Output tokens by the Unix second of their minute.
async fn series(proxy: &Proxy) -> BTreeMap<u64, u64> {
    let stats = client::post_once(proxy.address, "/api/stats?model=m:latest", "").await.json();
    let points = stats["time_series"].as_array().unwrap().iter();
    points.map(|point| (point["timestamp"].as_u64().unwrap(), point["output_tokens"].as_u64().unwrap())).collect()
}
