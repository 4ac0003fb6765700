//! I12: a client that leaves is a node that is told, whole, and never by half; a cold load outlives its client.

use std::time::Duration;

use herdgate::sim::{Ending, Herd, ModelSpec, NodeSpec};
use herdgate::usage::Tokens;

use crate::failover::STREAMS;
use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{self, Scripted, Step, chunk, chunked_head};

/// A request that takes minutes, streamed or not.
fn slow(stream: bool) -> String {
    format!(r#"{{"model":"m","prompt":"x","stream":{stream},"sim":{{"tokens":10000,"pace_ms":20}}}}"#)
}

/// One node with `m` loaded, and the proxy before it.
async fn loaded(slots: u32, extra: &str) -> (Herd, Proxy) {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(slots)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), extra).await;
    proxy.until_listed("m:latest").await;
    assert_eq!(client::post_once(proxy.address, "/api/generate", r#"{"model":"m"}"#).await.status, 200);
    (herd, proxy)
}

/// After the leave: the node noticed, lost no socket, and nothing is held any more.
async fn assert_told(herd: &Herd, proxy: &Proxy, gone: u64) {
    let node = &herd.nodes()[0];
    eventually("the node is told", || async { node.ledger().inference(Ending::ClientGone) == gone }).await;
    eventually("in flight zero", || async { proxy.in_flight() == 0 && node.ledger().model("m:latest").in_flight == 0 })
        .await;
    assert_eq!(node.ledger().sockets_lost, 0, "cancelled too early");
    eventually("counted", || async { proxy.shared().meters.sums().endings[1] == gone }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_client_that_leaves_in_mid_stream_or_before_the_first_byte() {
    let (herd, proxy) = loaded(8, "").await;
    let node = &herd.nodes()[0];
    let mut gone = 0;
    for stream in [true, false] {
        for reset in [true, false] {
            let mut client = Client::connect(proxy.address).await;
            client.send(&post("/api/generate", &slow(stream))).await;
            if stream {
                client.answer_up_to(1).await.unwrap();
            } else {
                eventually("it runs", || async { node.ledger().model("m:latest").in_flight == 1 }).await;
            }
            if reset {
                client.reset();
            } else {
                drop(client);
            }
            gone += 1;
            assert_told(&herd, &proxy, gone).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_clients_that_leave_at_once_cost_the_node_no_socket() {
    let (herd, proxy) = loaded(8, "").await;
    let node = &herd.nodes()[0];
    for (path, body) in STREAMS {
        let body = body.replace("40", "4000").replacen('{', r#"{"sim":{"tokens":10000,"pace_ms":20},"#, 1);
        for _ in 0..5 {
            let mut client = Client::connect(proxy.address).await;
            client.send(&post(path, &body)).await;
            client.reset();
        }
    }
    eventually("all over", || async { proxy.shared().connections() == 0 && proxy.in_flight() == 0 }).await;
    eventually("the node is free", || async { node.ledger().model("m:latest").in_flight == 0 }).await;
    assert_eq!(node.ledger().sockets_lost, 0);
    assert_eq!(proxy.shared().meters.sums().endings[0], 1, "only the load was completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_half_closed_client_is_gone() {
    let (herd, proxy) = loaded(8, "").await;
    let node = &herd.nodes()[0];
    for (gone, stream) in [(1, true), (2, false)] {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/api/generate", &slow(stream))).await;
        eventually("it runs", || async { node.ledger().model("m:latest").in_flight == 1 }).await;
        client.half_close().await;
        assert_told(&herd, &proxy, gone).await;
        client.rest().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_body_that_came_in_chunks_does_not_hide_the_leave() {
    let (herd, proxy) = loaded(8, "").await;
    let node = &herd.nodes()[0];
    let mut client = Client::connect(proxy.address).await;
    let head = "POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(head.as_bytes()).await;
    client.send(&chunk(slow(false).as_bytes())).await;
    assert_eq!(node.ledger().model("m:latest").in_flight, 0, "nothing is sent before the body is whole");
    client.send(b"0\r\n\r\n").await;
    eventually("it runs", || async { node.ledger().model("m:latest").in_flight == 1 }).await;
    drop(client);
    assert_told(&herd, &proxy, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_request_that_waits_leaves_the_queue_and_is_never_sent() {
    let (herd, proxy) = loaded(1, "slots: 1").await;
    let node = &herd.nodes()[0];
    let mut first = Client::connect(proxy.address).await;
    first.send(&post("/api/generate", &slow(true))).await;
    first.answer_up_to(1).await.unwrap();
    let mut waiting = Vec::new();
    for count in 1..=5 {
        let mut client = Client::connect(proxy.address).await;
        let (path, body) = STREAMS[count as usize];
        client.send(&post(path, body)).await;
        eventually("it waits", || async { proxy.waiting("m") == count }).await;
        waiting.push(client);
    }
    // From the middle, the head and the tail.
    for (left, at) in [(4, 2), (3, 0), (2, 2)] {
        waiting.remove(at).reset();
        eventually("it left the queue", || async { proxy.waiting("m") == left }).await;
    }
    first.reset();
    // The two that stayed are served; the three that left were never seen by the node.
    for mut client in waiting {
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    let requests: u64 = node.ledger().model("m:latest").requests.values().sum();
    assert_eq!(requests, 1 + 1 + 2, "the load, the first, the two that stayed");
    assert_eq!(proxy.shared().meters.sums().endings, [3, 4, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_cold_load_outlives_its_client_and_keeps_its_permit() {
    for stream in [true, false] {
        let model = ModelSpec::chat("m").load_time(Duration::from_millis(1500));
        let herd = Herd::start(vec![NodeSpec::ollama(vec![model]).slots(2)]).unwrap();
        let proxy = Proxy::start(&herd.urls(), "").await;
        proxy.until_listed("m:latest").await;
        let node = &herd.nodes()[0];
        let mut client = Client::connect(proxy.address).await;
        let body = format!(r#"{{"model":"m","prompt":"x","stream":{stream},"sim":{{"tokens":1000,"pace_ms":20}}}}"#);
        client.send(&post("/api/generate", &body)).await;
        eventually("the load began", || async { node.ledger().model("m:latest").in_flight == 1 }).await;
        client.reset();
        // Counted as gone at once, while the load and its permit go on.
        eventually("gone", || async { proxy.shared().meters.sums().endings[1] == 1 }).await;
        assert_eq!((proxy.in_flight(), node.ledger().model("m:latest").loads), (1, 0), "stream: {stream}");
        // Somebody else profits from it.
        let second = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"y"}"#).await;
        assert_eq!(second.status, 200);
        let ledger = node.ledger().model("m:latest");
        assert_eq!((ledger.loads, ledger.loads_aborted), (1, 0), "stream: {stream}");
        eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
        eventually("the abandoned run is cancelled", || async { node.ledger().model("m:latest").in_flight == 0 }).await;
        assert_eq!(node.ledger().inference(Ending::ClientGone), 1);
        assert_eq!(node.ledger().sockets_lost, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_cold_load_whose_grace_passes_is_given_up() {
    let model = ModelSpec::chat("m").load_time(Duration::from_secs(600));
    let herd = Herd::start(vec![NodeSpec::ollama(vec![model]).slots(2)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "routing: { cold_load_grace: 1s }").await;
    proxy.until_listed("m:latest").await;
    let node = &herd.nodes()[0];
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
    eventually("the load began", || async { node.ledger().model("m:latest").in_flight == 1 }).await;
    client.reset();
    eventually("given up", || async { node.ledger().model("m:latest").loads_aborted == 1 }).await;
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_client_that_hangs_up_at_done_has_its_answer() {
    let (paces_in, paces) = flume::bounded::<scripted::Pace>(64);
    let node = Scripted::start(&["m:latest"], move |_| {
        let (pace, act) = scripted::paced();
        paces_in.send(pace).unwrap();
        act
    });
    let proxy = Proxy::start(&[node.url()], "").await;
    proxy.until_listed("m:latest").await;
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    let usage = r#"{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}"#;
    let last = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"a\"}}}}]}}\n\ndata: {{\"choices\":[],\"usage\":{usage}}}\n\n\
         data: [DONE]\n\n"
    );
    let (mut rounds, mut reused) = (0, false);
    let mut connection = None;
    // The node's terminator has 50 ms to follow; on a machine that sleeps longer the connection is not kept.
    while !reused && rounds < 20 {
        rounds += 1;
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/v1/chat/completions", body)).await;
        let asked = node.next().await;
        reused = connection.replace(asked.connection) == Some(asked.connection);
        let pace = paces.recv_async().await.unwrap();
        pace.send(Step::Send([chunked_head("text/event-stream"), chunk(last.as_bytes())].concat())).unwrap();
        client.begin().await.unwrap();
        let mut text = String::new();
        while !text.contains("data: [DONE]\n\n") {
            text += &String::from_utf8(client.chunk().await.unwrap()).unwrap();
        }
        assert!(!text.contains("usage"), "nobody asked for it: {text}");
        client.reset();
        let _ = pace.send(Step::Send(b"0\r\n\r\n".to_vec()));
        drop(pace);
        eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    }
    assert!(reused, "a connection whose answer was complete carries the next request");
    let sums = proxy.shared().meters.sums();
    assert_eq!(sums.endings, [rounds, 0, 0, 0, 0], "complete, not gone");
    assert_eq!((sums.exact.input, sums.exact.output), (7 * rounds, 3 * rounds));
}

/// A socket at `address` whose machine drops what wants to connect; with what keeps it full.
fn mute(address: std::net::SocketAddr) -> Vec<socket2::Socket> {
    let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = new();
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let socket = new();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into());
        sockets.push(socket);
    }
    sockets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_client_that_leaves_while_its_node_is_dialled_has_cost_nothing() {
    let node = Scripted::start(&["m:latest"], |_| scripted::answer("200 OK", "application/json", b"{}"));
    // Asked once at the start, then never: the node is up for the gate, whatever becomes of it.
    let seldom =
        "health: { probe: 1h, backoff_max: 1h, ps: 1h, tags: 1h, stale_residency: 2h }\ntimeouts: { connect: 60s }";
    let proxy = Proxy::start(&[node.url()], seldom).await;
    proxy.until_listed("m:latest").await;
    node.refuse();
    let _full = mute(node.address);
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"tell me a long story"}"#)).await;
    eventually("it is dialled", || async { proxy.in_flight() == 1 }).await;
    client.reset();
    eventually("one outcome", || async { proxy.shared().meters.sums().endings[1] == 1 }).await;
    let sums = proxy.shared().meters.sums();
    assert_eq!((sums.exact, sums.estimated), (Tokens::default(), Tokens::default()), "no node was sent a byte");
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}
