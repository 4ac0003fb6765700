//! Names of nodes and models as Python's strings are: hashed once, compared by identity first.
//!
//! Used as keys everywhere. Must never make the baseline pay for hashing an URL at each access.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// A map by name.
pub type Map<V> = HashMap<Name, V, BuildHasherDefault<Once>>;

/// A set of names.
pub type Set = HashSet<Name, BuildHasherDefault<Once>>;

/// A name; clones share it.
#[derive(Clone, Debug)]
pub struct Name(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hash: u64,
    text: Box<str>,
    /// As a JSON string, quotes included.
    quoted: Box<str>,
}

impl Name {
    /// A name of this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self(Arc::new(Inner { hash: hasher.finish(), text: text.into(), quoted: quoted(text).into() }))
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0.text
    }

    pub(crate) fn quoted(&self) -> &str {
        &self.0.quoted
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.hash == other.0.hash && self.0.text == other.0.text
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if u32::from(c) < 0x20 => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Passes on the hash that a [`Name`] carries.
#[derive(Debug, Default)]
pub struct Once(u64);

impl Hasher for Once {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only names are keys, and they write one u64");
    }
}
