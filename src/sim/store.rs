//! Changing a simulated node's disk: create, copy, delete, blobs; what pull and push share with them.
//!
//! Called by `serve.rs`. Simple forms of Ollama's: the lines and errors are its own, the work behind them is none.

use std::time::Duration;

use super::ask;
use super::codec::{Sha256, digest};
use super::conn::Body;
use super::gojson::Value;
use super::host::Core;
use super::http::{Length, Reply};
use super::infer::Turn;
use super::job::Dialect;
use super::lists::error;
use super::names::{self, Name, NameError};
use super::requests::Request;
use super::spec::{Capability, ModelSpec};
use super::text;

pub(super) fn read(body: &Body, request: Request) -> Result<Value, Reply> {
    let value = ask::decode(Dialect::Generate, &body.bytes, body.broken).map_err(|f| error(f.status, &f.text))?;
    request.check(&value).map_err(|text| error(400, &text))?;
    Ok(value)
}

/// `model`, or the legacy `name` where that is empty.
pub(super) fn named(value: &Value) -> &str {
    if value.str("model").is_empty() { value.str("name") } else { value.str("model") }
}

pub(super) fn streams(value: &Value) -> bool {
    value.get_pointer("stream").and_then(Value::as_bool).unwrap_or(true)
}

pub(super) fn status(line: &str) -> String {
    format!("{{\"status\":{}}}", text::quoted(line))
}

pub(super) fn progress(hex: &str, total: u64, completed: u64) -> String {
    let short = hex.get(..12).unwrap_or(hex);
    let done = if completed > 0 { format!(",\"completed\":{completed}") } else { String::new() };
    format!("{{\"status\":\"pulling {short}\",\"digest\":\"sha256:{hex}\",\"total\":{total}{done}}}")
}

/// The lines of a stream, or their outcome in one object.
pub(super) fn outcome(stream: bool, lines: Vec<String>, failure: Option<&str>) -> Reply {
    let failed = failure.map(|text| format!("{{\"error\":{}}}", text::quoted(text)));
    if stream {
        return Reply::lines(&lines.into_iter().chain(failed).collect::<Vec<_>>());
    }
    match failed {
        Some(body) => Reply::new(500, "application/json", body),
        None => Reply::new(200, "application/json", "{\"status\":\"success\"}"),
    }
}

/// POST `/api/create`.
pub(super) fn create(core: &Core, body: &Body) -> Reply {
    let value = match read(body, Request::Create) {
        Ok(value) => value,
        Err(reply) => return reply,
    };
    let Ok(name) = Name::parse(named(&value)) else { return error(400, "invalid model name") };
    let stream = streams(&value);
    let early = |text: &str| {
        let mut reply = error(400, text);
        if stream {
            reply = Reply::new(400, "application/json", reply.body);
            reply.flushed = true;
        }
        reply
    };
    let files = value.get("files").map(Value::fields).unwrap_or_default();
    if let Some(text) = files.iter().find_map(|(path, sum)| bad_file(path, sum)) {
        return early(text);
    }
    if let Some((_, sum)) = files.first() {
        let hex = sum.as_str().unwrap_or("").get(7..).unwrap_or("").to_owned();
        return create_from_blob(core, &name, &hex, stream);
    }
    if value.str("from").is_empty() {
        return early("neither 'from' or 'files' was specified");
    }
    create_from(core, &name, &value, stream)
}

fn bad_file(path: &str, sum: &Value) -> Option<&'static str> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Some("file path must be relative");
    }
    hex_of(sum.as_str().unwrap_or("")).is_none().then_some("invalid digest format")
}

fn create_from(core: &Core, name: &Name, value: &Value, stream: bool) -> Reply {
    let from = names::resolve(value.str("from")).ok().map(|(from, _)| from);
    let Some(base) = from.and_then(|from| core.with(|s| s.find(&from).cloned())) else {
        let lines = vec![status("pulling manifest")];
        return outcome(stream, lines, Some("pull model manifest: file does not exist"));
    };
    let mut shown = String::new();
    value.write(&mut shown, true);
    let sum = digest(&format!("{} {shown}", base.digest));
    let mut lines = vec![
        status(&format!("using existing layer sha256:{}", base.weights)),
        status(&format!("using existing layer sha256:{}", digest(&format!("template {}", base.digest)))),
    ];
    for part in ["system", "parameters", "template", "license", "messages"] {
        if value.get(part).is_some() {
            lines.push(status(&format!("creating new layer sha256:{}", digest(&format!("{part} {sum}")))));
        }
    }
    lines.extend(["writing manifest", "success"].map(status));
    core.add_model(ModelSpec {
        name: name.display(),
        digest: sum,
        parent: value.str("from").to_owned(),
        modified: None,
        ..ModelSpec::clone(&base)
    });
    outcome(stream, lines, None)
}

