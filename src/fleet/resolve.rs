//! Where nodes are: literal addresses at once, names through the resolver, again and again.
//!
//! Runs on the control thread; its look-ups are the operating system's, on the runtime's blocking pool. A worker never
//! resolves: it reads [`Target::addresses`]. When the resolver fails or hangs the last addresses stay. Names that are
//! many nodes (`expand`) are [`super::expansion`]'s.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::millis;
use crate::config::{InForce, NodeConfig};
use crate::fleet::{Snapshot, Target};
use crate::sync::{Arc, spawn_local};

/// What a look-up comes to.
pub type Found = std::io::Result<Vec<SocketAddr>>;

type Lookup = dyn Fn(String, u16) -> Pin<Box<dyn Future<Output = Found>>> + Send + Sync;

/// Turns a name into addresses; the operating system's, or a test's own.
#[derive(Clone)]
pub struct Resolver(Arc<Lookup>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver(…)")
    }
}

impl Resolver {
    /// The operating system's, on the runtime's blocking pool.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(|host, port| Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })))
    }

    /// What `answer` says of a name.
    #[must_use]
    pub fn answering(answer: impl Fn(&str, u16) -> Found + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |host, port| Box::pin(std::future::ready(answer(&host, port)))))
    }

    /// What `ask` says of a name in its own time.
    #[must_use]
    pub fn asking(ask: impl Fn(String, u16) -> Pin<Box<dyn Future<Output = Found>>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// What the name leads to, at most [`LOOKUP`] long.
    pub(super) async fn look_up(&self, host: String, port: u16) -> Found {
        match tokio::time::timeout(LOOKUP, (self.0)(host, port)).await {
            Ok(found) => found,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }
}

/// The longest a look-up is waited for; the operating system's own patience is often longer.
const LOOKUP: Duration = Duration::from_secs(5);

/// Where requests to this node go; a literal address is known at once, a name has no address yet.
#[must_use]
pub fn target(node: &NodeConfig, connect: Duration) -> Target {
    let literal = node.host.parse::<IpAddr>().ok();
    let addresses = literal.map(|ip| SocketAddr::new(ip, node.port)).into_iter().collect();
    let host = match literal {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", node.port),
        _ if node.port == 80 => node.host.clone(),
        _ => format!("{}:{}", node.host, node.port),
    };
    Target {
        addresses: ArcSwap::from_pointee(addresses),
        host: host.into(),
        base_path: node.base_path.as_str().into(),
        api_key: node.api_key.clone(),
        connect_ms: millis(node.connect_timeout.unwrap_or(connect)),
        pool_idle_ms: node.timeouts.pool_idle.map(millis),
        // A name that is many nodes is followed as such.
        lookup: (literal.is_none() && !node.expand).then(|| (node.host.as_str().into(), node.port)),
        ..Target::default()
    }
}

/// One address of each family, in the resolver's order: both are tried in turn as one node.
#[must_use]
pub fn one_of_each(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut kept: Vec<SocketAddr> = Vec::with_capacity(2);
    for address in found {
        if !kept.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            kept.push(*address);
        }
    }
    kept
}

/// A name has several addresses of one family: is it one node or many?
#[must_use]
pub fn is_ambiguous(found: &[SocketAddr]) -> bool {
    one_of_each(found).len() < unique(found).len()
}

/// The addresses without repetitions, in their order.
#[must_use]
pub fn unique(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut kept = Vec::with_capacity(found.len());
    for address in found {
        if !kept.contains(address) {
            kept.push(*address);
        }
    }
    kept
}

/// What [`keep_fresh`] goes by.
#[derive(Debug)]
pub struct Names {
    /// Whose nodes are looked up.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// How often.
    pub config: InForce,
    /// By whom.
    pub resolver: Resolver,
    /// Other nodes are configured: look them up now.
    pub again: flume::Receiver<()>,
}

