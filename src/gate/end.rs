//! The end of a proxy, in bounds: every thread is waited for, none for ever.
//!
//! Called by [`super::Gate::end`]. Whatever holds a thread (a defect, a dead disk) must keep neither the ledger from its last
//! flush nor the process from its end: who does not come is named in the log and left behind.

use std::time::Duration;

use super::{Gate, StartError, runtime};
use crate::clock::{Clock, millis};
use crate::config::END_MAX;
use crate::control::{self, LastStore};
use crate::shared::Phase;
use crate::sync::{self, ThreadHandle};
use crate::usage::ledger::{self, LedgerError};

/// All workers together. They give their last bytes a second, and nodes a tenth of one.
const WORKERS: Duration = Duration::from_secs(3);
/// The control thread. It waits for nothing.
const CONTROL: Duration = Duration::from_secs(2);
/// The ledger's last flush. It gives a stalled disk 5 s by itself.
const FLUSH: Duration = Duration::from_secs(6);
/// The last store of the inventories, which went on beside the flush.
const STORE: Duration = Duration::from_secs(2);

/// How often it is looked for the end of a thread.
const LOOK: Duration = Duration::from_millis(5);

const _: () = {
    let sum = WORKERS.as_millis()
        + CONTROL.as_millis()
        + FLUSH.as_millis()
        + ledger::JOIN_MAX.as_millis()
        + STORE.as_millis()
        + crate::log::FLUSH_MAX.as_millis();
    assert!(sum <= END_MAX.as_millis(), "the end takes longer than is promised");
};

impl Gate {
    /// Ends what still streams, with its dialect's error, and then every thread; the ledger flushes last. Takes no longer
    /// than [`END_MAX`].
    ///
    /// # Errors
    /// The last flush did not reach the disk.
    pub fn end(self) -> Result<(), StartError> {
        if !self.is_drained() {
            self.shared.enter(Phase::Ending);
        }
        workers_end(self.workers);
        let _ = self.stop_control.try_send(control::Stop);
        let last_store = control_ends(self.control);
        let flush = async { tokio::time::timeout(FLUSH, self.shared.ledger.shutdown()).await };
        let flushed = runtime()?.block_on(flush).unwrap_or(Err(LedgerError::Busy));
        self.ledger.join();
        // A hint for the next start: it was written meanwhile, or the disk stalls and it is not worth more waiting.
        if last_store.is_some_and(|told| told.recv_timeout(STORE) == Err(flume::RecvTimeoutError::Timeout)) {
            tracing::warn!("the disk is slow to store the inventories: they are as they were");
        }
        flushed.map_err(StartError::from)
    }
}

fn workers_end(workers: Vec<ThreadHandle<std::io::Result<()>>>) {
    in_time(WORKERS, || workers.iter().all(ThreadHandle::is_finished));
    for (worker, thread) in workers.into_iter().enumerate() {
        if !thread.is_finished() {
            tracing::error!(worker, "a worker does not end: left behind, with what it was serving");
            continue;
        }
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(worker, %error, "a worker failed"),
            Err(_) => tracing::error!(worker, "a worker panicked"),
        }
    }
}

fn control_ends(control: ThreadHandle<Option<LastStore>>) -> Option<LastStore> {
    if !in_time(CONTROL, || control.is_finished()) {
        tracing::error!("the control thread does not end: left behind");
        return None;
    }
    control.join().unwrap_or_else(|_| {
        tracing::error!("the control thread panicked");
        None
    })
}

/// Waits until something holds, at most so long; whether it does.
fn in_time(most: Duration, holds: impl Fn() -> bool) -> bool {
    // Time of its own: the proxy's may be a test's, which stands still.
    let clock = Clock::system();
    while !holds() {
        if clock.now() >= millis(most) {
            return holds();
        }
        sync::sleep(LOOK);
    }
    true
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;
    use crate::sync::spawn_thread;

    #[test]
    fn a_worker_that_hangs_is_left_behind_and_the_others_are_joined() {
        let (release, held) = flume::bounded::<()>(1);
        let (done, ended) = flume::bounded(1);
        let hanging = spawn_thread("worker-0", move || {
            let _ = held.recv();
            let _ = done.send(());
            Ok(())
        });
        let fine = spawn_thread("worker-1", || Ok(()));
        // Returns, though the first would hang for ever.
        workers_end(vec![hanging.unwrap(), fine.unwrap()]);
        assert!(ended.try_recv().is_err(), "it was not waited for");
        drop(release);
        ended.recv().unwrap();
    }

    #[test]
    fn what_holds_is_not_waited_for() {
        assert!(in_time(Duration::ZERO, || true) && !in_time(Duration::ZERO, || false));
    }
}
