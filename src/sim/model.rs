//! Which model a request means, whether it can do what is asked, and what it will generate.
//!
//! Called by `infer.rs` with a request that was read. Errors, their order and their words are Ollama's.

use std::sync::Arc;
use std::time::Duration;

use super::ask::{self, By, Fail, Think, Wanted};
use super::gojson::Value;
use super::host::Core;
use super::http::Reply;
use super::job::{Bounds, Dialect, Job, Plan, Tool};
use super::ledger::Ending;
use super::names::{self, Name, NameError, Source};
use super::sched::{Ask, Launch};
use super::spec::{Capability, Cloud, ModelSpec, Remote};
use super::text;

/// A request that this node's own models do not serve.
pub(super) enum Elsewhere {
    Fail(Fail),
    /// Answered by (the stand-in of) another server.
    Reply(Ending, Reply),
}

impl From<Fail> for Elsewhere {
    fn from(fail: Fail) -> Self {
        Self::Fail(fail)
    }
}

/// A request and its model.
pub(super) struct Placed {
    pub(super) model: Arc<ModelSpec>,
    launch: Launch,
    pub(super) unload: bool,
    thinks: bool,
}

/// Finds the model and checks the request against it.
pub(super) fn place(core: &Core, wanted: &Wanted) -> Result<Placed, Elsewhere> {
    let dialect = wanted.dialect;
    let (name, source) = names::resolve(&wanted.model).map_err(|e| name_fail(dialect, e))?;
    if source == Source::Cloud {
        return Err(cloud(core, dialect).into());
    }
    let found = core.with(|s| s.find(&name).cloned());
    let exact = dialect != Dialect::Embeddings || found.as_ref().is_some_and(|m| m.name == name.display());
    let Some(model) = found.filter(|m| exact && (source != Source::Local || m.remote.is_none())) else {
        return Err(unknown(dialect, &wanted.model).into());
    };
    if let Some(remote) = &model.remote {
        if dialect.embeds() {
            return Err(unknown(dialect, &wanted.model).into());
        }
        return Err(from_remote(wanted, remote));
    }
    let zero = wanted.keep_alive == Some(Some(Duration::ZERO));
    let unload = wanted.empty && zero && matches!(dialect, Dialect::Generate | Dialect::Chat);
    let launch = launch(core, &model, wanted);
    if unload {
        return Ok(Placed { model, launch, unload, thinks: false });
    }
    capable(wanted, &model, &name)?;
    ask::check_options(&wanted.options)?;
    let can_think = model.can(Capability::Thinking);
    let thinks = can_think && wanted.think != Think::Off && !dialect.embeds();
    Ok(Placed { model, launch, unload, thinks })
}

fn name_fail(dialect: Dialect, error: NameError) -> Fail {
    match error {
        NameError::Conflict(text) => Fail::new(By::Handler, 400, text),
        NameError::Invalid => Fail::new(By::Handler, 400, "invalid model name"),
        NameError::Empty => match dialect {
            Dialect::Generate | Dialect::Embed | Dialect::V1Completions | Dialect::V1Embeddings => {
                Fail::new(By::Handler, 404, "model '' not found")
            }
            _ => Fail::new(By::Handler, 400, "model is required"),
        },
    }
}

fn unknown(dialect: Dialect, sent: &str) -> Fail {
    let text = if dialect.embeds() {
        format!("model {} not found, try pulling it first", text::quoted(sent).replace("\\u0026", "&"))
    } else {
        format!("model '{sent}' not found")
    };
    Fail::new(By::Handler, 404, text)
}

fn cloud(core: &Core, dialect: Dialect) -> Fail {
    if core.spec.cloud == Cloud::Disabled {
        return Fail::new(By::Cloud, 403, "ollama cloud is disabled: remote model is unavailable");
    }
    let path = match dialect {
        Dialect::Generate => "/api/generate",
        Dialect::Chat => "/api/chat",
        Dialect::Embed | Dialect::Embeddings => "/api/embed",
        Dialect::V1Completions => "/v1/completions",
        Dialect::V1Embeddings => "/v1/embeddings",
        Dialect::Responses => "/v1/responses",
        Dialect::Messages => "/v1/messages",
        Dialect::V1Chat | Dialect::Audio => "/v1/chat/completions",
    };
    let text = format!(
        "Post \"https://ollama.com:443{path}?ts={}\": dial tcp: lookup ollama.com: no such host",
        core.unix().as_secs()
    );
    Fail::new(By::Cloud, 502, text)
}

