//! Time: one monotonic clock for every deadline, and a UTC offset re-read each second for minutes.
//!
//! An event's minute is the monotonic time of its end plus the offset, so a step of the system clock moves
//! minutes at most once a second and never in the middle of a computation. Tests hold a manual clock.

use std::cell::Cell;
use std::pin::Pin;

use crate::ids::UnixMinute;
use crate::sync::{Arc, AtomicI64, AtomicU64, Ordering};

thread_local! {
    /// When the turn of this thread began, in microseconds; see [`Clock::in_turns`].
    static TURN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Milliseconds on the process' monotonic clock; zero is the clock's creation.
pub type Millis = u64;

/// A duration in whole milliseconds.
#[must_use]
pub fn millis(duration: std::time::Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A handle to the process' clock; clones share it.
#[derive(Clone, Debug)]
pub struct Clock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    origin: tokio::time::Instant,
    /// Set instead of reading the system, in tests.
    manual: Option<Manual>,
    /// Unix milliseconds minus monotonic milliseconds.
    offset_ms: AtomicI64,
}

/// The system's clocks as a test sets them.
#[derive(Debug)]
struct Manual {
    /// Monotonic milliseconds.
    now: AtomicU64,
    /// What [`Inner::offset_ms`] becomes when the UTC clock is read.
    offset_ms: AtomicI64,
}

impl Clock {
    /// The system's clocks.
    #[must_use]
    pub fn system() -> Self {
        let clock = Self {
            inner: Arc::new(Inner { origin: tokio::time::Instant::now(), manual: None, offset_ms: AtomicI64::new(0) }),
        };
        clock.resync();
        clock
    }

    /// A clock that moves only by [`Clock::advance`], [`Clock::step_utc`] and [`Clock::step_wall`]; monotonic zero is
    /// `unix_ms`.
    #[must_use]
    pub fn manual(unix_ms: u64) -> Self {
        let offset_ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
        Self {
            inner: Arc::new(Inner {
                origin: tokio::time::Instant::now(),
                manual: Some(Manual { now: AtomicU64::new(0), offset_ms: AtomicI64::new(offset_ms) }),
                offset_ms: AtomicI64::new(offset_ms),
            }),
        }
    }

    /// Monotonic milliseconds now, or at the beginning of this turn.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now_us() / 1000
    }

    /// Monotonic microseconds now, or at the beginning of this turn (durations of a request).
    #[must_use]
    pub fn now_us(&self) -> u64 {
        TURN.get().unwrap_or_else(|| self.exact_us())
    }

    /// Monotonic microseconds now, read anew.
    #[must_use]
    pub fn exact_us(&self) -> u64 {
        match &self.inner.manual {
            Some(manual) => manual.now.load(Ordering::Relaxed) * 1000,
            None => u64::try_from(self.inner.origin.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Polls `future` in turns: all that happens in one poll happens at one time, read once. A request asks for the time
    /// some twenty times, and a poll takes microseconds.
    pub async fn in_turns<T>(&self, mut future: Pin<&mut impl Future<Output = T>>) -> T {
        struct Turn;
        impl Drop for Turn {
            fn drop(&mut self) {
                TURN.set(None);
            }
        }
        std::future::poll_fn(|cx| {
            TURN.set(Some(self.exact_us()));
            let _turn = Turn;
            future.as_mut().poll(cx)
        })
        .await
    }

    /// Unix milliseconds now, by the offset last read.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        let now = i64::try_from(self.now()).unwrap_or(i64::MAX);
        u64::try_from(now.saturating_add(self.inner.offset_ms.load(Ordering::Relaxed))).unwrap_or(0)
    }

    /// The UTC minute now.
    #[must_use]
    pub fn minute(&self) -> UnixMinute {
        UnixMinute::of_unix_ms(self.unix_ms())
    }

    /// Re-reads the system's UTC clock; the control thread calls it each second.
    pub fn resync(&self) {
        let offset_ms = match &self.inner.manual {
            Some(manual) => manual.offset_ms.load(Ordering::Relaxed),
            None => {
                let unix = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
                unix.saturating_sub(i64::try_from(self.now()).unwrap_or(i64::MAX))
            }
        };
        self.inner.offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    /// Moves a manual clock forward.
    pub fn advance(&self, by: Millis) {
        if let Some(manual) = &self.inner.manual {
            manual.now.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Steps the UTC side of a manual clock, forward or back, as if it were read at once.
    pub fn step_utc(&self, by_ms: i64) {
        self.step_wall(by_ms);
        if self.inner.manual.is_some() {
            self.inner.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
        }
    }

    /// Steps the UTC clock of a manual clock's system, forward or back: seen when it is read next.
    pub fn step_wall(&self, by_ms: i64) {
        if let Some(manual) = &self.inner.manual {
            manual.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_wall_clock_is_seen_when_it_is_read_and_moves_no_deadline() {
        let clock = Clock::manual(1_795_608_030_000);
        for step_ms in [-120_000, 86_400_000, 0, 1] {
            let (now, unix_ms) = (clock.now(), clock.unix_ms());
            clock.step_wall(step_ms);
            assert_eq!((clock.now(), clock.unix_ms()), (now, unix_ms), "not read yet");
            clock.resync();
            assert_eq!((clock.now(), clock.unix_ms()), (now, unix_ms.saturating_add_signed(step_ms)));
            clock.resync();
            assert_eq!(clock.unix_ms(), unix_ms.saturating_add_signed(step_ms), "read twice, stepped once");
        }
        clock.step_wall(i64::MIN / 2);
        clock.resync();
        assert_eq!(clock.unix_ms(), 0, "before 1970 is 1970");
    }
}
