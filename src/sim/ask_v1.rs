//! Reads the bodies of the `/v1` inference routes, as the converters in front of Ollama's handlers do.
//!
//! Called by `infer.rs`. Checks and words errors as Ollama does; knows nothing of the node's models.

use super::ask::{By, Fail, Think, Wanted, inputs, stops};
use super::gojson::{Kind, Value, check};
use super::job::Dialect;

const STREAM_OPTIONS: Kind = Kind::Struct("openai.StreamOptions", &[("include_usage", Kind::Bool)]);
const CHAT: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("messages", Kind::List("[]openai.Message", &Kind::Struct("openai.Message", &[("role", Kind::Str)]))),
    ("stream", Kind::Bool),
    ("stream_options", STREAM_OPTIONS),
    ("max_tokens", Kind::Int),
    ("seed", Kind::Int),
    ("temperature", Kind::Float),
    ("top_p", Kind::Float),
    ("frequency_penalty", Kind::Float),
    ("presence_penalty", Kind::Float),
    ("logprobs", Kind::Bool),
    ("top_logprobs", Kind::Int),
    ("tools", Kind::List("[]api.Tool", &Kind::Any)),
];
const COMPLETION: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("prompt", Kind::Str),
    ("suffix", Kind::Str),
    ("stream", Kind::Bool),
    ("stream_options", STREAM_OPTIONS),
    ("max_tokens", Kind::Int),
    ("seed", Kind::Int),
    ("temperature", Kind::Float),
    ("top_p", Kind::Float),
    ("logprobs", Kind::Int),
];
const EMBED: &[(&str, Kind)] = &[("model", Kind::Str), ("dimensions", Kind::Int), ("encoding_format", Kind::Str)];
const RESPONSES: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("instructions", Kind::Str),
    ("stream", Kind::Bool),
    ("max_output_tokens", Kind::Int),
    ("temperature", Kind::Float),
    ("top_p", Kind::Float),
];
const MESSAGES: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("max_tokens", Kind::Int),
    ("stream", Kind::Bool),
    ("temperature", Kind::Float),
    ("top_p", Kind::Float),
    ("top_k", Kind::Int),
    ("stop_sequences", Kind::List("[]string", &Kind::Str)),
    (
        "messages",
        Kind::List("[]anthropic.MessageParam", &Kind::Struct("anthropic.MessageParam", &[("role", Kind::Str)])),
    ),
];

fn bad(text: impl Into<String>) -> Fail {
    Fail::new(By::Front, 400, text)
}

/// Reads a `/v1` inference body.
pub(super) fn read(dialect: Dialect, body: Value) -> Result<Wanted, Fail> {
    let (name, fields) = match dialect {
        Dialect::V1Chat => ("ChatCompletionRequest", CHAT),
        Dialect::V1Completions => ("CompletionRequest", COMPLETION),
        Dialect::V1Embeddings => ("EmbedRequest", EMBED),
        Dialect::Responses => ("ResponsesRequest", RESPONSES),
        _ => ("MessagesRequest", MESSAGES),
    };
    check(&body, name, fields).map_err(bad)?;
    let mut wanted = Wanted::new(dialect, Value::Null);
    body.str("model").clone_into(&mut wanted.model);
    let number = |name: &str| body.get(name).and_then(Value::as_i64);
    wanted.stream = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
    let usage = body.get("stream_options").and_then(|o| o.get("include_usage")).and_then(Value::as_bool);
    wanted.include_usage = usage.unwrap_or(false) && wanted.stream;
    wanted.stops = stops(body.get("stop"));
    wanted.limit = number("max_tokens");
    wanted.tools = body.get("tools").and_then(Value::as_array).unwrap_or_default().to_vec();
    match dialect {
        Dialect::V1Chat => chat(&mut wanted, &body)?,
        Dialect::V1Completions => {
            wanted.tools.clear();
            wanted.empty = body.str("prompt").is_empty();
            wanted.insert = !body.str("suffix").is_empty();
            wanted.say(body.str("prompt"));
        }
        Dialect::V1Embeddings => embeddings(&mut wanted, &body)?,
        Dialect::Responses => {
            wanted.limit = number("max_output_tokens");
            responses(&mut wanted, &body)?;
        }
        _ => messages(&mut wanted, &body)?,
    }
    wanted.body = body;
    Ok(wanted)
}

fn effort(wanted: &mut Wanted, effort: &str) -> Result<(), Fail> {
    wanted.think = match effort {
        "" => Think::Default,
        "none" => Think::Off,
        "minimal" | "low" | "medium" | "high" | "xhigh" | "ultra" | "max" => Think::On,
        other => return Err(bad(format!("invalid reasoning value: '{other}'"))),
    };
    Ok(())
}

