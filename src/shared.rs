//! What every thread of the process shares: handles only, each of them safe to read without a lock.
//!
//! Built once by `main.rs` (and by tests); passed as `Arc<Shared>` to workers, control and admin.

use crate::clock::Clock;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::sync::{Arc, AtomicBool};

/// The process' shared handles.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// The fleet's snapshot.
    pub fleet: Fleet,
    /// Time.
    pub clock: Clock,
    /// SIGTERM was received: ready says 503, new work is refused once `shutdown.delay` has passed.
    pub draining: AtomicBool,
}
