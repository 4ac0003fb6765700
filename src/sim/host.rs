//! The state of one simulated node, and the bridge between its requests and its scheduler.
//!
//! One mutex holds it all: it is taken for moments, by the node's own thread and by whoever reads the ledger or gives
//! a fault. Never held across an await, never used by the proxy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::conn::Conn;
use super::fault::{Faults, Harm, Moment};
use super::ledger::{Ending, NodeLedger, Tokens};
use super::names::Name;
use super::sched::{Answer, Ask, Cancel, Grant, Limits, Refusal, Sched, Ticket};
use super::spec::{ModelSpec, NodeSpec};

/// What changes while a node runs.
pub(super) struct State {
    pub(super) sched: Sched,
    /// Models on disk by [`Name::key`].
    pub(super) models: BTreeMap<String, Arc<ModelSpec>>,
    /// Blobs by digest.
    pub(super) blobs: HashMap<String, u64>,
    /// Bytes of cut pulls by digest of the weights.
    pub(super) partial: HashMap<String, u64>,
    pub(super) faults: Faults,
    pub(super) ledger: NodeLedger,
    waiting: HashMap<Ticket, oneshot::Sender<Result<Grant, Refusal>>>,
    /// When the driver will look at the scheduler again.
    armed: Option<Duration>,
    lost: Vec<(TcpStream, Open)>,
}

#[expect(clippy::disallowed_types, reason = "cold: the simulation's own state, no part of the proxy")]
type Lock = std::sync::Mutex<State>;

/// A node.
pub(super) struct Core {
    pub(super) spec: NodeSpec,
    origin: Instant,
    /// Unix time of `origin`.
    epoch: Duration,
    state: Lock,
    kick: mpsc::Sender<()>,
}

/// What a request got from the scheduler.
pub(super) enum Got {
    Runner(Grant),
    Refused(Refusal),
    Busy,
    Gone(Cancel),
}

impl Core {
    /// A node that is not running yet, and the receiver that [`drive`] needs.
    pub(super) fn new(spec: NodeSpec) -> (Arc<Self>, mpsc::Receiver<()>) {
        let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut models = BTreeMap::new();
        let mut blobs = HashMap::new();
        for model in &spec.models {
            insert(&mut models, &mut blobs, model.clone(), epoch);
        }
        let (kick, kicked) = mpsc::channel(1);
        let state = State {
            sched: Sched::new(limits(&spec)),
            models,
            blobs,
            partial: HashMap::new(),
            faults: Faults::new(spec.seed),
            ledger: NodeLedger::default(),
            waiting: HashMap::new(),
            armed: None,
            lost: Vec::new(),
        };
        let core = Self { spec, origin: Instant::now(), epoch, state: Lock::new(state), kick };
        (Arc::new(core), kicked)
    }

    /// Runs with the state.
    pub(super) fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        run(&mut state)
    }

    /// Time since the node was made.
    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Time since 1970.
    pub(super) fn unix(&self) -> Duration {
        self.epoch + self.now()
    }

    /// A time of the scheduler since 1970.
    pub(super) fn unix_at(&self, at: Duration) -> Duration {
        self.epoch + at
    }

    /// Puts a model on the disk.
    pub(super) fn add_model(&self, model: ModelSpec) {
        let now = self.unix();
        self.with(|s| insert(&mut s.models, &mut s.blobs, model, now));
    }

    /// Takes a model off the disk; a running copy goes on.
    pub(super) fn remove_model(&self, name: &str) -> bool {
        let Ok(name) = Name::parse(name) else { return false };
        self.with(|s| s.models.remove(&name.key()).is_some())
    }

    /// Runs with the scheduler, then tells those it answered.
    pub(super) fn schedule<T>(&self, run: impl FnOnce(&mut State, Duration) -> T) -> T {
        let now = self.now();
        let (result, kick) = self.with(|s| {
            let result = run(s, now);
            (result, s.settle())
        });
        if kick {
            let _ = self.kick.try_send(());
        }
        result
    }

    /// Asks for a runner and a slot, and waits for them while the client stays.
    pub(super) async fn runner(self: &Arc<Self>, conn: &mut Conn, stay: &mut Stay, ask: Ask) -> Got {
        if conn.gone_now() {
            return Got::Gone(Cancel::Lost);
        }
        let (answer, waiter) = self.schedule(|s, now| {
            let answer = s.sched.ask(now, ask);
            let mut waiter = None;
            if let Answer::Wait(ticket) = answer {
                let (sender, receiver) = oneshot::channel();
                s.waiting.insert(ticket, sender);
                waiter = Some(receiver);
            }
            (answer, waiter)
        });
        let (ticket, waiter) = match (answer, waiter) {
            (Answer::Ready(grant), _) => {
                stay.ticket = Some(grant.ticket);
                return Got::Runner(grant);
            }
            (Answer::Wait(ticket), Some(waiter)) => (ticket, waiter),
            _ => return Got::Busy,
        };
        stay.ticket = Some(ticket);
        let answer = tokio::select! {
            biased;
            answer = waiter => answer,
            () = conn.gone() => {
                stay.ticket = None;
                let cancel = self.schedule(|s, now| {
                    s.waiting.remove(&ticket);
                    s.sched.cancel(now, ticket)
                });
                return Got::Gone(self.in_window(stay, cancel));
            }
        };
        match answer {
            Ok(Ok(grant)) => Got::Runner(grant),
            Ok(Err(refusal)) => {
                stay.ticket = None;
                Got::Refused(refusal)
            }
            Err(_) => Got::Refused(Refusal::RunnerGone),
        }
    }

    /// What a client's going means for a request of this age.
    pub(super) fn in_window(&self, stay: &Stay, cancel: Cancel) -> Cancel {
        if self.now().saturating_sub(stay.read_at) < self.spec.loss_window { Cancel::Lost } else { cancel }
    }

    /// Keeps the socket of a request that will never be answered.
    pub(super) fn park(&self, stream: TcpStream, open: Open) {
        self.with(|s| {
            s.ledger.sockets_lost += 1;
            s.lost.push((stream, open));
        });
    }

    /// The harms that meet a request now.
    pub(super) fn harms(&self, moment: Moment, path: &str, inference: bool, model: Option<&str>) -> Vec<Harm> {
        self.with(|s| s.faults.meet(moment, path, inference, model))
    }

    /// Forgets what a process forgets when it dies.
    pub(super) fn forget(&self) {
        let lost = self.with(|s| {
            s.sched = Sched::new(limits(&self.spec));
            s.waiting.clear();
            s.armed = None;
            std::mem::take(&mut s.lost)
        });
        // Dropped outside the lock, which each of them takes.
        drop(lost);
    }
}

