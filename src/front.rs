//! front: to come.
