//! Which nodes are taken out, over restarts: one JSON file in the data directory.
//!
//! Read at the start, written with each order. A name stays on the list until it is taken off, whether it is configured
//! or not: a node that comes back under its name comes back taken out. It is written in a thread of its own, since a disk
//! may stall, and the control thread has nodes to probe.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::fleet::file;
use crate::sync::spawn_background;

/// The form of the file; another number is not read.
const FORM: u32 = 1;
/// The largest file read.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long an order waits for the disk before it says that the list is in memory only.
const DISK_WAIT: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct File {
    form: u32,
    nodes: BTreeSet<String>,
}

/// The list, and where it is kept.
#[derive(Debug)]
pub struct Drained {
    path: PathBuf,
    /// Names of nodes.
    pub nodes: BTreeSet<String>,
    /// The file is older than the list: the last attempt to write it failed, or has not ended.
    stale: bool,
    /// Holds one token: who has it may write. A thread whose disk stalls keeps it.
    turn: (flume::Sender<()>, flume::Receiver<()>),
}

impl Drained {
    /// Reads what an earlier process kept; a file that cannot be read is logged and nothing is drained.
    #[must_use]
    pub fn load(data: &Path) -> Self {
        let path = data.join("drained.json");
        let nodes = match file::read::<File>(&path, FILE_BYTES_MAX) {
            Ok(file) if file.form == FORM => file.nodes,
            Ok(file) => {
                tracing::warn!(path = %path.display(), form = file.form, "drained nodes of another form are not read");
                BTreeSet::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the list of drained nodes cannot be read");
                BTreeSet::new()
            }
        };
        let turn = flume::bounded(1);
        let _ = turn.0.try_send(());
        Self { path, nodes, stale: false, turn }
    }

    /// Puts a name on the list or takes it off, and writes the list if the file is not that already. Waits for the disk
    /// at most 5 s, and for nothing else.
    ///
    /// # Errors
    /// The file system's, or that it is slow; the change holds for this process all the same.
    pub async fn set(&mut self, node: &str, on: bool) -> io::Result<()> {
        self.stale |= if on { self.nodes.insert(node.to_owned()) } else { self.nodes.remove(node) };
        if !self.stale {
            return Ok(());
        }
        let slow = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the disk is slow"));
        let written = tokio::time::timeout(DISK_WAIT, self.store()).await.unwrap_or_else(slow);
        self.stale = written.is_err();
        written
    }

    async fn store(&self) -> io::Result<()> {
        // The other end is held here: it does not close.
        let _ = self.turn.1.recv_async().await;
        let (path, turn) = (self.path.clone(), self.turn.0.clone());
        let list = File { form: FORM, nodes: self.nodes.clone() };
        let (done, written) = oneshot::channel();
        // The thread gives the turn back: it may outlive our patience.
        let body = move || {
            let result = file::replace(&path, |file| serde_json::to_writer(file, &list));
            let _ = turn.try_send(());
            let _ = done.send(result);
        };
        if let Err(error) = spawn_background("drained", body) {
            let _ = self.turn.0.try_send(());
            return Err(error);
        }
        written.await.unwrap_or_else(|_| Err(io::Error::other("the writer ended")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_list_is_kept_and_rubbish_is_none() {
        let data = tempfile::tempdir().unwrap();
        let mut drained = Drained::load(data.path());
        drained.set("a", true).await.unwrap();
        drained.set("http://b:1", true).await.unwrap();
        drained.set("a", false).await.unwrap();
        assert_eq!(Drained::load(data.path()).nodes, BTreeSet::from(["http://b:1".to_owned()]));
        std::fs::write(data.path().join("drained.json"), "{").unwrap();
        assert!(Drained::load(data.path()).nodes.is_empty());
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_with_the_next_order() {
        let data = tempfile::tempdir().unwrap();
        let late = data.path().join("late");
        let mut drained = Drained::load(&late);
        assert!(drained.set("a", true).await.is_err() && drained.nodes.contains("a"));
        assert!(drained.set("a", true).await.is_err(), "the list did not change, and is not on the disk either");
        std::fs::create_dir(&late).unwrap();
        drained.set("a", true).await.unwrap();
        assert_eq!(Drained::load(&late).nodes, BTreeSet::from(["a".to_owned()]));
    }

    /// A pipe that nobody reads takes the place of a disk that stalls.
    #[tokio::test]
    async fn a_disk_that_stalls_holds_nobody_but_its_writer() {
        let data = tempfile::tempdir().unwrap();
        let pipe = data.path().join("drained.json.new");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut drained = Drained::load(data.path());
        tokio::time::pause();
        let slow = drained.set("a", true).await.unwrap_err();
        assert_eq!(slow.kind(), io::ErrorKind::TimedOut);
        assert_eq!(drained.set("b", true).await.unwrap_err().kind(), io::ErrorKind::TimedOut, "one writer at a time");
        tokio::time::resume();
        // The disk is back. The first writer has the pipe once it can be opened here, and a pipe cannot be flushed.
        let reader = std::fs::File::open(&pipe).unwrap();
        std::fs::remove_file(&pipe).unwrap();
        drop(reader);
        drained.set("b", true).await.unwrap();
        assert_eq!(Drained::load(data.path()).nodes, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    }
}
