//! Whether a thread moves on: it says by when it will be back, and whoever wonders compares that with the time.
//!
//! Promised by every thread that must not stop (workers at their tick, control, polls, ledger); read by the liveness probe,
//! `/health`, `/metrics` and `main`. A thread that panics is gone and is noticed by that; one that hangs is noticed here
//! alone. Must never cost more than a store: workers promise.

use crate::clock::Millis;
use crate::sync::Hint;

/// A thread that is this late is taken as stuck, milliseconds. Long: a busy machine, or one that was stopped for a while,
/// is no defect of ours.
pub const STUCK_MS: Millis = 30_000;

/// What one thread has promised.
#[derive(Debug)]
pub struct Pulse {
    /// On the process' clock; the largest number: nothing is promised.
    due: Hint,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { due: Hint::new(Millis::MAX) }
    }
}

impl Pulse {
    /// The thread will be back by then.
    pub fn promise(&self, due: Millis) {
        self.due.set(due);
    }

    /// The thread has ended, or waits for nothing: it promises nothing any more.
    pub fn rest(&self) {
        self.due.set(Millis::MAX);
    }

    /// How late it is.
    #[must_use]
    pub fn late(&self, now: Millis) -> Millis {
        now.saturating_sub(self.due.get())
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn late_is_who_promised_and_did_not_come() {
        let pulse = Pulse::default();
        assert_eq!(pulse.late(1_000_000), 0, "who has not begun is not late");
        pulse.promise(100);
        assert_eq!((pulse.late(99), pulse.late(100), pulse.late(100 + STUCK_MS)), (0, 0, STUCK_MS));
        pulse.promise(200_000);
        assert_eq!(pulse.late(100 + STUCK_MS), 0);
        pulse.rest();
        assert_eq!(pulse.late(Millis::MAX), 0);
    }
}
