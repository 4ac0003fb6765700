//! The life of a serving process from its start to its drain, as signals and its own threads decide.
//!
//! Called by `main` (serve). Signals are heard from before the start to the last flush: whoever wants this process to end
//! must never have to wait for its start. Must never wait for a node or for a disk.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::gate::{Gate, Start, StartError};
use crate::manager::Manager;
use crate::operator::{Answer, Command};
use crate::shared::Thread;
use crate::sync::spawn_thread;

/// How often it is looked whether a thread has ended that must not, or is stuck.
const LOOK: Duration = Duration::from_secs(1);

/// The signals that mean something here.
pub struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Held, never read: a file beyond `ulimit -f` is a full disk to whoever writes it, and no reason to be killed.
    _file_size: Signal,
}

impl Signals {
    /// From here on a signal of these kinds does not end the process by itself.
    ///
    /// # Errors
    /// The operating system's.
    pub fn listen() -> std::io::Result<Self> {
        let of = |kind| signal(kind);
        Ok(Self {
            term: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hangup: of(SignalKind::hangup())?,
            _file_size: of(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// Waits for a signal to end.
    pub async fn another(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for a signal to end while the process ends already; no configuration is read any more.
    async fn again(&mut self) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::warn!("signalled to read the configuration while ending: it is not read"),
            }
        }
    }

    /// Waits for a signal to end; one that hangs up reloads meanwhile.
    async fn stopped(&mut self, gate: &Gate, manager: &Manager) {
        let (mut reloading, mut again): (Option<oneshot::Receiver<Answer>>, bool) = (None, false);
        loop {
            let came = async {
                match &mut reloading {
                    Some(answer) => answer.await.is_ok_and(|answer| answer.status == 200),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    manager.reloading();
                    // One reading at a time: a storm of signals leaves room for other orders, and its last one is obeyed.
                    again = reloading.is_some();
                    if !again {
                        reloading = reload(gate, manager);
                    }
                }
                applied = came => {
                    reloading = if std::mem::take(&mut again) { reload(gate, manager) } else { None };
                    if reloading.is_some() {
                        continue;
                    }
                    let refused = "not reloaded: the configuration has mistakes, and the old one stays in force";
                    manager.ready(if applied { "serving" } else { refused });
                }
            }
        }
    }
}

/// Orders a reload. What comes of it is logged.
fn reload(gate: &Gate, manager: &Manager) -> Option<oneshot::Receiver<Answer>> {
    tracing::info!("signalled: reading the configuration again");
    let ordered = gate.shared.operator.order(Command::Reload);
    if ordered.is_none() {
        tracing::warn!("too many orders at once: not reloaded");
        manager.ready("not reloaded: too many orders at once");
    }
    ordered
}

/// Starts the proxy; `None` if a signal to end comes before it has started. A signal to read the configuration again is
/// kept until then.
///
/// The start runs on a thread of its own: a store to repair, or a disk that does not answer, may hold it for long.
///
/// # Errors
/// As [`Gate::begin`].
pub async fn begin(start: Start, signals: &mut Signals) -> Result<Option<Gate>, StartError> {
    let (done, begun) = flume::bounded(1);
    let starting = spawn_thread("start", move || drop(done.send(Gate::begin(start))));
    starting.map_err(|cause| StartError::System { what: "start", cause })?;
    tokio::select! {
        biased;
        () = signals.another() => Ok(None),
        begun = begun.recv_async() => match begun {
            Ok(begun) => begun.map(Some),
            Err(flume::RecvError::Disconnected) => {
                Err(StartError::System { what: "start", cause: std::io::Error::other("it panicked") })
            }
        },
    }
}

/// Serves until the first signal, or until a thread ends by itself; then until everything has drained, the deadline passes
/// or a second signal comes. Says what ended by itself.
pub async fn until_drained(gate: &Gate, signals: &mut Signals, manager: &Manager) -> Option<&'static str> {
    let broken = tokio::select! {
        () = signals.stopped(gate, manager) => None,
        () = tell_when_ready(gate, manager) => None,
        broken = watched(gate, manager) => Some(broken),
    };
    let shutdown = gate.shared.config.now().shutdown.clone();
    manager.stopping(shutdown.longest());
    match broken {
        None => tracing::info!(delay = ?shutdown.delay, drain = ?shutdown.drain, "signalled: not ready any more"),
        Some(broken) => tracing::error!("{broken} ended by itself: draining, and ending with exit code 1"),
    }
    gate.leave();
    let drained = async {
        tokio::time::sleep(shutdown.delay).await;
        gate.drain();
        while !gate.is_drained() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        done = tokio::time::timeout(shutdown.delay + shutdown.drain, drained) => {
            if done.is_err() {
                tracing::warn!(streams = gate.shared.connections(), "the drain deadline passed: ending what still runs");
            }
        }
        () = signals.again() => tracing::warn!("second signal: ending now"),
    }
    broken
}

/// Tells once the first poll is done, as `/herdgate/ready` does; never ends.
async fn tell_when_ready(gate: &Gate, manager: &Manager) {
    while !gate.shared.fleet.load().ready {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    manager.ready("serving");
    std::future::pending().await
}

/// Waits until something has ended that must not. A thread that is stuck is named, and the manager is not told that all is
/// well: it may start the process again, as it does for one whose `/herdgate/live` is 503.
async fn watched(gate: &Gate, manager: &Manager) -> &'static str {
    let mut known: Vec<Thread> = Vec::new();
    let every = manager.watchdog().map_or(LOOK, |most| LOOK.min(most / 2));
    loop {
        if let Some(broken) = gate.broken() {
            return broken;
        }
        let stuck: Vec<(Thread, u64)> = gate.shared.stuck().collect();
        for (thread, late) in stuck.iter().filter(|(thread, _)| !known.contains(thread)) {
            tracing::error!(%thread, late_ms = late, "a thread is stuck: only a restart can help");
        }
        for thread in known.iter().filter(|known| !stuck.iter().any(|(thread, _)| thread == *known)) {
            tracing::warn!(%thread, "a thread that was stuck moves again");
        }
        known = stuck.into_iter().map(|(thread, _)| thread).collect();
        if known.is_empty() {
            manager.well();
        }
        tokio::time::sleep(every).await;
    }
}
