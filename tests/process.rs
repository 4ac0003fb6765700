//! The real binary as a child: signals in mid-load (I11), no more files to open, an operator's orders; `commands` has exit codes
//! and help texts.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test: what is not as expected fails it")]

#[path = "process/commands.rs"]
mod commands;
#[path = "process/life.rs"]
mod life;
#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use herdgate::sync::{Arc, AtomicU64, Ordering, spawn_thread};
use rustix::process::{Pid, Signal, kill_process};
use support::client::{self, Answer, Client, post, request};
use support::proxy::eventually;
use tokio::time::Instant;

const BINARY: &str = env!("CARGO_BIN_EXE_herdgate");

/// A running `herdgate serve`; killed when dropped.
struct Serving {
    child: Child,
    address: SocketAddr,
    log: Option<JoinHandle<String>>,
}

/// A configuration in `directory`, with its data there too.
fn configure(directory: &Path, urls: &[String], extra: &str) -> std::path::PathBuf {
    let nodes: Vec<String> = urls.iter().map(|url| format!("{{ url: '{url}' }}")).collect();
    let text = format!(
        "listen: 127.0.0.1:0\nworkers: 2\ndata: {}\nnodes: [{}]\n\
         health: {{ probe: 100ms, probe_timeout: 2s, backoff_max: 200ms, ps: 200ms, tags: 500ms }}\n{extra}\n",
        directory.join("data").display(),
        nodes.join(", ")
    );
    let path = directory.join("herdgate.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

impl Serving {
    /// Starts it and waits until it is ready.
    async fn start(config: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("serve").arg("--config").arg(config);
        Self::spawn(command).await
    }

    async fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (found, address) = flume::bounded(1);
        let log = spawn_thread("log", move || {
            let (mut all, mut lines) = (String::new(), BufReader::new(stderr));
            let mut line = String::new();
            while lines.read_line(&mut line).unwrap_or(0) > 0 {
                if line.contains("\"serving\"") {
                    let at = serde_json::from_str::<serde_json::Value>(&line).unwrap()["address"].clone();
                    let _ = found.try_send(at.as_str().unwrap().parse().unwrap());
                }
                all += &line;
                line.clear();
            }
            all
        });
        let address: SocketAddr = tokio::time::timeout(Duration::from_secs(60), address.recv_async())
            .await
            .expect("it serves in time")
            .expect("it says where");
        let serving = Self { child, address, log: Some(log.unwrap()) };
        eventually("ready", || async { client::get(address, "/herdgate/ready").await.status == 200 }).await;
        serving
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; the exit status and all it logged.
    async fn ended(mut self) -> (ExitStatus, String) {
        for _ in 0..6000 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.log.take().unwrap().join().unwrap());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not end");
    }

    /// Waits for the end of one whose log goes elsewhere.
    async fn ended_silently(mut self) -> Option<i32> {
        for _ in 0..6000 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not end");
    }

    /// Tokens in and out, all time, as the ledger has them.
    async fn tokens(&self) -> (u64, u64) {
        let counts = client::get(self.address, "/api/token_counts").await.json();
        let rows = counts["breakdown"].as_array().cloned().unwrap_or_default();
        let sum = |key: &str| rows.iter().map(|row| row[key].as_u64().unwrap()).sum();
        (sum("input_tokens"), sum("output_tokens"))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn herd() -> Herd {
    herd_of(&["m"])
}

fn herd_of(models: &[&str]) -> Herd {
    let millisecond = Duration::from_millis(1);
    let models = || models.iter().map(|name| ModelSpec::chat(name)).collect();
    let spec = || NodeSpec::ollama(models()).slots(8).speed(Duration::ZERO, Duration::ZERO, millisecond);
    Herd::start(vec![spec(), spec()]).unwrap()
}

fn sent(herd: &Herd) -> (u64, u64) {
    let tokens = herd.nodes().iter().map(|node| node.ledger().tokens());
    tokens.fold((0, 0), |sum, tokens| (sum.0 + tokens.prompt, sum.1 + tokens.output))
}

async fn until_listed(address: SocketAddr) {
    eventually("listed", || async { client::get(address, "/api/tags").await.text().contains("m:latest") }).await;
}

/// What a driver saw: output tokens of each answer that came whole and when, and requests refused.
#[derive(Default)]
struct Seen {
    whole: Vec<(Instant, u64)>,
    refused: u64,
}

/// Sends requests on kept connections until the proxy is gone. An accepted request ends properly or this panics, unless
/// the proxy was killed.
async fn drive(address: SocketAddr, seed: u64, killed: bool, done: Arc<AtomicU64>) -> Seen {
    let mut seen = Seen::default();
    let (paths, mut at) = (["/api/generate", "/api/chat"], seed);
    let Ok(mut client) = Client::try_connect(address).await else { return seen };
    loop {
        at += 1;
        let tokens = 1 + at % 12;
        let body = format!(
            r#"{{"model":"m","prompt":"x","messages":[{{"role":"user","content":"x"}}],"stream":{},"options":{{"num_predict":{tokens}}}}}"#,
            at % 3 != 0
        );
        if !client.try_send(&post(paths[(at % 2) as usize], &body)).await {
            return seen;
        }
        let Some(answer) = client.answer().await else { return seen };
        if killed && !answer.whole {
            return seen;
        }
        assert!(answer.whole, "an answer was cut: {} {}", answer.status, answer.text());
        match answer.status {
            200 => {
                assert!(answer.text().contains("\"done\":true"), "{}", answer.text());
                seen.whole.push((Instant::now(), tokens));
                done.fetch_add(1, Ordering::AcqRel);
            }
            503 => seen.refused += 1,
            status => panic!("{status} {}", answer.text()),
        }
        if answer.header("connection") == Some("close") {
            match Client::try_connect(address).await {
                Ok(new) => client = new,
                Err(_) => return seen,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_sigterm_in_mid_load_loses_nothing() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "slots: 4");
    let serving = Serving::start(&config).await;
    until_listed(serving.address).await;
    let done = Arc::new(AtomicU64::new(0));
    let drivers = (0..24).map(|seed| tokio::spawn(drive(serving.address, seed * 7, false, done.clone())));
    let drivers: Vec<_> = drivers.collect();
    eventually("load", || async { done.load(Ordering::Acquire) > 300 }).await;
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("drained"), "{log}");
    let mut output = 0;
    for driver in drivers {
        output += driver.await.unwrap().whole.iter().map(|(_, tokens)| tokens).sum::<u64>();
    }
    assert_eq!(output, sent(&herd).1, "every answer that a node gave reached its client");
    // The ledger, opened again, has every token.
    let serving = Serving::start(&config).await;
    assert_eq!(serving.tokens().await, sent(&herd));
}

/// A stream that would run for minutes, its first bytes read.
async fn endless(address: SocketAddr) -> Client {
    begun(address, r#"{"model":"m","prompt":"x","sim":{"tokens":100000,"pace_ms":20}}"#).await
}

/// A stream whose first piece has come.
async fn begun(address: SocketAddr, body: &str) -> Client {
    let mut client = Client::connect(address).await;
    client.send(&post("/api/generate", body)).await;
    assert_eq!(client.begin().await.unwrap().status, 200);
    client.chunk().await.unwrap();
    client
}

/// What a stream ends with.
async fn last_record(client: &mut Client) -> serde_json::Value {
    let mut last = Vec::new();
    while let Some(chunk) = client.chunk().await {
        last = chunk;
    }
    serde_json::from_str(String::from_utf8(last).unwrap().lines().last().unwrap()).unwrap()
}

/// The rest of a stream that is ended early: clean, with the error of its dialect.
async fn assert_ended_in_words(client: &mut Client) {
    let last = last_record(client).await;
    assert!(last["error"].as_str().unwrap().contains("shutting down"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_streams_run_to_the_drain_deadline_and_then_end_in_words() {
    let (herd, directory) = (herd_of(&["m", "short"]), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "slots: 1\nshutdown: { drain: 2s }");
    let serving = Serving::start(&config).await;
    until_listed(serving.address).await;
    let (mut first, mut kept) = (endless(serving.address).await, Client::connect(serving.address).await);
    kept.send(&request("GET", "/api/usage-stream", &[], b"")).await;
    assert_eq!(kept.begin().await.unwrap().status, 200);
    // Both nodes are busy, a third request waits.
    let cold = post("/api/generate", r#"{"model":"m","prompt":"x","sim":{"tokens":100000,"pace_ms":20}}"#);
    let mut waiting = Client::connect(serving.address).await;
    waiting.send(&cold).await;
    let metrics = || async { client::get(serving.address, "/metrics").await.text() };
    eventually("it waits", || async {
        metrics().await.lines().any(|line| line.starts_with("herdgate_queue_length") && line.ends_with(" 1"))
    })
    .await;
    // Whole a fifth into the drain: cut short if there were none.
    let short = r#"{"model":"short","prompt":"x","sim":{"tokens":20,"pace_ms":20}}"#;
    let mut short = begun(serving.address, short).await;
    serving.signal(Signal::TERM);
    let refused = waiting.answer().await.expect("an answer");
    assert_eq!((refused.status, refused.header("connection")), (503, Some("close")), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    while kept.chunk().await.is_some() {}
    assert_eq!(last_record(&mut short).await["done"], true, "it ran on");
    assert_ended_in_words(&mut first).await;
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("deadline"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_what_has_no_answer_at_the_drain_deadline_is_told_so() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "shutdown: { drain: 1s }");
    let serving = Serving::start(&config).await;
    until_listed(serving.address).await;
    // Its head comes with its end: minutes from now.
    let body = r#"{"model":"m","prompt":"x","stream":false,"sim":{"tokens":100000,"pace_ms":20}}"#;
    let mut whole = Client::connect(serving.address).await;
    whole.send(&post("/api/generate", body)).await;
    let busy = || herd.nodes().iter().any(|node| node.ledger().models.values().any(|model| model.in_flight > 0));
    eventually("a node works on it", || async { busy() }).await;
    serving.signal(Signal::TERM);
    let told = whole.answer().await.expect("an answer");
    assert_eq!((told.status, told.header("connection")), (503, Some("close")), "{}", told.text());
    assert!(told.header("retry-after").is_some() && told.json()["error"].is_string(), "{}", told.text());
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_a_second_sigterm_ends_at_once_in_words() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "shutdown: { drain: 300s }");
    let serving = Serving::start(&config).await;
    until_listed(serving.address).await;
    let mut stream = endless(serving.address).await;
    let address = serving.address;
    serving.signal(Signal::TERM);
    eventually("no new clients", || async { Client::try_connect(address).await.is_err() }).await;
    for _ in 0..3 {
        assert!(stream.chunk().await.is_some(), "a stream runs on while draining");
    }
    serving.signal(Signal::TERM);
    assert_ended_in_words(&mut stream).await;
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

/// A pipe that nobody reads, where the inventories are written: a disk that stalls.
fn stall_inventories(directory: &Path) {
    let pipe = directory.join("data").join("inventories.json.new");
    std::fs::create_dir_all(directory.join("data")).unwrap();
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_a_disk_that_stalls_keeps_neither_the_ledger_from_its_flush_nor_the_process_from_its_end() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "slots: 4");
    stall_inventories(directory.path());
    let serving = Serving::start(&config).await;
    until_listed(serving.address).await;
    let body = r#"{"model":"m","prompt":"x","stream":false,"options":{"num_predict":5}}"#;
    assert_eq!(client::post_once(serving.address, "/api/generate", body).await.status, 200);
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("the disk is slow to store the inventories"), "{log}");
    std::fs::remove_file(directory.path().join("data").join("inventories.json.new")).unwrap();
    let serving = Serving::start(&config).await;
    assert_eq!(serving.tokens().await, sent(&herd));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_during_the_end_end_it_at_once() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "slots: 4");
    stall_inventories(directory.path());
    let mut serving = Serving::start(&config).await;
    // The first leaves, the second ends, and one of the others falls into the two seconds that the disk is waited for.
    while serving.child.try_wait().unwrap().is_none() {
        serving.signal(Signal::TERM);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("signalled while ending"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_while_leaving_probes_say_so_and_clients_are_still_served() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "shutdown: { delay: 60s }");
    let serving = Serving::start(&config).await;
    until_listed(serving.address).await;
    serving.signal(Signal::TERM);
    let address = serving.address;
    eventually("not ready", || async { client::get(address, "/herdgate/ready").await.status == 503 }).await;
    assert_eq!(client::get(address, "/herdgate/live").await.status, 200);
    let body = r#"{"model":"m","prompt":"x","stream":false}"#;
    let answer = client::post_once(address, "/api/generate", body).await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    serving.signal(Signal::TERM);
    assert_eq!(serving.ended().await.0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i11_sigkill_in_mid_load_loses_at_most_what_was_not_written_and_the_store_opens() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "slots: 4");
    let serving = Serving::start(&config).await;
    until_listed(serving.address).await;
    let done = Arc::new(AtomicU64::new(0));
    let drivers = (0..16).map(|seed| tokio::spawn(drive(serving.address, seed * 7, true, done.clone())));
    let drivers: Vec<_> = drivers.collect();
    eventually("load", || async { done.load(Ordering::Acquire) > 100 }).await;
    // Twenty ticks of a tenth of a second, and what was done before them must be written by now.
    let early = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    serving.signal(Signal::KILL);
    serving.ended().await;
    let mut before = 0;
    for driver in drivers {
        let seen = driver.await.unwrap();
        before += seen.whole.iter().filter(|(at, _)| *at <= early).map(|(_, tokens)| tokens).sum::<u64>();
    }
    let serving = Serving::start(&config).await;
    let (_, stored) = serving.tokens().await;
    assert!(before > 0 && stored >= before, "stored {stored}, done two seconds before the end {before}");
    // What passed counts exactly; what the kill cut short cannot be known.
    assert!(stored <= sent(&herd).1, "stored {stored}, sent {}", sent(&herd).1);
    // And it goes on counting.
    until_listed(serving.address).await;
    let body = r#"{"model":"m","prompt":"x","stream":false,"options":{"num_predict":5}}"#;
    assert_eq!(client::post_once(serving.address, "/api/generate", body).await.status, 200);
    eventually("counted on", || async { serving.tokens().await.1 == stored + 5 }).await;
}

fn processor_ms(pid: u32) -> u64 {
    let mut stat = String::new();
    std::fs::File::open(format!("/proc/{pid}/stat")).unwrap().read_to_string(&mut stat).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // The kernel counts in hundredths of a second towards user space, on every architecture.
    ticks * 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_out_of_files_it_waits_without_spinning_and_says_so_and_recovers() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let mut command = Command::new("sh");
    let script = "ulimit -n 64; exec \"$0\" serve --config \"$1\"";
    command.args(["-c", script, BINARY]).arg(&config);
    let serving = Serving::spawn(command).await;
    until_listed(serving.address).await;
    let address = serving.address;
    // This one is open before, and can ask meanwhile.
    let mut watcher = Client::connect(address).await;
    let mut pauses = async || {
        watcher.send(&request("GET", "/metrics", &[], b"")).await;
        let text = watcher.answer().await.expect("an open connection is served").text();
        let value = text.lines().find_map(|line| line.strip_prefix("herdgate_accept_pauses_total "));
        value.unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(pauses().await, 0.0);
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(Client::connect(address).await);
    }
    let mut seen = pauses().await;
    for _ in 0..6000 {
        if seen >= 3.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        seen = pauses().await;
    }
    assert!(seen >= 3.0, "it shows in the metrics");
    let before = processor_ms(serving.child.id());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = processor_ms(serving.child.id()) - before;
    assert!(used < 1000, "{used} ms of processor in 2 s: it spins");
    drop(open);
    let body = r#"{"model":"m","prompt":"x","stream":false}"#;
    eventually("served again", || async { client::post_once(address, "/api/generate", body).await.status == 200 })
        .await;
    let answer: Answer = client::get(address, "/health").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_no_key_and_no_query_reaches_the_log() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let extra = "router_keys: [ { name: k, key: open-sesame-1 } ]\nlog: { level: trace, access: all, format: json }";
    let config = configure(directory.path(), &herd.urls(), extra);
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--config").arg(&config);
    let serving = Serving::spawn(command).await;
    let address = serving.address;
    let listed = || async { client::get(address, "/api/tags?api_key=open-sesame-1").await.text().contains("m:latest") };
    eventually("listed", listed).await;
    let body = r#"{"model":"m","prompt":"my-secret-prompt","stream":false}"#;
    for path in ["/api/generate?api_key=open-sesame-1&q=my-query", "/api/generate?api_key=wrong-sesame-2"] {
        client::post_once(address, path, body).await;
    }
    for key in ["open-sesame-1", "wrong-sesame-2"] {
        let bearer = format!("Bearer {key}");
        let headers = [("Authorization", bearer.as_str()), ("X-Api-Key", key)];
        client::once(address, &request("POST", "/api/generate", &headers, body.as_bytes())).await;
    }
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("\"access\"") && log.contains("m:latest"), "the access lines are there: {log}");
    assert_eq!(log.matches("\"why\":\"forbidden\"").count(), 2, "who is refused at the door has a line too: {log}");
    for secret in ["sesame", "my-secret-prompt", "my-query"] {
        assert!(!log.contains(secret), "{secret} in the log");
    }
}

/// Kilobytes of this name in what the system says of a process' memory.
fn memory_kb(pid: u32, name: &str) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_proxy_owns_a_few_megabytes() {
    let (directory, herd) = (tempfile::tempdir().unwrap(), herd());
    let serving = Serving::start(&configure(directory.path(), &herd.urls(), "")).await;
    until_listed(serving.address).await;
    let (anonymous, huge) =
        (memory_kb(serving.child.id(), "Anonymous"), memory_kb(serving.child.id(), "AnonHugePages"));
    assert!(huge <= 2 * 2048, "{huge} kB in huge pages; two may have been there before the program began");
    assert!(anonymous < 8 * 1024, "{anonymous} kB without a request");
}

/// A command that talks to the proxy; its exit code, and all it printed.
async fn remote(serving: &Serving, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(BINARY);
    command.args(arguments).args(["--listen", &serving.address.to_string()]).env_remove("HERDGATE_KEY");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reloads_and_a_typo_changes_nothing_but_the_log() {
    let (directory, herd) = (tempfile::tempdir().unwrap(), herd());
    let config = configure(directory.path(), &herd.urls(), "");
    let serving = Serving::start(&config).await;
    configure(directory.path(), &herd.urls(), "router_keys: [secret-of-a-test]\ntypo: 1");
    serving.signal(Signal::HUP);
    let address = serving.address;
    let refused = async || client::get(address, "/health").await.json()["configuration"]["status"] == "error";
    eventually("refused", || async { refused().await }).await;
    configure(directory.path(), &herd.urls(), "router_keys: [secret-of-a-test]");
    serving.signal(Signal::HUP);
    eventually("applied", || async { client::get(address, "/health").await.status == 401 }).await;
    serving.signal(Signal::TERM);
    let (status, log) = serving.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(
        log.contains("typo") && log.contains("the old one stays in force") && log.contains("configuration reloaded")
    );
    assert!(!log.contains("secret-of-a-test"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_says_what_an_operator_must_know() {
    let (directory, herd) = (tempfile::tempdir().unwrap(), herd());
    let config = configure(directory.path(), &herd.urls(), "slots: 3");
    let open = std::fs::read_to_string(&config).unwrap().replace("127.0.0.1:0", "0.0.0.0:0");
    std::fs::write(&config, open).unwrap();
    let serving = Serving::start(&config).await;
    let address = SocketAddr::from(([127, 0, 0, 1], serving.address.port()));
    assert!(client::get(address, "/metrics").await.text().contains("herdgate_open_listener 1"));
    serving.signal(Signal::TERM);
    let (_, log) = serving.ended().await;
    assert_eq!(log.matches("LISTENING BEYOND LOOPBACK WITHOUT A ROUTER KEY").count(), 1, "{log}");
    assert!(log.contains("usage_injection is auto"), "{log}");
    for url in herd.urls() {
        assert!(log.lines().any(|line| line.contains(&url) && line.contains("hard 3 per model")), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_host_is_told_what_to_set_once_a_minute() {
    let (directory, herd) = (tempfile::tempdir().unwrap(), herd());
    let config = configure(directory.path(), &herd.urls(), "");
    let one = std::fs::read_to_string(&config).unwrap().replace("workers: 2", "workers: 1");
    std::fs::write(&config, one).unwrap();
    let serving = Serving::start(&config).await;
    for header in ["Host: gate.example", "Host: gate.example", "Host: 127.0.0.1\r\nOrigin: http://page.example"] {
        let bytes = format!("GET /api/tags HTTP/1.1\r\n{header}\r\n\r\n");
        assert_eq!(client::once(serving.address, bytes.as_bytes()).await.status, 403, "{header}");
    }
    serving.signal(Signal::TERM);
    let (_, log) = serving.ended().await;
    assert_eq!(log.matches("refused a foreign").count(), 1, "{log}");
    assert!(log.contains("allowed_hosts"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_is_told_when_it_is_ready_reloads_and_drains() {
    let (directory, herd) = (tempfile::tempdir().unwrap(), herd());
    let config = configure(directory.path(), &herd.urls(), "");
    let socket = directory.path().join("notify");
    let listener = tokio::net::UnixDatagram::bind(&socket).unwrap();
    let told = async || {
        let mut buffer = [0; 512];
        let heard = tokio::time::timeout(Duration::from_secs(60), listener.recv(&mut buffer)).await;
        String::from_utf8(buffer[..heard.expect("it is told").unwrap()].to_vec()).unwrap()
    };
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--config").arg(&config).env("NOTIFY_SOCKET", &socket);
    let serving = Serving::spawn(command).await;
    assert_eq!(told().await, "READY=1\nSTATUS=serving");
    assert_eq!(client::get(serving.address, "/herdgate/ready").await.status, 200);
    for (extra, comes_to) in [("", "serving"), ("typo: 1", "not reloaded")] {
        configure(directory.path(), &herd.urls(), extra);
        serving.signal(Signal::HUP);
        let reloading = told().await;
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        let over = told().await;
        assert!(over.starts_with("READY=1\n") && over.contains(comes_to), "{over}");
    }
    serving.signal(Signal::TERM);
    assert_eq!(told().await, "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=draining");
    assert_eq!(serving.ended().await.0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_an_operator_say_what_came_of_them() {
    let (directory, herd) = (tempfile::tempdir().unwrap(), herd());
    let path = directory.path().join("herdgate.yaml");
    let written = configure(directory.path(), &herd.urls(), "administration: key\nrouter_keys: [k-1]");
    let named = |text: String| text.replace("{ url", "{ name: gpu-a, url").replacen("{ name: gpu-a, url", "{ url", 1);
    std::fs::write(&path, named(std::fs::read_to_string(&written).unwrap())).unwrap();
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--config").arg(&path);
    let serving = Serving::spawn(command).await;
    let file = path.to_str().unwrap();
    let with =
        |words: &[&str]| words.iter().chain(&["--config", file]).map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let run = async |words: &[&str]| {
        let words = with(words);
        remote(&serving, &words.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    eventually("both are up", || async { run(&["status"]).await.1.matches(" up ").count() == 3 }).await;
    let (code, said) = run(&["status"]).await;
    assert_eq!(code, 0);
    assert!(said.contains("NODE") && said.contains("gpu-a") && said.contains("configuration: ok"), "{said}");
    let (code, said) = run(&["status", "--json"]).await;
    assert_eq!((code, serde_json::from_str::<serde_json::Value>(&said).unwrap()["phase"].clone()), (0, "ready".into()));
    let (code, said) = run(&["drain", "gpu-a", "--wait", "60"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("nothing runs there any more") && run(&["status"]).await.1.contains("draining"), "{said}");
    let (code, said) = run(&["undrain", "gpu-a", "--wait", "60"]).await;
    assert!(code == 0 && said.contains("it is up"), "{said}");
    let (code, said) = run(&["drain", "gpu-z"]).await;
    assert!(code == 64 && said.contains("gpu-z") && said.contains("gpu-a"), "{said}");
    let (code, said) = run(&["drain", "gpu-a", "--key", "wrong"]).await;
    assert!(code == 77 && said.contains("HERDGATE_KEY"), "{said}");
    let (code, said) = run(&["reload"]).await;
    assert!(code == 0 && said.contains("nothing has changed"), "{said}");
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "slots: many\n").unwrap();
    let (code, said) = run(&["reload"]).await;
    assert!(code == 64 && said.contains("slots: value `many`") && said.contains("the old one stays"), "{said}");
    let (code, said) = run(&["status"]).await;
    assert!(code == 0 && said.contains("the last reload was refused"), "{said}");
    let mut nobody = Command::new(BINARY);
    let nobody = nobody.args(["status", "--listen", "127.0.0.1:1"]).current_dir(directory.path()).output().unwrap();
    assert_eq!(nobody.status.code(), Some(69), "{}", commands::text(&nobody));
}
