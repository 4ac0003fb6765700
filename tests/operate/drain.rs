//! A node taken out and in again: what it has finishes, nothing new comes, the list is kept, nodes are upgraded in turn.

use std::time::Duration;

use herdgate::fleet::resolve::Resolver;
use herdgate::sim::{Herd, ModelSpec, NodeSpec};

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{finish, held};
use crate::{BODY, Load, asking};

fn named(urls: &[String]) -> String {
    let nodes: Vec<String> =
        ["a", "b", "c"].iter().zip(urls).map(|(name, url)| format!("{{ name: {name}, url: '{url}' }}")).collect();
    format!("nodes: [{}]", nodes.join(", "))
}

async fn state(proxy: &Proxy, name: &str) -> (String, u64) {
    let status = client::get(proxy.address, "/herdgate/status").await.json();
    let node = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap().clone();
    (node["state"].as_str().unwrap().to_owned(), node["in_flight"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_finishes_what_it_has_and_stays_drained_over_a_restart() {
    let ((a, a_paces), (b, b_paces)) = (held(), held());
    let nodes = named(&[a.url(), b.url()]) + "\nslots: 1";
    let proxy = Proxy::from_file(&[], &nodes).await;
    proxy.until_listed("m:latest").await;
    eventually("both known", || async { proxy.loaded("m") == 2 }).await;
    let mut clients = asking(&proxy, 3).await;
    a.next().await;
    b.next().await;
    eventually("one waits", || async { proxy.waiting("m") == 1 }).await;
    let answer = proxy.order("nodes/a/drain").await;
    assert_eq!(
        (answer.status, answer.json()["draining"].clone(), answer.json()["kept"].clone()),
        (200, true.into(), true.into())
    );
    assert_eq!(state(&proxy, "a").await, ("draining".to_owned(), 1), "what runs there runs on");
    finish(&a_paces.recv_async().await.unwrap());
    eventually("nothing runs there", || async { state(&proxy, "a").await.1 == 0 }).await;
    assert_eq!((a.untaken(), proxy.waiting("m")), (0, 1), "its slot is free and nobody gets it");
    finish(&b_paces.recv_async().await.unwrap());
    b.next().await;
    finish(&b_paces.recv_async().await.unwrap());
    for client in &mut clients {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    let health = client::get(proxy.address, "/health?strict").await;
    assert_eq!((health.status, health.json()["endpoints"]["a"]["status"].clone()), (200, "draining".into()));
    let metrics = client::get(proxy.address, "/metrics").await.text();
    assert!(
        metrics.contains("herdgate_node_draining{node=\"a\"} 1")
            && metrics.contains("herdgate_node_draining{node=\"b\"} 0")
    );
    assert_eq!(proxy.order("nodes/nobody/drain").await.status, 404);

    let data = proxy.stop().await;
    let proxy = Proxy::from_file_in(data, &[], &nodes, Resolver::system()).await;
    eventually("b serves", || async { proxy.loaded("m") >= 1 && state(&proxy, "a").await.0 == "draining" }).await;
    for _ in 0..3 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/api/generate", BODY)).await;
        b.next().await;
        finish(&b_paces.recv_async().await.unwrap());
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    assert_eq!(a.untaken(), 0, "still taken out");
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", BODY)).await;
    b.next().await;
    let mut second = Client::connect(proxy.address).await;
    second.send(&post("/api/generate", BODY)).await;
    eventually("it waits", || async { proxy.waiting("m") == 1 }).await;
    assert_eq!(proxy.order("nodes/a/undrain").await.status, 200);
    a.next().await;
    finish(&a_paces.recv_async().await.unwrap());
    finish(&b_paces.recv_async().await.unwrap());
    assert_eq!((client.answer().await.unwrap().status, second.answer().await.unwrap().status), (200, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_only_node_is_taken_out_who_waits_and_who_comes_is_told_at_once() {
    let (a, a_paces) = held();
    let proxy = Proxy::from_file(&[], &(named(&[a.url()]) + "\nslots: 1")).await;
    proxy.until_listed("m:latest").await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/api/generate", BODY)).await;
        clients.push(client);
        if clients.len() == 1 {
            a.next().await;
        }
    }
    eventually("one waits", || async { proxy.waiting("m") == 1 }).await;
    proxy.order("nodes/a/drain").await;
    let told = clients.pop().unwrap().answer().await.unwrap();
    assert_eq!((told.status, told.header("retry-after").is_some()), (503, true), "never 404: clients pull on one");
    let mut late = Client::connect(proxy.address).await;
    late.send(&post("/api/generate", BODY)).await;
    assert_eq!(late.answer().await.unwrap().status, 503);
    finish(&a_paces.recv_async().await.unwrap());
    assert_eq!(clients.pop().unwrap().answer().await.unwrap().status, 200);
}

/// The recipe of the README, played: drain, wait until nothing runs there, restart the node, undrain, the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_upgraded_in_turn_and_no_client_notices() {
    let model = || ModelSpec::chat("m").load_time(Duration::from_millis(20));
    let spec =
        || NodeSpec::ollama(vec![model()]).slots(4).speed(Duration::ZERO, Duration::ZERO, Duration::from_millis(1));
    let herd = Herd::start(vec![spec(), spec(), spec()]).unwrap();
    let proxy = Proxy::from_file(&[], &named(&herd.urls())).await;
    proxy.until_listed("m:latest").await;
    let load = Load::start(6, proxy.address, || {
        post("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"num_predict":5}}"#)
    });
    load.more(20).await;
    for (node, name) in herd.nodes().iter().zip(["a", "b", "c"]) {
        assert_eq!(proxy.order(&format!("nodes/{name}/drain")).await.status, 200);
        eventually("nothing runs there", || async { state(&proxy, name).await.1 == 0 }).await;
        node.stop();
        eventually("it is seen as down", || async { state(&proxy, name).await.0 == "draining, down" }).await;
        load.more(10).await;
        node.restart();
        assert_eq!(proxy.order(&format!("nodes/{name}/undrain")).await.status, 200);
        eventually("up again", || async { state(&proxy, name).await.0 == "up" }).await;
        load.more(10).await;
    }
    // Every answer was checked to be a whole 200.
    load.stop().await;
    eventually("I1: in flight zero", || async { proxy.in_flight() == 0 }).await;
}
