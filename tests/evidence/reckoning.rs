//! What requests came to, from the ledger: by range, step and group, exact and estimated apart.

use serde_json::{Value, json};

use crate::support::client::{Client, get, once, post_once, request};
use crate::support::proxy::Proxy;
use crate::{CHAT, MODEL, herd};

async fn usage(proxy: &Proxy, query: &str) -> Value {
    let answer = get(proxy.address, &format!("/herdgate/usage{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn sum(rows: &Value, figure: impl Fn(&Value) -> u64) -> u64 {
    rows.as_array().unwrap().iter().map(figure).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_every_grouping_adds_up_to_what_the_nodes_sent() {
    let (herd, proxy) = herd(2, "").await;
    for _ in 0..5 {
        assert_eq!(post_once(proxy.address, "/api/chat", CHAT).await.status, 200);
    }
    assert_eq!(post_once(proxy.address, "/api/chat", r#"{"model":"nope"}"#).await.status, 404);
    // One that leaves in mid-stream: an estimate.
    let body = r#"{"model":"llama3","prompt":"x","sim":{"tokens":10000,"pace_ms":20},"options":{"num_predict":10000}}"#;
    let mut client = Client::connect(proxy.address).await;
    client.send(&request("POST", "/api/generate", &[], body.as_bytes())).await;
    client.answer_up_to(1).await.unwrap();
    drop(client);
    proxy.until("seven ends", || async { proxy.shared().meters.sums().endings.iter().sum::<u64>() == 7 }).await;
    let sent: (u64, u64) = herd.nodes().iter().fold((0, 0), |sum, node| {
        let tokens = node.ledger().tokens();
        (sum.0 + tokens.prompt, sum.1 + tokens.output)
    });
    // Nothing was flushed: what is not written yet counts.
    for query in ["", "?group=", "?group=key,model,node", "?step=minute", "?step=hour&group=node", "?step=day&from=-1d"]
    {
        let answer = usage(&proxy, query).await;
        let rows = &answer["rows"];
        let exact = |kind: &str| sum(rows, |row| row["tokens_exact"][kind].as_u64().unwrap());
        assert_eq!((exact("input"), exact("output")), sent, "{query}: {answer}");
        assert_eq!(sum(rows, |row| row["requests"].as_u64().unwrap()), 7, "{query}");
        assert!(sum(rows, |row| row["tokens_estimated"]["output"].as_u64().unwrap()) > 0, "{query}");
        let gpu: f64 = rows.as_array().unwrap().iter().map(|row| row["gpu_seconds"].as_f64().unwrap()).sum();
        assert!(gpu > 0.0, "{query}");
    }
    let outcomes = usage(&proxy, "?group=outcome").await;
    let exact = |row: &Value| row["tokens_exact"]["output"].as_u64().unwrap();
    let estimated = |row: &Value| row["tokens_estimated"]["output"].as_u64().unwrap();
    let (completed, left) = (&outcomes["rows"][0], &outcomes["rows"][1]);
    assert_eq!((exact(completed), estimated(completed)), (sent.1, 0), "{outcomes}");
    assert!(exact(left) == 0 && estimated(left) > 0, "what was spent on who left: {outcomes}");
    let rows: Vec<_> =
        outcomes["rows"].as_array().unwrap().iter().map(|row| (&row["outcome"], &row["requests"])).collect();
    assert_eq!(
        rows,
        [(&json!("completed"), &json!(5)), (&json!("client_gone"), &json!(1)), (&json!("rejected"), &json!(1))]
    );
    assert_eq!(usage(&proxy, "?from=-2d&to=-1d").await["rows"], json!([]));
    proxy.flush().await;
    let written = usage(&proxy, "?group=model").await;
    assert_eq!(written["rows"].as_array().unwrap().len(), 2, "{written}");
    assert_eq!((&written["rows"][0]["model"], &written["rows"][1]["model"]), (&json!("_unknown"), &json!(MODEL)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_as_csv_and_wrong_questions_are_answered_with_what_is_allowed() {
    let (_herd, proxy) = herd(1, "limits: { usage_rows: 1 }").await;
    assert_eq!(post_once(proxy.address, "/api/chat", CHAT).await.status, 200);
    proxy.until("an end", || async { proxy.shared().meters.sums().endings[0] == 1 }).await;
    for (path, accept) in [("/herdgate/usage?format=csv", "*/*"), ("/herdgate/usage", "text/csv")] {
        let answer = once(proxy.address, &request("GET", path, &[("Accept", accept)], b"")).await;
        assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8"));
        let text = answer.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("time,step,key,model,requests,") && lines[1].contains(",all,_none,llama3:latest,1,1,"),
            "{text}"
        );
    }
    for wrong in ["from=yesterday", "step=week", "group=user", "format=xml", "until=now", "from=now&to=-1h"] {
        let answer = get(proxy.address, &format!("/herdgate/usage?{wrong}")).await;
        assert_eq!(answer.status, 400, "{wrong}");
        for word in ["RFC 3339", "minute, hour, day", "key, model, node, outcome", "json or csv"] {
            assert!(answer.text().contains(word), "{wrong}: {}", answer.text());
        }
    }
    // One more model is one row too many.
    assert_eq!(post_once(proxy.address, "/api/chat", r#"{"model":"nope"}"#).await.status, 404);
    proxy.until("a rejection", || async { proxy.shared().meters.sums().endings[4] == 1 }).await;
    let answer = get(proxy.address, "/herdgate/usage").await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains("more than 1 rows") && answer.text().contains("limits.usage_rows"),
        "{}",
        answer.text()
    );
    assert_eq!(get(proxy.address, "/herdgate/usage?group=").await.status, 200);
}
