//! Nodes that die, fall mute, or come back without what they had; and our own restart meanwhile.

use herdgate::clock::Clock;
use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{self, Scripted, Step};

const GENERATE: &str = "/api/generate";
const BODY: &str = r#"{"model":"m","prompt":"x"}"#;

fn spec() -> NodeSpec {
    NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8)
}

/// How many nodes are up, as the proxy knows it.
fn up(proxy: &Proxy) -> usize {
    proxy.shared().fleet.load().nodes.iter().filter(|node| node.up).count()
}

/// Two of four: each request finds one of the others within its three attempts, before anybody has noticed. (Of a larger
/// fleet's half, the first requests may meet three dead nodes, and read 503 with `Retry-After`.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_the_fleet_dead_costs_no_request() {
    let herd = Herd::start((0..4).map(|_| spec()).collect()).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    eventually("all up", || async { up(&proxy) == 4 }).await;
    for node in herd.nodes() {
        assert_eq!(client::post_once(node.address(), GENERATE, r#"{"model":"m"}"#).await.status, 200);
    }
    eventually("all loaded", || async { proxy.loaded("m") == 4 }).await;
    herd.nodes()[..2].iter().for_each(herdgate::sim::Node::kill);
    // From the very first request on, before any probe has noticed, and after all have.
    for round in 0..2 {
        for at in 0..30 {
            let answer = client::post_once(proxy.address, GENERATE, BODY).await;
            assert!(answer.status == 200 && answer.whole, "{round} {at}: {}", answer.text());
        }
        eventually("two are up", || async { up(&proxy) == 2 }).await;
    }
    let health = client::get(proxy.address, "/health").await;
    assert_eq!(health.status, 200);
    assert_eq!(health.text().matches(r#""status":"error""#).count(), 2, "{}", health.text());
    assert_eq!(proxy.shared().meters.sums().endings[0], 60);
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_die_under_load_end_only_what_streams_on_them() {
    let herd = Herd::start((0..4).map(|_| spec()).collect()).unwrap();
    let proxy = Proxy::start(&herd.urls(), "slots: soft 4").await;
    eventually("all up", || async { up(&proxy) == 4 }).await;
    for node in herd.nodes() {
        assert_eq!(client::post_once(node.address(), GENERATE, r#"{"model":"m"}"#).await.status, 200);
    }
    eventually("all loaded", || async { proxy.loaded("m") == 4 }).await;
    let endless = r#"{"model":"m","prompt":"x","sim":{"tokens":100000,"pace_ms":20}}"#;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post(GENERATE, endless)).await;
        assert_eq!(client.begin().await.unwrap().status, 200);
        assert!(client.chunk().await.is_some());
        streams.push(client);
    }
    let running = |at: usize| herd.nodes()[at].ledger().in_flight();
    assert_eq!((0..4).map(running).collect::<Vec<_>>(), [2, 2, 2, 2], "spread evenly");
    herd.nodes()[..2].iter().for_each(herdgate::sim::Node::kill);
    eventually("four streams are over", || async { proxy.in_flight() == 4 }).await;
    // The other four go on; those that ended said so in words.
    let mut words = 0;
    for client in &mut streams {
        let mut last = client.chunk().await.expect("it goes on, or ends in words");
        let mut read = 0;
        while read < 3 && !String::from_utf8_lossy(&last).contains("\"error\"") {
            let Some(next) = client.chunk().await else { break };
            (last, read) = (next, read + 1);
        }
        words += usize::from(String::from_utf8_lossy(&last).contains("\"error\""));
    }
    let after = proxy.shared().meters.sums().endings;
    assert_eq!(after[3], 4, "node lost after the first byte: {after:?}");
    assert!(words <= 4, "{words}");
    for client in streams {
        client.reset();
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_mute_at_ps_serves_and_streams() {
    let herd = Herd::start(vec![spec()]).unwrap();
    let health = "health: { probe: 50ms, probe_timeout: 2s, backoff_max: 200ms, ps: 50ms, tags: 100ms, \
                  stale_residency: 1s }";
    let proxy = Proxy::start(&herd.urls(), health).await;
    proxy.until_listed("m:latest").await;
    assert_eq!(client::post_once(proxy.address, GENERATE, BODY).await.status, 200);
    herd.nodes()[0].fault(Fault::new(Harm::Hang).for_path("/api/ps"));
    // Until what ps said last is too old to be believed; our own knowledge decides then.
    let ps = || async { client::get(proxy.address, "/api/ps").await.text() };
    eventually("its residency is unknown", || async { !ps().await.contains("m:latest") }).await;
    for stream in [true, false] {
        for _ in 0..10 {
            let body = format!(r#"{{"model":"m","prompt":"x","stream":{stream},"sim":{{"tokens":5}}}}"#);
            let answer = client::post_once(proxy.address, GENERATE, &body).await;
            assert!(answer.status == 200 && answer.whole, "{}", answer.text());
        }
    }
    assert_eq!(up(&proxy), 1, "silence at ps is no sign of death");
    assert_eq!(herd.nodes()[0].ledger().model("m:latest").loads, 1, "and no reason to load again");
}

/// A node whose disk was not mounted comes back with nothing. Clients pull on a 404: fifty gigabytes each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_back_with_empty_tags_is_503_and_named() {
    for seen_down in [true, false] {
        let models = || vec![ModelSpec::chat("m"), ModelSpec::chat("other"), ModelSpec::chat("third")];
        let herd = Herd::start(vec![NodeSpec::ollama(models()).slots(4)]).unwrap();
        let proxy = Proxy::start(&herd.urls(), "").await;
        proxy.until_listed("third:latest").await;
        let node = &herd.nodes()[0];
        if seen_down {
            node.kill();
            eventually("down", || async { up(&proxy) == 0 }).await;
        }
        // Or it is so quick that no probe misses it.
        node.fault(Fault::new(Harm::EmptyLists));
        for model in models() {
            node.remove_model(&model.name);
        }
        if seen_down {
            node.restart();
        }
        let health = || async { client::get(proxy.address, "/health").await.text() };
        eventually("named", || async { health().await.contains("inventory_shrunk: it had 3 models and has 0") }).await;
        let metrics = client::get(proxy.address, "/metrics").await.text();
        let gauge = metrics.lines().find(|line| line.contains(r#"kind="inventory_shrunk""#)).unwrap();
        assert!(gauge.starts_with("herdgate_node_sick{") && gauge.ends_with(" 1"), "{gauge}");
        for model in models() {
            let body = format!(r#"{{"model":"{}","prompt":"x"}}"#, model.name);
            let answer = client::post_once(proxy.address, GENERATE, &body).await;
            assert_eq!(answer.status, 503, "{seen_down}: {}", answer.text());
            assert!(answer.header("retry-after").is_some());
        }
        let never = client::post_once(proxy.address, GENERATE, r#"{"model":"never-seen","prompt":"x"}"#).await;
        assert_eq!(never.status, 404, "{}", never.text());
        // The disk is mounted.
        node.clear_faults();
        models().into_iter().for_each(|model| node.add_model(model));
        proxy.until_listed("m:latest").await;
        eventually("no longer named", || async { !health().await.contains("inventory_shrunk") }).await;
        assert_eq!(client::post_once(proxy.address, GENERATE, BODY).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_restart_while_the_only_node_is_down_is_503() {
    let other = NodeSpec::ollama(vec![ModelSpec::chat("other")]).slots(4);
    let herd = Herd::start(vec![spec(), other]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    proxy.until_listed("other:latest").await;
    herd.nodes()[0].kill();
    eventually("down", || async { up(&proxy) == 1 }).await;
    let data = proxy.stop().await;
    let proxy = Proxy::start_in(data, &herd.urls(), "", Clock::system()).await;
    proxy.until_listed("other:latest").await;
    for (path, body) in [
        (GENERATE, BODY),
        ("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/chat/completions", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
        ("/api/show", r#"{"model":"m"}"#),
        ("/api/embed", r#"{"model":"m","input":"x"}"#),
    ] {
        let answer = client::post_once(proxy.address, path, body).await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.text());
    }
    herd.nodes()[0].restart();
    eventually("back", || async {
        let answer = client::post_once(proxy.address, GENERATE, BODY).await;
        assert_ne!(answer.status, 404);
        answer.status == 200
    })
    .await;
}

/// A server that stops gracefully takes no connections and lets its streams end: down, once, however much they say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_only_finishes_its_streams_stays_down_until_it_takes_connections() {
    let (node, paces) = scripted::held();
    let proxy = Proxy::start(&[node.url()], "").await;
    proxy.until_listed("m:latest").await;
    let mut stream = Client::connect(proxy.address).await;
    stream.send(&post(GENERATE, BODY)).await;
    let pace = paces.recv_async().await.unwrap();
    pace.send(Step::Send(scripted::chunked_head("application/x-ndjson"))).unwrap();
    assert_eq!(stream.begin().await.unwrap().status, 200);
    node.refuse();
    assert_eq!(client::post_once(proxy.address, GENERATE, BODY).await.status, 503, "it is refused");
    eventually("down", || async { up(&proxy) == 0 }).await;
    let fell = proxy.shared().fleet.load().nodes[0].since;
    // Several probes long, each with a kept connection that would still answer.
    while proxy.shared().clock.now() < fell + 700 {
        pace.send(Step::Send(scripted::chunk(b"{\"response\":\"x\",\"done\":false}\n"))).unwrap();
        assert!(stream.chunk().await.is_some(), "it goes on");
        assert_eq!(up(&proxy), 0);
    }
    assert_eq!(proxy.shared().fleet.load().nodes[0].since, fell, "it was never up meanwhile");
    let _again = Scripted::start_at(node.address, &["m:latest"], |_| {
        let done = b"{\"model\":\"m\",\"response\":\"\",\"done\":true,\"done_reason\":\"stop\"}\n";
        scripted::answer("200 OK", "application/x-ndjson", done)
    });
    eventually("up", || async { up(&proxy) == 1 }).await;
    assert_eq!(client::post_once(proxy.address, GENERATE, BODY).await.status, 200);
    pace.send(Step::Send(b"0\r\n\r\n".to_vec())).unwrap();
}
