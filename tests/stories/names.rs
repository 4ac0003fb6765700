//! Names that nobody has: ten thousand of them, and nothing grows.

use crate::support::client::{Client, post};
use crate::support::proxy::{Proxy, eventually};
use herdgate::sim::{Herd, ModelSpec, NodeSpec};

const NAMES: usize = 10_000;
const CLIENTS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_unknown_names_grow_nothing() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    eventually("all reached", || async { !proxy.shared().fleet.load().incomplete }).await;
    let lists = |node: &herdgate::sim::Node| node.ledger().route("/api/tags");
    let address = proxy.address;
    let clients = (0..CLIENTS).map(|client| {
        tokio::spawn(async move {
            let mut connection = Client::connect(address).await;
            for at in 0..NAMES / CLIENTS {
                let path = ["/api/generate", "/api/chat", "/v1/chat/completions", "/api/show"][at % 4];
                let body = r#""prompt":"x","messages":[{"role":"user","content":"x"}]"#;
                connection.send(&post(path, &format!(r#"{{"model":"unknown-{client}-{at}",{body}}}"#))).await;
                let answer = connection.answer().await.unwrap();
                assert_eq!(answer.status, 404, "{path}: {}", answer.text());
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let shared = proxy.shared();
    assert_eq!(shared.names.models(), 1, "names of their own");
    assert_eq!(shared.fleet.load().models.len(), 1, "models in the snapshot");
    let metrics = crate::support::client::get(address, "/metrics").await.text();
    assert!(!metrics.contains("unknown-"), "no label comes from a request");
    assert_eq!(shared.meters.sums().rejections.iter().sum::<u64>(), NAMES as u64);
    proxy.flush().await;
    assert_eq!(shared.ledger.health().events, NAMES as u64);
    assert!(shared.ledger.health().rows <= 8, "{} rows in memory", shared.ledger.health().rows);
    // The nodes are not asked ten thousand times either.
    for node in herd.nodes() {
        assert!(lists(node) < 2_000, "{} inventories asked for", lists(node));
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}
