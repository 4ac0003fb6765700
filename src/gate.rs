//! The whole proxy in one process: starts its threads in order and ends them in order.
//!
//! Used by `main` (serve), the demo and the tests. Order of start: port, ledger, workers, control; of the end: ready
//! turns 503, accepting stops, streams drain, workers end, control ends, the ledger flushes last (I11).

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::access::Access;
use crate::clock::{Clock, millis};
use crate::config::{Config, NodeConfig};
use crate::control;
use crate::fleet::{self, Fleet};
use crate::ids::WorkerId;
use crate::live::Live;
use crate::shared::{Phase, Shared};
use crate::sync::{Arc, spawn_thread};
use crate::usage::ledger::{Ledger, LedgerError, LedgerThreads, Setup};
use crate::usage::meters::Meters;
use crate::usage::names::Names;
use crate::usage::recorder::{Recorder, Ring};
use crate::worker;
use crate::worker::accept::Inboxes;

/// Pending connections the kernel holds per worker.
const BACKLOG: i32 = 4096;

/// Files kept for everything that is neither a stream nor a node's polls: listeners, ledger, logs.
const FILES_APART: u64 = 256;

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody listens there (exit 69).
    #[error("{address} is taken: {cause}")]
    PortTaken {
        /// The address asked for.
        address: SocketAddr,
        /// The operating system's words.
        cause: std::io::Error,
    },
    /// The ledger cannot be had (exit 75 when a live process holds it).
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The names of nodes lead to several addresses (exit 64).
    #[error("{}", .0.join("\n"))]
    Nodes(Vec<String>),
    /// Anything else of the operating system.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The operating system's words.
        cause: std::io::Error,
    },
}

/// A running proxy.
pub struct Gate {
    /// What its threads share.
    pub shared: Arc<Shared>,
    workers: Vec<JoinHandle<std::io::Result<()>>>,
    control: JoinHandle<()>,
    stop_control: flume::Sender<control::Stop>,
    ledger: LedgerThreads,
}

impl Gate {
    /// Starts everything; when it returns, connections are accepted.
    ///
    /// # Errors
    /// The port is taken, the ledger cannot be had, or the operating system refuses something.
    pub fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let workers = config.workers.unwrap_or_else(cores).max(1);
        let listeners = listen(config.listen, workers)?;
        let listen = listeners[0].local_addr().map_err(|cause| StartError::System { what: "local address", cause })?;
        let nodes = runtime()?.block_on(fleet::resolve::expand(&config)).map_err(StartError::Nodes)?;
        let names = Arc::new(names(&config, &nodes));
        let node_count = nodes.len();
        let rings = Ring::for_workers(workers, config.limits.ring);
        let meters = Arc::new(Meters::new(workers));
        let (ledger, ledger_threads) = Ledger::start(Setup {
            data: Some(config.data.clone()),
            config: config.ledger.clone(),
            names: names.clone(),
            rings: rings.clone(),
            clock: clock.clone(),
        })?;
        let (reports, received) = fleet::report::channel();
        let (orders, taken) = fleet::fanout::channel();
        let config = Arc::new(config);
        let instance = instance();
        let fleet = Fleet::new();
        let parts = fleet::facts::Parts {
            config: config.clone(),
            nodes,
            names: names.clone(),
            workers,
            instance: instance.as_ref().into(),
            seed: u64::from(std::process::id()),
        };
        let poller = fleet::poll::Poller::new(parts, &fleet, received, &clock).watching(ledger.speeds());
        let shared = Arc::new(Shared {
            access: Access::new(config.log.access),
            connection_bound: connection_bound(&config, node_count),
            config,
            fleet,
            clock,
            names,
            meters: meters.clone(),
            rings: rings.clone().into(),
            ledger,
            orders,
            live: Live::new(),
            instance,
            host_name: host_name(),
            listen,
            gauges: (0..workers).map(|_| Default::default()).collect(),
            body_bytes: Default::default(),
            phase: Default::default(),
        });
        let inboxes = Arc::new(Inboxes::new(workers));
        let mut threads = Vec::with_capacity(workers);
        for (index, (listener, ring)) in listeners.into_iter().zip(rings).enumerate() {
            let id = WorkerId(index);
            let start = worker::Start {
                id,
                shared: shared.clone(),
                listener,
                recorder: Recorder::new(id, ring, meters.clone()),
                reports: reports.clone(),
                inboxes: inboxes.clone(),
            };
            let thread = spawn_thread(&format!("worker-{index}"), move || worker::run(start));
            threads.push(thread.map_err(|cause| StartError::System { what: "start a worker", cause })?);
        }
        let (stop_control, stopped) = flume::bounded(1);
        let control_shared = shared.clone();
        let administration = control::Administration { orders: taken, reports };
        let control = spawn_thread("control", move || control::run(&control_shared, poller, administration, &stopped))
            .map_err(|cause| StartError::System { what: "start the control thread", cause })?;
        Ok(Self { shared, workers: threads, control, stop_control, ledger: ledger_threads })
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Not ready any more; accepting goes on, every answer closes its connection.
    pub fn leave(&self) {
        self.shared.enter(Phase::Leaving);
    }

