//! Every recorded exchange with the ancestor, replayed against the proxy: what it answers alike is held to the recording,
//! what it answers otherwise is said with its reason.
//!
//! - `Exact`: the same status and body.
//! - `Same`: the same status, type of content and shape: keys in their order, and types of values.
//! - `Differs`: the status given here, and not the recorded answer; a reason that has become untrue fails.
//! - `Elsewhere`: held by the test named, since it is no single answer.
//!
//! A recording that nobody claims fails, and so does a claim without a recording.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a test that cannot go on fails")]

#[path = "ancestor/claims.rs"]
mod claims;
#[path = "ancestor/shape.rs"]
mod shape;
#[path = "ancestor/stream.rs"]
mod stream;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use claims::{Claim, Claim::*};
use herdgate::clock::Clock;
use herdgate::config::{self, Flags, Sources};
use herdgate::import::{self, ImportArgs};
use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};
use support::client::{self, Answer, Client};
use support::proxy::Proxy;

fn exchanges() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ancestor/exchanges")
}

/// A recorded request and what the ancestor answered.
struct Recording {
    request: Vec<u8>,
    answer: Answer,
}

fn recording(name: &str) -> Recording {
    let read = |ending: &str| std::fs::read(exchanges().join(format!("{name}.{ending}"))).unwrap();
    Recording { request: read("req"), answer: parsed(&read("resp")) }
}

/// An answer from its bytes; chunks undone.
fn parsed(bytes: &[u8]) -> Answer {
    let head_end = client::find(bytes, b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: Vec<_> = lines.filter_map(header).collect();
    let mut answer = Answer { status, headers, ..Answer::default() };
    let mut rest = &bytes[head_end + 4..];
    if answer.header("transfer-encoding").is_none() {
        answer.body = rest.to_vec();
        return answer;
    }
    while let Some(end) = client::find(rest, b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16).unwrap();
        let chunk = rest[end + 2..end + 2 + size].to_vec();
        answer.body.extend_from_slice(&chunk);
        answer.chunks.push(chunk);
        rest = &rest[end + 2 + size + 2..];
    }
    answer
}

/// Replays recordings in order; gives those that do not hold.
async fn replay(address: SocketAddr, claims: &[(&str, Claim)]) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, claim) in claims {
        if matches!(claim, Elsewhere(_)) {
            continue;
        }
        let recorded = recording(name);
        let mut client = Client::connect(address).await;
        client.send(&recorded.request).await;
        let is_head = recorded.request.starts_with(b"HEAD ");
        let answer = if is_head { client.head_answer().await } else { client.answer().await };
        let answer = answer.unwrap_or_else(|| panic!("{name}: no answer"));
        if let Err(problem) = holds(claim, &recorded.answer, &answer) {
            problems.push(format!("{name}: {problem}\n    ours: {} {}", answer.status, answer.text()));
        }
    }
    problems
}

fn all_hold(problems: &[String]) {
    assert!(problems.is_empty(), "{} do not hold:\n{}", problems.len(), problems.join("\n"));
}

fn holds(claim: &Claim, recorded: &Answer, ours: &Answer) -> Result<(), String> {
    let media =
        |answer: &Answer| answer.header("content-type").map(|value| value.split(';').next().unwrap().to_owned());
    let is_exact = recorded.status == ours.status && recorded.body == ours.body;
    match claim {
        Exact if is_exact => Ok(()),
        Exact => Err(format!("recorded: {} {}", recorded.status, recorded.text())),
        Differs(status, _) if ours.status != *status => Err(format!("the claim says {status}")),
        Differs(..) if is_exact => Err("it is answered as recorded: the reason is no more".to_owned()),
        Differs(..) | Elsewhere(_) => Ok(()),
        Same if recorded.status != ours.status => Err(format!("recorded: {}", recorded.status)),
        Same if !recorded.body.is_empty() && media(recorded) != media(ours) => {
            Err(format!("recorded {:?}, ours {:?}", media(recorded), media(ours)))
        }
        Same if recorded.header("access-control-allow-origin").is_some_and(|_| recorded.header("vary").is_some())
            && ours.header("access-control-allow-origin").is_none() =>
        {
            Err("an answer to another origin's page needs its header".to_owned())
        }
        Same if recorded.body.is_empty() => Ok(()),
        Same => shape::covers(&recorded.json(), &ours.json()),
    }
}

