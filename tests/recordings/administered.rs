//! Administration over a fleet of one, whose node answers as recorded: the client sees what the node's own would see.

use crate::claims::{CLAIMS, Claim};
use crate::node::{self, Player};
use crate::passing::KEPT;
use crate::recording::Recording;
use crate::support::client::{Answer, Client};
use crate::support::proxy::Proxy;
use crate::support::scripted::Asked;

/// What the node answers to a look whether it has a blob.
fn has_blob(name: &str) -> &'static [u8] {
    // In 136, 138 and 139 it did.
    if ["136", "138", "139"].iter().any(|number| name.starts_with(number)) {
        b"HTTP/1.1 200 OK\r\n\r\n"
    } else {
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 102\r\n\r\n"
    }
}

/// Sends a recorded request and plays the node until the client has its answer; also what the node was asked.
async fn converse(player: &Player, proxy: &Proxy, recording: &Recording) -> (Answer, Vec<Asked>) {
    let mut client = Client::connect(proxy.address).await;
    client.send(&recording.request).await;
    let sent = recording.sent();
    let answer = async { if sent.method == "HEAD" { client.head_answer().await } else { client.answer().await } };
    tokio::pin!(answer);
    let mut asked = Vec::new();
    loop {
        let (request, pace) = tokio::select! {
            answer = &mut answer => {
                return (answer.unwrap_or_else(|| panic!("{}: no answer", recording.name)), asked);
            }
            request = player.asked() => request,
        };
        if request.method() == "HEAD" {
            node::send(&pace, has_blob(&recording.name));
            node::end(&pace, false);
        } else {
            assert_eq!((request.method(), request.target()), (sent.method.as_str(), sent.path()), "{}", recording.name);
            recording.pieces.iter().for_each(|piece| node::send(&pace, piece));
            node::end(&pace, recording.closes());
        }
        asked.push(request);
    }
}

/// The text of an answer; of bars the first and the last state of each, as how often one is told is a matter of time.
///
/// A bar that the node leaves unfinished before it goes on is told as full.
fn told(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    let mut told: Vec<String> = Vec::new();
    let mut bar = None;
    for line in text.split_inclusive('\n') {
        let json: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        let Some(digest) = json["digest"].as_str() else {
            told.push(line.to_owned());
            continue;
        };
        if bar.as_deref() != Some(digest) {
            bar = Some(digest.to_owned());
            told.push(line.to_owned());
            told.push(format!("{digest} of {}", json["total"]));
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administration_of_one_node_reads_as_the_nodes_own() {
    let mut found = Vec::new();
    for (name, claim) in CLAIMS {
        let Claim::Administered { asked: times } = claim else { continue };
        let recording = Recording::load(name);
        // Each on a fleet of its own: what one order leaves behind is nothing to the next.
        let player = Player::start(&["smollm2:135m", "third:latest", "fourth:latest"]);
        let proxy = Proxy::start(&[player.node.url()], "").await;
        proxy.until_listed("smollm2:135m").await;
        let (got, asked) = converse(&player, &proxy, &recording).await;
        let recorded = &recording.answer;
        let kept = |answer: &Answer| KEPT.map(|name| answer.header(name).map(str::to_owned));
        let same = got.status == recorded.status && kept(&got) == kept(recorded) && got.whole;
        if !same || told(&got) != told(recorded) {
            let shown = |answer: &Answer| format!("{} {:?} {}", answer.status, answer.headers, answer.text());
            found.push(format!("{name}:\n  recorded {}\n  got      {}", shown(recorded), shown(&got)));
        }
        let shown: Vec<&str> = asked.iter().map(|asked| asked.head.lines().next().unwrap_or_default()).collect();
        if asked.iter().filter(|asked| asked.method() != "HEAD").count() != *times {
            found.push(format!("{name}: the node was asked {shown:?}"));
        }
        for asked in asked.iter().filter(|asked| asked.method() != "HEAD" && asked.target().contains("/blobs/")) {
            assert_eq!(asked.body, recording.sent().body, "{name}");
        }
    }
    assert!(found.is_empty(), "{} differ\n{}", found.len(), found.join("\n"));
}
