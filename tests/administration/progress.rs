//! Pull and create: the merged stream, the targets, failures, clients that leave.

use std::time::Duration;

use herdgate::sim::{Ending, Fault, Harm};
use herdgate::sync::Ordering;

use crate::support::client::{self, Client, post as bytes};
use crate::support::proxy::eventually;
use crate::{copies, disk, fleet, post, post_to, statuses, well_formed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_reaches_every_node_and_is_known_when_it_says_so() {
    let (herd, proxy) = fleet("", |_, spec| spec.pull_time = Duration::from_millis(300)).await;
    let answer = post(&proxy, "/api/pull", r#"{"name":"new"}"#).await;
    assert_eq!(copies(&proxy, "new"), 3, "at once, without waiting for a poll");
    let lines = well_formed(&answer);
    let said = statuses(&lines);
    let closing = ["verifying sha256 digest", "writing manifest", "success"];
    assert!(said[0] == "pulling manifest" && said[1].starts_with("pulling ") && said[2..] == closing, "{said:?}");
    assert_eq!(lines.last().unwrap().to_string(), r#"{"status":"success"}"#);
    let bars: Vec<_> = lines.iter().filter(|line| line["digest"].is_string()).collect();
    assert!(bars.len() > 2, "{lines:?}");
    assert_eq!(bars.last().unwrap()["completed"], bars.last().unwrap()["total"]);
    for at in 0..3 {
        assert_eq!(disk(&herd, at).await, ["m", "new"]);
    }
    let chat = post(&proxy, "/api/generate", r#"{"model":"new","prompt":"x","stream":false}"#).await;
    assert_eq!(chat.status, 200, "{}", chat.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_stream_it_answers_once() {
    let (herd, proxy) = fleet("", |_, spec| spec.pull_time = Duration::from_millis(100)).await;
    for (path, body) in [
        ("/api/pull", r#"{"model":"new","stream":false}"#),
        ("/api/create", r#"{"model":"x","from":"m","stream":false}"#),
    ] {
        let answer = post(&proxy, path, body).await;
        let direct = client::post_once(herd.nodes()[0].address(), path, body).await;
        assert_eq!((answer.status, answer.text()), (200, direct.text()), "{path}");
        assert_eq!(answer.header("content-type"), direct.header("content-type"));
        assert_eq!(answer.header("content-length"), direct.header("content-length"));
    }
    assert_eq!((copies(&proxy, "new"), copies(&proxy, "x")), (3, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_the_nodes_own() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    let cases = [
        ("/api/pull", r#"{"model":"nope"}"#),
        ("/api/pull", r#"{"model":"nope","stream":false}"#),
        ("/api/pull", r#"{"name":"a b"}"#),
        ("/api/pull", r#"{"model":"x:local:cloud"}"#),
        ("/api/pull", r#"{"model":"#),
        ("/api/pull", r#"{"model":"m","stream":"yes"}"#),
        ("/api/pull", "[]"),
        ("/api/pull", ""),
        ("/api/create", "{}"),
        ("/api/create", r#"{"model":"x"}"#),
        ("/api/create", r#"{"model":"x","stream":false}"#),
        ("/api/create", r#"{"model":"x","files":{"/a":"sha256:0"}}"#),
        ("/api/create", r#"{"model":"x","from":"nope"}"#),
        ("/api/push", r#"{"model":"nope"}"#),
        ("/api/push", r#"{"model":"nope","stream":false}"#),
        ("/api/push", "{}"),
        ("/api/copy", r#"{"source":"nope","destination":"x"}"#),
        ("/api/copy", r#"{"source":"","destination":"x"}"#),
        ("/api/copy", r#"{"source":"m","destination":"a b"}"#),
        ("/api/copy", "null"),
    ];
    for (path, body) in cases {
        let direct = client::post_once(herd.nodes()[0].address(), path, body).await;
        let answer = post(&proxy, path, body).await;
        assert_eq!((answer.status, answer.text()), (direct.status, direct.text()), "{path} {body}");
        assert_eq!(answer.header("content-type"), direct.header("content-type"), "{path} {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_come_from_the_header_or_the_configuration() {
    let (herd, proxy) = fleet("models: { new: { pull_targets: [b] } }", |_, _| ()).await;
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    assert_eq!([disk(&herd, 0).await.len(), disk(&herd, 1).await.len(), disk(&herd, 2).await.len()], [1, 2, 1]);
    well_formed(&post_to(&proxy, "c, a", "/api/pull", r#"{"model":"new"}"#).await);
    assert_eq!(copies(&proxy, "new"), 3);
    let unknown = post_to(&proxy, "a,x", "/api/pull", r#"{"model":"new"}"#).await;
    assert_eq!(unknown.status, 400);
    assert!(unknown.json()["error"].as_str().unwrap().contains("\"x\""), "{}", unknown.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_at_a_time_and_a_client_that_leaves_cancels_them() {
    let (herd, proxy) = fleet("", |_, spec| spec.pull_time = Duration::from_secs(3600)).await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&bytes("/api/pull", r#"{"model":"new"}"#)).await;
    let head = client.begin().await.unwrap();
    assert_eq!(head.status, 200);
    assert!(String::from_utf8_lossy(&client.chunk().await.unwrap()).contains("pulling manifest"));
    drop(client);
    let gone =
        |at: usize| herd.nodes()[at].ledger().requests.get(&("/api/pull", Ending::ClientGone)).copied().unwrap_or(0);
    eventually("both pulls are cancelled", || async { gone(0) == 1 && gone(1) == 1 }).await;
    let answer = client::get(proxy.address, "/herdgate/pending").await;
    assert_eq!(answer.text(), r#"{"pending":[]}"#, "what a client cancels is not kept");
    assert_eq!(herd.nodes()[2].ledger().route("/api/pull"), 0, "the third was never asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fails_is_named_and_the_others_go_on() {
    // b's disk is full, so to speak: it finds nothing in its registry.
    let (herd, proxy) = fleet("", |at, spec| {
        if at == 1 {
            spec.registry.clear();
        }
    })
    .await;
    let lines = well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    let text = "pull model manifest: file does not exist";
    assert!(statuses(&lines).contains(&&*format!("failed on b: {text}")), "{lines:?}");
    let last = lines.last().unwrap();
    assert_eq!(last["nodes"], serde_json::json!({"done": ["a", "c"], "failed": {"b": text}}));
    assert_eq!(disk(&herd, 1).await, ["m"]);
    let once = post(&proxy, "/api/pull", r#"{"model":"new","stream":false}"#).await.json();
    assert_eq!((&once["status"], &once["nodes"]["failed"]["b"]), (&"success".into(), &text.into()));

    // One that refuses, others that do not: the same.
    herd.nodes()[2].fault(Fault::new(Harm::Status(500, "no space left on device".to_owned())).for_path("/api/pull"));
    let lines = well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    assert_eq!(lines.last().unwrap()["nodes"]["failed"]["c"], "no space left on device");
    // All refuse, each in its own way: every word is there, and no success.
    herd.nodes()[0].fault(Fault::new(Harm::Busy).for_path("/api/pull"));
    let lines = well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    let error = lines.last().unwrap()["error"].as_str().unwrap().to_owned();
    for part in [text, "no space left on device", "server busy", "(a)", "(b)", "(c)"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_counts_as_held_until_its_order_has_ended() {
    let (_herd, proxy) = fleet("", |_, spec| spec.pull_time = Duration::from_millis(300)).await;
    let held = || proxy.shared().body_bytes.load(Ordering::Relaxed);
    let body = r#"{"model":"new"}"#;
    let mut client = Client::connect(proxy.address).await;
    client.send(&bytes("/api/pull", body)).await;
    client.begin().await.unwrap();
    assert_eq!(held(), body.len() as u64, "the nodes are still to be sent it");
    while client.chunk().await.is_some() {}
    eventually("given back", || async { held() == 0 }).await;
    // A client that leaves ends its order, and with it what it holds.
    let mut client = Client::connect(proxy.address).await;
    client.send(&bytes("/api/pull", r#"{"model":"m"}"#)).await;
    client.begin().await.unwrap();
    drop(client);
    eventually("given back", || async { held() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_operations_is_counted() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    let value = async |series: &str| {
        let text = client::get(proxy.address, "/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)).map(str::trim);
        line.unwrap_or_else(|| panic!("no {series}")).parse::<u64>().unwrap()
    };
    let of = |operation: &str, result: &str| {
        format!("herdgate_administration_total{{operation=\"{operation}\",result=\"{result}\"}}")
    };
    assert_eq!(post(&proxy, "/api/pull", r#"{"model":"new"}"#).await.status, 200);
    assert_eq!(post(&proxy, "/api/pull", r#"{"model":"nope-nope"}"#).await.status, 200);
    assert_eq!(post(&proxy, "/api/copy", r#"{"source":"nope","destination":"x"}"#).await.status, 404);
    herd.nodes()[2].stop();
    let down = || async { !proxy.shared().fleet.load().nodes[2].up };
    proxy.until("c is down", down).await;
    assert_eq!(crate::delete(&proxy, r#"{"model":"new"}"#).await.status, 200);
    for (operation, result, count) in [
        ("pull", "done", 1),
        ("pull", "failed", 1),
        ("pull", "partial", 0),
        ("copy", "refused", 1),
        ("delete", "partial", 1),
    ] {
        let series = of(operation, result);
        eventually(&series, || async { value(&series).await == count }).await;
    }
    assert_eq!(value("herdgate_administration_under_way").await, 0);
    assert_eq!(value("herdgate_pending_operations").await, 1);
    herd.nodes()[2].restart();
    eventually("caught up", || async { value("herdgate_pending_attempts_total{result=\"done\"}").await == 1 }).await;
    eventually("nothing kept", || async { value("herdgate_pending_operations").await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_is_the_same_everywhere() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    let body = r#"{"model":"mine","from":"m","system":"Be brief."}"#;
    let lines = well_formed(&post(&proxy, "/api/create", body).await);
    let direct = client::post_once(herd.nodes()[0].address(), "/api/create", body).await;
    assert_eq!(lines, direct.lines());
    let snapshot = proxy.shared().fleet.load();
    let model = &snapshot.models["mine:latest"];
    assert!(model.candidates.len() == 3 && !model.conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_process_ends_a_pull_in_words() {
    let (_herd, proxy) =
        fleet("shutdown: { drain: 100ms }", |_, spec| spec.pull_time = Duration::from_secs(3600)).await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&bytes("/api/pull", r#"{"model":"new"}"#)).await;
    assert_eq!(client.begin().await.unwrap().status, 200);
    let (_, last) = tokio::join!(proxy.stop(), async {
        let mut last = Vec::new();
        while let Some(chunk) = client.chunk().await {
            last = chunk;
        }
        String::from_utf8(last).unwrap()
    });
    assert!(last.contains("\"error\""), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_goes_to_the_nodes_that_have_what_it_begins_with() {
    let (herd, proxy) = fleet("", |at, spec| {
        if at == 2 {
            spec.models.push(herdgate::sim::ModelSpec::chat("base"));
        }
    })
    .await;
    let lines = well_formed(&post(&proxy, "/api/create", r#"{"model":"mine","from":"base"}"#).await);
    assert!(statuses(&lines).contains(&"a does not have base"), "{lines:?}");
    let expected = serde_json::json!({"done": ["c"], "missed": ["a", "b"]});
    assert_eq!(lines.last().unwrap()["nodes"], expected);
    assert_eq!((disk(&herd, 0).await, copies(&proxy, "mine")), (vec!["m".to_owned()], 1));
}
