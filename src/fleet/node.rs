//! What the poller knows of one node, and what it asks it when. Pure: answers come in, questions go out.
//!
//! Called by [`crate::fleet::facts`] alone. Must never do I/O or touch a slot; it says what changed and the caller acts.

mod answers;
mod weights;

use std::collections::HashMap;

use bytes::Bytes;

use crate::clock::{Millis, millis};
use crate::config::{HealthConfig, NodeConfig, NodeKind};
use crate::fleet::fetch::{Answer, Ask, FetchError};
use crate::fleet::health::{self, Effects, Event, Health, Phase, jittered};
use crate::fleet::inventory::{Entry, Loaded};
use crate::fleet::progress::NodeProgress;
use crate::fleet::shelf::Shelf;
use crate::fleet::sick::Symptom;
use crate::fleet::{NodePs, Target};
use crate::ids::NodeId;
use crate::slots::NodeWord;
use crate::sync::Arc;

pub use weights::{Blobs, Weights};

/// The header of `/api/version` answers by which a herdgate is told from Ollama, and ourselves from another.
pub const INSTANCE_HEADER: &str = "x-herdgate-instance";

/// Models of a node that went down are listed for so long: a restart takes less, a dead node more.
pub const BRIEFLY_MS: Millis = 60_000;

/// A show that failed is tried again after this.
const SHOW_RETRY_MS: Millis = 60_000;
/// An inventory that could not be had is tried again after this: a node that starts blocks the question for a while.
const INVENTORY_RETRY_MS: Millis = 5_000;
/// After a load or an unload the node is looked at in a moment: an unload takes that long until ps tells.
const UNLOAD_MS: Millis = 200;
/// Models missing within this time of a change through us were deleted, not lost.
const CHANGE_MS: Millis = 60_000;
/// Time for an inventory. Listings do not wait for it, so it may take a node's whole start-up.
const INVENTORY_TIMEOUT_MS: Millis = 10_000;

/// Now, on both clocks: deadlines by the monotonic one, memory over restarts by UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Monotonic.
    pub ms: Millis,
    /// UTC.
    pub unix_ms: u64,
}

/// Something to ask a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Question {
    /// Is it alive.
    Probe,
    /// What has it on disk (or serves).
    Inventory,
    /// What has it in memory.
    Residency,
    /// Which blob are the weights of this manifest.
    Weights {
        /// Digest of the manifest.
        digest: Arc<str>,
        /// A name it goes by there.
        name: Arc<str>,
    },
    /// How many slots has it.
    Slots,
}

/// Where an OpenAI-compatible node tells that it is alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pulse {
    Health,
    Models,
}

/// When to ask next, and whether an answer is awaited.
#[derive(Clone, Copy, Debug)]
struct Timer {
    due: Millis,
    busy: bool,
}

impl Timer {
    const NEVER: Self = Self { due: Millis::MAX, busy: false };

    fn is_due(self, now: Millis) -> bool {
        !self.busy && self.due <= now
    }

    fn start(&mut self, next: Millis) {
        *self = Self { due: next, busy: true };
    }

    fn soonest(self) -> Millis {
        if self.busy { Millis::MAX } else { self.due }
    }
}

/// What changed through an answer or an event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Of the node's health.
    pub health: Effects,
    /// Names, digests or limits: candidates have to be rebuilt.
    pub models: bool,
    /// Weights became known: candidates have to be rebuilt, without haste.
    pub weights: bool,
    /// Something that listings show.
    pub listing: bool,
    /// Something that `/api/ps` alone shows.
    pub ps: bool,
    /// Residency was told, perhaps the same as before: mark cells.
    pub residency: bool,
    /// The inventory was told, changed or not, or could not be had.
    pub inventory_asked: bool,
    /// The same of what it has in memory.
    pub residency_asked: bool,
}

