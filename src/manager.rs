//! What the service manager is told of this process: ready, reloading, well, stopping (systemd's `Type=notify`).
//!
//! Used by `main`. A datagram each to the socket that `NOTIFY_SOCKET` names; without it nothing is sent. What the manager
//! does not take is lost: it decides by its own time-outs then. Must never wait for it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the manager, if there is one.
#[derive(Debug, Default)]
pub struct Manager {
    way: Option<(UnixDatagram, SocketAddr)>,
    /// It ends this process when it was not told for so long that all is well.
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment says.
    #[must_use]
    pub fn of_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let said = |name| std::env::var(name).ok();
        let watchdog = patience(said("WATCHDOG_USEC").as_deref(), said("WATCHDOG_PID").as_deref(), std::process::id());
        match Self::at(&name) {
            Ok(manager) => Self { watchdog, ..manager },
            Err(error) => {
                tracing::warn!(socket = %name.to_string_lossy(), %error, "the service manager cannot be told anything");
                Self::default()
            }
        }
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
        Ok(Self { way: Some((socket, address)), watchdog: None })
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

    /// It drains, and has ended after `longest`: whatever the manager was configured with, it is asked for that time.
    pub fn stopping(&self, longest: Duration) {
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\nSTATUS=draining", longest.as_micros()));
    }

    /// How long the manager waits between two tellings that all is well.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// All is well; said to a manager that wants to hear it.
    pub fn well(&self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, state: &str) {
        let Some((socket, address)) = &self.way else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

/// The watchdog's patience, as the environment says it; it may be meant for another process.
fn patience(us: Option<&str>, whose: Option<&str>, process: u32) -> Option<Duration> {
    let us = us?.parse().ok().filter(|us| *us > 0)?;
    let ours = whose.is_none_or(|whose| whose.parse() == Ok(process));
    ours.then(|| Duration::from_micros(us))
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
            manager.well();
            manager.stopping(Duration::from_secs(40));
            assert_eq!(heard(&listener), "READY=1\nSTATUS=serving");
            let reloading = heard(&listener);
            let us = reloading.lines().nth(1).unwrap().strip_prefix("MONOTONIC_USEC=").unwrap();
            assert!(reloading.starts_with("RELOADING=1\n") && us.parse::<u64>().unwrap() > 0, "{reloading}");
            assert_eq!(heard(&listener), "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=draining");
            let watched = Manager { watchdog: Some(Duration::from_secs(1)), ..manager };
            watched.well();
            assert_eq!(heard(&listener), "WATCHDOG=1");
        }
    }

    #[test]
    fn a_watchdog_is_ours_or_nobodys() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(patience(Some("1000000"), None, 7), second);
        assert_eq!(patience(Some("1000000"), Some("7"), 7), second);
        for (us, whose) in [(Some("1000000"), Some("8")), (None, Some("7")), (Some("0"), None), (Some("x"), None)] {
            assert_eq!(patience(us, whose, 7), None);
        }
    }

    #[test]
    fn nobody_there_is_nobody_told() {
        Manager::default().ready("serving");
        let place = tempfile::tempdir().unwrap();
        Manager::at(place.path().join("absent").as_os_str()).unwrap().stopping(Duration::ZERO);
    }
}
