//! The scheduler of a simulated Ollama node: which models are loaded, who waits for a load, who waits for a slot.
//!
//! A state machine without a clock or I/O: `host.rs` calls it with the time and delivers its events. The rules are
//! Ollama's: a compatible loaded runner is used at once; every other request waits in one bounded queue that is
//! served strictly one at a time; slots are first come, first served, without bound; nothing is preempted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// One request in the scheduler, never used again.
pub(super) type Ticket = u64;

/// What a loaded model was launched with; a request that differs reloads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) num_ctx: u32,
    pub(super) num_batch: Option<i64>,
    pub(super) num_gpu: Option<i64>,
    pub(super) main_gpu: Option<i64>,
    pub(super) use_mmap: Option<bool>,
    pub(super) num_thread: Option<i64>,
    pub(super) draft_num_predict: Option<i64>,
    pub(super) shift: bool,
}

impl Launch {
    /// The automatic launch with this context.
    pub(super) fn automatic(num_ctx: u32) -> Self {
        Self {
            num_ctx,
            num_batch: None,
            num_gpu: None,
            main_gpu: None,
            use_mmap: None,
            num_thread: None,
            draft_num_predict: None,
            shift: true,
        }
    }

    fn fits(&self, wanted: &Self) -> bool {
        let any_gpu = wanted.num_gpu.is_none_or(|n| n < 0);
        self == &Self { num_gpu: if any_gpu { self.num_gpu } else { wanted.num_gpu }, ..wanted.clone() }
    }
}

/// What a request needs.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Digest of the weights: the runner's identity.
    pub(super) weights: Arc<str>,
    /// Name and manifest digest that `/api/ps` shows if this request loads it.
    pub(super) name: Arc<str>,
    pub(super) digest: Arc<str>,
    pub(super) size: u64,
    pub(super) slots: u32,
    pub(super) launch: Launch,
    /// The request's own keep-alive; the inner `None` is for ever.
    pub(super) keep_alive: Option<Option<Duration>>,
    pub(super) load_time: Duration,
    /// The load ends with this text.
    pub(super) load_fails: Option<String>,
    /// Whether it generates (a load request does not).
    pub(super) wants_slot: bool,
}

/// A runner, and a slot if one was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) ticket: Ticket,
    pub(super) runner: u64,
    pub(super) context: u32,
}

/// Why a request gets no runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    LoadFailed(String),
    RunnerGone,
}

/// The first answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ready(Grant),
    Wait(Ticket),
    Busy,
}

/// What became of a request whose client has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cancel {
    /// Nobody will answer it, ever; its socket stays.
    Lost,
    /// It was stopped.
    Aborted,
}

/// Something to count, of a model by the name that loaded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Note {
    Load,
    LoadAborted,
    LoadFailed,
    Eviction,
    Reload,
    Unload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading { until: Duration },
    Up,
    Unloading { until: Duration },
}

/// A loaded model.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) id: u64,
    pub(super) weights: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) digest: Arc<str>,
    pub(super) size: u64,
    pub(super) launch: Launch,
    /// When the idle timer fires, or fired last; `None` is for ever.
    pub(super) expires: Option<Duration>,
    keep_alive: Option<Duration>,
    /// Who evicts it, for the count.
    doom: Note,
    refs: u32,
    slots: u32,
    used: u32,
    waiters: VecDeque<Ticket>,
    phase: Phase,
}

#[derive(Debug)]
struct Job {
    ticket: Ticket,
    ask: Ask,
    cancelled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queued,
    Current,
    Waiting(u64),
    Running(u64, bool),
}