impl Change {
    fn of(health: Effects) -> Self {
        Self { listing: health.changed, health, ..Self::default() }
    }
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its place.
    pub id: NodeId,
    /// As configured.
    pub config: NodeConfig,
    /// Its id for people.
    pub name: Arc<str>,
    /// URL as configured.
    pub url: Arc<str>,
    /// Where it is.
    pub target: Arc<Target>,
    /// Taken out by its operator.
    pub draining: bool,
    /// Not configured any more: never asked, never shown, never sent anything.
    pub removed: bool,
    /// Which node it is in this place: answers to an earlier one's questions are not its.
    pub incarnation: u32,
    /// When it was configured.
    pub born: Millis,
    /// Shared with its cells.
    pub word: Arc<NodeWord>,
    /// Written by workers.
    pub progress: Arc<NodeProgress>,
    /// Up or not, and why.
    pub health: Health,
    /// Its `/api/version`, last known.
    pub version: Option<Arc<str>>,
    /// Its models, last known.
    pub inventory: Arc<Vec<Entry>>,
    /// Hash of the answer that told them: the same answer again need not be read.
    inventory_hash: Option<u64>,
    /// Its sick copies, as of the last look.
    pub sick: Arc<[Symptom]>,
    /// When those were told to have changed.
    pub sick_told: Option<Millis>,
    /// It came back with less than half of its models: how many it had, how many it has.
    pub shrunk: Option<(usize, usize)>,
    /// When models were last changed on it through us: what is missing then was deleted, not lost.
    changed_at: Option<Millis>,
    /// Names that it had before it went down (or shrank) and not any more, with the UTC millisecond until which they
    /// count.
    pub lost: HashMap<Arc<str>, (Arc<str>, u64)>,
    /// What it has in memory, last known.
    pub loaded: Arc<Vec<Loaded>>,
    /// The same as received, with its age.
    pub ps: Arc<NodePs>,
    /// When that was asked.
    pub residency_asked: Option<Millis>,
    /// `total_slots` of `/props`.
    pub total_slots: Option<u32>,
    /// By digest of the manifest.
    pub weights: HashMap<Arc<str>, Weights>,
    /// UTC millisecond at which it was up last, perhaps under an earlier process.
    pub seen_unix_ms: Option<u64>,
    /// Its inventory was told since it is configured.
    pub told: bool,
    /// How often it was told to have names that it did not have before.
    pub gained: u64,
    /// Its first round of questions has ended, well or not.
    pub round_done: bool,
    /// The next inventory is the first since it came back: what it lacks was lost, not deleted.
    returned: bool,
    instance: Arc<str>,
    pulse: Pulse,
    probe_busy: bool,
    inventory_timer: Timer,
    residency_timer: Timer,
    /// A look at what is in its memory is due then, whatever it said before.
    look_again: Millis,
    slots_timer: Timer,
    weights_busy: bool,
    /// When to look through the inventory for unknown weights: at once after a change, else when a retry is due.
    weights_at: Millis,
    /// Weights became known through another node's answer since the last [`Node::take_adopted`].
    adopted: bool,
}

impl Node {
    /// A node that nobody has asked yet.
    #[must_use]
    pub fn new(
        id: NodeId,
        config: NodeConfig,
        target: Arc<Target>,
        workers: usize,
        instance: Arc<str>,
        now: Now,
    ) -> Self {
        let word = if config.kind == NodeKind::OpenAi { NodeWord::v1_only() } else { NodeWord::new() };
        Self {
            id,
            name: config.name.as_str().into(),
            url: config.url.as_str().into(),
            config,
            target,
            draining: false,
            removed: false,
            incarnation: 0,
            born: now.ms,
            word: Arc::new(word),
            progress: Arc::new(NodeProgress::new(workers)),
            health: Health::new(now.ms),
            version: None,
            inventory: Arc::default(),
            inventory_hash: None,
            sick: Arc::default(),
            sick_told: None,
            shrunk: None,
            changed_at: None,
            lost: HashMap::new(),
            loaded: Arc::default(),
            ps: Arc::default(),
            residency_asked: None,
            total_slots: None,
            weights: HashMap::new(),
            seen_unix_ms: None,
            told: false,
            gained: 0,
            round_done: false,
            returned: false,
            instance,
            pulse: Pulse::Health,
            probe_busy: false,
            inventory_timer: Timer::NEVER,
            residency_timer: Timer::NEVER,
            look_again: Millis::MAX,
            slots_timer: Timer::NEVER,
            weights_busy: false,
            weights_at: 0,
            adopted: false,
        }
    }

    /// Takes what an earlier process remembered. `was_up`: what the node lacks now was deleted meanwhile; else it was
    /// lost while down.
    pub fn restore(&mut self, inventory: Vec<Entry>, seen_unix_ms: u64, was_up: bool) {
        self.inventory = Arc::new(inventory);
        self.seen_unix_ms = Some(seen_unix_ms);
        self.returned = !was_up;
    }

    /// It is not configured any more: nothing is known of it, and nothing asked.
    pub fn retire(&mut self, now: Millis) {
        self.removed = true;
        self.incarnation += 1;
        self.health = Health::new(now);
        self.version = None;
        self.inventory = Arc::default();
        self.inventory_hash = None;
        self.lost.clear();
        self.loaded = Arc::default();
        self.ps = Arc::default();
        self.weights.clear();
        self.seen_unix_ms = None;
        self.told = false;
        self.round_done = true;
        self.total_slots = None;
        self.sick = Arc::default();
        self.shrunk = None;
    }

