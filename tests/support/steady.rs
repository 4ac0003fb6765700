//! The proxy under a steady load whose every step is known: what `tests/counting.rs` and `tests/locks.rs` count over.
//!
//! Kept connections on both sides, a node that sends what it is told when it is told, one step at a time, so that no
//! count depends on how fast anything is. Several clients take their steps together: each asks, then each reads.

use std::time::Duration;

use herdgate::sync::Ordering;

use super::client::{Client, request};
use super::proxy::Proxy;
use super::scripted::{Act, After, Asked, Pace, Scripted, Step, answer, chunk, chunked_head, paced};

/// Chunks of a burst.
pub const BURST: u64 = 64;

/// Polled seldom, nothing timed out: the counts are about requests.
const QUIET: &str = "slots: 64\nhealth: { probe: 10s, ps: 60s, tags: 60s }";

/// What ollama-python sends beside Host and Content-Length.
const HEADERS: [(&str, &str); 5] = [
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate"),
    ("connection", "keep-alive"),
    ("content-type", "application/json"),
    ("user-agent", "ollama-python/0.6.3 (x86_64 linux) Python/3.11.7"),
];

/// What a client asks again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// A whole answer of a few hundred bytes.
    Short,
    /// A streamed answer whose 64 chunks arrive together with its head; its end comes with them.
    Burst,
    /// One streamed answer without end, whose chunks arrive one by one.
    Paced,
}

/// The proxy, its node, and clients in the middle of their work.
pub struct Steady {
    proxy: Proxy,
    node: Scripted,
    /// What drives the streams that the node began, in their order.
    begun: flume::Receiver<Pace>,
    clients: Vec<Connection>,
    path: &'static str,
    load: Load,
}

/// One client's connection.
struct Connection {
    client: Client,
    /// The stream that runs, for [`Load::Paced`].
    running: Option<Pace>,
}

impl Steady {
    /// Starts all of it with so many workers, and no client yet.
    pub async fn start(path: &'static str, load: Load, workers: usize) -> Self {
        let (out, begun) = flume::bounded(64);
        let script = move |asked: &Asked| match load {
            Load::Short => answer("200 OK", "application/json; charset=utf-8", whole(asked.target()).as_bytes()),
            Load::Burst => burst(asked.target()),
            Load::Paced => {
                let (sender, act) = paced();
                sender.send(Step::Send(chunked_head(content_type(asked.target())))).unwrap();
                out.send(sender).unwrap();
                act
            }
        };
        let node = Scripted::start(&["m:latest"], script);
        let proxy = Proxy::start(&[node.url()], &format!("workers: {workers}\n{QUIET}")).await;
        proxy.until_listed("m:latest").await;
        Self { proxy, node, begun, clients: Vec::new(), path, load }
    }

    /// One more client; its stream has begun if it is to have one.
    pub async fn connect(&mut self) {
        let mut client = Client::connect(self.proxy.address).await;
        let mut running = None;
        if self.load == Load::Paced {
            client.send(&self.request()).await;
            self.node.next().await;
            let begun = tokio::time::timeout(Duration::from_secs(60), self.begun.recv_async());
            running = Some(begun.await.expect("the node was asked").unwrap());
            assert_eq!(client.begin().await.expect("a head").status, 200);
        }
        self.clients.push(Connection { client, running });
    }

    /// Open connections of each worker.
    pub fn spread(&self) -> Vec<u32> {
        self.proxy.shared().gauges.iter().map(|worker| worker.connections.load(Ordering::Acquire)).collect()
    }

    /// So many requests, bursts or chunks of each client.
    pub async fn run(&mut self, count: u64) {
        let (bytes, sent) = (self.request(), piece(self.path).into_bytes());
        for _ in 0..count {
            for Connection { client, running } in &mut self.clients {
                match running {
                    Some(pace) => pace.send(Step::Send(chunk(&sent))).unwrap(),
                    None => client.send(&bytes).await,
                }
            }
            for Connection { client, running } in &mut self.clients {
                if running.is_some() {
                    assert_eq!(client.chunk().await.as_ref(), Some(&sent));
                } else {
                    let answer = client.answer().await.expect("an answer");
                    assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text());
                    self.node.next().await;
                }
            }
        }
    }

    /// Ends what runs, and the proxy.
    pub async fn stop(self) {
        for Connection { mut client, running } in self.clients {
            if let Some(pace) = running {
                pace.send(Step::Send([chunk(last(self.path).as_bytes()), b"0\r\n\r\n".to_vec()].concat())).unwrap();
                drop(pace);
                while client.chunk().await.is_some() {}
            }
        }
        self.proxy.stop().await;
    }

    fn request(&self) -> Vec<u8> {
        let stream = self.load != Load::Short;
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"hello"}}],"stream":{stream},"max_tokens":4,"options":{{"num_predict":4}}}}"#
        );
        request("POST", self.path, &HEADERS, body.as_bytes())
    }
}

/// Head, 64 chunks and end, all at once.
fn burst(path: &str) -> Act {
    let mut bytes = chunked_head(content_type(path));
    (1..BURST).for_each(|_| bytes.extend(chunk(piece(path).as_bytes())));
    bytes.extend(chunk(last(path).as_bytes()));
    bytes.extend(b"0\r\n\r\n");
    Act::Bytes(bytes, After::Keep)
}

fn content_type(path: &str) -> &'static str {
    if path.starts_with("/v1/") { "text/event-stream" } else { "application/x-ndjson" }
}

/// An answer that is not streamed.
fn whole(path: &str) -> String {
    if path.starts_with("/v1/") {
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":1764028800,"model":"m","system_fingerprint":"fp_ollama","choices":[{"index":0,"message":{"role":"assistant","content":"Hello there."},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":4,"total_tokens":15}}"#.to_owned()
    } else {
        r#"{"model":"m","created_at":"2026-11-25T12:00:00.123456789Z","message":{"role":"assistant","content":"Hello there."},"done":true,"done_reason":"stop","total_duration":100000000,"load_duration":1000000,"prompt_eval_count":11,"prompt_eval_duration":20000000,"eval_count":4,"eval_duration":70000000}"#.to_owned()
    }
}

/// A chunk in mid-stream: a token.
fn piece(path: &str) -> String {
    if path.starts_with("/v1/") {
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1764028800,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\" token\"},\"finish_reason\":null}]}\n\n".to_owned()
    } else {
        "{\"model\":\"m\",\"created_at\":\"2026-11-25T12:00:00.123456789Z\",\"message\":{\"role\":\"assistant\",\"content\":\" token\"},\"done\":false}\n".to_owned()
    }
}

/// What a stream ends with.
fn last(path: &str) -> String {
    if path.starts_with("/v1/") {
        "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1764028800,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":64,\"total_tokens\":75}}\n\ndata: [DONE]\n\n".to_owned()
    } else {
        format!("{}\n", whole(path))
    }
}
