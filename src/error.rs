//! error: to come.
