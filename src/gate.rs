//! The whole proxy in one process: starts its threads in order and ends them in order.
//!
//! Used by `main` (serve), the demo and the tests. Order of start: port, ledger, workers, control; of the end: ready
//! turns 503, accepting stops, streams drain, workers end, control ends, the ledger flushes last (I11).

mod end;
pub mod listen;

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::access::Access;
use crate::clock::{Clock, millis};
use crate::config::{Config, InForce, NodeConfig};
use crate::control::drained::Drained;
use crate::control::operator::LogLevel;
use crate::control::{self, LastStore};
use crate::fleet::expansion::Expansion;
use crate::fleet::report::Reports;
use crate::fleet::resolve::Resolver;
use crate::fleet::{self, Fleet};
use crate::ids::WorkerId;
use crate::live::Live;
use crate::operator::{Operator, Origin};
use crate::shared::{Phase, Shared, connections_at_most};
use crate::sync::{Arc, AtomicU32, spawn_thread};
use crate::usage::ledger::{Ledger, LedgerError, LedgerThreads, Setup};
use crate::usage::meters::Meters;
use crate::usage::names::Names;
use crate::usage::recorder::{Recorder, Ring};
use crate::worker;
use crate::worker::accept::Inboxes;

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
    control: JoinHandle<Option<LastStore>>,
    stop_control: flume::Sender<control::Stop>,
    ledger: LedgerThreads,
}

/// What a proxy is started with.
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Time.
    pub clock: Clock,
    /// Where the configuration comes from, to be read again; `None`: it cannot be.
    pub origin: Option<Origin>,
    /// Looks up the names of nodes.
    pub resolver: Resolver,
    /// Changes the level of the log.
    pub log_level: Option<LogLevel>,
    /// Listens already, for us; `None`: where the configuration says.
    pub listener: Option<TcpListener>,
}

impl Start {
    /// With a configuration that is not read again.
    #[must_use]
    pub fn fixed(config: Config, clock: Clock) -> Self {
        Self { config, clock, origin: None, resolver: Resolver::system(), log_level: None, listener: None }
    }
}

impl Gate {
    /// Starts everything; when it returns, connections are accepted. For a configuration that is not read again.
    ///
    /// # Errors
    /// As [`Gate::begin`].
    pub fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::begin(Start::fixed(config, clock))
    }

    /// Starts everything; when it returns, connections are accepted.
    ///
    /// # Errors
    /// The port is taken, the ledger cannot be had, or the operating system refuses something.
    pub fn begin(start: Start) -> Result<Self, StartError> {
        let Start { config, clock, origin, resolver, log_level, listener } = start;
        let workers = config.workers.unwrap_or_else(cores).max(1);
        let listeners = listen::listen(config.listen, listener, workers)?;
        let listen = listeners[0].local_addr().map_err(|cause| StartError::System { what: "local address", cause })?;
        let mut expansion = Expansion::new(resolver);
        let nodes = expand(&config, &mut expansion)?;
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
        let drained = Drained::load(&config.data);
        let (operator, ordered) = Operator::new(clock.unix_ms());
        let config = InForce::new(config);
        let instance = instance();
        let fleet = Fleet::new();
        let parts = fleet::facts::Parts {
            config: config.now(),
            nodes,
            names: names.clone(),
            workers,
            instance: instance.as_ref().into(),
            seed: u64::from(std::process::id()),
            drained: drained.nodes.clone(),
        };
        let poller = fleet::poll::Poller::new(parts, &fleet, received, &clock).watching(ledger.speeds());
        let shared = Arc::new(Shared {
            access: Access::default(),
            connection_bound: AtomicU32::new(connections_at_most(&config.now(), node_count)),
            config,
            operator,
            fleet,
            clock,
            names,
            meters: meters.clone(),
            rings: rings.clone().into(),
            ledger,
            orders,
            live: Live::new(),
            decisions: (0..workers).map(|_| Default::default()).collect(),
            instance,
            host_name: host_name(),
            listen,
            gauges: (0..workers).map(|_| Default::default()).collect(),
            body_bytes: Default::default(),
            aside: Default::default(),
            pulse: Default::default(),
            phase: Default::default(),
        });
        let threads = start_workers(&shared, listeners, rings, &meters, &reports)?;
        let (stop_control, stopped) = flume::bounded(1);
        let control_shared = shared.clone();
        let administration =
            control::Administration { orders: taken, reports, ordered, origin, expansion, drained, log_level };
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

    /// What has ended though nobody told it to, so that this process had better end too; `None` while all is well.
    #[must_use]
    pub fn broken(&self) -> Option<&'static str> {
        let accepting = self.shared.phase() < Phase::Draining;
        match () {
            () if self.control.is_finished() => Some("the control thread"),
            () if self.ledger.has_ended() => Some("the ledger"),
            () if accepting && self.is_drained() => Some("every worker"),
            () => None,
        }
    }

    /// Leaves, drains and ends in one go, waiting for streams at most as long as `shutdown.drain` says.
    ///
    /// # Errors
    /// The last flush did not reach the disk.
    pub fn stop(self) -> Result<(), StartError> {
        self.leave();
        self.drain();
        let patience = millis(self.shared.config.now().shutdown.drain);
        let started = self.shared.clock.now();
        while !self.is_drained() && self.shared.clock.now() - started < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end()
    }
}

/// A thread for each listener.
fn start_workers(
    shared: &Arc<Shared>,
    listeners: Vec<TcpListener>,
    rings: Vec<Arc<Ring>>,
    meters: &Arc<Meters>,
    reports: &Reports,
) -> Result<Vec<JoinHandle<std::io::Result<()>>>, StartError> {
    let inboxes = Arc::new(Inboxes::new(listeners.len()));
    let (up, comes_up) = flume::bounded(listeners.len());
    let mut threads = Vec::with_capacity(listeners.len());
    for (index, (listener, ring)) in listeners.into_iter().zip(rings).enumerate() {
        let id = WorkerId(index);
        let start = worker::Start {
            id,
            shared: Arc::clone(shared),
            listener,
            recorder: Recorder::new(id, ring, Arc::clone(meters)),
            reports: reports.clone(),
            inboxes: Arc::clone(&inboxes),
            up: up.clone(),
        };
        let thread = spawn_thread(&format!("worker-{index}"), move || worker::run(start));
        threads.push(thread.map_err(|cause| StartError::System { what: "start a worker", cause })?);
    }
    drop(up);
    // Disconnected before all have come up: one of them never will.
    if comes_up.iter().take(threads.len()).count() < threads.len() {
        shared.enter(Phase::Ending);
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(std::io::Error::other("it panicked"))));
        let cause = ended.filter_map(Result::err).last().unwrap_or_else(|| std::io::Error::other("it ended"));
        return Err(StartError::System { what: "start a worker", cause });
    }
    Ok(threads)
}

/// The nodes with every `expand: true` name made one for each of its addresses.
fn expand(config: &Config, expansion: &mut Expansion) -> Result<Vec<NodeConfig>, StartError> {
    let runtime = runtime()?;
    let nodes = runtime.block_on(expansion.expand(config)).map_err(StartError::Nodes);
    // A look-up that hangs in the system's resolver hangs whoever drops its runtime: minutes, in which nothing is served.
    runtime.shutdown_background();
    nodes
}

/// A runtime for the calling thread.
fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|cause| StartError::System { what: "start a runtime", cause })
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
