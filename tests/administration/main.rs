//! Administration of models over a simulated fleet: pull, create, copy, delete, push, blobs, and who was down meanwhile.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod at_once;
mod blobs;
mod pending;
mod progress;
mod short;

use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use serde_json::Value;

use crate::support::client::{self, Answer, request};
use crate::support::proxy::Proxy;

/// Three nodes named a, b, c, whose registry has `new`; each has `m`. `edit` sees each before it starts.
async fn fleet(extra: &str, edit: impl Fn(usize, &mut NodeSpec)) -> (Herd, Proxy) {
    let specs = (0..3).map(|at| {
        let mut spec = NodeSpec::ollama(vec![ModelSpec::chat("m").copy_of("m")]).slots(4);
        spec.registry = vec![ModelSpec::chat("new").copy_of("new")];
        edit(at, &mut spec);
        spec
    });
    let herd = Herd::start(specs.collect()).unwrap();
    let proxy = Proxy::start(&[], &format!("{}\n{extra}", nodes(&herd))).await;
    until_known(&proxy, "m", 3).await;
    (herd, proxy)
}

/// The `nodes` of a configuration.
fn nodes(herd: &Herd) -> String {
    let named: Vec<String> = ["a", "b", "c"]
        .iter()
        .zip(herd.urls())
        .map(|(name, url)| format!("{{ name: {name}, url: '{url}' }}"))
        .collect();
    format!("nodes: [ {} ]", named.join(", "))
}

/// How many nodes that are up have this model, as the proxy knows it now.
fn copies(proxy: &Proxy, name: &str) -> usize {
    let snapshot = proxy.shared().fleet.load();
    let model = snapshot.models.get(&herdgate::dialect::name::key(name));
    model.map_or(0, |model| model.candidates.iter().filter(|candidate| candidate.up).count())
}

async fn until_known(proxy: &Proxy, name: &str, nodes: usize) {
    proxy.until(&format!("{name} on {nodes} nodes"), || async { copies(proxy, name) == nodes }).await;
}

/// Names of the models on a node's own disk, tags cut off where they are `latest`.
async fn disk(herd: &Herd, at: usize) -> Vec<String> {
    let tags = client::get(herd.nodes()[at].address(), "/api/tags").await.json();
    let names = tags["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap());
    let mut names: Vec<String> = names.map(|name| name.trim_end_matches(":latest").to_owned()).collect();
    names.sort();
    names
}

async fn post(proxy: &Proxy, path: &str, body: &str) -> Answer {
    client::post_once(proxy.address, path, body).await
}

async fn post_to(proxy: &Proxy, nodes: &str, path: &str, body: &str) -> Answer {
    client::once(proxy.address, &request("POST", path, &[("x-herdgate-nodes", nodes)], body.as_bytes())).await
}

async fn delete(proxy: &Proxy, body: &str) -> Answer {
    client::once(proxy.address, &request("DELETE", "/api/delete", &[], body.as_bytes())).await
}

/// The statuses of a stream, layers by their digest's first letters, one after another.
fn statuses(lines: &[Value]) -> Vec<&str> {
    let mut said: Vec<&str> = lines.iter().filter_map(|line| line["status"].as_str()).collect();
    said.dedup();
    said
}

/// What holds of every stream of progress: numbers only grow, exactly one success (if any) and it is last.
fn well_formed(answer: &Answer) -> Vec<Value> {
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/x-ndjson")),
        "{}",
        answer.text()
    );
    assert!(answer.whole);
    let lines = answer.lines();
    let mut bars = std::collections::HashMap::new();
    for (at, line) in lines.iter().enumerate() {
        let last = at + 1 == lines.len();
        assert_eq!(last, line["status"] == "success" || line["error"].is_string(), "{line} at {at} of {lines:?}");
        if let Some(digest) = line["digest"].as_str() {
            let now = (line["total"].as_u64().unwrap(), line["completed"].as_u64().unwrap_or(0));
            let before = bars.insert(digest.to_owned(), now).unwrap_or_default();
            assert!(before.0 <= now.0 && before.1 <= now.1 && now.1 <= now.0, "{lines:?}");
        }
    }
    lines
}
