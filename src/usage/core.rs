//! The ledger thread's half: one [`Core::step`] a tick drains the rings, folds, and keeps the store thread busy.
//!
//! Run by [`super::ledger`] on its own thread, and by tests and benches directly: a step never blocks, takes its time
//! from the clock it was given, and hands jobs to a [`Desk`](super::writer::Desk) that the caller may serve, delay or
//! stall; `jobs` chooses which. Must never wait for the store: events are folded in memory however long a commit takes.

mod end;
mod jobs;

use std::collections::VecDeque;
use std::time::Duration;

use arc_swap::ArcSwap;

use self::end::Ending;
use super::answers::{Health, StoreState, TokenCount};
use super::fold::{Fold, ROWS_MAX};
use super::imported::{Import, Imported};
use super::ledger::LedgerError;
use super::recorder::Ring;
use super::speed::{Speed, Speeds};
use super::writer::{Ask, Folded, Job, Opened, Reply, Report};
use crate::clock::{Clock, Millis, millis};
use crate::ids::UnixMinute;
use crate::pulse::Pulse;
use crate::sync::{Arc, AtomicBool, Ordering};

/// How long after a failed commit or opening the next attempt is made.
const RETRY_MS: Millis = 1_000;
/// Who asked is told that the ledger is busy after this long: a commit hangs on a stalled disk.
const PATIENCE_MS: Millis = 5_000;
/// The first time after the start.
const POLICY_FIRST_MS: Millis = 60_000;
/// Sleep while somebody waits for the store thread.
const EAGER: Duration = Duration::from_millis(1);

/// A message to the ledger thread.
#[derive(Debug)]
pub enum Command {
    /// Answer a question.
    Ask(Ask),
    /// Say when everything recorded so far is in the store.
    Flush(Reply<()>),
    /// Count what is older, and fold it with `trim`.
    Fold {
        /// Milliseconds that stay.
        keep_ms: u64,
        /// Whether to fold what was counted.
        trim: bool,
        /// Where the count goes.
        reply: Reply<u64>,
    },
    /// Import sums of an earlier accounting.
    Import(Box<Import>, Reply<Imported>),
    /// Write everything, sync, end.
    Shutdown(Reply<()>),
}

/// What the caller of [`Core::step`] does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Sleep this long, then step again.
    Sleep(Duration),
    /// Nothing is left to do.
    End,
}

/// What readers of any thread see of the ledger without asking it.
#[derive(Debug, Default)]
pub struct Shown {
    /// Health as of the last step.
    pub health: ArcSwap<Health>,
    /// How fast nodes generate; shared with the poller, which outlives no ledger and ends none.
    pub speeds: Arc<ArcSwap<Vec<Speed>>>,
    /// Totals at the first opening.
    pub base: ArcSwap<Vec<TokenCount>>,
    /// When the ledger thread will be back.
    pub pulse: Pulse,
    /// The ledger thread has ended: messages sent since are not answered.
    ///
    /// Set before the core empties its channel for the last time; a sender looks after its message is in the channel.
    /// So a message is either emptied out (its reply is dropped, which its sender sees) or its sender sees this.
    pub ended: AtomicBool,
}

/// What a core is made with.
#[derive(Debug)]
pub struct Links {
    /// One ring per worker.
    pub rings: Vec<Arc<Ring>>,
    /// Time.
    pub clock: Clock,
    /// Messages from handles.
    pub commands: flume::Receiver<Command>,
    /// To the desk.
    pub jobs: flume::Sender<Job>,
    /// From the desk.
    pub reports: flume::Receiver<Report>,
    /// Where state is shown.
    pub shown: Arc<Shown>,
    /// Sleep between steps.
    pub tick: Duration,
    /// Age at which minutes fold on their own; zero: never.
    pub fold_after: Duration,
    /// Bound on rows in memory; [`ROWS_MAX`] unless a test wants less.
    pub rows_max: usize,
}

impl Links {
    /// Links with the usual bounds.
    #[must_use]
    pub fn new(
        (rings, clock): (Vec<Arc<Ring>>, Clock),
        commands: flume::Receiver<Command>,
        (jobs, reports): (flume::Sender<Job>, flume::Receiver<Report>),
    ) -> Self {
        Self {
            rings,
            clock,
            commands,
            jobs,
            reports,
            shown: Arc::default(),
            tick: Duration::from_millis(100),
            fold_after: Duration::ZERO,
            rows_max: ROWS_MAX,
        }
    }
}

