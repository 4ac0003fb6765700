//! The control path of a simulated node: `/sim/…`, for shell tests and operators.
//!
//! Answered on the node's own port by `serve.rs` as long as that is open, and for every node on the port of
//! `herdgate sim`'s control listener. Never counted in the ledger.

use std::sync::Arc;

use super::conn::Conn;
use super::fault::{Fault, Harm};
use super::gojson::{self, Value};
use super::host::Core;
use super::http::{Head, Reply};
use super::infer::Next;
use super::lists::error;
use super::spec::{Capability, ModelSpec};

/// What a control request does to a node, beyond what its core can do alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Also {
    Nothing,
    /// The port may have to open or close.
    Port,
    Down,
    Up,
}

/// Handles a control request on the node's own port.
pub(super) async fn on_node(core: &Arc<Core>, conn: &mut Conn, head: &Head) -> Next {
    let Ok(body) = conn.body(head).await else { return Next::Close };
    let (path, _) = head.path();
    let (mut reply, also) = act(core, &head.method, &path, &body.bytes);
    if also != Also::Nothing {
        reply = error(409, "ports are opened and closed on the control listener");
    }
    match conn.send(&reply.encode(head, core.unix())).await {
        Ok(()) => Next::Keep,
        Err(_) => Next::Close,
    }
}

/// Does what a control request asks.
pub(super) fn act(core: &Core, method: &str, path: &str, body: &[u8]) -> (Reply, Also) {
    let done = |also| (Reply::json(200, "{}"), also);
    match (method, path) {
        ("GET", "/sim/ledger") => (Reply::json(200, core.with(|s| s.ledger.to_json())), Also::Nothing),
        ("POST", "/sim/fault") => match Fault::from_json(body) {
            Ok(fault) => {
                let also = if fault.harm == Harm::Refuse { Also::Port } else { Also::Nothing };
                core.with(|s| s.faults.add(fault));
                done(also)
            }
            Err(text) => (error(400, &text), Also::Nothing),
        },
        ("POST", "/sim/clear") => {
            let port = core.with(|s| {
                let port = s.faults.refuses();
                s.faults.clear();
                port
            });
            done(if port { Also::Port } else { Also::Nothing })
        }
        ("POST", "/sim/model") => match model(body) {
            Ok(model) => {
                core.add_model(model);
                done(Also::Nothing)
            }
            Err(text) => (error(400, &text), Also::Nothing),
        },
        ("DELETE", "/sim/model") => {
            let name = gojson::parse(body).map(|(v, _)| v.str("name").to_owned()).unwrap_or_default();
            if core.remove_model(&name) { done(Also::Nothing) } else { (error(404, "no such model"), Also::Nothing) }
        }
        ("POST", "/sim/kill" | "/sim/stop") => done(Also::Down),
        ("POST", "/sim/restart") => done(Also::Up),
        _ => (error(404, "no such control"), Also::Nothing),
    }
}

/// Reads a model: `{"name":"m","capabilities":["completion"],"size":1000,"copy_of":"text"}`.
fn model(body: &[u8]) -> Result<ModelSpec, String> {
    let (value, _) = gojson::parse(body)?;
    let name = value.str("name");
    super::names::Name::parse(name).map_err(|_| format!("{name:?} is no model name"))?;
    let mut capabilities = Vec::new();
    for word in value.get("capabilities").and_then(Value::as_array).unwrap_or_default() {
        let word = word.as_str().unwrap_or("");
        capabilities.push(Capability::of(word).ok_or_else(|| format!("unknown capability {word:?}"))?);
    }
    if capabilities.is_empty() {
        capabilities.push(Capability::Completion);
    }
    let mut model = ModelSpec::new(name, &capabilities);
    if let Some(size) = value.get("size").and_then(Value::as_i64).and_then(|n| u64::try_from(n).ok()) {
        model = model.size(size);
    }
    if !value.str("copy_of").is_empty() {
        model = model.copy_of(value.str("copy_of"));
    }
    Ok(model)
}
