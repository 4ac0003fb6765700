//! What every thread of the process shares: handles only, each of them safe to read without a lock.
//!
//! Built once by `main.rs` (and by tests); passed as `Arc<Shared>` to workers, control and admin.

use crossbeam::utils::CachePadded;

use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::fleet::fanout::Orders;
use crate::live::Live;
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};
use crate::usage::ledger::Ledger;
use crate::usage::meters::Meters;
use crate::usage::names::Names;
use crate::usage::recorder::Ring;

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
}

/// The process' shared handles.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub config: Arc<Config>,
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
    /// To the subscribers of live state.
    pub live: Live,
    /// Lines of finished requests, to be written.
    pub access: Access,
    /// Identifies this process to itself, so that a node list that leads back here is noticed.
    pub instance: Box<str>,
    /// This machine's host name, an accepted `Host`.
    pub host_name: Box<str>,
    /// The address really listened on.
    pub listen: std::net::SocketAddr,
    /// Client connections at most, all workers together.
    pub connection_bound: u32,
    /// Bytes of request bodies held now, all workers together.
    pub body_bytes: CachePadded<AtomicU64>,
    /// Per worker.
    pub gauges: Box<[CachePadded<WorkerGauges>]>,
    pub(crate) phase: AtomicU32,
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

    /// Client connections open now, all workers together.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.gauges.iter().map(|gauges| gauges.connections.load(Ordering::Relaxed)).sum()
    }
}
