//! Access lines: what finished, written off the hot path through a bounded ring.
//!
//! Workers note outcomes that deserve a line (`log.access`); the control thread writes them. Full: the line is lost
//! and counted. Must never hold a body, a key or a query string.

use crossbeam::queue::ArrayQueue;

use crate::config::AccessLog;
use crate::dialect::Route;
use crate::ids::RequestId;
use crate::sync::{AtomicU64, Ordering};
use crate::usage::names::Names;
use crate::usage::{Count, Ending, Outcome};

/// Lines that wait to be written, at most.
const LINES_MAX: usize = 4096;

/// Lines written in one round, at most: the control thread has other things to do.
const ROUND: usize = 512;

/// A wait that deserves a line under `errors`.
const LONG_WAIT_US: u64 = 1_000_000;

/// A request that deserves a line under `errors`.
const LONG_REQUEST_US: u64 = 10_000_000;

/// What the request is called, and the time-out that ended it, if one did.
type Told = (RequestId, Option<&'static str>);

/// The ring of lines to write.
#[derive(Debug)]
pub struct Access {
    lines: ArrayQueue<(Outcome, Option<Route>, Told)>,
    lost: AtomicU64,
}

impl Default for Access {
    /// An empty ring.
    fn default() -> Self {
        Self { lines: ArrayQueue::new(LINES_MAX), lost: AtomicU64::new(0) }
    }
}

impl Access {
    /// Notes a finished request, if it deserves a line; without a route it was refused before it had one.
    pub fn note(&self, mode: AccessLog, outcome: &Outcome, route: Option<Route>, told: Told) {
        if deserves(mode, outcome) && self.lines.push((*outcome, route, told)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines lost because the ring was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Writes what was noted, up to a round of it; called by the control thread.
    pub fn write(&self, names: &Names) {
        self.write_most(ROUND, names);
    }

    /// Writes all that was noted: at the end of the process.
    pub fn write_last(&self, names: &Names) {
        self.write_most(LINES_MAX, names);
    }

    fn write_most(&self, most: usize, names: &Names) {
        for _ in 0..most {
            let Some((outcome, route, (id, timeout))) = self.lines.pop() else { return };
            let (tokens, estimated) = match outcome.count {
                Count::Exact(tokens) => (tokens, false),
                Count::Estimated(tokens) => (tokens, true),
                Count::Nothing => Default::default(),
            };
            tracing::info!(
                target: "access",
                request_id = %id,
                route = route.map(tracing::field::debug),
                outcome = Ending::LABELS[outcome.ending.index()],
                why = why(outcome.ending),
                timeout,
                status = outcome.status,
                node = %names.node_name(outcome.node),
                model = %names.model_name(outcome.model),
                key = %names.key_name(outcome.key),
                tokens_in = tokens.input,
                tokens_out = tokens.output,
                estimated,
                queue_ms = outcome.queue_us / 1000,
                first_byte_ms = outcome.first_byte_us / 1000,
                total_ms = outcome.total_us / 1000,
                "request"
            );
        }
    }
}

/// Why a request was rejected; nothing for one that was not.
fn why(ending: Ending) -> Option<&'static str> {
    match ending {
        Ending::Rejected(why) => Some(why.label()),
        _ => None,
    }
}

fn deserves(mode: AccessLog, outcome: &Outcome) -> bool {
    match mode {
        AccessLog::Off => false,
        AccessLog::All => true,
        AccessLog::Errors => {
            outcome.ending != Ending::Completed || outcome.queue_us > LONG_WAIT_US || outcome.total_us > LONG_REQUEST_US
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UnixMinute;

    fn outcome(ending: Ending, queue_us: u64, total_us: u64) -> Outcome {
        Outcome { status: 200, queue_us, total_us, ..Outcome::bare(UnixMinute(0), ending) }
    }

    #[test]
    fn only_what_an_operator_looks_for_gets_a_line() {
        let quick = outcome(Ending::Completed, 0, 1000);
        assert!(!deserves(AccessLog::Errors, &quick));
        assert!(deserves(AccessLog::All, &quick));
        assert!(!deserves(AccessLog::Off, &outcome(Ending::ClientGone, 0, 0)));
        assert!(deserves(AccessLog::Errors, &outcome(Ending::ClientGone, 0, 0)));
        assert!(deserves(AccessLog::Errors, &outcome(Ending::Completed, 1_000_001, 0)));
        assert!(deserves(AccessLog::Errors, &outcome(Ending::Completed, 0, 10_000_001)));
    }
}
