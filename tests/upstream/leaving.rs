//! Exchanges whose client leaves: closed late enough, drained, detached; and the permit goes exactly once.

use std::future::poll_fn;
use std::sync::mpsc::sync_channel;
use std::task::Poll;
use std::time::Duration;

use herdgate::clock::Clock;
use herdgate::proxy::lingering::Leave;
use herdgate::proxy::upstream::{Detached, Exchange, Settings};
use herdgate::sync::spawn_local;
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::node::{Client, Node, Permit, next, ok, run, script, target, until};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

impl Client {
    /// With its lingering task.
    fn running(settings: Settings, clock: Clock) -> Self {
        let client = Self::with(settings, clock);
        spawn_local(client.upstreams.clone().run());
        client
    }

    fn gone(&self, lingering: usize, dropped: usize) -> bool {
        self.upstreams.lingering() == lingering && self.watch.dropped.get() == dropped
    }
}

/// Polls for the head a first time, then until `sent` says that the node has the request.
async fn send(exchange: &mut Exchange<Permit>, mut sent: impl FnMut() -> bool) {
    for _ in 0..2_000_000 {
        let polled = poll_fn(|cx| Poll::Ready(exchange.poll_head(cx).is_pending())).await;
        assert!(polled, "answered too early");
        if sent() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the node never had the request");
}

/// Polls until the connection has begun: once it waits for the reads of others.
async fn connect(exchange: &mut Exchange<Permit>) {
    for _ in 0..2 {
        let pending = poll_fn(|cx| Poll::Ready(exchange.poll_head(cx).is_pending())).await;
        assert!(pending);
    }
}

/// A node that takes one request, says so, then does as `then` says.
fn one(then: impl FnOnce(super::node::Peer) + Send + 'static) -> (Node, impl FnMut() -> bool) {
    let (taken, is_taken) = sync_channel(1);
    let node = Node::start(vec![script(move |mut peer| {
        peer.request();
        taken.send(()).expect("told");
        then(peer);
    })]);
    (node, move || is_taken.try_recv().is_ok())
}

/// Lets the lingering task look at least once.
async fn sweep() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(200)).await;
    tokio::time::resume();
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn i12_over_sockets_the_close_comes_after_50_ms() {
    let (closed, when) = sync_channel(1);
    let (node, sent) = one(move |mut peer| {
        peer.await_close();
        closed.send(Instant::now()).expect("told");
    });
    run(async {
        let client = Client::running(Settings::default(), Clock::system());
        let mut exchange = client.post(&node.target(), "leave me");
        // Before the request is sent, so that what is measured is never too long.
        let start = Instant::now();
        send(&mut exchange, sent).await;
        drop(exchange);
        until("the close", || client.gone(0, 1)).await;
        let after = when.recv().expect("closed").duration_since(start);
        assert!(after.as_millis() >= 50, "closed after {after:?}");
    });
    node.done();
}

#[test]
fn i12_the_deadline_is_exact() {
    let (node, sent) = one(|mut peer| peer.await_close());
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        let mut exchange = client.post(&node.target(), "");
        send(&mut exchange, sent).await;
        client.clock.advance(30);
        drop(exchange);
        client.clock.advance(19);
        sweep().await;
        assert!(client.gone(1, 0), "49 ms after the request");
        client.clock.advance(1);
        sweep().await;
        assert!(client.gone(0, 1), "50 ms after the request");
        assert_eq!(client.upstreams.idle(), 0);
    });
    node.done();
}

#[test]
fn after_50_ms_it_is_closed_at_once() {
    let (node, sent) = one(|mut peer| {
        peer.answer(format!("{CHUNKED}3\r\none\r\n"));
        peer.await_close();
    });
    run(async {
        // No task runs: nothing may be left to it.
        let client = Client::new();
        let mut exchange = client.post(&node.target(), "");
        let mut sent = sent;
        exchange.head().await.expect("head");
        assert!(sent());
        client.clock.advance(50);
        drop(exchange);
        assert!(client.gone(0, 1));
    });
    node.done();
}

