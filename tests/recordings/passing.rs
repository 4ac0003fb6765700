//! Inference and `/api/show`: what the node said comes to the client as it was, chunk by chunk, and is counted.

use std::collections::{BTreeMap, BTreeSet};

use herdgate::usage::Tokens;
use herdgate::usage::answers::Span;

use crate::claims::{CLAIMS, Claim, Counted};
use crate::node::{self, Player};
use crate::recording::{Recording, Sent};
use crate::support::client::{self, Answer, Client, request};
use crate::support::proxy::Proxy;
use crate::support::scripted::Asked;

/// What section 13 of the contract keeps of an answer's headers.
pub(crate) const KEPT: [&str; 4] = ["content-type", "allow", "location", "cache-control"];

/// What stands in an answer for this hop alone, or for information.
const OURS: [&str; 4] = ["date", "content-length", "transfer-encoding", "connection"];

/// What of a request never reaches a node.
const STAYS: [&str; 7] =
    ["origin", "authorization", "x-api-key", "cookie", "expect", "accept-encoding", "transfer-encoding"];

/// Headers of an answer: what is kept is there as it was, and nothing else came along.
pub(crate) fn headers(name: &str, got: &Answer, recorded: &Answer) {
    for kept in KEPT {
        assert_eq!(got.header(kept), recorded.header(kept), "{name}: {kept}");
    }
    for (header, _) in &got.headers {
        let known = KEPT.contains(&header.as_str()) || OURS.contains(&header.as_str());
        // How long to wait is for the gate to say when all its nodes are busy.
        let waits = header == "retry-after" && got.status == 503;
        // They name this one request; no recording can have them.
        let names = client::OURS.contains(&header.as_str());
        assert!(known || waits || names, "{name}: {header} came from nowhere");
    }
}

/// What reached the node is what the client sent: one request, its body to the byte (or with the one splice there is).
pub(crate) fn reached(name: &str, asked: &Asked, sent: &Sent) {
    assert_eq!((asked.method(), asked.target()), (sent.method.as_str(), sent.target.as_str()), "{name}");
    assert_eq!(asked.header("content-length"), Some(asked.body.len().to_string().as_str()), "{name}");
    if splices(sent) {
        let text = asked.text();
        assert_eq!(text.matches(SPLICE).count(), 1, "{name}: {text}");
        assert_eq!(text.replacen(SPLICE, "", 1).as_bytes(), sent.body, "{name}");
    } else {
        assert_eq!(asked.text(), String::from_utf8_lossy(&sent.body), "{name}");
        assert_eq!(asked.body, sent.body, "{name}");
    }
    for kept in ["content-type", "content-encoding", "accept", "user-agent"] {
        assert_eq!(asked.header(kept), sent.header(kept), "{name}: {kept}");
    }
    for stays in STAYS {
        assert_eq!(asked.header(stays), None, "{name}: {stays} reached the node");
    }
}

/// What the one splice puts at the end of a body.
const SPLICE: &str = r#","stream_options":{"include_usage":true}"#;

/// A chat stream that did not ask for its usage.
fn splices(sent: &Sent) -> bool {
    let json: serde_json::Value = serde_json::from_slice(&sent.body).unwrap_or_default();
    sent.path() == "/v1/chat/completions" && json["stream"] == true && json["stream_options"].is_null()
}

