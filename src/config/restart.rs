//! What a running process cannot change, and what else is new: two configurations compared. Pure.
//!
//! Called by a reload. What cannot change live is held back: the configuration in force always says what is true.

use std::fmt::Debug;

use super::{Config, RouterKey, Secret};

/// A key that another value would need a restart for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeedsRestart {
    /// The key.
    pub key: &'static str,
    /// Its value in this process.
    pub running: String,
    /// Its value in the configuration that was read.
    pub wanted: String,
}

/// Gives `wanted` the running values of all that cannot change live, and says what those keys were to be.
pub fn hold_back(running: &Config, wanted: &mut Config) -> Vec<NeedsRestart> {
    let mut held = Vec::new();
    let (old, new) = (running, wanted);
    keep("listen", &old.listen, &mut new.listen, &mut held);
    keep("data", &old.data, &mut new.data, &mut held);
    keep("workers", &old.workers, &mut new.workers, &mut held);
    keep("limits.names", &old.limits.names, &mut new.limits.names, &mut held);
    keep("limits.ring", &old.limits.ring, &mut new.limits.ring, &mut held);
    keep("ledger.tick", &old.ledger.tick, &mut new.ledger.tick, &mut held);
    keep("ledger.required", &old.ledger.required, &mut new.ledger.required, &mut held);
    keep("ledger.fold_after", &old.ledger.fold_after, &mut new.ledger.fold_after, &mut held);
    keep("log.format", &old.log.format, &mut new.log.format, &mut held);
    held
}

fn keep<T: PartialEq + Clone + Debug>(key: &'static str, old: &T, new: &mut T, held: &mut Vec<NeedsRestart>) {
    if old != new {
        held.push(NeedsRestart { key, running: format!("{old:?}"), wanted: format!("{new:?}") });
        new.clone_from(old);
    }
}

/// Router keys that go by another name than before, as (before, now): what they count goes to another account from here
/// on. Keys without names are named by their place, so taking the first away renames the others.
#[must_use]
pub fn renamed_keys(old: &Config, new: &Config) -> Vec<(String, String)> {
    let before = |secret: &Secret| old.router_keys.iter().find(|key| key.secret == *secret).map(|key| key.name.clone());
    let renamed = |key: &RouterKey| Some((before(&key.secret)?, key.name.clone())).filter(|(old, new)| old != new);
    new.router_keys.iter().filter_map(renamed).collect()
}

/// The top-level keys whose values differ.
#[must_use]
pub fn changed_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("nodes", old.nodes != new.nodes),
        ("slots", old.slots != new.slots),
        ("node_slots", old.node_slots != new.node_slots),
        ("models", old.models != new.models),
        ("router_keys", old.router_keys != new.router_keys),
        ("administration", old.administration != new.administration),
        ("allowed_hosts", old.allowed_hosts != new.allowed_hosts),
        ("origins", old.origins != new.origins),
        ("timeouts", old.timeouts != new.timeouts),
        ("limits", old.limits != new.limits),
        ("health", old.health != new.health),
        ("routing", old.routing != new.routing),
        ("ledger", old.ledger != new.ledger),
        ("shutdown", old.shutdown != new.shutdown),
        ("log", old.log != new.log),
        ("debug", old.debug != new.debug),
        ("headers", old.headers != new.headers),
    ];
    let mut keys: Vec<_> = differs.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
    if keys.is_empty() && old != new {
        keys.push("others");
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_moves_up_the_list_is_named() {
        let keys = |keys: &[(&str, &str)]| {
            let key = |&(name, secret): &(&str, &str)| RouterKey { name: name.into(), secret: Secret(secret.into()) };
            Config { router_keys: keys.iter().map(key).collect(), ..Config::default() }
        };
        let running = keys(&[("key1", "old"), ("key2", "new")]);
        assert_eq!(renamed_keys(&running, &keys(&[("key1", "new")])), [("key2".to_owned(), "key1".to_owned())]);
        assert!(renamed_keys(&running, &keys(&[("key1", "old"), ("key3", "third")])).is_empty());
        assert!(renamed_keys(&running, &keys(&[("key1", "other")])).is_empty(), "a new secret under an old name");
    }

    #[test]
    fn what_cannot_change_live_is_held_back_and_named() {
        let running = Config::default();
        let mut wanted = Config { workers: Some(3), headers: false, ..Config::default() };
        wanted.limits.ring = 1;
        wanted.limits.queue_length = 7;
        let held = hold_back(&running, &mut wanted);
        assert_eq!(held.iter().map(|held| held.key).collect::<Vec<_>>(), ["workers", "limits.ring"]);
        assert_eq!((wanted.workers, wanted.limits.ring), (running.workers, running.limits.ring));
        assert_eq!((wanted.headers, wanted.limits.queue_length), (false, 7), "everything else applies");
        assert_eq!(changed_keys(&running, &wanted), ["limits", "headers"]);
        assert!(changed_keys(&running, &running.clone()).is_empty());
    }
}
