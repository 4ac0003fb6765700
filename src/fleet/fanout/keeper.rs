//! Holds the list of pending operations on the control thread and keeps it on disk: one JSON file in the data directory.
//!
//! A file and not a table of the ledger: the list is short, changes rarely, must be there whatever the state of the
//! ledger, and can be read by whoever wonders why a model vanished. It is written in a
//! thread of its own (a disk may stall), one writer at a time. Must never be used from another thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use crate::clock::Millis;
use crate::dialect::name;
use crate::fleet::fanout::pending::{Entry, Pending};
use crate::fleet::fanout::tally::{CaughtUp, Tally};
use crate::fleet::file;
use crate::sync::{Arc, AtomicU64, Ordering, spawn_background};

/// The form of the file; another number is not read.
const FORM: u32 = 1;
/// The largest file read.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Between two attempts to write what could not be written, at first and at most.
const AGAIN_MS: Millis = 1_000;
const AGAIN_MS_MAX: Millis = 60_000;
/// How long a newer order, or who cancels, waits for a copy or a deletion that a node has been told already: it is
/// carried out whoever listens, and must not meet what comes after it.
const SENT_WAIT: Duration = Duration::from_secs(10);
/// Between two looks at whether it has ended.
const SENT_LOOK: Duration = Duration::from_millis(10);
/// How long an order waits for the disk before it says that its entry is in memory only.
const DISK_WAIT: Duration = Duration::from_secs(5);

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    form: u32,
    pending: Pending,
}

/// What an order has taken off the list for as long as it runs.
#[derive(Debug, Default)]
pub(super) struct Aside {
    entries: Vec<Entry>,
    /// Nodes on which an attempt was under way, and may have done its work without the gate knowing.
    pub(super) ended: Vec<String>,
}

impl Aside {
    /// The digest that a node had under a name, as what was kept for it says.
    pub(super) fn digest_on(&self, node: &str, model: &str) -> Option<String> {
        let key = name::key(model);
        let kept = |entry: &&Entry| entry.node == node && name::key(&entry.model) == key;
        self.entries.iter().find(kept).and_then(|entry| entry.digest.clone())
    }
}

/// An attempt under way.
#[derive(Debug)]
struct Attempt {
    node: String,
    /// How to end it.
    abort: AbortHandle,
    /// Its node has been told what to do, and does it in one go.
    sent: Rc<Cell<bool>>,
}

/// The list, who works on it, and its file.
#[derive(Debug)]
pub(super) struct Keeper {
    pending: RefCell<Pending>,
    /// Attempts under way, by entry.
    running: RefCell<HashMap<u64, Attempt>>,
    path: PathBuf,
    tally: Arc<Tally>,
    /// Holds one token: who has it may write.
    turn: (flume::Sender<()>, flume::Receiver<()>),
    /// Grows with each change of the list.
    version: Cell<u64>,
    /// The version that the file has; only the thread that wrote it says so.
    stored: Arc<AtomicU64>,
    /// The last attempt to write failed.
    failing: Cell<bool>,
    /// When it is tried again, and how long after the time before.
    again_at: Cell<Millis>,
    again_after: Cell<Millis>,
    /// Something was added.
    kick: (flume::Sender<()>, flume::Receiver<()>),
}