#[test]
fn before_anything_is_sent_it_is_closed_at_once() {
    let node = Node::start(vec![script(|mut peer| peer.await_close()), script(|mut peer| peer.await_close())]);
    run(async {
        let client = Client::new();
        drop(client.post(&node.target(), "never polled: the node hears nothing"));
        assert!(client.gone(0, 1));
        // While it connects. The node sees the connection and no byte on it.
        let mut exchange = client.post(&node.target(), "");
        connect(&mut exchange).await;
        drop(exchange);
        assert!(client.gone(0, 2));
        let mut again = client.post(&target(vec![node.address], 5000), "");
        connect(&mut again).await;
        drop(again);
        assert!(client.gone(0, 3));
    });
    node.done();
}

#[test]
fn a_request_sent_in_part_is_closed_at_once() {
    let (leave, left) = sync_channel(0);
    let node = Node::start(vec![script(move |mut peer| {
        peer.head();
        left.recv().expect("left");
        let taken = std::io::copy(&mut peer.stream, &mut std::io::sink());
        assert!(taken.is_err() || taken.is_ok_and(|taken| taken < 30_000_000));
    })]);
    run(async {
        let client = Client::new();
        let leave_by = Leave::Detach { streamed: true };
        let mut exchange = client.begin(&node.target(), &Method::POST, vec![0; 30_000_000], leave_by);
        for _ in 0..100 {
            let pending = poll_fn(|cx| Poll::Ready(exchange.poll_head(cx).is_pending())).await;
            assert!(pending);
            tokio::task::yield_now().await;
        }
        drop(exchange);
        assert!(client.gone(0, 1));
        leave.send(()).expect("told");
    });
    node.done();
}

#[test]
fn an_answer_that_ends_while_lingering_saves_its_connection() {
    let (left, leave) = sync_channel(1);
    let (node, sent) = one(move |mut peer| {
        leave.recv().expect("left");
        peer.answer(ok("nobody reads this"));
        peer.request();
        peer.answer(ok("two"));
        peer.await_close();
    });
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        let mut exchange = client.post(&node.target(), "");
        send(&mut exchange, sent).await;
        drop(exchange);
        left.send(()).expect("told");
        until("the answer", || client.gone(0, 1)).await;
        assert_eq!(client.upstreams.idle(), 1);
        assert_eq!(client.text(&node.target(), "").await, "two");
    });
    node.done();
}

#[test]
fn a_drain_waits_for_the_terminator_and_saves_the_connection() {
    let (left, leave) = sync_channel(1);
    let (node, _sent) = one(move |mut peer| {
        peer.answer(format!("{CHUNKED}6\r\n[DONE]\r\n"));
        leave.recv().expect("left");
        peer.answer("0\r\n\r\n");
        peer.request();
        peer.answer(ok("two"));
        peer.await_close();
    });
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        let mut exchange = client.post(&node.target(), "");
        exchange.head().await.expect("head");
        assert_eq!(next(&mut exchange).await.expect("some").expect("payload"), "[DONE]");
        exchange.set_leave(Leave::Drain);
        client.clock.advance(5000);
        drop(exchange);
        client.clock.advance(49);
        sweep().await;
        assert!(client.gone(1, 0));
        left.send(()).expect("told");
        until("the terminator", || client.gone(0, 1)).await;
        assert_eq!(client.upstreams.idle(), 1);
        assert_eq!(client.text(&node.target(), "").await, "two");
    });
    node.done();
}

#[test]
fn a_drain_without_a_terminator_is_closed_after_50_ms() {
    let (node, _sent) = one(|mut peer| {
        peer.answer(format!("{CHUNKED}6\r\n[DONE]\r\n"));
        peer.await_close();
    });
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        let mut exchange = client.begin(&node.target(), &Method::POST, "", Leave::Drain);
        exchange.head().await.expect("head");
        drop(exchange);
        client.clock.advance(50);
        sweep().await;
        assert!(client.gone(0, 1));
        assert_eq!(client.upstreams.idle(), 0);
    });
    node.done();
}

