//! POST `/v1/audio/transcriptions`: a form in, a text out, in its simple form.
//!
//! Called by `infer.rs`.

use super::ask::{By, Fail, Wanted};
use super::conn::Body;
use super::gojson::Value;
use super::infer::{Next, Turn};
use super::job::Dialect;

/// The fields of a form: name, whether it is a file, content.
fn fields<'a>(body: &'a [u8], boundary: &str) -> Vec<(String, bool, &'a [u8])> {
    let mark = format!("--{boundary}");
    let mut found = Vec::new();
    let mut starts: Vec<usize> = memchr::memmem::find_iter(body, mark.as_bytes()).collect();
    starts.push(body.len());
    for pair in starts.windows(2) {
        let part = &body[(pair[0] + mark.len()).min(pair[1])..pair[1]];
        let Some(split) = memchr::memmem::find(part, b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&part[..split]).into_owned();
        let content = &part[split + 4..];
        let content = content.strip_suffix(b"\r\n").unwrap_or(content);
        if let Some(name) = parameter(&head, " name=") {
            found.push((name, parameter(&head, "filename=").is_some(), content));
        }
    }
    found
}

fn parameter(head: &str, key: &str) -> Option<String> {
    let rest = &head[head.find(key)? + key.len()..];
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().map(str::to_owned),
        None => rest.split([';', '\r', '\n']).next().map(|word| word.trim().to_owned()),
    }
}

/// A value of the query; escapes of a kind that clients of the simulation use.
fn queried(target: &str, wanted: &str) -> Option<String> {
    let (_, query) = target.split_once('?')?;
    let value = query.split('&').find_map(|pair| pair.strip_prefix(wanted)?.strip_prefix('='))?;
    Some(value.replace("%3A", ":").replace("%2F", "/"))
}

/// Handles a transcription.
pub(super) async fn transcribe(turn: &mut Turn<'_>, body: &Body) -> Next {
    let bad = |text: &str| Fail::new(By::Front, 400, text);
    let kind = turn.head.header("content-type").unwrap_or("").to_owned();
    let boundary = parameter(&kind, "boundary=");
    let Some(boundary) = boundary.filter(|_| kind.to_ascii_lowercase().starts_with("multipart/form-data")) else {
        let text = "failed to parse multipart form: request Content-Type isn't multipart/form-data";
        return turn.refuse(Dialect::Audio, false, bad(text)).await;
    };
    let fields = fields(&body.bytes, &boundary);
    let Some((_, _, file)) = fields.iter().find(|(name, file, _)| name == "file" && *file) else {
        return turn.refuse(Dialect::Audio, false, bad("file is required: http: no such file")).await;
    };
    let text_of = |wanted: &str| {
        // Go's FormValue asks the query before a multipart body.
        if let Some(queried) = queried(&turn.head.target, wanted) {
            return queried;
        }
        let field = fields.iter().find(|(name, file, _)| name == wanted && !file);
        field.map_or_else(String::new, |(_, _, content)| String::from_utf8_lossy(content).into_owned())
    };
    let model = text_of("model");
    if model.is_empty() {
        return turn.refuse(Dialect::Audio, false, bad("model is required")).await;
    }
    let text = text_of("response_format") == "text";
    let body = Value::Object(vec![
        ("model".to_owned(), Value::String(model)),
        ("response_format".to_owned(), Value::String(if text { "text" } else { "json" }.to_owned())),
    ]);
    let mut wanted = Wanted::new(Dialect::Audio, body);
    wanted.images = true;
    wanted.words.push(u32::try_from(file.len() / 3200).unwrap_or(u32::MAX).max(1));
    super::infer::serve(turn, wanted).await
}
