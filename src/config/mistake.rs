//! One mistake in the configuration: where, which key, which value, why.
//!
//! Collected by the walker, printed by `main.rs`. Never holds a secret: who makes one of a secret key leaves the value out.

use std::fmt;

use crate::sync::Arc;

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
