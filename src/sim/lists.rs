//! Listings of a simulated node: tags, ps, show, and OpenAI's models.
//!
//! Called by `serve.rs`. Reads the node's state, changes nothing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::ask::{By, Fail};
use super::conn::Body;
use super::fault::{Harm, Moment};
use super::host::Core;
use super::http::{Head, Reply};
use super::infer::fail_reply;
use super::job::Dialect;
use super::names::{self, Name, NameError, Source};
use super::requests::Request;
use super::spec::{Capability, Cloud, ModelSpec};
use super::text;

/// For ever, as Go counts it from a start: 292 years.
const FOR_EVER: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

/// A native error.
pub(super) fn error(status: u16, text: &str) -> Reply {
    Reply::json(status, format!("{{\"error\":{}}}", text::quoted(text)))
}

/// Models on disk, newest first by whole seconds, ties in an order of their own each time.
fn sorted(core: &Core) -> Vec<Arc<ModelSpec>> {
    let empty = core.harms(Moment::List, "", false, None).contains(&Harm::EmptyLists);
    if empty {
        return Vec::new();
    }
    core.with(|s| {
        let mut models: Vec<(u64, Arc<ModelSpec>)> = s.models.values().map(|m| (0, m.clone())).collect();
        for entry in &mut models {
            entry.0 = s.faults.roll();
        }
        models.sort_by_key(|(die, m)| (std::cmp::Reverse(m.modified.unwrap_or_default().as_secs()), *die));
        models.into_iter().map(|(_, m)| m).collect()
    })
}

fn details(out: &mut String, model: &ModelSpec, parent: &str, lengths: bool) {
    let (parent, family) = (text::quoted(parent), text::quoted(&model.family));
    let families = if model.remote.is_some() { "null".to_owned() } else { format!("[{family}]") };
    let _ = write!(
        out,
        "\"details\":{{\"parent_model\":{parent},\"format\":\"gguf\",\"family\":{family},\"families\":{families},\
         \"parameter_size\":\"134.52M\",\"quantization_level\":\"Q4_1\""
    );
    if lengths {
        let _ = write!(out, ",\"context_length\":{},\"embedding_length\":{}", model.context, model.dimensions);
    }
    out.push('}');
}

fn capabilities(out: &mut String, model: &ModelSpec) {
    let words: Vec<String> = model.capabilities.iter().map(|c| format!("\"{}\"", c.word())).collect();
    let _ = write!(out, ",\"capabilities\":[{}]", words.join(","));
}