impl Keeper {
    /// Reads the file; what is wrong with it is logged, and nothing is pending then.
    pub(super) fn load(path: PathBuf, tally: Arc<Tally>) -> Self {
        let pending = match file::read::<Stored>(&path, FILE_BYTES_MAX) {
            Ok(stored) if stored.form == FORM => stored.pending,
            Ok(stored) => {
                tracing::warn!(path = %path.display(), form = stored.form, "pending operations of another form");
                Pending::default()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Pending::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "pending operations cannot be read");
                Pending::default()
            }
        };
        let (turn, kick) = (flume::bounded(1), flume::bounded(1));
        let _ = turn.0.try_send(());
        tally.keep(pending.entries().len());
        let (pending, running) = (RefCell::new(pending), RefCell::default());
        let (version, stored, failing) = (Cell::new(0), Arc::default(), Cell::new(false));
        let (again_at, again_after) = (Cell::new(0), Cell::new(0));
        Self { pending, running, path, tally, turn, version, stored, failing, again_at, again_after, kick }
    }

    /// Adds entries and stores them; those that found a place, by node.
    pub(super) async fn add(&self, entries: Vec<Entry>) -> Vec<String> {
        let mut kept = Vec::new();
        for entry in entries {
            let node = entry.node.clone();
            self.stop(self.pending.borrow_mut().forget(&node, &entry.key));
            if self.pending.borrow_mut().add(entry) {
                kept.push(node);
            }
        }
        if !kept.is_empty() {
            let _ = self.kick.0.try_send(());
            self.store().await;
        }
        kept
    }

    /// A newer order for this name begins on these nodes: what was kept is taken off, attempts under way are ended; one
    /// whose node has been told ends by itself.
    pub(super) async fn aside(&self, key: &str, on: impl Fn(&str) -> bool) -> Aside {
        let entries = self.pending.borrow_mut().aside(key, on);
        if entries.is_empty() {
            return Aside::default();
        }
        let ids: Vec<u64> = entries.iter().map(|entry| entry.id).collect();
        let is_running = |entry: &&Entry| self.running.borrow().contains_key(&entry.id);
        let ended = entries.iter().filter(is_running).map(|entry| entry.node.clone()).collect();
        self.sent_have_ended(&ids).await;
        self.stop(ids);
        self.store().await;
        Aside { entries, ended }
    }

    /// The newer order has done nothing on these nodes: what was kept for them is kept again.
    pub(super) async fn put_back(&self, aside: Aside, which: impl Fn(&Entry) -> bool) {
        let entries: Vec<Entry> = aside.entries.into_iter().filter(which).collect();
        if entries.is_empty() {
            return;
        }
        for entry in entries {
            self.pending.borrow_mut().put_back(entry);
        }
        let _ = self.kick.0.try_send(());
        self.store().await;
    }

    /// Takes an entry off the list; an attempt under way is ended. `None`: there is none, or it was just carried out.
    pub(super) async fn cancel(&self, id: u64) -> Option<Entry> {
        self.sent_have_ended(&[id]).await;
        let entry = self.pending.borrow_mut().remove(id)?;
        self.stop(vec![id]);
        self.store().await;
        Some(entry)
    }

    /// Waits for those of these attempts that cannot be taken back.
    async fn sent_have_ended(&self, ids: &[u64]) {
        let runs = |id: &u64| {
            let running = self.running.borrow();
            running.get(id).is_some_and(|attempt| attempt.sent.get() && !attempt.abort.is_finished())
        };
        let ended = async {
            while ids.iter().any(runs) {
                tokio::time::sleep(SENT_LOOK).await;
            }
        };
        if tokio::time::timeout(SENT_WAIT, ended).await.is_err() {
            tracing::warn!("a kept operation under way does not end; a newer one does not wait for it");
        }
    }

    /// An attempt ended: the entry is done with, or tried again later.
    pub(super) async fn attempted(&self, id: u64, result: Result<(), String>, unix_ms: u64) {
        self.running.borrow_mut().remove(&id);
        match result {
            Ok(()) => drop(self.pending.borrow_mut().remove(id)),
            Err(text) => self.pending.borrow_mut().failed(id, &text, unix_ms),
        }
        self.store().await;
    }

    /// Waits while nothing is pending and nothing is to be written.
    pub(super) async fn wait(&self) {
        while self.pending.borrow().entries().is_empty() && !self.is_stale() {
            let _ = self.kick.1.recv_async().await;
        }
    }

    /// Takes off what has expired and says what to try now.
    pub(super) async fn due(&self, unix_ms: u64, is_up: impl Fn(&str) -> bool) -> Vec<Entry> {
        let expired = self.pending.borrow_mut().expire(unix_ms);
        if !expired.is_empty() {
            tracing::warn!(count = expired.len(), "pending operations expired");
            self.tally.caught_up(CaughtUp::Expired, expired.len());
            self.stop(expired);
            self.store().await;
        }
        let running = self.running.borrow();
        let busy = |node: &str| running.values().any(|attempt| attempt.node == node);
        self.pending.borrow().due(unix_ms, is_up, busy)
    }

    /// Attempts under way.
    pub(super) fn under_way(&self) -> usize {
        self.running.borrow().len()
    }

    /// An attempt has begun; `sent` says when its node has been told.
    pub(super) fn begun(&self, entry: &Entry, abort: AbortHandle, sent: Rc<Cell<bool>>) {
        self.running.borrow_mut().insert(entry.id, Attempt { node: entry.node.clone(), abort, sent });
    }

    /// The list for people.
    pub(super) fn listed(&self) -> serde_json::Value {
        let time = |unix_ms: u64| {
            let stamp = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or(i64::MAX));
            stamp.map(|stamp| stamp.to_string()).unwrap_or_default()
        };
        let pending = self.pending.borrow();
        let entries = pending.entries().iter().map(|entry| {
            let mut value = serde_json::to_value(entry).unwrap_or_default();
            if let Some(object) = value.as_object_mut() {
                object.remove("ordered_unix_ms");
                object.remove("expires_unix_ms");
                object.insert("ordered_at".to_owned(), time(entry.ordered_unix_ms).into());
                object.insert("expires_at".to_owned(), time(entry.expires_unix_ms).into());
                object.insert("running".to_owned(), self.running.borrow().contains_key(&entry.id).into());
            }
            value
        });
        serde_json::json!({ "pending": entries.collect::<Vec<_>>() })
    }

    fn stop(&self, ids: Vec<u64>) {
        for id in ids {
            if let Some(attempt) = self.running.borrow_mut().remove(&id) {
                attempt.abort.abort();
            }
        }
    }

    /// Ends attempts on nodes that are not up any more, and those that ended without a word: tried again later.
    pub(super) async fn give_up(&self, unix_ms: u64, is_up: impl Fn(&str) -> bool) {
        let over = |(id, attempt): (&u64, &Attempt)| match () {
            () if attempt.abort.is_finished() => Some((*id, "the attempt broke off")),
            () if !is_up(&attempt.node) => Some((*id, "the node went down")),
            () => None,
        };
        let over: Vec<_> = self.running.borrow().iter().filter_map(over).collect();
        if over.is_empty() {
            return;
        }
        for (id, text) in over {
            self.stop(vec![id]);
            self.pending.borrow_mut().failed(id, text, unix_ms);
            self.tally.caught_up(CaughtUp::Failed, 1);
        }
        self.store().await;
    }

    /// The list has changed: writes it as it is now; what fails is tried again by [`Keeper::store_again`].
    pub(super) async fn store(&self) {
        self.tally.keep(self.pending.borrow().entries().len());
        self.version.set(self.version.get() + 1);
        self.try_store().await;
    }

    /// Writes what could not be written, less and less often while the disk does not take it.
    pub(super) async fn store_again(&self, now: Millis) {
        if !self.is_stale() {
            self.recovered();
        } else if now >= self.again_at.get() {
            // Whatever becomes of this attempt, the next one is further off.
            let wait = (self.again_after.get() * 2).clamp(AGAIN_MS, AGAIN_MS_MAX);
            self.again_after.set(wait);
            self.again_at.set(now + wait);
            self.try_store().await;
        }
    }

    async fn try_store(&self) {
        let error = match tokio::time::timeout(DISK_WAIT, self.write()).await {
            Ok(Ok(())) => return self.recovered(),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the disk is slow"),
        };
        if !self.failing.replace(true) {
            tracing::warn!(path = %self.path.display(), %error, "pending operations are not stored; tried again until they are");
        }
    }

    fn recovered(&self) {
        self.again_after.set(0);
        self.again_at.set(0);
        if self.failing.replace(false) {
            tracing::info!(path = %self.path.display(), "pending operations are stored again");
        }
    }

    async fn write(&self) -> io::Result<()> {
        let wanted = self.version.get();
        // The other end is held here: it does not close.
        let _ = self.turn.1.recv_async().await;
        if self.stored.load(Ordering::Relaxed) >= wanted {
            // Who had the turn before has written this already.
            let _ = self.turn.0.try_send(());
            return Ok(());
        }
        let version = self.version.get();
        let list = Stored { form: FORM, pending: self.pending.borrow().clone() };
        let (path, turn, stored) = (self.path.clone(), self.turn.0.clone(), Arc::clone(&self.stored));
        let (done, result) = flume::bounded(1);
        // The thread says itself what it has written and gives the turn back: it may outlive our patience.
        let written = spawn_background("pending", move || {
            let written = file::replace(&path, |file| serde_json::to_writer_pretty(file, &list));
            if written.is_ok() {
                stored.store(version, Ordering::Relaxed);
            }
            let _ = turn.try_send(());
            let _ = done.send(written);
        });
        match written {
            Ok(_) => result.recv_async().await.unwrap_or_else(|_| Err(io::Error::other("the writer ended"))),
            Err(error) => {
                let _ = self.turn.0.try_send(());
                Err(error)
            }
        }
    }

    /// The file is older than the list: the last attempt to write it failed, or has not ended.
    fn is_stale(&self) -> bool {
        self.stored.load(Ordering::Relaxed) < self.version.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::fanout::pending::Operation;

    fn entry(node: &str) -> Entry {
        let text = format!(
            r#"{{"id":0,"node":"{node}","operation":"delete","model":"m","key":"m:latest","digest":"d","ordered_unix_ms":1,"expires_unix_ms":2}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn what_was_kept_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pending.json");
        let keeper = Keeper::load(path.clone(), Arc::default());
        assert_eq!(keeper.add(vec![entry("a"), entry("b")]).await, ["a", "b"]);
        assert_eq!(keeper.cancel(1).await.unwrap().node, "a");
        assert!(keeper.cancel(1).await.is_none());
        drop(keeper);
        let keeper = Keeper::load(path.clone(), Arc::default());
        let pending = keeper.pending.borrow().clone();
        assert_eq!(pending.entries(), [Entry { id: 2, ..entry("b") }]);
        assert_eq!(pending.entries()[0].operation, Operation::Delete);
        assert!(keeper.due(2, |_| true).await.is_empty(), "expired meanwhile");
        drop(keeper);
        assert!(Keeper::load(path, Arc::default()).pending.borrow().entries().is_empty());
    }

    #[tokio::test]
    async fn a_torn_file_is_as_good_as_none_and_no_directory_costs_the_memory_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pending.json");
        std::fs::write(&path, "{\"form\":1,").unwrap();
        assert!(Keeper::load(path, Arc::default()).pending.borrow().entries().is_empty());
        let keeper = Keeper::load(folder.path().join("none").join("pending.json"), Arc::default());
        assert_eq!(keeper.add(vec![entry("a")]).await, ["a"]);
        assert_eq!(keeper.listed()["pending"][0]["expires_at"], "1970-01-01T00:00:00.002Z");
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_asked_less_and_less_often() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later").join("pending.json");
        let keeper = Keeper::load(path.clone(), Arc::default());
        keeper.add(vec![entry("a")]).await;
        let mut tried = Vec::new();
        for now in (0..200_000).step_by(250) {
            let before = keeper.again_at.get();
            keeper.store_again(now).await;
            if keeper.again_at.get() != before {
                tried.push(now);
            }
        }
        assert_eq!(tried, [0, 1_000, 3_000, 7_000, 15_000, 31_000, 63_000, 123_000, 183_000]);
        assert!(keeper.is_stale() && keeper.failing.get());
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        keeper.store_again(1_000_000).await;
        assert!(!keeper.is_stale() && !keeper.failing.get());
        assert_eq!(Keeper::load(path, Arc::default()).pending.borrow().entries().len(), 1);
    }

    #[tokio::test]
    async fn an_attempt_on_a_node_that_went_down_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::load(folder.path().join("pending.json"), Arc::default());
        keeper.add(vec![entry("a"), entry("b")]).await;
        let due = keeper.due(0, |_| true).await;
        let attempts = tokio::task::LocalSet::new();
        for entry in &due {
            let attempt = attempts.spawn_local(std::future::pending::<()>());
            keeper.begun(entry, attempt.abort_handle(), Rc::default());
        }
        keeper.give_up(0, |node| node == "b").await;
        assert_eq!(keeper.under_way(), 1);
        assert_eq!(keeper.listed()["pending"][0]["error"], "the node went down");
        assert_eq!(keeper.aside("m:latest", |_| true).await.ended, ["b"], "whose node is to be asked");
        assert_eq!(keeper.under_way(), 0);
    }
}
