//! All that is known of the fleet, and what follows from it. Pure: answers, reports and the time come in; questions,
//! Snapshots and the state of cells come out.
//!
//! Called by [`crate::fleet::poll`], which does the I/O; tests call it with answers of their own. The Snapshot itself is
//! put together in `fleet::build`; which nodes are believed and get work is decided in `trust`. Must never wait or read a clock.

mod ordered;
mod trust;

use std::collections::BTreeSet;

use crate::clock::{Millis, millis};
use crate::config::{Config, NodeConfig};
use crate::fleet::build::Routes;
use crate::fleet::cells::{Cells, Use};
use crate::fleet::fetch::{Answer, Ask, FetchError};
use crate::fleet::health::{Event, Line, Phase};
use crate::fleet::misses::Misses;
use crate::fleet::node::{Blobs, Change, Node, Now, Question};
use crate::fleet::progress::suspicion;
use crate::fleet::reconfigure::Told;
use crate::fleet::report::{Report, Sought};
use crate::fleet::settle::Settling;
use crate::fleet::shelf::Shelf;
use crate::fleet::shown::Shown;
use crate::fleet::sick::LOOK_MS;
use crate::fleet::{Snapshot, memory, resolve};
use crate::ids::NodeId;
use crate::slots::{Cell, Pair};
use crate::sync::Arc;
use crate::usage::names::Names;
use crate::usage::speed::Speed;

/// Between two looks at what changes by time alone.
pub const TICK_MS: Millis = 1_000;
/// Clients are served after this, whether all nodes have been asked or not.
pub const READY_MS: Millis = 2_000;
/// While a configured node has never been reached, unknown names are 503 for so long.
pub const INCOMPLETE_MS: Millis = 60_000;
/// Changes that only listings show are published together, at most this late.
const LAZY_MS: Millis = 250;

/// What [`Facts`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// Its nodes, [expanded](crate::fleet::expansion).
    pub nodes: Vec<NodeConfig>,
    /// Gives models their ids.
    pub names: Arc<Names>,
    /// Workers that will hold counters.
    pub workers: usize,
    /// This process' own instance id, as it answers in [`crate::fleet::node::INSTANCE_HEADER`].
    pub instance: Arc<str>,
    /// Seed of the jitter.
    pub seed: u64,
    /// Names of the nodes that are taken out.
    pub drained: BTreeSet<String>,
}

/// One question to one node.
#[derive(Clone, Debug)]
pub struct Job {
    /// Whom.
    pub node: NodeId,
    /// What.
    pub question: Question,
    /// The same as a request.
    pub ask: Ask,
    /// When.
    pub asked_at: Millis,
    /// [`Node::incarnation`] then.
    pub incarnation: u32,
    /// [`Facts`]' count of reports then: what was reported before it is answered by it.
    pub serial: u64,
}

/// What has changed since the last Snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dirty {
    /// Some node's candidates, or their state, have changed.
    pub(super) models: bool,
    /// All listings have to be merged again.
    pub(super) listing: bool,
    /// `/api/ps` has to be merged again.
    pub(super) ps: bool,
    /// Publish now.
    pub(super) now: bool,
    /// Publish soon.
    pub(super) soon: bool,
}

/// The fleet as the poller knows it.
#[derive(Debug)]
pub struct Facts {
    pub(super) config: Arc<Config>,
    pub(super) nodes: Vec<Node>,
    /// By node: the pair of requests without a known model.
    pub(super) any: Vec<Arc<Pair>>,
    pub(super) cells: Cells,
    pub(super) workers: usize,
    pub(super) instance: Arc<str>,
    /// Names of the nodes that are taken out, configured or not.
    pub(super) drained: BTreeSet<String>,
    /// Nodes are elsewhere, or others, since that was asked last.
    pub(super) retargeted: bool,
    /// To be told with the next Snapshot.
    pub(super) told: Vec<Told>,
    blobs: Blobs,
    shelf: Shelf,
    pub(super) misses: Misses,
    pub(super) settling: Settling,
    pub(super) shown: Shown,
    pub(super) last: Arc<Snapshot>,
    pub(super) dirty: Dirty,
    pub(super) started: Millis,
    pub(super) ready: bool,
    pub(super) panicking: bool,
    /// Something worth storing has changed.
    pub(super) memorable: bool,
    /// By node: its models are listed in the last Snapshot.
    pub(super) listed: Vec<bool>,
    /// Cells that can take work since a moment: to be offered.
    pub(super) opened: Vec<Arc<Cell>>,
    /// By node: its models, their weights or limits have changed since the last Snapshot.
    pub(super) reroute: Vec<bool>,
    /// By node: its models in the last Snapshot.
    pub(super) routes: Vec<Routes>,
    /// Nodes whose cells are to be settled once the Snapshot is published.
    pub(super) unsettled: Vec<(usize, Vec<Use>)>,
    /// Times that all listings, and `/api/ps` alone, were merged.
    pub(super) merges: (u64, u64),
    /// What the last Snapshot had to go through, and how long the next one has to wait for it.
    pub(super) work: usize,
    pub(super) rest_ms: Millis,
    /// By node: when it wants to be asked something next. In a row of their own, since they are all looked at each time.
    pub(super) dues: Vec<Millis>,
    next_tick: Millis,
    /// How fast nodes generate, as last told.
    pub(super) speeds: Arc<Vec<Speed>>,
    next_look: Millis,
    /// Reports taken, so that it is known which questions were asked after which.
    serial: u64,
    random: u64,
}

