//! The ancestor's monitoring routes in its shapes, key order included, without its faults.
//!
//! Where it differs, README.md says so. The names under which nodes and models appear are the ledger's.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::aside::{For, aside, made};
use super::health::with_sick;
use super::reading::{NodeReading, PairReading};
use super::{Answer, error, reading};
use crate::config::NodeKind;
use crate::dialect::name;
use crate::live::EventStream;
use crate::shared::Shared;
use crate::sync::Arc;
use crate::usage::Tokens;
use crate::usage::answers::{ModelStats, TokenCount};
use crate::usage::imported::Import;
use crate::usage::ledger::LedgerError;

/// Days that an aggregation folds when the request does not say.
const DAYS_DEFAULT: i64 = 30;

/// `GET /api/usage`: requests in flight and all-time tokens, by node and model.
pub async fn usage(shared: &Arc<Shared>) -> Answer {
    aside(shared, |shared| Answer::json(usage_now(shared).to_string())).await
}

/// One state of the event stream: the object of [`usage`], sorted at every level, on one line.
#[must_use]
pub fn usage_state(shared: &Shared) -> Bytes {
    let mut state = usage_now(shared);
    state.sort_all_objects();
    Bytes::from(state.to_string())
}

/// `GET /api/usage-stream`: the state now, then each change. Its `Content-Type` is [`super::EVENT_STREAM`].
///
/// # Errors
/// The first state could not be made: what to answer instead.
pub async fn usage_stream(shared: &Arc<Shared>) -> Result<EventStream, Answer> {
    // Joined before the state is made: what is published meanwhile is seen twice rather than missed.
    #[cfg(not(proxy_locked))]
    let mut stream = shared.live.join();
    let state = made(For::Others, shared, usage_state).await?;
    #[cfg(proxy_locked)]
    {
        // A place for this reader alone, filled from its bounded queue.
        let live = crate::live::Live::new();
        let stream = live.subscribe_from(&state);
        crate::usage::locked::forward(move |state| {
            live.publish(state);
            live.wanted()
        });
        Ok(stream)
    }
    #[cfg(not(proxy_locked))]
    {
        stream.begin(&state);
        Ok(stream)
    }
}

fn usage_now(shared: &Shared) -> Value {
    let pairs = reading::pairs(shared);
    usage_object(&pairs, &reading::totals(&shared.ledger.base(), &pairs))
}

/// A node is there from its first request on, a model only while it has requests in flight.
fn usage_object(pairs: &[PairReading], totals: &[TokenCount]) -> Value {
    let (mut counts, mut tokens) = (Map::new(), Map::new());
    for pair in pairs.iter().filter(|pair| pair.starts > 0) {
        let node = object_at(&mut counts, &pair.node);
        if pair.in_flight > 0 {
            node.insert(pair.model.to_string(), pair.in_flight.into());
        }
    }
    for (total, sum) in totals.iter().map(|total| (total, total.tokens().total())).filter(|(_, sum)| *sum > 0) {
        object_at(&mut tokens, &total.node).insert(total.model.to_string(), sum.into());
    }
    json!({ "usage_counts": counts, "token_usage_counts": tokens })
}

fn object_at<'m>(map: &'m mut Map<String, Value>, key: &str) -> &'m mut Map<String, Value> {
    let entry = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    entry.as_object_mut().expect("only objects are put in")
}

/// `GET /api/token_counts`: all-time tokens by node and model, in order of first sight.
pub async fn token_counts(shared: &Arc<Shared>) -> Answer {
    match shared.ledger.token_counts().await {
        Ok(counts) => aside(shared, move |_| Answer::json(token_counts_object(&counts).to_string())).await,
        Err(why) => unavailable(&why),
    }
}

fn token_counts_object(counts: &[TokenCount]) -> Value {
    let breakdown: Vec<Value> = counts
        .iter()
        .map(|count| (count, count.tokens()))
        .filter(|(_, tokens)| tokens.total() > 0)
        .map(|(count, tokens)| {
            json!({
                "endpoint": &*count.node,
                "model": &*count.model,
                "input_tokens": tokens.input,
                "output_tokens": tokens.output,
                "total_tokens": tokens.total(),
            })
        })
        .collect();
    let sum: u64 = counts.iter().map(|count| count.tokens().total()).sum();
    json!({ "total_tokens": sum, "breakdown": breakdown })
}

/// `POST /herdgate/import`: what `herdgate import` read of the ancestor's database, into the ledger that this process holds.
pub async fn import(shared: &Arc<Shared>, body: Bytes) -> Answer {
    let import: Import = match made(For::Others, shared, move |_| serde_json::from_slice(&body)).await {
        Ok(Ok(import)) => import,
        Ok(Err(why)) => return error(StatusCode::BAD_REQUEST, &format!("Invalid JSON: {why}")),
        Err(refusal) => return refusal,
    };
    let ours = std::fs::canonicalize(&shared.config.now().data).ok();
    if let Some(meant) = import.data.as_ref().filter(|meant| ours.as_ref() != Some(*meant)) {
        let text = format!("the ledger in {} is not this proxy's; --listen says where that one is", meant.display());
        return error(StatusCode::CONFLICT, &text);
    }
    match shared.ledger.import(import).await {
        Ok(imported) => Answer::json(json!(imported).to_string()),
        Err(why) => unavailable(&why),
    }
}

