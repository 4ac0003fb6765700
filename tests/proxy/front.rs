//! The front's own HTTP/1.1 over sockets: what a node gets of odd requests, and what holds on one connection for long.

use herdgate::http1::{BodyDecoder, BodyFraming, Item};

use crate::support::client::{self, Client, get, post, request};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{Act, After, Scripted, Step, answer, chunk, chunked_head, held};

const JSON: &str = "application/json; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";

async fn before(node: &Scripted, extra: &str) -> Proxy {
    let proxy = Proxy::start(&[node.url()], extra).await;
    proxy.until_listed("m:latest").await;
    proxy
}

const BODY: &str = r#"{"model":"m","prompt":"x","stream":false}"#;

/// Requests that are served though nobody sends them so, and the body of each.
fn odd() -> Vec<(Vec<u8>, String)> {
    let whole = |head: &str, framed: &str| (format!("{head}{framed}").into_bytes(), BODY.to_owned());
    let chunks = format!("00{:x} ;a=\"b\r\n{BODY}\r\n000;z\r\nContent-Length: 3\r\nX-Trailer: y\r\n\r\n", BODY.len());
    let one_by_one: String = BODY.chars().map(|one| format!("1\r\n{one}\r\n")).collect();
    let length = format!("Content-Length: {}\r\n", BODY.len());
    let line = "POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    vec![
        whole(&format!("{line}Transfer-Encoding: chunked\r\n\r\n"), &chunks),
        whole(&format!("{line}TRANSFER-ENCODING:\tChunKed \r\n\r\n"), &format!("{one_by_one}0\r\n\r\n")),
        whole(&format!("\r\n\n\r\n{line}{length}\r\n"), BODY),
        whole(&format!("{line}{length}\n").replace("\r\n", "\n"), BODY),
        whole(&format!("{line}{length}{length}\r\n"), BODY),
        whole(&format!("{line}Content-Length: 00{}\r\n\r\n", BODY.len()), BODY),
        whole(&format!("{line}{length}Content_Length: 3\r\nTransfer_Encoding: chunked\r\n\r\n"), BODY),
        whole(&format!("{line}{length}Connection: content-length, x-hop\r\nX-Hop: 1\r\nx-HOP: 2\r\n\r\n"), BODY),
        whole(
            &format!("{line}{length}X-Tab: a\tb\r\nX-High: \u{e9}\r\nX-Empty:\r\n!#$%&'*+-.^_`|~: token\r\n\r\n"),
            BODY,
        ),
        whole(
            &format!("{line}{length}{}\r\n", (0..100).map(|at| format!("X-{at}: {at}\r\n")).collect::<String>()),
            BODY,
        ),
        whole(&format!("{line}{length}Expect: 100-continue\r\n\r\n"), BODY),
        whole(
            &format!("{line}{length}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n\r\n"),
            BODY,
        ),
        whole(&format!("POST /api/generate?a={{x}}&b=<y>|%0d%0aX:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n"), BODY),
    ]
}

