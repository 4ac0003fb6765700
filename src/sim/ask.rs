//! Reads the bodies of the native inference routes, and what all inference bodies share.
//!
//! Called by `infer.rs`; `ask_v1.rs` does the same for the `/v1` routes. Checks and words errors as Ollama does;
//! knows nothing of the node's models.

use std::time::Duration;

use super::gojson::{self, Kind, Value, check};
use super::job::{Dialect, Family};
use super::text;

/// Who found an error; it decides the wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The native handler, or on `/v1` the converter in front of it.
    Front,
    /// The handler behind a converter (on native routes the same as `Front`).
    Handler,
    /// A handler that streams already.
    Stream,
    /// The cloud check, native on every route.
    Cloud,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fail {
    pub(super) status: u16,
    pub(super) text: String,
    pub(super) by: By,
}

impl Fail {
    pub(super) fn new(by: By, status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), by }
    }
}

/// Whether the model is to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Think {
    Default,
    On,
    /// On, and no error where the model cannot.
    Wished,
    Off,
}

/// An inference request, read but not yet held against the node's models.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) dialect: Dialect,
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Words of the prompt, or of each input to embed.
    pub(super) words: Vec<u32>,
    /// A hash of each input to embed.
    pub(super) hashes: Vec<u64>,
    pub(super) chars: usize,
    /// Nothing to generate: a load or an unload.
    pub(super) empty: bool,
    pub(super) limit: Option<i64>,
    pub(super) stops: Vec<String>,
    pub(super) think: Think,
    pub(super) tools: Vec<Value>,
    pub(super) images: bool,
    pub(super) logprobs: Option<u32>,
    pub(super) keep_alive: Option<Option<Duration>>,
    pub(super) options: Value,
    pub(super) shift: Option<bool>,
    pub(super) truncate: bool,
    pub(super) raw: bool,
    pub(super) debug: bool,
    /// `"json"` or a schema, which binds what is said.
    pub(super) format: Option<Value>,
    /// What is wrong with `format`, told when the model is there.
    pub(super) bad_format: Option<String>,
    pub(super) insert: bool,
    pub(super) dimensions: usize,
    pub(super) base64: bool,
    pub(super) web_search: bool,
    pub(super) body: Value,
}

impl Wanted {
    pub(super) fn new(dialect: Dialect, body: Value) -> Self {
        Self {
            dialect,
            model: body.str("model").to_owned(),
            stream: false,
            include_usage: false,
            words: Vec::new(),
            hashes: Vec::new(),
            chars: 0,
            empty: false,
            limit: None,
            stops: Vec::new(),
            think: Think::Default,
            tools: Vec::new(),
            images: false,
            logprobs: None,
            keep_alive: None,
            options: Value::Null,
            shift: None,
            truncate: true,
            raw: false,
            debug: false,
            format: None,
            bad_format: None,
            insert: false,
            dimensions: 0,
            base64: false,
            web_search: false,
            body,
        }
    }

    /// Adds text to the prompt.
    pub(super) fn say(&mut self, said: &str) {
        if self.words.is_empty() {
            self.words.push(0);
        }
        self.words[0] = self.words[0].saturating_add(text::words(said));
        self.chars += said.chars().count();
    }

    /// Adds an input to embed.
    pub(super) fn embed(&mut self, input: &str, least: u32) {
        self.words.push(text::words(input).max(least));
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.hashes.push(input.bytes().fold(0xcbf2_9ce4_8422_2325, fnv));
    }