/// The ledger could not answer: its disk stalls, or it has ended.
fn unavailable(why: &LedgerError) -> Answer {
    error(StatusCode::SERVICE_UNAVAILABLE, &why.to_string())
}

/// `POST /api/stats`: one model's totals, minutes (newest first) and share per node.
///
/// `query` is the request's query string; its `model` wins over the body's.
pub async fn stats(shared: &Arc<Shared>, query: Option<&str>, body: &[u8]) -> Answer {
    let model = match asked_model(query, body) {
        Ok(model) => model,
        Err(refusal) => return refusal,
    };
    match shared.ledger.stats(&model).await {
        Ok(stats) => aside(shared, move |_| Answer::json(stats_object(&model, &stats).to_string())).await,
        Err(why) => unavailable(&why),
    }
}

fn asked_model(query: Option<&str>, body: &[u8]) -> Result<String, Answer> {
    if let Some(model) = query.and_then(|query| parameter(query, "model")).filter(|model| !model.is_empty()) {
        return Ok(model);
    }
    let missing = || error(StatusCode::BAD_REQUEST, "Missing required field 'model'");
    let invalid = |why: &str| error(StatusCode::BAD_REQUEST, &format!("Invalid JSON: {why}"));
    if body.is_empty() {
        return Err(invalid("the body is empty"));
    }
    let parsed: Value = serde_json::from_slice(body).map_err(|why| invalid(&why.to_string()))?;
    let model = parsed.as_object().ok_or_else(|| invalid("an object is needed"))?.get("model");
    match model {
        Some(Value::String(model)) if !model.is_empty() => Ok(model.clone()),
        _ => Err(missing()),
    }
}

fn stats_object(model: &str, stats: &ModelStats) -> Value {
    let total = |figure: fn(Tokens) -> u64| stats.totals.map(figure);
    let series: Vec<Value> = stats
        .series
        .iter()
        .map(|point| {
            json!({
                "endpoint": &*point.node,
                "input_tokens": point.tokens.input,
                "output_tokens": point.tokens.output,
                "total_tokens": point.tokens.total(),
                "timestamp": point.minute.unix_seconds(),
            })
        })
        .collect();
    let shares: Map<String, Value> =
        stats.distribution.iter().map(|(node, sum)| (node.to_string(), (*sum).into())).collect();
    json!({
        "model": model,
        "input_tokens": total(|tokens| tokens.input),
        "output_tokens": total(|tokens| tokens.output),
        "total_tokens": total(Tokens::total),
        "time_series": series,
        "endpoint_distribution": shares,
    })
}

/// `POST /api/aggregate_time_series_days`: folds minutes older than `days` into days.
///
/// `keyed` says that the request carried a router key: only then `trim_old` is honoured, and the answer says what was done.
pub async fn aggregate(shared: &Shared, body: &[u8], keyed: bool) -> Answer {
    let (days, trim) = match asked_fold(body) {
        Ok(asked) => asked,
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    let trim = trim && keyed;
    match shared.ledger.fold(days, trim).await {
        Ok(groups) => Answer::json(
            json!({ "status": "ok", "days": days, "trim_old": trim, "aggregated_groups": groups }).to_string(),
        ),
        Err(why) => unavailable(&why),
    }
}

/// `days` and `trim_old`. An empty body means the defaults; one that cannot be read is refused, not guessed.
fn asked_fold(body: &[u8]) -> Result<(i64, bool), String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok((DAYS_DEFAULT, false));
    }
    let parsed: Value = serde_json::from_slice(body).map_err(|why| format!("Invalid JSON: {why}"))?;
    let object = parsed.as_object().ok_or("Invalid JSON: an object is needed")?;
    let days = match object.get("days") {
        None | Some(Value::Null) => Some(DAYS_DEFAULT),
        Some(Value::Number(days)) => days.as_i64(),
        Some(Value::String(days)) => days.trim().parse().ok(),
        Some(_) => None,
    };
    let days = days.ok_or("'days' must be a whole number")?;
    let trim = match object.get("trim_old") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(trim)) => *trim,
        Some(_) => return Err("'trim_old' must be true or false".to_owned()),
    };
    Ok((days, trim))
}

/// `GET /api/config`: the nodes in configuration order, as the last probes found them.
pub async fn config(shared: &Arc<Shared>) -> Answer {
    let keyed = !shared.config.now().router_keys.is_empty();
    aside(shared, move |shared| Answer::json(config_object(&reading::nodes(shared), keyed).to_string())).await
}

