//! Slots and waiting over the whole proxy: hard and soft limits, late binding, cold copies, unloads, 404 against 503.

use std::time::Duration;

use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};

use crate::failover::STREAMS;
use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{Asked, finish, held};

fn numbered(at: u32) -> String {
    format!(r#"{{"model":"m","prompt":"number {at}","stream":false}}"#)
}

fn number(asked: &Asked) -> u32 {
    let text = asked.text();
    text.split("number ").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
}

/// Sends a request and leaves its answer for later.
async fn ask(proxy: &Proxy, at: u32) -> Client {
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", &numbered(at))).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_limit_holds_and_waiting_is_first_come_first_served() {
    let (node, paces) = held();
    let proxy = Proxy::start(&[node.url()], "slots: 2").await;
    proxy.until_listed("m:latest").await;
    let mut clients = Vec::new();
    for at in 0..10 {
        clients.push(ask(&proxy, at).await);
        if at < 2 {
            assert_eq!(number(&node.next().await), at);
        } else {
            eventually("it waits", || async { proxy.waiting("m") == at - 1 }).await;
        }
    }
    assert_eq!((node.untaken(), proxy.in_flight()), (0, 2), "what does not fit waits here, not in the node");
    for at in 2..10 {
        finish(&paces.recv_async().await.unwrap());
        assert_eq!(number(&node.next().await), at, "in the order of arrival");
        assert!(proxy.in_flight() <= 2);
    }
    finish(&paces.recv_async().await.unwrap());
    finish(&paces.recv_async().await.unwrap());
    for client in &mut clients {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_request_takes_the_first_slot_that_frees_wherever_it_is() {
    for first_free in [0, 1] {
        let nodes = [held(), held()];
        let urls: Vec<String> = nodes.iter().map(|(node, _)| node.url()).collect();
        let proxy = Proxy::start(&urls, "slots: 1").await;
        proxy.until_listed("m:latest").await;
        eventually("both known", || async { proxy.loaded("m") == 2 }).await;
        let mut clients = vec![ask(&proxy, 0).await, ask(&proxy, 1).await];
        for (node, _) in &nodes {
            node.next().await;
        }
        clients.push(ask(&proxy, 2).await);
        eventually("it waits", || async { proxy.waiting("m") == 1 }).await;
        let (node, paces) = &nodes[first_free];
        finish(&paces.recv_async().await.unwrap());
        assert_eq!(number(&node.next().await), 2, "bound late");
        finish(&paces.recv_async().await.unwrap());
        finish(&nodes[1 - first_free].1.recv_async().await.unwrap());
        for client in &mut clients {
            assert_eq!(client.answer().await.unwrap().status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soft_limit_is_a_preference_never_a_wall() {
    let nodes = [held(), held()];
    let urls: Vec<String> = nodes.iter().map(|(node, _)| node.url()).collect();
    let proxy = Proxy::start(&urls, "slots: soft 2").await;
    proxy.until_listed("m:latest").await;
    eventually("both known", || async { proxy.loaded("m") == 2 }).await;
    let mut clients = Vec::new();
    for at in 0..10 {
        clients.push(ask(&proxy, at).await);
    }
    // All of them are sent, spread evenly, and nobody waits.
    for (node, _) in &nodes {
        for _ in 0..5 {
            node.next().await;
        }
    }
    assert_eq!((proxy.waiting("m"), proxy.in_flight()), (0, 10));
    for (_, paces) in &nodes {
        for _ in 0..5 {
            finish(&paces.recv_async().await.unwrap());
        }
    }
    for client in &mut clients {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_clients_on_an_unloaded_model_cause_one_load() {
    for slots in ["slots: soft", "slots: 4"] {
        let model = || ModelSpec::chat("m").load_time(Duration::from_millis(500));
        let spec = || NodeSpec::ollama(vec![model()]).slots(4);
        let herd = Herd::start(vec![spec(), spec(), spec()]).unwrap();
        let proxy = Proxy::start(&herd.urls(), slots).await;
        proxy.until_listed("m:latest").await;
        let address = proxy.address;
        let clients = (0..30).map(|at| {
            let (path, body) = STREAMS[at % STREAMS.len()];
            // Slow enough that many wait for long while the copy is full, yet shorter than `cold_spill_after`.
            let body = body.replacen('{', r#"{"sim":{"tokens":20,"pace_ms":10},"#, 1);
            tokio::spawn(async move { client::post_once(address, path, &body).await })
        });
        for client in clients.collect::<Vec<_>>() {
            let answer = client.await.unwrap();
            assert!(answer.status == 200 && answer.whole, "{}", answer.text());
        }
        let loads: Vec<u64> = herd.nodes().iter().map(|node| node.ledger().model("m:latest").loads).collect();
        assert_eq!(loads.iter().sum::<u64>(), 1, "{slots}: {loads:?}");
        eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_marks_its_model_loaded_though_nobody_else_says_so() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")])]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "health: { probe: 100ms, ps: 10m, stale_residency: 30m }").await;
    proxy.until_listed("m:latest").await;
    herd.nodes()[0].fault(Fault::new(Harm::Hang).for_path("/api/ps"));
    assert_eq!(proxy.loaded("m"), 0);
    assert_eq!(client::post_once(proxy.address, "/api/generate", r#"{"model":"m"}"#).await.status, 200);
    assert_eq!(proxy.loaded("m"), 1, "before the client has read its answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_fails_is_tried_on_another_node_and_one_at_a_time() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "slots: 4").await;
    proxy.until_listed("m:latest").await;
    let text = "llama-server process has terminated: signal: killed";
    herd.nodes()[0].fault(Fault::new(Harm::LoadFails(text.into())));
    let address = proxy.address;
    let clients = (0..12).map(|at| {
        let (path, body) = STREAMS[at % STREAMS.len()];
        tokio::spawn(async move { client::post_once(address, path, body).await })
    });
    for client in clients.collect::<Vec<_>>() {
        let answer = client.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(herd.nodes()[0].ledger().model("m:latest").loads, 0);
    assert_eq!(herd.nodes()[1].ledger().model("m:latest").loads, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_further_copy_starts_before_cold_spill_after() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(1);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "slots: 1\nrouting: { cold_spill_after: 10m }").await;
    proxy.until_listed("m:latest").await;
    let mut first = Client::connect(proxy.address).await;
    let slow = r#"{"model":"m","prompt":"x","sim":{"tokens":100000,"pace_ms":20}}"#;
    first.send(&post("/api/generate", slow)).await;
    first.answer_up_to(1).await.unwrap();
    let body = br#"{"model":"m","prompt":"x"}"#;
    let waits = client::request("POST", "/api/generate", &[("x-herdgate-max-wait", "1")], body);
    assert_eq!(client::once(proxy.address, &waits).await.status, 503, "it waits, though another node is idle");
    let loads: u64 = herd.nodes().iter().map(|node| node.ledger().model("m:latest").loads).sum();
    assert_eq!(loads, 1);
    first.reset();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_copy_starts_when_all_have_been_full_for_long() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(1);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "slots: 1\nrouting: { cold_spill_after: 300ms }").await;
    proxy.until_listed("m:latest").await;
    let slow = r#"{"model":"m","prompt":"x","sim":{"tokens":100000,"pace_ms":20}}"#;
    let mut first = Client::connect(proxy.address).await;
    first.send(&post("/api/generate", slow)).await;
    first.answer_up_to(1).await.unwrap();
    // While the first runs on for minutes, the second is served by a copy of its own.
    let second = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await;
    assert_eq!(second.status, 200);
    let loads: Vec<u64> = herd.nodes().iter().map(|node| node.ledger().model("m:latest").loads).collect();
    assert_eq!(loads, [1, 1]);
    let running: u32 = herd.nodes().iter().map(|node| node.ledger().model("m:latest").in_flight).sum();
    assert_eq!(running, 1, "the first still runs");
    first.reset();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_loaded_and_unloaded_is_listed_before_the_next_poll() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")])]).unwrap();
    // Residency is polled once at the start, and then not for as long as this test could last.
    let proxy = Proxy::start(&herd.urls(), "health: { probe: 100ms, ps: 10m, stale_residency: 30m }").await;
    proxy.until_listed("m:latest").await;
    let ps = || async { client::get(proxy.address, "/api/ps").await.text() };
    for (body, listed) in [(r#"{"model":"m"}"#, true), (r#"{"model":"m","keep_alive":0}"#, false)] {
        assert_eq!(client::post_once(proxy.address, "/api/generate", body).await.status, 200);
        eventually("as it is", || async { ps().await.contains("\"m:latest\"") == listed }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unload_reaches_every_node_that_has_the_model_loaded() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m"), ModelSpec::chat("other")]).slots(2);
    let herd = Herd::start(vec![spec(), spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    let unloads = [
        ("/api/generate", r#"{"model":"m","keep_alive":0}"#),
        ("/api/chat", r#"{"model":"m","messages":[],"keep_alive":"0s"}"#),
    ];
    for (path, body) in unloads {
        for node in &herd.nodes()[..2] {
            for name in ["m", "other"] {
                let load = format!(r#"{{"model":"{name}"}}"#);
                assert_eq!(client::post_once(node.address(), "/api/generate", &load).await.status, 200);
            }
        }
        eventually("known", || async { proxy.loaded("m") == 2 }).await;
        let answer = client::post_once(proxy.address, path, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["done_reason"], "unload");
        let loaded = |at: usize| herd.nodes()[at].loaded();
        eventually("unloaded everywhere", || async { loaded(0) == ["other:latest"] && loaded(1) == ["other:latest"] })
            .await;
        eventually("and known", || async { proxy.loaded("m") == 0 }).await;
        let ps = || async { client::get(proxy.address, "/api/ps").await.text() };
        eventually("not listed", || async { !ps().await.contains("\"m:latest\"") }).await;
        // Again, and it is a 200 again.
        let again = client::post_once(proxy.address, path, body).await;
        assert_eq!((again.status, again.json()["done_reason"].clone()), (200, "unload".into()));
        assert!(herd.nodes()[2].ledger().model("m:latest").loads == 0, "nothing is loaded to be unloaded");
    }
    let unknown = client::post_once(proxy.address, "/api/generate", r#"{"model":"nope","keep_alive":0}"#).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_only_a_node_that_is_down_has_is_503_and_never_404() {
    let herd = Herd::start(vec![
        NodeSpec::ollama(vec![ModelSpec::chat("m"), ModelSpec::embedding("both")]),
        NodeSpec::ollama(vec![ModelSpec::chat("other"), ModelSpec::embedding("both")]),
    ])
    .unwrap();
    let data = tempfile::tempdir().unwrap();
    let clock = herdgate::clock::Clock::system;
    let proxy = Proxy::start_in(data, &herd.urls(), "", clock()).await;
    proxy.until_listed("m:latest").await;
    proxy.until_listed("other:latest").await;
    herd.nodes()[0].stop();
    let routes = ["/api/show", "/api/embed", "/api/embeddings", "/v1/embeddings"];
    let bodies = routes.map(|path| (path, r#"{"model":"m","input":"x","prompt":"x"}"#));
    for round in 0..5 {
        for (path, body) in STREAMS.into_iter().chain(bodies) {
            let answer = client::post_once(proxy.address, path, body).await;
            assert_eq!(answer.status, 503, "round {round}: {path} {}", answer.text());
            assert!(answer.header("retry-after").is_some(), "{path}");
        }
        let unload = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","keep_alive":0}"#).await;
        assert_eq!(unload.status, 503, "{}", unload.text());
        let shown = client::get(proxy.address, "/v1/models/m").await;
        assert_ne!(shown.status, 404, "{}", shown.text());
        // What the other has is served, what nobody ever had is 404.
        let both = client::post_once(proxy.address, "/api/embed", r#"{"model":"both","input":"x"}"#).await;
        assert_eq!(both.status, 200, "{}", both.text());
        let nope = client::post_once(proxy.address, "/api/chat", r#"{"model":"nope","messages":[]}"#).await;
        assert_eq!(nope.status, 404, "{}", nope.text());
        if round == 1 {
            eventually("down", || async { !proxy.shared().fleet.load().nodes[0].up }).await;
        }
    }
    // After a restart of the proxy too: inventories are remembered.
    let data = proxy.stop().await;
    let proxy = Proxy::start_in(data, &herd.urls(), "", clock()).await;
    proxy.until_listed("other:latest").await;
    for (path, body) in STREAMS {
        assert_eq!(client::post_once(proxy.address, path, body).await.status, 503, "{path}");
    }
    // Back again, it serves.
    herd.nodes()[0].restart();
    eventually("served again", || async {
        client::post_once(proxy.address, STREAMS[0].0, STREAMS[0].1).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_404_of_one_node_never_hides_another_that_is_down_or_busy() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    // Inventories that are not read again: the proxy has to learn from the answer.
    let health = "health: { probe: 100ms, probe_timeout: 2s, backoff_max: 200ms, ps: 200ms, tags: 1h }";
    for busy in [true, false] {
        let herd = Herd::start(vec![spec(), spec()]).unwrap();
        let proxy = Proxy::start(&herd.urls(), health).await;
        proxy.until_listed("m:latest").await;
        eventually("both known", || async {
            let snapshot = proxy.shared().fleet.load();
            snapshot.models.get("m:latest").is_some_and(|model| model.candidates.len() == 2)
        })
        .await;
        herd.nodes()[0].remove_model("m");
        if busy {
            herd.nodes()[1].fault(Fault::new(Harm::Busy));
        } else {
            herd.nodes()[1].stop();
        }
        for (path, body) in STREAMS {
            let answer = client::post_once(proxy.address, path, body).await;
            assert_eq!(answer.status, 503, "busy: {busy}, {path} {}", answer.text());
            assert!(answer.header("retry-after").is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_wait_end_at_once_when_no_node_is_left() {
    let (node, _paces) = held();
    let proxy = Proxy::start(&[node.url()], "slots: 1").await;
    proxy.until_listed("m:latest").await;
    let mut first = ask(&proxy, 0).await;
    node.next().await;
    let mut waiting = Vec::new();
    for count in 1..=4 {
        waiting.push(ask(&proxy, count).await);
        eventually("it waits", || async { proxy.waiting("m") == count }).await;
    }
    drop(node);
    for client in &mut waiting {
        let answer = client.answer().await.unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(first.answer().await.unwrap().status, 503, "lost before its first byte");
    assert_eq!(proxy.waiting("m"), 0);
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_when_the_process_drains_is_told_at_once_and_what_runs_runs_on() {
    let (node, paces) = held();
    let proxy = Proxy::start(&[node.url()], "slots: 1").await;
    proxy.until_listed("m:latest").await;
    let mut running = ask(&proxy, 1).await;
    let pace = paces.recv_async().await.unwrap();
    let mut waiting = Client::connect(proxy.address).await;
    waiting.send(&post("/v1/chat/completions", r#"{"model":"m","messages":[]}"#)).await;
    eventually("it waits", || async { proxy.waiting("m") == 1 }).await;
    let mut events = Client::connect(proxy.address).await;
    events.send(&client::request("GET", "/api/usage-stream", &[], b"")).await;
    assert_eq!(events.begin().await.unwrap().status, 200);
    proxy.gate().leave();
    while events.chunk().await.is_some() {}
    proxy.gate().drain();
    let told = waiting.answer().await.unwrap();
    assert_eq!((told.status, told.header("connection")), (503, Some("close")));
    assert!(told.header("retry-after").is_some() && told.json()["error"]["message"].is_string(), "{}", told.text());
    finish(&pace);
    assert_eq!(running.answer().await.unwrap().status, 200);
    eventually("drained", || async { proxy.gate().is_drained() }).await;
}