fn create_from_blob(core: &Core, name: &Name, hex: &str, stream: bool) -> Reply {
    let mut lines = vec![status("parsing GGUF")];
    let Some(size) = core.with(|s| s.blobs.get(hex).copied()) else {
        let text = format!("open {}/blobs/sha256-{hex}: no such file or directory", core.spec.models_dir);
        return outcome(stream, lines, Some(&text));
    };
    let weights = digest(&format!("converted {hex}"));
    lines.push(status("verifying conversion"));
    lines.push(status(&format!("creating new layer sha256:{weights}")));
    lines.push(status("using autodetected template chatml"));
    lines.push(status(&format!("using existing layer sha256:{}", digest("template chatml"))));
    lines.extend(["writing manifest", "success"].map(status));
    let model = ModelSpec::new(&name.display(), &[Capability::Completion]);
    core.add_model(ModelSpec { size, digest: digest(&format!("manifest {weights}")), weights, ..model });
    outcome(stream, lines, None)
}

/// POST `/api/copy`.
pub(super) fn copy(core: &Core, body: &Body) -> Reply {
    let value = match read(body, Request::Copy) {
        Ok(value) => value,
        Err(reply) => return reply,
    };
    let (source, destination) = (value.str("source"), value.str("destination"));
    let Ok(from) = Name::parse(source) else {
        return error(400, &format!("source {} is invalid", text::quoted(source)));
    };
    let Ok(to) = Name::parse(destination) else {
        return error(400, &format!("destination {} is invalid", text::quoted(destination)));
    };
    match core.with(|s| s.find(&from).cloned()) {
        Some(model) => {
            core.add_model(ModelSpec { name: to.display(), modified: None, ..ModelSpec::clone(&model) });
            Reply::empty(200)
        }
        None => error(404, &format!("model {} not found", text::quoted(source))),
    }
}

/// DELETE `/api/delete`.
pub(super) fn delete(core: &Core, body: &Body) -> Reply {
    let value = match read(body, Request::Delete) {
        Ok(value) => value,
        Err(reply) => return reply,
    };
    let sent = named(&value);
    let name = match names::resolve(sent) {
        Ok((name, _)) => name,
        Err(NameError::Empty) => return error(400, "model is required"),
        Err(NameError::Conflict(text)) => return error(400, &text),
        Err(NameError::Invalid) => return error(400, &format!("name {} is invalid", text::quoted(sent))),
    };
    let removed = core.with(|s| {
        let removed = s.models.remove(&name.key());
        if let Some(model) = &removed
            && !s.models.values().any(|m| m.weights == model.weights)
        {
            s.blobs.remove(&model.weights);
        }
        removed.is_some()
    });
    if removed { Reply::empty(200) } else { error(404, &format!("model '{sent}' not found")) }
}

/// The digits of a digest in either form.
fn hex_of(sum: &str) -> Option<&str> {
    let hex = sum.strip_prefix("sha256:").or_else(|| sum.strip_prefix("sha256-"))?;
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hex)
}

/// HEAD `/api/blobs/:digest`.
pub(super) fn blob_head(core: &Core, sum: &str) -> Reply {
    let Some(hex) = hex_of(sum) else { return error(400, "invalid digest format") };
    if core.with(|s| s.blobs.contains_key(hex)) {
        return Reply { bare: true, ..Reply::empty(200) };
    }
    error(404, &format!("blob \"sha256:{hex}\" not found"))
}

/// POST `/api/blobs/:digest`; nothing when the client went meanwhile.
pub(super) async fn blob_post(turn: &mut Turn<'_>, sum: &str) -> Option<Reply> {
    let Some(hex) = hex_of(sum) else {
        let close = turn.conn.discard(turn.head).await.ok()?;
        return Some(Reply { close, ..error(400, "invalid digest format") });
    };
    if turn.core.with(|s| s.blobs.contains_key(hex)) {
        let close = turn.conn.discard(turn.head).await.ok()?;
        return Some(Reply { close, ..Reply::empty(200) });
    }
    if turn.head.expect == super::http::Expect::Continue && turn.head.length != Length::Sized(0) {
        turn.conn.push(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    let (mut sha, mut size, mut taken) = (Sha256::new(), 0, 0);
    while let Some(piece) = turn.conn.piece(turn.head, &mut taken).await.ok()? {
        sha.update(&piece);
        size += piece.len() as u64;
    }
    let got = sha.hex();
    if got != hex || sum.starts_with("sha256-") {
        let text = format!("digest mismatch, expected \"{sum}\", got \"sha256:{got}\"");
        return Some(error(400, &text));
    }
    super::serve::pause(Duration::ZERO).await;
    turn.core.with(|s| s.blobs.insert(got, size));
    Some(Reply::empty(201))
}
