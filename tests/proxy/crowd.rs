//! Nothing leaks on a node: a thousand clients leave at random moments, and the nodes have lost no socket.
//!
//! The simulated node loses a socket as Ollama does: when a request is cancelled before its scheduler has taken it.

use std::time::Duration;

use herdgate::sim::{Ending, Herd, ModelSpec, NodeSpec};
use herdgate::sync::{Arc, AtomicU64, Ordering};

use crate::exact::Dice;
use crate::failover::STREAMS;
use crate::support::client::{self, Client, post, request};
use crate::support::proxy::{Proxy, eventually};

/// Clients at a time, and one after another.
const DRIVERS: u64 = 20;
const EACH: u64 = 5;
/// Batches of so many clients that make a thousand.
const BATCHES: u64 = 10;
/// Batches at most, where the machine stops in the middle of some.
const TRIES: u64 = 40;

/// How long the slowest node took for the slowest of many small questions, while this lived.
///
/// The nodes lose a request that goes within 20 ms of being *read*; the proxy closes 50 ms after it was *sent*. A machine
/// that lets a node wait for the 30 ms between makes a loss that says nothing of the proxy.
struct Pulse {
    end: Arc<AtomicU64>,
    nodes: Vec<tokio::task::JoinHandle<Duration>>,
}

impl Pulse {
    fn watch(nodes: impl Iterator<Item = std::net::SocketAddr>) -> Self {
        let end = Arc::new(AtomicU64::new(0));
        let nodes = nodes.map(|address| tokio::spawn(slowest(address, end.clone()))).collect();
        Self { end, nodes }
    }

    async fn slowest(self) -> Duration {
        self.end.store(1, Ordering::Release);
        let mut slowest = Duration::ZERO;
        for node in self.nodes {
            slowest = slowest.max(node.await.unwrap());
        }
        slowest
    }
}

async fn slowest(address: std::net::SocketAddr, end: Arc<AtomicU64>) -> Duration {
    let mut client = Client::connect(address).await;
    let mut slowest = Duration::ZERO;
    while end.load(Ordering::Acquire) == 0 {
        let asked = tokio::time::Instant::now();
        client.send(&request("GET", "/api/version", &[], b"")).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    slowest
}

/// One client that leaves somewhere between its connection and the end of its answer.
async fn leave(address: std::net::SocketAddr, dice: &mut Dice) {
    let (path, body) = STREAMS[usize::try_from(dice.roll(STREAMS.len() as u64)).unwrap()];
    let tokens = if dice.roll(4) == 0 { 4 } else { 400 };
    let body = body.replacen('{', &format!(r#"{{"sim":{{"tokens":{tokens},"pace_ms":5}},"#), 1);
    let bytes = post(path, &body);
    let mut client = Client::connect(address).await;
    match dice.roll(6) {
        // In its own request, down to the last byte.
        0 => {
            let sent = usize::try_from(dice.roll(bytes.len() as u64)).unwrap();
            client.send(&bytes[..sent]).await;
        }
        1 => client.send(&bytes).await,
        // At a moment of the first 120 ms, in which the node takes, begins and streams.
        2 | 3 => {
            client.send(&bytes).await;
            tokio::time::sleep(Duration::from_millis(dice.roll(120))).await;
        }
        // Somewhere in the answer.
        _ => {
            client.send(&bytes).await;
            let bytes = usize::try_from(dice.roll(2000)).unwrap() + 1;
            client.answer_up_to(bytes).await;
        }
    }
    match dice.roll(3) {
        0 => client.reset(),
        1 => {
            client.half_close().await;
            client.rest().await;
        }
        _ => drop(client),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_thousand_clients_that_leave_cost_the_nodes_no_socket() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(16);
    let herd = Herd::start(vec![spec(), spec(), spec()]).unwrap();
    for node in herd.nodes() {
        assert_eq!(client::post_once(node.address(), "/api/generate", r#"{"model":"m"}"#).await.status, 200);
    }
    let proxy = Proxy::start(&herd.urls(), "slots: 16").await;
    proxy.until("all are loaded", || async { proxy.loaded("m") == 3 }).await;
    let address = proxy.address;
    let (mut left, mut lost_before) = (0, 0);
    for batch in 0..TRIES {
        let pulse = Pulse::watch(herd.nodes().iter().map(|node| node.address()));
        let drivers = (0..DRIVERS).map(|driver| {
            tokio::spawn(async move {
                let mut dice = Dice(batch * DRIVERS + driver);
                for _ in 0..EACH {
                    leave(address, &mut dice).await;
                }
            })
        });
        for driver in drivers.collect::<Vec<_>>() {
            driver.await.unwrap();
        }
        eventually("all over", || async { proxy.shared().connections() == 0 && proxy.in_flight() == 0 }).await;
        let free = || async { herd.nodes().iter().all(|node| node.ledger().in_flight() == 0) };
        eventually("the nodes are free", free).await;
        let lost: u64 = herd.nodes().iter().map(|node| node.ledger().sockets_lost).sum();
        let slowest = pulse.slowest().await;
        if lost == lost_before || slowest < Duration::from_millis(15) {
            assert_eq!(lost, lost_before, "sockets lost, and no node took longer than {slowest:?} to answer");
            left += 1;
        }
        lost_before = lost;
        if left == BATCHES {
            break;
        }
    }
    assert!(left > 0, "the machine stops so often that nothing can be told");
    let gone: u64 = herd.nodes().iter().map(|node| node.ledger().inference(Ending::ClientGone)).sum();
    let sums = proxy.shared().meters.sums();
    assert!(gone > 300 && sums.endings[1] >= gone, "nodes saw {gone} leave, we {:?}", sums.endings);
    assert_eq!(sums.endings[2..4], [0, 0], "no node failed");
    // The nodes still serve, each through the proxy's kept connections.
    let body = r#"{"model":"m","prompt":"x","stream":false}"#;
    for _ in 0..6 {
        assert_eq!(client::post_once(address, "/api/generate", body).await.status, 200);
    }

    // The count can rise: who cancels at once without the proxy loses a socket.
    for _ in 0..5 {
        let mut client = Client::connect(herd.nodes()[0].address()).await;
        client.send(&post("/api/generate", body)).await;
        client.reset();
    }
    eventually("a socket is lost", || async { herd.nodes()[0].ledger().sockets_lost > 0 }).await;
}
