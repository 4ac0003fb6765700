//! One core: a current-thread runtime, its own listener, its own pools, counters and ring.
//!
//! Owns everything a request touches but the fleet's words; nothing here is shared with another worker except
//! through `Shared`'s gauges and the inbox of handed-over sockets. Called by `main` (and demo, tests).
//! Must never run anything longer than about 200 us: that goes to the control thread.

pub mod accept;

use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};

use crate::clock::millis;
use crate::fleet::report::Reports;
use crate::ids::WorkerId;
use crate::proxy::local::Local;
use crate::shared::{Phase, Shared};
use crate::sync::{Arc, Ordering, spawn_local};
use crate::usage::meters::{Mark, Tally};
use crate::usage::recorder::Recorder;
use crate::worker::accept::Inboxes;

/// The worker's tick, on which every coarse deadline lives.
const TICK: Duration = Duration::from_millis(100);

/// What a worker is started with.
pub struct Start {
    /// Which one.
    pub id: WorkerId,
    /// The process' handles.
    pub shared: Arc<Shared>,
    /// Its own SO_REUSEPORT listener.
    pub listener: TcpListener,
    /// Counters and ring.
    pub recorder: Recorder,
    /// To the poller.
    pub reports: Reports,
    /// Where sockets are handed over.
    pub inboxes: Arc<Inboxes>,
    /// Told when it accepts.
    pub up: flume::Sender<()>,
}

/// Runs a worker on the calling thread until the process drains and its last connection is gone.
///
/// # Errors
/// When the runtime or the listener cannot be set up.
pub fn run(start: Start) -> std::io::Result<()> {
    let Start { id, shared, listener, recorder, reports, inboxes, up } = start;
    // Dropped after the runtime, and with it every connection.
    let _inbox = inboxes.open(id.0, &shared);
    let runtime = Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let local = Rc::new(Local::new(id, shared, recorder, reports));
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let _ = up.send(());
        drop(up);
        spawn_local(tick(local.clone()));
        spawn_local(local.upstreams.clone().run());
        spawn_local(accept::inbox(local.clone(), inboxes.clone()));
        accept::accept(local.clone(), listener, inboxes).await;
        drained(&local).await;
        Ok(())
    })
}

/// Waits for the last connection, or for the end of patience.
async fn drained(local: &Rc<Local>) {
    while local.gauges().connections.load(Ordering::Acquire) > 0 && local.shared.phase() < Phase::Ending {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Clients are gone, but nodes must not be left sooner than they can bear (I12).
    within(Duration::from_millis(100), || local.upstreams.lingering() == 0).await;
    // Streams were told to end: one more second for their last bytes, then the runtime drops what is left.
    within(Duration::from_secs(1), || local.gauges().connections.load(Ordering::Acquire) == 0).await;
}

/// Waits until something holds, at most so long; by the clock, since on a busy machine every sleep takes longer.
async fn within(most: Duration, holds: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + most;
    while !holds() && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Coarse deadlines, pool ageing, loop lag. One early interval keeps the timer wheel from waking itself (hotpath, 0.5).
async fn tick(local: Rc<Local>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut phase = Phase::Running;
    loop {
        let due = interval.tick().await;
        let late = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        local.gauges().loop_lag_us.store(late, Ordering::Relaxed);
        let now = local.clock.now();
        local.gauges().pulse.promise(now + millis(TICK));
        let _ = local.rules();
        // A worker without requests would keep an old generation alive, a few megabytes each in a large fleet.
        local.with_snapshot(|_| ());
        local.watches.tick(now, |expiry| local.timed_out(expiry.timeout()));
        local.upstreams.tick();
        let meters = local.recorder.meters();
        meters.set(Mark::IdleNodeConnections, local.upstreams.idle() as u64);
        let counts = local.upstreams.counts();
        for (tally, so_far) in [
            (Tally::NodeConnectionsOpened, &counts.opened),
            (Tally::NodeConnectionsClosed, &counts.closed),
            (Tally::NodeConnectionsReused, &counts.reused),
            (Tally::Detached, &counts.detached),
            (Tally::Lingered, &counts.lingered),
        ] {
            meters.publish(tally, so_far.get());
        }
        meters.raise(Mark::LoopLagMaxUs, late);
        local.recorder.hand_over();
        for watch in local.memory_waiters.take().iter().filter_map(std::rc::Weak::upgrade) {
            watch.wake();
        }
        if local.shared.phase() != phase {
            phase = local.shared.phase();
            local.watches.wake_all();
        }
    }
}
