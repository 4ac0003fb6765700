//! The shape of a body: key order and types, without the values.

use serde_json::Value;

/// The shape of one HTTP chunk: of JSON, of lines of it, of server-sent events, or the text itself.
pub(crate) fn chunk(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return format!("{} bytes", bytes.len()) };
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let newline = if text.ends_with('\n') { "\\n" } else { "" };
        return shape(&value) + newline;
    }
    let lines = text.split('\n').map(|line| match line.strip_prefix("data: ") {
        Some(data) => match serde_json::from_str::<Value>(data) {
            Ok(value) => format!("data: {}", shape(&value)),
            Err(_) => line.to_owned(),
        },
        None => match serde_json::from_str::<Value>(line) {
            Ok(value) => shape(&value),
            Err(_) => line.to_owned(),
        },
    });
    lines.collect::<Vec<_>>().join("\\n")
}

/// Words whose value is part of the shape: they say which event it is.
const TELLING: [&str; 9] =
    ["type", "object", "done", "done_reason", "finish_reason", "stop_reason", "role", "status", "system_fingerprint"];

fn shape(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(items) => {
            let mut shapes: Vec<String> = items.iter().map(shape).collect();
            shapes.dedup();
            format!("[{}]", shapes.join(","))
        }
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| match value {
                Value::String(_) | Value::Bool(_) if TELLING.contains(&name.as_str()) => {
                    format!("{name}={}", without_digests(&value.to_string()))
                }
                value => format!("{name}:{}", shape(value)),
            };
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(","))
        }
    }
}

/// A text with its digests (whole, or their first twelve digits) taken out.
fn without_digests(text: &str) -> String {
    let words = text.split_inclusive([' ', ':', '"']).map(|word| {
        let bare = word.trim_end_matches([' ', ':', '"']);
        let digest = matches!(bare.len(), 12 | 64) && bare.bytes().all(|b| b.is_ascii_hexdigit());
        if digest { word.replace(bare, "*") } else { word.to_owned() }
    });
    words.collect()
}
