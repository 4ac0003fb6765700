//! Logs of the real binary: what an access line holds and what no line may, and the level while it runs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use herdgate::sim::{Herd, ModelSpec, NodeSpec};
use herdgate::sync::spawn_thread;
use serde_json::{Value, json};

use crate::support::client::{Client, get, once, post_once, request};
use crate::support::proxy::eventually;
use crate::{CHAT, MODEL};

/// Lines of a test's log, at most.
const LINES: usize = 100_000;

struct Serving {
    child: Child,
    address: SocketAddr,
    lines: flume::Receiver<String>,
}

impl Serving {
    async fn start(herd: &Herd, directory: &std::path::Path, extra: &str) -> Self {
        Self::keyed(herd, directory, extra, &[]).await
    }

    /// The same where listings need these header lines.
    async fn keyed(herd: &Herd, directory: &std::path::Path, extra: &str, lines: &[(&str, &str)]) -> Self {
        let open = lines;
        let path = directory.join("herdgate.yaml");
        let nodes: Vec<_> = herd.urls().iter().map(|url| format!("{{ url: '{url}' }}")).collect();
        let text = format!(
            "listen: 127.0.0.1:0\nworkers: 1\ndata: {}\nnodes: [{}]\nhealth: {{ probe: 100ms, tags: 500ms }}\n{extra}\n",
            directory.join("data").display(),
            nodes.join(", ")
        );
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_herdgate"));
        command.arg("serve").arg("--config").arg(&path).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (line, lines) = flume::bounded(LINES);
        spawn_thread("log", move || {
            for text in stderr.lines() {
                let _ = line.send(text.unwrap());
            }
        })
        .unwrap();
        let started = async {
            loop {
                let text = lines.recv_async().await.expect("it serves");
                if let Ok(told) = serde_json::from_str::<Value>(&text)
                    && told["message"] == "serving"
                {
                    return told["address"].as_str().unwrap().parse().unwrap();
                }
            }
        };
        let address = tokio::time::timeout(Duration::from_secs(60), started).await.expect("it serves in time");
        let serving = Self { child, address, lines };
        let tags = request("GET", "/api/tags", open, b"");
        eventually("listed", || async { once(address, &tags).await.text().contains(MODEL) }).await;
        serving
    }

