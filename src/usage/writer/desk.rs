//! The store thread's place: takes jobs from the ledger thread one after the other, and hands back reports.
//!
//! Run by [`crate::usage::ledger`] on its own thread, by tests and benches directly. Must never end because a job
//! panicked, and never let a long question keep a job waiting.

use std::panic::AssertUnwindSafe;

use super::{Job, Report, Writer};
use crate::usage::ledger::LedgerError;

/// The store thread's place: takes jobs, hands back reports.
#[derive(Debug)]
pub struct Desk {
    writer: Writer,
    jobs: flume::Receiver<Job>,
    reports: flume::Sender<Report>,
}

impl Desk {
    /// A desk between these channels.
    #[must_use]
    pub fn new(writer: Writer, jobs: flume::Receiver<Job>, reports: flume::Sender<Report>) -> Self {
        Self { writer, jobs, reports }
    }

    /// Works until the ledger thread has gone. Blocks.
    pub fn run(mut self) {
        let mut summing = false;
        loop {
            // Jobs first: a question in progress takes what time they leave, a slice at a time.
            let job = if summing { self.jobs.try_recv() } else { self.jobs.recv().map_err(flume::TryRecvError::from) };
            match job {
                Ok(job) => self.work(job),
                Err(flume::TryRecvError::Empty) => {}
                Err(flume::TryRecvError::Disconnected) => return,
            }
            summing = self.sum_on();
        }
    }

    /// Does one waiting job, if there is one. For whoever runs the ledger without threads.
    pub fn work_one(&mut self) -> bool {
        let job = self.jobs.try_recv();
        let found = job.is_ok();
        if let Ok(job) = job {
            self.work(job);
        }
        while self.sum_on() {}
        found
    }

    fn sum_on(&mut self) -> bool {
        self.guarded(|writer| Ok(writer.sum_on())).unwrap_or(false)
    }

    fn work(&mut self, job: Job) {
        let report = match job {
            Job::Open => Report::Opened(self.guarded(Writer::open)),
            Job::Write(mut batch) => {
                let result = self.guarded(|writer| writer.write(&mut batch));
                Report::Written(batch, result)
            }
            Job::Ask(unwritten, ask) => {
                // Who asked sees the reply dropped.
                let asked = self.guarded(|writer| {
                    writer.ask(unwritten, ask);
                    Ok(())
                });
                return drop(asked);
            }
            Job::Fold(job) => Report::Folded(self.guarded(|writer| writer.fold(job))),
            Job::Import(import) => Report::Imported(self.guarded(|writer| writer.import(&import))),
            Job::Sync => Report::Synced(self.guarded(Writer::sync)),
        };
        // The ledger thread may have given up on us: then nobody needs to know.
        let _ = self.reports.send(report);
    }
}

impl Desk {
    /// Work that may panic without ending this thread: it failed then, and the store is opened anew, with nothing kept
    /// of what the work had in hand. A batch is given again; all it holds is absolute, so nothing is counted twice.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Writer) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let writer = &mut self.writer;
        std::panic::catch_unwind(AssertUnwindSafe(|| work(writer))).unwrap_or_else(|_| {
            tracing::error!("the store's work panicked: it is opened anew");
            (self.writer.store, self.writer.migration) = (None, None);
            self.writer.summing.clear();
            Err(LedgerError::Unavailable { reason: "the store's work panicked".into() })
        })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Questions left in the channel would otherwise wait for as long as the other end lives.
        self.jobs.drain().for_each(drop);
    }
}
