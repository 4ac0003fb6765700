//! Time-outs of a node's or a model's own, with the meanings of the global ones.

use crate::BODY;
use crate::support::client::{Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{After, Scripted, Step, chunk, chunked_head, finish, held};

/// A node that falls silent after its first byte.
fn mute() -> Scripted {
    Scripted::start(&["m:latest", "n:latest"], |_| {
        let (pace, act) = crate::support::scripted::paced();
        pace.send(Step::Send(chunked_head("application/x-ndjson"))).unwrap();
        pace.send(Step::Send(chunk(b"{\"response\":\"a\",\"done\":false}\n"))).unwrap();
        pace.send(Step::After(After::Hang)).unwrap();
        act
    })
}

/// How often a time-out has passed, as the metrics say.
async fn passed(proxy: &Proxy, timeout: &str) -> u64 {
    let text = crate::support::client::get(proxy.address, "/metrics").await.text();
    let head = format!("herdgate_timeouts_total{{timeout=\"{timeout}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&head)).unwrap().parse().unwrap()
}

async fn ends_in_words(proxy: &Proxy, model: &str) -> bool {
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", &format!(r#"{{"model":"{model}","prompt":"x"}}"#))).await;
    client.answer().await.unwrap().text().contains("the node fell silent")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_idle_of_a_model_wins_over_its_nodes_and_that_over_the_global_one() {
    let node = mute();
    let nodes = |idle: &str| format!("nodes: [ {{ url: '{}', timeouts: {{ stream_idle: {idle} }} }} ]", node.url());
    let proxy = Proxy::from_file(&[], &nodes("200ms")).await;
    proxy.until_listed("m:latest").await;
    assert!(ends_in_words(&proxy, "m").await, "the node's, where the global one is ten minutes");
    let model = "models: { m: { timeouts: { stream_idle: 200ms } } }";
    let answer = proxy.reload(&[], &format!("{}\n{model}", nodes("600s"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(ends_in_words(&proxy, "m").await, "the model's, where the node's is ten minutes");
    assert_eq!(passed(&proxy, "stream_idle").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_wait_of_a_model_bounds_its_own_queue() {
    let (node, paces) = held();
    let proxy = Proxy::from_file(&[node.url()], "slots: 1\nmodels: { m: { timeouts: { queue_wait: 200ms } } }").await;
    proxy.until_listed("m:latest").await;
    let mut first = Client::connect(proxy.address).await;
    first.send(&post("/api/generate", BODY)).await;
    node.next().await;
    let mut second = Client::connect(proxy.address).await;
    second.send(&post("/api/generate", BODY)).await;
    assert_eq!(second.answer().await.unwrap().status, 503);
    assert_eq!(passed(&proxy, "queue_wait").await, 1);
    finish(&paces.recv_async().await.unwrap());
    assert_eq!(first.answer().await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_idle_of_a_node_closes_its_kept_connections() {
    let node =
        Scripted::start(&["m:latest"], |_| crate::support::scripted::answer("200 OK", "application/json", b"{}"));
    let nodes = |idle: &str| format!("nodes: [ {{ url: '{}', timeouts: {{ pool_idle: {idle} }} }} ]", node.url());
    let proxy = Proxy::from_file(&[], &nodes("1ms")).await;
    proxy.until_listed("m:latest").await;
    let mut client = Client::connect(proxy.address).await;
    let mut connection = async || {
        client.send(&post("/api/generate", BODY)).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        node.next().await.connection
    };
    let first = connection().await;
    let mut tries = 0..1000;
    while connection().await == first {
        assert!(tries.next().is_some(), "a kept connection is as old as its node allows");
    }
    proxy.reload(&[], &nodes("60s")).await;
    let (kept, again) = (connection().await, connection().await);
    assert_eq!(kept, again, "and kept where the node's own time allows");
}

/// A node that says more than any buffer takes, as long as it is listened to.
fn flooding() -> Scripted {
    Scripted::start(&["m:latest", "n:latest"], |_| {
        let (pace, act) = crate::support::scripted::paced();
        pace.send(Step::Send(chunked_head("application/x-ndjson"))).unwrap();
        let line = [vec![b'x'; 65_536], b"\n".to_vec()].concat();
        (0..512).for_each(|_| pace.send(Step::Send(chunk(&line))).unwrap());
        pace.send(Step::After(After::Hang)).unwrap();
        act
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_stall_of_a_model_wins_over_its_nodes_and_that_over_the_global_one() {
    let node = flooding();
    let nodes = |stall: &str| format!("nodes: [ {{ url: '{}', timeouts: {{ client_stall: {stall} }} }} ]", node.url());
    let proxy = Proxy::from_file(&[], &nodes("300ms")).await;
    proxy.until_listed("m:latest").await;
    let stalls = async |told: u64| {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
        assert_eq!(client.begin().await.unwrap().status, 200);
        eventually("it is taken as gone", || async { node.gone() == told }).await;
    };
    stalls(1).await;
    let model = "models: { m: { timeouts: { client_stall: 300ms } } }";
    let answer = proxy.reload(&[], &format!("{}\n{model}", nodes("600s"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    stalls(2).await;
    assert_eq!(passed(&proxy, "client_stall").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspect_after_of_a_model_wins_over_its_nodes_and_that_over_the_global_one() {
    let silent = || Scripted::start(&["m:latest"], |_| crate::support::scripted::Act::Bytes(Vec::new(), After::Hang));
    // By node: the first is patient for two minutes, as everything is.
    let (patient, quick) = (silent(), silent());
    let nodes = |own: &str| {
        format!(
            "nodes: [ {{ name: patient, url: '{}' }}, {{ name: quick, url: '{}', timeouts: {{ suspect_after: {own} }} }} ]",
            patient.url(),
            quick.url()
        )
    };
    for (own, model) in [("300ms", ""), ("600s", "models: { m: { timeouts: { suspect_after: 300ms } } }")] {
        let proxy = Proxy::from_file(&[], &format!("{}\n{model}", nodes(own))).await;
        proxy.until_listed("m:latest").await;
        eventually("both serve", || async { proxy.loaded("m") == 2 }).await;
        let mut clients = crate::asking(&proxy, 4).await;
        let suspects = || {
            let snapshot = proxy.shared().fleet.load();
            let suspects = snapshot.configured().filter(|node| node.suspect).map(|node| node.name.to_string());
            suspects.collect::<Vec<_>>()
        };
        let wanted: &[&str] = if model.is_empty() { &["quick"] } else { &["patient", "quick"] };
        eventually("suspect", || async { suspects() == wanted }).await;
        clients.drain(..).for_each(Client::reset);
    }
}
