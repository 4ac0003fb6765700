//! `node_slots`: the limit of all models of a node together, over sockets: what does not fit waits, the models take turns, and
//! a reload moves it without dropping a stream.

use serde_json::Value;

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{self, Asked, Pace, Scripted, finish};

/// A node with two models, loaded both, whose answers wait for their pace.
fn two_models() -> (Scripted, flume::Receiver<Pace>) {
    let (paces_in, paces) = flume::bounded(64);
    let node = Scripted::start(&["m:latest", "n:latest"], move |_| {
        let (pace, act) = scripted::paced();
        paces_in.send(pace).unwrap();
        act
    });
    (node, paces)
}

async fn started(node: &Scripted, extra: &str) -> Proxy {
    let proxy = Proxy::from_file(&[node.url()], extra).await;
    proxy.until_listed("m:latest").await;
    eventually("both are loaded", || async { proxy.loaded("m") == 1 && proxy.loaded("n") == 1 }).await;
    proxy
}

async fn ask(proxy: &Proxy, model: &str, at: u32) -> Client {
    let mut client = Client::connect(proxy.address).await;
    let body = format!(r#"{{"model":"{model}","prompt":"number {at}","stream":false}}"#);
    client.send(&post("/api/generate", &body)).await;
    client
}

/// Model and number of a request.
fn of(asked: &Asked) -> (String, u32) {
    let body: Value = serde_json::from_slice(&asked.body).unwrap();
    let number = body["prompt"].as_str().unwrap().strip_prefix("number ").unwrap().parse().unwrap();
    (body["model"].as_str().unwrap().to_owned(), number)
}

fn waiting(proxy: &Proxy) -> u32 {
    proxy.waiting("m") + proxy.waiting("n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_two_models_share_one_slot_of_their_node_in_turn() {
    let (node, paces) = two_models();
    let proxy = started(&node, "node_slots: 1").await;
    let mut clients = Vec::new();
    for (at, model) in (0..).zip(["m", "m", "m", "m", "n", "n"]) {
        clients.push(ask(&proxy, model, at).await);
        match at {
            0 => assert_eq!(of(&node.next().await), ("m".to_owned(), 0)),
            _ => eventually("it waits", || async { waiting(&proxy) == at }).await,
        }
    }
    assert_eq!((node.untaken(), proxy.in_flight()), (0, 1), "what does not fit waits here, not in the node");
    let explained =
        client::post_once(proxy.address, "/herdgate/explain", r#"{"model":"n","messages":[]}"#).await.json();
    assert_eq!(explained["candidates"][0]["stands"], "node_full", "{explained}");
    assert_eq!(explained["candidates"][0]["node_slots"], 1);
    let status = client::get(proxy.address, "/herdgate/status").await.json();
    assert_eq!((&status["nodes"][0]["models_in_flight"], &status["nodes"][0]["node_slots"]), (&1.into(), &1.into()));
    let metrics = client::get(proxy.address, "/metrics").await.text();
    let name = format!("{{node=\"{}\"}} 1", node.url());
    for family in ["herdgate_node_slots", "herdgate_node_in_flight"] {
        assert!(metrics.lines().any(|line| line == format!("{family}{name}")), "{family}{name}: {metrics}");
    }
    let mut order = Vec::new();
    for _ in 1..6 {
        finish(&paces.recv_async().await.unwrap());
        order.push(of(&node.next().await));
        assert_eq!((node.untaken(), proxy.in_flight() <= 1), (0, true));
    }
    finish(&paces.recv_async().await.unwrap());
    for model in ["m", "n"] {
        let of_one: Vec<u32> = order.iter().filter(|(name, _)| name == model).map(|(_, at)| *at).collect();
        assert!(of_one.is_sorted(), "first come, first served within a model: {order:?}");
    }
    let turns: Vec<&str> = order.iter().map(|(name, _)| &**name).collect();
    assert!(turns[..4].windows(2).all(|two| two[0] != two[1]), "the models take turns while both wait: {order:?}");
    for client in &mut clients {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_raises_it_lets_waiters_through_and_one_that_lowers_it_drops_nothing() {
    let (node, paces) = two_models();
    let proxy = started(&node, "node_slots: 1").await;
    let urls = [node.url()];
    let mut clients = Vec::new();
    for (at, model) in (0..).zip(["m", "n", "m", "n", "m", "n"]) {
        clients.push(ask(&proxy, model, at).await);
    }
    eventually("one runs, five wait", || async { (proxy.in_flight(), waiting(&proxy)) == (1, 5) }).await;
    let reloaded = proxy.reload(&urls, "node_slots: 3").await;
    assert_eq!((reloaded.status, reloaded.json()["changed"].to_string()), (200, r#"["node_slots"]"#.to_owned()));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    eprintln!(
        "DBG {} {} {} {}",
        proxy.in_flight(),
        waiting(&proxy),
        client::get(proxy.address, "/herdgate/status").await.text(),
        client::post_once(proxy.address, "/herdgate/explain", r#"{"model":"n","messages":[]}"#).await.text()
    );
    eventually("three run, three wait", || async { (proxy.in_flight(), waiting(&proxy)) == (3, 3) }).await;
    assert_eq!(proxy.reload(&urls, "node_slots: 1").await.status, 200);
    assert_eq!(proxy.in_flight(), 3, "what runs goes on");
    for left in [2, 1] {
        finish(&paces.recv_async().await.unwrap());
        eventually("reached by giving back", || async { (proxy.in_flight(), waiting(&proxy)) == (left, 3) }).await;
    }
    assert_eq!(proxy.reload(&urls, "node_slots: off").await.status, 200);
    eventually("all run", || async { (proxy.in_flight(), waiting(&proxy)) == (4, 0) }).await;
    for _ in 0..4 {
        finish(&paces.recv_async().await.unwrap());
    }
    for client in &mut clients {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_gives_its_place_to_the_other_model() {
    let (node, paces) = two_models();
    let proxy = started(&node, "node_slots: 1").await;
    let running = ask(&proxy, "m", 0).await;
    node.next().await;
    let leaving = ask(&proxy, "m", 1).await;
    eventually("it waits", || async { proxy.waiting("m") == 1 }).await;
    let mut stays = ask(&proxy, "n", 2).await;
    eventually("it waits too", || async { proxy.waiting("n") == 1 }).await;
    leaving.reset();
    eventually("one has left", || async { waiting(&proxy) == 1 }).await;
    running.reset();
    assert_eq!(of(&node.next().await), ("n".to_owned(), 2), "the slot of one whose client left");
    drop(paces.recv_async().await.unwrap());
    finish(&paces.recv_async().await.unwrap());
    assert_eq!(stays.answer().await.unwrap().status, 200);
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}
