//! A store double and a rig that runs the ledger without threads: for `tests/ledger.rs` and whoever tests against a
//! failing disk. The double fails as told, keeps its contents over restarts, and forgets on a loss of power what was
//! not synced. Must never touch a real disk.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a test that cannot go on fails")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
#[expect(clippy::disallowed_types, reason = "cold: a test looks into the store that another owner writes")]
use std::sync::Mutex;

use herdgate::clock::Clock;
use herdgate::ids::WorkerId;
use herdgate::usage::Outcome;
use herdgate::usage::answers::Health;
use herdgate::usage::core::{Command, Core, Links, Next, Shown};
use herdgate::usage::ledger::LedgerError;
use herdgate::usage::memory::MemoryStore;
use herdgate::usage::meters::Meters;
use herdgate::usage::names::Names;
use herdgate::usage::recorder::{Recorder, Ring};
use herdgate::usage::store::{Found, Key, Order, Read, Store, StoreError, Table, Visit, Writes};
use herdgate::usage::writer::{Desk, Opener, Reply, Writer};

/// What happens to a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It is stored.
    None,
    /// It fails, nothing is stored.
    Fails,
    /// It is stored, but reported as failed.
    StoredButFails,
    /// It fails, and the store must be opened again.
    Breaks,
    /// It panics, nothing is stored.
    Panics,
}

#[derive(Default, Debug)]
struct Contents {
    now: MemoryStore,
    synced: MemoryStore,
    faults: VecDeque<Fault>,
    refused: Option<LedgerError>,
    commits: u64,
    writes: u64,
    copies: Vec<MemoryStore>,
}

/// A disk in memory: clones are the same disk.
#[derive(Clone, Default, Debug)]
#[expect(clippy::disallowed_types, reason = "cold: a test looks into the store that another owner writes")]
pub(crate) struct Disk(Arc<Mutex<Contents>>);

impl Disk {
    fn with<T>(&self, look: impl FnOnce(&mut Contents) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    /// How the next commits go; those after succeed.
    pub(crate) fn plan(&self, faults: &[Fault]) {
        self.with(|contents| contents.faults.extend(faults));
    }

    /// Puts this on it, past every fault.
    pub(crate) fn fill(&self, writes: &Writes) {
        self.with(|contents| {
            contents.now.apply(writes);
            contents.synced.apply(writes);
        });
    }

    /// What was copied aside, in order.
    pub(crate) fn copies(&self) -> Vec<MemoryStore> {
        self.with(|contents| contents.copies.clone())
    }

    /// Forgets planned faults.
    pub(crate) fn heal(&self) {
        self.with(|contents| contents.faults.clear());
    }

    /// Refuses to be opened, or no longer.
    pub(crate) fn refuse(&self, why: Option<LedgerError>) {
        self.with(|contents| contents.refused = why);
    }

    /// Power is lost: what was not synced is gone.
    pub(crate) fn lose_power(&self) {
        self.with(|contents| contents.now = contents.synced.clone());
    }

    /// Commits tried, and the puts and deletes in them.
    pub(crate) fn tried(&self) -> (u64, u64) {
        self.with(|contents| (contents.commits, contents.writes))
    }

    /// Opens it.
    pub(crate) fn opener(&self) -> Opener {
        let disk = self.clone();
        Box::new(move || match disk.with(|contents| contents.refused.clone()) {
            Some(why) => Err(why),
            None => Ok(Box::new(Double { disk: disk.clone(), broken: false })),
        })
    }
}

#[derive(Debug)]
struct Double {
    disk: Disk,
    broken: bool,
}

impl Double {
    fn whole(&self) -> Result<(), StoreError> {
        if self.broken { Err(StoreError::Broken("used after it broke".into())) } else { Ok(()) }
    }
}

impl Read for Double {
    fn get_many(&self, wanted: &[(Table, Key)], found: Found<'_>) -> Result<(), StoreError> {
        self.whole()?;
        self.disk.with(|contents| contents.now.get_many(wanted, found))
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> Result<(), StoreError> {
        self.whole()?;
        self.disk.with(|contents| contents.now.scan(table, from, to, order, visit))
    }
}

impl Store for Double {
    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        self.whole()?;
        let fault = self.disk.with(|contents| {
            contents.commits += 1;
            contents.writes += writes.len() as u64;
            let fault = contents.faults.pop_front().unwrap_or(Fault::None);
            if matches!(fault, Fault::None | Fault::StoredButFails) {
                contents.now.apply(writes);
            }
            fault
        });
        match fault {
            Fault::None => Ok(()),
            Fault::Fails | Fault::StoredButFails => Err(StoreError::Failed("no space left on device".into())),
            Fault::Panics => panic!("as planned"),
            Fault::Breaks => {
                self.broken = true;
                Err(StoreError::Broken("meta page".into()))
            }
        }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.whole()?;
        self.disk.with(|contents| contents.synced = contents.now.clone());
        Ok(())
    }

