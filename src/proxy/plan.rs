//! Where a request may go, by what its body says; pure but for the Snapshot it is given.
//!
//! What a node that is up would word itself (broken JSON, a missing model) is forwarded, never worded here (contract,
//! rule 2). What no node can answer is refused in Ollama's words.

use crate::dialect::name::{self, Key, NameError, Source};
use crate::dialect::{Route, texts};
use crate::error::ProxyError;
use crate::fleet::Snapshot;
use crate::proxy::asked::Asked;
use crate::proxy::text::Text;

/// Where a request may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// To a node that has this model, with a slot.
    Model(Key),
    /// To any Ollama node that is up, which will word the error.
    Anywhere,
    /// The same for a name that no node has, up or down: whatever else is wrong with the request comes first.
    Unknown,
    /// To a node that may talk to the cloud.
    Cloud,
    /// To every node that has this model loaded.
    Unload(Key),
    /// To a node that has this model, without a slot.
    Details(Key),
}

/// A plan, or that nothing is known of the name in this generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Drawn {
    /// Go.
    Plan(Plan),
    /// Unknown here, or only remembered: worth asking the nodes once more.
    Unknown(Key),
}

/// Draws the plan of a request.
///
/// # Errors
/// The request can be refused without any node: a cloud name where none may go there.
pub fn draw(snapshot: &Snapshot, asked: &Asked) -> Result<Drawn, ProxyError> {
    let plan = |plan| Ok(Drawn::Plan(plan));
    let route = asked.route;
    let Some(sent) = asked.model.as_ref().map(Text::as_str).filter(|_| asked.readable) else {
        return plan(Plan::Anywhere);
    };
    let key = Key::of(sent);
    match snapshot.models.get(key.as_str()) {
        Some(model) if model.candidates.is_empty() => return Ok(Drawn::Unknown(key)),
        Some(_) => return plan(known(asked, key)),
        None => {}
    }
    match name::parse(sent) {
        Err(NameError::Missing | NameError::Invalid | NameError::Conflict) => plan(Plan::Anywhere),
        Ok(name) if name.source == Source::Cloud => {
            if snapshot.configured().any(|node| node.cloud) {
                plan(Plan::Cloud)
            } else {
                Err(ProxyError::Refused(texts::cloud_disabled(route)))
            }
        }
        Ok(_) => Ok(Drawn::Unknown(key)),
    }
}

/// What to do with a model of the Snapshot.
fn known(asked: &Asked, key: Key) -> Plan {
    match asked.route {
        Route::Show => Plan::Details(key),
        _ if asked.unload => Plan::Unload(key),
        _ => Plan::Model(key),
    }
}

/// What becomes of a request when no node that is up has the name: a node words the 404, or what else is wrong.
///
/// # Errors
/// 503 while a node that might have it has never been reached, or is remembered to have had it.
pub fn unknown(snapshot: &Snapshot, sent: &str) -> Result<Plan, ProxyError> {
    let remembered = snapshot.models.contains_key(Key::of(sent).as_str());
    if remembered || snapshot.incomplete || !snapshot.ready {
        return Err(nobody_knows(sent));
    }
    Ok(Plan::Unknown)
}

/// A node may have it: clients must not be told to pull.
#[must_use]
pub fn nobody_knows(sent: &str) -> ProxyError {
    ProxyError::NodesDown { model: sent.to_owned() }
}
