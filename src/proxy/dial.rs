//! Opens a connection to a node. Called by an exchange that found none idle; rare beside the requests that reuse one,
//! so that this is the one place of the upstream client with a timer of its own. Must never resolve a name.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::upstream::Cause;
use crate::clock::Millis;
use crate::sync::Arc;

/// Idle time before the first probe. A node is silent while it loads and evaluates a prompt, for minutes at times:
/// probes tell that from a dead machine.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 3;
/// Unacknowledged bytes for this long: the machine is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Tries the addresses in turn until one accepts, all within `within_ms`: each gets an equal share of what is left, so
/// that a family that goes nowhere does not eat the other's time.
pub(super) async fn dial(addresses: Arc<Vec<SocketAddr>>, within_ms: Millis) -> Result<TcpStream, Cause> {
    let deadline = Instant::now() + Duration::from_millis(within_ms);
    let mut failed = Cause::NoAddress;
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(1);
        failed = match timeout(share, connect(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => match failed {
                // Refused is said of a node only if every address refused.
                Cause::NoAddress | Cause::Refused => Cause::Refused,
                other => other,
            },
            Ok(Err(error)) => Cause::Io(error),
            Err(_) => Cause::TimedOut,
        };
    }
    Err(failed)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // A connect to a local port in the ephemeral range that nobody listens on can meet itself (simultaneous open).
    if address.ip().is_loopback() && stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_IDLE)
        .with_interval(KEEP_ALIVE_INTERVAL)
        .with_retries(KEEP_ALIVE_PROBES);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}
