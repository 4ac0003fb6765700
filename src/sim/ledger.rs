//! What a simulated node did, counted by the node itself: the truth that the proxy's accounts are held against.
//!
//! Written by the handlers, read by tests, `demo` and the control path. A request is counted as done, and its slot
//! is free, *before* the last bytes of its answer leave, so that whoever has read the end finds it counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::sched::Note;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ending {
    /// Answered to the end.
    Done,
    /// Refused for what it asked (4xx, and the 500s that are the client's fault).
    Refused,
    /// Refused with 503 because the queue was full, or by a fault of that kind.
    Busy,
    /// The node failed: load, runner, or an injected 5xx.
    Failed,
    /// The client went away and the node noticed.
    ClientGone,
    /// The client went away before the scheduler took it: never answered, socket kept.
    Lost,
    /// Cut, reset, garbled or hung by a fault.
    Broken,
    /// The node was killed or stopped.
    Killed,
}

impl Ending {
    /// Every ending, in the order of their declaration.
    pub const ALL: [Self; 8] =
        [Self::Done, Self::Refused, Self::Busy, Self::Failed, Self::ClientGone, Self::Lost, Self::Broken, Self::Killed];

    /// Its name in the control path's JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Failed => "failed",
            Self::ClientGone => "client_gone",
            Self::Lost => "lost",
            Self::Broken => "broken",
            Self::Killed => "killed",
        }
    }
}

/// Tokens of one answer or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of the prompt, cached ones included.
    pub prompt: u64,
    /// Tokens of the answer.
    pub output: u64,
}

/// What a node did with one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelLedger {
    /// Inference requests by ending.
    pub requests: BTreeMap<Ending, u64>,
    /// Inference requests in the node now, those that wait for a load or a slot included.
    pub in_flight: u32,
    /// The most that were in the node at once.
    pub peak: u32,
    /// Tokens of the answers that were sent to the end, the body's terminator included.
    pub tokens: Tokens,
    /// Loads that ended well.
    pub loads: u64,
    /// Loads given up because the client that caused them went away.
    pub loads_aborted: u64,
    /// Loads that failed.
    pub loads_failed: u64,
    /// Times it was dropped to make room.
    pub evictions: u64,
    /// Times it was dropped to be loaded with other options.
    pub reloads: u64,
    /// Times it was dropped by request or because it was idle.
    pub unloads: u64,
}

/// What a node did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLedger {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now, lost ones included.
    pub open: u64,
    /// All requests by route and ending. Unknown paths are under `other`.
    pub requests: BTreeMap<(&'static str, Ending), u64>,
    /// By model, under its display name.
    pub models: BTreeMap<String, ModelLedger>,
    /// Sockets that will never be answered nor closed.
    pub sockets_lost: u64,
}

impl NodeLedger {
    /// Requests of a route, whatever their ending.
    #[must_use]
    pub fn route(&self, route: &str) -> u64 {
        self.requests.iter().filter(|((r, _), _)| *r == route).map(|(_, n)| n).sum()
    }

    /// Requests with this ending, over all routes.
    #[must_use]
    pub fn ended(&self, ending: Ending) -> u64 {
        self.requests.iter().filter(|((_, e), _)| *e == ending).map(|(_, n)| n).sum()
    }

    /// What was done with a model; nothing at all if it was never asked for.
    #[must_use]
    pub fn model(&self, name: &str) -> ModelLedger {
        self.models.get(name).cloned().unwrap_or_default()
    }

