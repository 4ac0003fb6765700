//! Cases 1 to 20 and 89, 90: paths, methods, listings, bodies that are read or not, CORS.

use serde_json::Value;

use crate::case::{Case, JSON, Set, TEXT, V1, case};
use crate::support::client::request;

const HTML: &str = "text/html; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const LOCAL: (&str, &str) = ("Origin", "http://localhost:3000");
const EVIL: (&str, &str) = ("Origin", "http://evil.example");

pub(crate) fn cases() -> Vec<Case> {
    let mut all = paths();
    all.extend(lists());
    all.extend(bodies());
    all.extend(origins());
    all
}

fn paths() -> Vec<Case> {
    vec![
        case(1).get("/").gives(200, PLAIN).body("Ollama is running"),
        case(2).head("/").gives(200, PLAIN).line("content-length", "17"),
        case(3)
            .get("/api/version")
            .gives(200, JSON)
            .json_that("a dotted version", |body| {
                body["version"].as_str().unwrap().split('.').all(|part| part.parse::<u32>().is_ok())
            })
            .head("/api/version")
            .gives(200, JSON),
        case(4).head("/api/tags").gives(200, JSON),
        case(5)
            .head("/api/ps")
            .gives(405, TEXT)
            .line("allow", "GET")
            .head("/v1/models")
            .gives(405, TEXT)
            .head("/api/chat")
            .gives(405, TEXT)
            .line("allow", "POST"),
        case(6)
            .get("/api/generate")
            .gives(405, TEXT)
            .body("405 method not allowed")
            .line("allow", "POST")
            .get("/api/blobs/sha256:ab")
            .gives(405, TEXT)
            .line("allow", "HEAD, POST")
            .post("/api/delete", "{}")
            .gives(405, TEXT)
            .line("allow", "DELETE"),
        case(7).post("/api/tags", "").gives(405, TEXT).line("allow", "HEAD, GET"),
        case(8)
            .get("/nope")
            .gives(404, TEXT)
            .body("404 page not found")
            .post("/v1/nope", "{}")
            .gives(404, TEXT)
            .body("404 page not found")
            .post("/v1/messages/count_tokens", r#"{"model":"m","messages":[]}"#)
            .gives(404, TEXT)
            .body("404 page not found")
            .get("/API/tags")
            .gives(404, TEXT),
        case(9)
            .get("/api/tags/")
            .gives(301, HTML)
            .line("location", "/api/tags")
            .get("/api/tags/?a=b&c=%3C")
            .gives(301, HTML)
            .line("location", "/api/tags?a=b&c=%3C")
            .post("/api/chat/", "{}")
            .gives_bare(307)
            .line("location", "/api/chat")
            .get("//api/tags")
            .gives(307, HTML)
            .post("//api/./chat", "{}")
            .gives_bare(307)
            .line("location", "/api/chat")
            .head("/api/tags/")
            .gives(307, HTML)
            .line("location", "/api/tags")
            .line("content-length", ""),
    ]
}

fn newest_first(body: &Value) -> bool {
    let dates: Vec<String> =
        entries(body).iter().map(|entry| entry["modified_at"].as_str().unwrap()[..19].to_owned()).collect();
    dates.windows(2).all(|pair| pair[0] >= pair[1])
}

fn entries(body: &Value) -> Vec<Value> {
    body["models"].as_array().unwrap().clone()
}

fn names(body: &Value) -> Vec<String> {
    entries(body).iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

fn is_entry(entry: &Value) -> bool {
    let digest = entry["digest"].as_str().unwrap();
    let name = entry["name"].as_str().unwrap();
    entry["name"] == entry["model"]
        && name.contains(':')
        && digest.len() == 64
        && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
        && entry["size"].as_u64().unwrap() > 0
        && entry["details"].is_object()
}

fn lists() -> Vec<Case> {
    vec![
        case(10)
            .on(Set::Empty)
            .get("/api/tags")
            .gives(200, JSON)
            .body(r#"{"models":[]}"#)
            .get("/api/ps")
            .body(r#"{"models":[]}"#),
        case(11).on(Set::Empty).get("/v1/models").gives(200, V1).body("{\"object\":\"list\",\"data\":null}\n"),
        case(12)
            .get("/api/tags")
            .json_that("entries as the contract has them", |body| entries(body).iter().all(is_entry))
            .json_that("nine names, each once", |body| {
                let mut names = names(body);
                names.sort();
                names.dedup();
                names.len() == 9
            })
            .json_that("newest first", newest_first)
            .get("/v1/models")
            .gives(200, V1)
            .json("/data/0/id", "me/own:v1")
            .json("/data/0/owned_by", "me")
            .json("/data/8/owned_by", "library"),
    ]
}

/// A prompt for `m` that any of the three forms of a body carries.
const PROMPT: &str = r#"{"model":"m","prompt":"x","stream":false,"options":{"num_predict":2}}"#;

fn bodies() -> Vec<Case> {
    vec![
        case(13)
            .ask(b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_vec())
            .gives(400, JSON)
            .error("missing request body")
            .post("/api/chat", "")
            .gives(400, JSON)
            .error("missing request body"),
        case(14).post("/api/chat", r#"{"model":"#).gives(400, JSON).error("unexpected EOF"),
        case(15).post("/api/chat", "not json").gives(400, JSON).has(r#"{"error":"invalid character"#),
        case(16)
            .post("/api/chat", r#"{"model":"m","stream":"yes","messages":[]}"#)
            .gives(400, JSON)
            .has(r#"{"error":"json: cannot unmarshal string"#),
        case(17)
            .post("/api/chat", r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text"}]}]}"#)
            .gives(400, JSON)
            .has("json: cannot unmarshal array"),
        case(18)
            .post("/api/chat", r#"{"MODEL":"m","Messages":[{"role":"user","content":"x"}],"STREAM":false}"#)
            .json("/done", true)
            .json("/model", "m"),
        case(19).post("/api/generate", &format!("{PROMPT} and junk")).json("/eval_count", 2),
        case(20)
            .with("POST", "/api/generate", ("Content-Type", "application/x-www-form-urlencoded"), PROMPT.as_bytes())
            .json("/eval_count", 2)
            .ask(request("POST", "/api/generate?ts=5&beta=true", &[], PROMPT.as_bytes()))
            .json("/eval_count", 2),
    ]
}

fn origins() -> Vec<Case> {
    vec![
        case(89)
            .with("GET", "/api/version", EVIL, b"")
            .gives_bare(403)
            .body("")
            .with("POST", "/api/chat", EVIL, b"{}")
            .gives_bare(403)
            .body("")
            .with("GET", "/nope", EVIL, b"")
            .gives_bare(403)
            .with("GET", "/api/version", LOCAL, b"")
            .gives(200, JSON)
            .line("access-control-allow-origin", "http://localhost:3000")
            .line("vary", "Origin")
            .with("GET", "/nope", LOCAL, b"")
            .gives(404, TEXT)
            .line("access-control-allow-origin", "http://localhost:3000")
            .with("POST", "/api/show", LOCAL, br#"{"model":"nope"}"#)
            .gives(404, JSON)
            .line("vary", "Origin")
            .with("GET", "/api/version", ("Origin", "http://127.0.0.1"), b"")
            .gives(200, JSON)
            .line("access-control-allow-origin", ""),
        case(90)
            .with("OPTIONS", "/api/chat", LOCAL, b"")
            .gives_bare(204)
            .line("access-control-allow-methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS")
            .line("access-control-max-age", "43200")
            .line("access-control-allow-origin", "http://localhost:3000")
            .line("allow", "POST")
            .with("OPTIONS", "/nope", LOCAL, b"")
            .gives_bare(204)
            .line("allow", "")
            .with("OPTIONS", "/api/chat", EVIL, b"")
            .gives_bare(403)
            .ask(request("OPTIONS", "/api/chat", &[], b""))
            .gives(405, TEXT)
            .ask(b"OPTIONS /api/chat HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec())
            .gives_bare(204)
            .line("allow", "POST")
            .ask(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec())
            .gives_bare(200),
    ]
}
