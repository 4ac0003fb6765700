//! Faults on command: what goes wrong at a simulated node, for whom and how often.
//!
//! Given by tests through [`super::Node::fault`] or over the control path as JSON; asked by the handlers at each
//! request. Pure.

use std::time::Duration;

use super::gojson::{self, Value};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Harm {
    /// The port is closed: connections are refused. It ends with [`super::Node::clear_faults`].
    Refuse,
    /// The request is read and never answered.
    Hang,
    /// The connection is reset after the request was read, before any byte of an answer.
    Reset,
    /// The connection is closed after the request was read, before any byte of an answer.
    Close,
    /// This status and text, in the error shape of the route.
    Status(u16, String),
    /// 503 with Ollama's words for a full queue.
    Busy,
    /// Bytes that are no HTTP, then a close.
    Garbage,
    /// The head of the answer comes so much later.
    Delay(Duration),
    /// So much time between the chunks of a stream.
    Slow(Duration),
    /// The connection ends after so many bytes of the answer, head and framing included; an answer that is no longer
    /// than that is left whole.
    Cut {
        /// Bytes that are still sent.
        at: u64,
        /// By a reset, not by a close.
        reset: bool,
    },
    /// Nothing more is sent after so many bytes of the answer; the connection stays. A shorter answer is left whole.
    HangAt(u64),
    /// The runner's process dies after so many tokens; everything in it fails.
    RunnerDies(u32),
    /// Loads end with this text.
    LoadFails(String),
    /// Loads never end.
    LoadHangs,
    /// `/api/tags` and `/v1/models` list nothing.
    EmptyLists,
}

/// Whom a fault meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Only {
    /// Every request.
    All,
    /// Requests for generation and embedding.
    Inference,
    /// Requests for this path.
    Path(String),
}

/// A fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub harm: Harm,
    /// Whom it meets.
    pub only: Only,
    /// Only requests for this model, by display name.
    pub model: Option<String>,
    /// Met by so many requests, then gone; absent: until cleared.
    pub times: Option<u64>,
    /// The share of requests that meet it, drawn from the node's seed.
    pub chance: f64,
}

impl Fault {
    /// This harm to every request for generation and embedding, until cleared. [`Harm::Refuse`],
    /// [`Harm::EmptyLists`] and load faults meet what they name.
    #[must_use]
    pub fn new(harm: Harm) -> Self {
        Self { harm, only: Only::Inference, model: None, times: None, chance: 1.0 }
    }

    /// Met by every request.
    #[must_use]
    pub fn for_all(mut self) -> Self {
        self.only = Only::All;
        self
    }

    /// Met by requests for this path only (`/api/ps` to mute it).
    #[must_use]
    pub fn for_path(mut self, path: &str) -> Self {
        self.only = Only::Path(path.to_owned());
        self
    }

    /// Met by requests for this model only.
    #[must_use]
    pub fn for_model(mut self, name: &str) -> Self {
        self.model = Some(super::names::Name::parse(name).map_or_else(|_| name.to_owned(), |n| n.display()));
        self
    }

    /// Met by the next requests only.
    #[must_use]
    pub fn next(mut self, requests: u64) -> Self {
        self.times = Some(requests);
        self
    }

    /// Met by this share of requests.
    #[must_use]
    pub fn chance(mut self, share: f64) -> Self {
        self.chance = share;
        self
    }

