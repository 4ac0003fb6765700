//! One progress stream out of many nodes' streams, as the clients of one Ollama expect it. Pure.
//!
//! Called by `progress` with every line of every node, and with the time. What holds of the lines that come out:
//! of a digest `total` and `completed` only grow; a status that several nodes say comes once; one that closes a phase
//! comes when the last node has reached it; `success` never comes from here, the caller knows when all is done.
//!
//! `completed` of a digest is the mean over the nodes, those that have not begun included, so that the bar moves with the
//! work: with two nodes at a time, the least of them would stand still until the last begins, and the most would be full
//! before the first is done. Must never hold more than a bounded number of statuses and digests.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Millis;

/// Between two lines of one digest: nodes send one each 60 ms, and clients draw no faster.
const PACE_MS: Millis = 60;
/// Digests and statuses kept; what is beyond them is not told.
const KNOWN_MAX: usize = 1_024;
/// Statuses that close a phase for all nodes.
const CLOSING: [&str; 3] = ["verifying sha256 digest", "writing manifest", "removing unused layers"];

/// What a node's line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// It failed, in its own words.
    Error(String),
    /// It is done.
    Success,
    /// A phase, or anything else in words.
    Status(Box<str>),
    /// So much of a layer.
    Progress {
        /// In words.
        status: Box<str>,
        /// The layer.
        digest: Box<str>,
        /// Its size.
        total: u64,
        /// What is there.
        completed: u64,
    },
    /// Nothing a client would miss.
    Other,
}

impl Line {
    /// Reads one line; `None`: it is no JSON object.
    #[must_use]
    pub fn read(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Raw {
            status: Option<Box<str>>,
            digest: Option<Box<str>>,
            total: Option<u64>,
            completed: Option<u64>,
            error: Option<String>,
        }
        let Raw { status, digest, total, completed, error } = serde_json::from_slice(line).ok()?;
        Some(match (error, status, digest.filter(|digest| !digest.is_empty())) {
            (Some(error), ..) => Self::Error(error),
            (None, Some(status), None) if &*status == "success" => Self::Success,
            (None, status, Some(digest)) => Self::Progress {
                status: status.unwrap_or_default(),
                digest,
                total: total.unwrap_or(0),
                completed: completed.unwrap_or(0),
            },
            (None, Some(status), None) => Self::Status(status),
            (None, None, None) => Self::Other,
        })
    }
}

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stand {
    /// Under way, or not begun.
    Open,
    Done,
    Failed,
}

/// A layer over all nodes.
#[derive(Debug)]
struct Layer {
    status: Box<str>,
    digest: Box<str>,
    total: u64,
    /// By node.
    completed: Vec<u64>,
    /// Total and completed as told last, and when.
    told: Option<(u64, u64)>,
    told_at: Millis,
}

/// The streams of some nodes, merged.
#[derive(Debug)]
pub struct Merge {
    stands: Vec<Stand>,
    layers: Vec<Layer>,
    /// Statuses that were told.
    told: HashSet<Box<str>>,
    /// By closing status: the nodes that have reached it.
    reached: [Vec<bool>; CLOSING.len()],
    out: VecDeque<Bytes>,
}

