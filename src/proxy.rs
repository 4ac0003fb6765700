//! proxy: to come.