    /// The prompt's words.
    pub(super) fn prompt(&self) -> u32 {
        self.words.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

const TOOL: &[(&str, Kind)] =
    &[("type", Kind::Str), ("function", Kind::Struct("api.ToolFunction", &[("name", Kind::Str)]))];
pub(super) const MESSAGE: &[(&str, Kind)] = &[
    ("role", Kind::Str),
    ("content", Kind::Str),
    ("thinking", Kind::Str),
    ("images", Kind::List("[]api.ImageData", &Kind::Str)),
    ("tool_calls", Kind::List("[]api.ToolCall", &Kind::Any)),
    ("tool_name", Kind::Str),
];
const GENERATE: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("prompt", Kind::Str),
    ("suffix", Kind::Str),
    ("system", Kind::Str),
    ("template", Kind::Str),
    ("context", Kind::List("[]int", &Kind::Int)),
    ("stream", Kind::Bool),
    ("raw", Kind::Bool),
    ("images", Kind::List("[]api.ImageData", &Kind::Str)),
    ("options", Kind::Map("map[string]interface {}")),
    ("truncate", Kind::Bool),
    ("shift", Kind::Bool),
    ("logprobs", Kind::Bool),
    ("top_logprobs", Kind::Int),
    ("_debug_render_only", Kind::Bool),
];
const CHAT: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("messages", Kind::List("[]api.Message", &Kind::Struct("api.Message", MESSAGE))),
    ("stream", Kind::Bool),
    ("tools", Kind::List("api.Tools", &Kind::Struct("api.Tool", TOOL))),
    ("options", Kind::Map("map[string]interface {}")),
    ("truncate", Kind::Bool),
    ("shift", Kind::Bool),
    ("logprobs", Kind::Bool),
    ("top_logprobs", Kind::Int),
    ("_debug_render_only", Kind::Bool),
];
const EMBED: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("truncate", Kind::Bool),
    ("dimensions", Kind::Int),
    ("options", Kind::Map("map[string]interface {}")),
];
const EMBEDDINGS: &[(&str, Kind)] =
    &[("model", Kind::Str), ("prompt", Kind::Str), ("options", Kind::Map("map[string]interface {}"))];

/// Decodes a body; Go's texts, in the words of the route's family.
pub(super) fn decode(dialect: Dialect, body: &[u8], broken: Option<&str>) -> Result<Value, Fail> {
    let bad = |text: &str| Fail::new(By::Front, 400, text);
    if let Some(text) = broken {
        let empty = body.trim_ascii().is_empty() && text == "unexpected EOF";
        return Err(bad(if empty { "unexpected EOF" } else { text }));
    }
    match gojson::parse(body) {
        Ok((value, _)) => Ok(value),
        Err(text) if text == "EOF" && dialect.family() == Family::Native => Err(bad("missing request body")),
        Err(text) => Err(bad(&text)),
    }
}

/// Reads a native inference body.
pub(super) fn native(dialect: Dialect, body: Value) -> Result<Wanted, Fail> {
    let (name, fields) = match dialect {
        Dialect::Generate => ("GenerateRequest", GENERATE),
        Dialect::Chat => ("ChatRequest", CHAT),
        Dialect::Embed => ("EmbedRequest", EMBED),
        _ => ("EmbeddingRequest", EMBEDDINGS),
    };
    let bad = |text: String| Fail::new(By::Front, 400, text);
    check(&body, name, fields).map_err(bad)?;
    let keep_alive = body.get("keep_alive").map(keep_alive).transpose().map_err(bad)?;
    let mut wanted = Wanted::new(dialect, Value::Null);
    body.str("model").clone_into(&mut wanted.model);
    let flag = |name: &str| body.get(name).and_then(Value::as_bool).unwrap_or(false);
    wanted.keep_alive = keep_alive;
    wanted.options = body.get("options").cloned().unwrap_or(Value::Null);
    wanted.shift = body.get_pointer("shift").and_then(Value::as_bool);
    wanted.truncate = body.get_pointer("truncate").and_then(Value::as_bool).unwrap_or(true);
    match dialect {
        Dialect::Generate | Dialect::Chat => generation(&mut wanted, &body)?,
        Dialect::Embed => {
            inputs(&mut wanted, body.get("input")).map_err(|text| Fail::new(By::Front, 400, text))?;
            let dimensions = body.get("dimensions").and_then(Value::as_i64).unwrap_or(0);
            wanted.dimensions = usize::try_from(dimensions).unwrap_or(0);
        }
        _ => {
            let prompt = body.str("prompt");
            if !prompt.is_empty() {
                wanted.embed(prompt, 1);
            }
            wanted.empty = prompt.is_empty();
        }
    }
    wanted.debug = flag("_debug_render_only");
    wanted.body = body;
    Ok(wanted)
}

