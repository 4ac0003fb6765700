//! What workers (and the fleet's administration) tell the poller: rare events on a bounded channel, never one per request.
//!
//! A full channel drops the report: the next probe finds the same out, and a miss is answered as "nobody looked".

use std::time::Duration;

use crate::config::{Config, NodeConfig};
use crate::fleet::reconfigure::{NodesChanged, Reconfigure};
use crate::ids::NodeId;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Reports under way at most. A burst of this size means the control thread is late by far more than a round.
const REPORTS_MAX: usize = 1_024;

/// How long a request with an unknown name, or one that a node denied, waits for the inventories it asked for.
pub const MISS_WAIT: Duration = Duration::from_secs(1);

/// How long an operation on models waits until the Snapshot shows its effect.
pub const SETTLE_WAIT: Duration = Duration::from_secs(2);

/// How long a listing of what is loaded waits for a node's word on what was loaded or unloaded a moment ago.
pub const SHOW_WAIT: Duration = Duration::from_millis(500);

/// What came of looking for a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sought {
    /// A later Snapshot has it.
    Found,
    /// No node that is up has it, as they said just now or a moment ago.
    Missing,
    /// Nobody has looked, or what was seen cannot be told yet: no ground for a 404.
    Unsure,
}

/// One event that a worker has seen, or one order of the operator's.
#[derive(Debug)]
pub enum Report {
    /// The configuration was read again.
    Reconfigure(Box<Reconfigure>),
    /// A node is taken out, or in again.
    Drain {
        /// Which.
        node: NodeId,
        /// Out.
        on: bool,
        /// Told once a Snapshot shows it.
        done: tokio::sync::oneshot::Sender<()>,
    },
    /// The node refused a connection. The worker has already closed the node's word.
    Refused(NodeId),
    /// The node answered although its word says down or suspect.
    Reached(NodeId),
    /// No node has this name, says the Snapshot.
    Miss {
        /// The name, as [`crate::dialect::name::key`] gives it.
        key: Box<str>,
        /// Told what came of it.
        reply: tokio::sync::oneshot::Sender<Sought>,
    },
    /// It does not have a model that its inventory lists: to be asked for anew. Nothing was ordered through us.
    Lacks(NodeId),
    /// The same of several, for a request that has nobody else to ask.
    Confirm {
        /// Who.
        nodes: Vec<NodeId>,
        /// Told once a Snapshot shows what each of them said after this.
        settled: tokio::sync::oneshot::Sender<()>,
    },
    /// A model was loaded or unloaded there.
    Residency(NodeId),
    /// Somebody wants to see what so many of those came to.
    Shown {
        /// How many.
        number: u64,
        /// Told once a Snapshot shows them.
        shown: tokio::sync::oneshot::Sender<()>,
    },
    /// A model was deleted, and will be on these nodes once they are back: what is remembered of it there is forgotten.
    Gone {
        /// Where.
        nodes: Vec<NodeId>,
        /// The name, as [`crate::dialect::name::key`] gives it.
        key: Box<str>,
    },
    /// Models were changed on these nodes: their inventories are asked for anew.
    Changed {
        /// Where.
        nodes: Vec<NodeId>,
        /// Told once a Snapshot shows what each of them said after this (or cannot be had from it).
        settled: tokio::sync::oneshot::Sender<()>,
    },
}

/// The workers' end; cloned freely.
#[derive(Clone, Debug)]
pub struct Reports {
    sender: flume::Sender<Report>,
    /// Loads and unloads reported so far, by all workers.
    residencies: Arc<AtomicU64>,
}

/// The two ends of the reports' channel: workers' and poller's.
#[must_use]
pub fn channel() -> (Reports, flume::Receiver<Report>) {
    let (sender, receiver) = flume::bounded(REPORTS_MAX);
    (Reports { sender, residencies: Arc::default() }, receiver)
}

impl Reports {
    /// The node refused a connection.
    pub fn refused(&self, node: NodeId) {
        self.send(Report::Refused(node));
    }

    /// The node answered although its word says down or suspect.
    pub fn reached(&self, node: NodeId) {
        self.send(Report::Reached(node));
    }

    /// It does not have a model that its inventory lists.
    pub fn lacks(&self, node: NodeId) {
        self.send(Report::Lacks(node));
    }

