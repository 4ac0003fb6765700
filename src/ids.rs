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

/// What one request is called in the answer, towards its node, in logs and decisions (`x-request-id`): the client's own
/// name for it if that is sane, else one of ours. Fixed size, no heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    length: u8,
    bytes: [u8; Self::BYTES_MAX],
}

impl RequestId {
    /// Bytes of an id, at most: what a cache line holds beside the length. A UUID has 36.
    pub const BYTES_MAX: usize = 63;

    /// No request.
    pub const NONE: Self = Self { length: 0, bytes: [0; Self::BYTES_MAX] };

    /// What a client sent, if it may stand in a header, a log and a query as it is: 1 to 63 ASCII letters, digits and
    /// `-._~:/+=@`.
    #[must_use]
    pub fn of_client(value: &[u8]) -> Option<Self> {
        let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:/+=@".contains(byte);
        if value.is_empty() || value.len() > Self::BYTES_MAX || !value.iter().all(sane) {
            return None;
        }
        let mut id = Self { length: u8::try_from(value.len()).ok()?, ..Self::NONE };
        id.bytes[..value.len()].copy_from_slice(value);
        Some(id)
    }

    /// One of ours, 24 hexadecimal digits: the process' start in Unix milliseconds (11), the worker (3), its `count`th
    /// request (10). Two processes started in the same millisecond may give out the same one.
    #[must_use]
    pub fn made(start_unix_ms: u64, worker: WorkerId, count: u64) -> Self {
        let mut id = Self { length: 24, ..Self::NONE };
        push_hex(&mut id.bytes[..11], start_unix_ms);
        push_hex(&mut id.bytes[11..14], worker.0 as u64);
        push_hex(&mut id.bytes[14..24], count);
        id
    }

    /// The same with another count.
    #[must_use]
    pub fn with_count(mut self, count: u64) -> Self {
        push_hex(&mut self.bytes[14..24], count);
        self
    }

    /// Its bytes, ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Packed into eight words, for a record that is shared between threads.
    #[must_use]
    pub fn to_words(self) -> [u64; 8] {
        let mut bytes = [0; 64];
        bytes[0] = self.length;
        bytes[1..].copy_from_slice(&self.bytes);
        let mut words = [0; 8];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        words
    }

    /// From its words; of others than [`RequestId::to_words`] gave, some id.
    #[must_use]
    pub fn from_words(words: [u64; 8]) -> Self {
        let mut bytes = [0; 64];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        let mut id = Self { length: bytes[0].min(Self::BYTES_MAX as u8), ..Self::NONE };
        id.bytes.copy_from_slice(&bytes[1..]);
        id
    }
}

/// Fills `place` with the lowest digits of a number.
fn push_hex(place: &mut [u8], mut value: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for digit in place.iter_mut().rev() {
        *digit = DIGITS[(value & 15) as usize];
        value >>= 4;
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_kept_when_sane() {
        for kept in ["a", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "req_abc:1/2+3=@~."] {
            assert_eq!(RequestId::of_client(kept.as_bytes()).unwrap().as_str(), kept);
        }
        let long = "x".repeat(RequestId::BYTES_MAX);
        assert_eq!(RequestId::of_client(long.as_bytes()).unwrap().as_str(), long);
        let longer = "x".repeat(RequestId::BYTES_MAX + 1);
        for replaced in ["", "a b", "a\"b", "<script>", "tab\t", "caf\u{e9}", "a,b", longer.as_str()] {
            assert_eq!(RequestId::of_client(replaced.as_bytes()), None, "{replaced}");
        }
    }

    #[test]
    fn ours_have_one_width_and_differ() {
        let first = RequestId::made(1_764_000_000_123, WorkerId(1), 7);
        assert_eq!(first.as_str(), "19ab697e87b0010000000007");
        assert_eq!(first.as_str().len(), 24);
        assert_eq!(first.with_count(8), RequestId::made(1_764_000_000_123, WorkerId(1), 8));
        assert_ne!(first, RequestId::made(1_764_000_000_123, WorkerId(2), 7));
    }

    #[test]
    fn words_hold_all_of_it() {
        for text in ["a", "0123456789012345678901234567890123456789012345678901234567890ab"] {
            let id = RequestId::of_client(text.as_bytes()).unwrap();
            assert_eq!(RequestId::from_words(id.to_words()), id);
        }
        assert!(RequestId::from_words([u64::MAX; 8]).as_bytes().len() == RequestId::BYTES_MAX);
    }
}
