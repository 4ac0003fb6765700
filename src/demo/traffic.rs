//! The demo's light traffic: a few clients that take turns through routes, models and tempers.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{self, Ask};
use crate::sync::spawn_local;

/// A chat model that every Ollama node has.
pub(super) const CHAT: &str = "llama3.2:3b";
/// A chat model that some have.
pub(super) const OTHER: &str = "qwen3:8b";
/// An embedding model that some have.
pub(super) const EMBED: &str = "nomic-embed-text";
/// What the llama.cpp server serves.
pub(super) const LLAMA: &str = "smollm2-135m";

/// Clients that ask at the same time.
const CLIENTS: u64 = 6;

/// Every so many requests a client leaves in the middle of its stream.
const LEAVES_EVERY: u64 = 17;

/// Starts the clients on this thread's runtime; they end with it.
pub(super) fn start(address: SocketAddr, models: &[&'static str]) {
    for client in 0..CLIENTS {
        spawn_local(wander(address, models.to_vec(), client));
    }
}

async fn wander(address: SocketAddr, models: Vec<&'static str>, client: u64) {
    let mut turn = client * 7;
    loop {
        // A lost connection is what the demo may show; the proxy's account has it.
        let _ = client::ask(address, &next(&models, turn)).await;
        tokio::time::sleep(Duration::from_millis(100 + (turn * 37) % 300)).await;
        turn += 1;
    }
}

/// The request of a turn: decided by its number alone.
fn next(models: &[&'static str], turn: u64) -> Ask {
    let has = |model: &str| models.contains(&model);
    let leave_after = turn.is_multiple_of(LEAVES_EVERY).then_some(5);
    let message = || json!([{ "role": "user", "content": format!("Tell me about herding, part {turn}.") }]);
    let (path, body) = match turn % 8 {
        1 => ("/api/generate", json!({ "model": OTHER, "prompt": "Why is the sky blue?", "stream": false })),
        2 => ("/v1/chat/completions", json!({ "model": CHAT, "messages": message(), "stream": true })),
        3 => ("/api/embed", json!({ "model": EMBED, "input": ["a gate", "a herd"] })),
        4 if has(LLAMA) => ("/v1/chat/completions", json!({ "model": LLAMA, "messages": message(), "stream": true })),
        5 => ("/v1/chat/completions", json!({ "model": OTHER, "messages": message() })),
        6 => ("/v1/messages", json!({ "model": CHAT, "max_tokens": 64, "messages": message(), "stream": true })),
        7 if has(LLAMA) => ("/v1/chat/completions", json!({ "model": LLAMA, "messages": message() })),
        _ => ("/api/chat", json!({ "model": CHAT, "messages": message() })),
    };
    let streams = body.get("stream").map_or(path == "/api/chat", |stream| *stream == Value::Bool(true));
    Ask { path, body: body.to_string(), leave_after: leave_after.filter(|_| streams) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_turn_asks_for_what_the_herd_has() {
        let herd = [CHAT, OTHER, EMBED];
        for turn in 0..200 {
            let ask = next(&herd, turn);
            let body: Value = serde_json::from_str(&ask.body).unwrap();
            assert!(herd.contains(&body["model"].as_str().unwrap()), "{ask:?}");
        }
    }

    #[test]
    fn every_kind_of_request_comes_up() {
        let asks: Vec<Ask> = (0..200).map(|turn| next(&[CHAT, OTHER, EMBED, LLAMA], turn)).collect();
        let paths: std::collections::BTreeSet<&str> = asks.iter().map(|ask| ask.path).collect();
        assert_eq!(paths.len(), 5);
        assert!(asks.iter().any(|ask| ask.leave_after.is_some()));
        assert!(asks.iter().any(|ask| ask.body.contains(LLAMA)));
    }
}