/// What the server behind a stub answers: two lines, or an error.
fn from_remote(wanted: &Wanted, remote: &Remote) -> Elsewhere {
    if let Some(status) = remote.fails {
        let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
        let there = remote.model.split(':').next().unwrap_or("");
        if !matches!(wanted.dialect, Dialect::Generate | Dialect::Chat) {
            let text = format!("{status} {reason}: model '{there}' not found");
            return Elsewhere::Fail(Fail::new(By::Handler, status, text));
        }
        let body = format!(
            "{{\"StatusCode\":{status},\"Status\":\"{status} {reason}\",\"error\":\"model '{there}' not found\"}}"
        );
        return Elsewhere::Reply(Ending::Refused, Reply::new(status, "application/x-ndjson", body));
    }
    let line = |said: &str, end: &str| {
        let message = match wanted.dialect {
            Dialect::Generate => format!("\"response\":\"{said}\""),
            _ => format!("\"message\":{{\"role\":\"assistant\",\"content\":\"{said}\"}}"),
        };
        format!(
            "{{\"model\":{},\"remote_model\":{},\"remote_host\":{},\"created_at\":\"2026-01-01T00:00:00Z\",{message},{end}}}",
            text::quoted(&wanted.model),
            text::quoted(&remote.model),
            text::quoted(&remote.host)
        )
    };
    if wanted.stream {
        let lines = [line("hi", "\"done\":false"), line("", "\"done\":true,\"done_reason\":\"stop\"")];
        return Elsewhere::Reply(Ending::Done, Reply::lines(&lines));
    }
    Elsewhere::Reply(Ending::Done, Reply::json(200, line("hi", "\"done\":true,\"done_reason\":\"stop\"")))
}

fn capable(wanted: &Wanted, model: &ModelSpec, name: &Name) -> Result<(), Fail> {
    let bad = |text: String| Err(Fail::new(By::Handler, 400, text));
    let sent = text::quoted(&wanted.model);
    if wanted.dialect.embeds() {
        return Ok(());
    }
    if !model.can(Capability::Completion) {
        let verb = match wanted.dialect {
            Dialect::Generate | Dialect::V1Completions => "generate",
            _ => "chat",
        };
        return bad(format!("{sent} does not support {verb}"));
    }
    if wanted.insert && !model.can(Capability::Insert) {
        return bad(format!("{} does not support insert", name.full()));
    }
    if !wanted.tools.is_empty() && !model.can(Capability::Tools) {
        return bad(format!("{} does not support tools", name.full()));
    }
    if wanted.think == Think::On && !model.can(Capability::Thinking) {
        return bad(format!("{sent} does not support thinking"));
    }
    Ok(())
}

fn launch(core: &Core, model: &ModelSpec, wanted: &Wanted) -> Launch {
    let int = |name: &str| wanted.options.get(name).and_then(Value::as_i64);
    let asked = int("num_ctx").and_then(|n| u32::try_from(n).ok());
    let context = asked.unwrap_or(core.spec.context).max(4).min(model.context);
    Launch {
        num_batch: int("num_batch"),
        num_gpu: int("num_gpu"),
        main_gpu: int("main_gpu"),
        use_mmap: wanted.options.get("use_mmap").and_then(Value::as_bool),
        num_thread: int("num_thread"),
        draft_num_predict: int("draft_num_predict"),
        shift: wanted.shift.unwrap_or(true),
        ..Launch::automatic(context)
    }
}

