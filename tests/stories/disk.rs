//! A disk that cannot be written: what is counted meanwhile is counted once, in the end.

use herdgate::clock::Clock;
use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use herdgate::usage::Tokens;
use herdgate::usage::answers::StoreState;

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};

const BODY: &str = r#"{"model":"m","prompt":"x","stream":false}"#;

/// The store's place is taken by a file, which root cannot write through either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_served_through_and_exact_after_healing() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4)]).unwrap();
    let data = tempfile::tempdir().unwrap();
    let in_the_way = data.path().join("ledger");
    std::fs::write(&in_the_way, "no space").unwrap();
    let proxy = Proxy::start_in(data, &herd.urls(), "", Clock::system()).await;
    proxy.until_listed("m:latest").await;
    let mut client = Client::connect(proxy.address).await;
    for _ in 0..20 {
        client.send(&post("/api/generate", BODY)).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    // It says so everywhere, and stays healthy: clients are served.
    let health = client::get(proxy.address, "/health").await;
    assert_eq!((health.status, health.json()["ledger"]["status"].as_str()), (200, Some("error")));
    assert!(health.text().contains("in memory"), "{}", health.text());
    let metrics = client::get(proxy.address, "/metrics").await.text();
    assert!(metrics.contains("herdgate_ledger_degraded 1"), "{metrics}");
    std::fs::remove_file(&in_the_way).unwrap();
    eventually("the store is taken", || async { proxy.shared().ledger.health().store == StoreState::Open }).await;
    for _ in 0..20 {
        client.send(&post("/api/generate", BODY)).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    proxy.flush().await;
    let told = herd.nodes()[0].ledger().tokens();
    let data = proxy.stop().await;
    let proxy = Proxy::start_in(data, &herd.urls(), "", Clock::system()).await;
    let counts = proxy.shared().ledger.token_counts().await.unwrap();
    let stored: Tokens = counts.iter().fold(Tokens::default(), |sum, count| sum.plus(count.exact));
    assert_eq!((stored.input, stored.output), (told.prompt, told.output), "{counts:?}");
}