/// Someone who waits until what was recorded before them is written.
#[derive(Debug)]
struct Waiter {
    mark: u64,
    since: Millis,
    reply: Reply<()>,
}

/// A fold in progress or waiting for its turn.
#[derive(Debug)]
struct FoldRun {
    /// What must be written first, so that the fold sees it.
    mark: u64,
    since: Millis,
    keep_ms: u64,
    trim: bool,
    /// The groups, once counted, and the cut, once begun.
    begun: Option<(u64, UnixMinute)>,
    reply: Option<Reply<u64>>,
}

/// The ledger thread's state.
#[derive(Debug)]
pub struct Core {
    links: Links,
    fold: Fold,
    speeds: Speeds,
    /// A batch, a slice of a fold or the sync is with the store thread; one at a time.
    busy: bool,
    /// Since when, as far as a step saw it.
    busy_since: Option<Millis>,
    /// The last job was a batch: slices of a fold take turns with batches.
    wrote_last: bool,
    retry_at: Millis,
    /// The store is open, as far as is known.
    open: bool,
    first_opened: bool,
    asks: VecDeque<(Ask, Millis)>,
    flushes: Vec<Waiter>,
    folds: VecDeque<FoldRun>,
    imports: VecDeque<(Box<Import>, Reply<Imported>)>,
    /// Who asked for the import that is with the store thread.
    importing: Option<Reply<Imported>>,
    policy_at: Millis,
    ending: Option<Ending>,
    health: Health,
}

impl Core {
    /// A core; `opened` is what the store said if it is open already.
    #[must_use]
    pub fn new(links: Links, opened: Option<Opened>) -> Self {
        let now = links.clock.now();
        let mut core = Self {
            fold: Fold::new(links.rows_max),
            speeds: Speeds::default(),
            busy: false,
            busy_since: None,
            wrote_last: false,
            retry_at: now,
            open: false,
            first_opened: false,
            asks: VecDeque::new(),
            flushes: Vec::new(),
            folds: VecDeque::new(),
            imports: VecDeque::new(),
            importing: None,
            policy_at: now + POLICY_FIRST_MS,
            ending: None,
            health: Health::default(),
            links,
        };
        if opened.is_some() {
            core.opened(opened, now);
        }
        core.show();
        core
    }

