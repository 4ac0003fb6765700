//! Attempts: connecting, sending, reading, reuse, and every way they fail.

use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use herdgate::config::{Env, Flags, Sources, load};
use herdgate::fleet::resolve;
use herdgate::http1::DecodeError;
use herdgate::proxy::lingering::Leave;
use herdgate::proxy::upstream::{BodyError, Cause, Stage};
use herdgate::sync::Arc;
use http::Method;

use super::node::{Client, Node, deserted, next, ok, read, run, script, target, unresponsive, until};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_connection_is_used_again() {
    let node = Node::start(vec![script(|mut peer| {
        for expected in ["one", "two", "three"] {
            let (head, body) = peer.request();
            assert!(head.starts_with("POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1:"), "{head}");
            assert_eq!(body, expected.as_bytes());
            peer.answer(ok(expected));
        }
        peer.await_close();
    })]);
    run(async {
        let client = Client::new();
        for text in ["one", "two", "three"] {
            assert_eq!(client.text(&node.target(), text).await, text);
            assert_eq!(client.upstreams.idle(), 1);
        }
        assert_eq!(client.watch.dropped.get(), 3);
        client.upstreams.clear(super::node::NODE);
        assert_eq!(client.upstreams.idle(), 0);
    });
    node.done();
}

#[test]
fn a_head_and_answers_without_body_end_with_their_head() {
    let node = Node::start(vec![script(|mut peer| {
        for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", &ok("")] {
            peer.request();
            peer.answer(answer);
        }
        peer.await_close();
    })]);
    run(async {
        let client = Client::new();
        for method in [Method::HEAD, Method::POST, Method::POST] {
            let mut exchange = client.begin(&node.target(), &method, "", Leave::Close);
            exchange.head().await.expect("head");
            assert!(exchange.is_end());
            assert_eq!(client.upstreams.idle(), 1, "back before the exchange is dropped");
            assert!(next(&mut exchange).await.is_none());
        }
    });
    node.done();
}

#[test]
fn a_node_that_closed_meanwhile_is_noticed_before_it_is_asked() {
    let node = Node::start(vec![
        script(|mut peer| {
            peer.request();
            peer.answer(ok("one"));
        }),
        script(|mut peer| {
            peer.request();
            peer.answer(ok("two"));
            peer.await_close();
        }),
    ]);
    run(async {
        let client = Client::new();
        assert_eq!(client.text(&node.target(), "").await, "one");
        until("the pool notices the close", || {
            client.clock.advance(1000);
            client.upstreams.tick();
            client.upstreams.idle() == 0 || client.clock.now() > 50_000
        })
        .await;
        assert_eq!(client.text(&node.target(), "").await, "two");
    });
    node.done();
}

#[test]
fn a_death_under_way_is_retried_once_and_unseen() {
    let node = Node::start(vec![
        script(|mut peer| {
            peer.request();
            peer.answer(ok("one"));
            // Taken, and died over it.
            assert_eq!(peer.request().1, b"again");
        }),
        script(|mut peer| {
            assert_eq!(peer.request().1, b"again", "the whole request once more");
            peer.answer(ok("two"));
            peer.request();
            peer.reset();
        }),
        script(|mut peer| {
            peer.request();
        }),
    ]);
    run(async {
        let client = Client::new();
        assert_eq!(client.text(&node.target(), "").await, "one");
        assert_eq!(client.text(&node.target(), "again").await, "two");
        let error = client.talk(&node.target(), "third").await.expect_err("the fresh one died too");
        assert!(matches!(error.cause, Cause::Closed), "{error:?}");
        assert_eq!((error.stage, error.reused, error.heard), (Stage::Answer, false, false));
        assert!(error.sent_whole() && !error.retry_safe() && !error.is_refused() && !error.is_ours());
    });
    node.done();
}

