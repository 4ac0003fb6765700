//! How many retries a worker may make: a share of its recent requests, and always a few.
//!
//! Owned by one worker, pure: `now` is passed in. Without it, retries multiply the load of a fleet that fails under load.

use crate::clock::Millis;

/// The window, in slices of one second.
const SLICES: usize = 10;
const SLICE_MS: Millis = 1_000;

/// The retry budget of one worker: `retry_share` per cent of the requests of the last 10 s, at least `retry_floor`.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    share_percent: u64,
    floor: u64,
    /// Requests and retries of each second of the window; `newest` is the second of the current slice.
    slices: [(u32, u32); SLICES],
    newest: u64,
}

impl RetryBudget {
    /// An unused budget.
    #[must_use]
    pub fn new(share_percent: u32, floor: u32) -> Self {
        Self { share_percent: share_percent.into(), floor: floor.into(), slices: [(0, 0); SLICES], newest: 0 }
    }

    /// Counts a request (not its retries).
    pub fn note_request(&mut self, now: Millis) {
        let slice = self.slice(now);
        slice.0 = slice.0.saturating_add(1);
    }

    /// Takes one retry if the budget has one.
    #[must_use]
    pub fn try_retry(&mut self, now: Millis) -> bool {
        self.slice(now);
        let sum = |of: fn(&(u32, u32)) -> u32| self.slices.iter().map(|s| u64::from(of(s))).sum::<u64>();
        let (requests, retries) = (sum(|s| s.0), sum(|s| s.1));
        if retries >= (requests * self.share_percent / 100).max(self.floor) {
            return false;
        }
        let slice = self.slice(now);
        slice.1 = slice.1.saturating_add(1);
        true
    }

    /// The current second's slice, those that fell out of the window cleared.
    fn slice(&mut self, now: Millis) -> &mut (u32, u32) {
        let second = (now / SLICE_MS).max(self.newest);
        let length = SLICES as u64;
        for passed in (self.newest + 1..=second).rev().take(SLICES) {
            self.slices[index(passed % length)] = (0, 0);
        }
        self.newest = second;
        &mut self.slices[index(second % length)]
    }
}

fn index(slice: u64) -> usize {
    usize::try_from(slice).unwrap_or(0)
}
