//! Nodes that are added and removed under streams, names that lead elsewhere, both families of addresses.

use std::net::SocketAddr;

use herdgate::fleet::resolve::Resolver;
use herdgate::sync::{Arc, AtomicU64, Ordering};

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{After, Pace, Scripted, Step, answer, chunk, chunked_head, finish, held};
use crate::{BODY, asking};

/// A stream that has begun: its client, and what the node sends next.
async fn streaming(proxy: &Proxy) -> Client {
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", &BODY.replace("false", "true"))).await;
    client
}

const LAST: &[u8] = b"{\"model\":\"m\",\"response\":\"\",\"done\":true,\"prompt_eval_count\":3,\"eval_count\":2}\n";

/// A stream on this node whose first record its client has.
async fn begun(proxy: &Proxy, node: &Scripted, paces: &flume::Receiver<Pace>) -> (Client, Pace) {
    let mut client = streaming(proxy).await;
    node.next().await;
    let pace = paces.recv_async().await.unwrap();
    pace.send(Step::Send(chunked_head("application/x-ndjson"))).unwrap();
    pace.send(Step::Send(chunk(b"{\"response\":\"a\",\"done\":false}\n"))).unwrap();
    client.begin().await.unwrap();
    assert!(client.chunk().await.is_some());
    (client, pace)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_added_and_removed_under_streams() {
    let ((a, a_paces), (b, b_paces)) = (held(), held());
    let proxy = Proxy::from_file(&[a.url()], "").await;
    proxy.until_listed("m:latest").await;
    let (mut client, pace) = begun(&proxy, &a, &a_paces).await;
    let answer = proxy.reload(&[b.url()], "").await.json();
    assert_eq!(
        (answer["nodes"]["added"][0].as_str(), answer["nodes"]["removed"][0].as_str()),
        (Some(&*b.url()), Some(&*a.url()))
    );
    let listed = client::get(proxy.address, "/herdgate/status").await.json();
    assert_eq!(
        listed["nodes"].as_array().unwrap().iter().map(|node| node["name"].clone()).collect::<Vec<_>>(),
        [b.url()]
    );
    eventually("the new one serves", || async { proxy.loaded("m") == 1 }).await;
    let mut other = Client::connect(proxy.address).await;
    other.send(&post("/api/generate", BODY)).await;
    b.next().await;
    finish(&b_paces.recv_async().await.unwrap());
    assert_eq!(other.answer().await.unwrap().status, 200);
    // The stream on the removed node goes on as if nothing had happened, and is accounted to it.
    pace.send(Step::Send(chunk(LAST))).unwrap();
    pace.send(Step::Send(b"0\r\n\r\n".to_vec())).unwrap();
    pace.send(Step::After(After::Keep)).unwrap();
    assert_eq!(client.chunk().await.unwrap(), LAST);
    assert!(client.chunk().await.is_none());
    assert_eq!((a.untaken(), a.gone()), (0, 0));
    let used = || proxy.shared().fleet.load().used.all();
    eventually("I1: in flight zero", || async { used().iter().all(|pair| pair.in_flight() == 0) }).await;
    proxy.flush().await;
    let counts = client::get(proxy.address, "/api/token_counts").await.json();
    let row = |name: &str| counts["breakdown"].as_array().unwrap().iter().find(|row| row["endpoint"] == name).cloned();
    assert_eq!(row(&a.url()).unwrap()["output_tokens"], 2, "the ledger keeps the removed node's sums");
    let back = proxy.reload(&[a.url(), b.url()], "").await.json();
    assert_eq!(back["nodes"]["added"][0].as_str(), Some(&*a.url()));
    eventually("both serve", || async { proxy.loaded("m") == 2 }).await;
    let ids: Vec<u32> = proxy.shared().fleet.load().configured().map(|node| node.id.0).collect();
    assert_eq!(ids, [0, 1], "ids are stable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_node_that_is_removed_is_served_by_the_new_one_or_told() {
    let ((a, a_paces), (b, b_paces)) = (held(), held());
    let proxy = Proxy::from_file(&[a.url()], "slots: 1").await;
    proxy.until_listed("m:latest").await;
    let mut clients = asking(&proxy, 2).await;
    a.next().await;
    eventually("one waits", || async { proxy.waiting("m") == 1 }).await;
    proxy.reload(&[a.url(), b.url()], "slots: 1").await;
    proxy.reload(&[b.url()], "slots: 1").await;
    b.next().await;
    finish(&b_paces.recv_async().await.unwrap());
    finish(&a_paces.recv_async().await.unwrap());
    for client in &mut clients {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    assert_eq!(a.untaken(), 0, "nothing more went to the removed one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_key_of_a_node_rotates_with_the_next_request() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", "application/json", b"{}"));
    let nodes = |key: &str| format!("nodes: [ {{ url: '{}', api_key: {key} }} ]", node.url());
    let proxy = Proxy::from_file(&[], &nodes("one")).await;
    proxy.until_listed("m:latest").await;
    let mut client = Client::connect(proxy.address).await;
    for key in ["one", "two"] {
        if key == "two" {
            let answer = proxy.reload(&[], &nodes(key)).await.json();
            assert_eq!(answer["nodes"]["changed"][0].as_str(), Some(&*node.url()));
        }
        client.send(&post("/api/generate", BODY)).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        assert_eq!(node.next().await.header("authorization"), Some(&*format!("Bearer {key}")));
    }
}

/// The same port at two addresses of this machine.
fn twins() -> Option<(Scripted, Scripted, u16)> {
    let script = |word: &'static str| move |_: &_| answer("200 OK", "application/json", word.as_bytes());
    for _ in 0..20 {
        let a = Scripted::start(&["m:latest"], script(r#"{"at":"1"}"#));
        let port = a.address.port();
        if std::net::TcpListener::bind(("127.0.0.2", port)).is_ok() {
            let there = SocketAddr::from(([127, 0, 0, 2], port));
            return Some((a, Scripted::start_at(there, &["m:latest"], script(r#"{"at":"2"}"#)), port));
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dns_name_that_changes_is_followed_and_a_resolver_that_fails_changes_nothing() {
    let (_a, _b, port) = twins().expect("a port that is free at both addresses");
    // 1, 2: the address that the name has; 0: the resolver fails.
    let leads_to = Arc::new(AtomicU64::new(1));
    let (asked, leads) = (Arc::new(AtomicU64::new(0)), leads_to.clone());
    let count = asked.clone();
    let resolver = Resolver::answering(move |_, port| {
        count.fetch_add(1, Ordering::AcqRel);
        match leads.load(Ordering::Acquire) {
            0 => Err(std::io::ErrorKind::NotFound.into()),
            last => Ok(vec![SocketAddr::from(([127, 0, 0, u8::try_from(last).unwrap()], port))]),
        }
    });
    let extra = "health: { probe: 100ms, probe_timeout: 2s, backoff_max: 200ms, ps: 200ms, tags: 500ms, resolve: 1s }";
    let data = tempfile::tempdir().unwrap();
    let proxy = Proxy::from_file_in(data, &[format!("http://gpu.example:{port}")], extra, resolver).await;
    proxy.until_listed("m:latest").await;
    let mut client = Client::connect(proxy.address).await;
    let mut at = async || {
        client.send(&post("/api/generate", BODY)).await;
        client.answer().await.unwrap().json()["at"].as_str().unwrap().to_owned()
    };
    assert_eq!(at().await, "1");
    leads_to.store(0, Ordering::Release);
    let failed = asked.load(Ordering::Acquire) + 2;
    eventually("the resolver failed", || async { asked.load(Ordering::Acquire) >= failed }).await;
    assert_eq!(at().await, "1", "the last address stays");
    leads_to.store(2, Ordering::Release);
    let moved = |proxy: &Proxy| proxy.shared().fleet.load().nodes[0].target.addresses.load()[0].ip().to_string();
    eventually("resolved anew", || async { moved(&proxy) == "127.0.0.2" }).await;
    assert_eq!(at().await, "2", "no kept connection leads to where it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resolver_that_hangs_delays_neither_start_nor_service_nor_end() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", "application/json", b"{}"));
    // As the operating system's does: on a thread that nobody can call back.
    let (release, held) = flume::bounded::<()>(0);
    let (asked, returned) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (asks, returns) = (asked.clone(), returned.clone());
    let resolver = Resolver::asking(move |_, _| {
        let (held, asks, returns) = (held.clone(), asks.clone(), returns.clone());
        Box::pin(async move {
            let hang = move || {
                asks.fetch_add(1, Ordering::AcqRel);
                let _ = held.recv_timeout(std::time::Duration::from_secs(60));
                returns.fetch_add(1, Ordering::AcqRel);
            };
            tokio::task::spawn_blocking(hang).await.unwrap();
            Err(std::io::ErrorKind::TimedOut.into())
        })
    });
    let nodes = format!(
        "nodes: [ {{ url: '{}' }}, {{ url: 'http://one.example:1' }}, {{ url: 'http://many.example:1', expand: on }} ]",
        node.url()
    );
    let proxy = Proxy::from_file_in(tempfile::tempdir().unwrap(), &[], &nodes, resolver).await;
    proxy.until_listed("m:latest").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", BODY)).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    proxy.stop().await;
    assert!(asked.load(Ordering::Acquire) >= 2, "both names were looked up");
    assert_eq!(returned.load(Ordering::Acquire), 0, "nobody waited for it");
    drop(release);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_behind_an_expanded_name_come_and_go_without_a_reload() {
    // One that is left to the test, and one at the same port of another address.
    let (a, a_paces) = held();
    let port = a.address.port();
    let there = SocketAddr::from(([127, 0, 0, 2], port));
    let b = Scripted::start_at(there, &["m:latest"], |_| answer("200 OK", "application/json", b"{}"));
    // A bit for each of the addresses that the name has; 0: the resolver fails.
    let leads_to = Arc::new(AtomicU64::new(1));
    let (asked, leads) = (Arc::new(AtomicU64::new(0)), leads_to.clone());
    let count = asked.clone();
    let resolver = Resolver::answering(move |_, port| {
        count.fetch_add(1, Ordering::AcqRel);
        let has = |last: u8| leads.load(Ordering::Acquire) & (1 << (last - 1)) != 0;
        let found: Vec<_> = [1, 2].into_iter().filter(|last| has(*last)).collect();
        if found.is_empty() {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        Ok(found.into_iter().map(|last| SocketAddr::from(([127, 0, 0, last], port))).collect())
    });
    let extra = format!(
        "nodes: [ {{ url: 'http://gpu.example:{port}', name: gpu, expand: on }} ]\n\
         health: {{ probe: 100ms, probe_timeout: 2s, backoff_max: 200ms, ps: 200ms, tags: 500ms, resolve: 1s }}"
    );
    let proxy = Proxy::from_file_in(tempfile::tempdir().unwrap(), &[], &extra, resolver).await;
    proxy.until_listed("m:latest").await;
    let names =
        || -> Vec<String> { proxy.shared().fleet.load().configured().map(|node| node.name.to_string()).collect() };
    assert_eq!(names(), ["gpu[127.0.0.1]"]);
    let (mut client, pace) = begun(&proxy, &a, &a_paces).await;
    leads_to.store(0b11, Ordering::Release);
    eventually("a node appears", || async { names() == ["gpu[127.0.0.1]", "gpu[127.0.0.2]"] }).await;
    eventually("and serves", || async { proxy.loaded("m") == 2 }).await;
    leads_to.store(0, Ordering::Release);
    let failed = asked.load(Ordering::Acquire) + 2;
    eventually("the resolver failed", || async { asked.load(Ordering::Acquire) >= failed }).await;
    assert_eq!(names().len(), 2, "the last addresses stay");
    leads_to.store(0b10, Ordering::Release);
    eventually("a node vanishes", || async { names() == ["gpu[127.0.0.2]"] }).await;
    let mut other = Client::connect(proxy.address).await;
    other.send(&post("/api/generate", BODY)).await;
    assert_eq!(other.answer().await.unwrap().header("x-herdgate-node"), Some("gpu[127.0.0.2]"));
    b.next().await;
    // The stream on the one that left goes on as if nothing had happened.
    pace.send(Step::Send(chunk(LAST))).unwrap();
    pace.send(Step::Send(b"0\r\n\r\n".to_vec())).unwrap();
    pace.send(Step::After(After::Keep)).unwrap();
    assert_eq!(client.chunk().await.unwrap(), LAST);
    assert!(client.chunk().await.is_none());
    assert_eq!((a.untaken(), a.gone()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_nodes_and_clients_are_served_and_one_listener_takes_both_families() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        // A machine without IPv6 has nothing to show here.
        return;
    }
    let six = "[::1]:0".parse().unwrap();
    let node = Scripted::start_at(six, &["m:latest"], |_| answer("200 OK", "application/json", b"{}"));
    let proxy = Proxy::from_file(&[node.url()], "listen: '[::]:0'\nadministration: open").await;
    let port = proxy.address.port();
    for address in [SocketAddr::from(([127, 0, 0, 1], port)), format!("[::1]:{port}").parse().unwrap()] {
        eventually("listed", || async { client::get(address, "/api/tags").await.text().contains("m:latest") }).await;
        let mut client = Client::connect(address).await;
        client.send(&post("/api/generate", BODY)).await;
        assert_eq!(client.answer().await.unwrap().status, 200, "{address}");
        let host = node.next().await.header("host").unwrap().to_owned();
        assert_eq!(host, node.address.to_string(), "with its brackets");
    }
}