#[test]
fn a_death_long_after_sending_is_not_for_us_to_retry() {
    let (die, told) = sync_channel(0);
    let (taken, is_taken) = sync_channel(1);
    let node = Node::start(vec![script(move |mut peer| {
        peer.request();
        peer.answer(ok("one"));
        peer.request();
        taken.send(()).expect("told");
        told.recv().expect("told");
    })]);
    run(async {
        let client = Client::new();
        assert_eq!(client.text(&node.target(), "").await, "one");
        let mut exchange = client.post(&node.target(), "poison");
        let mut head = Box::pin(exchange.head());
        std::future::poll_fn(|cx| {
            // First it waits for the reads of others.
            assert!(head.as_mut().poll(cx).is_pending());
            assert!(head.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        is_taken.recv().expect("taken");
        client.clock.advance(1001);
        die.send(()).expect("die");
        let error = head.await.expect_err("died");
        assert!(matches!(error.cause, Cause::Closed | Cause::Io(_)), "{error:?}");
        assert_eq!((error.stage, error.reused), (Stage::Answer, true));
    });
    node.done();
}

#[test]
fn refused_unknown_and_slow_to_connect() {
    run(async {
        let client = Client::new();
        let error = client.talk(&target(vec![deserted()], 5000), "").await.expect_err("refused");
        assert!(error.is_refused() && error.retry_safe() && !error.is_ours(), "{error:?}");
        assert_eq!(error.stage, Stage::Connect);
        let error = client.talk(&target(vec![], 5000), "").await.expect_err("no address");
        assert!(matches!(error.cause, Cause::NoAddress) && !error.is_refused(), "{error:?}");
        let (address, _full) = unresponsive();
        let error = client.talk(&target(vec![address], 50), "").await.expect_err("no time");
        assert!(matches!(error.cause, Cause::TimedOut) && error.retry_safe() && !error.is_refused(), "{error:?}");
        assert_eq!(client.watch.dropped.get(), 3);
    });
}

#[test]
fn connect_of_a_node_wins_over_the_global_one() {
    let (address, _full) = unresponsive();
    let text = format!(
        "nodes: [ {{ url: 'http://{address}', timeouts: {{ connect: 50ms }} }} ]\ntimeouts: {{ connect: 30s }}"
    );
    let sources = Sources { file: Some(("test.yaml".into(), text)), flags: Flags::default(), env: Env::default() };
    let config = load(&sources).expect("a configuration").config;
    let target = Arc::new(resolve::target(&config.nodes[0], config.timeouts.connect));
    run(async {
        let client = Client::new();
        let error = client.talk(&target, "").await.expect_err("no time");
        assert!(error.is_late(), "{error:?}");
    });
}

#[test]
fn the_second_address_is_tried() {
    let node = Node::start(vec![script(|mut peer| {
        peer.request();
        peer.answer(ok("here"));
        peer.await_close();
    })]);
    run(async {
        let client = Client::new();
        assert_eq!(client.text(&target(vec![deserted(), node.address], 5000), "").await, "here");
    });
    node.done();
}

#[test]
fn broken_before_a_head() {
    let node = Node::start(vec![
        script(|mut peer| {
            peer.request();
            peer.reset();
        }),
        script(|mut peer| {
            peer.request();
            peer.answer("HTTP/1.1 200 OK\r\nContent-");
        }),
        script(|mut peer| {
            peer.request();
            peer.answer("SSH-2.0-OpenSSH_9.6\r\n");
            peer.await_close();
        }),
    ]);
    run(async {
        let client = Client::new();
        let error = client.talk(&node.target(), "").await.expect_err("reset");
        assert!(matches!(error.cause, Cause::Io(_)), "{error:?}");
        assert_eq!((error.stage, error.heard), (Stage::Answer, false));
        let error = client.talk(&node.target(), "").await.expect_err("cut");
        assert!(matches!(error.cause, Cause::Malformed(DecodeError::CutHead)), "{error:?}");
        assert_eq!((error.stage, error.heard), (Stage::Answer, true));
        let error = client.talk(&node.target(), "").await.expect_err("not HTTP");
        assert!(matches!(error.cause, Cause::Malformed(DecodeError::Head(_))), "{error:?}");
        assert_eq!(client.watch.dropped.get(), 3);
        assert_eq!((client.upstreams.idle(), client.upstreams.lingering()), (0, 0));
    });
    node.done();
}

#[test]
fn a_body_cut_short_is_an_error_and_never_an_end() {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ];
    let scripts = answers.map(|answer| {
        script(move |mut peer| {
            peer.request();
            peer.answer(answer);
        })
    });
    let node = Node::start(scripts.into());
    run(async {
        let client = Client::new();
        for _ in answers {
            let mut exchange = client.post(&node.target(), "");
            exchange.head().await.expect("head");
            let first = next(&mut exchange).await.expect("some").expect("payload");
            assert_eq!(first, "half");
            assert!(!exchange.is_end());
            let error = next(&mut exchange).await.expect("some").expect_err("cut");
            assert!(matches!(error, BodyError::Malformed(DecodeError::CutBody)), "{error:?}");
        }
        assert_eq!(client.upstreams.idle(), 0);
    });
    node.done();
}

#[test]
fn a_reset_in_the_body_is_an_error() {
    let (seen, was_seen) = sync_channel(1);
    let node = Node::start(vec![script(move |mut peer| {
        peer.request();
        peer.answer(format!("{CHUNKED}4\r\nhalf\r\n"));
        was_seen.recv().expect("seen");
        peer.reset();
    })]);
    run(async {
        let client = Client::new();
        let mut exchange = client.post(&node.target(), "");
        exchange.head().await.expect("head");
        assert_eq!(next(&mut exchange).await.expect("some").expect("payload"), "half");
        seen.send(()).expect("told");
        let error = next(&mut exchange).await.expect("some").expect_err("reset");
        assert!(matches!(error, BodyError::Io(_)), "{error:?}");
    });
    node.done();
}

#[test]
fn wrong_framing_comes_after_the_payload_before_it() {
    let node = Node::start(vec![script(|mut peer| {
        peer.request();
        peer.answer(format!("{CHUNKED}4\r\ngood\r\nwrong\r\n"));
        peer.await_close();
    })]);
    run(async {
        let client = Client::new();
        let mut exchange = client.post(&node.target(), "");
        exchange.head().await.expect("head");
        assert_eq!(next(&mut exchange).await.expect("some").expect("payload"), "good");
        let error = next(&mut exchange).await.expect("some").expect_err("bad");
        assert!(matches!(error, BodyError::Malformed(DecodeError::Chunk(_))), "{error:?}");
        assert_eq!(client.upstreams.idle(), 0);
    });
    node.done();
}

#[test]
fn chunks_in_odd_pieces_and_all_together() {
    let body: String = (0..64).map(|n| format!("{{\"token\":{n}}}\n")).collect();
    let mut encoded = CHUNKED.to_owned();
    for line in body.split_inclusive('\n') {
        encoded.push_str(&format!("{:x}\r\n{line}\r\n", line.len()));
    }
    encoded.push_str("0\r\n\r\n");
    let node = Node::start(vec![script(move |mut peer| {
        peer.request();
        for byte in encoded.as_bytes() {
            peer.answer([*byte]);
        }
        peer.request();
        peer.answer(&encoded);
        peer.await_close();
    })]);
    run(async {
        let client = Client::new();
        assert_eq!(client.text(&node.target(), "").await, body);
        let mut exchange = client.post(&node.target(), "");
        exchange.head().await.expect("head");
        let frames = read(&mut exchange).await.expect("body");
        assert_eq!(frames.concat(), body.as_bytes());
        assert!(frames.len() <= 2, "64 chunks that came together leave together: {}", frames.len());
        assert_eq!(client.upstreams.idle(), 1);
    });
    node.done();
}

#[test]
fn a_close_delimited_body_ends_with_the_connection() {
    let node = Node::start(vec![script(|mut peer| {
        peer.request();
        peer.answer("HTTP/1.0 200 OK\r\n\r\nall of it");
    })]);
    run(async {
        let client = Client::new();
        assert_eq!(client.text(&node.target(), "").await, "all of it");
        assert_eq!(client.upstreams.idle(), 0);
    });
    node.done();
}

#[test]
fn interim_answers_are_skipped() {
    let node = Node::start(vec![script(|mut peer| {
        peer.request();
        peer.answer("HTTP/1.1 100 Continue\r\n\r\n");
        peer.answer(ok("final"));
        peer.await_close();
    })]);
    run(async {
        assert_eq!(Client::new().text(&node.target(), "").await, "final");
    });
    node.done();
}

#[test]
fn what_the_node_says_about_the_connection_is_kept() {
    let once = |headers: &'static str, rest: &'static str| {
        script(move |mut peer| {
            peer.request();
            peer.answer(format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 2\r\n\r\nok{rest}"));
            peer.await_close();
        })
    };
    let node = Node::start(vec![
        once("Connection: close\r\n", ""),
        once("Keep-Alive: timeout=1\r\n", ""),
        once("", "bytes nobody asked for"),
        script(|mut peer| {
            for _ in 0..2 {
                peer.request();
                peer.answer("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=3\r\nContent-Length: 2\r\n\r\nok");
            }
            peer.await_close();
        }),
        script(|mut peer| {
            for _ in 0..2 {
                peer.request();
                peer.answer("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nContent-Length: 2\r\n\r\nok");
            }
            peer.await_close();
        }),
        once("", ""),
    ]);
    run(async {
        let client = Client::new();
        for case in ["close", "timeout=1", "more bytes"] {
            assert_eq!(client.text(&node.target(), "").await, "ok");
            assert_eq!(client.upstreams.idle(), 0, "{case}");
        }
        for idle in [1, 0] {
            assert_eq!(client.text(&node.target(), "").await, "ok");
            assert_eq!(client.upstreams.idle(), idle, "the last but one of max=3");
        }
        for pause in [3999, 4000] {
            assert_eq!(client.text(&node.target(), "").await, "ok");
            client.clock.advance(pause);
        }
        assert_eq!(client.text(&node.target(), "").await, "ok", "on a fresh connection");
    });
    node.done();
}

const BIG: usize = 30 * 1024 * 1024;

#[test]
fn a_big_body_arrives_whole() {
    let node = Node::start(vec![script(|mut peer| {
        let (_, body) = peer.request();
        assert!(body == pattern(), "{} bytes", body.len());
        peer.answer(ok("got it"));
        peer.request();
        peer.answer(ok("small"));
        peer.await_close();
    })]);
    run(async {
        let client = Client::new();
        let body = Bytes::from(pattern());
        let mut exchange = client.begin(&node.target(), &Method::POST, body, Leave::Close);
        exchange.head().await.expect("head");
        assert_eq!(read(&mut exchange).await.expect("body").concat(), b"got it");
        assert_eq!(client.text(&node.target(), "").await, "small");
    });
    node.done();
}

/// About 30 MB whose period divides no buffer's size.
fn pattern() -> Vec<u8> {
    (0..=250).collect::<Vec<u8>>().repeat(120_000)
}

#[test]
fn an_early_refusal_stops_the_upload() {
    let (read_it, was_read) = sync_channel(1);
    let refusal = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig";
    let node = Node::start(vec![
        script(move |mut peer| {
            peer.head();
            peer.answer(refusal);
            was_read.recv().expect("read");
        }),
        // Answers and closes with the body unread, which resets the connection.
        script(move |mut peer| {
            peer.head();
            peer.answer(refusal);
        }),
    ]);
    run(async {
        let client = Client::new();
        let body = Bytes::from(vec![b'x'; BIG]);
        for _ in 0..2 {
            let mut exchange = client.begin(&node.target(), &Method::POST, body.clone(), Leave::Close);
            let head = exchange.head().await.expect("the answer, not the broken upload");
            assert_eq!((head.status.as_u16(), head.close), (413, true));
            assert_eq!(read(&mut exchange).await.expect("body").concat(), b"big");
            assert_eq!(client.upstreams.idle(), 0);
            let _ = read_it.try_send(());
        }
    });
    node.done();
}

#[test]
fn a_reset_during_the_upload_says_that_it_was_not_sent_whole() {
    let node = Node::start(vec![script(|mut peer| {
        peer.head();
        peer.reset();
    })]);
    run(async {
        let client = Client::new();
        let mut exchange = client.begin(&node.target(), &Method::POST, vec![b'x'; BIG], Leave::Close);
        let error = exchange.head().await.expect_err("reset");
        assert!(matches!(error.cause, Cause::Io(_)), "{error:?}");
        assert_eq!(error.stage, Stage::Send);
        assert!(error.retry_safe() && !error.reused);
        assert!(exchange.take_held().is_some());
    });
    node.done();
}

#[test]
fn an_early_success_does_not_stop_the_upload() {
    let node = Node::start(vec![script(|mut peer| {
        let head = peer.head();
        assert!(head.contains(&format!("content-length: {BIG}\r\n")), "{head}");
        peer.answer(CHUNKED);
        std::io::copy(&mut std::io::Read::take(&mut peer.stream, BIG as u64), &mut std::io::sink()).expect("body");
        peer.answer("4\r\ndone\r\n0\r\n\r\n");
        peer.await_close();
    })]);
    run(async {
        let client = Client::new();
        let mut exchange = client.begin(&node.target(), &Method::POST, vec![b'x'; BIG], Leave::Close);
        exchange.head().await.expect("head");
        assert_eq!(read(&mut exchange).await.expect("body").concat(), b"done");
        assert_eq!(client.upstreams.idle(), 0, "its framing is in doubt");
    });
    node.done();
}
