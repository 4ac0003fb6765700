//! `herdgate status | drain | undrain | reload`: talks HTTP to a running proxy and says in words what came of it.
//!
//! Called by `main.rs` alone. The address and the key come from flags, the environment, or the configuration that the
//! proxy was started with; that file may have mistakes here (its secrets may be set only where the proxy runs), so it is
//! read as far as it goes and the proxy judges it. Must never change anything itself.

mod table;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::config::{self, Config, Flags, Sources};
use crate::http1::{Item, ResponseDecoder};
use crate::sync;
use crate::terminal::{plain, plain_json};

/// The environment variable of the router key.
const KEY_VARIABLE: &str = "HERDGATE_KEY";
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for an answer: a reload looks names up, and waits until the fleet shows the change.
const ANSWER: Duration = Duration::from_secs(60);
/// Between two looks of `--wait`.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The largest answer read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The largest head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Where the running proxy is, and how it knows us.
#[derive(Args, Clone, Debug)]
pub struct RemoteArgs {
    /// Configuration file that the proxy was started with: its address and first router key are used; without it,
    /// herdgate.yaml in this folder if there is one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port of the proxy [default: as configured, else 127.0.0.1:12434]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Router key; HERDGATE_KEY in the environment does not show in the list of processes [default: the first one
    /// configured]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

/// `herdgate status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Print the proxy's own JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// `herdgate drain` and `herdgate undrain`.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// Name of the node; its URL where it has no name
    #[arg(value_name = "NODE")]
    node: String,
    /// Wait until nothing runs on the node (drain), or until it is up again (undrain), at most this many seconds
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// `herdgate reload`.
#[derive(Args, Clone, Debug)]
pub struct ReloadArgs {
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Why it did not work, with the exit code that says so.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Wrong flags, an unknown node, or a configuration with mistakes (exit 64).
    #[error("{0}")]
    Usage(String),
    /// Nobody answers there (exit 69).
    #[error("no proxy answers at {address}: {cause}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        cause: String,
    },
    /// The key is missing, wrong, or not enough (exit 77).
    #[error("{0}; give --key, or {KEY_VARIABLE} in the environment")]
    Forbidden(String),
    /// It answered, and not as was hoped (exit 1).
    #[error("{0}")]
    Refused(String),
}

impl RemoteError {
    /// The exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unreachable { .. } => 69,
            Self::Forbidden(_) => 77,
            Self::Refused(_) => 1,
        }
    }
}

/// Prints what runs where.
///
/// # Errors
/// The proxy cannot be asked.
pub fn status(args: &StatusArgs) -> Result<String, RemoteError> {
    let status = Proxy::of(&args.remote)?.status()?;
    Ok(if args.json { plain_json(&status) + "\n" } else { table::of(&status) })
}

/// Takes a node out, and waits until nothing runs there any more if that is wanted.
///
/// # Errors
/// The proxy refuses, or the wait was too long.
pub fn drain(args: &DrainArgs) -> Result<String, RemoteError> {
    let proxy = Proxy::of(&args.remote)?;
    let answer = proxy.post(&order(&args.node, "drain"))?;
    let (in_flight, name) = (|node: &Value| node["in_flight"].as_u64().unwrap_or(0), &args.node);
    let Some(seconds) = args.wait else {
        let running = proxy.node(name)?.map_or(0, |node| in_flight(&node));
        return Ok(format!("{name} is taken out; {running} in flight{}\n", note(&answer)));
    };
    proxy.wait(seconds, || Ok(proxy.node(name)?.is_none_or(|node| in_flight(&node) == 0)))?;
    Ok(format!("{name} is taken out; nothing runs there any more{}\n", note(&answer)))
}

/// Takes a node in again, and waits until it is up if that is wanted.
///
/// # Errors
/// The proxy refuses, or the wait was too long.
pub fn undrain(args: &DrainArgs) -> Result<String, RemoteError> {
    let proxy = Proxy::of(&args.remote)?;
    let answer = proxy.post(&order(&args.node, "undrain"))?;
    let (state, name) = (|node: &Value| node["state"].as_str().unwrap_or("down").to_owned(), &args.node);
    if let Some(seconds) = args.wait {
        proxy.wait(seconds, || Ok(proxy.node(name)?.is_some_and(|node| state(&node) == "up")))?;
    }
    let now = proxy.node(name)?.map_or_else(|| "gone".to_owned(), |node| state(&node));
    Ok(format!("{name} is taken in again; it is {}{}\n", plain(&now), note(&answer)))
}

/// Lets the proxy read its configuration again.
///
/// # Errors
/// The proxy refuses: the configuration has mistakes, each is told.
pub fn reload(args: &ReloadArgs) -> Result<String, RemoteError> {
    let answer = Proxy::of(&args.remote)?.post("/herdgate/reload")?;
    Ok(table::reloaded(&answer))
}

fn note(answer: &Value) -> String {
    answer["error"].as_str().map(|error| format!(" ({})", plain(error))).unwrap_or_default()
}

/// The path of an order; what a path cannot hold is escaped.
fn order(node: &str, verb: &str) -> String {
    let mut path = "/herdgate/nodes/".to_owned();
    for byte in node.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/[]@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path + "/" + verb
}

/// A running proxy.
struct Proxy {
    address: SocketAddr,
    key: Option<String>,
}