impl Facts {
    /// A fleet nobody has asked yet, with what an earlier process remembered of it.
    #[must_use]
    pub fn new(parts: Parts, remembered: memory::Memory, now: Now) -> Self {
        let mut cells = Cells::new(parts.names, parts.workers, parts.config.limits.queue_length);
        let mut remembered = remembered;
        let mut nodes: Vec<Node> = (0..)
            .zip(parts.nodes)
            .map(|(id, config)| {
                let target = Arc::new(resolve::target(&config, parts.config.timeouts.connect));
                let mut node = Node::new(NodeId(id), config, target, parts.workers, Arc::clone(&parts.instance), now);
                remembered.restore(&mut node, now, &parts.config.health);
                node.draining = parts.drained.contains(&*node.name);
                node.word.set_draining(node.draining);
                node
            })
            .collect();
        let (mut blobs, mut shelf) = (Blobs::default(), Shelf::default());
        for node in &mut nodes {
            blobs.learn(node);
            node.share_entries(&mut shelf);
        }
        let any = nodes.iter().map(|node| cells.any(node.id, &node.word)).collect();
        let count = nodes.len();
        let facts = Self {
            config: parts.config,
            nodes,
            any,
            cells,
            workers: parts.workers,
            instance: parts.instance,
            drained: parts.drained,
            retargeted: false,
            told: Vec::new(),
            blobs,
            shelf,
            misses: Misses::default(),
            settling: Settling::default(),
            shown: Shown::default(),
            last: Arc::new(Snapshot::empty()),
            dirty: Dirty { models: true, listing: true, now: true, ..Dirty::default() },
            started: now.ms,
            ready: false,
            panicking: false,
            memorable: false,
            listed: Vec::new(),
            opened: Vec::new(),
            reroute: vec![true; count],
            routes: std::iter::repeat_with(Routes::default).take(count).collect(),
            unsettled: Vec::new(),
            merges: (0, 0),
            work: 0,
            rest_ms: 0,
            dues: vec![0; count],
            next_tick: now.ms + TICK_MS,
            speeds: Arc::default(),
            next_look: now.ms + LOOK_MS,
            serial: 0,
            random: parts.seed | 1,
        };
        facts.limit_nodes();
        facts
    }

    /// How fast nodes generate, from whoever counts; looked at by the next [`Facts::tick`] that is due to.
    pub fn learn_speeds(&mut self, speeds: Arc<Vec<Speed>>) {
        self.speeds = speeds;
    }

    /// The nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Something worth storing has changed since [`Facts::stored`].
    #[must_use]
    pub fn is_memorable(&self) -> bool {
        self.memorable
    }

    /// What there was to store is being stored.
    pub fn stored(&mut self) {
        self.memorable = false;
    }

    /// When to call [`Facts::due`] and [`Facts::snapshot`] again at the latest.
    #[must_use]
    pub fn next_due(&self) -> Millis {
        let ready = if self.ready { Millis::MAX } else { self.started + READY_MS };
        let others = [ready, self.publish_at(), self.next_tick, self.misses.deadline()];
        self.dues.iter().copied().chain(others).min().unwrap_or(0)
    }