/// A proxy on the ancestor's file, its addresses put in.
async fn proxy_on(data: tempfile::TempDir, file: &str) -> Proxy {
    let sources = Sources {
        file: Some(("config.yaml".into(), file.to_owned())),
        flags: Flags::default(),
        env: config::Env::default(),
    };
    let mut config = config::load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).config;
    assert!(config.ancestor);
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.data = data.path().to_owned();
    config.workers = Some(2);
    let quick = std::time::Duration::from_millis(100);
    (config.health.probe, config.health.ps, config.health.tags) = (quick, quick, 3 * quick);
    Proxy::start_with(data, config, Clock::system()).await
}

fn listed(urls: &[String]) -> String {
    urls.iter().map(|url| format!("'{url}'")).collect::<Vec<_>>().join(", ")
}

fn two() -> Vec<ModelSpec> {
    vec![ModelSpec::chat("llama3"), ModelSpec::chat("qwen3:8b")]
}

/// Asks a node itself to load a model, as somebody did before the recording.
async fn load(node: &herdgate::sim::Node, model: &str) {
    let body = format!(r#"{{"model":"{model}","stream":false}}"#);
    assert_eq!(client::post_once(node.address(), "/api/generate", &body).await.status, 200);
}

async fn two_nodes() -> Herd {
    let herd = Herd::start(vec![NodeSpec::ollama(two()).slots(4), NodeSpec::ollama(two()).slots(4)]).unwrap();
    for node in herd.nodes() {
        load(node, "llama3").await;
        load(node, "qwen3:8b").await;
    }
    herd
}

async fn settled(proxy: &Proxy, loaded: usize) {
    let address = proxy.address;
    let seen = || async {
        let details = client::get(address, "/api/ps_details?api_key=s3cret").await.json();
        details["models"].as_array().is_some_and(|models| models.len() >= loaded)
    };
    proxy.until("what is loaded is known", seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_then_at_work() {
    let herd = two_nodes().await;
    let file = format!("endpoints: [{}]\n", listed(&herd.urls()));
    let proxy = proxy_on(tempfile::tempdir().unwrap(), &file).await;
    settled(&proxy, 4).await;
    let mut problems = replay(proxy.address, claims::IDLE).await;
    problems.extend(replay(proxy.address, claims::WORK).await);
    all_hold(&problems);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_router_key() {
    let herd = two_nodes().await;
    let file = format!("endpoints: [{}]\nnomyo-router-api-key: s3cret\n", listed(&herd.urls()));
    let proxy = proxy_on(tempfile::tempdir().unwrap(), &file).await;
    settled(&proxy, 4).await;
    all_hold(&replay(proxy.address, claims::KEY).await);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_three_kinds_and_one_that_is_down() {
    let herd = Herd::start(vec![
        NodeSpec::ollama(two()).slots(4),
        NodeSpec::llama_cpp(ModelSpec::chat("gpt-x")),
        NodeSpec::ollama(two()),
        NodeSpec::llama_cpp(ModelSpec::chat("unsloth/gpt-oss-20b-GGUF:F16")),
    ])
    .unwrap();
    load(&herd.nodes()[0], "llama3").await;
    herd.nodes()[2].kill();
    let urls = herd.urls();
    let file = format!(
        "endpoints: ['{}', '{}/v1', '{}']\nllama_server_endpoints: ['{}/v1']\n",
        urls[0], urls[1], urls[2], urls[3]
    );
    let proxy = proxy_on(tempfile::tempdir().unwrap(), &file).await;
    settled(&proxy, 2).await;
    let mut problems = Vec::new();
    for claims in [claims::MIXED, claims::WITHOUT_KEY, claims::LEAKS] {
        problems.extend(replay(proxy.address, claims).await);
    }
    all_hold(&problems);
    proxy.stop().await;
}

/// A database as the recordings had it: rows 40, 39 and 0 days old of a node and of one that is gone.
fn database(place: &Path, node: &str) -> PathBuf {
    let path = place.join("token_counts.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE token_counts (endpoint TEXT, model TEXT, input_tokens INTEGER, output_tokens INTEGER, \
             total_tokens INTEGER, PRIMARY KEY(endpoint, model));
             CREATE TABLE token_time_series (id INTEGER PRIMARY KEY AUTOINCREMENT, endpoint TEXT, model TEXT, \
             input_tokens INTEGER, output_tokens INTEGER, total_tokens INTEGER, timestamp INTEGER);",
        )
        .unwrap();
    let now = i64::try_from(Clock::system().unix_ms() / 60_000 * 60).unwrap();
    for endpoint in [node, "http://gone:11434"] {
        connection.execute("INSERT INTO token_counts VALUES (?1, 'm:latest', 30, 60, 90)", [endpoint]).unwrap();
        for days in [40, 39, 0] {
            let sql = "INSERT INTO token_time_series (endpoint, model, input_tokens, output_tokens, total_tokens, \
                       timestamp) VALUES (?1, 'm:latest', 10, 20, 30, ?2)";
            connection.execute(sql, rusqlite::params![endpoint, now - days * 86_400]).unwrap();
        }
    }
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_an_imported_database() {
    let version = NodeSpec { version: "0.33.0-rc2".to_owned(), ..NodeSpec::ollama(vec![ModelSpec::chat("m")]) };
    let herd = Herd::start(vec![NodeSpec { registry: vec![ModelSpec::chat("m")], ..version }]).unwrap();
    let (place, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = format!("endpoints: [{}]\n", listed(&herd.urls()));
    let args = ImportArgs {
        file: database(place.path(), &herd.urls()[0]),
        config: None,
        listen: None,
        key: None,
        data: Some(data.path().to_owned()),
        lenient: false,
        dry_run: false,
        source: String::new(),
        replace: false,
        november_offset: None,
    };
    import::run(&args, &herdgate::config::Config::default(), &Clock::system()).unwrap();
    let proxy = proxy_on(data, &file).await;
    proxy.until_listed("m:latest").await;
    let mut problems = replay(proxy.address, claims::IMPORTED).await;
    herd.nodes()[0].add_model(ModelSpec::chat("m"));
    proxy.until_listed("m:latest").await;
    // What the node says instead of an answer.
    for (path, status, claims) in [
        ("/api/generate", 500, claims::NODE_500),
        ("/api/chat", 404, claims::NODE_404),
        ("/v1/chat/completions", 400, claims::NODE_400),
    ] {
        herd.nodes()[0].fault(Fault::new(Harm::Status(status, "boom".to_owned())).for_path(path));
        problems.extend(replay(proxy.address, claims).await);
        herd.nodes()[0].clear_faults();
    }
    problems.extend(replay(proxy.address, claims::AFTER_ERRORS).await);
    herd.nodes()[0].kill();
    let down = || async { client::get(proxy.address, "/health").await.status == 503 };
    proxy.until("it is seen to be down", down).await;
    problems.extend(replay(proxy.address, claims::ALL_DOWN).await);
    all_hold(&problems);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_node_that_never_answers() {
    let herd = Herd::start(vec![NodeSpec::ollama(two()), NodeSpec::ollama(two())]).unwrap();
    herd.nodes()[1].fault(Fault::new(Harm::Hang).for_all());
    load(&herd.nodes()[0], "llama3").await;
    let file = format!("endpoints: [{}]\n", listed(&herd.urls()));
    let proxy = proxy_on(tempfile::tempdir().unwrap(), &file).await;
    proxy.until_listed("llama3:latest").await;
    all_hold(&replay(proxy.address, claims::HANGING).await);
    proxy.stop().await;
}

#[test]
fn every_recording_is_claimed_once() {
    let names = std::fs::read_dir(exchanges()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let recorded: BTreeSet<String> = names.filter_map(|name| name.strip_suffix(".resp").map(str::to_owned)).collect();
    let claimed: Vec<&str> = claims::ALL.iter().flat_map(|claims| claims.iter().map(|(name, _)| *name)).collect();
    let once: BTreeSet<String> = claimed.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(once.len(), claimed.len(), "a recording is claimed twice");
    assert_eq!(recorded.difference(&once).collect::<Vec<_>>(), Vec::<&String>::new(), "recordings that nobody claims");
    assert_eq!(once.difference(&recorded).collect::<Vec<_>>(), Vec::<&String>::new(), "claims without a recording");
    for (name, claim) in claims::ALL.iter().copied().flatten() {
        if let Differs(_, why) | Elsewhere(why) = claim {
            assert!(why.len() > 10, "{name}: say why");
        }
    }
}
