//! The flamegraph on demand, over the whole proxy: off unless enabled, guarded, bounded, one at a time, and true.

mod support;

use std::net::SocketAddr;

use support::client::{Answer, Client, get, once, post, request};
use support::proxy::Proxy;
use support::scripted::{Scripted, answer};

const PATH: &str = "/herdgate/debug/flamegraph";

const ENABLED: &str = "debug: { flamegraph: on }\n";

fn node() -> Scripted {
    Scripted::start(&["m:latest"], |_| answer("200 OK", "application/json", br#"{"model":"m","done":true}"#))
}

async fn keyed(address: SocketAddr, query: &str, key: &str) -> Answer {
    let authorization = format!("Bearer {key}");
    once(address, &request("GET", &format!("{PATH}{query}"), &[("Authorization", &authorization)], b"")).await
}

#[tokio::test]
async fn it_is_not_there_unless_enabled() {
    let node = node();
    let proxy = Proxy::start(&[node.url()], "").await;
    let answer = get(proxy.address, PATH).await;
    assert_eq!((answer.status, answer.text().as_str()), (404, "404 page not found"));
    proxy.stop().await;
}

#[tokio::test]
async fn it_needs_the_router_key() {
    let node = node();
    let proxy = Proxy::start(&[node.url()], &format!("{ENABLED}router_keys: [alpha]\n")).await;
    assert_eq!(get(proxy.address, PATH).await.status, 401);
    assert_eq!(keyed(proxy.address, "", "beta").await.status, 403);
    // The right key comes as far as the mistake in the query.
    assert_eq!(keyed(proxy.address, "?seconds=0", "alpha").await.status, 400);
    proxy.stop().await;
}

#[tokio::test]
async fn without_keys_it_needs_a_loopback_listener() {
    let node = node();
    let nodes = format!("nodes: ['{}']\n", node.url());
    let directory = tempfile::tempdir().unwrap();
    let mut config = support::proxy::config(&[], directory.path(), &format!("{nodes}{ENABLED}"));
    config.listen = SocketAddr::from(([0, 0, 0, 0], 0));
    let start = move || herdgate::gate::Gate::start(config, herdgate::clock::Clock::system()).unwrap();
    let gate = tokio::task::spawn_blocking(start).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], gate.address().port()));
    let answer = get(address, PATH).await;
    assert_eq!(answer.status, 403, "{}", answer.text());
    tokio::task::spawn_blocking(move || gate.stop()).await.unwrap().unwrap();
}

#[tokio::test]
async fn wrong_questions_are_told_so() {
    let node = node();
    let proxy = Proxy::start(&[node.url()], ENABLED).await;
    for query in ["?seconds=0", "?seconds=61", "?seconds=ten", "?seconds=-1", "?format=png"] {
        let answer = get(proxy.address, &format!("{PATH}{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
    let answer = once(proxy.address, &post(PATH, "{}")).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")));
    proxy.stop().await;
}

/// One test for all that samples: profiles are one at a time in a process, whatever proxy takes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_shows_what_the_workers_do_and_refuses_a_second() {
    let node = node();
    let proxy = Proxy::start(&[node.url()], ENABLED).await;
    proxy.until_listed("m:latest").await;
    let address = proxy.address;
    let asked = |query: &str| request("GET", &format!("{PATH}?{query}"), &[], b"");

    // A machine that is busy may give a second no sample of a worker: then another one.
    let mut seen = String::new();
    for _ in 0..30 {
        let mut profile = Client::connect(address).await;
        profile.send(&asked("seconds=1&format=folded")).await;
        let mut client = Client::connect(address).await;
        let profiled = profile.answer();
        let mut profiled = std::pin::pin!(profiled);
        let answer = loop {
            let ask = async {
                client.send(&post("/api/generate", r#"{"model":"m","prompt":"hello","stream":false}"#)).await;
                assert_eq!(client.answer().await.unwrap().status, 200);
                node.next().await;
            };
            tokio::select! {
                biased;
                answer = &mut profiled => break answer.unwrap(),
                () = ask => {}
            }
        };
        assert_eq!(answer.status, 200, "{}", answer.text());
        seen = answer.text();
        if seen.lines().any(|line| line.starts_with("worker-") && line.contains("herdgate::worker::run")) {
            break;
        }
    }
    let ours = |line: &&str| line.starts_with("worker-") && line.contains(";herdgate::worker::run");
    assert!(seen.lines().any(|line| ours(&line)), "no worker in {seen}");
    let is_counted = |line: &str| line.rsplit_once(' ').is_some_and(|(_, count)| count.parse::<u64>().is_ok());
    assert!(seen.lines().all(is_counted), "{seen}");

    // Of two at once one is refused, at once; which one is chance.
    let (mut one, mut other) = (Client::connect(address).await, Client::connect(address).await);
    one.send(&asked("seconds=60")).await;
    other.send(&asked("seconds=60")).await;
    let refused = tokio::select! { answer = one.answer() => answer, answer = other.answer() => answer };
    let refused = refused.unwrap();
    assert_eq!(refused.status, 409, "{}", refused.text());

    // Who leaves ends it: sixty seconds are not waited for.
    drop((one, other));
    let mut picture = Answer::default();
    while picture.status != 200 {
        picture = once(address, &asked("seconds=1")).await;
        assert!([200, 409].contains(&picture.status), "{}", picture.text());
    }
    assert_eq!(picture.header("content-type"), Some("image/svg+xml"));
    assert!(picture.text().starts_with("<svg ") && picture.text().ends_with("</svg>\n"), "{}", picture.text());
    proxy.stop().await;
}
