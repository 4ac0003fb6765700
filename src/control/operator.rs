//! Carries out what an operator orders: reloads, and nodes taken out or in; and follows names that are many nodes. One
//! thing after the other.
//!
//! A task of the control thread. Reading and parsing the file happens in a thread of its own, since a disk may stall.
//! Order of a reload: everything is checked, names get their ids, the fleet publishes its Snapshot, then the configuration
//! is put in force; so a request that is let in by a new key finds the new nodes.

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::config::{self, Config, Mistake, NodeConfig, Place};
use crate::control::drained::Drained;
use crate::fleet::expansion::Expansion;
use crate::fleet::reconfigure::NodesChanged;
use crate::fleet::report::Reports;
use crate::ids::NodeId;
use crate::operator::{Answer, Command, LastReload, Order, Origin};
use crate::shared::Shared;
use crate::sync::{Arc, spawn_thread};

/// What the orders are carried out with.
pub struct Desk {
    /// The process' handles.
    pub shared: Arc<Shared>,
    /// Where the configuration comes from; `None`: it was given, and cannot be read again.
    pub origin: Option<Origin>,
    /// Names that are many nodes, and where they led last.
    pub expansion: Expansion,
    /// To the poller.
    pub reports: Reports,
    /// Nodes that are taken out.
    pub drained: Drained,
    /// Names are to be looked up again.
    pub look_up: flume::Sender<()>,
    /// Changes the level of the log.
    pub log_level: Option<LogLevel>,
}

/// Puts another level of the log in force.
pub type LogLevel = Box<dyn Fn(&str) + Send>;

impl Desk {
    /// Takes orders until nobody can place one any more.
    pub async fn run(mut self, orders: flume::Receiver<Order>) {
        loop {
            let renewal = tokio::time::sleep(self.shared.config.now().health.resolve);
            tokio::pin!(renewal);
            loop {
                tokio::select! {
                    order = orders.recv_async() => match order {
                        Ok(order) => self.carry_out(order).await,
                        Err(_) => return,
                    },
                    () = &mut renewal => break,
                }
            }
            self.follow_names().await;
        }
    }

    async fn carry_out(&mut self, Order { command, reply }: Order) {
        let answer = match command {
            Command::Reload => self.reload().await,
            Command::Drain { node, on } => self.drain(&node, on).await,
        };
        // Whoever ordered it may have left.
        let _ = reply.send(answer);
    }

    /// Names with `expand` are looked up again: nodes come and go as if the configuration named each.
    async fn follow_names(&mut self) {
        let running = self.shared.config.now();
        let Some(nodes) = self.expansion.renew(&running).await else { return };
        let placed = match self.names(&running, nodes) {
            Ok(placed) => placed,
            Err(mistake) => return tracing::error!("{mistake}: a name that leads elsewhere is not followed"),
        };
        let count = placed.len();
        let Some(nodes) = self.reports.reconfigure(Arc::clone(&running), placed).await else { return };
        self.shared.put_in_force(&running, count);
        tracing::info!(added = ?nodes.added, removed = ?nodes.removed, "a name leads elsewhere: its nodes follow");
    }

    async fn reload(&mut self) -> Answer {
        let Some(origin) = &self.origin else {
            let reason = "this process was started with a configuration that cannot be read again";
            return Answer { status: 409, body: json!({ "status": "refused", "error": reason }) };
        };
        let mut loaded = match read(origin.clone()).await {
            Ok(loaded) => loaded,
            Err(mistakes) => return self.refuse(mistakes),
        };
        let running = self.shared.config.now();
        loaded.warnings.extend(config::renamed_keys(&running, &loaded.config).iter().map(renamed));
        let mut wanted = loaded.config;
        let needs_restart = config::hold_back(&running, &mut wanted);
        // What was found counts only if the reload does.
        let mut expansion = self.expansion.clone();
        let nodes = match expansion.expand(&wanted).await {
            Ok(nodes) => nodes,
            Err(reasons) => return self.refuse(reasons.into_iter().map(of_nodes).collect()),
        };
        let placed = match self.names(&wanted, nodes) {
            Ok(placed) => placed,
            Err(mistake) => return self.refuse(vec![mistake]),
        };
        let count = placed.len();
        let wanted = Arc::new(wanted);
        let Some(nodes) = self.reports.reconfigure(Arc::clone(&wanted), placed).await else { return ending() };
        self.expansion = expansion;
        self.shared.put_in_force(&wanted, count);
        let _ = self.look_up.try_send(());
        if let Some(set) = self.log_level.as_ref().filter(|_| wanted.log.level != running.log.level) {
            set(&wanted.log.level);
        }
        let now = self.shared.clock.unix_ms();
        let changed = config::changed_keys(&running, &wanted);
        for key in &needs_restart {
            tracing::warn!(key = key.key, running = %key.running, wanted = %key.wanted, "needs a restart");
        }
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!(changed = ?changed, added = ?nodes.added, removed = ?nodes.removed, "configuration reloaded");
        let body = json!({
            "status": "applied",
            "changed": changed,
            "nodes": changes(&nodes),
            "needs_restart": needs_restart.iter().map(|held| {
                json!({ "key": held.key, "running": held.running, "wanted": held.wanted })
            }).collect::<Vec<_>>(),
            "warnings": loaded.warnings.iter().map(told).collect::<Vec<_>>(),
        });
        let last = LastReload { tried_unix_ms: now, applied_unix_ms: now, mistakes: Vec::new(), needs_restart };
        self.shared.operator.tried(last);
        Answer { status: 200, body }
    }