    fn entries(&self, table: Table) -> Result<u64, StoreError> {
        self.whole()?;
        self.disk.with(|contents| contents.now.entries(table))
    }

    fn copy_aside(&mut self, _schema: u32) -> Result<Option<PathBuf>, StoreError> {
        self.whole()?;
        self.disk.with(|contents| contents.copies.push(contents.now.clone()));
        Ok(None)
    }
}

/// The ledger without threads: the test is both of them.
#[derive(Debug)]
pub(crate) struct Rig {
    /// Names in this process' life.
    pub(crate) names: Arc<Names>,
    /// One recorder per worker.
    pub(crate) recorders: Vec<Recorder>,
    /// A manual clock.
    pub(crate) clock: Clock,
    /// What readers see.
    pub(crate) shown: Arc<Shown>,
    commands: flume::Sender<Command>,
    core: Core,
    desk: Desk,
}

impl Rig {
    /// A ledger of two workers over this store; opens it as the start does.
    pub(crate) fn start(opener: Opener, names: Names, clock: &Clock) -> Self {
        Self::start_with(opener, names, clock, |_| {})
    }

    /// As [`Rig::start`], with other bounds.
    pub(crate) fn start_with(opener: Opener, names: Names, clock: &Clock, adjust: impl FnOnce(&mut Links)) -> Self {
        let (names, rings) = (Arc::new(names), Ring::for_workers(2, 4096));
        let meters = Arc::new(Meters::new(2));
        let recorders = rings
            .iter()
            .enumerate()
            .map(|(worker, ring)| Recorder::new(WorkerId(worker), ring.clone(), meters.clone()))
            .collect();
        let mut writer = Writer::new(names.clone(), opener);
        let opened = writer.open().unwrap_or(None);
        let (commands, commands_rx) = flume::bounded(64);
        let (jobs, jobs_rx) = flume::bounded(64);
        let (reports_tx, reports) = flume::bounded(64);
        let mut links = Links::new((rings, clock.clone()), commands_rx, (jobs, reports));
        adjust(&mut links);
        let shown = links.shown.clone();
        let core = Core::new(links, opened);
        let desk = Desk::new(writer, jobs_rx, reports_tx);
        Self { names, recorders, clock: clock.clone(), shown, commands, core, desk }
    }

    /// Records on one of the workers.
    pub(crate) fn record(&self, worker: usize, outcome: &Outcome) {
        self.recorders[worker].record(outcome, None);
    }

    /// One step of the ledger thread.
    pub(crate) fn step(&mut self) -> Next {
        self.core.step()
    }

    /// The store thread does what waits.
    pub(crate) fn serve(&mut self) {
        while self.desk.work_one() {}
    }

    /// A tick on a healthy disk: 100 ms pass, the ledger steps, the store works.
    pub(crate) fn tick(&mut self) {
        self.clock.advance(100);
        self.core.step();
        self.serve();
    }

    /// Sends a message and runs until it is answered.
    pub(crate) fn call<T>(&mut self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LedgerError> {
        let mut answer = self.send(command);
        for _ in 0..1000 {
            self.core.step();
            self.serve();
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
            self.clock.advance(1);
        }
        panic!("no answer after a thousand steps: {:?}", self.health());
    }

    /// Sends a message.
    pub(crate) fn send<T>(
        &mut self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> tokio::sync::oneshot::Receiver<Result<T, LedgerError>> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.commands.try_send(command(reply)).unwrap();
        answer
    }

    /// Everything so far is in the store, or why not.
    pub(crate) fn flush(&mut self) -> Result<(), LedgerError> {
        self.call(Command::Flush)
    }

    /// Health as shown.
    pub(crate) fn health(&self) -> Arc<Health> {
        self.shown.health.load_full()
    }

    /// A clean end.
    pub(crate) fn shutdown(mut self) -> Result<(), LedgerError> {
        let mut answer = self.send(Command::Shutdown);
        for _ in 0..1000 {
            if self.core.step() == Next::End {
                return answer.try_recv().expect("the end answers whoever asked for it");
            }
            self.serve();
            self.clock.advance(10);
        }
        panic!("no end after a thousand steps: {:?}", self.health());
    }
}
