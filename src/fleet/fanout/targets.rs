//! Which nodes an operation goes to: by request header, by configuration, by who has the model. Pure.
//!
//! Called once per operation with the Snapshot of that moment. Nodes that are down are told apart, since what they miss
//! is reported and, where it is a desired state, kept for their return. Must never choose a node that is no Ollama.

use crate::config::{Config, NodeKind};
use crate::dialect::name;
use crate::dialect::texts::Refusal;
use crate::fleet::fanout::ask::{Asked, Verb};
use crate::fleet::{Model, NodeView, Snapshot, Target};
use crate::ids::NodeId;
use crate::sync::Arc;

/// One node of an operation.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Arc<str>,
    /// Where it is.
    pub target: Arc<Target>,
    /// Digest of the manifest it has under the model's name, as last seen; `None`: it has none.
    pub digest: Option<Arc<str>>,
    /// The same for a copy's destination.
    pub there: Option<Arc<str>>,
}

/// The nodes of an operation.
#[derive(Clone, Debug, Default)]
pub struct Goals {
    /// Those that are up and not taken out.
    pub up: Vec<Goal>,
    /// Those that miss it, being down or taken out.
    pub down: Vec<Goal>,
    /// Those that are up, and left out of a create since others have the model that it begins with.
    pub without: Vec<Goal>,
}

/// Why an operation has no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoGoal {
    /// The header names none of ours.
    Unknown(String),
    /// The header names a node that has no such routes.
    NotOllama(String),
    /// No node, up or down, has the model.
    NoModel,
    /// Nodes that are down, or were never reached, may have it.
    Unsure,
    /// Only nodes that are down would do.
    Down(Vec<Arc<str>>),
    /// No Ollama node is up.
    NoneUp,
}

impl NoGoal {
    /// As a refusal; 503 where waiting helps.
    #[must_use]
    pub fn refusal(&self, asked: Option<&Asked>) -> Refusal {
        match self {
            Self::Unknown(node) => Refusal::of(400, format!("x-herdgate-nodes: there is no node {node:?}")),
            Self::NotOllama(node) => Refusal::of(
                400,
                format!("x-herdgate-nodes: node {node:?} is no Ollama, its models are not administered"),
            ),
            Self::NoModel => Refusal::of(404, not_found(asked)),
            Self::Unsure => Refusal::of(503, "no node that is up has it, and not all nodes are up"),
            Self::Down(names) => Refusal::of(503, format!("no node that could do it is up ({})", names.join(", "))),
            Self::NoneUp => Refusal::of(503, "no Ollama node is up"),
        }
    }
}

/// The words for a model that is nowhere.
fn not_found(asked: Option<&Asked>) -> String {
    match asked {
        Some(asked) if asked.verb == Verb::Copy => {
            format!("model {} not found", crate::dialect::texts::go_quoted(&asked.model))
        }
        Some(asked) => format!("model '{}' not found", asked.model),
        None => "model not found".to_owned(),
    }
}

/// Chooses the nodes of an operation. `header`: the value of `x-herdgate-nodes`, names with commas between them.
///
/// # Errors
/// There is none, or the header is wrong.
pub fn choose(snapshot: &Snapshot, config: &Config, asked: &Asked, header: Option<&str>) -> Result<Goals, NoGoal> {
    let named = header.map(|header| by_header(snapshot, header)).transpose()?;
    let model = snapshot.models.get(&asked.key).map(|model| &**model);
    let nodes = match (asked.verb, named) {
        (Verb::Push, named) => return push(snapshot, model, named, header),
        (_, Some(nodes)) => nodes,
        (Verb::Pull | Verb::Create, None) => configured(snapshot, config, &asked.model),
        (Verb::Copy | Verb::Delete, None) => holders(snapshot, model),
    };
    if nodes.is_empty() && matches!(asked.verb, Verb::Copy | Verb::Delete) {
        // A name that is only remembered may be on a node that lost sight of its disk.
        let remembered = model.is_some_and(|model| model.candidates.is_empty());
        return Err(if remembered || snapshot.incomplete { NoGoal::Unsure } else { NoGoal::NoModel });
    }
    let there = snapshot.models.get(&name::key(&asked.destination)).map(|model| &**model);
    let goal = |node: &NodeView| goal(node, model, there);
    let (nodes, without) = if header.is_none() { by_source(snapshot, nodes, asked) } else { (nodes, Vec::new()) };
    Ok(Goals { without: without.into_iter().map(goal).collect(), ..split(nodes, header, goal)? })
}

/// Those of a create that have what it begins with, if one that is up does; else all of them, and each pulls it first.
/// A node that is down stays, and misses it as it would anyway.
fn by_source<'s>(
    snapshot: &Snapshot,
    nodes: Vec<&'s NodeView>,
    asked: &Asked,
) -> (Vec<&'s NodeView>, Vec<&'s NodeView>) {
    let source = snapshot.models.get(&name::key(&asked.from)).filter(|_| !asked.from.is_empty());
    let has = |node: &NodeView| {
        source.is_some_and(|source| source.candidates.iter().any(|candidate| candidate.node == node.id))
    };
    let works = |node: &NodeView| node.up && !node.draining;
    if !nodes.iter().any(|node| works(node) && has(node)) {
        return (nodes, Vec::new());
    }
    nodes.into_iter().partition(|node| has(node) || !works(node))
}

