//! What the proxy answers without asking a node: as the recorded node did, header lines and all.

use crate::claims::{CLAIMS, Claim};
use crate::node::{self, Player};
use crate::recording::Recording;
use crate::support::client::{self, Answer, Client};
use crate::support::proxy::Proxy;
use crate::support::scripted::{chunk, chunked_head};

/// Header lines that a client can tell two servers apart by: all but the time, and what is for information.
fn lines(answer: &Answer) -> Vec<(String, String)> {
    let told = answer.headers.iter().filter(|(name, value)| {
        let ours = name.starts_with("x-herdgate-") || client::OURS.contains(&name.as_str());
        let untold = name == "date" || ours;
        // What a connection does unless it says otherwise.
        !untold && (name, value.as_str()) != (&"connection".to_owned(), "keep-alive")
    });
    let mut lines: Vec<_> = told.cloned().collect();
    lines.sort();
    lines
}

/// What of an answer is not as it was recorded.
pub(crate) fn difference(recording: &Recording, got: &Answer) -> Option<String> {
    let recorded = &recording.answer;
    let mut ours = lines(got);
    // Go leaves out the length of what it refuses and ends; ours says it.
    if recorded.header("content-length").is_none() && recorded.header("connection") == Some("close") {
        ours.retain(|(name, _)| name != "content-length");
    }
    let same = got.status == recorded.status && ours == lines(recorded) && got.body == recorded.body;
    (!same).then(|| {
        let shown = |answer: &Answer| format!("{} {:?} {:?}", answer.status, lines(answer), answer.text());
        format!("{}:\n  recorded {}\n  got      {}", recording.name, shown(recorded), shown(got))
    })
}

/// Sends a recorded request as it was, and reads the answer.
pub(crate) async fn ask(proxy: &Proxy, recording: &Recording) -> Answer {
    let mut client = Client::connect(proxy.address).await;
    client.send(&recording.request).await;
    let head_only = recording.request.starts_with(b"HEAD ");
    let answer = if head_only { client.head_answer().await } else { client.answer().await };
    answer.unwrap_or_else(|| panic!("{}: no answer", recording.name))
}

/// Unknown models, in the words of a node that was asked: the proxy finds the same ones when none can be.
const SAME_WORDS: [&str; 11] = [
    "012-show-unknown",
    "042-body-duplicate-case",
    "043-body-trailing-junk",
    "044-body-chunked",
    "052-unknown-generate",
    "053-unknown-embed",
    "057-unknown-v1-chat",
    "058-unknown-v1-chat-stream",
    "059-unknown-v1-embeddings",
    "060-unknown-v1-responses-stream",
    "078-audio-unknown-model",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_proxy_says_alone_is_what_the_node_said() {
    let player = Player::start(&["smollm2:135m"]);
    let urls = [player.node.url()];
    let proxy = Proxy::start(&urls, "").await;
    let clouded = Proxy::start(&[], &format!("nodes: [ {{ url: '{}', cloud: true }} ]", urls[0])).await;
    proxy.until_listed("smollm2:135m").await;
    clouded.until_listed("smollm2:135m").await;
    let alone = CLAIMS.iter().filter(|(_, claim)| matches!(claim, Claim::Alone));
    let mut found = Vec::new();
    for name in alone.map(|(name, _)| *name) {
        let recording = Recording::load(name);
        // A node that may use the cloud says so of itself.
        let proxy = if name == "004-status" { &clouded } else { &proxy };
        tokio::select! {
            answer = ask(proxy, &recording) => found.extend(difference(&recording, &answer)),
            (asked, _) = player.asked() => found.push(format!("{name}: reached the node: {:?}", asked.head)),
        }
    }
    assert!(found.is_empty(), "{} differ\n{}", found.len(), found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_would_say_of_a_name_is_said_without_one() {
    let player = Player::start(&["smollm2:135m"]);
    let proxy = Proxy::start(&[player.node.url()], "").await;
    proxy.until_listed("smollm2:135m").await;
    drop(player);
    let down = || async { proxy.shared().fleet.load().nodes.iter().all(|node| !node.up) };
    proxy.until("the node is down", down).await;
    let mut found = Vec::new();
    for name in SAME_WORDS {
        let recording = Recording::load(name);
        found.extend(difference(&recording, &ask(&proxy, &recording).await));
    }
    assert!(found.is_empty(), "{} differ\n{}", found.len(), found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_on_purpose_differs_in_nothing_else() {
    let player = Player::start(&["smollm2:135m"]);
    let proxy = Proxy::start(&[player.node.url()], "").await;
    proxy.until_listed("smollm2:135m").await;
    for (name, claim) in CLAIMS {
        let Claim::Differs { status, text, .. } = claim else { continue };
        let answer = ask(&proxy, &Recording::load(name)).await;
        assert_eq!(answer.status, *status, "{name}: {}", answer.text());
        assert!(answer.text().contains(text), "{name}: {}", answer.text());
    }
    assert_eq!(player.node.untaken(), 0);
}

/// The node speaks HTTP/1.1 to us whatever the client speaks; the client is answered as the node answered it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_is_answered_as_the_node_answered_it() {
    let player = Player::start(&["smollm2:135m"]);
    let proxy = Proxy::start(&[player.node.url()], "").await;
    proxy.until_listed("smollm2:135m").await;
    for name in CLAIMS.iter().filter(|(_, claim)| matches!(claim, Claim::Http10)).map(|(name, _)| *name) {
        let recording = Recording::load(name);
        let mut client = Client::connect(proxy.address).await;
        client.send(&recording.request).await;
        if recording.sent().method == "POST" {
            let (asked, pace) = player.asked().await;
            assert!(asked.head.contains(" HTTP/1.1\r\n"), "{name}: {}", asked.head);
            assert_eq!(asked.body, recording.sent().body, "{name}");
            let lines = recording.answer.body.split_inclusive(|byte| *byte == b'\n');
            node::send(&pace, &chunked_head("application/x-ndjson"));
            lines.for_each(|line| node::send(&pace, &chunk(line)));
            node::send(&pace, b"0\r\n\r\n");
            node::end(&pace, false);
        }
        let raw = client.rest().await;
        let text = String::from_utf8_lossy(&raw);
        assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{name}: {text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{name}: {head}");
        let kind = recording.answer.header("content-type").unwrap();
        assert!(head.to_ascii_lowercase().contains(&format!("content-type: {kind}")), "{name}: {head}");
        let recorded = recording.answer.text();
        // The node's own version is what the poller was told.
        assert_eq!(body, recorded.replace("0.33.0-rc2", "0.33.0"), "{name}");
    }
}
