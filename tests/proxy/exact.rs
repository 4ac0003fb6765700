//! The ancestor's recommended tests: counts stay exact under concurrency, listings stay consistent, nothing stalls.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use herdgate::sim::{Ending as NodeEnding, Fault, Harm, Herd, ModelSpec, Node, NodeSpec};
use herdgate::usage::Tokens;
use herdgate::usage::answers::Span;

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};

/// How the driver saw its requests end.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Seen {
    completed: u64,
    client_gone: u64,
    node_error_before: u64,
    node_error_after: u64,
    rejected: u64,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.completed += other.completed;
        self.client_gone += other.client_gone;
        self.node_error_before += other.node_error_before;
        self.node_error_after += other.node_error_after;
        self.rejected += other.rejected;
    }

    fn total(&self) -> u64 {
        self.completed + self.client_gone + self.node_error_before + self.node_error_after + self.rejected
    }
}

/// A repeatable sequence of choices (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }
}

/// Routes and bodies of ordinary requests, streamed and not, of every dialect; `N` stands for the number of tokens.
const ORDINARY: [(&str, &str); 9] = [
    ("/api/generate", r#"{"model":"m","prompt":"tell me","options":{"num_predict":N}}"#),
    ("/api/generate", r#"{"model":"m","prompt":"tell me","stream":false,"options":{"num_predict":N}}"#),
    ("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"options":{"num_predict":N}}"#),
    ("/v1/chat/completions", r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":N}"#),
    (
        "/v1/chat/completions",
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":N}"#,
    ),
    ("/v1/completions", r#"{"model":"m","prompt":"once","max_tokens":N}"#),
    ("/v1/messages", r#"{"max_tokens":N,"stream":true,"messages":[{"role":"user","content":"hi"}],"model":"m"}"#),
    ("/v1/responses", r#"{"model":"m","input":"hi","stream":true,"max_output_tokens":N}"#),
    ("/api/embed", r#"{"model":"e","input":["one","two"]}"#),
];

/// A stream slow enough to be left in its middle.
const SLOW: &str = r#"{"model":"s","messages":[{"role":"user","content":"hi"}],"sim":{"tokens":400,"pace_ms":10}}"#;

/// One request on a kept connection (a new one where it had to be left).
async fn one(address: SocketAddr, kept: &mut Option<Client>, dice: &mut Dice) -> Seen {
    let mut seen = Seen::default();
    match dice.roll(20) {
        0 => {
            let mut client = Client::connect(address).await;
            client.send(&post("/api/chat", SLOW)).await;
            match client.answer_up_to(1).await {
                Some(answer) if answer.status == 200 => seen.client_gone += 1,
                answer => seen.add(judge(answer)),
            }
            client.reset();
            return seen;
        }
        1 => {
            let mut client = Client::connect(address).await;
            client.send(&post("/api/chat", r#"{"model":"nope","messages":[]}"#)).await;
            seen.add(judge(client.answer().await));
            return seen;
        }
        _ => {}
    }
    let (path, body) = ORDINARY[usize::try_from(dice.roll(ORDINARY.len() as u64)).unwrap()];
    let body = body.replace('N', &(1 + dice.roll(12)).to_string());
    let mut client = match kept.take() {
        Some(client) => client,
        None => Client::connect(address).await,
    };
    client.send(&post(path, &body)).await;
    let answer = client.answer().await;
    if answer.as_ref().is_some_and(|answer| answer.whole && answer.header("connection") != Some("close")) {
        *kept = Some(client);
    }
    seen.add(judge(answer));
    seen
}

fn judge(answer: Option<client::Answer>) -> Seen {
    let mut seen = Seen::default();
    let answer = answer.expect("an accepted request gets an answer");
    match answer.status {
        200 if answer.whole && !tells_an_error(&answer.text()) => seen.completed += 1,
        200 => seen.node_error_after += 1,
        404 => seen.rejected += 1,
        // On a busy machine a node's probes may time out: nobody was asked then, and the answer says so.
        503 if answer.header("x-herdgate-reason") == Some("no_node") => seen.rejected += 1,
        503 => seen.node_error_before += 1,
        status => panic!("{status} {}", answer.text()),
    }
    seen
}

/// An error told in the stream's own dialect (`"error":null` is none).
fn tells_an_error(text: &str) -> bool {
    text.contains("\"error\":{") || text.contains("\"error\":\"")
}

/// The sum of what all nodes sent to the end.
fn sent(nodes: &[Node]) -> Tokens {
    nodes.iter().map(|node| node.ledger().tokens()).fold(Tokens::default(), |sum, tokens| Tokens {
        input: sum.input + tokens.prompt,
        output: sum.output + tokens.output,
        cached: 0,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_i2_i3_concurrent_requests_keep_usage_and_token_counts_exact() {
    const SLOTS: u32 = 6;
    const DRIVERS: u64 = 48;
    const EACH: u64 = 220;
    let spec =
        || NodeSpec::ollama(vec![ModelSpec::chat("m"), ModelSpec::chat("s"), ModelSpec::embedding("e")]).slots(SLOTS);
    let herd = Herd::start(vec![spec(), spec(), spec(), spec()]).unwrap();
    // One node dies in the middle of some answers (not of those that a client leaves: one ending each), one takes some requests and drops them, one is busy at times.
    herd.nodes()[1].fault(Fault::new(Harm::Cut { at: 700, reset: true }).for_model("m").chance(0.05));
    herd.nodes()[2].fault(Fault::new(Harm::Reset).chance(0.03));
    herd.nodes()[3].fault(Fault::new(Harm::Busy).chance(0.05));
    let proxy = Proxy::start(&herd.urls(), &format!("slots: {SLOTS}\nledger: {{ usage_injection: auto }}")).await;
    proxy.until_listed("e:latest").await;
    // On all of them: whichever faults a node has, some requests meet them.
    for node in herd.nodes() {
        assert_eq!(client::post_once(node.address(), "/api/generate", r#"{"model":"m"}"#).await.status, 200);
    }
    eventually("loaded everywhere", || async { proxy.loaded("m") == 4 }).await;

    let address = proxy.address;
    let drivers = (0..DRIVERS).map(|seed| {
        tokio::spawn(async move {
            let (mut seen, mut dice, mut kept) = (Seen::default(), Dice(seed), None);
            for _ in 0..EACH {
                seen.add(one(address, &mut kept, &mut dice).await);
            }
            seen
        })
    });
    let mut seen = Seen::default();
    for driver in drivers.collect::<Vec<_>>() {
        seen.add(driver.await.unwrap());
    }
    assert_eq!(seen.total(), DRIVERS * EACH);
    assert!(seen.total() >= 10_000);
    for (what, count) in [("completed", seen.completed), ("gone", seen.client_gone), ("cut", seen.node_error_after)] {
        assert!(count > 0, "the mix must hold every ending, and has no {what}: {seen:?}");
    }

    // I1: no node ever had more than its limit, and at rest nothing is in flight.
    for node in herd.nodes() {
        assert!(node.ledger().model("m:latest").peak <= SLOTS, "{:?}", node.ledger());
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    proxy.flush().await;
    let usage = client::get(address, "/api/usage").await.json();
    for (node, models) in usage["usage_counts"].as_object().unwrap() {
        assert_eq!(models.as_object().unwrap().len(), 0, "{node} has work at rest");
    }

    // I2: as many outcomes as requests, each as its driver saw it.
    let sums = proxy.shared().meters.sums();
    let [completed, client_gone, node_error_before, node_error_after, rejected] = sums.endings;
    let ours = Seen { completed, client_gone, node_error_before, node_error_after, rejected };
    assert_eq!(ours, seen);

    // I3: the ledger's exact sums equal what the nodes sent to the end, by node as by model.
    assert_eq!(Tokens { cached: 0, ..sums.exact }, sent(herd.nodes()));
    let rows = proxy.shared().ledger.rows(Span::Totals).await.unwrap();
    let exact = rows.iter().fold(Tokens::default(), |sum, row| Tokens {
        input: sum.input + row.row.exact.input,
        output: sum.output + row.row.exact.output,
        cached: 0,
    });
    assert_eq!(exact, sent(herd.nodes()));
    for node in herd.nodes() {
        let of_node = rows.iter().filter(|row| &*row.node == node.url().as_str());
        let output: u64 = of_node.map(|row| row.row.exact.output).sum();
        assert_eq!(output, node.ledger().tokens().output, "{}", node.url());
        assert_eq!(node.ledger().sockets_lost, 0, "no cancel came too early");
    }
    drop(proxy.stop().await);
    assert!(herd.nodes().iter().map(|node| node.ledger().inference(NodeEnding::Done)).sum::<u64>() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_stay_consistent_while_models_come_and_go() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("stays")]);
    let herd = Herd::start(vec![spec(), spec()]).unwrap();
    let health = "health: { probe: 50ms, probe_timeout: 1s, backoff_max: 100ms, ps: 20ms, tags: 20ms }";
    let proxy = Proxy::start(&herd.urls(), health).await;
    proxy.until_listed("stays:latest").await;
    let address = proxy.address;
    let readers = (0..4).map(|_| {
        tokio::spawn(async move {
            for _ in 0..300 {
                consistent(&client::get(address, "/api/tags").await.json());
                consistent(&client::get(address, "/api/ps").await.json());
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for round in 0..40 {
        let name = format!("guest{}", round % 5);
        let node = &herd.nodes()[round % 2];
        node.add_model(ModelSpec::chat(&name));
        let body = format!(r#"{{"model":"{name}","prompt":""}}"#);
        let loaded = client::post_once(address, "/api/generate", &body).await;
        assert!(matches!(loaded.status, 200 | 404), "{}", loaded.text());
        node.remove_model(&name);
    }
    for reader in readers {
        reader.await.unwrap();
    }
    // Stale entries go: only what is still there is listed.
    eventually("guests gone", || async {
        let tags = client::get(address, "/api/tags").await.text();
        tags.contains("stays:latest") && !tags.contains("guest")
    })
    .await;
    drop(proxy.stop().await);
}

/// Names are unique, every entry is whole, the order is newest first.
fn consistent(listing: &serde_json::Value) {
    let models = listing["models"].as_array().expect("an array");
    let names: BTreeSet<&str> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), models.len(), "{listing}");
    for model in models {
        assert_eq!(model["name"], model["model"]);
        assert_eq!(model["digest"].as_str().unwrap().len(), 64);
        assert!(model["size"].as_u64().unwrap() > 0);
        assert!(model["details"].is_object());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sustained_load_never_stalls() {
    let spec = || {
        let millisecond = Duration::from_millis(1);
        NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(2).speed(millisecond, Duration::ZERO, millisecond)
    };
    let herd = Herd::start(vec![spec(), spec(), spec()]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "slots: 2").await;
    proxy.until_listed("m:latest").await;
    let address = proxy.address;
    // Far more clients than slots: most wait, every one must come through.
    let drivers = (0..64).map(|seed| {
        tokio::spawn(async move {
            let mut dice = Dice(seed);
            let mut client = Client::connect(address).await;
            for _ in 0..40 {
                let tokens = 1 + dice.roll(8);
                let body = format!(r#"{{"model":"m","prompt":"x","options":{{"num_predict":{tokens}}}}}"#);
                client.send(&post("/api/generate", &body)).await;
                let answer = client.answer().await.expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(answer.lines().last().unwrap()["eval_count"], tokens);
            }
        })
    });
    for driver in drivers.collect::<Vec<_>>() {
        driver.await.unwrap();
    }
    assert_eq!(proxy.shared().meters.sums().endings[0], 64 * 40);
    for node in herd.nodes() {
        assert!(node.ledger().model("m:latest").peak <= 2);
    }
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
    drop(proxy.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_what_was_sent_for_a_client_that_leaves_early_is_an_estimate_never_zero() {
    let spec =
        NodeSpec::ollama(vec![ModelSpec::chat("m")]).speed(Duration::ZERO, Duration::ZERO, Duration::from_millis(50));
    let herd = Herd::start(vec![spec]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "").await;
    proxy.until_listed("m:latest").await;
    let body = r#"{"model":"m","prompt":"tell me a long story","stream":false,"options":{"num_predict":4000}}"#;
    let mut client = Client::connect(proxy.address).await;
    client.send(&post("/api/generate", body)).await;
    eventually("the node has it", || async { herd.nodes()[0].ledger().in_flight() == 1 }).await;
    client.reset();
    eventually("one outcome", || async { proxy.shared().meters.sums().endings[1] == 1 }).await;
    let sums = proxy.shared().meters.sums();
    assert_eq!((sums.exact, sums.estimated.input > 0), (Tokens::default(), true), "{sums:?}");
    eventually("the node is told", || async { herd.nodes()[0].ledger().in_flight() == 0 }).await;
    drop(proxy.stop().await);
}
