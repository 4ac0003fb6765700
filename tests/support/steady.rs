//! The proxy under a steady load whose every step is known: what `tests/counting.rs` and `tests/locks.rs` count over.
//!
//! Kept connections on both sides, a node that sends what it is told when it is told, one step at a time, so that no
//! count depends on how fast anything is.

use std::net::SocketAddr;
use std::time::Duration;

use super::client::{Client, request};
use super::proxy::Proxy;
use super::scripted::{Asked, Pace, Scripted, Step, answer, chunk, chunked_head, paced};

/// Chunks of a burst.
pub const BURST: u64 = 64;

/// Polled seldom, nothing timed out: the counts are about requests.
const QUIET: &str = "health: { probe: 10s, ps: 60s, tags: 60s }";

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

/// The proxy, its node, and one client connection in the middle of its work.
pub struct Steady {
    proxy: Proxy,
    node: Scripted,
    pace: flume::Receiver<Pace>,
    client: Client,
    path: &'static str,
    load: Load,
    /// The stream that runs, for [`Load::Paced`].
    running: Option<Pace>,
}

impl Steady {
    /// Starts all of it with so many workers, and asks until nothing is done for the first time any more.
    pub async fn start(path: &'static str, load: Load, workers: usize) -> Self {
        let (out, pace) = flume::bounded(64);
        let script = move |asked: &Asked| match load {
            Load::Short => answer("200 OK", "application/json; charset=utf-8", whole(asked.target()).as_bytes()),
            Load::Burst => {
                let target = asked.target();
                let mut bytes = chunked_head(content_type(target));
                (0..BURST - 1).for_each(|_| bytes.extend(chunk(piece(target).as_bytes())));
                bytes.extend(chunk(last(target).as_bytes()));
                bytes.extend(b"0\r\n\r\n");
                super::scripted::Act::Bytes(bytes, super::scripted::After::Keep)
            }
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
        let client = Client::connect(proxy.address).await;
        let mut steady = Self { proxy, node, pace, client, path, load, running: None };
        if load == Load::Paced {
            steady.begin().await;
        }
        steady
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.proxy.address
    }

    /// So many requests, bursts or chunks, one after the other.
    pub async fn run(&mut self, count: u64) {
        let bytes = request("POST", self.path, &HEADERS, body(self.load).as_bytes());
        for _ in 0..count {
            match self.load {
                Load::Paced => {
                    let sent = piece(self.path).into_bytes();
                    self.running.as_ref().unwrap().send(Step::Send(chunk(&sent))).unwrap();
                    assert_eq!(self.client.chunk().await, Some(sent));
                }
                Load::Short | Load::Burst => {
                    self.client.send(&bytes).await;
                    let answer = self.client.answer().await.expect("an answer");
                    assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text());
                    self.node.next().await;
                }
            }
        }
    }

    /// A further connection in place of the one so far.
    pub async fn reconnect(&mut self) {
        self.client = Client::connect(self.proxy.address).await;
        if self.load == Load::Paced {
            self.begin().await;
        }
    }

    /// Starts the stream whose chunks [`Steady::run`] sends.
    async fn begin(&mut self) {
        self.client.send(&request("POST", self.path, &HEADERS, body(self.load).as_bytes())).await;
        self.node.next().await;
        let pace = tokio::time::timeout(Duration::from_secs(60), self.pace.recv_async());
        self.running = Some(pace.await.expect("the node was asked").unwrap());
        assert_eq!(self.client.begin().await.expect("a head").status, 200);
    }

    /// Ends what runs, and the proxy.
    pub async fn stop(mut self) {
        if let Some(pace) = self.running.take() {
            pace.send(Step::Send([chunk(last(self.path).as_bytes()), b"0\r\n\r\n".to_vec()].concat())).unwrap();
            drop(pace);
            while self.client.chunk().await.is_some() {}
        }
        drop(self.client);
        self.proxy.stop().await;
    }
}

fn body(load: Load) -> String {
    let stream = load != Load::Short;
    format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"hello"}}],"stream":{stream},"max_tokens":4,"options":{{"num_predict":4}}}}"#
    )
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