impl Merge {
    /// For so many nodes.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            stands: vec![Stand::Open; nodes],
            layers: Vec::new(),
            told: HashSet::new(),
            reached: CLOSING.map(|_| vec![false; nodes]),
            out: VecDeque::new(),
        }
    }

    /// A node said this. Its errors and its success are the caller's to tell, by [`Merge::done`] and [`Merge::failed`].
    pub fn line(&mut self, node: usize, line: Line) {
        match line {
            Line::Error(_) | Line::Success | Line::Other => {}
            Line::Status(status) => match CLOSING.iter().position(|closing| **closing == *status) {
                Some(at) => self.reach(node, at),
                None => self.status(status),
            },
            Line::Progress { status, digest, total, completed } => {
                let nodes = self.stands.len();
                let at = match self.layers.iter().position(|layer| layer.digest == digest) {
                    Some(at) => at,
                    None if self.layers.len() == KNOWN_MAX => return,
                    None => {
                        let completed = vec![0; nodes];
                        self.layers.push(Layer { status, digest, total: 0, completed, told: None, told_at: 0 });
                        self.layers.len() - 1
                    }
                };
                let layer = &mut self.layers[at];
                layer.total = layer.total.max(total);
                layer.completed[node] = layer.completed[node].max(completed);
            }
        }
    }

    /// The node has it all.
    pub fn done(&mut self, node: usize) {
        self.stands[node] = Stand::Done;
        self.close();
    }

    /// The node will not have it; nobody waits for it any more.
    pub fn failed(&mut self, node: usize) {
        self.stands[node] = Stand::Failed;
        self.close();
    }

    /// Something in words that is not a node's own line.
    pub fn note(&mut self, text: &str) {
        self.flush();
        self.out.push_back(status_line(text));
    }

    /// The next line for the client; `None`: nothing is due now.
    pub fn take(&mut self, now: Millis) -> Option<Bytes> {
        if let Some(line) = self.out.pop_front() {
            return Some(line);
        }
        let stands = &self.stands;
        let due = |layer: &&mut Layer| match layer.news(stands) {
            Some(_) if layer.told.is_none() => true,
            Some((total, completed)) => completed == total || now >= layer.told_at + PACE_MS,
            None => false,
        };
        let layer = self.layers.iter_mut().find(due)?;
        layer.told_at = now;
        layer.tell(stands)
    }

    /// When a line falls due that is held back for its pace; [`Millis::MAX`]: none is.
    #[must_use]
    pub fn next_due(&self) -> Millis {
        let held = self.layers.iter().filter(|layer| layer.news(&self.stands).is_some());
        held.map(|layer| layer.told_at + PACE_MS).min().unwrap_or(Millis::MAX)
    }

    /// Some node has told of a layer.
    #[must_use]
    pub fn has_layers(&self) -> bool {
        !self.layers.is_empty()
    }

    /// Everything that is still to be told, at once: the end is near.
    pub fn flush(&mut self) {
        for layer in &mut self.layers {
            self.out.extend(layer.tell(&self.stands));
        }
    }

    fn status(&mut self, status: Box<str>) {
        if self.told.len() < KNOWN_MAX && !self.told.contains(&status) {
            self.flush();
            self.out.push_back(status_line(&status));
            self.told.insert(status);
        }
    }

    fn reach(&mut self, node: usize, at: usize) {
        self.reached[at][node] = true;
        // Every layer is there: the last line of one is often short of its size.
        for layer in &mut self.layers {
            layer.completed[node] = u64::MAX;
        }
        self.close();
    }

    /// Tells the closing statuses that every node has reached or does not need, if any node said them at all.
    fn close(&mut self) {
        for (at, closing) in CLOSING.iter().enumerate() {
            let mut nodes = self.stands.iter().zip(&self.reached[at]);
            let said = self.reached[at].contains(&true);
            if said && nodes.all(|(stand, reached)| *reached || *stand != Stand::Open) {
                self.status((*closing).into());
            }
        }
    }
}

impl Layer {
    /// Total and completed, if they are not as told last.
    fn news(&self, stands: &[Stand]) -> Option<(u64, u64)> {
        let live = stands.iter().zip(&self.completed).filter(|(stand, _)| **stand != Stand::Failed);
        let (mut sum, mut nodes) = (0_u128, 0_u128);
        for (stand, completed) in live {
            let all = if *stand == Stand::Done { self.total } else { (*completed).min(self.total) };
            sum += u128::from(all);
            nodes += 1;
        }
        let mean = u64::try_from(sum / nodes.max(1)).unwrap_or(self.total);
        // A node that failed takes its share away, which no bar shows.
        let now = (self.total, mean.max(self.told.map_or(0, |(_, completed)| completed)));
        (self.told != Some(now)).then_some(now)
    }

    fn tell(&mut self, stands: &[Stand]) -> Option<Bytes> {
        let (total, completed) = self.news(stands)?;
        self.told = Some((total, completed));
        #[derive(Serialize)]
        struct Told<'a> {
            status: &'a str,
            digest: &'a str,
            total: u64,
            #[serde(skip_serializing_if = "is_zero")]
            completed: u64,
        }
        Some(super::line(&Told { status: &self.status, digest: &self.digest, total, completed }))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn status_line(status: &str) -> Bytes {
    #[derive(Serialize)]
    struct Told<'a> {
        status: &'a str,
    }
    super::line(&Told { status })
}

#[cfg(test)]
mod tests;
