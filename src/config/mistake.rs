//! One mistake in the configuration: where, which key, which value, why.
//!
//! Collected by the walker, printed by `main.rs`, shown by `/health`. Never holds a secret: see [`is_secret`].

use std::fmt;

use crate::sync::Arc;

/// Whether what stands under this key may be a secret, be it of the right form or not: a key where a list of them belongs
/// is one too. By the path of the key, in our spelling or the ancestor's seven.
pub(super) fn is_secret(key: &str) -> bool {
    key.split('.').any(|part| {
        let part = part.to_ascii_lowercase().replace('-', "_");
        part.starts_with("router_key") || part.contains("api_key") || part.contains("apikey")
    })
}

/// Where a value was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a file; lines and columns (in characters) count from 1.
    File {
        /// The file as it was named.
        path: Arc<str>,
        /// Line, from 1; 0: the file as a whole.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// In an environment variable of this name.
    Variable(Arc<str>),
    /// In a command line flag of this name.
    Flag(&'static str),
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0, .. } => f.write_str(path),
            Self::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One mistake, or one warning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// Where it stands.
    pub place: Place,
    /// Path of the key (`timeouts.connect`, `nodes[1].url`); empty: the file as a whole.
    pub key: String,
    /// The value as written; `None` for secrets, missing values and whole sections.
    pub value: Option<String>,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(f, "value `{value}`: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Mistake {}