    /// Shares with other nodes what its inventory says alike.
    pub fn share_entries(&mut self, shelf: &mut Shelf) {
        // Nobody else holds it, or it is being stored and keeps what it has.
        if let Some(entries) = Arc::get_mut(&mut self.inventory) {
            entries.iter_mut().for_each(|entry| shelf.put(entry));
        }
    }

    /// Whether it speaks Ollama's API.
    #[must_use]
    pub fn is_ollama(&self) -> bool {
        self.config.kind == NodeKind::Ollama
    }

    /// Its models are listed: it is up, or was a moment ago.
    #[must_use]
    pub fn is_listed(&self, now: Now) -> bool {
        self.health.is_up() || self.seen_unix_ms.is_some_and(|seen| now.unix_ms.saturating_sub(seen) < BRIEFLY_MS)
    }

    /// When it wants to be asked something next; [`Millis::MAX`] while it waits for answers.
    #[must_use]
    pub fn next_due(&self) -> Millis {
        if self.removed {
            return Millis::MAX;
        }
        let probe = if self.probe_busy { Millis::MAX } else { self.health.probe_at };
        if !self.health.is_up() {
            return probe;
        }
        let weights = if self.weights_busy || !self.is_ollama() { Millis::MAX } else { self.weights_at };
        let timers = [self.inventory_timer, self.residency_timer, self.slots_timer];
        timers.into_iter().map(Timer::soonest).fold(probe.min(weights), Millis::min)
    }

    /// What to ask it now; each is awaited from here on.
    pub fn due(
        &mut self,
        now: Millis,
        rules: &HealthConfig,
        blobs: &mut Blobs,
        mut jitter: impl FnMut() -> u32,
    ) -> Vec<Question> {
        let mut questions = Vec::new();
        if !self.probe_busy && self.health.probe_at <= now {
            self.probe_busy = true;
            questions.push(Question::Probe);
        }
        if !self.health.is_up() {
            return questions;
        }
        if self.inventory_timer.is_due(now) {
            self.inventory_timer.start(now + jittered(self.inventory_every(rules), jitter()));
            questions.push(Question::Inventory);
        }
        if self.residency_timer.is_due(now) {
            if self.look_again <= now {
                self.look_again = Millis::MAX;
            }
            self.residency_timer.start(self.look_again.min(now + jittered(millis(rules.ps), jitter())));
            questions.push(Question::Residency);
        }
        if self.slots_timer.is_due(now) {
            self.slots_timer.start(now + jittered(millis(rules.tags), jitter()));
            questions.push(Question::Slots);
        }
        questions.extend(self.unknown_weights(now, blobs));
        questions
    }

    /// The question as a request.
    #[must_use]
    pub fn ask(&self, question: &Question, rules: &HealthConfig) -> Ask {
        // A node that is down has to take a connection: one of before proves nothing about the next request's.
        let fresh = *question == Question::Probe && self.health.phase == Phase::Down;
        let get = |path, timeout_ms| Ask { path, body: None, timeout_ms, fresh };
        let probe_ms = millis(rules.probe_timeout);
        match question {
            Question::Probe if self.is_ollama() => get("/api/version", probe_ms),
            Question::Probe if self.pulse == Pulse::Health => get("/health", probe_ms),
            Question::Probe => get("/v1/models", probe_ms),
            Question::Inventory if self.is_ollama() => get("/api/tags", INVENTORY_TIMEOUT_MS),
            Question::Inventory => get("/v1/models", INVENTORY_TIMEOUT_MS),
            Question::Residency => get("/api/ps", millis(rules.ps)),
            Question::Slots => get("/props", millis(rules.ps)),
            Question::Weights { name, .. } => {
                let body = serde_json::json!({ "model": &**name }).to_string();
                Ask { path: "/api/show", body: Some(Bytes::from(body)), timeout_ms: INVENTORY_TIMEOUT_MS, fresh }
            }
        }
    }

    /// Something happened that concerns its health.
    pub fn event(&mut self, event: Event, now: Now, rules: &HealthConfig, jitter: u32) -> Change {
        let rules = health::Rules { probe_ms: millis(rules.probe), backoff_max_ms: millis(rules.backoff_max) };
        let was_down = self.health.phase == Phase::Down;
        let was_up = self.health.is_up();
        let (next, effects) = health::step(&self.health, event, now.ms, &rules, jitter);
        self.health = next;
        if self.health.is_up() || was_up {
            self.seen_unix_ms = Some(now.unix_ms);
        }
        if effects.changed && self.health.phase == Phase::Down {
            self.loaded = Arc::default();
            self.ps = Arc::default();
        }
        if effects.came_up {
            self.returned |= was_down && self.health.recovering_until != 0;
            self.inventory_timer.due = now.ms;
            if self.is_ollama() {
                self.residency_timer.due = now.ms;
            } else {
                self.slots_timer.due = now.ms;
            }
        } else if !self.health.is_up() && self.health.phase == Phase::Down {
            self.round_done = true;
        }
        Change::of(effects)
    }