    /// Asks these nodes for their inventories and waits until a Snapshot shows them, at most [`MISS_WAIT`].
    ///
    /// False: it took too long. Cancel safe.
    pub async fn confirm(&self, nodes: Vec<NodeId>) -> bool {
        let (settled, done) = tokio::sync::oneshot::channel();
        self.send(Report::Confirm { nodes, settled })
            && matches!(tokio::time::timeout(MISS_WAIT, done).await, Ok(Ok(())))
    }

    /// A model was loaded or unloaded there.
    pub fn residency(&self, node: NodeId) {
        if self.send(Report::Residency(node)) {
            // Before the client has its answer: whoever looks after that knows what to wait for.
            self.residencies.fetch_add(1, Ordering::Release);
        }
    }

    /// What was loaded or unloaded so far is not yet in a Snapshot that shows so many reports.
    #[must_use]
    pub fn are_ahead_of(&self, shown: u64) -> bool {
        self.residencies.load(Ordering::Acquire) > shown
    }

    /// Waits until a Snapshot shows what was loaded and unloaded so far, at most [`SHOW_WAIT`]. Cancel safe.
    pub async fn shown(&self) {
        let number = self.residencies.load(Ordering::Acquire);
        let (shown, done) = tokio::sync::oneshot::channel();
        if self.send(Report::Shown { number, shown }) {
            // In vain: the listing says what is known, as it would have without us.
            let _ = tokio::time::timeout(SHOW_WAIT, done).await;
        }
    }

    /// Asks the nodes that are up whether one has this name by now; waits at most [`MISS_WAIT`].
    ///
    /// Found: load the Snapshot again, it is there. Cancel safe: a caller that leaves is forgotten.
    pub async fn miss(&self, key: &str) -> Sought {
        let (reply, answer) = tokio::sync::oneshot::channel();
        if !self.send(Report::Miss { key: key.into(), reply }) {
            return Sought::Unsure;
        }
        match tokio::time::timeout(MISS_WAIT, answer).await {
            Ok(Ok(sought)) => sought,
            Ok(Err(_)) | Err(_) => Sought::Unsure,
        }
    }

    /// A model was deleted, and its deletion is kept for these nodes, which are down.
    pub fn gone(&self, nodes: Vec<NodeId>, key: &str) {
        if !nodes.is_empty() {
            self.send(Report::Gone { nodes, key: key.into() });
        }
    }

    /// Models were changed on these nodes: asks for their inventories and waits until a Snapshot shows them, at most
    /// [`SETTLE_WAIT`].
    ///
    /// False: it took too long. Cancel safe: the inventories are asked for all the same.
    pub async fn changed(&self, nodes: Vec<NodeId>) -> bool {
        let (settled, done) = tokio::sync::oneshot::channel();
        self.send(Report::Changed { nodes, settled })
            && matches!(tokio::time::timeout(SETTLE_WAIT, done).await, Ok(Ok(())))
    }

    /// Goes by another configuration; what it came to, once a Snapshot shows it. `None`: the process ends.
    pub async fn reconfigure(&self, config: Arc<Config>, nodes: Vec<(NodeId, NodeConfig)>) -> Option<NodesChanged> {
        let (done, changed) = tokio::sync::oneshot::channel();
        let report = Report::Reconfigure(Box::new(Reconfigure { config, nodes, done }));
        self.sender.send_async(report).await.ok()?;
        changed.await.ok()
    }

    /// Takes a node out or in again; done once a Snapshot shows it. False: the process ends.
    pub async fn drain(&self, node: NodeId, on: bool) -> bool {
        let (done, shown) = tokio::sync::oneshot::channel();
        self.sender.send_async(Report::Drain { node, on, done }).await.is_ok() && shown.await.is_ok()
    }

    fn send(&self, report: Report) -> bool {
        self.sender.try_send(report).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_miss_that_nobody_answers_ends_after_a_second() {
        let (reports, receiver) = channel();
        let began = tokio::time::Instant::now();
        assert_eq!(reports.miss("nope:latest").await, Sought::Unsure, "nobody looked");
        assert_eq!(began.elapsed(), MISS_WAIT);
        assert!(matches!(receiver.try_recv(), Ok(Report::Miss { key, .. }) if &*key == "nope:latest"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_channel_costs_the_report_and_no_wait() {
        let (reports, receiver) = channel();
        for _ in 0..=REPORTS_MAX {
            reports.refused(NodeId(0));
        }
        let began = tokio::time::Instant::now();
        assert_eq!(reports.miss("m:latest").await, Sought::Unsure);
        assert!(!reports.confirm(vec![NodeId(0)]).await);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(receiver.drain().count(), REPORTS_MAX);
    }
}