/// GET `/api/tags`.
pub(super) fn tags(core: &Core) -> Reply {
    let mut out = "{\"models\":[".to_owned();
    for (i, model) in sorted(core).iter().enumerate() {
        let name = text::quoted(&model.name);
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{{\"name\":{name},\"model\":{name}");
        if let Some(remote) = &model.remote {
            let (there, host) = (text::quoted(&remote.model), text::quoted(&remote.host));
            let _ = write!(out, ",\"remote_model\":{there},\"remote_host\":{host}");
        }
        out.push_str(",\"modified_at\":\"");
        text::rfc3339(&mut out, model.modified.unwrap_or_default());
        let _ = write!(out, "\",\"size\":{},\"digest\":\"{}\",", model.size, model.digest);
        details(&mut out, model, &model.parent, model.remote.is_none());
        if model.remote.is_none() {
            capabilities(&mut out, model);
        }
        out.push('}');
    }
    out.push_str("]}");
    Reply::json(200, out)
}

/// GET `/api/ps`.
pub(super) fn ps(core: &Core) -> Reply {
    let mut loaded = core.with(|s| {
        let mut loaded = Vec::new();
        for runner in s.sched.loaded() {
            let known = s.models.values().find(|m| *m.name == *runner.name).cloned();
            let family = known.map_or_else(|| "llama".to_owned(), |m| m.family.clone());
            let expires = runner.expires.map_or_else(|| core.unix() + FOR_EVER, |at| core.unix_at(at));
            loaded.push((
                expires,
                family,
                runner.name.clone(),
                runner.digest.clone(),
                runner.size,
                runner.launch.num_ctx,
            ));
        }
        loaded
    });
    loaded.sort_by_key(|(expires, ..)| std::cmp::Reverse(expires.as_secs()));
    let mut out = "{\"models\":[".to_owned();
    for (i, (expires, family, name, digest, size, context)) in loaded.iter().enumerate() {
        let name = text::quoted(name);
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{{\"name\":{name},\"model\":{name},\"size\":{size},\"digest\":\"{digest}\",");
        let like = ModelSpec { family: family.clone(), ..ModelSpec::chat("x") };
        details(&mut out, &like, "", false);
        out.push_str(",\"expires_at\":\"");
        text::rfc3339(&mut out, *expires);
        let vram = size.saturating_mul(core.spec.vram_percent.min(100)) / 100;
        let _ = write!(out, "\",\"size_vram\":{vram},\"context_length\":{context}}}");
    }
    out.push_str("]}");
    Reply::json(200, out)
}

/// POST `/api/show`.
pub(super) fn show(core: &Core, head: &Head, body: &Body) -> Reply {
    let value = match super::ask::decode(Dialect::Generate, &body.bytes, body.broken) {
        Ok(value) => value,
        Err(fail) => return error(fail.status, &fail.text),
    };
    if let Err(text) = Request::Show.check(&value) {
        return error(400, &text);
    }
    let named = if value.str("model").is_empty() { value.str("name") } else { value.str("model") };
    let model = match find(core, named) {
        Ok(model) => model,
        Err(fail) => return error(fail.status, &fail.text),
    };
    let basename = head
        .header("user-agent")
        .filter(|agent| agent.starts_with("GitHubCopilotChat/"))
        .map_or_else(|| text::quoted(model.name.split(':').next().unwrap_or("")), |_| text::quoted(named));
    Reply::json(200, show_body(core, &model, &basename))
}

/// The model of a show request.
fn find(core: &Core, named: &str) -> Result<Arc<ModelSpec>, Fail> {
    let bad = |text: &str| Fail::new(By::Handler, 400, text);
    let (name, source) = names::resolve(named).map_err(|e| match e {
        NameError::Empty => bad("model is required"),
        NameError::Invalid => bad("invalid model name"),
        NameError::Conflict(text) => bad(&text),
    })?;
    if source == Source::Cloud {
        return Err(match core.spec.cloud {
            Cloud::Disabled => {
                Fail::new(By::Cloud, 403, "ollama cloud is disabled: remote model details are unavailable")
            }
            Cloud::Unreachable => Fail::new(
                By::Cloud,
                502,
                "Post \"https://ollama.com:443/api/show\": dial tcp: lookup ollama.com: no such host",
            ),
        });
    }
    core.with(|s| s.find(&name).cloned())
        .ok_or_else(|| Fail::new(By::Handler, 404, format!("model '{}' not found", name.display())))
}

fn show_body(core: &Core, model: &ModelSpec, basename: &str) -> String {
    let family = &model.family;
    let blob = format!("{}/blobs/sha256-{}", core.spec.models_dir, model.weights);
    let template =
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";
    let modelfile = format!(
        "# Modelfile generated by \"ollama show\"\n# To build a new Modelfile based on this, replace FROM with:\n\
         # FROM {}\n\nFROM {blob}\nTEMPLATE \"{template}\"\nPARAMETER stop <|im_start|>\nPARAMETER stop <|im_end|>\n",
        model.name
    );
    let parameters = "stop                           \"<|im_start|>\"\nstop                           \"<|im_end|>\"";
    let mut out = format!("{{\"modelfile\":{}", text::quoted(&modelfile));
    let _ = write!(out, ",\"parameters\":{},\"template\":{},", text::quoted(parameters), text::quoted(template));
    details(&mut out, model, &model.parent, false);
    if let Some(remote) = &model.remote {
        let (there, host) = (text::quoted(&remote.model), text::quoted(&remote.host));
        let _ = write!(out, ",\"remote_model\":{there},\"remote_host\":{host}");
    }
    let _ = write!(
        out,
        ",\"model_info\":{{\"general.architecture\":\"{family}\",\"general.basename\":{basename},\
         \"general.file_type\":3,\"general.finetune\":\"8k-lc100k-mix1-ep2\",\"general.languages\":null,\
         \"general.license\":\"apache-2.0\",\"general.organization\":\"HuggingFaceTB\",\
         \"general.parameter_count\":134515008,\"general.quantization_version\":2,\"general.size_label\":\"135M\",\
         \"general.type\":\"model\",\"{family}.attention.head_count\":9,\"{family}.attention.head_count_kv\":3,\
         \"{family}.attention.layer_norm_rms_epsilon\":0.00001,\"{family}.block_count\":30,\
         \"{family}.context_length\":{},\"{family}.embedding_length\":{},\"{family}.feed_forward_length\":1536,\
         \"{family}.rope.dimension_count\":64,\"{family}.rope.freq_base\":100000,\"{family}.vocab_size\":49152,\
         \"tokenizer.ggml.add_bos_token\":false,\"tokenizer.ggml.add_space_prefix\":false,\
         \"tokenizer.ggml.bos_token_id\":1,\"tokenizer.ggml.eos_token_id\":2,\"tokenizer.ggml.merges\":null,\
         \"tokenizer.ggml.model\":\"gpt2\",\"tokenizer.ggml.padding_token_id\":2,\
         \"tokenizer.ggml.pre\":\"smollm\",\"tokenizer.ggml.token_type\":null,\"tokenizer.ggml.tokens\":null,\
         \"tokenizer.ggml.unknown_token_id\":0}}",
        model.context, model.dimensions
    );
    if model.remote.is_none() {
        out.push_str(",\"tensors\":[");
        tensors(&mut out);
        out.push(']');
    }
    if model.remote.is_none() || model.can(Capability::Completion) {
        capabilities(&mut out, model);
    }
    out.push_str(",\"modified_at\":\"");
    text::rfc3339(&mut out, model.modified.unwrap_or_default());
    out.push_str("\"}");
    out
}

fn tensors(out: &mut String) {
    out.push_str("{\"name\":\"token_embd.weight\",\"type\":\"Q8_0\",\"shape\":[576,49152]}");
    const BLOCK: [(&str, &str, &str); 9] = [
        ("attn_norm", "F32", "[576]"),
        ("ffn_down", "Q4_1", "[1536,576]"),
        ("ffn_gate", "Q4_1", "[576,1536]"),
        ("ffn_up", "Q4_1", "[576,1536]"),
        ("ffn_norm", "F32", "[576]"),
        ("attn_k", "Q4_1", "[576,192]"),
        ("attn_output", "Q4_1", "[576,576]"),
        ("attn_q", "Q4_1", "[576,576]"),
        ("attn_v", "Q4_1", "[576,192]"),
    ];
    for block in 0..30 {
        for (name, kind, shape) in BLOCK {
            let _ = write!(out, ",{{\"name\":\"blk.{block}.{name}.weight\",\"type\":\"{kind}\",\"shape\":{shape}}}");
        }
    }
    out.push_str(",{\"name\":\"output_norm.weight\",\"type\":\"F32\",\"shape\":[576]}");
}

fn v1_entry(out: &mut String, id: &str, model: &ModelSpec) {
    let owner = Name::parse(&model.name).map_or_else(|_| "library".to_owned(), |n| n.namespace().to_owned());
    let created = model.modified.unwrap_or_default().as_secs();
    let (id, owner) = (text::quoted(id), text::quoted(&owner));
    let _ = write!(out, "{{\"id\":{id},\"object\":\"model\",\"created\":{created},\"owned_by\":{owner}}}");
}

/// GET `/v1/models`.
pub(super) fn v1_models(core: &Core) -> Reply {
    let models = sorted(core);
    let mut out = "{\"object\":\"list\",\"data\":".to_owned();
    if models.is_empty() {
        out.push_str("null");
    } else {
        out.push('[');
        for (i, model) in models.iter().enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            v1_entry(&mut out, &model.name, model);
        }
        out.push(']');
    }
    out.push_str("}\n");
    Reply::new(200, "application/json", out)
}

/// GET `/v1/models/:model`.
pub(super) fn v1_model(core: &Core, id: &str) -> Reply {
    match find(core, id) {
        Ok(model) => {
            let mut out = String::new();
            v1_entry(&mut out, id, &model);
            out.push('\n');
            Reply::new(200, "application/json", out)
        }
        Err(fail) => fail_reply(Dialect::V1Chat, false, &fail, 0),
    }
}
