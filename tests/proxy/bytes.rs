//! I7: bytes pass both ways as they are, and every chunk when it arrives; credentials and `Origin` stay here.

use crate::support::client::{self, Client, post, request};
use crate::support::proxy::Proxy;
use crate::support::scripted::{self, Act, After, Scripted, Step, answer, chunk, chunked, chunked_head};

const JSON: &str = "application/json; charset=utf-8";

/// A node with `m` that answers every request with `{}`.
fn plain() -> Scripted {
    Scripted::start(&["m:latest"], |_| answer("200 OK", JSON, b"{}"))
}

async fn before(node: &Scripted, extra: &str) -> Proxy {
    let proxy = Proxy::start(&[node.url()], extra).await;
    proxy.until_listed("m:latest").await;
    proxy
}

/// Bodies that a re-encoding would change.
const ODD: [&str; 6] = [
    "{ \"stream\" :\tfalse,\r\n\"model\":\"m\" , \"unknown\":{\"a\":[1, 2 ,{\"model\":\"x\"}]}, \"prompt\":\"caf\\u00e9 \\ud83d\\ude00 é😀 <&>\"  }",
    r#"{"temperature":1.00,"temperature":2e0,"model":"nope","prompt":"","MODEL":"M:latest","stream":false}"#,
    r#"{"z":1,"a":{"b":null},"stream":false,"prompt":"x","model":"m"} trailing, and not JSON"#,
    r#"{"stream":false,"messages":[{"role":"user","content":"model\":\"no\""}],"max_tokens":3,"model":"m"}"#,
    r#"{"model":"m","input":["a","b"],"stream":false,"options":{"num_ctx":4096.0}}"#,
    "\n\n  {\"model\":\"m\",\"stream\":false,\"stream_options\":{\"include_usage\":true},\"prompt\":\"\u{2028}\"}\n",
];

