//! What the tests over the whole proxy share: a simulated herd, the proxy in this process, a client on raw bytes.
#![expect(dead_code, unreachable_pub, reason = "each test crate uses its own part")]
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

pub mod client;
pub mod proxy;
pub mod scripted;
pub mod sink;
pub mod steady;
