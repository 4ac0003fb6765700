//! A scripted herd on a clock that jumps from event to event: what the poller asks, when, and what follows.
//!
//! Every Snapshot that comes out is checked for consistency with itself ([`Herd::check`]).

mod capacity;
mod inventories;
mod pace;
mod reconfigure;
mod scale;
mod unwell;

use std::collections::HashMap;

use bytes::Bytes;
use http::StatusCode;

use super::*;
use crate::config::{NodeKind, SlotsConfig, TimeoutOverrides};
use crate::fleet::Model;
use crate::fleet::memory::Memory;
use crate::fleet::node::INSTANCE_HEADER;
use crate::http1::Lines;

/// 2026-11-23 12:00 UTC.
const START_UNIX_MS: u64 = 1_795_435_200_000;

/// How a scripted node behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Answers,
    /// Takes connections and says nothing.
    Hangs,
    /// Answers probes, nothing else.
    OnlyProbes,
    Refuses,
}

/// A scripted node.
#[derive(Debug)]
struct Script {
    mood: Mood,
    kind: NodeKind,
    /// Milliseconds until it answers.
    delay_ms: Millis,
    version: String,
    /// Name, manifest digest.
    models: Vec<(String, String)>,
    /// Names in memory.
    loaded: Vec<String>,
    /// Manifest digest to blob.
    blobs: HashMap<String, String>,
    total_slots: Option<u32>,
    has_health: bool,
    instance: Option<String>,
    asked: Vec<(Millis, &'static str)>,
}

impl Script {
    fn ollama(models: &[(&str, &str)]) -> Self {
        let models = models.iter().map(|&(name, digest)| (name.to_owned(), digest.to_owned())).collect();
        Self {
            mood: Mood::Answers,
            kind: NodeKind::Ollama,
            delay_ms: 1,
            version: "0.33.0".to_owned(),
            models,
            loaded: Vec::new(),
            blobs: HashMap::new(),
            total_slots: None,
            has_health: true,
            instance: None,
            asked: Vec::new(),
        }
    }

    fn openai(ids: &[&str]) -> Self {
        let models: Vec<_> = ids.iter().map(|&id| (id, "")).collect();
        Self { kind: NodeKind::OpenAi, ..Self::ollama(&models) }
    }

    fn times(&self, path: &str) -> Vec<Millis> {
        self.asked.iter().filter(|(_, asked)| *asked == path).map(|(at, _)| *at).collect()
    }

