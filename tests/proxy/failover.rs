//! I6: another node is tried before the first byte, where the failure is the node's; after it the client is told.

use herdgate::sim::{Fault, Harm, Herd, ModelSpec, Node, NodeSpec};

use crate::support::client::{self, Answer, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{self, After, Scripted, Step, chunk, chunked_head};

/// Streams of every dialect.
pub(crate) const STREAMS: [(&str, &str); 6] = [
    ("/api/generate", r#"{"model":"m","prompt":"go on","options":{"num_predict":40}}"#),
    ("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"options":{"num_predict":40}}"#),
    (
        "/v1/chat/completions",
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":40}"#,
    ),
    ("/v1/completions", r#"{"model":"m","prompt":"once","stream":true,"max_tokens":40}"#),
    ("/v1/responses", r#"{"model":"m","input":"hi","stream":true,"max_output_tokens":40}"#),
    ("/v1/messages", r#"{"max_tokens":40,"stream":true,"messages":[{"role":"user","content":"hi"}],"model":"m"}"#),
];

/// Inference requests that reached the nodes. A failed one is counted when the node is done with it, a little later than
/// its client may know.
async fn reached(nodes: &[Node]) -> u64 {
    eventually("the nodes are done", || async {
        nodes.iter().all(|node| node.ledger().models.values().all(|model| model.in_flight == 0))
    })
    .await;
    let of = |node: &Node| node.ledger().models.values().flat_map(|model| model.requests.values()).sum::<u64>();
    nodes.iter().map(of).sum()
}

/// Loads `m` on these nodes and waits until the proxy knows.
async fn load(proxy: &Proxy, nodes: &[Node]) {
    for node in nodes {
        let answer = client::post_once(node.address(), "/api/generate", r#"{"model":"m"}"#).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let count = nodes.len();
    eventually("loaded everywhere", || async { proxy.loaded("m") == count }).await;
}

/// The stream ended cleanly, with the error of its dialect and without its end mark.
fn assert_told(path: &str, answer: &Answer) {
    let text = answer.text();
    assert!(answer.whole, "{path}: the body must end cleanly: {text}");
    assert_eq!(answer.status, 200);
    for end in ["\"done\":true", "[DONE]", "message_stop", "response.completed"] {
        assert!(!text.contains(end), "{path} claims to be complete: {text}");
    }
    let last = || serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap();
    let data = || {
        let line = text.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
        serde_json::from_str::<serde_json::Value>(line).unwrap()
    };
    let event = || text.lines().rev().find_map(|line| line.strip_prefix("event: ")).unwrap().to_owned();
    match path {
        "/api/generate" | "/api/chat" => {
            assert!(last()["error"].is_string(), "{text}");
        }
        "/v1/chat/completions" | "/v1/completions" => {
            let error = data()["error"].clone();
            assert!(error["message"].is_string() && error["type"] == "api_error", "{text}");
            assert!(text.ends_with("\n\n"));
        }
        "/v1/responses" => {
            assert_eq!(event(), "response.failed");
            let data = data();
            assert_eq!((&data["type"], &data["response"]["status"]), (&"response.failed".into(), &"failed".into()));
            assert!(data["response"]["error"]["message"].is_string(), "{text}");
            // Numbered on from the last whole event.
            let numbers = text.lines().filter_map(|line| line.strip_prefix("data: "));
            let numbers: Vec<u64> = numbers
                .filter_map(|data| serde_json::from_str::<serde_json::Value>(data).ok()?["sequence_number"].as_u64())
                .collect();
            let expected: Vec<u64> = (0..numbers.len() as u64).collect();
            assert_eq!(numbers, expected, "{text}");
        }
        _ => {
            assert_eq!(event(), "error");
            assert_eq!((&data()["type"], &data()["error"]["type"]), (&"error".into(), &"api_error".into()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_a_node_lost_in_mid_stream_is_told_in_every_dialect_and_nobody_else_is_asked() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    load(&proxy, herd.nodes()).await;
    let (mut asked, before) = (0, reached(herd.nodes()).await);
    for (path, body) in STREAMS {
        for (at, reset) in [(400, false), (1103, true), (1500, false)] {
            for node in herd.nodes() {
                node.clear_faults();
                node.fault(Fault::new(Harm::Cut { at, reset }));
            }
            let answer = client::post_once(proxy.address, path, body).await;
            assert_told(path, &answer);
            asked += 1;
            assert_eq!(reached(herd.nodes()).await - before, asked, "a retry after the first byte ({path})");
        }
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    // Every one of them is a node error after the first byte, with an estimate of what came.
    let sums = proxy.shared().meters.sums();
    assert_eq!(sums.endings, [0, 0, 0, asked, 0]);
    assert_eq!(sums.exact.output, 0);
    assert!(sums.estimated.output > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_a_node_lost_between_two_events_is_told_at_once() {
    let (pace, act) = scripted::paced();
    let mut act = Some(act);
    let node = Scripted::start(&["m:latest"], move |_| act.take().expect("asked once"));
    let proxy = Proxy::start(&[node.url()], "").await;
    proxy.until_listed("m:latest").await;
    let mut client = client::Client::connect(proxy.address).await;
    client.send(&post("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#)).await;
    let line = b"{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"a\"},\"done\":false}\n";
    pace.send(Step::Send([chunked_head("application/x-ndjson"), chunk(line)].concat())).unwrap();
    assert_eq!(client.begin().await.unwrap().status, 200);
    assert_eq!(client.chunk().await.as_deref(), Some(&line[..]), "the line passes before the node is lost");
    pace.send(Step::After(After::Reset)).unwrap();
    let told = client.chunk().await.expect("an error line");
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert!(told["error"].is_string());
    assert_eq!(client.chunk().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_before_the_first_byte_another_node_answers() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    let harms = [
        Harm::Refuse,
        Harm::Reset,
        Harm::Close,
        Harm::Garbage,
        Harm::Busy,
        Harm::Status(502, "bad gateway".into()),
        Harm::Status(504, "gateway time-out".into()),
        Harm::Status(500, "llama runner process has terminated: exit status 2".into()),
        Harm::Status(500, "CUDA error: out of memory".into()),
        Harm::Cut { at: 20, reset: true },
    ];
    for harm in harms {
        let herd = Herd::start(vec![spec(), spec()]).unwrap();
        // Polls so rare that the data path has to find out by itself.
        let health = "health: { probe: 60s, probe_timeout: 60s, backoff_max: 60s, ps: 200ms, tags: 60s }";
        let proxy = Proxy::start(&herd.urls(), health).await;
        proxy.until_listed("m:latest").await;
        load(&proxy, herd.nodes()).await;
        let before = reached(&herd.nodes()[..1]).await;
        herd.nodes()[0].fault(Fault::new(harm.clone()));
        for (path, body) in STREAMS {
            let answer = client::post_once(proxy.address, path, body).await;
            assert_eq!(answer.status, 200, "{harm:?} {path} {}", answer.text());
            assert!(answer.whole && !answer.text().contains("\"error\":{"), "{harm:?} {path}");
        }
        let sums = proxy.shared().meters.sums();
        assert_eq!(sums.endings, [STREAMS.len() as u64, 0, 0, 0, 0], "{harm:?}");
        if harm != Harm::Refuse {
            assert!(reached(&herd.nodes()[..1]).await > before, "{harm:?}: the faulty node was never asked");
        }
        eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_a_clients_own_error_is_passed_through_at_once_and_the_node_stays() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    load(&proxy, herd.nodes()).await;
    let before = reached(herd.nodes()).await;
    let cases = [
        (500, r#"{"model":"m","messages":[],"options":{"temperature":"hot"}}"#, "option"),
        (500, r#"{"model":"m","messages":[{"role":"user","content":"x"}],"format":"xml"}"#, "invalid format"),
        (400, r#"{"model":"m","messages":[],"keep_alive":"abc"}"#, "invalid duration"),
        (400, r#"{"model":"m","stream":"yes","messages":[]}"#, "cannot unmarshal"),
    ];
    for (asked, (status, body, text)) in cases.into_iter().enumerate() {
        let direct = client::post_once(herd.nodes()[1].address(), "/api/chat", body).await;
        let answer = client::post_once(proxy.address, "/api/chat", body).await;
        assert_eq!((answer.status, answer.text()), (status, direct.text()), "as the node words it");
        assert!(answer.text().contains(text), "{}", answer.text());
        assert!(reached(herd.nodes()).await - before <= 2 * (asked as u64 + 1), "passed through after one attempt");
    }
    let snapshot = proxy.shared().fleet.load();
    assert!(snapshot.nodes.iter().all(|node| node.word.is_open()));
}

/// Five nodes that all fail in the same way, and how many of them one request reaches.
async fn attempts_when_all_fail(harm: Harm, path: &str, body: &str) -> (Answer, u64) {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    let herd = Herd::start(vec![spec(), spec(), spec(), spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    load(&proxy, herd.nodes()).await;
    let before = reached(herd.nodes()).await;
    for node in herd.nodes() {
        node.fault(Fault::new(harm.clone()));
    }
    let answer = client::post_once(proxy.address, path, body).await;
    (answer, reached(herd.nodes()).await - before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_at_most_three_nodes_and_one_further_once_the_request_was_sent_whole() {
    let (path, body) = STREAMS[1];
    let (answer, attempts) = attempts_when_all_fail(Harm::Busy, path, body).await;
    assert_eq!((answer.status, attempts), (503, 3), "{}", answer.text());
    assert!(answer.text().contains("server busy"), "the node's own words: {}", answer.text());
    let seconds: u32 = answer.header("retry-after").expect("Retry-After on every 503").parse().unwrap();
    assert!((1..=30).contains(&seconds));
    for harm in [Harm::Reset, Harm::Close, Harm::Garbage] {
        let (answer, attempts) = attempts_when_all_fail(harm.clone(), path, body).await;
        assert_eq!((answer.status, attempts), (503, 2), "{harm:?} {}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    let harm = Harm::Status(500, "llama runner process has terminated: exit status 2".into());
    let (answer, attempts) = attempts_when_all_fail(harm, path, body).await;
    assert_eq!((answer.status, attempts), (500, 2), "the node's own answer: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_when_no_node_answers_the_503_is_in_the_dialect_of_the_route() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    herd.nodes()[0].fault(Fault::new(Harm::Reset));
    for (path, body) in STREAMS {
        let answer = client::post_once(proxy.address, path, body).await;
        assert_eq!(answer.status, 503, "{path}");
        assert_busy_shape(path, &answer);
    }
    assert_eq!(proxy.shared().meters.sums().endings, [0, 0, STREAMS.len() as u64, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_a_request_that_names_no_model_goes_to_one_node_and_costs_no_retry() {
    let words = br#"{"error":"model '' not found"}"#;
    let node = || Scripted::start(&["m:latest"], |_| scripted::answer("404 Not Found", "application/json", words));
    let nodes = [node(), node(), node()];
    let urls: Vec<String> = nodes.iter().map(Scripted::url).collect();
    let proxy = Proxy::start(&urls, "").await;
    proxy.until_listed("m:latest").await;
    for path in ["/api/generate", "/api/embed", "/v1/completions", "/v1/embeddings"] {
        for _ in 0..5 {
            assert_eq!(client::post_once(proxy.address, path, r#"{"prompt":"x"}"#).await.status, 404, "{path}");
        }
    }
    assert_eq!(nodes.iter().map(Scripted::untaken).sum::<usize>(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_an_answer_that_breaks_off_where_no_words_exist_does_not_end_cleanly() {
    let node = Scripted::start(&["m:latest"], |_| {
        let mut bytes = chunked_head("application/json");
        bytes.extend(chunk(br#"{"half":"#));
        scripted::Act::Bytes(bytes, After::Close)
    });
    let proxy = Proxy::start(&[node.url()], "").await;
    proxy.until_listed("m:latest").await;
    for path in ["/api/future", "/v1/chat/completions"] {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
        let answer = client::post_once(proxy.address, path, body).await;
        assert!(!answer.whole, "{path}: {}", answer.text());
    }
}

/// A 503 of ours: `Retry-After`, type and shape of the dialect.
pub(crate) fn assert_busy_shape(path: &str, answer: &Answer) {
    let seconds: u32 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    let json = answer.json();
    if path.starts_with("/api/") {
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        assert!(json["error"].is_string(), "{json}");
    } else if path == "/v1/messages" {
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!((&json["type"], &json["error"]["type"]), (&"error".into(), &"overloaded_error".into()), "{json}");
        assert!(json["request_id"].as_str().unwrap().starts_with("req_"), "{json}");
    } else {
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(json["error"]["type"], "api_error", "{json}");
        assert!(json["error"]["param"].is_null() && json["error"]["code"].is_null(), "{json}");
        assert!(json["error"]["message"].is_string(), "{json}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_retries_are_no_more_than_their_budget() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let budget = "workers: 1\nrouting: { retry_share: 1, retry_floor: 3 }";
    let proxy = Proxy::start(&herd.urls(), budget).await;
    proxy.until_listed("m:latest").await;
    load(&proxy, herd.nodes()).await;
    let before = reached(herd.nodes()).await;
    herd.nodes().iter().for_each(|node| node.fault(Fault::new(Harm::Reset)));
    for _ in 0..50 {
        let answer = client::post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x"}"#).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    // One further node each would be a hundred; three in ten seconds are allowed, however slow the machine.
    let tries = reached(herd.nodes()).await - before;
    assert!((53..80).contains(&tries), "{tries}");
}