fn config_object(nodes: &[NodeReading], keyed: bool) -> Value {
    let entries =
        |llama: bool| -> Vec<Value> { nodes.iter().filter(|node| node.llama == llama).map(config_entry).collect() };
    json!({
        "endpoints": entries(false),
        "llama_server_endpoints": entries(true),
        "require_router_api_key": keyed,
    })
}

fn config_entry(node: &NodeReading) -> Value {
    match node.trouble() {
        None => with_sick(json!({ "url": &*node.url, "status": "ok", "version": node.version() }), node),
        Some(trouble) => with_sick(json!({ "url": &*node.url, "status": "error", "detail": trouble }), node),
    }
}

/// `GET /api/ps_details`: what is loaded where, one entry per node and model; Ollama nodes first.
pub async fn ps_details(shared: &Arc<Shared>) -> Answer {
    aside(shared, ps_details_now).await
}

fn ps_details_now(shared: &Shared) -> Answer {
    let snapshot = shared.fleet.load();
    let known = |name: &str| {
        let model = snapshot.models.get(&name::key(name))?;
        Some(Known { name: model.name.clone(), conflict: model.conflict })
    };
    Answer::json(ps_details_text(&reading::nodes(shared), &known))
}

/// What the fleet knows of a name.
struct Known {
    /// Its name in ledger and usage.
    name: Arc<str>,
    /// Nodes disagree about its digest.
    conflict: bool,
}

fn ps_details_text(nodes: &[NodeReading], known: &dyn Fn(&str) -> Option<Known>) -> String {
    let up = || nodes.iter().filter(|node| node.up);
    let mut entries = Vec::new();
    for node in up().filter(|node| node.kind == NodeKind::Ollama) {
        entries.extend(node.ps.entries.iter().filter_map(|entry| with_node(entry, &node.name, known)));
    }
    for node in up().filter(|node| node.kind == NodeKind::OpenAi && node.llama) {
        entries.extend(node.ps.entries.iter().filter_map(|entry| llama_entry(entry, &node.name, known)));
    }
    format!("{{\"models\":[{}]}}", entries.join(","))
}

/// What is read of a node's own entry; everything else is only passed over.
#[derive(serde::Deserialize)]
struct Named<'e> {
    #[serde(borrow, default)]
    name: Option<Cow<'e, str>>,
    #[serde(borrow, default)]
    model: Option<Cow<'e, str>>,
}

/// A node's own entry, unchanged, and `endpoint` as its last key. Anything but an object is left out.
fn with_node(entry: &RawValue, node: &str, known: &dyn Fn(&str) -> Option<Known>) -> Option<String> {
    let open = entry.get().trim().strip_suffix('}')?.trim_end();
    let separator = if open == "{" { "" } else { "," };
    // A name that is no text belongs to no model of ours.
    let named: Option<Named<'_>> = serde_json::from_str(entry.get()).ok();
    let name = named.and_then(|named| named.name.or(named.model)).unwrap_or_default();
    let flag = if known(&name).is_some_and(|known| known.conflict) { "\"digest_conflict\":true," } else { "" };
    Some(format!("{open}{separator}{flag}\"endpoint\":{}}}", Value::from(node)))
}

/// A loaded model of a llama.cpp server, in the ancestor's shape; `name` is the ledger's name for it.
fn llama_entry(entry: &RawValue, node: &str, known: &dyn Fn(&str) -> Option<Known>) -> Option<String> {
    let model: Value = serde_json::from_str(entry.get()).ok()?;
    let id = model.get("id")?.as_str()?;
    let field = |key: &str| model.get(key).cloned().unwrap_or(Value::Null);
    let status = field("status");
    let word = status.as_str().or_else(|| status.get("value").and_then(Value::as_str));
    if word.is_some_and(|word| word != "loaded") {
        return None;
    }
    let details = id
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'))
        .map_or_else(|| json!({}), |(_, quantization)| json!({ "quantization_level": quantization }));
    let mut shown = json!({
        "name": &*known(id).map_or_else(|| id.into(), |known| known.name), "id": id, "original_name": id, "digest": "", "details": details, "endpoint": node,
        "status": status, "created": field("created"), "owned_by": field("owned_by"),
    });
    if !status.is_string() {
        shown["llama_status_args"] = status.get("args").cloned().unwrap_or(Value::Null);
        shown["llama_status_preset"] = status.get("preset").cloned().unwrap_or(Value::Null);
    }
    if let Some(context) = model.get("meta").and_then(|meta| meta.get("n_ctx")).filter(|n| n.is_u64()) {
        shown["context_length"] = context.clone();
    }
    Some(shown.to_string())
}

/// A parameter of a query string, decoded; the last one wins.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.rfind(|(key, _)| decoded(key) == name).map(|(_, value)| decoded(value))
}

/// Percent-decoding with `+` for a blank; what is no escape stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        // A sign is no digit, though a number may begin with one.
        let digits = || text.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let escape = || u8::from_str_radix(digits()?, 16).ok();
        match bytes[at] {
            b'%' if let Some(byte) = escape() => {
                out.push(byte);
                at += 2;
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
