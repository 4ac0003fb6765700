//! `/metrics` on the wire: the rules of the exposition format, and that every figure moves when it should.

use std::collections::BTreeMap;

use crate::support::client::{Client, get, post, post_once};
use crate::support::proxy::{Proxy, eventually};
use crate::{CHAT, herd};

/// Samples by name and labels as written.
type Samples = BTreeMap<String, f64>;

/// Reads an exposition and holds it against the rules of Prometheus: text format 0.0.4, and the conventions for names.
fn checked(text: &str) -> Samples {
    let mut samples = Samples::new();
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let mut family = ("", "");
    let mut helped = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap();
            assert!(!words.is_empty(), "{line}");
            helped = name;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "help stands before the type");
            assert_eq!(families.insert(name, kind), None, "{name} twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}: base units");
            for unit in ["_ms", "_us", "_milliseconds", "_microseconds", "_minutes", "_kilobytes"] {
                assert!(!name.trim_end_matches("_total").ends_with(unit), "{name}: base units");
            }
            family = (name, kind);
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            let name = series.split('{').next().unwrap();
            let tail = name.strip_prefix(family.0).unwrap_or_else(|| panic!("{line} stands in {}", family.0));
            assert!(
                if family.1 == "histogram" { ["_bucket", "_sum", "_count"].contains(&tail) } else { tail.is_empty() },
                "{line}"
            );
            assert!(family.1 != "counter" || value >= 0.0, "{line}");
            assert_eq!(samples.insert(series.to_owned(), value), None, "{series} twice");
        }
    }
    for (name, _) in families.iter().filter(|(_, kind)| **kind == "histogram") {
        histogram(name, text, &samples);
    }
    samples
}

/// Bounds ascend, counts never fall, the last bucket is all, and there is a sum.
fn histogram(name: &str, text: &str, samples: &Samples) {
    let prefix = format!("{name}_bucket{{le=\"");
    let buckets: Vec<(f64, f64)> = text
        .lines()
        .filter_map(|line| line.strip_prefix(&*prefix)?.split_once("\"} "))
        .map(|(bound, count)| {
            (if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() }, count.parse().unwrap())
        })
        .collect();
    assert!(buckets.len() > 2 && buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}: {buckets:?}");
    let (bound, all) = buckets.last().unwrap();
    assert!(bound.is_infinite() && (all - samples[&format!("{name}_count")]).abs() < f64::EPSILON, "{name}");
    assert!(samples[&format!("{name}_sum")] >= 0.0);
}

async fn metrics(proxy: &Proxy) -> Samples {
    let answer = get(proxy.address, "/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    checked(&answer.text())
}

/// Waits until a series reaches a value: the workers' connection counts are taken over at each tick.
async fn until(proxy: &Proxy, series: &str, at_least: f64) {
    eventually(series, || async { metrics(proxy).await.get(series).is_some_and(|value| *value >= at_least) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exposition_keeps_the_rules_and_every_figure_moves() {
    let (herd, proxy) = herd(2, "workers: 1").await;
    let fresh = metrics(&proxy).await;
    for series in
        ["herdgate_token_gap_seconds_count", "herdgate_load_seconds_count", "herdgate_queue_wait_seconds_count"]
    {
        assert!(fresh[series].abs() < f64::EPSILON, "{series}");
    }
    for _ in 0..3 {
        assert_eq!(post_once(proxy.address, "/api/chat", CHAT).await.status, 200);
    }
    // A stream of several reads, so that there are gaps; its client leaves in the middle.
    let body = r#"{"model":"llama3","prompt":"x","sim":{"tokens":10000,"pace_ms":20},"options":{"num_predict":10000}}"#;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", body)).await;
    client.begin().await.unwrap();
    for _ in 0..4 {
        client.chunk().await.unwrap();
    }
    drop(client);
    until(&proxy, "herdgate_requests_total{outcome=\"client_gone\"}", 1.0).await;
    until(&proxy, "herdgate_token_gap_seconds_count", 3.0).await;
    until(&proxy, "herdgate_load_seconds_count", 1.0).await;
    until(&proxy, "herdgate_first_byte_seconds_count", 4.0).await;
    until(&proxy, "herdgate_node_connections_opened_total", 1.0).await;
    until(&proxy, "herdgate_node_connections_reused_total", 1.0).await;
    until(&proxy, "herdgate_node_connections_closed_total", 1.0).await;
    until(&proxy, "herdgate_lingered_total", 1.0).await;
    let read = metrics(&proxy).await;
    let open = read["herdgate_node_connections_opened_total"] - read["herdgate_node_connections_closed_total"];
    assert!((0.0..=2.0).contains(&open), "{open} open");
    for url in herd.urls() {
        assert!(read.contains_key(&format!("herdgate_node_poll_age_seconds{{node=\"{url}\"}}")));
        assert!(read.contains_key(&format!("herdgate_node_state_seconds{{node=\"{url}\"}}")));
    }
    for series in ["herdgate_poll_lag_seconds", "herdgate_poll_lag_max_seconds", "herdgate_cas_retries_total"] {
        assert!(read.contains_key(series), "{series}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_names_that_clients_make_up_have_no_label() {
    let (_herd, proxy) = herd(1, "").await;
    for at in 0..20 {
        let body = format!(r#"{{"model":"made-up-{at}","messages":[]}}"#);
        assert_eq!(post_once(proxy.address, "/api/chat", &body).await.status, 404);
    }
    until(&proxy, "herdgate_requests_total{outcome=\"rejected\"}", 20.0).await;
    let text = get(proxy.address, "/metrics").await.text();
    assert!(!text.contains("made-up"), "a label from a request is a series for ever");
}
