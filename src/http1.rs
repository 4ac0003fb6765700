//! http1: to come.
