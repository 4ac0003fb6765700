//! What the tests over the whole proxy share: a simulated herd, the proxy in this process, a client on raw bytes.
#![expect(dead_code, unreachable_pub, reason = "each test crate uses its own part")]

pub mod client;
pub mod proxy;
pub mod scripted;
