//! Recorded clients: what each sent, byte for byte, in front of simulated nodes and of a node that plays recordings.

use herdgate::sim::{Herd, ModelSpec, NodeSpec};

use crate::claims::{CLAIMS, Claim};
use crate::node::{self, Player};
use crate::passing::{headers, reached};
use crate::recording::{Recording, Sent, requests};
use crate::support::client::Client;
use crate::support::proxy::Proxy;

/// Every recorded client with the statuses that its requests get, in turn.
fn clients() -> impl Iterator<Item = (&'static str, &'static [u16])> {
    CLAIMS.iter().filter_map(|(name, claim)| match claim {
        Claim::Client(statuses) => Some((*name, *statuses)),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_clients_are_answered_as_they_can_use_it() {
    let spec = || {
        let mut models = ["smollm2:135m", "second", "cc", "cp1", "tmp", "js-tmp"].map(ModelSpec::chat).to_vec();
        models.extend([ModelSpec::embedding("e"), ModelSpec::tools("tools"), ModelSpec::thinking("thinks")]);
        let mut spec = NodeSpec::ollama(models).slots(4);
        spec.registry = vec![ModelSpec::chat("127.0.0.1:34767/a/m")];
        spec
    };
    let mut found = Vec::new();
    for (name, statuses) in clients() {
        // A herd of its own for who changes it.
        let herd = Herd::start(vec![spec(), spec()]).unwrap();
        let proxy = Proxy::start(&herd.urls(), "").await;
        proxy.until_listed("thinks:latest").await;
        let mut client = Client::connect(proxy.address).await;
        let mut got = Vec::new();
        let mut texts = Vec::new();
        for (sent, bytes) in requests(name) {
            client.send(&bytes).await;
            let answer = if sent.method == "HEAD" { client.head_answer().await } else { client.answer().await };
            let answer = answer.unwrap_or_else(|| panic!("{name}: {}: no answer", sent.target));
            assert!(answer.whole, "{name}: {}", sent.target);
            if answer.header("connection") == Some("close") {
                client = Client::connect(proxy.address).await;
            }
            got.push(answer.status);
            texts.push(format!("{} {}", sent.target, answer.text()));
        }
        if got != statuses {
            found.push(format!("{name}: {got:?} instead of {statuses:?}: {texts:#?}"));
        }
        assert_eq!(proxy.in_flight(), 0, "{name}");
    }
    assert!(found.is_empty(), "{} differ\n{}", found.len(), found.join("\n"));
}

/// A recorded answer for what a client asks, of the same route and kind.
fn counterpart(sent: &Sent) -> Option<&'static str> {
    let json: serde_json::Value = serde_json::from_slice(&sent.body).unwrap_or_default();
    let streams = json["stream"].as_bool();
    Some(match (sent.path(), streams) {
        ("/api/generate", Some(false)) => "089-generate",
        ("/api/generate", _) => "088-generate-stream",
        ("/api/chat", Some(false)) => "094-chat",
        ("/api/chat", _) => "092-chat-stream",
        ("/api/embed", _) => "098-embed-list",
        ("/api/show", _) => "011-show",
        ("/v1/chat/completions", Some(true)) => "108-v1-chat-stream",
        ("/v1/chat/completions", _) => "107-v1-chat",
        ("/v1/embeddings", _) => "114-v1-embeddings-base64",
        ("/v1/responses", _) => "116-v1-responses-stream",
        ("/v1/messages", Some(true)) => "122-v1-messages-stream",
        ("/v1/messages", _) => "121-v1-messages",
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_recorded_clients_and_a_recorded_node_meet_unchanged() {
    let mut models: Vec<String> =
        clients().flat_map(|(name, _)| requests(name)).filter_map(|(sent, _)| sent.model()).collect();
    models.sort();
    models.dedup();
    let player = Player::start(&models.iter().map(String::as_str).collect::<Vec<_>>());
    let proxy = Proxy::start(&[player.node.url()], "").await;
    proxy.until_listed("smollm2:135m").await;
    let mut met = 0;
    for (name, _) in clients() {
        let mut client = Client::connect(proxy.address).await;
        for (sent, bytes) in requests(name) {
            let Some(recorded) = counterpart(&sent).map(Recording::load) else { continue };
            client.send(&bytes).await;
            let (asked, pace) = player.asked().await;
            reached(name, &asked, &sent);
            recorded.pieces.iter().for_each(|piece| node::send(&pace, piece));
            node::end(&pace, false);
            let got = client.answer().await.unwrap_or_else(|| panic!("{name}: no answer"));
            assert!(got.whole, "{name}");
            assert_eq!(got.status, recorded.answer.status, "{name}");
            headers(name, &got, &recorded.answer);
            assert_eq!(got.text(), recorded.answer.text(), "{name}");
            met += 1;
        }
    }
    assert!(met >= 25, "{met} requests");
}