/// The scheduler's limits.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) max_loaded: usize,
    pub(super) max_queue: usize,
    pub(super) memory: u64,
    pub(super) keep_alive: Option<Duration>,
    pub(super) unload_time: Duration,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Sched {
    limits: Limits,
    runners: Vec<Runner>,
    queue: VecDeque<Job>,
    /// The request that the loop is serving: waiting for an eviction, or for the load of this runner.
    current: Option<(Job, Option<u64>)>,
    places: HashMap<Ticket, Place>,
    next: u64,
    /// Answers to those that waited; taken by the caller after every call.
    pub(super) events: Vec<(Ticket, Result<Grant, Refusal>)>,
    /// What to count; taken by the caller after every call.
    pub(super) notes: Vec<(Arc<str>, Note)>,
}

impl Sched {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            runners: Vec::new(),
            queue: VecDeque::new(),
            current: None,
            places: HashMap::new(),
            next: 1,
            events: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A request arrives.
    pub(super) fn ask(&mut self, now: Duration, ask: Ask) -> Answer {
        let ticket = self.next;
        self.next += 1;
        let usable = self
            .runners
            .iter()
            .position(|r| r.weights == ask.weights && r.phase == Phase::Up && r.launch.fits(&ask.launch));
        if let Some(at) = usable {
            self.use_runner(at, ticket, &ask);
            return self.first_answer(ticket);
        }
        if self.current.is_some() && self.queue.len() >= self.limits.max_queue {
            return Answer::Busy;
        }
        self.places.insert(ticket, Place::Queued);
        self.queue.push_back(Job { ticket, ask, cancelled: false });
        self.advance(now);
        self.first_answer(ticket)
    }

    /// The grant that a call has just produced for its own request, if it did.
    fn first_answer(&mut self, ticket: Ticket) -> Answer {
        let at = self.events.iter().rposition(|(t, answer)| *t == ticket && answer.is_ok());
        match at.map(|at| self.events.remove(at).1) {
            Some(Ok(grant)) => Answer::Ready(grant),
            _ => Answer::Wait(ticket),
        }
    }

    /// The client of a request has gone.
    pub(super) fn cancel(&mut self, now: Duration, ticket: Ticket) -> Cancel {
        match self.places.get(&ticket) {
            Some(Place::Queued) => {
                // As in the node: the entry keeps its place in the channel and is skipped when its turn comes.
                for job in self.queue.iter_mut().filter(|job| job.ticket == ticket) {
                    job.cancelled = true;
                }
                self.places.remove(&ticket);
                Cancel::Lost
            }
            Some(Place::Current) => {
                self.places.remove(&ticket);
                if let Some((job, loading)) = &mut self.current {
                    job.cancelled = true;
                    if let Some(runner) = *loading {
                        self.notes.push((job.ask.name.clone(), Note::LoadAborted));
                        self.runners.retain(|r| r.id != runner);
                        self.current = None;
                    }
                }
                self.advance(now);
                Cancel::Aborted
            }
            _ => {
                self.done(now, ticket);
                Cancel::Aborted
            }
        }
    }

    /// A request has ended: its slot goes to the next in line.
    pub(super) fn done(&mut self, now: Duration, ticket: Ticket) {
        let (id, had_slot) = match self.places.remove(&ticket) {
            Some(Place::Waiting(id)) => (id, false),
            Some(Place::Running(id, slot)) => (id, slot),
            _ => return,
        };
        let Some(at) = self.runners.iter().position(|r| r.id == id) else { return };
        let runner = &mut self.runners[at];
        runner.waiters.retain(|t| *t != ticket);
        runner.refs -= 1;
        runner.used -= u32::from(had_slot);
        if runner.refs == 0 {
            runner.expires = runner.keep_alive.map(|keep| now + keep);
        }
        self.fill_slots(at);
        self.advance(now);
    }

    /// Time has passed.
    pub(super) fn advance(&mut self, now: Duration) {
        while self.step(now) {}
    }

