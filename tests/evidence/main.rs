//! What an operator asks of a running proxy, on the wire: which request was that, where did it go, why, and what did it
//! cost.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod deciding;
mod gauging;
mod logging;
mod naming;
mod reckoning;

use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use support::proxy::Proxy;

const MODEL: &str = "llama3:latest";
const CHAT: &str = r#"{"model":"llama3","messages":[{"role":"user","content":"hello"}]}"#;

/// A herd of nodes that all have the model, and a proxy that knows it.
async fn herd(nodes: usize, extra: &str) -> (Herd, Proxy) {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat(MODEL)]); nodes]).unwrap();
    let proxy = Proxy::start(&herd.urls(), extra).await;
    proxy.until_listed(MODEL).await;
    (herd, proxy)
}
