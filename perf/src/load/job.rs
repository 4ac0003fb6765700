//! What the load generator is asked, and what it answers: the two ends of its pipes.
//!
//! Written and read by `run` and `flame` on one side, by `load` on the other.

use serde::{Deserialize, Serialize};

use crate::accounting::{Memory, Usage};
use crate::scenario::Scenario;
use crate::stats::Spread;

/// One window to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) scenario: Scenario,
    pub(crate) port: u16,
    pub(crate) mode: Mode,
    pub(crate) warm_ms: u64,
    pub(crate) window_ms: u64,
    /// The proxy's processes; none when there is no proxy.
    pub(crate) watch: Vec<u32>,
    /// The nodes' process.
    pub(crate) backend: Option<u32>,
}

/// How requests start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Each connection asks again as soon as it is answered.
    Closed { connections: usize },
    /// Arrivals as they come (Poisson), whatever the answers do; latency counts from the intended start.
    Open { per_second: f64, connections: usize, seed: u64 },
    /// Streams are opened and stay.
    Hold { connections: usize },
}

/// What one window showed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) window_ns: u64,
    /// Answers that became whole within the window.
    pub(crate) completed: u64,
    /// Answers that became whole from first to last, outside the window too.
    pub(crate) completed_in_all: u64,
    /// Body bytes within the window, in answers: what the window's work amounts to, cut streams included.
    pub(crate) answers: f64,
    /// Everything that went wrong, the warm-up included.
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) latency: Spread,
    pub(crate) first_byte: Spread,
    /// Between two records of a stream.
    pub(crate) gaps: Spread,
    /// Of the proxy, within the window.
    pub(crate) usage: Usage,
    pub(crate) memory_before: Memory,
    pub(crate) memory: Memory,
    /// Shares of the window that the generator and the nodes ran.
    pub(crate) generator_busy: f64,
    pub(crate) backend_busy: f64,
    /// Arrivals that found no free connection.
    pub(crate) queued: u64,
}