/// Keeps the addresses of all named nodes fresh, at once and then each `health.resolve`, until dropped.
pub async fn keep_fresh(names: Names) {
    let mut warned = BTreeSet::new();
    loop {
        let snapshot = names.snapshot.load_full();
        let named = snapshot.configured().filter_map(|node| Some((node, node.target.lookup.clone()?)));
        let named: Vec<_> = named.map(|(node, (host, port))| (Arc::clone(node), host, port)).collect();
        let (sender, answers) = flume::bounded(named.len().max(1));
        // Each name in a task of its own: one that hangs delays no other.
        for (node, host, port) in named {
            let (sender, resolver) = (sender.clone(), names.resolver.clone());
            spawn_local(async move {
                let found = resolver.look_up(host.to_string(), port).await.unwrap_or_default();
                let _ = sender.send_async((node, found)).await;
            });
        }
        drop(sender);
        while let Ok((node, found)) = answers.recv_async().await {
            update(&node.target, &found);
            if is_ambiguous(&found) && warned.insert(node.id) {
                tracing::warn!(node = %node.name, "its name has several addresses: taking the first");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(names.config.now().health.resolve) => {}
            again = names.again.recv_async() => if again.is_err() {
                // Nobody reconfigures any more.
                tokio::time::sleep(names.config.now().health.resolve).await;
            }
        }
    }
}

/// Takes what the resolver found; nothing found changes nothing.
fn update(target: &Target, found: &[SocketAddr]) {
    let addresses = one_of_each(found);
    let known = target.addresses.load_full();
    // A resolver that rotates its answers must not move a node from address to address.
    if found.is_empty() || known.iter().all(|address| found.contains(address)) && known.len() == addresses.len() {
        return;
    }
    target.moved(addresses);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, NodeKind};
    use crate::fleet::NodeView;
    use crate::ids::NodeId;

    fn node(host: &str) -> NodeConfig {
        NodeConfig {
            name: host.to_owned(),
            url: format!("http://{host}:11434"),
            host: host.to_owned(),
            port: 11434,
            base_path: String::new(),
            kind: NodeKind::Ollama,
            slots: None,
            node_slots: None,
            api_key: None,
            expand: false,
            cloud: false,
            connect_timeout: None,
            timeouts: crate::config::TimeoutOverrides::default(),
            llama: false,
        }
    }

    /// A node there; nothing else of it matters.
    fn view(target: &Arc<Target>) -> Arc<NodeView> {
        let target = Arc::clone(target);
        Arc::new(NodeView { target, ..NodeView::bare(NodeId(0), "gpu", NodeKind::Ollama, 1) })
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn known(target: &Target) -> Vec<SocketAddr> {
        target.addresses.load().to_vec()
    }

    #[test]
    fn literals_are_known_at_once_and_names_are_not() {
        let v4 = target(&node("10.0.0.7"), Duration::from_secs(2));
        assert_eq!((known(&v4), &*v4.host), (addresses(&["10.0.0.7:11434"]), "10.0.0.7:11434"));
        let v6 = target(&node("fd00::7"), Duration::from_secs(2));
        assert_eq!((known(&v6), &*v6.host), (addresses(&["[fd00::7]:11434"]), "[fd00::7]:11434"));
        let name = target(&NodeConfig { port: 80, ..node("gpu-a") }, Duration::from_secs(2));
        assert_eq!((known(&name), &*name.host), (vec![], "gpu-a"));
    }

    #[test]
    fn one_v4_and_one_v6_are_one_node() {
        let both = addresses(&["[fd00::7]:1", "10.0.0.7:1", "[fd00::7]:1"]);
        assert!(!is_ambiguous(&both));
        assert_eq!(one_of_each(&both), addresses(&["[fd00::7]:1", "10.0.0.7:1"]));
        assert!(is_ambiguous(&addresses(&["10.0.0.7:1", "10.0.0.8:1"])));
    }

    #[test]
    fn the_last_addresses_stay_when_nothing_is_found_or_the_order_turns() {
        let target = target(&node("gpu-a"), Duration::from_secs(2));
        update(&target, &addresses(&["10.0.0.7:1", "10.0.0.8:1"]));
        assert_eq!(known(&target), addresses(&["10.0.0.7:1"]));
        update(&target, &[]);
        update(&target, &addresses(&["10.0.0.8:1", "10.0.0.7:1"]));
        assert_eq!(known(&target), addresses(&["10.0.0.7:1"]));
        update(&target, &addresses(&["10.0.0.9:1"]));
        assert_eq!(known(&target), addresses(&["10.0.0.9:1"]));
    }

    #[tokio::test]
    async fn a_name_of_this_machine_resolves() {
        let config = Config { nodes: vec![node("localhost")], ..Config::default() };
        let target = Arc::new(target(&node("localhost"), Duration::from_secs(2)));
        let local = tokio::task::LocalSet::new();
        let (_keep, again) = flume::bounded(1);
        let snapshot = Snapshot { nodes: [view(&target)].into(), ..Snapshot::empty() };
        let fresh = keep_fresh(Names {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            config: InForce::new(config),
            resolver: Resolver::system(),
            again,
        });
        let resolved = async {
            while known(&target).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        local
            .run_until(async {
                tokio::select! { () = fresh => {}, () = resolved => {} }
            })
            .await;
        assert!(known(&target).iter().all(|address| address.ip().is_loopback()));
    }
}
