//! Health of one node: a pure state machine, `(state, event, now) -> (state, effects)`.
//!
//! Fed by the poller with the results of its probes and with what workers report; it does no I/O, holds no clock and
//! logs nothing itself. Slots and routing must never import it: they see the node's word and the Snapshot.
//!
//! # Unknown → Up
//! The first answer of any kind, to a probe or to a request.
//!
//! # Unknown → Down
//! The first failed probe: nothing is known in the node's favour. A refused connection likewise.
//!
//! # Up → Down
//! Two failed probes in a row, or one refused connection, or our own instance id in its answer.
//! A time-out of `/api/ps` or `/api/tags` is not an event here.
//!
//! # Down → Up
//! One success. The node has *come back*: its inventory and residency are asked at once, and it is `recovering` for
//! [`RECOVERING_MS`] (one cold load at a time). Our own instance id is never a success.
//! A node that said no (refused a connection, or is ourselves) comes back by a probe alone, sent since on a connection
//! of its own: streams of before go on while a server stops, and prove nothing about new ones.
//!
//! # Down → Down
//! Each failed probe doubles the pause to the next one, up to `backoff_max`. The cause follows the latest failure; a
//! silent node that refuses a connection has said no from then on.
//!
//! # Up → Up, suspect or not
//! Suspicion ([`crate::fleet::progress`]) closes the node for new work; it stays up. Going down forgets it.

use crate::clock::Millis;
use crate::sync::Arc;

/// How long a node that came back gets one cold load at a time: six rounds of `/api/ps`, enough to see what it loads.
pub const RECOVERING_MS: Millis = 30_000;

/// State changes of one node are logged at most this often.
pub const LOG_EVERY_MS: Millis = 10_000;

/// Nodes below which the panic threshold means nothing: with three, two failures are an ordinary bad day.
const PANIC_NODES_MIN: usize = 4;

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Nothing was heard of it yet.
    Unknown,
    /// It takes requests.
    Up,
    /// It does not.
    Down,
}

/// How a node went down; routing may disbelieve silence (panic threshold), never a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fall {
    /// Probes failed: as likely our network as the node.
    Silent,
    /// The node's own machine, or the node itself, said no.
    Answered,
}

/// What is known of one node's health.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    pub since: Millis,
    /// Why, for people.
    pub cause: Arc<str>,
    /// How it went down, if it did.
    pub fall: Fall,
    /// It was up at some time of this process.
    pub reached: bool,
    /// Up, but requests on it are silent.
    pub suspect: bool,
    /// It came back and is recovering until then; 0: it is not.
    pub recovering_until: Millis,
    /// When to probe next.
    pub probe_at: Millis,
    /// Failed probes in a row.
    failures: u32,
    /// When a change was logged last.
    logged_at: Option<Millis>,
    /// Changes since then that were not logged.
    unlogged: u32,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A probe was answered as it should be.
    ProbeOk {
        /// When it was sent.
        asked_at: Millis,
    },
    /// A probe failed or was answered otherwise.
    ProbeFailed {
        /// When it was sent.
        asked_at: Millis,
        /// In words.
        cause: Arc<str>,
    },
    /// It could not be asked, for a reason of ours: nothing is known but what was.
    Unasked {
        /// When the probe was to be sent.
        asked_at: Millis,
        /// Why.
        cause: Arc<str>,
    },
    /// A connection to it was refused, whoever tried.
    Refused,
    /// A request of a client was answered by it.
    Reached,
    /// It answered with this process' own instance id.
    Ourselves {
        /// When the probe was sent.
        asked_at: Millis,
    },
    /// What [`crate::fleet::progress::suspicion`] says now.
    Suspicion(bool),
    /// A second has passed: log what was held back, end recovering.
    Tick,
}

/// What the poller has to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// Phase, how it fell, suspicion or recovery changed: set the node's word, publish.
    pub changed: bool,
    /// It came up: ask for its inventory and residency now.
    pub came_up: bool,
    /// Log this state change.
    pub log: Option<Line>,
}

/// A log line about a node's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Where it stands now.
    pub phase: Phase,
    /// Whether it is suspect.
    pub suspect: bool,
    /// Why.
    pub cause: Arc<str>,
    /// State changes since the last line that had none of their own.
    pub unlogged: u32,
}