    /// Stops accepting; requests that wait for a slot end with 503, streams run on.
    pub fn drain(&self) {
        self.shared.enter(Phase::Draining);
    }

    /// Whether the last connection is gone.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.workers.iter().all(JoinHandle::is_finished)
    }

    /// Ends what still streams, with its dialect's error, and then every thread; the ledger flushes last.
    ///
    /// # Errors
    /// The last flush did not reach the disk.
    pub fn end(self) -> Result<(), StartError> {
        if !self.is_drained() {
            self.shared.enter(Phase::Ending);
        }
        for worker in self.workers {
            match worker.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a worker failed"),
                Err(_) => tracing::error!("a worker panicked"),
            }
        }
        let _ = self.stop_control.send(control::Stop);
        if self.control.join().is_err() {
            tracing::error!("the control thread panicked");
        }
        let flushed = runtime()?.block_on(self.shared.ledger.shutdown());
        self.ledger.join();
        flushed.map_err(StartError::from)
    }

    /// Leaves, drains and ends in one go, waiting for streams at most as long as `shutdown.drain` says.
    ///
    /// # Errors
    /// The last flush did not reach the disk.
    pub fn stop(self) -> Result<(), StartError> {
        self.leave();
        self.drain();
        let patience = millis(self.shared.config.shutdown.drain);
        let started = self.shared.clock.now();
        while !self.is_drained() && self.shared.clock.now() - started < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end()
    }
}

/// A runtime for the calling thread.
fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|cause| StartError::System { what: "start a runtime", cause })
}

/// One listener per worker on the same port. The port is probed first, without SO_REUSEPORT: two proxies that share a
/// port without knowing it would each get half of the clients.
fn listen(address: SocketAddr, workers: usize) -> Result<Vec<TcpListener>, StartError> {
    let taken = |cause| StartError::PortTaken { address, cause };
    let probe = socket(address, false).map_err(taken)?;
    let address = probe.local_addr().map_err(taken)?;
    drop(probe);
    let bound = |_| {
        let socket = socket(address, true).map_err(taken)?;
        Ok(socket)
    };
    (0..workers).map(bound).collect()
}

fn socket(address: SocketAddr, share_port: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if share_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn names(config: &Config, nodes: &[NodeConfig]) -> Names {
    let nodes: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let keys: Vec<&str> = config.router_keys.iter().map(|key| key.name.as_str()).collect();
    Names::new(&nodes, &keys, config.limits.names)
}

/// The cores this process may run on.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// From the configuration, else from the file limit.
fn connection_bound(config: &Config, nodes: usize) -> u32 {
    config.limits.connections.unwrap_or_else(|| {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1_000_000);
        connections_of(files, nodes as u64)
    })
}

/// Two files a stream, beside what the polls of this many nodes keep open: a thousand nodes take two thousand files.
fn connections_of(files: u64, nodes: u64) -> u32 {
    let polls = nodes.saturating_mul(fleet::fetch::IDLE_MAX as u64);
    let streams = files.saturating_sub(FILES_APART).saturating_sub(polls) / 2;
    u32::try_from(streams).unwrap_or(u32::MAX).max(worker::accept::RESERVED * 2)
}

/// Raises the file limit as far as the system allows; returns what holds now.
#[must_use]
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the file limit could not be raised");
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Identifies this process: process id and start time are enough to tell two proxies apart.
fn instance() -> Box<str> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), since.as_nanos()).into()
}

fn host_name() -> Box<str> {
    rustix::system::uname().nodename().to_string_lossy().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i8_streams_and_polls_together_stay_below_the_file_limit() {
        assert_eq!(connections_of(20_000, 1), 9_871);
        assert_eq!(connections_of(20_000, 1_000), 8_872);
        assert_eq!(connections_of(1_024, 10_000), worker::accept::RESERVED * 2, "never so few that nobody is served");
    }
}