    /// Reads a fault from the control path's JSON, such as
    /// `{"harm":"cut","at":700,"path":"/api/chat","next":3}`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(body: &[u8]) -> Result<Self, String> {
        let (value, _) = gojson::parse(body)?;
        let number = |name: &str| value.get(name).and_then(Value::as_f64);
        let count = |name: &str| value.get(name).and_then(Value::as_i64).and_then(|n| u64::try_from(n).ok());
        let ms = Duration::from_secs_f64(number("ms").unwrap_or(0.0).max(0.0) / 1000.0);
        let text = |default: &str| match value.str("text") {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        let harm = match value.str("harm") {
            "refuse" => Harm::Refuse,
            "hang" => Harm::Hang,
            "reset" => Harm::Reset,
            "close" => Harm::Close,
            "status" => {
                let status = count("status").and_then(|s| u16::try_from(s).ok()).unwrap_or(500);
                Harm::Status(status, text("CUDA error: out of memory"))
            }
            "busy" => Harm::Busy,
            "garbage" => Harm::Garbage,
            "delay" => Harm::Delay(ms),
            "slow" => Harm::Slow(ms),
            "cut" => Harm::Cut {
                at: count("at").unwrap_or(0),
                reset: value.get("reset").and_then(Value::as_bool).unwrap_or(false),
            },
            "hang_at" => Harm::HangAt(count("at").unwrap_or(0)),
            "runner_dies" => Harm::RunnerDies(count("at").and_then(|n| u32::try_from(n).ok()).unwrap_or(0)),
            "load_fails" => Harm::LoadFails(text("llama-server process has terminated: signal: killed")),
            "load_hangs" => Harm::LoadHangs,
            "empty_lists" => Harm::EmptyLists,
            other => return Err(format!("unknown harm {other:?}")),
        };
        let mut fault = Self::new(harm);
        match (value.str("path"), value.str("only")) {
            ("", "all") => fault.only = Only::All,
            ("", _) => {}
            (path, _) => fault.only = Only::Path(path.to_owned()),
        }
        if !value.str("model").is_empty() {
            fault = fault.for_model(value.str("model"));
        }
        fault.times = count("next");
        fault.chance = number("chance").unwrap_or(1.0);
        Ok(fault)
    }

    fn meets(&self, path: &str, inference: bool, model: Option<&str>) -> bool {
        let here = match &self.only {
            Only::All => true,
            Only::Inference => inference,
            Only::Path(only) => only == path,
        };
        here && self.model.as_deref().is_none_or(|only| model == Some(only))
    }
}

/// A node's faults and its dice.
#[derive(Debug)]
pub(super) struct Faults {
    list: Vec<Fault>,
    dice: u64,
}

/// When in a request's life its faults are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moment {
    /// The request was read (and its model is known, if it names one).
    Asked,
    /// A load is about to begin.
    Load,
    /// A list is about to be written.
    List,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { list: Vec::new(), dice: seed ^ 0x9e37_79b9_7f4a_7c15 }
    }

    pub(super) fn add(&mut self, fault: Fault) {
        self.list.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// Whether nothing goes wrong.
    pub(super) fn none(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether the port has to be closed.
    pub(super) fn refuses(&self) -> bool {
        self.list.iter().any(|f| f.harm == Harm::Refuse)
    }

    /// A number that looks random.
    pub(super) fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The harms that meet a request now; each of them is used up by one.
    pub(super) fn meet(&mut self, moment: Moment, path: &str, inference: bool, model: Option<&str>) -> Vec<Harm> {
        if self.list.is_empty() {
            return Vec::new();
        }
        let mut met = Vec::new();
        for at in 0..self.list.len() {
            let fault = &self.list[at];
            let due = match fault.harm {
                Harm::Refuse => false,
                Harm::LoadFails(_) | Harm::LoadHangs => {
                    moment == Moment::Load && fault.model.as_deref().is_none_or(|only| model == Some(only))
                }
                Harm::EmptyLists => moment == Moment::List,
                _ => moment == Moment::Asked && fault.meets(path, inference, model),
            };
            if !due || fault.times == Some(0) {
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "53 bits of a die are enough")]
            let drawn = (self.roll() >> 11) as f64 / (1u64 << 53) as f64;
            let fault = &mut self.list[at];
            if drawn < fault.chance {
                fault.times = fault.times.map(|n| n - 1);
                met.push(fault.harm.clone());
            }
        }
        self.list.retain(|f| f.times != Some(0));
        met
    }
}
