//! What the service manager is told of this process: ready, reloading, stopping (systemd's `Type=notify`).
//!
//! Used by `main`. A datagram each to the socket that `NOTIFY_SOCKET` names; without it nothing is sent. What the manager
//! does not take is lost: it decides by its own time-outs then. Must never wait for it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The way to the manager, if there is one.
#[derive(Debug, Default)]
pub struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// As the environment says.
    #[must_use]
    pub fn of_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        Self::at(&name).unwrap_or_else(|error| {
            tracing::warn!(socket = %name.to_string_lossy(), %error, "the service manager cannot be told anything");
            Self::default()
        })
    }

    /// At a socket by its path, or by its name after an `@` (one without a place in the file system).
    ///
    /// # Errors
    /// It is no such name, or there is no socket to send from.
    pub fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', hidden @ ..] => SocketAddr::from_abstract_name(hidden)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self(Some((socket, address))))
    }

    /// Clients are served; after [`Manager::reloading`]: it is over, whatever came of it.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        // By this time the manager tells an order of its own from one that was under way before.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let us = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={us}\nSTATUS=reading the configuration again"));
    }

    /// It drains.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining");
    }

    fn tell(&self, state: &str) {
        let Some((socket, address)) = &self.0 else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(listener: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let read = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..read].to_vec()).unwrap()
    }

    #[test]
    fn it_is_told_at_a_path_and_at_a_name_without_one() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let hidden = format!("@herdgate-{}-manager", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&hidden[1..]).unwrap();
        for (name, listener) in [
            (path.as_os_str(), UnixDatagram::bind(&path).unwrap()),
            (OsStr::new(&hidden), UnixDatagram::bind_addr(&abstract_address).unwrap()),
        ] {
            let manager = Manager::at(name).unwrap();
            manager.ready("serving");
            manager.reloading();
            manager.stopping();
            assert_eq!(heard(&listener), "READY=1\nSTATUS=serving");
            let reloading = heard(&listener);
            let us = reloading.lines().nth(1).unwrap().strip_prefix("MONOTONIC_USEC=").unwrap();
            assert!(reloading.starts_with("RELOADING=1\n") && us.parse::<u64>().unwrap() > 0, "{reloading}");
            assert_eq!(heard(&listener), "STOPPING=1\nSTATUS=draining");
        }
    }

    #[test]
    fn nobody_there_is_nobody_told() {
        Manager::default().ready("serving");
        let place = tempfile::tempdir().unwrap();
        Manager::at(place.path().join("absent").as_os_str()).unwrap().stopping();
    }
}
