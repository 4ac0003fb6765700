//! Bad input: the answers of the wire contract, or a bound's; never a hang, never a crash, nothing lost.

use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use herdgate::usage::meters::Timeout;

use crate::support::client::{self, Answer, Client, post, request};
use crate::support::proxy::{Proxy, eventually};

async fn herd() -> (Herd, Proxy) {
    with("").await
}

async fn with(extra: &str) -> (Herd, Proxy) {
    let models = vec![ModelSpec::chat("m"), ModelSpec::embedding("e")];
    let herd = Herd::start(vec![NodeSpec::ollama(models).slots(8)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), extra).await;
    proxy.until_listed("e:latest").await;
    (herd, proxy)
}

/// What a client may compare of an answer: status, type, `Allow`, `Location` and the body, ids and times blanked.
fn essence(answer: &Answer) -> (u16, Option<String>, Option<String>, Option<String>, String) {
    let header = |name| answer.header(name).map(str::to_owned);
    let mut body = answer.text();
    if let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(&answer.body) {
        if json.get("request_id").is_some() {
            json["request_id"] = "req_".into();
        }
        body = json.to_string() + if body.ends_with('\n') { "\n" } else { "" };
    }
    (answer.status, header("content-type"), header("allow"), header("location"), body)
}

/// Sends the same bytes to the node and to the proxy: the answers are the same.
async fn same(herd: &Herd, proxy: &Proxy, bytes: &[u8]) -> Answer {
    let through = client::once(proxy.address, bytes).await;
    let direct = client::once(herd.nodes()[0].address(), bytes).await;
    assert_eq!(essence(&through), essence(&direct), "{}", String::from_utf8_lossy(bytes));
    through
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_cannot_be_read_are_worded_by_the_node() {
    let (herd, proxy) = herd().await;
    let routes = ["/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/show"];
    let v1 = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];
    let bodies: [&[u8]; 14] = [
        b"",
        b"{\"model\":",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b"{\"model\":\"\"}",
        b"{\"model\":\"  \",\"prompt\":\"x\"}",
        b"{\"model\":5}",
        b"{\"model\":\"a b\"}",
        b"{\"model\":\"../x\"}",
        b"{\"model\":\"m\",\"stream\":\"yes\"}",
        b"\xef\xbb\xbf{\"model\":\"m\"}",
        b"\x1f\x8b\x08\x00\x00",
    ];
    for path in routes.into_iter().chain(v1) {
        for body in bodies {
            let headers = [("Content-Type", "application/json")];
            let answer = same(&herd, &proxy, &request("POST", path, &headers, body)).await;
            assert!(answer.status < 503, "{path} {body:?}");
        }
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_models_are_worded_as_the_route_words_them() {
    let (herd, proxy) = herd().await;
    let cases = [
        ("/api/generate", r#"{"model":"nope","prompt":"x"}"#, "model 'nope' not found"),
        ("/api/chat", r#"{"model":"nope","messages":[]}"#, "model 'nope' not found"),
        ("/api/embed", r#"{"model":"nope","input":"x"}"#, "model \\\"nope\\\" not found, try pulling it first"),
        ("/api/embeddings", r#"{"model":"nope","prompt":"x"}"#, "model \\\"nope\\\" not found, try pulling it first"),
        ("/api/show", r#"{"model":"nope"}"#, "model 'nope:latest' not found"),
        ("/api/show", r#"{"name":"nope","model":""}"#, "model 'nope:latest' not found"),
        ("/v1/chat/completions", r#"{"model":"nope","messages":[{"role":"user","content":"x"}]}"#, "'nope' not found"),
        ("/v1/completions", r#"{"model":"nope","prompt":"x"}"#, "model 'nope' not found"),
        ("/v1/embeddings", r#"{"model":"nope","input":"x"}"#, "try pulling it first"),
        ("/v1/responses", r#"{"model":"nope","input":"x"}"#, "model 'nope' not found"),
        (
            "/v1/messages",
            r#"{"model":"nope","max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#,
            "model 'nope' not found",
        ),
    ];
    for (path, body, text) in cases {
        let answer = same(&herd, &proxy, &post(path, body)).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains(text), "{path} {}", answer.text());
    }
    let answer = same(&herd, &proxy, &request("GET", "/v1/models/nope", &[], b"")).await;
    assert_eq!(answer.status, 404);
    let answer = client::post_once(proxy.address, "/api/chat", r#"{"model":"x:local:cloud","messages":[]}"#).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (400, r#"{"error":"use either :local or :cloud, not both: \"x:local:cloud\""}"#,)
    );
    for path in ["/api/chat", "/v1/chat/completions", "/v1/messages"] {
        let answer = client::post_once(proxy.address, path, r#"{"model":"x:cloud","messages":[]}"#).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (403, r#"{"error":"ollama cloud is disabled: remote model is unavailable"}"#,)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_paths_and_slashes_as_ollama_answers_them() {
    let (herd, proxy) = herd().await;
    let asked = [
        ("GET", "/api/generate"),
        ("GET", "/v1/chat/completions"),
        ("PUT", "/api/chat"),
        ("DELETE", "/api/tags"),
        ("POST", "/api/tags"),
        ("POST", "/v1/models"),
        ("GET", "/nope"),
        ("GET", "/v1/nope"),
        ("GET", "/API/tags"),
        ("GET", "/api"),
        ("GET", "/v1/models/hf.co%2Fa%2Fb"),
        ("GET", "/v1/models/a/b"),
        ("GET", "/api/tags/"),
        ("GET", "/api/tags/?a=1&b=%3C2%3E"),
        ("POST", "/api/chat/"),
        ("POST", "/api/chat/?x=1"),
        ("GET", "//api/tags"),
        ("POST", "//api//chat"),
        ("GET", "/api/./tags"),
        ("GET", "/api/../api/tags"),
        ("GET", "/v1//models"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/nope"),
        ("POST", "/nope"),
    ];
    for (method, path) in asked {
        let answer = same(&herd, &proxy, &request(method, path, &[], b"")).await;
        assert!(answer.status >= 300, "{method} {path} {}", answer.status);
    }
    for (path, status) in [("/api/ps", 405), ("/v1/models", 405), ("/", 200), ("/api/version", 200), ("/api/tags", 200)]
    {
        let mut client = Client::connect(proxy.address).await;
        client.send(&request("HEAD", path, &[], b"")).await;
        assert_eq!(client.head_answer().await.unwrap().status, status, "HEAD {path}");
        // Nothing follows the head: the connection carries the next request.
        client.send(&request("GET", "/api/version", &[], b"")).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    // An unknown path that names a model belongs to a node; one that names none is answered here.
    let named = client::post_once(proxy.address, "/v1/rerank", r#"{"model":"m","query":"x"}"#).await;
    assert_eq!((named.status, named.text().as_str()), (404, "404 page not found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administration_is_refused_in_ollamas_shape() {
    let (herd, proxy) = with("administration: off").await;
    // An escaped spelling is the same path: a node would decode it and pull.
    for path in ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/%70ull", "/%61pi/pus%68"] {
        let answer = client::post_once(proxy.address, path, r#"{"model":"m"}"#).await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.json()["error"].is_string());
    }
    let bytes = request("DELETE", "/api/delete", &[], br#"{"model":"m"}"#);
    assert_eq!(client::once(proxy.address, &bytes).await.status, 403);
    let bytes = request("POST", "/api/blobs/sha256:ab", &[], b"x");
    assert_eq!(client::once(proxy.address, &bytes).await.status, 403);
    let bytes = request("DELETE", "/herdgate/pending/1", &[], b"");
    assert_eq!(client::once(proxy.address, &bytes).await.status, 403);
    assert_eq!(client::get(proxy.address, "/herdgate/pending").await.text(), r#"{"pending":[]}"#);
    // What manages a node passes through by the same rule, whatever it says of a model.
    let lora = r#"{"model":"m","lora_name":"l","lora_path":"/l"}"#;
    for path in ["/v1/load_lora_adapter", "/v1/%75nload_lora_adapter", "/api/models/unload", "/v1/slots/0?action=erase"]
    {
        let answer = client::post_once(proxy.address, path, lora).await;
        assert_eq!((answer.status, answer.json()["error"].is_string()), (403, true), "{path}");
    }
    // So does what takes its account away.
    for bytes in [post("/api/signout", ""), request("DELETE", "/api/user/keys/abc", &[], b"")] {
        let answer = client::once(proxy.address, &bytes).await;
        assert_eq!((answer.status, answer.json()["error"].is_string()), (403, true));
    }
    let unload = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","keep_alive":0}"#).await;
    assert_eq!(unload.status, 403);
    for node in herd.nodes() {
        let ledger = node.ledger();
        assert_eq!(ledger.route("/api/pull") + ledger.route("/api/delete") + ledger.route("/api/generate"), 0);
    }
    let (_herd, open) = with("").await;
    let answer = client::post_once(open.address, "/v1/load_lora_adapter", lora).await;
    assert_eq!((answer.status, answer.text().as_str()), (404, "404 page not found"), "the node's own words");
}

/// Sends raw bytes on a connection of their own and reads one answer, if any, and whether the connection ended.
async fn raw(proxy: &Proxy, bytes: &[u8]) -> (Option<Answer>, bool) {
    let mut client = Client::connect(proxy.address).await;
    client.send(bytes).await;
    let answer = client.answer().await;
    let ends = answer.as_ref().is_none_or(|answer| answer.header("connection") == Some("close"));
    let closed = ends && client.is_closed().await;
    (answer, closed)
}

const BODY: &str = r#"{"model":"m","prompt":"x","stream":false,"options":{"num_predict":3}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn framing_that_says_two_things() {
    let (_herd, proxy) = herd().await;
    let post = |headers: &str, body: &str| {
        format!("POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n{body}").into_bytes()
    };
    // Length and chunked: chunked wins, the length is dropped, and nothing can be smuggled behind it.
    let chunked = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    for length in [3, BODY.len(), 10_000] {
        let headers = format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n");
        let (answer, closed) = raw(&proxy, &post(&headers, &chunked)).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(closed, "the connection closes after it");
    }
    // What no server may guess about.
    let bad = [
        post("Content-Length: 3\r\nContent-Length: 5\r\n", BODY),
        post("Content-Length: -1\r\n", BODY),
        post("Content-Length: 1e3\r\n", BODY),
        post("Content-Length: 18446744073709551617\r\n", BODY),
        post("Transfer-Encoding: gzip\r\n", BODY),
        post("Transfer-Encoding: chunked, identity\r\n", BODY),
        post("Bad Header: x\r\n", BODY),
        b"GET /api/tags HTTP/1.1\r\nHost: 127.0.0.1\r\n: x\r\n\r\n".to_vec(),
        b"GET /api/tags HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n".to_vec(),
        b"NONSENSE\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ];
    for bytes in bad {
        let (answer, closed) = raw(&proxy, &bytes).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(answer.is_none_or(|answer| answer.status == 400 || answer.status == 501), "{text}");
        assert!(closed, "{text}");
    }
    let broken = ["zz\r\n{}\r\n0\r\n\r\n", "5\r\n{}\r\n0\r\n\r\n", "fffffffffffffffff\r\n"];
    for body in broken {
        let (answer, closed) = raw(&proxy, &post("Transfer-Encoding: chunked\r\n", body)).await;
        assert!(answer.is_none_or(|answer| answer.status == 400), "{body:?}");
        assert!(closed, "{body:?}");
    }
    // The same, same length twice is harmless.
    let twice = format!("Content-Length: {0}\r\nContent-Length: {0}\r\n", BODY.len());
    let (answer, _) = raw(&proxy, &post(&twice, BODY)).await;
    assert!(matches!(answer.unwrap().status, 200 | 400));
    assert_eq!(client::post_once(proxy.address, "/api/generate", BODY).await.status, 200, "and it lives on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_and_origin_are_checked_before_anything_else() {
    let (_herd, proxy) = herd().await;
    let get = |head: &str| format!("GET /api/tags HTTP/1.1\r\n{head}\r\n").into_bytes();
    for (head, status) in [
        ("Host: 127.0.0.1:12434\r\n", 200),
        ("Host: localhost\r\n", 200),
        ("Host: box.local:80\r\n", 200),
        ("Host: [::1]\r\n", 200),
        ("Host: \r\n", 200),
        ("Host: evil.example\r\n", 403),
        ("Host: 127.0.0.1.evil.example\r\n", 403),
        ("Host: 8.8.8.8\r\n", 403),
        ("Host: 127.0.0.1\r\nOrigin: http://evil.example\r\n", 403),
        ("Host: 127.0.0.1\r\nOrigin: null\r\n", 403),
        ("Host: 127.0.0.1\r\nOrigin: http://localhost.evil.example\r\n", 403),
        ("Host: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n", 200),
        ("Host: 127.0.0.1\r\nOrigin: tauri://x\r\n", 200),
    ] {
        let answer = client::once(proxy.address, &get(head)).await;
        assert_eq!(answer.status, status, "{head}");
        if status == 403 {
            assert!(answer.body.is_empty() && answer.header("content-type").is_none(), "{head}");
        }
    }
    for head in ["", "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n"] {
        let (answer, closed) = raw(&proxy, &get(head)).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status, closed), (400, true), "{head}");
        assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    }
    // A refused Origin never reaches a node, whatever the route.
    let bytes = request("POST", "/api/generate", &[("Origin", "http://evil.example")], BODY.as_bytes());
    assert_eq!(client::once(proxy.address, &bytes).await.status, 403);
    assert_eq!(proxy.shared().meters.sums().endings, [0; 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_is_answered_as_ollama_answers_it() {
    let (herd, proxy) = herd().await;
    let origin = ("Origin", "http://localhost:3000");
    let headers = [origin, ("Access-Control-Request-Method", "POST")];
    let bytes = request("OPTIONS", "/api/chat", &headers, b"");
    let ours = client::once(proxy.address, &bytes).await;
    let theirs = client::once(herd.nodes()[0].address(), &bytes).await;
    assert_eq!((ours.status, theirs.status), (204, 204));
    let visible = |answer: &Answer| {
        let mut headers = answer.headers.clone();
        headers.retain(|(name, _)| name != "date" && !client::OURS.contains(&name.as_str()));
        headers.sort();
        headers
    };
    assert_eq!(visible(&ours), visible(&theirs));
    let labelled = client::once(proxy.address, &request("POST", "/api/generate", &[origin], BODY.as_bytes())).await;
    assert_eq!(labelled.header("access-control-allow-origin"), Some("http://localhost:3000"));
    assert_eq!(labelled.header("vary"), Some("Origin"));
    assert_eq!(labelled.header("access-control-allow-credentials"), None);
    // Errors of ours carry the labels too, else a browser shows nothing of them.
    let missing = r#"{"model":"nope","prompt":"x"}"#;
    let refused = client::once(proxy.address, &request("POST", "/api/generate", &[origin], missing.as_bytes())).await;
    assert_eq!((refused.status, refused.header("vary")), (404, Some("Origin")));
    let bytes = request("OPTIONS", "/api/chat", &[], b"");
    assert_eq!(client::once(proxy.address, &bytes).await.status, 405, "no Origin, and the Host is an address");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expectations() {
    let (_herd, proxy) = herd().await;
    let head = |expect: &str, path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: {expect}\r\nContent-Length: {}\r\n\r\n", BODY.len())
    };
    for expect in ["100-continue", "100-Continue"] {
        let mut client = Client::connect(proxy.address).await;
        client.send(head(expect, "/api/generate").as_bytes()).await;
        assert_eq!(client.interim().await, "HTTP/1.1 100 Continue", "before a byte of the body is sent");
        client.send(BODY.as_bytes()).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    let (answer, closed) = raw(&proxy, head("a-miracle", "/api/generate").as_bytes()).await;
    assert_eq!((answer.unwrap().status, closed), (417, true));
    // An early answer comes without the 100, and closes: the body was never asked for.
    let mut client = Client::connect(proxy.address).await;
    client.send(head("100-continue", "/nope").as_bytes()).await;
    let early = client.interim().await;
    assert!(early.starts_with("HTTP/1.1 404"), "{early}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_and_connections() {
    let (_herd, proxy) = herd().await;
    // 1.0: no chunked framing, streams end by close.
    let stream = BODY.replace("false", "true");
    let bytes = format!("POST /api/generate HTTP/1.0\r\nContent-Length: {}\r\n\r\n{stream}", stream.len());
    let mut client = Client::connect(proxy.address).await;
    client.send(bytes.as_bytes()).await;
    let all = String::from_utf8(client.rest().await).unwrap();
    let (head, body) = all.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200") && !head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    assert!(body.lines().last().unwrap().contains("\"done\":true"), "{body}");
    // Without Host as well, for probes.
    for path in ["/herdgate/live", "/herdgate/ready", "/api/tags"] {
        let mut client = Client::connect(proxy.address).await;
        client.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await;
        assert!(client.rest().await.starts_with(b"HTTP/1.0 200"), "{path}");
    }
    // Close is honoured, keep-alive kept.
    let (_, closed) = raw(&proxy, b"GET /api/tags HTTP/1.1\r\nHost: a.local\r\nConnection: close\r\n\r\n").await;
    assert!(closed);
    // An upgrade nobody offers is ignored.
    let upgrade = request("GET", "/api/version", &[("Connection", "Upgrade"), ("Upgrade", "websocket")], b"");
    assert_eq!(client::once(proxy.address, &upgrade).await.status, 200);
    // The absolute form names the path all the same.
    let (answer, _) = raw(&proxy, b"GET http://127.0.0.1/api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    assert_eq!(answer.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let (_herd, proxy) = herd().await;
    let mut bytes = Vec::new();
    for at in 0..10 {
        let body = BODY.replace(":3}", &format!(":{}}}", at + 1));
        bytes.extend(post("/api/generate", &body));
        bytes.extend(request("GET", "/api/version", &[], b""));
    }
    let mut client = Client::connect(proxy.address).await;
    client.send(&bytes).await;
    for at in 0..10 {
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.json()["eval_count"].as_u64()), (200, Some(at + 1)));
        assert!(client.answer().await.unwrap().text().contains("version"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_silent_clients_are_cut_off() {
    let timeouts = "timeouts: { request_head: 1s, request_body_idle: 1s, client_idle: 2s }";
    let (_herd, proxy) = with(timeouts).await;
    // A head that does not end: 408, and closed.
    let mut head = Client::connect(proxy.address).await;
    head.send(b"POST /api/generate HTTP/1.1\r\nHost: 127.").await;
    // A body that does not go on: 408 in the dialect, and closed.
    let mut bodies = Vec::new();
    for path in ["/api/generate", "/v1/chat/completions", "/v1/messages"] {
        let mut client = Client::connect(proxy.address).await;
        let bytes = format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{{\"model\":");
        client.send(bytes.as_bytes()).await;
        bodies.push(client);
    }
    // Nothing at all, and nothing after an answer.
    let mut silent = Client::connect(proxy.address).await;
    let mut kept = Client::connect(proxy.address).await;
    kept.send(&request("GET", "/api/version", &[], b"")).await;
    assert_eq!(kept.answer().await.unwrap().status, 200);
    let seen = head.rest().await;
    assert!(seen.starts_with(b"HTTP/1.1 408 Request Timeout\r\n"), "{seen:?}");
    for client in &mut bodies {
        let answer = client.answer().await.expect("408, not a bare close");
        assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
        assert!(answer.json()["error"].is_string() || answer.json()["error"]["message"].is_string());
        assert!(client.is_closed().await);
    }
    assert!(silent.is_closed().await && kept.is_closed().await);
    // Drop by drop is slow, not silent: every byte gives it another second.
    let mut drops = Client::connect(proxy.address).await;
    drops
        .send(
            format!("POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n", BODY.len())
                .as_bytes(),
        )
        .await;
    for byte in BODY.as_bytes().chunks(8) {
        drops.send(byte).await;
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    }
    assert_eq!(drops.answer().await.unwrap().status, 200);
    let sums = proxy.shared().meters.sums();
    assert_eq!(sums.endings, [1, 0, 0, 0, 3]);
    let passed = |timeout: Timeout| sums.timeouts[timeout as usize];
    assert_eq!((passed(Timeout::RequestHead), passed(Timeout::RequestBodyIdle)), (1, 3), "which it was is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_inside_its_request_harms_nobody() {
    let (herd, proxy) = herd().await;
    for bytes in [&post("/api/generate", BODY)[..20], &post("/api/generate", BODY)[..100], b"G", b""] {
        for reset in [true, false] {
            let mut client = Client::connect(proxy.address).await;
            client.send(bytes).await;
            if reset {
                client.reset();
            }
        }
    }
    // Half-closed inside the body: no whole request, nothing to answer for a node.
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", BODY)[..100]).await;
    client.half_close().await;
    client.rest().await;
    eventually("all gone", || async { proxy.shared().connections() == 0 }).await;
    assert_eq!(herd.nodes()[0].ledger().model("m:latest").requests.values().sum::<u64>(), 0, "never sent");
    // A half-closed client still gets the cheap answers of Ollama's own kind.
    assert_eq!(client::post_once(proxy.address, "/api/generate", BODY).await.status, 200);
    assert_eq!(proxy.shared().body_bytes.load(herdgate::sync::Ordering::Acquire), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_headers_and_long_lines() {
    let (_herd, proxy) = herd().await;
    let lines: String = (0..90).map(|at| format!("X-{at}: {}\r\n", "v".repeat(200))).collect();
    let bytes = format!("GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n");
    assert_eq!(client::once(proxy.address, bytes.as_bytes()).await.status, 200);
    // More than a hundred: 431 (a deviation; Go has no limit on their number).
    let lines: String = (0..200).map(|at| format!("X-{at}: v\r\n")).collect();
    let bytes = format!("GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n");
    assert_eq!(client::once(proxy.address, bytes.as_bytes()).await.status, 431);
    let target = format!("/api/version?{}", "q".repeat(50_000));
    assert_eq!(client::get(proxy.address, &target).await.status, 200);
}

/// The status line of the answer to raw bytes; empty if the connection was closed without one.
async fn status_line(address: std::net::SocketAddr, bytes: &str) -> String {
    let mut client = Client::connect(address).await;
    let _ = client.try_send(bytes.as_bytes()).await;
    match client.answer().await {
        Some(answer) => answer.status.to_string(),
        None => String::new(),
    }
}

/// Every deviation that `front.rs` lists and that can be provoked from outside, beside what a node answers. One that goes
/// away fails here, and leaves the list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deviations_are_those_listed() {
    let (herd, proxy) = herd().await;
    let many: String = (0..200).map(|at| format!("X-{at}: v\r\n")).collect();
    let big = "v".repeat(100_000);
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n");
    let coded =
        |coding: &str| format!("POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: {coding}\r\n\r\n");
    let cases =
        [(get("/api/version", &many), "431", "200"), (get("/api/version", &format!("X: {big}\r\n")), "431", "200")];
    for (bytes, ours, theirs) in cases {
        let shown = &bytes[..bytes.len().min(80)];
        let seen = (status_line(proxy.address, &bytes).await, status_line(herd.nodes()[0].address(), &bytes).await);
        assert_eq!((seen.0.as_str(), seen.1.as_str()), (ours, theirs), "{shown:?}");
    }
    // The same on both sides, and easily lost.
    for (bytes, status) in [
        ("OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_owned(), "200"),
        (get("/api/%74ags", ""), "200"),
        (get("/%2Fapi/tags", ""), "307"),
        (get("/api/version?a={x}", ""), "200"),
        (get("/api/version?a=<x>", ""), "200"),
        (coded("gzip"), "501"),
        (coded("chunked, identity"), "501"),
        ("GET /api/version HTTP/1.1\nHost: 127.0.0.1\n\n".to_owned(), "200"),
        ("FOO /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_owned(), "405"),
    ] {
        assert_eq!(status_line(proxy.address, &bytes).await, status, "{bytes:?}");
        assert_eq!(status_line(herd.nodes()[0].address(), &bytes).await, status, "{bytes:?} (the node)");
    }
}
