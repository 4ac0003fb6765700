//! Cases 21 to 35 and 92 to 94: missing, unknown and malformed names, in the words of each route.

use crate::case::{Case, JSON, Set, TEXT, V1, case};
use crate::support::client::request;

/// A chat with these fields before its messages.
fn chat(fields: &str) -> String {
    format!(r#"{{{fields},"messages":[{{"role":"user","content":"x"}}]}}"#)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = missing_and_unknown();
    all.extend(v1());
    all.extend(cloud());
    all
}

fn missing_and_unknown() -> Vec<Case> {
    vec![
        case(21)
            .post("/api/generate", "{}")
            .gives(404, JSON)
            .error("model '' not found")
            .post("/api/embed", r#"{"model":""}"#)
            .gives(404, JSON)
            .error("model '' not found"),
        case(22)
            .post("/api/chat", "{}")
            .gives(400, JSON)
            .error("model is required")
            .post("/api/embeddings", "null")
            .gives(400, JSON)
            .error("model is required")
            .post("/api/show", "{}")
            .gives(400, JSON)
            .error("model is required")
            .post("/api/push", "{}")
            .gives(400, JSON)
            .error("model is required")
            .delete("/api/delete", "{}")
            .gives(400, JSON)
            .error("model is required")
            .post("/api/pull", "{}")
            .gives(400, JSON)
            .error("invalid model name")
            .post("/api/create", "{}")
            .gives(400, JSON)
            .error("invalid model name"),
        case(23)
            .post("/api/chat", &chat(r#""model":"nope""#))
            .gives(404, JSON)
            .error("model 'nope' not found")
            .post("/api/generate", r#"{"model":"Nope:v1","prompt":"x"}"#)
            .gives(404, JSON)
            .error("model 'Nope:v1' not found")
            // Its keys in any case: the last one counts.
            .post("/api/chat", r#"{"model":"m","MODEL":"nope","messages":[]}"#)
            .gives(404, JSON)
            .error("model 'nope' not found"),
        case(24)
            .post("/api/embed", r#"{"model":"nope","input":"x"}"#)
            .gives(404, JSON)
            .error("model \"nope\" not found, try pulling it first")
            .post("/api/embeddings", r#"{"model":"nope","prompt":"x"}"#)
            .gives(404, JSON)
            .error("model \"nope\" not found, try pulling it first"),
        case(25)
            .post("/api/show", r#"{"model":"nope"}"#)
            .gives(404, JSON)
            .error("model 'nope:latest' not found")
            .post("/api/show", r#"{"model":"","name":"nope:v1"}"#)
            .gives(404, JSON)
            .error("model 'nope:v1' not found"),
        case(26)
            .post("/api/chat", &chat(r#""model":"../x""#))
            .gives(400, JSON)
            .error("invalid model name")
            .post("/api/chat", &chat(r#""model":"a b""#))
            .gives(400, JSON)
            .error("invalid model name")
            .post("/api/embed", r#"{"model":"foo:","input":"x"}"#)
            .gives(400, JSON)
            .error("invalid model name")
            .post("/api/show", r#"{"model":"m@sha256:ab"}"#)
            .gives(400, JSON)
            .error("invalid model name"),
        case(27)
            .post("/api/chat", &chat(r#""model":"M","stream":false"#))
            .json("/model", "M")
            .json("/done", true)
            .post("/api/chat", &chat(r#""model":"M:LATEST","stream":false"#))
            .json("/model", "M:LATEST")
            .post("/api/generate", r#"{"model":"Me/Own:V1","prompt":"x","stream":false}"#)
            .json("/model", "Me/Own:V1")
            .post("/api/generate", r#"{"model":"registry.ollama.ai/library/m","prompt":"x","stream":false}"#)
            .json("/done", true)
            .post("/api/generate", r#"{"model":"m:local","prompt":"x","stream":false}"#)
            .json("/model", "m:local"),
    ]
}

fn v1() -> Vec<Case> {
    vec![
        case(28)
            .post("/v1/chat/completions", &chat(r#""model":"nope""#))
            .gives(404, V1)
            .body("{\"error\":{\"message\":\"model 'nope' not found\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}\n")
            .post("/v1/chat/completions", &chat(r#""model":"nope","stream":true"#))
            .gives(404, V1)
            .json("/error/message", "model 'nope' not found")
            .post("/v1/completions", r#"{"model":"nope","prompt":"x"}"#)
            .gives(404, V1)
            .json("/error/message", "model 'nope' not found")
            .post("/v1/embeddings", r#"{"model":"nope","input":"x"}"#)
            .gives(404, V1)
            .json("/error/message", "model \"nope\" not found, try pulling it first")
            .post("/v1/responses", r#"{"model":"nope","input":"x","stream":true}"#)
            .gives(404, V1)
            .line("cache-control", "no-cache")
            .json("/error/message", "model 'nope' not found"),
        case(29)
            .post("/v1/chat/completions", "")
            .gives(400, JSON)
            .body(r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#)
            .post("/v1/messages", "")
            .gives(400, JSON)
            .json("/error/message", "EOF"),
        case(30)
            .post("/v1/chat/completions", r#"{"model":"m","messages":[]}"#)
            .gives(400, JSON)
            .json("/error/message", "[] is too short - 'messages'")
            // The converter looks before anybody looks for the model.
            .post("/v1/chat/completions", r#"{"model":"nope","messages":[]}"#)
            .gives(400, JSON)
            .json("/error/message", "[] is too short - 'messages'"),
        case(31)
            .post("/v1/messages", &chat(r#""model":"m""#))
            .gives(400, JSON)
            .json("/type", "error")
            .json("/error/type", "invalid_request_error")
            .json("/error/message", "max_tokens is required and must be positive")
            .json_that("a request id", |body| body["request_id"].as_str().unwrap().starts_with("req_"))
            .post("/v1/messages", &chat(r#""model":"nope""#))
            .gives(400, JSON)
            .json("/error/message", "max_tokens is required and must be positive"),
        case(32)
            .post("/v1/messages", &chat(r#""model":"nope","max_tokens":4"#))
            .gives(404, V1)
            .json("/type", "error")
            .json("/error/type", "not_found_error")
            .json("/error/message", "model 'nope' not found"),
        case(33)
            .get("/v1/models/nope")
            .gives(404, V1)
            .json("/error/type", "not_found_error")
            .json("/error/message", "model 'nope:latest' not found"),
        case(34).get("/v1/models/m").gives(200, V1).json("/id", "m").get("/v1/models/M:Latest").gives(200, V1).json("/id", "M:Latest"),
        case(35)
            .get("/v1/models/me%2Fown:v1")
            .gives(404, TEXT)
            .body("404 page not found")
            .get("/v1/models/me/own:v1")
            .gives(404, TEXT),
    ]
}

fn cloud() -> Vec<Case> {
    const DISABLED: &str = "ollama cloud is disabled: remote model is unavailable";
    let native = [
        ("/api/chat", r#"{"model":"x:cloud","messages":[]}"#),
        ("/api/generate", r#"{"model":"x:20b-cloud","prompt":"x"}"#),
        ("/api/embed", r#"{"model":"x:cloud","input":"x"}"#),
        ("/v1/chat/completions", r#"{"model":"x:cloud","messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/messages", r#"{"model":"x:cloud","max_tokens":4,"messages":[{"role":"user","content":"x"}]}"#),
        ("/v1/responses", r#"{"model":"x:cloud","input":"x"}"#),
    ];
    let mut disabled = case(92).on(Set::CloudOff);
    for (path, body) in native {
        disabled = disabled.post(path, body).gives(403, JSON).error(DISABLED);
    }
    let conflict = "use either :local or :cloud, not both: \"a:local:cloud\"";
    vec![
        disabled
            .post("/api/show", r#"{"model":"x:cloud"}"#)
            .gives(403, JSON)
            .error("ollama cloud is disabled: remote model details are unavailable")
            .post("/api/experimental/web_search", r#"{"query":"x"}"#)
            .gives(403, JSON)
            .error("ollama cloud is disabled: web search is unavailable")
            .post("/api/experimental/web_fetch?ts=1", r#"{"url":"http://x.example"}"#)
            .gives(403, JSON)
            .error("ollama cloud is disabled: web fetch is unavailable")
            .post("/api/signout", "")
            .gives(401, JSON)
            .error("you are not currently signed in")
            // Without a colon it is an ordinary name.
            .post("/api/chat", &chat(r#""model":"x-cloud""#))
            .gives(404, JSON)
            .error("model 'x-cloud' not found"),
        case(93)
            .post("/api/chat", &chat(r#""model":"a:local:cloud""#))
            .gives(400, JSON)
            .error(conflict)
            .post("/api/show", r#"{"model":"a:local:cloud"}"#)
            .gives(400, JSON)
            .error(conflict)
            .post("/api/pull", r#"{"model":"a:local:cloud"}"#)
            .gives(400, JSON)
            .error(conflict)
            .post("/v1/chat/completions", &chat(r#""model":"a:local:cloud""#))
            .gives(400, V1)
            .json("/error/message", conflict),
        case(94)
            .ask(request("POST", "/api/show", &[("User-Agent", "GitHubCopilotChat/1")], br#"{"model":"m"}"#))
            .json("/model_info/general.basename", "m")
            .ask(request("POST", "/api/show", &[("User-Agent", "GitHubCopilotChat/1")], br#"{"model":"M:latest"}"#))
            .json("/model_info/general.basename", "M:latest"),
    ]
}
