//! OpenAI-compatible nodes beside Ollama ones, and `usage_injection`: exact counts that the client does not notice.

use herdgate::sim::{Herd, ModelSpec, NodeSpec};

use crate::failover::STREAMS;
use crate::support::client::{self, Answer, post, request};
use crate::support::proxy::{Proxy, eventually};

/// An Ollama node with `m` and a llama.cpp server with `llama`.
async fn mixed(extra: &str) -> (Herd, Proxy) {
    let herd = Herd::start(vec![
        NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4),
        NodeSpec::llama_cpp(ModelSpec::chat("llama")).slots(2),
    ])
    .unwrap();
    let urls = herd.urls();
    let nodes = format!("nodes: [ {{ url: '{}' }}, {{ url: '{}/v1', name: cpp }} ]\n{extra}", urls[0], urls[1]);
    let proxy = Proxy::start(&[], &nodes).await;
    proxy.until_listed("m:latest").await;
    let address = proxy.address;
    proxy.until("listed", || async { client::get(address, "/v1/models").await.text().contains("llama") }).await;
    (herd, proxy)
}

/// The model's id as the llama.cpp server lists it.
async fn llama(proxy: &Proxy) -> String {
    let models = client::get(proxy.address, "/v1/models").await.json();
    let ids = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned());
    ids.into_iter().find(|id| id.contains("llama")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_openai_node_serves_v1_and_the_native_routes_name_it() {
    let (herd, proxy) = mixed("").await;
    let llama = llama(&proxy).await;
    // Listings: tags has what the native routes can serve, /v1/models everything.
    let tags = client::get(proxy.address, "/api/tags").await.text();
    assert!(tags.contains("m:latest") && !tags.contains(&llama), "{tags}");
    assert_eq!(client::get(proxy.address, &format!("/v1/models/{llama}")).await.status, 200);

    let body = |rest: &str| format!(r#"{{"model":"{llama}",{rest}}}"#);
    for (path, rest, instead) in [
        ("/api/chat", r#""messages":[{"role":"user","content":"x"}]"#, "/v1/chat/completions"),
        ("/api/generate", r#""prompt":"x""#, "/v1/completions"),
        ("/api/embed", r#""input":"x""#, "/v1/embeddings"),
        ("/api/show", r#""verbose":false"#, "/v1/"),
    ] {
        let answer = client::post_once(proxy.address, path, &body(rest)).await;
        assert_eq!(answer.status, 501, "{path} {}", answer.text());
        assert!(answer.json()["error"].as_str().unwrap().contains(instead), "{path} {}", answer.text());
    }

    // The /v1 routes, streamed and not, byte for byte as the server itself answers.
    let cases = [
        ("/v1/chat/completions", r#""messages":[{"role":"user","content":"x"}],"max_tokens":5"#),
        ("/v1/chat/completions", r#""messages":[{"role":"user","content":"x"}],"max_tokens":5,"stream":true"#),
        (
            "/v1/chat/completions",
            r#""messages":[{"role":"user","content":"x"}],"max_tokens":5,"stream":true,"stream_options":{"include_usage":true}"#,
        ),
        ("/v1/completions", r#""prompt":"x","max_tokens":5"#),
    ];
    for (path, rest) in cases {
        let answer = client::post_once(proxy.address, path, &body(rest)).await;
        let direct = client::post_once(herd.nodes()[1].address(), path, &body(rest)).await;
        assert_eq!(answer.status, 200, "{path} {}", answer.text());
        assert_eq!(answer.header("content-type"), direct.header("content-type"));
        assert_eq!(shape(&answer), shape(&direct), "{path} {rest}");
    }
    proxy.flush().await;
    let sums = proxy.shared().meters.sums();
    assert_eq!(sums.exact.output, 5 * cases.len() as u64, "counted from usage or timings");
    assert_eq!(sums.estimated.output, 0);
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

/// The keys of each event (or of the one object), which do not change from run to run as ids and times do.
fn shape(answer: &Answer) -> Vec<String> {
    let keys = |value: &serde_json::Value| {
        let object = value.as_object().unwrap();
        let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys.join(",")
    };
    if answer.header("content-type").unwrap().contains("event-stream") {
        let done = answer.text().trim_end().ends_with("data: [DONE]");
        let mut all: Vec<String> = answer.events().iter().map(keys).collect();
        all.push(done.to_string());
        all
    } else {
        vec![keys(&answer.json())]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_keys_are_refused_only_where_the_node_reads_them_otherwise() {
    let (herd, proxy) = mixed("").await;
    let llama = llama(&proxy).await;
    let odd = |model: &str| format!(r#"{{"Model":"{model}","messages":[{{"role":"user","content":"x"}}]}}"#);
    let before = herd.nodes()[1].ledger().route("/v1/chat/completions");
    let refused = client::post_once(proxy.address, "/v1/chat/completions", &odd(&llama)).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert_eq!(refused.json()["error"]["type"], "invalid_request_error");
    assert_eq!(herd.nodes()[1].ledger().route("/v1/chat/completions"), before);
    let served = client::post_once(proxy.address, "/v1/chat/completions", &odd("m")).await;
    assert_eq!(served.status, 200, "{}", served.text());
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

/// A chat stream's bytes without what differs from run to run.
fn blanked(answer: &Answer) -> String {
    let text = answer.text();
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        match line.trim_end().strip_prefix("data: ").and_then(|data| serde_json::from_str(data).ok()) {
            Some(serde_json::Value::Object(mut object)) => {
                object.insert("id".into(), "x".into());
                object.insert("created".into(), 0.into());
                out += &format!("data: {}\n", serde_json::Value::Object(object));
            }
            _ => out += line,
        }
    }
    out
}

const CHAT: [(&str, bool); 4] = [
    (r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":9}"#, false),
    (r#"{"stream" : true,"max_tokens":9,"messages":[{"role":"user","content":"hi"}], "model":"m"}"#, false),
    (
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":9,"stream_options":{"include_usage":false}}"#,
        false,
    ),
    (
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":9,"stream_options":{"include_usage":true}}"#,
        true,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_injection_counts_exactly_and_the_client_sees_what_it_would_see_without() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls()[..1], "").await;
    proxy.until_listed("m:latest").await;
    for (body, has_usage) in CHAT {
        // The other node is a twin that the proxy does not know: what a client sees without a proxy.
        let through = client::post_once(proxy.address, "/v1/chat/completions", body).await;
        let direct = client::post_once(herd.nodes()[1].address(), "/v1/chat/completions", body).await;
        assert_eq!(through.status, 200, "{}", through.text());
        assert_eq!(blanked(&through), blanked(&direct), "{body}");
        assert_eq!(through.text().contains("\"usage\":{"), has_usage, "{body}");
        assert_eq!(through.header("content-type"), direct.header("content-type"));
    }
    let sums = proxy.shared().meters.sums();
    assert_eq!(sums.exact.output, herd.nodes()[0].ledger().tokens().output);
    assert_eq!(sums.exact.input, herd.nodes()[0].ledger().tokens().prompt);
    assert_eq!((sums.exact.output, sums.estimated.output), (9 * CHAT.len() as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_injection_streams_are_estimated_and_marked_so() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "ledger: { usage_injection: off }").await;
    proxy.until_listed("m:latest").await;
    let (body, _) = CHAT[0];
    let answer = client::post_once(proxy.address, "/v1/chat/completions", body).await;
    assert_eq!(answer.status, 200);
    let sums = proxy.shared().meters.sums();
    assert_eq!(sums.exact.output, 0, "nothing exact is known");
    assert!(sums.estimated.output > 0 && sums.estimated.input > 0, "never zero for unknown");
    // Where the client asked, the count is exact all the same.
    let (body, _) = CHAT[3];
    assert_eq!(client::post_once(proxy.address, "/v1/chat/completions", body).await.status, 200);
    assert_eq!(proxy.shared().meters.sums().exact.output, 9);
    proxy.flush().await;
    let metrics = client::get(proxy.address, "/metrics").await.text();
    assert!(metrics.lines().any(|line| line.starts_with("herdgate_tokens_estimated_total") && !line.ends_with(" 0")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialect_is_counted_exactly_streamed_or_not() {
    let models = vec![ModelSpec::chat("m"), ModelSpec::embedding("e")];
    let herd = Herd::start(vec![NodeSpec::ollama(models).slots(4)]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("e:latest").await;
    let whole = STREAMS.map(|(path, body)| {
        let body = match path {
            "/api/generate" | "/api/chat" => body.replacen('{', r#"{"stream":false,"#, 1),
            _ => body.replace(r#""stream":true,"#, ""),
        };
        (path, body)
    });
    let streams = STREAMS.map(|(path, body)| (path, body.to_owned()));
    let embeds = [
        ("/api/embed", r#"{"model":"e","input":["one","two three"]}"#.to_owned()),
        ("/v1/embeddings", r#"{"model":"e","input":"one two"}"#.to_owned()),
    ];
    let (mut exact, mut estimated) = (0, Vec::new());
    for (path, body) in whole.into_iter().chain(streams).chain(embeds) {
        let before = (proxy.shared().meters.sums(), herd.nodes()[0].ledger().tokens());
        let answer = client::once(proxy.address, &post(path, &body)).await;
        assert_eq!(answer.status, 200, "{path} {}", answer.text());
        let after = (proxy.shared().meters.sums(), herd.nodes()[0].ledger().tokens());
        if after.0.estimated != before.0.estimated {
            estimated.push(path);
            continue;
        }
        exact += 1;
        let ours = (after.0.exact.input - before.0.exact.input, after.0.exact.output - before.0.exact.output);
        let theirs = (after.1.prompt - before.1.prompt, after.1.output - before.1.output);
        assert_eq!(ours, theirs, "{path} {body}");
    }
    // Ollama's completions say their usage in a stream only when asked, and are not asked on anybody's behalf.
    assert_eq!(estimated, ["/v1/completions"]);
    assert_eq!(exact, 13);
    let bytes = request("POST", "/v1/chat/completions", &[("Content-Encoding", "zstd")], b"\x28\xb5\x2f\xfd broken");
    assert_eq!(client::once(proxy.address, &bytes).await.status, 400, "worded by the node");
}
