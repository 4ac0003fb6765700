//! Starting, stopping and steering simulated nodes.
//!
//! A [`Node`] lives on a thread of its own, the nodes of a [`Herd`] share one. A node that is down keeps its port, so
//! that a restart finds it again and nobody else does meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::fault::{Fault, Harm};
use super::host::{self, Core};
use super::ledger::NodeLedger;
use super::names::Name;
use super::serve;
use super::spec::{ModelSpec, NodeSpec};
use crate::sync::{spawn_local, spawn_thread};

/// A running (or stopped) simulated node. Dropping it stops it.
pub struct Node {
    core: Arc<Core>,
    address: SocketAddr,
    commands: Option<flume::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// Several nodes on one thread.
pub struct Herd {
    nodes: Vec<Node>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    /// Close the port and every connection, forget what is loaded.
    Down(blocking::SyncSender<()>),
    /// Open the port again.
    Up(blocking::SyncSender<()>),
    /// Look at the faults that concern the port.
    Faults(blocking::SyncSender<()>),
}

/// A node before it runs.
struct Egg {
    core: Arc<Core>,
    kicked: mpsc::Receiver<()>,
    commands: flume::Receiver<Command>,
    listener: Socket,
    /// Holds the port while the listener is gone.
    guard: Socket,
    address: SocketAddr,
}

impl Node {
    /// Starts a node; it answers when this returns.
    ///
    /// # Errors
    /// The port cannot be had, or no thread.
    pub fn start(spec: NodeSpec) -> io::Result<Self> {
        let (mut node, egg) = lay(spec)?;
        node.thread = Some(hatch(vec![egg])?);
        Ok(node)
    }

    /// Its address as a base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it did up to now.
    #[must_use]
    pub fn ledger(&self) -> NodeLedger {
        self.core.with(|s| s.ledger.clone())
    }

    /// Display names of the models that are loaded now.
    #[must_use]
    pub fn loaded(&self) -> Vec<String> {
        self.core.with(|s| s.sched.loaded().map(|r| r.name.to_string()).collect())
    }

    /// Requests that wait now: for a load, and for a slot.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        self.core.with(|s| (s.sched.pending(), s.sched.waiting()))
    }

    /// From now on this goes wrong.
    pub fn fault(&self, fault: Fault) {
        let port = fault.harm == Harm::Refuse;
        self.core.with(|s| s.faults.add(fault));
        if port {
            self.command(Command::Faults);
        }
    }

    /// Nothing goes wrong any more; answers that hang already stay so.
    pub fn clear_faults(&self) {
        self.core.with(|s| s.faults.clear());
        self.command(Command::Faults);
    }

    /// Puts a model on its disk.
    pub fn add_model(&self, model: ModelSpec) {
        self.core.add_model(model);
    }

    /// Takes a model off its disk; whether it was there.
    pub fn remove_model(&self, name: &str) -> bool {
        self.core.remove_model(name)
    }

    /// Drops a loaded model: now if it is idle, else when it is.
    pub fn unload(&self, name: &str) {
        let Ok(name) = Name::parse(name) else { return };
        self.core.schedule(|s, now| {
            if let Some(weights) = s.find(&name).map(|m| m.weights.clone()) {
                s.sched.unload(now, &weights);
            }
        });
    }

    /// Stops it as SIGTERM does: every connection ends where it stands.
    pub fn stop(&self) {
        self.command(Command::Down);
    }

    /// Kills it as SIGKILL does; on the wire the same as [`Node::stop`].
    pub fn kill(&self) {
        self.command(Command::Down);
    }

    /// Starts it again on the same port, with nothing loaded. Its ledger goes on.
    pub fn restart(&self) {
        self.command(Command::Up);
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    /// Opens or closes the port as the faults say.
    pub(super) fn look_at_port(&self) {
        self.command(Command::Faults);
    }

    fn command(&self, make: impl FnOnce(blocking::SyncSender<()>) -> Command) {
        let Some(commands) = &self.commands else { return };
        let (done, wait) = blocking::sync_channel(1);
        if commands.send(make(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Herd {
    /// Starts nodes that share one thread.
    ///
    /// # Errors
    /// A port cannot be had, or no thread.
    pub fn start(specs: Vec<NodeSpec>) -> io::Result<Self> {
        let mut nodes = Vec::new();
        let mut eggs = Vec::new();
        for spec in specs {
            let (node, egg) = lay(spec)?;
            nodes.push(node);
            eggs.push(egg);
        }
        Ok(Self { thread: Some(hatch(eggs)?), nodes })
    }

    /// The nodes, in the order of their specs.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Base URLs of the nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Node::url).collect()
    }
}

impl std::ops::Deref for Herd {
    type Target = [Node];

    fn deref(&self) -> &[Node] {
        &self.nodes
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        self.nodes.clear();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn lay(spec: NodeSpec) -> io::Result<(Node, Egg)> {
    let listener = bind(spec.listen)?;
    let address = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let guard = bind(address)?;
    listener.listen(1024)?;
    let (core, kicked) = Core::new(spec);
    let (commands, receiver) = flume::bounded(16);
    let node = Node { core: core.clone(), address, commands: Some(commands), thread: None };
    Ok((node, Egg { core, kicked, commands: receiver, listener, guard, address }))
}

fn hatch(eggs: Vec<Egg>) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    spawn_thread("sim", move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let lives: Vec<_> = eggs.into_iter().map(|egg| spawn_local(live(egg))).collect();
            for life in lives {
                let _ = life.await;
            }
        });
    })
}

/// Accepts connections and obeys commands until the node is dropped.
async fn live(egg: Egg) {
    let Egg { core, kicked, commands, listener, guard, address } = egg;
    let _held = guard;
    let driver = spawn_local(host::drive(core.clone(), kicked));
    let mut listener = TcpListener::from_std(listener.into()).ok();
    let mut tasks: Vec<tokio::task::JoinHandle<()>> = Vec::new();
    let mut up = true;
    loop {
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let command = tokio::select! {
            biased;
            command = commands.recv_async() => command.ok(),
            accepted = accept => {
                match accepted {
                    Ok((stream, _)) => {
                        if tasks.len() >= 64 && tasks.len().is_power_of_two() {
                            tasks.retain(|task| !task.is_finished());
                        }
                        tasks.push(spawn_local(serve::connection(core.clone(), stream)));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
                continue;
            }
        };
        let Some(command) = command else { break };
        let done = match command {
            Command::Down(done) => {
                listener = None;
                end(&mut tasks).await;
                core.forget();
                up = false;
                done
            }
            Command::Up(done) => {
                up = true;
                done
            }
            Command::Faults(done) => done,
        };
        let open = up && !core.with(|s| s.faults.refuses());
        if !open {
            listener = None;
        } else if listener.is_none() {
            listener = open_again(address).await;
        }
        let _ = done.send(());
    }
    drop(listener);
    end(&mut tasks).await;
    driver.abort();
    core.forget();
}

async fn end(tasks: &mut Vec<tokio::task::JoinHandle<()>>) {
    for task in tasks.iter() {
        task.abort();
    }
    for task in tasks.drain(..) {
        let _ = task.await;
    }
}

/// Listens on the node's port again; the guard has kept it, so only a passing shortage can fail.
async fn open_again(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..100 {
        let listener = bind(address).and_then(|socket| {
            socket.listen(1024)?;
            TcpListener::from_std(socket.into())
        });
        match listener {
            Ok(listener) => return Some(listener),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    None
}
