//! Time-outs of a node's or a model's own, with the meanings of the global ones.

use crate::BODY;
use crate::support::client::{Client, post};
use crate::support::proxy::Proxy;
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
