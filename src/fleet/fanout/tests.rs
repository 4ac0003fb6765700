//! Every bound in time of an order, on a clock that jumps: a node that falls silent at each point where it can, and what
//! an order does with what was kept before it.

use std::cell::Cell;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::exchange::{Exchange, Fail, Framing};
use super::pending::Entry;
use super::*;
use crate::config::{Config, NodeKind};
use crate::fleet::{NodeView, Target};

const MINUTE: Duration = Duration::from_secs(60);
/// Timers are rounded up.
const TICK: Duration = Duration::from_millis(10);

fn view(name: &str, up: bool) -> Snapshot {
    let node = NodeView { up, ..NodeView::bare(NodeId(0), name, NodeKind::Ollama, 1) };
    Snapshot { nodes: [Arc::new(node)].into(), ready: true, ..Snapshot::empty() }
}

/// A desk of one node `a`, its files in `folder`.
fn desk(folder: &tempfile::TempDir, up: bool) -> Rc<Desk> {
    let config = InForce::new(Config { data: folder.path().to_owned(), ..Config::default() });
    let snapshot = Arc::new(ArcSwap::from_pointee(view("a", up)));
    let (reports, receiver) = crate::fleet::report::channel();
    drop(receiver);
    Desk::new(&config, &snapshot, &Clock::system(), reports, &Arc::default())
}

/// A node that says one thing after the other to whoever connects, each once it has heard something, and then nothing
/// for ever; and the paths that it was asked for.
async fn falls_silent(says: &[&str]) -> (Arc<Target>, flume::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        addresses: ArcSwap::from_pointee(vec![listener.local_addr().unwrap()]),
        host: "a".into(),
        connect_ms: 2_000,
        ..Target::default()
    };
    let (heard, paths) = flume::bounded(16);
    let mut says: std::collections::VecDeque<String> = says.iter().map(|text| (*text).to_owned()).collect();
    spawn_local(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 64 * 1024];
            let read = stream.read(&mut buffer).await.unwrap_or(0);
            let _ = heard.send(String::from_utf8_lossy(&buffer[..read]).lines().next().unwrap_or_default().to_owned());
            if let Some(text) = says.pop_front() {
                stream.write_all(text.as_bytes()).await.unwrap();
            }
            held.push(stream);
        }
    });
    (Arc::new(target), paths)
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn goal(target: &Arc<Target>) -> Goal {
    Goal { node: NodeId(0), name: "a".into(), target: Arc::clone(target), digest: Some("d1".into()), there: None }
}

fn lost(text: &str) -> Fail {
    Fail::Lost(text.to_owned())
}

