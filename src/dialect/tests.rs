//! Tests of the shapes and texts of the three dialects.

use super::*;

/// The recorded answer's status, type and body.
fn recorded(name: &str) -> (u16, String, Vec<u8>) {
    let path = format!("{}/tests/fixtures/transcripts/{name}.resp", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|l| l.strip_prefix("Content-Type: ")).unwrap();
    (status, kind.to_owned(), bytes[end + 4..].to_vec())
}

fn assert_same(name: &str, status: u16, said: &ErrorBody) {
    let (want_status, kind, body) = recorded(name);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!((status, said.content_type, text(&said.body)), (want_status, kind.as_str(), text(&body)), "{name}");
}

#[test]
fn refusals_are_what_real_servers_say_byte_for_byte() {
    use texts::{busy, cloud_disabled, empty_body, invalid_model_name, missing_model, name_conflict, unknown_model};
    for (name, route, refusal) in [
        ("012-show-unknown", Route::Show, unknown_model(Route::Show, "nope")),
        ("033-body-none-generate", Route::Generate, empty_body(Route::Generate)),
        ("034-body-empty-v1-chat", Route::V1Chat, empty_body(Route::V1Chat)),
        ("049-nomodel-generate", Route::Generate, missing_model(Route::Generate, "")),
        ("050-nomodel-chat", Route::Chat, missing_model(Route::Chat, "")),
        ("051-nomodel-v1-chat", Route::V1Chat, missing_model(Route::V1Chat, "")),
        ("052-unknown-generate", Route::Generate, unknown_model(Route::Generate, "nope")),
        ("053-unknown-embed", Route::Embed, unknown_model(Route::Embed, "nope")),
        ("057-unknown-v1-chat", Route::V1Chat, unknown_model(Route::V1Chat, "nope")),
        ("059-unknown-v1-embeddings", Route::V1Embeddings, unknown_model(Route::V1Embeddings, "nope")),
        ("060-unknown-v1-responses-stream", Route::V1Responses, unknown_model(Route::V1Responses, "nope")),
        ("061-name-bad-space", Route::Chat, invalid_model_name()),
        ("062-name-conflict-v1", Route::V1Chat, name_conflict("a:local:cloud")),
        ("063-cloud-off-chat", Route::Chat, cloud_disabled(Route::Chat)),
        ("064-cloud-off-v1-chat", Route::V1Chat, cloud_disabled(Route::V1Chat)),
        ("078-audio-unknown-model", Route::V1Audio, unknown_model(Route::V1Audio, "nope")),
        ("141-queue-full-chat", Route::Chat, busy()),
        ("142-queue-full-v1-chat", Route::V1Chat, busy()),
    ] {
        assert_same(name, refusal.status, &refusal.body(route));
    }
    let shown = texts::unknown_shown_model("nope");
    assert_same("015-v1-model-unknown", shown.status, &shown.body(Family::OpenAi));
}

#[test]
fn anthropic_errors_differ_from_the_recorded_ones_in_the_request_id_alone() {
    for (name, refusal) in [
        ("035-body-empty-v1-messages", texts::empty_body(Route::V1Messages)),
        ("143-queue-full-v1-messages", texts::busy()),
    ] {
        let (status, kind, body) = recorded(name);
        let said = refusal.body(Route::V1Messages);
        assert_eq!((refusal.status, said.content_type), (status, kind.as_str()), "{name}");
        let split = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let at = text.find("req_").unwrap();
            (text[..at].to_owned(), text[at..at + 28].to_owned(), text[at + 28..].to_owned())
        };
        let (want, got) = (split(&body), split(&said.body));
        assert_eq!((&want.0, &want.2), (&got.0, &got.2), "{name}");
        assert!(got.1[4..].bytes().all(|b| b.is_ascii_hexdigit()), "{}", got.1);
    }
    assert_ne!(
        anthropic::error_object(503, "x"),
        anthropic::error_object(503, "x"),
        "each answer has an id of its own"
    );
}

#[test]
fn types_follow_the_status() {
    for (status, openai, anthropic) in [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "api_error", "authentication_error"),
        (403, "api_error", "permission_error"),
        (404, "not_found_error", "not_found_error"),
        (429, "api_error", "rate_limit_error"),
        (499, "api_error", "api_error"),
        (500, "api_error", "api_error"),
        (503, "api_error", "overloaded_error"),
        (529, "api_error", "overloaded_error"),
    ] {
        assert_eq!(openai::error_type(status), openai);
        assert_eq!(anthropic::error_type(status), anthropic);
    }
}

#[test]
fn text_is_spelled_as_go_spells_it() {
    let said = error(Family::Ollama, 500, "a\"b\\c<d>&\n\t\u{8}\u{c}\u{1}\u{2028}é\u{7f}");
    assert_eq!(
        &said.body[..],
        "{\"error\":\"a\\\"b\\\\c\\u003cd\\u003e\\u0026\\n\\t\\b\\f\\u0001\\u2028é\u{7f}\"}".as_bytes()
    );
}

fn facts() -> TailFacts<'static> {
    TailFacts { streamed: true, mid_line: false, mid_event: false, sequence: 7, response_id: None }
}

#[test]
fn broken_streams_end_in_the_dialects_own_error() {
    let said =
        |route, facts: &TailFacts<'_>| String::from_utf8(broken_stream(route, "node lost", facts).to_vec()).unwrap();
    assert_eq!(said(Route::Chat, &facts()), "{\"error\":\"node lost\"}\n");
    assert_eq!(said(Route::Generate, &TailFacts { mid_line: true, ..facts() }), "\n{\"error\":\"node lost\"}\n");
    let event = "data: {\"error\":{\"message\":\"node lost\",\"type\":\"api_error\",\"param\":null,\"code\":null}}\n\n";
    assert_eq!(said(Route::V1Chat, &facts()), event);
    assert_eq!(said(Route::V1Completions, &TailFacts { mid_event: true, ..facts() }), format!("\n{event}"));
    assert_eq!(said(Route::V1Chat, &TailFacts { mid_event: true, mid_line: true, ..facts() }), format!("\n\n{event}"));
    assert_eq!(
        said(Route::V1Messages, &facts()),
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"node lost\"}}\n\n"
    );
    let failed = said(Route::V1Responses, &TailFacts { response_id: Some("resp_1"), ..facts() });
    let data = failed.strip_prefix("event: response.failed\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    let value: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(value["sequence_number"], 7);
    assert_eq!(value["type"], "response.failed");
    assert_eq!(value["response"]["status"], "failed");
    assert_eq!(value["response"]["id"], "resp_1");
    assert_eq!(value["response"]["error"]["message"], "node lost");
}

#[test]
fn nothing_can_be_said_inside_a_single_value() {
    for route in Route::ALL {
        assert!(broken_stream(route, "x", &TailFacts { streamed: false, ..facts() }).is_empty());
        if route.wire() == Wire::Single {
            assert!(broken_stream(route, "x", &facts()).is_empty());
        }
    }
}

#[test]
fn route_facts_hold_together() {
    for route in Route::ALL {
        assert_eq!(route.native(), route.family() == Family::Ollama);
        if let Some(path) = route.path() {
            assert_eq!(path.starts_with("/api/"), route.native());
        }
        if route.stream_default() {
            assert_eq!(route.wire(), Wire::Ndjson);
        }
    }
}