impl Placed {
    /// What to ask the scheduler for.
    pub(super) fn ask(&self, core: &Core, wanted: &Wanted) -> Ask {
        let spec = &core.spec;
        let load_time = spec.real(self.model.load_time.unwrap_or(spec.load_time));
        let real =
            |keep: Option<Duration>| keep.map(|time| time.checked_mul(1).map_or(Duration::MAX, |t| spec.real(t)));
        Ask {
            weights: self.model.weights.as_str().into(),
            name: self.model.name.as_str().into(),
            digest: self.model.digest.as_str().into(),
            size: self.model.size,
            slots: if self.model.only_embeds() { 1 } else { spec.num_parallel },
            launch: self.launch.clone(),
            keep_alive: wanted.keep_alive.map(real),
            load_time,
            load_fails: None,
            wants_slot: !wanted.empty && !wanted.debug,
        }
    }

    /// What will be generated, or what the runner refuses.
    pub(super) fn job(&self, core: &Core, wanted: &Wanted, context: u32) -> Result<Job, Fail> {
        let spec = &core.spec;
        if let Some(text) = &wanted.bad_format {
            return Err(Fail::new(By::Stream, 500, text.clone()));
        }
        if wanted.images && !self.model.can(Capability::Vision) && !self.model.can(Capability::Audio) {
            let text = "{\"error\":{\"code\":400,\"message\":\"Multimodal data provided, but model does not support \
                        multimodal requests.\",\"type\":\"invalid_request_error\"}}";
            return Err(Fail::new(By::Stream, 400, text));
        }
        let sim = wanted.body.get("sim").cloned().unwrap_or(Value::Null);
        let knob = |name: &str| sim.get(name).and_then(Value::as_i64).and_then(|n| u32::try_from(n).ok());
        let pause =
            |name: &str| sim.get(name).and_then(Value::as_f64).map(|ms| Duration::from_secs_f64(ms.max(0.0) / 1000.0));
        let tool_words: u32 = wanted.tools.iter().map(|tool| 38 + tool_words(tool)).sum();
        let room = context.next_multiple_of(256);
        let mut prompt = knob("prompt").unwrap_or(wanted.prompt() + self.model.template_tokens + tool_words);
        if prompt > room {
            if !wanted.truncate || self.model.native {
                return Err(Fail::new(By::Stream, 400, too_long(prompt, room)));
            }
            prompt = room;
        }
        let most = context.saturating_mul(10);
        let limit = wanted.limit.and_then(|n| u32::try_from(n).ok()).map(|n| n.min(most));
        let tool = self.tool(core, wanted);
        let plan = Plan::new(Bounds {
            limit: knob("tokens").or(limit),
            usual: self.model.output_tokens.unwrap_or(spec.output_tokens).min(most),
            stops: wanted.stops.clone(),
            thinks: self.thinks,
            tool,
            json: wanted.format.as_ref().filter(|_| wanted.body.get("sim").is_none()).map(formatted),
        });
        Ok(Job {
            dialect: wanted.dialect,
            model: wanted.model.clone(),
            stream: wanted.stream,
            include_usage: wanted.include_usage,
            prompt,
            plan,
            logprobs: wanted.logprobs,
            raw: wanted.raw,
            chars: wanted.chars,
            web_search: wanted.web_search,
            text: wanted.body.str("response_format") == "text",
            body: if wanted.dialect == Dialect::Responses { wanted.body.clone() } else { Value::Null },
            prefill: pause("first_ms").unwrap_or_else(|| spec.real(spec.prompt_time * prompt)),
            pace: pause("pace_ms").unwrap_or_else(|| spec.real(spec.token_time)),
            burst: knob("burst").unwrap_or(spec.burst),
        })
    }

    /// The first tool offered is called, until its result is there.
    fn tool(&self, core: &Core, wanted: &Wanted) -> Option<Tool> {
        let first = wanted.tools.first()?;
        let messages = wanted.body.get("messages").and_then(Value::as_array).unwrap_or_default();
        if messages.last().is_some_and(|m| m.str("role") == "tool") || wanted.body.get("sim").is_some() {
            return None;
        }
        let function = first.get("function").unwrap_or(first);
        let schema = function.get("parameters").or_else(|| function.get("input_schema")).unwrap_or(&Value::Null);
        let die = core.with(|s| s.faults.roll());
        let letters: String = (0..8)
            .map(|i| char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[(die >> (i * 6)) as usize % 36]))
            .collect();
        let name = function.str("name").to_owned();
        Some(Tool { id: format!("call_{letters}"), name, arguments: arguments(schema) })
    }
}

