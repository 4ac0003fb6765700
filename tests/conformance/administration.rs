//! Cases 77 to 88 and 101: pull, push, create, copy, delete and blobs.

use herdgate::sync::{Arc, AtomicU64};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::case::{Case, JSON, NDJSON, V1, case, scene};
use crate::child::Child;
use crate::failures::{ALL, chunked, models};
use crate::stage::{Stage, copies};
use crate::support::client::{Client, post_once, request};
use crate::support::sink::sink;

const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
const ZEROS: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn said(lines: &[Value]) -> Vec<String> {
    lines.iter().map(|line| line["status"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Exactly one `success`, and it is last.
fn succeeds_once(lines: &[Value]) -> bool {
    said(lines).iter().filter(|status| *status == "success").count() == 1 && said(lines).last().unwrap() == "success"
}

/// What a bar is drawn from: of each layer `total` and `completed` only grow, and no bar is more than full.
fn only_grows(lines: &[Value]) -> bool {
    let number = |line: &Value, key: &str| line[key].as_u64().unwrap_or(0);
    lines.iter().enumerate().filter(|(_, line)| line.get("digest").is_some()).all(|(at, line)| {
        let before = lines[..at].iter().rfind(|other| other["digest"] == line["digest"]).unwrap_or(&Value::Null);
        let grows = |key: &str| number(before, key) <= number(line, key);
        grows("total") && grows("completed") && number(line, "completed") <= number(line, "total")
    })
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = progress();
    all.extend(blobs());
    all
}

fn progress() -> Vec<Case> {
    let whole = |lines: &[Value]| {
        let layers: Vec<&Value> = lines.iter().filter(|line| line.get("digest").is_some()).collect();
        let last_of = |digest: &Value| layers.iter().rfind(|line| line["digest"] == *digest).unwrap();
        !layers.is_empty()
            && layers.iter().map(|line| last_of(&line["digest"])).all(|line| line["completed"] == line["total"])
    };
    vec![
        case(77)
            .post("/api/pull", r#"{"model":"m"}"#)
            .gives(200, NDJSON)
            .lines("one success, last", succeeds_once)
            .lines("every layer is there", whole)
            .lines("bars only grow", only_grows)
            .post("/api/pull", r#"{"model":"m","stream":false}"#)
            .gives(200, V1)
            .body(r#"{"status":"success"}"#),
        case(78)
            .post("/api/pull", r#"{"model":"nope-nope"}"#)
            .gives(200, NDJSON)
            .body("{\"status\":\"pulling manifest\"}\n{\"error\":\"pull model manifest: file does not exist\"}\n")
            .post("/api/pull", r#"{"model":"nope-nope","stream":false}"#)
            .gives(500, V1)
            .error("pull model manifest: file does not exist")
            .post("/api/pull", r#"{"model":"m","from":1,"destination":2,"stream":false}"#)
            .gives(200, V1)
            .body(r#"{"status":"success"}"#)
            .post("/api/pull", r#"{"model":"m","password":1}"#)
            .gives(400, JSON)
            .error("json: cannot unmarshal number into Go struct field PullRequest.password of type string"),
        case(79)
            .post("/api/pull", r#"{"name":"m"}"#)
            .gives(200, NDJSON)
            .lines("one success, last", succeeds_once)
            // As the CLI sends it.
            .post("/api/pull", r#"{"model":"","username":"","password":"","name":"new"}"#)
            .gives(200, NDJSON)
            .lines("one success, last", succeeds_once)
            .lines("bars only grow", only_grows),
        case(80)
            .post("/api/push", r#"{"model":"me/nope"}"#)
            .gives(200, NDJSON)
            .lines("retrieving, couldn't, an error", |lines| {
                said(lines)[..2] == ["retrieving manifest", "couldn't retrieve manifest"]
                    && lines[2]["error"].as_str().unwrap().ends_with("no such file or directory")
            })
            .post("/api/push", r#"{"name":"me/nope","stream":false}"#)
            .gives(500, V1)
            .has("no such file or directory"),
        case(81)
            .post("/api/create", r#"{"model":"x"}"#)
            .gives(400, V1)
            .error("neither 'from' or 'files' was specified")
            .post("/api/create", r#"{"model":"x","stream":false}"#)
            .gives(400, JSON)
            .error("neither 'from' or 'files' was specified")
            .post("/api/create", r#"{"model":"x","files":{"/m.gguf":"sha256:ab"}}"#)
            .gives(400, V1)
            .error("file path must be relative")
            .post("/api/create", r#"{"model":"x","from":"m","system":1}"#)
            .gives(400, JSON)
            .error("json: cannot unmarshal number into Go struct field CreateRequest.system of type string"),
        scene(82, || Box::pin(created_alike_everywhere())),
        scene(86, || Box::pin(copied_and_deleted_everywhere())),
        case(87)
            .delete("/api/delete", r#"{"model":"nope"}"#)
            .gives(404, JSON)
            .error("model 'nope' not found")
            .delete("/api/delete", r#"{"model":"","name":"nope"}"#)
            .gives(404, JSON)
            .error("model 'nope' not found")
            // A key that a route's type lacks may hold anything.
            .delete("/api/delete", r#"{"model":"nope","stream":"false","insecure":1,"files":2}"#)
            .gives(404, JSON)
            .error("model 'nope' not found")
            .delete("/api/delete", r#"{"model":1}"#)
            .gives(400, JSON)
            .error("json: cannot unmarshal number into Go struct field DeleteRequest.model of type string")
            .post("/api/copy", r#"{"source":"nope","destination":"x","model":1,"stream":"no"}"#)
            .gives(404, JSON)
            .error("model \"nope\" not found")
            .delete("/api/delete", r#"{"model":"a b"}"#)
            .gives(400, JSON)
            .error("name \"a b\" is invalid")
            .post("/api/copy", r#"{"source":"nope","destination":"x"}"#)
            .gives(404, JSON)
            .error("model \"nope\" not found")
            .post("/api/copy", r#"{"source":"","destination":"x"}"#)
            .gives(400, JSON)
            .error("source \"\" is invalid")
            .post("/api/copy", r#"{"source":"m","destination":""}"#)
            .gives(400, JSON)
            .error("destination \"\" is invalid"),
        scene(88, || Box::pin(deleted_by_a_chunked_body())),
    ]
}

fn blobs() -> Vec<Case> {
    let path = |digest: &str| format!("/api/blobs/{digest}");
    vec![
        case(83)
            .head(&path(HELLO))
            .gives(404, JSON)
            .line("content-length", "102")
            .head("/api/blobs/sha256:xyz")
            .gives(400, JSON)
            .line("content-length", "33")
            .post(&path(HELLO), "hello\n")
            .gives_bare(201)
            .head(&path(HELLO))
            .gives_bare(200),
        case(84)
            .post(&path(ZEROS), "hello\n")
            .gives(400, JSON)
            .error(&format!("digest mismatch, expected \"{ZEROS}\", got \"{HELLO}\""))
            .post("/api/blobs/sha256:xyz", "hello\n")
            .gives(400, JSON)
            .error("invalid digest format")
            .post(&path(HELLO), "hello\n")
            .gives_bare(200)
            .body("")
            .post(&path(&HELLO.replace(':', "-")), "hello\n")
            .gives_bare(200)
            .ask(chunked(
                "POST",
                &path("sha256:486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7"),
                b"world",
            ))
            .gives_bare(201)
            .body(""),
        scene(85, || Box::pin(a_large_blob_is_not_held())),
        scene(101, || Box::pin(a_missing_blob_is_told_at_once())),
    ]
}

async fn created_alike_everywhere() {
    let stage = Stage::with(models(&[("m", ALL)]), "", |_| ()).await;
    let body = r#"{"model":"made","from":"m","system":"You are a gate."}"#;
    let direct = post_once(stage.node.address(), "/api/create", body).await;
    let through = post_once(stage.proxy.address, "/api/create", body).await;
    assert_eq!((through.status, through.text()), (direct.status, direct.text()));
    let statuses = said(&through.lines());
    assert!(statuses[0].starts_with("using existing layer sha256:"), "{statuses:?}");
    assert_eq!(statuses[statuses.len() - 2..], ["writing manifest", "success"]);
    assert_eq!(copies(&stage.proxy, "made"), 3);
    let digest = |tags: Value| {
        let made = tags["models"].as_array().unwrap().iter().find(|model| model["name"] == "made:latest").cloned();
        made.unwrap()["digest"].clone()
    };
    let expected = digest(crate::support::client::get(stage.node.address(), "/api/tags").await.json());
    for node in stage.herd.nodes() {
        assert_eq!(digest(crate::support::client::get(node.address(), "/api/tags").await.json()), expected);
    }
}

async fn copied_and_deleted_everywhere() {
    let stage = Stage::with(models(&[("m", ALL), ("other", [true, false, false])]), "", |_| ()).await;
    let names = |address| async move {
        let tags = crate::support::client::get(address, "/api/tags").await.json();
        let mut names: Vec<String> =
            tags["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    for address in [stage.node.address(), stage.proxy.address] {
        let copied = post_once(address, "/api/copy", r#"{"source":"m","destination":"twin"}"#).await;
        assert_eq!((copied.status, copied.text().as_str()), (200, ""));
        assert_eq!((copied.header("content-type"), copied.header("content-length")), (None, Some("0")));
        assert_eq!(names(address).await, ["m:latest", "other:latest", "twin:latest"]);
    }
    for node in stage.herd.nodes() {
        assert!(names(node.address()).await.contains(&"twin:latest".to_owned()));
    }
    for address in [stage.node.address(), stage.proxy.address] {
        let bytes = request("DELETE", "/api/delete", &[], br#"{"name":"twin"}"#);
        let deleted = crate::support::client::once(address, &bytes).await;
        assert_eq!((deleted.status, deleted.text().as_str(), deleted.header("content-type")), (200, "", None));
        assert_eq!(names(address).await, ["m:latest", "other:latest"]);
    }
    for node in stage.herd.nodes() {
        assert!(!names(node.address()).await.contains(&"twin:latest".to_owned()));
    }
}

async fn deleted_by_a_chunked_body() {
    let stage = Stage::with(models(&[("m", ALL)]), "", |_| ()).await;
    for address in [stage.node.address(), stage.proxy.address] {
        let deleted =
            crate::support::client::once(address, &chunked("DELETE", "/api/delete", br#"{"model":"m"}"#)).await;
        assert_eq!((deleted.status, deleted.text().as_str()), (200, ""));
    }
    for node in stage.herd.nodes() {
        assert_eq!(node.ledger().route("/api/delete"), 1);
    }
}

/// 64 MiB stand for more: a gate that held an eighth of them would fail, and one that grows does so from the first
/// mebibyte on (1 GiB by hand: 15 MiB resident before, meanwhile and after). A gibibyte to three nodes would take this
/// suite half a minute on a busy machine.
async fn a_large_blob_is_not_held() {
    const BLOCK: usize = 256 * 1024;
    const BLOCKS: usize = 256;
    let sent = (BLOCK * BLOCKS) as u64;
    let (mut nodes, mut urls) = (JoinSet::new(), Vec::new());
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        urls.push(format!("http://{}", listener.local_addr().unwrap()));
        nodes.spawn(sink(listener, u64::MAX, None, Arc::new(AtomicU64::new(0))));
    }
    // In a process of its own, whose memory is the gate's alone.
    let gate = Child::serving(&urls).await;
    let mut client = Client::connect(gate.address).await;
    let head = format!("POST /api/blobs/{ZEROS} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(head.as_bytes()).await;
    let block = [format!("{BLOCK:x}\r\n").as_bytes(), &vec![7; BLOCK], b"\r\n"].concat();
    let (mut before, mut most) = (0, 0);
    for at in 0..BLOCKS {
        client.send(&block).await;
        // What buffers need is there after the first few; from then on nothing may grow with the blob.
        if at == BLOCKS / 8 {
            before = gate.resident();
        }
        most = most.max(gate.resident());
    }
    client.send(b"0\r\n\r\n").await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let grown = most.saturating_sub(before);
    assert!(grown < sent / 8, "{grown} bytes more while {sent} bytes passed");
    nodes.shutdown().await;
}

async fn a_missing_blob_is_told_at_once() {
    let stage = Stage::with(models(&[("m", ALL)]), "", |_| ()).await;
    for address in [stage.node.address(), stage.proxy.address] {
        let mut client = Client::connect(address).await;
        for _ in 0..3 {
            client.send(&request("HEAD", &format!("/api/blobs/{ZEROS}"), &[], b"")).await;
            let answer = client.head_answer().await.unwrap();
            assert_eq!((answer.status, answer.header("content-length")), (404, Some("102")));
        }
        // Nothing of the announced body comes: the connection carries the next request.
        client.send(&request("GET", "/api/version", &[], b"")).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
}
