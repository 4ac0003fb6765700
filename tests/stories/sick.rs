//! Nodes that serve, but badly: named in log, metric and status, and asked last where the configuration says so.

use std::time::Duration;

use herdgate::sim::{Herd, ModelSpec, NodeSpec};

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{Act, After, Scripted, answer};

/// A node that says it took so long for its ten tokens.
fn timed(eval_ms: u64) -> Scripted {
    Scripted::start(&["m:latest"], move |_| {
        let body = format!(
            r#"{{"model":"m","created_at":"2026-11-25T12:00:00Z","response":"x","done":true,"done_reason":"stop","total_duration":1,"load_duration":1,"prompt_eval_count":3,"prompt_eval_duration":1,"eval_count":10,"eval_duration":{}}}"#,
            eval_ms * 1_000_000
        );
        answer("200 OK", "application/json; charset=utf-8", body.as_bytes())
    })
}

async fn generate(client: &mut Client) -> String {
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#)).await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-herdgate-node").unwrap_or_default().to_owned()
}

/// Asks until `/health` has these words: ties rotate, so that each node gets its twenty. Says what it had then.
async fn ask_until_named(proxy: &Proxy, client: &mut Client, words: &str) -> serde_json::Value {
    for _ in 0..6000 {
        generate(client).await;
        let health = client::get(proxy.address, "/health").await;
        if health.text().contains(words) {
            return health.json();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never: {words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_node_is_named_and_where_so_configured_the_last_choice() {
    for degrade in ["warn", "demote"] {
        let nodes = [timed(100), timed(100), timed(450)];
        let urls: Vec<String> = nodes.iter().map(Scripted::url).collect();
        let proxy = Proxy::start(&urls, &format!("slots: 2\nrouting: {{ degrade: {degrade} }}")).await;
        proxy.until_listed("m:latest").await;
        eventually("all known", || async { proxy.loaded("m") == 3 }).await;
        let mut client = Client::connect(proxy.address).await;
        let sick = |health: &serde_json::Value, at: usize| health["endpoints"][&urls[at]]["sick"].to_string();
        let told = ask_until_named(&proxy, &mut client, "slow: 22.2 tokens/s").await;
        assert!(sick(&told, 2).contains("m:latest: slow: 22.2 tokens/s"), "{told}");
        assert_eq!(told["status"], "ok", "{told}");
        assert!(sick(&told, 0) == "null" && sick(&told, 1) == "null", "{told}");
        let metrics = client::get(proxy.address, "/metrics").await.text();
        let line = format!(r#"herdgate_node_sick{{node="{}",kind="slow"}} 1"#, urls[2]);
        assert!(metrics.contains(&line), "{metrics}");
        let config = client::get(proxy.address, "/api/config").await.text();
        assert!(config.contains("where the fleet's median is 100.0"), "{config}");
        let status = client::get(proxy.address, "/herdgate/status").await.json();
        let words = status["nodes"][2]["sick"][0].as_str().unwrap_or_default();
        assert!(
            words.starts_with("m:latest: slow: 22.2") && status["nodes"][0]["sick"] == serde_json::json!([]),
            "{status}"
        );
        let untaken = |at: usize| nodes[at].untaken();
        let before = [untaken(0), untaken(1), untaken(2)];
        for _ in 0..30 {
            generate(&mut client).await;
        }
        let since = [untaken(0) - before[0], untaken(1) - before[1], untaken(2) - before[2]];
        match degrade {
            "warn" => assert_eq!(since, [10, 10, 10]),
            _ => assert!(since[2] == 0 && since[0] + since[1] == 30, "{since:?}"),
        }
    }
}

/// Where all others are full the last choice is a choice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_node_serves_when_the_others_are_full() {
    let hold = |eval_ms: u64| {
        Scripted::start(&["m:latest"], move |asked| {
            if asked.text().contains("hold") {
                return Act::Bytes(Vec::new(), After::Hang);
            }
            let body = format!(
                r#"{{"model":"m","response":"x","done":true,"prompt_eval_count":3,"eval_count":10,"eval_duration":{}}}"#,
                eval_ms * 1_000_000
            );
            answer("200 OK", "application/json", body.as_bytes())
        })
    };
    let nodes = [hold(100), hold(450)];
    let urls: Vec<String> = nodes.iter().map(Scripted::url).collect();
    let proxy = Proxy::start(&urls, "slots: 1\nrouting: { degrade: demote }").await;
    proxy.until_listed("m:latest").await;
    eventually("all known", || async { proxy.loaded("m") == 2 }).await;
    let mut client = Client::connect(proxy.address).await;
    ask_until_named(&proxy, &mut client, "slow: 22.2").await;
    let before = nodes[1].untaken();
    let mut held = Client::connect(proxy.address).await;
    held.send(&post("/api/generate", r#"{"model":"m","prompt":"hold","stream":false}"#)).await;
    eventually("held", || async { proxy.in_flight() == 1 }).await;
    assert_eq!(nodes[1].untaken(), before, "the well one is taken first");
    generate(&mut client).await;
    assert_eq!(nodes[1].untaken(), before + 1);
    held.reset();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spilled_copy_is_named() {
    let spec = |vram_percent| NodeSpec { vram_percent, ..NodeSpec::ollama(vec![ModelSpec::chat("m")]) };
    let herd = Herd::start(vec![spec(100), spec(40), spec(95)]).unwrap();
    for node in herd.nodes() {
        assert_eq!(client::post_once(node.address(), "/api/generate", r#"{"model":"m"}"#).await.status, 200);
    }
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    let health = || async { client::get(proxy.address, "/health").await.text() };
    let words = "m:latest: spilled: 40 % of it is in the GPU's memory, elsewhere all is";
    eventually("named", || async { health().await.contains(words) }).await;
    assert_eq!(health().await.matches("spilled").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_named() {
    let node = Scripted::start(&["m:latest"], |_| Act::Bytes(Vec::new(), After::Hang));
    let proxy = Proxy::start(&[node.url()], "timeouts: { suspect_after: 300ms }").await;
    proxy.until_listed("m:latest").await;
    eventually("known", || async { proxy.loaded("m") == 1 }).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
        clients.push(client);
    }
    let health = || async { client::get(proxy.address, "/health").await };
    eventually("named", || async { health().await.text().contains("silent: requests on it wait in vain") }).await;
    assert_eq!(health().await.status, 503, "it takes no new work, and there is no other");
    let metrics = client::get(proxy.address, "/metrics").await.text();
    assert!(metrics.contains(&format!(r#"herdgate_node_sick{{node="{}",kind="silent"}} 1"#, node.url())), "{metrics}");
    clients.into_iter().for_each(Client::reset);
}

/// The first one's request loads it; the others hold slots of a copy that is not there yet, and owe them no byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_silent_while_it_loads_for_several() {
    let model = ModelSpec::chat("m").load_time(Duration::from_secs(2));
    let herd = Herd::start(vec![NodeSpec::ollama(vec![model]).slots(4)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "timeouts: { suspect_after: 300ms }").await;
    proxy.until_listed("m:latest").await;
    let body = r#"{"model":"m","prompt":"x","options":{"num_predict":2}}"#;
    let asked: Vec<_> = (0..3).map(|_| tokio::spawn(client::post_once(proxy.address, "/api/generate", body))).collect();
    eventually("all are on it", || async { proxy.in_flight() == 3 }).await;
    while proxy.loaded("m") == 0 {
        let node = proxy.shared().fleet.load().nodes[0].clone();
        assert!(!node.suspect && node.word.is_open(), "it loads, and nothing is wrong with it");
        tokio::task::yield_now().await;
    }
    for answer in asked {
        assert_eq!(answer.await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_loads_for_long_is_no_suspect() {
    let model = ModelSpec::chat("m").load_time(Duration::from_secs(3));
    let herd = Herd::start(vec![NodeSpec::ollama(vec![model]).slots(4)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "timeouts: { suspect_after: 300ms }").await;
    proxy.until_listed("m:latest").await;
    let address = proxy.address;
    let clients = (0..3).map(|_| {
        tokio::spawn(async move { client::post_once(address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await })
    });
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.unwrap().status, 200);
    }
    let snapshot = proxy.shared().fleet.load();
    let causes: Vec<_> = snapshot.configured().map(|node| node.cause.to_string()).collect();
    assert_eq!(causes, ["answers probes"], "nothing has been said of it since it came up");
}
