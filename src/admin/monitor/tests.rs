//! Shapes of the ancestor's routes, held against recorded answers of its own.

use super::*;
use crate::admin::reading::tests::{node, pair};
use crate::fleet::NodePs;
use crate::ids::UnixMinute;
use crate::usage::answers::SeriesPoint;

const A: &str = "http://127.0.0.1:21000";
const B: &str = "http://127.0.0.1:21001";

fn count(node: &str, model: &str, input: u64, output: u64) -> TokenCount {
    TokenCount {
        node: node.into(),
        model: model.into(),
        exact: Tokens { input, cached: 0, output },
        estimated: Tokens::default(),
        imported: Tokens::default(),
    }
}

#[test]
fn usage_idle() {
    assert_eq!(usage_object(&[], &[]).to_string(), r#"{"usage_counts":{},"token_usage_counts":{}}"#);
}

#[test]
fn usage_after_requests_keeps_the_node_and_drops_the_zero() {
    let pairs = [pair(A, "llama3:latest", 0, 16), pair(B, "qwen3:8b", 1, 16)];
    let totals = [count(A, "llama3:latest", 4, 32), count(B, "qwen3:8b", 2, 16)];
    let text = r#"{"usage_counts":{"http://127.0.0.1:21000":{},"http://127.0.0.1:21001":{"qwen3:8b":1}},"token_usage_counts":{"http://127.0.0.1:21000":{"llama3:latest":36},"http://127.0.0.1:21001":{"qwen3:8b":18}}}"#;
    assert_eq!(usage_object(&pairs, &totals).to_string(), text);
}

#[test]
fn usage_leaves_out_nodes_without_a_request() {
    let mut unasked = pair(A, "m:latest", 0, 0);
    unasked.starts = 0;
    assert_eq!(usage_object(&[unasked], &[count(A, "m:latest", 0, 0)])["usage_counts"], json!({}));
}

#[test]
fn a_state_is_sorted_at_every_level() {
    let pairs = [pair(B, "z", 1, 1), pair(B, "a", 2, 1), pair(A, "m", 3, 1)];
    let mut state = usage_object(&pairs, &[count(B, "x", 1, 1)]);
    state.sort_all_objects();
    let text = r#"{"token_usage_counts":{"http://127.0.0.1:21001":{"x":2}},"usage_counts":{"http://127.0.0.1:21000":{"m":3},"http://127.0.0.1:21001":{"a":2,"z":1}}}"#;
    assert_eq!(state.to_string(), text);
}

#[test]
fn token_counts_keep_the_order_of_first_sight() {
    let counts = [count(A, "llama3:latest", 4, 32), count(B, "qwen3:8b", 2, 16), count(B, "llama3:latest", 2, 16)];
    let text = r#"{"total_tokens":72,"breakdown":[{"endpoint":"http://127.0.0.1:21000","model":"llama3:latest","input_tokens":4,"output_tokens":32,"total_tokens":36},{"endpoint":"http://127.0.0.1:21001","model":"qwen3:8b","input_tokens":2,"output_tokens":16,"total_tokens":18},{"endpoint":"http://127.0.0.1:21001","model":"llama3:latest","input_tokens":2,"output_tokens":16,"total_tokens":18}]}"#;
    assert_eq!(token_counts_object(&counts).to_string(), text);
    assert_eq!(token_counts_object(&[]).to_string(), r#"{"total_tokens":0,"breakdown":[]}"#);
}

#[test]
fn stats_of_a_known_model() {
    let tokens = |input, output| Tokens { input, cached: 0, output };
    let point = |node: &str, tokens| SeriesPoint { minute: UnixMinute(29_924_544), node: node.into(), tokens };
    let stats = ModelStats {
        totals: Some(tokens(6, 48)),
        series: vec![point(B, tokens(2, 16)), point(A, tokens(4, 32))],
        distribution: vec![(A.into(), 36), (B.into(), 18)],
    };
    let text = r#"{"model":"llama3:latest","input_tokens":6,"output_tokens":48,"total_tokens":54,"time_series":[{"endpoint":"http://127.0.0.1:21001","input_tokens":2,"output_tokens":16,"total_tokens":18,"timestamp":1795472640},{"endpoint":"http://127.0.0.1:21000","input_tokens":4,"output_tokens":32,"total_tokens":36,"timestamp":1795472640}],"endpoint_distribution":{"http://127.0.0.1:21000":36,"http://127.0.0.1:21001":18}}"#;
    assert_eq!(stats_object("llama3:latest", &stats).to_string(), text);
}

#[test]
fn stats_of_an_unknown_one_are_null() {
    let text = r#"{"model":"nope","input_tokens":null,"output_tokens":null,"total_tokens":null,"time_series":[],"endpoint_distribution":{}}"#;
    assert_eq!(stats_object("nope", &ModelStats::default()).to_string(), text);
}

#[test]
fn who_asks_for_stats_names_a_name() {
    assert_eq!(asked_model(Some("model=a%3Ab+c"), b"{\"model\":\"x\"}").unwrap(), "a:b c");
    assert_eq!(asked_model(None, b"{\"model\":\"x\"}").unwrap(), "x");
    for (body, detail) in [
        (&b"{}"[..], "Missing required field 'model'"),
        (b"{\"model\":7}", "Missing required field 'model'"),
        (b"[]", "Invalid JSON: an object is needed"),
        (b"", "Invalid JSON: the body is empty"),
    ] {
        let refusal = asked_model(None, body).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        assert_eq!(refusal.body, json!({ "detail": detail }).to_string());
    }
    let refusal = asked_model(Some("other=1"), b"{").unwrap_err();
    assert!(refusal.body.starts_with(b"{\"detail\":\"Invalid JSON: "));
}

#[test]
fn folds_are_asked_for_in_words_that_can_be_read() {
    assert_eq!(asked_fold(b""), Ok((30, false)));
    assert_eq!(asked_fold(b"{}"), Ok((30, false)));
    assert_eq!(asked_fold(br#"{"days":"7","trim_old":true}"#), Ok((7, true)));
    assert_eq!(asked_fold(br#"{"days":-3}"#), Ok((-3, false)));
    for body in [&b"junk"[..], b"[]", br#"{"days":"x"}"#, br#"{"days":1.5}"#, br#"{"trim_old":"no"}"#] {
        assert!(asked_fold(body).is_err());
    }
}

#[test]
fn config_lists_both_kinds_without_a_probe() {
    let openai = NodeReading { kind: NodeKind::OpenAi, version: None, ..node("http://127.0.0.1:21500/v1", true) };
    let llama = NodeReading { llama: true, url: "http://127.0.0.1:21501/v1".into(), ..openai.clone() };
    let nodes = [node(A, true), openai, node("http://127.0.0.1:21009", false), llama];
    let text = r#"{"endpoints":[{"url":"http://127.0.0.1:21000","status":"ok","version":"0.12.0"},{"url":"http://127.0.0.1:21500/v1","status":"ok","version":"latest"},{"url":"http://127.0.0.1:21009","status":"error","detail":"connection refused"}],"llama_server_endpoints":[{"url":"http://127.0.0.1:21501/v1","status":"ok","version":"latest"}],"require_router_api_key":false}"#;
    assert_eq!(config_object(&nodes, false).to_string(), text);
    assert_eq!(config_object(&[], true)["require_router_api_key"], true);
}

fn loaded(entries: &[&str]) -> Arc<NodePs> {
    let raw = |text: &&str| RawValue::from_string((*text).to_owned()).unwrap();
    Arc::new(NodePs::new(1, entries.iter().map(raw).collect()))
}

#[test]
fn ps_details_splices_the_node_and_changes_nothing_else() {
    let entry = r#"{ "name":"llama3:latest", "size":6654289920.0,"unknown":{"a":[1]} }"#;
    let nodes = [NodeReading { ps: loaded(&[entry, "{}", "[]"]), ..node(A, true) }];
    let text = r#"{"models":[{ "name":"llama3:latest", "size":6654289920.0,"unknown":{"a":[1]},"endpoint":"http://127.0.0.1:21000"},{"endpoint":"http://127.0.0.1:21000"}]}"#;
    assert_eq!(ps_details_text(&nodes, &|_| None), text);
    let flagged = ps_details_text(&nodes, &|name| Some(Known { name: name.into(), conflict: name == "llama3:latest" }));
    let parsed: Value = serde_json::from_str(&flagged).unwrap();
    assert_eq!(parsed["models"][0]["digest_conflict"], true);
    assert_eq!(parsed["models"][0].as_object().unwrap().keys().next_back().unwrap(), "endpoint");
}

#[test]
fn ps_details_leaves_failed_nodes_out_and_puts_llama_last() {
    let entry = r#"{"id":"unsloth/gpt-oss-20b-GGUF:F16","status":{"value":"loaded","args":["llama-server","--port","1"],"preset":"[x]"},"created":1,"owned_by":"llamacpp","meta":{"n_ctx":8192}}"#;
    let idle = r#"{"id":"other","status":"unloaded"}"#;
    let plain = r#"{"id":"plain"}"#;
    let llama = |up: bool, entries: &[&str]| NodeReading {
        kind: NodeKind::OpenAi,
        llama: true,
        ps: loaded(entries),
        ..node("http://127.0.0.1:21501/v1", up)
    };
    let openai = NodeReading { llama: false, ..llama(true, &[plain]) };
    let nodes = [
        llama(true, &[entry, idle, plain]),
        openai,
        NodeReading { ps: loaded(&["{\"name\":\"m\"}"]), ..node(A, true) },
        llama(false, &[plain]),
    ];
    let known = |name: &str| (name == "plain").then(|| Known { name: "plain:latest".into(), conflict: false });
    let parsed: Value = serde_json::from_str(&ps_details_text(&nodes, &known)).unwrap();
    let names: Vec<_> =
        parsed["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["m", "unsloth/gpt-oss-20b-GGUF:F16", "plain:latest"], "the names of the ledger");
    let text = r#"{"name":"unsloth/gpt-oss-20b-GGUF:F16","id":"unsloth/gpt-oss-20b-GGUF:F16","original_name":"unsloth/gpt-oss-20b-GGUF:F16","digest":"","details":{"quantization_level":"F16"},"endpoint":"http://127.0.0.1:21501/v1","status":{"value":"loaded","args":["llama-server","--port","1"],"preset":"[x]"},"created":1,"owned_by":"llamacpp","llama_status_args":["llama-server","--port","1"],"llama_status_preset":"[x]","context_length":8192}"#;
    assert_eq!(parsed["models"][1].to_string(), text);
}

#[test]
fn queries_are_decoded_as_browsers_encode_them() {
    assert_eq!(parameter("model=llama3%3Alatest", "model").unwrap(), "llama3:latest");
    assert_eq!(parameter("a=1&model=x&model=y", "model").unwrap(), "y");
    assert_eq!(parameter("mod%65l=100%", "model").unwrap(), "100%");
    assert_eq!(parameter("model=%zz%4", "model").unwrap(), "%zz%4");
    assert_eq!(parameter("model=%+f%-1%+1x", "model").unwrap(), "% f%-1% 1x", "a sign is no digit");
    assert_eq!(parameter("model", "model").unwrap(), "");
    assert_eq!(parameter("", "model"), None);
}
