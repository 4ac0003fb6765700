//! The router keys of one configuration, found in one look-up however many there are.
//!
//! Made with the rules, asked by the check of every request. What a client sends is hashed with a seed that this process
//! alone knows, so which keys it is compared with, and how long that takes, tells nothing of a key; those with the same
//! hash, one as good as always, are compared in a time that depends on the lengths alone. Must never allocate in a look-up.

use std::hash::{BuildHasher, RandomState};

use crate::config::Secret;
use crate::ids::KeyId;

/// A key that opens the router.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its id in ledger, metrics and logs: that of its name, whatever stands before it in the file.
    pub id: KeyId,
    /// The key.
    pub secret: Secret,
}

/// All keys that open the router.
#[derive(Clone, Debug)]
pub struct KeyRing {
    seed: RandomState,
    /// By their hashes.
    keys: Box<[(u64, Key)]>,
}

impl KeyRing {
    /// Makes them ready for look-ups.
    #[must_use]
    pub fn of(keys: impl IntoIterator<Item = Key>) -> Self {
        let seed = RandomState::new();
        let hashed = |key: Key| (seed.hash_one(key.secret.0.as_bytes()), key);
        let mut keys: Box<[_]> = keys.into_iter().map(hashed).collect();
        keys.sort_by_key(|(hash, _)| *hash);
        Self { seed, keys }
    }

    /// No key is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whose key it is.
    #[must_use]
    pub fn find(&self, given: &[u8]) -> Option<KeyId> {
        let same = |(_, key): &&(u64, Key)| same(key.secret.0.as_bytes(), given);
        self.candidates(given).iter().find(same).map(|(_, key)| key.id)
    }

    /// The keys that what came is compared with.
    fn candidates(&self, given: &[u8]) -> &[(u64, Key)] {
        let hash = self.seed.hash_one(given);
        let first = self.keys.partition_point(|(of, _)| *of < hash);
        let rest = &self.keys[first..];
        let alike = rest.iter().take_while(|(of, _)| *of == hash).count();
        &rest[..alike]
    }
}

/// Equality whose time depends on the lengths alone.
fn same(ours: &[u8], given: &[u8]) -> bool {
    let mut differs = u8::from(ours.len() != given.len());
    for (index, byte) in ours.iter().enumerate() {
        differs |= byte ^ given.get(index).copied().unwrap_or(0);
    }
    std::hint::black_box(differs) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(count: u32) -> KeyRing {
        KeyRing::of((1..=count).map(|id| Key { id: KeyId(id), secret: Secret(format!("secret-of-{id}")) }))
    }

    #[test]
    fn among_ten_thousand_keys_one_is_compared() {
        let ring = ring(10_000);
        for id in 1..=10_000 {
            let given = format!("secret-of-{id}");
            assert_eq!(ring.candidates(given.as_bytes()).len(), 1, "{given}");
            assert_eq!(ring.find(given.as_bytes()), Some(KeyId(id)));
        }
        for wrong in ["secret-of-", "secret-of-10001", "secret-of-1 ", ""] {
            assert_eq!(ring.candidates(wrong.as_bytes()).len(), 0, "{wrong}");
            assert_eq!(ring.find(wrong.as_bytes()), None);
        }
    }

    #[test]
    fn keys_whose_hashes_are_alike_are_told_apart() {
        let mut ring = ring(3);
        let hash = ring.seed.hash_one(b"secret-of-2".as_slice());
        ring.keys.iter_mut().for_each(|(of, _)| *of = hash);
        assert_eq!(ring.candidates(b"secret-of-2").len(), 3);
        assert_eq!(ring.find(b"secret-of-2"), Some(KeyId(2)));
    }

    #[test]
    fn where_hashes_fall_is_no_ones_to_know() {
        let hash = |ring: &KeyRing| ring.candidates(b"secret-of-1")[0].0;
        assert_ne!(hash(&ring(1)), hash(&ring(1)), "the seed is another each time");
    }

    #[test]
    fn equality_is_of_all_bytes() {
        assert!(same(b"abc", b"abc"));
        for other in ["abd", "bbc", "ab", "abcd", ""] {
            assert!(!same(b"abc", other.as_bytes()), "{other}");
        }
    }
}
