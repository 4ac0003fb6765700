//! The configuration read again: kept on a mistake, keys rotated, limits changed, what needs a restart named.

use std::time::Duration;

use herdgate::gate::Start;
use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use herdgate::sync::{Arc, AtomicU64, Ordering};

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{Scripted, answer, finish, held};
use crate::{BODY, Load, keyed};

fn quick() -> Scripted {
    Scripted::start(&["m:latest"], |_| answer("200 OK", "application/json", b"{}"))
}

async fn metric(proxy: &Proxy, name: &str) -> f64 {
    let text = client::get(proxy.address, "/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_with_a_typo_keeps_the_old_configuration_and_tells_every_mistake() {
    let node = quick();
    let proxy = Proxy::from_file(&[node.url()], "limits: { max_body: 1KiB }").await;
    proxy.until_listed("m:latest").await;
    let refused =
        proxy.reload(&[node.url()], "limits: { max_body: 1MiB }\nslots: many\ntimeout: { connect: 1s }").await;
    assert_eq!(refused.status, 422);
    let told = refused.json();
    assert_eq!((told["status"].as_str(), told["mistakes"].as_array().map(Vec::len)), (Some("refused"), Some(2)));
    let mistake = told["mistakes"].as_array().unwrap().iter().find(|mistake| mistake["key"] == "slots").unwrap();
    assert!(mistake["file"].as_str().unwrap().ends_with("herdgate.yaml") && mistake["line"].as_u64() > Some(1));
    assert_eq!(mistake["value"], "many");
    assert!(!mistake["reason"].as_str().unwrap().is_empty());
    let health = client::get(proxy.address, "/health").await;
    assert_eq!(health.status, 200, "it serves on");
    assert!(health.json()["configuration"]["detail"].as_str().unwrap().contains("2 mistake(s)"));
    assert!(metric(&proxy, "herdgate_config_last_reload_successful ").await < 0.5);
    assert!(metric(&proxy, "herdgate_config_reloads_total{result=\"refused\"} ").await > 0.5);
    let large = BODY.replace("hi", &"x".repeat(2000));
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", &large)).await;
    assert_eq!(client.answer().await.unwrap().status, 413, "the old bound holds");
    let applied = proxy.reload(&[node.url()], "limits: { max_body: 1MiB }").await;
    assert_eq!((applied.status, applied.json()["changed"].to_string()), (200, r#"["limits"]"#.to_owned()));
    assert!(client::get(proxy.address, "/health").await.json().get("configuration").is_none());
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", &large)).await;
    assert_eq!(client.answer().await.unwrap().status, 200, "the new one does, with the very next request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_change_live_is_named_and_everything_else_applies() {
    let node = quick();
    let proxy = Proxy::from_file(&[node.url()], "workers: 2").await;
    let answer = proxy.reload(&[node.url()], "workers: 3\nlisten: 127.0.0.1:1\norigins: ['http://a.example']").await;
    let told = answer.json();
    let keys: Vec<_> = told["needs_restart"].as_array().unwrap().iter().map(|held| held["key"].clone()).collect();
    assert_eq!((answer.status, keys), (200, vec!["listen".into(), "workers".into()]));
    assert_eq!(told["changed"].to_string(), r#"["origins"]"#);
    let config = proxy.shared().config.now();
    assert_eq!((config.workers, config.origins.len()), (Some(2), 1));
    let health = client::get(proxy.address, "/health").await.json();
    assert_eq!(health["configuration"]["needs_restart"].to_string(), r#"["listen","workers"]"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn router_keys_rotate_under_load_without_a_dropped_request() {
    let node = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8)]).unwrap();
    let with = |keys: &str| format!("router_keys: [{keys}]");
    let (old, new) = ("{ name: old, key: k-old }", "{ name: new, key: k-new }");
    let proxy = Proxy::from_file(&node.urls(), &with(old)).await;
    eventually("listed", || async { proxy.shared().fleet.load().models.contains_key("m:latest") }).await;
    let keys = Arc::new(AtomicU64::new(0));
    let key = keys.clone();
    let load = Load::start(8, proxy.address, move || {
        let key = if key.load(Ordering::Acquire) == 0 { "k-old" } else { "k-new" };
        keyed("/api/generate", key, BODY)
    });
    load.more(30).await;
    assert_eq!(proxy.reload(&node.urls(), &with(&format!("{old}, {new}"))).await.status, 200);
    load.more(30).await;
    keys.store(1, Ordering::Release);
    // Every client has sent one with the new key: eight clients, each one request at a time.
    load.more(16).await;
    assert_eq!(proxy.reload(&node.urls(), &with(new)).await.status, 200);
    load.more(30).await;
    load.stop().await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&keyed("/api/generate", "k-old", BODY)).await;
    assert_eq!(client.answer().await.unwrap().status, 403, "the old key opens nothing any more");
    let names = &proxy.shared().names;
    assert_eq!((names.find_key("old").0, names.find_key("new").0), (1, 2), "each keeps its own account");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_a_hard_limit_that_changes_under_load_is_kept_from_then_on() {
    let (node, paces) = held();
    let proxy = Proxy::from_file(&[node.url()], "slots: 2").await;
    proxy.until_listed("m:latest").await;
    eventually("loaded", || async { proxy.loaded("m") == 1 }).await;
    let mut clients = Vec::new();
    for _ in 0..9 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/api/generate", BODY)).await;
        clients.push(client);
    }
    eventually("two run, seven wait", || async { proxy.in_flight() == 2 && proxy.waiting("m") == 7 }).await;
    assert_eq!(proxy.reload(&[node.url()], "slots: 4").await.status, 200);
    eventually("two more go", || async { proxy.in_flight() == 4 && proxy.waiting("m") == 5 }).await;
    for _ in 0..4 {
        node.next().await;
    }
    assert_eq!(proxy.reload(&[node.url()], "slots: 1").await.status, 200);
    for left in (1..4).rev() {
        finish(&paces.recv_async().await.unwrap());
        eventually("one less", || async { proxy.in_flight() == left }).await;
        assert_eq!((node.untaken(), proxy.waiting("m")), (0, 5), "none goes while more than one runs");
    }
    for waiting in (0..5).rev() {
        finish(&paces.recv_async().await.unwrap());
        node.next().await;
        assert_eq!((proxy.in_flight(), proxy.waiting("m"), node.untaken()), (1, waiting, 0), "one after the other");
    }
    finish(&paces.recv_async().await.unwrap());
    for client in &mut clients {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_in_a_row_under_load_drop_nothing_and_leave_nothing() {
    let model = || ModelSpec::chat("m");
    let spec =
        || NodeSpec::ollama(vec![model()]).slots(4).speed(Duration::ZERO, Duration::ZERO, Duration::from_millis(1));
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::from_file(&herd.urls(), "slots: 4").await;
    proxy.until_listed("m:latest").await;
    let load = Load::start(8, proxy.address, || {
        post("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"num_predict":5}}"#)
    });
    for slots in ["slots: 1", "slots: 8", "slots: soft 2", "slots: 3\ntimeouts: { queue_wait: 100s }", "slots: 4"] {
        load.more(8).await;
        assert_eq!(proxy.reload(&herd.urls(), slots).await.status, 200, "{slots}");
    }
    load.more(8).await;
    let answered = load.stop().await;
    eventually("I1: in flight zero", || async { proxy.in_flight() == 0 }).await;
    proxy.flush().await;
    let reached: u64 = herd
        .nodes()
        .iter()
        .map(|node| node.ledger().models.values().flat_map(|m| m.requests.values()).sum::<u64>())
        .sum();
    assert!(reached >= answered, "{reached} requests reached the nodes for {answered} answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_administer_may_not_reload_or_drain() {
    let node = quick();
    let proxy = Proxy::from_file(&[node.url()], "administration: key\nrouter_keys: [k]").await;
    for path in ["/herdgate/reload", "/herdgate/nodes/x/drain"] {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post(path, "")).await;
        assert_eq!(client.answer().await.unwrap().status, 401, "{path}");
    }
    proxy.reload(&[node.url()], "administration: off\nrouter_keys: [k]").await;
    for path in ["reload", "nodes/x/drain"] {
        assert_eq!(proxy.order(path).await.status, 403, "{path}");
    }
    let mut client = Client::connect(proxy.address).await;
    client.send(&client::request("GET", "/herdgate/reload", &[("Authorization", "Bearer k")], b"")).await;
    assert_eq!(client.answer().await.unwrap().status, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_the_control_thread_that_panics_is_not_the_end_of_it_alone() {
    let node = quick();
    let panics = |start| Start { log_level: Some(Box::new(|_| panic!("as planned"))), ..start };
    let proxy = Proxy::from_file_with(tempfile::tempdir().unwrap(), &[node.url()], "", panics).await;
    assert_eq!(proxy.gate().broken(), None);
    let answer = proxy.reload(&[node.url()], "log: { level: debug }").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    eventually("the process knows", || async { proxy.gate().broken() == Some("the control thread") }).await;
}