impl State {
    /// Tells those that were answered, counts, and says whether the driver has to look again sooner.
    fn settle(&mut self) -> bool {
        for (ticket, answer) in std::mem::take(&mut self.sched.events) {
            if let Some(waiter) = self.waiting.remove(&ticket) {
                let _ = waiter.send(answer);
            }
        }
        for (name, note) in std::mem::take(&mut self.sched.notes) {
            self.ledger.note(&name, note);
        }
        let next = self.sched.next_deadline();
        let sooner = next.is_some_and(|at| self.armed.is_none_or(|armed| at < armed));
        if sooner {
            self.armed = next;
        }
        sooner
    }

    /// A model on the disk.
    pub(super) fn find(&self, name: &Name) -> Option<&Arc<ModelSpec>> {
        self.models.get(&name.key())
    }
}

fn insert(
    models: &mut BTreeMap<String, Arc<ModelSpec>>,
    blobs: &mut HashMap<String, u64>,
    mut model: ModelSpec,
    now: Duration,
) {
    if let Ok(name) = Name::parse(&model.name) {
        model.modified.get_or_insert(now);
        model.name = name.display();
        blobs.insert(model.weights.clone(), model.size);
        models.insert(name.key(), Arc::new(model));
    }
}

fn limits(spec: &NodeSpec) -> Limits {
    Limits {
        max_loaded: spec.max_loaded,
        max_queue: spec.max_queue,
        memory: spec.memory,
        keep_alive: spec.keep_alive.map(|keep| spec.real(keep)),
        unload_time: spec.real(spec.unload_time),
    }
}

/// Moves the scheduler when its time has come, until the node is dropped.
pub(super) async fn drive(core: Arc<Core>, mut kicked: mpsc::Receiver<()>) {
    loop {
        let next = core.schedule(|s, now| {
            s.sched.advance(now);
            s.armed = s.sched.next_deadline();
            s.armed
        });
        let origin = core.origin;
        let kick = async {
            match next {
                Some(at) => {
                    let _ = tokio::time::timeout_at(origin + at, kicked.recv()).await;
                }
                None => {
                    let _ = kicked.recv().await;
                }
            }
        };
        kick.await;
    }
}

/// Counts a connection while it is open.
pub(super) struct Open(Arc<Core>);

impl Open {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        core.with(|s| {
            s.ledger.connections += 1;
            s.ledger.open += 1;
        });
        Self(core.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.with(|s| s.ledger.open -= 1);
    }
}

/// One request in the node: counted when it ends, and as killed if it is dropped before.
pub(super) struct Stay {
    core: Arc<Core>,
    pub(super) route: &'static str,
    model: Option<Arc<str>>,
    ticket: Option<Ticket>,
    /// When it had been read whole.
    pub(super) read_at: Duration,
    ended: Option<(Ending, Tokens)>,
    /// Bytes of its answer are on their way: dropped now, it was not answered, whatever was counted.
    pub(super) sending: bool,
}

impl Stay {
    pub(super) fn new(core: &Arc<Core>, route: &'static str) -> Self {
        let read_at = core.now();
        Self { core: core.clone(), route, model: None, ticket: None, read_at, ended: None, sending: false }
    }

    /// It is an inference request for this model.
    pub(super) fn enter(&mut self, model: &str) {
        if self.model.is_none() {
            self.core.with(|s| s.ledger.enter(model));
            self.model = Some(model.into());
        }
    }

    /// Counts the ending and frees the slot.
    pub(super) fn end(&mut self, ending: Ending, tokens: Tokens) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some((ending, tokens));
        let ticket = self.ticket.take();
        let (route, model) = (self.route, self.model.as_deref());
        self.core.schedule(|s, now| {
            if let Some(ticket) = ticket {
                s.waiting.remove(&ticket);
                s.sched.cancel(now, ticket);
            }
            s.ledger.end(route, model, ending, tokens);
        });
    }

    /// The last bytes did not leave: it ended otherwise.
    pub(super) fn correct(&mut self, to: Ending) {
        match self.ended {
            None => self.end(to, Tokens::default()),
            Some((from, tokens)) => {
                let (route, model) = (self.route, self.model.as_deref());
                self.core.with(|s| s.ledger.correct(route, model, (from, to), tokens));
                self.ended = Some((to, Tokens::default()));
            }
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if self.sending {
            return self.correct(Ending::Killed);
        }
        self.end(Ending::Killed, Tokens::default());
    }
}