/// The inputs of an embedding request; one string or a list of them.
pub(super) fn inputs(wanted: &mut Wanted, input: Option<&Value>) -> Result<(), String> {
    match input {
        None => {}
        Some(Value::String(one)) if one.is_empty() => {}
        Some(Value::String(one)) => wanted.embed(one, 1),
        Some(Value::Array(list)) => {
            for item in list {
                wanted.embed(item.as_str().ok_or("invalid input type")?, 0);
            }
        }
        Some(_) => return Err("invalid input type".to_owned()),
    }
    wanted.empty = wanted.words.is_empty();
    Ok(())
}

fn generation(wanted: &mut Wanted, body: &Value) -> Result<(), Fail> {
    let bad = |text: String| Fail::new(By::Front, 400, text);
    wanted.stream = body.get_pointer("stream").and_then(Value::as_bool).unwrap_or(true);
    let top = body.get("top_logprobs").and_then(Value::as_i64).unwrap_or(0);
    if !(0..=20).contains(&top) {
        return Err(bad("top_logprobs must be between 0 and 20".to_owned()));
    }
    if body.get("logprobs").and_then(Value::as_bool).unwrap_or(false) {
        wanted.logprobs = Some(u32::try_from(top).unwrap_or(0));
    }
    wanted.think = match body.get_pointer("think") {
        None => Think::Default,
        Some(Value::Bool(true)) => Think::On,
        Some(Value::Bool(false)) => Think::Off,
        Some(Value::String(s)) if matches!(s.as_str(), "high" | "medium" | "low" | "max") => Think::On,
        Some(other) => {
            let mut shown = String::new();
            other.write(&mut shown, false);
            return Err(bad(format!(
                "invalid think value: {shown} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)"
            )));
        }
    };
    wanted.limit = wanted.options.get("num_predict").and_then(Value::as_i64);
    wanted.stops = stops(wanted.options.get("stop"));
    wanted.format = body.get("format").filter(|format| format.as_str() != Some("")).cloned();
    wanted.bad_format = match body.get("format") {
        None | Some(Value::Object(_)) => None,
        Some(Value::String(s)) if s == "json" || s.is_empty() => None,
        Some(other) => {
            let mut shown = String::new();
            other.write(&mut shown, false);
            let shown = text::quoted(&shown);
            Some(format!("invalid format: {shown}; expected \"json\" or a valid JSON Schema object"))
        }
    };
    if wanted.dialect == Dialect::Generate {
        wanted.raw = body.get("raw").and_then(Value::as_bool).unwrap_or(false);
        let more = !body.str("template").is_empty() || !body.str("system").is_empty();
        if wanted.raw && (more || body.get("context").is_some()) {
            return Err(bad("raw mode does not support template, system, or context".to_owned()));
        }
        wanted.insert = !body.str("suffix").is_empty();
        wanted.empty = body.str("prompt").is_empty();
        images(wanted, body)?;
        wanted.say(body.str("system"));
        wanted.say(body.str("prompt"));
        let context = body.get("context").and_then(Value::as_array).map_or(0, <[Value]>::len);
        wanted.words[0] += u32::try_from(context).unwrap_or(0);
        return Ok(());
    }
    let messages = body.get("messages").and_then(Value::as_array).unwrap_or_default();
    wanted.empty = messages.is_empty();
    for message in messages {
        wanted.say(message.str("content"));
        images(wanted, message)?;
    }
    wanted.tools = body.get("tools").and_then(Value::as_array).unwrap_or_default().to_vec();
    Ok(())
}

fn images(wanted: &mut Wanted, of: &Value) -> Result<(), Fail> {
    for image in of.get("images").and_then(Value::as_array).unwrap_or_default() {
        if let Some(at) = image.as_str().and_then(super::codec::base64_error) {
            return Err(Fail::new(By::Front, 400, format!("illegal base64 data at input byte {at}")));
        }
        wanted.images = true;
    }
    Ok(())
}

