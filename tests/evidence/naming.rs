//! What requests are called, and what answers say of where they went.

use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};

use crate::support::client::{Answer, Client, once, post, post_once, request};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{Act, After, Scripted, answer};
use crate::{CHAT, MODEL, herd};

fn id(answer: &Answer) -> &str {
    answer.header("x-request-id").unwrap_or_else(|| panic!("no id in {:?}", answer.headers))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_id_goes_to_the_node_and_back_a_bad_one_is_replaced() {
    let node =
        Scripted::start(&["m:latest"], |_| answer("200 OK", "application/json\r\nX-Request-Id: nodes-own", b"{}"));
    let proxy = Proxy::start(&[format!("http://{}", node.address)], "").await;
    proxy.until_listed("m:latest").await;
    let body = br#"{"model":"m","prompt":"x","stream":false}"#;
    let mut seen = Vec::new();
    let long = "x".repeat(64);
    for (sent, kept) in [
        (Some("3f2504e0-4f89-11d3-9a0c-0305e82c3301"), true),
        (Some("two words"), false),
        (Some("quo\"te"), false),
        (Some(long.as_str()), false),
        (None, false),
    ] {
        let headers: Vec<_> = sent.map(|sent| ("X-Request-ID", sent)).into_iter().collect();
        let answer = once(proxy.address, &request("POST", "/api/generate", &headers, body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let ids: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "x-request-id").collect();
        assert_eq!(ids.len(), 1, "the node's own name for it is not passed on: {ids:?}");
        let asked = node.next().await;
        assert_eq!(asked.header("x-request-id"), Some(id(&answer)));
        assert_eq!(asked.head.to_ascii_lowercase().matches("x-request-id").count(), 1, "{}", asked.head);
        assert_eq!(sent == Some(id(&answer)), kept);
        seen.push(id(&answer).to_owned());
    }
    assert!(seen[1..].iter().all(|id| id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit())), "{seen:?}");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5, "no two requests have one id");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_administers_models_reaches_every_node_under_the_clients_id() {
    let success = || answer("200 OK", "application/x-ndjson", b"{\"status\":\"success\"}\n");
    let start = || {
        Scripted::start(&["m:latest"], move |asked| match (asked.method(), asked.target()) {
            ("HEAD", _) => answer("404 Not Found", "text/plain", b""),
            (_, "/api/pull" | "/api/push" | "/api/create") => success(),
            (_, path) if path.starts_with("/api/blobs/") => answer("201 Created", "text/plain", b""),
            _ => answer("200 OK", "application/json", b"{}"),
        })
    };
    let nodes = [start(), start()];
    let proxy = Proxy::start(&nodes.each_ref().map(Scripted::url), "administration: open").await;
    eventually("listed on both", || async {
        proxy
            .shared()
            .fleet
            .load()
            .models
            .get(&herdgate::dialect::name::key("m"))
            .is_some_and(|model| model.candidates.len() == 2)
    })
    .await;
    let blob = format!("/api/blobs/sha256:{}", "0".repeat(64));
    let orders = [
        ("POST", "/api/pull", r#"{"model":"new"}"#, 2),
        ("POST", "/api/create", r#"{"model":"made","from":"m"}"#, 2),
        ("POST", "/api/copy", r#"{"source":"m","destination":"n"}"#, 2),
        ("POST", "/api/push", r#"{"model":"m"}"#, 1),
        ("POST", &blob, "bytes", 4),
        ("POST", "/api/generate", r#"{"model":"m","keep_alive":0}"#, 2),
        ("DELETE", "/api/delete", r#"{"model":"m"}"#, 2),
    ];
    for (at, (method, path, body, asked)) in orders.into_iter().enumerate() {
        let sent = format!("order-{at}");
        let answer = once(proxy.address, &request(method, path, &[("X-Request-Id", &sent)], body.as_bytes())).await;
        assert!(answer.status / 100 == 2, "{path}: {}", answer.text());
        let mut seen = 0;
        while seen < asked {
            let asked = tokio::select! { asked = nodes[0].next() => asked, asked = nodes[1].next() => asked };
            assert_eq!(asked.header("x-request-id"), Some(&*sent), "{}", asked.head);
            seen += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_an_id_from_either_front() {
    let (_herd, proxy) = herd(1, "").await;
    for path in ["/", "/api/tags", "/health", "/metrics", "/herdgate/live", "/nope"] {
        let answer = once(proxy.address, &request("GET", path, &[("x-request-id", "mine")], b"")).await;
        assert_eq!(id(&answer), "mine", "{path}");
        assert_eq!(answer.header("x-herdgate-reason"), None, "nothing was decided: {path}");
    }
    // hyper's side of the front.
    let body = CHAT.len();
    let old = format!(
        "POST /api/chat HTTP/1.0\r\nX-Request-Id: old\r\nHost: 127.0.0.1\r\nContent-Length: {body}\r\n\r\n{CHAT}"
    );
    let answer = once(proxy.address, old.as_bytes()).await;
    assert_eq!((answer.status, id(&answer)), (200, "old"));
    assert_eq!(answer.header("x-herdgate-reason"), Some("cold"));
    // Several on one connection, each its own.
    let mut client = Client::connect(proxy.address).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        client.send(&post("/api/chat", CHAT)).await;
        ids.push(id(&client.answer().await.unwrap()).to_owned());
    }
    assert!(ids[0] < ids[1] && ids[1] < ids[2], "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_name_their_node_and_the_reason() {
    let (herd, proxy) = herd(2, "").await;
    let first = post_once(proxy.address, "/api/chat", CHAT).await;
    assert_eq!(first.header("x-herdgate-reason"), Some("cold"));
    let loader = first.header("x-herdgate-node").unwrap().to_owned();
    assert!(herd.urls().contains(&loader), "{loader}");
    let second = post_once(proxy.address, "/api/chat", CHAT).await;
    assert_eq!(second.header("x-herdgate-reason"), Some("loaded"));
    assert_eq!(second.header("x-herdgate-node"), Some(&*loader));
    let show = post_once(proxy.address, "/api/show", r#"{"model":"llama3"}"#).await;
    assert_eq!((show.status, show.header("x-herdgate-reason")), (200, Some("details")));
    let unknown = post_once(proxy.address, "/api/chat", r#"{"model":"nope"}"#).await;
    assert_eq!((unknown.status, unknown.header("x-herdgate-reason")), (404, Some("unknown_model")));
    assert_eq!(unknown.header("x-herdgate-node"), None);
    let broken = post_once(proxy.address, "/api/chat", "{").await;
    assert_eq!(broken.header("x-herdgate-reason"), Some("any_node"));
    assert!(broken.header("x-herdgate-node").is_some(), "it worded the error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_told_and_names_the_node_that_answered() {
    let (herd, proxy) = herd(2, "").await;
    let loader = post_once(proxy.address, "/api/chat", CHAT).await.header("x-herdgate-node").unwrap().to_owned();
    let sick = herd.nodes().iter().find(|node| node.url() == loader).unwrap();
    sick.fault(Fault::new(Harm::Status(503, "busy".into())));
    let answer = post_once(proxy.address, "/api/chat", CHAT).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let other = herd.urls().into_iter().find(|url| *url != loader).unwrap();
    assert_eq!(answer.header("x-herdgate-node"), Some(&*other));
    assert_eq!(answer.header("x-herdgate-reason"), Some("cold; retries=1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_was_kept_names_the_node_whose_words_it_is() {
    let (order, asked) = flume::bounded(64);
    let noted = order.clone();
    let says = Scripted::start(&["m:latest"], move |_| {
        noted.send("says").unwrap();
        answer("503 Service Unavailable", "application/json", br#"{"error":"busy"}"#)
    });
    let breaks = Scripted::start(&["m:latest"], move |_| {
        order.send("breaks").unwrap();
        Act::Bytes(Vec::new(), After::Close)
    });
    let named = |name: &str, node: &Scripted| format!("{{ name: {name}, url: '{}' }}", node.url());
    let nodes = format!("nodes: [ {}, {} ]", named("says", &says), named("breaks", &breaks));
    let proxy = Proxy::start(&[], &format!("{nodes}\nrouting: {{ retry_floor: 1000 }}")).await;
    eventually("both serve", || async { proxy.loaded("m") == 2 }).await;
    // Ties rotate: sooner or later the one that says nothing is tried last.
    for _ in 0..100 {
        let answer = post_once(proxy.address, "/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#).await;
        assert_eq!((answer.status, answer.text().as_str()), (503, r#"{"error":"busy"}"#));
        assert_eq!(answer.header("x-herdgate-node"), Some("says"), "whichever was tried last");
        assert_eq!(answer.header("x-herdgate-reason"), Some("loaded; retries=1"));
        let path = format!("/herdgate/decisions?id={}", id(&answer));
        let decision = once(proxy.address, &request("GET", &path, &[], b"")).await.json()["decisions"][0].clone();
        assert_eq!(decision["node"], "says", "{decision}");
        if asked.drain().next() == Some("says") {
            return;
        }
    }
    panic!("ties do not rotate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_off_leaves_the_id_alone() {
    let (_herd, proxy) = herd(1, "headers: off").await;
    let answer = post_once(proxy.address, "/api/chat", CHAT).await;
    assert_eq!((answer.header("x-herdgate-node"), answer.header("x-herdgate-reason")), (None, None));
    assert_eq!(id(&answer).len(), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_at_the_door_says_why() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat(MODEL)])]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "router_keys: [ { name: k, key: sesame } ]").await;
    let answer = post_once(proxy.address, "/api/chat", CHAT).await;
    assert_eq!((answer.status, answer.header("x-herdgate-reason")), (401, Some("forbidden")));
    assert_eq!(id(&answer).len(), 24);
    let opened = request("POST", "/api/chat", &[("Authorization", "Bearer sesame")], CHAT.as_bytes());
    eventually("it is open to the key", || async { once(proxy.address, &opened).await.status == 200 }).await;
    assert_eq!(proxy.loaded(MODEL), 1);
}