    fn body(&self, ask: &Ask) -> (u16, String) {
        let list = |entries: Vec<String>| format!("[{}]", entries.join(","));
        match ask.path {
            "/api/version" => (200, format!(r#"{{"version":"{}"}}"#, self.version)),
            "/api/tags" => (200, format!(r#"{{"models":{}}}"#, list(self.models.iter().map(tag).collect()))),
            "/api/ps" => {
                let loaded = self.loaded.iter().map(|name| tag(&(name.clone(), self.digest(name))));
                (200, format!(r#"{{"models":{}}}"#, list(loaded.collect())))
            }
            "/api/show" => {
                let asked: serde_json::Value = serde_json::from_slice(ask.body.as_deref().unwrap()).unwrap();
                let digest = self.digest(asked["model"].as_str().unwrap());
                let blob = self.blobs.get(&digest).map(|blob| format!("FROM /blobs/sha256-{blob}\\n"));
                (200, format!(r##"{{"modelfile":"# Modelfile\n{}"}}"##, blob.unwrap_or_default()))
            }
            "/health" if self.has_health => (200, r#"{"status":"ok"}"#.to_owned()),
            "/v1/models" => {
                let ids =
                    self.models.iter().map(|(id, _)| format!(r#"{{"id":"{id}","object":"model","owned_by":"me"}}"#));
                (200, format!(r#"{{"data":{}}}"#, list(ids.collect())))
            }
            "/props" if self.total_slots.is_some() => {
                (200, format!(r#"{{"total_slots":{}}}"#, self.total_slots.unwrap()))
            }
            _ => (404, "404 page not found".to_owned()),
        }
    }

    fn digest(&self, name: &str) -> String {
        self.models.iter().find(|(known, _)| known == name).map(|(_, digest)| digest.clone()).unwrap_or_default()
    }

    fn answer(&self, ask: &Ask) -> Result<Answer, FetchError> {
        let (status, body) = self.body(ask);
        let mut lines = Lines::default();
        if let Some(instance) = &self.instance {
            lines.push(INSTANCE_HEADER.as_bytes(), instance.as_bytes());
        }
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), lines, body: Bytes::from(body) })
    }
}

/// An entry of `/api/tags`; `NAME-cloud` runs elsewhere.
fn tag((name, digest): &(String, String)) -> String {
    let remote = if name.ends_with("-cloud") { r#""remote_host":"https://ollama.com:443","# } else { "" };
    format!(
        r#"{{"name":"{name}","model":"{name}",{remote}"modified_at":"2026-11-23T21:08:38Z","size":1,"digest":"{digest}"}}"#
    )
}

/// The fleet's facts with a scripted node behind each.
struct Herd {
    facts: Facts,
    scripts: Vec<Script>,
    now: Now,
    /// Answers on their way.
    pending: Vec<(Millis, Job, Result<Answer, FetchError>)>,
    snapshots: Vec<Arc<Snapshot>>,
    offered: Vec<Arc<Cell>>,
}

impl Herd {
    fn new(scripts: Vec<Script>) -> Self {
        Self::with(scripts, Config::default(), Memory::default(), START_UNIX_MS)
    }

    fn with(scripts: Vec<Script>, mut config: Config, memory: Memory, unix_ms: u64) -> Self {
        let nodes: Vec<NodeConfig> =
            scripts.iter().enumerate().map(|(at, script)| config_of(at, script.kind)).collect();
        let node_names: Vec<_> = nodes.iter().map(|node| node.name.clone()).collect();
        config.nodes.clone_from(&nodes);
        let names = Arc::new(Names::new(&node_names, &[], 1_000));
        let now = Now { ms: 0, unix_ms };
        let parts = Parts {
            config: Arc::new(config),
            nodes,
            names,
            workers: 2,
            instance: "me".into(),
            seed: 7,
            drained: BTreeSet::new(),
        };
        let facts = Facts::new(parts, memory, now);
        Self { facts, scripts, now, pending: Vec::new(), snapshots: Vec::new(), offered: Vec::new() }
    }

    /// Lets `ms` pass.
    fn run(&mut self, ms: Millis) {
        let end = self.now.ms + ms;
        loop {
            self.step();
            let pending = self.pending.iter().map(|(at, ..)| *at).min().unwrap_or(Millis::MAX);
            let next = self.facts.next_due().min(pending);
            // A deadline in the past would have been met by the step.
            assert!(next > self.now.ms, "busy at {}", self.now.ms);
            if next > end {
                break;
            }
            self.advance(next - self.now.ms);
        }
        self.advance(end - self.now.ms);
        self.step();
    }

    /// What the poller does each time it wakes.
    fn step(&mut self) {
        loop {
            for job in self.facts.due(self.now) {
                self.send(job);
            }
            let due = self.pending.iter().position(|(at, ..)| *at <= self.now.ms);
            let Some(due) = due else { break };
            let (_, job, result) = self.pending.remove(due);
            self.facts.answered(&job, result, self.now);
        }
        self.facts.tick(self.now);
        let snapshot = self.facts.snapshot(self.now);
        let published = snapshot.is_some();
        if let Some(snapshot) = snapshot {
            self.check(&snapshot);
            self.snapshots.push(snapshot);
        }
        self.offered.extend(self.facts.published(self.now, published));
    }

    fn send(&mut self, job: Job) {
        let script = &mut self.scripts[job.node.0 as usize];
        script.asked.push((self.now.ms, job.ask.path));
        let timeout_ms = job.ask.timeout_ms;
        let is_probe = matches!(job.ask.path, "/api/version" | "/health");
        let (after, result) = match script.mood {
            Mood::Refuses => (1, Err(FetchError::Refused)),
            Mood::Hangs => (timeout_ms, Err(FetchError::TimedOut(timeout_ms))),
            Mood::OnlyProbes if !is_probe => (timeout_ms, Err(FetchError::TimedOut(timeout_ms))),
            Mood::Answers | Mood::OnlyProbes if script.delay_ms >= timeout_ms => {
                (timeout_ms, Err(FetchError::TimedOut(timeout_ms)))
            }
            Mood::Answers | Mood::OnlyProbes => (script.delay_ms, script.answer(&job.ask)),
        };
        self.pending.push((self.now.ms + after, job, result));
    }

    fn advance(&mut self, ms: Millis) {
        self.now = Now { ms: self.now.ms + ms, unix_ms: self.now.unix_ms + ms };
    }

    fn last(&self) -> &Snapshot {
        self.snapshots.last().expect("the first step publishes")
    }

    fn model(&self, key: &str) -> &Arc<Model> {
        self.last().models.get(key).unwrap_or_else(|| panic!("no {key} in {:?}", self.last().models.keys()))
    }

    fn is_up(&self, node: u32) -> bool {
        self.last().node(NodeId(node)).unwrap().up
    }

    /// Names in `/api/tags`, sorted.
    fn listed(&self) -> Vec<String> {
        names(&self.last().listing.tags, "models", "name")
    }

    fn cell(&self, key: &str, node: u32) -> Arc<Cell> {
        let candidate = self.model(key).candidates.iter().find(|c| c.node == NodeId(node));
        Arc::clone(&candidate.unwrap_or_else(|| panic!("{key} is not on {node}")).pair.cell)
    }

    /// A Snapshot agrees with itself (I5).
    fn check(&self, snapshot: &Snapshot) {
        assert_eq!(snapshot.generation, self.snapshots.last().map_or(0, |last| last.generation) + 1);
        for (at, node) in snapshot.nodes.iter().enumerate() {
            assert_eq!(node.id.0 as usize, at);
            assert_eq!(node.any.cell.node, node.id);
        }
        for (key, model) in snapshot.models.iter() {
            assert_eq!(**key, *crate::dialect::name::key(&model.name), "a model stands under its own key");
            for pair in model.candidates.windows(2) {
                assert!(pair[0].node < pair[1].node, "candidates in node order, one per node");
            }
            for candidate in &model.candidates {
                let node = snapshot.node(candidate.node).unwrap();
                assert_eq!(candidate.pair.cell.node, candidate.node);
                assert!(Arc::ptr_eq(&candidate.pair.cell.node_word, &node.word));
                assert_eq!(candidate.pair.model, model.id);
                assert!(snapshot.panicking || candidate.up == node.up);
                let has_no_residency = candidate.kind == NodeKind::OpenAi || candidate.remote;
                assert!(!has_no_residency || candidate.pair.cell.view().loaded, "nothing is ever loaded there");
            }
        }
        let listed = names(&snapshot.listing.tags, "models", "name");
        for name in &listed {
            let model = snapshot.models.get(&*crate::dialect::name::key(name)).expect("listed names can be routed");
            assert!(!model.candidates.is_empty());
        }
        for model in snapshot.models.values() {
            let serves = model.candidates.iter().any(|c| c.up && c.kind == NodeKind::Ollama && !c.remote);
            let is_listed =
                listed.iter().any(|name| crate::dialect::name::key(name) == crate::dialect::name::key(&model.name));
            assert!(!serves || is_listed, "{} is not listed", model.name);
        }
    }
}

fn names(body: &[u8], list: &str, key: &str) -> Vec<String> {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap();
    let entries = value[list].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = entries.iter().map(|entry| entry[key].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn config_of(at: usize, kind: NodeKind) -> NodeConfig {
    NodeConfig {
        name: format!("n{at}"),
        url: format!("http://10.0.0.{at}:11434"),
        host: format!("10.0.0.{at}"),
        port: 11434,
        base_path: String::new(),
        kind,
        slots: None,
        node_slots: None,
        api_key: None,
        expand: false,
        cloud: false,
        connect_timeout: None,
        timeouts: TimeoutOverrides::default(),
        llama: false,
    }
}

/// 64 hex digits that begin with these.
fn blob(start: &str) -> String {
    format!("{start:0<64}")
}
