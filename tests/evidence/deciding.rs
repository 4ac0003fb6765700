//! Why a request went where it went: afterwards, and beforehand.

use serde_json::{Value, json};

use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};

use crate::support::client::{Client, get, once, post, post_once, request};
use crate::support::proxy::{Proxy, eventually};
use crate::{CHAT, MODEL, herd};

async fn decisions(proxy: &Proxy, query: &str) -> Vec<Value> {
    let answer = get(proxy.address, &format!("/herdgate/decisions{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["decisions"].as_array().unwrap().clone()
}

async fn decision(proxy: &Proxy, id: &str) -> Value {
    let found = decisions(proxy, &format!("?id={id}")).await;
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

async fn ask(proxy: &Proxy, id: &str, body: &str) -> u16 {
    once(proxy.address, &request("POST", "/api/chat", &[("x-request-id", id)], body.as_bytes())).await.status
}

async fn explain(proxy: &Proxy, query: &str, body: &str) -> Value {
    let answer = post_once(proxy.address, &format!("/herdgate/explain{query}"), body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_says_who_was_there_and_what_came_of_it() {
    let (herd, proxy) = herd(2, "").await;
    assert_eq!(ask(&proxy, "first", CHAT).await, 200);
    assert_eq!(ask(&proxy, "second", CHAT).await, 200);
    assert_eq!(ask(&proxy, "third", r#"{"model":"nope","messages":[]}"#).await, 404);
    proxy.until("three ends", || async { proxy.shared().meters.sums().endings[4] == 1 }).await;
    let all = decisions(&proxy, "").await;
    let ids: Vec<_> = all.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["third", "second", "first"], "newest first");
    let first = &all[2];
    assert_eq!(
        (&first["reason"], &first["outcome"], &first["status"]),
        (&json!("cold"), &json!("completed"), &json!(200))
    );
    assert_eq!((&first["route"], &first["model"]), (&json!("/api/chat"), &json!(MODEL)));
    assert_eq!(first["candidates_total"], json!(2));
    let found: Vec<_> = first["candidates"].as_array().unwrap().iter().collect();
    assert_eq!(found[0]["node"], first["node"], "the chosen one first");
    assert!(found.iter().all(|one| one["model_is"] != "loaded" && one["in_flight"] == 0 && one["fits"] == true));
    assert!(first["total_ms"].as_f64().unwrap() >= first["first_byte_ms"].as_f64().unwrap());
    assert!(first["time"].as_str().unwrap().starts_with("20") && first["because"].as_str().unwrap().contains("loads"));
    assert_eq!((&all[1]["reason"], &all[1]["node"]), (&json!("loaded"), &first["node"]));
    assert_eq!(
        (&all[0]["reason"], &all[0]["node"], &all[0]["outcome"]),
        (&json!("unknown_model"), &Value::Null, &json!("rejected"))
    );
    // Filters.
    assert_eq!(decisions(&proxy, "?limit=1").await.len(), 1);
    assert_eq!(decisions(&proxy, "?model=LLAMA3").await.len(), 2);
    assert_eq!(decision(&proxy, "second").await, all[1]);
    assert_eq!(decisions(&proxy, "?id=absent").await.len(), 0);
    for wrong in ["?limit=0", "?limit=many", "?since=1"] {
        let answer = get(proxy.address, &format!("/herdgate/decisions{wrong}")).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("limit"), "{}", answer.text());
    }
    drop(herd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_a_wait_and_a_request_in_progress_are_seen() {
    let (herd, proxy) = herd(2, "slots: 1").await;
    assert_eq!(ask(&proxy, "load", CHAT).await, 200);
    let loader = decision(&proxy, "load").await["node"].as_str().unwrap().to_owned();
    let sick = herd.nodes().iter().find(|node| node.url() == loader).unwrap();
    sick.fault(Fault::new(Harm::Status(503, "busy".into())).next(1));
    assert_eq!(ask(&proxy, "again", CHAT).await, 200);
    let again = decision(&proxy, "again").await;
    assert_eq!((&again["retries"], &again["outcome"]), (&json!(1), &json!("completed")));
    let tried: Vec<_> = again["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["tried"] == true)
        .map(|one| &one["node"])
        .collect();
    assert_eq!(tried, [&json!(loader)]);
    assert_ne!(again["node"], json!(loader));
    // Both slots are taken by streams that go on; a third request waits.
    let endless = json!({ "model": "llama3", "prompt": "go on", "options": { "num_predict": 100_000 },
        "sim": { "tokens": 100_000, "pace_ms": 20 } })
    .to_string();
    let mut streams = Vec::new();
    for at in 0..2 {
        let mut client = Client::connect(proxy.address).await;
        let id = format!("stream{at}");
        client.send(&request("POST", "/api/generate", &[("x-request-id", &id)], endless.as_bytes())).await;
        client.begin().await.unwrap();
        streams.push(client);
    }
    let running = decision(&proxy, "stream1").await;
    assert_eq!((&running["outcome"], &running["total_ms"]), (&json!("running"), &Value::Null));
    let mut waiting = Client::connect(proxy.address).await;
    waiting.send(&request("POST", "/api/chat", &[("x-request-id", "waits")], CHAT.as_bytes())).await;
    proxy.until("it waits", || async { proxy.waiting(MODEL) == 1 }).await;
    assert_eq!(decision(&proxy, "waits").await["reason"], json!("waiting"));
    let dry = explain(&proxy, "", CHAT).await;
    assert_eq!((&dry["would"], &dry["waiting_before"]), (&json!("wait"), &json!(1)));
    assert_eq!(dry["candidates"][0]["stands"], json!("full"));
    streams.clear();
    assert_eq!(waiting.answer().await.unwrap().status, 200);
    let waited = decision(&proxy, "waits").await;
    assert!(waited["waited_ms"].as_f64().unwrap() > 0.0 && waited["reason"] == "loaded", "{waited}");
    eventually("the streams ended", || async { decision(&proxy, "stream0").await["outcome"] == "client_gone" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_reserves_nothing_and_says_what_then_happens() {
    let (herd, proxy) = herd(3, "").await;
    let before = herd.nodes().iter().map(|node| node.ledger().model(MODEL).loads).sum::<u64>();
    let cold = explain(&proxy, "", r#"{"model":"llama3"}"#).await;
    assert_eq!((&cold["would"], &cold["reason"], &cold["route"]), (&json!("go"), &json!("cold"), &json!("/api/chat")));
    assert_eq!(cold["candidates"].as_array().unwrap().len(), 3);
    assert!(cold["candidates"].as_array().unwrap().iter().all(|one| one["stands"] == "on_disk"));
    assert_eq!((proxy.in_flight(), proxy.loaded(MODEL)), (0, 0));
    assert_eq!(herd.nodes().iter().map(|node| node.ledger().model(MODEL).loads).sum::<u64>(), before);
    assert_eq!(decisions(&proxy, "").await.len(), 0, "it is no decision");
    assert_eq!(proxy.shared().meters.sums().endings, [0; 5], "nor a request");
    assert_eq!(ask(&proxy, "real", CHAT).await, 200);
    let warm = explain(&proxy, "?route=/v1/chat/completions", CHAT).await;
    assert_eq!((&warm["would"], &warm["reason"]), (&json!("go"), &json!("loaded")));
    let real = decision(&proxy, "real").await;
    assert_eq!((&warm["node"], &warm["candidates"][0]["order"]), (&real["node"], &json!(1)));
    assert_eq!(warm["candidates"][0]["stands"], json!("loaded"));
    let unknown = explain(&proxy, "", r#"{"model":"nope"}"#).await;
    assert_eq!((&unknown["would"], &unknown["reason"]), (&json!("go"), &json!("any_node")), "a node words the 404");
    let nothing = explain(&proxy, "", "").await;
    assert_eq!((&nothing["would"], &nothing["reason"]), (&json!("go"), &json!("any_node")));
    let nodes = proxy.shared().fleet.snapshot.load_full();
    assert!(nodes.nodes.iter().all(|node| node.any.cell.view().in_flight == 0), "a dry run takes no slot");
    let wrong = post_once(proxy.address, "/herdgate/explain?route=/nope", CHAT).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("/v1/messages"), "{}", wrong.text());
    assert_eq!(once(proxy.address, &request("GET", "/herdgate/explain", &[], b"")).await.status, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_nodes_that_are_down_stand_there_as_closed() {
    let named = |name: &str, url: String| format!("{{ name: {name}, url: '{url}' }}");
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat(MODEL)]); 2]).unwrap();
    let urls = herd.urls();
    let nodes = format!("nodes: [ {}, {} ]", named("left", urls[0].clone()), named("right", urls[1].clone()));
    let proxy = Proxy::start(&[], &nodes).await;
    proxy.until_listed(MODEL).await;
    eventually("both are known", || async {
        explain(&proxy, "", CHAT).await["candidates"].as_array().unwrap().len() == 2
    })
    .await;
    herd.nodes()[0].kill();
    eventually("it is seen", || async {
        let dry = explain(&proxy, "", CHAT).await;
        dry["candidates"][1]["node"] == "left" && dry["candidates"][1]["stands"] == "closed"
    })
    .await;
    assert_eq!(explain(&proxy, "", CHAT).await["node"], json!("right"));
    herd.nodes()[1].kill();
    eventually("nobody is left", || async { explain(&proxy, "", CHAT).await["status"] == 503 }).await;
    let answer = once(proxy.address, &post("/api/chat", CHAT)).await;
    assert_eq!((answer.status, answer.header("x-herdgate-reason")), (503, Some("no_node")));
    let newest = decisions(&proxy, "?limit=1").await;
    assert_eq!((&newest[0]["reason"], &newest[0]["candidates_total"]), (&json!("no_node"), &json!(2)));
    assert!(newest[0]["candidates"].as_array().unwrap().iter().all(|one| one["takes_work"] == false));
}
