//! The poller: asks all nodes at once, each at its own pace, and publishes what follows. The only writer of the Snapshot.
//!
//! Lives on the control thread, which drives it by [`Poller::step`]. Decisions are [`Facts`]'; here is the I/O: a task per
//! question, so that a node that hangs delays nobody (I9). Must never be run on a worker.

use std::pin::{Pin, pin};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::{Clock, Millis};
use crate::fleet::facts::{Facts, Job, Parts};
use crate::fleet::fetch::{Answer, Client, FetchError};
use crate::fleet::memory::{self, Keepsake, Memory};
use crate::fleet::node::Now;
use crate::fleet::report::Report;
use crate::fleet::{Fleet, Snapshot};
use crate::slots::Cell;
use crate::sync::{Arc, caught, spawn_background, spawn_local};
use crate::usage::speed::Speed;

/// The memory is written at most this often.
const STORE_EVERY_MS: Millis = 60_000;
/// And at least this often, so that "up when seen last" stays true enough for a day's memory.
const STORE_ANYWAY_MS: Millis = 3_600_000;
/// The first time, so that a process that is killed young leaves one.
const STORE_FIRST_MS: Millis = 10_000;

/// Cells that can take work since a moment: offer each, then serve the waiting.
#[must_use]
#[derive(Debug, Default)]
pub struct Capacity {
    /// Opened by a node that came up, or new.
    pub cells: Vec<Arc<Cell>>,
    /// A Snapshot was published.
    pub published: bool,
}

impl Capacity {
    /// Serves waiters from the cells that opened.
    pub fn offer(self) {
        for cell in self.cells {
            cell.offer();
        }
    }
}

/// That nodes cannot be asked is said at most this often.
const COMPLAIN_EVERY_MS: Millis = 10_000;

/// A question with its answer.
#[derive(Debug)]
struct Told {
    job: Job,
    result: Result<Answer, FetchError>,
}

/// Asks and publishes.
#[derive(Debug)]
pub struct Poller {
    facts: Facts,
    clients: Vec<Client>,
    clock: Clock,
    fleet: Fleet,
    reports: flume::Receiver<Report>,
    answers: flume::Receiver<Told>,
    answer: flume::Sender<Told>,
    store: std::path::PathBuf,
    /// When the memory may be written next if it changed.
    store_at: Millis,
    stored: flume::Receiver<()>,
    storing: flume::Sender<()>,
    /// Generations that somebody still holds.
    retired: Vec<Arc<Snapshot>>,
    speeds: Arc<ArcSwap<Vec<Speed>>>,
    /// When it was last said that nodes cannot be asked, for a reason of ours.
    complained: Option<Millis>,
}

impl Poller {
    /// Reads the memory of an earlier process and publishes a first Snapshot, in which no node is up.
    #[must_use]
    pub fn new(parts: Parts, fleet: &Fleet, reports: flume::Receiver<Report>, clock: &Clock) -> Self {
        let store = memory::path(&parts.config);
        let now = now(clock);
        let facts = Facts::new(parts, Memory::load(&store), now);
        let clients: Vec<Client> = facts.nodes().iter().map(|node| Client::new(Arc::clone(&node.target))).collect();
        // Each node has at most five questions under way, so that no answer waits for room.
        let (answer, answers) = flume::bounded(clients.len() * 5 + 1);
        let (storing, stored) = flume::bounded(1);
        let (snapshot, lag) = (Arc::clone(&fleet.snapshot), Arc::clone(&fleet.lag));
        let fleet = Fleet { snapshot, lag, pulse: Arc::clone(&fleet.pulse) };
        let (clock, store_at) = (clock.clone(), now.ms + STORE_FIRST_MS);
        let (retired, speeds) = (Vec::new(), Arc::default());
        let mut poller = Self {
            facts,
            clients,
            clock,
            fleet,
            reports,
            answers,
            answer,
            store,
            store_at,
            stored,
            storing,
            retired,
            speeds,
            complained: None,
        };
        poller.publish(now).offer();
        poller
    }

    /// The same, told from here on how fast nodes generate.
    #[must_use]
    pub fn watching(self, speeds: Arc<ArcSwap<Vec<Speed>>>) -> Self {
        Self { speeds, ..self }
    }

    /// Asks what is due, waits for the next answer, report or deadline, takes all that are there, and publishes.
    ///
    /// Needs a `LocalSet`. Cancel safe: nothing is lost when it is dropped between two awaits; call it again.
    pub async fn step(&mut self) -> Capacity {
        self.ask();
        let due = self.facts.next_due();
        self.fleet.pulse.promise(due);
        let wait = Duration::from_millis(due.saturating_sub(self.clock.now()));
        tokio::select! {
            told = self.answers.recv_async() => if let Ok(told) = told { self.take(&told.job, told.result); },
            report = next(&self.reports) => self.facts.report(report, now(&self.clock)),
            () = tokio::time::sleep(wait) => {}
        }
        let [last, most] = &*self.fleet.lag;
        last.set(self.clock.now().saturating_sub(due));
        most.raise(last.get());
        while let Ok(told) = self.answers.try_recv() {
            self.take(&told.job, told.result);
        }
        while let Ok(report) = self.reports.try_recv() {
            self.facts.report(report, now(&self.clock));
        }
        self.retarget();
        let now = now(&self.clock);
        self.facts.learn_speeds(self.speeds.load_full());
        self.facts.tick(now);
        self.keep(now);
        self.publish(now)
    }

