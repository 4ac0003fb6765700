//! Identifiers and quantities as newtypes, with only the arithmetic that makes sense.
//!
//! Every room uses them; this one imports nothing of ours and must never hold state.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A configured node, dense from zero in configuration order. [`NodeId::NONE`] stands for "no node was reached".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

impl NodeId {
    /// No node: a request that ended before one was chosen.
    pub const NONE: Self = Self(u32::MAX);
}

/// A model by its normalised display name (`llama3.2:latest`), dense from zero in order of first sight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ModelId(pub u32);

impl ModelId {
    /// A name that no inventory lists and no node answered for: one row for all of them.
    pub const UNKNOWN: Self = Self(0);
    /// Names beyond `limits.names`: one row for all of them.
    pub const OTHER: Self = Self(1);
}

/// A router key, by its place in `router_keys` plus one. [`KeyId::NONE`] is a request without a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct KeyId(pub u32);

impl KeyId {
    /// The request carried no key (none is asked for, or the route needs none).
    pub const NONE: Self = Self(0);
    /// Requests whose event found no room on its ring: counted, but no longer told apart by key.
    pub const LOST: Self = Self(u32::MAX);
}

/// A worker thread, dense from zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WorkerId(pub usize);

/// One word of capacity: a (node, weights digest) pair. Dense, append-only, never reused in a process' life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CellId(pub u32);

/// A UTC minute: Unix seconds divided by 60, floored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct UnixMinute(pub u32);

impl UnixMinute {
    /// The minute that holds this Unix time in milliseconds.
    #[must_use]
    pub fn of_unix_ms(unix_ms: u64) -> Self {
        Self(u32::try_from(unix_ms / 60_000).unwrap_or(u32::MAX))
    }

    /// Unix seconds of the minute's first second.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        u64::from(self.0) * 60
    }

    /// The UTC day (days since 1970-01-01) that holds this minute.
    #[must_use]
    pub fn day(self) -> UnixDay {
        UnixDay(self.0 / (24 * 60))
    }
}

/// A UTC day: days since 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct UnixDay(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node#{}", self.0)
    }
}