    /// The old configuration stays.
    fn refuse(&self, mistakes: Vec<Mistake>) -> Answer {
        for mistake in &mistakes {
            tracing::error!("{mistake}");
        }
        tracing::error!(mistakes = mistakes.len(), "the configuration was not reloaded: the old one stays in force");
        let told: Vec<Value> = mistakes.iter().map(told).collect();
        let last = self.shared.operator.last_reload();
        self.shared.operator.tried(LastReload {
            tried_unix_ms: self.shared.clock.unix_ms(),
            mistakes,
            ..LastReload::clone(&last)
        });
        let error = "the configuration has mistakes: the old one stays in force";
        Answer { status: 422, body: json!({ "status": "refused", "error": error, "mistakes": told }) }
    }

    /// Ids for all names; one that is known keeps its own.
    fn names(&self, wanted: &Config, nodes: Vec<NodeConfig>) -> Result<Vec<(NodeId, NodeConfig)>, Mistake> {
        let full = |key: &str| Mistake {
            place: Place::Default,
            key: key.to_owned(),
            value: None,
            reason: "too many different names since the start of this process; restart it".to_owned(),
        };
        for key in &wanted.router_keys {
            self.shared.names.add_key(&key.name).ok_or_else(|| full("router_keys"))?;
        }
        let place =
            |node: NodeConfig| self.shared.names.add_node(&node.name).map(|id| (id, node)).ok_or_else(|| full("nodes"));
        nodes.into_iter().map(place).collect()
    }

    async fn drain(&mut self, name: &str, on: bool) -> Answer {
        let snapshot = self.shared.fleet.load();
        let Some(node) = snapshot.configured().find(|node| &*node.name == name) else {
            let known: Vec<&str> = snapshot.configured().map(|node| &*node.name).collect();
            let error = format!("there is no node {name:?}; the nodes are: {}", known.join(", "));
            return Answer { status: 404, body: json!({ "error": error }) };
        };
        let (id, was) = (node.id, node.draining);
        // In force before it is kept: the disk may take its time.
        if !self.reports.drain(id, on).await {
            return ending();
        }
        let kept = self.drained.set(name, on).await;
        if was != on {
            tracing::info!(node = %name, draining = on, "an operator took the node {}", if on { "out" } else { "in" });
        }
        let mut body = json!({ "node": name, "draining": on, "kept": kept.is_ok() });
        if let Err(error) = kept {
            tracing::error!(%error, "the list of drained nodes cannot be written: a restart will not know of this");
            body["error"] = format!("in force, but not kept over a restart: {error}").into();
        }
        Answer { status: 200, body }
    }
}

fn ending() -> Answer {
    Answer { status: 503, body: json!({ "status": "refused", "error": "the process is ending" }) }
}

/// Reads and checks the file in a thread of its own.
async fn read(origin: Origin) -> Result<config::Loaded, Vec<Mistake>> {
    let failed = |reason: String| vec![Mistake { place: Place::Default, key: String::new(), value: None, reason }];
    let (done, loaded) = oneshot::channel();
    let body = move || {
        let loaded = origin.sources().map_err(|mistake| vec![mistake]).and_then(|sources| config::load(&sources));
        let _ = done.send(loaded);
    };
    if let Err(error) = spawn_thread("reload", body) {
        return Err(failed(format!("no thread to read it in: {error}")));
    }
    loaded.await.unwrap_or_else(|_| Err(failed("reading it panicked".to_owned())))
}

fn renamed((before, now): &(String, String)) -> Mistake {
    let reason = format!(
        "the key that was named {before} is {now} now: what it counts goes to another account from here on; keys with \
         names of their own keep theirs"
    );
    Mistake { place: Place::Default, key: "router_keys".to_owned(), value: None, reason }
}

fn of_nodes(reason: String) -> Mistake {
    Mistake { place: Place::Default, key: "nodes".to_owned(), value: None, reason }
}

fn told(mistake: &Mistake) -> Value {
    let (file, line, column) = match &mistake.place {
        Place::File { path, line, column } if *line > 0 => (path.to_string(), json!(line), json!(column)),
        place => (place.to_string(), Value::Null, Value::Null),
    };
    json!({
        "file": file,
        "line": line,
        "column": column,
        "key": mistake.key,
        "value": mistake.value,
        "reason": mistake.reason,
    })
}

fn changes(nodes: &NodesChanged) -> Value {
    json!({ "added": nodes.added, "removed": nodes.removed, "moved": nodes.moved, "changed": nodes.changed })
}