    /// Tokens of all answers sent to the end.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.models.values().fold(Tokens::default(), |sum, m| Tokens {
            prompt: sum.prompt + m.tokens.prompt,
            output: sum.output + m.tokens.output,
        })
    }

    /// Inference requests in the node now.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.models.values().map(|m| m.in_flight).sum()
    }

    /// Inference requests that came to an end, by ending.
    #[must_use]
    pub fn inference(&self, ending: Ending) -> u64 {
        self.models.values().filter_map(|m| m.requests.get(&ending)).sum()
    }

    /// Whether another request would be the most at once that this model ever had.
    pub(super) fn at_peak(&self, model: &str) -> bool {
        self.models.get(model).is_some_and(|m| m.in_flight >= m.peak)
    }

    pub(super) fn enter(&mut self, model: &str) {
        let entry = self.entry(model);
        entry.in_flight += 1;
        entry.peak = entry.peak.max(entry.in_flight);
    }

    /// Counts an ending; `tokens` only where the answer was sent to the end.
    pub(super) fn end(&mut self, route: &'static str, model: Option<&str>, ending: Ending, tokens: Tokens) {
        *self.requests.entry((route, ending)).or_default() += 1;
        if let Some(model) = model {
            let entry = self.entry(model);
            *entry.requests.entry(ending).or_default() += 1;
            entry.in_flight = entry.in_flight.saturating_sub(1);
            entry.tokens.prompt += tokens.prompt;
            entry.tokens.output += tokens.output;
        }
    }

    /// Takes an ending back because the last bytes could not be sent, and counts another one.
    pub(super) fn correct(
        &mut self,
        route: &'static str,
        model: Option<&str>,
        (from, to): (Ending, Ending),
        tokens: Tokens,
    ) {
        let take = |n: &mut u64| *n = n.saturating_sub(1);
        self.requests.entry((route, from)).and_modify(take);
        *self.requests.entry((route, to)).or_default() += 1;
        if let Some(model) = model {
            let entry = self.entry(model);
            entry.requests.entry(from).and_modify(take);
            *entry.requests.entry(to).or_default() += 1;
            entry.tokens.prompt -= tokens.prompt;
            entry.tokens.output -= tokens.output;
        }
    }

    pub(super) fn note(&mut self, model: &str, note: Note) {
        let entry = self.entry(model);
        let count = match note {
            Note::Load => &mut entry.loads,
            Note::LoadAborted => &mut entry.loads_aborted,
            Note::LoadFailed => &mut entry.loads_failed,
            Note::Eviction => &mut entry.evictions,
            Note::Reload => &mut entry.reloads,
            Note::Unload => &mut entry.unloads,
        };
        *count += 1;
    }

    fn entry(&mut self, model: &str) -> &mut ModelLedger {
        if !self.models.contains_key(model) {
            self.models.insert(model.to_owned(), ModelLedger::default());
        }
        self.models.get_mut(model).expect("inserted above")
    }

    /// The ledger as JSON, for the control path.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        let (tokens, lost) = (self.tokens(), self.sockets_lost);
        let _ = write!(out, "{{\"connections\":{},\"open\":{},\"sockets_lost\":{lost}", self.connections, self.open);
        let _ = write!(out, ",\"prompt_tokens\":{},\"output_tokens\":{}", tokens.prompt, tokens.output);
        let _ = write!(out, ",\"in_flight\":{},\"requests\":{{", self.in_flight());
        let mut routes: Vec<&str> = self.requests.keys().map(|(r, _)| *r).collect();
        routes.dedup();
        for (i, route) in routes.into_iter().enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            super::text::quote(&mut out, route);
            out.push(':');
            let of = self.requests.iter().filter(|((r, _), _)| *r == route).map(|((_, e), n)| (*e, *n));
            endings(&mut out, of);
        }
        out.push_str("},\"models\":{");
        for (i, (name, m)) in self.models.iter().enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            super::text::quote(&mut out, name);
            out.push_str(":{\"requests\":");
            endings(&mut out, m.requests.iter().map(|(e, n)| (*e, *n)));
            let _ = write!(out, ",\"in_flight\":{},\"peak\":{}", m.in_flight, m.peak);
            let _ = write!(out, ",\"prompt_tokens\":{},\"output_tokens\":{}", m.tokens.prompt, m.tokens.output);
            let _ = write!(out, ",\"loads\":{},\"loads_aborted\":{}", m.loads, m.loads_aborted);
            let _ = write!(out, ",\"loads_failed\":{},\"evictions\":{}", m.loads_failed, m.evictions);
            let _ = write!(out, ",\"reloads\":{},\"unloads\":{}}}", m.reloads, m.unloads);
        }
        out.push_str("}}");
        out
    }
}

fn endings(out: &mut String, of: impl Iterator<Item = (Ending, u64)>) {
    out.push('{');
    for (i, (ending, n)) in of.enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}\"{}\":{n}", ending.word());
    }
    out.push('}');
}
