//! proxy: to come.

mod dial;
pub mod inject;
pub mod lingering;
pub mod pool;
pub mod scan;
pub mod tail;
pub mod upstream;
mod wire;
