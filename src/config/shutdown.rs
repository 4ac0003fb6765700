//! How long the end of the process takes at most: what a service manager's patience is worked out from.
//!
//! Read by `main` (which tells the manager), `package` (whose files name it) and `gate` (which keeps to it).

use std::time::Duration;

use super::ShutdownConfig;

/// After the drain: threads end, the ledger flushes, the last lines are written. `gate/end.rs` holds the sum of its
/// bounds against this when it is compiled.
pub const END_MAX: Duration = Duration::from_secs(15);

/// Between our longest end and the patience of whoever would kill us: a machine that is busy.
const SLACK: Duration = Duration::from_secs(5);

impl ShutdownConfig {
    /// From the signal to the end, at most.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.delay.saturating_add(self.drain).saturating_add(END_MAX)
    }

    /// What a service manager should wait, in whole seconds, before it kills.
    #[must_use]
    pub fn patience_s(&self) -> u64 {
        let patience = self.longest().saturating_add(SLACK);
        patience.as_secs() + u64::from(patience.subsec_nanos() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_longer_than_the_longest_end_in_whole_seconds() {
        let of =
            |delay, drain| ShutdownConfig { delay: Duration::from_millis(delay), drain: Duration::from_millis(drain) };
        assert_eq!(of(0, 25_000).patience_s(), 45);
        assert_eq!(of(5_000, 25_000).patience_s(), 50);
        assert_eq!(of(1, 0).patience_s(), 21);
        for (delay, drain) in [(0, 0), (0, 25_000), (5_000, 25_000), (999, 1)] {
            let shutdown = of(delay, drain);
            assert!(Duration::from_secs(shutdown.patience_s()) > shutdown.longest());
            assert_eq!(shutdown.longest(), Duration::from_millis(delay + drain) + END_MAX);
        }
    }
}