/// Stop texts: one string or a list.
pub(super) fn stops(stop: Option<&Value>) -> Vec<String> {
    match stop {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// A keep-alive: seconds, or Go's duration; negative is for ever.
fn keep_alive(value: &Value) -> Result<Option<Duration>, String> {
    match value {
        Value::Number(_) => {
            let seconds = value.as_f64().unwrap_or(0.0);
            Ok((seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
        }
        Value::String(written) => go_duration(written),
        Value::Bool(_) => Err("Unsupported type: 'bool'".to_owned()),
        Value::Array(_) => Err("Unsupported type: '[]interface {}'".to_owned()),
        _ => Err("Unsupported type: 'map[string]interface {}'".to_owned()),
    }
}

/// Go's `time.ParseDuration`; a negative one is for ever.
pub(super) fn go_duration(written: &str) -> Result<Option<Duration>, String> {
    let quoted = text::quoted(written);
    let invalid = || format!("time: invalid duration {quoted}");
    let negative = written.starts_with('-');
    let mut rest = written.strip_prefix(['-', '+']).unwrap_or(written);
    if rest == "0" {
        return Ok(Some(Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..letters];
        rest = &rest[letters..];
        nanos += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                "" => return Err(format!("time: missing unit in duration {quoted}")),
                unit => return Err(format!("time: unknown unit {} in duration {quoted}", text::quoted(unit))),
            };
    }
    let time = Duration::try_from_secs_f64(nanos / 1e9).unwrap_or(Duration::MAX);
    Ok((!negative || time.is_zero()).then_some(time))
}

/// Checks `options` as Ollama does, whose answer to a wrong type is a 500.
pub(super) fn check_options(options: &Value) -> Result<(), Fail> {
    for (name, value) in options.fields() {
        let kind = match name.as_str() {
            "num_ctx" | "num_batch" | "num_gpu" | "main_gpu" | "num_thread" | "draft_num_predict" | "num_keep"
            | "seed" | "num_predict" | "top_k" | "repeat_last_n" => "integer",
            "temperature" | "top_p" | "min_p" | "typical_p" | "repeat_penalty" | "presence_penalty"
            | "frequency_penalty" => "float32",
            "use_mmap" => "boolean",
            "stop" => "array",
            _ => continue,
        };
        let right = matches!(
            (kind, value),
            (_, Value::Null)
                | ("integer" | "float32", Value::Number(_))
                | ("boolean", Value::Bool(_))
                | ("array", Value::Array(_))
        );
        if !right {
            return Err(Fail::new(By::Handler, 500, format!("option \"{name}\" must be of type {kind}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dialect: Dialect, body: &str) -> Result<Wanted, Fail> {
        native(dialect, decode(dialect, body.as_bytes(), None)?)
    }

    fn text_of(dialect: Dialect, body: &str) -> String {
        read(dialect, body).unwrap_err().text
    }

    #[test]
    fn words_type_errors_as_go_does() {
        assert_eq!(
            text_of(Dialect::Chat, r#"{"model":"m","stream":"yes","messages":[]}"#),
            "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool"
        );
        assert_eq!(
            text_of(Dialect::Chat, r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#),
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string"
        );
    }

    #[test]
    fn reads_keep_alives() {
        let of = |value: &str| read(Dialect::Generate, &format!("{{\"keep_alive\":{value}}}"));
        assert_eq!(of("300").unwrap().keep_alive, Some(Some(Duration::from_secs(300))));
        assert_eq!(of("\"1m30s\"").unwrap().keep_alive, Some(Some(Duration::from_secs(90))));
        assert_eq!(of("-1").unwrap().keep_alive, Some(None));
        assert_eq!(of("\"0s\"").unwrap().keep_alive, Some(Some(Duration::ZERO)));
        assert_eq!(of("\"abc\"").unwrap_err().text, "time: invalid duration \"abc\"");
        assert_eq!(of("\"5\"").unwrap_err().text, "time: missing unit in duration \"5\"");
        assert_eq!(of("true").unwrap_err().text, "Unsupported type: 'bool'");
    }
}