/// The intervals in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Between two probes of a node that is up.
    pub probe_ms: Millis,
    /// The longest pause between two probes of a node that is down.
    pub backoff_max_ms: Millis,
}

impl Health {
    /// A node nobody has asked yet; probed at once.
    #[must_use]
    pub fn new(now: Millis) -> Self {
        Self {
            phase: Phase::Unknown,
            since: now,
            cause: "not reached yet".into(),
            fall: Fall::Silent,
            reached: false,
            suspect: false,
            recovering_until: 0,
            probe_at: now,
            failures: 0,
            logged_at: None,
            unlogged: 0,
        }
    }

    /// Up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }
}

/// The node's next state and what it asks for. `jitter` is uniform in 0..1000.
#[must_use]
pub fn step(health: &Health, event: Event, now: Millis, rules: &Rules, jitter: u32) -> (Health, Effects) {
    let mut next = health.clone();
    let mut effects = Effects::default();
    match event {
        Event::ProbeOk { asked_at } => {
            next.probe_at = after(asked_at, rules.probe_ms, now, jitter);
            // One sent before the fall may have gone over a connection of before.
            if !(said_no(health) && asked_at <= health.since) {
                up(&mut next, &mut effects, "answers probes", now);
            }
        }
        Event::Reached => {
            // The pause to the next probe may be a long one, from when it was down.
            next.probe_at = next.probe_at.min(after(now, rules.probe_ms, now, jitter));
            if !said_no(health) {
                up(&mut next, &mut effects, "answered a request", now);
            }
        }
        Event::ProbeFailed { asked_at, cause } => {
            next.failures = next.failures.saturating_add(1);
            match health.phase {
                Phase::Up if next.failures >= 2 => down(&mut next, &mut effects, cause, Fall::Silent, now),
                Phase::Up => {}
                Phase::Unknown => down(&mut next, &mut effects, cause, Fall::Silent, now),
                Phase::Down => next.cause = cause,
            }
            next.probe_at = after(asked_at, pause(&next, rules), now, jitter);
        }
        Event::Unasked { asked_at, cause } => {
            if health.phase != Phase::Up {
                next.cause = cause;
            }
            next.probe_at = after(asked_at, pause(&next, rules), now, jitter);
        }
        Event::Refused => {
            // A later probe that is refused comes with its own ProbeFailed; only a fall resets the pause here.
            if health.phase != Phase::Down {
                down(&mut next, &mut effects, "connection refused".into(), Fall::Answered, now);
                next.failures = 0;
                next.probe_at = after(now, rules.probe_ms, now, jitter);
            } else if health.fall == Fall::Silent {
                // It fell silent, and now its machine says no: nobody has to guess any more whose fault it is.
                next.fall = Fall::Answered;
                next.cause = "connection refused".into();
                effects.changed = true;
            }
        }
        Event::Ourselves { asked_at } => {
            let cause: Arc<str> = "answers with our own instance id: this node is herdgate itself".into();
            next.failures = next.failures.saturating_add(1);
            if health.phase == Phase::Down {
                next.cause = cause;
            } else {
                down(&mut next, &mut effects, cause, Fall::Answered, now);
            }
            next.probe_at = after(asked_at, rules.backoff_max_ms, now, jitter);
        }
        Event::Suspicion(suspect) => {
            if health.is_up() && health.suspect != suspect {
                next.suspect = suspect;
                next.cause = if suspect { "requests on it are silent" } else { "bytes came again" }.into();
                change(&mut next, &mut effects, now);
            }
        }
        Event::Tick => tick(&mut next, &mut effects, now),
    }
    (next, effects)
}

/// It is down, and not for silence: what goes on over connections of before does not count.
fn said_no(health: &Health) -> bool {
    health.phase == Phase::Down && health.fall == Fall::Answered
}

/// To Up, from wherever.
fn up(next: &mut Health, effects: &mut Effects, cause: &str, now: Millis) {
    next.failures = 0;
    if next.phase == Phase::Up {
        return;
    }
    // Only a node that fell is expected to be flooded with loads; a first start is spread by routing itself.
    next.recovering_until = if next.reached { now + RECOVERING_MS } else { 0 };
    next.phase = Phase::Up;
    next.since = now;
    next.cause = cause.into();
    next.reached = true;
    effects.came_up = true;
    change(next, effects, now);
}

