//! An import through the proxy that holds the ledger, as an operator would do it with curl.
//!
//! Called by [`super::run`] when the store is held. One blocking request on a connection of its own; must never be used
//! from a worker.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::ImportError;
use crate::config::Config;
use crate::usage::imported::{Import, Imported};

/// Until the proxy accepts.
const CONNECT: Duration = Duration::from_secs(5);
/// Until it has imported: years of minutes take seconds.
const PATIENCE: Duration = Duration::from_secs(600);

/// Hands an import to the proxy that listens where the configuration (or a flag) says; `None` if nobody does.
pub(super) fn hand_over(import: &Import, config: &Config, key: Option<&str>) -> Option<Result<Imported, ImportError>> {
    let address = reachable(config.listen);
    let stream = TcpStream::connect_timeout(&address, CONNECT).ok()?;
    let refused = |reason: String| ImportError::Refused { address, reason };
    Some(ask(stream, address, key, import).map_err(|error| refused(error.to_string())).and_then(|(status, body)| {
        if status == 200 {
            return serde_json::from_slice(&body).map_err(|error| refused(error.to_string()));
        }
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let words = ["detail", "error"].iter().find_map(|key| said[key].as_str()).unwrap_or("it knows no such route");
        Err(refused(format!("{status}: {words}")))
    }))
}

/// Every address of a host is reached by its loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

fn ask(
    mut stream: TcpStream,
    address: SocketAddr,
    key: Option<&str>,
    import: &Import,
) -> std::io::Result<(u16, Vec<u8>)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let body = serde_json::to_vec(import)?;
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n"));
    let head = format!(
        "POST /herdgate/import HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         {}Connection: close\r\n\r\n",
        body.len(),
        key.unwrap_or_default()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let broken = || std::io::Error::other("the answer is no HTTP");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(broken)?;
    let status = std::str::from_utf8(answer.get(9..12).ok_or_else(broken)?).ok().and_then(|text| text.parse().ok());
    Ok((status.ok_or_else(broken)?, answer.split_off(end + 4)))
}
