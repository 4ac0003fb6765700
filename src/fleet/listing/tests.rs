//! The merge by example: entries as real nodes write them, expected bodies byte for byte.

use super::*;
use crate::fleet::inventory;

fn tag(name: &str, digest: &str, modified: &str) -> String {
    format!(
        r#"{{"name":"{name}","model":"{name}","modified_at":"{modified}","size":9,"digest":"{digest}","details":{{"families":null}},"capabilities":["completion"]}}"#
    )
}

fn entries(tags: &[String]) -> Vec<Entry> {
    inventory::tags(format!(r#"{{"models":[{}]}}"#, tags.join(",")).as_bytes()).unwrap()
}

fn loaded(entry: &str) -> Vec<Loaded> {
    inventory::ps(format!(r#"{{"models":[{entry}]}}"#).as_bytes()).unwrap()
}

fn node<'a>(inventory: &'a [Entry], loaded: &'a [Loaded]) -> Source<'a> {
    Source { kind: NodeKind::Ollama, healthy: true, cloud: false, version: Some("0.33.0"), inventory, loaded }
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const OLD: &str = "2026-11-23T21:08:38.318320304Z";
const NEW: &str = "2026-11-23T23:20:24.9+01:00";

#[test]
fn nothing_is_listed_as_ollama_lists_nothing() {
    let empty = merge(&[]);
    assert_eq!(text(&empty.tags), r#"{"models":[]}"#);
    assert_eq!(text(&empty.ps), r#"{"models":[]}"#);
    assert_eq!(text(&empty.v1_models), "{\"object\":\"list\",\"data\":null}\n");
    assert_eq!(text(&empty.version), r#"{"version":"0.0.0"}"#);
}

#[test]
fn one_node_is_listed_byte_for_byte_newest_first() {
    let (old, new) = (tag("b:latest", "d1", OLD), tag("me/a:v1", "d2", NEW));
    let inventory = entries(&[old.clone(), new.clone()]);
    let listing = merge(&[node(&inventory, &[])]);
    assert_eq!(text(&listing.tags), format!(r#"{{"models":[{new},{old}]}}"#));
    assert_eq!(
        text(&listing.v1_models),
        concat!(
            r#"{"object":"list","data":[{"id":"me/a:v1","object":"model","created":1795472424,"owned_by":"me"},"#,
            r#"{"id":"b:latest","object":"model","created":1795468118,"owned_by":"library"}]}"#,
            "\n"
        )
    );
}

#[test]
fn one_name_on_many_nodes_is_one_entry_with_the_latest_date() {
    let first = entries(&[tag("M:latest", "d1", NEW)]);
    let second = entries(&[tag("m:latest", "d1", OLD)]);
    let newer = Source { version: Some("0.34.0"), ..node(&second, &[]) };
    let listing = merge(&[node(&first, &[]), newer]);
    // The newer node's entry (its capabilities count), the other one's date.
    assert_eq!(text(&listing.tags), format!(r#"{{"models":[{}]}}"#, tag("m:latest", "d1", NEW)));
}

#[test]
fn a_conflict_shows_the_digest_of_most_healthy_nodes_then_the_newest() {
    let common = entries(&[tag("m:latest", "common", OLD)]);
    let newest = entries(&[tag("m:latest", "newest", NEW)]);
    let dead = Source { healthy: false, ..node(&newest, &[]) };
    let majority = merge(&[dead, node(&newest, &[]), node(&common, &[]), node(&common, &[])]);
    assert_eq!(text(&majority.tags), format!(r#"{{"models":[{}]}}"#, tag("m:latest", "common", OLD)));
    let tie = merge(&[node(&common, &[]), node(&newest, &[])]);
    assert_eq!(text(&tie.tags), format!(r#"{{"models":[{}]}}"#, tag("m:latest", "newest", NEW)));
    assert!(conflict(["", "a", "b"].into_iter()));
    assert!(!conflict(["", "a", "", "a"].into_iter()));
    assert!(!conflict(["", ""].into_iter()));
}

fn ps_entry(size: u64, vram: u64, expires: &str, context: u64) -> String {
    format!(
        r#"{{"name":"m:latest","model":"m:latest","size":{size},"digest":"d1","details":{{"parent_model":""}},"expires_at":"{expires}","size_vram":{vram},"context_length":{context}}}"#
    )
}

#[test]
fn ps_sums_sizes_and_takes_the_latest_expiry_and_the_least_context() {
    let a = loaded(&ps_entry(100, 50, OLD, 8192));
    let b = loaded(&ps_entry(11, 0, NEW, 4096));
    let listing = merge(&[node(&[], &a), node(&[], &b)]);
    assert_eq!(text(&listing.ps), format!(r#"{{"models":[{}]}}"#, ps_entry(111, 50, NEW, 4096)));
}

#[test]
fn ps_keeps_digests_apart_and_leaves_out_the_dead() {
    let a = loaded(&ps_entry(100, 50, OLD, 8192));
    let b = loaded(&ps_entry(11, 0, NEW, 4096).replace("d1", "d2"));
    let dead = Source { healthy: false, ..node(&[], &a) };
    let listing = merge(&[node(&[], &a), node(&[], &b), dead]);
    let expected = [ps_entry(11, 0, NEW, 4096).replace("d1", "d2"), ps_entry(100, 50, OLD, 8192)].join(",");
    assert_eq!(text(&listing.ps), format!(r#"{{"models":[{expected}]}}"#));
}

#[test]
fn openai_nodes_are_listed_under_v1_alone_and_in_their_own_words() {
    let ollama = entries(&[tag("m:latest", "d1", OLD)]);
    let raw = r#"{"id":"Qwen/Q.gguf","object":"model","created":7,"owned_by":"llamacpp","meta":{"n_ctx":4096}}"#;
    let served = inventory::served(format!(r#"{{"data":[{raw},{{"id":"M"}}]}}"#).as_bytes()).unwrap();
    let openai = Source { kind: NodeKind::OpenAi, version: None, ..node(&served, &[]) };
    let listing = merge(&[openai, node(&ollama, &[])]);
    assert_eq!(text(&listing.tags), format!(r#"{{"models":[{}]}}"#, tag("m:latest", "d1", OLD)));
    let ours = r#"{"id":"m:latest","object":"model","created":1795468118,"owned_by":"library"}"#;
    assert_eq!(text(&listing.v1_models), format!("{{\"object\":\"list\",\"data\":[{ours},{raw}]}}\n"));
    assert_eq!(text(&listing.version), r#"{"version":"0.33.0"}"#);
}

#[test]
fn remote_stubs_are_listed_where_they_may_run() {
    let stub = r#"{"name":"big:cloud-x","remote_host":"https://ollama.com:443","digest":"s"}"#.to_owned();
    let inventory = entries(std::slice::from_ref(&stub));
    assert_eq!(text(&merge(&[node(&inventory, &[])]).tags), r#"{"models":[]}"#);
    let cloud = Source { cloud: true, ..node(&inventory, &[]) };
    assert_eq!(text(&merge(&[cloud]).tags), format!(r#"{{"models":[{stub}]}}"#));
}

#[test]
fn the_version_is_the_lowest_that_clients_can_read() {
    let of = |versions: &[(&'static str, bool)]| {
        let sources: Vec<_> = versions
            .iter()
            .map(|&(version, healthy)| Source { healthy, version: Some(version), ..node(&[], &[]) })
            .collect();
        text(&merge(&sources).version).to_owned()
    };
    assert_eq!(of(&[("0.33.0", true), ("0.9.12", true), ("0.10.1", true)]), r#"{"version":"0.9.12"}"#);
    assert_eq!(of(&[("0.33.0", true), ("v0.33.0-rc2", true)]), r#"{"version":"v0.33.0-rc2"}"#);
    assert_eq!(of(&[("0.33.0", true), ("0.1.0", false)]), r#"{"version":"0.33.0"}"#);
    assert_eq!(of(&[("0.33.0", false), ("0.1.0", false)]), r#"{"version":"0.1.0"}"#);
    assert_eq!(of(&[("latest", true), ("0.33.0", true)]), r#"{"version":"0.33.0"}"#);
    assert_eq!(of(&[("latest", true)]), r#"{"version":"0.0.0"}"#);
}

#[test]
fn an_unchanged_listing_keeps_its_bytes() {
    let inventory = entries(&[tag("m:latest", "d1", OLD)]);
    let old = Arc::new(merge(&[node(&inventory, &[])]));
    let again = keep(&old, merge(&[node(&inventory, &[])]));
    assert!(Arc::ptr_eq(&old, &again));
    let newer = Source { version: Some("0.34.0"), ..node(&inventory, &[]) };
    let changed = keep(&old, merge(&[newer]));
    assert_eq!(changed.tags.as_ptr(), old.tags.as_ptr());
    assert_ne!(changed.version, old.version);
}

#[test]
fn the_order_of_nodes_does_not_decide() {
    let a = entries(&[tag("m:latest", "d1", OLD), tag("n:latest", "d2", OLD)]);
    let b = entries(&[tag("n:latest", "d3", OLD), tag("m:latest", "d1", NEW)]);
    let one = merge(&[node(&a, &[]), node(&b, &[])]);
    let other = merge(&[node(&b, &[]), node(&a, &[])]);
    assert_eq!(one.tags, other.tags);
}