fn entry(operation: &str) -> Entry {
    let text = format!(
        r#"{{"id":0,"node":"a","operation":"{operation}","model":"m","key":"m:latest","digest":"d1","ordered_unix_ms":1,"expires_unix_ms":99999999999999}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn silence_without_a_stream_ends_only_once_the_node_was_down_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let desk = desk(&folder, true);
    let idle = desk.config.now().timeouts.stream_idle;
    let never = || std::future::pending::<Result<(), Fail>>();
    let up = tokio::time::timeout(100 * idle, desk.bounded(NodeId(0), false, never())).await;
    assert!(up.is_err(), "a node that is up may take as long as it wants");

    // Down, for a moment up again, down for good.
    desk.snapshot.store(Arc::new(view("a", false)));
    let began = Instant::now();
    let (flapped, bounded) = tokio::join!(
        async {
            tokio::time::sleep(idle - 2 * LOOK_EVERY).await;
            desk.snapshot.store(Arc::new(view("a", true)));
            tokio::time::sleep(2 * LOOK_EVERY).await;
            desk.snapshot.store(Arc::new(view("a", false)));
            began.elapsed()
        },
        desk.bounded(NodeId(0), false, never()),
    );
    assert_eq!(bounded, Err(lost(&format!("down for {} ms", millis(idle)))));
    let took = began.elapsed();
    assert!(took >= flapped + idle - LOOK_EVERY && took <= flapped + idle + LOOK_EVERY, "{took:?}");
    assert_eq!(desk.bounded(NodeId(0), false, async { Ok(7) }).await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_begin_ends_after_the_time_of_a_silent_one() {
    let folder = tempfile::tempdir().unwrap();
    let desk = desk(&folder, true);
    let idle = desk.config.now().timeouts.stream_idle;
    let began = Instant::now();
    let bounded = desk.bounded(NodeId(0), true, std::future::pending::<Result<(), Fail>>()).await;
    assert_eq!(bounded, Err(lost(&format!("silent for {} ms", millis(idle)))));
    assert_eq!(began.elapsed(), idle);
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_lost_after_its_time_whenever_that_is() {
    let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1e\r\n{\"status\":\"pulling manifest\"}\n\r\n";
    let work = async {
        for says in [&[][..], &[begun]] {
            let (target, heard) = falls_silent(says).await;
            let (events, lines) = flume::bounded(4);
            let followed = spawn_local(async move {
                progress::follow(&target, RequestId::NONE, Verb::Pull, b"{}", MINUTE, Some((0, &events))).await
            });
            // To the point where it hangs in real time; from there on time alone passes.
            assert_eq!(heard.recv_async().await.unwrap(), "POST /api/pull HTTP/1.1");
            if !says.is_empty() {
                lines.recv_async().await.unwrap();
            }
            tokio::time::pause();
            let began = Instant::now();
            assert_eq!(followed.await.unwrap(), Err(lost("silent for 60000 ms")));
            assert!(began.elapsed() <= MINUTE + TICK);
            tokio::time::resume();
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_refusal_without_an_end_and_a_node_that_takes_nothing_are_lost() {
    let work = async {
        let (target, _heard) = falls_silent(&["HTTP/1.1 400 Bad Request\r\ncontent-length: 99\r\n\r\n{"]).await;
        let (mut exchange, head) = Exchange::ask(&target, RequestId::NONE, "POST", "/api/pull", b"{}").await.unwrap();
        tokio::time::pause();
        assert_eq!(exchange.refused(head).await, lost("a refusal (400) without an end"));
        tokio::time::resume();

        let (target, heard) = falls_silent(&[]).await;
        let framing = Framing::Chunked;
        let mut exchange = Exchange::begin(&target, RequestId::NONE, "POST", "/api/blobs/x", framing).await.unwrap();
        heard.recv_async().await.unwrap();
        tokio::time::pause();
        let piece = vec![7; 1024 * 1024];
        let failed = loop {
            // What the sockets' buffers hold goes at once.
            match exchange.send(&piece, MINUTE).await {
                Ok(answers) => assert!(!answers),
                Err(fail) => break fail,
            }
        };
        assert_eq!(failed, lost("took no byte for 60 s"));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_blob_is_asked_for_and_confirmed_in_bounds() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let work = async {
        let (target, heard) = falls_silent(&[]).await;
        let goals = [goal(&target)];
        let asked = spawn_local({
            let (goals, digest) = (goals.clone(), digest.clone());
            async move { blobs::have(&goals, RequestId::NONE, &digest).await }
        });
        heard.recv_async().await.unwrap();
        tokio::time::pause();
        let began = Instant::now();
        assert_eq!(asked.await.unwrap(), [None], "neither there nor missing");
        assert!(began.elapsed() <= Duration::from_secs(10) + TICK);
        let began = Instant::now();
        let digests: Vec<String> = (0..40).map(|at| format!("sha256:{at:064x}")).collect();
        assert_eq!(blobs::lacking(&goals, RequestId::NONE, &digests).await, [None], "it finds out for itself");
        assert!(began.elapsed() <= Duration::from_secs(30) + TICK);
        tokio::time::resume();

        let (target, heard) = falls_silent(&[]).await;
        let framing = Framing::Length(1);
        let mut exchange = Exchange::begin(&target, RequestId::NONE, "POST", "/api/blobs/x", framing).await.unwrap();
        heard.recv_async().await.unwrap();
        let (pieces, taken) = flume::bounded(2);
        pieces.send(Piece::Data(Bytes::from_static(b"x"))).unwrap();
        pieces.send(Piece::End).unwrap();
        tokio::time::pause();
        assert_eq!(blobs::pass(&mut exchange, taken).await, Err(lost("no answer for 600 s")));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_deletion_that_is_not_answered_ends_for_its_order_and_for_what_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let work = async {
        let (target, heard) = falls_silent(&[]).await;
        let goals = [goal(&target)];
        let asked = spawn_local(async move {
            short::everywhere(&goals, RequestId::NONE, Verb::Delete, &Bytes::from_static(b"{}")).await
        });
        assert_eq!(heard.recv_async().await.unwrap(), "DELETE /api/delete HTTP/1.1");
        tokio::time::pause();
        assert_eq!(asked.await.unwrap(), [Err(lost("no answer for 60 s"))]);
        tokio::time::resume();

        let desk = desk(&folder, true);
        let tags = answer("200 OK", r#"{"models":[{"name":"m:latest","model":"m:latest","digest":"d1"}]}"#);
        let (target, heard) = falls_silent(&[&tags]).await;
        let sent = Rc::new(Cell::new(false));
        let attempt = spawn_local({
            let (desk, sent) = (Rc::clone(&desk), Rc::clone(&sent));
            async move { catch_up::carry_out(&desk, &entry("delete"), &target, &sent).await }
        });
        assert_eq!(heard.recv_async().await.unwrap(), "GET /api/tags HTTP/1.1");
        assert!(!sent.get(), "it may still be taken back");
        assert_eq!(heard.recv_async().await.unwrap(), "DELETE /api/delete HTTP/1.1");
        assert!(sent.get());
        tokio::time::pause();
        assert_eq!(attempt.await.unwrap(), Err("no answer for 60000 ms".to_owned()));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_order_waits_for_a_deletion_that_was_sent_and_takes_back_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let work = async {
        let desk = desk(&folder, true);
        // Milliseconds that the attempt takes, whether its node has been told, how long the newer order waits at most
        // (with the time for its file, which passes at once on this clock).
        for (takes_ms, sent, waits_ms) in [(3_000, true, 8_100), (3_000, false, 5_100), (60_000, true, 15_100)] {
            desk.keeper.add(vec![entry("delete")]).await;
            let kept = desk.keeper.due(2, |_| true).await.pop().unwrap();
            let carried_out = Rc::new(Cell::new(false));
            let attempt = spawn_local({
                let (desk, carried_out, id) = (Rc::clone(&desk), Rc::clone(&carried_out), kept.id);
                async move {
                    tokio::time::sleep(Duration::from_millis(takes_ms)).await;
                    carried_out.set(true);
                    desk.keeper.attempted(id, Ok(()), 2).await;
                }
            });
            desk.keeper.begun(&kept, attempt.abort_handle(), Rc::new(Cell::new(sent)));
            let began = Instant::now();
            let aside = desk.keeper.aside("m:latest", |node| node == "a").await;
            let waited = began.elapsed();
            assert_eq!(aside.ended, ["a"]);
            assert!(waited <= Duration::from_millis(waits_ms), "{waited:?} for {takes_ms} ms, sent: {sent}");
            let ends = sent && takes_ms < 10_000;
            assert_eq!(carried_out.get(), ends, "an order never begins while an older one is carried out");
            tokio::time::sleep(2 * MINUTE).await;
            assert_eq!(carried_out.get(), ends, "the rest was taken back");
            assert_eq!(desk.keeper.under_way(), 0);
            // The newer order did nothing: it is there again, once.
            desk.keeper.put_back(aside, |_| true).await;
            assert_eq!(desk.keeper.listed()["pending"].as_array().unwrap().len(), 1);
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_cancelled_while_it_is_carried_out_is_not_called_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let work = async {
        let desk = desk(&folder, true);
        for sent in [true, false] {
            desk.keeper.add(vec![entry("delete")]).await;
            let kept = desk.keeper.due(2, |_| true).await.pop().unwrap();
            let attempt = spawn_local({
                let (desk, id) = (Rc::clone(&desk), kept.id);
                async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    desk.keeper.attempted(id, Ok(()), 2).await;
                }
            });
            desk.keeper.begun(&kept, attempt.abort_handle(), Rc::new(Cell::new(sent)));
            assert_eq!(desk.keeper.cancel(kept.id).await.is_none(), sent);
            assert!(desk.keeper.listed()["pending"].as_array().unwrap().is_empty());
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_waits_for_a_stalled_disk_in_bounds_and_writes_later() {
    let folder = tempfile::tempdir().unwrap();
    let fresh = folder.path().join("pending.json.new");
    // Opening it blocks until somebody reads: a disk that stalls.
    assert!(std::process::Command::new("mkfifo").arg(&fresh).status().unwrap().success());
    let work = async {
        let desk = desk(&folder, true);
        let began = Instant::now();
        assert_eq!(desk.keeper.add(vec![entry("pull")]).await, ["a"], "in memory");
        assert!(began.elapsed() <= Duration::from_secs(5) + TICK);
        // A further change does not begin a second writer.
        assert!(desk.keeper.cancel(7).await.is_none());
        desk.keeper.add(vec![Entry { node: "b".to_owned(), ..entry("pull") }]).await;
        // The disk is back: what is written then is all of it.
        let reader = std::fs::File::open(&fresh).unwrap();
        drop(reader);
        std::fs::remove_file(&fresh).unwrap();
        tokio::time::resume();
        let path = folder.path().join("pending.json");
        for minute in 1.. {
            desk.keeper.store_again(minute * 60_000).await;
            if std::fs::read_to_string(&path).is_ok_and(|text| text.contains("\"b\"")) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    LocalSet::new().run_until(work).await;
}