impl Proxy {
    fn of(args: &RemoteArgs) -> Result<Self, RemoteError> {
        let config = configured(args)?;
        let key = args.key.clone().or_else(|| std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty()));
        let first = || config.router_keys.first().map(|key| key.secret.0.clone());
        Ok(Self { address: reachable(config.listen)?, key: key.or_else(first) })
    }

    fn status(&self) -> Result<Value, RemoteError> {
        self.exchange("GET", "/herdgate/status")
    }

    /// One node of the status, if it is there.
    fn node(&self, name: &str) -> Result<Option<Value>, RemoteError> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        Ok(nodes.into_iter().find(|node| node["name"] == name))
    }

    fn post(&self, path: &str) -> Result<Value, RemoteError> {
        self.exchange("POST", path)
    }

    fn wait(&self, seconds: u64, mut is_done: impl FnMut() -> Result<bool, RemoteError>) -> Result<(), RemoteError> {
        let looks = u128::from(seconds) * 1000 / LOOK_EVERY.as_millis();
        for _ in 0..=looks {
            if is_done()? {
                return Ok(());
            }
            sync::sleep(LOOK_EVERY);
        }
        Err(RemoteError::Refused(format!("it is not so after {seconds} s; what was ordered stays in force")))
    }

    fn exchange(&self, method: &str, path: &str) -> Result<Value, RemoteError> {
        let unreachable = |cause: String| RemoteError::Unreachable { address: self.address, cause };
        let (status, body) = self.ask(method, path).map_err(|error| unreachable(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let said = || match answer["error"].as_str().or_else(|| answer["detail"].as_str()) {
            Some(error) => plain(error),
            None => format!("it answers {status} to {method} {path}: is this a herdgate of this version?"),
        };
        match status {
            200 => Ok(answer),
            401 | 403 => Err(RemoteError::Forbidden(said())),
            404 if answer.is_object() => Err(RemoteError::Usage(said())),
            422 => Err(RemoteError::Usage(table::mistakes(&answer))),
            _ => Err(RemoteError::Refused(said())),
        }
    }

    /// One request on a connection of its own.
    fn ask(&self, method: &str, path: &str) -> std::io::Result<(u16, Vec<u8>)> {
        let bad = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
        let mut stream = TcpStream::connect_timeout(&self.address, CONNECT)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(CONNECT))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        if let Some(key) = &self.key {
            if key.bytes().any(|byte| byte.is_ascii_control()) {
                return Err(bad("the key holds a control character".to_owned()));
            }
            request += &format!("Authorization: Bearer {key}\r\n");
        }
        request += if method == "POST" { "Content-Length: 0\r\n\r\n" } else { "\r\n" };
        stream.write_all(request.as_bytes())?;
        let mut decoder = ResponseDecoder::new(false, HEAD_BYTES_MAX);
        let (mut status, mut body, mut piece) = (0, Vec::new(), vec![0; 16 * 1024]);
        loop {
            let read = stream.read(&mut piece)?;
            if read == 0 {
                decoder.eof().map_err(|error| bad(error.to_string()))?;
                return Ok((status, body));
            }
            let mut rest = &piece[..read];
            loop {
                let (used, item) = decoder.feed(rest).map_err(|error| bad(error.to_string()))?;
                match item {
                    Item::Head(head) => status = head.status.as_u16(),
                    Item::Data(data) if body.len() + data.len() > ANSWER_BYTES_MAX => {
                        return Err(bad("an answer without an end".to_owned()));
                    }
                    Item::Data(data) => body.extend_from_slice(data),
                    Item::More => break,
                    Item::End => return Ok((status, body)),
                }
                rest = &rest[used..];
            }
        }
    }
}

/// The configuration as far as it can be read here.
fn configured(args: &RemoteArgs) -> Result<Config, RemoteError> {
    let env = config::process_env();
    let directory = std::env::current_dir().unwrap_or_default();
    let file = config::find(args.config.as_deref(), &directory, &env)
        .map_err(|mistake| RemoteError::Usage(mistake.to_string()))?;
    let flags = Flags { listen: args.listen.clone(), lenient: true, ..Flags::default() };
    let (config, mistakes) = config::read_anyway(&Sources { file, flags, env });
    let of_flag = mistakes.iter().find(|mistake| matches!(mistake.place, config::Place::Flag(_)));
    of_flag.map_or(Ok(config), |mistake| Err(RemoteError::Usage(mistake.to_string())))
}

/// Where to reach what listens there: everywhere includes here.
fn reachable(listen: SocketAddr) -> Result<SocketAddr, RemoteError> {
    if listen.port() == 0 {
        return Err(RemoteError::Usage("the configuration leaves the port to the system: give --listen".to_owned()));
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, listen.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everywhere_is_reached_here_and_port_0_nowhere() {
        for (listen, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:2", "[::1]:2"),
            ("10.0.0.7:3", "10.0.0.7:3"),
            ("[fd00::1]:4", "[fd00::1]:4"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).unwrap().to_string(), reached);
        }
        assert_eq!(reachable("127.0.0.1:0".parse().unwrap()).unwrap_err().code(), 64);
    }

    #[test]
    fn a_name_is_a_path_whatever_it_holds() {
        assert_eq!(order("http://[::1]:11434", "drain"), "/herdgate/nodes/http://[::1]:11434/drain");
        assert_eq!(order("a b?c%d#é", "undrain"), "/herdgate/nodes/a%20b%3Fc%25d%23%C3%A9/undrain");
    }
}