fn tool_words(tool: &Value) -> u32 {
    let mut shown = String::new();
    tool.write(&mut shown, false);
    u32::try_from(shown.len() / 16).unwrap_or(0)
}

/// JSON that a `format` asks for: any object, or one of this schema.
fn formatted(format: &Value) -> String {
    match format {
        Value::Object(_) => arguments(format),
        _ => "{\"herd\":\"calm\"}".to_owned(),
    }
}

/// Arguments that fit a schema: something for each required property.
fn arguments(schema: &Value) -> String {
    let required = schema.get("required").and_then(Value::as_array).unwrap_or_default();
    let mut out = "{".to_owned();
    for (i, name) in required.iter().filter_map(Value::as_str).enumerate() {
        out.push_str(if i > 0 { "," } else { "" });
        text::quote(&mut out, name);
        let kind = schema.get("properties").and_then(|p| p.get(name)).map_or("string", |p| p.str("type"));
        out.push_str(match kind {
            "integer" | "number" => ":1",
            "boolean" => ":true",
            "array" => ":[]",
            "object" => ":{}",
            _ => ":\"a\"",
        });
    }
    out.push('}');
    out
}

/// llama-server's refusal, as a text.
fn too_long(prompt: u32, room: u32) -> String {
    format!(
        "{{\"error\":{{\"code\":400,\"message\":\"request ({prompt} tokens) exceeds the available context size \
         ({room} tokens), try increasing it\",\"type\":\"exceed_context_size_error\",\"n_prompt_tokens\":{prompt},\
         \"n_ctx\":{room}}}}}"
    )
}

/// The single object that answers a load or an unload.
pub(super) fn short_reply(core: &Core, wanted: &Wanted, reason: &str) -> Reply {
    if wanted.dialect == Dialect::V1Completions {
        let body = format!(
            "{{\"id\":\"cmpl-{}\",\"object\":\"text_completion\",\"created\":{},\"model\":{},\
             \"system_fingerprint\":\"fp_ollama\",\"choices\":[{{\"text\":\"\",\"index\":0,\"finish_reason\":\
             \"{reason}\"}}],\"usage\":{{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}}}}\n",
            core.with(|s| s.faults.roll()) % 999,
            core.unix().as_secs(),
            text::quoted(&wanted.model)
        );
        return Reply::new(200, "application/json", body);
    }
    let said = match wanted.dialect {
        Dialect::Generate => "\"response\":\"\"",
        _ => "\"message\":{\"role\":\"assistant\",\"content\":\"\"}",
    };
    let mut body = begin(core, wanted);
    body.push_str(&format!(",{said},\"done\":true,\"done_reason\":\"{reason}\"}}"));
    Reply::json(200, body)
}

fn begin(core: &Core, wanted: &Wanted) -> String {
    let mut body = format!("{{\"model\":{},\"created_at\":\"", text::quoted(&wanted.model));
    text::rfc3339(&mut body, core.unix());
    body.push('"');
    body
}

/// The answer to `_debug_render_only`.
pub(super) fn debug_reply(core: &Core, wanted: &Wanted) -> Reply {
    let mut prompt = String::new();
    for message in wanted.body.get("messages").and_then(Value::as_array).unwrap_or_default() {
        prompt.push_str(&format!("<|im_start|>{}\n{}<|im_end|>\n", message.str("role"), message.str("content")));
    }
    if wanted.dialect == Dialect::Generate {
        prompt.push_str(&format!("<|im_start|>user\n{}<|im_end|>\n", wanted.body.str("prompt")));
    }
    prompt.push_str("<|im_start|>assistant\n");
    let said = match wanted.dialect {
        Dialect::Generate => "\"response\":\"\"",
        _ => "\"message\":{\"role\":\"\",\"content\":\"\"}",
    };
    let mut body = begin(core, wanted);
    let prompt = text::quoted(&prompt);
    body.push_str(&format!(",{said},\"done\":false,\"_debug_info\":{{\"rendered_template\":{prompt}}}}}"));
    Reply::json(200, body)
}
