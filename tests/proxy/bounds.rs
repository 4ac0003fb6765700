//! I8: every bound has a number, a key, and an answer when it is full.

use herdgate::clock::Clock;
use herdgate::sim::{Herd, ModelSpec, NodeSpec};

use crate::failover::{STREAMS, assert_busy_shape};
use crate::support::client::{self, Client, post, request};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{self, Scripted, Step, answer, chunk, finish, held};

fn quick() -> Scripted {
    Scripted::start(&["m:latest"], |_| answer("200 OK", "application/json", b"{}"))
}

async fn before(node: &Scripted, extra: &str) -> Proxy {
    let proxy = Proxy::start(&[node.url()], extra).await;
    proxy.until_listed("m:latest").await;
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_body_over_max_body_is_413_in_the_dialect_and_the_connection_closes() {
    let node = quick();
    let proxy = before(&node, "limits: { max_body: 64KiB }").await;
    for (path, _) in STREAMS {
        let kind = if path.starts_with("/api/") { "error" } else { "message" };
        // Announced: refused before a byte of it is read.
        let mut client = Client::connect(proxy.address).await;
        let head = format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 65537\r\n\r\n{{");
        client.send(head.as_bytes()).await;
        let announced = client.answer().await.unwrap();
        // Chunked: refused as soon as it is too much.
        let mut other = Client::connect(proxy.address).await;
        let head = format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        other.send(head.as_bytes()).await;
        for _ in 0..5 {
            if !other.try_send(&chunk(&[b' '; 16 * 1024])).await {
                break;
            }
        }
        let streamed = other.answer().await.unwrap();
        for answer in [&announced, &streamed] {
            assert_eq!(answer.status, 413, "{path}");
            assert_eq!(answer.header("connection"), Some("close"));
            assert!(answer.text().contains(kind) && answer.text().contains("limits.max_body"), "{}", answer.text());
        }
        assert!(client.is_closed().await && other.is_closed().await);
    }
    // Exactly the bound passes.
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(64 * 1024 - 25));
    assert_eq!(body.len(), 64 * 1024);
    assert_eq!(client::post_once(proxy.address, "/api/generate", &body).await.status, 200);
    let rejected = proxy.shared().meters.sums().endings[4];
    assert_eq!(rejected, 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_client_that_sends_all_of_its_too_large_body_still_reads_413() {
    let node = quick();
    let proxy = before(&node, "limits: { max_body: 64KiB }").await;
    for _ in 0..5 {
        let mut client = Client::connect(proxy.address).await;
        let _ = client.try_send(&post("/api/generate", &"x".repeat(512 * 1024))).await;
        assert_eq!(client.answer().await.expect("an answer, not a reset").status, 413);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_head_over_its_bound_is_431() {
    let node = quick();
    let proxy = before(&node, "limits: { head: 64KiB }").await;
    let long = "x".repeat(60 * 1024);
    let fits = request("POST", "/api/generate", &[("X-Long", &long)], br#"{"model":"m","prompt":"x"}"#);
    assert_eq!(client::once(proxy.address, &fits).await.status, 200);
    for size in [70 * 1024, 1024 * 1024] {
        let mut client = Client::connect(proxy.address).await;
        let long = "x".repeat(size);
        let _ = client.try_send(&request("GET", "/api/tags", &[("X-Long", &long)], b"")).await;
        assert_eq!(client.answer().await.expect("an answer").status, 431, "{size}");
        assert!(client.is_closed().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_full_queue_is_503_with_retry_after_in_every_dialect() {
    let (node, paces) = held();
    let proxy = before(&node, "slots: 1\nlimits: { queue_length: 2 }").await;
    let (path, body) = STREAMS[0];
    let mut clients = Vec::new();
    for waiting in 0..3 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post(path, body)).await;
        clients.push(client);
        if waiting == 0 {
            node.next().await;
        }
        eventually("it waits", || async { proxy.waiting("m") == waiting }).await;
    }
    for (path, body) in STREAMS {
        let refused = client::post_once(proxy.address, path, body).await;
        assert_eq!(refused.status, 503, "{path}");
        assert_busy_shape(path, &refused);
        assert!(refused.text().contains("maximum pending requests exceeded"), "{}", refused.text());
    }
    // Those that wait are served.
    for mut client in clients {
        finish(&paces.recv_async().await.unwrap());
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    let sums = proxy.shared().meters.sums();
    assert_eq!((sums.endings[0], sums.endings[4]), (3, STREAMS.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_waiting_ends_with_503_after_the_clients_own_bound_or_queue_wait() {
    // Each bound is the only one of the two that can pass within a test's patience.
    for (ours, own) in [("270s", "0.2"), ("200ms", "3600")] {
        let (node, paces) = held();
        let proxy = before(&node, &format!("slots: 1\ntimeouts: {{ queue_wait: {ours} }}")).await;
        let mut first = Client::connect(proxy.address).await;
        first.send(&post(STREAMS[0].0, STREAMS[0].1)).await;
        node.next().await;
        for (path, body) in STREAMS {
            let waits = request("POST", path, &[("x-herdgate-max-wait", own)], body.as_bytes());
            let refused = client::once(proxy.address, &waits).await;
            assert_eq!(refused.status, 503, "{path} {}", refused.text());
            assert_busy_shape(path, &refused);
        }
        assert_eq!(proxy.waiting("m"), 0);
        finish(&paces.recv_async().await.unwrap());
        assert_eq!(first.answer().await.unwrap().status, 200);
        assert_eq!(node.untaken(), 0, "what waited in vain was never sent");
    }
}

/// A POST of `length` bytes that stops in the middle of its body.
async fn half_sent(proxy: &Proxy, length: usize) -> (Client, Vec<u8>) {
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(length - 25));
    let bytes = post("/api/generate", &body);
    let (now, later) = bytes.split_at(bytes.len() - 100_000);
    let mut client = Client::connect(proxy.address).await;
    client.send(now).await;
    (client, later.to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_full_body_memory_lets_further_bodies_wait_and_then_serves_them() {
    const LIMITS: &str = "limits: { max_body: 1MiB, body_memory: 1MiB }";
    let node = quick();
    let proxy = before(&node, LIMITS).await;
    let held = || proxy.shared().body_bytes.load(herdgate::sync::Ordering::Acquire);
    let (mut first, rest) = half_sent(&proxy, 900_000).await;
    eventually("the first body holds its share", || async { held() >= 900_000 }).await;
    let mut second = Client::connect(proxy.address).await;
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "y".repeat(900_000));
    let bytes = post("/api/generate", &body);
    let sending = tokio::spawn(async move {
        second.send(&bytes).await;
        second.answer().await.unwrap()
    });
    // Requests without much of a body go on meanwhile, and the second stays unread.
    for _ in 0..20 {
        assert_eq!(client::post_once(proxy.address, "/api/generate", r#"{"model":"m"}"#).await.status, 200);
    }
    assert!(!sending.is_finished());
    assert!(held() <= 1024 * 1024);
    first.send(&rest).await;
    assert_eq!(first.answer().await.unwrap().status, 200);
    assert_eq!(sending.await.unwrap().status, 200);
    eventually("all given back", || async { held() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_body_memory_that_stays_full_is_503_after_its_wait() {
    let node = quick();
    let clock = Clock::manual(1_795_608_000_000);
    let data = tempfile::tempdir().unwrap();
    let limits = "limits: { max_body: 1MiB, body_memory: 1MiB }";
    let proxy = Proxy::start_in(data, &[node.url()], limits, clock.clone()).await;
    proxy.until_listed("m:latest").await;
    let held = || proxy.shared().body_bytes.load(herdgate::sync::Ordering::Acquire);
    let (_first, _) = half_sent(&proxy, 900_000).await;
    eventually("the first body holds its share", || async { held() >= 900_000 }).await;
    let mut second = Client::connect(proxy.address).await;
    let head = "POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\n\r\n{";
    second.send(head.as_bytes()).await;
    let mut answering = tokio::spawn(async move { (second.answer().await.unwrap(), second.is_closed().await) });
    let (answer, closed) = loop {
        // The clock moves once the request waits; how soon that is nobody can know.
        clock.advance(10_000);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(200), &mut answering).await;
        if let Ok(done) = waited {
            break done.unwrap();
        }
    };
    assert_eq!(answer.status, 503);
    assert_busy_shape("/v1/messages", &answer);
    assert!(closed && answer.text().contains("limits.body_memory"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_the_last_connections_are_kept_for_probes() {
    let node = quick();
    let proxy = before(&node, "limits: { connections: 70 }").await;
    eventually("earlier clients are gone", || async { proxy.shared().connections() == 0 }).await;
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&request("GET", "/api/tags", &[], b"")).await;
        let answer = client.answer().await.unwrap();
        if answer.status == 503 {
            refused += 1;
            assert_eq!(answer.header("connection"), Some("close"));
            assert!(answer.header("retry-after").is_some());
            assert!(client.is_closed().await);
        } else {
            assert_eq!((answer.status, refused), (200, 0));
            open.push(client);
        }
    }
    assert_eq!((open.len(), refused), (6, 14), "64 of 70 are kept back");
    for path in ["/health", "/metrics", "/herdgate/live", "/herdgate/ready"] {
        assert_eq!(client::get(proxy.address, path).await.status, 200, "{path}");
    }
    // A place that is given back serves again.
    drop(open.pop());
    eventually("a place", || async { client::get(proxy.address, "/api/tags").await.status == 200 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_out_of_connections_accepting_waits_and_goes_on() {
    let node = quick();
    let proxy = before(&node, "limits: { connections: 66 }").await;
    let mut open = Vec::new();
    for _ in 0..80 {
        open.push(Client::connect(proxy.address).await);
    }
    eventually("the bound is reached", || async { proxy.shared().connections() >= 66 }).await;
    let waits =
        || proxy.shared().gauges.iter().map(|one| one.accept_waits.load(herdgate::sync::Ordering::Acquire)).sum();
    eventually("accepting waits", || async {
        let waits: u64 = waits();
        waits > 2
    })
    .await;
    assert!(proxy.shared().connections() <= 67, "{}", proxy.shared().connections());
    drop(open);
    let metrics = || async { client::get(proxy.address, "/metrics").await.text() };
    let text = metrics().await;
    let pauses = text.lines().find_map(|line| line.strip_prefix("herdgate_accept_pauses_total ")).unwrap();
    assert!(pauses.parse::<f64>().unwrap() > 2.0, "{pauses}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_names_over_their_bound_are_counted_together() {
    let models = (0..70).map(|at| ModelSpec::chat(&format!("m{at}"))).collect();
    let herd = Herd::start(vec![NodeSpec::ollama(models).slots(4)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "limits: { names: 64 }").await;
    proxy.until_listed("m69:latest").await;
    for at in 0..70 {
        let body = format!(r#"{{"model":"m{at}","prompt":"x","stream":false,"options":{{"num_predict":5}}}}"#);
        assert_eq!(client::post_once(proxy.address, "/api/generate", &body).await.status, 200);
        // Names that no node knows take no place.
        let body = format!(r#"{{"model":"nobody-has-{at}","prompt":"x"}}"#);
        assert_eq!(client::post_once(proxy.address, "/api/generate", &body).await.status, 404);
    }
    proxy.flush().await;
    let counts = client::get(proxy.address, "/api/token_counts").await.json();
    let breakdown = counts["breakdown"].as_array().unwrap();
    let names: Vec<&str> = breakdown.iter().map(|row| row["model"].as_str().unwrap()).collect();
    assert!(names.len() <= 65 && names.contains(&"_other"), "{counts}");
    let output: u64 = breakdown.iter().map(|row| row["output_tokens"].as_u64().unwrap()).sum();
    assert_eq!(output, 350, "sums stay exact: {counts}");
}

/// A stream of 64 MiB, given by the node as fast as it is taken.
fn flood(pace: &scripted::Pace) {
    pace.send(Step::Send(scripted::chunked_head("application/x-ndjson"))).unwrap();
    let line = [vec![b' '; 64 * 1024 - 1], b"\n".to_vec()].concat();
    for _ in 0..1024 {
        pace.send(Step::Send(chunk(&line))).unwrap();
    }
    pace.send(Step::Send(b"0\r\n\r\n".to_vec())).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_client_that_does_not_read_holds_the_node_back() {
    let (node, paces) = held();
    let proxy = before(&node, "limits: { unsent: 256KiB }").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
    let pace = paces.recv_async().await.unwrap();
    flood(&pace);
    assert_eq!(client.begin().await.unwrap().status, 200);
    // Sockets take a few megabytes; the rest has to stay in the node, however long nobody reads.
    let still = async || {
        let before = pace.len();
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        before == pace.len()
    };
    eventually("the node is held back", still).await;
    assert!(pace.len() > 512, "{} of 1024 pieces are still in the node", pace.len());
    // Others are served meanwhile, and the stream is whole in the end.
    assert_eq!(client::get(proxy.address, "/api/tags").await.status, 200);
    let mut length = 0;
    while let Some(chunk) = client.chunk().await {
        length += chunk.len();
    }
    assert_eq!(length, 64 * 1024 * 1024);
    assert_eq!(proxy.shared().meters.sums().endings, [1, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_client_that_stalls_is_taken_as_gone() {
    let (node, paces) = held();
    let proxy = before(&node, "timeouts: { client_stall: 1s }").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
    let pace = paces.recv_async().await.unwrap();
    flood(&pace);
    assert_eq!(client.begin().await.unwrap().status, 200);
    eventually("the node is told", || async { node.gone() == 1 }).await;
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    assert_eq!(proxy.shared().meters.sums().endings, [0, 1, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_node_that_falls_silent_after_its_first_byte_is_left_in_words() {
    let (node, paces) = held();
    let proxy = before(&node, "timeouts: { stream_idle: 1s }").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
    let pace = paces.recv_async().await.unwrap();
    let line = b"{\"response\":\"a\",\"done\":false}\n";
    let head = scripted::chunked_head("application/x-ndjson");
    pace.send(Step::Send([head, chunk(line)].concat())).unwrap();
    let answer = client.answer().await.unwrap();
    assert!(answer.whole && answer.lines().last().unwrap()["error"].is_string(), "{}", answer.text());
    eventually("the node is told", || async { node.gone() == 1 }).await;
    assert_eq!(proxy.in_flight(), 0, "the permit is back");
    assert_eq!(proxy.shared().meters.sums().endings, [0, 0, 0, 1, 0]);
}
