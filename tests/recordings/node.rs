//! A node that plays recordings: each client's request gets the answer that the test names next, at the test's pace.

use std::time::Duration;

use crate::support::scripted::{self, After, Asked, Pace, Scripted, Step};

/// The running node, and the paces of the answers that it has begun.
pub(crate) struct Player {
    pub(crate) node: Scripted,
    paces: flume::Receiver<Pace>,
}

impl Player {
    /// A node with these models, loaded.
    pub(crate) fn start(models: &[&str]) -> Self {
        let (begun, paces) = flume::bounded(64);
        let node = Scripted::start(models, move |_| {
            let (pace, act) = scripted::paced();
            begun.send(pace).unwrap();
            act
        });
        Self { node, paces }
    }

    /// The next request that reaches the node, and the pace of its answer; fails after a minute.
    pub(crate) async fn asked(&self) -> (Asked, Pace) {
        let asked = self.node.next().await;
        let pace = tokio::time::timeout(Duration::from_secs(60), self.paces.recv_async());
        (asked, pace.await.expect("the node answers").unwrap())
    }
}

/// Sends a piece, and what comes after it where it is the last.
pub(crate) fn send(pace: &Pace, bytes: &[u8]) {
    // A client that left takes its node along: then nobody is there to be sent anything.
    let _ = pace.send(Step::Send(bytes.to_vec()));
}

/// Ends an answer.
pub(crate) fn end(pace: &Pace, closes: bool) {
    let _ = pace.send(Step::After(if closes { After::Close } else { After::Keep }));
}