    /// Runs for ever, serving waiters from capacity that appears; for callers without a rhythm of their own.
    pub async fn run(mut self) -> std::convert::Infallible {
        loop {
            self.step().await.offer();
        }
    }

    /// Writes the memory at the end of the process, in a thread of its own that waits for one which writes now: both
    /// write to one name. Told when it is written; never, while the disk stalls: wait for it in bounds.
    #[must_use]
    pub fn store_last(&self) -> flume::Receiver<()> {
        let (memory, path) = (Keepsake::of(self.facts.nodes()), self.store.clone());
        let (storing, stored) = (self.storing.clone(), self.stored.clone());
        let (done, told) = flume::bounded(1);
        let body = move || {
            // The other end is held here: it does not close.
            let _ = storing.send(());
            let _turn = Turn(stored);
            write(&memory, &path);
            let _ = done.send(());
        };
        if let Err(error) = spawn_background("inventories", body) {
            tracing::warn!(%error, "no thread to store the inventories");
        }
        told
    }

    /// A client for each node that is another, or elsewhere.
    fn retarget(&mut self) {
        if !self.facts.take_retargeted() {
            return;
        }
        for (at, node) in self.facts.nodes().iter().enumerate() {
            match self.clients.get_mut(at) {
                Some(client) if client.is_of(&node.target) => {}
                Some(client) => *client = Client::new(Arc::clone(&node.target)),
                None => self.clients.push(Client::new(Arc::clone(&node.target))),
            }
        }
    }

    fn ask(&mut self) {
        for job in self.facts.due(now(&self.clock)) {
            let Some(client) = usize::try_from(job.node.0).ok().and_then(|at| self.clients.get(at)) else { continue };
            let (client, answer) = (client.clone(), self.answer.clone());
            spawn_local(async move {
                let result = answered(pin!(client.fetch(&job.ask))).await;
                let _ = answer.send_async(Told { job, result }).await;
            });
        }
    }

    fn take(&mut self, job: &Job, result: Result<Answer, FetchError>) {
        let now_ms = self.clock.now();
        if let Err(error) = &result
            && error.is_ours()
            && self.complained.is_none_or(|at| now_ms >= at + COMPLAIN_EVERY_MS)
        {
            self.complained = Some(now_ms);
            tracing::warn!(%error, "nodes cannot be asked: what is known of them stays");
        }
        self.facts.answered(job, result, now(&self.clock));
    }

    fn publish(&mut self, now: Now) -> Capacity {
        let snapshot = self.facts.snapshot(now);
        let published = snapshot.is_some();
        if let Some(snapshot) = snapshot {
            self.retired.push(self.fleet.snapshot.swap(snapshot));
        }
        // Freed here and not by the last worker that lets go: a large fleet's takes milliseconds. A count of one is ours
        // alone, and can never rise again. A worker that sleeps keeps its own, so there are never many.
        self.retired.retain(|old| Arc::strong_count(old) > 1);
        Capacity { cells: self.facts.published(now, published), published }
    }

    /// Stores the memory if it has changed and the last time is long past, in a thread of its own: a disk may stall.
    fn keep(&mut self, now: Now) {
        let due = now.ms >= self.store_at && self.facts.is_memorable();
        let anyway = now.ms >= self.store_at + STORE_ANYWAY_MS;
        // Full: the last one is still being written.
        if !(due || anyway) || self.storing.try_send(()).is_err() {
            return;
        }
        self.store_at = now.ms + STORE_EVERY_MS;
        let (memory, path) = (Keepsake::of(self.facts.nodes()), self.store.clone());
        let turn = Turn(self.stored.clone());
        let body = move || {
            let _turn = turn;
            write(&memory, &path);
        };
        match spawn_background("inventories", body) {
            Ok(_) => self.facts.stored(),
            Err(error) => tracing::warn!(%error, "no thread to store the inventories"),
        }
    }
}

/// The right to write the memory, given back however its writer ends; one that never gave it back would be the last.
#[derive(Debug)]
struct Turn(flume::Receiver<()>);

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

/// What asking comes to, a panic included: a question without an answer would be the last of its kind that its node is
/// asked.
async fn answered(asking: Pin<&mut impl Future<Output = Result<Answer, FetchError>>>) -> Result<Answer, FetchError> {
    caught(asking).await.unwrap_or(Err(FetchError::Panicked))
}

fn write(memory: &Keepsake, path: &std::path::Path) {
    if let Err(error) = memory.store(path) {
        tracing::warn!(path = %path.display(), %error, "inventories cannot be stored");
    }
}

/// The next report; never, once no worker is left.
async fn next(reports: &flume::Receiver<Report>) -> Report {
    match reports.recv_async().await {
        Ok(report) => report,
        Err(flume::RecvError::Disconnected) => std::future::pending().await,
    }
}

fn now(clock: &Clock) -> Now {
    Now { ms: clock.now(), unix_ms: clock.unix_ms() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_that_panics_is_a_question_that_failed() {
        let asking = async {
            tokio::task::yield_now().await;
            panic!("as a decoder with a bug would");
        };
        assert!(matches!(answered(pin!(asking)).await, Err(FetchError::Panicked)));
    }

    #[test]
    fn a_writer_that_panics_gives_its_turn_back() {
        let (storing, stored) = flume::bounded(1);
        storing.try_send(()).unwrap();
        let turn = Turn(stored.clone());
        let writer = spawn_background("inventories", move || {
            let _turn = turn;
            panic!("as a serializer with a bug would");
        });
        writer.unwrap().join().unwrap_err();
        storing.try_send(()).unwrap();
        assert_eq!(stored.len(), 1);
    }
}
