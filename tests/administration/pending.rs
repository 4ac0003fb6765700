//! What nodes that are down miss: reported, kept, listed, cancellable, caught up, and never done to another model.

use std::time::Duration;

use herdgate::clock::Clock;
use herdgate::sim::{Fault, Harm, Herd, ModelSpec};
use serde_json::Value;

use crate::support::client::{self, Client, post as bytes, request};
use crate::support::proxy::Proxy;
use crate::{copies, delete, disk, fleet, nodes, post, statuses, until_known, well_formed};

async fn listed(proxy: &Proxy) -> Vec<Value> {
    client::get(proxy.address, "/herdgate/pending").await.json()["pending"].as_array().unwrap().clone()
}

async fn until_nothing_is_pending(proxy: &Proxy) {
    proxy.until("nothing is pending", || async { listed(proxy).await.is_empty() }).await;
}

/// Stops node c, and waits until the proxy knows.
async fn stop_c(herd: &Herd, proxy: &Proxy) {
    herd.nodes()[2].stop();
    until_known(proxy, "m", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_caught_up() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    let lines = well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    let said = statuses(&lines);
    assert!(said.contains(&"c is down") && said.contains(&"kept for the return of c"), "{said:?}");
    assert_eq!(lines.last().unwrap()["nodes"], serde_json::json!({"done": ["a", "b"], "pending": ["c"]}));
    let kept = listed(&proxy).await;
    assert_eq!((kept.len(), &kept[0]["node"], &kept[0]["operation"]), (1, &"c".into(), &"pull".into()));
    assert!(kept[0]["ordered_at"].is_string() && kept[0]["expires_at"].is_string());
    herd.nodes()[2].restart();
    until_known(&proxy, "new", 3).await;
    until_nothing_is_pending(&proxy).await;
    assert_eq!(disk(&herd, 2).await, ["m", "new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_and_a_copy_outlive_the_proxy() {
    let (herd, proxy) = fleet("", |_, spec| spec.models.push(ModelSpec::chat("other").copy_of("other"))).await;
    until_known(&proxy, "other", 3).await;
    stop_c(&herd, &proxy).await;
    let deleted = delete(&proxy, r#"{"model":"m"}"#).await;
    let expected = serde_json::json!({"status": "success", "nodes": {"done": ["a", "b"], "pending": ["c"]}});
    assert_eq!((deleted.status, deleted.json()), (200, expected));
    let copied = post(&proxy, "/api/copy", r#"{"source":"other","destination":"twin"}"#).await;
    assert_eq!((copied.status, &copied.json()["nodes"]["pending"][0]), (200, &"c".into()));
    let configuration = nodes(&herd);
    let data = proxy.stop().await;
    herd.nodes()[2].restart();
    let proxy = Proxy::start_in(data, &[], &configuration, Clock::system()).await;
    until_nothing_is_pending(&proxy).await;
    assert_eq!(disk(&herd, 2).await, ["other", "twin"]);
    assert_eq!((copies(&proxy, "twin"), copies(&proxy, "m")), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_model_under_the_name_is_left_alone() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    assert_eq!(delete(&proxy, r#"{"model":"m"}"#).await.status, 200);
    assert_eq!(listed(&proxy).await[0]["digest"], ModelSpec::chat("m").copy_of("m").digest.as_str());
    // Somebody pulls a newer one at the node itself before the proxy sees it again.
    herd.nodes()[2].add_model(ModelSpec::chat("m").copy_of("newer"));
    herd.nodes()[2].restart();
    until_nothing_is_pending(&proxy).await;
    assert_eq!(disk(&herd, 2).await, ["m"]);
    assert_eq!(herd.nodes()[2].ledger().route("/api/delete"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_can_be_cancelled_and_a_newer_order_takes_its_place() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    assert_eq!(delete(&proxy, r#"{"model":"m"}"#).await.status, 200);
    let ids: Vec<u64> = listed(&proxy).await.iter().map(|entry| entry["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 2);
    let cancel = |id: u64| request("DELETE", &format!("/herdgate/pending/{id}"), &[], b"");
    let cancelled = client::once(proxy.address, &cancel(ids[1])).await;
    assert_eq!((cancelled.status, &cancelled.json()["cancelled"]["operation"]), (200, &"delete".into()));
    assert_eq!(client::once(proxy.address, &cancel(ids[1])).await.status, 404);
    // Pulled again: one entry, a newer one.
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"NEW:latest"}"#).await);
    let kept = listed(&proxy).await;
    assert!(kept.len() == 1 && kept[0]["id"].as_u64().unwrap() > ids[1], "{kept:?}");
    herd.nodes()[2].restart();
    until_nothing_is_pending(&proxy).await;
    assert_eq!(disk(&herd, 2).await, ["m", "new"], "the deletion was cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_where_nothing_was_done() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    let lines = well_formed(&post(&proxy, "/api/pull", r#"{"model":"nope"}"#).await);
    assert_eq!(lines.last().unwrap()["error"], "pull model manifest: file does not exist");
    let created = post(&proxy, "/api/create", r#"{"model":"x","from":"m"}"#).await;
    assert_eq!(created.lines().last().unwrap()["nodes"]["missed"][0], "c", "a create is no state to catch up with");
    herd.nodes()[0].stop();
    herd.nodes()[1].stop();
    until_known(&proxy, "m", 0).await;
    for (path, body) in [("/api/pull", r#"{"model":"new"}"#), ("/api/copy", r#"{"source":"m","destination":"x"}"#)] {
        let answer = post(&proxy, path, body).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some() && answer.text().contains("a, b, c"), "{}", answer.text());
    }
    assert_eq!(delete(&proxy, r#"{"model":"m"}"#).await.status, 503);
    assert!(listed(&proxy).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_lost_in_the_middle_is_caught_up_too() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    herd.nodes()[1].fault(Fault::new(Harm::Cut { at: 300, reset: true }).for_path("/api/pull").next(1));
    let lines = well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    let last = lines.last().unwrap();
    assert_eq!(last["nodes"], serde_json::json!({"done": ["a", "c"], "pending": ["b"]}));
    assert!(statuses(&lines).iter().any(|line| line.starts_with("failed on b: ")), "{lines:?}");
    until_known(&proxy, "new", 3).await;
    until_nothing_is_pending(&proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_takes_back_what_was_kept_to_bring_the_model() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    assert_eq!(listed(&proxy).await.len(), 1);
    let deleted = delete(&proxy, r#"{"model":"new"}"#).await;
    assert_eq!((deleted.status, deleted.text().as_str()), (200, ""), "c never had it");
    assert!(listed(&proxy).await.is_empty());
    herd.nodes()[2].restart();
    until_known(&proxy, "m", 3).await;
    assert_eq!((disk(&herd, 2).await, copies(&proxy, "new")), (vec!["m".to_owned()], 0));
}

/// A deletion is kept for c, which is back, and has refused it: it waits for its turn.
async fn a_deletion_waits_on_c(herd: &Herd, proxy: &Proxy) {
    stop_c(herd, proxy).await;
    assert_eq!(delete(proxy, r#"{"model":"m"}"#).await.status, 200);
    herd.nodes()[2].fault(Fault::new(Harm::Status(500, "busy".to_owned())).for_path("/api/delete"));
    herd.nodes()[2].restart();
    let refused = || async { listed(proxy).await[0]["attempts"].as_u64().unwrap() > 0 };
    proxy.until("c has refused it", refused).await;
    until_known(proxy, "m", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_settles_a_kept_deletion_before_it_begins() {
    let (herd, proxy) = fleet("", |_, spec| {
        spec.registry = vec![ModelSpec::chat("m").copy_of("m")];
        spec.pull_time = Duration::from_secs(3600);
    })
    .await;
    a_deletion_waits_on_c(&herd, &proxy).await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&bytes("/api/pull", r#"{"model":"m"}"#)).await;
    assert_eq!(client.begin().await.unwrap().status, 200);
    // From here on the deletion could fall due at any moment.
    assert!(listed(&proxy).await.is_empty());
    // Whoever takes the pull back before any node has it, has changed nothing.
    drop(client);
    proxy.until("it is kept again", || async { listed(&proxy).await.len() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_nobody_did_leaves_what_was_kept() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    for node in &herd.nodes()[..2] {
        node.fault(Fault::new(Harm::Status(500, "permission denied".to_owned())).for_path("/api/delete"));
    }
    assert_eq!(delete(&proxy, r#"{"model":"new"}"#).await.status, 500);
    assert_eq!(listed(&proxy).await[0]["operation"], "pull");
    herd.nodes()[2].restart();
    until_nothing_is_pending(&proxy).await;
    assert_eq!(disk(&herd, 2).await, ["m", "new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_settles_what_was_kept_for_nodes_that_are_down() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    assert_eq!(listed(&proxy).await.len(), 1);
    let lines = well_formed(&post(&proxy, "/api/create", r#"{"model":"new","from":"m"}"#).await);
    assert_eq!(lines.last().unwrap()["nodes"]["missed"], serde_json::json!(["c"]));
    assert!(listed(&proxy).await.is_empty(), "c would get what no other node has");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_pull_leaves_another_model_under_the_name_alone() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    stop_c(&herd, &proxy).await;
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    // Somebody makes one of that name at the node itself before the proxy sees it again.
    herd.nodes()[2].add_model(ModelSpec::chat("new").copy_of("own"));
    herd.nodes()[2].restart();
    until_nothing_is_pending(&proxy).await;
    assert_eq!(herd.nodes()[2].ledger().route("/api/pull"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_is_gone_though_a_node_that_is_down_has_it() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    stop_c(&herd, &proxy).await;
    let deleted = delete(&proxy, r#"{"model":"new"}"#).await;
    assert_eq!(deleted.json()["nodes"]["pending"][0], "c");
    let tags = client::get(proxy.address, "/api/tags").await.text();
    assert!(!tags.contains("new:latest") && tags.contains("m:latest"), "{tags}");
    assert_eq!(post(&proxy, "/api/show", r#"{"model":"new"}"#).await.status, 404);
    assert_eq!(post(&proxy, "/api/generate", r#"{"model":"new","prompt":"x"}"#).await.status, 404);
    // As with one Ollama; and it is deleted there all the same.
    let again = delete(&proxy, r#"{"model":"new"}"#).await;
    assert_eq!((again.status, again.text().as_str()), (404, r#"{"error":"model 'new' not found"}"#));
    // Deleted once more where it came to meanwhile.
    well_formed(&crate::post_to(&proxy, "a", "/api/pull", r#"{"model":"new"}"#).await);
    assert_eq!(delete(&proxy, r#"{"model":"new"}"#).await.text(), "");
    assert_eq!(listed(&proxy).await.len(), 1);
    herd.nodes()[2].restart();
    until_nothing_is_pending(&proxy).await;
    assert_eq!(disk(&herd, 2).await, ["m"]);
    assert_eq!(herd.nodes()[2].ledger().route("/api/delete"), 1);

    // Deleted and pulled again while the node was down: it has what the registry has.
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    stop_c(&herd, &proxy).await;
    assert_eq!(delete(&proxy, r#"{"model":"new"}"#).await.status, 200);
    well_formed(&post(&proxy, "/api/pull", r#"{"model":"new"}"#).await);
    let kept = listed(&proxy).await;
    assert_eq!(
        (kept.len(), &kept[0]["operation"], kept[0]["digest"].is_string()),
        (1, &"pull".into(), true),
        "{kept:?}"
    );
    herd.nodes()[2].restart();
    until_nothing_is_pending(&proxy).await;
    assert_eq!(disk(&herd, 2).await, ["m", "new"]);
    assert_eq!(herd.nodes()[2].ledger().route("/api/pull"), 3, "caught up, not given up");
}