/// Every line is a name and a value, none ends early, and none is about the hop before.
fn assert_well_formed(head: &str) {
    let mut lines = head.strip_suffix("\r\n\r\n").expect("a whole head").split("\r\n");
    let first: Vec<_> = lines.next().unwrap().split(' ').collect();
    assert!(first.len() == 3 && first[2] == "HTTP/1.1", "{head}");
    let mut names = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?} in {head}"));
        assert!(!name.is_empty() && !name.contains([' ', '\t', ':', '\r', '\n']), "{line:?}");
        assert!(!value.contains(['\r', '\n', '\0']), "{line:?}");
        names.push(name.to_ascii_lowercase());
    }
    for once in ["host", "content-length"] {
        assert_eq!(names.iter().filter(|name| *name == once).count(), 1, "{head}");
    }
    for never in ["transfer-encoding", "x-trailer", "x-hop", "upgrade", "http2-settings", "expect"] {
        assert!(!names.iter().any(|name| name == never), "{never} in {head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_odd_request_reaches_the_node_as_one_plain_request() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"));
    let proxy = before(&node, "").await;
    let next = r#"{"model":"m","prompt":"behind","stream":false}"#;
    for (bytes, body) in odd() {
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let behind = post("/api/chat", next);
        let both = [&bytes[..], &behind[..]].concat();
        // In one write, and cut in the middle of its parts.
        for cut in [0, 10, bytes.len() / 2, bytes.len() - 3, bytes.len(), bytes.len() + 20] {
            let mut client = Client::connect(proxy.address).await;
            client.send(&both[..cut]).await;
            client.send(&both[cut..]).await;
            for (target, body) in [("/api/generate", body.as_str()), ("/api/chat", next)] {
                let answer = client.answer().await.unwrap_or_else(|| panic!("no answer to {target} in {shown:?}"));
                assert_eq!((answer.status, answer.text().as_str()), (200, "{}"), "{shown:?}");
                let asked = node.next().await;
                assert_well_formed(&asked.head);
                assert!(asked.target().starts_with(target), "{shown:?}");
                assert_eq!(asked.text(), body, "{shown:?}");
                assert_eq!(asked.header("content-length"), Some(body.len().to_string().as_str()), "{shown:?}");
            }
        }
    }
    assert_eq!(node.untaken(), 0, "nothing else reached it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_none_is_malformed() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"));
    let proxy = before(&node, "").await;
    for host in [&b"\xff"[..], b"a b", b"127.0.0.1\"", b"127.0.0.1/x", b"<a>"] {
        let mut client = Client::connect(proxy.address).await;
        client.send(&[b"GET /api/version HTTP/1.1\r\nHost: ", host, b"\r\n\r\n"].concat()).await;
        assert_eq!(client.answer().await.unwrap().status, 400, "{:?}", String::from_utf8_lossy(host));
        assert!(client.is_closed().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_shorter_than_its_length_ends_the_connection() {
    let whole = br#"{"response":"a","done":true,"eval_count":1}"#;
    let line = b"{\"response\":\"a\",\"done\":false}\n";
    for (stream, kind, sent) in [(false, JSON, &whole[..]), (true, NDJSON, &line[..])] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n");
        let cut = [head.as_bytes(), sent].concat();
        let node = Scripted::start(&["m:latest"], move |_| Act::Bytes(cut.clone(), After::Close));
        let proxy = before(&node, "").await;
        let mut client = Client::connect(proxy.address).await;
        let body = BODY.replace("false", if stream { "true" } else { "false" });
        client.send(&[post("/api/generate", &body), request("GET", "/api/version", &[], b"")].concat()).await;
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.whole), (200, false), "{}", answer.text());
        assert!(answer.body.starts_with(sent));
        assert!(!answer.text().contains("HTTP/1.1"), "the next answer is no part of this one: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_is_no_silent_node() {
    let (node, paces) = held();
    let proxy = before(&node, "timeouts: { stream_idle: 1s }").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
    let pace = paces.recv_async().await.unwrap();
    let piece = chunk(&[b'x'; 64 * 1024]);
    pace.send(Step::Send(chunked_head(NDJSON))).unwrap();
    for _ in 0..512 {
        pace.send(Step::Send(piece.clone())).unwrap();
    }
    pace.send(Step::Send(b"0\r\n\r\n".to_vec())).unwrap();
    assert_eq!(client.begin().await.unwrap().status, 200);
    // Nothing moves for longer than a node may be silent: the time itself is the case.
    let still = async || {
        let before = pace.len();
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        before == pace.len()
    };
    eventually("the node is held back", still).await;
    let mut length = 0;
    while let Some(chunk) = client.chunk().await {
        length += chunk.len();
    }
    assert_eq!(length, 512 * 64 * 1024, "the node was not given up");
    assert_eq!(proxy.shared().meters.sums().endings, [1, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_began_behind_a_request_has_its_time_too() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"));
    let proxy = before(&node, "timeouts: { request_head: 1s }").await;
    let mut client = Client::connect(proxy.address).await;
    let begun = [request("GET", "/api/version", &[], b""), b"GET /api/tags HT".to_vec()].concat();
    client.send(&begun).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert_eq!(client.answer().await.unwrap().status, 408, "long before client_idle");
    assert!(client.is_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_client_reads_what_is_answered_at_once() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"));
    let proxy = before(&node, "").await;
    for path in ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/health", "/nope"] {
        let mut client = Client::connect(proxy.address).await;
        client.send(&request("GET", path, &[], b"")).await;
        client.half_close().await;
        assert!(client.answer().await.is_some_and(|answer| answer.whole), "{path}");
        assert!(client.is_closed().await, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_on_one_connection() {
    let lines: Vec<Vec<u8>> =
        (0..3).map(|at| format!("{{\"response\":\"{at}\",\"done\":{}}}\n", at == 2).into_bytes()).collect();
    let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    let bytes = lines.iter().fold(chunked_head(NDJSON), |all, line| [all, chunk(line)].concat());
    let bytes = [&bytes[..], b"0\r\n\r\n"].concat();
    let node = Scripted::start(&["m:latest"], move |_| Act::Bytes(bytes.clone(), After::Keep));
    let proxy = before(&node, "").await;
    let mut client = Client::connect(proxy.address).await;
    let stream = post("/api/generate", r#"{"model":"m","prompt":"x"}"#);
    let mut connection = None;
    for round in 0..250 {
        // Four at once, the stream in the middle.
        let get = |path: &str| request("GET", path, &[], b"");
        client
            .send(&[get("/api/version"), stream.clone(), get("/api/tags"), request("HEAD", "/", &[], b"")].concat())
            .await;
        assert!(client.answer().await.unwrap().text().contains("version"), "{round}");
        let answer = client.answer().await.unwrap();
        assert!(answer.whole && answer.chunks == lines, "{round}: {:?}", answer.text());
        assert!(client.answer().await.unwrap().text().contains("m:latest"), "{round}");
        assert_eq!(client.head_answer().await.unwrap().status, 200, "{round}");
        let used = node.next().await.connection;
        assert_eq!(*connection.get_or_insert(used), used, "one connection to the node carries them all");
    }
    assert_eq!(proxy.in_flight(), 0);
    assert_eq!(proxy.shared().meters.sums().endings, [250, 0, 0, 0, 0]);
    assert_eq!(proxy.shared().connections(), 1);
    drop(client);
    eventually("the connection is gone", || async { proxy.shared().connections() == 0 }).await;
    assert_eq!(get(proxy.address, "/herdgate/ready").await.status, 200);
}

/// Payload bytes in the beginning of a chunked body.
fn payload_in(wire: &[u8]) -> usize {
    let mut decoder = BodyDecoder::new(BodyFraming::Chunked, 1024);
    let (mut length, mut at) = (0, 0);
    loop {
        match decoder.feed(&wire[at..]).unwrap() {
            (used, Item::Data(data)) => {
                length += data.len();
                at += used;
            }
            _ => return length,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_a_node_stay_chunks_wherever_its_bytes_are_cut() {
    let (node, paces) = held();
    let proxy = before(&node, "").await;
    let lines =
        ["{\"response\":\"a\",\"done\":false}\n", "{\"response\":\"bcdefg\",\"done\":false}\n", "{\"done\":true}\n"];
    let body: Vec<u8> = lines.iter().flat_map(|line| chunk(line.as_bytes())).chain(*b"0\r\n\r\n").collect();
    let mut client = Client::connect(proxy.address).await;
    for cut in 0..body.len() {
        client.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
        let pace = paces.recv_async().await.unwrap();
        node.next().await;
        pace.send(Step::Send([chunked_head(NDJSON), body[..cut].to_vec()].concat())).unwrap();
        let (mut chunks, mut length) = (Vec::new(), 0);
        let due = payload_in(&body[..cut]);
        if due > 0 {
            client.begin().await.unwrap();
            while length < due {
                // What has come is passed on, a part of a chunk too.
                chunks.push(client.chunk().await.expect("all that came"));
                length += chunks.last().unwrap().len();
            }
        }
        pace.send(Step::Send(body[cut..].to_vec())).unwrap();
        drop(pace);
        if due == 0 {
            client.begin().await.unwrap();
        }
        while let Some(chunk) = client.chunk().await {
            chunks.push(chunk);
        }
        assert_eq!(chunks.concat(), lines.concat().as_bytes(), "cut at {cut}");
        let ends = |chunks: Vec<usize>| {
            chunks
                .into_iter()
                .scan(0, |at, length| {
                    *at += length;
                    Some(*at)
                })
                .collect::<Vec<_>>()
        };
        let (seen, framed) =
            (ends(chunks.iter().map(Vec::len).collect()), ends(lines.iter().map(|line| line.len()).collect()));
        assert!(framed.iter().all(|end| seen.contains(end)), "cut at {cut}: {chunks:?}");
        let inside = !framed.contains(&due) && due > 0;
        assert_eq!(chunks.len(), lines.len() + usize::from(inside), "cut at {cut}: {chunks:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_closes_the_idle_at_once_and_the_busy_after_their_answers() {
    let (node, paces) = held();
    let proxy = before(&node, "").await;
    let (mut idle, mut silent) = (Client::connect(proxy.address).await, Client::connect(proxy.address).await);
    idle.send(&request("GET", "/api/version", &[], b"")).await;
    assert_eq!(idle.answer().await.unwrap().header("connection"), None);
    let (mut waits, mut streams) = (Client::connect(proxy.address).await, Client::connect(proxy.address).await);
    waits.send(&post("/api/generate", BODY)).await;
    let waiting = paces.recv_async().await.unwrap();
    streams.send(&post("/api/generate", r#"{"model":"m","prompt":"x"}"#)).await;
    let streaming = paces.recv_async().await.unwrap();
    streaming.send(Step::Send([chunked_head(NDJSON), chunk(b"{\"done\":false}\n")].concat())).unwrap();
    assert_eq!(streams.begin().await.unwrap().header("connection"), None);
    proxy.gate().drain();
    assert!(idle.is_closed().await && silent.is_closed().await);
    waiting.send(Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec())).unwrap();
    let answer = waits.answer().await.unwrap();
    assert_eq!((answer.header("connection"), answer.text().as_str()), (Some("close"), "{}"));
    assert!(waits.is_closed().await);
    streaming.send(Step::Send([chunk(b"{\"done\":true}\n"), b"0\r\n\r\n".to_vec()].concat())).unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = streams.chunk().await {
        text.extend(chunk);
    }
    assert_eq!(text, b"{\"done\":false}\n{\"done\":true}\n");
    assert!(streams.is_closed().await);
    assert_eq!(proxy.shared().meters.sums().endings, [2, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_is_read_beside_a_body_that_nobody_wants() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"));
    let proxy = before(&node, "limits: { max_body: 1MiB }").await;
    let chunked = "Transfer-Encoding: chunked\r\n\r\n3fffffff\r\n";
    for framing in ["Content-Length: 1073741824\r\n\r\n", chunked] {
        let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let head = format!("POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n{framing}");
        writing.write_all(head.as_bytes()).await.unwrap();
        let block = vec![b' '; 256 * 1024];
        let write = async { while writing.write_all(&block).await.is_ok() {} };
        let mut answer = Vec::new();
        let read = async {
            let _ = reading.read_to_end(&mut answer).await;
        };
        tokio::join!(write, read);
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.starts_with("HTTP/1.1 413 ") && text.contains("Connection: close") && text.ends_with('}'),
            "{text}"
        );
    }
    eventually("both are gone", || async { proxy.shared().connections() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_is_given_only_to_a_client_that_waits_for_it() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"));
    let proxy = before(&node, "limits: { max_body: 1MiB }").await;
    let head = |length: usize| {
        let lines = format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n");
        format!("POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}").into_bytes()
    };
    // With its body behind it, in one write; twice on one connection.
    let mut client = Client::connect(proxy.address).await;
    for _ in 0..2 {
        client.send(&[&head(BODY.len())[..], BODY.as_bytes()].concat()).await;
        assert_eq!(client.interim().await, "HTTP/1.1 200 OK");
        assert_eq!(client.answer().await.unwrap().text(), "{}");
    }
    // And one that waits, on the same connection.
    client.send(&head(BODY.len())).await;
    assert_eq!(client.interim().await, "HTTP/1.1 100 Continue");
    client.send(BODY.as_bytes()).await;
    assert_eq!(client.answer().await.unwrap().text(), "{}");
    // No body at all, and one that is not wanted.
    client.send(&head(0)).await;
    assert!(!client.interim().await.contains(" 100 "));
    let mut client = Client::connect(proxy.address).await;
    client.send(&head(2 << 20)).await;
    assert!(client.interim().await.starts_with("HTTP/1.1 413 "));
    assert_eq!(client.answer().await.unwrap().header("connection"), Some("close"));
    assert!(client.is_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_a_body_where_none_belongs_never_becomes_a_nodes_next_request() {
    let node = Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"));
    let proxy = before(&node, "").await;
    let hidden = post("/api/generate", r#"{"model":"m","prompt":"not through the gate"}"#);
    let long = [post("/api/delete", r#"{"model":"m"}"#), vec![b' '; 100_000]].concat();
    for body in [hidden, long] {
        for method in ["GET", "HEAD"] {
            let mut client = Client::connect(proxy.address).await;
            client.send(&request(method, "/api/experimental/model-recommendations", &[], &body)).await;
            let answer = if method == "HEAD" { client.head_answer().await } else { client.answer().await };
            let answer = answer.expect("an answer");
            if answer.status == 200 {
                let asked = node.next().await;
                assert_eq!((asked.method(), asked.body.len()), (method, 0), "{}", asked.head);
            }
            // Over the same connection to the node: it would see first what the other left there.
            assert_eq!(client::post_once(proxy.address, "/api/generate", BODY).await.status, 200);
            let asked = node.next().await;
            assert_eq!((asked.target(), asked.text()), ("/api/generate", BODY.to_owned()));
            assert_eq!(node.untaken(), 0);
        }
    }
}