    /// Somebody has sent a message that is not taken yet.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        !self.links.commands.is_empty()
    }

    /// One tick's work. Never blocks.
    pub fn step(&mut self) -> Next {
        let now = self.links.clock.now();
        self.links.shown.pulse.promise(now + millis(self.links.tick));
        self.fold.begin_step(now);
        self.take_reports(now);
        // Commands before rings: whoever recorded and then asked finds the record in this drain.
        self.take_commands(now);
        self.drain_rings(now);
        self.mark_waiters();
        self.answer_written();
        self.lose_patience(now);
        let ended = self.end(now);
        if !ended && !self.busy {
            self.give_job(now);
        }
        self.watch_store(now);
        self.show();
        if ended {
            return Next::End;
        }
        let awaited =
            !(self.asks.is_empty() && self.flushes.is_empty() && self.folds.is_empty() && self.imports.is_empty());
        Next::Sleep(if awaited || self.ending.is_some() { EAGER.min(self.links.tick) } else { self.links.tick })
    }

    /// Says so once when the store does not come back: a disk that stalls reports no error. An import may take its time.
    fn watch_store(&mut self, now: Millis) {
        if !self.busy || self.importing.is_some() {
            self.busy_since = None;
            return;
        }
        let since = *self.busy_since.get_or_insert(now);
        if self.health.store == StoreState::Open && now.saturating_sub(since) > PATIENCE_MS {
            tracing::warn!("the ledger's disk does not answer; rows are kept in memory");
            self.health.store = StoreState::Stalled;
        }
    }

    fn drain_rings(&mut self, now: Millis) {
        let (fold, speeds) = (&mut self.fold, &mut self.speeds);
        for ring in &self.links.rings {
            ring.drain(|event| {
                fold.add(event, now);
                speeds.add(event, now);
            });
            ring.drain_lost(|lost| fold.add_lost(lost, now));
        }
    }

    fn take_commands(&mut self, now: Millis) {
        loop {
            match self.links.commands.try_recv() {
                Ok(Command::Ask(ask)) => self.asks.push_back((ask, now)),
                Ok(Command::Flush(reply)) => self.flushes.push(Waiter { mark: UNMARKED, since: now, reply }),
                Ok(Command::Fold { keep_ms, trim, reply }) => self.folds.push_back(FoldRun {
                    mark: UNMARKED,
                    since: now,
                    keep_ms,
                    trim,
                    begun: None,
                    reply: Some(reply),
                }),
                Ok(Command::Import(import, reply)) => self.imports.push_back((import, reply)),
                Ok(Command::Shutdown(reply)) => self.begin_end(Some(reply), now),
                Err(flume::TryRecvError::Empty) => return,
                Err(flume::TryRecvError::Disconnected) => return self.begin_end(None, now),
            }
        }
    }

    /// Tells those who came in this step what they wait for; everyone, if rows moved since.
    fn mark_waiters(&mut self) {
        let (mark, moved) = (self.fold.mark(), self.fold.take_moved());
        let waiting = self.flushes.iter_mut().map(|waiter| &mut waiter.mark);
        for old in waiting.chain(self.folds.iter_mut().map(|fold| &mut fold.mark)) {
            if moved || *old == UNMARKED {
                *old = mark;
            }
        }
    }

    /// Answers flushes whose rows are all in the store.
    fn answer_written(&mut self) {
        if self.busy {
            return;
        }
        let written = self.fold.written();
        for waiter in self.flushes.extract_if(.., |waiter| waiter.mark <= written) {
            // Whoever waited may have gone.
            let _ = waiter.reply.send(Ok(()));
        }
    }

    /// Tells those who have waited too long.
    fn lose_patience(&mut self, now: Millis) {
        let late = |since: Millis| now.saturating_sub(since) > PATIENCE_MS;
        for waiter in self.flushes.extract_if(.., |waiter| late(waiter.since)) {
            let _ = waiter.reply.send(Err(LedgerError::Busy));
        }
        while let Some((ask, _)) = self.asks.pop_front_if(|(_, since)| late(*since)) {
            ask.refuse(LedgerError::Busy);
        }
        for fold in &mut self.folds {
            // A fold that has begun goes on; only its answer is overdue.
            if late(fold.since)
                && let Some(reply) = fold.reply.take()
            {
                let _ = reply.send(Err(LedgerError::Busy));
            }
        }
        self.folds.retain(|fold| fold.begun.is_some() || !late(fold.since) || fold.reply.is_some());
    }

    fn take_reports(&mut self, now: Millis) {
        loop {
            let report = match self.links.reports.try_recv() {
                Ok(report) => report,
                Err(flume::TryRecvError::Empty) => return,
                Err(flume::TryRecvError::Disconnected) => {
                    // The store thread died with what it held; say so, and answer whoever waits.
                    if std::mem::take(&mut self.busy) {
                        self.failed(LedgerError::Closed, now);
                    }
                    return;
                }
            };
            (self.busy, self.busy_since) = (false, None);
            if self.health.store == StoreState::Stalled {
                tracing::info!("the ledger's disk answers again");
                self.health.store = StoreState::Open;
            }
            match report {
                Report::Opened(Ok(opened)) => self.opened(opened, now),
                Report::Opened(Err(error @ LedgerError::Migrating { .. })) => self.migrating(&error, now),
                Report::Opened(Err(error)) => self.failed(error, now),
                Report::Written(batch, result) => {
                    self.fold.settle(batch, result.is_ok());
                    self.written(result, now);
                }
                Report::Folded(result) => self.folded(result, now),
                Report::Imported(result) => self.imported(result),
                Report::Synced(result) => {
                    if let Some(ending) = &mut self.ending {
                        ending.synced = true;
                        ending.last_error = result.err();
                    }
                }
            }
        }
    }

    fn opened(&mut self, opened: Option<Opened>, now: Millis) {
        (self.open, self.retry_at) = (true, now);
        if let Some(opened) = opened {
            self.fold.opened(opened.newest, opened.folded_before, now);
            if !std::mem::replace(&mut self.first_opened, true) {
                self.links.shown.base.store(Arc::new(opened.base));
            }
        }
        // While commits fail it is not well again before one succeeds.
        if matches!(self.health.store, StoreState::Absent | StoreState::Migrating) || !self.fold.is_dirty() {
            self.health.store = StoreState::Open;
        }
    }

    /// The store will be had: the next part of its migration is given at once.
    fn migrating(&mut self, how_far: &LedgerError, now: Millis) {
        self.retry_at = now;
        let only_looked = matches!(how_far, LedgerError::Migrating { done: 0, .. });
        if only_looked && self.health.store == StoreState::Absent && self.health.commits_failed > 0 {
            // Opened once more after a failure: what is wrong is said for as long as it may go on.
            return;
        }
        self.health.store = StoreState::Migrating;
        self.health.last_error = Some(how_far.to_string().into());
        if let Some(ending) = &mut self.ending {
            ending.since = now;
        }
    }

    fn written(&mut self, result: Result<(), LedgerError>, now: Millis) {
        match result {
            Ok(()) => {
                if self.health.store != StoreState::Open {
                    tracing::info!("the ledger is written again");
                }
                self.retry_at = now;
                self.health.store = StoreState::Open;
                self.health.commits += 1;
                self.health.last_commit = Some(now);
            }
            Err(error) => self.failed(error, now),
        }
    }

    fn failed(&mut self, error: LedgerError, now: Millis) {
        let state = if self.first_opened { StoreState::Failing } else { StoreState::Absent };
        let reason: Arc<str> = error.to_string().into();
        if self.health.store != state || self.health.last_error.as_ref() != Some(&reason) {
            tracing::warn!(error = %reason, "the ledger cannot be written; rows are kept in memory");
        }
        // Perhaps it broke; opening a store that is open costs nothing.
        self.open = false;
        self.health.store = state;
        self.health.last_error = Some(reason);
        self.health.commits_failed += 1;
        self.retry_at = now + RETRY_MS;
        for waiter in self.flushes.drain(..) {
            let _ = waiter.reply.send(Err(error.clone()));
        }
        if let Some(ending) = &mut self.ending {
            ending.attempts += 1;
            ending.last_error = Some(error);
            self.retry_at = now + RETRY_MS / 10;
        }
    }

    fn folded(&mut self, result: Result<Folded, LedgerError>, now: Millis) {
        let Some(mut fold) = self.folds.pop_front() else { return };
        let answer = match result {
            Ok(folded) => {
                self.fold.folded(folded.folded_before, now);
                let groups = fold.begun.map_or(folded.groups, |(groups, _)| groups.max(folded.groups));
                if !folded.done {
                    fold.begun = fold.begun.map(|(_, first_kept)| (groups, first_kept));
                    self.folds.push_front(fold);
                    return;
                }
                Ok(groups)
            }
            Err(error) => {
                self.open = false;
                self.fold.distrust_stored();
                self.health.last_error = Some(error.to_string().into());
                Err(error)
            }
        };
        if let Some(reply) = fold.reply {
            let _ = reply.send(answer);
        }
    }

    /// What was imported joins the base that the monitoring routes add to.
    fn imported(&mut self, result: Result<Imported, LedgerError>) {
        match &result {
            Ok(said) if said.written => {
                let base = self.links.shown.base.load_full();
                self.links.shown.base.store(Arc::new(said.added_to(&base)));
            }
            Ok(_) => {}
            Err(error) => {
                self.open = false;
                self.health.last_error = Some(error.to_string().into());
            }
        }
        if let Some(reply) = self.importing.take() {
            let _ = reply.send(result);
        }
    }

    /// Shows the state to readers, if it changed.
    fn show(&mut self) {
        if let Some(speeds) = self.speeds.news() {
            self.links.shown.speeds.store(Arc::new(speeds));
        }
        let stats = self.fold.stats;
        let health = &mut self.health;
        (health.rows, health.rows_unwritten) = self.fold.sizes();
        health.oldest_unwritten = self.fold.oldest_unwritten();
        health.events = stats.events;
        health.events_lost = stats.events_lost;
        health.minutes_folded_early = stats.minutes_folded_early;
        health.minutes_far = stats.minutes_far;
        health.ring_high_water.clear();
        health.ring_high_water.extend(self.links.rings.iter().map(|ring| ring.high_water()));
        if **self.links.shown.health.load() != *health {
            self.links.shown.health.store(Arc::new(health.clone()));
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.ending.is_none() {
            // Nobody told it to end: it panicked, and what is shown must not go on looking well.
            self.health.store = StoreState::Failing;
            self.health.last_error = Some("the ledger thread has ended".into());
            self.links.shown.health.store(Arc::new(self.health.clone()));
        }
        // Release: pairs with the Acquire in `Ledger::call`.
        self.links.shown.ended.store(true, Ordering::Release);
        self.links.commands.drain().for_each(drop);
    }
}

/// The mark of who came in this step and does not know yet what to wait for.
const UNMARKED: u64 = u64::MAX;