/// Every Ollama node (for blobs, which have no model), or those of the header.
///
/// # Errors
/// None is up, or the header is wrong.
pub fn all(snapshot: &Snapshot, header: Option<&str>) -> Result<Goals, NoGoal> {
    let nodes = match header {
        Some(header) => by_header(snapshot, header)?,
        None => ollama(snapshot).collect(),
    };
    split(nodes, header, |node| goal(node, None, None))
}

/// One node that is up, for what any of them answers alike.
///
/// # Errors
/// None is up, or the header is wrong.
pub fn any(snapshot: &Snapshot, header: Option<&str>) -> Result<Goals, NoGoal> {
    let mut goals = all(snapshot, header)?;
    goals.up.truncate(1);
    goals.down.clear();
    Ok(goals)
}

/// A node that is taken out misses it, unless the `header` names it: an operator may want to make it ready.
fn split(nodes: Vec<&NodeView>, header: Option<&str>, goal: impl Fn(&NodeView) -> Goal) -> Result<Goals, NoGoal> {
    let mut goals = Goals::default();
    for node in nodes {
        let list = if node.up && (!node.draining || header.is_some()) { &mut goals.up } else { &mut goals.down };
        list.push(goal(node));
    }
    match (goals.up.is_empty(), goals.down.is_empty()) {
        (true, true) => Err(NoGoal::NoneUp),
        (true, false) => Err(NoGoal::Down(goals.down.into_iter().map(|goal| goal.name).collect())),
        _ => Ok(goals),
    }
}

fn goal(node: &NodeView, model: Option<&Model>, there: Option<&Model>) -> Goal {
    let digest = |model: Option<&Model>| {
        let mut candidates = model?.candidates.iter();
        candidates.find(|candidate| candidate.node == node.id).map(|candidate| Arc::clone(&candidate.digest))
    };
    Goal {
        node: node.id,
        name: Arc::clone(&node.name),
        target: Arc::clone(&node.target),
        digest: digest(model),
        there: digest(there),
    }
}

fn is_ollama(node: &NodeView) -> bool {
    node.kind == NodeKind::Ollama
}

fn ollama(snapshot: &Snapshot) -> impl Iterator<Item = &NodeView> {
    snapshot.configured().map(|node| &**node).filter(|node| is_ollama(node))
}

fn by_header<'s>(snapshot: &'s Snapshot, header: &str) -> Result<Vec<&'s NodeView>, NoGoal> {
    let mut nodes: Vec<&NodeView> = Vec::new();
    for name in header.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let Some(node) = snapshot.configured().find(|node| &*node.name == name) else {
            return Err(NoGoal::Unknown(name.to_owned()));
        };
        if !is_ollama(node) {
            return Err(NoGoal::NotOllama(name.to_owned()));
        }
        if !nodes.iter().any(|known| known.id == node.id) {
            nodes.push(node);
        }
    }
    if nodes.is_empty() { Err(NoGoal::Unknown(header.trim().to_owned())) } else { Ok(nodes) }
}

/// The nodes that `pull_targets` of the model names, else every Ollama node.
fn configured<'s>(snapshot: &'s Snapshot, config: &Config, model: &str) -> Vec<&'s NodeView> {
    let display = name::parse(model).map_or_else(|_| model.to_owned(), |name| name.display());
    let targets = config.overrides_of(&display).map(|model| &model.pull_targets).find(|targets| !targets.is_empty());
    match targets {
        Some(targets) => ollama(snapshot).filter(|node| targets.iter().any(|name| **name == *node.name)).collect(),
        None => ollama(snapshot).collect(),
    }
}

fn holders<'s>(snapshot: &'s Snapshot, model: Option<&Model>) -> Vec<&'s NodeView> {
    let candidates = model.into_iter().flat_map(|model| model.candidates.iter());
    candidates
        .filter(|candidate| candidate.kind == NodeKind::Ollama)
        .filter_map(|candidate| snapshot.node(candidate.node))
        .collect()
}

/// One node that has the model: with the digest most nodes have, one with an identity (`cloud`) before others. A model
/// that none has is asked of any node, which words the error.
fn push(
    snapshot: &Snapshot,
    model: Option<&Model>,
    named: Option<Vec<&NodeView>>,
    header: Option<&str>,
) -> Result<Goals, NoGoal> {
    let may = |id: NodeId| named.as_ref().is_none_or(|nodes| nodes.iter().any(|node| node.id == id));
    let having: Vec<&NodeView> = holders(snapshot, model).into_iter().filter(|node| may(node.id)).collect();
    if having.is_empty() {
        let nodes = named.unwrap_or_else(|| ollama(snapshot).collect());
        let mut goals = split(nodes, header, |node| goal(node, model, None))?;
        goals.up.truncate(1);
        return Ok(Goals { down: Vec::new(), ..goals });
    }
    let mut goals = split(having, header, |node| goal(node, model, None))?;
    let copies = |digest: &Option<Arc<str>>| goals.up.iter().filter(|other| other.digest == *digest).count();
    let cloud = |id| snapshot.node(id).is_some_and(|node| node.cloud);
    // The first of the best: `max_by_key` would take the last.
    let best = goals.up.iter().rev().max_by_key(|goal| (copies(&goal.digest), cloud(goal.node))).cloned();
    goals.up = best.into_iter().collect();
    goals.down.clear();
    Ok(goals)
}

#[cfg(test)]
mod tests;