/// Plays one recording through the proxy; the client has read its end when this returns.
async fn play(player: &Player, proxy: &Proxy, recording: &Recording, breaks_off: bool) {
    let name = &recording.name;
    // Shown when a wait passes its bound.
    println!("{name}");
    let mut client = Client::connect(proxy.address).await;
    client.send(&recording.request).await;
    let (asked, pace) = player.asked().await;
    reached(name, &asked, &recording.sent());
    let (head, rest) = recording.pieces.split_first().unwrap();
    let (first, rest) = rest.split_first().unwrap();
    // Ollama writes the head with the first piece of the body.
    node::send(&pace, &[head.as_slice(), first].concat());
    let closes;
    // An error is read whole first, as it says whether another node is worth a try; then it has a length.
    if !recording.is_chunked() || recording.answer.status >= 400 {
        rest.iter().for_each(|piece| node::send(&pace, piece));
        node::end(&pace, recording.closes());
        let got = client.answer().await.unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(got.status, recording.answer.status, "{name}: {}", got.text());
        headers(name, &got, &recording.answer);
        closes = got.header("connection") == Some("close");
        assert!(got.whole, "{name}");
        assert_eq!(got.text(), recording.answer.text(), "{name}");
        assert_eq!(got.body, recording.answer.body, "{name}");
    } else {
        let got = client.begin().await.unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(got.status, recording.answer.status, "{name}");
        headers(name, &got, &recording.answer);
        closes = got.header("connection") == Some("close");
        assert_eq!(got.header("transfer-encoding"), Some("chunked"), "{name}");
        // Each chunk is there before the next is sent: nothing is held back, joined or cut. One JSON value that is
        // longer than a read may be cut: there a boundary means nothing.
        let mut rest = rest.iter();
        let one_value = got.header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
        for (at, chunk) in recording.answer.chunks.iter().enumerate() {
            let mut got = Vec::new();
            while got.is_empty() || (one_value && got.len() < chunk.len()) {
                got.extend(client.chunk().await.unwrap_or_else(|| panic!("{name}: ended in chunk {at}")));
            }
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(chunk), "{name}: chunk {at}");
            rest.next().into_iter().for_each(|next| node::send(&pace, next));
        }
        node::end(&pace, recording.closes());
        if breaks_off {
            let error = client.chunk().await.unwrap_or_else(|| panic!("{name}: broke off without a word"));
            let error = String::from_utf8(error).unwrap();
            assert!(error.contains("\"error\"") && error.ends_with('\n'), "{name}: {error}");
        }
        assert_eq!(client.chunk().await, None, "{name}: more than the node sent");
    }
    if closes {
        assert!(client.is_closed().await, "{name}: said it would close");
        return;
    }
    // The framing was right to the last byte: the connection serves the next request.
    client.send(&request("GET", "/api/version", &[], b"")).await;
    assert_eq!(client.answer().await.expect("kept alive").status, 200, "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_i7_recorded_answers_pass_unchanged_and_are_counted_right() {
    let played: Vec<(Recording, Counted, bool)> = CLAIMS
        .iter()
        .filter_map(|(name, claim)| match claim {
            Claim::Passes(counted) => Some((Recording::load(name), *counted, false)),
            Claim::BreaksOff(counted) => Some((Recording::load(name), *counted, true)),
            _ => None,
        })
        .collect();
    // The node claims every name, the unknown ones too: then it words the answers, as it did.
    let models: BTreeSet<String> = played.iter().filter_map(|(recording, ..)| recording.sent().model()).collect();
    let player = Player::start(&models.iter().map(String::as_str).collect::<Vec<_>>());
    let proxy = Proxy::start(&[player.node.url()], "").await;
    proxy.until_listed("smollm2:135m").await;
    let mut by_model: BTreeMap<String, Tokens> = BTreeMap::new();
    for (recording, counted, breaks_off) in &played {
        let before = proxy.shared().meters.sums();
        play(&player, &proxy, recording, *breaks_off).await;
        let after = proxy.shared().meters.sums();
        let exact = Tokens {
            input: after.exact.input - before.exact.input,
            output: after.exact.output - before.exact.output,
            cached: 0,
        };
        let (input, output) = counted.exact();
        assert_eq!(exact, Tokens { input, output, cached: 0 }, "{}", recording.name);
        let estimated = after.estimated != before.estimated;
        assert_eq!(estimated, counted.is_estimated(), "{}: {:?}", recording.name, after.estimated);
        if input + output > 0 {
            let model = recording.sent().model().unwrap_or_else(|| "smollm2:135m".to_owned());
            let sum = by_model.entry(model).or_default();
            (sum.input, sum.output) = (sum.input + input, sum.output + output);
        }
    }
    assert_eq!(player.node.untaken(), 0, "each was asked once");
    // The ledger has them too, model by model.
    proxy.flush().await;
    let rows = proxy.shared().ledger.rows(Span::Totals).await.unwrap();
    let mut stored: BTreeMap<String, Tokens> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.row.exact.input + row.row.exact.output > 0) {
        assert_eq!(&*row.node, player.node.url().as_str());
        stored.insert(row.model.to_string(), Tokens { cached: 0, ..row.row.exact });
    }
    assert_eq!(stored, by_model);
    assert_eq!(proxy.in_flight(), 0);
}