fn chat(wanted: &mut Wanted, body: &Value) -> Result<(), Fail> {
    let messages = body.get("messages").and_then(Value::as_array).unwrap_or_default();
    if messages.is_empty() {
        return Err(bad("[] is too short - 'messages'"));
    }
    for message in messages {
        let calls = message.get("tool_calls").is_some();
        match message.get("content") {
            Some(Value::String(said)) => wanted.say(said),
            Some(Value::Array(parts)) => parts.iter().try_for_each(|part| chat_part(wanted, part))?,
            None if calls => {}
            _ => return Err(bad("invalid message content type: <nil>")),
        }
    }
    let asked = body.get("response_format").unwrap_or(&Value::Null);
    wanted.format = match asked.str("type") {
        "json_object" => Some(Value::String("json".to_owned())),
        "json_schema" => asked.get("json_schema").and_then(|named| named.get("schema")).cloned(),
        _ => None,
    };
    let nested = body.get("reasoning").map_or("", |r| r.str("effort"));
    effort(wanted, if nested.is_empty() { body.str("reasoning_effort") } else { nested })?;
    if body.get("logprobs").and_then(Value::as_bool).unwrap_or(false) {
        let top = body.get("top_logprobs").and_then(Value::as_i64).unwrap_or(0);
        wanted.logprobs = Some(u32::try_from(top.clamp(0, 20)).unwrap_or(0));
    }
    Ok(())
}

fn chat_part(wanted: &mut Wanted, part: &Value) -> Result<(), Fail> {
    match part.str("type") {
        "text" => wanted.say(part.str("text")),
        "image_url" => {
            let url = match part.get("image_url") {
                Some(Value::String(url)) => url.as_str(),
                Some(nested) => nested.str("url"),
                None => "",
            };
            if url.starts_with("http://") || url.starts_with("https://") {
                return Err(bad("image URLs are not currently supported, please use base64 encoded data instead"));
            }
            wanted.images = true;
        }
        "input_audio" => wanted.images = true,
        _ => return Err(bad("invalid message format")),
    }
    Ok(())
}

fn embeddings(wanted: &mut Wanted, body: &Value) -> Result<(), Fail> {
    match body.str("encoding_format") {
        "" | "float" => {}
        "base64" => wanted.base64 = true,
        other => {
            return Err(bad(format!(
                "Invalid value for 'encoding_format' = {other}. Supported values: ['float', 'base64']."
            )));
        }
    }
    let input = body.get("input");
    match input {
        None => return Err(bad("invalid input")),
        Some(Value::Array(list)) if list.is_empty() => return Err(bad("invalid input")),
        Some(Value::String(one)) if one.is_empty() => wanted.embed("", 0),
        _ => {}
    }
    inputs(wanted, input).map_err(|text| Fail::new(By::Handler, 400, text))?;
    let dimensions = body.get("dimensions").and_then(Value::as_i64).unwrap_or(0);
    wanted.dimensions = usize::try_from(dimensions).unwrap_or(0);
    Ok(())
}

fn responses(wanted: &mut Wanted, body: &Value) -> Result<(), Fail> {
    wanted.say(body.str("instructions"));
    match body.get("input") {
        Some(Value::String(said)) => wanted.say(said),
        Some(Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                match item.str("type") {
                    "" | "message" => match item.get("content") {
                        Some(Value::String(said)) => wanted.say(said),
                        Some(Value::Array(parts)) => response_parts(wanted, parts)?,
                        _ => {}
                    },
                    "function_call" => wanted.say(item.str("arguments")),
                    "function_call_output" => wanted.say(item.str("output")),
                    "reasoning" | "web_search_call" => {}
                    other => {
                        return Err(bad(format!("input[{at}]: unknown input item type: \"{other}\"")));
                    }
                }
            }
        }
        _ => {}
    }
    wanted.empty = wanted.words.iter().all(|n| *n == 0);
    effort(wanted, body.get("reasoning").map_or("", |r| r.str("effort")))
}

fn response_parts(wanted: &mut Wanted, parts: &[Value]) -> Result<(), Fail> {
    for part in parts {
        match part.str("type") {
            "input_text" | "output_text" => wanted.say(part.str("text")),
            "input_image" => wanted.images = true,
            other => return Err(bad(format!("unsupported content type: {other}"))),
        }
    }
    Ok(())
}

fn messages(wanted: &mut Wanted, body: &Value) -> Result<(), Fail> {
    if wanted.model.is_empty() {
        return Err(bad("model is required"));
    }
    if wanted.limit.unwrap_or(0) <= 0 {
        return Err(bad("max_tokens is required and must be positive"));
    }
    let messages = body.get("messages").and_then(Value::as_array).unwrap_or_default();
    if messages.is_empty() {
        return Err(bad("messages is required"));
    }
    wanted.stops = stops(body.get("stop_sequences"));
    let said = |wanted: &mut Wanted, content: Option<&Value>| match content {
        Some(Value::String(said)) => wanted.say(said),
        Some(Value::Array(blocks)) => {
            for block in blocks {
                wanted.say(block.str("text"));
                wanted.images |= block.str("type") == "image";
            }
        }
        _ => {}
    };
    said(wanted, body.get("system"));
    for message in messages {
        said(wanted, message.get("content"));
    }
    wanted.web_search = wanted.tools.iter().any(|tool| tool.str("type").starts_with("web_search"));
    wanted.tools.retain(|tool| !tool.str("type").starts_with("web_search"));
    wanted.think = match body.get("thinking").map_or("", |t| t.str("type")) {
        "enabled" => Think::Wished,
        "disabled" => Think::Off,
        _ => Think::Default,
    };
    Ok(())
}
