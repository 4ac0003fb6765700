//! Copy, delete and push.

use herdgate::sim::{Fault, Harm};

use crate::support::client::{self, Client};
use crate::{copies, delete, disk, fleet, post, well_formed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_and_delete_follow_on_every_node_that_has_it() {
    let (herd, proxy) = fleet("", |at, spec| {
        if at == 2 {
            spec.models.push(herdgate::sim::ModelSpec::chat("only-c"));
        }
    })
    .await;
    let copied = post(&proxy, "/api/copy", r#"{"source":"m","destination":"third"}"#).await;
    assert_eq!((copied.status, copied.text().as_str(), copied.header("content-type")), (200, "", None));
    assert_eq!(copied.header("content-length"), Some("0"));
    assert_eq!(copies(&proxy, "third"), 3);
    let tags = client::get(proxy.address, "/api/tags").await.text();
    assert!(tags.contains("third:latest"), "listed at once");

    let deleted = delete(&proxy, r#"{"model":"","name":"third"}"#).await;
    assert_eq!((deleted.status, deleted.text().as_str()), (200, ""));
    assert_eq!(copies(&proxy, "third"), 0);
    let again = delete(&proxy, r#"{"name":"third"}"#).await;
    assert_eq!((again.status, again.text().as_str()), (404, r#"{"error":"model 'third' not found"}"#));

    // A body in chunks, and a model that one node alone has: only that one is asked.
    let before: Vec<u64> = herd.nodes().iter().map(|node| node.ledger().route("/api/delete")).collect();
    let mut client = Client::connect(proxy.address).await;
    client.send(b"DELETE /api/delete HTTP/1.1\r\nHost: x.local\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{\"model\":\"only-c\"}\r\n0\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    let after: Vec<u64> = herd.nodes().iter().map(|node| node.ledger().route("/api/delete")).collect();
    assert_eq!((after[0], after[1], after[2]), (before[0], before[1], before[2] + 1));
    assert_eq!(disk(&herd, 2).await, ["m"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_fails_somewhere_says_where() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    herd.nodes()[1].fault(Fault::new(Harm::Status(500, "permission denied".to_owned())).for_path("/api/delete"));
    let answer = delete(&proxy, r#"{"model":"m"}"#).await;
    assert_eq!(answer.status, 500);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert_eq!(error, "permission denied on b; done on a, c");
    assert_eq!(copies(&proxy, "m"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_is_one_nodes_own() {
    let (herd, proxy) = fleet("", |_, spec| spec.signed_in = true).await;
    let body = r#"{"name":"m"}"#;
    let lines = well_formed(&post(&proxy, "/api/push", body).await);
    let direct = client::post_once(herd.nodes()[0].address(), "/api/push", body).await;
    assert_eq!(lines, direct.lines());
    let asked: u64 = herd.nodes().iter().map(|node| node.ledger().route("/api/push")).sum();
    assert_eq!(asked, 2, "one of them by the test itself");
    let once = post(&proxy, "/api/push", r#"{"model":"m","stream":false}"#).await;
    assert_eq!(once.text(), r#"{"status":"success"}"#);
}
