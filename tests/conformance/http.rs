//! HTTP as the contract's first page has it, beside the numbered cases: framing, expectations, what nobody reads, several
//! requests on one connection. A node and the gate are sent the same bytes and must answer alike.

use crate::case::Set;
use crate::compare;
use crate::stage::Stage;
use crate::support::client::{Answer, Client};

const SHOW: &str = r#"{"model":"nope"}"#;

/// A head of these lines, and what follows it.
fn raw(line: &str, lines: &[&str], body: &str) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{line} HTTP/1.1\r\n{lines}\r\n{body}").into_bytes()
}

async fn ask(address: std::net::SocketAddr, bytes: &[u8]) -> (Answer, bool) {
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    let answer = if bytes.starts_with(b"HEAD ") { client.head_answer().await } else { client.answer().await };
    let answer = answer.unwrap_or_else(|| panic!("no answer to {}", String::from_utf8_lossy(bytes)));
    // What is said of the connection is what becomes of it.
    let ends = answer.header("connection") == Some("close");
    let ended = if ends {
        client.is_closed().await
    } else {
        client.send(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        client.answer().await.is_none_or(|next| next.status != 200)
    };
    (answer, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_framing() {
    let stage = Stage::of(Set::Full).await;
    let local = "Host: localhost";
    let length = format!("Content-Length: {}", SHOW.len());
    let pad = format!("X-Pad: {}", "x".repeat(60 * 1024));
    let chunks =
        format!("5;a=b\r\n{}\r\n{:x}\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n", &SHOW[..5], SHOW.len() - 5, &SHOW[5..]);
    let exchanges = [
        (raw("POST /api/show", &[local, "Transfer-Encoding: chunked"], &chunks), 404),
        (raw("POST /api/show", &[local, "transfer-encoding: Chunked"], &chunks), 404),
        (raw("POST /api/show", &[local, &length, "Expect: 100-continue"], SHOW), 404),
        (raw("POST /api/show", &[local, &length, "Expect: a-miracle"], SHOW), 417),
        (raw("POST /api/show", &[local, &length, &length], SHOW), 404),
        (raw("POST /api/show", &[local, &length, "Content-Length: 3"], SHOW), 400),
        (raw("POST /api/show", &[local, &length, "Upgrade: websocket", "Connection: Upgrade"], SHOW), 404),
        (raw("POST /api/show", &[local, &length, "Connection: close"], SHOW), 404),
        (raw("POST /api/show", &[local, "Transfer-Encoding: gzip"], ""), 501),
        (raw("GET /api/version", &[local, &pad], ""), 200),
        (raw("GET /api/version", &[local, "Content-Length: 5"], "hello"), 200),
        (raw("GET /api/version?a=b", &["Host: 127.0.0.1:11434"], ""), 200),
        (raw("GET /api/version", &["Host: ollama.example.com"], ""), 403),
        (raw("GET /api/version", &[], ""), 400),
        (raw("GET /api/version", &[local, local], ""), 400),
        (raw("GET /api/version", &[local, "Bad Header: x"], ""), 400),
        (raw("PATCH /api/tags", &[local], ""), 405),
        (raw("HEAD /nope", &[local], ""), 404),
        (raw("HEAD /api/chat", &[local], ""), 405),
        (raw("HEAD /api/version", &[local, "Origin: http://evil.example"], ""), 403),
        (raw("POST /v1/chat/completions", &[local, "Content-Encoding: ZSTD", "Content-Length: 4"], "\x28ab\x7f"), 400),
    ];
    let mut found = Vec::new();
    for (bytes, status) in exchanges {
        let shown = String::from_utf8_lossy(&bytes).chars().take(120).collect::<String>();
        let (direct, direct_ended) = ask(stage.node.address(), &bytes).await;
        let (through, through_ended) = ask(stage.proxy.address, &bytes).await;
        if direct.status != status {
            found.push(format!("{shown:?}: the node says {} instead of {status}", direct.status));
        }
        let mut differ = compare::differences(&direct, &through);
        if direct_ended != through_ended {
            differ.push(format!("the node's connection ended: {direct_ended}, the gate's: {through_ended}"));
        }
        if !differ.is_empty() {
            found.push(format!("{shown:?}\n    {}", differ.join("\n    ")));
        }
    }
    assert!(found.is_empty(), "{} differ\n{}", found.len(), found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_behind_each_other_are_answered_in_order() {
    let stage = Stage::of(Set::Full).await;
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"num_predict":2}}"#;
    let parts = [
        raw("POST /api/show", &["Host: localhost", &format!("Content-Length: {}", SHOW.len())], SHOW),
        raw("POST /nope", &["Host: localhost", "Content-Length: 5"], "hello"),
        raw("POST /api/chat", &["Host: localhost", &format!("Content-Length: {}", chat.len())], chat),
        raw("GET /api/tags/", &["Host: localhost"], ""),
        raw("GET /api/version", &["Host: localhost"], ""),
    ];
    let mut both = Vec::new();
    for address in [stage.node.address(), stage.proxy.address] {
        let mut client = Client::connect(address).await;
        client.send(&parts.concat()).await;
        let mut answers = Vec::new();
        for _ in &parts {
            answers.push(client.answer().await.expect("each is answered"));
        }
        both.push(answers);
    }
    for (direct, through) in both[0].iter().zip(&both[1]) {
        let differ = compare::differences(direct, through);
        assert!(differ.is_empty(), "{}", differ.join("\n"));
    }
    let statuses: Vec<u16> = both[1].iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [404, 404, 200, 301, 200]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_is_waited_for_within_gos_bound() {
    let stage = Stage::of(Set::Empty).await;
    for address in [stage.node.address(), stage.proxy.address] {
        // A short body whose end is late: the answer comes with it, and the connection goes on.
        let mut client = Client::connect(address).await;
        client.send(&raw("POST /nope", &["Host: localhost", "Content-Length: 10"], "01234")).await;
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), client.begin()).await;
        assert!(early.is_err(), "held back until the body has come");
        client.send(b"56789").await;
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (404, None));
        client.send(&raw("GET /api/version", &["Host: localhost"], "")).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        // More than anybody would read: answered at once, and closed.
        let mut client = Client::connect(address).await;
        client.send(&raw("POST /nope", &["Host: localhost", "Content-Length: 300000"], "01234")).await;
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (404, Some("close")));
    }
}
