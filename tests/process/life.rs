//! A start that hangs, a log that nobody reads, a disk that fills: what an operator meets at three in the morning.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use herdgate::sync::spawn_thread;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, prlimit};

use crate::support::client::{self, Client, post};
use crate::support::proxy::eventually;
use crate::{BINARY, Serving, configure, herd, sent, until_listed};

fn signal(child: &Child, signal: Signal) {
    kill_process(pid(child.id()), signal).unwrap();
}

fn pid(of: u32) -> Pid {
    Pid::from_raw(i32::try_from(of).unwrap()).unwrap()
}

/// A pipe that nobody writes, where the list of drained nodes is read: a disk that stalls during the start.
fn stall_start(directory: &Path) -> std::path::PathBuf {
    let pipe = directory.join("data").join("drained.json");
    std::fs::create_dir_all(directory.join("data")).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    pipe
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_during_a_start_that_hangs_ends_it_cleanly_at_once() {
    for kind in [Signal::TERM, Signal::INT] {
        let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
        let config = configure(directory.path(), &herd.urls(), "");
        stall_start(directory.path());
        let mut command = Command::new(BINARY);
        command.arg("serve").arg("--config").arg(&config).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        // Signals are heard from before the first line on.
        let mut first = String::new();
        assert!(log.read_line(&mut first).unwrap() > 0);
        signal(&child, kind);
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
        assert!(rest.contains("signalled before it had started") && !rest.contains("\"serving\""), "{rest}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_during_a_start_that_hangs_is_kept_until_it_serves() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let pipe = stall_start(directory.path());
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--config").arg(&config);
    let waiting = spawn_thread("disk", move || {
        // Opens when the start reads it: the signals are heard by then.
        let mut disk = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        disk.write_all(br#"{"form":1,"nodes":[]}"#).unwrap();
    });
    let serving = Serving::spawn(command).await;
    waiting.unwrap().join().unwrap();
    configure(directory.path(), &herd.urls(), "router_keys: [k-1]");
    serving.signal(Signal::HUP);
    let address = serving.address;
    eventually("applied", || async { client::get(address, "/health").await.status == 401 }).await;
}

/// Starts a proxy whose standard error is this, and finds where it listens by trying a port that was free.
async fn serving_with(directory: &Path, urls: &[String], stderr: Stdio, shell: &str) -> (Serving, SocketAddr) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let extra = "log: { level: trace, access: all, format: json }";
    let config = configure(directory, urls, extra);
    let script = format!("{shell}exec \"$0\" serve --config \"$1\" --listen \"$2\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, BINARY]).arg(&config).arg(address.to_string());
    let child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
    let serving = Serving { child, address, log: None };
    eventually("it listens", || async { Client::try_connect(address).await.is_ok() }).await;
    eventually("ready", || async { client::get(address, "/herdgate/ready").await.status == 200 }).await;
    (serving, address)
}

async fn dropped(address: SocketAddr) -> u64 {
    let text = client::get(address, "/metrics").await.text();
    text.lines().find_map(|line| line.strip_prefix("herdgate_log_lines_dropped_total ")).unwrap().parse().unwrap()
}

/// Sends requests until lines of the log are dropped, all of which are answered; then ends it, which takes no reader either.
async fn serves_while_lines_are_dropped(serving: Serving, address: SocketAddr) {
    until_listed(address).await;
    let mut client = Client::connect(address).await;
    let served = post("/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#);
    // A line each, and no work for a node.
    let refused = post("/api/generate", r#"{"model":"absent","prompt":"x"}"#);
    let mut answered = 0;
    while dropped(address).await < 100 {
        client.send(&refused.repeat(100)).await;
        for _ in 0..100 {
            assert_eq!(client.answer().await.unwrap().status, 404);
        }
        client.send(&served).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        answered += 101;
        assert!(answered < 100_000, "no line was dropped");
    }
    serving.signal(Signal::TERM);
    assert_eq!(serving.ended_silently().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_pipe_that_nobody_reads_stops_nothing_and_lines_are_dropped_and_counted() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let (mut serving, address) = serving_with(directory.path(), &herd.urls(), Stdio::piped(), "").await;
    // Held open, never read.
    let _pipe = serving.child.stderr.take().unwrap();
    serves_while_lines_are_dropped(serving, address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_pipe_whose_reader_is_gone_stops_nothing_and_lines_are_dropped_and_counted() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let (mut serving, address) = serving_with(directory.path(), &herd.urls(), Stdio::piped(), "").await;
    drop(serving.child.stderr.take().unwrap());
    serves_while_lines_are_dropped(serving, address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_standard_error_is_no_reason_not_to_serve() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let (serving, address) = serving_with(directory.path(), &herd.urls(), Stdio::null(), "exec 2>&-; ").await;
    until_listed(address).await;
    let body = r#"{"model":"m","prompt":"x","stream":false}"#;
    assert_eq!(client::post_once(address, "/api/generate", body).await.status, 200);
    serving.signal(Signal::TERM);
    assert_eq!(serving.ended_silently().await, Some(0));
}

/// Files that may not grow: what the system says of a disk that is full, for a process of anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_from_here_on_is_served_through_and_exact_after_healing() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let serving = Serving::start(&config).await;
    let address = serving.address;
    until_listed(address).await;
    let ask = async |tokens: u64| {
        let body = format!(r#"{{"model":"m","prompt":"x","stream":false,"options":{{"num_predict":{tokens}}}}}"#);
        assert_eq!(client::post_once(address, "/api/generate", &body).await.status, 200);
    };
    let degraded = async |is: u8| {
        let line = format!("herdgate_ledger_degraded {is}\n");
        client::get(address, "/metrics").await.text().contains(&line)
    };
    ask(3).await;
    eventually("written", || async { serving.tokens().await == sent(&herd) }).await;
    let whose = Some(pid(serving.child.id()));
    let free = getrlimit(Resource::Fsize);
    let full = rustix::process::Rlimit { current: Some(4096), maximum: free.maximum };
    prlimit(whose, Resource::Fsize, full).unwrap();
    eventually("the disk is full", || async {
        ask(5).await;
        degraded(1).await
    })
    .await;
    // Drained nodes are kept in the same directory; 4 KiB are enough for those.
    let health = client::get(address, "/health").await;
    assert_eq!((health.status, health.json()["ledger"]["status"].as_str()), (200, Some("error")), "{}", health.text());
    for _ in 0..10 {
        ask(7).await;
    }
    assert_eq!(client::get(address, "/herdgate/live").await.status, 200, "a restart would mend no disk");
    prlimit(whose, Resource::Fsize, free).unwrap();
    eventually("written again", || async { degraded(0).await && serving.tokens().await == sent(&herd) }).await;
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("the ledger cannot be written") && log.contains("the ledger is written again"), "{log}");
    let serving = Serving::start(&config).await;
    assert_eq!(serving.tokens().await, sent(&herd), "exact after healing and a restart");
}

/// A listener of ours as its third file, as systemd hands one over.
fn handed(listener: &std::net::TcpListener, config: &Path) -> Command {
    let mut command = Command::new("sh");
    let script = "exec 3<&1 1>/dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve --config \"$1\"";
    command.args(["-c", script, BINARY]).arg(config);
    command.stdout(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap())));
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_on_a_handed_over_socket_refuses_nobody() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let serving = Serving::spawn(handed(&held, &config)).await;
    assert_eq!(serving.address, address, "not where the configuration says");
    until_listed(address).await;
    let stop = herdgate::sync::Arc::new(herdgate::sync::AtomicBool::new(false));
    let done = herdgate::sync::Arc::new(herdgate::sync::AtomicU64::new(0));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                while !stop.load(herdgate::sync::Ordering::Acquire) {
                    let mut client = Client::try_connect(address).await.expect("nobody is refused");
                    client.send(&post("/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#)).await;
                    let answer = client.answer().await.expect("every connection is answered");
                    assert!(answer.whole && matches!(answer.status, 200 | 503), "{}", answer.text());
                    done.fetch_add(u64::from(answer.status == 200), herdgate::sync::Ordering::AcqRel);
                }
            })
        })
        .collect();
    let more = async |count: u64| {
        let wanted = done.load(herdgate::sync::Ordering::Acquire) + count;
        let enough = || async {
            done.load(herdgate::sync::Ordering::Acquire) >= wanted || clients.iter().any(|client| client.is_finished())
        };
        eventually("answers", enough).await;
    };
    more(50).await;
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    // Nobody accepts now, and everybody who connects waits.
    let serving = Serving::spawn(handed(&held, &config)).await;
    more(50).await;
    stop.store(true, herdgate::sync::Ordering::Release);
    for client in clients {
        client.await.expect("no client met an error");
    }
    drop(serving);
}

#[test]
fn a_socket_that_is_none_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    let script = "exec 3</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve --node http://127.0.0.1:9";
    command.args(["-c", script, BINARY]).current_dir(directory.path());
    let output = command.output().unwrap();
    let said = crate::commands::text(&output);
    assert!(output.status.code() == Some(1) && said.contains("no listening TCP socket"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_sighups_leaves_room_for_orders_and_its_last_one_is_obeyed() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let serving = Serving::start(&config).await;
    let address = serving.address;
    until_listed(address).await;
    let mut client = Client::connect(address).await;
    for round in 0..300 {
        serving.signal(Signal::HUP);
        if round % 60 == 0 {
            client.send(&post("/herdgate/reload", "")).await;
            assert_eq!(client.answer().await.unwrap().status, 200, "an order finds room");
            client.send(&post("/api/generate", r#"{"model":"m","prompt":"x","stream":false}"#)).await;
            assert_eq!(client.answer().await.unwrap().status, 200);
        }
    }
    configure(directory.path(), &herd.urls(), "router_keys: [k-1]");
    serving.signal(Signal::HUP);
    eventually("the last one is obeyed", || async { client::get(address, "/health").await.status == 401 }).await;
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("too many orders"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_half_a_request_at_the_drain_deadline_is_told_so_and_an_idle_client_holds_up_nothing() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "shutdown: { drain: 1s }");
    let serving = Serving::start(&config).await;
    let address = serving.address;
    until_listed(address).await;
    let mut half = Client::connect(address).await;
    half.send(b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{\"model\":\"m\"").await;
    let mut kept = Client::connect(address).await;
    kept.send(&crate::request("GET", "/herdgate/live", &[], b"")).await;
    assert_eq!(kept.answer().await.unwrap().status, 200);
    let held = || async {
        let text = client::get(address, "/metrics").await.text();
        text.lines().any(|line| line.starts_with("herdgate_body_memory_bytes ") && !line.ends_with(" 0"))
    };
    eventually("the half body is read", || async { held().await }).await;
    serving.signal(Signal::TERM);
    assert!(kept.is_closed().await);
    let told = half.answer().await.expect("an answer");
    assert_eq!((told.status, told.header("connection")), (503, Some("close")), "{}", told.text());
    assert!(told.header("retry-after").is_some() && told.text().contains("shutting down"), "{}", told.text());
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_head_has_a_moment_to_end_and_holds_up_no_drain() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let extra = "shutdown: { drain: 10m }\ntimeouts: { request_head: 10m }";
    let serving = Serving::start(&configure(directory.path(), &herd.urls(), extra)).await;
    let half = b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-";
    let mut first = Client::connect(serving.address).await;
    first.send(half).await;
    let mut kept = Client::connect(serving.address).await;
    kept.send(&[crate::request("GET", "/herdgate/live", &[], b""), half.to_vec()].concat()).await;
    assert_eq!(kept.answer().await.unwrap().status, 200);
    serving.signal(Signal::TERM);
    for client in [&mut first, &mut kept] {
        assert_eq!(client.answer().await.expect("an answer").status, 408);
        assert!(client.is_closed().await);
    }
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

/// Name and nice value of each thread.
fn threads(pid: u32) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let thread = |stat: String| {
        let (before, after) = stat.rsplit_once(')').unwrap();
        let nice = after.split_whitespace().nth(16).unwrap().parse().unwrap();
        (before.split_once('(').unwrap().1.to_owned(), nice)
    };
    stats.map(thread).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_wait_stands_behind_the_workers_for_a_core() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let serving = Serving::start(&config).await;
    let (own, threads) = (rustix::process::getpriority_process(None).unwrap(), threads(serving.child.id()));
    let nice = |name: &str| threads.iter().find(|thread| thread.0 == name).unwrap_or_else(|| panic!("{name}")).1;
    for name in ["worker-0", "worker-1", "control"] {
        assert_eq!(nice(name), own, "{name}");
    }
    for name in ["ledger", "store", "log"] {
        assert_eq!(nice(name), (own + 10).min(19), "{name}");
    }
}

/// How a file system of one's own is had here: as root, as anybody where the kernel allows it, or not.
fn own_mounts() -> Option<&'static str> {
    let works = |how: &&str| {
        let mut tried = Command::new("unshare");
        tried.args([how, "mount", "-t", "tmpfs", "none", "/tmp"]).stderr(Stdio::null());
        tried.status().is_ok_and(|status| status.success())
    };
    ["-m", "-Urm"].into_iter().find(works)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_without_a_byte_left_is_served_through_and_the_store_is_taken_when_there_is_room() {
    let Some(how) = own_mounts() else {
        println!("no file system can be mounted here: told by limits on files alone");
        return;
    };
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$2\" || exit 9; \
                  dd if=/dev/zero of=\"$2/filler\" bs=4096 2>/dev/null; exec \"$0\" serve --config \"$1\"";
    let mut command = Command::new("unshare");
    command.args([how, "sh", "-c", script, BINARY]).arg(&config).arg(&data);
    let serving = Serving::spawn(command).await;
    let address = serving.address;
    until_listed(address).await;
    let ask = async |count: u32| {
        let body = r#"{"model":"m","prompt":"x","stream":false,"options":{"num_predict":5}}"#;
        for _ in 0..count {
            assert_eq!(client::post_once(address, "/api/generate", body).await.status, 200);
        }
    };
    ask(10).await;
    let health = client::get(address, "/health").await;
    assert_eq!((health.status, health.json()["ledger"]["status"].as_str()), (200, Some("error")), "{}", health.text());
    assert_eq!(client::get(address, "/herdgate/live").await.status, 200);
    // The mount is that process' own, and seen through it.
    let seen = format!("/proc/{}/root{}/filler", serving.child.id(), data.display());
    std::fs::remove_file(&seen).unwrap();
    let taken = || async { client::get(address, "/health").await.json()["ledger"]["status"] == "ok" };
    eventually("the store is taken", || async { taken().await }).await;
    ask(10).await;
    eventually("exact", || async { serving.tokens().await == sent(&herd) }).await;
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "all of it is in the store: {log}");
}