/// Sends a request that loads a model, and leaves it.
async fn detach(client: &Client, node: &Node, streamed: bool, sent: impl FnMut() -> bool) {
    let mut exchange = client.begin(&node.target(), &Method::POST, "load", Leave::Detach { streamed });
    send(&mut exchange, sent).await;
    drop(exchange);
}

#[test]
fn a_detached_stream_lives_until_its_first_byte() {
    let (ready, is_ready) = sync_channel(1);
    let (node, sent) = one(move |mut peer| {
        is_ready.recv().expect("ready");
        peer.answer(format!("{CHUNKED}3\r\none\r\n"));
        peer.await_close();
    });
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        detach(&client, &node, true, sent).await;
        client.clock.advance(299_999);
        client.watch.loaded.set(true);
        sweep().await;
        assert!(client.gone(1, 0), "a stream's first byte decides, whatever ps says");
        ready.send(()).expect("told");
        until("the first byte", || client.gone(0, 1)).await;
        assert_eq!(*client.watch.reports.borrow(), [Detached::Answered(StatusCode::OK)]);
    });
    node.done();
}

#[test]
fn a_detached_request_without_a_stream_lives_until_the_model_is_up() {
    let (node, sent) = one(|mut peer| peer.await_close());
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        detach(&client, &node, false, sent).await;
        client.clock.advance(60_000);
        sweep().await;
        assert!(client.gone(1, 0));
        client.watch.loaded.set(true);
        sweep().await;
        assert!(client.gone(0, 1));
        assert_eq!(*client.watch.reports.borrow(), [Detached::Loaded]);
    });
    node.done();
}

#[test]
fn a_detached_request_that_breaks_says_so() {
    let (die, told) = sync_channel(1);
    let (node, sent) = one(move |_| told.recv().expect("told"));
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        detach(&client, &node, true, sent).await;
        die.send(()).expect("told");
        until("the breakage", || client.gone(0, 1)).await;
        assert_eq!(*client.watch.reports.borrow(), [Detached::Failed]);
    });
    node.done();
}

#[test]
fn a_detached_error_is_reported_with_its_status() {
    let (left, leave) = sync_channel(1);
    let (node, sent) = one(move |mut peer| {
        leave.recv().expect("left");
        peer.answer("HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno");
        peer.await_close();
    });
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        detach(&client, &node, false, sent).await;
        left.send(()).expect("told");
        until("the answer", || client.gone(0, 1)).await;
        assert_eq!(*client.watch.reports.borrow(), [Detached::Answered(StatusCode::INTERNAL_SERVER_ERROR)]);
        assert_eq!(client.upstreams.idle(), 1);
        client.upstreams.clear(super::node::NODE);
    });
    node.done();
}

#[test]
fn a_detached_request_is_given_up_in_the_end() {
    let (node, sent) = one(|mut peer| peer.await_close());
    run(async {
        let client = Client::running(Settings::default(), Clock::manual(0));
        detach(&client, &node, true, sent).await;
        client.clock.advance(299_999);
        sweep().await;
        assert!(client.gone(1, 0));
        client.clock.advance(1);
        sweep().await;
        assert!(client.gone(0, 1));
        assert_eq!(*client.watch.reports.borrow(), [Detached::GaveUp]);
    });
    node.done();
}

#[test]
fn detached_requests_are_bounded() {
    let (node, sent) = one(|mut peer| peer.await_close());
    run(async {
        let settings = Settings { detached_max: 0, ..Settings::default() };
        let client = Client::running(settings, Clock::manual(0));
        detach(&client, &node, true, sent).await;
        client.clock.advance(50);
        sweep().await;
        assert!(client.gone(0, 1));
        assert!(client.watch.reports.borrow().is_empty());
    });
    node.done();
}
