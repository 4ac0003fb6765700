//! Where connections come in: a listener for each worker on one port of our own, or the one that a service manager holds.
//!
//! Called at the start. A socket that is handed over (systemd's `LISTEN_FDS`) outlives us: what connects while we are
//! started again waits in it, and is not refused. All workers accept from it then, each over a copy; the kernel wakes
//! them all for a connection, and one has it.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::config::Env;

/// Pending connections the kernel holds per worker.
const BACKLOG: i32 = 4096;

/// The first file that is handed over.
const FIRST: i32 = 3;

/// The listener that a service manager handed to this process, if it did.
///
/// # Errors
/// What was handed over is not one listening TCP socket, or cannot be had.
pub fn handed_over(env: &Env) -> Result<Option<TcpListener>, StartError> {
    let failed = |cause| StartError::System { what: "take the socket of the service manager (LISTEN_FDS)", cause };
    let process = getpid();
    let count = meant(env, process.as_raw_nonzero().get()).map_err(|reason| failed(std::io::Error::other(reason)))?;
    if !count {
        return Ok(None);
    }
    // By its bare number a file has no owner that Rust knows of; the kernel gives us a copy that has.
    let copy = pidfd_open(process, PidfdFlags::empty())
        .and_then(|ourselves| pidfd_getfd(ourselves, FIRST, PidfdGetfdFlags::empty()));
    let socket = copy.map_err(|error| {
        let advice = "pidfd_getfd must be allowed: Linux 5.6, and SystemCallFilter=pidfd_getfd in the unit";
        failed(std::io::Error::other(format!("{error}; {advice}")))
    })?;
    listener(socket).map(Some).map_err(|reason| failed(std::io::Error::other(reason)))
}

/// Whether one socket was handed over, and to us.
fn meant(env: &Env, process: i32) -> Result<bool, String> {
    let number = |name: &str| env.get(name).and_then(|value| value.parse::<i32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(whose), Some(count)) if whose == process && count == 1 => Ok(true),
        (Some(whose), Some(count)) if whose == process && count > 1 => {
            Err(format!("{count} sockets were handed over, which can be one: [::]:12434 takes both families"))
        }
        _ => Ok(false),
    }
}

fn listener(socket: OwnedFd) -> Result<TcpListener, &'static str> {
    let listens = socket_type(&socket) == Ok(SocketType::STREAM) && socket_acceptconn(&socket) == Ok(true);
    let listener = TcpListener::from(socket);
    // A socket of another family has no address that is one of ours.
    let ours = listens && listener.local_addr().is_ok();
    ours.then_some(listener).ok_or("it is no listening TCP socket (ListenStream=ADDRESS:PORT, Accept=no)")
}

/// A listener for each worker.
///
/// Our own share a port. It is probed first, without SO_REUSEPORT: two proxies that share a port without knowing it would
/// each get half of the clients.
pub(super) fn listen(
    address: SocketAddr,
    given: Option<TcpListener>,
    workers: usize,
) -> Result<Vec<TcpListener>, StartError> {
    if let Some(given) = given {
        let copy = |_| given.try_clone().map_err(|cause| StartError::System { what: "copy the listener", cause });
        return (0..workers).map(copy).collect();
    }
    let taken = |cause| StartError::PortTaken { address, cause };
    let probe = socket(address, false).map_err(taken)?;
    let address = probe.local_addr().map_err(taken)?;
    drop(probe);
    let bound = |_| {
        let socket = socket(address, true).map_err(taken)?;
        Ok(socket)
    };
    (0..workers).map(bound).collect()
}

fn socket(address: SocketAddr, share_port: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if share_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_socket_is_meant_for_us_or_not() {
        assert_eq!(meant(&env(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "1")]), 7), Ok(true));
        assert_eq!(meant(&env(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "1")]), 7), Ok(false), "of a parent of ours");
        for none in
            [&[][..], &[("LISTEN_FDS", "1")], &[("LISTEN_PID", "7")], &[("LISTEN_PID", "7"), ("LISTEN_FDS", "0")]]
        {
            assert_eq!(meant(&env(none), 7), Ok(false), "{none:?}");
        }
        assert!(meant(&env(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2")]), 7).unwrap_err().contains("can be one"));
    }

    #[test]
    fn only_a_listening_tcp_socket_is_taken() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert!(listener(connected.into()).is_err());
        assert!(listener(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()).is_err());
        let place = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(place.path().join("s")).unwrap();
        assert!(listener(unix.into()).is_err());
        assert!(listener(std::fs::File::open("/dev/null").unwrap().into()).is_err());
        assert_eq!(listener(tcp.try_clone().unwrap().into()).unwrap().local_addr().unwrap(), tcp.local_addr().unwrap());
    }
}