    /// When [`Sched::advance`] has something to do again.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.runners
            .iter()
            .filter_map(|r| match r.phase {
                Phase::Loading { until } | Phase::Unloading { until } => Some(until),
                Phase::Up if r.refs == 0 => r.expires,
                Phase::Up => None,
            })
            .min()
    }

    /// Drops an idle model now and a busy one as soon as it is idle.
    pub(super) fn unload(&mut self, now: Duration, weights: &str) {
        for runner in self.runners.iter_mut().filter(|r| &*r.weights == weights && r.phase == Phase::Up) {
            runner.keep_alive = Some(Duration::ZERO);
            runner.expires = Some(now);
            runner.doom = Note::Unload;
        }
        self.advance(now);
    }

    /// The process of a runner dies: those that wait in it are told, those that run find out.
    pub(super) fn kill(&mut self, now: Duration, id: u64) {
        let Some(at) = self.runners.iter().position(|r| r.id == id) else { return };
        let runner = self.runners.remove(at);
        for ticket in runner.waiters {
            self.places.remove(&ticket);
            self.events.push((ticket, Err(Refusal::RunnerGone)));
        }
        self.advance(now);
    }

    /// Whether a runner still lives.
    pub(super) fn lives(&self, id: u64) -> bool {
        self.runners.iter().any(|r| r.id == id)
    }

    /// Whether nobody has loaded these weights, or is about to.
    pub(super) fn is_cold(&self, weights: &str) -> bool {
        let waits = self.queue.iter().chain(self.current.iter().map(|(job, _)| job));
        !self.runners.iter().any(|r| &*r.weights == weights) && !waits.into_iter().any(|j| &*j.ask.weights == weights)
    }

    /// The loaded models, as `/api/ps` sees them.
    pub(super) fn loaded(&self) -> impl Iterator<Item = &Runner> {
        self.runners.iter().filter(|r| r.phase == Phase::Up)
    }

    /// Requests that wait for a load.
    pub(super) fn pending(&self) -> usize {
        self.queue.len() + usize::from(self.current.is_some())
    }

    /// Requests that wait for a slot of a loaded model.
    pub(super) fn waiting(&self) -> usize {
        self.runners.iter().map(|r| r.waiters.len()).sum()
    }

    fn use_runner(&mut self, at: usize, ticket: Ticket, ask: &Ask) {
        let runner = &mut self.runners[at];
        runner.refs += 1;
        if let Some(keep) = ask.keep_alive {
            runner.keep_alive = keep;
            runner.doom = Note::Unload;
        }
        if ask.wants_slot {
            runner.waiters.push_back(ticket);
            self.places.insert(ticket, Place::Waiting(runner.id));
            self.fill_slots(at);
        } else {
            self.places.insert(ticket, Place::Running(runner.id, false));
            let grant = Grant { ticket, runner: runner.id, context: runner.launch.num_ctx };
            self.events.push((ticket, Ok(grant)));
        }
    }

    fn fill_slots(&mut self, at: usize) {
        let runner = &mut self.runners[at];
        while runner.used < runner.slots {
            let Some(ticket) = runner.waiters.pop_front() else { return };
            runner.used += 1;
            self.places.insert(ticket, Place::Running(runner.id, true));
            let grant = Grant { ticket, runner: runner.id, context: runner.launch.num_ctx };
            self.events.push((ticket, Ok(grant)));
        }
    }

    /// One thing that is due; whether there was one.
    fn step(&mut self, now: Duration) -> bool {
        for at in 0..self.runners.len() {
            let runner = &mut self.runners[at];
            match runner.phase {
                Phase::Up if runner.refs == 0 && runner.expires.is_some_and(|at| at <= now) => {
                    runner.phase = Phase::Unloading { until: now + self.limits.unload_time };
                    self.notes.push((runner.name.clone(), runner.doom));
                    return true;
                }
                Phase::Unloading { until } if until <= now => {
                    self.runners.remove(at);
                    return true;
                }
                Phase::Loading { until } if until <= now => {
                    self.loaded_now(at, now);
                    return true;
                }
                _ => {}
            }
        }
        match self.current.take() {
            Some((job, None)) => self.decide(now, job),
            Some(loading) => {
                self.current = Some(loading);
                false
            }
            None => match self.queue.pop_front() {
                Some(job) => {
                    if !job.cancelled {
                        self.places.insert(job.ticket, Place::Current);
                        self.current = Some((job, None));
                    }
                    true
                }
                None => false,
            },
        }
    }

    fn loaded_now(&mut self, at: usize, now: Duration) {
        let Some((job, _)) = self.current.take() else { return };
        if let Some(text) = job.ask.load_fails {
            self.notes.push((job.ask.name, Note::LoadFailed));
            self.runners.remove(at);
            self.places.remove(&job.ticket);
            self.events.push((job.ticket, Err(Refusal::LoadFailed(text))));
            return;
        }
        self.notes.push((job.ask.name.clone(), Note::Load));
        let runner = &mut self.runners[at];
        runner.phase = Phase::Up;
        self.use_runner(at, job.ticket, &job.ask);
        let runner = &mut self.runners[at];
        runner.expires = runner.keep_alive.map(|keep| now + keep);
    }

    /// What the loop does with the request it serves: use, evict and wait, or load. Whether anything changed.
    fn decide(&mut self, now: Duration, job: Job) -> bool {
        if job.cancelled {
            return true;
        }
        let same = self.runners.iter().position(|r| r.weights == job.ask.weights);
        let victim = match same {
            Some(at) if self.runners[at].phase != Phase::Up => {
                self.current = Some((job, None));
                return false;
            }
            Some(at) if self.runners[at].launch.fits(&job.ask.launch) => {
                self.use_runner(at, job.ticket, &job.ask);
                return true;
            }
            Some(at) => Some((at, Note::Reload)),
            None if self.full(&job.ask) => self.victim().map(|at| (at, Note::Eviction)),
            None => None,
        };
        if let Some((at, doom)) = victim {
            let runner = &mut self.runners[at];
            let fresh = runner.keep_alive != Some(Duration::ZERO);
            if runner.phase == Phase::Up && (fresh || runner.refs == 0) {
                runner.keep_alive = Some(Duration::ZERO);
                runner.doom = doom;
                if runner.refs == 0 {
                    runner.expires = Some(now);
                    self.current = Some((job, None));
                    return true;
                }
            }
            self.current = Some((job, None));
            return false;
        }
        self.load(now, job);
        true
    }

    fn full(&self, ask: &Ask) -> bool {
        let used: u64 = self.runners.iter().map(|r| r.size).sum();
        let short = self.limits.memory > 0 && used + ask.size > self.limits.memory;
        !self.runners.is_empty() && (short || self.runners.len() >= self.limits.max_loaded.max(1))
    }

    /// The runner with the shortest keep-alive, idle ones first; one that is going already before all.
    fn victim(&self) -> Option<usize> {
        let order =
            |r: &Runner| (r.phase == Phase::Up, r.refs > 0, r.keep_alive.unwrap_or(Duration::MAX), r.expires, r.id);
        (0..self.runners.len()).min_by_key(|at| order(&self.runners[*at]))
    }

    fn load(&mut self, now: Duration, job: Job) {
        let id = self.next;
        self.next += 1;
        self.runners.push(Runner {
            id,
            weights: job.ask.weights.clone(),
            name: job.ask.name.clone(),
            digest: job.ask.digest.clone(),
            size: job.ask.size,
            launch: job.ask.launch.clone(),
            expires: None,
            keep_alive: self.limits.keep_alive,
            doom: Note::Unload,
            refs: 0,
            slots: job.ask.slots.max(1),
            used: 0,
            waiters: VecDeque::new(),
            phase: Phase::Loading { until: now + job.ask.load_time },
        });
        self.current = Some((job, Some(id)));
    }
}

#[cfg(test)]
mod tests;