    /// What to ask now; each answer comes back through [`Facts::answered`].
    pub fn due(&mut self, now: Now) -> Vec<Job> {
        let rules = &self.config.health;
        let random = &mut self.random;
        let (mut jobs, mut adopters) = (Vec::new(), Vec::new());
        for (node, due) in self.nodes.iter_mut().zip(&mut self.dues).filter(|(_, due)| **due <= now.ms) {
            for question in node.due(now.ms, rules, &mut self.blobs, || jitter(random)) {
                let ask = node.ask(&question, rules);
                let (asked_at, serial) = (now.ms, self.serial);
                jobs.push(Job { node: node.id, question, ask, asked_at, incarnation: node.incarnation, serial });
            }
            *due = node.next_due();
            if node.take_adopted() {
                adopters.push(node.id);
            }
        }
        for node in adopters {
            self.take(node, &Change { weights: true, ..Change::default() }, now);
        }
        jobs
    }

    /// A node answered, or did not.
    pub fn answered(&mut self, job: &Job, result: Result<Answer, FetchError>, now: Now) {
        let jitter = jitter(&mut self.random);
        let config = Arc::clone(&self.config);
        let Some(node) = place(job.node).and_then(|at| self.nodes.get_mut(at)) else { return };
        if node.incarnation != job.incarnation {
            if let Question::Weights { digest, .. } = &job.question {
                self.blobs.unanswered(digest);
            }
            return;
        }
        let change = node.answered(&job.question, job.asked_at, result, now, &config.health, jitter);
        if change.models {
            node.share_entries(&mut self.shelf);
        }
        if let Question::Weights { digest, .. } = &job.question {
            self.blobs.answered(digest, node);
        }
        self.reschedule(job.node);
        if change.inventory_asked {
            self.misses.answered(job.node, job.serial);
            self.settling.answered(job.node, job.serial);
            // A Snapshot that is otherwise in no hurry holds up whoever waits for it.
            self.dirty.now |= self.settling.is_due();
        }
        self.take(job.node, &change, now);
        if change.residency {
            self.mark_residency(job.node, job.asked_at);
        }
        if change.residency_asked {
            self.shown.answered(job.node, job.serial);
            self.dirty.now |= self.shown.is_due();
        }
    }

    /// A worker reports.
    pub fn report(&mut self, report: Report, now: Now) {
        self.serial += 1;
        match report {
            Report::Reconfigure(wanted) => self.reconfigure(*wanted, now),
            Report::Drain { node, on, done } => self.drain(node, on, done),
            Report::Refused(node) => self.health(node, Event::Refused, now),
            Report::Reached(node) => self.health(node, Event::Reached, now),
            Report::Lacks(node) => self.each(node, |node| node.refresh_inventory(now.ms)),
            Report::Confirm { nodes, settled } => self.settle(nodes, settled, now, |_| {}),
            Report::Changed { nodes, settled } => self.settle(nodes, settled, now, |node| node.note_change(now.ms)),
            Report::Gone { nodes, key } => self.forget(&nodes, &key),
            Report::Residency(node) => {
                self.each(node, |node| node.refresh_residency(now.ms));
                self.shown.told(node, self.serial);
                if !self.is_up(node) {
                    self.shown.lost(node);
                }
            }
            Report::Shown { number, shown } => {
                self.shown.wait(number, shown);
                self.shown.published(self.last.shown);
                // Only now that somebody wants to know: loads may come faster than a node can tell of them.
                for node in self.shown.awaited() {
                    self.each(node, |node| node.tell_residency(now.ms));
                }
                self.dirty.now |= self.shown.is_due();
            }
            Report::Miss { key, reply } => {
                if is_known(&self.last, &key) {
                    // The worker's Snapshot is older than ours. One that has left wants no answer.
                    let _ = reply.send(Sought::Found);
                    return;
                }
                let up = self.nodes.iter().filter(|node| node.health.is_up()).map(|node| node.id);
                if self.misses.ask(key, reply, (now.ms, self.serial), up) {
                    self.each(NodeId::NONE, |node| {
                        if node.health.is_up() {
                            node.refresh_inventory(now.ms);
                        }
                    });
                }
            }
        }
    }