    /// An answer came, or none.
    pub fn answered(
        &mut self,
        question: &Question,
        asked_at: Millis,
        result: Result<Answer, FetchError>,
        now: Now,
        rules: &HealthConfig,
        jitter: u32,
    ) -> Change {
        if *question == Question::Probe {
            self.probe_busy = false;
            return self.probed(asked_at, result, now, rules, jitter);
        }
        let refused = matches!(result, Err(FetchError::Refused));
        let mut change = match question {
            Question::Inventory => self.take_inventory(&result, now, rules),
            Question::Residency => Change { residency_asked: true, ..self.take_residency(&result, asked_at, now) },
            Question::Slots => self.take_slots(&result),
            Question::Weights { digest, .. } => self.take_weights(digest, &result, now),
            Question::Probe => Change::default(),
        };
        // Silence to these questions is no sign of death, but a refusal is one whoever meets it.
        if refused {
            let fall = self.event(Event::Refused, now, rules, jitter);
            change.listing |= fall.listing;
            change.health = fall.health;
        }
        change
    }

    /// Asks for the inventory now (after administration, on a miss).
    pub fn refresh_inventory(&mut self, now: Millis) {
        self.inventory_timer.due = now;
        if self.is_ollama() {
            self.residency_timer.due = self.residency_timer.due.min(now + UNLOAD_MS);
        }
    }

    /// Models are changed on it through us.
    pub fn note_change(&mut self, now: Millis) {
        self.changed_at = Some(now);
    }

    /// Asks for the residency in a moment (after a load or an unload).
    pub fn refresh_residency(&mut self, now: Millis) {
        self.look_again = now + UNLOAD_MS;
        self.residency_by(self.look_again);
    }

    /// Asks for the residency at once, and all the same in a moment.
    pub fn tell_residency(&mut self, now: Millis) {
        self.residency_by(now);
    }

    fn residency_by(&mut self, at: Millis) {
        let timer = if self.is_ollama() { &mut self.residency_timer } else { &mut self.inventory_timer };
        timer.due = timer.due.min(at);
    }

    /// Forgets what has been remembered for too long; true if something was.
    pub fn forget(&mut self, now: Now, rules: &HealthConfig) -> bool {
        let before = self.lost.len();
        self.lost.retain(|_, (_, until)| *until > now.unix_ms);
        let mut forgot = self.lost.len() != before;
        if self.lost.is_empty() {
            forgot |= self.shrunk.take().is_some();
        }
        let seen = self.seen_unix_ms.unwrap_or(0);
        let long_gone = now.unix_ms.saturating_sub(seen) >= millis(rules.forget_models_after);
        if !self.health.is_up() && !self.inventory.is_empty() && long_gone {
            self.inventory = Arc::default();
            self.inventory_hash = None;
            forgot = true;
        }
        forgot
    }

    /// Forgets one model of what is remembered, true if it was there. The node is asked anew when it is back.
    pub fn forget_model(&mut self, key: &str) -> bool {
        let had = self.inventory.iter().any(|entry| *entry.key == *key);
        if had {
            self.inventory = Arc::new(self.inventory.iter().filter(|entry| *entry.key != *key).cloned().collect());
            // The same words as before are news then.
            self.inventory_hash = None;
        }
        self.lost.remove(key).is_some() | had
    }

    /// The blob of a manifest's weights, if that is known.
    #[must_use]
    pub fn blob(&self, digest: &str) -> Option<&Arc<str>> {
        match self.weights.get(digest) {
            Some(Weights::Known(blob)) => blob.as_ref(),
            _ => None,
        }
    }

    fn inventory_every(&self, rules: &HealthConfig) -> Millis {
        // llama.cpp's router mode tells residency in the inventory.
        let tells_residency =
            !self.is_ollama() && self.inventory.iter().any(|entry| entry.fields.raw("status").is_some());
        millis(if tells_residency { rules.ps } else { rules.tags })
    }

    /// Whether weights became known through another node's answer since the last call.
    pub fn take_adopted(&mut self) -> bool {
        std::mem::take(&mut self.adopted)
    }
}
