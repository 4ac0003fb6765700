//! What an answer has said is true of the very next request, as it is with one Ollama.

use herdgate::sim::{Herd, ModelSpec};

use crate::support::client::{self, post_once};
use crate::support::proxy::Proxy;
use crate::{delete, fleet, post};

/// Names in a listing.
async fn listed(proxy: &Proxy, path: &str) -> Vec<String> {
    let listing = client::get(proxy.address, path).await.json();
    listing["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
}

async fn is_shown(proxy: &Proxy, model: &str) -> bool {
    post(proxy, "/api/show", &format!(r#"{{"model":"{model}"}}"#)).await.status == 200
}

fn loaded_on(herd: &Herd) -> usize {
    herd.nodes().iter().filter(|node| !node.loaded().is_empty()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_loaded_is_in_ps_and_what_was_unloaded_is_not() {
    let (herd, proxy) = fleet("", |_, _| ()).await;
    let load = r#"{"model":"m"}"#;
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":false}"#;
    for (path, body) in [("/api/generate", load), ("/api/chat", load), ("/api/chat", chat)] {
        for copies in [1, 3] {
            assert_eq!(post(&proxy, path, body).await.status, 200);
            assert_eq!(listed(&proxy, "/api/ps").await, ["m:latest"], "loaded by {path} {body}");
            if copies == 3 {
                // A copy on each, as after a rush.
                for node in herd.nodes() {
                    assert_eq!(post_once(node.address(), "/api/generate", load).await.status, 200);
                }
                proxy.until("three copies", || async { proxy.loaded("m") == 3 }).await;
            }
            let unloaded = post(&proxy, "/api/generate", r#"{"model":"m","keep_alive":0}"#).await;
            assert_eq!(unloaded.json()["done_reason"], "unload");
            assert!(listed(&proxy, "/api/ps").await.is_empty(), "unloaded from {copies}");
            assert_eq!(loaded_on(&herd), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_is_listed_and_shown_and_what_was_deleted_is_not() {
    let (_herd, proxy) = fleet("", |_, spec| spec.registry.push(ModelSpec::chat("me/own:v1"))).await;
    let orders = [
        ("/api/pull", r#"{"model":"new","stream":false}"#, "new:latest"),
        ("/api/pull", r#"{"name":"me/own:v1"}"#, "me/own:v1"),
        ("/api/copy", r#"{"source":"m","destination":"third"}"#, "third:latest"),
        ("/api/create", r#"{"model":"made","from":"m","system":"x"}"#, "made:latest"),
    ];
    for (path, body, name) in orders {
        assert_eq!(post(&proxy, path, body).await.status, 200, "{path} {body}");
        assert!(listed(&proxy, "/api/tags").await.contains(&name.to_owned()), "{path} {body}");
        assert!(is_shown(&proxy, name).await, "{path} {body}");
        let v1 = client::get(proxy.address, "/v1/models").await.text();
        assert!(v1.contains(&format!("\"{name}\"")), "{path} {body}");
        assert_eq!(delete(&proxy, &format!(r#"{{"model":"{name}"}}"#)).await.status, 200);
        assert_eq!(listed(&proxy, "/api/tags").await, ["m:latest"], "{name} is deleted");
        assert!(!is_shown(&proxy, name).await, "{name} is deleted");
    }
}
