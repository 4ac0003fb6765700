//! Names that nobody has: ten thousand of them, and nothing grows.

use crate::support::client::{Client, post, post_once};
use crate::support::proxy::{Proxy, eventually};
use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};

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

/// Clients pull on a 404; a node that nobody has reached yet may have the model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_node_was_never_reached_an_unknown_name_is_503() {
    let spec = |model| NodeSpec::ollama(vec![ModelSpec::chat(model)]).slots(4);
    let herd = Herd::start(vec![spec("m"), spec("late")]).unwrap();
    let late = &herd.nodes()[1];
    late.fault(Fault::new(Harm::Hang).for_all());
    let health = "health: { probe: 100ms, probe_timeout: 100ms, backoff_max: 200ms, ps: 200ms, tags: 500ms }";
    let proxy = Proxy::start(&herd.urls(), health).await;
    proxy.until_listed("m:latest").await;
    let ask = async |model: &str| {
        let answer = post_once(proxy.address, "/api/chat", &format!(r#"{{"model":"{model}","messages":[]}}"#)).await;
        answer.status
    };
    assert_eq!((ask("m").await, ask("late").await, ask("nobody").await), (200, 503, 503));
    late.clear_faults();
    proxy.until_listed("late:latest").await;
    assert_eq!((ask("late").await, ask("nobody").await), (200, 404), "all are known now");
}
