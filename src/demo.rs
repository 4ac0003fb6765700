//! demo: to come.
