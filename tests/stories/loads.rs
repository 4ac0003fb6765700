//! Loads: clients that give up sooner than a model comes up, and a prompt that kills whatever runs it.

use std::time::Duration;

use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};

/// 60 s clients and a 90 s load, a hundred times as fast: each client leaves before the load is done, the next one
/// comes, and in the end the model is up after one load that nobody cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impatient_clients_and_a_long_load_bring_the_model_up() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("big").load_time(Duration::from_millis(900))]).slots(4);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("big:latest").await;
    for stream in [true, false] {
        for _ in 0..2 {
            let mut client = Client::connect(proxy.address).await;
            let body = format!(r#"{{"model":"big","prompt":"x","stream":{stream}}}"#);
            client.send(&post("/api/generate", &body)).await;
            let _ = tokio::time::timeout(Duration::from_millis(150), client.answer()).await;
            client.reset();
        }
    }
    eventually("the model is up", || async { proxy.loaded("big") == 1 }).await;
    let ledgers = || herd.nodes().iter().map(|node| node.ledger().model("big:latest"));
    assert_eq!(ledgers().map(|model| model.loads).sum::<u64>(), 1, "one load");
    assert_eq!(ledgers().map(|model| model.loads_aborted).sum::<u64>(), 0, "that nobody gave up");
    let answer = client::post_once(proxy.address, "/api/generate", r#"{"model":"big","prompt":"x"}"#).await;
    assert!(answer.status == 200 && answer.whole, "{}", answer.text());
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

/// A prompt that crashes every runner that reads it meets two nodes at most, and the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_kills_runners_kills_two_at_most() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m"), ModelSpec::chat("poison")]).slots(4);
    let herd = Herd::start(vec![spec(), spec(), spec(), spec(), spec()]).unwrap();
    for streamed in [true, false] {
        // (The first has no streams to speak of: the runner dies before the first byte.)
        let proxy = Proxy::start(&herd.urls(), "").await;
        proxy.until_listed("poison:latest").await;
        let asked =
            || herd.nodes().iter().map(|node| node.ledger().model("poison:latest").requests.values().sum::<u64>());
        let before: Vec<u64> = asked().collect();
        for node in herd.nodes() {
            node.fault(Fault::new(Harm::RunnerDies(0)).for_model("poison"));
        }
        let body = format!(r#"{{"model":"poison","prompt":"x","stream":{streamed}}}"#);
        let answer = client::post_once(proxy.address, "/api/generate", &body).await;
        assert!(matches!(answer.status, 500 | 503), "{} {}", answer.status, answer.text());
        let met = asked().zip(before).filter(|(now, before)| now > before).count();
        assert!((1..=2).contains(&met), "{met} nodes met it");
        // It is the prompt's fault: nobody is taken out for it.
        let well = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await;
        assert_eq!(well.status, 200, "{}", well.text());
        assert!(proxy.shared().fleet.load().nodes.iter().all(|node| node.word.is_open()));
        herd.nodes().iter().for_each(herdgate::sim::Node::clear_faults);
    }
}