const ROUTES: [&str; 11] = [
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/api/something-new",
    "/v1/rerank?version=2",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_request_bodies_reach_the_node_as_they_are_on_every_route() {
    let node = plain();
    let proxy = before(&node, "").await;
    let mut client = Client::connect(proxy.address).await;
    for path in ROUTES {
        for body in ODD {
            client.send(&post(path, body)).await;
            let answer = client.answer().await.unwrap();
            assert_eq!(answer.status, 200, "{path} {body} {}", answer.text());
            let asked = node.next().await;
            assert_eq!((asked.method(), asked.target(), asked.text().as_str()), ("POST", path, body));
            assert_eq!(asked.header("content-length"), Some(body.len().to_string().as_str()), "not chunked (I12)");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_bytes_that_are_no_text_pass_too() {
    let node = plain();
    let proxy = before(&node, "").await;
    let bodies: [&[u8]; 3] =
        [b"{\"model\":\"m\",\"prompt\":\"\xff\xfe\x00\"}", b"\xef\xbb\xbf{\"model\":\"m\"}", b"\x1f\x8b\x08\x00gzip"];
    for body in bodies {
        let bytes = request("POST", "/api/generate", &[("Content-Encoding", "gzip")], body);
        let answer = client::once(proxy.address, &bytes).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let asked = node.next().await;
        assert_eq!((&asked.body[..], asked.header("content-encoding")), (body, Some("gzip")));
    }
    // A large body, in many pieces.
    let large = format!(r#"{{"prompt":"{}","model":"m"}}"#, "0123456789abcdef".repeat(256 * 1024));
    let answer = client::post_once(proxy.address, "/api/generate", &large).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(node.next().await.text() == large, "four megabytes, unchanged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_a_chunked_body_becomes_one_with_a_length() {
    let node = plain();
    let proxy = before(&node, "").await;
    let mut client = Client::connect(proxy.address).await;
    let head = "POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n";
    client.send(head.as_bytes()).await;
    let body = r#"{"model":"m","prompt":"in pieces","stream":false}"#;
    for piece in body.as_bytes().chunks(7) {
        client.send(&chunk(piece)).await;
    }
    client.send(b"0\r\nX-T: 1\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    let asked = node.next().await;
    assert_eq!((asked.text().as_str(), asked.header("content-length")), (body, Some("49")));
    assert_eq!((asked.header("transfer-encoding"), asked.header("trailer")), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_credentials_origin_and_what_is_ours_never_reach_a_node() {
    let node = plain();
    let keys = "router_keys: [ { name: k, key: sesame } ]";
    let proxy = before_with_key(&node, keys).await;
    let headers = [
        ("Authorization", "Bearer sesame"),
        ("X-Api-Key", "sesame"),
        ("Cookie", "session=1"),
        ("Origin", "http://localhost:3000"),
        ("Accept-Encoding", "gzip"),
        ("X-Herdgate-Max-Wait", "5"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Proxy-Authorization", "Basic eA=="),
        ("TE", "trailers"),
        ("User-Agent", "GitHubCopilotChat/1"),
        ("Accept", "application/json"),
        ("X-OpenWebUI-Chat-Id", "7"),
        ("Content-Type", "application/json"),
    ];
    let body = r#"{"model":"m","prompt":"x","stream":false}"#;
    let path = "/api/generate?beta=true&api_key=sesame&ts=1";
    let answer = client::once(proxy.address, &request("POST", path, &headers, body.as_bytes())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let asked = node.next().await;
    assert_eq!(asked.target(), "/api/generate?beta=true&ts=1");
    let lower = asked.head.to_ascii_lowercase();
    for word in
        ["sesame", "authorization", "x-api-key", "cookie", "origin", "accept-encoding", "herdgate", "x-hop", "te:"]
    {
        assert!(!lower.contains(&format!("\n{word}")) && !lower.contains("sesame"), "{word} in {lower}");
    }
    assert_eq!(asked.header("host"), Some(node.address.to_string().as_str()));
    for (name, value) in &headers[10..] {
        assert_eq!(asked.header(name), Some(*value), "{name} must pass");
    }
    // The key in the query alone opens the router, and is gone as well.
    let answer = client::once(proxy.address, &post("/api/generate?api_key=sesame", body)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(node.next().await.target(), "/api/generate");
}

async fn before_with_key(node: &Scripted, extra: &str) -> Proxy {
    let proxy = Proxy::start(&[node.url()], extra).await;
    let address = proxy.address;
    proxy
        .until("listed", || async {
            let listed = client::once(address, &request("GET", "/api/tags", &[("X-Api-Key", "sesame")], b"")).await;
            listed.text().contains("m:latest")
        })
        .await;
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_answers_reach_the_client_as_they_are() {
    let odd = "{\"model\" : \"m\",\r\n\"x\":\"caf\\u00e9 \u{1f600} <&>\", \"n\":1.00,\"n\":2 }  \n\n".as_bytes();
    let long: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("200 OK", "application/json; charset=utf-8", odd.to_vec()),
        ("200 OK", "text/x-odd;  a=\"b\"", b"\x00\xff\xfe".to_vec()),
        ("201 Created", "application/json", b"{}".to_vec()),
        ("400 Bad Request", "application/json", b"{\"error\" : \"as the node words it\"}".to_vec()),
        ("401 Unauthorized", "application/json", b"{\"error\":\"x\",\"signin_url\":\"y\"}".to_vec()),
        ("499 Unknown", "application/json", b"{\"error\":\"request canceled\"}".to_vec()),
        ("501 Not Implemented", "application/json", b"{\"error\":\"no embeddings\"}".to_vec()),
        ("500 Internal Server Error", "application/json", b"{\"error\":\"option \\\"x\\\" must be\"}".to_vec()),
        ("200 OK", "application/octet-stream", long),
        ("200 OK", "application/json", Vec::new()),
    ];
    let mut script = cases.clone().into_iter();
    let node = Scripted::start(&["m:latest"], move |_| {
        let (status, content_type, body) = script.next().expect("one answer a case");
        let extra = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nX-Of-The-Node: yes\r\nX-Of-The-Node: twice\r\n\
             Cache-Control: no-cache\r\nAccess-Control-Allow-Origin: *\r\nConnection: X-Private\r\nX-Private: 1\r\n\
             Keep-Alive: timeout=5\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Act::Bytes([extra.as_bytes(), &body].concat(), After::Keep)
    });
    let proxy = before(&node, "").await;
    for (status, content_type, body) in cases {
        let answer = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await;
        assert_eq!(answer.status.to_string(), status[..3]);
        assert_eq!(answer.header("content-type"), Some(content_type));
        assert!(answer.body == body && answer.whole, "{status} {content_type}");
        assert_eq!(answer.header("content-length"), Some(body.len().to_string().as_str()), "framing kept");
        assert_eq!(answer.headers.iter().filter(|(name, _)| name == "x-of-the-node").count(), 2);
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        for hidden in
            ["access-control-allow-origin", "x-private", "keep-alive", "content-encoding", "transfer-encoding"]
        {
            assert_eq!(answer.header(hidden), None, "{hidden}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_an_answer_that_ends_by_close_is_passed_whole() {
    let node = Scripted::start(&["m:latest"], |_| {
        Act::Bytes(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end".to_vec(), After::Close)
    });
    let proxy = before(&node, "").await;
    for _ in 0..2 {
        let answer = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.whole), (200, "until the end", true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_every_chunk_is_flushed_when_it_arrives() {
    let sse = "text/event-stream";
    let chat = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    let cases: [(&str, &str, &str, &[&str]); 5] = [
        (
            "/api/chat",
            r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#,
            "application/x-ndjson",
            &["{\"done\":false,\"n\":1}\n", "{\"done\":false,", "\"n\":2}\n", "{\"done\":true}\n"],
        ),
        // With usage asked for on the client's behalf: nothing but whole events may be held.
        (
            "/v1/chat/completions",
            chat,
            sse,
            &[
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
                "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n",
                "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
                "data: [DONE]\n\n",
            ],
        ),
        (
            "/v1/completions",
            r#"{"model":"m","prompt":"x","stream":true}"#,
            sse,
            &["data: {\"x\":1}\n\n", "data: ", "[DONE]\n\n"],
        ),
        (
            "/v1/responses",
            r#"{"model":"m","input":"x","stream":true}"#,
            sse,
            &["event: a\n", "data: {}\n\n", ": ping\n\n"],
        ),
        ("/v1/messages", r#"{"model":"m","messages":[],"stream":true}"#, sse, &["event: ping\ndata: {}\n\n", "e"]),
    ];
    for (path, body, content_type, chunks) in cases {
        let (pace, act) = scripted::paced();
        let mut act = Some(act);
        let node = Scripted::start(&["m:latest"], move |_| act.take().expect("asked once"));
        let proxy = before(&node, "").await;
        let mut client = Client::connect(proxy.address).await;
        client.send(&post(path, body)).await;
        pace.send(Step::Send(chunked_head(content_type))).unwrap();
        // The head alone arrives before any byte of the body does.
        let head = client.begin().await.unwrap();
        assert_eq!((head.status, head.header("content-type")), (200, Some(content_type)), "{path}");
        for sent in chunks {
            pace.send(Step::Send(chunk(sent.as_bytes()))).unwrap();
            // The node sends the next only after this one was received.
            let mut got = Vec::new();
            while got.len() < sent.len() {
                got.extend(client.chunk().await.expect("the stream goes on"));
            }
            assert_eq!(String::from_utf8(got).unwrap(), **sent, "{path}");
        }
        pace.send(Step::Send(b"0\r\n\r\n".to_vec())).unwrap();
        assert_eq!(client.chunk().await, None, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_chunks_that_arrive_together_stay_in_order_and_whole() {
    let lines: Vec<String> = (0..500).map(|at| format!("{{\"n\":{at},\"done\":{}}}\n", at == 499)).collect();
    let chunks: Vec<Vec<u8>> = lines.iter().map(|line| line.clone().into_bytes()).collect();
    let node = Scripted::start(&["m:latest"], move |_| {
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        chunked("application/x-ndjson", &chunks)
    });
    let proxy = before(&node, "").await;
    let answer = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await;
    assert_eq!(answer.text(), lines.concat());
    // One line of a megabyte.
    let line = format!("{{\"context\":[{}1],\"done\":true}}\n", "12345,".repeat(180_000)).into_bytes();
    let sent = line.clone();
    let node = Scripted::start(&["m:latest"], move |_| chunked("application/x-ndjson", &[&sent]));
    let proxy = before(&node, "").await;
    let answer = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await;
    assert!(answer.whole && answer.body == line);
}
