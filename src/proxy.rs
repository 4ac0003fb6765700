//! proxy: to come.

mod dial;
pub mod lingering;
pub mod pool;
pub mod upstream;
mod wire;
