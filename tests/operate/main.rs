//! What an operator does to the running proxy, over real sockets: reloads, keys, nodes that come and go, drain, upgrades.

#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "in a test, a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod drain;
mod node_slots;
mod nodes;
mod reload;
mod stuck;
mod times;

use herdgate::sync::{Arc, AtomicBool, AtomicU64, Ordering};
use support::client::{Answer, Client, post, request};
use support::proxy::Proxy;

pub(crate) const BODY: &str = r#"{"model":"m","prompt":"hi","stream":false}"#;

/// A POST with a router key.
pub(crate) fn keyed(path: &str, key: &str, body: &str) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    request("POST", path, &[("Authorization", &bearer), ("Content-Type", "application/json")], body.as_bytes())
}

/// Clients that send request after request on kept connections until they are told to stop; every answer must be a 200.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// Requests answered.
    pub(crate) done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// Starts `clients` of them; `next` says what each sends next.
    pub(crate) fn start(
        clients: usize,
        address: std::net::SocketAddr,
        next: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let (stop, done, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(next));
        let tasks = (0..clients).map(|_| {
            let (stop, done, next) = (stop.clone(), done.clone(), next.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                while !stop.load(Ordering::Acquire) {
                    client.send(&next()).await;
                    let answer: Answer = client.answer().await.expect("no connection is dropped");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert!(answer.whole);
                    done.fetch_add(1, Ordering::AcqRel);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, done, tasks }
    }

    /// Waits for so many more answers.
    pub(crate) async fn more(&self, count: u64) {
        let wanted = self.done.load(Ordering::Acquire) + count;
        support::proxy::eventually("more answers", || async {
            self.done.load(Ordering::Acquire) >= wanted || self.tasks.iter().any(tokio::task::JoinHandle::is_finished)
        })
        .await;
        assert!(self.tasks.iter().all(|task| !task.is_finished()), "a client met an error");
    }

    /// Lets every client finish its request; fails if one met an error.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.done.load(Ordering::Acquire)
    }
}

/// Clients that have asked for [`BODY`] and wait for their answers.
pub(crate) async fn asking(proxy: &Proxy, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Client::connect(proxy.address).await;
        client.send(&post("/api/generate", BODY)).await;
        clients.push(client);
    }
    clients
}
