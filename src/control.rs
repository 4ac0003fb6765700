//! The control thread: polls the fleet, administers models, offers new capacity, publishes live state, writes access
//! lines, keeps time.
//!
//! Everything that is slow or periodic and belongs to no request. Workers reach it through the poller's bounded
//! channel of rare reports. Must never be needed for a request that finds a free slot.

pub mod drained;
pub mod operator;

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinHandle;

use crate::admin;
use crate::clock::millis;
use crate::control::drained::Drained;
use crate::control::operator::LogLevel;
use crate::fleet::expansion::Expansion;
use crate::fleet::fanout::{Desk, Order};
use crate::fleet::report::Reports;
use crate::fleet::{self, poll::Poller};
use crate::operator::Origin;
use crate::routing::{self, Parked};
use crate::shared::{Phase, Shared};
use crate::sync::{Arc, spawn_local};

/// Waiters are looked after, live state is sampled: at most 20 times a second.
const SAMPLE: Duration = Duration::from_millis(50);

/// The UTC offset is read anew.
const RESYNC: Duration = Duration::from_secs(1);

/// Comment lines keep idle event streams alive through middle boxes.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Ends the control thread.
#[derive(Clone, Copy, Debug)]
pub struct Stop;

/// What the administration of models is run with.
pub struct Administration {
    /// From the workers.
    pub orders: flume::Receiver<Order>,
    /// To the poller.
    pub reports: Reports,
    /// What an operator orders.
    pub ordered: flume::Receiver<crate::operator::Order>,
    /// Where the configuration comes from; `None`: it cannot be read again.
    pub origin: Option<Origin>,
    /// Looks up the names of nodes.
    pub expansion: Expansion,
    /// Nodes that are taken out.
    pub drained: Drained,
    /// Changes the level of the log.
    pub log_level: Option<LogLevel>,
}

/// Told when what is known of the fleet is written; wait for it in bounds, since a disk may stall.
pub type LastStore = flume::Receiver<()>;

/// Runs the control thread until told to stop; or until one of its tasks panics, and then there is no last store.
///
/// A task that is gone cannot be made up for: without the poller no node is probed, without the desk nobody can drain.
/// So the thread ends, which its owner sees, and not the task alone, which nobody would.
pub fn run(
    shared: &Arc<Shared>,
    poller: Poller,
    administration: Administration,
    stop: &flume::Receiver<Stop>,
) -> Option<LastStore> {
    let runtime = match Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime for the control thread");
            return None;
        }
    };
    let last_store = runtime.block_on(async {
        let Administration { orders, reports, ordered, origin, expansion, drained, log_level } = administration;
        let (look_up, again) = flume::bounded(1);
        let resolving = spawn_local(fleet::resolve::keep_fresh(fleet::resolve::Names {
            snapshot: shared.fleet.snapshot.clone(),
            config: shared.config.clone(),
            resolver: expansion.resolver().clone(),
            again,
        }));
        let steering = operator::Desk {
            shared: shared.clone(),
            origin,
            expansion,
            reports: reports.clone(),
            drained,
            look_up,
            log_level,
        };
        let steering = spawn_local(steering.run(ordered));
        let tally = shared.orders.tally();
        let desk = Desk::new(&shared.config, &shared.fleet.snapshot, &shared.clock, reports, tally);
        let administering = spawn_local(desk.run(orders));
        let mut polling = spawn_local(poll(poller, stop.clone()));
        let looking = spawn_local(look_after(shared.clone()));
        let others =
            [("names", resolving), ("orders", steering), ("administration", administering), ("looking after", looking)];
        #[cfg(proxy_locked)]
        let locked = routing::locked::start(&shared.fleet, &shared.clock, &shared.rings);
        let last_store = tokio::select! {
            ended = &mut polling => ended.map_err(|_| "polls"),
            task = panicked(others.into()) => Err(task),
        };
        if let Err(task) = last_store {
            tracing::error!(task, "a task of the control thread panicked: nodes are not looked after any more");
        }
        #[cfg(proxy_locked)]
        locked.finish().await;
        shared.pulse.rest();
        shared.fleet.pulse.rest();
        shared.live.close();
        shared.access.write_last(&shared.names);
        last_store.ok()
    });
    // Look-ups that hang in the system's resolver end with the process, not before it.
    runtime.shutdown_background();
    last_store
}

/// The first of these that panics; never, while none does. One that ends in peace is no concern.
async fn panicked(mut tasks: Vec<(&'static str, JoinHandle<()>)>) -> &'static str {
    std::future::poll_fn(|cx| {
        let mut found = None;
        tasks.retain_mut(|(name, task)| match Pin::new(task).poll(cx) {
            Poll::Pending => true,
            Poll::Ready(ended) => {
                if ended.is_err() {
                    found = Some(*name);
                }
                false
            }
        });
        found.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Polls until told to stop; capacity that appears goes to whoever waits. What is known of the fleet is stored last.
async fn poll(mut poller: Poller, stop: flume::Receiver<Stop>) -> LastStore {
    loop {
        tokio::select! {
            capacity = poller.step() => capacity.offer(),
            _ = stop.recv_async() => break,
        }
    }
    poller.store_last()
}

/// The periodic work.
async fn look_after(shared: Arc<Shared>) {
    let mut sample = tokio::time::interval(SAMPLE);
    sample.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut resynced, mut beaten, mut published) = (0, 0, Vec::new());
    let (mut next_state_us, mut rounds) = (0, 0_usize);
    loop {
        sample.tick().await;
        let now = shared.clock.now();
        shared.pulse.promise(now + millis(SAMPLE));
        let snapshot = shared.fleet.snapshot.load_full();
        let spill_after = millis(shared.config.now().routing.cold_spill_after);
        let parked = Parked::before(&snapshot);
        let mut waited_for: Vec<_> = snapshot.models.values().filter(|model| !model.queue.is_empty()).collect();
        if !waited_for.is_empty() {
            // Each is first in its turn: where a node has one seat to load with, the first takes it.
            let first = rounds % waited_for.len();
            waited_for.rotate_left(first);
            rounds = rounds.wrapping_add(1);
        }
        for model in waited_for {
            routing::serve_waiting(&snapshot, model, now, spill_after);
        }
        parked.give_back();
        shared.access.write(&shared.names);
        if shared.phase() >= Phase::Leaving {
            shared.live.close();
        } else if shared.live.wanted() && shared.clock.now_us() >= next_state_us {
            let began_us = shared.clock.now_us();
            let state = admin::usage_state(&shared);
            if state[..] != published[..] {
                shared.live.publish(&state);
                published = state.to_vec();
            }
            // A state of thousands of busy pairs takes milliseconds: it is made at most a fifth of the time.
            let spent_us = shared.clock.now_us().saturating_sub(began_us);
            next_state_us = began_us + 5 * spent_us;
        }
        if now - beaten >= millis(HEARTBEAT) {
            beaten = now;
            shared.live.heartbeat();
        }
        if now - resynced >= millis(RESYNC) {
            resynced = now;
            shared.clock.resync();
        }
    }
}
