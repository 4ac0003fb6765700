//! The event stream against its recording: framing byte for byte, and the payload's shape.

use super::*;

/// What both streams keep to: one chunk an event, `data: `, one line of sorted JSON, a blank line.
fn well_framed(chunk: &[u8]) -> serde_json::Value {
    let text = std::str::from_utf8(chunk).unwrap();
    let payload = text.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("data: ...\\n\\n");
    assert!(!payload.contains('\n'), "{payload:?}");
    let value: serde_json::Value = serde_json::from_str(payload).unwrap();
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    assert_eq!(sorted.to_string(), payload, "compact, sorted at every level");
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_framed_as_recorded() {
    let recorded = recording("040-usage-stream");
    let events: Vec<_> = recorded.answer.chunks.iter().map(|chunk| well_framed(chunk)).collect();
    let herd = two_nodes().await;
    let proxy = proxy_on(tempfile::tempdir().unwrap(), &format!("endpoints: [{}]\n", listed(&herd.urls()))).await;
    proxy.until_listed("llama3:latest").await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&recorded.request).await;
    let head = client.begin().await.unwrap();
    for name in ["content-type", "transfer-encoding"] {
        assert_eq!(head.header(name), recorded.answer.header(name), "{name}");
    }
    // The state comes at once (there: nothing before the first change), then each change.
    let first = well_framed(&client.chunk().await.unwrap());
    assert_eq!(first, serde_json::json!({ "token_usage_counts": {}, "usage_counts": {} }));
    let generate = recording("041-generate");
    assert_eq!(client::once(proxy.address, &generate.request).await.status, 200);
    loop {
        let event = well_framed(&client.chunk().await.unwrap());
        shape::covers(events.last().unwrap(), &event).or_else(|_| shape::covers(&events[0], &event)).unwrap();
        let done = event["usage_counts"].as_object().unwrap().values().all(|models| models == &serde_json::json!({}));
        if done && event["token_usage_counts"] != serde_json::json!({}) {
            break;
        }
    }
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_may_come_as_a_query() {
    let recorded = recording("116-auth-stream-query");
    let herd = two_nodes().await;
    let file = format!("endpoints: [{}]\nnomyo-router-api-key: s3cret\n", listed(&herd.urls()));
    let proxy = proxy_on(tempfile::tempdir().unwrap(), &file).await;
    let mut client = Client::connect(proxy.address).await;
    client.send(&recorded.request).await;
    let head = client.begin().await.unwrap();
    assert_eq!((head.status, head.header("content-type")), (200, recorded.answer.header("content-type")));
    let _ = well_framed(&client.chunk().await.unwrap());
    proxy.stop().await;
}