    /// The next line that satisfies `wanted`; those before it are gone.
    async fn line(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let text = self.lines.recv_async().await.expect("a line");
                let line: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                if wanted(&line) {
                    return line;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), found).await.expect("the line comes in time")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_lines_name_the_request_and_the_level_changes_while_it_runs() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat(MODEL)])]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let serving = Serving::start(&herd, directory.path(), "log: { level: info, format: json, access: all }").await;
    let address = serving.address;
    let ask = |id: &str| request("POST", "/api/chat?secret=in-the-query", &[("x-request-id", id)], CHAT.as_bytes());
    assert_eq!(once(address, &ask("one")).await.status, 200);
    let line = serving.line(|line| line["request_id"] == "one").await;
    assert_eq!((&line["outcome"], &line["status"], &line["model"]), (&json!("completed"), &json!(200), &json!(MODEL)));
    assert_eq!(line["node"], json!(herd.urls()[0]));
    assert!(!line.to_string().contains("in-the-query") && !line.to_string().contains("hello"), "{line}");

    let level = get(address, "/herdgate/log").await.json();
    assert_eq!(level["level"], json!("info"));
    let wrong = post_once(address, "/herdgate/log", r#"{"level":"loud"}"#).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("debug") && wrong.text().contains("loud"), "{}", wrong.text());
    assert_eq!(post_once(address, "/herdgate/log", "debug").await.status, 400);
    assert_eq!(get(address, "/herdgate/log").await.json()["level"], json!("info"), "a mistake changes nothing");

    let bad_head = b"POST /x HTTP/1.1\r\nHost: a\r\nbad line\r\n\r\n";
    assert_eq!(once(address, bad_head).await.status, 400);
    let changed = post_once(address, "/herdgate/log", r#"{"level":"error"}"#).await;
    assert_eq!((changed.status, &changed.json()["level"]), (200, &json!("error")));
    // At debug, and not before, a refused head is worth a line.
    assert_eq!(post_once(address, "/herdgate/log", r#"{"level":"debug"}"#).await.status, 200);
    assert_eq!(once(address, bad_head).await.status, 400);
    assert_eq!(once(address, &ask("shown")).await.status, 200);
    let mut between = Vec::new();
    loop {
        let line = serving.line(|_| true).await;
        if line["request_id"] == "shown" {
            break;
        }
        between.push(line);
    }
    let changes: Vec<_> = between.iter().filter(|line| line["message"] == "the log level is changed").collect();
    assert_eq!(changes.iter().map(|line| &line["to"]).collect::<Vec<_>>(), ["error", "debug"]);
    let refused = between.iter().filter(|line| line["message"] == "refused a request").count();
    assert_eq!(refused, 1, "{between:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_administered_what_is_in_the_log() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat(MODEL)])]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let extra = "log: { level: info, format: json }\nrouter_keys: [ { name: ops, key: s3cret-key } ]";
    let open = [("authorization", "Bearer s3cret-key"), ("x-request-id", "it-was-me")];
    let serving = Serving::keyed(&herd, directory.path(), extra, &open[..1]).await;
    let body = format!(r#"{{"model":"{MODEL}"}}"#);
    let answer = once(serving.address, &request("DELETE", "/api/delete", &open, body.as_bytes())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let line = serving.line(|line| line["request_id"] == "it-was-me" && line["model"].is_string()).await;
    assert_eq!((&line["operation"], &line["model"], &line["done"]), (&json!("delete"), &json!(MODEL), &json!(1)));
    let line = serving.line(|line| line["request_id"] == "it-was-me").await;
    assert_eq!((&line["key"], &line["result"]), (&json!("ops"), &json!("done")), "{line}");
    assert!(!line.to_string().contains("s3cret"), "{line}");
    // What was refused is somebody's too.
    let again = once(serving.address, &request("DELETE", "/api/delete", &open, body.as_bytes())).await;
    assert_eq!(again.status, 404);
    let line = serving.line(|line| line["request_id"] == "it-was-me").await;
    assert_eq!(
        (&line["operation"], &line["key"], &line["result"]),
        (&json!("delete"), &json!("ops"), &json!("refused"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_out_that_ended_a_request_stands_in_its_line() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat(MODEL)])]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let extra = "slots: 1\ntimeouts: { stream_idle: 500ms, queue_wait: 100ms, request_body_idle: 200ms }\nlog: { format: json }";
    let serving = Serving::start(&herd, directory.path(), extra).await;
    let address = serving.address;
    let ask = |id: &str, pace: u32| {
        let body = format!(
            r#"{{"model":"llama3","prompt":"x","options":{{"num_predict":9}},"sim":{{"tokens":9,"pace_ms":{pace}}}}}"#
        );
        request("POST", "/api/generate", &[("x-request-id", id)], body.as_bytes())
    };
    // Silent for seconds before its first byte, which is allowed, and then again.
    let mut silent = Client::connect(address).await;
    silent.send(&ask("silent", 3_000)).await;
    let taken = || async {
        get(address, "/metrics")
            .await
            .text()
            .lines()
            .any(|line| line.starts_with("herdgate_in_flight{") && line.ends_with(" 1"))
    };
    eventually("its slot is taken", taken).await;
    assert_eq!(once(address, &ask("waits", 0)).await.status, 503);
    let mut slow = Client::connect(address).await;
    slow.send(b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: slow\r\nContent-Length: 9\r\n\r\n{").await;
    assert_eq!(slow.answer().await.unwrap().status, 408);
    assert!(silent.answer().await.unwrap().text().contains("fell silent"));
    let mut told = std::collections::BTreeMap::new();
    while told.len() < 3 {
        let line = serving.line(|line| line["message"] == "request").await;
        told.insert(line["request_id"].as_str().unwrap().to_owned(), line["timeout"].clone());
    }
    let wanted = [("silent", "stream_idle"), ("slow", "request_body_idle"), ("waits", "queue_wait")];
    assert!(told.iter().map(|(id, timeout)| (id.as_str(), timeout.as_str().unwrap_or("none"))).eq(wanted), "{told:?}");
}
