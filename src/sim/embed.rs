//! Embeddings: unit vectors that depend on model and input alone.
//!
//! Called by `infer.rs` once a runner is had. Never streams.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::ask::{By, Fail, Wanted};
use super::codec;
use super::http::Reply;
use super::infer::{Next, Turn};
use super::job::Dialect;
use super::ledger::{Ending, Tokens};
use super::model::Placed;
use super::sched::Grant;
use super::spec::{Capability, ModelSpec};
use super::text;

/// Answers an embedding request.
pub(super) async fn embed(
    turn: &mut Turn<'_>,
    wanted: &Wanted,
    placed: &Placed,
    grant: &Grant,
    load: Duration,
) -> Next {
    let dialect = wanted.dialect;
    if !wanted.empty && !placed.model.can(Capability::Embedding) {
        let status = if dialect == Dialect::Embeddings { 500 } else { 501 };
        let text = "This server does not support embeddings. Start it with `--embeddings`";
        return turn.refuse(dialect, false, Fail::new(By::Handler, status, text)).await;
    }
    if let Some(fail) = refusal(wanted, placed, grant) {
        return turn.refuse(dialect, false, fail).await;
    }
    let extra = placed.model.template_tokens;
    let prompt = wanted.words.iter().map(|n| (n + extra).min(grant.context)).sum::<u32>();
    let spec = &turn.core.spec;
    if let Err(next) = turn.wait(Instant::now() + spec.real(spec.prompt_time * prompt)).await {
        return next;
    }
    let total = turn.core.now().saturating_sub(turn.stay.read_at).max(Duration::from_nanos(1000));
    let dimensions = match wanted.dimensions {
        0 => placed.model.dimensions as usize,
        asked => asked.min(placed.model.dimensions as usize),
    };
    let seed = u64::from_str_radix(placed.model.weights.get(..16).unwrap_or("0"), 16).unwrap_or(0);
    let vectors: Vec<Vec<f32>> = wanted.hashes.iter().map(|hash| vector(seed ^ hash, dimensions)).collect();
    let reply = reply(wanted, &vectors, prompt, (total, load));
    turn.answer(Ending::Done, Tokens { prompt: u64::from(prompt), output: 0 }, reply).await
}

/// The OpenAI answer of a server that has only this model.
pub(super) fn openai_reply(wanted: &Wanted, model: &ModelSpec, prompt: u32) -> Reply {
    let dimensions = model.dimensions as usize;
    let vectors: Vec<Vec<f32>> = wanted.hashes.iter().map(|hash| vector(*hash, dimensions)).collect();
    reply(wanted, &vectors, prompt, (Duration::ZERO, Duration::ZERO))
}

fn refusal(wanted: &Wanted, placed: &Placed, grant: &Grant) -> Option<Fail> {
    let bad = |text: &str| {
        let status = if wanted.dialect == Dialect::Embeddings { 500 } else { 400 };
        Some(Fail::new(By::Handler, status, text))
    };
    if !wanted.truncate && wanted.words.iter().any(|n| *n > grant.context) {
        return bad("the input length exceeds the context length");
    }
    if placed.model.template_tokens == 0 && wanted.words.contains(&0) {
        return bad("input exceeds maximum context length and cannot be truncated further");
    }
    None
}

fn vector(seed: u64, dimensions: usize) -> Vec<f32> {
    let mut dice = super::fault::Faults::new(seed);
    #[expect(clippy::cast_precision_loss, reason = "any number will do")]
    let raw: Vec<f32> = (0..dimensions).map(|_| (dice.roll() >> 40) as f32 / 8_388_608.0 - 1.0).collect();
    let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.iter().map(|x| x / norm).collect()
}

fn list(out: &mut String, vector: &[f32]) {
    out.push('[');
    for (i, x) in vector.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{x}");
    }
    out.push(']');
}

fn reply(wanted: &Wanted, vectors: &[Vec<f32>], prompt: u32, (total, load): (Duration, Duration)) -> Reply {
    let mut out = String::new();
    match wanted.dialect {
        Dialect::Embeddings => {
            out.push_str("{\"embedding\":");
            list(&mut out, vectors.first().map_or(&[], Vec::as_slice));
            out.push('}');
        }
        Dialect::Embed => {
            let _ = write!(out, "{{\"model\":{},\"embeddings\":[", text::quoted(&wanted.model));
            for (i, vector) in vectors.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                list(&mut out, vector);
            }
            out.push(']');
            if !wanted.empty {
                let (total, load) = (total.as_nanos(), load.as_nanos().max(1000));
                let _ = write!(out, ",\"total_duration\":{total},\"load_duration\":{load}");
                if prompt > 0 {
                    let _ = write!(out, ",\"prompt_eval_count\":{prompt}");
                }
            }
            out.push('}');
        }
        _ => {
            out.push_str("{\"object\":\"list\",\"data\":[");
            for (i, vector) in vectors.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                out.push_str("{\"object\":\"embedding\",\"embedding\":");
                if wanted.base64 {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    let _ = write!(out, "\"{}\"", codec::base64(&bytes));
                } else {
                    list(&mut out, vector);
                }
                let _ = write!(out, ",\"index\":{i}}}");
            }
            let model = text::quoted(&wanted.model);
            let _ = write!(out, "],\"model\":{model},\"usage\":{{\"prompt_tokens\":{prompt},");
            let _ = writeln!(out, "\"total_tokens\":{prompt}}}}}");
            return Reply::new(200, "application/json", out);
        }
    }
    Reply::json(200, out)
}
