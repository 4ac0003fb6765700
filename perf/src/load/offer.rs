//! When requests start: arrivals of the open loop, streams that are opened to stay, and the end of it all.
//!
//! Called by `load` alone.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{DRAIN, Load, Mode, OPENING_MAX};
use crate::workload::Random;

impl Load {
    /// Lets what is under way end.
    pub(super) fn drain(&mut self) -> anyhow::Result<()> {
        self.waiting.clear();
        self.agenda.clear();
        let until = Instant::now() + self.answer_time() + DRAIN;
        while self.under_way > 0 && Instant::now() < until {
            self.turn(Instant::now() + Duration::from_millis(20))?;
        }
        let late = self.under_way;
        if late > 0 {
            self.wrong(&format!("{late} answers did not end in time"));
        }
        Ok(())
    }

    /// Opens streams, some at a time, until each has brought its first bytes.
    pub(super) fn open_all(&mut self, connections: usize) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        let mut asked = 0;
        while self.opened < connections {
            ensure!(Instant::now() < until, "{} of {connections} streams opened within a minute", self.opened);
            ensure!(self.figures.errors < 100, "streams fail: {:?}", self.figures.first_error);
            while asked < connections && asked - self.opened.min(asked) < OPENING_MAX {
                let at = self.connect()?;
                self.start(at, Instant::now());
                asked += 1;
            }
            self.turn(Instant::now() + Duration::from_millis(5))?;
        }
        Ok(())
    }

    pub(super) fn until(&mut self, end: Instant) -> anyhow::Result<()> {
        match self.job.mode {
            Mode::Open { per_second, seed, .. } => {
                let mut random = Random(seed | 1);
                // Another seed for the window than for the warm-up, the same in every run.
                random.0 = random.0.wrapping_add(u64::from(self.measuring) << 32);
                let mut next = Instant::now();
                loop {
                    next += Duration::from_secs_f64(-random.unit().ln() / per_second);
                    while Instant::now() < next.min(end) {
                        self.turn(next.min(end))?;
                    }
                    if next >= end {
                        return Ok(());
                    }
                    self.arrive(next);
                }
            }
            Mode::Closed { .. } | Mode::Hold { .. } => {
                while Instant::now() < end {
                    self.turn(end)?;
                }
                Ok(())
            }
        }
    }

    pub(super) fn arrive(&mut self, intended: Instant) {
        match self.idle.pop() {
            Some(at) => self.start(at, intended),
            None => {
                self.figures.queued += 1;
                self.waiting.push_back(intended);
            }
        }
    }
}
