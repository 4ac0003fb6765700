//! What every thread of the process shares: handles only, each of them safe to read without a lock.
//!
//! Built once by `main.rs` (and by tests); passed as `Arc<Shared>` to workers, control and admin.

use std::fmt;

use crossbeam::utils::CachePadded;

use crate::access::Access;
use crate::clock::{Clock, Millis};
use crate::config::{Config, InForce};
use crate::evidence::Decisions;
use crate::fleet::Fleet;
use crate::fleet::fanout::Orders;
use crate::fleet::fetch::IDLE_MAX;
use crate::live::Live;
use crate::operator::Operator;
use crate::pulse::{Pulse, STUCK_MS};
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};
use crate::usage::ledger::Ledger;
use crate::usage::meters::Meters;
use crate::usage::names::Names;
use crate::usage::recorder::Ring;

/// Connections kept back for `/herdgate/*`, `/health` and `/metrics`.
pub const RESERVED: u32 = 64;

/// Files kept for everything that is neither a stream nor a node's polls: listeners, ledger, logs.
const FILES_APART: u64 = 256;

/// Where the process is in its life. Only ever moves forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Serving.
    Running,
    /// Signalled: not ready, still accepting for `shutdown.delay`, every answer closes its connection.
    Leaving,
    /// No new work; streams run on.
    Draining,
    /// The drain deadline passed: streams end with their dialect's error.
    Ending,
}

/// Gauges of one worker, written by it alone (but for `connections`, which a handing-over worker raises).
#[derive(Debug, Default)]
pub struct WorkerGauges {
    /// Client connections it serves.
    pub connections: AtomicU32,
    /// How late its last tick was, microseconds.
    pub loop_lag_us: AtomicU64,
    /// Accepts that had to wait for a free file or a place under the bound.
    pub accept_waits: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections handed to a less busy worker.
    pub handed_over: AtomicU64,
    /// When its next tick is due.
    pub pulse: Pulse,
}

/// The process' shared handles.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub config: InForce,
    /// The fleet's snapshot.
    pub fleet: Fleet,
    /// Time.
    pub clock: Clock,
    /// Names of nodes, models and keys.
    pub names: Arc<Names>,
    /// Counters of every worker.
    pub meters: Arc<Meters>,
    /// Event rings of every worker.
    pub rings: Box<[Arc<Ring>]>,
    /// To the ledger thread.
    pub ledger: Ledger,
    /// Administration of models, to the control thread.
    pub orders: Orders,
    /// What an operator orders, to the control thread.
    pub operator: Operator,
    /// To the subscribers of live state.
    pub live: Live,
    /// The last decisions of every worker.
    pub decisions: Box<[CachePadded<Decisions>]>,
    /// Lines of finished requests, to be written.
    pub access: Access,
    /// Identifies this process to itself, so that a node list that leads back here is noticed.
    pub instance: Box<str>,
    /// This machine's host name, an accepted `Host`.
    pub host_name: Box<str>,
    /// The address really listened on.
    pub listen: std::net::SocketAddr,
    /// Client connections at most, all workers together.
    pub connection_bound: AtomicU32,
    /// Bytes of request bodies held now, all workers together.
    pub body_bytes: CachePadded<AtomicU64>,
    /// Per worker.
    pub gauges: Box<[CachePadded<WorkerGauges>]>,
    /// Answers being made on threads of their own: for `/health`, for `/metrics`, for the rest.
    pub aside: [AtomicU32; 3],
    /// When the control thread will be back.
    pub pulse: Pulse,
    pub(crate) phase: AtomicU32,
}

/// A thread that must move on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thread {
    /// Serves who waits, publishes, keeps time.
    Control,
    /// The control thread's task that asks the nodes.
    Polls,
    /// Folds what requests came to.
    Ledger,
    /// One worker.
    Worker(usize),
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::Polls => f.write_str("polls"),
            Self::Ledger => f.write_str("ledger"),
            Self::Worker(number) => write!(f, "worker-{number}"),
        }
    }
}

impl Shared {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Leaving,
            2 => Phase::Draining,
            _ => Phase::Ending,
        }
    }

    /// Moves on; never back.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u32, Ordering::AcqRel);
    }

    /// Puts another configuration in force, whose nodes the Snapshot has already.
    pub fn put_in_force(&self, config: &Arc<Config>, nodes: usize) {
        self.connection_bound.store(connections_at_most(config, nodes), Ordering::Relaxed);
        self.config.put(Arc::clone(config));
    }

    /// Client connections at most, all workers together.
    #[must_use]
    pub fn connection_bound(&self) -> u32 {
        self.connection_bound.load(Ordering::Relaxed)
    }

    /// How late each thread is that must move on, milliseconds.
    pub fn late(&self) -> impl Iterator<Item = (Thread, Millis)> {
        let now = self.clock.now();
        let workers = self.gauges.iter().enumerate();
        let workers = workers.map(move |(number, gauges)| (Thread::Worker(number), gauges.pulse.late(now)));
        let others = [
            (Thread::Control, self.pulse.late(now)),
            (Thread::Polls, self.fleet.pulse.late(now)),
            (Thread::Ledger, self.ledger.late(now)),
        ];
        others.into_iter().chain(workers)
    }

    /// The threads that are so late that only a restart can help.
    pub fn stuck(&self) -> impl Iterator<Item = (Thread, Millis)> {
        self.late().filter(|(_, late)| *late >= STUCK_MS)
    }

    /// Client connections open now, all workers together.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.gauges.iter().map(|gauges| gauges.connections.load(Ordering::Relaxed)).sum()
    }
}

/// Client connections at most: from the configuration, else from the file limit.
#[must_use]
pub fn connections_at_most(config: &Config, nodes: usize) -> u32 {
    config.limits.connections.unwrap_or_else(|| {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1_000_000);
        connections_of(files, nodes as u64)
    })
}

/// Two files a stream, beside what the polls of this many nodes keep open: a thousand nodes take two thousand files.
fn connections_of(files: u64, nodes: u64) -> u32 {
    let polls = nodes.saturating_mul(IDLE_MAX as u64);
    let streams = files.saturating_sub(FILES_APART).saturating_sub(polls) / 2;
    u32::try_from(streams).unwrap_or(u32::MAX).max(RESERVED * 2)
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn i8_streams_and_polls_together_stay_below_the_file_limit() {
        assert_eq!(connections_of(20_000, 1), 9_871);
        assert_eq!(connections_of(20_000, 1_000), 8_872);
        assert_eq!(connections_of(1_024, 10_000), RESERVED * 2, "never so few that nobody is served");
    }
}
