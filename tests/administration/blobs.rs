//! Blobs: asked for on every node, uploaded to those that lack them at the pace of the slowest, never held.

use std::fmt::Write as _;
use std::time::Duration;

use herdgate::sim::{Fault, Harm, Herd};
use herdgate::sync::{Arc, AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::client::{self, Client, request};
use crate::support::proxy::Proxy;
use crate::support::sink::{head_of, sink};
use crate::{copies, fleet, post, post_to, well_formed};

const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

async fn head(proxy: &Proxy, digest: &str) -> client::Answer {
    let mut client = Client::connect(proxy.address).await;
    client.send(&request("HEAD", &format!("/api/blobs/{digest}"), &[], b"")).await;
    client.head_answer().await.unwrap()
}

async fn upload(proxy: &Proxy, digest: &str, body: &[u8]) -> client::Answer {
    client::once(proxy.address, &request("POST", &format!("/api/blobs/{digest}"), &[], body)).await
}

async fn has(herd: &Herd, at: usize, digest: &str) -> bool {
    let mut client = Client::connect(herd.nodes()[at].address()).await;
    client.send(&request("HEAD", &format!("/api/blobs/{digest}"), &[], b"")).await;
    client.head_answer().await.unwrap().status == 200
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_goes_to_every_node_once() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    assert_eq!(head(&proxy, HELLO).await.status, 404);
    assert_eq!(head(&proxy, HELLO).await.header("content-length"), Some("102"));
    assert_eq!(head(&proxy, "sha256:xyz").await.status, 400);
    let direct = request("POST", &format!("/api/blobs/{HELLO}"), &[], b"hello\n");
    assert_eq!(client::once(herd.nodes()[0].address(), &direct).await.status, 201);
    assert_eq!(head(&proxy, HELLO).await.status, 404, "not every node has it");
    let created = upload(&proxy, HELLO, b"hello\n").await;
    assert_eq!((created.status, created.text().as_str(), created.header("content-type")), (201, "", None));
    assert_eq!(head(&proxy, HELLO).await.status, 200);
    assert_eq!(upload(&proxy, HELLO, b"hello\n").await.status, 200);
    let posts: Vec<u64> = herd.nodes().iter().map(|node| node.ledger().route("/api/blobs/:digest")).collect();
    // The first was not sent what it had: its upload was the test's own.
    assert!(posts[0] == posts[1] && posts[1] == posts[2], "{posts:?}");

    let zeros = "sha256:".to_owned() + &"0".repeat(64);
    let wrong = upload(&proxy, &zeros, b"hello\n").await;
    let text = format!(r#"{{"error":"digest mismatch, expected \"{zeros}\", got \"{HELLO}\""}}"#);
    assert_eq!((wrong.status, wrong.text()), (400, text));
    let bad = upload(&proxy, "sha256:xyz", b"hello\n").await;
    assert_eq!((bad.status, bad.text().as_str()), (400, r#"{"error":"invalid digest format"}"#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunked_upload_and_the_create_that_follows() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    let mut client = Client::connect(proxy.address).await;
    let head = format!("POST /api/blobs/{HELLO} HTTP/1.1\r\nHost: x.local\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(head.as_bytes()).await;
    for byte in b"hello\n" {
        client.send(format!("1\r\n{}\r\n", char::from(*byte)).as_bytes()).await;
    }
    client.send(b"0\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 201);
    let body = format!(r#"{{"model":"plain","files":{{"m.gguf":"{HELLO}"}}}}"#);
    let lines = well_formed(&post(&proxy, "/api/create", &body).await);
    let direct = client::post_once(herd.nodes()[0].address(), "/api/create", &body).await;
    assert_eq!(lines, direct.lines());
    assert_eq!(copies(&proxy, "plain"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lacks_the_blob_is_named_before_the_create() {
    let (_herd, proxy) = fleet("", |_, _| ()).await;
    let path = format!("/api/blobs/{HELLO}");
    let bytes = request("POST", &path, &[("x-herdgate-nodes", "a,b")], b"hello\n");
    assert_eq!(client::once(proxy.address, &bytes).await.status, 201);
    let body = format!(r#"{{"model":"plain","files":{{"m.gguf":"{HELLO}"}}}}"#);
    let lines = well_formed(&post(&proxy, "/api/create", &body).await);
    let last = lines.last().unwrap();
    assert_eq!(last["nodes"]["done"], serde_json::json!(["a", "b"]));
    assert_eq!(last["nodes"]["failed"]["c"], format!("it lacks the blob {HELLO}"));
    // Told to go there all the same, the node says it in its own words.
    let lines = well_formed(&post_to(&proxy, "c", "/api/create", &body).await);
    assert!(lines.last().unwrap()["error"].as_str().unwrap().contains("no such file or directory"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_breaks_off_is_dropped_and_named() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    herd.nodes()[1].fault(Fault::new(Harm::Reset).for_path("/api/blobs/:digest"));
    let answer = upload(&proxy, HELLO, b"hello\n").await;
    assert_eq!(answer.status, 201);
    let nodes = &answer.json()["nodes"];
    assert_eq!(nodes["done"], serde_json::json!(["a", "c"]));
    assert!(nodes["failed"]["b"].is_string(), "{nodes}");
    assert!(has(&herd, 0, HELLO).await && has(&herd, 2, HELLO).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_leaves_no_blob() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    let mut client = Client::connect(proxy.address).await;
    let mut head = String::new();
    write!(head, "POST /api/blobs/{HELLO} HTTP/1.1\r\nHost: x.local\r\nContent-Length: 6\r\n\r\nhel").unwrap();
    client.send(head.as_bytes()).await;
    client.reset();
    for at in 0..3 {
        assert!(!has(&herd, at, HELLO).await);
    }
    assert_eq!(upload(&proxy, HELLO, b"hello\n").await.status, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_node_has_is_not_sent_again() {
    let (_herd, proxy) = fleet("", |_, _| ()).await;
    assert_eq!(upload(&proxy, HELLO, b"hello\n").await.status, 201);
    let mut client = Client::connect(proxy.address).await;
    let head = format!(
        "POST /api/blobs/{HELLO} HTTP/1.1\r\nHost: x.local\r\nContent-Length: 52428800\r\nExpect: 100-continue\r\n\r\n"
    );
    client.send(head.as_bytes()).await;
    assert_eq!(client.interim().await, "HTTP/1.1 200 OK", "without asking for the body first");
}

/// Larger than all the sockets on the way hold together.
const BIG: u64 = 96 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slowest_node_sets_the_pace_and_nothing_is_held() {
    let (mut nodes, mut urls) = (JoinSet::new(), Vec::new());
    let (release, go_on) = oneshot::channel();
    let (quick, slow) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for (go_on, taken) in [(None, &quick), (Some(go_on), &slow)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        urls.push(format!("http://{}", listener.local_addr().unwrap()));
        nodes.spawn(sink(listener, BIG, go_on, taken.clone()));
    }
    let proxy = Proxy::start(&urls, "").await;
    let up = || proxy.shared().fleet.load().nodes.iter().all(|node| node.up);
    proxy.until("both nodes are up", || async { up() }).await;
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let head = format!("POST /api/blobs/{HELLO} HTTP/1.1\r\nHost: x.local\r\nContent-Length: {BIG}\r\n\r\n");
    writing.write_all(head.as_bytes()).await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    nodes.spawn(async move {
        let block = vec![7; 256 * 1024];
        while counted.load(Ordering::Relaxed) < BIG {
            writing.write_all(&block).await.unwrap();
            counted.fetch_add(block.len() as u64, Ordering::Relaxed);
        }
        std::future::pending::<()>().await;
    });
    // Until nothing moves any more: everything on the way is full. (Judged too early, less would have been sent.)
    let (mut last, mut still) = (0, 0);
    while still < 40 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let now = sent.load(Ordering::Relaxed);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
    }
    assert!(last < BIG / 4, "{last} bytes were taken for a node that takes none");
    assert!(quick.load(Ordering::Relaxed) < BIG / 4);
    assert_eq!(slow.load(Ordering::Relaxed), 0);
    release.send(()).unwrap();
    let mut answer = vec![0; 12];
    reading.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 201");
    assert_eq!((quick.load(Ordering::Relaxed), slow.load(Ordering::Relaxed)), (BIG, BIG));
    nodes.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_dies_and_one_is_slow_and_the_rest_is_whole() {
    let (mut nodes, mut urls) = (JoinSet::new(), Vec::new());
    let (release, go_on) = oneshot::channel();
    let (quick, slow) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for (go_on, taken) in [(None, &quick), (Some(go_on), &slow)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        urls.push(format!("http://{}", listener.local_addr().unwrap()));
        nodes.spawn(sink(listener, BIG, go_on, taken.clone()));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    urls.push(format!("http://{}", listener.local_addr().unwrap()));
    let (died, dead) = oneshot::channel();
    nodes.spawn(dies_in_the_middle(listener, died));
    let proxy = Proxy::start(&urls, "").await;
    let up = || proxy.shared().fleet.load().nodes.iter().all(|node| node.up);
    proxy.until("the nodes are up", || async { up() }).await;
    let held = || proxy.shared().body_bytes.load(Ordering::Relaxed);
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (reading, mut writing) = stream.into_split();
    let head = format!("POST /api/blobs/{HELLO} HTTP/1.1\r\nHost: x.local\r\nContent-Length: {BIG}\r\n\r\n");
    writing.write_all(head.as_bytes()).await.unwrap();
    nodes.spawn(async move {
        let block = vec![7; 256 * 1024];
        for _ in 0..BIG / block.len() as u64 {
            writing.write_all(&block).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    dead.await.unwrap();
    assert_eq!((slow.load(Ordering::Relaxed), held()), (0, 0), "nobody holds what the slow one does not take");
    release.send(()).unwrap();
    let mut reading = tokio::io::BufReader::new(reading);
    let mut answer = String::new();
    while !answer.contains('}') {
        assert_ne!(tokio::io::AsyncBufReadExt::read_line(&mut reading, &mut answer).await.unwrap(), 0, "{answer}");
        if answer.ends_with("\r\n\r\n") {
            let mut body = vec![0; 1024];
            let read = reading.read(&mut body).await.unwrap();
            answer += std::str::from_utf8(&body[..read]).unwrap();
        }
    }
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let nodes_of: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(nodes_of["nodes"]["done"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(nodes_of["nodes"]["failed"].as_object().unwrap().len(), 1, "the one that died is named: {answer}");
    assert_eq!((quick.load(Ordering::Relaxed), slow.load(Ordering::Relaxed)), (BIG, BIG));
    nodes.shutdown().await;
}

/// A node that lists nothing, takes a part of an upload and resets the connection.
async fn dies_in_the_middle(listener: TcpListener, died: oneshot::Sender<()>) {
    let mut died = Some(died);
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = head_of(&mut stream).await;
        if head.starts_with(b"POST /api/blobs/") {
            stream.read_exact(&mut vec![0; 100_000]).await.unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(stream);
            died.take().map(|died| died.send(()));
            continue;
        }
        let answer = match head.get(..13) {
            Some(b"GET /api/vers") => {
                "200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{\"version\":\"0.33.0\"}"
            }
            Some(b"HEAD /api/blo") => "404 Not Found\r\nContent-Length: 13\r\nConnection: close\r\n\r\n",
            _ => "200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{\"models\":[]}",
        };
        let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await;
    }
}
