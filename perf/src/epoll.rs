//! A thin layer over epoll: what both the node server and the load generator wait with.
//!
//! Called by `backend` and `load`. Edge-triggered for reading and writing at once, so that a socket is registered once
//! in its life; must never allocate while waiting.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{Timespec, epoll};

/// Readiness of many sockets.
pub(crate) struct Epoll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Epoll {
    pub(crate) fn new() -> anyhow::Result<Self> {
        // Late timers would show as latency: ask for the finest slack the kernel has.
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).context("timer slack")?;
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll")?, events: Vec::with_capacity(256) })
    }

    /// Watches a listener: level-triggered, readable.
    pub(crate) fn add_listener(&self, socket: impl AsFd, key: u64) -> anyhow::Result<()> {
        epoll::add(&self.fd, socket, epoll::EventData::new_u64(key), epoll::EventFlags::IN).context("epoll add")
    }

    /// Watches a connection: edge-triggered, readable and writable.
    pub(crate) fn add(&self, socket: impl AsFd, key: u64) -> anyhow::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.fd, socket, epoll::EventData::new_u64(key), flags).context("epoll add")
    }

    /// Waits until something is ready or the time is over, and fills `ready` with keys.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> anyhow::Result<()> {
        ready.clear();
        self.events.clear();
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll wait"),
        }
        for event in &self.events {
            let (flags, data) = (event.flags, event.data);
            let gone =
                epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            ready.push(Ready {
                key: data.u64(),
                readable: flags.intersects(gone),
                writable: flags.contains(epoll::EventFlags::OUT),
            });
        }
        Ok(())
    }
}

/// One socket that is ready.
pub(crate) struct Ready {
    pub(crate) key: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}
