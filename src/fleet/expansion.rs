//! Names that are many nodes: `expand: true` makes each address of a name a node, and follows the name.
//!
//! The gate expands once before it starts, each reload and each `health.resolve` again (`control/operator.rs`). What a name
//! led to last is kept here: a resolver that fails, hangs or says nothing changes no node. Must never run on a worker.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;
use std::time::Duration;

use crate::config::{Config, NodeConfig};
use crate::fleet::resolve::{Resolver, is_ambiguous, unique};

/// The longest that names are waited for: at a start, and before an operator's next order.
const PATIENCE: Duration = Duration::from_secs(2);

/// A host and its port.
type Name = (String, u16);
/// What names lead to.
type Addresses = HashMap<Name, Vec<SocketAddr>>;

/// Names of nodes, and where they led last.
#[derive(Clone, Debug)]
pub struct Expansion {
    resolver: Resolver,
    /// Only where something was found.
    known: Addresses,
}

impl Expansion {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver, known: Addresses::new() }
    }

    /// Who looks names up.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The configured nodes, each name of theirs looked up: one with `expand` becomes a node for each address. A name
    /// that does not resolve yet stays one node; it is looked up again while the process runs.
    ///
    /// # Errors
    /// Every name with several addresses of one family and no `expand` (in an ancestor's file a warning: the first
    /// counts).
    pub async fn expand(&mut self, config: &Config) -> Result<Vec<NodeConfig>, Vec<String>> {
        let names = names(config, |_| true);
        let found = self.look_up(names.clone()).await;
        self.known.retain(|name, _| names.contains(name));
        self.learn(found);
        expanded(config, &self.known)
    }

    /// The nodes again, if a name with `expand` leads elsewhere than it did; no other name is looked up.
    pub async fn renew(&mut self, config: &Config) -> Option<Vec<NodeConfig>> {
        let names = names(config, |node| node.expand);
        if names.is_empty() {
            return None;
        }
        let found = self.look_up(names.clone()).await;
        if !self.learn(found) {
            return None;
        }
        // A name without `expand` that has become ambiguous is no mistake while it runs: it keeps its address.
        let many = self.known.iter().filter(|(name, _)| names.contains(name));
        expanded(config, &many.map(|(name, at)| (name.clone(), at.clone())).collect()).ok()
    }

    /// Takes what was found; nothing found changes nothing, and neither does another order. Whether anything did.
    fn learn(&mut self, found: Addresses) -> bool {
        let mut changed = false;
        for (name, addresses) in found {
            let addresses = unique(&addresses);
            let set = |addresses: &[SocketAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
            if addresses.is_empty() || self.known.get(&name).is_some_and(|known| set(known) == set(&addresses)) {
                continue;
            }
            self.known.insert(name, addresses);
            changed = true;
        }
        changed
    }

    /// Looks all of them up at once; who has not answered in time is left out.
    async fn look_up(&self, names: BTreeSet<Name>) -> Addresses {
        let mut found = Addresses::new();
        let lookup = |name: Name| (name.clone(), Box::pin(self.resolver.look_up(name.0, name.1)));
        let mut lookups: Vec<_> = names.into_iter().map(lookup).collect();
        let all = std::future::poll_fn(|cx| {
            lookups.retain_mut(|(name, lookup)| match lookup.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(addresses) => {
                    found.insert(name.clone(), addresses.unwrap_or_default());
                    false
                }
            });
            if lookups.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = tokio::time::timeout(PATIENCE, all).await;
        found
    }
}

fn names(config: &Config, wanted: impl Fn(&NodeConfig) -> bool) -> BTreeSet<Name> {
    let named = config.nodes.iter().filter(|node| node.host.parse::<IpAddr>().is_err() && wanted(node));
    named.map(|node| (node.host.clone(), node.port)).collect()
}

/// The pure part of it all.
fn expanded(config: &Config, found: &Addresses) -> Result<Vec<NodeConfig>, Vec<String>> {
    let mut nodes = Vec::with_capacity(config.nodes.len());
    let mut mistakes = Vec::new();
    for node in &config.nodes {
        let addresses = found.get(&(node.host.clone(), node.port)).map(|found| unique(found)).unwrap_or_default();
        // One address, too: the node at it keeps its name when a second one appears.
        if node.expand && !addresses.is_empty() {
            nodes.extend(addresses.iter().map(|address| one_of(node, *address)));
            continue;
        }
        if is_ambiguous(&addresses) {
            let message = format!(
                "node {}: {} has {} addresses; write `expand: true` to make each a node, or configure them one by one",
                node.name,
                node.host,
                addresses.len()
            );
            if config.ancestor {
                tracing::warn!("{message}; taking the first");
            } else {
                mistakes.push(message);
            }
        }
        nodes.push(node.clone());
    }
    if mistakes.is_empty() { Ok(nodes) } else { Err(mistakes) }
}

/// The node at one address of its name.
fn one_of(node: &NodeConfig, address: SocketAddr) -> NodeConfig {
    let name = format!("{}[{}]", node.name, address.ip());
    NodeConfig { name, host: address.ip().to_string(), expand: false, ..node.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Arc, AtomicU64, Ordering};

    fn node(host: &str) -> NodeConfig {
        NodeConfig { name: host.to_owned(), ..NodeConfig::from_url(&format!("http://{host}:11434")).unwrap() }
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn several_addresses_are_a_mistake_unless_expanded() {
        let found = HashMap::from([
            (("a".to_owned(), 11434), addresses(&["10.0.0.1:11434", "10.0.0.2:11434"])),
            (("b".to_owned(), 11434), addresses(&["10.0.0.3:11434", "10.0.0.4:11434"])),
        ]);
        let mut config = Config { nodes: vec![node("a"), node("b"), node("later")], ..Config::default() };
        assert_eq!(expanded(&config, &found).unwrap_err().len(), 2);
        config.ancestor = true;
        assert_eq!(expanded(&config, &found).unwrap().len(), 3);
        config.ancestor = false;
        config.nodes[0].expand = true;
        config.nodes[1].expand = true;
        let nodes = expanded(&config, &found).unwrap();
        let names: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.host.as_str())).collect();
        let expected = [
            ("a[10.0.0.1]", "10.0.0.1"),
            ("a[10.0.0.2]", "10.0.0.2"),
            ("b[10.0.0.3]", "10.0.0.3"),
            ("b[10.0.0.4]", "10.0.0.4"),
            ("later", "later"),
        ];
        assert_eq!(names, expected);
    }

    #[tokio::test]
    async fn a_name_of_this_machine_resolves() {
        let config = Config { nodes: vec![node("localhost")], ..Config::default() };
        assert_eq!(Expansion::new(Resolver::system()).expand(&config).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_name_is_followed_and_a_resolver_that_fails_or_turns_changes_nothing() {
        // The number of addresses; 0: the resolver fails, 9: it says nothing, 12: the same as 2 the other way round.
        let says = Arc::new(AtomicU64::new(2));
        let said = Arc::clone(&says);
        let resolver = Resolver::answering(move |host, port| {
            let at = |last: u8| SocketAddr::from(([10, 0, 0, last], port));
            match (host, said.load(Ordering::Relaxed)) {
                ("alone", _) => Ok(vec![at(100)]),
                (_, 0) => Err(std::io::ErrorKind::NotFound.into()),
                (_, 9) => Ok(vec![]),
                (_, 12) => Ok(vec![at(2), at(1)]),
                (_, count) => Ok((1..=count).map(|last| at(u8::try_from(last).unwrap())).collect()),
            }
        });
        let config =
            Config { nodes: vec![node("alone"), NodeConfig { expand: true, ..node("many") }], ..Config::default() };
        let named = |nodes: Vec<NodeConfig>| nodes.into_iter().map(|node| node.name).collect::<Vec<_>>();
        let mut expansion = Expansion::new(resolver);
        let two = ["alone", "many[10.0.0.1]", "many[10.0.0.2]"];
        assert_eq!(named(expansion.expand(&config).await.unwrap()), two);
        for unchanged in [2, 0, 9, 12] {
            says.store(unchanged, Ordering::Relaxed);
            assert_eq!(expansion.renew(&config).await, None, "{unchanged}");
        }
        says.store(0, Ordering::Relaxed);
        assert_eq!(named(expansion.expand(&config).await.unwrap()), two, "a reload meanwhile");
        says.store(1, Ordering::Relaxed);
        assert_eq!(named(expansion.renew(&config).await.unwrap()), two[..2]);
        says.store(2, Ordering::Relaxed);
        assert_eq!(named(expansion.renew(&config).await.unwrap()), two);
        let fixed = Config { nodes: vec![node("many")], ..Config::default() };
        says.store(1, Ordering::Relaxed);
        assert_eq!(expansion.renew(&fixed).await, None, "not asked for");
    }
}