    /// What follows from time alone; cheap to call at any time, works once a second.
    pub fn tick(&mut self, now: Now) {
        if !self.ready && (now.ms.saturating_sub(self.started) >= READY_MS || self.nodes.iter().all(|n| n.round_done)) {
            self.ready = true;
            self.dirty.now = true;
        }
        if now.ms < self.next_tick {
            return;
        }
        self.next_tick = now.ms + TICK_MS;
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            if node.removed {
                continue;
            }
            let (id, was) = (node.id, node.health.suspect);
            let after = node.config.timeouts.suspect_after.unwrap_or(self.config.timeouts.suspect_after);
            let suspect = suspicion(was, node.progress.reading(), now.ms, millis(after));
            self.health(id, Event::Suspicion(suspect), now);
            self.health(id, Event::Tick, now);
            if self.nodes[at].forget(now, &self.config.health) {
                self.remembers_less(at);
            }
        }
        self.age_residency(now);
        if now.ms >= self.next_look {
            self.next_look = now.ms + LOOK_MS;
            self.look_for_sick(now);
        }
        let loading = self.nodes.iter().filter(|node| node.word.cold_loads() > 0).map(|node| node.id);
        self.cells.expire_loads(loading, now.ms, millis(self.config.routing.cold_load_grace));
        self.cells.sweep();
        self.shelf.sweep();
        self.panic(now);
        self.set_words();
        let listed = self.nodes.iter().map(|node| node.is_listed(now));
        if self.last.incomplete != self.is_incomplete(now) || !listed.eq(self.listed.iter().copied()) {
            self.dirty.now = true;
        }
    }

    /// Health of one node moves on.
    fn health(&mut self, node: NodeId, event: Event, now: Now) {
        let jitter = jitter(&mut self.random);
        let config = Arc::clone(&self.config);
        let found = place(node).and_then(|at| self.nodes.get_mut(at)).filter(|node| !node.removed);
        let Some(found) = found else { return };
        let change = found.event(event, now, &config.health, jitter);
        self.reschedule(node);
        self.take(node, &change, now);
    }

    /// Acts on what changed in one node.
    fn take(&mut self, id: NodeId, change: &Change, now: Now) {
        if change.models || change.weights {
            self.dirty.models = true;
            self.memorable = true;
            if let Some(reroute) = place(id).and_then(|at| self.reroute.get_mut(at)) {
                *reroute = true;
            }
        }
        self.dirty.now |= change.models;
        self.dirty.soon |= change.listing || change.ps || change.weights;
        self.dirty.listing |= change.listing;
        self.dirty.ps |= change.ps;
        if change.health.changed {
            self.dirty.models = true;
            self.dirty.listing = true;
            self.dirty.now = true;
            let Some(node) = place(id).and_then(|at| self.nodes.get(at)) else { return };
            if let Some(line) = &change.health.log {
                log(node, line);
            }
            if change.health.came_up {
                // It may be another process than before: what it has in memory is to be told anew.
                for cell in self.cells.of_node(id) {
                    cell.mark_unloaded(now.ms);
                }
            }
            if !node.health.is_up() {
                self.memorable = true;
                self.misses.answered(id, u64::MAX);
                self.settling.lost(id);
                self.shown.lost(id);
            }
            self.panic(now);
            self.close();
        }
    }

    /// Does `to` to one node, or to all for [`NodeId::NONE`].
    fn each(&mut self, id: NodeId, to: impl Fn(&mut Node)) {
        for (node, due) in self.nodes.iter_mut().zip(&mut self.dues) {
            if id == NodeId::NONE || node.id == id {
                to(node);
                *due = node.next_due();
            }
        }
    }

    /// Something happened to this node: it may want to be asked at another time.
    fn reschedule(&mut self, id: NodeId) {
        if let Some(at) = place(id).filter(|&at| at < self.nodes.len()) {
            self.dues[at] = self.nodes[at].next_due();
        }
    }

    pub(super) fn lazy_at(&self) -> Millis {
        if self.dirty.soon { self.last.published + LAZY_MS } else { Millis::MAX }
    }
}

/// Some node has this name, or had it when it went down. A name that is only remembered is worth asking for.
pub(super) fn is_known(snapshot: &Snapshot, key: &str) -> bool {
    snapshot.models.get(key).is_some_and(|model| !model.candidates.is_empty())
}

/// The node's index.
pub(super) fn place(node: NodeId) -> Option<usize> {
    usize::try_from(node.0).ok()
}

fn log(node: &Node, line: &Line) {
    let (name, cause, unlogged) = (&node.name, &line.cause, line.unlogged);
    match line.phase {
        Phase::Up if line.suspect => tracing::warn!(node = %name, %cause, unlogged, "node is suspect"),
        Phase::Up => tracing::info!(node = %name, %cause, unlogged, "node is up"),
        Phase::Down | Phase::Unknown => tracing::warn!(node = %name, %cause, unlogged, "node is down"),
    }
}

/// Uniform in 0..1000 (xorshift: it spreads polls, it keeps no secrets).
fn jitter(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    u32::try_from(*state % 1_000).unwrap_or(0)
}

#[cfg(test)]
mod tests;