/// To Down, from Unknown or Up.
fn down(next: &mut Health, effects: &mut Effects, cause: Arc<str>, fall: Fall, now: Millis) {
    next.phase = Phase::Down;
    next.since = now;
    next.cause = cause;
    next.fall = fall;
    next.suspect = false;
    next.recovering_until = 0;
    change(next, effects, now);
}

/// Logs this change, or holds the line back if the last one is too fresh.
fn change(next: &mut Health, effects: &mut Effects, now: Millis) {
    effects.changed = true;
    next.unlogged = next.unlogged.saturating_add(1);
    log_if_due(next, effects, now);
}

fn tick(next: &mut Health, effects: &mut Effects, now: Millis) {
    if next.recovering_until != 0 && now >= next.recovering_until {
        next.recovering_until = 0;
        effects.changed = true;
    }
    if next.unlogged > 0 {
        log_if_due(next, effects, now);
    }
}

fn log_if_due(next: &mut Health, effects: &mut Effects, now: Millis) {
    if next.logged_at.is_some_and(|at| now.saturating_sub(at) < LOG_EVERY_MS) {
        return;
    }
    next.logged_at = Some(now);
    let unlogged = std::mem::take(&mut next.unlogged).saturating_sub(1);
    effects.log = Some(Line { phase: next.phase, suspect: next.suspect, cause: Arc::clone(&next.cause), unlogged });
}

/// The pause after this many failures: the probe interval, doubled from the second failure on.
fn pause(health: &Health, rules: &Rules) -> Millis {
    if health.phase != Phase::Down {
        return rules.probe_ms;
    }
    let doublings = health.failures.saturating_sub(1).min(16);
    rules.probe_ms.saturating_mul(1 << doublings).min(rules.backoff_max_ms.max(rules.probe_ms))
}

/// `interval` after `asked_at`, 10 % sooner or later, but never in the past.
fn after(asked_at: Millis, interval: Millis, now: Millis, jitter: u32) -> Millis {
    (asked_at + jittered(interval, jitter)).max(now)
}

/// The interval, up to 10 % shorter or longer, so that polls of many nodes and of several routers drift apart.
#[must_use]
pub fn jittered(interval: Millis, jitter: u32) -> Millis {
    interval.saturating_mul(900 + Millis::from(jitter.min(1_000)) / 5) / 1_000
}

/// What the panic threshold needs of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Up.
    pub up: bool,
    /// When it fell from up, if it fell in silence.
    pub fell_silent_at: Option<Millis>,
}

impl Standing {
    /// This node's.
    #[must_use]
    pub fn of(health: &Health) -> Self {
        let fell = health.phase == Phase::Down && health.reached && health.fall == Fall::Silent;
        Self { up: health.is_up(), fell_silent_at: fell.then_some(health.since) }
    }
}

/// Whether it is more likely us than the nodes: more than `percent` of them fell silent within one `window`.
///
/// From four nodes up. A refused connection is not silence: it came from the node's machine, so the network works.
/// `was` keeps the panic while that many are still down, for at most `hold` after the newest fall; a failure that lasts
/// longer is theirs after all, and keeping to dead nodes would cost every request a time-out.
#[must_use]
pub fn panicking(was: bool, nodes: &[Standing], now: Millis, window: Millis, hold: Millis, percent: u32) -> bool {
    if nodes.len() < PANIC_NODES_MIN {
        return false;
    }
    let silent: Vec<Millis> = nodes.iter().filter_map(|node| node.fell_silent_at).collect();
    let Some(newest) = silent.iter().copied().max() else { return false };
    if now.saturating_sub(newest) >= hold {
        return false;
    }
    let many = |count: usize| count * 100 > nodes.len() * usize::try_from(percent).unwrap_or(usize::MAX);
    let together = silent.iter().filter(|&&at| newest.saturating_sub(at) <= window).count();
    many(together) || (was && many(silent.len()))
}

#[cfg(test)]
mod tests;
