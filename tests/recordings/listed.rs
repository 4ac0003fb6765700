//! Listings: a fleet of one lists what its node lists, to the byte. The node answers the gate's polls with recordings.

use crate::alone::{ask, difference};
use crate::claims::{CLAIMS, Claim};
use crate::recording::{self, Recording};
use crate::support::proxy::{Proxy, eventually};
use crate::support::scripted::{Act, After, Asked, Scripted};

/// A node whose `/api/tags` and `/api/ps` are recorded answers, byte for byte.
fn node(tags: Vec<u8>, ps: Vec<u8>) -> Scripted {
    Scripted::bare(move |asked: &Asked| {
        let bytes = match (asked.method(), asked.target()) {
            ("GET", "/api/version") => recording::file("003-version-get.resp"),
            ("GET", "/api/tags") => tags.clone(),
            ("GET", "/api/ps") => ps.clone(),
            ("POST", "/api/show") => recording::file("011-show.resp"),
            other => panic!("{other:?} reached the node"),
        };
        Act::Bytes(bytes, After::Keep)
    })
}

/// What is held against the proxy in front of such a node; `extra` is configuration.
async fn hold(tags: Vec<u8>, ps: &str, extra: &str, names: &[&str]) -> Vec<String> {
    let node = node(tags, recording::file(&format!("{ps}.resp")));
    let proxy = Proxy::start(&[node.url()], extra).await;
    let mut found = Vec::new();
    for name in names {
        let recording = Recording::load(name);
        // Inventories come one after another; what is listed in the end is what counts.
        let mut last = None;
        for _ in 0..500 {
            last = difference(&recording, &ask(&proxy, &recording).await);
            if last.is_none() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        found.extend(last);
    }
    found
}

/// The recorded list with twenty models more, as the node had that answered 009 (whose answer has no body).
fn long_tags() -> Vec<u8> {
    let mut list = Recording::load("007-tags").answer.json();
    let models = list["models"].as_array_mut().unwrap();
    for at in 0..20 {
        let mut model = models[0].clone();
        model["name"] = format!("m{at}:latest").into();
        model["model"] = format!("m{at}:latest").into();
        models.push(model);
    }
    let body = list.to_string();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_of_one_lists_what_its_node_lists() {
    let tags = |name: &str| recording::file(&format!("{name}.resp"));
    let empty = ["003-version-get", "005-tags-empty", "006-v1-models-empty", "010-ps-empty", "028-cors-get"];
    let full = ["007-tags", "008-tags-head", "013-v1-models", "014-v1-model", "015-v1-model-unknown", "080-ps-loaded"];
    let mut found = hold(tags("005-tags-empty"), "010-ps-empty", "", &empty).await;
    found.extend(hold(tags("005-tags-empty"), "010-ps-empty", "origins: ['*']", &["030-origins-star"]).await);
    found.extend(hold(tags("007-tags"), "080-ps-loaded", "", &full).await);
    found.extend(hold(long_tags(), "010-ps-empty", "", &["009-tags-head-long"]).await);
    let mut held = [&empty[..], &full, &["030-origins-star", "009-tags-head-long"]].concat();
    for ps in ["082-ps-forever", "084-ps-second-name", "086-ps-after-unload"] {
        found.extend(hold(tags("007-tags"), ps, "", &[ps]).await);
        held.push(ps);
    }
    assert!(found.is_empty(), "{} differ\n{}", found.len(), found.join("\n"));
    held.sort_unstable();
    let claimed = CLAIMS.iter().filter(|(_, claim)| matches!(claim, Claim::Listed)).map(|(name, _)| *name);
    assert_eq!(held, claimed.collect::<Vec<_>>());
}

/// The comparison can fail: a node that lists something else is told apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_differs_is_seen() {
    let node = node(recording::file("007-tags.resp"), recording::file("010-ps-empty.resp"));
    let proxy = Proxy::start(&[node.url()], "").await;
    proxy.until_listed("smollm2:135m").await;
    let recording = Recording::load("005-tags-empty");
    eventually("told apart", || async { difference(&recording, &ask(&proxy, &recording).await).is_some() }).await;
}
